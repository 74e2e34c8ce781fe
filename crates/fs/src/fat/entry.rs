//! What a directory knows of a file: one entry of 32 bytes and those of its long name (FAT), or a set of entries (exFAT).
//!
//! ```text
//! FAT    0 short name, 11 │ 11 attributes │ 12 case │ 13 hundredths │ 14 made: time, date │ 18 read: date
//!        20 cluster, upper half │ 22 changed: time, date │ 26 cluster, lower half │ 28 size, 4
//! long   0 number, 0x40 on the last │ 1 five units │ 11 0x0F │ 13 checksum │ 14 six units │ 28 two units
//! exFAT  0 0x85 │ 1 entries that follow │ 2 checksum, 2 │ 4 attributes, 2 │ 8 made │ 12 changed │ 16 read, 4 each
//!        20 hundredths made, changed │ 22 zones made, changed, read
//!        0 0xC0 │ 1 flags: 1 has clusters, 2 they are neighbours │ 3 units of the name │ 4 hash of the name, 2
//!          8 valid bytes, 8 │ 20 cluster, 4 │ 24 bytes, 8
//!        0 0xC1 │ 2 fifteen units                          as many as the name needs
//! ```

use block::bytes::{byte, le_u16, le_u32, le_u64};

use super::name::{Fold, Short, checksum, short_at};
use super::time::Stamp;
use crate::Time;

/// Bytes of an entry.
pub(super) const ENTRY_BYTES: u64 = 32;
pub(super) type Raw = [u8; 32];

/// Attributes, the same in both.
pub(super) const READ_ONLY: u16 = 0x01;
pub(super) const LABEL: u16 = 0x08;
pub(super) const DIRECTORY: u16 = 0x10;
pub(super) const ARCHIVE: u16 = 0x20;
/// All four lower bits: a piece of a long name.
pub(super) const LONG_NAME: u16 = 0x0f;
/// An entry of FAT that is not in use.
pub(super) const DELETED: u8 = 0xe5;
/// Types of exFAT entries.
pub(super) const FILE: u8 = 0x85;
pub(super) const STREAM: u8 = 0xc0;
pub(super) const NAME: u8 = 0xc1;
pub(super) const BITMAP: u8 = 0x81;
pub(super) const UP_CASE: u8 = 0x82;
pub(super) const VOLUME_LABEL: u8 = 0x83;
/// A file of exFAT that is not in use.
pub(super) const UNUSED: u8 = 0x05;
/// Units of a name in one entry.
const LONG_UNITS: usize = 13;
const NAME_UNITS: usize = 15;
/// Entries of exFAT that may follow the first one of a set.
pub(super) const SECONDARIES_MAX: u8 = 18;
/// That exFAT clusters may be had, and that they are neighbours.
const POSSIBLE: u8 = 1;
const CONTIGUOUS: u8 = 2;
/// That a zone is given: UTC itself.
const ZONE_UTC: u8 = 0x80;

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub attributes: u16,
    /// 0: none.
    pub first: u32,
    /// Bytes; 0 for a directory of FAT.
    pub size: u64,
    /// Bytes that were written; those behind them read as zero.
    pub valid: u64,
    /// Whether the clusters are neighbours, and the table does not say so.
    pub contiguous: bool,
    pub modified: Time,
    pub accessed: Time,
    pub created: Time,
}

impl Record {
    pub fn is_directory(&self) -> bool {
        self.attributes & DIRECTORY != 0
    }

    /// An empty file, or a directory, made now.
    pub fn new(attributes: u16, now: Time) -> Self {
        let (modified, accessed, created) = (now, now, now);
        Self { attributes, first: 0, size: 0, valid: 0, contiguous: false, modified, accessed, created }
    }
}

/// The entries that hold a [`Record`], and where they are on the device; nowhere for a file that was removed and is still
/// in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Set {
    pub places: Vec<u64>,
    pub entries: Vec<Raw>,
    pub exfat: bool,
}

fn put<const N: usize>(entry: &mut Raw, at: usize, bytes: [u8; N]) {
    entry.iter_mut().skip(at).zip(bytes).for_each(|(to, byte)| *to = byte);
}

impl Set {
    fn entry(&self, index: usize) -> &[u8] {
        self.entries.get(index).map_or(&[], |entry| entry.as_slice())
    }

    /// What it says; `None` where it is not whole.
    pub fn record(&self, fat32: bool) -> Option<Record> {
        if !self.exfat {
            let entry = self.entry(0);
            let (attributes, size) = (u16::from(byte(entry, 11)?), u64::from(le_u32(entry, 28)?));
            let stamp = |time: u16, date: u16, hundredths| Stamp { date, time, hundredths }.to_time();
            let upper = if fat32 { le_u16(entry, 20)? } else { 0 };
            return Some(Record {
                attributes,
                first: u32::from(upper) << 16 | u32::from(le_u16(entry, 26)?),
                size: if attributes & DIRECTORY == 0 { size } else { 0 },
                valid: if attributes & DIRECTORY == 0 { size } else { 0 },
                contiguous: false,
                modified: stamp(le_u16(entry, 22)?, le_u16(entry, 24)?, 0),
                accessed: stamp(0, le_u16(entry, 18)?, 0),
                created: stamp(le_u16(entry, 14)?, le_u16(entry, 16)?, byte(entry, 13)?),
            });
        }
        let (file, stream) = (self.entry(0), self.entry(1));
        if byte(stream, 0)? != STREAM {
            return None;
        }
        let flags = byte(stream, 1)?;
        let (size, valid) = (le_u64(stream, 24)?, le_u64(stream, 8)?);
        let time = |at, hundredths: Option<usize>, zone| {
            let hundredths = hundredths.map_or(Some(0), |at| byte(file, at))?;
            let time = Stamp::of_word(le_u32(file, at)?, hundredths).to_time();
            let zone = byte(file, zone)?;
            // Seven bits with a sign, in quarters of an hour.
            let quarters = if zone & ZONE_UTC == 0 { 0 } else { i64::from((zone << 1).cast_signed() >> 1) };
            Some(Time { seconds: time.seconds.saturating_sub(quarters.saturating_mul(900)), ..time })
        };
        Some(Record {
            attributes: le_u16(file, 4)?,
            first: if flags & POSSIBLE == 0 { 0 } else { le_u32(stream, 20)? },
            size,
            valid: valid.min(size),
            contiguous: flags & (POSSIBLE | CONTIGUOUS) == POSSIBLE | CONTIGUOUS,
            modified: time(12, Some(21), 23)?,
            accessed: time(16, None, 24)?,
            created: time(8, Some(20), 22)?,
        })
    }

    /// Makes it say what has changed from `old` to `new`, and nothing else.
    pub fn update(&mut self, old: &Record, new: &Record, fat32: bool) {
        if !self.exfat {
            let Some(entry) = self.entries.first_mut() else { return };
            put(entry, 11, [new.attributes as u8]);
            put(entry, 26, (new.first as u16).to_le_bytes());
            if fat32 {
                put(entry, 20, ((new.first >> 16) as u16).to_le_bytes());
            }
            if !new.is_directory() {
                put(entry, 28, (new.size as u32).to_le_bytes());
            }
            if old.modified != new.modified {
                let stamp = Stamp::of(new.modified);
                put(entry, 22, stamp.time.to_le_bytes());
                put(entry, 24, stamp.date.to_le_bytes());
            }
            if old.accessed != new.accessed {
                put(entry, 18, Stamp::of(new.accessed).date.to_le_bytes());
            }
            if old.created != new.created {
                let stamp = Stamp::of(new.created);
                put(entry, 13, [stamp.hundredths]);
                put(entry, 14, stamp.time.to_le_bytes());
                put(entry, 16, stamp.date.to_le_bytes());
            }
            return;
        }
        if let [file, stream, ..] = self.entries.as_mut_slice() {
            put(file, 4, new.attributes.to_le_bytes());
            let mut time = |old: Time, new: Time, at, hundredths: Option<usize>, zone| {
                if old != new {
                    let stamp = Stamp::of(new);
                    put(file, at, stamp.word().to_le_bytes());
                    put(file, zone, [ZONE_UTC]);
                    if let Some(at) = hundredths {
                        put(file, at, [stamp.hundredths]);
                    }
                }
            };
            time(old.modified, new.modified, 12, Some(21), 23);
            time(old.accessed, new.accessed, 16, None, 24);
            time(old.created, new.created, 8, Some(20), 22);
            let neighbours = if new.contiguous && new.first > 0 { CONTIGUOUS } else { 0 };
            put(stream, 1, [POSSIBLE | neighbours]);
            put(stream, 8, new.valid.to_le_bytes());
            put(stream, 20, new.first.to_le_bytes());
            put(stream, 24, new.size.to_le_bytes());
        }
        self.seal();
    }

    /// Computes the checksum of a set of exFAT.
    fn seal(&mut self) {
        let sum = set_checksum(&self.entries);
        if let Some(first) = self.entries.first_mut() {
            put(first, 2, sum.to_le_bytes());
        }
    }
}

/// The checksum over a set of exFAT entries, without itself.
fn set_checksum(entries: &[Raw]) -> u16 {
    let bytes = entries.iter().flatten().enumerate().filter(|(at, _)| *at != 2 && *at != 3);
    bytes.fold(0_u16, |sum, (_, byte)| sum.rotate_right(1).wrapping_add(u16::from(*byte)))
}

/// The hash of a name of exFAT, in upper case.
fn name_hash(upper: &[u16]) -> u16 {
    let bytes = upper.iter().flat_map(|unit| unit.to_le_bytes());
    bytes.fold(0_u16, |hash, byte| hash.rotate_right(1).wrapping_add(u16::from(byte)))
}

/// The entries of a file of FAT, in the order of the directory; the last one is that of the short name.
pub(super) fn fat_entries(units: &[u16], short: &Short, long: bool, record: &Record, fat32: bool) -> Vec<Raw> {
    let mut main = [0; 32];
    main.iter_mut().zip(short).for_each(|(to, byte)| *to = *byte);
    let mut set = Set { places: Vec::new(), entries: vec![main], exfat: false };
    let blank = Record { modified: Time::default(), accessed: Time::default(), created: Time::default(), ..*record };
    set.update(&blank, record, fat32);
    if !long {
        return set.entries;
    }
    let sum = checksum(short);
    let pieces: Vec<&[u16]> = units.chunks(LONG_UNITS).collect();
    let mut entries = Vec::new();
    for (index, piece) in pieces.iter().enumerate().rev() {
        let last = if index.saturating_add(1) == pieces.len() { 0x40 } else { 0 };
        let mut entry: Raw = [0xff; 32];
        put(&mut entry, 0, [(index as u8).saturating_add(1) | last]);
        put(&mut entry, 11, [LONG_NAME as u8, 0, sum]);
        put(&mut entry, 26, [0, 0]);
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
        // A zero behind a name that leaves room for it.
        for (at, unit) in places.zip(piece.iter().copied().chain([0])) {
            put(&mut entry, at, unit.to_le_bytes());
        }
        entries.push(entry);
    }
    entries.extend(set.entries);
    entries
}

/// The entries of a file of exFAT.
pub(super) fn exfat_entries(units: &[u16], fold: &Fold, record: &Record) -> Vec<Raw> {
    let pieces = units.chunks(NAME_UNITS);
    let (mut file, mut stream): (Raw, Raw) = ([0; 32], [0; 32]);
    put(&mut file, 0, [FILE, (pieces.len() as u8).saturating_add(1)]);
    put(&mut stream, 0, [STREAM, POSSIBLE, 0, units.len() as u8]);
    put(&mut stream, 4, name_hash(&fold.name(units)).to_le_bytes());
    let mut entries = vec![file, stream];
    for piece in pieces {
        let mut entry: Raw = [0; 32];
        put(&mut entry, 0, [NAME]);
        for (at, unit) in (2..32).step_by(2).zip(piece) {
            put(&mut entry, at, unit.to_le_bytes());
        }
        entries.push(entry);
    }
    let mut set = Set { places: Vec::new(), entries, exfat: true };
    let blank = Record { modified: Time::default(), accessed: Time::default(), created: Time::default(), ..*record };
    set.update(&blank, record, false);
    set.entries
}

/// The units of a long name that one entry holds, with the zero behind it and what follows.
pub(super) fn long_units(entry: &[u8]) -> impl Iterator<Item = u16> {
    let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
    places.filter_map(|at| le_u16(entry, at))
}

/// The name that the entries of an exFAT set hold; `None` where they are not whole.
pub(super) fn exfat_name(entries: &[Raw]) -> Option<Vec<u16>> {
    let wanted = usize::from(byte(entries.get(1)?, 3)?);
    let names = entries.iter().skip(2).take_while(|entry| entry.first() == Some(&NAME));
    let units: Vec<u16> =
        names.flat_map(|entry| (2..32).step_by(2).filter_map(|at| le_u16(entry, at))).take(wanted).collect();
    (units.len() == wanted && wanted > 0).then_some(units)
}

/// An entry of FAT that is `.` or `..`.
pub(super) fn dots(name: &[u8], first: u32, record: &Record, fat32: bool) -> Raw {
    let mut short = [b' '; 11];
    short.iter_mut().zip(name).for_each(|(to, byte)| *to = *byte);
    let record = Record { attributes: DIRECTORY, first, ..*record };
    fat_entries(&[], &short, false, &record, fat32).pop().unwrap_or_default()
}

/// Whether an entry of FAT is `.` or `..`.
pub(super) fn is_dots(entry: &[u8]) -> bool {
    let short = short_at(entry);
    short == *b".          " || short == *b"..         "
}
