//! What can be wrong in a UDF volume.

use std::borrow::Cow;
use std::fmt;

use block::{Error, Kind};

/// What is wrong with the bytes; the source of an [`Error`] of [`Kind::Corrupt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Corrupt {
    /// No anchor leads to a sequence of descriptors that describes a volume.
    Volume,
    /// A partition map that does not fit what it maps.
    Partition,
    /// A table of a virtual or sparable partition, or the file of a metadata partition, is not there.
    Table,
    /// A block lies outside of its partition, or the partition outside of the device.
    Block,
    /// A descriptor of another kind stands where one is wanted, or its check sum is wrong.
    Descriptor,
    /// A file entry contradicts itself.
    FileEntry,
    /// Allocation descriptors lead nowhere, or hold less than the file.
    Allocation,
    /// An entry leaves its directory.
    DirectoryEntry,
    /// The target of a symbolic link is empty, broken, or longer than [`crate::LINK_BYTES_MAX`].
    LinkTarget,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Volume => "no description of the volume",
            Self::Partition => "impossible partition map",
            Self::Table => "table of a partition that is not there",
            Self::Block => "block outside of its partition",
            Self::Descriptor => "descriptor that is none",
            Self::FileEntry => "impossible file entry",
            Self::Allocation => "impossible allocation descriptors",
            Self::DirectoryEntry => "impossible directory entry",
            Self::LinkTarget => "impossible target of a symbolic link",
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
