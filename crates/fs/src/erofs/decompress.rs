//! Compressed clusters.

use std::cell::RefCell;

use block::{Error, Kind, Result};

use super::corrupt::Corrupt;
use super::medium::Medium;
use super::superblock::incompat;
use crate::codec::{self, End};

/// An algorithm, with its number in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Lz4 = 0,
    Lzma = 1,
    Deflate = 2,
    Zstd = 3,
}

impl Algorithm {
    /// That of this number, which has to be one that the superblock announces.
    ///
    /// # Errors
    /// [`Kind::Unsupported`]; `Corrupt`.
    pub fn new(medium: &Medium, number: u8) -> Result<Self> {
        let algorithm = [Self::Lz4, Self::Lzma, Self::Deflate, Self::Zstd]
            .into_iter()
            .find(|algorithm| *algorithm as u8 == number)
            .ok_or_else(|| Error::new(Kind::Unsupported, format!("erofs compression number {number}")))?;
        let superblock = &medium.superblock;
        let configured = superblock.incompat & incompat::COMPRESSION_CONFIGS != 0;
        let announced = if configured { superblock.algorithms } else { 1 };
        if announced & (1 << number) == 0 {
            return Err(
                Corrupt::Index.at(format!("compression number {number}, which the superblock does not announce"))
            );
        }
        Ok(algorithm)
    }
}

/// A physical cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cluster {
    /// Where it begins on the device, or in the metabox.
    pub at: u64,
    /// Bytes that it takes, 1 MiB at most; padded with zeros in front (or, in the first images, behind).
    pub bytes: u64,
    /// Whether it stands behind an index and not among the data.
    pub inline: bool,
    /// Whether it lies in the metabox.
    pub in_metabox: bool,
    pub algorithm: Algorithm,
    /// Whether it unpacks to more than is wanted.
    pub partial: bool,
}

impl Cluster {
    /// Fills `out`, which is all of what is wanted of it.
    ///
    /// # Errors
    /// `Corrupt`; the failure of the device.
    pub fn unpack(&self, medium: &Medium, out: &mut [u8]) -> Result<()> {
        thread_local! {
            // At most a physical cluster, 1 MiB.
            static PACKED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let broken = || Corrupt::Cluster.at(format!("cluster of {} bytes at {}", self.bytes, self.at));
        let len = usize::try_from(self.bytes).map_err(|_| broken())?;
        // A cluster of the metabox is unpacked while that of a file is not yet, so the room is taken and given back.
        let mut room = PACKED.take();
        if room.len() < len {
            room.resize(len, 0);
        }
        let outcome = (|| {
            let packed = room.get_mut(..len).ok_or_else(broken)?;
            if self.inline {
                medium.meta(self.in_metabox, self.at, packed, Corrupt::Data)?;
            } else {
                medium.stored(self.at, self.bytes)?;
                medium.device.read_at(packed, self.at)?;
            }
            let given = self.decompress(medium, packed, out);
            if given == Some(out.len()) { Ok(()) } else { Err(broken()) }
        })();
        PACKED.set(room);
        outcome
    }

    fn decompress(&self, medium: &Medium, packed: &[u8], out: &mut [u8]) -> Option<usize> {
        let end = if self.partial { End::Cut } else { End::Whole };
        if self.algorithm == Algorithm::Lz4 && medium.superblock.incompat & incompat::ZERO_PADDING == 0 {
            // What stands behind the block may be anything.
            return codec::lz4(packed, out, End::Cut);
        }
        let padding = packed.iter().position(|byte| *byte != 0)?;
        let packed = packed.get(padding..)?;
        match self.algorithm {
            Algorithm::Lz4 => codec::lz4(packed, out, end),
            Algorithm::Lzma => codec::micro_lzma(packed, out, end),
            Algorithm::Deflate => codec::deflate(packed, out, end),
            Algorithm::Zstd => codec::zstd(packed, out, end),
        }
    }
}
