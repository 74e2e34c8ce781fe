//! The superblock, at byte 1024.

use block::bytes::{byte, le_u16, le_u32, le_u64, read_up_to};
use block::{Error, Kind, ReadAt, Result};

use super::corrupt::Corrupt;

/// Where it begins, bytes.
pub(super) const SUPERBLOCK_OFFSET: u64 = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
/// Bytes of it without extra slots.
const BYTES_MIN: usize = 128;
/// With all the fields that are known.
const BYTES_KNOWN: usize = 144;
/// Logarithms of the block sizes that there are: 512 bytes to 64 KiB.
const BLOCK_LOG: std::ops::RangeInclusive<u8> = 9..=16;
/// Set in the number of an inode that lies in the metabox.
pub(super) const IN_METABOX: u64 = 1 << 63;

/// Features that a reader may ignore.
pub(super) mod compat {
    pub const CHECKSUM: u32 = 1;
    pub const SHARED_XATTRS_IN_METABOX: u32 = 8;
    pub const PLAIN_XATTR_PREFIXES: u32 = 16;
}

/// Features that a reader has to know.
pub(super) mod incompat {
    pub const ZERO_PADDING: u32 = 1;
    pub const COMPRESSION_CONFIGS: u32 = 2;
    pub const DEVICE_TABLE: u32 = 8;
    pub const LONG_ADDRESSES: u32 = 0x80;
    pub const METABOX: u32 = 0x100;
    /// All that are known.
    pub const KNOWN: u32 = (METABOX << 1) - 1;
}

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    pub block_log: u8,
    pub compat: u32,
    pub incompat: u32,
    /// Bytes of it.
    pub bytes: u64,
    pub root: u64,
    pub inodes: u64,
    /// Of compact inodes: seconds that theirs are added to, and nanoseconds.
    pub epoch: i64,
    pub nanoseconds: u32,
    pub blocks: u64,
    /// Where inodes begin, blocks.
    pub meta: u32,
    /// Where shared attributes begin, blocks.
    pub xattrs: u32,
    pub volume_name: [u8; 16],
    /// The compression algorithms in use, a bit each.
    pub algorithms: u16,
    /// Devices beside this one, and where they are listed, in units of 128 bytes.
    pub devices: u16,
    pub device_table: u16,
    /// Of long attribute prefixes: how many, and where, in units of 4 bytes.
    pub prefixes: u8,
    pub prefix_start: u32,
    /// The inode whose content are fragments.
    pub packed: Option<u64>,
    /// The inode whose content are inodes.
    pub metabox: Option<u64>,
}

impl Superblock {
    /// Whether a device has one.
    ///
    /// # Errors
    /// The failure of the device.
    pub fn is_on(device: &dyn ReadAt) -> Result<bool> {
        Ok(le_u32(&read_up_to(device, SUPERBLOCK_OFFSET, 4)?, 0) == Some(MAGIC))
    }

    /// Reads and checks it.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for features that are not known; `Corrupt`; the failure of the device.
    pub fn read(device: &dyn ReadAt) -> Result<Self> {
        let bytes = read_up_to(device, SUPERBLOCK_OFFSET, 1 << *BLOCK_LOG.end())?;
        if le_u32(&bytes, 0) != Some(MAGIC) {
            return Err(Error::new(Kind::Unsupported, "device without an erofs superblock"));
        }
        let cut = || Corrupt::Superblock.at(format!("superblock of erofs on a device of {} bytes", device.size()));
        let superblock = Self::parse(&bytes).ok_or_else(cut)?;
        superblock.check(&bytes, device.size())?;
        Ok(superblock)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let extra = usize::from(byte(bytes, 13)?).checked_mul(16)?;
        let len = BYTES_MIN.checked_add(extra)?;
        let mut fields = [0; BYTES_KNOWN];
        let there = len.min(BYTES_KNOWN);
        fields.get_mut(..there)?.copy_from_slice(bytes.get(..len)?.get(..there)?);
        let bytes = &fields;
        let incompat = le_u32(bytes, 80)?;
        let (low, short) = (u64::from(le_u32(bytes, 36)?), le_u16(bytes, 14)?);
        let long_root = le_u64(bytes, 112)?;
        // The short number of the root is the high part of the count of blocks where the root has a long one.
        let (root, blocks) = if incompat & incompat::LONG_ADDRESSES != 0 && long_root != 0 {
            (long_root, low | (u64::from(short) << 32))
        } else {
            (u64::from(short), low)
        };
        let metabox = (incompat & incompat::METABOX != 0).then_some(le_u64(bytes, 128)?);
        let packed = Some(le_u64(bytes, 96)?).filter(|inode| *inode != 0);
        Some(Self {
            block_log: byte(bytes, 12)?,
            compat: le_u32(bytes, 8)?,
            incompat,
            bytes: len as u64,
            root,
            inodes: le_u64(bytes, 16)?,
            epoch: le_u64(bytes, 24)?.cast_signed(),
            nanoseconds: le_u32(bytes, 32)?,
            blocks,
            meta: le_u32(bytes, 40)?,
            xattrs: le_u32(bytes, 44)?,
            volume_name: block::bytes::array(bytes, 64)?,
            algorithms: le_u16(bytes, 84)?,
            devices: if incompat & incompat::DEVICE_TABLE != 0 { le_u16(bytes, 86)? } else { 0 },
            device_table: le_u16(bytes, 88)?,
            prefixes: byte(bytes, 91)?,
            prefix_start: le_u32(bytes, 92)?,
            packed,
            metabox,
        })
    }

    fn check(&self, bytes: &[u8], device_bytes: u64) -> Result<()> {
        if !BLOCK_LOG.contains(&self.block_log) {
            return Err(Corrupt::BlockSize.at(format!("blocks of 2 to the {} bytes", self.block_log)));
        }
        let unknown = self.incompat & !incompat::KNOWN;
        if unknown != 0 {
            return Err(Error::new(
                Kind::Unsupported,
                format!("erofs with the features {unknown:#x}, which are newer than this program"),
            ));
        }
        if self.compat & compat::CHECKSUM != 0 {
            self.check_sum(bytes)?;
        }
        let in_metabox = |inode: Option<u64>| inode.is_some_and(|inode| inode & IN_METABOX != 0);
        let metabox_cut = self.metabox.is_some() && self.bytes < BYTES_KNOWN as u64;
        if metabox_cut || in_metabox(self.metabox) || in_metabox(self.packed) || self.nanoseconds >= 1_000_000_000 {
            return Err(Corrupt::Superblock.at("superblock of erofs"));
        }
        let start = u64::from(self.meta) << self.block_log;
        if start >= device_bytes {
            return Err(Corrupt::Superblock.at(format!("inodes from byte {start} of a device of {device_bytes}")));
        }
        Ok(())
    }

    /// The sum goes over the rest of the superblock's block, its own field as zero; it is not inverted at the end.
    fn check_sum(&self, bytes: &[u8]) -> Result<()> {
        let block = 1_usize << self.block_log;
        let offset = SUPERBLOCK_OFFSET as usize;
        let len = if block > offset { block.saturating_sub(offset) } else { block };
        let mut summed = bytes.get(..len).unwrap_or(bytes).to_vec();
        let said = le_u32(&summed, 4);
        if let Some(field) = summed.get_mut(4..8) {
            field.fill(0);
        }
        let sum = !crc32c::crc32c(&summed);
        if said != Some(sum) {
            let said = said.unwrap_or_default();
            return Err(Corrupt::Checksum.at(format!("superblock of erofs, whose sum is {sum:#x} and not {said:#x}")));
        }
        Ok(())
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> u64 {
        1 << self.block_log
    }

    /// Where in its block a byte is.
    pub fn inside_block(&self, at: u64) -> u64 {
        at & self.block_bytes().saturating_sub(1)
    }
}
