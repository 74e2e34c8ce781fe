//! A disk in memory, whose pages are there once they are written.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use block::{BlockDevice, Error, Extent, Kind, Limits, ReadAt, Result, Source, Storage, Zero, check_range};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Pages that lie together under one lock; also the longest run that [`Memory`] says in one extent.
const GROUP_PAGES: u64 = 64;
const GROUP: u64 = GROUP_PAGES * PAGE;

/// Locks. Neighbouring groups have different ones.
const SHARDS: u64 = 64;

/// The largest device, bytes: the largest offset that Linux knows of.
pub const MAX_SIZE: u64 = i64::MAX as u64;

type Page = Box<[u8]>;

/// A sparse device in memory: what was never written takes no room and reads as zero.
///
/// It takes at most the room (bytes of pages) that it was made with, and answers [`Kind::NoSpace`] beyond. All is gone
/// when it is dropped; until then a flush has nothing to do.
pub struct Memory {
    size: AtomicU64,
    room: u64,
    used: AtomicU64,
    /// Pages by number; the group of a page chooses the shard.
    shards: Box<[RwLock<HashMap<u64, Page>>]>,
}

impl Memory {
    /// A device of `size` bytes that may take all the room that its size says.
    ///
    /// # Errors
    /// [`Kind::Limit`] above [`MAX_SIZE`].
    pub fn new(size: u64) -> Result<Self> {
        Self::with_room(size, u64::MAX)
    }

    /// A device of `size` bytes of which at most `room` bytes (rounded down to pages of 4096) may be filled.
    ///
    /// # Errors
    /// [`Kind::Limit`] above [`MAX_SIZE`].
    pub fn with_room(size: u64, room: u64) -> Result<Self> {
        if size > MAX_SIZE {
            return Err(Error::new(Kind::Limit, format!("a memory device of {size} bytes, above {MAX_SIZE}")));
        }
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        Ok(Self { size: AtomicU64::new(size), room: room / PAGE * PAGE, used: AtomicU64::new(0), shards })
    }

    /// Bytes of the pages that are there.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn shard(&self, group: u64) -> &RwLock<HashMap<u64, Page>> {
        &self.shards[(group % SHARDS) as usize]
    }

    /// An empty page of the room that is left.
    fn allocate(&self) -> Result<Page> {
        let fits = |used: u64| used.checked_add(PAGE).filter(|used| *used <= self.room);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|used| {
            Error::new(
                Kind::NoSpace,
                format!("{used} bytes in use of the {} that the memory device may take", self.room),
            )
        })?;
        let mut page = Vec::new();
        if page.try_reserve_exact(PAGE as usize).is_err() {
            self.used.fetch_sub(PAGE, Ordering::Relaxed);
            return Err(Error::new(Kind::NoSpace, "no memory for a page of 4096 bytes"));
        }
        page.resize(PAGE as usize, 0);
        Ok(page.into_boxed_slice())
    }

    /// Calls `change` for each page that `len` bytes at `offset` touch: the pages of its shard, the page's number, the
    /// bytes of it that are meant, and how many bytes came before.
    fn change(
        &self,
        offset: u64,
        len: u64,
        mut change: impl FnMut(&mut HashMap<u64, Page>, u64, Range<usize>, usize) -> Result<()>,
    ) -> Result<()> {
        check_range(self.size(), offset, len)?;
        for part in parts(offset, len, GROUP) {
            let mut pages = self.shard(part.start / GROUP).write().unwrap_or_else(PoisonError::into_inner);
            for bytes in parts(part.start, part.end - part.start, PAGE) {
                let before = (bytes.start - offset) as usize;
                change(&mut pages, bytes.start / PAGE, within_page(&bytes), before)?;
            }
        }
        Ok(())
    }

    /// The page, made when it is not there.
    fn page<'a>(&self, pages: &'a mut HashMap<u64, Page>, number: u64) -> Result<&'a mut Page> {
        use std::collections::hash_map::Entry;
        match pages.entry(number) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => Ok(entry.insert(self.allocate()?)),
        }
    }

    fn drop_page(&self, pages: &mut HashMap<u64, Page>, number: u64) {
        if pages.remove(&number).is_some() {
            self.used.fetch_sub(PAGE, Ordering::Relaxed);
        }
    }
}

/// `len` bytes at `offset`, cut at the multiples of `unit`.
fn parts(offset: u64, len: u64, unit: u64) -> impl Iterator<Item = Range<u64>> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let start = at;
            at = ((start / unit + 1) * unit).min(end);
            start..at
        })
    })
}

/// The bytes of a range inside one page, counted from the page's start.
fn within_page(bytes: &Range<u64>) -> Range<usize> {
    let start = (bytes.start % PAGE) as usize;
    start..start + (bytes.end - bytes.start) as usize
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("size", &self.size()).field("used", &self.used()).finish_non_exhaustive()
    }
}

impl ReadAt for Memory {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn limits(&self) -> Limits {
        Limits::PLAIN
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.size(), offset, buf.len() as u64)?;
        for part in parts(offset, buf.len() as u64, GROUP) {
            let pages = self.shard(part.start / GROUP).read().unwrap_or_else(PoisonError::into_inner);
            for bytes in parts(part.start, part.end - part.start, PAGE) {
                let into = &mut buf[(bytes.start - offset) as usize..(bytes.end - offset) as usize];
                match pages.get(&(bytes.start / PAGE)) {
                    Some(page) => into.copy_from_slice(&page[within_page(&bytes)]),
                    None => into.fill(0),
                }
            }
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.size(), offset, 1)?;
        let end = ((offset / GROUP + 1) * GROUP).min(self.size());
        let pages = self.shard(offset / GROUP).read().unwrap_or_else(PoisonError::into_inner);
        let first = offset / PAGE;
        let there = pages.contains_key(&first);
        let same = (first + 1..end.div_ceil(PAGE)).take_while(|page| pages.contains_key(page) == there).count() as u64;
        let len = ((first + 1 + same) * PAGE).min(end) - offset;
        Ok(Extent { len, source: if there { Source::Data } else { Source::Hole } })
    }
}

impl BlockDevice for Memory {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.change(offset, buf.len() as u64, |pages, number, bytes, before| {
            let from = &buf[before..before + bytes.len()];
            self.page(pages, number)?[bytes].copy_from_slice(from);
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: Zero) -> Result<()> {
        self.change(offset, len, |pages, number, bytes, _| {
            if mode == Zero::Allocate {
                self.page(pages, number)?[bytes].fill(0);
            } else if bytes.len() == PAGE as usize {
                self.drop_page(pages, number);
            } else if let Some(page) = pages.get_mut(&number) {
                page[bytes].fill(0);
            }
            Ok(())
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.change(offset, len, |pages, number, bytes, _| {
            if bytes.len() == PAGE as usize {
                self.drop_page(pages, number);
            }
            Ok(())
        })
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

impl Storage for Memory {
    fn grow(&self, size: u64) -> Result<()> {
        if size > MAX_SIZE {
            return Err(Error::new(Kind::NoSpace, format!("a memory device of {size} bytes, above {MAX_SIZE}")));
        }
        self.size.fetch_max(size, Ordering::AcqRel);
        Ok(())
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
