//! Inodes: what is known of each file, 128 to a block's size of bytes, in the tables of the groups.
//!
//! ```text
//! 0x00 mode      0x02 uid_lo     0x04 size_lo   0x08 atime   0x0C ctime   0x10 mtime   0x18 gid_lo   0x1A links_count
//! 0x1C blocks_lo 0x20 flags      0x28 block[60 bytes]        0x64 generation   0x68 file_acl_lo   0x6C size_high
//! 0x74 blocks_high   0x76 file_acl_high   0x78 uid_high   0x7A gid_high   0x7C checksum_lo
//! 0x80 extra_isize   0x82 checksum_hi     0x84 ctime_extra 0x88 mtime_extra 0x8C atime_extra 0x90 crtime 0x94 crtime_extra
//! ```
//! Specification: Documentation/filesystems/ext4/inodes.rst of the kernel.

use std::sync::Arc;

use block::{Error, Kind, Result};

use super::checksum::crc32c;
use super::corrupt::Parsed;
use super::field::{join, le16, le32, part};
use super::superblock::{incompat, ro_compat};
use super::{Corrupt, Ext4};
use crate::{FileType, Stat, Time};

/// Inode of the top directory.
pub(super) const ROOT: u32 = 2;
/// Where the map of blocks, the root of the extents, a short target or inline content is, and how long, bytes.
pub(super) const BLOCK_AT: usize = 0x28;
/// See [`BLOCK_AT`].
pub(super) const BLOCK_BYTES: usize = 60;

/// `flags` of an inode.
pub(super) mod flag {
    pub(crate) const ENCRYPT: u32 = 0x800;
    pub(crate) const INDEX: u32 = 0x1000;
    pub(crate) const HUGE_FILE: u32 = 0x4_0000;
    pub(crate) const EXTENTS: u32 = 0x8_0000;
    pub(crate) const EA_INODE: u32 = 0x20_0000;
    pub(crate) const INLINE_DATA: u32 = 0x1000_0000;
    pub(crate) const CASEFOLD: u32 = 0x4000_0000;
}

/// An inode as it is on disk, with what is often asked of it.
#[derive(Debug)]
pub(super) struct InodeRecord {
    pub(super) number: u32,
    pub(super) raw: Box<[u8]>,
    pub(super) mode: u16,
    pub(super) flags: u32,
    /// Bytes of content.
    pub(super) size: u64,
    /// The block of its extended attributes, or 0.
    pub(super) file_acl: u64,
    /// Bytes after the first 128 that hold fields.
    pub(super) extra_bytes: u16,
    /// Where the crc32c of its metadata start from.
    pub(super) checksum_seed: u32,
}

impl InodeRecord {
    /// Reads and checks `raw`, inode `number`; its checksum only if `verify`.
    pub(super) fn parse(fs: &Ext4, number: u32, raw: Box<[u8]>, verify: bool) -> Result<Self> {
        let superblock = &fs.superblock;
        let extra_bytes = if raw.len() > 128 { le16(&raw, 0x80)? } else { 0 };
        if usize::from(extra_bytes).saturating_add(128) > raw.len() || extra_bytes % 4 != 0 {
            return Err(Corrupt::InodeExtraSize { inode: number, bytes: extra_bytes }.into());
        }
        let generation = le32(&raw, 0x64)?;
        let seed = crc32c(superblock.checksum_seed, &number.to_le_bytes());
        let checksum_seed = crc32c(seed, &generation.to_le_bytes());
        if verify && !has_checksum(&raw, extra_bytes, checksum_seed)? {
            return Err(Corrupt::InodeChecksum { inode: number }.into());
        }
        let mode = le16(&raw, 0)?;
        let file_type = FileType::from_mode(mode.into());
        let wide = file_type == Some(FileType::Regular) || superblock.has_incompat(incompat::LARGEDIR);
        let size = join(le32(&raw, 0x4)?, if wide { le32(&raw, 0x6C)? } else { 0 });
        // Blocks of a file are counted in 32 bits.
        if size > u64::from(superblock.block_bytes).saturating_mul(1 << 32) {
            return Err(Corrupt::FileSize { inode: number, bytes: size }.into());
        }
        let acl_high = if superblock.has_incompat(incompat::BITS_64) { le16(&raw, 0x76)? } else { 0 };
        Ok(Self {
            number,
            mode,
            flags: le32(&raw, 0x20)?,
            size,
            file_acl: join(le32(&raw, 0x68)?, acl_high.into()),
            extra_bytes,
            checksum_seed,
            raw,
        })
    }

    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn file_type(&self) -> Result<FileType> {
        FileType::from_mode(self.mode.into())
            .ok_or_else(|| Corrupt::InodeMode { inode: self.number, mode: self.mode }.into())
    }

    /// The 60 bytes of the block map, the root of the extents, a short target, or inline content.
    pub(super) fn block_area(&self) -> Result<&[u8]> {
        Ok(part(&self.raw, BLOCK_AT, BLOCK_BYTES)?)
    }

    /// That its content can be read without a key.
    pub(super) fn readable(&self) -> Result<()> {
        if self.has(flag::ENCRYPT) {
            let what = format!("inode {}, whose names and content are encrypted (fscrypt) and need a key", self.number);
            return Err(Error::new(Kind::Unsupported, what));
        }
        Ok(())
    }

    /// Room it takes, in units of 512 bytes.
    pub(super) fn sectors(&self, fs: &Ext4) -> Result<u64> {
        if !fs.superblock.has_ro_compat(ro_compat::HUGE_FILE) {
            return Ok(le32(&self.raw, 0x1C)?.into());
        }
        let blocks = join(le32(&self.raw, 0x1C)?, le16(&self.raw, 0x74)?.into());
        let unit = if self.has(flag::HUGE_FILE) { fs.superblock.block_bytes >> 9 } else { 1 };
        Ok(blocks.saturating_mul(unit.into()))
    }

    /// The moment at `at`, whose nanoseconds and upper bits are at `extra`, where the inode has those.
    fn time(&self, at: usize, extra: usize) -> Result<Time> {
        let seconds = i64::from(le32(&self.raw, at)?.cast_signed());
        if !self.has_field(extra) {
            return Ok(Time { seconds, nanoseconds: 0 });
        }
        let extra = le32(&self.raw, extra)?;
        let epoch = i64::from(extra & 3) << 32;
        Ok(Time { seconds: seconds.saturating_add(epoch), nanoseconds: (extra >> 2).min(999_999_999) })
    }

    /// Whether the field of four bytes at `at`, behind the first 128, is in use.
    fn has_field(&self, at: usize) -> bool {
        at.saturating_add(4) <= usize::from(self.extra_bytes).saturating_add(128)
    }

    pub(super) fn stat(&self, fs: &Ext4) -> Result<Stat> {
        let file_type = self.file_type()?;
        let raw = &self.raw;
        let device = match file_type {
            FileType::BlockDevice | FileType::CharacterDevice => {
                let (old, new) = (le32(raw, BLOCK_AT)?, le32(raw, BLOCK_AT.saturating_add(4))?);
                Some(match old {
                    0 => ((new & 0xF_FF00) >> 8, (new & 0xFF) | ((new >> 12) & 0xF_FF00)),
                    _ => ((old >> 8) & 0xFF, old & 0xFF),
                })
            }
            _ => None,
        };
        let inline = self.has(flag::INLINE_DATA) && file_type == FileType::Regular;
        let inline_sectors = if inline { self.size.div_ceil(512) } else { 0 };
        let links = i64::from(le16(raw, 0x1A)?).saturating_add(fs.fast_commits.links_change(self.number));
        Ok(Stat {
            number: self.number.into(),
            file_type,
            permissions: self.mode & 0o7777,
            links: u32::try_from(links).unwrap_or(0),
            uid: u32::from(le16(raw, 0x2)?) | (u32::from(le16(raw, 0x78)?) << 16),
            gid: u32::from(le16(raw, 0x18)?) | (u32::from(le16(raw, 0x7A)?) << 16),
            size: self.size,
            blocks: self.sectors(fs)?.saturating_add(inline_sectors),
            device,
            accessed: self.time(0x8, 0x8C)?,
            modified: self.time(0x10, 0x88)?,
            changed: self.time(0xC, 0x84)?,
            created: if self.has_field(0x90) { Some(self.time(0x90, 0x94)?) } else { None },
        })
    }
}

/// Whether an inode has its checksum: 32 bits where there is room for them, else the lower 16.
fn has_checksum(raw: &[u8], extra_bytes: u16, seed: u32) -> Parsed<bool> {
    let wide = extra_bytes >= 4;
    let mut checksum = crc32c(crc32c(seed, part(raw, 0, 0x7C)?), &[0, 0]);
    if raw.len() <= 128 {
        checksum = crc32c(checksum, part(raw, 0x7E, 2)?);
    } else if wide {
        let rest = part(raw, 0x84, raw.len().saturating_sub(0x84))?;
        checksum = crc32c(crc32c(crc32c(checksum, part(raw, 0x7E, 4)?), &[0, 0]), rest);
    } else {
        checksum = crc32c(checksum, part(raw, 0x7E, raw.len().saturating_sub(0x7E))?);
    }
    let low = u32::from(le16(raw, 0x7C)?);
    Ok(if wide { checksum == low | (u32::from(le16(raw, 0x82)?) << 16) } else { checksum & 0xFFFF == low })
}

impl Ext4 {
    /// That an inode number is one of this file system.
    pub(super) fn inode_number(&self, number: u64) -> Result<u32> {
        u32::try_from(number)
            .ok()
            .filter(|number| (1..=self.superblock.inodes).contains(number))
            .ok_or_else(|| Corrupt::InodeNumber { inode: number }.into())
    }

    /// The inode of that number.
    pub(super) fn inode(&self, number: u64) -> Result<Arc<InodeRecord>> {
        if let Some(record) = self.inodes.get(number) {
            return Ok(record);
        }
        let number = self.inode_number(number)?;
        let record = match self.fast_commits.inode(number) {
            Some(raw) => InodeRecord::parse(self, number, raw.into(), false)?,
            None => InodeRecord::parse(self, number, self.raw_inode(number)?, self.superblock.verify)?,
        };
        let record = Arc::new(record);
        self.inodes.insert(number.into(), Arc::clone(&record));
        Ok(record)
    }

    /// The bytes of an inode, from the table of its group.
    pub(super) fn raw_inode(&self, number: u32) -> Result<Box<[u8]>> {
        let superblock = &self.superblock;
        let index = number.saturating_sub(1);
        let group = index.checked_div(superblock.inodes_per_group).unwrap_or(0);
        let inside = index.checked_rem(superblock.inodes_per_group).unwrap_or(0);
        let byte = u64::from(inside).saturating_mul(superblock.inode_bytes.into());
        let block_bytes = u64::from(superblock.block_bytes);
        let table = self.inode_table(group)?;
        let holder = self.block(table.saturating_add(byte.checked_div(block_bytes).unwrap_or(0)))?;
        let at = byte.checked_rem(block_bytes).unwrap_or(0) as usize;
        Ok(part(&holder, at, superblock.inode_bytes.into())?.into())
    }
}
