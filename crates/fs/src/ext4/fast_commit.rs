//! Fast commits: what changed since the last full transaction, in a few tags behind the log, little-endian.
//!
//! ```text
//! tag    0 tag   2 len   4 value
//! 1 add range   0 inode   4 extent (12)          2 delete range  0 inode  4 block  8 blocks
//! 3 create, 4 link, 5 unlink   0 parent   4 inode   8 name          6 inode   0 inode   4 the inode's bytes
//! 7 padding     8 tail  0 transaction  4 checksum    9 head  0 features  4 transaction
//! ```
//! A commit reaches from after the tail before it to its own tail, whose checksum (crc32c from 0) covers it. They are
//! replayed here as changes beside the disk: bytes of inodes, runs of blocks and names that replace what is there.
//!
//! Specification: Documentation/filesystems/ext4/journal.rst and fs/ext4/fast_commit.h of the kernel.

use std::collections::{BTreeMap, HashMap};

use block::{Error, Kind, Result};

use super::checksum::crc32c;
use super::field::{join, le16, le32, part, tail};
use super::inode::{BLOCK_AT, BLOCK_BYTES, InodeRecord, flag};
use super::journal::Journal;
use super::mapping::Place;
use super::{Corrupt, Ext4};
use crate::FileType;

const ADD_RANGE: u16 = 1;
const DELETE_RANGE: u16 = 2;
const CREATE: u16 = 3;
const LINK: u16 = 4;
const UNLINK: u16 = 5;
const INODE: u16 = 6;
const PADDING: u16 = 7;
const TAIL: u16 = 8;
const HEAD: u16 = 9;

/// What fast commits changed, by inode.
#[derive(Debug, Default)]
pub(super) struct FastCommits {
    changes: HashMap<u32, Change>,
}

#[derive(Debug, Default)]
struct Change {
    /// The inode's bytes, and in which commit they were logged.
    raw: Option<(Vec<u8>, u32)>,
    /// Runs that do not overlap: first block, blocks, where.
    runs: BTreeMap<u64, (u64, Place)>,
    /// Names that are there, or are gone.
    names: BTreeMap<Vec<u8>, Option<u32>>,
    /// A directory that was made: it has no other names.
    new_directory: bool,
    links: i64,
}

/// One tag.
struct Tag<'a> {
    kind: u16,
    value: &'a [u8],
    /// With its header, as the checksum covers it.
    whole: &'a [u8],
}

/// The tags of a block, up to what is none.
fn tags(block: &[u8]) -> impl Iterator<Item = Tag<'_>> {
    let mut rest = block;
    std::iter::from_fn(move || {
        let (kind, len) = (le16(rest, 0).ok()?, usize::from(le16(rest, 2).ok()?));
        let (whole, after) = rest.split_at_checked(len.saturating_add(4))?;
        rest = after;
        Some(Tag { kind, value: whole.get(4..)?, whole })
    })
}

impl FastCommits {
    /// Reads the fast commits behind transaction `sequence - 1` of a journal and applies them.
    pub(super) fn replay(journal: &Journal<'_>, sequence: u32, fs: &Ext4) -> Result<Self> {
        let mut commits = Self::default();
        let mut block = vec![0; fs.superblock.block_bytes as usize];
        let mut waiting: Vec<(u16, Vec<u8>)> = Vec::new(); // of the commit at hand: less than the blocks read
        let mut checksum = 0;
        let mut commit = 0_u32;
        for logical in journal.fast_commit_blocks() {
            journal.read_fast_commit(logical, &mut block)?;
            for tag in tags(&block) {
                match tag.kind {
                    ADD_RANGE..=INODE => waiting.push((tag.kind, tag.value.to_vec())),
                    PADDING => {}
                    HEAD => {
                        let features = le32(tag.value, 0)?;
                        if le32(tag.value, 4)? != sequence {
                            return Ok(commits);
                        }
                        if features != 0 {
                            let what = format!("ext4 fast commit with the features {features:#x}");
                            return Err(Error::new(Kind::Unsupported, what));
                        }
                    }
                    TAIL => {
                        let covered = part(tag.whole, 0, 8)?;
                        if le32(tag.value, 0)? != sequence || le32(tag.value, 4)? != crc32c(checksum, covered) {
                            return Ok(commits);
                        }
                        for (kind, value) in waiting.drain(..) {
                            commits.apply(fs, kind, &value, commit)?;
                        }
                        commit = commit.saturating_add(1);
                        checksum = 0;
                        continue;
                    }
                    _ => return Ok(commits),
                }
                checksum = crc32c(checksum, tag.whole);
            }
        }
        Ok(commits)
    }

    fn apply(&mut self, fs: &Ext4, kind: u16, value: &[u8], commit: u32) -> Result<()> {
        let malformed = Corrupt::FastCommit { tag: kind };
        let inode = fs.inode_number(le32(value, 0)?.into())?;
        match kind {
            ADD_RANGE => {
                let extent = part(value, 4, 12)?;
                let len = le16(extent, 4)?;
                let (len, unwritten) = if len > 32768 { (len.saturating_sub(32768), true) } else { (len, false) };
                let block = join(le32(extent, 8)?, le16(extent, 6)?.into());
                let place = if unwritten { Place::Unwritten } else { Place::Block(block) };
                self.change(inode).put(le32(extent, 0)?.into(), len.into(), place);
            }
            DELETE_RANGE => {
                self.change(inode).put(le32(value, 4)?.into(), le32(value, 8)?.into(), Place::Hole);
            }
            INODE => self.log_inode(fs, inode, tail(value, 4)?, commit)?,
            CREATE | LINK | UNLINK => {
                let target = fs.inode_number(le32(value, 4)?.into())?;
                let name = tail(value, 8)?;
                if name.is_empty() || name.len() > crate::NAME_BYTES_MAX || name.iter().any(|b| matches!(b, 0 | b'/')) {
                    return Err(malformed.into());
                }
                let is_directory = FileType::from_mode(self.mode(fs, target)?.into()) == Some(FileType::Directory);
                if kind == CREATE && is_directory {
                    let change = self.change(target);
                    change.new_directory = true;
                    change.names.clear();
                }
                let parent = self.change(inode);
                let counted = parent.raw.as_ref().is_some_and(|(_, logged)| *logged == commit);
                if is_directory && !counted {
                    parent.links = parent.links.saturating_add(if kind == UNLINK { -1 } else { 1 });
                }
                parent.names.insert(name.to_vec(), (kind != UNLINK).then_some(target));
            }
            _ => return Err(malformed.into()),
        }
        Ok(())
    }

    fn change(&mut self, inode: u32) -> &mut Change {
        self.changes.entry(inode).or_default()
    }

    fn mode(&self, fs: &Ext4, inode: u32) -> Result<u16> {
        match self.inode(inode) {
            Some(raw) => Ok(le16(raw, 0)?),
            None => Ok(le16(&fs.raw_inode(inode)?, 0)?),
        }
    }

    /// Puts the logged bytes of an inode over what it had: all but where its blocks are, which ranges say.
    fn log_inode(&mut self, fs: &Ext4, inode: u32, logged: &[u8], commit: u32) -> Result<()> {
        let mut raw = match self.inode(inode) {
            Some(raw) => raw.to_vec(),
            None => fs.raw_inode(inode)?.into_vec(),
        };
        if logged.len() < 128 || logged.len() > raw.len() {
            return Err(Corrupt::FastCommit { tag: INODE }.into());
        }
        let reborn = part(&raw, 0x64, 4)? != part(logged, 0x64, 4)?;
        if reborn {
            raw.fill(0);
            self.changes.remove(&inode);
        }
        let area = part(&raw, BLOCK_AT, BLOCK_BYTES)?.to_vec();
        raw.iter_mut().zip(logged).for_each(|(to, from)| *to = *from);
        let flags = le32(&raw, 0x20)?;
        let file_type = FileType::from_mode(le16(&raw, 0)?.into());
        let mut kept = area;
        if flags & flag::EXTENTS != 0 {
            if le16(&kept, 0)? != 0xF30A {
                kept = [&[0x0A, 0xF3, 0, 0, 4, 0][..], &[0; 54]].concat(); // a root without entries
            }
        } else if flags & flag::INLINE_DATA != 0 || !matches!(file_type, Some(FileType::Regular | FileType::Directory))
        {
            kept = part(logged, BLOCK_AT, BLOCK_BYTES)?.to_vec();
        }
        if let Some(area) = raw.get_mut(BLOCK_AT..) {
            area.iter_mut().zip(&kept).for_each(|(to, from)| *to = *from);
        }
        InodeRecord::parse(fs, inode, raw.clone().into(), false)?;
        self.change(inode).raw = Some((raw, commit));
        Ok(())
    }

    /// The bytes of an inode, where a fast commit has them.
    pub(super) fn inode(&self, inode: u32) -> Option<&[u8]> {
        self.changes.get(&inode)?.raw.as_ref().map(|(raw, _)| raw.as_slice())
    }

    /// What is known of a file's blocks from `logical` on: where they are or, where only the disk knows that, nothing;
    /// and for how many blocks.
    pub(super) fn run(&self, inode: u32, logical: u64) -> Option<(Option<Place>, u64)> {
        let runs = &self.changes.get(&inode)?.runs;
        if let Some((first, (len, place))) = runs.range(..=logical).next_back() {
            let inside = logical.saturating_sub(*first);
            if inside < *len {
                return Some((Some(place.after(inside)), len.saturating_sub(inside)));
            }
        }
        let (next, _) = runs.range(logical..).next()?;
        Some((None, next.saturating_sub(logical)))
    }

    /// What is known of a name in a directory: that it is gone, or its inode.
    pub(super) fn name(&self, directory: u32, name: &[u8]) -> Option<Option<u32>> {
        self.changes.get(&directory)?.names.get(name).copied()
    }

    /// The names that were added to a directory.
    pub(super) fn added(&self, directory: u32) -> impl Iterator<Item = (&[u8], u32)> {
        let names = self.changes.get(&directory).into_iter().flat_map(|change| &change.names);
        names.filter_map(|(name, inode)| Some((name.as_slice(), (*inode)?)))
    }

    /// Whether a directory has no names but those that were added.
    pub(super) fn is_new_directory(&self, directory: u32) -> bool {
        self.changes.get(&directory).is_some_and(|change| change.new_directory)
    }

    /// How many more links a directory has than its inode says.
    pub(super) fn links_change(&self, directory: u32) -> i64 {
        self.changes.get(&directory).map_or(0, |change| change.links)
    }
}

impl Change {
    /// Lays a run over the others.
    fn put(&mut self, first: u64, len: u64, place: Place) {
        let end = first.saturating_add(len);
        let from = self.runs.range(..first).next_back().map_or(first, |(start, _)| *start);
        let touched: Vec<u64> = self.runs.range(from..end).map(|(start, _)| *start).collect();
        for start in touched {
            let Some((len, place)) = self.runs.remove(&start) else { continue };
            if start < first {
                self.runs.insert(start, (len.min(first.saturating_sub(start)), place));
            }
            let stop = start.saturating_add(len);
            if stop > end {
                self.runs.insert(end, (stop.saturating_sub(end), place.after(end.saturating_sub(start))));
            }
        }
        if len > 0 {
            self.runs.insert(first, (len, place));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cut_the_ones_that_were_there() {
        let mut change = Change::default();
        change.put(10, 10, Place::Block(100));
        change.put(12, 3, Place::Hole);
        change.put(18, 4, Place::Block(500));
        change.put(9, 2, Place::Unwritten);
        let runs: Vec<_> = change.runs.iter().map(|(first, (len, place))| (*first, *len, *place)).collect();
        let want = [
            (9, 2, Place::Unwritten),
            (11, 1, Place::Block(101)),
            (12, 3, Place::Hole),
            (15, 3, Place::Block(105)),
            (18, 4, Place::Block(500)),
        ];
        assert_eq!(runs, want);
        let commits = FastCommits { changes: HashMap::from([(5, change)]) };
        assert_eq!(commits.run(5, 16), Some((Some(Place::Block(106)), 2)));
        assert_eq!(commits.run(5, 4), Some((None, 5)));
        assert_eq!(commits.run(5, 22), None);
        assert_eq!(commits.run(6, 0), None);
    }
}
