//! Extent trees: runs of blocks, in a tree whose root is in the inode.
//!
//! ```text
//! header   0 magic 0xF30A   2 entries   4 max   6 depth   8 generation                        12 bytes
//! leaf     0 block          4 len       6 start_hi        8 start_lo      len > 32768: unwritten
//! index    0 block          4 leaf_lo   8 leaf_hi        10 unused
//! tail     0 checksum                       behind the `max` entries of a node that is a block of its own
//! ```
//! Specification: Documentation/filesystems/ext4/ifork.rst of the kernel.

use std::sync::Arc;

use block::Result;

use super::checksum::crc32c;
use super::corrupt::Parsed;
use super::field::{join, le16, le32, part};
use super::inode::InodeRecord;
use super::mapping::{FILE_BLOCKS_MAX, Place, Run};
use super::{Corrupt, Ext4};

const MAGIC: u16 = 0xF30A;
/// The deepest tree.
const DEPTH_MAX: u16 = 5;
const WRITTEN_LEN_MAX: u16 = 32768;
const ENTRY_BYTES: usize = 12;

/// A node, checked: entries in order, each a run of the file or the block of a deeper node.
#[derive(Debug)]
pub(super) struct Node {
    inode: u32,
    depth: u16,
    entries: Vec<NodeEntry>,
}

#[derive(Debug, Clone, Copy)]
struct NodeEntry {
    logical: u32,
    len: u16, // 0 in an index
    unwritten: bool,
    block: u64,
}

impl Node {
    /// Reads `bytes`, a node of `inode`'s tree in `block` (0: the inode), of `depth` where that is known.
    fn parse(inode: &InodeRecord, bytes: &[u8], block: u64, depth: Option<u16>) -> Parsed<Self> {
        let malformed = Corrupt::ExtentHeader { inode: inode.number, block };
        let (magic, count, max, found) = (le16(bytes, 0)?, le16(bytes, 2)?, le16(bytes, 4)?, le16(bytes, 6)?);
        let fits = bytes.len().saturating_sub(ENTRY_BYTES) / ENTRY_BYTES;
        if magic != MAGIC
            || count > max
            || usize::from(max) > fits
            || found > DEPTH_MAX
            || depth.is_some_and(|depth| depth != found)
            || (found > 0 && count == 0)
        {
            return Err(malformed);
        }
        let room = part(bytes, ENTRY_BYTES, usize::from(count).saturating_mul(ENTRY_BYTES))?;
        let mut entries = Vec::with_capacity(count.into());
        let mut free_from = 0; // the first block that the next entry may have
        for entry in room.chunks_exact(ENTRY_BYTES) {
            let logical = le32(entry, 0)?;
            let parsed = if found == 0 {
                let len = le16(entry, 4)?;
                let unwritten = len > WRITTEN_LEN_MAX;
                let len = if unwritten { len.saturating_sub(WRITTEN_LEN_MAX) } else { len };
                let block = join(le32(entry, 8)?, le16(entry, 6)?.into());
                NodeEntry { logical, len, unwritten, block }
            } else {
                let block = join(le32(entry, 4)?, le16(entry, 8)?.into());
                NodeEntry { logical, len: 0, unwritten: false, block }
            };
            let end = u64::from(logical).saturating_add(u64::from(parsed.len).max(1));
            if u64::from(logical) < free_from || end > FILE_BLOCKS_MAX || (found == 0 && parsed.len == 0) {
                return Err(Corrupt::ExtentOrder { inode: inode.number, block });
            }
            free_from = end;
            entries.push(parsed);
        }
        Ok(Self { inode: inode.number, depth: found, entries })
    }

    /// The last entry that begins at or before `logical`, and where the one after it begins.
    fn find(&self, logical: u64) -> (Option<NodeEntry>, Option<u64>) {
        let after = self.entries.partition_point(|entry| u64::from(entry.logical) <= logical);
        let found = after.checked_sub(1).and_then(|at| self.entries.get(at)).copied();
        (found, self.entries.get(after).map(|entry| entry.logical.into()))
    }
}

impl Ext4 {
    /// The run of a file's blocks from `logical` on, of a file that has extents.
    pub(super) fn extent_run(&self, inode: &InodeRecord, logical: u64) -> Result<Run> {
        let mut node = Arc::new(Node::parse(inode, inode.block_area()?, 0, None)?);
        let mut end = FILE_BLOCKS_MAX; // of what the node covers
        // Each step goes down one level of at most DEPTH_MAX.
        loop {
            let (entry, next) = node.find(logical);
            end = end.min(next.unwrap_or(end));
            let hole = Run { len: end.saturating_sub(logical).max(1), place: Place::Hole };
            let Some(entry) = entry else { return Ok(hole) };
            if node.depth == 0 {
                let inside = logical.saturating_sub(entry.logical.into());
                let len = u64::from(entry.len).saturating_sub(inside);
                return Ok(match entry.unwritten {
                    _ if len == 0 => hole,
                    true => Run { len, place: Place::Unwritten },
                    false => Run { len, place: Place::Block(entry.block).after(inside) },
                });
            }
            node = self.extent_node(inode, &entry, node.depth.saturating_sub(1))?;
        }
    }

    /// The node of an extent tree that an index entry names.
    fn extent_node(&self, inode: &InodeRecord, parent: &NodeEntry, depth: u16) -> Result<Arc<Node>> {
        let block = parent.block;
        if let Some(node) = self.nodes.get(block)
            && node.inode == inode.number
            && node.depth == depth
        {
            return Ok(node);
        }
        let bytes = self.inode_block(inode, block)?;
        let node = Node::parse(inode, &bytes, block, Some(depth))?;
        if node.entries.first().is_some_and(|first| first.logical < parent.logical) {
            return Err(Corrupt::ExtentOrder { inode: inode.number, block }.into());
        }
        if self.superblock.verify {
            let covered = usize::from(le16(&bytes, 4)?).saturating_add(1).saturating_mul(ENTRY_BYTES);
            if covered.saturating_add(4) <= bytes.len()
                && crc32c(inode.checksum_seed, part(&bytes, 0, covered)?) != le32(&bytes, covered)?
            {
                return Err(Corrupt::ExtentChecksum { inode: inode.number, block }.into());
            }
        }
        let node = Arc::new(node);
        self.nodes.insert(block, Arc::clone(&node));
        Ok(node)
    }
}
