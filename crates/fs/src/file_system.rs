//! The trait that every file system fulfils, and what it speaks of.

use std::fmt::Debug;
use std::ops::ControlFlow;

use block::{Result, Source};

/// A file of a file system: a number that the file system chose, good for as long as the file system is open.
///
/// What the number means (an inode number, the position of a directory record) is the file system's own matter; what
/// people are shown is [`Stat::number`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inode(pub u64);

/// A place in a directory, to go on from. [`Cursor::START`] is its beginning; all others come from an [`Entry`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cursor(pub u64);

impl Cursor {
    /// Before the first entry.
    pub const START: Self = Self(0);
}

/// What kind of file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// Bytes.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    SymbolicLink,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharacterDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// The types by their numbers in directory entries of ext2/3/4 (`EXT2_FT_…`) and erofs, from 1 on.
const ENTRY_TYPES: [FileType; 7] = [
    FileType::Regular,
    FileType::Directory,
    FileType::CharacterDevice,
    FileType::BlockDevice,
    FileType::Fifo,
    FileType::Socket,
    FileType::SymbolicLink,
];

impl FileType {
    /// The type of that number in a directory entry of ext2/3/4 or erofs; 0 is for one that is not said.
    pub(crate) fn of_entry(number: u8) -> Option<Self> {
        ENTRY_TYPES.get(usize::from(number.checked_sub(1)?)).copied()
    }

    /// Its number in a directory entry of ext2/3/4 or erofs.
    pub(crate) fn entry_number(self) -> u8 {
        ENTRY_TYPES.iter().zip(1..).find(|(file_type, _)| **file_type == self).map_or(0, |(_, number)| number)
    }

    /// The `S_IF…` bits of a mode.
    pub fn mode_bits(self) -> u32 {
        match self {
            Self::Fifo => 0o010_000,
            Self::CharacterDevice => 0o020_000,
            Self::Directory => 0o040_000,
            Self::BlockDevice => 0o060_000,
            Self::Regular => 0o100_000,
            Self::SymbolicLink => 0o120_000,
            Self::Socket => 0o140_000,
        }
    }

    /// The type that the `S_IF…` bits of `mode` name, if any.
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & 0o170_000 {
            0o010_000 => Self::Fifo,
            0o020_000 => Self::CharacterDevice,
            0o040_000 => Self::Directory,
            0o060_000 => Self::BlockDevice,
            0o100_000 => Self::Regular,
            0o120_000 => Self::SymbolicLink,
            0o140_000 => Self::Socket,
            _ => return None,
        })
    }
}

/// A moment: seconds since 1970-01-01 00:00 UTC (earlier ones negative), and nanoseconds after that second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Whole seconds.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The inode number that people are shown, and by which hard links are known: two names with the same number are
    /// the same file. Not 0.
    pub number: u64,
    /// What kind of file.
    pub file_type: FileType,
    /// The lower twelve bits of the mode: permissions, set-uid, set-gid, sticky.
    pub permissions: u16,
    /// How many names it has.
    pub links: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes; of a symbolic link, the length of its target.
    pub size: u64,
    /// Room it takes, in units of 512 bytes.
    pub blocks: u64,
    /// Of a device file: its major and minor number.
    pub device: Option<(u32, u32)>,
    /// When it was last read.
    pub accessed: Time,
    /// When its content last changed.
    pub modified: Time,
    /// When its inode last changed.
    pub changed: Time,
    /// When it was made, where the file system knows.
    pub created: Option<Time>,
}

impl Stat {
    /// Type and permissions as the kernel's `st_mode`.
    pub fn mode(&self) -> u32 {
        self.file_type.mode_bits() | u32::from(self.permissions)
    }
}

/// A name in a directory, lent to the visitor of [`FileSystem::read_dir`].
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// The name: bytes, not empty, without `/` and NUL, neither `.` nor `..`, at most [`crate::NAME_BYTES_MAX`].
    pub name: &'a [u8],
    /// The file.
    pub inode: Inode,
    /// Its type, where the directory itself says so.
    pub file_type: Option<FileType>,
    /// Where to go on after this entry.
    pub next: Cursor,
}

/// One run of a file's content, from an offset that the caller named.
#[derive(Debug, Clone, Copy)]
pub struct FileExtent<'a> {
    /// Length in bytes, at least 1.
    pub len: u64,
    /// Where the bytes are: `Data` where they are packed, encoded or inline.
    pub source: Source<'a>,
}

/// How full a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Unit of the next three, bytes.
    pub block_bytes: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks free.
    pub blocks_free: u64,
    /// Blocks free for users who are not root.
    pub blocks_available: u64,
    /// Inodes in all.
    pub files: u64,
    /// Inodes free.
    pub files_free: u64,
}

/// A file system, read only.
///
/// An [`Inode`] that this file system did not give out is answered with an error, or as some file of the same image;
/// never with a panic.
pub trait FileSystem: Send + Sync + Debug {
    /// Its name as `mount -t` has it: `iso9660`, `ext4`.
    fn name(&self) -> &'static str;

    /// Its label; empty where it has none.
    fn label(&self) -> String;

    /// The directory at the top.
    fn root(&self) -> Inode;

    /// The file of that name in `directory`, if there is one. `.` and `..` are the caller's.
    ///
    /// # Errors
    /// [`block::Kind::NotDirectory`]; `Corrupt`; the failure of the device.
    fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Option<Inode>>;

    /// What is known of a file.
    ///
    /// # Errors
    /// `Corrupt`; the failure of the device.
    fn stat(&self, inode: Inode) -> Result<Stat>;

    /// Shows `visit` the entries of `directory` after `from`, without `.` and `..`, until it breaks off.
    ///
    /// # Errors
    /// [`block::Kind::NotDirectory`]; `Corrupt`; the failure of the device.
    fn read_dir(
        &self,
        directory: Inode,
        from: Cursor,
        visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()>;

    /// Reads a regular file's content at `offset` (bytes) into `buf`, and says how many bytes: fewer than asked only at
    /// the end of the file.
    ///
    /// # Errors
    /// [`block::Kind::IsDirectory`], `Invalid` where it is no regular file; `Corrupt`; the failure of the device.
    fn read(&self, inode: Inode, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// One run of a regular file's content from `offset` (bytes) on; `None` at and after the end of the file.
    ///
    /// # Errors
    /// As [`FileSystem::read`].
    fn extent_at(&self, inode: Inode, offset: u64) -> Result<Option<FileExtent<'_>>>;

    /// The target of a symbolic link: bytes without NUL, at least one, at most [`crate::LINK_BYTES_MAX`].
    ///
    /// # Errors
    /// [`block::Kind::Invalid`] where it is no symbolic link; `Corrupt`; the failure of the device.
    fn read_link(&self, inode: Inode) -> Result<Vec<u8>>;

    /// The names of the extended attributes, with their prefix (`user.`, `security.`, `system.posix_acl_access` …).
    ///
    /// # Errors
    /// `Corrupt`; the failure of the device.
    fn xattrs(&self, inode: Inode) -> Result<Vec<Vec<u8>>>;

    /// The value of an extended attribute as the kernel's `getxattr` gives it, at most [`crate::XATTR_BYTES_MAX`].
    ///
    /// # Errors
    /// [`block::Kind::NoAttribute`] where the file has none of that name; `Corrupt`; the failure of the device.
    fn xattr(&self, inode: Inode, name: &[u8]) -> Result<Vec<u8>>;

    /// How full it is.
    ///
    /// # Errors
    /// The failure of the device.
    fn space(&self) -> Result<Space>;
}
