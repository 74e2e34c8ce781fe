//! What can be wrong with a qcow2 image.

use std::fmt;

use block::{Error, Kind};

/// What is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Corrupt {
    /// It does not begin with `QFI\xfb`.
    Magic,
    /// The header is cut short or contradicts itself.
    Header,
    /// The header has a length that it cannot have.
    HeaderLength(u32),
    /// A cluster size that is not 512 bytes to 2 MiB (16 KiB to 2 MiB with subclusters).
    ClusterBits(u32),
    /// Refcounts of more than 64 bits.
    RefcountOrder(u32),
    /// The name of the backing file is longer than 1023 bytes.
    BackingName(u32),
    /// The L1 table is too short for the disk.
    L1TooShort {
        /// Its entries.
        entries: u64,
        /// Those that the disk needs.
        needed: u64,
    },
    /// An offset that is not at the start of a cluster.
    Unaligned(u64),
    /// The file ends before what the header or a table points to.
    Truncated(&'static str),
    /// A cluster of data lies behind the end of the file.
    BeyondEnd(u64),
    /// A subcluster is allocated and zero at the same time, or allocated nowhere.
    Subclusters(u64),
    /// A compressed cluster that deflate does not understand.
    Deflate,
    /// A compressed cluster that Zstandard does not understand.
    Zstd,
    /// A refcount that does not fit.
    RefcountTooLarge(u64),
    /// A cluster in use that is counted as free.
    RefcountZero(u64),
    /// A cluster that holds a table of the image and is counted as free.
    Overlap(u64),
    /// The table of snapshots is cut short or makes no sense.
    Snapshots,
}

impl Corrupt {
    pub(super) fn with(self, below: Error) -> Error {
        // What the medium could not read is no damage of the format.
        if below.kind() == Kind::OutOfRange { self.into() } else { below }
    }
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("no qcow2 header"),
            Self::Header => f.write_str("a header that is cut short or contradicts itself"),
            Self::HeaderLength(bytes) => write!(f, "a header of {bytes} bytes"),
            Self::ClusterBits(bits) => write!(f, "clusters of 2 to the power of {bits} bytes"),
            Self::RefcountOrder(order) => write!(f, "refcounts of 2 to the power of {order} bits"),
            Self::BackingName(bytes) => write!(f, "a backing file name of {bytes} bytes"),
            Self::L1TooShort { entries, needed } => write!(f, "an L1 table of {entries} entries, {needed} are needed"),
            Self::Unaligned(offset) => write!(f, "the offset {offset:#x}, which is not at the start of a cluster"),
            Self::Truncated(what) => write!(f, "the file ends before the end of {what}: it was cut short"),
            Self::BeyondEnd(offset) => write!(f, "data at {offset:#x}, behind the end of the file: it was cut short"),
            Self::Subclusters(bits) => write!(f, "subclusters {bits:#018x}, which contradict themselves"),
            Self::Deflate => f.write_str("a compressed cluster that is not deflate"),
            Self::Zstd => f.write_str("a compressed cluster that is not Zstandard"),
            Self::RefcountTooLarge(cluster) => write!(f, "cluster {cluster} is used more often than can be counted"),
            Self::RefcountZero(cluster) => write!(f, "cluster {cluster} is in use and counted as free"),
            Self::Overlap(cluster) => write!(
                f,
                "cluster {cluster} holds tables of the image and is counted as free: `loopbox check --repair all` \
                 counts anew"
            ),
            Self::Snapshots => f.write_str("a table of snapshots that is cut short"),
        }
    }
}

impl std::error::Error for Corrupt {}

impl From<Corrupt> for Error {
    fn from(corrupt: Corrupt) -> Self {
        Self::new(Kind::Corrupt, "qcow2").with_source(corrupt)
    }
}
