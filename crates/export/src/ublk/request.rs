//! A descriptor becomes a request, and is done.

use std::sync::Arc;

use block::{BlockDevice, Error, Kind, Result, Zero, check_range};
use sys::ublk::{Descriptor, Parameters, SECTOR_BYTES, attribute, operation};

use super::{BLOCK_BYTES_MAX, BUFFER_BYTES, DISCARD_SECTORS_MAX};
use crate::counters::{Counters, Operation};
use crate::pace::Pace;

/// What requests are done with.
#[derive(Debug)]
pub struct Disk {
    pub device: Arc<dyn BlockDevice>,
    /// Bytes that the kernel sees: whole blocks.
    size: u64,
    pub pace: Pace,
    pub counters: Arc<Counters>,
}

/// What a descriptor asks for, by its low byte.
fn kind(asked: &Descriptor) -> u8 {
    asked.operation.to_le_bytes()[0]
}

fn has(asked: &Descriptor, flag: u32) -> bool {
    asked.operation & flag != 0
}

fn bytes(asked: &Descriptor) -> u64 {
    u64::from(asked.sectors) * SECTOR_BYTES
}

/// As what it is counted.
pub fn counted(asked: &Descriptor) -> Operation {
    match kind(asked) {
        operation::READ => Operation::Read(bytes(asked)),
        operation::WRITE => Operation::Write(bytes(asked)),
        _ => Operation::Other,
    }
}

/// Whether it moves data, and nothing has to be safe for it.
pub fn moves_data(asked: &Descriptor) -> bool {
    kind(asked) == operation::READ || kind(asked) == operation::WRITE && !has(asked, operation::FUA)
}

impl Disk {
    /// # Errors
    /// [`Kind::Unsupported`] for a device smaller than a block.
    pub fn new(device: Arc<dyn BlockDevice>, counters: Arc<Counters>) -> Result<Self> {
        let block = u64::from(block(&*device));
        let size = device.size() / block * block;
        if size == 0 {
            let context = format!("a disk of {} bytes for the kernel, whose blocks have {block}", device.size());
            return Err(Error::new(Kind::Unsupported, context));
        }
        Ok(Self { device, size, pace: Pace::default(), counters })
    }

    /// Bytes at the end that are no whole block, and that nobody sees.
    pub fn rest(&self) -> u64 {
        self.device.size().saturating_sub(self.size)
    }

    /// What the kernel is told of it.
    pub fn parameters(&self) -> Parameters {
        let limits = self.device.limits();
        let logical = block(&*self.device);
        let preferred = limits.preferred.max(logical);
        let physical = preferred.min(BLOCK_BYTES_MAX);
        // Powers of two, below 2³².
        let shift = |bytes: u32| bytes.trailing_zeros().to_le_bytes()[0];
        let access = if limits.read_only { attribute::READ_ONLY } else { 0 };
        let parameters = Parameters {
            attributes: access | attribute::VOLATILE_CACHE | attribute::FUA,
            logical_shift: shift(logical),
            physical_shift: shift(physical),
            optimal_shift: shift(preferred),
            least_shift: shift(physical),
            sectors_max: BUFFER_BYTES / SECTOR_BYTES as u32,
            sectors: self.size / SECTOR_BYTES,
            ..Parameters::default()
        };
        if limits.read_only { parameters } else { parameters.with_discard(preferred, DISCARD_SECTORS_MAX) }
    }

    /// Does it: what the kernel is answered, bytes or a negative errno. When `quick`, only if that does not wait for the
    /// disk: `None` otherwise. A failure is told to `report`.
    pub fn perform(&self, asked: &Descriptor, buffer: &mut [u8], quick: bool, report: &dyn Fn(Error)) -> Option<i32> {
        match self.attempt(asked, buffer, quick) {
            Ok(done) => done.map(|bytes| i32::try_from(bytes).unwrap_or(i32::MAX)),
            Err(error) => {
                let errno = error.kind().errno();
                report(error);
                Some(-errno)
            }
        }
    }

    fn attempt(&self, asked: &Descriptor, buffer: &mut [u8], quick: bool) -> Result<Option<u64>> {
        let len = bytes(asked);
        match kind(asked) {
            operation::READ => {
                let (offset, room) = (self.offset(asked, len)?, part(buffer, len)?);
                self.read(room, offset, quick)
            }
            operation::WRITE => {
                let (offset, data) = (self.offset(asked, len)?, part(buffer, len)?);
                let durable = has(asked, operation::FUA);
                if quick && (durable || self.pace.is_slow()) {
                    return Ok(None);
                }
                self.pace.timed(len, || self.device.write_at(data, offset))?;
                if durable {
                    self.device.flush()?;
                }
                Ok(Some(len))
            }
            // The rest waits for the disk.
            operation::FLUSH | operation::DISCARD | operation::WRITE_ZEROES if quick => Ok(None),
            operation::FLUSH => self.device.flush().map(|()| Some(0)),
            operation::DISCARD => self.device.discard(self.offset(asked, len)?, len).map(|()| Some(0)),
            operation::WRITE_ZEROES => {
                let mode = if has(asked, operation::NO_UNMAP) { Zero::Allocate } else { Zero::Deallocate };
                self.device.write_zeroes(self.offset(asked, len)?, len, mode)?;
                if has(asked, operation::FUA) {
                    self.device.flush()?;
                }
                Ok(Some(0))
            }
            other => Err(Error::new(Kind::Unsupported, format!("a request of kind {other}"))),
        }
    }

    fn read(&self, room: &mut [u8], offset: u64, quick: bool) -> Result<Option<u64>> {
        let (mut rest, mut at) = (room, offset);
        while !rest.is_empty() {
            let extent = self.device.extent_at(at)?;
            let len = usize::try_from(extent.len.max(1)).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            if !self.pace.read(&*self.device, extent, now, at, quick)? {
                return Ok(None);
            }
            (rest, at) = (later, at + len as u64);
        }
        Ok(Some(at - offset))
    }

    /// The first byte of `len` that lie inside of what the kernel sees.
    fn offset(&self, asked: &Descriptor, len: u64) -> Result<u64> {
        let offset = asked.start_sector.checked_mul(SECTOR_BYTES);
        let offset = offset.ok_or_else(|| Error::new(Kind::OutOfRange, format!("sector {}", asked.start_sector)))?;
        check_range(self.size, offset, len)?;
        Ok(offset)
    }
}

/// The logical block that the kernel is told of.
fn block(device: &dyn BlockDevice) -> u32 {
    device.limits().block.clamp(SECTOR_BYTES as u32, BLOCK_BYTES_MAX)
}

/// The beginning of a buffer.
fn part(buffer: &mut [u8], len: u64) -> Result<&mut [u8]> {
    let room = buffer.len();
    let part = usize::try_from(len).ok().and_then(|len| buffer.get_mut(..len));
    part.ok_or_else(|| Error::new(Kind::Invalid, format!("a request of {len} bytes for a buffer of {room}")))
}
