//! Compressed blocks of file systems, decompressed: whole blocks in, whole blocks out, nothing allocated beyond a named
//! limit.
//!
//! Each function fills the beginning of `out` and says how many bytes it gave, or `None` where the block is broken or
//! gives more than `out` holds. Those that take an [`End`] can stop where `out` is full.

mod lz4;
mod lznt1;
pub(crate) mod lzo;

use std::cell::RefCell;

use flate2::{Decompress, FlushDecompress, Status};
use lzma_rust2::{LzmaReader, XzReader};
use zrip_decode::context::DecompressContext;
use zrip_decode::streaming::FrameDecoder;

pub(crate) use lz4::lz4;
pub(crate) use lznt1::lznt1;

/// The most that the dictionary of an LZMA stream may claim, and what its decoder needs, KiB. squashfs allows a block,
/// 1 MiB; erofs 8 MiB.
const LZMA_KIB_MAX: u32 = 16 << 10;
/// The most that one zstd frame gives, bytes: what erofs lets a cluster unpack to, and a block of zstd more.
const ZSTD_BYTES_MAX: usize = (12 << 20) + (128 << 10);
/// What a thread keeps for the next zstd frame, bytes.
const ZSTD_KEPT_BYTES_MAX: usize = 1 << 20;

/// What a compressed block is to end with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Its own end, at or before the end of `out`.
    Whole,
    /// The end of `out`, whatever follows: what follows is looked at no more.
    Cut,
}

thread_local! {
    // What costs more to make than to use again.
    static ZLIB: RefCell<Decompress> = RefCell::new(Decompress::new(true));
    static DEFLATE: RefCell<Decompress> = RefCell::new(Decompress::new(false));
    static ZSTD: RefCell<(DecompressContext, Vec<u8>)> = RefCell::new((DecompressContext::new(), Vec::new()));
}

/// A zlib stream (RFC 1950).
pub(crate) fn zlib(packed: &[u8], out: &mut [u8]) -> Option<usize> {
    ZLIB.with_borrow_mut(|stream| {
        stream.reset(true);
        inflate(stream, packed, out, End::Whole)
    })
}

/// A raw deflate stream (RFC 1951).
pub(crate) fn deflate(packed: &[u8], out: &mut [u8], end: End) -> Option<usize> {
    DEFLATE.with_borrow_mut(|stream| {
        stream.reset(false);
        inflate(stream, packed, out, end)
    })
}

fn inflate(stream: &mut Decompress, packed: &[u8], out: &mut [u8], end: End) -> Option<usize> {
    let status = stream.decompress(packed, out, FlushDecompress::Finish);
    let given = usize::try_from(stream.total_out()).ok()?;
    match status {
        Ok(Status::StreamEnd) => Some(given),
        Ok(_) if end == End::Cut && given == out.len() => Some(given),
        _ => None,
    }
}

/// A zstd frame (RFC 8878).
pub(crate) fn zstd(packed: &[u8], out: &mut [u8], end: End) -> Option<usize> {
    if end == End::Cut {
        let mut decoder = FrameDecoder::with_limit(packed, ZSTD_BYTES_MAX);
        let mut at = 0_usize;
        while let Some(rest) = out.get_mut(at..).filter(|rest| !rest.is_empty()) {
            match std::io::Read::read(&mut decoder, rest).ok()? {
                0 => break,
                read => at = at.checked_add(read)?,
            }
        }
        return Some(at);
    }
    ZSTD.with_borrow_mut(|(decoder, room)| {
        room.clear();
        let given = decoder.decompress_into_with_limit(packed, room, out.len()).ok();
        let given = given.and_then(|given| {
            out.get_mut(..given)?.copy_from_slice(room.get(..given)?);
            Some(given)
        });
        if room.capacity() > ZSTD_KEPT_BYTES_MAX {
            *room = Vec::new();
        }
        given
    })
}

/// A stream of xz.
pub(crate) fn xz(packed: &[u8], out: &mut [u8]) -> Option<usize> {
    read_all(XzReader::new_mem_limit(packed, false, LZMA_KIB_MAX), out)
}

/// A stream in the old format of lzma, with its header of 13 bytes.
pub(crate) fn lzma_alone(packed: &[u8], out: &mut [u8]) -> Option<usize> {
    read_all(LzmaReader::new_mem_limit(packed, LZMA_KIB_MAX, None).ok()?, out)
}

/// A MicroLZMA stream: LZMA without a header and an end marker, whose first byte (always 0 in LZMA) holds the inverted
/// properties instead. How much it unpacks to is not in it: `out` is filled.
pub(crate) fn micro_lzma(packed: &[u8], out: &mut [u8], end: End) -> Option<usize> {
    let (first, rest) = packed.split_first()?;
    let len = u64::try_from(out.len()).ok()?;
    // What was not yet given cannot be referred to, so the dictionary need not be larger than `out`.
    let dictionary = u32::try_from(out.len()).ok()?.max(4096);
    // A stream that is cut goes on behind the end of `out`; where one ends there, its range coder has to be at its end.
    let claimed = if end == End::Whole { len } else { u64::MAX };
    let stream = std::io::Read::chain(&[0][..], rest);
    let mut reader = LzmaReader::new_with_props(stream, claimed, !*first, dictionary, None).ok()?;
    std::io::Read::read_exact(&mut reader, out).ok()?;
    Some(out.len())
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
