//! Where guest clusters are: the L1 table, and L2 tables as they are needed.
//!
//! ```text
//! L1 and L2 entry     63      62          61 … 56   55 … 9          8 … 1   0
//!                     COPIED  COMPRESSED  0         host offset     0       reads as zero (L2, version 3)
//! compressed cluster  x = 62 - (cluster bits - 8)
//!                     COPIED  1           61 … x: sectors - 1       x-1 … 0: host offset, to the byte
//! extended L2 entry   the above, then 32 bits "reads as zero", 32 bits "is allocated", of a subcluster each
//! ```
//!
//! What is in memory is what counts; [`super::Qcow2::store`] writes it, in an order that a crash may interrupt.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use block::bytes::read_vec;
use block::{ReadAt, Result};

use super::Corrupt;
use super::header::Header;

/// The cluster belongs to this table alone: it may be written to where it is.
pub(super) const COPIED: u64 = 1 << 63;
pub(super) const COMPRESSED: u64 = 1 << 62;
/// It reads as zero, whatever it holds.
pub(super) const ZERO: u64 = 1;
/// The bits of a host offset.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// All subclusters are allocated.
pub(super) const ALL_ALLOCATED: u64 = 0xffff_ffff;
/// All subclusters read as zero.
pub(super) const ALL_ZERO: u64 = ALL_ALLOCATED << 32;

/// Bytes of L2 tables that are kept in memory, unless more of them wait to be written.
const CACHE_BYTES_MAX: u64 = 32 << 20;
const SHARDS: usize = 32;
/// A table is written in pieces of so many bytes.
pub(super) const PAGE: usize = 4096;

/// The numbers that offsets are cut up with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub bits: u32,
    pub version: u32,
    pub extended: bool,
    /// Entries of an L2 table: 2 to the power of this.
    pub l2_bits: u32,
}

impl Geometry {
    pub(super) fn of(header: &Header) -> Self {
        let entry_bits = if header.extended_l2 { 4 } else { 3 };
        let l2_bits = header.cluster_bits.saturating_sub(entry_bits);
        Self { bits: header.cluster_bits, version: header.version, extended: header.extended_l2, l2_bits }
    }

    pub(super) fn cluster(self) -> u64 {
        1_u64.wrapping_shl(self.bits)
    }

    /// The number of the cluster that a byte lies in.
    pub(super) fn index(self, offset: u64) -> u64 {
        offset.wrapping_shr(self.bits)
    }

    /// The first byte of a cluster.
    pub(super) fn start(self, index: u64) -> u64 {
        index.wrapping_shl(self.bits)
    }

    pub(super) fn within(self, offset: u64) -> u64 {
        offset & self.cluster().wrapping_sub(1)
    }

    /// A cluster's place in the tables: L1 entry, L2 entry.
    pub(super) fn split(self, cluster: u64) -> (usize, usize) {
        let mask = 1_u64.wrapping_shl(self.l2_bits).wrapping_sub(1);
        (cluster.wrapping_shr(self.l2_bits) as usize, (cluster & mask) as usize)
    }

    /// The number of the first cluster behind those of the same L2 table.
    pub(super) fn table_end(self, cluster: u64) -> u64 {
        cluster.wrapping_shr(self.l2_bits).saturating_add(1).wrapping_shl(self.l2_bits)
    }

    /// Bytes of a subcluster: of a cluster, where there are none.
    pub(super) fn subcluster(self) -> u64 {
        if self.extended { self.cluster() / 32 } else { self.cluster() }
    }

    /// The number of the subcluster of its cluster that a byte lies in.
    pub(super) fn sub_index(self, offset: u64) -> u64 {
        self.within(offset).wrapping_shr(self.bits.saturating_sub(5)) & if self.extended { 31 } else { 0 }
    }
}

/// An L2 entry: the word, and that of its subclusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Entry {
    pub word: u64,
    pub sub: u64,
}

/// Where a run of bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the backing file, or nowhere.
    Below,
    /// It reads as zero; a cluster is there for it, or not.
    Zero { host: bool },
    /// From this byte of the storage on; it may be written to there where `own`.
    Data { host: u64, own: bool },
    /// Packed.
    Compressed(Packed),
}

/// A compressed cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packed {
    /// Its first byte in the storage.
    pub host: u64,
    /// So many bytes at the most.
    pub len: u64,
}

impl Entry {
    /// The host cluster that belongs to this entry alone, if there is one.
    pub(super) fn own(self) -> Option<u64> {
        let host = self.word & OFFSET;
        (self.word & COMPRESSED == 0 && self.word & COPIED != 0 && host != 0).then_some(host)
    }

    /// The place of a subcluster (0 where there are none), from its first byte on.
    pub(super) fn place(self, geometry: Geometry, sub: u64) -> std::result::Result<Place, Corrupt> {
        if self.word & COMPRESSED != 0 {
            return Ok(Place::Compressed(self.packed(geometry)));
        }
        let host = self.word & OFFSET;
        if geometry.within(host) != 0 {
            return Err(Corrupt::Unaligned(host));
        }
        let own = self.word & COPIED != 0;
        if geometry.extended {
            let bit = |first: u32| self.sub.wrapping_shr(first.saturating_add(sub as u32)) & 1 == 1;
            return Ok(match (bit(32), bit(0), host) {
                (true, true, _) => return Err(Corrupt::Subclusters(self.sub)),
                (true, ..) => Place::Zero { host: host != 0 },
                (false, true, 0) => return Err(Corrupt::Subclusters(self.sub)),
                (false, true, _) => {
                    Place::Data { host: host.saturating_add(sub.saturating_mul(geometry.subcluster())), own }
                }
                (false, false, _) => Place::Below,
            });
        }
        Ok(match (self.word & ZERO != 0 && geometry.version >= 3, host) {
            (true, _) => Place::Zero { host: host != 0 },
            (false, 0) => Place::Below,
            (false, _) => Place::Data { host, own },
        })
    }

    fn packed(self, geometry: Geometry) -> Packed {
        let split = 62_u32.saturating_sub(geometry.bits.saturating_sub(8));
        let below = 1_u64.wrapping_shl(split).wrapping_sub(1);
        let host = self.word & below;
        let sectors = (self.word & !(COPIED | COMPRESSED)).wrapping_shr(split).saturating_add(1);
        Packed { host, len: sectors.saturating_mul(512).saturating_sub(host % 512) }
    }

    /// The entry of a compressed cluster.
    pub(super) fn of_packed(geometry: Geometry, host: u64, len: u64) -> Self {
        let split = 62_u32.saturating_sub(geometry.bits.saturating_sub(8));
        let last = host.saturating_add(len.saturating_sub(1));
        let more = (last / 512).saturating_sub(host / 512);
        Self { word: COMPRESSED | more.wrapping_shl(split) | host, sub: 0 }
    }

    /// The entry of a cluster of its own that holds data.
    pub(super) fn data(host: u64) -> Self {
        Self { word: host | COPIED, sub: ALL_ALLOCATED }
    }

    /// The entry of zeroes; the cluster of its own, if there is one, is kept.
    pub(super) fn zero(geometry: Geometry, own: Option<u64>) -> Self {
        let place = own.map_or(0, |host| host | COPIED);
        if geometry.extended { Self { word: place, sub: ALL_ZERO } } else { Self { word: place | ZERO, sub: 0 } }
    }
}

/// An L2 table.
#[derive(Debug)]
pub(super) struct Table {
    words: Box<[AtomicU64]>,
    /// Two words of an extended entry are one.
    pair: Option<RwLock<()>>,
    dirty: Box<[AtomicBool]>,
    any: AtomicBool,
}

impl Table {
    fn of(words: Vec<u64>, geometry: Geometry, dirty: bool) -> Self {
        let pages = words.len().saturating_mul(8).div_ceil(PAGE);
        Self {
            words: words.into_iter().map(AtomicU64::new).collect(),
            pair: geometry.extended.then(|| RwLock::new(())),
            dirty: (0..pages).map(|_| AtomicBool::new(dirty)).collect(),
            any: AtomicBool::new(dirty),
        }
    }

    pub(super) fn get(&self, at: usize) -> Entry {
        let load = |at: usize| self.words.get(at).map_or(0, |word| word.load(Ordering::Acquire));
        match &self.pair {
            None => Entry { word: load(at), sub: 0 },
            Some(lock) => {
                let _together = lock.read().unwrap_or_else(PoisonError::into_inner);
                let at = at.saturating_mul(2);
                Entry { word: load(at), sub: load(at.saturating_add(1)) }
            }
        }
    }

    /// How many entries behind the one at `at`, of `most`, go on where it ends: the same without a host cluster, or
    /// each `cluster` bytes on. Of a table without subclusters.
    pub(super) fn alike(&self, at: usize, most: usize, cluster: u64) -> usize {
        let mut words = self.words.get(at..).unwrap_or_default().iter().map(|word| word.load(Ordering::Acquire));
        let Some(first) = words.next() else { return 0 };
        let step = if first & OFFSET == 0 { 0 } else { cluster };
        let mut expected = first;
        words
            .take(most)
            .take_while(|word| {
                expected = expected.wrapping_add(step);
                *word == expected
            })
            .count()
    }

    pub(super) fn set(&self, at: usize, entry: Entry) {
        let store = |at: usize, value: u64| {
            if let Some(word) = self.words.get(at) {
                word.store(value, Ordering::Release);
            }
        };
        let at = match &self.pair {
            None => {
                store(at, entry.word);
                at
            }
            Some(lock) => {
                let _together = lock.write().unwrap_or_else(PoisonError::into_inner);
                let at = at.saturating_mul(2);
                store(at, entry.word);
                store(at.saturating_add(1), entry.sub);
                at
            }
        };
        if let Some(page) = self.dirty.get(at / (PAGE / 8)) {
            page.store(true, Ordering::Release);
        }
        self.any.store(true, Ordering::Release);
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    fn mark_all(&self) {
        self.dirty.iter().for_each(|page| page.store(true, Ordering::Release));
        self.any.store(true, Ordering::Release);
    }

    /// The pieces that have changed, each with its offset in the table (bytes); they are clean from here on.
    pub(super) fn take_dirty(&self) -> Vec<(u64, Vec<u8>)> {
        self.any.store(false, Ordering::Release);
        let _together = self.pair.as_ref().map(|lock| lock.read().unwrap_or_else(PoisonError::into_inner));
        let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut goes_on = false;
        for (n, (dirty, words)) in self.dirty.iter().zip(self.words.chunks(PAGE / 8)).enumerate() {
            if !dirty.swap(false, Ordering::AcqRel) {
                goes_on = false;
                continue;
            }
            let bytes = words.iter().flat_map(|word| word.load(Ordering::Acquire).to_be_bytes());
            match pieces.last_mut().filter(|_| goes_on) {
                Some((_, piece)) => piece.extend(bytes),
                None => pieces.push((n.saturating_mul(PAGE) as u64, bytes.collect())),
            }
            goes_on = true;
        }
        pieces
    }
}

/// L2 tables by the number of their L1 entry.
type Shard = RwLock<HashMap<usize, Arc<Table>>>;

/// The L1 table and the L2 tables that are in memory.
#[derive(Debug)]
pub(super) struct Map {
    pub geometry: Geometry,
    l1: Box<[AtomicU64]>,
    l1_dirty: Mutex<BTreeSet<usize>>,
    shards: Box<[Shard]>,
    shard_tables_max: usize,
    /// Held while a table is made or moved.
    making: Mutex<()>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Big-endian words of a table on disk.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word))
}

impl Map {
    /// Reads an L1 table of so many entries, which were checked against [`super::header::L1_ENTRIES_MAX`].
    pub(super) fn read(storage: &dyn ReadAt, geometry: Geometry, offset: u64, entries: u64) -> Result<Self> {
        let len = usize::try_from(entries.saturating_mul(8)).map_err(|_| Corrupt::Header)?;
        let bytes = read_vec(storage, offset, len).map_err(|error| Corrupt::Truncated("the L1 table").with(error))?;
        let tables = (CACHE_BYTES_MAX.wrapping_shr(geometry.bits) as usize).max(64) / SHARDS;
        Ok(Self {
            geometry,
            l1: words(&bytes).map(AtomicU64::new).collect(),
            l1_dirty: Mutex::default(),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            shard_tables_max: tables.max(2),
            making: Mutex::new(()),
        })
    }

    fn l1(&self, at: usize) -> u64 {
        self.l1.get(at).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Where the L2 tables are.
    pub(super) fn offsets(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.l1.len()).map(|at| self.l1(at) & OFFSET).filter(|offset| *offset != 0)
    }

    fn shard(&self, at: usize) -> Option<&Shard> {
        self.shards.get(at % SHARDS)
    }

    /// The L2 table of an L1 entry; `None` where there is none.
    pub(super) fn table(&self, storage: &dyn ReadAt, at: usize) -> Result<Option<Arc<Table>>> {
        let Some(shard) = self.shard(at) else { return Ok(None) };
        if let Some(table) = shard.read().unwrap_or_else(PoisonError::into_inner).get(&at) {
            return Ok(Some(Arc::clone(table)));
        }
        if self.l1(at) & OFFSET == 0 {
            return Ok(None);
        }
        let mut tables = shard.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.get(&at) {
            return Ok(Some(Arc::clone(table)));
        }
        // Again, inside the lock: a table that was moved meanwhile is read from where it is now.
        let offset = self.l1(at) & OFFSET;
        if self.geometry.within(offset) != 0 {
            return Err(Corrupt::Unaligned(offset).into());
        }
        let bytes = read_vec(storage, offset, self.geometry.cluster() as usize)
            .map_err(|error| Corrupt::Truncated("an L2 table").with(error))?;
        let table = Arc::new(Table::of(words(&bytes).collect(), self.geometry, false));
        self.make_room(&mut tables);
        tables.insert(at, Arc::clone(&table));
        Ok(Some(table))
    }

    /// Forgets tables that nobody holds and that are as on disk.
    fn make_room(&self, tables: &mut HashMap<usize, Arc<Table>>) {
        if tables.len() < self.shard_tables_max {
            return;
        }
        let idle = |table: &Arc<Table>| Arc::strong_count(table) == 1 && !table.is_dirty();
        let gone = tables.iter().find(|(_, table)| idle(table)).map(|(at, _)| *at);
        if let Some(at) = gone {
            tables.remove(&at);
        }
    }

    /// The L2 table of an L1 entry, to be written to: made, or copied from one that a snapshot shares, where it must
    /// be. `allocate` gives the offset of a cluster; the second of the result is one that is given up.
    pub(super) fn table_to_write(
        &self,
        storage: &dyn ReadAt,
        at: usize,
        allocate: impl FnOnce() -> Result<u64>,
    ) -> Result<(Arc<Table>, Option<u64>)> {
        if self.l1(at) & COPIED != 0
            && let Some(table) = self.table(storage, at)?
        {
            return Ok((table, None));
        }
        let _one_at_a_time = locked(&self.making);
        let old = self.l1(at);
        let there = self.table(storage, at)?;
        if old & COPIED != 0
            && let Some(table) = there
        {
            return Ok((table, None));
        }
        let host = allocate()?;
        let table = there.unwrap_or_else(|| {
            let entries = self.geometry.cluster() / 8;
            Arc::new(Table::of(vec![0; entries as usize], self.geometry, true))
        });
        table.mark_all();
        if let (Some(word), Some(shard)) = (self.l1.get(at), self.shard(at)) {
            let mut tables = shard.write().unwrap_or_else(PoisonError::into_inner);
            self.make_room(&mut tables);
            tables.insert(at, Arc::clone(&table));
            word.store(host | COPIED, Ordering::Release);
        }
        locked(&self.l1_dirty).insert(at);
        let given_up = old & OFFSET;
        Ok((table, (given_up != 0).then_some(given_up)))
    }

    /// What has changed in the L2 tables: offset in the storage, bytes. And the L1 entries that have: number, value.
    #[allow(clippy::type_complexity, reason = "two lists of writes")]
    pub(super) fn take_dirty(&self) -> (Vec<(u64, Vec<u8>)>, Vec<(usize, u64)>) {
        let _one_at_a_time = locked(&self.making);
        let l1: Vec<(usize, u64)> =
            std::mem::take(&mut *locked(&self.l1_dirty)).into_iter().map(|at| (at, self.l1(at))).collect();
        let mut writes = Vec::new();
        for shard in &self.shards {
            let tables: Vec<(usize, Arc<Table>)> = shard
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .filter(|(_, table)| table.is_dirty())
                .map(|(at, table)| (*at, Arc::clone(table)))
                .collect();
            for (at, table) in tables {
                let offset = self.l1(at) & OFFSET;
                let pieces = table.take_dirty().into_iter();
                writes.extend(pieces.map(|(within, bytes)| (offset.saturating_add(within), bytes)));
            }
        }
        (writes, l1)
    }

    /// Bytes of tables that wait to be written, about.
    pub(super) fn dirty_bytes(&self) -> u64 {
        let dirty = |shard: &Shard| {
            let tables = shard.read().unwrap_or_else(PoisonError::into_inner);
            tables.values().filter(|table| table.is_dirty()).count() as u64
        };
        self.shards.iter().map(dirty).fold(0, u64::saturating_add).saturating_mul(self.geometry.cluster())
    }

    /// Whether so much waits that it should be written.
    pub(super) fn is_full(&self) -> bool {
        self.dirty_bytes() >= CACHE_BYTES_MAX
    }
}
