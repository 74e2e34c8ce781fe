//! The content of regular files.
//!
//! ```text
//! block size, 4      bits 0 to 23: bytes on the device; bit 24: not compressed; 0: a block of zeros that is nowhere
//!
//! fragment table     start, 8 │ size, 4 (as above) │ 0, 4        512 entries in a metadata block
//! ```
//! Blocks lie one after the other from the file's start on. The tail behind the last whole block may lie in a fragment, a
//! block that holds tails of several files. Where a block lies is the sum of the sizes before it: so the list is taken in
//! chunks, of each of which the begin is remembered once it is known.

use std::sync::{Arc, Mutex, PoisonError};

use block::{Result, Source};

use super::corrupt::Corrupt;
use super::metadata::{METADATA_BYTES, Medium, Place};
use crate::FileExtent;
use crate::cache::Cache;
use block::bytes::{le_u32, le_u64};

/// Blocks of one chunk.
const CHUNK_BLOCKS: u64 = 1024;
/// The most lists of blocks that are remembered, bytes.
const CHUNK_CACHE_BYTES_MAX: usize = 2 << 20;
/// The most files that are remembered, bytes, without what is known of their lists.
const FILE_CACHE_BYTES_MAX: usize = 128 << 10;
/// Of how many chunks of a file the begin is remembered.
const STARTS_MAX: usize = 1 << 16;
/// The most unpacked data that is remembered, bytes.
const DATA_CACHE_BYTES_MAX: usize = 64 << 20;
/// The fewest bytes that a metadata block takes.
const METADATA_BLOCK_BYTES_MIN: u64 = 3;
const UNCOMPRESSED: u32 = 1 << 24;
const FRAGMENT_BYTES: usize = 16;

/// What was last used of files.
#[derive(Debug)]
pub(super) struct Contents {
    pub files: Cache<Arc<File>>,
    chunks: Cache<Arc<Chunk>>,
    data: Cache<Arc<[u8]>>,
}

impl Contents {
    pub fn new() -> Self {
        Self {
            files: Cache::new(FILE_CACHE_BYTES_MAX, |_| size_of::<File>()),
            chunks: Cache::new(CHUNK_CACHE_BYTES_MAX, |chunk| chunk.0.len().saturating_mul(size_of::<Block>())),
            data: Cache::new(DATA_CACHE_BYTES_MAX, |data| data.len()),
        }
    }
}

/// A file's content.
#[derive(Debug)]
pub(super) struct File {
    inode: u64,
    size: u64,
    /// Blocks, without a tail in a fragment.
    blocks: u64,
    tail: Option<Tail>,
    /// Where the chunks begin, as far as is known.
    starts: Mutex<Vec<Start>>,
}

/// The end of a file, in a fragment.
#[derive(Debug, Clone, Copy)]
struct Tail {
    fragment: Block,
    offset: u64,
}

#[derive(Debug, Clone, Copy)]
struct Start {
    /// In the list of sizes.
    list: Place,
    /// Of the first block, on the device.
    position: u64,
}

#[derive(Debug)]
struct Chunk(Vec<Block>);

/// A block on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    position: u64,
    len: u32,
    compressed: bool,
}

impl Block {
    fn new(medium: &Medium, position: u64, word: u32) -> Result<Self> {
        let len = word & (UNCOMPRESSED - 1);
        let sound = word >> 25 == 0
            && len <= medium.superblock.block_bytes
            && (len == 0 || medium.is_inside(position, u64::from(len)));
        if !sound {
            return Err(Corrupt::DataBlock.at(format!("data block at {position}, size word {word:#x}")));
        }
        Ok(Self { position, len, compressed: word & UNCOMPRESSED == 0 })
    }

    /// Unpacks it into `out`, and says how many bytes it gave.
    fn unpack(self, medium: &Medium, out: &mut [u8]) -> Result<usize> {
        thread_local! {
            // At most a block, 1 MiB.
            static PACKED: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        let Self { position, len, compressed } = self;
        let broken = || Corrupt::Data.at(format!("data block at {position}, {len} bytes"));
        let len = usize::try_from(len).map_err(|_| broken())?;
        if !compressed {
            medium.device.read_at(out.get_mut(..len).ok_or_else(broken)?, position)?;
            return Ok(len);
        }
        PACKED.with_borrow_mut(|packed| {
            if packed.len() < len {
                packed.resize(len, 0);
            }
            let packed = packed.get_mut(..len).ok_or_else(broken)?;
            medium.device.read_at(packed, position)?;
            medium.superblock.compression.decompress(packed, out).ok_or_else(broken)
        })
    }
}

/// Where some bytes of a file are.
struct Piece {
    block: Block,
    /// What the block unpacks to, where that is known: at least so much.
    whole: u64,
    /// Where the piece begins in that.
    skip: u64,
    /// Bytes of the piece.
    len: u64,
    /// Whether it is of a fragment, whose length is not known.
    tail: bool,
}

impl File {
    /// The file of inode `inode`, whose blocks begin at `start` and are listed at `list`.
    ///
    /// # Errors
    /// `Corrupt`; the failure of the device.
    pub fn new(
        medium: &Medium,
        inode: u64,
        size: u64,
        start: u64,
        list: Place,
        fragment: Option<(u32, u32)>,
    ) -> Result<Self> {
        let superblock = &medium.superblock;
        let block_bytes = u64::from(superblock.block_bytes);
        let whole = size >> superblock.block_log;
        let tail_bytes = size.checked_rem(block_bytes).unwrap_or(0);
        // A fragment without a tail says nothing.
        let fragment = fragment.filter(|_| tail_bytes > 0);
        let blocks = if fragment.is_some() { whole } else { size.div_ceil(block_bytes) };
        let table = superblock.directory_table.saturating_sub(superblock.inode_table);
        let listed_max = (table / METADATA_BLOCK_BYTES_MIN).saturating_mul(METADATA_BYTES as u64) / 4;
        if blocks > listed_max || size > i64::MAX.cast_unsigned() {
            return Err(Corrupt::FileSize.at(format!("file of {size} bytes, inode {inode:#x}")));
        }
        let tail = match fragment {
            Some((number, offset)) => {
                let fragment = fragment_block(medium, number)?;
                let offset = u64::from(offset);
                if offset.saturating_add(tail_bytes) > block_bytes {
                    return Err(Corrupt::Fragment.at(format!("tail at {offset} of fragment {number}")));
                }
                Some(Tail { fragment, offset })
            }
            None => None,
        };
        Ok(Self { inode, size, blocks, tail, starts: Mutex::new(vec![Start { list, position: start }]) })
    }

    /// Where chunk `number` begins.
    fn start(&self, medium: &Medium, number: u64) -> Result<Start> {
        let lock = || self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = usize::try_from(number).unwrap_or(usize::MAX);
        let (mut at, mut start) = {
            let starts = lock();
            let at = wanted.min(starts.len().saturating_sub(1));
            let Some(start) = starts.get(at) else {
                return Err(Corrupt::FileSize.at(format!("list of inode {:#x}", self.inode)));
            };
            (at, *start)
        };
        while at < wanted {
            let mut reader = medium.reader(start.list);
            for _ in 0..CHUNK_BLOCKS {
                let len = reader.le_u32()? & (UNCOMPRESSED - 1);
                start.position = start.position.saturating_add(u64::from(len));
            }
            start.list = reader.place();
            at = at.saturating_add(1);
            let mut starts = lock();
            if starts.len() == at && at < STARTS_MAX {
                starts.push(start);
            }
        }
        Ok(start)
    }

    fn chunk(&self, medium: &Medium, contents: &Contents, number: u64) -> Result<Arc<Chunk>> {
        contents.chunks.get((self.inode, number), || {
            let Start { list, mut position } = self.start(medium, number)?;
            let count = self.blocks.saturating_sub(number.saturating_mul(CHUNK_BLOCKS)).min(CHUNK_BLOCKS);
            let mut reader = medium.reader(list);
            let mut blocks = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
            for _ in 0..count {
                let block = Block::new(medium, position, reader.le_u32()?)?;
                position = position.saturating_add(u64::from(block.len));
                blocks.push(block);
            }
            Ok(Arc::new(Chunk(blocks)))
        })
    }

    /// The piece at `offset`, to the end of its block or of the file; `None` at and after the end of the file.
    fn piece(&self, medium: &Medium, chunk: Option<&Chunk>, offset: u64) -> Option<Piece> {
        let left = self.size.checked_sub(offset).filter(|left| *left > 0)?;
        let log = medium.superblock.block_log;
        let number = offset >> log;
        let skip = offset & u64::from(medium.superblock.block_bytes).saturating_sub(1);
        let whole = u64::from(medium.superblock.block_bytes).min(left.saturating_add(skip));
        let len = whole.saturating_sub(skip);
        if number < self.blocks {
            let inside = usize::try_from(number.checked_rem(CHUNK_BLOCKS)?).ok()?;
            let block = *chunk?.0.get(inside)?;
            return Some(Piece { block, whole, skip, len, tail: false });
        }
        let tail = self.tail?;
        Some(Piece { block: tail.fragment, whole, skip: tail.offset.saturating_add(skip), len, tail: true })
    }

    /// The chunk that `offset` is in, unless that is in the tail.
    fn chunk_at(&self, medium: &Medium, contents: &Contents, offset: u64) -> Result<Option<(u64, Arc<Chunk>)>> {
        let number = offset >> medium.superblock.block_log;
        if number >= self.blocks {
            return Ok(None);
        }
        let number = number / CHUNK_BLOCKS;
        self.chunk(medium, contents, number).map(|chunk| Some((number, chunk)))
    }

    /// Fills `buf` from `offset` on, as far as there are bytes, and says how many there were.
    ///
    /// # Errors
    /// `Corrupt`; the failure of the device.
    pub fn read(&self, medium: &Medium, contents: &Contents, buf: &mut [u8], offset: u64) -> Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = buf.len().min(left);
        let mut buf = buf.get_mut(..len).unwrap_or_default();
        let mut offset = offset;
        while !buf.is_empty() {
            let before = offset;
            let chunk = self.chunk_at(medium, contents, offset)?;
            let end = chunk.as_ref().map_or(u64::MAX, |(number, _)| self.chunk_end(medium, *number));
            let chunk = chunk.as_ref().map(|(_, chunk)| &**chunk);
            while let Some(piece) = self.piece(medium, chunk, offset).filter(|_| !buf.is_empty() && offset < end) {
                let part = usize::try_from(piece.len).unwrap_or(usize::MAX).min(buf.len());
                let Some((now, rest)) = std::mem::take(&mut buf).split_at_mut_checked(part) else { break };
                buf = rest;
                read_piece(medium, contents, &piece, now)?;
                offset = offset.saturating_add(part as u64);
            }
            if offset == before {
                return Err(Corrupt::FileSize.at(format!("byte {offset} of inode {:#x}", self.inode)));
            }
        }
        Ok(len)
    }

    /// Where in the file a chunk ends.
    fn chunk_end(&self, medium: &Medium, number: u64) -> u64 {
        let blocks = number.saturating_add(1).saturating_mul(CHUNK_BLOCKS).min(self.blocks);
        blocks.saturating_mul(u64::from(medium.superblock.block_bytes)).min(self.size)
    }

    /// Where the bytes from `offset` on are: blocks of one kind together, within a chunk.
    ///
    /// # Errors
    /// As [`File::read`].
    pub fn extent_at<'a>(
        &self,
        medium: &'a Medium,
        contents: &Contents,
        offset: u64,
    ) -> Result<Option<FileExtent<'a>>> {
        if offset >= self.size {
            return Ok(None);
        }
        let chunk = self.chunk_at(medium, contents, offset)?;
        let end = chunk.as_ref().map_or(u64::MAX, |(number, _)| self.chunk_end(medium, *number));
        let chunk = chunk.as_ref().map(|(_, chunk)| &**chunk);
        let Some(first) = self.piece(medium, chunk, offset) else { return Ok(None) };
        let mut len = first.len;
        let kind = |piece: &Piece| (piece.block.len == 0, piece.block.compressed);
        while let Some(piece) = self.piece(medium, chunk, offset.saturating_add(len)) {
            if offset.saturating_add(len) >= end || kind(&piece) != kind(&first) {
                break;
            }
            len = len.saturating_add(piece.len);
        }
        if first.block.len == 0 && !first.tail {
            return Ok(Some(FileExtent { len, source: Source::Hole }));
        }
        if first.block.compressed || u64::from(first.block.len) < first.skip.saturating_add(first.len) {
            return Ok(Some(FileExtent { len, source: Source::Data }));
        }
        let extent = medium.device.extent_at(first.block.position.saturating_add(first.skip))?;
        Ok(Some(FileExtent { len: extent.len.min(len), source: extent.source }))
    }
}

/// Fills `out` from the begin of a piece.
fn read_piece(medium: &Medium, contents: &Contents, piece: &Piece, out: &mut [u8]) -> Result<()> {
    let block = piece.block;
    if block.len == 0 && !piece.tail {
        out.fill(0);
        return Ok(());
    }
    let broken = || Corrupt::Data.at(format!("data block at {}, {} bytes", block.position, block.len));
    if !block.compressed {
        let there = u64::from(block.len);
        let right = if piece.tail { there >= piece.skip.saturating_add(piece.len) } else { there == piece.whole };
        let position = block.position.checked_add(piece.skip).filter(|_| right).ok_or_else(broken)?;
        return medium.device.read_at(out, position);
    }
    if !piece.tail && out.len() as u64 == piece.whole {
        let unpacked = block.unpack(medium, out)?;
        return if unpacked == out.len() { Ok(()) } else { Err(broken()) };
    }
    let whole = contents.data.get((block.position, 0), || {
        let room = if piece.tail { u64::from(medium.superblock.block_bytes) } else { piece.whole };
        let mut whole = vec![0; usize::try_from(room).map_err(|_| broken())?];
        let unpacked = block.unpack(medium, &mut whole)?;
        whole.truncate(unpacked);
        Ok(whole.into())
    })?;
    if !piece.tail && whole.len() as u64 != piece.whole {
        return Err(broken());
    }
    let skip = usize::try_from(piece.skip).map_err(|_| broken())?;
    let part = whole.get(skip..).and_then(|rest| rest.get(..out.len()));
    let missing = || Corrupt::Fragment.at(format!("tail at {skip} of the fragment at {}", block.position));
    out.copy_from_slice(part.ok_or_else(missing)?);
    Ok(())
}

/// The block of fragment `number`.
fn fragment_block(medium: &Medium, number: u32) -> Result<Block> {
    let table = medium.superblock.fragment_table.filter(|_| number < medium.superblock.fragments);
    let table = table.ok_or_else(|| Corrupt::Fragment.at(format!("fragment {number}")))?;
    let place = medium.table_entry(table, number, FRAGMENT_BYTES, Corrupt::Fragment)?;
    let entry: [u8; FRAGMENT_BYTES] = medium.reader(place).array()?;
    Block::new(medium, le_u64(&entry, 0).unwrap_or_default(), le_u32(&entry, 8).unwrap_or_default())
}
