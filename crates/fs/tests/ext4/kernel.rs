//! Trees that the kernel wrote, and what it and loopbox say of them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use block::Source;
use loopbox_fs::{Cursor, FileSystem, FileType, Inode};
use rig::{Scratch, requires, requires_kernel, requires_root};
use rustix::fs::{AtFlags, CWD, FallocateFlags, SeekFrom, StatxFlags, Timespec, Timestamps, XattrFlags};

use crate::image::{Mount, make, open};

/// What the rig's manifest leaves out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Detail {
    number: u64,
    links: u64,
    size: u64,
    blocks: u64,
    accessed: (i64, u32),
    changed: (i64, u32),
    created: Option<(i64, u32)>,
    holes: Vec<(u64, u64)>,
}

/// Holes of a file as `lseek` tells them.
fn holes_of_file(path: &Path, size: u64) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let mut holes = Vec::new();
    let mut at = 0;
    while at < size {
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(at)).unwrap();
        if hole >= size {
            break;
        }
        at = rustix::fs::seek(&file, SeekFrom::Data(hole)).unwrap_or(size);
        holes.push((hole, at));
    }
    holes
}

/// Holes as extents tell them; what is allocated and never written is one to `lseek` too.
fn holes_of_inode(files: &dyn FileSystem, inode: Inode) -> Vec<(u64, u64)> {
    let mut holes: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while let Some(extent) = files.extent_at(inode, at).unwrap() {
        let end = at + extent.len;
        match (extent.source, holes.last_mut()) {
            (Source::Hole | Source::Zero, Some(last)) if last.1 == at => last.1 = end,
            (Source::Hole | Source::Zero, _) => holes.push((at, end)),
            _ => {}
        }
        at = end;
    }
    holes
}

pub(crate) fn details_of_folder(folder: &Path) -> BTreeMap<Vec<u8>, Detail> {
    let mut details = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let statx = rustix::fs::statx(CWD, &path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BTIME).unwrap();
        let made = statx.stx_mask & StatxFlags::BTIME.bits() != 0;
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let detail = Detail {
            number: meta.ino(),
            links: meta.nlink(),
            size: meta.size(),
            blocks: meta.blocks(),
            accessed: (meta.atime(), meta.atime_nsec() as u32),
            changed: (meta.ctime(), meta.ctime_nsec() as u32),
            created: made.then_some((statx.stx_btime.tv_sec, statx.stx_btime.tv_nsec)),
            holes: if meta.is_file() { holes_of_file(&path, meta.size()) } else { Vec::new() },
        };
        details.insert(path.strip_prefix(folder).unwrap().as_os_str().as_bytes().to_vec(), detail);
    }
    details
}

pub(crate) fn details_of_file_system(files: &dyn FileSystem) -> BTreeMap<Vec<u8>, Detail> {
    let mut details = BTreeMap::new();
    let mut open = vec![(Vec::new(), files.root())];
    while let Some((path, inode)) = open.pop() {
        let stat = files.stat(inode).unwrap();
        if stat.file_type == FileType::Directory {
            let mut visit = |entry: loopbox_fs::Entry<'_>| {
                let mut child = path.clone();
                if !child.is_empty() {
                    child.push(b'/');
                }
                child.extend_from_slice(entry.name);
                open.push((child, entry.inode));
                ControlFlow::Continue(())
            };
            files.read_dir(inode, Cursor::START, &mut visit).unwrap();
        }
        let time = |time: loopbox_fs::Time| (time.seconds, time.nanoseconds);
        let detail = Detail {
            number: stat.number,
            links: stat.links.into(),
            size: stat.size,
            blocks: stat.blocks,
            accessed: time(stat.accessed),
            changed: time(stat.changed),
            created: stat.created.map(time),
            holes: if stat.file_type == FileType::Regular { holes_of_inode(files, inode) } else { Vec::new() },
        };
        details.insert(path, detail);
    }
    details
}

fn assert_same_details(what: &str, ours: &BTreeMap<Vec<u8>, Detail>, kernels: &BTreeMap<Vec<u8>, Detail>) {
    for (path, detail) in kernels {
        let shown = path.escape_ascii();
        assert_eq!(ours.get(path), Some(detail), "{what}: {shown}: loopbox (left), the kernel (right)");
    }
    assert_eq!(ours.len(), kernels.len(), "{what}: number of files");
}

/// Fills a mounted file system with what only the kernel makes, beside the rig's sample tree.
pub(crate) fn fill(folder: &Path, many: u32) {
    rig::tree::make(&folder.join("sample"), rig::tree::Sample { many, sparse: false, ..rig::tree::Sample::ALL });
    let own = folder.join("own");
    fs::create_dir(&own).unwrap();
    // An extent tree of some depth: every other block.
    let file = File::create(own.join("fragments")).unwrap();
    for n in 0..400_u64 {
        file.write_all_at(&n.to_le_bytes(), n * 8192 + 17).unwrap();
    }
    // Sparse: block maps of two levels, or holes between extents.
    let file = File::create(own.join("far")).unwrap();
    for at in [0, 11 << 10, 300 << 10, 5 << 20] {
        file.write_all_at(b"an island", at).unwrap();
    }
    // Allocated, partly written, partly given back. ext2 and block maps have no such thing.
    let file = File::create(own.join("allocated")).unwrap();
    if rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).is_ok() {
        file.write_all_at(&[7; 5000], 300_000).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 600_000, 100_000).unwrap();
        let file = File::create(own.join("allocated_beyond")).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
    }
    // Grown without being written, when it was inline.
    let file = File::create(own.join("grown")).unwrap();
    file.write_all_at(b"small", 0).unwrap();
    file.set_len(100).unwrap();
    file.sync_all().unwrap();
    for (name, seconds, nanoseconds) in [
        ("before_1970", -1_000_000_000, 123_456_789),
        ("after_2038", 3_000_000_000, 999_999_999),
        ("after_2106", 5_000_000_000, 1),
    ] {
        fs::write(own.join(name), name).unwrap();
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, own.join(name), &times, AtFlags::empty()).unwrap();
    }
    // Links of every length around what an inode holds, inline or not.
    for len in [1, 58, 59, 60, 61, 100, 150, 160, 200, 500, 1000] {
        let target = "t".repeat(len);
        std::os::unix::fs::symlink(target, own.join(format!("link{len}"))).unwrap();
    }
    // Directories around the size that stays inline.
    for count in [0, 1, 2, 3, 4, 5, 8, 12] {
        let directory = own.join(format!("directory{count}"));
        fs::create_dir(&directory).unwrap();
        for n in 0..count {
            fs::write(directory.join(format!("f{n}")), "x".repeat(n * 20)).unwrap();
        }
    }
    // Attributes of every prefix; some that fill a block, some that want one of their own.
    let set = |name: &str, attribute: &str, value: &[u8]| {
        let flags = XattrFlags::empty();
        rustix::fs::setxattr(own.join(name), attribute, value, flags).map_err(|error| (name.to_owned(), error))
    };
    fs::write(own.join("attributes"), "attributes").unwrap();
    set("attributes", "user.one", b"1").unwrap();
    set("attributes", "trusted.two", &[2; 300]).unwrap();
    set("attributes", "security.three", b"three").unwrap();
    set("attributes", "user.four", &[4; 200]).unwrap();
    fs::write(own.join("large_attributes"), "").unwrap();
    let _ = set("large_attributes", "user.large", &[5; 3000]); // as far as the block size allows
    let _ = set("large_attributes", "user.huge", &[6; 60_000]); // with ea_inode alone
    let acl: Vec<u8> = [
        &[2_u8, 0, 0, 0][..],
        &[1, 0, 6, 0, 255, 255, 255, 255],
        &[2, 0, 5, 0, 0xE8, 3, 0, 0],
        &[4, 0, 4, 0, 255, 255, 255, 255],
        &[8, 0, 1, 0, 0x70, 0x11, 1, 0],
        &[16, 0, 7, 0, 255, 255, 255, 255],
        &[32, 0, 0, 0, 255, 255, 255, 255],
    ]
    .concat();
    fs::write(own.join("listed"), "access controlled").unwrap();
    set("listed", "system.posix_acl_access", &acl).unwrap();
    set("directory3", "system.posix_acl_default", &acl).unwrap();
    std::os::unix::net::UnixListener::bind(own.join("socket")).map(drop).ok();
    // A hole in a big directory's life: names removed again.
    let churned = own.join("churned");
    fs::create_dir(&churned).unwrap();
    for n in 0..900 {
        fs::write(churned.join(format!("{n}-{}", "c".repeat(n % 60))), "").unwrap();
    }
    for n in (0..900).filter(|n| n % 3 != 0) {
        fs::remove_file(churned.join(format!("{n}-{}", "c".repeat(n % 60)))).unwrap();
    }
    for path in ["sample/three", "own/attributes"] {
        let file = OpenOptions::new().append(true).open(folder.join(path)).unwrap();
        file.sync_all().unwrap();
    }
}

/// Looks every name up, and some that are not there.
fn assert_lookups(files: &dyn FileSystem, directory: Inode) {
    let mut children = Vec::new();
    let mut visit = |entry: loopbox_fs::Entry<'_>| {
        children.push((entry.name.to_vec(), entry.inode));
        ControlFlow::Continue(())
    };
    files.read_dir(directory, Cursor::START, &mut visit).unwrap();
    for (name, inode) in &children {
        let found = files.lookup(directory, name).unwrap();
        assert_eq!(found, Some(*inode), "{}", name.escape_ascii());
        let absent = [name, &b"~"[..]].concat();
        assert_eq!(files.lookup(directory, &absent).unwrap(), None);
        if files.stat(*inode).unwrap().file_type == FileType::Directory {
            assert_lookups(files, *inode);
        }
    }
}

fn assert_same_space(what: &str, files: &dyn FileSystem, mounted: &Path) {
    let kernels = rustix::fs::statvfs(mounted).unwrap();
    let ours = files.space().unwrap();
    assert_eq!(u64::from(ours.block_bytes), kernels.f_frsize, "{what}");
    assert_eq!((ours.files, ours.files_free), (kernels.f_files, kernels.f_ffree), "{what}: files");
    assert_eq!((ours.blocks, ours.blocks_free), (kernels.f_blocks, kernels.f_bfree), "{what}: blocks");
    assert_eq!(ours.blocks_available, kernels.f_bavail, "{what}: blocks available");
}

/// Makes a file system with `options`, has the kernel fill it, and compares what the kernel and loopbox then say.
fn compare(name: &str, options: &str, size: &str, many: u32, more: impl Fn(&Path)) {
    let scratch = Scratch::new("ext4");
    let image = make(&scratch, "image", options, None, size);
    let Some(mounted) = Mount::try_new(&image, "rw") else {
        return rig::skip(name, &format!("this kernel does not mount ext4 with {options}"));
    };
    fill(&mounted.0, many);
    more(&mounted.0);
    drop(mounted);
    let files = open(&image);
    let mounted = Mount::new(&image, "ro");
    // First of all: what lies in the page cache is no hole to `lseek`.
    assert_same_details(options, &details_of_file_system(&files), &details_of_folder(&mounted.0));
    let (ours, kernels) = (rig::tree::of_file_system(&files), rig::tree::of_folder(&mounted.0));
    rig::tree::assert_same("loopbox", &ours, "kernel", &kernels);
    assert_same_space(options, &files, &mounted.0);
    assert_lookups(&files, files.root());
}

macro_rules! same_as_the_kernel {
    ($($name:ident: $options:literal, $size:literal;)*) => {$(
        #[test]
        fn $name() {
            requires_root!();
            requires!("mke2fs");
            requires_kernel!(rig::have_filesystem("ext4"), "the file system ext4");
            compare(rig::test_name!(), $options, $size, 300, |_| {});
        }
    )*};
}
same_as_the_kernel! {
    ext2: "-t ext2", "64M";
    ext2_of_1k_blocks: "-t ext2 -b 1024", "64M";
    ext3: "-t ext3", "64M";
    ext4: "-t ext4", "64M";
    ext4_of_1k_blocks: "-t ext4 -b 1024", "64M";
    ext4_of_2k_blocks: "-t ext4 -b 2048", "64M";
    without_extents: "-t ext4 -O ^extents,^64bit,^flex_bg", "64M";
    of_32_bits: "-t ext4 -O ^64bit", "64M";
    uninit_bg: "-t ext4 -O ^metadata_csum,uninit_bg", "64M";
    metadata_csum_seed: "-t ext4 -O metadata_csum_seed", "64M";
    inline_data: "-t ext4 -O inline_data", "64M";
    inline_data_in_large_inodes: "-t ext4 -O inline_data -I 1024", "64M";
    small_inodes: "-t ext4 -I 128", "64M";
    bigalloc: "-t ext4 -O bigalloc -C 65536", "512M";
    meta_bg: "-t ext4 -b 1024 -O meta_bg,^resize_inode", "600M";
    sparse_super2: "-t ext4 -b 1024 -O sparse_super2,^resize_inode", "64M";
    ea_inode: "-t ext4 -O ea_inode", "64M";
    without_file_types: "-t ext4 -O ^filetype", "64M";
    without_dir_index: "-t ext4 -O ^dir_index", "64M";
    without_journal: "-t ext4 -O ^has_journal", "64M";
    fast_commit: "-t ext4 -O fast_commit", "64M";
    orphan_file: "-t ext4 -O orphan_file", "64M";
    quota_and_project: "-t ext4 -O quota,project", "64M";
    verity_and_encrypt: "-t ext4 -O verity,encrypt", "64M";
    hash_seed: "-t ext4 -b 1024 -E hash_seed=01234567-89ab-cdef-0123-456789abcdef", "64M";
}

#[test]
fn large_directories_of_three_levels() {
    requires_root!();
    requires!("mke2fs");
    requires_kernel!(rig::have_filesystem("ext4"), "the file system ext4");
    compare(rig::test_name!(), "-t ext4 -b 1024 -O large_dir -N 60000", "128M", 300, |folder| {
        let directory = folder.join("large");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("one"), "").unwrap();
        // Long names: a block of 1 KiB holds three, so that a tree of two levels is not enough.
        for n in 0..24_000 {
            let name = format!("{n:0240}");
            fs::hard_link(directory.join("one"), directory.join(name))
                .or_else(|_| {
                    fs::remove_file(directory.join("one"))?;
                    fs::write(directory.join("one"), "")
                })
                .unwrap();
        }
    });
}

/// Sets the hash of new directories, which mke2fs does not ask for.
fn hashed(version: usize, hash: &str, unsigned: bool) {
    let scratch = Scratch::new("ext4");
    let image = make(&scratch, "image", "-t ext4 -b 1024", None, "32M");
    let flags = if unsigned { 2 } else { 1 };
    crate::image::debugfs(&image, &format!("ssv def_hash_version {hash}\nssv flags {flags}\n"));
    let mounted = Mount::new(&image, "rw");
    for n in 0..2000 {
        fs::write(mounted.0.join(format!("größe-{n}-{}", "é".repeat(n % 90))), "").unwrap();
    }
    drop(mounted);
    let root = crate::image::debugfs(&image, "htree_dump /\n");
    assert!(root.contains(&format!("Hash Version: {version}")), "{root}");
    assert_lookups(&open(&image), Inode(2));
}

#[test]
fn every_hash_of_names_signed_and_unsigned() {
    requires_root!();
    requires!("mke2fs", "debugfs");
    requires_kernel!(rig::have_filesystem("ext4"), "the file system ext4");
    for (version, hash) in ["legacy", "half_md4", "tea"].into_iter().enumerate() {
        hashed(version, hash, false);
        hashed(version, hash, true);
    }
}

#[test]
fn casefolded_directories_by_exact_name() {
    requires_root!();
    requires!("mke2fs", "chattr");
    requires_kernel!(rig::have_filesystem("ext4"), "the file system ext4");
    requires_kernel!(Path::new("/sys/fs/ext4/features/casefold").exists(), "ext4 with casefold");
    compare(rig::test_name!(), "-t ext4 -O casefold", "64M", 300, |folder| {
        let directory = folder.join("folded");
        fs::create_dir(&directory).unwrap();
        rig::run_command(Command::new("chattr").arg("+F").arg(&directory));
        for n in 0..600 {
            fs::write(directory.join(format!("Name-{n}-{}", "X".repeat(n % 50))), "").unwrap();
        }
    });
}
