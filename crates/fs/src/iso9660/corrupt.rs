//! What can be wrong in an ISO 9660 image.

use std::borrow::Cow;
use std::fmt;

use block::{Error, Kind};

/// What is wrong with the bytes; the source of an [`Error`] of [`Kind::Corrupt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Corrupt {
    /// The volume descriptors hold no primary one.
    NoPrimaryVolume,
    /// The logical block is not 512, 1024 or 2048 bytes.
    BlockSize,
    /// A directory record is shorter than what it holds, or leaves its directory.
    Record,
    /// A directory does not lie on the device.
    DirectoryBeyondDevice,
    /// A file does not lie on the device.
    FileBeyondDevice,
    /// The next section of a file of several sections is not there, or there are more than [`super::SECTIONS_MAX`].
    Sections,
    /// A system use entry is shorter than its kind demands, or leaves its area.
    SystemUse,
    /// A continuation area of system use entries does not lie on the device.
    ContinuationBeyondDevice,
    /// Continuation areas lead to ever more of them.
    ContinuationChain,
    /// What a child link names is no directory.
    ChildLink,
    /// A mode says directory, the directory record does not.
    Mode,
    /// The target of a symbolic link is empty, holds NUL, or is longer than [`crate::LINK_BYTES_MAX`].
    LinkTarget,
    /// The header of a zisofs file is wrong, or not what its ZF entry says.
    ZisofsHeader,
    /// A block pointer of a zisofs file is wrong.
    ZisofsPointer,
    /// A block of a zisofs file does not inflate to its size.
    ZisofsBlock,
    /// An attribute list has no even number of components, or one is too long.
    AttributeList,
    /// The boot catalog is not where the boot record says, or its check sum is wrong.
    BootCatalog,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPrimaryVolume => "no primary volume descriptor",
            Self::BlockSize => "logical block of an impossible size",
            Self::Record => "broken directory record",
            Self::DirectoryBeyondDevice => "directory beyond the end of the image",
            Self::FileBeyondDevice => "file beyond the end of the image",
            Self::Sections => "missing or too many sections of a file",
            Self::SystemUse => "broken system use entry",
            Self::ContinuationBeyondDevice => "continuation area beyond the end of the image",
            Self::ContinuationChain => "endless chain of continuation areas",
            Self::ChildLink => "child link to something that is no directory",
            Self::Mode => "mode of a directory on something that is none",
            Self::LinkTarget => "impossible target of a symbolic link",
            Self::ZisofsHeader => "broken header of a zisofs file",
            Self::ZisofsPointer => "broken block pointer of a zisofs file",
            Self::ZisofsBlock => "broken block of a zisofs file",
            Self::AttributeList => "broken list of extended attributes",
            Self::BootCatalog => "broken boot catalog",
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

/// What a parser of bytes returns, which does not know where they stood.
pub(super) type Parsed<T> = Result<T, Corrupt>;
