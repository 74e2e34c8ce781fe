//! Writing: in place where a cluster is the disk's own, into a new cluster where it is not.

use std::ops::Range;
use std::sync::{Arc, MutexGuard, PoisonError};

use block::{Error, Kind, Result, Zero};

use super::table::{Entry, Place, Table};
use super::{Corrupt, Qcow2, STRIPE_CLUSTERS, STRIPES, locked};

/// Clusters that are written in part are put together in memory up to this many bytes, and written as one.
const MERGE_MAX: u64 = 256 << 10;
/// The most bytes that are allocated at one time.
const ALLOCATE_MAX: u64 = 8 << 20;

/// What is written.
pub(super) enum Change<'a> {
    Bytes(&'a [u8]),
    Zeroes(Zero),
}

impl Qcow2 {
    /// The locks of the clusters of a range, always taken in the same order.
    fn lock(&self, range: &Range<u64>) -> Vec<MutexGuard<'_, ()>> {
        let first = self.geometry.index(range.start) / STRIPE_CLUSTERS;
        let last = self.geometry.index(range.end.saturating_sub(1)) / STRIPE_CLUSTERS;
        let count = last.saturating_sub(first).saturating_add(1).min(STRIPES as u64) as usize;
        let first = (first as usize) % STRIPES;
        let wanted = |n: usize| (n.wrapping_add(STRIPES).wrapping_sub(first)) % STRIPES < count;
        let stripes = self.stripes.iter().enumerate().filter(|(n, _)| wanted(*n));
        stripes.map(|(_, stripe)| stripe.lock().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    /// Writes.
    pub(super) fn change(&self, offset: u64, len: u64, change: &Change<'_>) -> Result<()> {
        self.writable(offset, len)?;
        let (mut at, end) = (offset, offset.saturating_add(len));
        while at < end {
            if let (Place::Data { host, own: true }, run_end) = self.run(at, end)? {
                self.put(change, offset, &(at..run_end), host)?;
                at = run_end;
                continue;
            }
            at = self.change_locked(offset, at, end, change)?;
        }
        Ok(())
    }

    /// Writes a first part of `at..end` with its clusters locked; returns where it ends.
    fn change_locked(&self, offset: u64, at: u64, end: u64, change: &Change<'_>) -> Result<u64> {
        let geometry = self.geometry;
        let (table_number, _) = geometry.split(geometry.index(at));
        let table_end = geometry.start(geometry.table_end(geometry.index(at)));
        let end = end.min(table_end).min(at.saturating_add(ALLOCATE_MAX));
        let _moving = self.lock(&(at..end));
        // Another may have done it while the locks were waited for.
        let (place, run_end) = self.run(at, end)?;
        if let Place::Data { host, own: true } = place {
            self.put(change, offset, &(at..run_end), host)?;
            return Ok(run_end);
        }
        let table = self.table_to_write(table_number)?;
        let entry_of = |at: u64| table.get(geometry.split(geometry.index(at)).1);
        if let Some(host) = entry_of(at).own() {
            let cluster_end = geometry.start(geometry.index(at).saturating_add(1));
            let range = at..end.min(cluster_end);
            self.fill(change, offset, &range, host)?;
            self.set(&table, geometry.index(at), Entry::data(host));
            return Ok(range.end);
        }
        // As many clusters side by side as need a place.
        let first = geometry.index(at);
        let last = geometry.index(end.saturating_sub(1));
        let mut wanted = 1_u64;
        while first.saturating_add(wanted) <= last
            && entry_of(geometry.start(first.saturating_add(wanted))).own().is_none()
        {
            wanted = wanted.saturating_add(1);
        }
        let run = locked(&self.counts).allocate(&*self.storage, wanted)?;
        let range = at..end.min(geometry.start(first.saturating_add(run.count)));
        let host = geometry.start(run.first);
        if let Err(error) = self.place(change, offset, &range, host, run.fresh) {
            locked(&self.counts).release(&*self.storage, run.first, run.count)?;
            return Err(error);
        }
        for n in 0..run.count {
            let cluster = first.saturating_add(n);
            let old = entry_of(geometry.start(cluster));
            self.set(&table, cluster, Entry::data(geometry.start(run.first.saturating_add(n))));
            self.free_entry(old);
        }
        self.store_when_full()?;
        Ok(range.end)
    }

    fn store_when_full(&self) -> Result<()> {
        if self.map.is_full() {
            let _one_at_a_time = locked(&self.flushing);
            self.poison.flush(|| self.store())?;
        }
        Ok(())
    }

    fn set(&self, table: &Arc<Table>, cluster: u64, entry: Entry) {
        table.set(self.geometry.split(cluster).1, entry);
    }

    /// The L2 table of an L1 entry, to be written to.
    fn table_to_write(&self, number: usize) -> Result<Arc<Table>> {
        let allocate = || {
            let run = locked(&self.counts).allocate(&*self.storage, 1)?;
            Ok(self.geometry.start(run.first))
        };
        let (table, given_up) = self.map.table_to_write(&self.storage, number, allocate)?;
        if let Some(offset) = given_up {
            locked(&self.counts).free_later(self.geometry.index(offset), 1);
        }
        Ok(table)
    }

    /// Gives up, when it can be, what an entry pointed to.
    fn free_entry(&self, old: Entry) {
        let geometry = self.geometry;
        match old.place(geometry, 0) {
            Ok(Place::Compressed(packed)) => {
                let first = geometry.index(packed.host);
                let last = geometry.index(packed.host.saturating_add(packed.len.saturating_sub(1)));
                let count = last.saturating_sub(first).saturating_add(1);
                locked(&self.counts).free_later(first, count);
            }
            _ if old.word & super::table::OFFSET != 0 => {
                locked(&self.counts).free_later(geometry.index(old.word & super::table::OFFSET), 1);
            }
            _ => {}
        }
    }

    /// Writes the part `range` of a change that begins at `offset` to the storage.
    fn put(&self, change: &Change<'_>, offset: u64, range: &Range<u64>, host: u64) -> Result<()> {
        let len = range.end.saturating_sub(range.start);
        // The last cluster of a file may be cut off.
        let host_end = host.saturating_add(len);
        if host_end > self.storage.size() {
            let cluster_end = self.geometry.start(self.geometry.index(host_end.saturating_sub(1)).saturating_add(1));
            if self.geometry.start(self.geometry.index(host)) >= self.storage.size() {
                return Err(Corrupt::BeyondEnd(host).into());
            }
            self.storage.grow(cluster_end)?;
        }
        match change {
            Change::Bytes(bytes) => {
                let from = range.start.saturating_sub(offset) as usize;
                let part = bytes.get(from..).and_then(|rest| rest.get(..len as usize));
                let part = part.ok_or_else(|| Error::new(Kind::OutOfRange, "a part of a write"))?;
                self.storage.write_at(part, host)
            }
            Change::Zeroes(mode) => self.storage.write_zeroes(host, len, *mode),
        }
    }

    /// The clusters that a range touches, as bytes; the last one ends with the disk.
    fn whole(&self, range: &Range<u64>) -> Range<u64> {
        let geometry = self.geometry;
        let last = geometry.index(range.end.saturating_sub(1));
        geometry.start(geometry.index(range.start))..geometry.start(last.saturating_add(1)).min(self.size)
    }

    /// Fills new clusters at `host`: `range` from the change, what is around it from what was there.
    fn place(&self, change: &Change<'_>, offset: u64, range: &Range<u64>, host: u64, fresh: bool) -> Result<()> {
        let whole = self.whole(range);
        let (head, tail) = (whole.start..range.start, range.end..whole.end);
        let host_of = |at: u64| host.saturating_add(at.saturating_sub(whole.start));
        // New room in the file is zero already.
        let skip = |part: &Range<u64>| Ok::<_, Error>(part.is_empty() || fresh && self.is_zero(part)?);
        let (skip_head, skip_tail) = (skip(&head)?, skip(&tail)?);
        let len = |range: &Range<u64>| range.end.saturating_sub(range.start) as usize;
        // Behind the end of the disk: the cluster is whole in the file, and holds nothing of anybody.
        let cluster_end = self.geometry.start(self.geometry.index(whole.end.saturating_sub(1)).saturating_add(1));
        if !fresh && cluster_end > whole.end {
            let rest = cluster_end.saturating_sub(whole.end);
            self.storage.write_zeroes(host_of(whole.end), rest, Zero::Deallocate)?;
        }
        match change {
            Change::Bytes(bytes) if !(skip_head && skip_tail) && (len(&whole) as u64) <= MERGE_MAX => {
                let mut merged = vec![0; len(&whole)];
                let parts = merged.split_at_mut_checked(len(&head)).and_then(|(head, rest)| {
                    let (middle, tail) = rest.split_at_mut_checked(len(range))?;
                    Some((head, middle, tail))
                });
                let from = range.start.saturating_sub(offset) as usize;
                let part = bytes.get(from..).and_then(|rest| rest.get(..len(range)));
                let (Some((into_head, middle, into_tail)), Some(part)) = (parts, part) else {
                    return Err(Error::new(Kind::OutOfRange, "a part of a write"));
                };
                middle.copy_from_slice(part);
                self.read_held(into_head, head.start)?;
                self.read_held(into_tail, tail.start)?;
                self.storage.write_at(&merged, host)
            }
            _ => {
                if !skip_head {
                    self.copy(&head, host_of(head.start))?;
                }
                self.put(change, offset, range, host_of(range.start))?;
                if !skip_tail {
                    self.copy(&tail, host_of(tail.start))?;
                }
                Ok(())
            }
        }
    }

    /// Whether a range reads as zero without anything being read.
    fn is_zero(&self, range: &Range<u64>) -> Result<bool> {
        let mut at = range.start;
        while at < range.end {
            at = match self.run(at, range.end)? {
                (Place::Zero { .. }, end) => end,
                (Place::Below, end) => match self.zeroes_below(at, end)? {
                    Some(end) => end,
                    None => return Ok(false),
                },
                _ => return Ok(false),
            };
        }
        Ok(true)
    }

    /// Copies what a range reads as to the storage.
    fn copy(&self, range: &Range<u64>, host: u64) -> Result<()> {
        let len = range.end.saturating_sub(range.start);
        if len == 0 {
            return Ok(());
        }
        if self.is_zero(range)? {
            return self.storage.write_zeroes(host, len, Zero::Deallocate);
        }
        // Less than a cluster, 2 MiB.
        let mut bytes = vec![0; len as usize];
        self.read_held(&mut bytes, range.start)?;
        self.storage.write_at(&bytes, host)
    }

    /// Writes `range`, inside of a cluster that has a place of its own but is not all data: what is not, becomes it.
    fn fill(&self, change: &Change<'_>, offset: u64, range: &Range<u64>, host: u64) -> Result<()> {
        let whole = self.whole(range);
        let host_of = |at: u64| host.saturating_add(at.saturating_sub(whole.start));
        if host_of(whole.end) > self.storage.size() {
            self.storage.grow(host.saturating_add(self.geometry.cluster()))?;
        }
        for part in [whole.start..range.start, range.end..whole.end] {
            let mut at = part.start;
            while at < part.end {
                let (place, end) = self.run(at, part.end)?;
                // What is data already may be written to by another, without a lock.
                if !matches!(place, Place::Data { .. }) {
                    self.copy(&(at..end), host_of(at))?;
                }
                at = end;
            }
        }
        self.put(change, offset, range, host_of(range.start))
    }

    /// Writes zeroes.
    pub(super) fn zero(&self, offset: u64, len: u64, mode: Zero) -> Result<()> {
        self.writable(offset, len)?;
        let (mut at, end) = (offset, offset.saturating_add(len));
        while at < end {
            let cluster_start = self.geometry.start(self.geometry.index(at));
            let cluster_end = self.geometry.start(self.geometry.index(at).saturating_add(1)).min(self.size);
            if at == cluster_start && end >= cluster_end {
                // All whole clusters of one table.
                let whole = self.geometry.start(self.geometry.index(end));
                let run_end = if end == self.size { end } else { whole };
                at = self.zero_clusters(at, run_end, mode)?;
                continue;
            }
            let part = at..end.min(cluster_end);
            if mode == Zero::Allocate || !self.is_zero(&part)? {
                self.change(part.start, part.end.saturating_sub(part.start), &Change::Zeroes(mode))?;
            }
            at = part.end;
        }
        Ok(())
    }

    /// Zeroes whole clusters from `start` on, up to `end` or to where their table ends; returns where it came to.
    fn zero_clusters(&self, start: u64, end: u64, mode: Zero) -> Result<u64> {
        let geometry = self.geometry;
        let end = end.min(geometry.start(geometry.table_end(geometry.index(start))));
        if mode == Zero::Deallocate {
            // Large and empty is what is asked for most.
            if let (Place::Below, run_end) = self.run(start, end)?
                && let Some(run_end) = self.zeroes_below(start, run_end)?
            {
                let whole = geometry.start(geometry.index(run_end));
                if run_end >= end || whole > start {
                    return Ok(if run_end >= end { end } else { whole });
                }
            }
        }
        let end = if mode == Zero::Allocate { end.min(start.saturating_add(ALLOCATE_MAX)) } else { end };
        let _moving = self.lock(&(start..end));
        let (number, _) = geometry.split(geometry.index(start));
        let table = self.table_to_write(number)?;
        let mut at = start;
        while at < end {
            let cluster = geometry.index(at);
            let cluster_end = geometry.start(cluster.saturating_add(1)).min(self.size);
            let old = table.get(geometry.split(cluster).1);
            self.zero_cluster(&table, at, cluster_end, old, mode)?;
            at = cluster_end;
        }
        self.store_when_full()?;
        Ok(end)
    }

    /// Zeroes one cluster, whose lock the caller holds.
    fn zero_cluster(&self, table: &Arc<Table>, at: u64, end: u64, old: Entry, mode: Zero) -> Result<()> {
        let geometry = self.geometry;
        let cluster = geometry.index(at);
        let marks = geometry.version >= 3;
        if let Some(host) = old.own() {
            // A hole, or room that is kept; then whatever is there, the entry says zero.
            let there = self.storage.size().saturating_sub(host).min(geometry.cluster());
            self.storage.write_zeroes(host, there, mode)?;
            if marks {
                self.set(table, cluster, Entry::zero(geometry, Some(host)));
            }
            return Ok(());
        }
        if mode == Zero::Deallocate {
            if self.is_zero(&(at..end))? {
                return Ok(());
            }
            let nothing_below = self.zeroes_below(at, end)?.is_some_and(|zero_end| zero_end >= end);
            if marks || nothing_below {
                let new = if marks { Entry::zero(geometry, None) } else { Entry::default() };
                self.set(table, cluster, new);
                self.free_entry(old);
                return Ok(());
            }
        }
        let run = locked(&self.counts).allocate(&*self.storage, 1)?;
        let host = geometry.start(run.first);
        if !(run.fresh && mode == Zero::Deallocate)
            && let Err(error) = self.storage.write_zeroes(host, geometry.cluster(), mode)
        {
            locked(&self.counts).release(&*self.storage, run.first, 1)?;
            return Err(error);
        }
        let new = if marks { Entry::zero(geometry, Some(host)) } else { Entry::data(host) };
        self.set(table, cluster, new);
        self.free_entry(old);
        Ok(())
    }

    /// Gives up whole clusters; they read as zero from then on.
    pub(super) fn give_up(&self, offset: u64, len: u64) -> Result<()> {
        self.writable(offset, len)?;
        let geometry = self.geometry;
        let end = offset.saturating_add(len);
        let start = geometry.start(geometry.index(offset.saturating_add(geometry.cluster().wrapping_sub(1))));
        let end = if end == self.size { end } else { geometry.start(geometry.index(end)) };
        let mut at = start;
        while at < end {
            // Below version 3 nothing hides what is in the backing file.
            if geometry.version < 3
                && self.backing.is_some()
                && !matches!(self.run(at, end)?.0, Place::Data { own: true, .. })
            {
                at = geometry.start(geometry.index(at).saturating_add(1)).min(end);
                continue;
            }
            at = if geometry.version < 3 && self.backing.is_some() {
                let next = geometry.start(geometry.index(at).saturating_add(1)).min(end);
                self.zero_clusters(at, next, Zero::Deallocate)?
            } else {
                self.zero_clusters(at, end, Zero::Deallocate)?
            };
        }
        Ok(())
    }
}
