//! Copy on write: changes go elsewhere, and the base never changes.
//!
//! What is written goes into clusters of another device, the overlay, usually a sparse file: see docs/overlay.md for
//! its bytes. A cluster that is written in part is copied from the base first. Reads come from the overlay where it has
//! the cluster, and from the base elsewhere.
//!
//! A cluster that is in the overlay stays there while the device lives, at the same place: so its `File` extents are
//! passed on. Those of the base are not (they are said as `Data`), as a later write moves the cluster into the overlay;
//! they are only when the overlay is opened from a device that takes no writes.
//!
//! ## After a crash
//! A flush makes the data durable, then stores the bits of the clusters whose data it was, then makes these durable. A
//! bit that is stored thus always has its data, and what was acknowledged by a flush is there. A cluster whose bit was
//! not stored is read from the base again; whatever its place in the overlay holds is never looked at, and is written
//! over as a whole when the cluster is copied again.

mod bitmap;
mod layout;

use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use layout::{BASE_MAX, BITMAP_MAX, CLUSTER_MAX, CLUSTER_MIN, Corrupt, Layout, MAGIC, VERSION, WrongBase};

use self::bitmap::Bitmap;
use self::layout::{BITMAP_START, HEADER, fingerprint};
use crate::{BlockDevice, Error, Extent, Kind, Limits, Poison, ReadAt, Result, ResultExt, Zero, check_range};

/// Locks of the clusters that are being copied, and how many clusters side by side have the same one.
const STRIPES: u64 = 64;
const STRIPE_CLUSTERS: u64 = 16;
/// Clusters that are written in part are put together in memory up to this many bytes, and written as one.
const MERGE_MAX: u64 = 128 << 10;
/// The longest run of clusters that [`Overlay::extent_at`] looks for.
const EXTENT_CLUSTERS: u64 = 4096;

/// A base that is only read, and the device that takes what is written.
pub struct Overlay<B, D> {
    base: B,
    device: D,
    layout: Layout,
    data_start: u64,
    bitmap: Bitmap,
    /// Held while a cluster is copied, so that no two copy it side by side.
    stripes: Box<[Mutex<()>]>,
    flushing: Mutex<()>,
    poison: Poison,
    volatile: bool,
    read_only: bool,
}

/// What is written.
enum Change<'a> {
    Bytes(&'a [u8]),
    Zeroes(Zero),
}

impl<B: ReadAt, D: BlockDevice> Overlay<B, D> {
    /// Makes an overlay in `device`, whose first 512 bytes are zero, and opens it.
    ///
    /// # Errors
    /// [`Kind::Exists`] when `device` holds something; [`Kind::Invalid`] when it is smaller than [`Layout::size`].
    pub fn create(base: B, device: D, layout: Layout) -> Result<Self> {
        check_fits(&base, &device, &layout)?;
        if read_header(&device)?.iter().any(|byte| *byte != 0) {
            return Err(Error::new(Kind::Exists, "an overlay cannot be made where something else begins already"));
        }
        let header = layout.header(fingerprint(&base).context(|| "reading the base of an overlay")?);
        device.write_zeroes(BITMAP_START, layout.bitmap_len(), Zero::Deallocate)?;
        // The header last: without it there is no overlay, with it the bitmap is good.
        device.flush()?;
        device.write_at(&header, 0)?;
        device.flush()?;
        Ok(Self::new(base, device, layout, Bitmap::empty(layout.bitmap_len()), false))
    }

    /// Opens the overlay that `device` holds.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] with [`Corrupt`] as the source; [`Kind::Invalid`] with [`WrongBase`] as the source, when it
    /// was made for another base; [`Kind::Unsupported`] of a later version.
    pub fn open(base: B, device: D) -> Result<Self> {
        let (layout, made_for) = Layout::parse(&read_header(&device)?)?;
        if layout.base_size != base.size() {
            return Err(WrongBase::Size { made_for: layout.base_size, base: base.size() }.into());
        }
        check_fits(&base, &device, &layout)?;
        if fingerprint(&base).context(|| "reading the base of an overlay")? != made_for {
            return Err(WrongBase::Content.into());
        }
        let mut bytes = vec![0; layout.bitmap_len() as usize];
        device.read_at(&mut bytes, BITMAP_START)?;
        let bitmap = Bitmap::from_bytes(&bytes, layout.clusters())?;
        Ok(Self::new(base, device, layout, bitmap, false))
    }

    /// Opens the overlay that `device` holds; `None` where none was made in it yet.
    ///
    /// # Errors
    /// As [`Overlay::open`].
    pub fn open_if_made(base: B, device: D) -> Result<Option<Self>> {
        if read_header(&device)?.iter().any(|byte| *byte != 0) {
            return Self::open(base, device).map(Some);
        }
        Ok(None)
    }

    /// Opens the overlay that `device` holds, or makes one in it when its first 512 bytes are zero: it is new, or the
    /// power failed while one was made.
    ///
    /// # Errors
    /// As [`Overlay::open`] and [`Overlay::create`].
    pub fn open_or_create(base: B, device: D) -> Result<Self> {
        if read_header(&device)?.iter().any(|byte| *byte != 0) {
            return Self::open(base, device);
        }
        let layout = Layout::new(base.size())?;
        Self::create(base, device, layout)
    }

    /// An overlay that is forgotten when it is dropped: `device` (of [`Layout::size`] bytes; in memory, say) gets the
    /// data, and nothing that says what it is. A flush has nothing to do.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when `device` is smaller than [`Layout::size`].
    pub fn volatile(base: B, device: D, layout: Layout) -> Result<Self> {
        check_fits(&base, &device, &layout)?;
        Ok(Self::new(base, device, layout, Bitmap::empty(layout.bitmap_len()), true))
    }

    fn new(base: B, device: D, layout: Layout, bitmap: Bitmap, volatile: bool) -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::new(())).collect();
        let (data_start, read_only) = (layout.data_start(), device.limits().read_only);
        let (flushing, poison) = (Mutex::new(()), Poison::new());
        Self { base, device, layout, data_start, bitmap, stripes, flushing, poison, volatile, read_only }
    }

    /// The cluster of a byte.
    #[inline]
    fn cluster(&self, offset: u64) -> u64 {
        offset >> self.layout.cluster.trailing_zeros()
    }

    /// Whether the bytes at `at` are in the overlay, and how far, up to `end` (bytes), the next ones are as well or as
    /// little.
    #[inline]
    fn run(&self, at: u64, end: u64) -> (bool, u64) {
        let first = self.cluster(at);
        let there = self.bitmap.has(first);
        let run_end = self.bitmap.run_end(first + 1, self.cluster(end - 1) + 1, there);
        (there, (run_end << self.layout.cluster.trailing_zeros()).min(end))
    }

    fn change(&self, offset: u64, len: u64, change: &Change<'_>) -> Result<()> {
        self.writable(offset, len)?;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (there, run_end) = self.run(at, end);
            if there {
                self.put(change, offset, at..run_end)?;
                at = run_end;
                continue;
            }
            if matches!(change, Change::Zeroes(Zero::Deallocate)) {
                let below = self.base.extent_at(at)?;
                if below.source.is_zero() {
                    at = (at + below.len).min(run_end);
                    continue;
                }
            }
            let _copying = self.lock(at..run_end);
            // Another may have copied some while the locks were waited for.
            let (there, run_end) = self.run(at, run_end);
            if !there {
                self.copy(change, offset, at..run_end)?;
                at = run_end;
            }
        }
        Ok(())
    }

    fn writable(&self, offset: u64, len: u64) -> Result<()> {
        if self.read_only {
            return Err(Error::new(Kind::ReadOnly, "an overlay whose device takes no writes"));
        }
        self.poison.check()?;
        check_range(self.layout.base_size, offset, len)
    }

    /// The locks of the clusters of a range, always taken in the same order.
    fn lock(&self, range: Range<u64>) -> Vec<MutexGuard<'_, ()>> {
        let first = self.cluster(range.start) / STRIPE_CLUSTERS;
        let last = self.cluster(range.end - 1) / STRIPE_CLUSTERS;
        let (first_stripe, count) = (first % STRIPES, (last - first + 1).min(STRIPES));
        let wanted = |stripe: &u64| (*stripe + STRIPES - first_stripe) % STRIPES < count;
        let lock = |stripe: u64| self.stripes[stripe as usize].lock().unwrap_or_else(PoisonError::into_inner);
        (0..STRIPES).filter(wanted).map(lock).collect()
    }

    /// Writes the part `range` of a change that begins at `offset` into the overlay.
    fn put(&self, change: &Change<'_>, offset: u64, range: Range<u64>) -> Result<()> {
        let at = self.data_start + range.start;
        match change {
            Change::Bytes(bytes) => {
                self.device.write_at(&bytes[(range.start - offset) as usize..(range.end - offset) as usize], at)
            }
            Change::Zeroes(mode) => self.device.write_zeroes(at, range.end - range.start, *mode),
        }
    }

    /// Puts clusters that are not in the overlay there, changed in `range`; the caller holds their locks.
    fn copy(&self, change: &Change<'_>, offset: u64, range: Range<u64>) -> Result<()> {
        let cluster = u64::from(self.layout.cluster);
        let start = range.start / cluster * cluster;
        let end = range.end.next_multiple_of(cluster).min(self.layout.base_size);
        let (head, tail) = (start..range.start, range.end..end);
        let whole = head.is_empty() && tail.is_empty();
        match change {
            Change::Bytes(bytes) if !whole && end - start <= MERGE_MAX => {
                let mut merged = vec![0; (end - start) as usize];
                let within = |offset: u64| (offset - start) as usize;
                self.base.read_at(&mut merged[..within(range.start)], start)?;
                self.base.read_at(&mut merged[within(range.end)..], range.end)?;
                merged[within(range.start)..within(range.end)]
                    .copy_from_slice(&bytes[(range.start - offset) as usize..(range.end - offset) as usize]);
                self.device.write_at(&merged, self.data_start + start)?;
            }
            _ => {
                self.copy_base(head)?;
                self.put(change, offset, range)?;
                self.copy_base(tail)?;
            }
        }
        self.bitmap.set(self.cluster(start), self.cluster(end - 1) + 1);
        Ok(())
    }

    /// Copies less than a cluster of the base into the overlay.
    fn copy_base(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.base.read_at(&mut bytes, range.start)?;
        self.device.write_at(&bytes, self.data_start + range.start)
    }

    fn store(&self) -> Result<()> {
        // First what is to be stored, then the flush: a bit that is set later has data that the flush may have missed.
        let blocks = self.bitmap.take_dirty();
        self.device.flush()?;
        if blocks.is_empty() {
            return Ok(());
        }
        for (offset, bytes) in blocks {
            self.device
                .write_at(&bytes, BITMAP_START + offset)
                .context(|| "storing which clusters are in an overlay")?;
        }
        self.device.flush()
    }
}

fn check_fits(base: &impl ReadAt, device: &impl BlockDevice, layout: &Layout) -> Result<()> {
    let (size, needed) = (device.size(), layout.size());
    if layout.base_size != base.size() {
        return Err(WrongBase::Size { made_for: layout.base_size, base: base.size() }.into());
    }
    if size < needed {
        return Err(Error::new(Kind::Invalid, format!("an overlay of {size} bytes, where {needed} are needed")));
    }
    Ok(())
}

fn read_header(device: &impl BlockDevice) -> Result<[u8; HEADER]> {
    let mut header = [0; HEADER];
    if device.size() < HEADER as u64 {
        return Err(Corrupt::Magic.into());
    }
    device.read_at(&mut header, 0).context(|| "reading the header of an overlay")?;
    Ok(header)
}

impl<B: fmt::Debug, D: fmt::Debug> fmt::Debug for Overlay<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Overlay");
        debug.field("base", &self.base).field("device", &self.device).field("layout", &self.layout);
        debug.finish_non_exhaustive()
    }
}

impl<B: ReadAt, D: BlockDevice> ReadAt for Overlay<B, D> {
    fn size(&self) -> u64 {
        self.layout.base_size
    }

    fn limits(&self) -> Limits {
        let (base, device) = (self.base.limits(), self.device.limits());
        let preferred = self.layout.cluster.max(base.preferred);
        Limits { block: base.block, preferred, depth: base.depth.max(device.depth), read_only: self.read_only }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.layout.base_size, offset, buf.len() as u64)?;
        let (mut at, end) = (offset, offset + buf.len() as u64);
        while at < end {
            let (there, run_end) = self.run(at, end);
            let part = &mut buf[(at - offset) as usize..(run_end - offset) as usize];
            if there {
                self.device.read_at(part, self.data_start + at)?;
            } else {
                self.base.read_at(part, at)?;
            }
            at = run_end;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.layout.base_size, offset, 1)?;
        let far = offset + EXTENT_CLUSTERS * u64::from(self.layout.cluster);
        let (there, end) = self.run(offset, far.min(self.layout.base_size));
        let mut extent =
            if there { self.device.extent_at(self.data_start + offset)? } else { self.base.extent_at(offset)? };
        if !there && !self.read_only {
            extent = super::seen(extent);
        }
        extent.len = extent.len.min(end - offset);
        Ok(extent)
    }
}

impl<B: ReadAt, D: BlockDevice> BlockDevice for Overlay<B, D> {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.change(offset, buf.len() as u64, &Change::Bytes(buf))
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: Zero) -> Result<()> {
        self.change(offset, len, &Change::Zeroes(mode))
    }

    /// Gives up room in the overlay; what is in the base stays there.
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.writable(offset, len)?;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (there, run_end) = self.run(at, end);
            if there {
                self.device.discard(self.data_start + at, run_end - at)?;
            }
            at = run_end;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if self.read_only || self.volatile {
            return Ok(());
        }
        // Inside the lock, so that who waits here while a flush fails does not succeed after it.
        let _one_at_a_time = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.poison.flush(|| self.store())
    }
}
