//! The log of a VHDX that was not closed (MS-VHDX 2.3), replayed in memory: the file stays as it is.
//!
//! ```text
//! entry    | loge | sum | length | tail | number 8 | descriptors | 0 | log's GUID 16 | flushed 8 | last 8 |  64 bytes
//! then     | desc | last 4 bytes | first 8 bytes | file offset 8 | number 8 |                          32 bytes each
//!          | zero | 0            | length 8      | file offset 8 | number 8 |
//! then     | data | number, high | 4084 bytes    | number, low  |         4096 bytes for each `desc`, from a 4096 on
//! ```
//!
//! The log is a ring. What counts is the run of entries, numbered one after the other, that ends with the highest number
//! and begins where its last entry says.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::bytes::{array, has, le_u32, le_u64};
use block::layer::{Fixed, ReadOnly};
use block::{Error, Extent, Kind, Limits, ReadAt, Result, Source, Storage, check_range};

/// Everything in a log is aligned to this, bytes.
const SECTOR: u64 = 4096;
/// The longest log, bytes; those of Hyper-V and QEMU have 1 MiB.
const LOG_BYTES_MAX: u64 = 64 << 20;

fn corrupt(what: &'static str) -> Error {
    Error::new(Kind::Corrupt, what)
}

/// The part of the header that speaks of the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Log {
    /// Entries with another one are of an older log; all zero: there is none.
    pub(super) guid: [u8; 16],
    /// Bytes.
    pub(super) len: u64,
    /// First byte in the file.
    pub(super) at: u64,
}

/// An entry that is whole.
struct Entry {
    bytes: Vec<u8>,
    number: u64,
    tail: u64,
    at: u64,
}

/// The file as it is when its log has been replayed; the same, where there is nothing to replay.
///
/// # Errors
/// [`Kind::Corrupt`] where the file ends before what the log says was written; [`Kind::Limit`]; that of the file.
pub(super) fn replayed(storage: Arc<dyn Storage>, log: &Log) -> Result<Arc<dyn Storage>> {
    if log.guid == [0; 16] || log.len == 0 {
        return Ok(storage);
    }
    if log.len > LOG_BYTES_MAX {
        return Err(Error::new(Kind::Limit, format!("a VHDX with a log of {} bytes", log.len)));
    }
    if !log.len.is_multiple_of(SECTOR) || log.at.saturating_add(log.len) > storage.size() {
        return Err(corrupt("a VHDX whose log does not lie in the file"));
    }
    let mut ring = vec![0; usize::try_from(log.len).unwrap_or_default()];
    storage.read_at(&mut ring, log.at)?;
    let entries = active(&ring, log)?;
    let Some(last) = entries.last() else { return Ok(storage) };
    let (flushed, end) = (le_u64(&last.bytes, 48), le_u64(&last.bytes, 56).unwrap_or_default());
    if flushed.is_none_or(|flushed| flushed > storage.size()) {
        return Err(corrupt("a VHDX that is shorter than its log says: it was cut short"));
    }
    if end > i64::MAX as u64 {
        return Err(Error::new(Kind::Limit, "a VHDX whose log claims a file larger than any can be"));
    }
    let size = storage.size().max(end);
    let mut replayed = Replayed { below: storage, size, patches: BTreeMap::new() };
    for entry in &entries {
        replayed.apply(entry)?;
    }
    Ok(Arc::new(Fixed::new(ReadOnly::new(replayed))))
}

/// The entries that are to be replayed, in their order.
fn active(ring: &[u8], log: &Log) -> Result<Vec<Entry>> {
    let mut found: Vec<Entry> = Vec::new();
    // What is summed up is not summed up again and again, however the lengths of broken entries overlap.
    let mut left = log.len.saturating_mul(4);
    let mut tail = 0;
    while tail < log.len {
        let mut run: Vec<Entry> = Vec::new();
        let (mut head, mut used) = (tail, 0_u64);
        while let Some(entry) = entry(ring, log, head, &mut left)? {
            used = used.saturating_add(entry.bytes.len() as u64);
            if run.last().is_some_and(|last| last.number.checked_add(1) != Some(entry.number)) || used > log.len {
                break;
            }
            head = head.saturating_add(entry.bytes.len() as u64).checked_rem(log.len).unwrap_or_default();
            run.push(entry);
        }
        let length = run.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.bytes.len() as u64));
        // Where the last one says that it all begins, which must be one of them.
        let first = run.last().map(|last| last.tail).and_then(|at| run.iter().position(|entry| entry.at == at));
        if let (Some(first), Some(last)) = (first, run.last())
            && found.last().is_none_or(|best| last.number > best.number)
        {
            found = run.split_off(first);
        }
        tail = tail.saturating_add(length.max(SECTOR));
    }
    Ok(found)
}

/// The entry at a place of the ring, where there is a whole one.
fn entry(ring: &[u8], log: &Log, at: u64, left: &mut u64) -> Result<Option<Entry>> {
    let turn = |at: u64, len: u64| {
        let (from, len) = (usize::try_from(at).unwrap_or_default(), usize::try_from(len).unwrap_or_default());
        let mut bytes: Vec<u8> = ring.get(from..).unwrap_or_default().iter().take(len).copied().collect();
        let missing = len.saturating_sub(bytes.len());
        bytes.extend_from_slice(ring.get(..missing).unwrap_or_default());
        bytes
    };
    let head = turn(at, 64);
    let length = u64::from(le_u32(&head, 8).unwrap_or_default());
    let tail = u64::from(le_u32(&head, 12).unwrap_or_default());
    let number = le_u64(&head, 16).unwrap_or_default();
    let sound = has(&head, 0, b"loge")
        && length >= SECTOR
        && length.is_multiple_of(SECTOR)
        && length <= log.len
        && tail.is_multiple_of(SECTOR)
        && tail < log.len
        && number > 0
        && array(&head, 32) == Some(log.guid);
    if !sound {
        return Ok(None);
    }
    *left = left.checked_sub(length).ok_or_else(|| corrupt("a VHDX whose log leads nowhere"))?;
    let mut bytes = turn(at, length);
    let stored = le_u32(&bytes, 4);
    if let Some(field) = bytes.get_mut(4..8) {
        field.fill(0);
    }
    if stored != Some(crc32c::crc32c(&bytes)) {
        return Ok(None);
    }
    let entry = Entry { bytes, number, tail, at };
    Ok(entry.descriptors().is_some().then_some(entry))
}

/// What a descriptor asks for.
enum Change<'a> {
    Zero(u64, u64),
    /// First eight bytes, last four, and the sector with those between.
    Data(u64, [u8; 8], [u8; 4], &'a [u8]),
}

impl Entry {
    /// What it asks for; nothing where it contradicts itself.
    fn descriptors(&self) -> Option<Vec<Change<'_>>> {
        let count = usize::try_from(le_u32(&self.bytes, 24)?).ok()?;
        let table = self.bytes.get(64..)?.get(..count.checked_mul(32)?)?;
        let data_at = count.checked_mul(32)?.checked_add(64)?.next_multiple_of(SECTOR as usize);
        let mut sectors = self.bytes.get(data_at..)?.chunks_exact(SECTOR as usize);
        let mut changes = Vec::new();
        for descriptor in table.chunks_exact(32) {
            let (second, third) = (le_u64(descriptor, 8)?, le_u64(descriptor, 16)?);
            if le_u64(descriptor, 24)? != self.number || !third.is_multiple_of(SECTOR) {
                return None;
            }
            if has(descriptor, 0, b"zero") {
                let whole = second.is_multiple_of(SECTOR) && third.checked_add(second)? <= i64::MAX as u64;
                changes.push(Change::Zero(third, whole.then_some(second)?));
            } else if has(descriptor, 0, b"desc") {
                let sector = sectors.next()?;
                let number = u64::from(le_u32(sector, 4)?) << 32 | u64::from(le_u32(sector, 4092)?);
                let inside = third.checked_add(SECTOR)? <= i64::MAX as u64;
                if !has(sector, 0, b"data") || number != self.number || !inside {
                    return None;
                }
                changes.push(Change::Data(third, array(descriptor, 8)?, array(descriptor, 4)?, sector));
            } else {
                return None;
            }
        }
        Some(changes)
    }
}

/// What is written from some byte on: the byte behind its end, and its bytes, where it is not zeroes.
type Patch = (u64, Option<Box<[u8]>>);

/// A file, and what is written over it.
#[derive(Debug)]
struct Replayed {
    below: Arc<dyn Storage>,
    size: u64,
    /// By their first byte. None overlaps another; with bytes it is one sector.
    patches: BTreeMap<u64, Patch>,
}

impl Replayed {
    fn apply(&mut self, entry: &Entry) -> Result<()> {
        let changes = entry.descriptors().ok_or_else(|| corrupt("a VHDX whose log contradicts itself"))?;
        for change in changes {
            match change {
                Change::Zero(at, len) => self.put(at, at.saturating_add(len), None),
                Change::Data(at, first, last, sector) => {
                    let between = sector.get(8..4092).unwrap_or_default();
                    let bytes = [&first[..], between, &last].concat();
                    self.put(at, at.saturating_add(SECTOR), Some(bytes.into()));
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, start: u64, end: u64, bytes: Option<Box<[u8]>>) {
        if start >= end {
            return;
        }
        self.size = self.size.max(end);
        let touched: Vec<u64> = self
            .patches
            .range(..end)
            .rev()
            .take_while(|(_, (old_end, _))| *old_end > start)
            .map(|(at, _)| *at)
            .collect();
        for old in touched {
            // Only one of zeroes can be longer than a sector, and stick out.
            if let Some((old_end, None)) = self.patches.remove(&old) {
                if old < start {
                    self.patches.insert(old, (start, None));
                }
                if old_end > end {
                    self.patches.insert(end, (old_end, None));
                }
            }
        }
        self.patches.insert(start, (end, bytes));
    }
}

impl ReadAt for Replayed {
    fn size(&self) -> u64 {
        self.size
    }

    fn limits(&self) -> Limits {
        Limits { read_only: true, ..self.below.limits() }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        let end = offset.saturating_add(buf.len() as u64);
        let place = |at: u64| usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX);
        let there = place(self.below.size().clamp(offset, end));
        let (first, rest) = buf.split_at_mut(there);
        rest.fill(0);
        if !first.is_empty() {
            self.below.read_at(first, offset)?;
        }
        for (start, (patch_end, bytes)) in self.patches.range(..end).rev().take_while(|(_, (to, _))| *to > offset) {
            let (from, to) = ((*start).max(offset), (*patch_end).min(end));
            let Some(part) = buf.get_mut(place(from)..place(to)) else { continue };
            match bytes {
                None => part.fill(0),
                Some(bytes) => {
                    let skip = usize::try_from(from.saturating_sub(*start)).unwrap_or(usize::MAX);
                    let there = bytes.get(skip..).and_then(|bytes| bytes.get(..part.len()));
                    part.copy_from_slice(there.ok_or_else(|| corrupt("a VHDX log of odd sectors"))?);
                }
            }
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.size, offset, 1)?;
        Ok(Extent { len: self.size.saturating_sub(offset), source: Source::Data })
    }
}
