//! Inodes, and the extents of their content.

use block::Result;

use super::bytes::Fields;
use super::{BLOCK_BYTES, INODE_BYTES, Node, Writing};
use crate::ext4::checksum::crc32c;
use crate::{FileType, Time};

/// A target that is shorter stands in the inode.
pub(super) const FAST_LINK_BYTES: usize = 60;
/// Extents in an inode, and in a block.
const EXTENTS_INLINE: usize = 4;
const EXTENTS_IN_BLOCK: usize = (BLOCK_BYTES as usize - 12) / 12;
const EXTENT_MAGIC: u16 = 0xf30a;
/// The longest extent, blocks.
const EXTENT_BLOCKS_MAX: u64 = 32_768;
const FLAG_EXTENTS: u32 = 0x8_0000;
/// Bytes of the fields behind the first 128.
const EXTRA_BYTES: u16 = 32;
/// From so many links on, a directory says that it has one.
const DIRECTORY_LINKS_MAX: u32 = 65_000;

/// Where content is: logical block, block, blocks.
#[derive(Debug, Default)]
pub(super) struct Mapping(pub Vec<(u64, u64, u64)>);

impl Mapping {
    /// Behind what is there.
    pub fn push(&mut self, start: u64, count: u64) {
        let logical = self.0.last().map_or(0, |(logical, _, count)| logical + count);
        self.push_at(logical, start, count);
    }

    pub fn push_at(&mut self, logical: u64, start: u64, count: u64) {
        let mut done = 0;
        while done < count {
            let now = (count - done).min(EXTENT_BLOCKS_MAX);
            self.0.push((logical + done, start + done, now));
            done += now;
        }
    }

    fn blocks(&self) -> u64 {
        self.0.iter().map(|(_, _, count)| count).sum()
    }
}

/// An inode to be written.
pub(super) struct Inode<'a> {
    pub node: &'a Node,
    pub number: u32,
    pub links: u32,
    pub size: u64,
    pub xattr_block: Option<u64>,
}

/// Seconds of a time, and its nanoseconds with the seconds' bits 32 and 33.
fn stamp(time: Time) -> (u32, u32) {
    // From 1901 to 2446.
    let seconds = time.seconds.clamp(i64::from(i32::MIN), 0x3_7fff_ffff);
    let epoch = ((seconds - i64::from(seconds as i32)) >> 32) as u32 & 3;
    (seconds as u32, time.nanoseconds << 2 | epoch)
}

fn header(entries: usize, most: usize, depth: u16) -> [u8; 12] {
    let mut header = Fields::new(12);
    header.put16(0, EXTENT_MAGIC);
    header.put16(2, entries as u16);
    header.put16(4, most as u16);
    header.put16(6, depth);
    let mut bytes = [0; 12];
    bytes.iter_mut().zip(header.0).for_each(|(to, byte)| *to = byte);
    bytes
}

impl Writing<'_> {
    /// Writes an inode, and the blocks of its extents.
    pub fn inode(&mut self, inode: &Inode<'_>, mapping: &Mapping) -> Result<()> {
        let (node, seed) = (inode.node, self.inode_seed(inode.number));
        let mut area = vec![0; FAST_LINK_BYTES];
        let mut tree_blocks = 0;
        let mapped = match node.file_type {
            FileType::Directory | FileType::Regular => true,
            FileType::SymbolicLink => node.target.len() >= FAST_LINK_BYTES,
            _ => false,
        };
        if mapped {
            (area, tree_blocks) = self.extents(mapping, seed)?;
        } else if node.file_type == FileType::SymbolicLink {
            area.iter_mut().zip(&node.target).for_each(|(to, byte)| *to = *byte);
        } else if let Some((major, minor)) = node.device {
            let old = major < 256 && minor < 256;
            let number = if old { major << 8 | minor } else { minor & 0xff | major << 8 | (minor & !0xff) << 12 };
            area.iter_mut().skip(if old { 0 } else { 4 }).zip(number.to_le_bytes()).for_each(|(to, byte)| *to = byte);
        }
        let blocks = mapping.blocks() + tree_blocks + u64::from(inode.xattr_block.is_some());
        let sectors = blocks * (BLOCK_BYTES / 512);
        let (seconds, more) = stamp(node.modified);
        let mut raw = Fields::new(INODE_BYTES as usize);
        raw.put16(0, (node.file_type.mode_bits() | u32::from(node.permissions)) as u16);
        raw.put16(2, node.owner.0 as u16);
        raw.put32(4, inode.size as u32);
        [8, 12, 16].into_iter().for_each(|at| raw.put32(at, seconds));
        raw.put16(0x18, node.owner.1 as u16);
        let links = if inode.links >= DIRECTORY_LINKS_MAX { 1 } else { inode.links };
        raw.put16(0x1a, links as u16);
        raw.put32(0x1c, sectors as u32);
        raw.put32(0x20, if mapped { FLAG_EXTENTS } else { 0 });
        raw.put(0x28, &area);
        raw.put32(0x68, inode.xattr_block.unwrap_or_default() as u32);
        raw.put32(0x6c, (inode.size >> 32) as u32);
        raw.put16(0x74, (sectors >> 32) as u16);
        raw.put16(0x78, (node.owner.0 >> 16) as u16);
        raw.put16(0x7a, (node.owner.1 >> 16) as u16);
        raw.put16(0x80, EXTRA_BYTES);
        [0x84, 0x88, 0x8c, 0x94].into_iter().for_each(|at| raw.put32(at, more));
        raw.put32(0x90, seconds);
        let sum = crc32c(seed, &raw.0);
        raw.put16(0x7c, sum as u16);
        raw.put16(0x82, (sum >> 16) as u16);
        self.device.write_at(&raw.0, self.geometry.inode_at(inode.number))
    }

    /// What stands in the inode for a mapping, and how many blocks its tree takes.
    pub fn extents(&mut self, mapping: &Mapping, seed: u32) -> Result<(Vec<u8>, u64)> {
        let mut entries: Vec<(u64, [u8; 12])> = mapping
            .0
            .iter()
            .map(|(logical, start, count)| {
                let mut entry = [0; 12];
                let words =
                    [(*logical as u32).to_le_bytes(), (*count as u32).to_le_bytes(), (*start as u32).to_le_bytes()];
                // The upper half of a block's number stands beside the length, and is 0.
                entry.iter_mut().zip(words.concat()).for_each(|(to, byte)| *to = byte);
                (*logical, entry)
            })
            .collect();
        let (mut depth, mut tree_blocks) = (0, 0);
        while entries.len() > EXTENTS_INLINE {
            let mut above = Vec::new();
            for part in entries.chunks(EXTENTS_IN_BLOCK) {
                let block = self.allocator.take(1)?.first().map_or(0, |(start, _)| *start);
                let mut bytes = Fields::new(BLOCK_BYTES as usize);
                bytes.put(0, &header(part.len(), EXTENTS_IN_BLOCK, depth));
                for (place, (_, entry)) in part.iter().enumerate() {
                    bytes.put(12 + place * 12, entry);
                }
                let tail = 12 + EXTENTS_IN_BLOCK * 12;
                let sum = crc32c(seed, bytes.0.get(..tail).unwrap_or_default());
                bytes.put32(tail, sum);
                self.write_block(block, &bytes.0)?;
                tree_blocks += 1;
                let first = part.first().map_or(0, |(logical, _)| *logical);
                let mut index = [0; 12];
                let words = [(first as u32).to_le_bytes(), (block as u32).to_le_bytes()];
                index.iter_mut().zip(words.concat()).for_each(|(to, byte)| *to = byte);
                above.push((first, index));
            }
            entries = above;
            depth += 1;
        }
        let mut area = header(entries.len(), EXTENTS_INLINE, depth).to_vec();
        entries.iter().for_each(|(_, entry)| area.extend_from_slice(entry));
        area.resize(FAST_LINK_BYTES, 0);
        Ok((area, tree_blocks))
    }
}
