//! Hash trees (htree): a directory's names sorted by hash, so that one is found in a few blocks.
//!
//! ```text
//! root   0 entries "." and ".."   24 reserved 0   28 hash_version   29 info_length 8   30 indirect_levels   32 table
//! node   0 entry without name      8 table
//! table  0 limit   2 count   4 block of hash 0;   then, from 8 on: hash, block
//! ```
//! A hash whose lowest bit is set goes on from the block before: names of one hash may cross blocks.
//!
//! Specification: Documentation/filesystems/ext4/directory.rst, "Hash Tree Directories".

use std::sync::Arc;

use block::Result;

use super::corrupt::Parsed;
use super::field::{byte, le16, le32};
use super::inode::{InodeRecord, flag};
use super::name_hash::{Version, hash};
use super::superblock::{compat, incompat};
use super::{Corrupt, Ext4};

/// What a search says.
pub(super) enum Search {
    Found(u32),
    Absent,
    /// There is no tree, or none that can be used: look at every name.
    NoTree,
}

/// A table of a node, and the entry that was taken.
struct Frame {
    block: Arc<[u8]>,
    table: usize,
    count: u16,
    at: u16,
}

impl Frame {
    /// Checks the table of a node, in which no entry is taken yet.
    fn new(block: Arc<[u8]>, table: usize, malformed: Corrupt) -> Result<Self> {
        let (limit, count) = (le16(&block, table)?, le16(&block, table.saturating_add(2))?);
        let end = usize::from(count).saturating_mul(8).saturating_add(table);
        if count == 0 || count > limit || end > block.len() {
            return Err(malformed.into());
        }
        Ok(Self { block, table, count, at: 0 })
    }

    fn position(&self, index: u16) -> usize {
        usize::from(index).saturating_mul(8).saturating_add(self.table)
    }

    /// The least hash of an entry; of the first one, 0.
    fn hash(&self, index: u16) -> Parsed<u32> {
        if index == 0 { Ok(0) } else { le32(&self.block, self.position(index)) }
    }

    /// The directory's block that the taken entry names.
    fn child(&self) -> Parsed<u64> {
        Ok(u64::from(le32(&self.block, self.position(self.at).saturating_add(4))? & 0x0FFF_FFFF))
    }

    /// Takes the last entry whose hash is not above `hash`.
    fn take(&mut self, hash: u32) -> Parsed<()> {
        let (mut low, mut high) = (0, self.count);
        while high.saturating_sub(low) > 1 {
            let middle = low.midpoint(high);
            if self.hash(middle)? > hash {
                high = middle;
            } else {
                low = middle;
            }
        }
        self.at = low;
        Ok(())
    }
}

impl Ext4 {
    /// Looks for `name` by its hash.
    pub(super) fn hash_tree_lookup(&self, inode: &InodeRecord, name: &[u8]) -> Result<Search> {
        let superblock = &self.superblock;
        if !inode.has(flag::INDEX)
            || inode.has(flag::INLINE_DATA | flag::CASEFOLD)
            || !superblock.has_compat(compat::DIR_INDEX)
        {
            return Ok(Search::NoTree);
        }
        let root = self.directory_block(inode, 0)?;
        let Some(version) = Version::from_disk(byte(&root, 28)?, superblock.hash_unsigned) else {
            return Ok(Search::NoTree);
        };
        let levels = byte(&root, 30)?;
        let levels_max = if superblock.has_incompat(incompat::LARGEDIR) { 2 } else { 1 };
        if le32(&root, 24)? != 0 || byte(&root, 29)? != 8 || byte(&root, 31)? & 1 != 0 || levels > levels_max {
            return Ok(Search::NoTree);
        }
        let hash = hash(version, superblock.hash_seed, name);
        let mut frame = Frame::new(root, 32, self.malformed(inode, 0))?;
        frame.take(hash)?;
        let mut frames = vec![frame];
        for _ in 0..levels {
            self.descend(inode, &mut frames, hash)?;
        }
        // Each round looks at another block, of which the directory has no more than the file system.
        for _ in 0..=superblock.blocks {
            let Some(leaf) = frames.last() else { break };
            let block = self.tree_block(inode, leaf.child()?)?;
            if let Some(number) = self.find_in_block(inode, &block, name)? {
                return Ok(Search::Found(number));
            }
            if !self.go_on(inode, &mut frames, hash)? {
                break;
            }
        }
        Ok(Search::Absent)
    }

    /// Adds the node that the last frame names, with the entry for `hash` taken.
    fn descend(&self, inode: &InodeRecord, frames: &mut Vec<Frame>, hash: u32) -> Result<()> {
        let Some(frame) = frames.last() else { return Ok(()) };
        let logical = frame.child()?;
        let mut next = Frame::new(self.tree_block(inode, logical)?, 8, self.malformed(inode, logical))?;
        next.take(hash)?;
        frames.push(next);
        Ok(())
    }

    /// Takes the next leaf, if names with `hash` go on there.
    fn go_on(&self, inode: &InodeRecord, frames: &mut Vec<Frame>, hash: u32) -> Result<bool> {
        let depth = frames.len();
        while frames.last().is_some_and(|frame| frame.at.saturating_add(1) >= frame.count) {
            frames.pop();
        }
        let Some(frame) = frames.last_mut() else { return Ok(false) };
        frame.at = frame.at.saturating_add(1);
        let next = frame.hash(frame.at)?;
        if next & 1 == 0 || next & !1 != hash {
            return Ok(false);
        }
        while frames.len() < depth {
            self.descend(inode, frames, 0)?;
        }
        Ok(true)
    }

    /// A block that a hash tree names: inside of the directory.
    fn tree_block(&self, inode: &InodeRecord, logical: u64) -> Result<Arc<[u8]>> {
        if logical >= inode.size.div_ceil(self.superblock.block_bytes.into()) {
            return Err(self.malformed(inode, logical).into());
        }
        self.directory_block(inode, logical)
    }

    fn malformed(&self, inode: &InodeRecord, block: u64) -> Corrupt {
        Corrupt::HashTree { inode: inode.number, block }
    }
}
