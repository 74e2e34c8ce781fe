//! qcow2, versions 2 and 3 (QEMU's docs/interop/qcow2.rst), read and written.
//!
//! ```text
//! 0          cluster
//! +--------+-----------+-----------+-----+-----+------+------+----
//! | header | refcount  | refcount  | L1  | L2  | data | data | …     every one of them clusters, anywhere
//! |        | table     | blocks    |     |     |      |      |
//! +--------+-----------+-----------+-----+-----+------+------+----
//! guest offset ─► L1 entry ─► L2 entry ─► host offset
//! ```
//!
//! ## What moves and what stays
//! A data cluster that belongs to the disk alone (COPIED) stays where it is for the life of the device: a discard makes a
//! hole of it in the file and marks the entry as zero, but does not give the cluster away. So its `File` extents keep
//! their promise, writes to it need no lock, and nothing has to be counted down. What does move when it is written to
//! is compressed, or shared with a snapshot; its old place is given up when nothing on disk points to it any more.
//!
//! ## After a crash
//! Tables change in memory. A flush writes them in an order that may stop anywhere: data and refcounts, flush;
//! refcount table, flush; L2, flush; L1, flush; and only then counts that go down. What is cut short is at worst a
//! count that is too high, a leak, which `qemu-img check -r leaks` and [`check`] mend.

mod change;
pub mod check;
mod compress;
mod corrupt;
mod create;
mod header;
mod overlap;
mod refcount;
pub(crate) mod sequential;
mod snapshot;
mod table;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use block::bytes::read_vec;
use block::cache::Cache;
use block::{
    BlockDevice, Error, Extent, Kind, Limits, Poison, ReadAt, Result, ResultExt as _, Source, Storage, Zero,
    check_range,
};

pub(crate) use compress::pack;
pub use corrupt::Corrupt;
pub use create::{Create, create};
pub use header::{Compression, Header};
pub use snapshot::{Snapshot, read as read_snapshots};

use refcount::Refcounts;
use table::{Geometry, Map, Packed, Place};

/// Locks of the clusters that are being moved, and how many clusters side by side have the same one.
const STRIPES: usize = 64;
const STRIPE_CLUSTERS: u64 = 8;
/// The longest run that is looked for at one time, entries of a table: who asks for one small piece pays for the look.
const RUN_ENTRIES_MAX: usize = 64;
/// Bytes of unpacked clusters that are kept.
const UNPACKED_BYTES_MAX: usize = 64 << 20;

/// A qcow2 image, as the disk that it holds.
pub struct Qcow2 {
    storage: Arc<dyn Storage>,
    backing: Option<Arc<dyn ReadAt>>,
    header: Header,
    geometry: Geometry,
    size: u64,
    read_only: bool,
    map: Map,
    counts: Mutex<Refcounts>,
    stripes: Box<[Mutex<()>]>,
    /// Held by who reads what may be given up, and by who gives it up.
    reuse: RwLock<()>,
    flushing: Mutex<()>,
    poison: Poison,
    /// Whether the header says already that it is being written to.
    begun: AtomicBool,
    beginning: Mutex<()>,
    unpacked: Cache<Arc<[u8]>>,
    /// How often places were given up: what was unpacked before may be another's place now.
    given_up: AtomicU64,
    decoders: compress::Decoders,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Qcow2 {
    /// Opens an image; `backing` is what the header's backing file holds, where it names one (see [`crate::gate`]).
    ///
    /// An image that says that its refcounts may be wrong (lazy refcounts) gets them counted anew before it can be
    /// written to.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] with [`Corrupt`] as the source, [`Kind::Unsupported`], [`Kind::Limit`]; [`Kind::NotFound`]
    /// where the header names a backing file and `backing` is `None`.
    pub fn open(storage: Arc<dyn Storage>, backing: Option<Arc<dyn ReadAt>>) -> Result<Self> {
        let header = Header::read(&storage)?;
        let read_only = storage.limits().read_only;
        if header.corrupt && !read_only {
            let context = "qcow2 that is marked as corrupt: open it with ,ro, or mend it with `qemu-img check -r all`";
            return Err(Error::new(Kind::Corrupt, context));
        }
        if header.dirty && !read_only {
            check::count_anew(&storage, &header)?;
            return Self::new(Arc::clone(&storage), backing, Header::read(&storage)?, None);
        }
        Self::new(storage, backing, header, None)
    }

    /// Opens the disk as it was when a snapshot was taken, read only.
    ///
    /// # Errors
    /// As [`Qcow2::open`]; [`Kind::NotFound`] where there is no snapshot of that name or number.
    pub fn open_snapshot(storage: Arc<dyn Storage>, backing: Option<Arc<dyn ReadAt>>, name: &str) -> Result<Self> {
        let header = Header::read(&storage)?;
        let snapshots = snapshot::read(&storage, &header)?;
        let of_name = snapshots.iter().find(|snapshot| snapshot.name == name);
        let Some(found) = of_name.or_else(|| snapshots.iter().find(|snapshot| snapshot.id == name)) else {
            let names: Vec<String> = snapshots.iter().map(|snapshot| shown(&snapshot.name)).collect();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let context = format!("no snapshot \"{}\" in the image; there are: {there}", shown(name));
            return Err(Error::new(Kind::NotFound, context));
        };
        Self::new(storage, backing, header, Some(found))
    }

    fn new(
        storage: Arc<dyn Storage>,
        backing: Option<Arc<dyn ReadAt>>,
        header: Header,
        snapshot: Option<&Snapshot>,
    ) -> Result<Self> {
        if header.backing_file.is_some() && backing.is_none() {
            return Err(Error::new(Kind::NotFound, "qcow2 on top of another image, without that one"));
        }
        // One without a name for it has none.
        let backing = backing.filter(|_| header.backing_file.is_some());
        let geometry = Geometry::of(&header);
        let (l1_offset, l1_entries, size) = match snapshot {
            Some(snapshot) => (snapshot.l1_offset, snapshot.l1_entries, snapshot.disk_bytes.unwrap_or(header.size)),
            None => (header.l1_offset, header.l1_entries, header.size),
        };
        let needed = header.l1_entries_of(size);
        if l1_entries < needed {
            return Err(Corrupt::L1TooShort { entries: l1_entries, needed }.into());
        }
        let map = Map::read(&storage, geometry, l1_offset, needed)?;
        let counts = Mutex::new(Refcounts::read(&*storage, &header)?);
        let read_only = storage.limits().read_only || snapshot.is_some();
        Ok(Self {
            backing,
            geometry,
            size,
            read_only,
            map,
            counts,
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            reuse: RwLock::new(()),
            flushing: Mutex::new(()),
            poison: Poison::new(),
            begun: AtomicBool::new(false),
            beginning: Mutex::new(()),
            unpacked: Cache::new(UNPACKED_BYTES_MAX, |cluster: &Arc<[u8]>| cluster.len()),
            given_up: AtomicU64::new(0),
            decoders: compress::Decoders::default(),
            header,
            storage,
        })
    }

    /// What the header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The snapshots in an image.
    ///
    /// # Errors
    /// [`Kind::Corrupt`]; the failure of the storage.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        snapshot::read(&self.storage, &self.header)
    }

    /// Where the bytes from `at` on are, up to `end`, which is behind `at`: the place of the first, and how far it goes.
    fn run(&self, at: u64, end: u64) -> Result<(Place, u64)> {
        let geometry = self.geometry;
        let cluster = geometry.index(at);
        let (l1, l2) = geometry.split(cluster);
        let table_end = geometry.start(geometry.table_end(cluster)).min(end);
        let Some(table) = self.map.table(&self.storage, l1)? else { return Ok((Place::Below, table_end)) };
        let unit = geometry.subcluster();
        let place_of = |at: u64, entry: table::Entry| {
            let place = entry.place(geometry, geometry.sub_index(at))?;
            // From this byte on, not from the start of its subcluster.
            let past = at & unit.wrapping_sub(1);
            Ok::<_, Corrupt>(match place {
                Place::Data { host, own } => Place::Data { host: host.saturating_add(past), own },
                other => other,
            })
        };
        let first = place_of(at, table.get(l2))?;
        if let Place::Compressed(_) = first {
            return Ok((first, geometry.start(cluster.saturating_add(1)).min(end)));
        }
        let mut run_end = (at | unit.wrapping_sub(1)).saturating_add(1);
        if !geometry.extended {
            let wanted = geometry.index(table_end.saturating_sub(run_end).saturating_add(unit.wrapping_sub(1)));
            let most = usize::try_from(wanted).unwrap_or(usize::MAX).min(RUN_ENTRIES_MAX);
            run_end = run_end.saturating_add(geometry.start(table.alike(l2, most, unit) as u64));
            return Ok((first, run_end.min(table_end)));
        }
        for _ in 0..RUN_ENTRIES_MAX {
            if run_end >= table_end {
                break;
            }
            let (_, l2) = geometry.split(geometry.index(run_end));
            let goes_on = match (first, place_of(run_end, table.get(l2))) {
                (Place::Data { host, own }, Ok(Place::Data { host: next, own: next_own })) => {
                    own == next_own && next.checked_sub(host) == run_end.checked_sub(at)
                }
                (first, Ok(next)) => first == next,
                (_, Err(_)) => false,
            };
            if !goes_on {
                break;
            }
            run_end = run_end.saturating_add(unit);
        }
        Ok((first, run_end.min(table_end)))
    }

    /// Reads data from the storage; the last cluster of a file may be cut off where it holds zeroes.
    fn read_host(&self, buf: &mut [u8], host: u64) -> Result<()> {
        let there = self.storage.size().saturating_sub(host);
        if there >= buf.len() as u64 {
            return self.storage.read_at(buf, host);
        }
        let aligned = self.storage.size().saturating_add(self.geometry.cluster().wrapping_sub(1));
        if host.saturating_add(buf.len() as u64) > aligned & !self.geometry.cluster().wrapping_sub(1) {
            return Err(Corrupt::BeyondEnd(host).into());
        }
        let (first, rest) = buf.split_at_mut(usize::try_from(there).unwrap_or(usize::MAX).min(buf.len()));
        rest.fill(0);
        self.storage.read_at(first, host)
    }

    /// Reads what lies below; nothing lies behind the end of the backing file.
    fn read_below(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let Some(backing) = &self.backing else {
            buf.fill(0);
            return Ok(());
        };
        let there = usize::try_from(backing.size().saturating_sub(at)).unwrap_or(usize::MAX).min(buf.len());
        let (first, rest) = buf.split_at_mut(there);
        rest.fill(0);
        if first.is_empty() { Ok(()) } else { backing.read_at(first, at).context(|| "reading the backing file") }
    }

    /// A cluster, unpacked; what can be given up is held by the caller.
    fn unpack(&self, packed: Packed) -> Result<Arc<[u8]>> {
        // Of fewer than 2 to the power of 14 sectors.
        let sectors = packed.len.div_ceil(512) & 0x3fff;
        let key = (packed.host, self.given_up.load(Ordering::Acquire).wrapping_shl(14) | sectors);
        self.unpacked.get(key, || {
            // At most a cluster and a sector: the field has no more bits.
            let len = packed.len.min(self.storage.size().saturating_sub(packed.host));
            let len = usize::try_from(len.min(self.geometry.cluster().saturating_mul(2))).unwrap_or(0);
            let bytes = read_vec(&self.storage, packed.host, len)
                .map_err(|error| Corrupt::Truncated("a compressed cluster").with(error))?;
            let cluster = self.decoders.unpack(self.header.compression, &bytes, self.geometry.cluster() as usize);
            // The last sector of a file need not be whole.
            let cut = packed.host.saturating_add(packed.len) > self.storage.size().next_multiple_of(512);
            Ok(cluster.map_err(|error| if cut { Corrupt::Truncated("a compressed cluster") } else { error })?.into())
        })
    }

    /// Reads a run that [`Qcow2::run`] has found.
    fn read_place(&self, buf: &mut [u8], at: u64, place: Place) -> Result<()> {
        match place {
            Place::Below => self.read_below(buf, at),
            Place::Zero { .. } => {
                buf.fill(0);
                Ok(())
            }
            Place::Data { host, .. } => self.read_host(buf, host),
            Place::Compressed(packed) => {
                let cluster = self.unpack(packed)?;
                let from = self.geometry.within(at) as usize;
                let there = cluster.get(from..).and_then(|rest| rest.get(..buf.len()));
                buf.copy_from_slice(there.ok_or(Corrupt::Deflate)?);
                Ok(())
            }
        }
    }

    /// Reads, with all that can move held where it is.
    fn read_held(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let _held = self.reuse.read().unwrap_or_else(PoisonError::into_inner);
        let end = offset.saturating_add(buf.len() as u64);
        let (mut at, mut rest) = (offset, buf);
        while at < end {
            let (place, run_end) = self.run(at, end)?;
            let (part, more) = rest.split_at_mut(run_end.saturating_sub(at) as usize);
            self.read_place(part, at, place)?;
            (at, rest) = (run_end, more);
        }
        Ok(())
    }

    fn zeroes_below(&self, at: u64, end: u64) -> Result<Option<u64>> {
        let Some(backing) = &self.backing else { return Ok(Some(end)) };
        if at >= backing.size() {
            return Ok(Some(end));
        }
        let extent = backing.extent_at(at)?;
        let run_end = at.saturating_add(extent.len);
        let run_end = if run_end >= backing.size() && extent.source.is_zero() { end } else { run_end.min(end) };
        Ok(extent.source.is_zero().then_some(run_end))
    }

    fn writable(&self, offset: u64, len: u64) -> Result<()> {
        if self.read_only {
            return Err(Error::new(Kind::ReadOnly, "a qcow2 image that is only read"));
        }
        self.poison.check()?;
        check_range(self.size, offset, len)?;
        if !self.begun.load(Ordering::Acquire) {
            self.begin()?;
        }
        Ok(())
    }

    /// Before the first write: what other programs know about the image and loopbox does not keep up, is taken back.
    fn begin(&self) -> Result<()> {
        let _one_at_a_time = locked(&self.beginning);
        if self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let tables = overlap::Tables::of(&*self.storage, &self.header, &self.map, &locked(&self.counts))?;
        locked(&self.counts).keep_off(tables);
        if self.header.autoclear != 0 && self.header.version >= 3 {
            self.storage.write_at(&[0; 8], 88)?;
            self.storage.flush()?;
        }
        self.begun.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes what has changed in the tables, in an order that a crash may interrupt.
    fn store(&self) -> Result<()> {
        let freed = {
            let counts = locked(&self.counts);
            counts.intact()?;
            drop(counts);
            // Before the tables are looked at: what is given up later waits for the next time.
            locked(&self.counts).take_freed()
        };
        let (l2, l1) = self.map.take_dirty();
        let writes = locked(&self.counts).take_dirty();
        let write_all = |writes: &[(u64, Vec<u8>)]| {
            writes.iter().try_for_each(|(offset, bytes)| self.storage.write_at(bytes, *offset))
        };
        write_all(&writes.blocks)?;
        self.storage.flush()?;
        if !writes.table.is_empty() {
            write_all(&writes.table)?;
            self.storage.flush()?;
        }
        if let Some((offset, bytes)) = &writes.header {
            self.storage.write_at(bytes, *offset)?;
            self.storage.flush()?;
        }
        if !l2.is_empty() {
            write_all(&l2)?;
            self.storage.flush()?;
        }
        if !l1.is_empty() {
            for (at, value) in &l1 {
                let offset = (*at as u64).saturating_mul(8).saturating_add(self.header.l1_offset);
                self.storage.write_at(&value.to_be_bytes(), offset)?;
            }
            self.storage.flush()?;
        }
        if !freed.is_empty() {
            let _nobody_reads = self.reuse.write().unwrap_or_else(PoisonError::into_inner);
            self.given_up.fetch_add(1, Ordering::AcqRel);
            let mut counts = locked(&self.counts);
            for (first, count) in freed {
                counts.release(&*self.storage, first, count)?;
            }
        }
        Ok(())
    }
}

/// A name from an image, for a message.
fn shown(name: &str) -> String {
    name.chars().take(64).flat_map(char::escape_debug).collect()
}

impl std::fmt::Debug for Qcow2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Qcow2");
        debug.field("storage", &self.storage).field("backing", &self.backing).field("header", &self.header);
        debug.finish_non_exhaustive()
    }
}

impl Drop for Qcow2 {
    /// Writes the tables, so that what was written and not flushed is there when the storage is.
    fn drop(&mut self) {
        if !self.read_only && self.begun.load(Ordering::Acquire) {
            let _ = self.poison.flush(|| self.store());
            // Counts that have gone down since.
            if self.poison.check().is_ok() {
                let writes = locked(&self.counts).take_dirty();
                let _ = writes.blocks.iter().try_for_each(|(offset, bytes)| self.storage.write_at(bytes, *offset));
            }
        }
    }
}

impl ReadAt for Qcow2 {
    fn size(&self) -> u64 {
        self.size
    }

    fn limits(&self) -> Limits {
        let below = self.storage.limits();
        let cluster = u32::try_from(self.geometry.subcluster()).unwrap_or(65536);
        Limits { preferred: cluster.max(below.preferred), read_only: self.read_only, ..below }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = buf.len() as u64;
        check_range(self.size, offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let end = offset.saturating_add(len);
        // What does not move needs nobody to wait for it.
        match self.run(offset, end)? {
            (place @ (Place::Data { own: true, .. } | Place::Zero { .. }), run_end) if run_end == end => {
                self.read_place(buf, offset, place)
            }
            _ => self.read_held(buf, offset),
        }
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.size, offset, 1)?;
        let (place, end) = self.run(offset, self.size)?;
        let len = end.saturating_sub(offset);
        match place {
            Place::Below => {
                if let Some(end) = self.zeroes_below(offset, end)? {
                    return Ok(Extent { len: end.saturating_sub(offset), source: Source::Hole });
                }
                let Some(backing) = &self.backing else { return Ok(Extent { len, source: Source::Hole }) };
                let below = backing.extent_at(offset)?;
                // A later write moves it up into this image.
                let source = if self.read_only { below.source } else { Source::Data };
                Ok(Extent { len: len.min(below.len), source })
            }
            Place::Zero { host } => Ok(Extent { len, source: if host { Source::Zero } else { Source::Hole } }),
            Place::Data { host, own } => {
                let there = host.saturating_add(len) <= self.storage.size();
                let source = match self.storage.file() {
                    Some(fd) if there && (own || self.read_only) => Source::File { fd, offset: host },
                    _ => Source::Data,
                };
                Ok(Extent { len, source })
            }
            Place::Compressed(_) => Ok(Extent { len, source: Source::Data }),
        }
    }
}

impl BlockDevice for Qcow2 {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.change(offset, buf.len() as u64, &change::Change::Bytes(buf))
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: Zero) -> Result<()> {
        self.zero(offset, len, mode)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.give_up(offset, len)
    }

    fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        // Inside the lock, so that who waits here while a flush fails does not succeed after it.
        let _one_at_a_time = locked(&self.flushing);
        self.poison.flush(|| self.store())
    }
}

/// For fuzzing: takes the bytes for an image, reads all that is in it, checks it, mends it, and writes to it. Whatever
/// it claims, it is an error or works.
///
/// # Panics
/// When what was written is not what is read.
pub fn fuzz(storage: &Arc<dyn Storage>) {
    let _ = check::check(&**storage, check::Repair::Nothing);
    let below: Arc<dyn ReadAt> = Arc::new(block::bytes::Bytes(vec![0x5a; 100_000]));
    let Ok(image) = Qcow2::open(Arc::clone(storage), Some(below)) else { return };
    let _ = image.snapshots();
    let mut piece = vec![0; 65536];
    for offset in [0, 4096, 65536, image.size / 2, image.size.saturating_sub(65536)] {
        let len = image.size.saturating_sub(offset).min(65536) as usize;
        let _ = image.read_at(piece.get_mut(..len).unwrap_or_default(), offset);
        let _ = image.extent_at(offset);
    }
    let data = [0xa5; 700];
    for offset in [0, 5000, image.size / 2] {
        let mut read = [0; 700];
        if image.write_at(&data, offset).is_ok() && image.read_at(&mut read, offset).is_ok() {
            assert!(read == data, "what was written at {offset} is not what is read");
        }
        let _ = image.write_zeroes(offset, 70_000, Zero::Deallocate);
        let _ = image.discard(offset, 70_000);
    }
    let _ = image.flush();
    drop(image);
    let _ = check::check(&**storage, check::Repair::All);
}
