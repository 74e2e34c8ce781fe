//! Group descriptors: where the inode table of each block group is.
//!
//! ```text
//! 0x08 inode_table_lo   0x12 flags   0x1E checksum   0x28 inode_table_hi (descriptors of 64 bytes and more)
//! ```
//! They lie in the blocks after the superblock, or, with `meta_bg` from a certain one on, at the beginning of every
//! group of groups whose descriptors fill one block.
//!
//! Specification: Documentation/filesystems/ext4/group_descr.rst of the kernel.

use block::Result;

use super::checksum::{crc16, crc32c};
use super::corrupt::Parsed;
use super::field::{join, le16, le32, part, tail};
use super::superblock::{Superblock, compat, incompat, ro_compat};
use super::{Corrupt, Ext4};

impl Superblock {
    /// Whether a block group holds a copy of the superblock.
    pub(super) fn has_copy(&self, group: u32) -> bool {
        if group == 0 {
            return true;
        }
        if self.has_compat(compat::SPARSE_SUPER2) {
            return self.backup_groups.contains(&group);
        }
        if group == 1 || !self.has_ro_compat(ro_compat::SPARSE_SUPER) {
            return true;
        }
        [3_u64, 5, 7].iter().any(|base| {
            let mut power = *base;
            while power < u64::from(group) {
                power = power.saturating_mul(*base);
            }
            power == u64::from(group)
        })
    }

    /// Descriptors in a block: at least one.
    fn descriptors_per_block(&self) -> u32 {
        self.block_bytes.checked_div(self.descriptor_bytes.into()).unwrap_or(1).max(1)
    }

    /// The block that holds a group's descriptor.
    fn descriptor_block(&self, group: u32) -> u64 {
        let per_block = self.descriptors_per_block();
        let index = group.checked_div(per_block).unwrap_or(0);
        let first = u64::from(self.first_data_block);
        if !self.has_incompat(incompat::META_BG) || index < self.first_meta_bg {
            return first.saturating_add(1).saturating_add(index.into());
        }
        let leader = index.saturating_mul(per_block);
        let mut after = u64::from(self.has_copy(leader));
        if self.block_bytes == 1024 && index == 0 && self.first_data_block == 0 {
            after = after.saturating_add(1);
        }
        u64::from(leader).saturating_mul(self.blocks_per_group.into()).saturating_add(first).saturating_add(after)
    }

    /// The checksum that a group's descriptor should have, and whether it should have one.
    fn descriptor_checksum(&self, group: u32, descriptor: &[u8]) -> Parsed<Option<u16>> {
        let head = part(descriptor, 0, 0x1E)?;
        let rest = tail(descriptor, 0x20)?;
        Ok(if self.has_ro_compat(ro_compat::METADATA_CSUM) {
            let checksum = crc32c(self.checksum_seed, &group.to_le_bytes());
            let checksum = crc32c(crc32c(crc32c(checksum, head), &[0, 0]), rest);
            Some((checksum & 0xFFFF) as u16)
        } else if self.has_ro_compat(ro_compat::GDT_CSUM) {
            let checksum = crc16(crc16(!0, &self.uuid), &group.to_le_bytes());
            Some(crc16(crc16(checksum, head), rest))
        } else {
            None
        })
    }
}

impl Ext4 {
    /// The first block of a group's inode table. `group` is below the number of groups.
    pub(super) fn inode_table(&self, group: u32) -> Result<u64> {
        if let Some(block) = self.inode_tables.get(group.into()) {
            return Ok(block);
        }
        let superblock = &self.superblock;
        let holder = self.block(superblock.descriptor_block(group))?;
        let bytes = usize::from(superblock.descriptor_bytes);
        let index = group.checked_rem(superblock.descriptors_per_block()).unwrap_or(0) as usize;
        let descriptor = part(&holder, index.saturating_mul(bytes), bytes)?;
        if self.verify
            && let Some(checksum) = superblock.descriptor_checksum(group, descriptor)?
            && checksum != le16(descriptor, 0x1E)?
        {
            return Err(Corrupt::GroupChecksum { group }.into());
        }
        let high = if bytes >= 64 { le32(descriptor, 0x28)? } else { 0 };
        let block = join(le32(descriptor, 0x8)?, high);
        let table_bytes = u64::from(superblock.inodes_per_group).saturating_mul(superblock.inode_bytes.into());
        let end = block.saturating_add(table_bytes.div_ceil(superblock.block_bytes.into()));
        if block <= superblock.first_data_block.into() || end > superblock.blocks {
            return Err(Corrupt::InodeTable { group, block }.into());
        }
        self.inode_tables.insert(group.into(), block);
        Ok(block)
    }

    /// Blocks that hold no files: superblocks, descriptors, bitmaps, inode tables and the journal.
    pub(super) fn overhead(&self) -> u64 {
        let superblock = &self.superblock;
        if superblock.overhead_clusters != 0 {
            return u64::from(superblock.overhead_clusters).saturating_mul(superblock.cluster_blocks.into());
        }
        let per_block = superblock.descriptors_per_block();
        let table_bytes = u64::from(superblock.inodes_per_group).saturating_mul(superblock.inode_bytes.into());
        let table_blocks = table_bytes.div_ceil(superblock.block_bytes.into());
        let meta_bg = superblock.has_incompat(incompat::META_BG);
        let all_descriptors = u64::from(superblock.groups).div_ceil(per_block.into());
        let plain_descriptors =
            if meta_bg { all_descriptors.min(superblock.first_meta_bg.into()) } else { all_descriptors };
        let mut overhead = u64::from(superblock.first_data_block);
        for group in 0..superblock.groups {
            let index = group.checked_div(per_block).unwrap_or(0);
            let inside = group.checked_rem(per_block).unwrap_or(0);
            let copy = superblock.has_copy(group);
            let own = if meta_bg && index >= superblock.first_meta_bg {
                let holds = inside == 0 || inside == 1 || inside.saturating_add(1) == per_block;
                u64::from(copy).saturating_add(holds.into())
            } else if copy {
                plain_descriptors.saturating_add(1).saturating_add(superblock.reserved_gdt_blocks.into())
            } else {
                0
            };
            overhead = overhead.saturating_add(own).saturating_add(2).saturating_add(table_blocks);
        }
        if superblock.has_compat(compat::HAS_JOURNAL)
            && superblock.journal_inode != 0
            && let Ok(journal) = self.inode(superblock.journal_inode.into())
        {
            overhead = overhead.saturating_add(journal.size.div_ceil(superblock.block_bytes.into()));
        }
        overhead
    }
}
