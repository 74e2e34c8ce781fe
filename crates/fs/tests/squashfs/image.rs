//! Trees and images of them.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use block::ReadAt;
use loopbox_fs::squashfs::SquashFs;
use rig::Scratch;
use rig::tree::{Manifest, Sample, text};

/// Fills a folder: the sample tree without its large sparse file, text around block boundaries, holes, attributes that
/// files share.
pub(crate) fn fill(folder: &Path, many: u32) {
    rig::tree::make(folder, Sample { many, sparse: false, ..Sample::ALL });
    std::fs::create_dir(folder.join("text")).unwrap();
    for len in [1, 4095, 4096, 4097, 9000, 65_536, 131_071, 131_072, 131_073, 300_000, 1_048_576, 2_500_000] {
        std::fs::write(folder.join(format!("text/{len}")), text(len)).unwrap();
    }
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
    for name in ["text/1", "text/4096", "text", "holes"] {
        set(name, "user.shared", &[7; 500]);
        set(name, "user.short", b"short");
        if rig::is_root() {
            set(name, "trusted.shared", &[8; 700]);
            set(name, "security.mine", b"a label");
        }
    }
    if rig::is_root() {
        for name in ["links/up", "fifo", "null"] {
            set(name, "trusted.special", b"of a special file");
        }
    }
}

/// The manifest of a folder in whole seconds, which is what the format holds.
pub(crate) fn manifest(folder: &Path) -> Manifest {
    let mut manifest = rig::tree::of_folder(folder);
    manifest.values_mut().for_each(|file| file.modified.nanoseconds = 0);
    manifest
}

/// Makes an image of a folder by mksquashfs with `options` (separated by blanks).
pub(crate) fn make(scratch: &Scratch, name: &str, options: &str, folder: &Path) -> PathBuf {
    let image = scratch.join(name);
    let mut command = Command::new(rig::which("mksquashfs").unwrap());
    command.arg(folder).arg(&image).args(["-noappend", "-no-progress", "-quiet", "-processors", "1"]);
    rig::run_command(command.args(options.split_whitespace()));
    image
}

/// An image as a device that says where its bytes lie.
pub(crate) fn device(image: &Path) -> Arc<dyn ReadAt> {
    Arc::new(backing::FileBacking::open(image, backing::Open { lock: false, ..backing::Open::READ }).unwrap())
}

/// The file system of an image.
pub(crate) fn open(image: &Path) -> SquashFs {
    SquashFs::open(device(image)).unwrap_or_else(|error| panic!("{}: {error:?}", image.display()))
}
