//! xz (The .xz File Format 1.2): streams of blocks, each of which can be decoded alone, and an index at the end.
//!
//! ```text
//! | fd 37 7a 58 5a 0 | flags 2 | crc32 | block | block | … | index | crc32 | index size | flags | 59 5a | padding …
//! index: 0 | number of blocks | (bytes of a block without its padding, bytes that come out) … | padding | crc32
//! ```

use std::io::{self, Read};

use block::bytes::{array, has, le_u32, read_vec};
use block::{Error, Kind, ReadAt, Result};
use lzma_rust2::XzReader;

use super::build::Builder;
use super::index::{Kind as PointKind, POINTS_MAX, Point};
use super::source::Source;

/// What is decoded, in messages.
pub(super) const WHAT: &str = "an xz file";
/// The most memory of a decoder, KiB: what `xz -9` needs is 64 MiB.
const MEMORY_KIB_MAX: u32 = 256 << 10;
const HEADER_BYTES: u64 = 12;
const MAGIC: &[u8] = b"\xfd7zXZ\0";
/// The longest index.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// The longest padding behind a stream.
const PADDING_BYTES_MAX: u64 = 64 << 20;

fn corrupt(what: &'static str) -> Error {
    Error::new(Kind::Corrupt, what)
}

/// The blocks of a file as points, and how many bytes come out of all of them, and of the largest.
pub(super) fn blocks(image: &dyn ReadAt) -> Result<(Vec<Point>, u64, u64)> {
    let cut = || corrupt("an xz file without the index at its end: it was cut short");
    // The streams are found from behind; those of each are put in front of those that were found before.
    let mut streams: Vec<Vec<(u64, u64, u64, u8)>> = Vec::new();
    let (mut end, mut count) = (image.size(), 0_usize);
    while end > 0 {
        end = without_padding(image, end)?;
        let footer_at = end.checked_sub(HEADER_BYTES).ok_or_else(cut)?;
        let footer = read_vec(image, footer_at, HEADER_BYTES as usize)?;
        if !has(&footer, 10, b"YZ") || le_u32(&footer, 0) != footer.get(4..10).map(crc32fast::hash) {
            return Err(cut());
        }
        let len = u64::from(le_u32(&footer, 4).unwrap_or_default()).saturating_add(1).saturating_mul(4);
        if len > INDEX_BYTES_MAX {
            return Err(Error::new(Kind::Limit, format!("an xz file with an index of {len} bytes")));
        }
        let index_at = footer_at.checked_sub(len).ok_or_else(cut)?;
        let records = records(&read_vec(image, index_at, usize::try_from(len).unwrap_or_default())?)?;
        count = count.saturating_add(records.len());
        if count > POINTS_MAX {
            return Err(Error::new(Kind::Limit, format!("an xz file of more than {POINTS_MAX} blocks")));
        }
        let wrong = || corrupt("an xz file whose index does not fit its blocks");
        let bytes = records.iter().try_fold(0_u64, |sum, (unpadded, _)| sum.checked_add(padded(*unpadded)?));
        let start = bytes.and_then(|bytes| index_at.checked_sub(bytes)).ok_or_else(wrong)?;
        let header_at = start.checked_sub(HEADER_BYTES).ok_or_else(wrong)?;
        let header = read_vec(image, header_at, HEADER_BYTES as usize)?;
        let flags: [u8; 2] = array(&header, 6).ok_or_else(wrong)?;
        if !has(&header, 0, MAGIC) || le_u32(&header, 8) != Some(crc32fast::hash(&flags)) || !has(&footer, 8, &flags) {
            return Err(wrong());
        }
        let [0, check] = flags else { return Err(Error::new(Kind::Unsupported, "an xz file with unknown flags")) };
        let mut at = start;
        let mut stream = Vec::with_capacity(records.len());
        for (unpadded, out) in records {
            stream.push((at, unpadded, out, check));
            at = at.saturating_add(padded(unpadded).ok_or_else(wrong)?);
        }
        streams.push(stream);
        end = header_at;
    }
    let (mut points, mut out, mut largest) = (Vec::with_capacity(count), 0_u64, 0_u64);
    for (at, unpadded, len, check) in streams.into_iter().rev().flatten() {
        // One that gives nothing is nothing to begin at.
        if len > 0 {
            points.push(Point { out, at, kind: PointKind::Start, bits: check, place: unpadded, ..Point::default() });
        }
        out = out
            .checked_add(len)
            .filter(|out| *out <= i64::MAX as u64)
            .ok_or_else(|| Error::new(Kind::Limit, "an xz file that claims to be larger than any file can be"))?;
        largest = largest.max(len);
    }
    Ok((points, out, largest))
}

fn padded(unpadded: u64) -> Option<u64> {
    unpadded.checked_next_multiple_of(4)
}

/// Where a stream ends that zeroes may follow, up to `end`.
fn without_padding(image: &dyn ReadAt, mut end: u64) -> Result<u64> {
    let first = end;
    loop {
        let len = end.min(64 << 10);
        let bytes = read_vec(image, end.saturating_sub(len), usize::try_from(len).unwrap_or_default())?;
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            let zeroes = bytes.len().saturating_sub(last).saturating_sub(1) as u64;
            return Ok(end.saturating_sub(zeroes));
        }
        end = end.saturating_sub(len);
        if end == 0 || first.saturating_sub(end) > PADDING_BYTES_MAX {
            return Err(corrupt("an xz file that ends with zeroes: it was cut short"));
        }
    }
}

/// The records of an index.
fn records(index: &[u8]) -> Result<Vec<(u64, u64)>> {
    let wrong = || corrupt("an xz file whose index is broken");
    let (body, sum) = index.split_last_chunk::<4>().ok_or_else(wrong)?;
    if u32::from_le_bytes(*sum) != crc32fast::hash(body) || body.first() != Some(&0) {
        return Err(wrong());
    }
    let mut rest = body.get(1..).unwrap_or_default();
    let count = number(&mut rest).ok_or_else(wrong)?;
    let mut records = Vec::new();
    for _ in 0..count {
        // Each takes two bytes at least, so that the loop ends where they do.
        let (unpadded, out) = number(&mut rest).zip(number(&mut rest)).ok_or_else(wrong)?;
        if unpadded < 5 || records.len() >= POINTS_MAX {
            return Err(if unpadded < 5 { wrong() } else { Error::new(Kind::Limit, "an xz file of too many blocks") });
        }
        records.push((unpadded, out));
    }
    if rest.len() > 3 || rest.iter().any(|byte| *byte != 0) {
        return Err(wrong());
    }
    Ok(records)
}

/// A number of seven bits a byte.
fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for place in 0..9_u32 {
        let (first, more) = rest.split_first()?;
        *rest = more;
        number |= u64::from(first & 0x7f).wrapping_shl(place.saturating_mul(7));
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// A decoder of one block: it is given as the only one of a stream.
pub(super) fn open(source: Source, point: &Point, out: u64) -> impl Read + Send + use<> {
    let flags = [0, point.bits];
    let mut header = MAGIC.to_vec();
    header.extend(flags);
    header.extend(crc32fast::hash(&flags).to_le_bytes());
    let mut index = vec![0, 1];
    push_number(&mut index, point.place);
    push_number(&mut index, out);
    index.resize(index.len().next_multiple_of(4), 0);
    let sum = crc32fast::hash(&index).to_le_bytes();
    index.extend(sum);
    let words = u32::try_from(index.len() / 4).unwrap_or_default().saturating_sub(1);
    let footer = [&words.to_le_bytes()[..], &flags].concat();
    let sum = crc32fast::hash(&footer).to_le_bytes();
    index.extend([&sum[..], &footer, b"YZ"].concat());
    let stream = io::Cursor::new(header).chain(source).chain(io::Cursor::new(index));
    XzReader::new_mem_limit(stream, false, MEMORY_KIB_MAX)
}

/// Where the block of a point ends.
pub(super) fn end(point: &Point) -> u64 {
    point.at.saturating_add(padded(point.place).unwrap_or(point.place))
}

/// Notes the blocks.
pub(super) fn build(points: Vec<Point>, builder: &mut Builder<'_>) -> Result<()> {
    points.into_iter().try_for_each(|point| builder.add(point))
}
