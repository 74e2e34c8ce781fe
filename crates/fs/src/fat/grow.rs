//! Clusters of a file that is written: found, linked to its end, and given up.

use block::{Error, Kind, Result};

use super::boot::RootPlace;
use super::chain::{Chain, Run};
use super::entry::{ENTRY_BYTES, Record};
use super::nodes::{Node, State};
use super::table::{Link, Table};
use super::{Corrupt, Fat, ROOT};
use crate::Inode;

/// The most entries of a directory of FAT.
const FAT_SLOTS_MAX: u64 = 65_536;
/// The most bytes of a directory of exFAT.
const EXFAT_DIRECTORY_BYTES_MAX: u64 = 256 << 20;
/// Bytes that are zeroed by writing them.
const ZEROES: [u8; 4096] = [0; 4096];

impl Fat {
    /// Clusters for `count` more, near the end of `chain`: as runs of first cluster and length.
    pub(super) fn allocate(&self, state: &mut State, chain: &Chain, count: u64) -> Result<Vec<(u32, u32)>> {
        let no_room =
            || Error::new(Kind::NoSpace, format!("{count} clusters of {} bytes", self.geometry.cluster_bytes));
        let free = |state: &State| state.free.as_ref().map_or((0, 0), |free| (free.available(), free.count()));
        let (available, all) = free(state);
        if count > all.into() {
            return Err(no_room());
        }
        if count > available.into() {
            self.flush_device(state)?;
        }
        let Some(free) = &mut state.free else { return Err(no_room()) };
        let mut near = last_cluster(&self.geometry, chain).map(|last| last.saturating_add(1));
        let mut runs = Vec::new();
        let mut left = count.min(u32::MAX.into()) as u32;
        while left > 0 {
            let Some((first, len)) = free.take(left, near) else {
                runs.iter().for_each(|(first, len)| free.put_back(*first, *len));
                return Err(no_room());
            };
            runs.push((first, len));
            left = left.saturating_sub(len);
            near = None;
        }
        Ok(runs)
    }

    /// exFAT: writes the bits of these clusters.
    pub(super) fn write_bitmap(&self, state: &State, runs: &[(u32, u32)]) -> Result<()> {
        let Some(free) = state.free.as_ref().filter(|_| self.geometry.is_exfat()) else { return Ok(()) };
        let sector = u64::from(self.geometry.sector_bytes).max(512);
        let end = u64::from(self.geometry.clusters).div_ceil(8);
        for (first, len) in runs {
            let start = u64::from(first.saturating_sub(2));
            let last = start.saturating_add(u64::from(*len)).saturating_sub(1);
            let from = (start / 8).checked_div(sector).unwrap_or_default().saturating_mul(sector);
            let to = (last / 8).saturating_add(1).checked_next_multiple_of(sector).unwrap_or(end).min(end);
            self.bitmap.write(self.writer()?, &free.bitmap(from..to), from)?;
        }
        Ok(())
    }

    /// Makes clusters, which hold what they are to hold, the end of a chain; all but its entry.
    pub(super) fn link(&self, state: &State, node: &mut Node, record: &mut Record, runs: &[(u32, u32)]) -> Result<()> {
        let (device, geometry, writer) = (&*self.device, &self.geometry, self.writer()?);
        let old_last = last_cluster(geometry, &node.chain);
        let mut chain = node.chain.clone();
        for (first, len) in runs {
            let at = geometry.cluster_at(*first).ok_or_else(|| Corrupt::Chain.at("new cluster"))?;
            chain.push(at, u64::from(*len).saturating_mul(geometry.cluster_bytes.into()))?;
        }
        self.write_bitmap(state, runs)?;
        let first_new = runs.first().map_or(0, |(first, _)| *first);
        let in_table = if geometry.is_exfat() {
            let one_piece = chain.runs.len() == 1 && (record.contiguous || node.chain.bytes == 0) && node.set.is_some();
            if record.contiguous && !one_piece {
                // The table says from now on what was said by the entry.
                for run in &node.chain.runs {
                    self.link_run(run, None)?;
                }
            }
            record.contiguous = one_piece;
            !one_piece
        } else {
            true
        };
        if in_table {
            let mut followers = runs.iter().skip(1).map(|(first, _)| *first);
            for (first, len) in runs {
                let at = geometry.cluster_at(*first).unwrap_or_default();
                let len = u64::from(*len).saturating_mul(geometry.cluster_bytes.into());
                self.link_run(&Run { start: 0, at, len }, followers.next())?;
            }
            if let Some(last) = old_last {
                // New ones first, where they are not written at one time anyhow.
                if !runs.iter().all(|(first, len)| {
                    Table::together(geometry, last, *first)
                        && Table::together(geometry, last, first.saturating_add(*len).saturating_sub(1))
                }) {
                    self.table.write(writer, geometry)?;
                }
                self.table.set(device, geometry, last, Link::Next(first_new))?;
            }
            self.table.write(writer, geometry)?;
        }
        if node.chain.bytes == 0 {
            record.first = first_new;
        }
        node.chain = chain;
        Ok(())
    }

    /// Chains the clusters of a run, and the last one to `follower`, or to none.
    pub(super) fn link_run(&self, run: &Run, follower: Option<u32>) -> Result<()> {
        let (device, geometry) = (&*self.device, &self.geometry);
        let first = geometry.cluster_of(run.at).unwrap_or_default();
        let count = geometry.clusters_for(run.len) as u32;
        let last = first.saturating_add(count).saturating_sub(1);
        for cluster in first..last {
            self.table.set(device, geometry, cluster, Link::Next(cluster.saturating_add(1)))?;
        }
        self.table.set(device, geometry, last, follower.map_or(Link::End, Link::Next))
    }

    /// Clusters of a chain that lie behind what the size of its file needs, as another system may leave them.
    pub(super) fn complete(&self, node: &mut Node) -> Result<()> {
        if node.record.contiguous || node.chain.bytes == 0 {
            return Ok(());
        }
        let mut left = self.geometry.clusters;
        while let Some(last) = last_cluster(&self.geometry, &node.chain) {
            let Link::Next(next) = self.table.get(&*self.device, &self.geometry, last)? else { break };
            let at = self.geometry.cluster_at(next).ok_or_else(|| Corrupt::Chain.at(format!("cluster {next}")))?;
            left = left.checked_sub(1).ok_or_else(|| Corrupt::Chain.at("loop at the end of a file"))?;
            node.chain.push(at, self.geometry.cluster_bytes.into())?;
        }
        Ok(())
    }

    /// Makes room for `bytes` in all, fills what is new by `fill`, and links it; all but the entry.
    pub(super) fn grow(
        &self,
        state: &mut State,
        node: &mut Node,
        record: &mut Record,
        bytes: u64,
        fill: impl FnOnce(&Chain) -> Result<()>,
    ) -> Result<()> {
        if bytes > node.chain.bytes {
            self.complete(node)?;
        }
        let missing = self.geometry.clusters_for(bytes.saturating_sub(node.chain.bytes));
        if bytes <= node.chain.bytes || missing == 0 {
            return fill(&node.chain);
        }
        let runs = self.allocate(state, &node.chain, missing)?;
        let mut whole = node.chain.clone();
        let done = (|| {
            for (first, len) in &runs {
                let at = self.geometry.cluster_at(*first).ok_or_else(|| Corrupt::Chain.at("new cluster"))?;
                whole.push(at, u64::from(*len).saturating_mul(self.geometry.cluster_bytes.into()))?;
            }
            fill(&whole)
        })();
        if let Err(error) = done {
            if let Some(free) = &mut state.free {
                runs.iter().for_each(|(first, len)| free.put_back(*first, *len));
            }
            return Err(error);
        }
        self.link(state, node, record, &runs).inspect_err(|_| self.table.forget())
    }

    /// Gives up clusters that no entry names any more. `last` is what the chain ends with now.
    pub(super) fn give_up(&self, state: &mut State, runs: &[Run], last: Option<u32>, contiguous: bool) -> Result<()> {
        let (device, geometry, writer) = (&*self.device, &self.geometry, self.writer()?);
        let mut clusters = Vec::new();
        for run in runs {
            let first = geometry.cluster_of(run.at).ok_or_else(|| Corrupt::Chain.at("cluster that is given up"))?;
            clusters.push((first, geometry.clusters_for(run.len) as u32));
        }
        if let Some(last) = last.filter(|_| !contiguous && !clusters.is_empty()) {
            self.table.set(device, geometry, last, Link::End)?;
        }
        if !geometry.is_exfat() {
            for (first, len) in &clusters {
                for cluster in *first..first.saturating_add(*len) {
                    self.table.set(device, geometry, cluster, Link::Free)?;
                }
            }
        }
        self.table.write(writer, geometry)?;
        if let Some(free) = &mut state.free {
            clusters.iter().for_each(|(first, len)| free.give_up(*first, *len));
        }
        self.write_bitmap(state, &clusters)
    }

    /// One more cluster of zeroes at the end of a directory.
    pub(super) fn extend_directory(&self, state: &mut State, inode: Inode, node: &mut Node) -> Result<()> {
        let cluster = u64::from(self.geometry.cluster_bytes);
        let bytes = node.chain.bytes.saturating_add(cluster);
        let most = match self.geometry.is_exfat() {
            true => EXFAT_DIRECTORY_BYTES_MAX,
            false => FAT_SLOTS_MAX.saturating_mul(ENTRY_BYTES),
        };
        let fixed = inode == ROOT && matches!(self.geometry.root, RootPlace::Fixed(..));
        if fixed || bytes > most {
            return Err(Error::new(
                Kind::NoSpace,
                format!("a directory of {} bytes, which may have no more", node.chain.bytes),
            ));
        }
        let mut record = node.record;
        let start = node.chain.bytes;
        self.grow(state, node, &mut record, bytes, |chain| self.clear(chain, start, cluster))?;
        if node.record.contiguous && !record.contiguous {
            state.scattered.insert(record.first);
        }
        if self.geometry.is_exfat() && inode != ROOT {
            record.size = bytes;
            record.valid = bytes;
        }
        self.put(state, inode, node, record)
    }

    /// Zeroes of a directory, which are on the device before anything names them.
    pub(super) fn clear(&self, chain: &Chain, start: u64, len: u64) -> Result<()> {
        let writer = self.writer()?;
        let mut done = 0;
        while done < len {
            let some = len.saturating_sub(done).min(ZEROES.len() as u64);
            chain.write(writer, ZEROES.get(..some as usize).unwrap_or_default(), start.saturating_add(done))?;
            done = done.saturating_add(some);
        }
        writer.flush()
    }
}

/// The last cluster of a chain.
pub(super) fn last_cluster(geometry: &super::Geometry, chain: &Chain) -> Option<u32> {
    let last = chain.runs.last()?;
    geometry.cluster_of(last.at.checked_add(last.len)?.checked_sub(1)?)
}
