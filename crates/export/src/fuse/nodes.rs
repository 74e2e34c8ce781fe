//! What a session asks of whoever it shows to the kernel: the tree of a file system, or a disk and its partitions.

use std::os::fd::BorrowedFd;

use zerocopy::IntoBytes;

use super::wire::{Attr, Dirent, EntryOut, Errno, OpenIn, OpenOut, SetAttrIn, StatFsOut};

/// The answer to a request.
pub type Answer<T> = Result<T, Errno>;

/// A file, what is known of it, and for how long the kernel may go on believing that.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    /// Its number. 0: there is no such file.
    pub number: u64,
    /// What is known.
    pub attr: Attr,
}

impl Node {
    /// That there is no such file, which the kernel remembers too.
    pub const NONE: Self = Self { number: 0, attr: ABSENT };
}

const ABSENT: Attr = Attr {
    ino: 0,
    size: 0,
    blocks: 0,
    atime: 0,
    mtime: 0,
    ctime: 0,
    atimensec: 0,
    mtimensec: 0,
    ctimensec: 0,
    mode: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

/// For how many seconds the kernel may go on believing what it was told.
#[derive(Debug, Clone, Copy)]
pub struct Valid {
    /// That a name is that of a file.
    pub name_s: u64,
    /// What is known of a file.
    pub attr_s: u64,
}

/// Files by their number; [`super::wire::ROOT`] is the directory that is mounted. Called by several threads at once.
pub trait Nodes: Send + Sync {
    /// The flags of INIT that this tree wants, beside those that every session has.
    fn init_flags(&self) -> u64;

    /// How long, in seconds, names and attributes stay as they are.
    fn valid_s(&self) -> Valid;

    /// The file of that name.
    fn lookup(&self, directory: u64, name: &[u8]) -> Answer<Node>;

    /// What is known of a file.
    fn attr(&self, node: u64) -> Answer<Attr>;

    /// Changes some of that.
    fn set_attr(&self, node: u64, change: &SetAttrIn) -> Answer<Attr>;

    /// Target of a symbolic link.
    fn read_link(&self, node: u64) -> Answer<Vec<u8>>;

    /// `ENOSYS`: no file of this session is opened ever, and the kernel keeps what it read.
    fn open(&self, node: u64, how: OpenIn) -> Answer<OpenOut>;

    /// The file whose bytes are those of a node that nobody writes: reads may go past this session, straight to it.
    fn image(&self, node: u64) -> Option<BorrowedFd<'_>>;

    /// The last user of an open file is gone.
    fn release(&self, node: u64, opened: u64);

    /// Reads into `buf` from `offset` (bytes) on; less than all of it at the end of the file.
    fn read(&self, node: u64, buf: &mut [u8], offset: u64) -> Answer<usize>;

    /// Writes, and says how many bytes of it.
    fn write(&self, node: u64, data: &[u8], offset: u64) -> Answer<u32>;

    /// Makes a file of the type and with the permissions of `mode`.
    fn create(&self, directory: u64, name: &[u8], mode: u32) -> Answer<Node>;

    /// Takes a name away: that of a directory, or of another file.
    fn remove(&self, directory: u64, name: &[u8], directory_wanted: bool) -> Answer<()>;

    /// Gives a file another name; `flags` are those of renameat2(2).
    fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Answer<()>;

    /// What was written survives a power cut.
    fn sync(&self) -> Answer<()>;

    /// The same, and nothing more is to come.
    fn close(&self) -> Answer<()>;

    /// The names in a directory, from a place that was said with the one before.
    fn read_dir(&self, directory: u64, from: u64, listing: &mut Listing<'_>) -> Answer<()>;

    /// How full the file system is.
    fn space(&self) -> Answer<StatFsOut>;

    /// The value of an extended attribute.
    fn xattr(&self, node: u64, name: &[u8]) -> Answer<Vec<u8>>;

    /// The names of the extended attributes, a NUL after each.
    fn xattrs(&self, node: u64) -> Answer<Vec<u8>>;

    /// Zeroes or gives up a range: `mode` is that of fallocate(2).
    fn allocate(&self, node: u64, offset: u64, len: u64, mode: u32) -> Answer<()>;

    /// The next data or hole from `offset` on.
    fn seek(&self, node: u64, offset: u64, whence: u32) -> Answer<u64>;
}

/// The answer to READDIR or READDIRPLUS, as far as it fits.
#[derive(Debug)]
pub struct Listing<'a> {
    buf: &'a mut [u8],
    used: usize,
    plus: bool,
    valid: Valid,
}

impl<'a> Listing<'a> {
    /// An empty one that may fill `buf`; with `plus`, each name comes with its attributes.
    pub fn new(buf: &'a mut [u8], plus: bool, valid: Valid) -> Self {
        Self { buf, used: 0, plus, valid }
    }

    /// Whether names are to come with their attributes.
    pub fn plus(&self) -> bool {
        self.plus
    }

    /// How many bytes it holds.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Adds a name: of the file with inode number `number` and type `mode` (`S_IF…` bits); `next` is the place after
    /// it. `node` is what is known of it, where [`Listing::plus`] and it is neither `.` nor `..`. False when it does
    /// not fit: that name comes first in the next listing.
    pub fn push(&mut self, name: &[u8], number: u64, mode: u32, next: u64, node: Option<Node>) -> bool {
        let front = if self.plus { size_of::<EntryOut>() } else { 0 };
        let named = front + size_of::<Dirent>() + name.len();
        let Some(room) =
            self.used.checked_add(named.next_multiple_of(8)).and_then(|end| self.buf.get_mut(self.used..end))
        else {
            return false;
        };
        let Ok(namelen) = u32::try_from(name.len()) else { return false };
        let dirent = Dirent { ino: number, off: next, namelen, file_type: (mode & 0o170_000) >> 12 };
        room.fill(0);
        if self.plus {
            room[..front].copy_from_slice(entry_out(node.unwrap_or(Node::NONE), self.valid).as_bytes());
        }
        room[front..front + size_of::<Dirent>()].copy_from_slice(dirent.as_bytes());
        room[front + size_of::<Dirent>()..named].copy_from_slice(name);
        self.used += room.len();
        true
    }
}

/// The answer to LOOKUP.
pub fn entry_out(node: Node, valid: Valid) -> EntryOut {
    let (entry_valid, attr_valid) = (valid.name_s, valid.attr_s);
    EntryOut { nodeid: node.number, entry_valid, attr_valid, attr: node.attr, ..EntryOut::default() }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;

    #[test]
    fn a_listing_holds_whole_names() {
        let mut buf = [0xAA; 24 + 8 + 31];
        let mut listing = Listing::new(&mut buf, false, Valid { name_s: 1, attr_s: 1 });
        assert!(listing.push(b"boot", 12, 0o040_000, 3, None));
        assert!(!listing.push(b"efi", 13, 0o040_000, 4, None), "one byte is missing");
        assert_eq!(listing.len(), 32);
        let (dirent, name) = Dirent::read_from_prefix(&buf).unwrap();
        assert_eq!(dirent, Dirent { ino: 12, off: 3, namelen: 4, file_type: 4 });
        assert_eq!(&name[..8], b"boot\0\0\0\0");
    }

    #[test]
    fn with_attributes_they_come_first() {
        let mut buf = [0; 512];
        let node = Node { number: 5, attr: Attr { ino: 12, mode: 0o100_644, ..Attr::default() } };
        let mut listing = Listing::new(&mut buf, true, Valid { name_s: 8, attr_s: 9 });
        assert!(listing.push(b"a", 12, 0o100_000, 1, Some(node)));
        assert_eq!(listing.len(), 160);
        let (entry, rest) = EntryOut::read_from_prefix(&buf).unwrap();
        assert_eq!((entry.nodeid, entry.attr_valid, entry.attr), (5, 9, node.attr));
        assert_eq!(Dirent::read_from_prefix(rest).unwrap().0.file_type, 8);
    }
}
