//! Trees and images of them.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use block::ReadAt;
use loopbox_fs::erofs::Erofs;
use rig::Scratch;
use rig::tree::{Manifest, Sample, text};

/// Fills a folder: the sample tree without its large sparse file, text around block boundaries, files of which only parts
/// shrink, files that are the same in parts, holes, attributes that files share.
pub(crate) fn fill(folder: &Path, many: u32) {
    rig::tree::make(folder, Sample { many, sparse: false, ..Sample::ALL });
    std::fs::create_dir(folder.join("text")).unwrap();
    for len in [1, 4095, 4096, 4097, 9000, 65_536, 131_071, 131_072, 131_073, 300_000, 1_048_576] {
        std::fs::write(folder.join(format!("text/{len}")), text(len)).unwrap();
    }
    let noise = std::fs::read(folder.join("sizes/1100003")).unwrap();
    let mut mixed = Vec::new();
    for n in 0..24 {
        mixed.extend_from_slice(&text(n * 777 + 13));
        mixed.extend_from_slice(&noise[n * 9001..][..n * 501]);
    }
    std::fs::write(folder.join("mixed"), &mixed).unwrap();
    for n in [1, 70_001] {
        std::fs::write(folder.join(format!("shifted-{n}")), [&noise[..n], &mixed].concat()).unwrap();
        std::fs::write(folder.join(format!("tail-{n}")), &mixed[n..]).unwrap();
    }
    std::fs::write(folder.join("same-letter"), vec![b'a'; 1_500_000]).unwrap();
    for (name, size, islands) in [
        ("holes", 3_000_000, &[(0, 5000), (1_200_000, 5000)][..]),
        ("hole-first", 2_000_001, &[(2_000_000, 1)]),
        ("hole-last", 2_100_000, &[(0, 10)]),
        ("hole-only", 1_048_576, &[]),
        ("hole-odd", 700_001, &[]),
    ] {
        let file = std::fs::File::create(folder.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (at, len) in islands {
            file.write_all_at(&text(*len), *at).unwrap();
        }
    }
    let set = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::lsetxattr(folder.join(name), attribute, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    for name in ["text/1", "text/4096", "text", "holes", "mixed"] {
        set(name, "user.shared", &[7; 500]);
        set(name, "user.short", b"short");
        if rig::is_root() {
            set(name, "trusted.shared", &[8; 700]);
            set(name, "security.mine", b"a label");
        }
    }
    set("text/9000", "user.long", &[9; 3000]);
    // Compact inodes have whole seconds.
    rig::tree::set_times(folder);
}

/// The manifest of a folder, as an image made with `options` has it.
pub(crate) fn manifest(folder: &Path, options: &str) -> Manifest {
    let mut manifest = rig::tree::of_folder(folder);
    let words: Vec<&str> = options.split_whitespace().collect();
    for file in manifest.values_mut() {
        if let Some(time) = words.iter().find_map(|word| word.strip_prefix("-T")) {
            file.modified = loopbox_fs::Time { seconds: time.parse().unwrap(), nanoseconds: 0 };
        }
        if words.contains(&"--all-root") {
            file.owner = (0, 0);
        }
        if words.contains(&"-x-1") {
            file.xattrs.clear();
        }
    }
    manifest
}

/// Makes an image of a folder by mkfs.erofs with `options` (separated by blanks).
pub(crate) fn make(scratch: &Scratch, name: &str, options: &str, folder: &Path) -> PathBuf {
    let image = scratch.join(name);
    let _ = std::fs::remove_file(&image);
    let mut command = Command::new(rig::which("mkfs.erofs").unwrap());
    rig::run_command(command.arg("--quiet").args(options.split_whitespace()).arg(&image).arg(folder));
    image
}

/// Whether the mkfs.erofs of this machine has a word in its help: a compression, an option.
pub(crate) fn offers(word: &str) -> bool {
    static HELP: OnceLock<String> = OnceLock::new();
    let help = HELP.get_or_init(|| {
        let output = rig::output(Command::new(rig::which("mkfs.erofs").unwrap()).arg("--help"));
        rig::text(&output)
    });
    help.contains(word)
}

/// An image as a device that says where its bytes lie.
pub(crate) fn device(image: &Path) -> Arc<dyn ReadAt> {
    Arc::new(backing::FileBacking::open(image, backing::Open { lock: false, ..backing::Open::READ }).unwrap())
}

/// The file system of an image.
pub(crate) fn open(image: &Path) -> Erofs {
    Erofs::open(device(image)).unwrap_or_else(|error| panic!("{}: {error:?}", image.display()))
}

/// Fills a folder with the small tree that the images in test_data/erofs were made of: by erofs-utils 1.9.3, since what
/// the packaged one writes is less. `test_data/erofs/README.md` has the commands.
pub(crate) fn fill_small(folder: &Path) {
    std::fs::create_dir_all(folder.join("directory/below")).unwrap();
    for len in [0, 1, 100, 4095, 4096, 4097, 20_000, 100_001] {
        std::fs::write(folder.join(format!("directory/{len}")), text(len)).unwrap();
    }
    // The same text from another place on, so that parts of files are those of others.
    let whole = text(100_001);
    std::fs::write(folder.join("from-4096"), &whole[4096..80_000]).unwrap();
    std::fs::write(folder.join("from-12345"), &whole[12_345..60_000]).unwrap();
    let mut noise = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 24) as u8
    })
    .take(9000)
    .collect();
    std::fs::write(folder.join("noise"), [&noise, &whole[..20_000], &noise[..5000]].concat()).unwrap();
    std::fs::write(folder.join("same-letter"), vec![b'a'; 150_000]).unwrap();
    std::os::unix::fs::symlink("../from-4096", folder.join("directory/below/link")).unwrap();
    std::fs::hard_link(folder.join("noise"), folder.join("directory/below/noise-again")).unwrap();
    for n in 0..60 {
        std::fs::write(folder.join(format!("directory/below/number {n} of sixty")), text(n * 40)).unwrap();
    }
    let file = std::fs::File::create(folder.join("holes")).unwrap();
    file.set_len(100_000).unwrap();
    file.write_all_at(b"an island", 50_000).unwrap();
    let set = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::lsetxattr(folder.join(name), attribute, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    for name in ["noise", "directory", "directory/100", "directory/4096"] {
        set(name, "user.shared.by.some", &[7; 50]);
        set(name, "user.of-its-own", name.as_bytes());
    }
}

/// The images in test_data/erofs, by name.
pub(crate) fn stored() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test_data/erofs");
    let images = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut images: Vec<_> = images.filter(|path| path.extension().is_some_and(|end| end == "img")).collect();
    images.sort();
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    images.iter().map(|path| (name(path), std::fs::read(path).unwrap())).collect()
}
