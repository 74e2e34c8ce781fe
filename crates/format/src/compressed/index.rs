//! Where decoding can begin, and what is known of the bytes that come out: as it is kept in a file.
//!
//! ```text
//! 0          8        12       16          24           32          36         40       64
//! +----------+--------+--------+-----------+------------+-----------+----------+--------+---------------------
//! | loopbox\n| version| format | disk size | tables at  | their size| their sum| sum    | windows, pieces, …
//! +----------+--------+--------+-----------+------------+-----------+----------+--------+---------------------
//! tables: image's name 4 + n | ignored 8 | pieces at 8 | count 4, points of 39 | count 4, pieces of 9
//! ```
//!
//! Numbers are little-endian, sums CRC-32C. The head is written last, so that a file whose writer was killed has none.

use block::bytes::{array, byte, has, le_u32, le_u64, read_up_to, read_vec};
use block::{Error, Kind as ErrorKind, ReadAt, Result};

use crate::probe::Format;

/// A point is set about every so many bytes that come out, and less often in large files.
pub(super) const SPACING: u64 = 1 << 20;
/// The most points of a gzip file, whose windows take up to 32 KiB each.
pub(super) const SPACED_POINTS_MAX: usize = 4096;
/// The most points of any file.
pub(super) const POINTS_MAX: usize = 1 << 20;
/// What comes out is remembered in pieces of so many bytes.
pub(super) const PIECE: u64 = 256 << 10;
/// The most bytes that come out of a file that has to be decoded as a whole first.
pub(super) const OUT_BYTES_MAX: u64 = 8 << 40;

const MAGIC: &[u8] = b"loopbox\n";
const VERSION: u32 = 1;
pub(super) const HEAD_BYTES: u64 = 64;
const TABLES_BYTES_MAX: usize = 512 << 20;
const NAME_BYTES_MAX: usize = 64 << 10;

/// How decoding begins at a point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Kind {
    /// At the header of a gzip member or a zstd frame; or an xz block, with its check.
    #[default]
    Start,
    /// At a block of a gzip member.
    Block,
}

/// Where decoding can begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Point {
    /// The first byte that comes out.
    pub(super) out: u64,
    /// The first byte of the file.
    pub(super) at: u64,
    pub(super) kind: Kind,
    /// gzip: how many bits of the byte before belong to it; xz: the kind of check.
    pub(super) bits: u8,
    /// gzip: those bits.
    pub(super) byte: u8,
    /// xz: bytes of the block without its padding; gzip: where its window is in the index.
    pub(super) place: u64,
    /// gzip: bytes of the window as it is kept; 0: none.
    pub(super) window_len: u32,
    /// gzip: bytes of the window, unpacked.
    pub(super) window_bytes: u32,
    /// gzip: the sum of the window as it is kept.
    pub(super) window_sum: u32,
}

/// What is known of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// The sum of its bytes.
    Sum(u32),
    /// It is zeroes.
    Zero,
    /// Its bytes are kept in the index, in this place of [`PIECE`] bytes, and have this sum.
    Kept { slot: u32, sum: u32 },
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) format: Format,
    /// Bytes that come out.
    pub(super) size: u64,
    /// What image it is of, in the words of who keeps it.
    pub(super) name: Vec<u8>,
    /// Bytes at the end of the file that mean nothing.
    pub(super) ignored: u64,
    /// By place; the first one at byte 0, unless nothing comes out.
    pub(super) points: Vec<Point>,
    /// Of all pieces, or of none.
    pub(super) pieces: Vec<Known>,
    /// Where kept pieces begin in the index.
    pub(super) kept_at: u64,
}

fn code(format: Format) -> Option<u32> {
    match format {
        Format::Gzip => Some(1),
        Format::Xz => Some(2),
        Format::Zstd => Some(3),
        _ => None,
    }
}

impl Index {
    /// The head and the tables of a file whose tables are at `tables_at`.
    pub(super) fn to_bytes(&self, tables_at: u64) -> (Vec<u8>, Vec<u8>) {
        let mut tables = Vec::new();
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
        tables.extend(count(self.name.len()));
        tables.extend(&self.name);
        tables.extend(self.ignored.to_le_bytes());
        tables.extend(self.kept_at.to_le_bytes());
        tables.extend(count(self.points.len()));
        for point in &self.points {
            for number in [point.out, point.at, point.place] {
                tables.extend(number.to_le_bytes());
            }
            for number in [point.window_len, point.window_bytes, point.window_sum] {
                tables.extend(number.to_le_bytes());
            }
            tables.extend([u8::from(point.kind == Kind::Block), point.bits, point.byte]);
        }
        tables.extend(count(self.pieces.len()));
        for piece in &self.pieces {
            let (state, slot, sum) = match *piece {
                Known::Sum(sum) => (0_u8, 0, sum),
                Known::Zero => (1, 0, 0),
                Known::Kept { slot, sum } => (2, slot, sum),
            };
            tables.push(state);
            tables.extend(slot.to_le_bytes());
            tables.extend(sum.to_le_bytes());
        }
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend(code(self.format).unwrap_or_default().to_le_bytes());
        head.extend(self.size.to_le_bytes());
        head.extend(tables_at.to_le_bytes());
        head.extend(count(tables.len()));
        head.extend(crc32c::crc32c(&tables).to_le_bytes());
        head.extend(crc32c::crc32c(&head).to_le_bytes());
        head.resize(HEAD_BYTES as usize, 0);
        (head, tables)
    }

    /// What a file holds, that nobody else changes meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where it is no whole index, or one of another image; that of the file.
    pub(super) fn read(room: &dyn ReadAt, format: Format, name: &[u8], image_bytes: u64) -> Result<Self> {
        let corrupt = || Error::new(ErrorKind::Corrupt, "an index of a compressed image that is broken");
        let head = read_up_to(room, 0, HEAD_BYTES as usize)?;
        let sum = head.get(..40).map(crc32c::crc32c);
        if !has(&head, 0, MAGIC)
            || le_u32(&head, 8) != Some(VERSION)
            || le_u32(&head, 12) != code(format)
            || sum != le_u32(&head, 40)
        {
            return Err(corrupt());
        }
        let size = le_u64(&head, 16).ok_or_else(corrupt)?;
        let (at, len) = le_u64(&head, 24).zip(le_u32(&head, 32)).ok_or_else(corrupt)?;
        let len = usize::try_from(len).ok().filter(|len| *len <= TABLES_BYTES_MAX).ok_or_else(corrupt)?;
        let tables = read_vec(room, at, len).map_err(|error| corrupt().with_source(error))?;
        if Some(crc32c::crc32c(&tables)) != le_u32(&head, 36) {
            return Err(corrupt());
        }
        let index = Self::parse(&tables, format, size).ok_or_else(corrupt)?;
        if index.name != name {
            return Err(Error::new(ErrorKind::Corrupt, "an index of another compressed image"));
        }
        let in_order = index.points.windows(2).all(|pair| match pair {
            [first, second] => first.out < second.out && first.at < second.at,
            _ => false,
        });
        let starts = index.points.first().map(|point| point.out) == (size > 0).then_some(0);
        let inside = index.points.last().is_none_or(|point| point.out < size && point.at < image_bytes);
        let pieces = index.pieces.is_empty() || index.pieces.len() as u64 == size.div_ceil(PIECE);
        if in_order && starts && inside && pieces { Ok(index) } else { Err(corrupt()) }
    }

    fn parse(tables: &[u8], format: Format, size: u64) -> Option<Self> {
        let mut rest = tables;
        let mut take = |len: usize| {
            let (first, more) = rest.split_at_checked(len)?;
            rest = more;
            Some(first)
        };
        let count = |bytes: &[u8]| usize::try_from(le_u32(bytes, 0)?).ok();
        let name_bytes = count(take(4)?).filter(|len| *len <= NAME_BYTES_MAX)?;
        let name = take(name_bytes)?.to_vec();
        let ignored = le_u64(take(8)?, 0)?;
        let kept_at = le_u64(take(8)?, 0)?;
        let count_points = count(take(4)?)?;
        let points = take(count_points.checked_mul(39)?)?.chunks_exact(39);
        let points: Option<Vec<Point>> = points
            .map(|bytes| {
                let [kind, bits, byte] = array(bytes, 36)?;
                Some(Point {
                    out: le_u64(bytes, 0)?,
                    at: le_u64(bytes, 8)?,
                    place: le_u64(bytes, 16)?,
                    window_len: le_u32(bytes, 24)?,
                    window_bytes: le_u32(bytes, 28)?,
                    window_sum: le_u32(bytes, 32)?,
                    kind: if kind == 0 { Kind::Start } else { Kind::Block },
                    bits,
                    byte,
                })
            })
            .collect();
        let count_pieces = count(take(4)?)?;
        let pieces = take(count_pieces.checked_mul(9)?)?.chunks_exact(9);
        let pieces: Option<Vec<Known>> = pieces
            .map(|bytes| {
                let (slot, sum) = (le_u32(bytes, 1)?, le_u32(bytes, 5)?);
                match byte(bytes, 0)? {
                    0 => Some(Known::Sum(sum)),
                    1 => Some(Known::Zero),
                    2 => Some(Known::Kept { slot, sum }),
                    _ => None,
                }
            })
            .collect();
        rest.is_empty().then_some(())?;
        Some(Self { format, size, name, ignored, points: points?, pieces: pieces?, kept_at })
    }
}

#[cfg(test)]
mod tests {
    use block::bytes::Bytes;

    use super::*;

    fn index() -> Index {
        let point = Point { out: 5, at: 70, kind: Kind::Block, bits: 3, byte: 5, place: 64, ..Point::default() };
        Index {
            format: Format::Gzip,
            size: PIECE * 3,
            name: b"8-17".to_vec(),
            ignored: 9,
            points: vec![Point::default(), Point { window_len: 7, window_bytes: 8, window_sum: 9, ..point }],
            pieces: vec![Known::Zero, Known::Sum(77), Known::Kept { slot: 1, sum: 78 }],
            kept_at: 4096,
        }
    }

    #[test]
    fn what_is_written_is_read_and_each_broken_byte_is_found() {
        let index = index();
        let (head, tables) = index.to_bytes(HEAD_BYTES);
        let whole = [head, tables].concat();
        let read = |bytes: &[u8], name: &[u8]| Index::read(&Bytes(bytes), Format::Gzip, name, 100);
        assert_eq!(read(&whole, b"8-17").unwrap(), index);
        assert_eq!(read(&whole, b"8-18").unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(Index::read(&Bytes(&whole), Format::Xz, b"8-17", 100).is_err());
        assert!(Index::read(&Bytes(&whole), Format::Gzip, b"8-17", 70).is_err(), "a point behind the end");
        for at in (0..44).chain(64..whole.len()) {
            let mut broken = whole.clone();
            broken[at] ^= 1;
            assert!(read(&broken, b"8-17").is_err(), "{at}");
            assert!(read(&whole[..at], b"8-17").is_err(), "{at}");
        }
    }
}
