//! The algorithms by which blocks are compressed.

use std::cell::RefCell;

use block::{Error, Kind, Result};
use flate2::{Decompress, FlushDecompress, Status};
use lzma_rust2::{LzmaReader, XzReader};
use ruzstd::decoding::FrameDecoder;

use super::lzo;

/// The most that the dictionary of an LZMA stream may claim, and what its decoder needs, KiB. The kernel's and
/// mksquashfs's limit is a block, 1 MiB.
const LZMA_KIB_MAX: u32 = 16 << 10;
/// The largest window of a zstd frame, bytes: what every decoder is asked to support (RFC 8878, 3.1.1.1.2).
const WINDOW_BYTES_MAX: u64 = 8 << 20;

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

thread_local! {
    // What costs more to make than to use again.
    static INFLATE: RefCell<Decompress> = RefCell::new(Decompress::new(true));
    static ZSTD: RefCell<FrameDecoder> = RefCell::new({
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW_BYTES_MAX);
        decoder
    });
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
            Self::Gzip => INFLATE.with_borrow_mut(|stream| {
                stream.reset(true);
                let status = stream.decompress(packed, out, FlushDecompress::Finish).ok()?;
                usize::try_from(stream.total_out()).ok().filter(|_| status == Status::StreamEnd)
            }),
            Self::Lzma => read_all(LzmaReader::new_mem_limit(packed, LZMA_KIB_MAX, None).ok()?, out),
            Self::Lzo => lzo::decompress(packed, out),
            Self::Xz => read_all(XzReader::new_mem_limit(packed, false, LZMA_KIB_MAX), out),
            Self::Lz4 => lz4_flex::block::decompress_into(packed, out).ok(),
            Self::Zstd => ZSTD.with_borrow_mut(|decoder| decoder.decode_all(packed, out).ok()),
        }
    }
}

/// Everything from `reader`, which has to fit.
fn read_all(mut reader: impl std::io::Read, out: &mut [u8]) -> Option<usize> {
    let mut at = 0_usize;
    loop {
        let rest = out.get_mut(at..)?;
        if rest.is_empty() {
            // The end of the stream holds its check sum.
            return (reader.read(&mut [0]).ok()? == 0).then_some(at);
        }
        match reader.read(rest).ok()? {
            0 => return Some(at),
            read => at = at.checked_add(read)?,
        }
    }
}
