//! The index of a compressed file: where its logical clusters are.
//!
//! ```text
//! header, at the next multiple of 8 behind the inode
//!   0 fragment offset, 4; or 0, 2 │ 2 inline bytes, 2      4 advice, 2 │ 6 algorithms of HEAD1 and HEAD2, 4 bits each
//!   7 log2 (logical cluster / block), 4 bits; bit 7: the whole file is a fragment, at the other 63 bits of the header
//!
//! full index      8 bytes │ for each logical cluster: type and flags, 2 │ offset, 2 │ block, 4; or two distances, 2 each
//! compact index   packs of 2 entries in 8 bytes or 16 in 32; the last 4 bytes of a pack are its base block
//!                 entry: offset or distance, 12 bits or more │ type, 2
//! extents         records of 4 to 32 bytes: bytes and format, 4 │ position, 4, high, 4 │ file offset, 4, high, 4
//! ```
//! A logical cluster (of 4 KiB, say) is a head, in which a physical cluster begins to unpack at an offset, or goes on with
//! the one before. A plain head is not compressed. With big physical clusters, the first entry behind a head counts its
//! blocks; a head without one has one block.
//!
//! Entries are decoded in chunks, each from what it holds alone. The distances between heads are not used: the entries
//! between are looked at, no more of them than a physical cluster can unpack to.

use std::sync::Arc;

use block::Result;
use block::bytes::{le_u16, le_u32};

use super::content::{Extent, File, Source};
use super::corrupt::Corrupt;
use super::decompress::{Algorithm, Cluster};
use super::inode::Place;
use super::medium::Medium;

mod extents;

/// Logical clusters of a chunk.
const CHUNK_ENTRIES: u64 = 512;
/// The most that a physical cluster unpacks to, bytes.
const UNPACKED_BYTES_MAX: u64 = 12 << 20;
/// The most that a physical cluster takes, bytes.
const PACKED_BYTES_MAX: u64 = 1 << 20;
const HEADER_BYTES: u64 = 8;
const WHOLE_FILE: u64 = 1 << 63;
/// Set in the first distance behind a head: it counts blocks.
const COUNTS_BLOCKS: u16 = 1 << 11;
/// Set in a head of the full index: of the cluster, the beginning alone is meant.
const PARTIAL: u16 = 1 << 15;
/// The largest logical cluster of compact entries of four bytes, and of two, logarithms.
const COMPACT_4_LOG_MAX: u32 = 14;
const COMPACT_2_LOG_MAX: u32 = 12;

mod advice {
    pub const COMPACT_2: u16 = 1;
    pub const EXTENTS: u16 = 1;
    pub const BIG_1: u16 = 2;
    pub const BIG_2: u16 = 4;
    pub const INLINE: u16 = 8;
    pub const INTERLACED: u16 = 16;
    pub const FRAGMENT: u16 = 32;
}

/// What the header says.
#[derive(Debug)]
pub(super) struct Index {
    place: Place,
    compact: bool,
    advice: u16,
    /// Of HEAD1 and HEAD2.
    algorithms: [u8; 2],
    /// Of a logical cluster.
    log: u32,
    /// Records, where there are extents.
    extents: u64,
    /// The last extent, where it is not like the others.
    tail: Option<Tail>,
}

#[derive(Debug, Clone, Copy)]
struct Tail {
    /// Where it begins in the file.
    start: u64,
    kind: TailKind,
}

#[derive(Debug, Clone, Copy)]
enum TailKind {
    /// Bytes in the fragments, from this offset on.
    Fragment(u64),
    /// A cluster behind the index.
    Inline { at: u64, bytes: u64 },
}

/// A logical cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    kind: EntryKind,
    partial: bool,
    /// Of a head, where in the cluster the extent begins.
    offset: u16,
    /// Of a head, the block that it begins in; of others, how many blocks the extent has, where that is said.
    block: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryKind {
    Plain,
    Head1,
    Next,
    Head2,
}

impl EntryKind {
    fn new(number: u32) -> Self {
        match number & 3 {
            0 => Self::Plain,
            1 => Self::Head1,
            2 => Self::Next,
            _ => Self::Head2,
        }
    }
}

/// Decoded entries.
#[derive(Debug)]
pub(super) struct Chunk {
    entries: Vec<Entry>,
    /// Of records without positions: those in bytes of the device, one more than there are.
    positions: Vec<u64>,
}

impl Chunk {
    /// What it takes.
    pub fn bytes(&self) -> usize {
        self.entries.len().saturating_mul(size_of::<Entry>()).saturating_add(self.positions.len().saturating_mul(8))
    }
}

/// Reads entries of one file, and keeps the chunk last used at hand.
struct Entries<'a> {
    file: &'a File,
    index: &'a Index,
    medium: &'a Medium,
    chunk: Option<(u64, Arc<Chunk>)>,
}

impl Entries<'_> {
    fn get(&mut self, number: u64) -> Result<Entry> {
        let wanted = number / CHUNK_ENTRIES;
        let chunk = match self.chunk.take() {
            Some((held, chunk)) if held == wanted => chunk,
            _ => {
                let load = || self.index.load(self.medium, self.file, wanted).map(Arc::new);
                self.medium.indexes.get((self.file.number, wanted), load)?
            }
        };
        let inside = usize::try_from(number % CHUNK_ENTRIES).unwrap_or(usize::MAX);
        let entry = chunk.entries.get(inside).copied();
        self.chunk = Some((wanted, chunk));
        entry.ok_or_else(|| self.file.broken(Corrupt::Index, number << self.index.log))
    }
}

impl Index {
    /// Reads the header of a file, and finds its tail.
    ///
    /// # Errors
    /// [`Kind::Unsupported`]; `Corrupt`; the failure of the device.
    pub fn read(medium: &Medium, file: &File, place: Place, compact: bool) -> Result<Self> {
        let broken = || file.broken(Corrupt::Index, 0);
        let start = place.body.checked_next_multiple_of(8).ok_or_else(broken)?;
        let mut bytes = [0; HEADER_BYTES as usize];
        medium.meta(place.in_metabox, start, &mut bytes, Corrupt::Index)?;
        let place = Place { body: start.checked_add(HEADER_BYTES).ok_or_else(broken)?, ..place };
        let header = u64::from_le_bytes(bytes);
        let mut index = Self { place, compact, advice: 0, algorithms: [0; 2], log: 0, extents: 0, tail: None };
        if header & WHOLE_FILE != 0 {
            index.tail = Some(Tail { start: 0, kind: TailKind::Fragment(header ^ WHOLE_FILE) });
            return Ok(index);
        }
        let [.., algorithms, log] = bytes;
        index.advice = le_u16(&bytes, 4).unwrap_or_default();
        index.algorithms = [algorithms & 15, algorithms >> 4];
        index.log = u32::from(log & 15).saturating_add(u32::from(medium.superblock.block_log));
        if !compact && index.advised(advice::EXTENTS) {
            // Two bytes of the count stand where others have algorithms and the size of a cluster.
            let high = u64::from(le_u16(&bytes, 6).unwrap_or_default());
            index.extents = u64::from(le_u32(&bytes, 0).unwrap_or_default()) | (high << 32);
            return Ok(index);
        }
        if compact && index.advised(advice::BIG_1) != index.advised(advice::BIG_2) {
            return Err(broken());
        }
        let inline = u64::from(le_u16(&bytes, 2).unwrap_or_default());
        let fragment = index.advised(advice::FRAGMENT);
        if file.size > 0 && (fragment || index.advised(advice::INLINE) && inline > 0) {
            let last = file.size.saturating_sub(1);
            let mut entries = Entries { file, index: &index, medium, chunk: None };
            let (start, head) = index.head(&mut entries, last)?;
            let kind = if fragment {
                let high = if compact { 0 } else { u64::from(head.block) << 32 };
                TailKind::Fragment(u64::from(le_u32(&bytes, 0).unwrap_or_default()) | high)
            } else {
                let at = index.end_of(medium, file, last >> index.log)?;
                TailKind::Inline { at, bytes: inline }
            };
            index.tail = Some(Tail { start, kind });
        }
        Ok(index)
    }

    fn advised(&self, bit: u16) -> bool {
        self.advice & bit != 0
    }

    fn clusters(&self, file: &File) -> u64 {
        file.size.div_ceil(1_u64.checked_shl(self.log).unwrap_or(u64::MAX))
    }

    /// Where the compact entry `number` is: position, and the logarithm of its bytes.
    fn compact_place(&self, medium: &Medium, file: &File, number: u64) -> Result<(u64, u32)> {
        let total = file.size.div_ceil(medium.superblock.block_bytes());
        // Entries of four bytes up to where packs of 32 bytes are aligned.
        let aligned = self.place.body.wrapping_neg() % 32 / 4;
        let mut short = 0;
        if self.advised(advice::COMPACT_2) && aligned < total {
            short = total.saturating_sub(aligned) & !15;
        }
        let bytes = |count: u64, log: u32| count.checked_shl(log).filter(|bytes| bytes >> log == count);
        let behind = number.saturating_sub(aligned);
        let (offset, log) = if number < aligned {
            (bytes(number, 2), 2)
        } else if behind < short {
            (bytes(behind, 1).and_then(|bytes| bytes.checked_add(aligned.saturating_mul(4))), 1)
        } else {
            let before = short.saturating_mul(2).saturating_add(aligned.saturating_mul(4));
            (bytes(behind.saturating_sub(short), 2).and_then(|bytes| bytes.checked_add(before)), 2)
        };
        let most = if log == 1 { COMPACT_2_LOG_MAX } else { COMPACT_4_LOG_MAX };
        let at = offset.and_then(|offset| self.place.body.checked_add(offset)).filter(|_| self.log <= most);
        at.map(|at| (at, log)).ok_or_else(|| file.broken(Corrupt::Index, number))
    }

    /// Where the index ends that has entry `number` as its last.
    fn end_of(&self, medium: &Medium, file: &File, number: u64) -> Result<u64> {
        let at = if self.compact {
            let (at, log) = self.compact_place(medium, file, number)?;
            at.checked_add(1).and_then(|behind| behind.checked_next_multiple_of(pack_bytes(log)))
        } else {
            number.checked_add(2).and_then(|n| n.checked_mul(8)).and_then(|bytes| bytes.checked_add(self.place.body))
        };
        at.ok_or_else(|| file.broken(Corrupt::Index, number))
    }

    /// Decodes a chunk of entries.
    fn load(&self, medium: &Medium, file: &File, chunk: u64) -> Result<Chunk> {
        let broken = || file.broken(Corrupt::Index, chunk);
        let first = chunk.checked_mul(CHUNK_ENTRIES).ok_or_else(broken)?;
        let end = self.clusters(file).min(first.saturating_add(CHUNK_ENTRIES));
        let count = usize::try_from(end.saturating_sub(first)).map_err(|_| broken())?;
        let mut entries = Vec::with_capacity(count);
        if self.compact {
            self.load_compact(medium, file, first..end, &mut entries)?;
        } else {
            let at = first.checked_add(1).and_then(|n| n.checked_mul(8)).and_then(|at| at.checked_add(self.place.body));
            let mut bytes = vec![0; count.saturating_mul(8)];
            medium.meta(self.place.in_metabox, at.ok_or_else(broken)?, &mut bytes, Corrupt::Index)?;
            for entry in bytes.chunks_exact(8) {
                entries.push(self.full_entry(entry).ok_or_else(broken)?);
            }
        }
        Ok(Chunk { entries, positions: Vec::new() })
    }

    fn full_entry(&self, bytes: &[u8]) -> Option<Entry> {
        let flags = le_u16(bytes, 0)?;
        let kind = EntryKind::new(u32::from(flags));
        let distance = le_u16(bytes, 4)?;
        let block = match kind {
            EntryKind::Next if distance & COUNTS_BLOCKS == 0 => 0,
            EntryKind::Next if self.advised(advice::BIG_1 | advice::BIG_2) => u32::from(distance & !COUNTS_BLOCKS),
            EntryKind::Next => return None,
            _ => le_u32(bytes, 4)?,
        };
        Some(Entry { kind, partial: flags & PARTIAL != 0, offset: le_u16(bytes, 2)?, block })
    }

    /// Decodes the packs that hold the entries of `range`.
    fn load_compact(
        &self,
        medium: &Medium,
        file: &File,
        range: std::ops::Range<u64>,
        entries: &mut Vec<Entry>,
    ) -> Result<()> {
        let broken = || file.broken(Corrupt::Index, range.start);
        let mut number = range.start;
        let mut pack = [0; 32];
        while number < range.end {
            let (at, log) = self.compact_place(medium, file, number)?;
            let bytes = pack_bytes(log);
            let inside = at & bytes.saturating_sub(1);
            let pack = pack.get_mut(..usize::try_from(bytes).unwrap_or(0)).ok_or_else(broken)?;
            medium.meta(self.place.in_metabox, at.saturating_sub(inside), pack, Corrupt::Index)?;
            let skip = inside >> log;
            let before = entries.len();
            let left = range.end.saturating_sub(number);
            self.unpack(pack, log, |at, entry| {
                if at >= skip && at.saturating_sub(skip) < left {
                    entries.push(entry);
                }
            })
            .ok_or_else(broken)?;
            number = number.saturating_add(entries.len().saturating_sub(before) as u64);
        }
        Ok(())
    }

    /// Passes on the entries of a pack.
    fn unpack(&self, pack: &[u8], log: u32, mut visit: impl FnMut(u64, Entry)) -> Option<()> {
        let big = self.advised(advice::BIG_1);
        let count: u32 = if log == 1 { 16 } else { 2 };
        let base = pack.len().checked_sub(4)?;
        let bits = u32::try_from(base).ok()?.checked_mul(8)?.checked_div(count)?;
        let low = self.log.max(12);
        // The base is the block of the last head before the pack; where heads say how many blocks they have, it is
        // that of the first one in it.
        let mut next = le_u32(pack, base)?;
        let mut last = u32::from(!big);
        for number in 0..count {
            let bit = number.checked_mul(bits)?;
            let word = le_u32(pack, usize::try_from(bit / 8).ok()?)? >> (bit % 8);
            let (value, kind) = (word & 1_u32.checked_shl(low)?.checked_sub(1)?, EntryKind::new(word >> low));
            let counts = u32::from(COUNTS_BLOCKS);
            let mut entry = Entry { kind, partial: false, offset: 0, block: 0 };
            if kind == EntryKind::Next {
                if value & counts != 0 {
                    entry.block = Some(value & !counts).filter(|_| big)?;
                    next = next.wrapping_add(entry.block);
                    last = 0;
                }
            } else {
                next = next.wrapping_add(last);
                last = 1;
                entry.offset = u16::try_from(value).ok()?;
                entry.block = next;
            }
            visit(u64::from(number), entry);
        }
        Some(())
    }

    /// Where in the file the extent begins that holds byte `at`, and its head.
    fn head(&self, entries: &mut Entries<'_>, at: u64) -> Result<(u64, Entry)> {
        let cluster = 1_u64 << self.log;
        let mut number = at >> self.log;
        let mut entry = entries.get(number)?;
        let inside = at & cluster.saturating_sub(1);
        let mut left = (UNPACKED_BYTES_MAX >> self.log).saturating_add(2);
        let mut begun = inside;
        // A head that begins behind `at` is that of the next extent.
        while entry.kind == EntryKind::Next || u64::from(entry.offset) > begun {
            left = left.checked_sub(1).ok_or_else(|| entries.file.broken(Corrupt::Index, at))?;
            number = number.checked_sub(1).ok_or_else(|| entries.file.broken(Corrupt::Index, at))?;
            entry = entries.get(number)?;
            begun = cluster;
        }
        if u64::from(entry.offset) >= cluster {
            return Err(entries.file.broken(Corrupt::Index, at));
        }
        Ok(((number << self.log).saturating_add(u64::from(entry.offset)), entry))
    }

    /// Where in the file the extent ends whose head begins at `start`.
    fn extent_end(&self, entries: &mut Entries<'_>, start: u64) -> Result<u64> {
        let mut number = start >> self.log;
        loop {
            number = number.saturating_add(1);
            let at = number << self.log;
            if at >= entries.file.size {
                return Ok(entries.file.size);
            }
            if at.saturating_sub(start) > UNPACKED_BYTES_MAX {
                return Err(entries.file.broken(Corrupt::Index, start));
            }
            let entry = entries.get(number)?;
            if entry.kind != EntryKind::Next {
                if u64::from(entry.offset) >= 1 << self.log {
                    return Err(entries.file.broken(Corrupt::Index, at));
                }
                return Ok(at.saturating_add(u64::from(entry.offset)).min(entries.file.size));
            }
        }
    }

    /// Bytes that the cluster takes whose head is `head`, at `start`.
    fn packed_bytes(&self, medium: &Medium, entries: &mut Entries<'_>, start: u64, head: Entry) -> Result<u64> {
        let big = self.advised(if head.kind == EntryKind::Head1 { advice::BIG_1 } else { advice::BIG_2 });
        let next = (start >> self.log).saturating_add(1);
        let mut blocks = 1;
        if big && next << self.log < entries.file.size {
            let entry = entries.get(next)?;
            if entry.kind == EntryKind::Next {
                blocks = u64::from(entry.block);
            }
        }
        let bytes = blocks << medium.superblock.block_log;
        if blocks == 0 || bytes > PACKED_BYTES_MAX {
            return Err(entries.file.broken(Corrupt::Index, start));
        }
        Ok(bytes)
    }

    /// The extent that holds byte `at` of the file, which is inside of it.
    ///
    /// # Errors
    /// [`Kind::Unsupported`]; `Corrupt`; the failure of the device.
    pub fn extent(&self, medium: &Medium, file: &File, at: u64) -> Result<Extent> {
        if !self.compact && self.advised(advice::EXTENTS) {
            return self.record(medium, file, at);
        }
        if let Some(Tail { start, kind: TailKind::Fragment(offset) }) = self.tail
            && at >= start
        {
            return Ok(Extent { start, len: file.size.saturating_sub(start), source: Source::Fragment(offset) });
        }
        let mut entries = Entries { file, index: self, medium, chunk: None };
        let (start, head) = self.head(&mut entries, at)?;
        let end = self.extent_end(&mut entries, start)?;
        let broken = || file.broken(Corrupt::Index, at);
        let len = end.checked_sub(start).filter(|_| at < end).ok_or_else(broken)?;
        let (position, packed, inline) = match self.tail {
            Some(Tail { start: tail, kind: TailKind::Inline { at, bytes } }) if start == tail => {
                let block = medium.superblock.block_bytes();
                if medium.superblock.inside_block(at).saturating_add(bytes) > block {
                    return Err(broken());
                }
                (at, bytes, true)
            }
            _ => {
                let position = u64::from(head.block) << medium.superblock.block_log;
                (position, self.packed_bytes(medium, &mut entries, start, head)?, false)
            }
        };
        let [first, second] = self.algorithms;
        let number = match head.kind {
            EntryKind::Plain => None,
            EntryKind::Head2 => Some(second),
            _ => Some(first),
        };
        let Some(number) = number else {
            let interlaced = self.advised(advice::INTERLACED);
            return self.plain(
                medium,
                file,
                Extent { start, len, source: Source::Hole },
                at,
                (position, packed, inline),
                interlaced,
            );
        };
        let algorithm = Algorithm::new(medium, number)?;
        let in_metabox = inline && self.place.in_metabox;
        let cluster = Cluster { at: position, bytes: packed, inline, in_metabox, algorithm, partial: head.partial };
        Ok(Extent { start, len, source: Source::Cluster(cluster) })
    }

    /// The part around `at` of an extent that is not compressed: as it is, or turned within its block so that each byte
    /// stands where it would stand in a block of the file.
    fn plain(
        &self,
        medium: &Medium,
        file: &File,
        whole: Extent,
        at: u64,
        (position, packed, inline): (u64, u64, bool),
        interlaced: bool,
    ) -> Result<Extent> {
        let block = medium.superblock.block_bytes();
        let Extent { start, len, .. } = whole;
        if len > packed || interlaced && packed > block {
            return Err(file.broken(Corrupt::Index, at));
        }
        let source = |position| {
            if inline {
                Source::Inline { at: position, in_metabox: self.place.in_metabox }
            } else {
                Source::Stored(position)
            }
        };
        let skip = if interlaced { medium.superblock.inside_block(start) } else { 0 };
        let right = if interlaced { block.saturating_sub(skip).min(len) } else { len };
        if at.saturating_sub(start) < right {
            return Ok(Extent { start, len: right, source: source(position.saturating_add(skip)) });
        }
        Ok(Extent { start: start.saturating_add(right), len: len.saturating_sub(right), source: source(position) })
    }
}

/// Bytes of a pack of entries of 2 to the `log` bytes.
fn pack_bytes(log: u32) -> u64 {
    if log == 1 { 32 } else { 8 }
}
