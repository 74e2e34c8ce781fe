//! Images of real programs.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use block::{Kind, ReadAt as _, Source};
use fs::iso9660::{Iso9660, Options, Tree};
use fs::testing::conformance;
use fs::{FileSystem, FileType};
use rig::tree::{self, Manifest, Sample};
use rig::{Scratch, requires};

use crate::device::{Counted, File};
use crate::open;

/// Everything that xorriso can keep: Rock Ridge with serial numbers, attributes and access control lists.
#[test]
fn xorriso_keeps_everything() {
    requires!("xorriso", "setfacl");
    let scratch = Scratch::new("iso");
    let (folder, image) = (scratch.join("tree"), scratch.join("a.iso"));
    tree::make(&folder, Sample::ALL);
    let list = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    rig::run("setfacl", ["-m", "u:123:rw,g:70000:r", &list("sizes/1024")]);
    rig::run("setfacl", ["-m", "d:u:123:rwx,u:5:r", &list("names")]);
    rustix::fs::setxattr(folder.join("sizes/511"), "user.huge", &[b'y'; 60_000], rustix::fs::XattrFlags::empty())
        .unwrap_or_else(|error| eprintln!("no attribute of 60,000 bytes here: {error}"));
    xorriso(&["-compliance", "iso_9660_level=3", "-hardlinks", "on", "-acl", "on", "-xattr", "on"], &folder, &image);
    let iso = open(&image, Tree::Best);
    assert_eq!(iso.tree(), Tree::RockRidge);
    let files = tree::of_file_system(&iso);
    tree::assert_same("folder", &as_xorriso_writes(&folder), "image", &files);
    assert!(files[&b"sizes/1024"[..]].xattrs.contains_key(&b"system.posix_acl_access"[..]));
    assert!(files[&b"names"[..]].xattrs.contains_key(&b"system.posix_acl_default"[..]));
    assert_eq!(iso.label(), "LABEL");
    conformance::check(&iso);
}

/// Rock Ridge of 1994, without serial numbers, in blocks of genisoimage; deep directories are moved, and shown where
/// they belong.
#[test]
fn genisoimage_moves_deep_directories() {
    requires!("genisoimage");
    let scratch = Scratch::new("iso");
    let (folder, image) = (scratch.join("tree"), scratch.join("a.iso"));
    tree::make(&folder, Sample { xattrs: false, ..Sample::ALL });
    genisoimage(&["-R", "-l", "-iso-level", "3"], &folder, &image);
    let iso = open(&image, Tree::Best);
    assert_eq!(iso.tree(), Tree::RockRidge);
    assert_eq!(iso.volume().trees, [Tree::RockRidge, Tree::Plain]);
    let mut files = tree::of_file_system(&iso);
    let moved = files.remove(&b"rr_moved"[..]).expect("rr_moved itself is shown, as the kernel does");
    assert_eq!(moved.mode & 0o170_000, 0o040_000);
    let mut folder = as_xorriso_writes(&folder);
    for file in folder.values_mut().chain(files.values_mut()) {
        // Nothing says which names are one file; and the counts of names are those of the folder.
        file.same_as = None;
    }
    tree::assert_same("folder", &folder, "image", &files);
    conformance::check(&iso);
}

/// A third writer, with a parser of its own.
#[test]
fn bsdtar_writes_images_too() {
    requires!("bsdtar");
    let scratch = Scratch::new("iso");
    let (folder, image) = (scratch.join("tree"), scratch.join("a.iso"));
    tree::make(&folder, Sample { xattrs: false, odd_names: false, sparse: false, special: false, many: 50 });
    let (from, to) = (folder.to_str().unwrap(), image.to_str().unwrap());
    rig::run("bsdtar", ["-c", "--format=iso9660", "--options=rockridge=strict", "-C", from, "-f", to, "."]);
    let iso = open(&image, Tree::Best);
    let mut files = tree::of_file_system(&iso);
    let mut folder = tree::of_folder(&folder);
    // It makes a root of its own.
    files.remove(&b"rr_moved"[..]);
    files.remove(&b""[..]);
    folder.remove(&b""[..]);
    for file in folder.values_mut().chain(files.values_mut()) {
        file.same_as = None;
        file.links = 0;
    }
    tree::assert_same("folder", &folder, "image", &files);
}

/// Files that mkzftree compressed, and files that xorriso compressed in both versions.
#[test]
fn compressed_files_are_read_at_any_place() {
    requires!("xorriso", "genisoimage", "mkzftree");
    let scratch = Scratch::new("iso");
    let folder = scratch.join("tree");
    tree::make(&folder, Sample { xattrs: false, odd_names: false, ..Sample::ALL });
    let text: Vec<u8> = (0..40_000_u32).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    std::fs::write(folder.join("text"), &text).unwrap();
    let mut images = Vec::new();
    let packed = scratch.join("packed");
    rig::run("mkzftree", [&folder, &packed]);
    images.push(scratch.join("mkzftree.iso"));
    genisoimage(&["-R", "-z", "-l"], &packed, &images[0]);
    for version in ["version_2=off", "version_2=on:block_size_v2=1024k", "version_2=on:susp_z2=on"] {
        let image = scratch.join(format!("{version}.iso"));
        let filter = ["-zisofs", version, "-map", folder.to_str().unwrap(), "/", "-set_filter_r", "--zisofs", "/"];
        rig::run("xorriso", [&["-no_rc", "-outdev", image.to_str().unwrap()][..], &filter].concat());
        images.push(image);
    }
    let expected = as_xorriso_writes(&folder);
    for image in images {
        let iso = open(&image, Tree::Best);
        let files = tree::of_file_system(&iso);
        for (path, file) in expected.iter().filter(|(_, file)| file.sha256.is_some()) {
            let found = files.get(path).unwrap_or_else(|| panic!("{image:?}: {}", path.escape_ascii()));
            assert_eq!((&file.sha256, file.size), (&found.sha256, found.size), "{image:?}: {}", path.escape_ascii());
        }
        let inode = iso.lookup(iso.root(), b"text").unwrap().unwrap();
        let stat = iso.stat(inode).unwrap();
        assert!(stat.blocks * 512 < stat.size / 2, "{image:?}: {stat:?} is compressed");
        for (offset, len) in [(0, 10), (32_767, 2), (100_000, 70_000), (text.len() - 5, 100), (text.len(), 1)] {
            let mut buf = vec![0; len];
            let read = iso.read(inode, &mut buf, offset as u64).unwrap();
            assert_eq!(buf[..read], text[offset..(offset + len).min(text.len())], "{image:?}: {len} at {offset}");
        }
        let sparse = iso.lookup(iso.root(), b"sparse").unwrap().unwrap();
        let extent = iso.extent_at(sparse, 2 << 20).unwrap().unwrap();
        assert!(matches!(extent.source, Source::Hole) && extent.len > 1 << 20, "{image:?}: {extent:?}");
        assert!(matches!(iso.extent_at(inode, 0).unwrap().unwrap().source, Source::Data));
        assert!(iso.extent_at(inode, text.len() as u64).unwrap().is_none());
    }
}

/// The trees without Rock Ridge, each asked for and, without the richer ones, chosen.
#[test]
fn trees_are_chosen_and_forced() {
    requires!("genisoimage");
    let scratch = Scratch::new("iso");
    let folder = scratch.join("tree");
    std::fs::create_dir_all(folder.join("Ünter Ordner")).unwrap();
    for name in ["README.TXT", "noext", "Ünter Ordner/日本語.txt", "A long Name, § and all.Text"] {
        std::fs::write(folder.join(name), name).unwrap();
    }
    let names = |iso: &Iso9660| -> BTreeMap<String, Option<String>> {
        let files = tree::of_file_system(iso);
        files.into_iter().map(|(path, file)| (String::from_utf8(path).unwrap(), file.sha256)).collect()
    };
    let expected: BTreeMap<_, _> = tree::of_folder(&folder)
        .into_iter()
        .map(|(path, file)| (String::from_utf8(path).unwrap(), file.sha256))
        .collect();
    let image = scratch.join("rich.iso");
    genisoimage(&["-R", "-J", "-input-charset", "utf-8"], &folder, &image);
    let joliet = open(&image, Tree::Joliet);
    assert_eq!(names(&joliet), expected);
    assert_eq!(joliet.stat(joliet.root()).unwrap().permissions, 0o555);
    conformance::check(&joliet);
    let plain = open(&image, Tree::Plain);
    assert_eq!(names(&plain).len(), expected.len());
    assert_eq!(names(&plain)["readme.txt"], expected["README.TXT"]);
    assert_eq!(names(&plain)["noext"], expected["noext"]);
    conformance::check(&plain);

    let joliet_only = scratch.join("joliet.iso");
    genisoimage(&["-J", "-input-charset", "utf-8"], &folder, &joliet_only);
    assert_eq!(open(&joliet_only, Tree::Best).tree(), Tree::Joliet);
    let none = Iso9660::open(Arc::new(File::open(&joliet_only)), Options { tree: Tree::RockRidge, session_sector: 0 });
    assert_eq!(none.unwrap_err().kind(), Kind::NotFound);

    let enhanced = scratch.join("enhanced.iso");
    genisoimage(&["-iso-level", "4"], &folder, &enhanced);
    let enhanced = open(&enhanced, Tree::Best);
    assert_eq!(enhanced.tree(), Tree::Enhanced);
    assert_eq!(names(&enhanced)["README.TXT"], expected["README.TXT"]);
    conformance::check(&enhanced);
}

/// A file beyond 4 GiB has several sections; all of it is there.
#[test]
fn a_file_beyond_4_gib_is_whole() {
    requires!("xorriso", "dd");
    let scratch = Scratch::new("iso");
    let (folder, image) = (scratch.join("tree"), scratch.join("a.iso"));
    std::fs::create_dir(&folder).unwrap();
    let size = (4_u64 << 30) + 12_345_678;
    let islands = [0, (4 << 30) - 2048 - 3, (4 << 30) - 1, size - 7];
    let file = std::fs::File::create(folder.join("large")).unwrap();
    file.set_len(size).unwrap();
    for offset in islands {
        file.write_all_at(b"island.", offset).unwrap();
    }
    std::fs::write(folder.join("next"), "after it").unwrap();
    let write = format!(
        "xorriso -as mkisofs -quiet -R -iso-level 3 {} | dd of={} bs=1M iflag=fullblock conv=sparse status=none",
        folder.display(),
        image.display()
    );
    rig::run("sh", ["-c", &write]);
    let iso = open(&image, Tree::Best);
    let large = iso.lookup(iso.root(), b"large").unwrap().unwrap();
    assert_eq!(iso.stat(large).unwrap().size, size);
    for offset in islands {
        let mut buf = [0; 8];
        let read = iso.read(large, &mut buf, offset).unwrap();
        assert_eq!(&buf[..7], b"island.", "at {offset}");
        assert_eq!(read as u64, (size - offset).min(8));
    }
    let extent = iso.extent_at(large, 0).unwrap().unwrap();
    assert_eq!(extent.len, size, "sections side by side are one extent");
    assert!(matches!(extent.source, Source::File { .. }));
    let mut names = 0;
    iso.read_dir(iso.root(), fs::Cursor::START, &mut |_| {
        names += 1;
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(names, 2, "its sections are one entry");
    let next = iso.lookup(iso.root(), b"next").unwrap().unwrap();
    let mut buf = [0; 100];
    assert_eq!(iso.read(next, &mut buf, 0).unwrap(), 8);
}

/// Names in a directory of 5,000 are found by an index: reads grow with the number of names, not with its square.
#[test]
fn large_directories_are_indexed() {
    requires!("xorriso");
    let scratch = Scratch::new("iso");
    let (folder, image) = (scratch.join("tree"), scratch.join("a.iso"));
    std::fs::create_dir(&folder).unwrap();
    for n in 0..5_000 {
        std::fs::write(folder.join(format!("a file with a number {n:05}")), "").unwrap();
    }
    xorriso(&[], &folder, &image);
    let device = Arc::new(Counted::new(File::open(&image)));
    let iso = Iso9660::open(device.clone(), Options::default()).unwrap();
    let directory_bytes = iso.stat(iso.root()).unwrap().size;
    let before = device.bytes();
    for n in 0..5_000 {
        let inode = iso.lookup(iso.root(), format!("a file with a number {n:05}").as_bytes()).unwrap();
        assert_eq!(iso.stat(inode.expect("a name that is there")).unwrap().file_type, FileType::Regular);
        assert_eq!(iso.lookup(iso.root(), format!("another file {n}").as_bytes()).unwrap(), None);
    }
    let read = device.bytes() - before;
    assert!(read < 5_000 * 4_000, "{read} bytes for 5,000 names of a directory of {directory_bytes} bytes");
}

/// What xorriso -grow adds is seen; the older tree is still there under its session.
#[test]
fn the_newest_tree_of_several_sessions_is_shown() {
    requires!("xorriso");
    let scratch = Scratch::new("iso");
    let (folder, image) = (scratch.join("tree"), scratch.join("a.iso"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("first"), "1").unwrap();
    xorriso(&[], &folder, &image);
    std::fs::write(folder.join("second"), "2").unwrap();
    let (map, to) = (folder.join("second"), image.to_str().unwrap());
    rig::run("xorriso", ["-no_rc", "-dev", to, "-map", map.to_str().unwrap(), "/second"]);
    let iso = open(&image, Tree::Best);
    assert!(iso.lookup(iso.root(), b"second").unwrap().is_some());
    assert!(iso.lookup(iso.root(), b"first").unwrap().is_some());
}

#[test]
fn what_can_be_booted_is_told() {
    requires!("xorriso");
    let scratch = Scratch::new("iso");
    let (folder, image) = (scratch.join("tree"), scratch.join("a.iso"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("bios.img"), [0xf4; 4096]).unwrap();
    std::fs::write(folder.join("efi.img"), [0xf5; 8192]).unwrap();
    let (from, to) = (folder.to_str().unwrap(), image.to_str().unwrap());
    let boot = ["-b", "bios.img", "-no-emul-boot", "-boot-load-size", "4", "-eltorito-alt-boot", "-e", "efi.img"];
    rig::run("xorriso", [&["-as", "mkisofs", "-quiet", "-R", "-o", to][..], &boot, &["-no-emul-boot", from]].concat());
    let iso = open(&image, Tree::Best);
    let entries = iso.boot_entries().unwrap();
    assert_eq!(entries.len(), 2, "{entries:?}");
    assert_eq!((entries[0].platform, entries[0].bootable, entries[0].sectors), (0, true, 4));
    assert_eq!((entries[1].platform, entries[1].bootable), (0xef, true));
    let device = File::open(&image);
    for (entry, byte) in entries.iter().zip([0xf4, 0xf5]) {
        let mut first = [0];
        device.read_at(&mut first, entry.start).unwrap();
        assert_eq!(first, [byte], "{entry:?}");
    }
}

/// The manifest of a folder without what the writers lose: the slash at the end of a target, attributes without a
/// value.
fn as_xorriso_writes(folder: &Path) -> Manifest {
    let mut manifest = tree::of_folder(folder);
    for file in manifest.values_mut() {
        file.xattrs.retain(|_, value| !value.is_empty());
        if let Some(target) = file.target.as_mut().filter(|target| target.len() > 1 && target.ends_with(b"/")) {
            target.pop();
        }
    }
    manifest
}

pub fn xorriso(options: &[&str], folder: &Path, image: &Path) {
    let (folder, image) = (folder.to_str().unwrap(), image.to_str().unwrap());
    let tail = ["-volid", "LABEL", "-map", folder, "/"];
    rig::run("xorriso", [&["-no_rc", "-outdev", image][..], options, &tail].concat());
}

pub fn genisoimage(options: &[&str], folder: &Path, image: &Path) {
    let (folder, image) = (folder.to_str().unwrap(), image.to_str().unwrap());
    rig::run("genisoimage", [&["-quiet", "-V", "LABEL"][..], options, &["-o", image, folder]].concat());
}
