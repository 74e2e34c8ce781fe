//! Records of extents, in place of entries for each logical cluster.
//!
//! ```text
//! 4 bytes    all that unpacks to one logical cluster each, packed one behind the other from a position before the first
//! 8 bytes    the same, each somewhere
//! 16, 32     extents of any length, in the order of the file
//! ```
//! Bits 0 to 20 of the first word are the bytes taken, 27 means a part of the cluster, from 28 on stands the algorithm and
//! one more; 0: not compressed.

use block::Result;
use block::bytes::{le_u32, le_u64};

use super::{CHUNK_ENTRIES, Chunk, Index, PACKED_BYTES_MAX, UNPACKED_BYTES_MAX, advice};
use crate::erofs::content::{Extent, File, Source};
use crate::erofs::corrupt::Corrupt;
use crate::erofs::decompress::{Algorithm, Cluster};
use crate::erofs::medium::Medium;

const PACKED_MASK: u32 = (PACKED_BYTES_MAX as u32) * 2 - 1;
const PARTIAL: u32 = 1 << 27;
const FORMAT_SHIFT: u32 = 28;

/// A record: what it says of its place.
struct Record {
    word: u32,
    position: u64,
    start: u64,
}

impl Index {
    fn record_bytes(&self) -> u64 {
        4 << ((self.advice >> 1) & 3)
    }

    /// The extent that holds byte `at` of the file.
    pub(super) fn record(&self, medium: &Medium, file: &File, at: u64) -> Result<Extent> {
        let broken = || file.broken(Corrupt::Index, at);
        let bytes = self.record_bytes();
        let first = self.place.body.checked_next_multiple_of(bytes).ok_or_else(broken)?;
        let (record, end, last) = match bytes {
            4 | 8 => {
                let number = at >> self.log;
                let start = number << self.log;
                let end = start.saturating_add(1 << self.log);
                let record = if bytes == 4 {
                    self.packed_record(medium, file, first, number)?
                } else {
                    let [low, high] = self.words(medium, first, bytes, number)?;
                    Record { word: low, position: u64::from(high), start }
                };
                (Record { start, ..record }, end.min(file.size), end >= file.size)
            }
            _ => self.sorted_record(medium, file, first, at)?,
        };
        let start = record.start;
        let len = end.checked_sub(start).filter(|_| start <= at && at < end).ok_or_else(broken)?;
        if last && self.advised(advice::FRAGMENT) {
            let high = if bytes > 4 { record.position << 32 } else { 0 };
            return Ok(Extent { start, len, source: Source::Fragment(u64::from(record.word) | high) });
        }
        let packed = u64::from(record.word & PACKED_MASK);
        if packed == 0 {
            return Ok(Extent { start, len, source: Source::Hole });
        }
        if packed > PACKED_BYTES_MAX || len > UNPACKED_BYTES_MAX {
            return Err(broken());
        }
        let Some(algorithm) = (record.word >> FORMAT_SHIFT).checked_sub(1) else {
            let aligned = medium.superblock.inside_block(record.position | packed) == 0;
            let interlaced = aligned && self.advised(advice::INTERLACED);
            let whole = Extent { start, len, source: Source::Hole };
            return self.plain(medium, file, whole, at, (record.position, packed, false), interlaced);
        };
        let algorithm = Algorithm::new(medium, algorithm as u8)?;
        let partial = record.word & PARTIAL != 0;
        let cluster =
            Cluster { at: record.position, bytes: packed, inline: false, in_metabox: false, algorithm, partial };
        Ok(Extent { start, len, source: Source::Cluster(cluster) })
    }

    /// The first `N` words of a record.
    fn words<const N: usize>(&self, medium: &Medium, first: u64, bytes: u64, number: u64) -> Result<[u32; N]> {
        let at = number.saturating_mul(bytes).saturating_add(first);
        let mut words = [[0; 4]; N];
        medium.meta(self.place.in_metabox, at, words.as_flattened_mut(), Corrupt::Index)?;
        Ok(words.map(u32::from_le_bytes))
    }

    /// A record of 4 bytes, whose position is the sum of what those before it take.
    fn packed_record(&self, medium: &Medium, file: &File, first: u64, number: u64) -> Result<Record> {
        let mut position = None;
        let wanted = number / CHUNK_ENTRIES;
        let inside = usize::try_from(number % CHUNK_ENTRIES).unwrap_or(usize::MAX);
        for chunk in 0..=wanted {
            let from = position;
            let loaded = medium.indexes.get((file.number, chunk), || {
                self.load_packed(medium, file, first, chunk, from).map(std::sync::Arc::new)
            })?;
            if chunk == wanted
                && let Some(entry) = loaded.entries.get(inside)
                && let Some(position) = loaded.positions.get(inside)
            {
                return Ok(Record { word: entry.block, position: *position, start: 0 });
            }
            position = loaded.positions.last().copied();
        }
        Err(file.broken(Corrupt::Index, number))
    }

    fn load_packed(&self, medium: &Medium, file: &File, first: u64, chunk: u64, from: Option<u64>) -> Result<Chunk> {
        let broken = || file.broken(Corrupt::Index, chunk);
        let mut position = match from {
            Some(position) => position,
            None => {
                let mut bytes = [0; 8];
                medium.meta(self.place.in_metabox, first, &mut bytes, Corrupt::Index)?;
                u64::from_le_bytes(bytes)
            }
        };
        let begin = chunk.checked_mul(CHUNK_ENTRIES).ok_or_else(broken)?;
        let count = self.clusters(file).saturating_sub(begin).min(CHUNK_ENTRIES);
        let mut bytes = vec![0; usize::try_from(count.saturating_mul(4)).map_err(|_| broken())?];
        let at = begin.saturating_mul(4).saturating_add(first).saturating_add(8);
        medium.meta(self.place.in_metabox, at, &mut bytes, Corrupt::Index)?;
        let mut loaded = Chunk { entries: Vec::new(), positions: vec![position] };
        for word in bytes.chunks_exact(4).filter_map(|bytes| le_u32(bytes, 0)) {
            let kind = super::EntryKind::Head1;
            loaded.entries.push(super::Entry { kind, partial: false, offset: 0, block: word });
            position = position.saturating_add(u64::from(word & PACKED_MASK));
            loaded.positions.push(position);
        }
        Ok(loaded)
    }

    /// The last record that begins at or before `at`, where it ends, and whether it is the last.
    fn sorted_record(&self, medium: &Medium, file: &File, first: u64, at: u64) -> Result<(Record, u64, bool)> {
        let bytes = self.record_bytes();
        let (mut low, mut high) = (0, self.extents);
        let (mut found, mut end) = (None, file.size);
        while low < high {
            let middle = low.saturating_add(high.saturating_sub(low) / 2);
            let mut raw = [0; 20];
            let len = if bytes > 16 { 20 } else { 16 };
            let place = middle.saturating_mul(bytes).saturating_add(first);
            medium.meta(self.place.in_metabox, place, raw.get_mut(..len).unwrap_or_default(), Corrupt::Index)?;
            let start = if bytes > 16 { le_u64(&raw, 12) } else { le_u32(&raw, 12).map(u64::from) };
            let start = start.unwrap_or_default();
            if start > at {
                high = middle;
                end = start.min(file.size);
            } else {
                let word = le_u32(&raw, 0).unwrap_or_default();
                found = Some(Record { word, position: le_u64(&raw, 4).unwrap_or_default(), start });
                low = middle.saturating_add(1);
            }
        }
        let record = found.ok_or_else(|| file.broken(Corrupt::Index, at))?;
        Ok((record, end, low >= self.extents))
    }
}
