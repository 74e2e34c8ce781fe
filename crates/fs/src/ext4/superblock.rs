//! The superblock: 1024 bytes at byte 1024 of the device, little-endian.
//!
//! ```text
//! 0x000 inodes_count   0x004 blocks_count_lo   0x018 log_block_size   0x020 blocks_per_group   0x028 inodes_per_group
//! 0x038 magic 0xEF53   0x04C rev_level         0x058 inode_size       0x05C feature_compat     0x060 feature_incompat
//! 0x064 feature_ro_compat   0x068 uuid   0x078 volume_name   0x0E0 journal_inum   0x0EC hash_seed   0x0FE desc_size
//! 0x150 blocks_count_hi     0x160 flags  0x24C backup_bgs    0x270 checksum_seed                     0x3FC checksum
//! ```
//! Specification: Documentation/filesystems/ext4/super.rst of the kernel.

use block::{Error, Kind, Result};

use super::Corrupt;
use super::checksum::crc32c;
use super::field::{array, byte, join, le16, le32, part};

/// Where the superblock is, bytes from the beginning of the device.
pub(super) const SUPERBLOCK_OFFSET: u64 = 1024;
/// How long it is, bytes.
pub(super) const SUPERBLOCK_BYTES: usize = 1024;
const MAGIC: u16 = 0xEF53;

/// `feature_compat`: unknown ones hinder nobody.
pub(super) mod compat {
    pub(crate) const HAS_JOURNAL: u32 = 0x4;
    pub(crate) const DIR_INDEX: u32 = 0x20;
    pub(crate) const SPARSE_SUPER2: u32 = 0x200;
}

/// `feature_incompat`: an unknown one forbids reading.
pub(super) mod incompat {
    pub(crate) const COMPRESSION: u32 = 0x1;
    pub(crate) const FILETYPE: u32 = 0x2;
    pub(crate) const RECOVER: u32 = 0x4;
    pub(crate) const JOURNAL_DEV: u32 = 0x8;
    pub(crate) const META_BG: u32 = 0x10;
    pub(crate) const EXTENTS: u32 = 0x40;
    pub(crate) const BITS_64: u32 = 0x80;
    pub(crate) const MMP: u32 = 0x100;
    pub(crate) const FLEX_BG: u32 = 0x200;
    pub(crate) const EA_INODE: u32 = 0x400;
    pub(crate) const DIRDATA: u32 = 0x1000;
    pub(crate) const CSUM_SEED: u32 = 0x2000;
    pub(crate) const LARGEDIR: u32 = 0x4000;
    pub(crate) const INLINE_DATA: u32 = 0x8000;
    pub(crate) const ENCRYPT: u32 = 0x1_0000;
    pub(crate) const CASEFOLD: u32 = 0x2_0000;
    /// What is read here.
    pub(crate) const READ: u32 = FILETYPE
        | RECOVER
        | META_BG
        | EXTENTS
        | BITS_64
        | MMP
        | FLEX_BG
        | EA_INODE
        | CSUM_SEED
        | LARGEDIR
        | INLINE_DATA
        | ENCRYPT
        | CASEFOLD;
    /// What ext2 and ext3 know.
    pub(crate) const EXT2: u32 = FILETYPE | META_BG;
    pub(crate) const EXT3: u32 = EXT2 | RECOVER;
}

/// `feature_ro_compat`: an unknown one forbids writing only.
pub(super) mod ro_compat {
    pub(crate) const SPARSE_SUPER: u32 = 0x1;
    pub(crate) const HUGE_FILE: u32 = 0x8;
    pub(crate) const GDT_CSUM: u32 = 0x10;
    pub(crate) const BIGALLOC: u32 = 0x200;
    pub(crate) const METADATA_CSUM: u32 = 0x400;
    /// What ext2 and ext3 know: sparse_super, large_file, btree_dir.
    pub(crate) const EXT3: u32 = 0x7;
}

/// What the superblock says, checked.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub(super) inodes: u32,
    pub(super) inodes_free: u32,
    pub(super) blocks: u64,
    pub(super) blocks_reserved: u64,
    pub(super) blocks_free: u64,
    pub(super) first_data_block: u32,
    /// A power of two, 1024 to 65536.
    pub(super) block_bytes: u32,
    /// Blocks of a cluster: a power of two.
    pub(super) cluster_blocks: u32,
    /// Not 0.
    pub(super) blocks_per_group: u32,
    /// Not 0.
    pub(super) inodes_per_group: u32,
    /// A power of two, 128 to the block size.
    pub(super) inode_bytes: u16,
    /// A power of two, 32 to the block size.
    pub(super) descriptor_bytes: u16,
    pub(super) groups: u32,
    pub(super) compat: u32,
    pub(super) incompat: u32,
    pub(super) ro_compat: u32,
    pub(super) uuid: [u8; 16],
    pub(super) label: String,
    pub(super) reserved_gdt_blocks: u16,
    pub(super) journal_inode: u32,
    pub(super) hash_seed: [u32; 4],
    /// Whether names are hashed as unsigned bytes.
    pub(super) hash_unsigned: bool,
    pub(super) first_meta_bg: u32,
    pub(super) backup_groups: [u32; 2],
    pub(super) overhead_clusters: u32,
    /// Where all crc32c of this file system start from.
    pub(super) checksum_seed: u32,
    /// Whether crc32c are verified.
    pub(super) verify: bool,
}

impl Superblock {
    /// Reads and checks `bytes`, the superblock of a device of `device_bytes` bytes.
    pub(super) fn parse(bytes: &[u8], device_bytes: u64, verify: bool) -> Result<Self> {
        let magic = le16(bytes, 0x38)?;
        if magic != MAGIC {
            return Err(Corrupt::Magic { found: magic }.into());
        }
        let dynamic = le32(bytes, 0x4C)? >= 1;
        let feature = |at| if dynamic { le32(bytes, at) } else { Ok(0) };
        let (compat, incompat, ro_compat) = (feature(0x5C)?, feature(0x60)?, feature(0x64)?);
        check_features(incompat)?;
        let metadata_csum = ro_compat & ro_compat::METADATA_CSUM != 0;
        if metadata_csum {
            let kind = byte(bytes, 0x175)?;
            if kind != 1 {
                let what = format!("ext4 with metadata checksums of type {kind}, where only crc32c (1) is known");
                return Err(Error::new(Kind::Unsupported, what));
            }
            if verify && crc32c(!0, part(bytes, 0, 0x3FC)?) != le32(bytes, 0x3FC)? {
                return Err(Corrupt::SuperblockChecksum.into());
            }
        }
        let bits_64 = incompat & incompat::BITS_64 != 0;
        let wide =
            |low, high| -> Result<u64> { Ok(join(le32(bytes, low)?, if bits_64 { le32(bytes, high)? } else { 0 })) };
        let bad = |field, value| Err(Error::from(Corrupt::Geometry { field, value }));

        let log_block = le32(bytes, 0x18)?;
        if log_block > 6 {
            return bad("log_block_size", log_block.into());
        }
        let block_bytes = 1024_u32.checked_shl(log_block).unwrap_or(1024);
        let bigalloc = ro_compat & ro_compat::BIGALLOC != 0;
        let log_cluster = if bigalloc { le32(bytes, 0x1C)? } else { log_block };
        if log_cluster < log_block || log_cluster > 20 {
            return bad("log_cluster_size", log_cluster.into());
        }
        let cluster_blocks = 1_u32.checked_shl(log_cluster.saturating_sub(log_block)).unwrap_or(1);
        let block_bits = block_bytes.saturating_mul(8);

        let blocks = wide(0x4, 0x150)?;
        let first_data_block = le32(bytes, 0x14)?;
        if first_data_block > 1 || u64::from(first_data_block) >= blocks {
            return bad("first_data_block", first_data_block.into());
        }
        let claimed = blocks.saturating_mul(block_bytes.into());
        if claimed > device_bytes {
            return Err(Corrupt::DeviceSize { claimed, device: device_bytes }.into());
        }
        let blocks_per_group = le32(bytes, 0x20)?;
        if blocks_per_group == 0 || blocks_per_group > block_bits.saturating_mul(cluster_blocks) {
            return bad("blocks_per_group", blocks_per_group.into());
        }
        let inodes_per_group = le32(bytes, 0x28)?;
        if inodes_per_group == 0 || inodes_per_group > block_bits {
            return bad("inodes_per_group", inodes_per_group.into());
        }
        let groups = blocks.saturating_sub(first_data_block.into()).div_ceil(blocks_per_group.into());
        let inodes = le32(bytes, 0)?;
        if inodes < 2 || u64::from(inodes) > groups.saturating_mul(inodes_per_group.into()) {
            return bad("inodes_count", inodes.into());
        }
        let Ok(groups) = u32::try_from(groups) else { return bad("blocks_count", blocks) };
        let inode_bytes = if dynamic { le16(bytes, 0x58)? } else { 128 };
        if !inode_bytes.is_power_of_two() || inode_bytes < 128 || u32::from(inode_bytes) > block_bytes {
            return bad("inode_size", inode_bytes.into());
        }
        let descriptor_bytes = if bits_64 { le16(bytes, 0xFE)? } else { 32 };
        if !descriptor_bytes.is_power_of_two()
            || u32::from(descriptor_bytes) > block_bytes
            || (bits_64 && descriptor_bytes < 64)
        {
            return bad("desc_size", descriptor_bytes.into());
        }
        let uuid: [u8; 16] = array(bytes, 0x68)?;
        let label = part(bytes, 0x78, 16)?;
        let label = label.split(|byte| *byte == 0).next().unwrap_or_default();
        let mut hash_seed = [0; 4];
        for (at, word) in (0xEC..).step_by(4).zip(&mut hash_seed) {
            *word = le32(bytes, at)?;
        }
        let checksum_seed = if incompat & incompat::CSUM_SEED != 0 { le32(bytes, 0x270)? } else { crc32c(!0, &uuid) };
        Ok(Self {
            inodes,
            inodes_free: le32(bytes, 0x10)?,
            blocks,
            blocks_reserved: wide(0x8, 0x154)?,
            blocks_free: wide(0xC, 0x158)?,
            first_data_block,
            block_bytes,
            cluster_blocks,
            blocks_per_group,
            inodes_per_group,
            inode_bytes,
            descriptor_bytes,
            groups,
            compat,
            incompat,
            ro_compat,
            uuid,
            label: String::from_utf8_lossy(label).into_owned(),
            reserved_gdt_blocks: le16(bytes, 0xCE)?,
            journal_inode: le32(bytes, 0xE0)?,
            hash_seed,
            hash_unsigned: le32(bytes, 0x160)? & 2 != 0,
            first_meta_bg: le32(bytes, 0x104)?,
            backup_groups: [le32(bytes, 0x24C)?, le32(bytes, 0x250)?],
            overhead_clusters: le32(bytes, 0x248)?,
            checksum_seed,
            verify: verify && metadata_csum,
        })
    }

    pub(super) fn has_compat(&self, feature: u32) -> bool {
        self.compat & feature != 0
    }

    pub(super) fn has_incompat(&self, feature: u32) -> bool {
        self.incompat & feature != 0
    }

    pub(super) fn has_ro_compat(&self, feature: u32) -> bool {
        self.ro_compat & feature != 0
    }

    /// ext2, ext3 or ext4, told apart as blkid does: by the oldest one that knows all of its features.
    pub(super) fn name(&self) -> &'static str {
        let old = self.ro_compat & !ro_compat::EXT3 == 0;
        match self.has_compat(compat::HAS_JOURNAL) {
            true if old && self.incompat & !incompat::EXT3 == 0 => "ext3",
            false if old && self.incompat & !incompat::EXT2 == 0 => "ext2",
            _ => "ext4",
        }
    }
}

/// That nothing is needed for reading that is not known here.
fn check_features(incompat: u32) -> Result<()> {
    let unsupported = |what: String| Err(Error::new(Kind::Unsupported, what));
    if incompat & incompat::JOURNAL_DEV != 0 {
        return unsupported("journal of an ext4 file system that lies elsewhere, which holds no files".into());
    }
    let unknown = incompat & !incompat::READ;
    if unknown == 0 {
        return Ok(());
    }
    let names: Vec<String> = (0..32_u32)
        .filter_map(|bit| 1_u32.checked_shl(bit))
        .filter(|feature| unknown & feature != 0)
        .map(|feature| match feature {
            incompat::COMPRESSION => "compression".into(),
            incompat::DIRDATA => "dirdata".into(),
            _ => format!("{feature:#x}"),
        })
        .collect();
    unsupported(format!("ext4 file system with the incompatible feature {}", names.join(", ")))
}
