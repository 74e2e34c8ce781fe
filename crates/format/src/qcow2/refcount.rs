//! How often each cluster of the file is used, and where there is room.
//!
//! ```text
//! refcount table ─► refcount block ─► 1 to 64 bits a cluster, big-endian (below 8 bits: the lowest first)
//! ```
//!
//! Counts go up in memory before anything points to a cluster, and down only when what pointed to it is gone from the
//! disk for good: a crash leaves counts that are too high (leaks), and none that are too low.

use std::collections::{BTreeMap, BTreeSet};

use block::bytes::read_vec;
use block::{Error, Kind, Result, Storage};

use super::Corrupt;
use super::header::{Header, REFTABLE_BYTES_MAX};
use super::overlap::Tables;
use super::table::{Geometry, words};

/// Refcount blocks that are kept in memory, unless more of them wait to be written.
const BLOCKS_MAX: usize = 128;
const BLOCK_OFFSET: u64 = !511;

#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    dirty: bool,
}

/// Clusters that were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The number of the first one.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Whether they are known to hold zeroes: they lie behind what was the end.
    pub fresh: bool,
}

/// All counts.
#[derive(Debug)]
pub(super) struct Refcounts {
    geometry: Geometry,
    order: u32,
    table: Vec<u64>,
    table_offset: u64,
    blocks: BTreeMap<usize, Block>,
    /// Entries of the table that are not on disk yet.
    table_dirty: BTreeSet<usize>,
    /// The table is elsewhere than the header says.
    table_moved: bool,
    /// Where room is looked for first.
    next: u64,
    /// To be given up when what pointed to them is gone: cluster, how many.
    freed: Vec<(u64, u64)>,
    /// A change of the table was not finished: nothing may be taken or written any more.
    broken: bool,
    /// What is never free, however it is counted.
    tables: Tables,
}

/// What is to be written, in this order, with a flush after each where it is not empty.
#[derive(Debug, Default)]
pub(super) struct Writes {
    pub blocks: Vec<(u64, Vec<u8>)>,
    pub table: Vec<(u64, Vec<u8>)>,
    pub header: Option<(u64, Vec<u8>)>,
}

impl Refcounts {
    pub(super) fn read(storage: &dyn Storage, header: &Header) -> Result<Self> {
        let geometry = Geometry::of(header);
        let len = u64::from(header.reftable_clusters).saturating_mul(geometry.cluster());
        let len = usize::try_from(len).map_err(|_| Corrupt::Header)?;
        let bytes = read_vec(&storage, header.reftable_offset, len)
            .map_err(|error| Corrupt::Truncated("the refcount table").with(error))?;
        Ok(Self {
            geometry,
            order: header.refcount_order,
            table: words(&bytes).collect(),
            table_offset: header.reftable_offset,
            blocks: BTreeMap::new(),
            table_dirty: BTreeSet::new(),
            table_moved: false,
            next: 0,
            freed: Vec::new(),
            broken: false,
            tables: Tables::default(),
        })
    }

    /// From now on these clusters are not given away.
    pub(super) fn keep_off(&mut self, tables: Tables) {
        self.tables = tables;
    }

    /// Counts of a block: 2 to the power of this.
    fn block_bits(&self) -> u32 {
        self.geometry.bits.saturating_add(3).saturating_sub(self.order)
    }

    fn split(&self, cluster: u64) -> (usize, usize) {
        let bits = self.block_bits();
        let mask = 1_u64.wrapping_shl(bits).wrapping_sub(1);
        (usize::try_from(cluster.wrapping_shr(bits)).unwrap_or(usize::MAX), (cluster & mask) as usize)
    }

    /// The highest count.
    pub(super) fn count_max(&self) -> u64 {
        if self.order >= 6 { u64::MAX } else { 1_u64.wrapping_shl(1_u32.wrapping_shl(self.order)).wrapping_sub(1) }
    }

    fn load(&mut self, storage: &dyn Storage, block: usize) -> Result<bool> {
        if self.blocks.contains_key(&block) {
            return Ok(true);
        }
        let offset = self.table.get(block).copied().unwrap_or_default() & BLOCK_OFFSET;
        if offset == 0 {
            return Ok(false);
        }
        if self.geometry.within(offset) != 0 {
            return Err(Corrupt::Unaligned(offset).into());
        }
        let bytes = read_vec(&storage, offset, self.geometry.cluster() as usize)
            .map_err(|error| Corrupt::Truncated("a refcount block").with(error))?;
        if self.blocks.len() >= BLOCKS_MAX {
            self.blocks.retain(|_, block| block.dirty);
        }
        self.blocks.insert(block, Block { bytes, dirty: false });
        Ok(true)
    }

    /// How often a cluster is used.
    pub(super) fn get(&mut self, storage: &dyn Storage, cluster: u64) -> Result<u64> {
        let (block, at) = self.split(cluster);
        if !self.load(storage, block)? {
            return Ok(0);
        }
        let bytes = self.blocks.get(&block).map(|block| block.bytes.as_slice()).unwrap_or_default();
        Ok(count_at(bytes, self.order, at))
    }

    /// Sets the count of a cluster whose block is there or can be made.
    pub(super) fn set(&mut self, storage: &dyn Storage, cluster: u64, count: u64) -> Result<()> {
        if count > self.count_max() {
            return Err(Corrupt::RefcountTooLarge(cluster).into());
        }
        let (block, at) = self.split(cluster);
        if !self.load(storage, block)? {
            if count == 0 {
                return Ok(());
            }
            self.make_block(storage, block, Some(cluster))?;
        }
        if let Some(block) = self.blocks.get_mut(&block) {
            set_count(&mut block.bytes, self.order, at, count);
            block.dirty = true;
        }
        Ok(())
    }

    /// Makes a refcount block, in the first cluster that it counts and that is not `taken`, and counts that.
    fn make_block(&mut self, storage: &dyn Storage, block: usize, taken: Option<u64>) -> Result<()> {
        if block >= self.table.len() {
            self.grow_table(storage, block)?;
            // That may have made it.
            if self.load(storage, block)? {
                return Ok(());
            }
        }
        // Nothing in it is counted yet: all of it is free, or the image is being repaired and the end is.
        let first = (block as u64).wrapping_shl(self.block_bits());
        let end = self.geometry.index(storage.size().saturating_add(self.geometry.cluster().saturating_sub(1)));
        let own = if taken.is_some() { first.max(end) } else { first };
        let own = if taken == Some(own) { own.saturating_add(1) } else { own };
        self.tables.refuse(own)?;
        let (own_block, own_at) = self.split(own);
        storage.grow(self.geometry.start(own.saturating_add(1)))?;
        let mut bytes = vec![0; self.geometry.cluster() as usize];
        if own_block == block {
            set_count(&mut bytes, self.order, own_at, 1);
        }
        if let Some(entry) = self.table.get_mut(block) {
            *entry = self.geometry.start(own);
        }
        self.table_dirty.insert(block);
        self.blocks.insert(block, Block { bytes, dirty: true });
        if own_block != block {
            self.set(storage, own, 1)?;
        }
        Ok(())
    }

    /// Makes the table long enough for a block, elsewhere.
    fn grow_table(&mut self, storage: &dyn Storage, block: usize) -> Result<()> {
        let per_cluster = (self.geometry.cluster() / 8) as usize;
        let old_clusters = self.geometry.index((self.table.len() as u64).saturating_mul(8));
        let wanted = block.saturating_add(1).max(self.table.len().saturating_add(self.table.len() / 2));
        let clusters = wanted.saturating_add(2).div_ceil(per_cluster.max(1));
        let entries = clusters.saturating_mul(per_cluster);
        if entries.saturating_mul(8) as u64 > REFTABLE_BYTES_MAX {
            return Err(Error::new(Kind::Limit, "an image larger than its refcounts can be"));
        }
        self.intact()?;
        let end = storage.size().max(self.geometry.start(self.next));
        let first = self.geometry.index(end.saturating_add(self.geometry.cluster().saturating_sub(1)));
        let count = clusters as u64;
        // With room for the blocks that count it.
        let more = count.wrapping_shr(self.block_bits()).saturating_add(3);
        storage.grow(self.geometry.start(first.saturating_add(count).saturating_add(more)))?;
        self.broken = true;
        self.table.resize(entries, 0);
        for cluster in first..first.saturating_add(count) {
            self.set(storage, cluster, 1)?;
        }
        self.freed.push((self.geometry.index(self.table_offset), old_clusters));
        self.table_offset = self.geometry.start(first);
        self.table_moved = true;
        self.broken = false;
        Ok(())
    }

    /// # Errors
    /// That a change of the table failed half way.
    pub(super) fn intact(&self) -> Result<()> {
        if self.broken {
            return Err(Error::new(Kind::Io, "refcounts whose table could not be moved"));
        }
        Ok(())
    }

    /// Takes up to `wanted` clusters that lie together, at least one; they count 1.
    pub(super) fn allocate(&mut self, storage: &dyn Storage, wanted: u64) -> Result<Run> {
        self.intact()?;
        let end_bytes = storage.size();
        let cluster = self.geometry.cluster();
        let first = self.find(storage, self.next, u64::MAX)?;
        match self.take(storage, first, wanted, end_bytes) {
            Err(error) if error.kind() == Kind::NoSpace => {
                // The end is reached; there may be room before.
                let end = self.geometry.index(storage.size());
                let first = self.find(storage, 0, end)?;
                if first.saturating_add(1).saturating_mul(cluster) > storage.size() {
                    return Err(error);
                }
                self.take(storage, first, 1, end_bytes)
            }
            taken => taken,
        }
    }

    /// The first cluster that is free, from `from` on; `end` where there is none before.
    fn find(&mut self, storage: &dyn Storage, from: u64, end: u64) -> Result<u64> {
        let mut at = from;
        while at < end {
            let (block, _) = self.split(at);
            if !self.load(storage, block)? || self.get(storage, at)? == 0 {
                break;
            }
            at = at.saturating_add(1);
        }
        Ok(at)
    }

    fn take(&mut self, storage: &dyn Storage, first: u64, wanted: u64, end_bytes: u64) -> Result<Run> {
        let mut first = first;
        let (block, _) = self.split(first);
        if !self.load(storage, block)? {
            self.make_block(storage, block, None)?;
            first = self.find(storage, first, u64::MAX)?;
        }
        self.tables.refuse(first)?;
        let (block, at) = self.split(first);
        let left = 1_u64.wrapping_shl(self.block_bits()).saturating_sub(at as u64);
        let mut count = 1;
        // A run does not go on in another block.
        while count < wanted.min(left)
            && self.get(storage, first.saturating_add(count))? == 0
            && !self.tables.contain(first.saturating_add(count))
        {
            count = count.saturating_add(1);
        }
        // Where there is no room for all, one will do.
        let start = self.geometry.start(first);
        let whole = self.geometry.start(first.saturating_add(count));
        if let Err(error) = storage.grow(whole) {
            count = storage.size().saturating_sub(start).wrapping_shr(self.geometry.bits).min(count);
            if count == 0 {
                return Err(error);
            }
        }
        // There since `find`, or since `make_block`.
        if !self.load(storage, block)? {
            self.make_block(storage, block, Some(first))?;
        }
        for cluster in first..first.saturating_add(count) {
            self.set(storage, cluster, 1)?;
        }
        self.next = first.saturating_add(count);
        Ok(Run { first, count, fresh: start >= end_bytes })
    }

    /// Takes back clusters that nothing points to yet, or any more.
    pub(super) fn release(&mut self, storage: &dyn Storage, first: u64, count: u64) -> Result<()> {
        for cluster in first..first.saturating_add(count) {
            let now = self.get(storage, cluster)?;
            if now == 0 {
                return Err(Corrupt::RefcountZero(cluster).into());
            }
            self.set(storage, cluster, now.saturating_sub(1))?;
        }
        self.next = if self.get(storage, first)? == 0 { self.next.min(first) } else { self.next };
        Ok(())
    }

    /// Remembers clusters that are given up when what points to them on disk is gone.
    pub(super) fn free_later(&mut self, first: u64, count: u64) {
        self.freed.push((first, count));
    }

    pub(super) fn take_freed(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.freed)
    }

    /// What is to be written; it counts as written from here on.
    pub(super) fn take_dirty(&mut self) -> Writes {
        let mut writes = Writes::default();
        for (at, block) in self.blocks.iter_mut().filter(|(_, block)| block.dirty) {
            let offset = self.table.get(*at).copied().unwrap_or_default() & BLOCK_OFFSET;
            writes.blocks.push((offset, block.bytes.clone()));
            block.dirty = false;
        }
        let dirty = std::mem::take(&mut self.table_dirty);
        if self.table_moved {
            let bytes = self.table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            writes.table.push((self.table_offset, bytes));
            let clusters = self.geometry.index((self.table.len() as u64).saturating_mul(8));
            let clusters = u32::try_from(clusters).unwrap_or(u32::MAX);
            writes.header = Some((48, [&self.table_offset.to_be_bytes()[..], &clusters.to_be_bytes()].concat()));
            self.table_moved = false;
        } else {
            let entry = |at: usize| (at as u64).saturating_mul(8).saturating_add(self.table_offset);
            let value = |at: usize| self.table.get(at).copied().unwrap_or_default().to_be_bytes().to_vec();
            writes.table.extend(dirty.into_iter().map(|at| (entry(at), value(at))));
        }
        writes
    }

    /// The refcount blocks and where the table is: for `check`.
    pub(super) fn parts(&self) -> (u64, u64, Vec<u64>) {
        let blocks = self.table.iter().map(|entry| entry & BLOCK_OFFSET).filter(|offset| *offset != 0).collect();
        (self.table_offset, (self.table.len() as u64).saturating_mul(8), blocks)
    }

    /// The clusters that blocks on disk count, as ranges.
    pub(super) fn counted(&self) -> Vec<(u64, u64)> {
        let range = |at: usize| {
            let first = (at as u64).wrapping_shl(self.block_bits());
            (first, first.saturating_add(1_u64.wrapping_shl(self.block_bits())))
        };
        let there = self.table.iter().enumerate().filter(|(_, entry)| **entry & BLOCK_OFFSET != 0);
        there.map(|(at, _)| range(at)).collect()
    }

    /// Drops an entry of the table that points nowhere good: for repair.
    pub(super) fn drop_block(&mut self, offset: u64) {
        for (at, entry) in self.table.iter_mut().enumerate().filter(|(_, entry)| **entry & BLOCK_OFFSET == offset) {
            *entry = 0;
            self.blocks.remove(&at);
            self.table_dirty.insert(at);
        }
    }
}

fn count_at(bytes: &[u8], order: u32, at: usize) -> u64 {
    if order >= 3 {
        let len = 1_usize.wrapping_shl(order.saturating_sub(3));
        let from = at.saturating_mul(len);
        let bytes = bytes.get(from..from.saturating_add(len)).unwrap_or_default();
        return bytes.iter().fold(0_u64, |count, byte| (count << 8) | u64::from(*byte));
    }
    let width = 1_usize.wrapping_shl(order);
    let bit = at.saturating_mul(width);
    let mask = 1_u8.wrapping_shl(width as u32).wrapping_sub(1);
    u64::from(bytes.get(bit / 8).copied().unwrap_or_default().wrapping_shr((bit % 8) as u32) & mask)
}

fn set_count(bytes: &mut [u8], order: u32, at: usize, count: u64) {
    if order >= 3 {
        let len = 1_usize.wrapping_shl(order.saturating_sub(3));
        let from = at.saturating_mul(len);
        let count = count.to_be_bytes();
        if let (Some(to), Some(count)) =
            (bytes.get_mut(from..from.saturating_add(len)), count.get(8_usize.saturating_sub(len)..))
        {
            to.copy_from_slice(count);
        }
        return;
    }
    let width = 1_usize.wrapping_shl(order);
    let bit = at.saturating_mul(width);
    let mask = 1_u8.wrapping_shl(width as u32).wrapping_sub(1);
    if let Some(byte) = bytes.get_mut(bit / 8) {
        let shift = (bit % 8) as u32;
        *byte = (*byte & !mask.wrapping_shl(shift)) | ((count as u8 & mask).wrapping_shl(shift));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
    use super::*;

    #[test]
    fn counts_of_every_width_stand_beside_each_other() {
        for order in 0..=6 {
            let mut bytes = vec![0; 64];
            let max = if order == 6 { u64::MAX } else { (1 << (1 << order)) - 1 };
            set_count(&mut bytes, order, 3, max);
            set_count(&mut bytes, order, 5, 1);
            set_count(&mut bytes, order, 3, max - 1);
            let counts: Vec<u64> = (0..7).map(|at| count_at(&bytes, order, at)).collect();
            assert_eq!(counts, [0, 0, 0, max - 1, 0, 1, 0], "order {order}");
        }
    }
}
