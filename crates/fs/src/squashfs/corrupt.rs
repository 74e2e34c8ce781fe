//! What can be wrong in a squashfs image.

use std::borrow::Cow;
use std::fmt;

use block::{Error, Kind};

/// What is wrong with the bytes; the source of an [`Error`] of [`Kind::Corrupt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Corrupt {
    /// The block size is no power of two from 4 KiB to 1 MiB, or not what its logarithm says.
    BlockSize,
    /// The image says that it is larger than the device.
    Truncated,
    /// A table begins outside of the image, or the tables are not in their order.
    Table,
    /// A metadata block leaves the image, is empty, or larger than 8 KiB.
    MetadataBlock,
    /// A position lies behind the end of its metadata block.
    MetadataOffset,
    /// A metadata block does not decompress.
    Metadata,
    /// A type of inode that does not exist, or one with the number 0.
    Inode,
    /// A user or group that the id table does not hold.
    Id,
    /// The target of a symbolic link is empty, holds NUL, or is longer than [`crate::LINK_BYTES_MAX`].
    LinkTarget,
    /// A file is larger than its list of blocks can be.
    FileSize,
    /// A data block leaves the image, or is larger than the block size.
    DataBlock,
    /// A data block does not decompress to its size.
    Data,
    /// A fragment that the fragment table does not hold, or a tail that its fragment does not hold.
    Fragment,
    /// A directory header counts more than 256 entries.
    DirectoryHeader,
    /// An entry leaves its directory, has no name that a file may have, or a type that does not exist.
    DirectoryEntry,
    /// A name in a directory's index is too long.
    DirectoryIndex,
    /// Attributes that the attribute table does not hold, with an impossible name, or of an impossible size.
    Attribute,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BlockSize => "impossible block size",
            Self::Truncated => "image that is cut off",
            Self::Table => "table outside of the image",
            Self::MetadataBlock => "impossible metadata block",
            Self::MetadataOffset => "position behind the end of a metadata block",
            Self::Metadata => "metadata block that does not decompress",
            Self::Inode => "impossible inode",
            Self::Id => "user or group that is not in the id table",
            Self::LinkTarget => "impossible target of a symbolic link",
            Self::FileSize => "file larger than its list of blocks",
            Self::DataBlock => "impossible data block",
            Self::Data => "data block that does not decompress to its size",
            Self::Fragment => "fragment that is not there",
            Self::DirectoryHeader => "impossible directory header",
            Self::DirectoryEntry => "impossible directory entry",
            Self::DirectoryIndex => "impossible directory index",
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
