//! Directories: an index of file names, whose upper part stands in the record and the rest in blocks.
//!
//! ```text
//! index root    kind, 4 │ order, 4 │ 8 bytes of a block, 4 │ 12 │ 16 header
//! index block   "INDX" │ 4 fixups │ 16 its own place, 8 │ 24 header
//! header        first entry at, 4 │ end of the entries, 4 │ allocated, 4 │ flags, 4            places from the header on
//! entry         file, 8 │ bytes, 2 │ 10 bytes of the name, 2 │ 12 flags, 2 (2: the last) │ 16 a file name
//! ```
//! A bit of the bitmap says of each block whether it is in use. A directory is read as a whole, once. Short names beside
//! longer ones, and the volume's own files (the first sixteen records), are left out.

use std::ops::ControlFlow;

use block::bytes::{byte, has, le_u16, le_u32, le_u64};
use block::{Error, Kind, Result};

use super::corrupt::Corrupt;
use super::file::{Index, NAMESPACE_DOS, NUMBER_MASK};
use super::record::undo_fixups;
use super::stream::Medium;
use crate::{Cursor, Entry, FileType, Inode, utf16};

/// The longest directory, bytes: about a million files.
const DIRECTORY_BYTES_MAX: u64 = 256 << 20;
/// Bytes of a block, at most.
const BLOCK_BYTES_MAX: u32 = 64 << 10;
/// The first record that is not the volume's own.
const FIRST_USER_RECORD: u64 = 16;
const FLAG_LAST: u16 = 2;
const DOS_SYSTEM: u32 = 4;
const DOS_REPARSE_POINT: u32 = 0x400;
const DOS_DIRECTORY: u32 = 0x1000_0000;

/// The entries of a directory, by name.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// All names, one behind the other.
    text: Vec<u8>,
    entries: Vec<Name>,
}

#[derive(Debug, Clone, Copy)]
struct Name {
    start: u32,
    len: u8,
    file_type: Option<FileType>,
    inode: Inode,
}

impl Names {
    /// Reads a directory.
    ///
    /// # Errors
    /// [`Kind::Limit`]; `Corrupt`; the failure of the device.
    pub fn read(medium: &Medium, index: &Index) -> Result<Self> {
        let broken = || Corrupt::Index.at("index of a directory");
        let mut names = Self::default();
        names.add(index.root.get(16..).ok_or_else(broken)?).ok_or_else(broken)?;
        if let Some(blocks) = &index.blocks {
            let bitmap = index.bitmap.as_ref().ok_or_else(broken)?;
            let block_bytes = le_u32(&index.root, 8).filter(|bytes| bytes.is_power_of_two());
            let block_bytes = block_bytes.filter(|bytes| (512..=BLOCK_BYTES_MAX).contains(bytes)).ok_or_else(broken)?;
            let count = blocks.size() >> block_bytes.trailing_zeros();
            if blocks.size() > DIRECTORY_BYTES_MAX {
                return Err(Error::new(Kind::Limit, format!("directory of {} bytes", blocks.size())));
            }
            let mut used = vec![0; usize::try_from(count.div_ceil(8)).unwrap_or(0)];
            bitmap.read(medium, &mut used, 0)?;
            let mut block = vec![0; block_bytes as usize];
            for number in 0..count {
                let bits = usize::try_from(number >> 3).ok().and_then(|at| byte(&used, at)).unwrap_or(0);
                if bits & 1_u8.wrapping_shl((number & 7) as u32) == 0 {
                    continue;
                }
                blocks.read(medium, &mut block, number.saturating_mul(u64::from(block_bytes)))?;
                let broken = || Corrupt::Index.at(format!("block {number} of a directory"));
                undo_fixups(&mut block).filter(|()| has(&block, 0, b"INDX")).ok_or_else(broken)?;
                names.add(block.get(24..).ok_or_else(broken)?).ok_or_else(broken)?;
            }
        }
        names.sort();
        Ok(names)
    }

    /// Adds the entries behind a header. `None` where one leaves them.
    fn add(&mut self, header: &[u8]) -> Option<()> {
        let (start, end) = (usize::try_from(le_u32(header, 0)?).ok()?, usize::try_from(le_u32(header, 4)?).ok()?);
        let mut rest = header.get(start..end)?;
        loop {
            let (len, name_bytes) = (usize::from(le_u16(rest, 8)?), usize::from(le_u16(rest, 10)?));
            if le_u16(rest, 12)? & FLAG_LAST != 0 {
                return Some(());
            }
            let entry = rest.get(..len).filter(|entry| entry.len() >= 16)?;
            let reference = le_u64(entry, 0)?;
            self.push(reference, entry.get(16..)?.get(..name_bytes)?)?;
            rest = rest.get(len..)?;
        }
    }

    fn push(&mut self, reference: u64, name: &[u8]) -> Option<()> {
        let letters = usize::from(byte(name, 64)?);
        let letters = name.get(66..)?.get(..letters.checked_mul(2)?)?;
        if byte(name, 65)? == NAMESPACE_DOS || reference & NUMBER_MASK < FIRST_USER_RECORD {
            return Some(());
        }
        let units = utf16::units(letters);
        let shown = utf16::shown(&units);
        let shown = shown.unwrap_or_else(|| utf16::instead(&units, u64::from(crc32c::crc32c(letters))));
        let dos = le_u32(name, 56)?;
        // What a reparse point or a system file is stands in its record alone.
        let file_type = match dos {
            _ if dos & (DOS_REPARSE_POINT | DOS_SYSTEM) != 0 => None,
            _ if dos & DOS_DIRECTORY != 0 => Some(FileType::Directory),
            _ => None,
        };
        let (start, len) = (u32::try_from(self.text.len()).ok()?, u8::try_from(shown.len()).ok()?);
        self.text.extend_from_slice(&shown);
        self.entries.push(Name { start, len, file_type, inode: Inode(reference) });
        Some(())
    }

    fn text(text: &[u8], name: Name) -> &[u8] {
        let start = usize::try_from(name.start).unwrap_or(usize::MAX);
        text.get(start..).and_then(|rest| rest.get(..usize::from(name.len))).unwrap_or_default()
    }

    /// Puts the entries in order; of several with one name, one stays.
    fn sort(&mut self) {
        let text = &self.text;
        self.entries.sort_by(|one, other| Self::text(text, *one).cmp(Self::text(text, *other)));
        self.entries.dedup_by(|one, other| Self::text(text, *one) == Self::text(text, *other));
        self.entries.shrink_to_fit();
    }

    /// What it takes, about, bytes.
    pub fn weight(&self) -> usize {
        self.text.capacity().saturating_add(self.entries.capacity().saturating_mul(size_of::<Name>()))
    }

    /// The file of a name.
    pub fn find(&self, name: &[u8]) -> Option<Inode> {
        let at = self.entries.binary_search_by(|entry| Self::text(&self.text, *entry).cmp(name)).ok()?;
        self.entries.get(at).map(|entry| entry.inode)
    }

    /// Shows `visit` the entries after `from`.
    pub fn list(&self, from: Cursor, visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>) {
        let first = usize::try_from(from.0).unwrap_or(usize::MAX);
        for (number, entry) in self.entries.iter().enumerate().skip(first) {
            let next = Cursor((number as u64).saturating_add(1));
            let name = Self::text(&self.text, *entry);
            if visit(Entry { name, inode: entry.inode, file_type: entry.file_type, next }).is_break() {
                return;
            }
        }
    }
}
