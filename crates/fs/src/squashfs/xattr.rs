//! Extended attributes.
//!
//! ```text
//! table     pairs' start, 8 │ entries, 4 │ 0, 4 │ positions of metadata blocks, 8 each
//! entry     reference of the first pair, 8 │ pairs, 4 │ bytes, 4             512 in a metadata block
//!
//! pair      type, 2 │ name bytes, 2 │ name without its prefix │ value bytes, 4 │ value
//! ```
//! Bits 0 to 7 of the type name the prefix. Bit 8: the value is a reference to where bytes and value stand, so that files
//! share them.

use block::{Error, Kind, Result};

use super::corrupt::Corrupt;
use super::metadata::{Medium, Place};
use crate::{NAME_BYTES_MAX, XATTR_BYTES_MAX};
use block::bytes::{le_u16, le_u32, le_u64};

/// By the lower byte of a type. The kernel knows no other.
const PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
const OUT_OF_LINE: u16 = 1 << 8;
const ENTRY_BYTES: usize = 16;
const TABLE_HEAD_BYTES: u64 = 16;
/// The most attributes of one file: as many as fit the kernel's XATTR_LIST_MAX with names of one letter.
const PAIRS_MAX: u32 = 65536 / 7;

/// Where attributes are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pairs: u64,
    entries: u32,
    list: u64,
}

/// An attribute.
struct Pair {
    name: Vec<u8>,
    out_of_line: bool,
    /// Where the value's length stands.
    value: Place,
}

impl Table {
    /// Reads its head.
    ///
    /// # Errors
    /// `Corrupt`; the failure of the device.
    pub fn read(medium: &Medium, at: u64) -> Result<Self> {
        if !medium.is_inside(at, TABLE_HEAD_BYTES) {
            return Err(Corrupt::Attribute.at(format!("table of attributes at {at}")));
        }
        let mut head = [0; 16];
        medium.device.read_at(&mut head, at)?;
        Ok(Self {
            pairs: le_u64(&head, 0).unwrap_or_default(),
            entries: le_u32(&head, 8).unwrap_or_default(),
            list: at.saturating_add(TABLE_HEAD_BYTES),
        })
    }

    /// The names of the attributes with that number.
    ///
    /// # Errors
    /// `Corrupt`; the failure of the device.
    pub fn names(&self, medium: &Medium, number: u32) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        self.pairs(medium, number, |pair| {
            names.push(pair.name);
            true
        })?;
        Ok(names)
    }

    /// The value of the one of that name.
    ///
    /// # Errors
    /// [`Kind::NoAttribute`]; `Corrupt`; the failure of the device.
    pub fn value(&self, medium: &Medium, number: u32, name: &[u8]) -> Result<Vec<u8>> {
        let mut found = None;
        self.pairs(medium, number, |pair| {
            let other = pair.name != name;
            if !other {
                found = Some(pair);
            }
            other
        })?;
        let pair = found.ok_or_else(|| no_attribute(name))?;
        let broken = || Corrupt::Attribute.at(format!("attribute \"{}\"", name.escape_ascii()));
        let mut reader = medium.reader(pair.value);
        if pair.out_of_line {
            let _ = reader.le_u32()?;
            let reference = u64::from_le_bytes(reader.array()?);
            reader = medium.reader(Place::new(self.pairs, reference).ok_or_else(broken)?);
        }
        let len = usize::try_from(reader.le_u32()?).ok().filter(|len| *len <= XATTR_BYTES_MAX).ok_or_else(broken)?;
        let mut value = vec![0; len];
        reader.read(&mut value)?;
        Ok(value)
    }

    /// Passes the attributes to `visit` until it says no.
    fn pairs(&self, medium: &Medium, number: u32, mut visit: impl FnMut(Pair) -> bool) -> Result<()> {
        let broken = || Corrupt::Attribute.at(format!("attributes number {number}"));
        if number >= self.entries {
            return Err(broken());
        }
        let place = medium.table_entry(self.list, number, ENTRY_BYTES, Corrupt::Attribute)?;
        let entry: [u8; ENTRY_BYTES] = medium.reader(place).array()?;
        let reference = le_u64(&entry, 0).unwrap_or_default();
        let count = le_u32(&entry, 8).unwrap_or_default();
        if count > PAIRS_MAX {
            return Err(broken());
        }
        let mut reader = medium.reader(Place::new(self.pairs, reference).ok_or_else(broken)?);
        for _ in 0..count {
            let head: [u8; 4] = reader.array()?;
            let kind = le_u16(&head, 0).unwrap_or_default();
            let prefix = PREFIXES.get(usize::from(kind & 0xFF)).copied();
            let start = prefix.map_or(0, <[u8]>::len);
            let end = start.saturating_add(usize::from(le_u16(&head, 2).unwrap_or_default()));
            if end > NAME_BYTES_MAX || end == start {
                return Err(broken());
            }
            let mut name = prefix.unwrap_or_default().to_vec();
            name.resize(end, 0);
            reader.read(name.get_mut(start..).unwrap_or_default())?;
            if name.contains(&0) {
                return Err(broken());
            }
            let value = reader.place();
            // As the kernel does, those of an unknown prefix are passed over.
            if prefix.is_some() && !visit(Pair { name, out_of_line: kind & OUT_OF_LINE != 0, value }) {
                return Ok(());
            }
            let len = usize::try_from(reader.le_u32()?).ok().filter(|len| *len <= XATTR_BYTES_MAX);
            reader.skip(len.ok_or_else(broken)?)?;
        }
        Ok(())
    }
}

/// That there is no attribute of that name.
pub(super) fn no_attribute(name: &[u8]) -> Error {
    Error::new(Kind::NoAttribute, format!("attribute \"{}\"", name.escape_ascii()))
}
