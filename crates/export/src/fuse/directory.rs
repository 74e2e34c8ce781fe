//! The tree of a [`FileSystem`], read only, as the nodes of a session.
//!
//! A node's number is the file system's own [`Inode`], with two exceptions: the kernel calls the top directory 1, and
//! has no 0. Nothing is kept for a node, so that the kernel's FORGET has nothing to do.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fs::{Cursor, FileSystem, FileType, Inode, Stat, Time};

use super::nodes::{Answer, Listing, Node, Nodes};
use super::wire::{Attr, Errno, OpenIn, OpenOut, ROOT, SetAttrIn, StatFsOut, init, seek};

/// An image does not change: names and attributes stay as they are, for a year.
const VALID_S: u64 = 365 * 24 * 3600;
/// Unit of reading that `stat` shows.
const BLOCK_BYTES: u32 = 4096;

/// Whom files are said to belong to, and what is taken from their modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ownership {
    /// Instead of the owner in the image.
    pub uid: Option<u32>,
    /// Instead of the group in the image.
    pub gid: Option<u32>,
    /// Permission bits that regular files, and all that are no directories, do not have.
    pub file_mask: u32,
    /// Permission bits that directories do not have.
    pub directory_mask: u32,
}

/// A file system, as a session shows it.
pub struct Directory {
    files: Arc<dyn FileSystem>,
    ownership: Ownership,
    acl: bool,
}

impl Directory {
    /// With `acl` the kernel applies the access control lists of the image (and, with them, all permissions).
    pub fn new(files: Arc<dyn FileSystem>, ownership: Ownership, acl: bool) -> Self {
        Self { files, ownership, acl }
    }

    /// The number of a file, for the kernel. Its inverse is itself, but for the two places of 0 and 1.
    fn number(&self, inode: Inode) -> u64 {
        let root = self.files.root().0;
        match inode.0 {
            number if number == root => ROOT,
            // The place of the root is free.
            ROOT if root != 0 => root,
            // The root is 0, and its place is not to be used: the last one is.
            ROOT => u64::MAX,
            0 => u64::MAX,
            number => number,
        }
    }

    fn inode(&self, node: u64) -> Inode {
        let root = self.files.root().0;
        Inode(match node {
            ROOT => root,
            number if number == root => ROOT,
            u64::MAX if root == 0 => ROOT,
            u64::MAX => 0,
            number => number,
        })
    }

    fn node(&self, inode: Inode) -> Answer<Node> {
        let stat = self.files.stat(inode)?;
        Ok(Node { number: self.number(inode), attr: attr(&stat, self.ownership) })
    }
}

fn attr(stat: &Stat, ownership: Ownership) -> Attr {
    let mask = if stat.file_type == FileType::Directory { ownership.directory_mask } else { ownership.file_mask };
    let device = stat.device.map_or(0, |(major, minor)| rustix::fs::makedev(major, minor));
    Attr {
        ino: stat.number,
        size: stat.size,
        blocks: stat.blocks,
        atime: stat.accessed.seconds.cast_unsigned(),
        mtime: stat.modified.seconds.cast_unsigned(),
        ctime: stat.changed.seconds.cast_unsigned(),
        atimensec: nanoseconds(stat.accessed),
        mtimensec: nanoseconds(stat.modified),
        ctimensec: nanoseconds(stat.changed),
        mode: stat.mode() & !(mask & 0o7777),
        nlink: stat.links,
        uid: ownership.uid.unwrap_or(stat.uid),
        gid: ownership.gid.unwrap_or(stat.gid),
        // The kernel wants its own 32 bits: 12 of the major number, 20 of the minor number.
        rdev: u32::try_from(device).unwrap_or(0),
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

fn nanoseconds(time: Time) -> u32 {
    time.nanoseconds.min(999_999_999)
}

impl Nodes for Directory {
    fn init_flags(&self) -> u64 {
        init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::CACHE_SYMLINKS
            | init::NO_OPEN_SUPPORT
            | init::NO_OPENDIR_SUPPORT
            | if self.acl { init::POSIX_ACL } else { 0 }
    }

    fn valid_s(&self) -> u64 {
        VALID_S
    }

    fn lookup(&self, directory: u64, name: &[u8]) -> Answer<Node> {
        match self.files.lookup(self.inode(directory), name)? {
            Some(inode) => self.node(inode),
            None => Ok(Node::NONE),
        }
    }

    fn attr(&self, node: u64) -> Answer<Attr> {
        Ok(self.node(self.inode(node))?.attr)
    }

    fn set_attr(&self, _: u64, _: &SetAttrIn) -> Answer<Attr> {
        Err(Errno::ROFS)
    }

    fn read_link(&self, node: u64) -> Answer<Vec<u8>> {
        Ok(self.files.read_link(self.inode(node))?)
    }

    fn open(&self, _: u64, _: OpenIn) -> Answer<OpenOut> {
        Err(Errno::NOSYS)
    }

    fn release(&self, _: u64, _: u64) {}

    fn read(&self, node: u64, buf: &mut [u8], offset: u64) -> Answer<usize> {
        Ok(self.files.read(self.inode(node), buf, offset)?)
    }

    fn write(&self, _: u64, _: &[u8], _: u64) -> Answer<u32> {
        Err(Errno::ROFS)
    }

    fn sync(&self) -> Answer<()> {
        Ok(())
    }

    /// Places: 0 before `.`, 1 before `..`, and then those of the file system plus 2.
    fn read_dir(&self, directory: u64, from: u64, listing: &mut Listing<'_>) -> Answer<()> {
        const DOTS: u64 = 2;
        let inode = self.inode(directory);
        let mode = FileType::Directory.mode_bits();
        if from < DOTS {
            let number = self.files.stat(inode)?.number;
            if (from == 0 && !listing.push(b".", number, mode, 1, None))
                || !listing.push(b"..", number, mode, DOTS, None)
            {
                return Ok(());
            }
        }
        let cursor = Cursor(from.saturating_sub(DOTS));
        let mut failure = None;
        self.files.read_dir(inode, cursor, &mut |entry| {
            let next = entry.next.0.saturating_add(DOTS);
            let told = match self.entry(entry.inode, entry.file_type, listing.plus()) {
                Ok(told) => told,
                // A file that cannot be read is listed by its name: it shall not hide the others.
                Err(_) => (entry.inode.0, entry.file_type.map_or(0, FileType::mode_bits), None),
            };
            let (number, mode, node) = told;
            if entry.name.is_empty() || OsStr::from_bytes(entry.name).len() > fs::NAME_BYTES_MAX {
                failure = Some(Errno::UCLEAN);
                return ControlFlow::Break(());
            }
            match listing.push(entry.name, number, mode, next, node) {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        match failure {
            Some(errno) if listing.len() == 0 => Err(errno),
            _ => Ok(()),
        }
    }

    fn space(&self) -> Answer<StatFsOut> {
        let space = self.files.space()?;
        Ok(StatFsOut {
            blocks: space.blocks,
            bfree: space.blocks_free,
            bavail: space.blocks_available,
            files: space.files,
            ffree: space.files_free,
            bsize: space.block_bytes,
            namelen: u32::try_from(fs::NAME_BYTES_MAX).unwrap_or(255),
            frsize: space.block_bytes,
            ..StatFsOut::default()
        })
    }

    fn xattr(&self, node: u64, name: &[u8]) -> Answer<Vec<u8>> {
        Ok(self.files.xattr(self.inode(node), name)?)
    }

    fn xattrs(&self, node: u64) -> Answer<Vec<u8>> {
        let names = self.files.xattrs(self.inode(node))?;
        Ok(names.iter().flat_map(|name| name.iter().copied().chain([0])).collect())
    }

    fn allocate(&self, _: u64, _: u64, _: u64, _: u32) -> Answer<()> {
        Err(Errno::ROFS)
    }

    fn seek(&self, node: u64, offset: u64, whence: u32) -> Answer<u64> {
        let inode = self.inode(node);
        let size = self.files.stat(inode)?.size;
        if offset >= size {
            return Err(Errno::NXIO);
        }
        let mut at = offset;
        while let Some(extent) = self.files.extent_at(inode, at)? {
            let hole = matches!(extent.source, block::Source::Hole);
            match whence {
                seek::DATA if !hole => return Ok(at),
                seek::HOLE if hole => return Ok(at),
                seek::DATA | seek::HOLE => {}
                _ => return Err(Errno::INVAL),
            }
            at = at.saturating_add(extent.len.max(1)).min(size);
        }
        // Behind the last byte there is a hole.
        if whence == seek::HOLE { Ok(size) } else { Err(Errno::NXIO) }
    }
}

impl Directory {
    /// Inode number, type and, with `plus`, all that is known of a file in a listing.
    fn entry(&self, inode: Inode, file_type: Option<FileType>, plus: bool) -> Answer<(u64, u32, Option<Node>)> {
        // The number that people are shown stands in the file's own record; without `plus` that is not worth a read
        // where the directory says the type: `ls -i` asks each file anyhow.
        match file_type {
            Some(file_type) if !plus => Ok((inode.0, file_type.mode_bits(), None)),
            _ => {
                let node = self.node(inode)?;
                Ok((node.attr.ino, node.attr.mode, plus.then_some(node)))
            }
        }
    }
}
