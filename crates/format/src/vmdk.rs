//! VMware's VMDK (Virtual Disk Format 5.0), read: monolithic sparse, stream-optimised, and the extents (sparse, flat,
//! zero) that a descriptor names, through the gate. Little-endian.
//!
//! ```text
//! 0        4      8     12       20      28         36        44          48       56     64      77
//! +--------+------+-----+--------+-------+----------+---------+-----------+--------+------+----   +------------
//! | KDMV   |versn |flags|capacity| grain |descriptor|its size |entries/GT |redund. |GD at | …     | compression
//! +--------+------+-----+--------+-------+----------+---------+-----------+--------+------+----   +------------
//! grain directory ─► grain tables ─► the sector of a grain; 0: none, 1: zeroes
//! stream-optimised: the directory is named by a footer, and a grain is: its number 8, bytes 4, a zlib stream
//! ```

pub(crate) mod create;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use block::bytes::{byte, has, le_u16, le_u32, le_u64, read_up_to, read_vec};
use block::layer::Window;
use block::{Error, Extent, Kind, Limits, ReadAt, Result, Source, Storage, check_range};
use flate2::{Decompress, FlushDecompress};

use crate::blocks::{BLOCKS_MAX, Blocks, Entries, Place, Places};
use crate::gate::Gate;

const SECTOR: u64 = 512;
/// The longest descriptor, bytes.
const DESCRIPTOR_BYTES_MAX: usize = 64 << 10;
/// The most extents of one disk.
const EXTENTS_MAX: usize = 4096;
/// Unpacked grains that are kept.
const UNPACKED_MAX: usize = 32;

fn corrupt(what: &'static str) -> Error {
    Error::new(Kind::Corrupt, what)
}

/// Opens an image; the extents that it names, and its parent, through `gate`.
///
/// # Errors
/// [`Kind::Corrupt`]; [`Kind::Unsupported`]; [`Kind::Limit`]; those of the gate.
pub fn open(storage: Arc<dyn Storage>, gate: &Gate<'_>) -> Result<Arc<dyn ReadAt>> {
    let head = read_up_to(&storage, 0, 512)?;
    if has(&head, 0, b"KDMV") {
        let (at, len) = (le_u64(&head, 28).unwrap_or_default(), le_u64(&head, 36).unwrap_or_default());
        let len = usize::try_from(len.saturating_mul(SECTOR)).unwrap_or(usize::MAX).min(DESCRIPTOR_BYTES_MAX);
        let text = if at == 0 { Vec::new() } else { read_up_to(&storage, at.saturating_mul(SECTOR), len)? };
        let parent = parent(&String::from_utf8_lossy(&text), gate)?;
        return sparse(storage, parent);
    }
    if has(&head, 0, b"COWD") {
        return Err(Error::new(Kind::Unsupported, "a VMDK of ESX's old sparse format"));
    }
    let text = read_up_to(&storage, 0, DESCRIPTOR_BYTES_MAX)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let parent = parent(&text, gate)?;
    let mut parts: Vec<(u64, Arc<dyn ReadAt>)> = Vec::new();
    let mut end = 0_u64;
    for line in text.lines().filter(|line| ["RW ", "RDONLY ", "NOACCESS "].iter().any(|word| line.starts_with(word))) {
        if parts.len() >= EXTENTS_MAX {
            return Err(Error::new(Kind::Limit, format!("a VMDK of more than {EXTENTS_MAX} extents")));
        }
        let part = extent(line, gate, parent.is_some())?;
        parts.push((end, part.0));
        end = end.checked_add(part.1).ok_or_else(|| corrupt("a VMDK whose extents have no end"))?;
    }
    if parts.is_empty() || end == 0 {
        return Err(corrupt("a VMDK descriptor without extents"));
    }
    let whole: Arc<dyn ReadAt> = Arc::new(Joined { parts, size: end });
    if parent.is_some() {
        return Err(Error::new(Kind::Unsupported, "a VMDK of several files on top of another: merge it first"));
    }
    Ok(whole)
}

/// An extent as a line of the descriptor names it, and its bytes.
fn extent(line: &str, gate: &Gate<'_>, has_parent: bool) -> Result<(Arc<dyn ReadAt>, u64)> {
    let bad = || corrupt("a VMDK descriptor with a line that names no extent");
    let (words, rest) = line.split_once('"').unwrap_or((line, ""));
    let mut words = words.split_whitespace().skip(1);
    let sectors: u64 = words.next().and_then(|word| word.parse().ok()).ok_or_else(bad)?;
    let bytes = sectors.checked_mul(SECTOR).filter(|bytes| *bytes <= i64::MAX as u64).ok_or_else(bad)?;
    let kind = words.next().ok_or_else(bad)?;
    let (name, after) = rest.split_once('"').unwrap_or((rest, ""));
    let device: Arc<dyn ReadAt> = match kind {
        "ZERO" => Arc::new(Joined { parts: Vec::new(), size: bytes }),
        "FLAT" | "VMFS" => {
            let offset: u64 = after.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
            let (opened, _) = gate.open(name)?;
            let start = offset.checked_mul(SECTOR).ok_or_else(bad)?;
            Arc::new(Window::new(opened.storage, start, bytes).map_err(|error| {
                Error::new(Kind::Corrupt, format!("{}: cut short", opened.path.display())).with_source(error)
            })?)
        }
        "SPARSE" if !has_parent => {
            let (opened, _) = gate.open(name)?;
            sparse(opened.storage, None)?
        }
        _ => return Err(Error::new(Kind::Unsupported, format!("a VMDK with an extent of the kind {kind:.16}"))),
    };
    if device.size() < bytes {
        return Err(corrupt("a VMDK extent that is smaller than its descriptor says"));
    }
    Ok((device, bytes))
}

/// The parent that a descriptor names.
fn parent(text: &str, gate: &Gate<'_>) -> Result<Option<Arc<dyn ReadAt>>> {
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix(key)?.trim_start().strip_prefix('='));
        lines.next().map(|value| value.trim().trim_matches('"').to_owned())
    };
    let id = value("parentCID").unwrap_or_default();
    if id.is_empty() || id.eq_ignore_ascii_case("ffffffff") {
        return Ok(None);
    }
    let name = value("parentFileNameHint").ok_or_else(|| corrupt("a VMDK on top of one that it does not name"))?;
    let (opened, gate) = gate.open(&name)?;
    Ok(Some(open(opened.storage, &gate)?))
}

/// A sparse extent.
fn sparse(storage: Arc<dyn Storage>, parent: Option<Arc<dyn ReadAt>>) -> Result<Arc<dyn ReadAt>> {
    let mut head = read_up_to(&storage, 0, 512)?;
    if !has(&head, 0, b"KDMV") {
        return Err(corrupt("a VMDK extent without its header"));
    }
    if le_u64(&head, 56) == Some(u64::MAX) {
        // Written as a stream: what is known only at the end is in a footer.
        head = read_up_to(&storage, storage.size().saturating_sub(1024), 512)?;
        if !has(&head, 0, b"KDMV") {
            return Err(corrupt("a stream-optimised VMDK without its footer: it was cut short"));
        }
    }
    let u64_at = |at| le_u64(&head, at).unwrap_or_default();
    let (flags, capacity, grain) = (le_u32(&head, 8).unwrap_or_default(), u64_at(12), u64_at(20));
    let entries = u64::from(le_u32(&head, 44).unwrap_or_default());
    let (version, packed) = (le_u32(&head, 4).unwrap_or_default(), flags & 0x1_0000 != 0);
    if !(1..=3).contains(&version) || !grain.is_power_of_two() || !(8..=2048).contains(&grain) {
        return Err(corrupt("a VMDK with grains of an impossible size"));
    }
    if packed && le_u16(&head, 77) != Some(1) {
        return Err(Error::new(Kind::Unsupported, "a VMDK that is compressed otherwise than by deflate"));
    }
    let grains = capacity.div_ceil(grain);
    if grains > BLOCKS_MAX || !(64..=65536).contains(&entries) {
        return Err(Error::new(Kind::Limit, format!("a VMDK that claims a disk of {capacity} sectors")));
    }
    let tables = grains.checked_div(entries).unwrap_or_default().saturating_add(1);
    let tables = if grains.checked_rem(entries) == Some(0) { tables.saturating_sub(1) } else { tables };
    let cut = |error| corrupt("a VMDK whose tables are cut short").with_source(error);
    let len = |count: u64| usize::try_from(count.saturating_mul(4)).unwrap_or(usize::MAX);
    let directory = read_vec(&storage, u64_at(56).saturating_mul(SECTOR), len(tables)).map_err(cut)?;
    let directory = directory.as_chunks().0.iter().map(|table| u32::from_le_bytes(*table)).collect();
    let places = Grains {
        entries: Entries::new(Arc::clone(&storage)),
        directory,
        per_table: entries,
        grains,
        zeroes: flags & 4 != 0,
    };
    let (size, grain) = (capacity.saturating_mul(SECTOR), grain.saturating_mul(SECTOR));
    if packed {
        if parent.is_some() {
            return Err(Error::new(Kind::Unsupported, "a compressed VMDK on top of another"));
        }
        let _ = byte(&head, 72);
        return Ok(Arc::new(Packed { storage, size, grain, places, unpacked: Mutex::default() }));
    }
    let blocks = Blocks::new(storage, size, grain, places)?;
    Ok(match parent {
        Some(parent) => Arc::new(blocks.on_top_of(parent, 0)),
        None => Arc::new(blocks),
    })
}

/// A directory of tables of grains, of which the tables are read when they are needed.
struct Grains {
    entries: Entries,
    /// The sector of each table; 0: none.
    directory: Vec<u32>,
    per_table: u64,
    grains: u64,
    /// Whether an entry of 1 is one of zeroes.
    zeroes: bool,
}

impl std::fmt::Debug for Grains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grains").field("grains", &self.grains).finish_non_exhaustive()
    }
}

impl Places for Grains {
    fn count(&self) -> u64 {
        self.grains
    }

    fn place(&self, grain: u64) -> Result<Place> {
        let table = grain.checked_div(self.per_table).and_then(|table| usize::try_from(table).ok());
        let sector = table.and_then(|table| self.directory.get(table)).copied().unwrap_or_default();
        if sector == 0 || grain >= self.grains {
            return Ok(Place::Below);
        }
        let number = grain.checked_rem(self.per_table).unwrap_or_default();
        let entry = self.entries.get(u64::from(sector).saturating_mul(SECTOR), number)?;
        Ok(match u32::from_le_bytes(entry) {
            0 => Place::Below,
            1 if self.zeroes => Place::Zero,
            sector => Place::At(u64::from(sector).saturating_mul(SECTOR)),
        })
    }
}

/// Devices one behind the other; none: zeroes.
#[derive(Debug)]
struct Joined {
    /// Where each begins, in their order.
    parts: Vec<(u64, Arc<dyn ReadAt>)>,
    size: u64,
}

impl Joined {
    /// The part that a byte is in, where it is there, and how many bytes of the part follow.
    fn at(&self, offset: u64) -> (Option<&Arc<dyn ReadAt>>, u64, u64) {
        let after = self.parts.partition_point(|(start, _)| *start <= offset);
        let end = self.parts.get(after).map_or(self.size, |(start, _)| *start);
        let (start, part) = match after.checked_sub(1).and_then(|n| self.parts.get(n)) {
            Some((start, part)) => (*start, Some(part)),
            None => (0, None),
        };
        (part, offset.saturating_sub(start), end.saturating_sub(offset))
    }
}

impl ReadAt for Joined {
    fn size(&self) -> u64 {
        self.size
    }

    fn limits(&self) -> Limits {
        Limits { read_only: true, ..Limits::PLAIN }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let (part, within, left) = self.at(at);
            let (now, more) = rest.split_at_mut(usize::try_from(left).unwrap_or(usize::MAX).min(rest.len()));
            match part {
                Some(part) => part.read_at(now, within)?,
                None => now.fill(0),
            }
            (at, rest) = (at.saturating_add(left), more);
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.size, offset, 1)?;
        let (part, within, left) = self.at(offset);
        let Some(part) = part else { return Ok(Extent { len: left, source: Source::Hole }) };
        let extent = part.extent_at(within)?;
        Ok(Extent { len: extent.len.min(left), source: extent.source })
    }
}

/// An extent of compressed grains.
#[derive(Debug)]
struct Packed {
    storage: Arc<dyn Storage>,
    size: u64,
    grain: u64,
    places: Grains,
    unpacked: Mutex<VecDeque<(u64, Arc<[u8]>)>>,
}

impl Packed {
    fn at(&self, offset: u64) -> Result<(Place, u64, u64)> {
        let grain = self.grain.max(1);
        let within = offset.checked_rem(grain).unwrap_or_default();
        let number = offset.checked_div(grain).unwrap_or_default();
        let left = grain.saturating_sub(within).min(self.size.saturating_sub(offset));
        Ok((self.places.place(number)?, within, left))
    }

    fn unpack(&self, host: u64) -> Result<Arc<[u8]>> {
        {
            let kept = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, grain)) = kept.iter().find(|(at, _)| *at == host) {
                return Ok(Arc::clone(grain));
            }
        }
        let marker = read_up_to(&self.storage, host, 12)?;
        if marker.len() < 12 {
            return Err(corrupt("a compressed VMDK grain that is cut short"));
        }
        let len = le_u32(&marker, 8).map(u64::from).unwrap_or_default();
        // Deflate never makes much more of it than it was.
        if len == 0 || len > self.grain.saturating_mul(2).saturating_add(1024) {
            return Err(corrupt("a compressed VMDK grain of an impossible size"));
        }
        let packed = read_vec(&self.storage, host.saturating_add(12), usize::try_from(len).unwrap_or_default())
            .map_err(|error| corrupt("a compressed VMDK grain that is cut short").with_source(error))?;
        let mut grain = vec![0; usize::try_from(self.grain).unwrap_or_default()];
        let mut inflate = Decompress::new(true);
        inflate
            .decompress(&packed, &mut grain, FlushDecompress::Finish)
            .map_err(|error| corrupt("a compressed VMDK grain that is not deflate").with_source(error))?;
        let grain: Arc<[u8]> = grain.into();
        let mut kept = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= UNPACKED_MAX {
            kept.pop_front();
        }
        kept.push_back((host, Arc::clone(&grain)));
        Ok(grain)
    }
}

impl ReadAt for Packed {
    fn size(&self) -> u64 {
        self.size
    }

    fn limits(&self) -> Limits {
        Limits { read_only: true, ..Limits::PLAIN }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let (place, within, left) = self.at(at)?;
            let (part, more) = rest.split_at_mut(usize::try_from(left).unwrap_or(usize::MAX).min(rest.len()));
            match place {
                Place::At(host) => {
                    let grain = self.unpack(host)?;
                    let from = usize::try_from(within).unwrap_or(usize::MAX);
                    let there = grain.get(from..).and_then(|rest| rest.get(..part.len()));
                    part.copy_from_slice(there.ok_or_else(|| corrupt("a VMDK grain that is too short"))?);
                }
                _ => part.fill(0),
            }
            (at, rest) = (at.saturating_add(left), more);
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.size, offset, 1)?;
        let (place, _, len) = self.at(offset)?;
        let source = match place {
            Place::At(_) => Source::Data,
            Place::Zero => Source::Zero,
            Place::Below => Source::Hole,
        };
        Ok(Extent { len, source })
    }
}
