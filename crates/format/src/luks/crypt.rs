//! The encrypted data as a device of plain bytes.
//!
//! ```text
//! this device      |  sector 0  |  sector 1  | …          decrypted, encrypted
//! below  | header  |  sector 0  |  sector 1  | …
//!        0         start
//! ```

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use block::{BlockDevice, Error, Extent, Kind, Limits, Poison, ReadAt, Result, Source, Zero, check_range};
use sys::aes::Direction;

use super::cipher::{SectorCipher, UNIT};
use super::corrupt::Corrupt;
use super::header::Segment;

/// Bytes that are encrypted or decrypted in one piece: they fit into a processor's second-level cache.
const PIECE: usize = 128 << 10;
/// The longest sector.
const SECTOR_MAX: usize = 4096;
/// Locks of sectors. Neighbouring ones have different ones.
const LOCKS: usize = 64;
/// Zeroes to encrypt.
static ZEROES: [u8; PIECE] = [0; PIECE];

/// A device that encrypts what is written and decrypts what is read.
///
/// A discard changes nothing: what the device below would then hold reads, decrypted, as neither the old bytes nor
/// zeroes, and which sectors are in use is nobody's business.
#[derive(Debug)]
pub struct Crypt<D> {
    below: D,
    start: u64,
    size: u64,
    first_unit: u64,
    /// Length of a sector, bytes: 512 to 4096.
    sector: u32,
    cipher: Box<dyn SectorCipher>,
    /// A part of a sector is written by reading, changing and writing all of it.
    locks: Box<[RwLock<()>]>,
    poison: Poison,
}

impl<D: ReadAt> Crypt<D> {
    /// The segment of `below` with its key.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] where the segment lies behind the end of `below`; [`Kind::Unsupported`] for a key of a length
    /// that the cipher does not take.
    pub fn new(below: D, segment: &Segment, key: &[u8]) -> Result<Self> {
        let sector = u64::from(segment.sector_bytes);
        let beyond = || Error::from(Corrupt::DataBeyondEnd(segment.start_byte));
        let rest = below.size().checked_sub(segment.start_byte).ok_or_else(beyond)?;
        let whole = rest.checked_div(sector).and_then(|sectors| sectors.checked_mul(sector)).unwrap_or_default();
        let size = match segment.size_bytes {
            Some(size) if size > rest || !size.is_multiple_of(sector) => {
                return Err(Corrupt::Field { field: "the length of the encrypted data", value: size }.into());
            }
            Some(size) => size,
            None => whole,
        };
        if size == 0 {
            return Err(beyond());
        }
        Ok(Self {
            below,
            start: segment.start_byte,
            size,
            first_unit: segment.first_unit,
            sector: segment.sector_bytes,
            cipher: segment.cipher.with_key(key)?,
            locks: (0..LOCKS).map(|_| RwLock::new(())).collect(),
            poison: Poison::new(),
        })
    }

    /// What is below.
    pub fn below(&self) -> &D {
        &self.below
    }

    fn apply(&self, direction: Direction, buf: &mut [u8], offset: u64) {
        let unit = self.first_unit.wrapping_add(offset >> UNIT.trailing_zeros());
        self.cipher.apply(direction, buf, unit, self.sector);
    }

    /// Whole sectors, decrypted in the buffer that they are read into.
    fn read_whole(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        for (piece, at) in buf.chunks_mut(PIECE).zip((offset..).step_by(PIECE)) {
            self.below.read_at(piece, self.start.saturating_add(at))?;
            self.apply(Direction::Decrypt, piece, at);
        }
        Ok(())
    }

    /// The lock of the sector at `offset`.
    fn lock(&self, offset: u64) -> Option<&RwLock<()>> {
        let number = offset.checked_div(u64::from(self.sector))?.checked_rem(LOCKS as u64)?;
        self.locks.get(number as usize)
    }

    fn shared(&self, offset: u64) -> Option<RwLockReadGuard<'_, ()>> {
        self.lock(offset).map(|lock| lock.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn alone(&self, offset: u64) -> Option<RwLockWriteGuard<'_, ()>> {
        self.lock(offset).map(|lock| lock.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Splits `len` bytes at `offset` at the edges of sectors.
    fn parts(&self, offset: u64, len: usize) -> Parts {
        let sector = u64::from(self.sector);
        let within = offset.checked_rem(sector).unwrap_or_default();
        let head = match within {
            0 => 0,
            _ => sector.saturating_sub(within).min(len as u64) as usize,
        };
        let rest = len.saturating_sub(head);
        let tail = rest.checked_rem(self.sector as usize).unwrap_or_default();
        Parts { head, whole: rest.saturating_sub(tail) }
    }

    /// The sector around `offset`, decrypted: where it begins, and its bytes.
    fn sector_around(&self, offset: u64, buf: &mut [u8; SECTOR_MAX]) -> Result<(u64, usize)> {
        let within = offset.checked_rem(u64::from(self.sector)).unwrap_or_default();
        let begin = offset.saturating_sub(within);
        if let Some(sector) = buf.get_mut(..self.sector as usize) {
            self.read_whole(sector, begin)?;
        }
        Ok((begin, within as usize))
    }

    fn read_part(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let mut sector = zeroize::Zeroizing::new([0; SECTOR_MAX]);
        let guard = self.shared(offset);
        let (_, within) = self.sector_around(offset, &mut sector)?;
        drop(guard);
        if let Some(bytes) = sector.get(within..).and_then(|rest| rest.get(..buf.len())) {
            buf.copy_from_slice(bytes);
        }
        Ok(())
    }
}

/// Bytes before the first whole sector, and those of whole ones; what is left is behind them.
struct Parts {
    head: usize,
    whole: usize,
}

impl<D: BlockDevice> Crypt<D> {
    /// Encrypts whole sectors into `piece` and writes them.
    fn write_piece(&self, plain: &[u8], offset: u64, piece: &mut [u8]) -> Result<()> {
        let Some(piece) = piece.get_mut(..plain.len()) else { return Ok(()) };
        piece.copy_from_slice(plain);
        self.apply(Direction::Encrypt, piece, offset);
        self.below.write_at(piece, self.start.saturating_add(offset))
    }

    fn write_whole(&self, buf: &[u8], offset: u64) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let mut small = [0; SECTOR_MAX];
        let mut large = Vec::new();
        let piece = if buf.len() <= SECTOR_MAX {
            small.as_mut_slice()
        } else {
            large.resize(buf.len().min(PIECE), 0);
            large.as_mut_slice()
        };
        for (plain, at) in buf.chunks(PIECE).zip((offset..).step_by(PIECE)) {
            self.write_piece(plain, at, piece)?;
        }
        Ok(())
    }

    fn write_part(&self, buf: &[u8], offset: u64) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let mut sector = zeroize::Zeroizing::new([0; SECTOR_MAX]);
        let _guard = self.alone(offset);
        let (begin, within) = self.sector_around(offset, &mut sector)?;
        if let Some(bytes) = sector.get_mut(within..).and_then(|rest| rest.get_mut(..buf.len())) {
            bytes.copy_from_slice(buf);
        }
        let Some(sector) = sector.get_mut(..self.sector as usize) else { return Ok(()) };
        self.apply(Direction::Encrypt, sector, begin);
        self.below.write_at(sector, self.start.saturating_add(begin))
    }

    fn writable(&self) -> Result<()> {
        if self.below.limits().read_only {
            return Err(Error::new(Kind::ReadOnly, "a write to a read-only device"));
        }
        self.poison.check()
    }
}

impl<D: ReadAt> ReadAt for Crypt<D> {
    fn size(&self) -> u64 {
        self.size
    }

    fn limits(&self) -> Limits {
        let below = self.below.limits();
        let block = below.block.max(self.sector);
        Limits { block, preferred: below.preferred.max(block), ..below }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        let parts = self.parts(offset, buf.len());
        let (head, rest) = buf.split_at_mut(parts.head.min(buf.len()));
        self.read_part(head, offset)?;
        let offset = offset.saturating_add(head.len() as u64);
        let (whole, tail) = rest.split_at_mut(parts.whole.min(rest.len()));
        self.read_whole(whole, offset)?;
        self.read_part(tail, offset.saturating_add(whole.len() as u64))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.size, offset, 1)?;
        // Zeroes below are not zeroes here.
        Ok(Extent { len: self.size.saturating_sub(offset), source: Source::Data })
    }
}

impl<D: BlockDevice> BlockDevice for Crypt<D> {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        self.writable()?;
        let parts = self.parts(offset, buf.len());
        let (head, rest) = buf.split_at_checked(parts.head).unwrap_or((buf, &[]));
        self.write_part(head, offset)?;
        let offset = offset.saturating_add(head.len() as u64);
        let (whole, tail) = rest.split_at_checked(parts.whole).unwrap_or((rest, &[]));
        self.write_whole(whole, offset)?;
        self.write_part(tail, offset.saturating_add(whole.len() as u64))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: Zero) -> Result<()> {
        check_range(self.size, offset, len)?;
        self.writable()?;
        let mut at = offset;
        let end = offset.saturating_add(len);
        while at < end {
            // Up to the next edge of a piece, so that all but the first and the last are whole sectors.
            let to_edge = (PIECE as u64).saturating_sub(at & (PIECE as u64).saturating_sub(1));
            let now = end.saturating_sub(at).min(to_edge);
            self.write_at(ZEROES.get(..now as usize).unwrap_or_default(), at)?;
            at = at.saturating_add(now);
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        check_range(self.size, offset, len)?;
        self.writable()
    }

    fn flush(&self) -> Result<()> {
        self.poison.flush(|| self.below.flush())
    }
}
