//! File systems mounted by the kernel, as the oracle of a reader.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use ::fs::{Cursor, FileSystem, FileType};

/// A mount by the kernel, gone when dropped.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts an image of type `kind`, read only, beside itself; `None` where the kernel does not take it.
    ///
    /// # Panics
    /// When no loop device is to be had.
    pub fn new(kind: &str, image: &Path) -> Option<Self> {
        let folder = image.with_extension("mount");
        std::fs::create_dir_all(&folder).unwrap();
        // Others may take the loop device that mount found free: then it is tried again.
        for _ in 0..20 {
            let mut command = Command::new("mount");
            let output = crate::output(command.args(["-t", kind, "-o", "loop,ro"]).arg(image).arg(&folder));
            if output.status.success() {
                return Some(Self(folder));
            }
            if !crate::text(&output).contains("loop") {
                // It was built without this compression, say.
                return None;
            }
        }
        panic!("no loop device for {}", image.display());
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let umount = |options: &[&str]| Command::new("umount").args(options).arg(&self.0).status();
        let unmounted = [&[][..], &["-l"]].iter().any(|options| umount(options).is_ok_and(|status| status.success()));
        assert!(unmounted || std::thread::panicking(), "umount of {}", self.0.display());
    }
}

/// What a manifest leaves out, because it is a matter of the view and not of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detail {
    /// Inode number.
    pub number: u64,
    /// Names, as the file system counts them.
    pub links: u64,
    /// Bytes, of whatever it is.
    pub size: u64,
    /// Room, in units of 512 bytes.
    pub blocks: u64,
    /// Access, modification and change, seconds.
    pub times: [i64; 3],
}

/// The details of a folder of this machine, by path.
///
/// # Panics
/// When it cannot be read.
pub fn details_of_folder(folder: &Path) -> BTreeMap<Vec<u8>, Detail> {
    let mut details = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(path) = open.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let times = [meta.atime(), meta.mtime(), meta.ctime()];
        let name = path.strip_prefix(folder).unwrap().as_os_str().as_bytes().to_vec();
        let (number, links, size, blocks) = (meta.ino(), meta.nlink(), meta.size(), meta.blocks());
        details.insert(name, Detail { number, links, size, blocks, times });
    }
    details
}

/// The details of a file system that loopbox reads, by path.
///
/// # Panics
/// When a call fails.
pub fn details_of_file_system(files: &dyn FileSystem) -> BTreeMap<Vec<u8>, Detail> {
    let mut details = BTreeMap::new();
    let mut open = vec![(Vec::new(), files.root())];
    while let Some((path, inode)) = open.pop() {
        let stat = files.stat(inode).unwrap();
        if stat.file_type == FileType::Directory {
            let mut visit = |entry: ::fs::Entry<'_>| {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                open.push(([&path, slash, entry.name].concat(), entry.inode));
                ControlFlow::Continue(())
            };
            files.read_dir(inode, Cursor::START, &mut visit).unwrap();
        }
        let times = [stat.accessed.seconds, stat.modified.seconds, stat.changed.seconds];
        let (number, links, size, blocks) = (stat.number, u64::from(stat.links), stat.size, stat.blocks);
        details.insert(path, Detail { number, links, size, blocks, times });
    }
    details
}

/// Asserts that two views have the same details.
///
/// # Panics
/// When they do not: with the first difference.
pub fn assert_same_details(what: &str, ours: &BTreeMap<Vec<u8>, Detail>, theirs: &BTreeMap<Vec<u8>, Detail>) {
    let different = ours.iter().find(|(path, detail)| theirs.get(*path) != Some(*detail));
    let shown = different.map(|(path, detail)| (path.escape_ascii().to_string(), detail, theirs.get(path)));
    assert!(shown.is_none() && ours.len() == theirs.len(), "{what}: path, ours, the kernel's: {shown:?}");
}
