//! The content of files: what an offset of one leads to.

use std::sync::Arc;

use block::bytes::{le_u16, le_u32};
use block::{Error, Result};

use super::cluster::Index;
use super::corrupt::Corrupt;
use super::decompress::Cluster;
use super::inode::{Layout, Node, Place};
use super::medium::Medium;
use crate::{FileExtent, FileType};

/// Extents that one answer puts together, at most.
const MERGED_MAX: usize = 256;

/// A file whose content is read.
#[derive(Debug)]
pub(super) struct File {
    pub number: u64,
    pub size: u64,
    pub file_type: FileType,
    place: Place,
    layout: Layout,
    index: Option<Index>,
}

/// A run of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where it begins in the file.
    pub start: u64,
    /// Bytes, at least 1.
    pub len: u64,
    pub source: Source,
}

/// Where the run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Hole,
    /// As it is, from this byte of the device on.
    Stored(u64),
    /// As it is, among the metadata.
    Inline {
        at: u64,
        in_metabox: bool,
    },
    /// In the packed inode, from this byte on.
    Fragment(u64),
    Cluster(Cluster),
}

impl File {
    /// The file of an inode.
    ///
    /// # Errors
    /// [`block::Kind::Unsupported`]; `Corrupt`; the failure of the device.
    pub fn new(medium: &Medium, number: u64, node: &Node) -> Result<Self> {
        let Node { stat, place, layout } = node;
        let mut file =
            Self { number, size: stat.size, file_type: stat.file_type, place: *place, layout: *layout, index: None };
        match node.layout {
            Layout::Compressed { compact } => {
                file.index = Some(Index::read(medium, &file, node.place, compact)?);
            }
            Layout::Chunks { log, .. } if log > 62 => return Err(file.broken(Corrupt::Chunk, 0)),
            _ => {}
        }
        Ok(file)
    }

    /// What is wrong at byte or entry `at` of it.
    pub fn broken(&self, corrupt: Corrupt, at: u64) -> Error {
        corrupt.at(format!("inode {:#x} at {at}", self.number))
    }

    /// The run that holds byte `at`, which is inside of the file.
    fn extent(&self, medium: &Medium, at: u64) -> Result<Extent> {
        let block = medium.superblock.block_bytes();
        let log = medium.superblock.block_log;
        let broken = || self.broken(Corrupt::Data, at);
        let whole = |source| Extent { start: 0, len: self.size, source };
        match (self.layout, &self.index) {
            (Layout::Plain(None), _) => Ok(whole(Source::Hole)),
            (Layout::Plain(Some(start)), _) => Ok(whole(Source::Stored(position(start, log).ok_or_else(broken)?))),
            (Layout::Inline(start), _) => {
                let tail = (self.size.saturating_sub(1) >> log) << log;
                if at < tail {
                    let source = Source::Stored(position(start, log).ok_or_else(broken)?);
                    return Ok(Extent { start: 0, len: tail, source });
                }
                let len = self.size.saturating_sub(tail);
                if medium.superblock.inside_block(self.place.body).saturating_add(len) > block {
                    return Err(broken());
                }
                let source = Source::Inline { at: self.place.body, in_metabox: self.place.in_metabox };
                Ok(Extent { start: tail, len, source })
            }
            (Layout::Chunks { log, indexes, long }, _) => self.chunk(medium, at, log, indexes, long),
            (Layout::Compressed { .. }, Some(index)) => index.extent(medium, self, at),
            (Layout::Compressed { .. }, None) => Err(self.broken(Corrupt::Index, at)),
        }
    }

    /// ```text
    /// entry    block, 4           or: high part of the block, 2 │ device, 2 │ block, 4          all ones: a hole
    /// ```
    fn chunk(&self, medium: &Medium, at: u64, log: u32, indexes: bool, long: bool) -> Result<Extent> {
        let broken = || self.broken(Corrupt::Chunk, at);
        let unit: u64 = if indexes { 8 } else { 4 };
        let number = at >> log;
        let start = number << log;
        let len = self.size.saturating_sub(start).min(1 << log);
        let first = self.place.body.checked_next_multiple_of(unit).ok_or_else(broken)?;
        let entry = number.checked_mul(unit).and_then(|offset| offset.checked_add(first)).ok_or_else(broken)?;
        let mut bytes = [0; 8];
        let bytes = bytes.get_mut(..usize::try_from(unit).unwrap_or(0)).unwrap_or_default();
        medium.meta(self.place.in_metabox, entry, bytes, Corrupt::Chunk)?;
        let (block, nowhere) = if indexes {
            let high = if long { u64::from(le_u16(bytes, 0).unwrap_or_default()) << 32 } else { 0 };
            let nowhere = if long { (1 << 48) - 1 } else { u64::from(u32::MAX) };
            (u64::from(le_u32(bytes, 4).unwrap_or_default()) | high, nowhere)
        } else {
            (u64::from(le_u32(bytes, 0).unwrap_or_default()), u64::from(u32::MAX))
        };
        if block == nowhere {
            return Ok(Extent { start, len, source: Source::Hole });
        }
        if indexes {
            medium.check_device(le_u16(bytes, 2).unwrap_or_default())?;
        }
        let position = position(block, medium.superblock.block_log).ok_or_else(broken)?;
        Ok(Extent { start, len, source: Source::Stored(position) })
    }

    /// Fills `buf` from `offset` on, as far as there are bytes, and says how many there were.
    ///
    /// # Errors
    /// [`block::Kind::Unsupported`]; `Corrupt`; the failure of the device.
    pub fn read(&self, medium: &Medium, buf: &mut [u8], offset: u64) -> Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = buf.len().min(left);
        let mut rest = buf.get_mut(..len).unwrap_or_default();
        let mut at = offset;
        while !rest.is_empty() {
            let extent = self.extent(medium, at)?;
            let skip = at.checked_sub(extent.start);
            let there = skip.and_then(|skip| extent.len.checked_sub(skip)).filter(|there| *there > 0);
            let (Some(skip), Some(there)) = (skip, there) else { return Err(self.broken(Corrupt::Index, at)) };
            let part = usize::try_from(there).unwrap_or(usize::MAX).min(rest.len());
            let Some((now, later)) = std::mem::take(&mut rest).split_at_mut_checked(part) else { break };
            self.read_extent(medium, &extent, skip, now)?;
            rest = later;
            at = at.saturating_add(part as u64);
        }
        Ok(len)
    }

    /// Fills `out` from `skip` bytes after the begin of an extent on.
    fn read_extent(&self, medium: &Medium, extent: &Extent, skip: u64, out: &mut [u8]) -> Result<()> {
        let broken = |corrupt| self.broken(corrupt, extent.start);
        match extent.source {
            Source::Hole => out.fill(0),
            Source::Stored(position) => {
                let position = position.saturating_add(skip);
                medium.stored(position, out.len() as u64)?;
                medium.device.read_at(out, position)?;
            }
            Source::Inline { at, in_metabox } => {
                medium.meta(in_metabox, at.saturating_add(skip), out, Corrupt::Data)?;
            }
            Source::Fragment(offset) => {
                let packed = medium.packed.as_ref().ok_or_else(|| broken(Corrupt::Fragment))?;
                let at = offset.checked_add(skip).ok_or_else(|| broken(Corrupt::Fragment))?;
                if packed.number == self.number || packed.read(medium, out, at)? < out.len() {
                    return Err(broken(Corrupt::Fragment));
                }
            }
            Source::Cluster(cluster) if out.len() as u64 == extent.len => cluster.unpack(medium, out)?,
            Source::Cluster(cluster) => {
                let whole = medium.data.get((self.number, extent.start), || {
                    let mut whole = vec![0; usize::try_from(extent.len).map_err(|_| broken(Corrupt::Index))?];
                    cluster.unpack(medium, &mut whole)?;
                    Ok(Arc::from(whole))
                })?;
                let part = usize::try_from(skip).ok().and_then(|skip| whole.get(skip..)?.get(..out.len()));
                out.copy_from_slice(part.ok_or_else(|| broken(Corrupt::Index))?);
            }
        }
        Ok(())
    }

    /// Where the bytes from `offset` on are: runs of one kind together.
    ///
    /// # Errors
    /// As [`File::read`].
    pub fn extent_at<'a>(&self, medium: &'a Medium, offset: u64) -> Result<Option<FileExtent<'a>>> {
        if offset >= self.size {
            return Ok(None);
        }
        let first = self.extent(medium, offset)?;
        let skip = offset.saturating_sub(first.start);
        let mut end = first.start.saturating_add(first.len).min(self.size);
        for _ in 0..MERGED_MAX {
            if end >= self.size {
                break;
            }
            let next = self.extent(medium, end)?;
            let follows = match (first.source, next.source) {
                (Source::Hole, Source::Hole) => true,
                (Source::Stored(one), Source::Stored(other)) => {
                    next.start == end && other.checked_sub(one) == end.checked_sub(first.start)
                }
                (Source::Hole | Source::Stored(_), _) | (_, Source::Hole | Source::Stored(_)) => false,
                _ => true,
            };
            if !follows || next.start != end || next.len == 0 {
                break;
            }
            end = end.saturating_add(next.len).min(self.size);
        }
        let len = end.saturating_sub(offset);
        let source = match first.source {
            Source::Hole => block::Source::Hole,
            Source::Stored(position) => {
                let position = position.saturating_add(skip);
                medium.stored(position, len)?;
                let extent = medium.device.extent_at(position)?;
                return Ok(Some(FileExtent { len: extent.len.min(len), source: extent.source }));
            }
            Source::Inline { .. } | Source::Fragment(_) | Source::Cluster(_) => block::Source::Data,
        };
        Ok(Some(FileExtent { len, source }))
    }
}

/// Of a block, bytes.
fn position(block: u64, log: u8) -> Option<u64> {
    block.checked_shl(u32::from(log)).filter(|position| position >> log == block)
}
