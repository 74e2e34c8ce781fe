//! Records of the master file table, and what protects them and index blocks from being torn.
//!
//! ```text
//! "FILE" │ 4 fixups at, 2 │ 6 how many, 2 │ 16 sequence number, 2 │ 18 names, 2 │ 20 first attribute, 2
//! 22 flags, 2 (1: in use, 2: a directory) │ 24 bytes in use, 4 │ 32 the base record, 8
//!
//! attribute   kind, 4 │ bytes, 4 │ 8 not inside │ 9 letters of its name │ 10 name at, 2 │ 12 flags, 2 │ 14 number, 2
//!   inside      16 bytes of its value, 4 │ 20 value at, 2
//!   outside     16 first cluster, 8 │ 24 last, 8 │ 32 mapping pairs at, 2 │ 34 clusters of a compression unit, log
//!               40 allocated bytes, 8 │ 48 bytes, 8 │ 56 initialized bytes, 8 │ 64 allocated to a compressed one, 8
//! ```
//! Of each 512 bytes the last two are the fixups' first, and their own ones stand in the fixups.

use block::bytes::{array, byte, has, le_u16, le_u32, le_u64};

/// What one fixup protects, bytes.
const STRIDE: usize = 512;

/// The kinds of attributes.
pub(super) mod kind {
    pub const STANDARD_INFORMATION: u32 = 0x10;
    pub const ATTRIBUTE_LIST: u32 = 0x20;
    pub const FILE_NAME: u32 = 0x30;
    pub const VOLUME_NAME: u32 = 0x60;
    pub const DATA: u32 = 0x80;
    pub const INDEX_ROOT: u32 = 0x90;
    pub const INDEX_ALLOCATION: u32 = 0xa0;
    pub const BITMAP: u32 = 0xb0;
    pub const REPARSE_POINT: u32 = 0xc0;
    pub const EXTENDED_ATTRIBUTES: u32 = 0xe0;
    pub const END: u32 = u32::MAX;
}

const FLAG_IN_USE: u16 = 1;
const FLAG_DIRECTORY: u16 = 2;

/// Puts back the last two bytes of each 512 of a record or an index block. `None` where it was not written whole, and
/// nothing is changed.
pub(crate) fn undo_fixups(bytes: &mut [u8]) -> Option<()> {
    let at = usize::from(le_u16(bytes, 4)?);
    let count = usize::from(le_u16(bytes, 6)?);
    if count != (bytes.len() / STRIDE).checked_add(1)? {
        return None;
    }
    let fixups = bytes.get(at..)?.get(..count.checked_mul(2)?)?.to_vec();
    let number: [u8; 2] = array(&fixups, 0)?;
    if !bytes.chunks_exact(STRIDE).all(|sector| sector.ends_with(&number)) {
        return None;
    }
    for (sector, own) in bytes.chunks_exact_mut(STRIDE).zip(fixups.chunks_exact(2).skip(1)) {
        sector.last_chunk_mut::<2>()?.copy_from_slice(own);
    }
    Some(())
}

/// A record, whose fixups are undone.
#[derive(Debug)]
pub(super) struct Record {
    bytes: Vec<u8>,
    pub sequence: u16,
    pub is_directory: bool,
    /// The reference of the record that this one belongs to; 0 for a base record.
    pub base: u64,
}

/// An attribute, as it stands in a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attribute<'a> {
    pub kind: u32,
    /// Letters of UTF-16, little-endian.
    pub name: &'a [u8],
    pub flags: u16,
    pub value: Value<'a>,
}

/// Where the value of an attribute is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Inside(&'a [u8]),
    /// From the cluster `first` of it on, as the mapping pairs say. The sizes count where `first` is 0.
    Outside {
        first: u64,
        unit_log: u8,
        allocated: u64,
        size: u64,
        initialized: u64,
        packed: Option<u64>,
        pairs: &'a [u8],
    },
}

impl Record {
    /// The record that is in use in these bytes, if one is.
    pub fn parse(mut bytes: Vec<u8>) -> Option<Self> {
        if !has(&bytes, 0, b"FILE") {
            return None;
        }
        undo_fixups(&mut bytes)?;
        let used = usize::try_from(le_u32(&bytes, 24)?).ok()?;
        if used > bytes.len() {
            return None;
        }
        let flags = le_u16(&bytes, 22)?;
        let (sequence, base) = (le_u16(&bytes, 16)?, le_u64(&bytes, 32)?);
        bytes.truncate(used);
        let is_directory = flags & FLAG_DIRECTORY != 0;
        (flags & FLAG_IN_USE != 0).then_some(Self { bytes, sequence, is_directory, base })
    }

    /// Shows `visit` each attribute. `None` where one leaves the record, or `visit` says so.
    pub fn attributes<'a>(&'a self, visit: &mut dyn FnMut(Attribute<'a>) -> Option<()>) -> Option<()> {
        let mut at = usize::from(le_u16(&self.bytes, 20)?);
        loop {
            let bytes = self.bytes.get(at..)?;
            if le_u32(bytes, 0)? == kind::END {
                return Some(());
            }
            let len = usize::try_from(le_u32(bytes, 4)?).ok().filter(|len| *len >= 24)?;
            visit(Attribute::parse(bytes.get(..len)?)?)?;
            at = at.checked_add(len)?;
        }
    }
}

impl<'a> Attribute<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let letters = usize::from(byte(bytes, 9)?);
        let name = bytes.get(usize::from(le_u16(bytes, 10)?)..).and_then(|rest| rest.get(..letters.checked_mul(2)?));
        let flags = le_u16(bytes, 12)?;
        let value = if byte(bytes, 8)? == 0 {
            let len = usize::try_from(le_u32(bytes, 16)?).ok()?;
            Value::Inside(bytes.get(usize::from(le_u16(bytes, 20)?)..)?.get(..len)?)
        } else {
            let pairs_at = usize::from(le_u16(bytes, 32)?);
            Value::Outside {
                first: le_u64(bytes, 16)?,
                unit_log: byte(bytes, 34)?,
                allocated: le_u64(bytes, 40)?,
                size: le_u64(bytes, 48)?,
                initialized: le_u64(bytes, 56)?,
                packed: (pairs_at >= 72).then(|| le_u64(bytes, 64)).flatten(),
                pairs: bytes.get(pairs_at..)?,
            }
        };
        Some(Self { kind: le_u32(bytes, 0)?, name: if letters == 0 { &[] } else { name? }, flags, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn torn(ends: [u8; 2]) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[4..8].copy_from_slice(&[48, 0, 3, 0]);
        bytes[48..54].copy_from_slice(&[7, 7, 1, 2, 3, 4]);
        bytes[510..512].copy_from_slice(&[7, 7]);
        bytes[1022..].copy_from_slice(&ends);
        bytes
    }

    #[test]
    fn fixups_are_undone_where_all_was_written() {
        let mut whole = torn([7, 7]);
        assert_eq!(undo_fixups(&mut whole), Some(()));
        assert_eq!((&whole[510..512], &whole[1022..]), (&[1, 2][..], &[3, 4][..]));
        let mut half = torn([6, 7]);
        assert_eq!(undo_fixups(&mut half), None);
        assert_eq!(half, torn([6, 7]));
        assert_eq!(undo_fixups(&mut [0; 6]), None);
        assert_eq!(undo_fixups(&mut [0xff; 512]), None);
    }
}
