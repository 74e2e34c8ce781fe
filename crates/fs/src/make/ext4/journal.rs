//! The journal, which is empty: its first block says so (jbd2, big-endian).

use block::Result;

use super::bytes::Fields;
use super::inode::Mapping;
use super::{BLOCK_BYTES, JOURNAL_INODE, Node, Writing, inode};
use crate::FileType;

const MAGIC: u32 = 0xc03b_3998;
const SUPERBLOCK_V2: u32 = 4;
const MIB: u64 = (1 << 20) / BLOCK_BYTES;

/// Blocks of the journal of a file system of so many: as many as mke2fs gives it.
pub(super) fn blocks(blocks: u64) -> u64 {
    match blocks / MIB {
        0..16 => 0,
        16..128 => 1024,
        128..1024 => 4096,
        1024..2048 => 8192,
        2048..4096 => 16_384,
        4096..8192 => 32_768,
        _ => 65_536,
    }
}

impl Writing<'_> {
    /// Makes the journal, and says what stands in its inode for its blocks, and how long it is.
    pub fn journal(&mut self) -> Result<Option<(Vec<u8>, u64)>> {
        let count = self.geometry.journal_blocks;
        if count == 0 {
            return Ok(None);
        }
        let mut mapping = Mapping::default();
        for (start, count) in self.allocator.take(count)? {
            mapping.push(start, count);
        }
        let mut first = Fields::new(1024);
        // Kind, sequence of this block; bytes of a block, blocks, the first one, and the first sequence to come.
        for (place, word) in [MAGIC, SUPERBLOCK_V2, 0, BLOCK_BYTES as u32, count as u32, 1, 1].into_iter().enumerate() {
            first.put(place * 4, &word.to_be_bytes());
        }
        first.put(0x30, &self.make.id.to_be_bytes());
        // One file system uses it.
        first.put(0x40, &1_u32.to_be_bytes());
        let start = mapping.0.first().map_or(0, |(_, start, _)| *start);
        self.write_block(start, &first.0)?;
        let node = Node {
            file_type: FileType::Regular,
            permissions: 0o600,
            owner: (0, 0),
            modified: self.make.time,
            xattrs: Vec::new(),
            children: Vec::new(),
            ..self.contents.tree.root().clone()
        };
        let size = count * BLOCK_BYTES;
        self.inode(&inode::Inode { node: &node, number: JOURNAL_INODE, links: 1, size, xattr_block: None }, &mapping)?;
        // At most four extents, as it lies in few groups: the copy has no blocks of its own.
        let (area, _) = self.extents(&mapping, self.inode_seed(JOURNAL_INODE))?;
        Ok(Some((area, size)))
    }
}
