//! Bitmaps, group descriptors and superblocks: what is in use.

use block::Result;

use super::bytes::Fields;
use super::geometry::Geometry;
use super::{BLOCK_BYTES, FIRST_INODE, GROUP_BLOCKS, INODE_BYTES, JOURNAL_INODE, Writing};
use crate::FileType;
use crate::ext4::checksum::crc32c;

const DESCRIPTOR_BYTES: usize = 32;
const MAGIC: u16 = 0xef53;
/// Compatible: a journal; attributes.
const HAS_JOURNAL: u32 = 0x4;
const EXT_ATTR: u32 = 0x8;
/// Types in directories, extents.
const INCOMPAT: u32 = 0x2 | 0x40;
/// Few copies, large files, files of more than 2 TiB, directories of many directories, long inodes, checksums.
const RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;
/// Of a group: no inode is in use, no block, and the inodes are zero.
const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;
const INODE_ZEROED: u16 = 4;

/// Writes all of them; `journal` is what stands in its inode for its blocks, and its size.
pub(super) fn write(writing: &Writing<'_>, journal: Option<(Vec<u8>, u64)>) -> Result<()> {
    let geometry = writing.geometry;
    let in_use = writing.contents.inodes();
    let mut directories = vec![0_u16; geometry.groups as usize];
    let nodes = writing.contents.tree.nodes().iter().enumerate();
    let numbers = nodes.filter(|(_, node)| node.file_type == FileType::Directory);
    for number in numbers.map(|(index, _)| writing.contents.number(index)).chain(writing.contents.lost_found) {
        let group = (u64::from(number) - 1) / geometry.group_inodes;
        directories.get_mut(group as usize).into_iter().for_each(|count| *count += 1);
    }
    let mut descriptors = Vec::new();
    let (mut free_blocks, mut free_inodes) = (0, 0);
    for group in 0..geometry.groups {
        let of_group = Group {
            group,
            blocks_used: geometry.overhead(group) + writing.allocator.used(group),
            inodes_used: in_use.saturating_sub(group * geometry.group_inodes).min(geometry.group_inodes),
            directories: directories.get(group as usize).copied().unwrap_or_default(),
        };
        free_blocks += geometry.group_blocks(group) - of_group.blocks_used;
        free_inodes += geometry.group_inodes - of_group.inodes_used;
        descriptors.extend(of_group.write(writing)?);
    }
    descriptors.resize((geometry.descriptor_blocks * BLOCK_BYTES) as usize, 0);
    let superblock = superblock(writing, journal, free_blocks, free_inodes);
    for group in (0..geometry.groups).filter(|group| Geometry::has_copy(*group)) {
        let start = geometry.group_start(group);
        let mut own = superblock.clone();
        own.put16(0x5a, group as u16);
        let sum = crc32c(!0, own.0.get(..0x3fc).unwrap_or_default());
        own.put32(0x3fc, sum);
        let at = if group == 0 { 1024 } else { start * BLOCK_BYTES };
        writing.device.write_at(&own.0, at)?;
        writing.write_block(start + 1, &descriptors)?;
    }
    Ok(())
}

struct Group {
    group: u64,
    blocks_used: u64,
    inodes_used: u64,
    directories: u16,
}

/// A bitmap of a block: the first bits, and those that stand for nothing.
fn bitmap(used: u64, there: u64) -> Vec<u8> {
    let mut bitmap = vec![0_u8; BLOCK_BYTES as usize];
    let mut fill = |from: u64, to: u64| {
        for bit in from..to {
            bitmap.iter_mut().skip((bit / 8) as usize).take(1).for_each(|byte| *byte |= 1 << (bit % 8));
        }
    };
    fill(0, used);
    fill(there, BLOCK_BYTES * 8);
    bitmap
}

impl Group {
    /// Writes its bitmaps, and returns its descriptor.
    fn write(&self, writing: &Writing<'_>) -> Result<Vec<u8>> {
        let (geometry, group) = (writing.geometry, self.group);
        let blocks = geometry.group_blocks(group);
        let mut flags = INODE_ZEROED;
        let mut raw = Fields::new(DESCRIPTOR_BYTES);
        raw.put32(0, geometry.block_bitmap(group) as u32);
        raw.put32(4, geometry.inode_bitmap(group) as u32);
        raw.put32(8, geometry.inode_table(group) as u32);
        raw.put16(0x0c, (blocks - self.blocks_used) as u16);
        raw.put16(0x0e, (geometry.group_inodes - self.inodes_used) as u16);
        raw.put16(0x10, self.directories);
        let is_empty = self.blocks_used == geometry.overhead(group);
        // The last one, which may be shorter, is always written.
        if is_empty && self.inodes_used == 0 && group > 0 && group + 1 < geometry.groups {
            flags |= INODE_UNINIT | BLOCK_UNINIT;
        } else {
            let bits = bitmap(self.blocks_used, blocks);
            writing.write_block(geometry.block_bitmap(group), &bits)?;
            let counted = bits.get(..(GROUP_BLOCKS / 8) as usize).unwrap_or_default();
            raw.put16(0x18, crc32c(writing.seed, counted) as u16);
            let bits = bitmap(self.inodes_used, geometry.group_inodes);
            writing.write_block(geometry.inode_bitmap(group), &bits)?;
            let counted = bits.get(..(geometry.group_inodes / 8) as usize).unwrap_or_default();
            raw.put16(0x1a, crc32c(writing.seed, counted) as u16);
        }
        raw.put16(0x12, flags);
        raw.put16(0x1c, (geometry.group_inodes - self.inodes_used) as u16);
        let sum = crc32c(crc32c(writing.seed, &(group as u32).to_le_bytes()), &raw.0);
        raw.put16(0x1e, sum as u16);
        Ok(raw.0)
    }
}

fn superblock(writing: &Writing<'_>, journal: Option<(Vec<u8>, u64)>, free_blocks: u64, free_inodes: u64) -> Fields {
    let geometry = writing.geometry;
    let time = writing.make.time.seconds.clamp(0, u32::MAX.into()) as u32;
    let mut raw = Fields::new(1024);
    raw.put32(0, geometry.inodes() as u32);
    raw.put32(4, geometry.blocks as u32);
    raw.put32(0x0c, free_blocks as u32);
    raw.put32(0x10, free_inodes as u32);
    // 1024 bytes twice doubled, of blocks and of clusters.
    raw.put32(0x18, 2);
    raw.put32(0x1c, 2);
    raw.put32(0x20, GROUP_BLOCKS as u32);
    raw.put32(0x24, GROUP_BLOCKS as u32);
    raw.put32(0x28, geometry.group_inodes as u32);
    raw.put32(0x30, time);
    raw.put16(0x36, u16::MAX);
    raw.put16(0x38, MAGIC);
    // Clean; go on after errors.
    raw.put16(0x3a, 1);
    raw.put16(0x3c, 1);
    raw.put32(0x40, time);
    raw.put32(0x4c, 1);
    raw.put32(0x54, FIRST_INODE);
    raw.put16(0x58, INODE_BYTES as u16);
    raw.put32(0x5c, EXT_ATTR | if journal.is_some() { HAS_JOURNAL } else { 0 });
    raw.put32(0x60, INCOMPAT);
    raw.put32(0x64, RO_COMPAT);
    let id = writing.make.id.to_be_bytes();
    raw.put(0x68, &id);
    raw.put(0x78, writing.make.label.as_bytes());
    if let Some((area, size)) = journal {
        raw.put32(0xe0, JOURNAL_INODE);
        // A copy of where the journal is.
        raw.put(0xfd, &[1]);
        raw.put(0x10c, &area);
        raw.put32(0x10c + 60, (size >> 32) as u32);
        raw.put32(0x10c + 64, size as u32);
    }
    // Of the hash trees that others may make: half MD4, of unsigned letters.
    raw.put(0xec, &id);
    raw.put(0xfc, &[1]);
    raw.put32(0x160, 2);
    // Attributes and access control lists are on.
    raw.put32(0x100, 0x0c);
    raw.put32(0x108, time);
    raw.put16(0x15c, 32);
    raw.put16(0x15e, 32);
    raw.put(0x175, &[1]);
    raw
}
