//! Parts of files from which answers are sent without being copied first.
//!
//! ```text
//! file     0        1 GiB     2 GiB     3 GiB
//!          │ window │         │ window │            WINDOWS_MAX at one time, of all exports together
//!            └ a bit a page: it was in the page cache when it was last read
//! ```
//! The first read of a page goes by `preadv2`, which does not wait for the disk. When that found it in the page cache,
//! the next answer with it is sent out of the mapping. Pages may have left the cache meanwhile, and nobody says so: the
//! kernel then waits for the disk while it sends. It counts that, and all that is remembered is forgotten.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sys::mapping::Mapping;

/// Bytes of a window: their page tables take 2 MiB at the most.
const WINDOW_BYTES: u64 = 1 << 30;
/// Windows of a server.
const WINDOWS_MAX: usize = 4;
/// Bytes of a page, as far as the bits go; those of the processor may be larger.
const PAGE_BYTES: u64 = 4096;
/// So many reads that found no window while all were taken push out the oldest one.
const MISSES_MAX: u32 = 1 << 16;

/// A part of a file that is mapped.
#[derive(Debug)]
pub struct Window {
    mapping: Mapping,
    file: std::fs::File,
    /// Where the descriptor is known by, and which part it is.
    key: (RawFd, u64),
    seen: Box<[AtomicU64]>,
}

impl Window {
    fn new(fd: BorrowedFd<'_>, part: u64) -> std::io::Result<Self> {
        let mapping = Mapping::new(fd, part * WINDOW_BYTES, WINDOW_BYTES as usize)?;
        let file: OwnedFd = fd.try_clone_to_owned()?;
        let words = WINDOW_BYTES / PAGE_BYTES / u64::from(u64::BITS);
        let seen = (0..words).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { mapping, file: file.into(), key: (fd.as_raw_fd(), part), seen })
    }

    /// The mapping.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Fills `buf` with the bytes at `start` of the window, from the file.
    pub fn read(&self, buf: &mut [u8], start: usize) -> std::io::Result<()> {
        self.file.read_exact_at(buf, self.key.1 * WINDOW_BYTES + start as u64)
    }

    /// The words of the bits of a range, and which bits of each.
    fn bits(&self, start: u64, len: u64) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let width = u64::from(u64::BITS);
        let (first, last) = (start / PAGE_BYTES, (start + len.max(1) - 1) / PAGE_BYTES);
        (first / width..=last / width).filter_map(move |word| {
            let low = first.saturating_sub(word * width).min(width - 1);
            let high = (last - word * width).min(width - 1);
            let mask = (u64::MAX >> (width - 1 - high)) & (u64::MAX << low);
            Some((self.seen.get(usize::try_from(word).ok()?)?, mask))
        })
    }

    fn has_seen(&self, start: u64, len: u64) -> bool {
        self.bits(start, len).all(|(word, mask)| word.load(Ordering::Relaxed) & mask == mask)
    }

    fn see(&self, start: u64, len: u64) {
        for (word, mask) in self.bits(start, len) {
            if word.load(Ordering::Relaxed) & mask != mask {
                word.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }
}

/// The windows of a server, oldest first.
#[derive(Debug, Default)]
pub struct Windows {
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    windows: Vec<Arc<Window>>,
    misses: u32,
    /// Reads that go by before the kernel is asked for a mapping again, after it has refused one.
    refused: u32,
}

impl Windows {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The window of a range of a file that was all in the page cache, and where it begins there.
    pub fn find(&self, fd: BorrowedFd<'_>, offset: u64, len: u64) -> Option<(Arc<Window>, usize)> {
        let (key, start) = place(fd, offset, len)?;
        let slots = self.slots();
        let window = slots.windows.iter().find(|window| window.key == key)?;
        window.has_seen(start, len).then(|| (Arc::clone(window), start as usize))
    }

    /// That a range of a file was in the page cache.
    pub fn see(&self, fd: BorrowedFd<'_>, offset: u64, len: u64) {
        let Some((key, start)) = place(fd, offset, len) else { return };
        let mut slots = self.slots();
        if let Some(window) = slots.windows.iter().find(|window| window.key == key) {
            window.see(start, len);
            return;
        }
        if slots.windows.len() >= WINDOWS_MAX {
            slots.misses += 1;
            if slots.misses < MISSES_MAX {
                return;
            }
            slots.windows.remove(0);
        }
        if slots.refused > 0 {
            slots.refused -= 1;
            return;
        }
        slots.misses = 0;
        match Window::new(fd, key.1) {
            Ok(window) => {
                window.see(start, len);
                slots.windows.push(Arc::new(window));
            }
            // All goes on by reading.
            Err(_) => slots.refused = MISSES_MAX,
        }
    }

    /// Forgets which pages are in the page cache.
    pub fn forget(&self) {
        for word in self.slots().windows.iter().flat_map(|window| &window.seen) {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// The window that a range lies in as a whole, and where.
fn place(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Option<((RawFd, u64), u64)> {
    let (part, start) = (offset / WINDOW_BYTES, offset % WINDOW_BYTES);
    (start.checked_add(len)? <= WINDOW_BYTES).then_some(((fd.as_raw_fd(), part), start))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_range_is_found_when_all_of_it_was_seen() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 30).unwrap();
        let windows = Windows::default();
        let found = |offset, len| windows.find(file.as_fd(), offset, len).map(|(_, start)| start);
        assert_eq!(found(0, 1), None);
        windows.see(file.as_fd(), 0, 1);
        assert_eq!((found(0, 4096), found(1, 4096)), (Some(0), None));
        let at = WINDOW_BYTES + 62 * PAGE_BYTES + 5;
        windows.see(file.as_fd(), at, 200 * PAGE_BYTES);
        assert_eq!(found(at - 5, 201 * PAGE_BYTES), Some(62 << 12));
        assert_eq!((found(at - 6, 7), found(at, 201 * PAGE_BYTES)), (None, None));
        // What lies in two windows is in none.
        windows.see(file.as_fd(), WINDOW_BYTES - 1, 2);
        assert_eq!(found(WINDOW_BYTES - 1, 2), None);
        windows.forget();
        assert_eq!((found(0, 1), found(at, 1)), (None, None));
        // Windows are few, and the oldest goes once others are wanted for long.
        for part in 0..8 {
            windows.see(file.as_fd(), part * WINDOW_BYTES, 1);
        }
        assert_eq!(windows.slots().windows.len(), WINDOWS_MAX);
        assert_eq!((found(3 * WINDOW_BYTES, 1), found(5 * WINDOW_BYTES, 1)), (Some(0), None));
        for _ in 0..MISSES_MAX {
            windows.see(file.as_fd(), 5 * WINDOW_BYTES, 1);
        }
        assert_eq!((found(0, 1), found(5 * WINDOW_BYTES, 1)), (None, Some(0)));
        assert_eq!(windows.slots().windows.len(), WINDOWS_MAX);
    }
}
