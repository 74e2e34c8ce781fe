//! The device, what the superblock says, and what was last used of it.

use std::ops::Range;
use std::sync::Arc;

use block::bytes::{le_u16, le_u32, read_up_to};
use block::{Error, Kind, ReadAt, Result, check_range};

use super::cluster::Chunk;
use super::content::File;
use super::corrupt::Corrupt;
use super::superblock::{Superblock, incompat};
use crate::cache::Cache;

/// Bytes of a device's slot.
const SLOT_BYTES: u64 = 128;
/// The most unpacked data that is remembered, bytes.
const DATA_CACHE_BYTES_MAX: usize = 64 << 20;
/// The most of the indexes of compressed files that is remembered, bytes.
const INDEX_CACHE_BYTES_MAX: usize = 4 << 20;
/// The most files that are remembered, bytes.
const FILE_CACHE_BYTES_MAX: usize = 256 << 10;

/// What all readers share.
#[derive(Debug)]
pub(super) struct Medium {
    pub device: Arc<dyn ReadAt>,
    pub superblock: Superblock,
    /// Addresses of content that other devices hold, in their order.
    others: Vec<Range<u64>>,
    /// The file whose content are inodes, once it is known.
    pub metabox: Option<Arc<File>>,
    /// The file whose content are fragments, once it is known.
    pub packed: Option<Arc<File>>,
    pub files: Cache<Arc<File>>,
    pub indexes: Cache<Arc<Chunk>>,
    pub data: Cache<Arc<[u8]>>,
}

impl Medium {
    /// # Errors
    /// `Corrupt`; the failure of the device.
    pub fn new(device: Arc<dyn ReadAt>, superblock: Superblock) -> Result<Self> {
        let others = others(&*device, &superblock)?;
        Ok(Self {
            device,
            superblock,
            others,
            metabox: None,
            packed: None,
            files: Cache::new(FILE_CACHE_BYTES_MAX, |_| size_of::<File>()),
            indexes: Cache::new(INDEX_CACHE_BYTES_MAX, |chunk| chunk.bytes()),
            data: Cache::new(DATA_CACHE_BYTES_MAX, |data| data.len()),
        })
    }

    /// That `len` bytes of content lie on this device, and not in what is meant to be another.
    ///
    /// # Errors
    /// [`Kind::Unsupported`]; `Corrupt`.
    pub fn stored(&self, at: u64, len: u64) -> Result<()> {
        if let Some(number) = self.others.iter().position(|range| range.contains(&at)) {
            return Err(elsewhere(number.saturating_add(1)));
        }
        check_range(self.device.size(), at, len)
            .map_err(|error| Corrupt::Data.at(format!("{len} bytes at {at}")).with_source(error))
    }

    /// That a device's number is that of this one.
    ///
    /// # Errors
    /// [`Kind::Unsupported`]; `Corrupt`.
    pub fn check_device(&self, number: u16) -> Result<()> {
        // The number may have flags above as many bits as are needed.
        let mask = u32::from(self.superblock.devices).saturating_add(1).next_power_of_two().saturating_sub(1);
        match u32::from(number) & mask {
            0 => Ok(()),
            number if number > u32::from(self.superblock.devices) => {
                Err(Corrupt::Chunk.at(format!("chunk on device {number} of {}", self.superblock.devices)))
            }
            number => Err(elsewhere(number as usize)),
        }
    }

    /// Reads metadata at `at` of the device or of the metabox into the beginning of `buf`, as far as there is any, and
    /// says how many bytes there were.
    ///
    /// # Errors
    /// `Corrupt`; the failure of the device.
    pub fn meta_up_to(&self, in_metabox: bool, at: u64, buf: &mut [u8]) -> Result<usize> {
        if in_metabox {
            let metabox = self.metabox.as_ref();
            let metabox = metabox.ok_or_else(|| Corrupt::Inode.at("inode in the metabox of an image without one"))?;
            return metabox.read(self, buf, at);
        }
        let left = usize::try_from(self.device.size().saturating_sub(at)).unwrap_or(usize::MAX);
        let there = left.min(buf.len());
        if there > 0 {
            self.device.read_at(buf.get_mut(..there).unwrap_or_default(), at)?;
        }
        Ok(there)
    }

    /// Fills `buf` with the metadata at `at`.
    ///
    /// # Errors
    /// `missing`, where there is not so much; `Corrupt`; the failure of the device.
    pub fn meta(&self, in_metabox: bool, at: u64, buf: &mut [u8], missing: Corrupt) -> Result<()> {
        let len = buf.len();
        if self.meta_up_to(in_metabox, at, buf)? < len {
            return Err(missing.at(format!("{len} bytes at {at}")));
        }
        Ok(())
    }
}

/// ```text
/// slot    tag, 64 │ blocks, 4 │ address, 4 │ high parts of both, 2 each │ 0, 52
/// ```
/// The addresses at which other devices are thought to be, those that have one.
fn others(device: &dyn ReadAt, superblock: &Superblock) -> Result<Vec<Range<u64>>> {
    let mut others = Vec::new();
    for number in 0..superblock.devices {
        let at = u64::from(superblock.device_table).saturating_add(u64::from(number)).saturating_mul(SLOT_BYTES);
        let slot = read_up_to(device, at, 128)?;
        let (Some(blocks), Some(start)) = (le_u32(&slot, 64), le_u32(&slot, 68)) else {
            return Err(Corrupt::Superblock.at(format!("device {number} of {}", superblock.devices)));
        };
        let high = |at| match superblock.incompat & incompat::LONG_ADDRESSES {
            0 => 0,
            _ => u64::from(le_u16(&slot, at).unwrap_or_default()) << 32,
        };
        let bytes = |blocks: u64| blocks.saturating_mul(superblock.block_bytes());
        let start = bytes(u64::from(start) | high(74));
        // Those without an address stay in the list, so that places in it are numbers.
        let len = if start == 0 { 0 } else { bytes(u64::from(blocks) | high(72)) };
        others.push(start..start.saturating_add(len));
    }
    Ok(others)
}

fn elsewhere(number: usize) -> Error {
    let why = "which erofs images of several devices keep in files of their own; only the first one was given";
    Error::new(Kind::Unsupported, format!("content on device {number}, {why}"))
}
