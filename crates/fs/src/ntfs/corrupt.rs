//! What can be wrong in an NTFS volume.

use std::borrow::Cow;
use std::fmt;

use block::{Error, Kind};

/// What is wrong with the bytes; the source of an [`Error`] of [`Kind::Corrupt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Corrupt {
    /// The boot sector describes no volume.
    BootSector,
    /// A record of the master file table is none, is not whole, or belongs to another file than was asked for.
    Record,
    /// An attribute leaves its record, or lacks what its kind demands.
    Attribute,
    /// Mapping pairs that are none, leave gaps, or hold less than the attribute.
    Runs,
    /// A cluster lies outside of the volume.
    Cluster,
    /// A compression unit does not unpack.
    CompressionUnit,
    /// An index block is none or not whole, or an entry leaves it.
    Index,
    /// A reparse point that leaves its attribute, or a target that is empty or longer than [`crate::LINK_BYTES_MAX`].
    ReparsePoint,
    /// Extended attributes that leave their list.
    ExtendedAttributes,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BootSector => "impossible boot sector",
            Self::Record => "broken record of the master file table",
            Self::Attribute => "impossible attribute",
            Self::Runs => "impossible mapping pairs",
            Self::Cluster => "cluster outside of the volume",
            Self::CompressionUnit => "broken compression unit",
            Self::Index => "broken index block",
            Self::ReparsePoint => "impossible reparse point",
            Self::ExtendedAttributes => "impossible extended attributes",
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
