//! The algorithms by which blocks are compressed.

use block::{Error, Kind, Result};

use crate::codec::{self, End};

/// An algorithm, with its number in the superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip = 1,
    Lzma = 2,
    Lzo = 3,
    Xz = 4,
    Lz4 = 5,
    Zstd = 6,
}

impl Compression {
    /// That of this number.
    ///
    /// # Errors
    /// [`Kind::Unsupported`].
    pub fn new(number: u16) -> Result<Self> {
        [Self::Gzip, Self::Lzma, Self::Lzo, Self::Xz, Self::Lz4, Self::Zstd]
            .into_iter()
            .find(|compression| *compression as u16 == number)
            .ok_or_else(|| Error::new(Kind::Unsupported, format!("squashfs compression number {number}")))
    }

    /// Decompresses the whole of `packed` into the beginning of `out`, and says how many bytes it gave; `None` where it
    /// is broken or does not fit.
    pub fn decompress(self, packed: &[u8], out: &mut [u8]) -> Option<usize> {
        match self {
            Self::Gzip => codec::zlib(packed, out),
            Self::Lzma => codec::lzma_alone(packed, out),
            Self::Lzo => codec::lzo::decompress(packed, out),
            Self::Xz => codec::xz(packed, out),
            Self::Lz4 => codec::lz4(packed, out, End::Whole),
            Self::Zstd => codec::zstd(packed, out, End::Whole),
        }
    }
}
