//! The power fails at every write and every flush; an operation fails, for each of them.
//!
//! [`Disk`] keeps two images: what a read gives, and what survives. Between two flushes each sector that was written
//! survives as any of its versions, whatever happens to the sectors beside it: that is what disks with caches do.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::conformance::check_poisoned;
use super::model::{Action, Random, Step, steps_of};
use crate::layer::Fault;
use crate::{BlockDevice, Error, Extent, Kind, Limits, ReadAt, Result, Source, Zero, check_range};

/// Bytes that a disk writes as a whole or not at all.
const SECTOR: usize = 512;

/// A disk in memory whose power fails.
pub struct Disk {
    size: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// For each sector that was written since the last flush: its versions since, in order.
    pending: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Writes and flushes so far.
    events: u64,
    cut_at: u64,
}

impl Disk {
    /// Of zeroes; the power fails in write or flush number `cut_at`, counted from 0.
    pub fn new(size: u64, cut_at: u64) -> Self {
        Self::with_image(vec![0; size as usize], cut_at)
    }

    /// Of these bytes.
    pub fn with_image(image: Vec<u8>, cut_at: u64) -> Self {
        let size = image.len() as u64;
        Self { size, state: Mutex::new(State { live: image.clone(), durable: image, cut_at, ..State::default() }) }
    }

    /// Writes and flushes so far.
    pub fn events(&self) -> u64 {
        self.state().events
    }

    /// Has the power fail in the write or flush after `events` more of them.
    pub fn cut_after(&self, events: u64) {
        let state = &mut *self.state();
        state.cut_at = state.events.saturating_add(events);
    }

    /// The disk as it is found when the power is back: what was not flushed is there, or not, as `seed` has it.
    pub fn after_crash(&self, seed: u64) -> Self {
        let state = self.state();
        let mut random = Random::new(seed);
        // Now and then all is lost, or nothing.
        let kind = random.next() % 4;
        let mut image = state.durable.clone();
        for (sector, versions) in &state.pending {
            let kept = match kind {
                0 => 0,
                1 => versions.len(),
                _ => random.next() as usize % (versions.len() + 1),
            };
            if let Some(version) = kept.checked_sub(1) {
                let start = sector * SECTOR;
                image[start..start + versions[version].len()].copy_from_slice(&versions[version]);
            }
        }
        Self::with_image(image, u64::MAX)
    }

    /// What was written up to now, in order: what is found when the process died, and the machine did not.
    pub fn live(&self) -> Vec<u8> {
        self.state().live.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn powered(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.events > state.cut_at {
            return Err(Error::new(Kind::Disconnected, "a disk without power"));
        }
        Ok(state)
    }

    /// Counts a write or a flush; true when the power fails in it.
    fn event(state: &mut State) -> bool {
        state.events += 1;
        state.events > state.cut_at
    }

    fn change(&self, range: Range<usize>, fill: impl FnOnce(&mut [u8])) -> Result<()> {
        let state = &mut *self.powered()?;
        if range.is_empty() {
            return Ok(());
        }
        let cut = Self::event(state);
        fill(&mut state.live[range.clone()]);
        for sector in range.start / SECTOR..range.end.div_ceil(SECTOR) {
            let end = ((sector + 1) * SECTOR).min(state.live.len());
            state.pending.entry(sector).or_default().push(state.live[sector * SECTOR..end].to_vec());
        }
        if cut { Err(Error::new(Kind::Disconnected, "a power cut during a write")) } else { Ok(()) }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("size", &self.size).finish_non_exhaustive()
    }
}

impl ReadAt for Disk {
    fn size(&self) -> u64 {
        self.size
    }

    fn limits(&self) -> Limits {
        Limits::PLAIN
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        buf.copy_from_slice(&self.powered()?.live[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.size, offset, 1)?;
        let state = self.powered()?;
        let zeroes = state.live[offset as usize..].iter().take(65536).take_while(|byte| **byte == 0).count() as u64;
        Ok(match zeroes {
            0 => Extent { len: 1.max((SECTOR as u64).min(self.size - offset)), source: Source::Data },
            len => Extent { len, source: Source::Zero },
        })
    }
}

impl BlockDevice for Disk {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        self.change(offset as usize..offset as usize + buf.len(), |bytes| bytes.copy_from_slice(buf))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: Zero) -> Result<()> {
        check_range(self.size, offset, len)?;
        self.change(offset as usize..(offset + len) as usize, |bytes| bytes.fill(0))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.write_zeroes(offset, len, Zero::Deallocate)
    }

    fn flush(&self) -> Result<()> {
        let state = &mut *self.powered()?;
        if Self::event(state) {
            return Err(Error::new(Kind::Disconnected, "a power cut during a flush"));
        }
        state.durable.copy_from_slice(&state.live);
        state.pending.clear();
        Ok(())
    }
}

/// The values that a byte may have: bit `n % 64` of word `n / 64`.
type Values = [u64; 4];

fn only(byte: u8) -> Values {
    let mut values = [0; 4];
    values[usize::from(byte) / 64] = 1 << (byte % 64);
    values
}

fn either(values: &mut Values, others: Values) {
    values.iter_mut().zip(others).for_each(|(word, other)| *word |= other);
}

fn allowed(values: &Values, byte: u8) -> bool {
    values[usize::from(byte) / 64] >> (byte % 64) & 1 == 1
}

/// What a device may read as, now and after a crash.
struct Promise {
    live: Vec<Values>,
    durable: Vec<Values>,
}

impl Promise {
    fn new(bytes: &[u8]) -> Self {
        let live: Vec<_> = bytes.iter().map(|byte| only(*byte)).collect();
        Self { durable: live.clone(), live }
    }

    /// `step` was asked for, and `done` or not.
    fn note(&mut self, step: Step, done: bool) {
        let (offset, len) = step.range(self.live.len() as u64);
        let data = match step.action {
            Action::Write => step.data(len),
            Action::WriteZeroes(_) | Action::Discard => vec![0; len as usize],
            Action::Flush | Action::Reopen if done => return self.durable.copy_from_slice(&self.live),
            _ => return,
        };
        let replaces = done && step.action != Action::Discard;
        for (at, byte) in (offset as usize..).zip(data) {
            either(&mut self.durable[at], only(byte));
            if replaces {
                self.live[at] = only(byte);
            } else {
                either(&mut self.live[at], only(byte));
            }
        }
    }

    fn check(values: &[Values], bytes: &[u8], when: &str) {
        let other = values.iter().zip(bytes).position(|(values, byte)| !allowed(values, *byte));
        if let Some(at) = other {
            let may: Vec<u8> = (0..=255).filter(|byte| allowed(&values[at], *byte)).collect();
            panic!("{when}: byte {at} reads {}, may be {may:?}", bytes[at]);
        }
    }
}

fn read_all(device: &dyn BlockDevice) -> Result<Vec<u8>> {
    let mut bytes = vec![0xA5; device.size() as usize];
    device.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Runs `steps` on what `open` opens on `disk`, until one fails that the power, or a poisoned device, makes final.
fn run<D: BlockDevice, O: Fn(Arc<dyn BlockDevice>) -> Result<D>>(
    disk: &Arc<dyn BlockDevice>,
    open: &O,
    steps: &[Step],
    promise: &mut Promise,
    when: &str,
) -> Result<()> {
    let mut device = open(Arc::clone(disk))?;
    for step in steps {
        let result = step.apply(&device);
        promise.note(*step, result.is_ok());
        match (result, step.action) {
            (Err(error), _) if error.kind() == Kind::Disconnected => return Err(error),
            (Err(error), Action::Flush | Action::Reopen) => {
                check_poisoned(&device);
                return Err(error);
            }
            (Ok(()), Action::Reopen) => {
                drop(device);
                device = open(Arc::clone(disk))?;
            }
            (Ok(()), Action::Read) => Promise::check(&promise.live, &read_all(&device)?, when),
            _ => {}
        }
    }
    Promise::check(&promise.live, &read_all(&device)?, when);
    Ok(())
}

/// What is checked, on a device that `open` opens (or first makes) on a disk of `disk_size` bytes, and which reads as
/// `initial` at first:
///
/// - the power fails in each write and flush that `steps` make: opened again, with `seeds` ways of losing what was not
///   flushed, every byte is what a flush acknowledged or what was written since; and it goes on from there;
/// - each operation on the disk fails once: nothing that was flushed is lost, a failed flush ends all writing.
pub fn check<D: BlockDevice, O: Fn(Arc<dyn BlockDevice>) -> Result<D>>(
    disk_size: u64,
    initial: &[u8],
    steps: &[Step],
    seeds: u64,
    open: O,
) {
    let whole = Arc::new(Disk::new(disk_size, u64::MAX));
    let below: Arc<dyn BlockDevice> = Arc::clone(&whole) as _;
    run(&below, &open, steps, &mut Promise::new(initial), "with power").unwrap();
    for cut in 0..whole.events() {
        let disk = Arc::new(Disk::new(disk_size, cut));
        let below: Arc<dyn BlockDevice> = Arc::clone(&disk) as _;
        let mut promise = Promise::new(initial);
        let ended = run(&below, &open, steps, &mut promise, "before the power cut");
        // A device that writes when it is dropped has nobody to tell.
        let cut_off = ended.map_or_else(|error| error.kind() == Kind::Disconnected, |()| disk.events() > cut);
        assert!(cut_off, "no power cut in event {cut}");
        for seed in 0..seeds {
            go_on(&disk, &open, &promise, seed, &format!("power cut in event {cut}, seed {seed}"));
        }
    }
    fail_each(disk_size, initial, steps, &open);
}

/// Opens what a crash left, compares, goes on, and crashes again.
fn go_on<D: BlockDevice, O: Fn(Arc<dyn BlockDevice>) -> Result<D>>(
    disk: &Disk,
    open: &O,
    promise: &Promise,
    seed: u64,
    when: &str,
) {
    let disk = Arc::new(disk.after_crash(seed));
    let below: Arc<dyn BlockDevice> = Arc::clone(&disk) as _;
    let found = read_all(&open(Arc::clone(&below)).unwrap()).unwrap();
    Promise::check(&promise.durable, &found, when);
    let mut promise = Promise::new(&found);
    run(&below, open, &steps_of(seed, 8), &mut promise, &format!("{when}, going on")).unwrap();
    let again: Arc<dyn BlockDevice> = Arc::new(disk.after_crash(seed + 1));
    let found = read_all(&open(again).unwrap()).unwrap();
    Promise::check(&promise.durable, &found, &format!("{when}, and a second one"));
}

fn fail_each<D: BlockDevice, O: Fn(Arc<dyn BlockDevice>) -> Result<D>>(
    disk_size: u64,
    initial: &[u8],
    steps: &[Step],
    open: &O,
) {
    for at in 0.. {
        let disk = Arc::new(Disk::new(disk_size, u64::MAX));
        let fault = Arc::new(Fault::at(Arc::clone(&disk), at));
        let below: Arc<dyn BlockDevice> = Arc::clone(&fault) as _;
        let mut promise = Promise::new(initial);
        let when = format!("operation {at} failed");
        // An error is an answer as good as any: what matters is what is there afterwards.
        let _ = run(&below, open, steps, &mut promise, &when);
        go_on(&disk, open, &promise, at, &when);
        if fault.operations() <= at {
            return;
        }
    }
}
