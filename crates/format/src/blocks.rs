//! A disk whose blocks a table places: what VHD, VHDX, VDI, Parallels and VMDK have in common. Read only.
//!
//! ```text
//! disk    | block 0 | block 1 | block 2 | …
//! table        │        └─ none: zeroes, or the parent's
//! file    … | block 2 | … | block 0 | …
//! ```

use std::fmt;
use std::sync::Arc;

use block::bytes::read_vec;
use block::cache::Cache;
use block::{Error, Extent, Kind, Limits, ReadAt, Result, ResultExt as _, Source, Storage, check_range};

/// The most blocks of one disk: 128 TiB in blocks of 1 MiB.
pub(crate) const BLOCKS_MAX: u64 = 128 << 20;
/// So many bytes of a table are read at one time; and so many stay in memory.
const TABLE_PIECE: u64 = 16 << 10;
const TABLE_CACHE_BYTES: usize = 4 << 20;

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the parent, or nowhere.
    Below,
    /// It reads as zero.
    Zero,
    /// From this byte of the file on.
    At(u64),
}

/// Where the blocks of a disk are.
pub(crate) trait Places: Send + Sync + fmt::Debug {
    /// How many there are.
    fn count(&self) -> u64;

    /// Where a block is; below where there is none of that number.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] where the table is cut short; that of the file.
    fn place(&self, block: u64) -> Result<Place>;
}

/// Entries of four or eight bytes, a piece of which is read when it is needed.
pub(crate) struct Entries {
    storage: Arc<dyn Storage>,
    cache: Cache<Arc<[u8]>>,
}

impl Entries {
    /// Those of a file.
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage, cache: Cache::new(TABLE_CACHE_BYTES, |piece: &Arc<[u8]>| piece.len()) }
    }

    /// The `N` bytes of an entry, at a multiple of `N` from the start of a table at `table`.
    pub(crate) fn get<const N: usize>(&self, table: u64, number: u64) -> Result<[u8; N]> {
        let within = number.saturating_mul(N as u64);
        let (piece, from) = (within / TABLE_PIECE, within % TABLE_PIECE);
        let at = table.saturating_add(piece.saturating_mul(TABLE_PIECE));
        let cut = || Error::new(Kind::Corrupt, "a table of blocks that is cut short");
        let bytes = self.cache.get((at, 0), || {
            let len = self.storage.size().saturating_sub(at).min(TABLE_PIECE);
            Ok(read_vec(&self.storage, at, usize::try_from(len).unwrap_or_default())?.into())
        })?;
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        bytes.get(from..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(cut)
    }
}

/// One table of all blocks, with entries of `N` bytes.
pub(crate) struct Table<const N: usize, F> {
    entries: Entries,
    at: u64,
    count: u64,
    every: u64,
    place: F,
}

impl<const N: usize, F: Fn([u8; N]) -> Place> Table<N, F> {
    /// A table at byte `at` of `count` blocks; `place` says what an entry means. After each `every` blocks, where that is
    /// not 0, an entry of another meaning is left out.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] where it does not lie in the file.
    pub(crate) fn new(storage: &Arc<dyn Storage>, at: u64, count: u64, every: u64, place: F) -> Result<Self> {
        let entries = Entries::new(Arc::clone(storage));
        let table = Self { entries, at, count, every, place };
        let bytes = table.number(count.saturating_sub(1)).saturating_add(1).saturating_mul(N as u64);
        if count > 0 && at.saturating_add(bytes) > storage.size() {
            return Err(Error::new(Kind::Corrupt, format!("a table of {count} blocks that is cut short")));
        }
        Ok(table)
    }

    fn number(&self, block: u64) -> u64 {
        block.saturating_add(block.checked_div(self.every).unwrap_or_default())
    }
}

impl<const N: usize, F> fmt::Debug for Table<N, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("at", &self.at).field("count", &self.count).finish_non_exhaustive()
    }
}

impl<const N: usize, F: Fn([u8; N]) -> Place + Send + Sync> Places for Table<N, F> {
    fn count(&self) -> u64 {
        self.count
    }

    fn place(&self, block: u64) -> Result<Place> {
        if block >= self.count {
            return Ok(Place::Below);
        }
        Ok((self.place)(self.entries.get(self.at, self.number(block))?))
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Blocks {
    storage: Arc<dyn Storage>,
    size: u64,
    block: u64,
    places: Box<dyn Places>,
    below: Option<Arc<dyn ReadAt>>,
    /// Bytes of the bitmap in front of each block, a bit a sector: one that is 0 is in the parent. 0: there is none.
    bitmap: u64,
}

impl Blocks {
    /// `places` are those of all blocks of `block` bytes.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] where they are fewer than the disk has, or blocks have no bytes.
    pub(crate) fn new(storage: Arc<dyn Storage>, size: u64, block: u64, places: impl Places + 'static) -> Result<Self> {
        if !(512..=1 << 30).contains(&block) || places.count().saturating_mul(block) < size {
            let context = format!("a table of {} blocks of {block} bytes for a disk of {size}", places.count());
            return Err(Error::new(Kind::Corrupt, context));
        }
        let places = Box::new(places);
        Ok(Self { storage, size, block, places, below: None, bitmap: 0 })
    }

    /// With a parent; `bitmap` bytes in front of each block say which sectors of it are there.
    pub(crate) fn on_top_of(self, below: Arc<dyn ReadAt>, bitmap: u64) -> Self {
        Self { below: Some(below), bitmap, ..self }
    }

    /// The place of a byte, and how many from there on are in the same block, up to `len`.
    fn at(&self, offset: u64, len: u64) -> Result<(Place, u64)> {
        let block = self.block.max(1);
        let within = offset.checked_rem(block).unwrap_or_default();
        let place = match self.places.place(offset.checked_div(block).unwrap_or_default())? {
            Place::At(host) => Place::At(host.saturating_add(within)),
            other => other,
        };
        Ok((place, block.saturating_sub(within).min(len)))
    }

    fn read_below(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let size = self.below.as_ref().map_or(0, |below| below.size());
        let there = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let (first, rest) = buf.split_at_mut(there);
        rest.fill(0);
        match &self.below {
            Some(below) if !first.is_empty() => below.read_at(first, offset).context(|| "reading the parent"),
            _ => Ok(()),
        }
    }

    fn read_host(&self, buf: &mut [u8], host: u64) -> Result<()> {
        let end = host.saturating_add(buf.len() as u64);
        if end > self.storage.size() {
            let context = format!("data at {host:#x}, behind the end of the file: it was cut short");
            return Err(Error::new(Kind::Corrupt, context));
        }
        self.storage.read_at(buf, host)
    }

    /// Reads sectors of a block of which some are in the parent.
    fn read_mixed(&self, buf: &mut [u8], offset: u64, host: u64) -> Result<()> {
        let within = offset.checked_rem(self.block).unwrap_or_default();
        let start = host.saturating_sub(within).saturating_sub(self.bitmap);
        let mut bitmap = vec![0; usize::try_from(self.bitmap.min(1 << 20)).unwrap_or_default()];
        self.read_host(&mut bitmap, start)?;
        let (mut at, mut rest) = (0_u64, buf);
        while !rest.is_empty() {
            let sector = within.saturating_add(at) / 512;
            let bit =
                bitmap.get((sector / 8) as usize).map_or(0, |byte| byte.wrapping_shr(7 ^ (sector as u32 & 7)) & 1);
            let len = 512_u64.saturating_sub(within.saturating_add(at) % 512) as usize;
            let (part, more) = rest.split_at_mut(len.min(rest.len()));
            let len = part.len() as u64;
            if bit == 1 {
                self.read_host(part, host.saturating_add(at))?;
            } else {
                self.read_below(part, offset.saturating_add(at))?;
            }
            (at, rest) = (at.saturating_add(len), more);
        }
        Ok(())
    }
}

impl ReadAt for Blocks {
    fn size(&self) -> u64 {
        self.size
    }

    fn limits(&self) -> Limits {
        Limits { read_only: true, ..self.storage.limits() }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let (place, len) = self.at(at, rest.len() as u64)?;
            let (part, more) = rest.split_at_mut(usize::try_from(len).unwrap_or(usize::MAX).min(rest.len()));
            match place {
                Place::Below => self.read_below(part, at)?,
                Place::Zero => part.fill(0),
                Place::At(host) if self.bitmap > 0 => self.read_mixed(part, at, host)?,
                Place::At(host) => self.read_host(part, host)?,
            }
            (at, rest) = (at.saturating_add(len), more);
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.size, offset, 1)?;
        let (place, len) = self.at(offset, self.size.saturating_sub(offset))?;
        match place {
            Place::Zero => Ok(Extent { len, source: Source::Zero }),
            Place::Below => match &self.below {
                Some(below) if offset < below.size() => {
                    let extent = below.extent_at(offset)?;
                    Ok(Extent { len: extent.len.min(len), source: extent.source })
                }
                _ => Ok(Extent { len, source: Source::Hole }),
            },
            Place::At(host) => {
                let there = self.bitmap == 0 && host.saturating_add(len) <= self.storage.size();
                let source = match self.storage.file() {
                    Some(fd) if there => Source::File { fd, offset: host },
                    _ => Source::Data,
                };
                Ok(Extent { len, source })
            }
        }
    }
}
