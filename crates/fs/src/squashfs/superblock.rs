//! The first 96 bytes.

use block::{Error, Kind, ReadAt, Result};

use super::compression::Compression;
use super::corrupt::Corrupt;
use block::bytes::{le_u16, le_u32, le_u64};

/// "hsqs".
const MAGIC: u32 = 0x7371_7368;
/// "sqsh": squashfs before version 4, of a machine of the other byte order.
const MAGIC_SWAPPED: u32 = 0x6873_7173;
/// Bytes of it.
pub(super) const SUPERBLOCK_BYTES: usize = 96;
/// A table that is not there.
const NO_TABLE: u64 = u64::MAX;
/// Whether compressor options stand in a metadata block behind the superblock.
pub(super) const COMPRESSOR_OPTIONS: u16 = 1 << 10;
/// Logarithms of the block sizes that there are: 4 KiB to 1 MiB.
const BLOCK_LOG: std::ops::RangeInclusive<u16> = 12..=20;

/// What it says; positions are bytes of the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Superblock {
    pub inodes: u32,
    pub block_bytes: u32,
    pub block_log: u16,
    pub fragments: u32,
    pub compression: Compression,
    pub flags: u16,
    pub ids: u16,
    pub root_inode: u64,
    pub bytes_used: u64,
    pub id_table: u64,
    pub xattr_table: Option<u64>,
    pub inode_table: u64,
    pub directory_table: u64,
    pub fragment_table: Option<u64>,
}

impl Superblock {
    /// Whether a device begins with one.
    ///
    /// # Errors
    /// The failure of the device.
    pub fn is_on(device: &dyn ReadAt) -> Result<bool> {
        if device.size() < SUPERBLOCK_BYTES as u64 {
            return Ok(false);
        }
        let mut magic = [0; 4];
        device.read_at(&mut magic, 0)?;
        Ok([MAGIC, MAGIC_SWAPPED].contains(&u32::from_le_bytes(magic)))
    }

    /// Reads and checks it.
    ///
    /// # Errors
    /// [`Kind::Unsupported`]; `Corrupt`; the failure of the device.
    pub fn read(device: &dyn ReadAt) -> Result<Self> {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        device.read_at(&mut bytes, 0)?;
        Self::parse(&bytes, device.size()).unwrap_or_else(|| Err(Corrupt::Table.at("superblock of squashfs")))
    }

    fn parse(bytes: &[u8; SUPERBLOCK_BYTES], device_bytes: u64) -> Option<Result<Self>> {
        let magic = le_u32(bytes, 0)?;
        let (major, minor) = (le_u16(bytes, 28)?, le_u16(bytes, 30)?);
        if magic == MAGIC_SWAPPED {
            return Some(Err(Error::new(Kind::Unsupported, "squashfs of big-endian machines, before version 4")));
        }
        if magic != MAGIC {
            return Some(Err(Error::new(Kind::Unsupported, "device without a squashfs superblock")));
        }
        if (major, minor) != (4, 0) {
            return Some(Err(Error::new(Kind::Unsupported, format!("squashfs of version {major}.{minor}"))));
        }
        let compression = match Compression::new(le_u16(bytes, 20)?) {
            Ok(compression) => compression,
            Err(error) => return Some(Err(error)),
        };
        let table = |at| Some(le_u64(bytes, at)?).map(|start| (start != NO_TABLE).then_some(start));
        let superblock = Self {
            inodes: le_u32(bytes, 4)?,
            block_bytes: le_u32(bytes, 12)?,
            block_log: le_u16(bytes, 22)?,
            fragments: le_u32(bytes, 16)?,
            compression,
            flags: le_u16(bytes, 24)?,
            ids: le_u16(bytes, 26)?,
            root_inode: le_u64(bytes, 32)?,
            bytes_used: le_u64(bytes, 40)?,
            id_table: le_u64(bytes, 48)?,
            xattr_table: table(56)?,
            inode_table: le_u64(bytes, 64)?,
            directory_table: le_u64(bytes, 72)?,
            fragment_table: table(80)?,
        };
        Some(superblock.check(device_bytes).map(|()| superblock))
    }

    fn check(&self, device_bytes: u64) -> Result<()> {
        let Self { block_bytes, block_log, bytes_used, .. } = *self;
        if !BLOCK_LOG.contains(&block_log) || 1_u32.checked_shl(u32::from(block_log)) != Some(block_bytes) {
            return Err(Corrupt::BlockSize.at(format!("blocks of {block_bytes} bytes, the logarithm {block_log}")));
        }
        if bytes_used > device_bytes {
            return Err(Corrupt::Truncated.at(format!("{bytes_used} bytes of squashfs on a device of {device_bytes}")));
        }
        let others = [Some(self.id_table), self.xattr_table, self.fragment_table];
        let first = SUPERBLOCK_BYTES as u64;
        let in_order = first <= self.inode_table && self.inode_table < self.directory_table;
        let inside = |start: u64| self.directory_table <= start && start < bytes_used;
        if !in_order || self.directory_table >= bytes_used || !others.into_iter().flatten().all(inside) {
            return Err(Corrupt::Table.at(format!("tables of {bytes_used} bytes of squashfs")));
        }
        Ok(())
    }
}
