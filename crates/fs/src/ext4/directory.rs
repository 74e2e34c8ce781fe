//! Directories: lists of entries in blocks, or inline in the inode.
//!
//! ```text
//! 0 inode   4 rec_len   6 name_len   7 file_type   8 name …       each block is filled by its entries' rec_len
//! 0 inode 0 4 rec_len 12 6 0         7 0xDE        8 checksum     the tail of a block (metadata_csum)
//! inline: the parent's inode number, then entries to the end of the inode's block area; those of `system.data` follow
//! ```
//! A directory with a hash tree reads the same: its nodes look like blocks without names.
//!
//! Specification: Documentation/filesystems/ext4/directory.rst of the kernel.

use std::ops::ControlFlow;
use std::sync::Arc;

use block::{Error, Kind, Result};

use super::checksum::crc32c;
use super::corrupt::Parsed;
use super::field::{byte, le16, le32, part};
use super::hash_tree::Search;
use super::inode::{BLOCK_BYTES, InodeRecord, flag};
use super::mapping::Place;
use super::superblock::{compat, incompat};
use super::{Corrupt, Ext4};
use crate::{Cursor, Entry, FileType, Inode};

/// An entry without a name, padded.
const ENTRY_BYTES_MIN: usize = 12;
/// A block's checksum in the shape of an entry.
const TAIL_BYTES: usize = 12;
/// Cursors from here on: names that fast commits added.
const ADDED: u64 = 1 << 62;

/// An entry as it is on disk; `inode` 0 is room that is free.
struct DiskEntry<'a> {
    inode: u32,
    record_bytes: usize,
    file_type: u8,
    name: &'a [u8],
}

/// Where a list of entries lies: its bytes, and the directory's byte that it begins with.
struct List<'a> {
    bytes: &'a [u8],
    base: u64,
}

impl Ext4 {
    /// That an inode is a directory whose names can be read.
    fn directory(&self, inode: &InodeRecord) -> Result<()> {
        if inode.file_type()? != FileType::Directory {
            return Err(Error::new(Kind::NotDirectory, format!("inode {}, no directory", inode.number)));
        }
        inode.readable()?;
        if inode.size.div_ceil(self.superblock.block_bytes.into()) > self.superblock.blocks {
            return Err(Corrupt::FileSize { inode: inode.number, bytes: inode.size }.into());
        }
        Ok(())
    }

    /// See [`crate::FileSystem::lookup`].
    pub(super) fn lookup_name(&self, directory: u64, name: &[u8]) -> Result<Option<Inode>> {
        let inode = self.inode(directory)?;
        self.directory(&inode)?;
        let found = match self.fast_commits.name(inode.number, name) {
            Some(known) => known,
            None if self.fast_commits.is_new_directory(inode.number) => None,
            None => match self.hash_tree_lookup(&inode, name)? {
                Search::Found(number) => Some(number),
                Search::Absent => None,
                Search::NoTree => self.linear_lookup(&inode, name)?,
            },
        };
        found.map(|number| self.inode_number(number.into()).map(|number| Inode(number.into()))).transpose()
    }

    fn linear_lookup(&self, inode: &InodeRecord, name: &[u8]) -> Result<Option<u32>> {
        let mut found = None;
        let _ = self.lists(inode, 0, &mut |list| {
            found = self.find_in(inode, list, name)?;
            Ok(if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(found)
    }

    /// The inode of `name` in the block of a directory.
    pub(super) fn find_in_block(&self, inode: &InodeRecord, bytes: &[u8], name: &[u8]) -> Result<Option<u32>> {
        self.find_in(inode, List { bytes, base: 0 }, name)
    }

    fn find_in(&self, inode: &InodeRecord, list: List<'_>, name: &[u8]) -> Result<Option<u32>> {
        let mut at = 0;
        while at < list.bytes.len() {
            let entry = self.entry(inode, &list, at)?;
            if entry.inode != 0 && entry.name == name {
                return Ok(Some(entry.inode));
            }
            at = at.saturating_add(entry.record_bytes);
        }
        Ok(None)
    }

    /// See [`crate::FileSystem::read_dir`].
    pub(super) fn visit_names(
        &self,
        directory: u64,
        from: Cursor,
        visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let inode = self.inode(directory)?;
        self.directory(&inode)?;
        if from.0 < ADDED && !self.fast_commits.is_new_directory(inode.number) {
            let shown = self.lists(&inode, from.0, &mut |list| self.show(&inode, list, from.0, visit))?;
            if shown.is_break() {
                return Ok(());
            }
        }
        let skip = usize::try_from(from.0.saturating_sub(ADDED)).unwrap_or(usize::MAX);
        let added = self.fast_commits.added(inode.number).enumerate().skip(if from.0 < ADDED { 0 } else { skip });
        for (index, (name, number)) in added {
            let number = self.inode_number(number.into())?;
            let file_type = Some(self.inode(number.into())?.file_type()?);
            let next = Cursor(ADDED.saturating_add(index as u64).saturating_add(1));
            if visit(Entry { name, inode: Inode(number.into()), file_type, next }).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Shows the entries of one list that lie at or after byte `from` of the directory.
    fn show(
        &self,
        inode: &InodeRecord,
        list: List<'_>,
        from: u64,
        visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let typed = self.superblock.has_incompat(incompat::FILETYPE);
        let mut at = 0;
        while at < list.bytes.len() {
            let entry = self.entry(inode, &list, at)?;
            let offset = list.base.saturating_add(at as u64);
            at = at.saturating_add(entry.record_bytes);
            if entry.inode == 0 || offset < from || entry.name == b"." || entry.name == b".." {
                continue;
            }
            if entry.name.is_empty() || entry.name.iter().any(|byte| matches!(byte, 0 | b'/')) {
                return Err(Corrupt::DirectoryEntry { inode: inode.number, offset }.into());
            }
            if self.fast_commits.name(inode.number, entry.name).is_some() {
                continue;
            }
            let number = self.inode_number(entry.inode.into())?;
            let file_type = if typed { FileType::of_entry(entry.file_type) } else { None };
            let next = Cursor(list.base.saturating_add(at as u64));
            if visit(Entry { name: entry.name, inode: Inode(number.into()), file_type, next }).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Visits the lists of a directory, from the one that holds byte `from` on.
    fn lists(
        &self,
        inode: &InodeRecord,
        from: u64,
        visit: &mut dyn FnMut(List<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        if inode.has(flag::INLINE_DATA) {
            let bytes = self.inline_bytes(inode)?;
            let (area, value) = bytes.split_at_checked(BLOCK_BYTES).unwrap_or((&bytes, &[]));
            for (bytes, base) in [(area.get(4..).unwrap_or_default(), 4), (value, BLOCK_BYTES as u64)] {
                if visit(List { bytes, base })?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            return Ok(ControlFlow::Continue(()));
        }
        let block_bytes = u64::from(self.superblock.block_bytes);
        let blocks = inode.size.div_ceil(block_bytes);
        let mut logical = from.checked_div(block_bytes).unwrap_or(0);
        while logical < blocks {
            let run = self.run(inode, logical)?;
            let Place::Block(_) = run.place else {
                logical = logical.saturating_add(run.len); // a hole holds no names
                continue;
            };
            let end = logical.saturating_add(run.len).min(blocks);
            while logical < end {
                let bytes = self.directory_block(inode, logical)?;
                let list = List { bytes: &bytes, base: logical.saturating_mul(block_bytes) };
                if visit(list)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                logical = logical.saturating_add(1);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// A block of a directory, its checksum verified.
    pub(super) fn directory_block(&self, inode: &InodeRecord, logical: u64) -> Result<Arc<[u8]>> {
        let Place::Block(block) = self.run(inode, logical)?.place else {
            return Err(Corrupt::BlockNumber { inode: inode.number, block: 0 }.into());
        };
        let bytes = self.inode_block(inode, block)?;
        if self.superblock.verify && !self.directory_checksum(inode, logical, &bytes)? {
            return Err(Corrupt::DirectoryChecksum { inode: inode.number, block }.into());
        }
        Ok(bytes)
    }

    /// Whether a directory's block has its checksum: in a tail, or behind the entries of a hash tree's node.
    fn directory_checksum(&self, inode: &InodeRecord, logical: u64, bytes: &[u8]) -> Parsed<bool> {
        let indexed = inode.has(flag::INDEX) && self.superblock.has_compat(compat::DIR_INDEX);
        let node = record_bytes(le16(bytes, 4)?, bytes.len()) == bytes.len();
        if indexed && (logical == 0 || node) {
            let entries = if node { 8 } else { 32 };
            let (limit, count) = (le16(bytes, entries)?, le16(bytes, entries.saturating_add(2))?);
            let at = usize::from(limit).saturating_mul(8).saturating_add(entries);
            let used = usize::from(count).saturating_mul(8).saturating_add(entries);
            if used > at {
                return Ok(false);
            }
            let checksum = crc32c(inode.checksum_seed, part(bytes, 0, used)?);
            let checksum = crc32c(crc32c(checksum, part(bytes, at, 4)?), &[0; 4]);
            return Ok(checksum == le32(bytes, at.saturating_add(4))?);
        }
        let at = bytes.len().saturating_sub(TAIL_BYTES);
        let shaped = le32(bytes, at)? == 0
            && usize::from(le16(bytes, at.saturating_add(4))?) == TAIL_BYTES
            && le16(bytes, at.saturating_add(6))? == 0xDE00;
        let checksum = crc32c(inode.checksum_seed, part(bytes, 0, at)?);
        Ok(shaped && checksum == le32(bytes, at.saturating_add(8))?)
    }

    /// The entry at byte `at` of a list.
    fn entry<'a>(&self, inode: &InodeRecord, list: &List<'a>, at: usize) -> Result<DiskEntry<'a>> {
        let offset = list.base.saturating_add(at as u64);
        let malformed = Corrupt::DirectoryEntry { inode: inode.number, offset };
        let left = list.bytes.get(at..).unwrap_or_default();
        if left.len() < ENTRY_BYTES_MIN {
            return Err(malformed.into());
        }
        let record_bytes = record_bytes(le16(left, 4)?, self.superblock.block_bytes as usize);
        let name_bytes = usize::from(byte(left, 6)?);
        if record_bytes < ENTRY_BYTES_MIN
            || !record_bytes.is_multiple_of(4)
            || record_bytes > left.len()
            || name_bytes.saturating_add(8) > record_bytes
        {
            return Err(malformed.into());
        }
        let name = part(left, 8, name_bytes)?;
        Ok(DiskEntry { inode: le32(left, 0)?, record_bytes, file_type: byte(left, 7)?, name })
    }
}

/// The length that a `rec_len` stands for: in blocks of 64 KiB its two lowest bits are its highest.
pub(super) fn record_bytes(rec_len: u16, block_bytes: usize) -> usize {
    let plain = usize::from(rec_len);
    if block_bytes < 65536 {
        plain
    } else if matches!(rec_len, 0 | 65535) {
        block_bytes
    } else {
        (plain & 0xFFFC) | ((plain & 3) << 16)
    }
}
