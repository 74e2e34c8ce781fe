//! Groups: what is where in each, and what is free.

use block::{Error, Kind, Result};

use super::{BLOCK_BYTES, GROUP_BLOCKS, INODE_BYTES, journal};

/// An inode for so many bytes of the file system, where the tree does not need more.
const BYTES_PER_INODE: u64 = 16_384;
const DESCRIPTOR_BYTES: u64 = 32;
const INODES_PER_BLOCK: u64 = BLOCK_BYTES / INODE_BYTES;
/// A last group of fewer blocks for content is left out.
const LAST_GROUP_MIN: u64 = 50;
/// As many inodes as the bitmap of a group, one block, has bits.
const GROUP_INODES_MAX: u64 = BLOCK_BYTES * 8;

/// The layout.
#[derive(Debug)]
pub(super) struct Geometry {
    pub blocks: u64,
    pub groups: u64,
    pub group_inodes: u64,
    pub descriptor_blocks: u64,
    pub journal_blocks: u64,
}

impl Geometry {
    /// Of so many blocks, with room for so many inodes; `None` where that is too small.
    pub fn new(blocks: u64, inodes: u64) -> Option<Self> {
        let mut blocks = blocks.min(u64::from(u32::MAX) / GROUP_BLOCKS * GROUP_BLOCKS);
        loop {
            let groups = blocks.div_ceil(GROUP_BLOCKS).max(1);
            // Reserved ones, and a few to come.
            let wanted = (inodes + 16).max(blocks * BLOCK_BYTES / BYTES_PER_INODE);
            let group_inodes = wanted.div_ceil(groups).next_multiple_of(INODES_PER_BLOCK);
            if group_inodes > GROUP_INODES_MAX {
                return None;
            }
            let descriptor_blocks = (groups * DESCRIPTOR_BYTES).div_ceil(BLOCK_BYTES);
            let journal_blocks = journal::blocks(blocks);
            let geometry = Self { blocks, groups, group_inodes, descriptor_blocks, journal_blocks };
            let last = groups - 1;
            if geometry.group_blocks(last) >= geometry.overhead(last) + LAST_GROUP_MIN {
                return Some(geometry);
            }
            blocks = last * GROUP_BLOCKS;
            if blocks == 0 {
                return None;
            }
        }
    }

    pub fn group_start(&self, group: u64) -> u64 {
        group * GROUP_BLOCKS
    }

    pub fn group_blocks(&self, group: u64) -> u64 {
        (self.blocks - self.group_start(group)).min(GROUP_BLOCKS)
    }

    /// Whether a group has copies of the superblock and the descriptors.
    pub fn has_copy(group: u64) -> bool {
        let power = |base: u64| std::iter::successors(Some(base), move |power| power.checked_mul(base));
        group <= 1 || [3, 5, 7].into_iter().any(|base| power(base).take_while(|p| *p <= group).any(|p| p == group))
    }

    /// Blocks of copies at the beginning of a group.
    fn copies(&self, group: u64) -> u64 {
        if Self::has_copy(group) { 1 + self.descriptor_blocks } else { 0 }
    }

    pub fn block_bitmap(&self, group: u64) -> u64 {
        self.group_start(group) + self.copies(group)
    }

    pub fn inode_bitmap(&self, group: u64) -> u64 {
        self.block_bitmap(group) + 1
    }

    pub fn inode_table(&self, group: u64) -> u64 {
        self.inode_bitmap(group) + 1
    }

    /// Blocks of a group that hold no content.
    pub fn overhead(&self, group: u64) -> u64 {
        self.copies(group) + 2 + self.group_inodes / INODES_PER_BLOCK
    }

    /// Blocks for content, without the journal.
    pub fn free_blocks(&self) -> u64 {
        let all: u64 = (0..self.groups).map(|group| self.group_blocks(group) - self.overhead(group)).sum();
        all.saturating_sub(self.journal_blocks)
    }

    /// Where an inode is, bytes.
    pub fn inode_at(&self, number: u32) -> u64 {
        let (group, place) = ((u64::from(number) - 1) / self.group_inodes, (u64::from(number) - 1) % self.group_inodes);
        self.inode_table(group) * BLOCK_BYTES + place * INODE_BYTES
    }

    pub fn inodes(&self) -> u64 {
        self.groups * self.group_inodes
    }
}

/// Blocks for content, one after the other.
#[derive(Debug)]
pub(super) struct Allocator<'a> {
    geometry: &'a Geometry,
    group: u64,
    /// The next block in the group, counted from where its content begins.
    used: u64,
}

impl<'a> Allocator<'a> {
    pub fn new(geometry: &'a Geometry) -> Self {
        Self { geometry, group: 0, used: 0 }
    }

    /// So many blocks, as runs: first block, blocks.
    ///
    /// # Errors
    /// [`Kind::NoSpace`].
    pub fn take(&mut self, mut count: u64) -> Result<Vec<(u64, u64)>> {
        let mut runs = Vec::new();
        while count > 0 {
            if self.group >= self.geometry.groups {
                let bytes = self.geometry.blocks * BLOCK_BYTES;
                return Err(Error::new(Kind::NoSpace, format!("ext4 of {bytes} bytes")));
            }
            let overhead = self.geometry.overhead(self.group);
            let free = self.geometry.group_blocks(self.group) - overhead - self.used;
            let now = free.min(count);
            if now > 0 {
                runs.push((self.geometry.group_start(self.group) + overhead + self.used, now));
                self.used += now;
                count -= now;
            }
            if free == now && count > 0 {
                self.group += 1;
                self.used = 0;
            }
        }
        Ok(runs)
    }

    /// Blocks of a group that are taken for content.
    pub fn used(&self, group: u64) -> u64 {
        match group.cmp(&self.group) {
            std::cmp::Ordering::Less => self.geometry.group_blocks(group) - self.geometry.overhead(group),
            std::cmp::Ordering::Equal => self.used,
            std::cmp::Ordering::Greater => 0,
        }
    }
}
