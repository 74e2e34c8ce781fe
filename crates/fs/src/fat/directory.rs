//! The entries of a directory, in order; and an index of their names, so that a name is found without reading them all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;

use block::bytes::byte;
use block::{Error, Kind, ReadAt, Result};

use super::chain::Chain;
use super::entry::{self, DELETED, ENTRY_BYTES, FILE, LABEL, LONG_NAME, Raw, SECONDARIES_MAX};
use super::name::{self, CodePage, Fold, Short};
use super::{Fat, corrupt::Corrupt};
use crate::utf16;

/// Bytes that are read at one time.
const PIECE_BYTES: u64 = 32_768;
/// The most entries of a directory that are read: 64 MiB. FAT itself ends at 65,536.
pub(super) const SLOTS_MAX: u64 = 1 << 21;

/// A file that a directory names.
#[derive(Debug)]
pub(super) struct Found<'a> {
    /// Its first entry, counted in entries from the start of the directory.
    pub slot: u32,
    /// Entries that belong to it.
    pub slots: u32,
    /// Where the entry that makes it known is on the device: the one with the short name (FAT), the first (exFAT).
    pub at: u64,
    /// Its name.
    pub units: Vec<u16>,
    /// Its short name, where it is another one.
    pub short: Option<Short>,
    /// FAT: the entry with the short name; exFAT: all.
    pub entries: &'a [Raw],
}

/// What stands in a directory.
#[derive(Debug)]
pub(super) enum Seen<'a> {
    File(Found<'a>),
    /// Not in use.
    Free(u32),
    /// The label of the file system, and where it is.
    Label(u64, Raw),
    /// Something else, and where it is: part of what is broken, bitmap, up-case table.
    Other(Raw),
}

/// The entries of a directory, a piece at a time.
struct Slots<'a> {
    device: &'a dyn ReadAt,
    chain: &'a Chain,
    piece: Vec<u8>,
    start: u64,
}

impl Slots<'_> {
    fn get(&mut self, slot: u32) -> Result<Option<Raw>> {
        let offset = u64::from(slot).saturating_mul(ENTRY_BYTES);
        if offset.saturating_add(ENTRY_BYTES) > self.chain.bytes {
            return Ok(None);
        }
        let inside = |start: u64, len: usize| offset >= start && offset < start.saturating_add(len as u64);
        if !inside(self.start, self.piece.len()) {
            let len = PIECE_BYTES.min(self.chain.bytes.saturating_sub(offset));
            self.piece.resize(len as usize, 0);
            self.start = offset;
            self.chain.read(self.device, &mut self.piece, offset)?;
        }
        let at = offset.saturating_sub(self.start) as usize;
        Ok(block::bytes::array(&self.piece, at))
    }
}

impl Fat {
    /// Shows what stands in a directory from entry `from` on, up to its end, and returns the number of the entry that
    /// ends it.
    pub(super) fn scan(
        &self,
        chain: &Chain,
        from: u32,
        visit: &mut dyn FnMut(Seen<'_>) -> ControlFlow<()>,
    ) -> Result<u32> {
        let count = chain.bytes / ENTRY_BYTES;
        if count > SLOTS_MAX {
            return Err(Error::new(Kind::Limit, format!("a directory of {count} entries, above {SLOTS_MAX}")));
        }
        let mut slots = Slots { device: &*self.device, chain, piece: Vec::new(), start: 0 };
        let mut slot = from;
        let mut long = Long::default();
        while let Some(raw) = slots.get(slot)? {
            let first = byte(&raw, 0).unwrap_or_default();
            if first == 0 {
                break;
            }
            let mut used = 1;
            let place = |slot: u32| {
                let offset = u64::from(slot).saturating_mul(ENTRY_BYTES);
                chain.place(offset).map(|(at, _)| at).ok_or_else(|| Corrupt::ChainEnds.at("entry of a directory"))
            };
            let mut set = vec![raw];
            let seen = if self.geometry.is_exfat() {
                let secondaries = byte(&raw, 1).unwrap_or_default();
                match first {
                    FILE if (2..=SECONDARIES_MAX).contains(&secondaries) => {
                        for next in 1..=u32::from(secondaries) {
                            set.extend(slots.get(slot.saturating_add(next))?);
                        }
                        let is_whole = set.len() == usize::from(secondaries).saturating_add(1)
                            && set.iter().skip(1).all(|entry| byte(entry, 0).is_some_and(|first| first & 0xc0 == 0xc0));
                        match entry::exfat_name(&set).filter(|_| is_whole) {
                            Some(units) => {
                                used = u32::from(secondaries).saturating_add(1);
                                Seen::File(Found {
                                    slot,
                                    slots: used,
                                    at: place(slot)?,
                                    units,
                                    short: None,
                                    entries: &set,
                                })
                            }
                            None => Seen::Other(raw),
                        }
                    }
                    entry::VOLUME_LABEL => Seen::Label(place(slot)?, raw),
                    0x80.. => Seen::Other(raw),
                    _ => Seen::Free(slot),
                }
            } else {
                let attributes = u16::from(byte(&raw, 11).unwrap_or_default());
                match first {
                    DELETED => {
                        long = Long::default();
                        Seen::Free(slot)
                    }
                    _ if attributes & 0x3f == LONG_NAME => {
                        long.push(slot, &raw);
                        Seen::Other(raw)
                    }
                    _ if attributes & LABEL != 0 => {
                        long = Long::default();
                        Seen::Label(place(slot)?, raw)
                    }
                    _ if entry::is_dots(&raw) => Seen::Other(raw),
                    _ => {
                        let short = name::short_at(&raw);
                        let long = std::mem::take(&mut long).name(&short);
                        let case = byte(&raw, 12).unwrap_or_default();
                        let as_short = || name::short_units(&short, case, self.options.code_page);
                        let (start, units, short) = match long {
                            Some((start, units)) => (start, units, Some(short)),
                            None => (slot, as_short(), None),
                        };
                        let slots = slot.saturating_sub(start).saturating_add(1);
                        Seen::File(Found { slot: start, slots, at: place(slot)?, units, short, entries: &set })
                    }
                }
            };
            if visit(seen).is_break() {
                return Ok(slot);
            }
            slot = slot.saturating_add(used);
        }
        Ok(slot)
    }

    /// The name by which a file is listed.
    pub(super) fn listed(&self, found: &Found<'_>) -> Vec<u8> {
        utf16::shown(&found.units)
            .or_else(|| utf16::shown(&name::short_units(&found.short?, 0, self.options.code_page)))
            .unwrap_or_else(|| utf16::instead(&found.units, found.at / 32))
    }
}

/// The pieces of a long name, which come before the entry they belong to, the last one first.
#[derive(Debug, Default)]
struct Long {
    start: u32,
    /// Number that the next piece must have; 0 when all are there.
    next: u8,
    sum: u8,
    /// The last piece first.
    pieces: Vec<[u16; 13]>,
}

impl Long {
    fn push(&mut self, slot: u32, raw: &Raw) {
        let (number, sum) = (byte(raw, 0).unwrap_or_default(), byte(raw, 13).unwrap_or_default());
        if number & 0x40 != 0 {
            *self = Self { start: slot, next: number & 0x3f, sum, pieces: Vec::new() };
        }
        let number = number & 0x3f;
        if number == 0 || number > 20 || number != self.next || sum != self.sum {
            *self = Self::default();
            return;
        }
        let mut piece = [0; 13];
        piece.iter_mut().zip(entry::long_units(raw)).for_each(|(to, unit)| *to = unit);
        self.pieces.push(piece);
        self.next = number.saturating_sub(1);
    }

    /// The name and its first entry, where it is whole and belongs to this short name.
    fn name(self, short: &Short) -> Option<(u32, Vec<u16>)> {
        if self.pieces.is_empty() || self.next != 0 || self.sum != name::checksum(short) {
            return None;
        }
        let units = self.pieces.iter().rev().flatten().copied().take_while(|unit| *unit != 0).collect::<Vec<_>>();
        (!units.is_empty() && units.len() <= name::NAME_UNITS_MAX).then_some((self.start, units))
    }
}

/// Where a file stands in its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub slot: u32,
    pub slots: u32,
    pub at: u64,
}

/// Names of a directory, and its room.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// In upper case.
    names: HashMap<Box<[u16]>, Position>,
    /// Short names of FAT, also those of files with long ones.
    shorts: HashSet<Short>,
    /// First entry and length of each run of entries that are not in use.
    gaps: BTreeMap<u32, u32>,
    /// The entry that ends the directory, or where there is no more room.
    pub end: u32,
}

impl Index {
    /// Of a whole directory.
    pub fn read(fat: &Fat, chain: &Chain) -> Result<Self> {
        let mut index = Self::default();
        let mut gaps: Vec<u32> = Vec::new();
        index.end = fat.scan(chain, 0, &mut |seen| {
            match seen {
                Seen::File(found) => {
                    let position = Position { slot: found.slot, slots: found.slots, at: found.at };
                    let short = found.short.or_else(|| found.entries.first().map(|entry| name::short_at(entry)));
                    let listed = fat.listed(&found);
                    let units = utf16::to_units(&listed).unwrap_or(found.units);
                    index.insert(
                        &fat.fold,
                        &units,
                        short.filter(|_| !fat.geometry.is_exfat()),
                        position,
                        fat.options.code_page,
                    );
                }
                Seen::Free(slot) => gaps.push(slot),
                Seen::Label(..) | Seen::Other(_) => {}
            }
            ControlFlow::Continue(())
        })?;
        gaps.iter().for_each(|slot| index.add_gap(*slot, 1));
        Ok(index)
    }

    /// Names that it holds.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Notes a file that was found; of two with one name the first one counts.
    pub fn insert(&mut self, fold: &Fold, units: &[u16], short: Option<Short>, position: Position, page: CodePage) {
        self.names.entry(fold.name(units).into()).or_insert(position);
        if let Some(short) = short {
            let units = fold.name(&name::short_units(&short, 0, page));
            self.names.entry(units.into()).or_insert(position);
            self.shorts.insert(short);
        }
    }

    /// Notes a file that was made; what had its name is about to lose it.
    pub fn put(&mut self, fold: &Fold, units: &[u16], short: Option<Short>, position: Position, page: CodePage) {
        self.names.remove(fold.name(units).as_slice());
        self.insert(fold, units, short, position, page);
    }

    pub fn find(&self, fold: &Fold, units: &[u16]) -> Option<Position> {
        self.names.get(fold.name(units).as_slice()).copied()
    }

    pub fn has_short(&self, short: &Short) -> bool {
        self.shorts.contains(short)
    }

    /// Forgets a file, whose entries are free now.
    pub fn remove(&mut self, names: &[Vec<u16>], short: Option<Short>, position: Position) {
        for name in names {
            if self.names.get(name.as_slice()) == Some(&position) {
                self.names.remove(name.as_slice());
            }
        }
        short.map(|short| self.shorts.remove(&short));
        self.add_gap(position.slot, position.slots);
    }

    fn add_gap(&mut self, slot: u32, slots: u32) {
        let (mut start, mut end) = (slot, slot.saturating_add(slots));
        if let Some((&before, &len)) = self.gaps.range(..slot).next_back()
            && before.saturating_add(len) == slot
        {
            start = before;
        }
        if let Some(len) = self.gaps.remove(&end) {
            end = end.saturating_add(len);
        }
        self.gaps.insert(start, end.saturating_sub(start));
    }

    /// Room for `slots` entries that lie in one sector of `sector` entries where they fit in one: in a gap, or `None`
    /// where there is none but at the end.
    pub fn gap(&self, slots: u32, sector: u32) -> Option<u32> {
        self.gaps.iter().find_map(|(&start, &len)| {
            let fit = within_sector(start, slots, sector);
            let end = start.saturating_add(len);
            (fit.saturating_add(slots) <= end).then_some(fit)
        })
    }

    /// Entries `slot` to `slot + slots` are in use from now on.
    pub fn take(&mut self, slot: u32, slots: u32) {
        let end = slot.saturating_add(slots);
        if let Some((&start, &len)) = self.gaps.range(..=slot).next_back() {
            let gap_end = start.saturating_add(len);
            if gap_end >= end {
                self.gaps.remove(&start);
                if start < slot {
                    self.gaps.insert(start, slot.saturating_sub(start));
                }
                if end < gap_end {
                    self.gaps.insert(end, gap_end.saturating_sub(end));
                }
            }
        }
    }

    /// Entries from `from` up to `slot` were marked as free, and the directory ends at `end`.
    pub fn extend(&mut self, from: u32, slot: u32, end: u32) {
        if slot > from {
            self.add_gap(from, slot.saturating_sub(from));
        }
        self.end = end;
    }
}

/// The first entry from `start` on from which `slots` entries lie in one sector, where so many fit in one.
pub(super) fn within_sector(start: u32, slots: u32, sector: u32) -> u32 {
    let into = start.checked_rem(sector).unwrap_or_default();
    if slots <= sector && into.saturating_add(slots) > sector {
        start.saturating_add(sector.saturating_sub(into))
    } else {
        start
    }
}
