//! Trees that mkfs.erofs wrote, compared with the folder that it read.

use std::path::Path;
use std::sync::Arc;

use block::bytes::Bytes;
use loopbox_fs::FileSystem as _;
use loopbox_fs::erofs::Erofs;
use rig::{Scratch, requires};

use crate::image::{fill, fill_small, make, manifest, offers, open, stored};

/// Compares images of one folder, made with each of `options`.
fn compare(many: u32, options: &[&str]) {
    let scratch = Scratch::new("erofs");
    let folder = scratch.join("folder");
    fill(&folder, many);
    for options in options {
        let files = open(&make(&scratch, "image", options, &folder));
        let wanted = manifest(&folder, options);
        rig::tree::assert_same(&format!("loopbox {options}"), &rig::tree::of_file_system(&files), "folder", &wanted);
    }
}

#[test]
fn what_is_not_compressed() {
    requires!("mkfs.erofs");
    compare(
        300,
        &[
            "-Enoinline_data",
            "-Eforce-inode-extended",
            "-Eforce-inode-compact -T1700000000 --all-root",
            "-x0",
            "-x-1",
            "-x100000",
            "--chunksize=4096",
            "--chunksize=65536 -Eforce-inode-blockmap",
            "--chunksize=1048576 -Eforce-chunk-indexes",
        ],
    );
}

#[test]
fn lz4_with_each_kind_of_index() {
    requires!("mkfs.erofs");
    compare(
        100,
        &[
            "-zlz4",
            "-zlz4hc,12 -C65536",
            "-zlz4 -C1048576",
            "-zlz4 -Elegacy-compress",
            "-zlz4hc -Elegacy-compress -C4096",
            "-zlz4hc -Eztailpacking",
            "-zlz4 -C32768 -Eztailpacking",
            "-zlz4 -C16384 --max-extent-bytes=20000",
            "-zlz4 -C8192 -Eforce-inode-compact -T1700000000 --all-root",
        ],
    );
}

#[test]
fn times_in_nanoseconds() {
    requires!("mkfs.erofs");
    let scratch = Scratch::new("erofs");
    let folder = scratch.join("folder");
    std::fs::create_dir_all(folder.join("below")).unwrap();
    for (name, tv_sec, tv_nsec) in [("below", -5, 999_999_999), ("", 5_000_000_000, 1)] {
        let time = rustix::fs::Timespec { tv_sec, tv_nsec };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::utimensat(rustix::fs::CWD, folder.join(name), &times, flags).unwrap();
    }
    let files = open(&make(&scratch, "image", "-Eforce-inode-extended", &folder));
    let wanted = manifest(&folder, "");
    rig::tree::assert_same("loopbox", &rig::tree::of_file_system(&files), "folder", &wanted);
}

#[test]
fn what_newer_tools_offer() {
    requires!("mkfs.erofs");
    let all = [
        ("lzma", "-zlzma"),
        ("lzma", "-zlzma,9 -C65536 -Eztailpacking"),
        ("deflate", "-zdeflate,9"),
        ("deflate", "-zdeflate -C32768 -Eztailpacking"),
        ("zstd", "-zzstd"),
        ("zstd", "-zzstd,19 -C1048576"),
        ("fragments", "-zlz4 -Efragments"),
        ("fragments", "-zlz4hc -C65536 -Eall-fragments"),
        ("fragments", "-zlz4 -Eall-fragments,legacy-compress -C16384"),
        ("fragments", "-zlz4 -Eall-fragments,ztailpacking"),
        ("fragments", "-zlz4 -Efragments,ztailpacking,dedupe -C8192"),
        ("dedupe", "-zlz4hc -Ededupe"),
        ("dedupe", "-zlz4hc -C65536 -Ededupe,legacy-compress"),
        ("lzma", "-zlzma -Ededupe -C65536"),
        ("deflate", "-zdeflate -Ededupe,all-fragments -C65536"),
        ("zstd", "-zzstd -Ededupe,fragments -C65536"),
        ("48bit", "-zlz4hc -E48bit"),
        ("48bit", "-zzstd -E48bit -C65536"),
        ("48bit", "-zzstd -E48bit,all-fragments,dedupe -C65536"),
        ("48bit", "-E48bit --chunksize=8192"),
        ("xattr-prefix", "--xattr-prefix=user.sh --xattr-prefix=trusted.s -zlz4 -Efragments"),
        ("xattr-prefix", "--xattr-prefix=user.sh --xattr-prefix=security.m"),
        ("-b#", "-b512 -zlz4"),
        ("-b#", "-b1024 -Efragments -zlz4 -C8192"),
        ("-b#", "-b2048 --chunksize=8192"),
        ("--async-queue", "-zlz4hc:zstd -C65536"),
        ("metadata", "-zzstd -m4096"),
        ("metadata", "-zlz4 -m65536:zstd -C65536"),
    ];
    let there: Vec<&str> = all.iter().filter(|(word, _)| offers(word)).map(|(_, options)| *options).collect();
    if there.is_empty() {
        rig::skip(rig::test_name!(), "this mkfs.erofs is too old; the images in test_data/erofs stand for newer ones");
    }
    compare(100, &there);
}

#[test]
fn the_promises_of_a_file_system() {
    requires!("mkfs.erofs");
    let scratch = Scratch::new("erofs");
    let folder = scratch.join("folder");
    fill(&folder, 400);
    for options in ["", "-zlz4 -C65536 -Eztailpacking", "-zlz4hc -Elegacy-compress", "--chunksize=4096"] {
        loopbox_fs::testing::conformance::check(&open(&make(&scratch, "image", options, &folder)));
    }
}

#[test]
fn a_directory_of_20_000_entries() {
    requires!("mkfs.erofs");
    let scratch = Scratch::new("erofs");
    let folder = scratch.join("folder");
    std::fs::create_dir_all(folder.join("many")).unwrap();
    for n in 0..20_000 {
        std::fs::File::create(folder.join(format!("many/a rather long name, number {n}"))).unwrap();
    }
    let files = open(&make(&scratch, "image", "", &folder));
    let many = files.lookup(files.root(), b"many").unwrap().unwrap();
    let listed = rig::tree::of_file_system(&files);
    assert_eq!(listed.len(), 20_002);
    for n in (0..20_000).step_by(7) {
        let name = format!("a rather long name, number {n}");
        assert!(files.lookup(many, name.as_bytes()).unwrap().is_some(), "{name}");
    }
    for absent in ["", "a", "a rather long name, number 20000", "zzz", "Z", "a rather long name, number 1x"] {
        assert_eq!(files.lookup(many, absent.as_bytes()).unwrap(), None, "{absent}");
    }
}

#[test]
fn images_of_newer_tools() {
    let scratch = Scratch::new("erofs");
    let folder = scratch.join("folder");
    fill_small(&folder);
    let wanted = manifest(&folder, "-T1700000000 --all-root");
    let images = stored();
    assert!(images.len() >= 10, "test_data/erofs");
    for (name, bytes) in images {
        let files = Erofs::open(Arc::new(Bytes(bytes))).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        rig::tree::assert_same(&name, &rig::tree::of_file_system(&files), "folder", &wanted);
        loopbox_fs::testing::conformance::check(&files);
    }
}

/// Makes the images of test_data/erofs, by the mkfs.erofs that is first in PATH.
#[test]
#[ignore = "writes into test_data; for who changes the small tree"]
fn make_the_images_of_newer_tools() {
    let scratch = Scratch::new("erofs");
    let folder = scratch.join("folder");
    fill_small(&folder);
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../test_data/erofs");
    let readme = std::fs::read_to_string(target.join("README.md")).unwrap();
    for line in readme.lines().filter_map(|line| line.strip_prefix("| ")) {
        let Some((name, options)) = line.trim_end_matches(" |").split_once(" | ") else { continue };
        if let Some(options) = options.strip_prefix("`").and_then(|options| options.strip_suffix("`")) {
            let options = format!("{options} -T1700000000 --all-root -U9e1b1e6c-5f1c-4b1c-8f6e-7d5c3b2a1908");
            let image = make(&scratch, "image", &options, &folder);
            std::fs::copy(image, target.join(name)).unwrap();
        }
    }
}
