//! What can be wrong with a header.

use std::fmt;

use block::{Error, Kind};

/// Why a header is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Corrupt {
    /// There is no header: neither its mark, nor that of a second copy.
    NoMagic,
    /// The device ends before the header does.
    Truncated,
    /// The length of the header is none of those that the format has.
    HeaderLength(u64),
    /// The header says that it is somewhere else.
    HeaderOffset(u64),
    /// The checksum of the header is another one.
    Checksum,
    /// The metadata is no JSON, or lacks what every header has.
    Json(String),
    /// A number is one that has no meaning.
    Field {
        /// Which one.
        field: &'static str,
        /// As stored.
        value: u64,
    },
    /// A text is no base64.
    Base64(&'static str),
    /// The key material of a slot lies over the header, or behind the end.
    SlotArea(u32),
    /// The encrypted data lies behind the end of the device.
    DataBeyondEnd(u64),
    /// No digest speaks of the encrypted data.
    NoDigest,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMagic => f.write_str("no LUKS header"),
            Self::Truncated => f.write_str("the device ends inside of the header"),
            Self::HeaderLength(bytes) => write!(f, "a header of {bytes} bytes"),
            Self::HeaderOffset(bytes) => write!(f, "the header says that it is at byte {bytes}"),
            Self::Checksum => f.write_str("the checksum of the header is wrong"),
            Self::Json(why) => write!(f, "metadata: {why}"),
            Self::Field { field, value } => write!(f, "{field} is {value}"),
            Self::Base64(field) => write!(f, "{field} is no base64"),
            Self::SlotArea(slot) => write!(f, "the key material of slot {slot} lies where it cannot be"),
            Self::DataBeyondEnd(byte) => {
                write!(f, "the encrypted data is said to begin at byte {byte}, behind the end")
            }
            Self::NoDigest => f.write_str("no digest of the key"),
        }
    }
}

impl std::error::Error for Corrupt {}

impl From<Corrupt> for Error {
    fn from(why: Corrupt) -> Self {
        Self::new(Kind::Corrupt, "LUKS header").with_source(why)
    }
}
