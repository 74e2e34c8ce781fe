//! A chain of descriptors becomes a request, and is done.
//!
//! ```text
//! the guest's memory:  kind u32 | reserved u32 | sector u64 | data …   readable
//!                      data … | status u8                              writable
//! ```
//! Virtio 1.2, section 5.2.6. Where one descriptor ends and the next begins means nothing.

use std::os::fd::BorrowedFd;

use block::{BlockDevice, Error, Kind, Result, Source, Zero, check_range};
use vm_memory::{Address as _, Bytes as _, GuestAddress, GuestMemoryBackend as _, VolatileSlice};

use super::{ID_BYTES, Memory, SECTOR_BYTES};
use crate::counters::{Counters, Operation};
use crate::pace::Pace;

/// Bytes that are moved at one time.
const PIECE_BYTES: usize = 1 << 20;
/// So many bytes and more are read straight into the guest's memory however many pieces that is in: for fewer, a copy
/// costs less than the pieces, if they are not one.
const STRAIGHT_BYTES_MIN: u64 = 16 << 10;
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16;
/// A range of a discard: sector, sectors, flags.
const RANGE_BYTES: usize = 16;
/// Most ranges of one discard.
pub const RANGES_MAX: u32 = 32;

/// Kinds of requests.
pub mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Answers.
mod status {
    pub const OK: u8 = 0;
    pub const IOERR: u8 = 1;
    pub const UNSUPP: u8 = 2;
}

/// Flag of a range that is zeroed: its room may be given back.
const UNMAP: u32 = 1;

/// Bytes in the guest's memory.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    pub address: GuestAddress,
    pub len: u32,
}

/// A request as it lies in the guest's memory.
#[derive(Debug, Default)]
pub struct Request {
    pub head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

/// Its fixed parts.
#[derive(Debug, Clone, Copy)]
pub struct Parsed {
    pub kind: u32,
    sector: u64,
    /// Bytes of data that the guest gives, and that it takes.
    given: u64,
    wanted: u64,
    status: GuestAddress,
}

/// What requests are done with.
pub struct Disk {
    pub device: std::sync::Arc<dyn BlockDevice>,
    pub id: [u8; ID_BYTES],
    pub pace: Pace,
    pub counters: std::sync::Arc<Counters>,
}

impl Parsed {
    /// As what it is counted.
    pub fn operation(&self) -> Operation {
        match self.kind {
            kind::IN => Operation::Read(self.wanted),
            kind::OUT => Operation::Write(self.given),
            _ => Operation::Other,
        }
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// Does `each` with `len` bytes from the byte `skip` of some segments on: with the address, and the place among those.
fn walk(
    segments: &[Segment],
    skip: u64,
    len: usize,
    mut each: impl FnMut(GuestAddress, std::ops::Range<usize>) -> Option<()>,
) -> Option<()> {
    let (mut skip, mut at) = (skip, 0);
    for segment in segments {
        if at == len {
            break;
        }
        let here = u64::from(segment.len);
        if skip >= here {
            skip -= here;
            continue;
        }
        let part = usize::try_from(here - skip).ok()?.min(len - at);
        each(segment.address.checked_add(skip)?, at..at + part)?;
        (at, skip) = (at + part, 0);
    }
    (at == len).then_some(())
}

fn gather(memory: &Memory, segments: &[Segment], skip: u64, room: &mut [u8]) -> Option<()> {
    let len = room.len();
    walk(segments, skip, len, |address, range| memory.read_slice(room.get_mut(range)?, address).ok())
}

fn scatter(memory: &Memory, segments: &[Segment], skip: u64, bytes: &[u8]) -> Option<()> {
    walk(segments, skip, bytes.len(), |address, range| memory.write_slice(bytes.get(range)?, address).ok())
}

/// The pieces of memory of `len` bytes from the byte `skip` of some segments on; `None` where they are too many, or one
/// is not in one piece.
fn slices<'m>(memory: &'m Memory, segments: &[Segment], skip: u64, len: usize) -> Option<Vec<VolatileSlice<'m>>> {
    let mut all = Vec::with_capacity(segments.len());
    walk(segments, skip, len, |address, range| {
        all.push(memory.get_slice(address, range.len()).ok()?);
        Some(())
    })?;
    (all.len() <= sys::guest::PIECES_MAX).then_some(all)
}

/// The memory of `len` bytes from the byte `skip` of some segments on, where it is in one piece.
fn slice<'m>(memory: &'m Memory, segments: &[Segment], mut skip: u64, len: usize) -> Option<VolatileSlice<'m>> {
    let mut segments = segments.iter();
    let segment = loop {
        let segment = segments.next()?;
        match skip.checked_sub(u64::from(segment.len)) {
            Some(rest) => skip = rest,
            None => break segment,
        }
    };
    let is_whole = len as u64 <= u64::from(segment.len) - skip;
    is_whole.then(|| memory.get_slice(segment.address.checked_add(skip)?, len).ok()).flatten()
}

fn unreachable() -> Error {
    Error::new(Kind::Invalid, "a request whose data lies outside of the guest's memory")
}

impl Request {
    /// Takes over a chain of descriptors.
    pub fn fill(&mut self, head: u16, chain: impl Iterator<Item = (GuestAddress, u32, bool)>) {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        for (address, len, is_writable) in chain {
            let segments = if is_writable { &mut self.writable } else { &mut self.readable };
            segments.push(Segment { address, len });
        }
    }

    /// Its fixed parts; `None` for one that has no room for them: it cannot even be answered.
    pub fn parse(&self, memory: &Memory) -> Option<Parsed> {
        let mut head = [0; HEAD_BYTES];
        gather(memory, &self.readable, 0, &mut head)?;
        let wanted = total(&self.writable).checked_sub(1)?;
        let mut status = None;
        walk(&self.writable, wanted, 1, |address, _| {
            status = Some(address);
            Some(())
        })?;
        Some(Parsed {
            kind: u32::from_le_bytes(head.first_chunk().copied()?),
            sector: u64::from_le_bytes(head.last_chunk().copied()?),
            given: total(&self.readable).checked_sub(HEAD_BYTES as u64)?,
            wanted,
            status: status?,
        })
    }

    /// Bytes that it moves.
    pub fn len(&self) -> u64 {
        total(&self.readable) + total(&self.writable)
    }

    /// Bytes that it has room for: a read takes as many.
    pub fn takes(&self) -> u64 {
        total(&self.writable)
    }

    /// Does it and answers it: bytes that were written to the guest's memory. When `quick`, only if that does not wait
    /// for the disk: `None` otherwise. A failure is told to `report`.
    pub fn perform(
        &self,
        parsed: &Parsed,
        disk: &Disk,
        memory: &Memory,
        buffer: &mut Vec<u8>,
        quick: bool,
        report: &dyn Fn(Error),
    ) -> Option<u32> {
        let (status, written) = match self.attempt(parsed, disk, memory, buffer, quick) {
            Ok(Some(written)) => (status::OK, written),
            Ok(None) => return None,
            Err(error) if error.kind() == Kind::Unsupported => (status::UNSUPP, 0),
            Err(error) => {
                report(error);
                (status::IOERR, 0)
            }
        };
        let told = memory.write_obj(status, parsed.status).is_ok();
        Some(if told { u32::try_from(written + 1).unwrap_or(u32::MAX) } else { 0 })
    }

    /// Answers that it failed.
    pub fn fail(&self, parsed: &Parsed, memory: &Memory) -> Option<u32> {
        memory.write_obj(status::IOERR, parsed.status).ok().map(|()| 1)
    }

    fn attempt(
        &self,
        parsed: &Parsed,
        disk: &Disk,
        memory: &Memory,
        buffer: &mut Vec<u8>,
        quick: bool,
    ) -> Result<Option<u64>> {
        match parsed.kind {
            kind::IN => {
                let offset = range(disk, parsed.sector, parsed.wanted)?;
                self.read(disk, memory, offset, parsed.wanted, buffer, quick)
            }
            kind::OUT => {
                let offset = range(disk, parsed.sector, parsed.given)?;
                if quick && disk.pace.is_slow() {
                    return Ok(None);
                }
                let write = || self.write(disk, memory, offset, parsed.given, buffer);
                disk.pace.timed(parsed.given, write).map(|()| Some(0))
            }
            kind::GET_ID => {
                let len = (parsed.wanted as usize).min(ID_BYTES);
                scatter(memory, &self.writable, 0, disk.id.get(..len).unwrap_or_default()).ok_or_else(unreachable)?;
                Ok(Some(len as u64))
            }
            // The rest waits for the disk.
            kind::FLUSH | kind::DISCARD | kind::WRITE_ZEROES if quick => Ok(None),
            kind::FLUSH => disk.device.flush().map(|()| Some(0)),
            kind::DISCARD | kind::WRITE_ZEROES => self.ranges(parsed, disk, memory).map(|()| Some(0)),
            other => Err(Error::new(Kind::Unsupported, format!("a request of kind {other}"))),
        }
    }

    fn read(
        &self,
        disk: &Disk,
        memory: &Memory,
        offset: u64,
        len: u64,
        buffer: &mut Vec<u8>,
        quick: bool,
    ) -> Result<Option<u64>> {
        let mut done = 0;
        while done < len {
            let extent = disk.device.extent_at(offset + done)?;
            let part = extent.len.max(1).min(len - done).min(PIECE_BYTES as u64);
            if quick
                && let Source::File { fd, offset } = extent.source
                && let Some(read) = self.read_straight(memory, fd, offset, done, part as usize)
            {
                if read as u64 != part {
                    return Ok(None);
                }
                done += part;
                continue;
            }
            let room = scratch(buffer, part as usize);
            if !disk.pace.read(&disk.device, extent, room, offset + done, quick)? {
                return Ok(None);
            }
            scatter(memory, &self.writable, done, room).ok_or_else(unreachable)?;
            done += part;
        }
        Ok(Some(len))
    }

    /// Reads what is in the page cache into the guest's memory, how many bytes; `None` where they have to be copied.
    fn read_straight(&self, memory: &Memory, fd: BorrowedFd<'_>, offset: u64, skip: u64, len: usize) -> Option<usize> {
        let read = match slice(memory, &self.writable, skip, len) {
            Some(room) => sys::guest::read_cached(fd, &[room], offset),
            None if len as u64 >= STRAIGHT_BYTES_MIN => {
                sys::guest::read_cached(fd, &slices(memory, &self.writable, skip, len)?, offset)
            }
            None => return None,
        };
        Some(read.unwrap_or(0))
    }

    fn write(&self, disk: &Disk, memory: &Memory, offset: u64, len: u64, buffer: &mut Vec<u8>) -> Result<()> {
        let mut done = 0;
        while done < len {
            let piece = usize::try_from(len - done).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            let room = scratch(buffer, piece);
            gather(memory, &self.readable, HEAD_BYTES as u64 + done, room).ok_or_else(unreachable)?;
            disk.device.write_at(room, offset + done)?;
            done += piece as u64;
        }
        Ok(())
    }

    fn ranges(&self, parsed: &Parsed, disk: &Disk, memory: &Memory) -> Result<()> {
        let discards = parsed.kind == kind::DISCARD;
        let count = parsed.given / RANGE_BYTES as u64;
        if !parsed.given.is_multiple_of(RANGE_BYTES as u64) || count == 0 || count > u64::from(RANGES_MAX) {
            return Err(Error::new(Kind::Invalid, format!("ranges of {} bytes", parsed.given)));
        }
        let mut bytes = [0; RANGE_BYTES * RANGES_MAX as usize];
        let bytes = bytes.get_mut(..parsed.given as usize).unwrap_or_default();
        gather(memory, &self.readable, HEAD_BYTES as u64, bytes).ok_or_else(unreachable)?;
        for one in bytes.as_chunks::<RANGE_BYTES>().0 {
            let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = *one;
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let len = u64::from(u32::from_le_bytes([n0, n1, n2, n3])) * SECTOR_BYTES;
            let flags = u32::from_le_bytes([f0, f1, f2, f3]);
            // Flags that are not known, or have no meaning here (section 5.2.6.2).
            if flags & !UNMAP != 0 || discards && flags != 0 {
                return Err(Error::new(Kind::Unsupported, format!("flags {flags:#x} of a range")));
            }
            let offset = range(disk, sector, len)?;
            if discards {
                disk.device.discard(offset, len)?;
            } else {
                let mode = if flags & UNMAP != 0 { Zero::Deallocate } else { Zero::Allocate };
                disk.device.write_zeroes(offset, len, mode)?;
            }
        }
        Ok(())
    }
}

/// The first byte of `len` bytes from a sector on.
fn range(disk: &Disk, sector: u64, len: u64) -> Result<u64> {
    let offset = sector.checked_mul(SECTOR_BYTES);
    let offset = offset.ok_or_else(|| Error::new(Kind::OutOfRange, format!("sector {sector}")))?;
    if !len.is_multiple_of(SECTOR_BYTES) {
        return Err(Error::new(Kind::Invalid, format!("{len} bytes, which are no sectors")));
    }
    check_range(disk.device.size(), offset, len)?;
    Ok(offset)
}

fn scratch(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    buffer.get_mut(..len).unwrap_or_default()
}
