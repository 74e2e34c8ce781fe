//! A directory record (ECMA-119, 9.1).
//!
//! ```text
//!  0 length of the record        1 length of the extended attribute record, blocks
//!  2 extent, block (LE, BE)     10 size of the data, bytes (LE, BE)
//! 18 date                       25 flags    26 unit and gap of interleaving
//! 28 number of the volume       32 length of the name
//! 33 name, a zero where its length is even, then the system use area up to the end
//! ```

use super::date;
use crate::Time;
use block::bytes::{byte, le_u32};

/// The longest record, bytes: its length is one byte.
pub(super) const RECORD_BYTES_MAX: usize = 255;
/// What stands before the name, bytes.
const HEAD_BYTES: usize = 33;

const DIRECTORY: u8 = 0x02;
const ASSOCIATED: u8 = 0x04;
const MULTI_EXTENT: u8 = 0x80;

/// A record, lent from the bytes that it was read from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    /// Length, bytes.
    pub len: usize,
    /// Where the data begin on the device, bytes.
    pub start: u64,
    /// How many bytes of data.
    pub size: u32,
    /// The one date that it has.
    pub time: Time,
    flags: u8,
    /// Whether the data lie in pieces with gaps between them.
    pub interleaved: bool,
    /// The name as recorded.
    pub name: &'a [u8],
    /// What other protocols put there.
    pub system_use: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record at the beginning of `bytes`, which may go on behind it; `None` where it cannot be one.
    pub fn parse(bytes: &'a [u8], block_bytes: u32) -> Option<Self> {
        let len = usize::from(byte(bytes, 0)?);
        let bytes = bytes.get(..len)?;
        let name_len = usize::from(byte(bytes, 32)?);
        let name_end = HEAD_BYTES.checked_add(name_len)?;
        let name = bytes.get(HEAD_BYTES..name_end)?;
        let system_use = bytes.get(name_end.checked_add(usize::from(name_len.is_multiple_of(2)))?..).unwrap_or(&[]);
        let block = u64::from(le_u32(bytes, 2)?).checked_add(u64::from(byte(bytes, 1)?))?;
        Some(Self {
            len,
            start: block.checked_mul(u64::from(block_bytes))?,
            size: le_u32(bytes, 10)?,
            time: date::short(bytes.get(18..)?),
            flags: byte(bytes, 25)?,
            interleaved: byte(bytes, 26)? != 0 || byte(bytes, 27)? != 0,
            name,
            system_use,
        })
    }

    pub fn is_directory(&self) -> bool {
        self.flags & DIRECTORY != 0
    }

    /// Whether it belongs to another file of the same name (a resource fork).
    pub fn is_associated(&self) -> bool {
        self.flags & ASSOCIATED != 0
    }

    /// Whether the next record is another section of the same file.
    pub fn is_continued(&self) -> bool {
        self.flags & MULTI_EXTENT != 0
    }

    /// Whether it is the first record of a directory, that stands for the directory itself.
    pub fn is_dot(&self) -> bool {
        self.name == [0]
    }

    /// Whether it is the second record of a directory, that stands for its parent.
    pub fn is_dot_dot(&self) -> bool {
        self.name == [1]
    }
}
