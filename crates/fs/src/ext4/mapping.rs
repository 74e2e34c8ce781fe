//! Where a file's blocks are: one answer, whether the file has extents, a block map or inline content.

use block::{Error, Kind, Result, Source};

use super::inode::{InodeRecord, flag};
use super::{Corrupt, Ext4};
use crate::{FileExtent, FileType};

/// How many runs that lie one after the other on the device are joined into one.
const JOINED_RUNS_MAX: usize = 64;
/// A file has fewer blocks than this: extents and block maps have numbers of 32 bits.
pub(super) const FILE_BLOCKS_MAX: u64 = 1 << 32;

/// A run of a file's blocks, from a block that the caller named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Blocks, at least 1.
    pub(super) len: u64,
    pub(super) place: Place,
}

/// Where the blocks of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere.
    Hole,
    /// Allocated and never written: reads as zero.
    Unwritten,
    /// From this block of the device on.
    Block(u64),
}

impl Place {
    /// The place `blocks` further.
    pub(super) fn after(self, blocks: u64) -> Self {
        match self {
            Self::Block(block) => Self::Block(block.saturating_add(blocks)),
            other => other,
        }
    }
}

/// A run of a file's bytes.
struct ByteRun {
    len: u64,
    /// Byte of the device.
    at: Option<u64>,
    unwritten: bool,
}

impl Ext4 {
    /// The run of a file's blocks from `logical` on.
    pub(super) fn run(&self, inode: &InodeRecord, logical: u64) -> Result<Run> {
        if logical >= FILE_BLOCKS_MAX {
            return Ok(Run { len: u64::MAX.saturating_sub(logical), place: Place::Hole });
        }
        let known = self.fast_commits.run(inode.number, logical);
        let limit = match known {
            Some((Some(place), len)) => return self.inside(inode, Run { len, place }),
            Some((None, len)) => len,
            None => u64::MAX,
        };
        let run = if inode.has(flag::EXTENTS) {
            self.extent_run(inode, logical)?
        } else {
            self.block_map_run(inode, logical)?
        };
        self.inside(inode, Run { len: run.len.min(limit), ..run })
    }

    /// That a run lies inside the file system, behind its superblock.
    fn inside(&self, inode: &InodeRecord, run: Run) -> Result<Run> {
        if let Place::Block(first) = run.place {
            let end = first.saturating_add(run.len);
            if first <= self.superblock.first_data_block.into() || end > self.superblock.blocks {
                return Err(Corrupt::BlockNumber { inode: inode.number, block: first }.into());
            }
        }
        Ok(run)
    }

    /// The run of a file's bytes from `offset` on, which may be longer than the file.
    fn byte_run(&self, inode: &InodeRecord, offset: u64, wanted: u64) -> Result<ByteRun> {
        let block_bytes = u64::from(self.superblock.block_bytes);
        let logical = offset.checked_div(block_bytes).unwrap_or(0);
        let inside = offset.checked_rem(block_bytes).unwrap_or(0);
        let mut run = self.run(inode, logical)?;
        let wanted = wanted.saturating_add(inside).div_ceil(block_bytes);
        for _ in 0..JOINED_RUNS_MAX {
            let next = logical.saturating_add(run.len);
            if run.len >= wanted || next >= FILE_BLOCKS_MAX {
                break;
            }
            let more = self.run(inode, next)?;
            if more.place != run.place.after(run.len) {
                break;
            }
            run.len = run.len.saturating_add(more.len);
        }
        Ok(ByteRun {
            len: run.len.saturating_mul(block_bytes).saturating_sub(inside),
            at: match run.place {
                Place::Block(block) => Some(self.volume.byte(block).saturating_add(inside)),
                _ => None,
            },
            unwritten: run.place == Place::Unwritten,
        })
    }

    /// Fills `buf` from `offset` on, as far as the file goes; how many bytes.
    pub(super) fn read_content(&self, inode: &InodeRecord, buf: &mut [u8], offset: u64) -> Result<usize> {
        let len = inode.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let Some(buf) = buf.get_mut(..len) else { return Ok(0) };
        if inode.has(flag::INLINE_DATA) {
            self.read_inline(inode, buf, offset)?;
            return Ok(len);
        }
        let mut rest = buf;
        let mut at = offset;
        while !rest.is_empty() {
            let run = self.byte_run(inode, at, rest.len() as u64)?;
            let step = run.len.min(rest.len() as u64) as usize;
            let Some((now, later)) = rest.split_at_mut_checked(step) else { break };
            match run.at {
                Some(byte) => self.volume.read_at(now, byte)?,
                None => now.fill(0),
            }
            rest = later;
            at = at.saturating_add(step as u64);
        }
        Ok(len)
    }

    /// One run of a file's content from `offset` on; `None` at its end.
    pub(super) fn content_extent(&self, inode: &InodeRecord, offset: u64) -> Result<Option<FileExtent<'_>>> {
        let left = inode.size.saturating_sub(offset);
        if left == 0 {
            return Ok(None);
        }
        if inode.has(flag::INLINE_DATA) {
            return Ok(Some(FileExtent { len: left, source: Source::Data }));
        }
        let run = self.byte_run(inode, offset, left)?;
        let len = run.len.min(left);
        let Some(byte) = run.at else {
            let source = if run.unwritten { Source::Zero } else { Source::Hole };
            return Ok(Some(FileExtent { len, source }));
        };
        let extent = self.volume.extent_at(byte)?;
        let source = match extent.source {
            Source::Hole => Source::Zero, // the file has room there, whatever the device below has
            other => other,
        };
        Ok(Some(FileExtent { len: len.min(extent.len), source }))
    }

    /// That an inode is a regular file that can be read.
    pub(super) fn regular(&self, inode: &InodeRecord) -> Result<()> {
        match inode.file_type()? {
            FileType::Regular => inode.readable(),
            FileType::Directory => {
                Err(Error::new(Kind::IsDirectory, format!("content of inode {}, a directory", inode.number)))
            }
            _ => Err(Error::new(Kind::Invalid, format!("content of inode {}, no regular file", inode.number))),
        }
    }
}
