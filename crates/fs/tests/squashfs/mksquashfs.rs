//! Trees that mksquashfs wrote, compared with the folder that it read, and with what unsquashfs says of them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use block::bytes::Bytes;
use block::layer::Window;
use block::{Kind, Source};
use loopbox_fs::squashfs::{Corrupt, SquashFs};
use loopbox_fs::{Cursor, FileSystem, FileType};
use rig::{Scratch, requires};

use crate::image::{device, fill, make, manifest, open};

/// Compares images of one folder, made with each of `options`.
fn compare(many: u32, options: &[&str]) {
    let scratch = Scratch::new("squashfs");
    let folder = scratch.join("folder");
    fill(&folder, many);
    let wanted = manifest(&folder);
    for options in options {
        let files = open(&make(&scratch, "image", options, &folder));
        rig::tree::assert_same(&format!("loopbox {options}"), &rig::tree::of_file_system(&files), "folder", &wanted);
    }
}

#[test]
fn every_compression() {
    requires!("mksquashfs");
    compare(300, &["-comp gzip", "-comp lz4 -Xhc", "-comp zstd -Xcompression-level 3", "-comp lzo"]);
}

#[test]
fn every_compression_of_the_xz_family() {
    requires!("mksquashfs");
    compare(20, &["-comp xz", "-comp xz -b 256K -Xbcj x86,arm", "-comp xz -Xdict-size 50%", "-comp lzma"]);
}

#[test]
fn fragments_or_not_and_what_is_not_compressed() {
    requires!("mksquashfs");
    compare(
        100,
        &[
            "-no-fragments -comp lz4",
            "-always-use-fragments -comp lz4",
            "-noI -noD -noF -noX",
            "-noI -comp lz4",
            "-noD -no-fragments -comp lz4",
            "-noF -noId -always-use-fragments -comp lz4",
            "-no-sparse -no-duplicates -no-exports -comp lz4",
            "-nopad -comp gzip -Xcompression-level 1 -Xwindow-size 9 -Xstrategy default,huffman_only",
        ],
    );
}

#[test]
fn every_block_size() {
    requires!("mksquashfs");
    compare(
        20,
        &[
            "-b 4K -comp lz4",
            "-b 16K -comp zstd -Xcompression-level 1",
            "-b 64K -comp lzo -Xalgorithm lzo1x_1",
            "-b 512K -comp lz4",
            "-b 1M -comp zstd -Xcompression-level 1",
        ],
    );
}

#[test]
fn the_promises_of_a_file_system() {
    requires!("mksquashfs");
    let scratch = Scratch::new("squashfs");
    let folder = scratch.join("folder");
    fill(&folder, 400);
    for options in ["-comp zstd -Xcompression-level 3", "-b 4K -noI -noD -noF -noX", "-no-fragments -comp lz4 -b 64K"] {
        loopbox_fs::testing::conformance::check(&open(&make(&scratch, "image", options, &folder)));
    }
}

#[test]
fn a_directory_of_20_000_entries() {
    requires!("mksquashfs");
    let scratch = Scratch::new("squashfs");
    let folder = scratch.join("folder");
    std::fs::create_dir_all(folder.join("many")).unwrap();
    for n in 0..20_000 {
        std::fs::File::create(folder.join(format!("many/a rather long name, number {n}"))).unwrap();
    }
    for options in ["-comp lz4", "-noI"] {
        let files = open(&make(&scratch, "image", options, &folder));
        let many = files.lookup(files.root(), b"many").unwrap().unwrap();
        let mut entries = BTreeMap::new();
        let mut from = Cursor::START;
        loop {
            let (before, start) = (entries.len(), from);
            let mut visit = |entry: loopbox_fs::Entry<'_>| {
                from = entry.next;
                assert_eq!(entry.file_type, Some(FileType::Regular));
                assert!(entries.insert(entry.name.to_vec(), entry.inode).is_none(), "twice");
                if entries.len() % 97 == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            files.read_dir(many, start, &mut visit).unwrap();
            if entries.len() == before {
                break;
            }
        }
        assert_eq!(entries.len(), 20_000);
        for n in 0..20_000 {
            let name = format!("a rather long name, number {n}");
            assert_eq!(files.lookup(many, name.as_bytes()).unwrap(), entries.get(name.as_bytes()).copied(), "{name}");
        }
        for absent in ["", "a", "a rather long name, number 20000", "zzz", "Z", "a rather long name, number 1x"] {
            assert_eq!(files.lookup(many, absent.as_bytes()).unwrap(), None, "{absent}");
        }
    }
}

#[test]
fn pseudo_files_owners_and_times() {
    requires!("mksquashfs");
    let scratch = Scratch::new("squashfs");
    let folder = scratch.join("folder");
    std::fs::create_dir(&folder).unwrap();
    let definitions = scratch.join("definitions");
    let text = "/dev d 755 0 0\n/dev/sda1 b 660 0 6 259 70000\n/dev/tty c 622 7 5 5 1\n/dev/pipe i 600 4294967295 9 f\n\
                /dev/log i 666 0 0 s\n/run s 777 0 0 ../var/run\n/made f 4711 12 34 echo made\n";
    std::fs::write(&definitions, text).unwrap();
    let options = format!("-pf {} -all-time 4000000000 -comp lz4", definitions.display());
    let files = open(&make(&scratch, "image", &options, &folder));
    loopbox_fs::testing::conformance::check(&files);
    let tree = rig::tree::of_file_system(&files);
    let device = |path: &str| tree[path.as_bytes()].device;
    assert_eq!((device("dev/sda1"), device("dev/tty"), device("dev")), (Some((259, 70_000)), Some((5, 1)), None));
    let mode = |path: &str| tree[path.as_bytes()].mode;
    assert_eq!([mode("dev/sda1"), mode("dev/tty"), mode("dev/pipe")], [0o060_660, 0o020_622, 0o010_600]);
    assert_eq!([mode("dev/log"), mode("made"), mode("dev")], [0o140_666, 0o104_711, 0o040_755]);
    assert_eq!(tree[&b"dev/pipe"[..]].owner, (u32::MAX, 9));
    assert_eq!(tree[&b"run"[..]].target.as_deref(), Some(&b"../var/run"[..]));
    assert!(tree.values().skip(1).all(|file| file.modified.seconds == 4_000_000_000));
}

#[test]
fn unsquashfs_lists_the_same() {
    requires!("mksquashfs", "unsquashfs");
    let scratch = Scratch::new("squashfs");
    let folder = scratch.join("folder");
    fill(&folder, 100);
    // Its listing is one of lines.
    std::fs::remove_dir_all(folder.join("names")).unwrap();
    let image = make(&scratch, "image", "-comp gzip", &folder);
    let listing = rig::run("unsquashfs", ["-lln", "-d", "", image.to_str().unwrap()]);
    let mut theirs = BTreeMap::new();
    for line in listing.lines().filter(|line| line.contains(" /")) {
        let (head, path) = line.split_once(" /").unwrap();
        let fields: Vec<&str> = head.split_whitespace().collect();
        let path = path.split(" -> ").next().unwrap();
        let size = if line.starts_with('-') { fields[2].parse().unwrap() } else { 0 };
        theirs.insert(path.to_owned(), (line[..1].to_owned(), fields[1].to_owned(), size));
    }
    let ours = rig::tree::of_file_system(&open(&image)).into_iter().filter(|(path, _)| !path.is_empty());
    let letter = |mode: u32| match FileType::from_mode(mode).unwrap() {
        FileType::Regular => "-",
        FileType::Directory => "d",
        FileType::SymbolicLink => "l",
        FileType::BlockDevice => "b",
        FileType::CharacterDevice => "c",
        FileType::Fifo => "p",
        FileType::Socket => "s",
    };
    let ours: BTreeMap<_, _> = ours
        .map(|(path, file)| {
            let owner = format!("{}/{}", file.owner.0, file.owner.1);
            (String::from_utf8(path).unwrap(), (letter(file.mode).to_owned(), owner, file.size))
        })
        .collect();
    theirs.remove("");
    assert!(ours.len() > 150);
    assert_eq!(ours, theirs);
}

#[test]
fn extents_say_where_bytes_lie() {
    requires!("mksquashfs");
    let scratch = Scratch::new("squashfs");
    let folder = scratch.join("folder");
    fill(&folder, 1);
    let image = make(&scratch, "image", "-noD -noF -always-use-fragments -comp lz4", &folder);
    let files = open(&image);
    let find = |path: &str| {
        path.split('/').fold(files.root(), |inode, name| files.lookup(inode, name.as_bytes()).unwrap().unwrap())
    };
    // Whole blocks side by side are one run, and the tail is in its fragment.
    let inode = find("text/300000");
    let mut at = 0;
    let mut content = Vec::new();
    for wanted in [262_144, 37_856] {
        let extent = files.extent_at(inode, at).unwrap().unwrap();
        assert_eq!(extent.len, wanted);
        let Source::File { offset, .. } = extent.source else { panic!("{extent:?}") };
        let mut bytes = vec![0; wanted as usize];
        std::fs::File::open(&image).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        content.extend(bytes);
        at += wanted;
    }
    assert!(content == rig::tree::text(300_000));
    // Blocks of zeros are holes; the tail is not.
    let extent = files.extent_at(find("holes"), 131_072).unwrap().unwrap();
    assert!(matches!(extent.source, Source::Hole) && extent.len == 1_179_648 - 131_072, "{extent:?}");
    let extent = files.extent_at(find("hole-only"), 5).unwrap().unwrap();
    assert!(matches!(extent.source, Source::Hole) && extent.len == 1_048_571, "{extent:?}");
    let compressed = open(&make(&scratch, "compressed", "-comp lz4", &folder));
    let text = compressed.lookup(compressed.root(), b"text").unwrap().unwrap();
    let inode = compressed.lookup(text, b"2500000").unwrap().unwrap();
    assert!(matches!(compressed.extent_at(inode, 0).unwrap().unwrap().source, Source::Data));
}

#[test]
fn images_inside_of_others_and_images_that_are_none() {
    requires!("mksquashfs");
    let scratch = Scratch::new("squashfs");
    let folder = scratch.join("folder");
    fill(&folder, 1);
    let image = make(&scratch, "image", "-comp lz4", &folder);
    let bytes = std::fs::read(&image).unwrap();
    let shifted = scratch.join("shifted");
    std::fs::write(&shifted, [vec![0xA5; 12_345], bytes.clone()].concat()).unwrap();
    let window = Window::new(device(&shifted), 12_345, bytes.len() as u64).unwrap();
    let files = SquashFs::open(Arc::new(window)).unwrap();
    let wanted = manifest(&folder);
    rig::tree::assert_same("loopbox", &rig::tree::of_file_system(&files), "folder", &wanted);

    let open = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        let error = SquashFs::open(Arc::new(Bytes(bytes))).unwrap_err();
        let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<Corrupt>().copied());
        (error.kind(), source)
    };
    assert_eq!(open(&|bytes| bytes[28] = 3), (Kind::Unsupported, None));
    assert_eq!(open(&|bytes| bytes[0..4].reverse()), (Kind::Unsupported, None));
    assert_eq!(open(&|bytes| bytes[20] = 9), (Kind::Unsupported, None));
    assert_eq!(open(&|bytes| bytes[22] = 5), (Kind::Corrupt, Some(Corrupt::BlockSize)));
    assert_eq!(open(&|bytes| bytes.truncate(bytes.len() / 2)), (Kind::Corrupt, Some(Corrupt::Truncated)));
    assert_eq!(open(&|bytes| bytes[72..80].fill(0)), (Kind::Corrupt, Some(Corrupt::Table)));
    assert_eq!(open(&|bytes| bytes[32..40].fill(0xEE)), (Kind::Corrupt, Some(Corrupt::Inode)));
}
