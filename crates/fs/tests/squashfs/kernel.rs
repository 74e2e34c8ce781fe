//! The kernel's own squashfs beside ours.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use loopbox_fs::{Cursor, FileSystem, FileType};
use rig::{Scratch, requires, requires_kernel, requires_root};

use crate::image::{fill, make, open};

/// A mount by the kernel, gone when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(image: &Path) -> Option<Self> {
        let folder = image.with_extension("mount");
        std::fs::create_dir_all(&folder).unwrap();
        // Others may take the loop device that mount found free: then it is tried again.
        for _ in 0..20 {
            let mut command = Command::new("mount");
            let output = rig::output(command.args(["-t", "squashfs", "-o", "loop,ro"]).arg(image).arg(&folder));
            if output.status.success() {
                return Some(Self(folder));
            }
            let text = rig::text(&output);
            if !text.contains("loop") {
                // It was built without this compression.
                return None;
            }
        }
        panic!("no loop device for {}", image.display());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let umount = |options: &[&str]| Command::new("umount").args(options).arg(&self.0).status();
        let unmounted = [&[][..], &["-l"]].iter().any(|options| umount(options).is_ok_and(|status| status.success()));
        assert!(unmounted || std::thread::panicking(), "umount of {}", self.0.display());
    }
}

/// What the rig's manifest leaves out: number, links, size, blocks, and times.
type Detail = (u64, u64, u64, u64, [i64; 3]);

fn details_of_folder(folder: &Path) -> BTreeMap<Vec<u8>, Detail> {
    let mut details = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(path) = open.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let times = [meta.atime(), meta.mtime(), meta.ctime()];
        let name = path.strip_prefix(folder).unwrap().as_os_str().as_bytes().to_vec();
        details.insert(name, (meta.ino(), meta.nlink(), meta.size(), meta.blocks(), times));
    }
    details
}

fn details_of_file_system(files: &dyn FileSystem) -> BTreeMap<Vec<u8>, Detail> {
    let mut details = BTreeMap::new();
    let mut open = vec![(Vec::new(), files.root())];
    while let Some((path, inode)) = open.pop() {
        let stat = files.stat(inode).unwrap();
        if stat.file_type == FileType::Directory {
            let mut visit = |entry: loopbox_fs::Entry<'_>| {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                open.push(([&path, slash, entry.name].concat(), entry.inode));
                ControlFlow::Continue(())
            };
            files.read_dir(inode, Cursor::START, &mut visit).unwrap();
        }
        let times = [stat.accessed.seconds, stat.modified.seconds, stat.changed.seconds];
        details.insert(path, (stat.number, u64::from(stat.links), stat.size, stat.blocks, times));
    }
    details
}

#[test]
fn the_kernel_sees_the_same() {
    requires!("mksquashfs");
    requires_root!();
    requires_kernel!(rig::have_filesystem("squashfs"), "the file system squashfs");
    let scratch = Scratch::new("squashfs");
    let folder = scratch.join("folder");
    fill(&folder, 600);
    let mut mounted = 0;
    for (number, options) in [
        "-comp gzip -b 16K",
        "-comp zstd -Xcompression-level 2",
        "-comp lz4 -noI -no-fragments",
        "-comp xz",
        "-comp lzo",
    ]
    .into_iter()
    .enumerate()
    {
        let image = make(&scratch, &format!("image{number}"), options, &folder);
        let Some(mount) = Mount::new(&image) else {
            rig::skip(rig::test_name!(), &format!("this kernel lacks squashfs with {options}"));
            continue;
        };
        mounted += 1;
        let files = open(&image);
        let kernel = rig::tree::of_folder(&mount.0);
        rig::tree::assert_same("loopbox", &rig::tree::of_file_system(&files), "kernel", &kernel);
        let (mut ours, mut theirs) = (details_of_file_system(&files), details_of_folder(&mount.0));
        for (path, file) in &kernel {
            if !file.xattrs.is_empty() {
                // The kernel counts attributes, too, as room of the file.
                theirs.get_mut(path).unwrap().3 = 0;
                ours.get_mut(path).unwrap().3 = 0;
            }
        }
        let different = ours.iter().find(|(path, detail)| theirs.get(*path) != Some(*detail));
        let shown = different.map(|(path, detail)| (path.escape_ascii().to_string(), detail, theirs.get(path)));
        assert!(shown.is_none() && ours.len() == theirs.len(), "{options}: path, ours, the kernel's: {shown:?}");
        let statfs = rustix::fs::statvfs(&mount.0).unwrap();
        let space = files.space().unwrap();
        assert_eq!((u64::from(space.block_bytes), space.blocks), (statfs.f_bsize, statfs.f_blocks), "{options}");
        assert_eq!((space.files, space.blocks_free), (statfs.f_files, statfs.f_bfree), "{options}");
    }
    assert!(mounted > 0, "the kernel mounts no compression at all");
}
