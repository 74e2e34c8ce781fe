//! Directories: entries of files, in the order in which they were made.
//!
//! ```text
//! tag, 16 │ 16 version, 2 │ 18 flags │ 19 name bytes │ 20 file entry, 16 │ 36 extension bytes, 2 │ 38 extension │ name
//! ```
//! Each is filled to a multiple of 4. Flags: bit 0, hidden (left out, as the kernel does); bit 1, a directory; bit 2,
//! deleted; bit 3, the parent. A directory is read as a whole, once.

use std::collections::HashMap;
use std::ops::ControlFlow;

use block::bytes::{byte, le_u16};
use block::{Error, Kind, Result};

use super::corrupt::Corrupt;
use super::descriptor::{self, tag};
use super::file_entry::Entry as FileEntry;
use super::volume::Medium;
use super::{inode, name};
use crate::{Cursor, Entry, FileType, Inode};

/// The longest directory, bytes.
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;
const HEAD_BYTES: usize = 38;
const FLAG_HIDDEN: u8 = 1;
const FLAG_DIRECTORY: u8 = 2;
const FLAG_DELETED: u8 = 4;
const FLAG_PARENT: u8 = 8;

/// The entries of a directory.
#[derive(Debug)]
pub(super) struct Names {
    entries: Vec<(Vec<u8>, Inode, bool)>,
    by_name: HashMap<Vec<u8>, usize>,
}

impl Names {
    /// Reads a directory.
    ///
    /// # Errors
    /// [`Kind::Limit`]; `Corrupt`; the failure of the device.
    pub fn read(medium: &Medium, entry: &FileEntry) -> Result<Self> {
        let size = entry.size;
        if size > DIRECTORY_BYTES_MAX {
            return Err(Error::new(Kind::Limit, format!("directory of {size} bytes")));
        }
        if size > medium.device.size() {
            return Err(Corrupt::Allocation.at(format!("directory of {size} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        entry.content.read(medium, size, &mut bytes, 0)?;
        let mut names = Self { entries: Vec::new(), by_name: HashMap::new() };
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= HEAD_BYTES) {
            let broken = || Corrupt::DirectoryEntry.at(format!("byte {at} of a directory of {size}"));
            let len = names.add(rest).ok_or_else(broken)?;
            at = at.saturating_add(len);
        }
        Ok(names)
    }

    /// Adds the entry that `bytes` begin with, and says how long it is.
    fn add(&mut self, bytes: &[u8]) -> Option<usize> {
        let flags = byte(bytes, 18)?;
        let name_bytes = usize::from(byte(bytes, 19)?);
        let extension = usize::from(le_u16(bytes, 36)?);
        let start = HEAD_BYTES.checked_add(extension)?;
        let end = start.checked_add(name_bytes)?;
        let entry = bytes.get(..end)?;
        if descriptor::kind(entry) != Some(tag::FILE_IDENTIFIER) {
            return None;
        }
        let len = end.checked_next_multiple_of(4)?;
        if flags & (FLAG_HIDDEN | FLAG_DELETED | FLAG_PARENT) != 0 {
            return Some(len);
        }
        let (_, address) = descriptor::long(entry, 20)?;
        let name = name::file_name(entry.get(start..)?)?;
        // Of two with one name, the first is found.
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.by_name.entry(name.clone()) {
            vacant.insert(self.entries.len());
            self.entries.push((name, inode(address), flags & FLAG_DIRECTORY != 0));
        }
        Some(len)
    }

    /// What it takes, about.
    pub fn bytes(&self) -> usize {
        self.entries
            .iter()
            .fold(0, |sum, (name, ..)| sum.saturating_add(name.len().saturating_mul(2)).saturating_add(120))
    }

    /// The file of a name.
    pub fn find(&self, name: &[u8]) -> Option<Inode> {
        let (_, inode, _) = self.entries.get(*self.by_name.get(name)?)?;
        Some(*inode)
    }

    /// Shows `visit` the entries after `from`.
    pub fn list(&self, from: Cursor, visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>) {
        let first = usize::try_from(from.0).unwrap_or(usize::MAX);
        for (number, (name, inode, directory)) in self.entries.iter().enumerate().skip(first) {
            let next = Cursor((number as u64).saturating_add(1));
            let file_type = directory.then_some(FileType::Directory);
            if visit(Entry { name, inode: *inode, file_type, next }).is_break() {
                return;
            }
        }
    }
}
