//! A device of a size that stays, as storage of an image format.

use std::os::fd::BorrowedFd;

use crate::{BlockDevice, Error, Extent, Kind, Limits, ReadAt, Result, Storage, Zero};

/// A device that an image format is stored on, and which cannot become larger: a partition, a disk.
#[derive(Debug)]
pub struct Fixed<D>(D);

impl<D: BlockDevice> Fixed<D> {
    /// `device`, as storage.
    pub fn new(device: D) -> Self {
        Self(device)
    }
}

impl<D: ReadAt> ReadAt for Fixed<D> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        self.0.extent_at(offset)
    }
}

impl<D: BlockDevice> BlockDevice for Fixed<D> {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.0.write_at(buf, offset)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: Zero) -> Result<()> {
        self.0.write_zeroes(offset, len, mode)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.0.discard(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()
    }
}

impl<D: BlockDevice> Storage for Fixed<D> {
    fn grow(&self, size: u64) -> Result<()> {
        let now = self.0.size();
        if size <= now {
            return Ok(());
        }
        Err(Error::new(Kind::NoSpace, format!("room for {size} bytes on a device of {now}")))
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
