//! Which clusters are in the overlay.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::layout::{BITMAP_BLOCK, Corrupt};

const WORDS_PER_BLOCK: usize = BITMAP_BLOCK as usize / 8;

/// One bit for each cluster, in memory, and which blocks of it differ from what is stored. Bits are set, never cleared.
pub(super) struct Bitmap {
    words: Box<[AtomicU64]>,
    dirty: Box<[AtomicBool]>,
}

impl Bitmap {
    /// With no cluster in it; `len` bytes, whole blocks.
    pub(super) fn empty(len: u64) -> Self {
        let words = (0..len / 8).map(|_| AtomicU64::new(0)).collect();
        Self { words, dirty: (0..len / BITMAP_BLOCK).map(|_| AtomicBool::new(false)).collect() }
    }

    /// As it was stored: bit `n % 8` of byte `n / 8` is cluster `n`.
    pub(super) fn from_bytes(bytes: &[u8], clusters: u64) -> Result<Self, Corrupt> {
        let bitmap = Self::empty(bytes.len() as u64);
        let (chunks, _) = bytes.as_chunks::<8>();
        for (word, chunk) in bitmap.words.iter().zip(chunks) {
            word.store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
        }
        let end = bitmap.words.len() as u64 * 64;
        if bitmap.run_end(clusters, end, false) != end {
            return Err(Corrupt::Bitmap);
        }
        Ok(bitmap)
    }

    /// Whether the cluster is in the overlay; if so, its data can be read there.
    #[inline]
    pub(super) fn has(&self, cluster: u64) -> bool {
        // Acquire: together with the Release in `set`, the data that was written before the bit is seen.
        self.words[(cluster / 64) as usize].load(Ordering::Acquire) >> (cluster % 64) & 1 == 1
    }

    /// The first cluster from `from` on, below `end`, for which [`Bitmap::has`] is not `state`; else `end`.
    #[inline]
    pub(super) fn run_end(&self, mut from: u64, end: u64, state: bool) -> u64 {
        while from < end {
            let word = self.words[(from / 64) as usize].load(Ordering::Acquire);
            let other = (if state { !word } else { word }) >> (from % 64);
            if other != 0 {
                return (from + u64::from(other.trailing_zeros())).min(end);
            }
            from = (from / 64 + 1) * 64;
        }
        end
    }

    /// Puts the clusters from `from` on, below `end`, into the overlay, after their data was written.
    pub(super) fn set(&self, mut from: u64, end: u64) {
        while from < end {
            let word = (from / 64) as usize;
            let next = ((from / 64 + 1) * 64).min(end);
            let bits = (u64::MAX >> (64 - (next - from))) << (from % 64);
            self.words[word].fetch_or(bits, Ordering::Release);
            // After the bit: `take_dirty` clears the mark before it reads the bits.
            self.dirty[word / WORDS_PER_BLOCK].store(true, Ordering::Release);
            from = next;
        }
    }

    /// The blocks to be stored, as runs: offset inside the bitmap (bytes), and bytes.
    pub(super) fn take_dirty(&self) -> Vec<(u64, Vec<u8>)> {
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for (number, (dirty, words)) in self.dirty.iter().zip(self.words.chunks(WORDS_PER_BLOCK)).enumerate() {
            if !dirty.load(Ordering::Relaxed) || !dirty.swap(false, Ordering::AcqRel) {
                continue;
            }
            let bytes = words.iter().flat_map(|word| word.load(Ordering::Acquire).to_le_bytes());
            let offset = number as u64 * BITMAP_BLOCK;
            match runs.last_mut() {
                Some((start, run)) if *start + run.len() as u64 == offset => run.extend(bytes),
                _ => runs.push((offset, bytes.collect())),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_and_dirty_blocks_come_once() {
        let bitmap = Bitmap::empty(3 * BITMAP_BLOCK);
        let end = 3 * BITMAP_BLOCK * 8;
        assert_eq!(bitmap.run_end(0, end, false), end);
        bitmap.set(60, 200);
        bitmap.set(end - 1, end);
        assert_eq!((bitmap.run_end(0, end, false), bitmap.run_end(60, end, true)), (60, 200));
        assert_eq!((bitmap.run_end(100, 150, true), bitmap.run_end(200, end, false)), (150, end - 1));
        assert!(!bitmap.has(59) && bitmap.has(60) && bitmap.has(199) && !bitmap.has(200) && bitmap.has(end - 1));
        let dirty = bitmap.take_dirty();
        assert_eq!(dirty.iter().map(|(at, run)| (*at, run.len())).collect::<Vec<_>>(), [(0, 4096), (8192, 4096)]);
        assert!(bitmap.take_dirty().is_empty());
        assert!(Bitmap::from_bytes(&dirty[0].1, 200).is_ok_and(|read| read.has(199) && !read.has(59)));
        assert_eq!(Bitmap::from_bytes(&dirty[0].1, 199).err(), Some(Corrupt::Bitmap));
    }
}
