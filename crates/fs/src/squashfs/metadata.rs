//! Metadata blocks and the tables made of them.
//!
//! ```text
//! header, 2 │ up to 8192 bytes, packed     header: bytes that follow; bit 15: they are not compressed
//! ```
//! A run of such blocks is one stream of bytes of 8 KiB pieces. A place in it is the position of a block on the device,
//! and an offset in what it unpacks to.

use std::sync::Arc;

use block::{ReadAt, Result, check_range};

use super::corrupt::Corrupt;
use super::superblock::Superblock;
use crate::cache::Cache;
use block::bytes::le_u16;

/// Bytes that a metadata block unpacks to; the last one of a table to fewer.
pub(super) const METADATA_BYTES: usize = 8192;
/// The same for positions.
pub(super) const METADATA_BYTES_U64: u64 = METADATA_BYTES as u64;
/// The most metadata that is remembered, bytes.
const METADATA_CACHE_BYTES_MAX: usize = 8 << 20;
const HEADER_BYTES: usize = 2;
const UNCOMPRESSED: u16 = 1 << 15;

/// The device, what the superblock says, and the metadata last read.
#[derive(Debug)]
pub(super) struct Medium {
    pub device: Arc<dyn ReadAt>,
    pub superblock: Superblock,
    metadata: Cache<Arc<Metadata>>,
}

/// An unpacked metadata block.
#[derive(Debug)]
struct Metadata {
    bytes: Vec<u8>,
    /// Where the next one begins.
    next: u64,
}

/// A place in a stream of metadata blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Where the block begins on the device, bytes.
    pub block: u64,
    /// Offset in what it unpacks to.
    pub offset: usize,
}

impl Place {
    /// That of a reference (the block's position in its table, and below 16 bits the offset) into a table at `table`.
    pub fn new(table: u64, reference: u64) -> Option<Self> {
        let offset = usize::try_from(reference & 0xFFFF).ok().filter(|offset| *offset < METADATA_BYTES)?;
        Some(Self { block: table.checked_add(reference >> 16)?, offset })
    }
}

impl Medium {
    pub fn new(device: Arc<dyn ReadAt>, superblock: Superblock) -> Self {
        Self { device, superblock, metadata: Cache::new(METADATA_CACHE_BYTES_MAX, |metadata| metadata.bytes.len()) }
    }

    /// That `len` bytes at `start` lie inside the image.
    pub fn is_inside(&self, start: u64, len: u64) -> bool {
        check_range(self.superblock.bytes_used, start, len).is_ok()
    }

    fn metadata(&self, at: u64) -> Result<Arc<Metadata>> {
        self.metadata.get((at, 0), || self.load(at).map(Arc::new))
    }

    fn load(&self, at: u64) -> Result<Metadata> {
        let outside = || Corrupt::MetadataBlock.at(format!("metadata block at {at}"));
        let left = self.superblock.bytes_used.saturating_sub(at);
        let mut space = [0; METADATA_BYTES + HEADER_BYTES];
        // One read for both: the block may be shorter.
        let there = usize::try_from(left).unwrap_or(usize::MAX).min(space.len());
        let raw = space.get_mut(..there).ok_or_else(outside)?;
        if raw.len() <= HEADER_BYTES {
            return Err(outside());
        }
        self.device.read_at(raw, at)?;
        let header = le_u16(raw, 0).ok_or_else(outside)?;
        let len = usize::from(header & !UNCOMPRESSED);
        let packed = raw.get(HEADER_BYTES..).and_then(|rest| rest.get(..len)).ok_or_else(outside)?;
        if packed.is_empty() {
            return Err(outside());
        }
        let bytes = if header & UNCOMPRESSED != 0 {
            packed.to_vec()
        } else {
            let mut bytes = vec![0; METADATA_BYTES];
            let broken = || Corrupt::Metadata.at(format!("metadata block at {at}, {len} bytes"));
            let len = self.superblock.compression.decompress(packed, &mut bytes).filter(|len| *len > 0);
            bytes.truncate(len.ok_or_else(broken)?);
            bytes
        };
        Ok(Metadata { bytes, next: at.saturating_add(HEADER_BYTES as u64).saturating_add(len as u64) })
    }

    /// Reads from `place` on.
    pub fn reader(&self, place: Place) -> Reader<'_> {
        Reader { medium: self, place, block: None }
    }

    /// The place of entry `number` of a table, where a list of 8-byte positions of metadata blocks begins at `list`, and
    /// each block holds as many entries of `entry_bytes` as fit.
    ///
    /// # Errors
    /// `missing`, where the list leaves the image; the failure of the device.
    pub fn table_entry(&self, list: u64, number: u32, entry_bytes: usize, missing: Corrupt) -> Result<Place> {
        let byte = u64::from(number).saturating_mul(entry_bytes as u64);
        let pointer = list.saturating_add((byte / METADATA_BYTES_U64).saturating_mul(8));
        if !self.is_inside(pointer, 8) {
            return Err(missing.at(format!("entry {number} of the table at {list}")));
        }
        let mut block = [0; 8];
        self.device.read_at(&mut block, pointer)?;
        let offset = usize::try_from(byte % METADATA_BYTES_U64).unwrap_or(0);
        Ok(Place { block: u64::from_le_bytes(block), offset })
    }
}

/// A stream of metadata from a place on.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    medium: &'a Medium,
    place: Place,
    block: Option<Arc<Metadata>>,
}

impl Reader<'_> {
    /// Where the next byte is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Passes the next bytes to `take`, piece by piece, `len` in all.
    fn pieces(&mut self, mut len: usize, mut take: impl FnMut(&[u8])) -> Result<()> {
        while len > 0 {
            let block = match self.block.take() {
                Some(block) => block,
                None => self.medium.metadata(self.place.block)?,
            };
            let Some(there) = block.bytes.get(self.place.offset..) else {
                let Place { block, offset } = self.place;
                return Err(Corrupt::MetadataOffset.at(format!("byte {offset} of the metadata block at {block}")));
            };
            if there.is_empty() {
                self.place = Place { block: block.next, offset: 0 };
                continue;
            }
            let part = there.get(..len).unwrap_or(there);
            take(part);
            len = len.saturating_sub(part.len());
            self.place.offset = self.place.offset.saturating_add(part.len());
            self.block = Some(block);
        }
        Ok(())
    }

    /// Fills `buf`.
    ///
    /// # Errors
    /// `Corrupt`; the failure of the device.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<()> {
        let mut at = 0_usize;
        self.pieces(buf.len(), |part| {
            let end = at.saturating_add(part.len());
            if let Some(into) = buf.get_mut(at..end) {
                into.copy_from_slice(part);
            }
            at = end;
        })
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(&mut bytes).map(|()| bytes)
    }

    /// The next four bytes as a number.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn le_u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Leaves `len` bytes out.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn skip(&mut self, len: usize) -> Result<()> {
        self.pieces(len, |_| ())
    }
}
