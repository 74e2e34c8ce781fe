//! Which clusters are free, while a file system is written.
//!
//! A cluster that is given up stays out of use until the device was flushed: else it could be another file's already when
//! a power cut brings back the entry of the file that it belonged to.

use std::ops::Range;

use block::{ReadAt, Result};

use super::boot::Geometry;
use super::chain::Chain;
use super::table::{Link, Table};

/// The most clusters that can be counted: 64 MiB for each of the two maps.
const CLUSTERS_MAX: u32 = 1 << 29;

/// A bit for each cluster, the first one that of cluster 2.
#[derive(Debug)]
pub(super) struct Free {
    clusters: u32,
    /// As the file system says.
    used: Vec<u64>,
    /// The same, and those that were given up since the last flush.
    taken: Vec<u64>,
    given_up: Vec<Range<u32>>,
    /// Where the next search begins, as an index.
    hint: u32,
    free: u32,
    available: u32,
}

impl Free {
    /// Of FAT: what the table says.
    ///
    /// # Errors
    /// `Limit`; the failure of the device.
    pub fn of_table(device: &dyn ReadAt, geometry: &Geometry, table: &Table) -> Result<Self> {
        let mut used = words(geometry.clusters)?;
        let mut free = 0_u32;
        for index in 0..geometry.clusters {
            if table.get(device, geometry, index.saturating_add(2))? == Link::Free {
                free = free.saturating_add(1);
            } else {
                set(&mut used, index, true);
            }
        }
        Ok(Self::new(geometry.clusters, used, free))
    }

    /// Of exFAT: what the bitmap says.
    ///
    /// # Errors
    /// `Limit`; `Corrupt`; the failure of the device.
    pub fn of_bitmap(device: &dyn ReadAt, geometry: &Geometry, bitmap: &Chain) -> Result<Self> {
        let mut used = words(geometry.clusters)?;
        let mut bytes = vec![0; geometry.clusters.div_ceil(8) as usize];
        bitmap.read(device, &mut bytes, 0)?;
        for (word, eight) in used.iter_mut().zip(bytes.chunks(8)) {
            *word = eight.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        // Bits behind the last cluster mean nothing.
        let behind = geometry.clusters % 64;
        if behind > 0
            && let Some(last) = used.last_mut()
        {
            *last &= 1_u64.checked_shl(behind).unwrap_or(0).wrapping_sub(1);
        }
        let count: u32 = used.iter().fold(0, |count, word| count.saturating_add(word.count_ones()));
        Ok(Self::new(geometry.clusters, used, geometry.clusters.saturating_sub(count)))
    }

    fn new(clusters: u32, used: Vec<u64>, free: u32) -> Self {
        let taken = used.clone();
        Self { clusters, used, taken, given_up: Vec::new(), hint: 0, free, available: free }
    }

    /// Clusters that no file has.
    pub fn count(&self) -> u32 {
        self.free
    }

    /// Of these, the ones that can be had before the next flush.
    pub fn available(&self) -> u32 {
        self.available
    }

    /// Takes up to `wanted` neighbouring clusters, from `near` on where that is free; returns the first and how many.
    pub fn take(&mut self, wanted: u32, near: Option<u32>) -> Option<(u32, u32)> {
        let near =
            near.and_then(|near| near.checked_sub(2)).filter(|near| *near < self.clusters && !get(&self.taken, *near));
        let start = match near {
            Some(near) => near,
            None => self.find(self.hint..self.clusters).or_else(|| self.find(0..self.hint))?,
        };
        let mut len = 0_u32;
        while len < wanted {
            let index = start.saturating_add(len);
            if index >= self.clusters || get(&self.taken, index) {
                break;
            }
            set(&mut self.taken, index, true);
            set(&mut self.used, index, true);
            len = len.saturating_add(1);
        }
        self.hint = start.saturating_add(len);
        self.free = self.free.saturating_sub(len);
        self.available = self.available.saturating_sub(len);
        Some((start.saturating_add(2), len))
    }

    /// The first free index of a range.
    fn find(&self, range: Range<u32>) -> Option<u32> {
        let mut index = range.start;
        while index < range.end {
            if index.is_multiple_of(64) && self.taken.get((index / 64) as usize) == Some(&u64::MAX) {
                index = index.saturating_add(64);
            } else if get(&self.taken, index) {
                index = index.saturating_add(1);
            } else {
                return Some(index);
            }
        }
        None
    }

    /// Gives clusters up: to be had again after the next flush.
    pub fn give_up(&mut self, first: u32, len: u32) {
        let start = first.saturating_sub(2);
        let range = start..start.saturating_add(len).min(self.clusters);
        for index in range.clone() {
            if get(&self.used, index) {
                set(&mut self.used, index, false);
                self.free = self.free.saturating_add(1);
            }
        }
        self.given_up.push(range);
    }

    /// Takes back clusters that nothing was ever written about.
    pub fn put_back(&mut self, first: u32, len: u32) {
        self.give_up(first, len);
        if let Some(range) = self.given_up.pop() {
            self.make_available(range);
        }
    }

    /// The device was flushed.
    pub fn flushed(&mut self) {
        for range in std::mem::take(&mut self.given_up) {
            self.make_available(range);
        }
    }

    fn make_available(&mut self, range: Range<u32>) {
        for index in range {
            if get(&self.taken, index) && !get(&self.used, index) {
                set(&mut self.taken, index, false);
                self.available = self.available.saturating_add(1);
            }
        }
    }

    /// The bytes of an exFAT bitmap in a range.
    pub fn bitmap(&self, bytes: Range<u64>) -> Vec<u8> {
        let word = |at: u64| self.used.get((at / 8) as usize).copied().unwrap_or_default();
        bytes.map(|at| word(at).to_le_bytes().get((at % 8) as usize).copied().unwrap_or_default()).collect()
    }
}

fn words(clusters: u32) -> Result<Vec<u64>> {
    if clusters > CLUSTERS_MAX {
        let text = format!("writing to {clusters} clusters, above {CLUSTERS_MAX}");
        return Err(block::Error::new(block::Kind::Limit, text));
    }
    Ok(vec![0; clusters.div_ceil(64) as usize])
}

fn get(bits: &[u64], index: u32) -> bool {
    bits.get((index / 64) as usize).is_none_or(|word| word >> (index % 64) & 1 == 1)
}

fn set(bits: &mut [u64], index: u32, value: bool) {
    if let Some(word) = bits.get_mut((index / 64) as usize) {
        let bit = 1_u64 << (index % 64);
        if value { *word |= bit } else { *word &= !bit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_up_waits_for_the_flush() {
        let mut free = Free::new(100, vec![0, 0], 100);
        assert_eq!(free.take(100, None), Some((2, 100)));
        assert_eq!(free.take(1, None), None);
        free.give_up(12, 5);
        assert_eq!((free.count(), free.available()), (5, 0));
        assert_eq!(free.take(1, None), None);
        free.flushed();
        assert_eq!(free.take(9, Some(13)), Some((13, 4)));
        assert_eq!(free.take(9, Some(13)), Some((12, 1)));
        free.put_back(12, 1);
        assert_eq!((free.count(), free.available(), free.take(2, None)), (1, 1, Some((12, 1))));
        assert_eq!(free.bitmap(0..13), [vec![0xff; 12], vec![0x0f]].concat());
    }
}
