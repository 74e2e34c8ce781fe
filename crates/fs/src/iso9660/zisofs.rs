//! Content that is compressed block by block (zisofs, and zisofs2 as libisofs writes it).
//!
//! ```text
//! ZF  "pz" │ header/4 │ log2 block │ size (LE, BE)          version 1
//! ZF  "PZ" │ header/4 │ log2 block │ size, 8 (LE)           version 2; Z2 instead of ZF hides it from old kernels
//!
//! 37 E4 53 96 C9 DB D6 07 │ size, 4 │ header/4 │ log2 block │ 0 0                    file, version 1
//! EF 22 55 A1 BC 1B 95 A0 │ 0 │ header/4 │ algorithm │ log2 block │ size, 8 │ 0 …      file, version 2
//! then a pointer for each block and one for the end of the last: 4 bytes in version 1, 8 in version 2
//! then the blocks, each a zlib stream; one of no bytes is all zeros
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use block::bytes::{byte, le_u32, le_u64};
use block::{Error, Kind, Result};
use flate2::{Decompress, FlushDecompress, Status};

use super::Medium;
use super::content::{Content, encoded};
use super::corrupt::{Corrupt, Parsed};
use crate::FileExtent;

/// The smallest and largest block: 32 KiB to 1 MiB.
const BLOCK_LOG2: std::ops::RangeInclusive<u8> = 15..=20;
/// How many decompressed blocks are remembered.
const BLOCKS_MAX: usize = 8;
/// How many pointers are looked at to find the end of an extent.
const POINTERS_MAX: u64 = 256;

const MAGIC_1: [u8; 8] = [0x37, 0xe4, 0x53, 0x96, 0xc9, 0xdb, 0xd6, 0x07];
const MAGIC_2: [u8; 8] = [0xef, 0x22, 0x55, 0xa1, 0xbc, 0x1b, 0x95, 0xa0];

/// What a ZF entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Compression {
    /// Whether it is zisofs2.
    second: bool,
    /// The algorithm, where it is not zlib.
    unknown: Option<[u8; 2]>,
    /// Bytes before the pointers.
    header_bytes: u64,
    block_log2: u8,
    /// Bytes of the content when it is decompressed.
    pub size: u64,
}

impl Compression {
    /// What the data of a ZF entry say.
    pub fn parse(version: u8, data: &[u8]) -> Parsed<Self> {
        let algorithm = [byte(data, 0).ok_or(Corrupt::SystemUse)?, byte(data, 1).ok_or(Corrupt::SystemUse)?];
        let second = version >= 2;
        let block_log2 = byte(data, 3).ok_or(Corrupt::SystemUse)?;
        let size = if second { le_u64(data, 4) } else { le_u32(data, 4).map(u64::from) }.ok_or(Corrupt::SystemUse)?;
        if !BLOCK_LOG2.contains(&block_log2) || size > i64::MAX.cast_unsigned() {
            return Err(Corrupt::ZisofsHeader);
        }
        Ok(Self {
            second,
            unknown: (algorithm != if second { *b"PZ" } else { *b"pz" }).then_some(algorithm),
            header_bytes: u64::from(byte(data, 2).unwrap_or(0)).saturating_mul(4),
            block_log2,
            size,
        })
    }

    /// That it is one that is served, and that the header of the file says the same.
    fn check(&self, medium: &Medium, content: &Content) -> Result<()> {
        let position = content.position;
        if let Some(algorithm) = self.unknown {
            let algorithm = algorithm.escape_ascii();
            return Err(Error::new(
                Kind::Unsupported,
                format!("zisofs compression \"{algorithm}\" of the file at {position}"),
            ));
        }
        let mut header = [0_u8; 20];
        let header_len = if self.second { 20 } else { 16 };
        let header = header.get_mut(..header_len).unwrap_or_default();
        let read = content.runs.read(medium, header, 0)?;
        let right = read == header.len()
            && if self.second {
                header.starts_with(&MAGIC_2)
                    && le_u64(header, 12) == Some(self.size)
                    && byte(header, 10) == Some(1)
                    && byte(header, 11) == Some(self.block_log2)
                    && byte(header, 9).map(u64::from) == Some(self.header_bytes / 4)
            } else {
                header.starts_with(&MAGIC_1)
                    && le_u32(header, 8).map(u64::from) == Some(self.size)
                    && byte(header, 12).map(u64::from) == Some(self.header_bytes / 4)
                    && byte(header, 13) == Some(self.block_log2)
            };
        if right { Ok(()) } else { Err(Corrupt::ZisofsHeader.at(format!("header of the zisofs file at {position}"))) }
    }

    /// Bytes of all blocks but the last.
    fn block_bytes(&self) -> u64 {
        1_u64.wrapping_shl(u32::from(self.block_log2))
    }

    /// Bytes of one block.
    fn block_len(&self, block: u64) -> usize {
        let start = block.saturating_mul(self.block_bytes());
        usize::try_from(self.size.saturating_sub(start).min(self.block_bytes())).unwrap_or(0)
    }

    /// Where the compressed blocks from `first` to before `end` lie in the file: one more pointer than blocks.
    fn pointers(&self, medium: &Medium, content: &Content, first: u64, end: u64) -> Result<Vec<u64>> {
        let corrupt = || {
            Corrupt::ZisofsPointer.at(format!("pointer of block {first} of the zisofs file at {}", content.position))
        };
        let width = if self.second { 8_u64 } else { 4 };
        let count = end.saturating_sub(first).min(POINTERS_MAX).saturating_add(1);
        let offset = first.checked_mul(width).and_then(|at| at.checked_add(self.header_bytes)).ok_or_else(corrupt)?;
        let mut bytes = vec![0_u8; usize::try_from(count.saturating_mul(width)).map_err(|_| corrupt())?];
        if content.runs.read(medium, &mut bytes, offset)? != bytes.len() {
            return Err(corrupt());
        }
        let pointers: Vec<u64> = if self.second {
            bytes.chunks_exact(8).filter_map(|bytes| le_u64(bytes, 0)).collect()
        } else {
            bytes.chunks_exact(4).filter_map(|bytes| le_u32(bytes, 0).map(u64::from)).collect()
        };
        let in_order = pointers.is_sorted() && pointers.last().is_some_and(|end| *end <= content.runs.size());
        if in_order { Ok(pointers) } else { Err(corrupt()) }
    }

    /// Decompresses what lies from `from` to `to` in the file into all of `out`.
    fn inflate(&self, medium: &Medium, content: &Content, from: u64, to: u64, out: &mut [u8]) -> Result<()> {
        let corrupt = || Corrupt::ZisofsBlock.at(format!("block at {from} of the zisofs file at {}", content.position));
        let len = to.saturating_sub(from);
        if len == 0 {
            out.fill(0);
            return Ok(());
        }
        // What does not compress grows by a few bytes.
        if len > self.block_bytes().saturating_mul(2) {
            return Err(corrupt());
        }
        let mut packed = vec![0_u8; usize::try_from(len).map_err(|_| corrupt())?];
        if content.runs.read(medium, &mut packed, from)? != packed.len() {
            return Err(corrupt());
        }
        let mut stream = Decompress::new(true);
        let status =
            stream.decompress(&packed, out, FlushDecompress::Finish).map_err(|error| corrupt().with_source(error));
        // A stream for exactly this block ends with it.
        match status {
            Ok(Status::StreamEnd) if stream.total_out() == out.len() as u64 => Ok(()),
            _ => Err(corrupt()),
        }
    }
}

/// Blocks that were last decompressed for reads of less than a block.
#[derive(Debug, Default)]
pub(super) struct Blocks(Mutex<VecDeque<Block>>);

#[derive(Debug)]
struct Block {
    /// The file's position, and the number of the block.
    of: (u64, u64),
    bytes: Arc<[u8]>,
}

impl Blocks {
    /// Fills `buf` from `offset` on, as far as there are bytes, and says how many there were.
    ///
    /// # Errors
    /// `Unsupported`; `Corrupt`; the failure of the device.
    pub fn read(
        &self,
        medium: &Medium,
        content: &Content,
        compression: &Compression,
        buf: &mut [u8],
        offset: u64,
    ) -> Result<usize> {
        let left = usize::try_from(compression.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = buf.len().min(left);
        let mut buf = buf.get_mut(..len).unwrap_or_default();
        if len == 0 {
            return Ok(0);
        }
        compression.check(medium, content)?;
        let mut block = offset >> compression.block_log2;
        let end = offset.saturating_add(len as u64).div_ceil(compression.block_bytes());
        let mut skip = usize::try_from(offset & compression.block_bytes().wrapping_sub(1)).unwrap_or(0);
        while block < end {
            let pointers = compression.pointers(medium, content, block, end)?;
            for pair in pointers.windows(2) {
                let &[from, to] = pair else { break };
                let whole = compression.block_len(block);
                let part = whole.saturating_sub(skip).min(buf.len());
                let Some((now, rest)) = std::mem::take(&mut buf).split_at_mut_checked(part) else { break };
                buf = rest;
                if part == whole || from == to {
                    compression.inflate(medium, content, from, to, now)?;
                } else {
                    let bytes = self.block(medium, content, compression, block, from, to)?;
                    if let Some(bytes) = bytes.get(skip..).and_then(|bytes| bytes.get(..part)) {
                        now.copy_from_slice(bytes);
                    }
                }
                skip = 0;
                block = block.saturating_add(1);
            }
        }
        Ok(len)
    }

    fn block(
        &self,
        medium: &Medium,
        content: &Content,
        compression: &Compression,
        block: u64,
        from: u64,
        to: u64,
    ) -> Result<Arc<[u8]>> {
        let of = (content.position, block);
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = lock().iter().find(|kept| kept.of == of) {
            return Ok(Arc::clone(&kept.bytes));
        }
        let mut bytes = vec![0_u8; compression.block_len(block)];
        compression.inflate(medium, content, from, to, &mut bytes)?;
        let bytes: Arc<[u8]> = bytes.into();
        let mut kept = lock();
        kept.truncate(BLOCKS_MAX.saturating_sub(1));
        kept.push_front(Block { of, bytes: Arc::clone(&bytes) });
        Ok(bytes)
    }
}

/// A hole where blocks of zeros are, data elsewhere; `None` at the end.
///
/// # Errors
/// As [`Blocks::read`].
pub(super) fn extent_at(
    medium: &Medium,
    content: &Content,
    compression: &Compression,
    offset: u64,
) -> Result<Option<FileExtent<'static>>> {
    if offset >= compression.size {
        return Ok(None);
    }
    compression.check(medium, content)?;
    let block = offset >> compression.block_log2;
    let pointers =
        compression.pointers(medium, content, block, compression.size.div_ceil(compression.block_bytes()))?;
    let mut zeros = pointers.windows(2).map(|pair| pair.first() == pair.last());
    let zero = zeros.next().unwrap_or(false);
    let blocks = zeros.take_while(|other| *other == zero).count() as u64;
    let end = block.saturating_add(1).saturating_add(blocks).saturating_mul(compression.block_bytes());
    Ok(Some(encoded(end.min(compression.size).saturating_sub(offset), zero)))
}
