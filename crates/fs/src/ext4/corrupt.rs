//! What can be wrong with an image, one variant each, so that a caller compares variants and not text.

use std::fmt;

/// A way in which the bytes of an image are not what ext2, ext3 or ext4 demands. It is the source of a
/// [`block::Error`] of [`block::Kind::Corrupt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields say which inode, block, group or transaction the variant speaks of")]
pub enum Corrupt {
    /// The superblock's magic number is not 0xEF53.
    Magic { found: u16 },
    /// A field of the superblock has a value that no file system has.
    Geometry { field: &'static str, value: u64 },
    /// The file system claims more bytes than the device has.
    DeviceSize { claimed: u64, device: u64 },
    /// The superblock does not have its checksum.
    SuperblockChecksum,
    /// A group descriptor does not have its checksum.
    GroupChecksum { group: u32 },
    /// A group's inode table lies outside of the file system.
    InodeTable { group: u32, block: u64 },
    /// An inode number that the file system does not have.
    InodeNumber { inode: u64 },
    /// An inode does not have its checksum.
    InodeChecksum { inode: u32 },
    /// An inode's mode names no file type, as in one that is not in use.
    InodeMode { inode: u32, mode: u16 },
    /// The root is no directory.
    Root { mode: u16 },
    /// An inode's extra size does not fit into the inode.
    InodeExtraSize { inode: u32, bytes: u16 },
    /// The size of a file is more than any file can have.
    FileSize { inode: u32, bytes: u64 },
    /// A node of an extent tree has a wrong magic number, depth or count.
    ExtentHeader { inode: u32, block: u64 },
    /// Entries of an extent tree are out of order, overlap, or lie outside of their parent's range.
    ExtentOrder { inode: u32, block: u64 },
    /// A node of an extent tree does not have its checksum.
    ExtentChecksum { inode: u32, block: u64 },
    /// A file claims a block that the file system does not have.
    BlockNumber { inode: u32, block: u64 },
    /// A directory entry's length or name does not fit.
    DirectoryEntry { inode: u32, offset: u64 },
    /// A directory block does not have its checksum.
    DirectoryChecksum { inode: u32, block: u64 },
    /// A node of a directory's hash tree is malformed.
    HashTree { inode: u32, block: u64 },
    /// The target of a symbolic link is empty, too long, or holds a NUL.
    SymbolicLink { inode: u32 },
    /// A block of extended attributes has a wrong header.
    XattrHeader { inode: u32, block: u64 },
    /// An extended attribute's name or value lies outside of its room.
    XattrEntry { inode: u32 },
    /// A block of extended attributes does not have its checksum.
    XattrChecksum { inode: u32, block: u64 },
    /// The inode that holds the value of an extended attribute is none of its kind, or of another size.
    XattrInode { inode: u32, value_inode: u32 },
    /// A POSIX access control list is malformed.
    AccessList { inode: u32 },
    /// Inline content without the place where it would be.
    InlineData { inode: u32 },
    /// The journal's superblock has a wrong magic number or type.
    JournalMagic,
    /// A field of the journal's superblock has a value that no journal has.
    JournalGeometry { field: &'static str, value: u64 },
    /// The journal's superblock does not have its checksum.
    JournalSuperblockChecksum,
    /// A descriptor or revoke block of the journal does not have its checksum.
    JournalDescriptorChecksum { sequence: u32 },
    /// A commit block of the journal, or the transaction that it closes, does not have its checksum.
    JournalCommitChecksum { sequence: u32 },
    /// A block in the journal does not have its checksum.
    JournalDataChecksum { sequence: u32, block: u64 },
    /// The journal holds a block that the file system does not have.
    JournalBlockNumber { sequence: u32, block: u64 },
    /// A revoke block's count is more than fits.
    JournalRevoke { sequence: u32 },
    /// A hole where a block of the journal should be.
    JournalHole { block: u64 },
    /// A fast commit holds a malformed tag.
    FastCommit { tag: u16 },
    /// A structure ends before one of its fields.
    Field { at: u64, bytes: u64 },
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Magic { found } => write!(f, "magic number {found:#06x} where ext4 has 0xef53"),
            Self::Geometry { field, value } => write!(f, "superblock with {field} of {value}"),
            Self::DeviceSize { claimed, device } => {
                write!(f, "file system of {claimed} bytes on a device of {device} bytes")
            }
            Self::SuperblockChecksum => f.write_str("wrong checksum of the superblock"),
            Self::GroupChecksum { group } => write!(f, "wrong checksum of group descriptor {group}"),
            Self::InodeTable { group, block } => {
                write!(f, "inode table of group {group} at block {block}, outside of the file system")
            }
            Self::InodeNumber { inode } => write!(f, "inode number {inode}, which the file system does not have"),
            Self::InodeChecksum { inode } => write!(f, "wrong checksum of inode {inode}"),
            Self::InodeMode { inode, mode } => write!(f, "mode {mode:#o} of inode {inode}, which is no file type"),
            Self::Root { mode } => write!(f, "root inode of mode {mode:#o}, which is no directory"),
            Self::InodeExtraSize { inode, bytes } => write!(f, "extra size of {bytes} bytes of inode {inode}"),
            Self::FileSize { inode, bytes } => write!(f, "size of {bytes} bytes of inode {inode}"),
            Self::ExtentHeader { inode, block } => {
                write!(f, "malformed extent tree of inode {inode} in block {block}")
            }
            Self::ExtentOrder { inode, block } => {
                write!(f, "extents out of order of inode {inode} in block {block}")
            }
            Self::ExtentChecksum { inode, block } => {
                write!(f, "wrong checksum of the extents of inode {inode} in block {block}")
            }
            Self::BlockNumber { inode, block } => {
                write!(f, "block {block} of inode {inode}, outside of the file system")
            }
            Self::DirectoryEntry { inode, offset } => {
                write!(f, "malformed entry at byte {offset} of directory inode {inode}")
            }
            Self::DirectoryChecksum { inode, block } => {
                write!(f, "wrong checksum of block {block} of directory inode {inode}")
            }
            Self::HashTree { inode, block } => {
                write!(f, "malformed hash tree in block {block} of directory inode {inode}")
            }
            Self::SymbolicLink { inode } => write!(f, "malformed target of the symbolic link in inode {inode}"),
            Self::XattrHeader { inode, block } => {
                write!(f, "malformed extended attributes of inode {inode} in block {block}")
            }
            Self::XattrEntry { inode } => write!(f, "malformed extended attribute of inode {inode}"),
            Self::XattrChecksum { inode, block } => {
                write!(f, "wrong checksum of the extended attributes of inode {inode} in block {block}")
            }
            Self::XattrInode { inode, value_inode } => {
                write!(f, "inode {value_inode}, which does not hold the extended attribute of inode {inode}")
            }
            Self::AccessList { inode } => write!(f, "malformed access control list of inode {inode}"),
            Self::InlineData { inode } => write!(f, "malformed inline content of inode {inode}"),
            Self::JournalMagic => f.write_str("no superblock where the journal begins"),
            Self::JournalGeometry { field, value } => write!(f, "journal with {field} of {value}"),
            Self::JournalSuperblockChecksum => f.write_str("wrong checksum of the journal's superblock"),
            Self::JournalDescriptorChecksum { sequence } => {
                write!(f, "wrong checksum of a descriptor of journal transaction {sequence}")
            }
            Self::JournalCommitChecksum { sequence } => {
                write!(f, "wrong checksum of journal transaction {sequence}")
            }
            Self::JournalDataChecksum { sequence, block } => {
                write!(f, "wrong checksum of block {block} in journal transaction {sequence}")
            }
            Self::JournalBlockNumber { sequence, block } => {
                write!(f, "block {block} in journal transaction {sequence}, outside of the file system")
            }
            Self::JournalRevoke { sequence } => write!(f, "malformed revoke block of journal transaction {sequence}"),
            Self::JournalHole { block } => write!(f, "hole at block {block} of the journal"),
            Self::FastCommit { tag } => write!(f, "malformed tag {tag} of a fast commit"),
            Self::Field { at, bytes } => write!(f, "field at byte {at} of a structure of {bytes} bytes"),
        }
    }
}

/// What reading a structure gives, where only its bytes can be wrong.
pub(super) type Parsed<T> = Result<T, Corrupt>;

impl std::error::Error for Corrupt {}

impl From<Corrupt> for block::Error {
    fn from(corrupt: Corrupt) -> Self {
        Self::new(block::Kind::Corrupt, "ext4 file system").with_source(corrupt)
    }
}
