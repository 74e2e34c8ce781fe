//! What is read, as a device that takes no writes.

use crate::{BlockDevice, Error, Extent, Kind, Limits, ReadAt, Result, Zero};

/// Anything that is read, as a device: every write is refused, and a flush has nothing to do.
#[derive(Debug)]
pub struct ReadOnly<D>(D);

impl<D: ReadAt> ReadOnly<D> {
    /// `device`, read only.
    pub fn new(device: D) -> Self {
        Self(device)
    }
}

fn refuse(what: &'static str) -> Result<()> {
    Err(Error::new(Kind::ReadOnly, what))
}

impl<D: ReadAt> ReadAt for ReadOnly<D> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn limits(&self) -> Limits {
        Limits { read_only: true, ..self.0.limits() }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        self.0.extent_at(offset)
    }
}

impl<D: ReadAt> BlockDevice for ReadOnly<D> {
    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        refuse("a write to a read-only device")
    }

    fn write_zeroes(&self, _: u64, _: u64, _: Zero) -> Result<()> {
        refuse("a write of zeroes to a read-only device")
    }

    fn discard(&self, _: u64, _: u64) -> Result<()> {
        refuse("a discard on a read-only device")
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
