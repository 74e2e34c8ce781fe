//! Directories.
//!
//! ```text
//! block    entries │ names, one behind the other; the last one ends with the block, or with NUL
//! entry    inode, 8 │ where the name begins in the block, 2 │ type, 1 │ 0, 1
//! ```
//! The first name's place says how many entries there are. Entries stand in the order of their names' bytes, over all
//! blocks, `.` and `..` among them. A cursor is the number of a block, and below 16 bits that of the entry behind the last.

use std::ops::ControlFlow;

use block::Result;
use block::bytes::{byte, le_u16, le_u64};

use super::content::File;
use super::corrupt::Corrupt;
use super::medium::Medium;
use crate::path::is_name;
use crate::{Cursor, Entry, FileType, Inode};

const ENTRY_BYTES: usize = 12;
const CURSOR_BITS: u32 = 16;

/// A block that was read.
struct Block {
    bytes: Vec<u8>,
    entries: usize,
}

impl Block {
    fn read(medium: &Medium, file: &File, number: u64) -> Result<Self> {
        let broken = || file.broken(Corrupt::DirectoryBlock, number);
        let log = u32::from(medium.superblock.block_log);
        let start = number.checked_shl(log).filter(|start| *start < file.size).ok_or_else(broken)?;
        let len = file.size.saturating_sub(start).min(medium.superblock.block_bytes());
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| broken())?];
        file.read(medium, &mut bytes, start)?;
        let first = usize::from(le_u16(&bytes, 8).ok_or_else(broken)?);
        if first < ENTRY_BYTES || first % ENTRY_BYTES != 0 || first > bytes.len() {
            return Err(broken());
        }
        Ok(Self { bytes, entries: first / ENTRY_BYTES })
    }

    /// The name of entry `number`; `None` where it leaves the block.
    fn name(&self, number: usize) -> Option<&[u8]> {
        let at = number.checked_mul(ENTRY_BYTES)?;
        let start = usize::from(le_u16(&self.bytes, at.checked_add(8)?)?);
        let next = number.checked_add(1)?;
        if next < self.entries {
            let end = usize::from(le_u16(&self.bytes, at.checked_add(ENTRY_BYTES)?.checked_add(8)?)?);
            return self.bytes.get(start..end);
        }
        let rest = self.bytes.get(start..)?;
        rest.get(..rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len()))
    }

    fn inode(&self, number: usize) -> Option<Inode> {
        le_u64(&self.bytes, number.checked_mul(ENTRY_BYTES)?).map(Inode)
    }

    /// The type of entry `number`: none for the number that says so, and for one that does not exist an error.
    fn file_type(&self, number: usize) -> Option<Option<FileType>> {
        Some(match byte(&self.bytes, number.checked_mul(ENTRY_BYTES)?.checked_add(10)?)? {
            0 => None,
            number => Some(FileType::of_entry(number)?),
        })
    }
}

fn blocks(medium: &Medium, file: &File) -> u64 {
    file.size.div_ceil(medium.superblock.block_bytes())
}

/// Shows `visit` the entries after `from`.
///
/// # Errors
/// `Corrupt`; the failure of the device.
pub(super) fn list(
    medium: &Medium,
    file: &File,
    from: Cursor,
    visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let first = from.0 >> CURSOR_BITS;
    let mut skip = usize::try_from(from.0 & ((1 << CURSOR_BITS) - 1)).unwrap_or(usize::MAX);
    for number in first..blocks(medium, file) {
        let block = Block::read(medium, file, number)?;
        for at in skip..block.entries {
            let broken = || file.broken(Corrupt::DirectoryEntry, number);
            let name = block.name(at).ok_or_else(broken)?;
            if matches!(name, b"." | b"..") {
                continue;
            }
            let (inode, file_type) = block.inode(at).zip(block.file_type(at)).ok_or_else(broken)?;
            if !is_name(name) {
                return Err(broken());
            }
            let next = Cursor((number << CURSOR_BITS) | (at as u64).saturating_add(1));
            if visit(Entry { name, inode, file_type, next }).is_break() {
                return Ok(());
            }
        }
        skip = 0;
    }
    Ok(())
}

/// The inode of a name.
///
/// # Errors
/// `Corrupt`; the failure of the device.
pub(super) fn find(medium: &Medium, file: &File, name: &[u8]) -> Result<Option<Inode>> {
    if !is_name(name) {
        return Ok(None);
    }
    // The last block whose first name is not behind the one wanted.
    let (mut low, mut high) = (0, blocks(medium, file));
    let mut found = None;
    while low < high {
        let middle = low.saturating_add(high.saturating_sub(low) / 2);
        let block = Block::read(medium, file, middle)?;
        let first = block.name(0).ok_or_else(|| file.broken(Corrupt::DirectoryEntry, middle))?;
        if first <= name {
            low = middle.saturating_add(1);
            found = Some((middle, block));
        } else {
            high = middle;
        }
    }
    let Some((number, block)) = found else { return Ok(None) };
    let (mut low, mut high) = (0, block.entries);
    while low < high {
        let middle = low.saturating_add(high.saturating_sub(low) / 2);
        let broken = || file.broken(Corrupt::DirectoryEntry, number);
        let other = block.name(middle).ok_or_else(broken)?;
        match other.cmp(name) {
            std::cmp::Ordering::Equal => return block.inode(middle).map(Some).ok_or_else(broken),
            std::cmp::Ordering::Less => low = middle.saturating_add(1),
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    Ok(None)
}
