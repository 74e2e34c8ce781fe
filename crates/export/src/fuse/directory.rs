//! The tree of a [`FileSystem`], as the nodes of a session; written where it is a [`Writable`].
//!
//! A node's number is the file system's own [`Inode`], with two exceptions: the kernel calls the top directory 1, and
//! has no 0. Nothing is kept for a node, so that the kernel's FORGET has nothing to do.
//!
//! What is written is not kept here: each write is with the device when it is answered, and survives a power cut once
//! fsync was answered. In a file system that is written, names are asked for each time: one whose names are the same in
//! either case has several for a file, and the kernel does not know which.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use fs::{Changes, Cursor, FileSystem, FileType, Inode, Stat, Time, Writable};

use super::nodes::{Answer, Listing, Node, Nodes, Valid};
use super::wire::{Attr, Errno, OpenIn, OpenOut, ROOT, SetAttrIn, StatFsOut, init, open, rename, seek, set};

/// An image does not change: names and attributes stay as they are, for a year.
const VALID_S: u64 = 365 * 24 * 3600;
/// What is written changes through this mount alone, and by calls that the kernel knows of.
const VALID_WRITTEN_S: u64 = 1;
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
    writable: Option<Arc<dyn Writable>>,
    ownership: Ownership,
    acl: bool,
}

impl Directory {
    /// One that is written.
    pub fn writable(files: Arc<dyn Writable>, ownership: Ownership) -> Self {
        Self { files: files.clone(), writable: Some(files), ownership, acl: false }
    }

    fn writer(&self) -> Answer<&dyn Writable> {
        self.writable.as_deref().ok_or(Errno::ROFS)
    }

    /// With `acl` the kernel applies the access control lists of the image (and, with them, all permissions).
    pub fn new(files: Arc<dyn FileSystem>, ownership: Ownership, acl: bool) -> Self {
        Self { files, writable: None, ownership, acl }
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

/// What the clock says.
fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanoseconds: since.subsec_nanos() }
}

fn nanoseconds(time: Time) -> u32 {
    time.nanoseconds.min(999_999_999)
}

impl Nodes for Directory {
    fn init_flags(&self) -> u64 {
        init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::CACHE_SYMLINKS
            | init::NO_OPENDIR_SUPPORT
            | if self.acl { init::POSIX_ACL } else { 0 }
            // Who has a file open matters where it may be removed.
            | if self.writable.is_none() { init::NO_OPEN_SUPPORT } else { 0 }
    }

    fn valid_s(&self) -> Valid {
        match self.writable {
            Some(_) => Valid { name_s: 0, attr_s: VALID_WRITTEN_S },
            None => Valid { name_s: VALID_S, attr_s: VALID_S },
        }
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

    fn set_attr(&self, node: u64, change: &SetAttrIn) -> Answer<Attr> {
        let (writer, inode, now) = (self.writer()?, self.inode(node), now());
        let meant = |field: u32| change.valid & field != 0;
        let old = self.attr(node)?;
        // Whom files belong to is a matter of the mount.
        if (meant(set::UID) && change.uid != old.uid) || (meant(set::GID) && change.gid != old.gid) {
            return Err(Errno::PERM);
        }
        if meant(set::SIZE) {
            writer.truncate(inode, change.size, now)?;
        }
        let time = |seconds: u64, nanoseconds| Time { seconds: seconds.cast_signed(), nanoseconds };
        let pick = |field, now_field, given| meant(field).then(|| if meant(now_field) { now } else { given });
        let changes = Changes {
            accessed: pick(set::ATIME, set::ATIME_NOW, time(change.atime, change.atimensec)),
            modified: pick(set::MTIME, set::MTIME_NOW, time(change.mtime, change.mtimensec)),
            created: None,
            permissions: meant(set::MODE).then(|| u16::try_from(change.mode & 0o7777).unwrap_or_default()),
        };
        if changes != Changes::default() {
            writer.change(inode, changes)?;
        }
        self.attr(node)
    }

    fn read_link(&self, node: u64) -> Answer<Vec<u8>> {
        Ok(self.files.read_link(self.inode(node))?)
    }

    fn open(&self, node: u64, _: OpenIn) -> Answer<OpenOut> {
        let writer = self.writable.as_ref().ok_or(Errno::NOSYS)?;
        writer.hold(self.inode(node));
        Ok(OpenOut { open_flags: open::KEEP_CACHE | open::NOFLUSH, ..OpenOut::default() })
    }

    fn image(&self, _: u64) -> Option<BorrowedFd<'_>> {
        None
    }

    fn release(&self, node: u64, _: u64) {
        if let Some(writer) = &self.writable {
            // Nobody waits for the answer; what could not be given back is found by a check.
            let _ = writer.release(self.inode(node));
        }
    }

    fn read(&self, node: u64, buf: &mut [u8], offset: u64) -> Answer<usize> {
        Ok(self.files.read(self.inode(node), buf, offset)?)
    }

    fn write(&self, node: u64, data: &[u8], offset: u64) -> Answer<u32> {
        self.writer()?.write(self.inode(node), data, offset, now())?;
        u32::try_from(data.len()).map_err(|_| Errno::INVAL)
    }

    fn create(&self, directory: u64, name: &[u8], mode: u32) -> Answer<Node> {
        let writer = self.writer()?;
        let file_type = FileType::from_mode(mode).ok_or(Errno::INVAL)?;
        if !matches!(file_type, FileType::Regular | FileType::Directory) {
            return Err(Errno::PERM);
        }
        self.node(writer.create(self.inode(directory), name, file_type, now())?)
    }

    fn remove(&self, directory: u64, name: &[u8], directory_wanted: bool) -> Answer<()> {
        Ok(self.writer()?.remove(self.inode(directory), name, directory_wanted, now())?)
    }

    fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Answer<()> {
        let writer = self.writer()?;
        if flags & !rename::NOREPLACE != 0 {
            return Err(Errno::INVAL);
        }
        let (from, to) = ((self.inode(from.0), from.1), (self.inode(to.0), to.1));
        Ok(writer.rename(from, to, flags & rename::NOREPLACE == 0, now())?)
    }

    fn sync(&self) -> Answer<()> {
        Ok(self.writable.as_ref().map_or(Ok(()), |writer| writer.flush())?)
    }

    fn close(&self) -> Answer<()> {
        Ok(self.writable.as_ref().map_or(Ok(()), |writer| writer.close())?)
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

    /// Room for what is to come is taken by making the file longer; there is none behind the end of a file.
    fn allocate(&self, node: u64, offset: u64, len: u64, mode: u32) -> Answer<()> {
        let (writer, inode) = (self.writer()?, self.inode(node));
        if mode != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let end = offset.checked_add(len).ok_or(Errno::INVAL)?;
        if end > self.files.stat(inode)?.size {
            writer.truncate(inode, end, now())?;
        }
        Ok(())
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
