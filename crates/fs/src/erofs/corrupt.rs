//! What can be wrong in an erofs image.

use std::borrow::Cow;
use std::fmt;

use block::{Error, Kind};

/// What is wrong with the bytes; the source of an [`Error`] of [`Kind::Corrupt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Corrupt {
    /// The block size is not 512 bytes to 64 KiB.
    BlockSize,
    /// The superblock leaves its block, or points at what cannot be.
    Superblock,
    /// The check sum of the superblock is another.
    Checksum,
    /// An inode leaves the image, or has a type or layout that does not exist.
    Inode,
    /// The target of a symbolic link is empty, holds NUL, or is longer than [`crate::LINK_BYTES_MAX`].
    LinkTarget,
    /// A file is larger than what describes it can describe.
    FileSize,
    /// Content lies outside of the image, or inline content leaves its block.
    Data,
    /// A chunk is larger than 2⁶³ bytes, or lies on a device that there is not.
    Chunk,
    /// The index of compressed clusters contradicts itself.
    Index,
    /// A compressed cluster does not decompress to its length.
    Cluster,
    /// A fragment lies outside of the packed inode, or inside itself.
    Fragment,
    /// A block of a directory counts or places its names wrongly.
    DirectoryBlock,
    /// An entry has no name that a file may have, or a type that does not exist.
    DirectoryEntry,
    /// Attributes leave their inode, with an impossible name, or of an impossible size.
    Attribute,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BlockSize => "impossible block size",
            Self::Superblock => "impossible superblock",
            Self::Checksum => "wrong check sum of the superblock",
            Self::Inode => "impossible inode",
            Self::LinkTarget => "impossible target of a symbolic link",
            Self::FileSize => "file larger than what describes it",
            Self::Data => "content outside of the image",
            Self::Chunk => "impossible chunk",
            Self::Index => "impossible index of compressed clusters",
            Self::Cluster => "compressed cluster that does not decompress to its length",
            Self::Fragment => "fragment that is not there",
            Self::DirectoryBlock => "impossible directory block",
            Self::DirectoryEntry => "impossible directory entry",
            Self::Attribute => "impossible extended attribute",
        })
    }
}

impl std::error::Error for Corrupt {}

impl Corrupt {
    /// The error for it, where it was found.
    pub(super) fn at(self, context: impl Into<Cow<'static, str>>) -> Error {
        Error::new(Kind::Corrupt, context).with_source(self)
    }
}
