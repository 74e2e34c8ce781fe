//! A new image that is filled from front to back.
//!
//! ```text
//! | header | data | data | … | L2 | data | … | counts | data | … | L2 | L1 | counts | refcount table |
//! ```
//!
//! An L2 table is written when the disk has come to the next one, a block of refcounts when nothing is left in its
//! reach that could be counted once more.

use std::collections::BTreeMap;

use block::{Error, Kind, Result};

use super::create::{Create, Sizes, header};
use super::header::REFTABLE_BYTES_MAX;
use super::table::{COPIED, Entry, Geometry};
use crate::sequential::{Layout, Output, full, put};

/// Where clusters go: one behind the other, compressed ones byte behind byte.
#[derive(Debug)]
pub(crate) struct Clusters {
    what: Create,
    geometry: Geometry,
    size: u64,
    /// The number of the first cluster that is free.
    next: u64,
    l1: Vec<u64>,
    /// The L2 table that is being filled, and its number.
    l2: Option<(usize, Vec<u8>)>,
    last: Option<(u64, u64)>,
    /// The first free byte of the cluster that the last compressed one has begun or has come to; 0: there is none.
    free_byte: u64,
    /// Blocks of refcounts that are not written yet.
    counts: BTreeMap<usize, Vec<u8>>,
    /// Where those are that have a place.
    blocks: Vec<u64>,
}

impl Clusters {
    pub(crate) fn new(what: Create) -> Result<Self> {
        let Sizes { size, l1_entries, .. } = Sizes::of(&what)?;
        let bits = what.cluster_bytes.trailing_zeros();
        let geometry = Geometry { bits, version: what.version, extended: false, l2_bits: bits.saturating_sub(3) };
        let l1 = vec![0; usize::try_from(l1_entries).unwrap_or_default()];
        let mut clusters = Self {
            what,
            geometry,
            size,
            next: 0,
            l1,
            l2: None,
            last: None,
            free_byte: 0,
            counts: BTreeMap::new(),
            blocks: Vec::new(),
        };
        // The header.
        clusters.allocate(1)?;
        Ok(clusters)
    }

    /// Counts of a block: of 16 bits each.
    fn per_block(&self) -> u64 {
        self.geometry.cluster() / 2
    }

    fn block_of(&self, cluster: u64) -> (usize, usize) {
        let per_block = self.per_block().max(1);
        let block = cluster.checked_div(per_block).unwrap_or_default();
        (usize::try_from(block).unwrap_or(usize::MAX), cluster.checked_rem(per_block).unwrap_or_default() as usize)
    }

    /// Counts a cluster once more; false where that is too often.
    fn count(&mut self, cluster: u64) -> bool {
        let (block, at) = self.block_of(cluster);
        let bytes = self.geometry.cluster() as usize;
        let counts = self.counts.entry(block).or_insert_with(|| vec![0; bytes]);
        let at = at.saturating_mul(2);
        let now = block::bytes::be_u16(counts, at).and_then(|count| count.checked_add(1));
        if let Some(now) = now {
            put(counts, at, &now.to_be_bytes());
        }
        now.is_some()
    }

    fn allocate(&mut self, clusters: u64) -> Result<u64> {
        let first = self.next;
        self.next = first.checked_add(clusters).ok_or_else(|| full("a qcow2"))?;
        for cluster in first..self.next {
            self.count(cluster);
        }
        Ok(first)
    }

    /// Room for the bytes of a compressed cluster: behind the last one, in the cluster that follows too if it is free.
    fn allocate_bytes(&mut self, len: u64) -> Result<u64> {
        let geometry = self.geometry;
        let left = (self.free_byte != 0).then(|| geometry.cluster().saturating_sub(geometry.within(self.free_byte)));
        let current = geometry.index(self.free_byte);
        let follows = current.saturating_add(1) == self.next;
        if let Some(left) = left.filter(|left| *left < geometry.cluster() && (*left >= len || follows))
            && self.count(current)
        {
            let at = self.free_byte;
            if len > left {
                self.allocate(1)?;
            }
            self.free_byte = at.saturating_add(len);
            return Ok(at);
        }
        let at = geometry.start(self.allocate(1)?);
        self.free_byte = at.saturating_add(len);
        Ok(at)
    }

    fn write_block(&mut self, output: &dyn Output, block: usize, bytes: &[u8], at: u64) -> Result<()> {
        if self.blocks.len() <= block {
            self.blocks.resize(block.saturating_add(1), 0);
        }
        if let Some(entry) = self.blocks.get_mut(block) {
            *entry = at;
        }
        output.write_at(bytes, at)
    }

    /// Writes blocks of refcounts that are behind.
    fn write_counts(&mut self, output: &dyn Output) -> Result<()> {
        while self.counts.len() > 2 {
            let Some((block, bytes)) = self.counts.pop_first() else { break };
            if self.block_of(self.geometry.index(self.free_byte)).0 <= block {
                self.free_byte = 0;
            }
            let at = self.geometry.start(self.allocate(1)?);
            self.write_block(output, block, &bytes, at)?;
        }
        Ok(())
    }

    fn write_l2(&mut self, output: &dyn Output) -> Result<()> {
        let Some((number, bytes)) = self.l2.take() else { return Ok(()) };
        let at = self.geometry.start(self.allocate(1)?);
        if let Some(entry) = self.l1.get_mut(number) {
            *entry = at | COPIED;
        }
        output.write_at(&bytes, at)
    }
}

impl Layout for Clusters {
    fn place(&mut self, output: &dyn Output, number: u64, packed: Option<u64>) -> Result<u64> {
        if let Some((last, at)) = self.last
            && last == number
        {
            return Ok(at);
        }
        let geometry = self.geometry;
        let (table, entry_at) = geometry.split(number);
        if self.l2.as_ref().is_none_or(|(now, _)| *now != table) {
            self.write_l2(output)?;
            self.write_counts(output)?;
            self.l2 = Some((table, vec![0; geometry.cluster() as usize]));
        }
        let (at, entry) = match packed {
            Some(len) => {
                let at = self.allocate_bytes(len)?;
                (at, Entry::of_packed(geometry, at, len))
            }
            None => {
                let at = geometry.start(self.allocate(1)?);
                (at, Entry::data(at))
            }
        };
        if let Some((_, bytes)) = &mut self.l2 {
            put(bytes, entry_at.saturating_mul(8), &entry.word.to_be_bytes());
        }
        self.last = Some((number, at));
        Ok(at)
    }

    fn finish(&mut self, output: &dyn Output) -> Result<()> {
        let cluster = self.geometry.cluster();
        self.write_l2(output)?;
        self.write_counts(output)?;
        let bytes: Vec<u8> = self.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        let l1_clusters = (bytes.len() as u64).div_ceil(cluster.max(1)).max(1);
        let l1_at = self.geometry.start(self.allocate(l1_clusters)?);
        output.write_at(&bytes, l1_at)?;
        // A table for all blocks, those included that count it and them.
        let mut clusters = 1_u64;
        let table_at = loop {
            let more = clusters.saturating_add(self.counts.len() as u64).saturating_add(2);
            let blocks = self.next.saturating_add(more.saturating_mul(2)).div_ceil(self.per_block()).saturating_add(2);
            let wanted = blocks.saturating_mul(8).div_ceil(cluster.max(1));
            if wanted <= clusters {
                break self.geometry.start(self.allocate(clusters)?);
            }
            clusters = wanted;
        };
        if clusters.saturating_mul(cluster) > REFTABLE_BYTES_MAX {
            return Err(Error::new(Kind::Limit, "an image larger than its refcounts can be"));
        }
        // A place for each block, which may need one more block to count it.
        let mut places = BTreeMap::new();
        while let Some(block) = self.counts.keys().copied().find(|block| !places.contains_key(block)) {
            let at = self.allocate(1)?;
            places.insert(block, self.geometry.start(at));
        }
        for (block, bytes) in std::mem::take(&mut self.counts) {
            let at = places.get(&block).copied().unwrap_or_default();
            self.write_block(output, block, &bytes, at)?;
        }
        let table: Vec<u8> = self.blocks.iter().flat_map(|at| at.to_be_bytes()).collect();
        if table.len() as u64 > clusters.saturating_mul(cluster) {
            return Err(Error::new(Kind::Limit, "an image larger than its refcounts can be"));
        }
        output.write_at(&table, table_at)?;
        output.set_size(self.geometry.start(self.next))?;
        let header = header(&self.what, self.size, self.l1.len() as u64, l1_at, (table_at, clusters))?;
        output.write_at(&header, 0)
    }
}
