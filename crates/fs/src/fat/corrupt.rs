//! What can be wrong in a FAT or exFAT image.

use std::borrow::Cow;
use std::fmt;

use block::{Error, Kind};

/// What is wrong with the bytes; the source of an [`Error`] of [`Kind::Corrupt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Corrupt {
    /// A boot sector whose numbers contradict each other.
    BootSector,
    /// The boot sector says that the file system is larger than the device.
    Truncated,
    /// A file allocation table that is smaller than its clusters need.
    Table,
    /// A chain of clusters that leaves the file system, or is longer than it.
    Chain,
    /// A file whose chain of clusters ends before the file does.
    ChainEnds,
    /// A directory larger than any may be.
    Directory,
    /// A set of directory entries that does not hold together.
    EntrySet,
    /// exFAT: no allocation bitmap, or one that is too small.
    Bitmap,
    /// exFAT: an up-case table that does not unfold.
    UpCase,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BootSector => "impossible boot sector",
            Self::Truncated => "image that is cut off",
            Self::Table => "file allocation table too small for the clusters",
            Self::Chain => "impossible chain of clusters",
            Self::ChainEnds => "chain of clusters that ends before its file",
            Self::Directory => "impossible size of a directory",
            Self::EntrySet => "impossible set of directory entries",
            Self::Bitmap => "no usable allocation bitmap",
            Self::UpCase => "no usable up-case table",
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
