//! A part of a device, as a device.

use crate::{BlockDevice, Extent, Limits, ReadAt, Result, Zero, check_range};

/// The `len` bytes at `start` of a device: a partition, or `offset=` and `sizelimit=`.
///
/// ```text
/// below   |------------|############|--------|
///         0         start      start + len
/// ```
#[derive(Debug)]
pub struct Window<D> {
    device: D,
    start: u64,
    len: u64,
}

impl<D: ReadAt> Window<D> {
    /// The `len` bytes at `start` (bytes) of `device`.
    ///
    /// # Errors
    /// [`Kind::OutOfRange`](crate::Kind::OutOfRange) when they do not lie inside it as a whole.
    pub fn new(device: D, start: u64, len: u64) -> Result<Self> {
        check_range(device.size(), start, len)?;
        Ok(Self { device, start, len })
    }

    /// Where `len` bytes at `offset` of the window lie below.
    #[inline]
    fn below(&self, offset: u64, len: u64) -> Result<u64> {
        check_range(self.len, offset, len)?;
        Ok(self.start + offset)
    }
}

impl<D: ReadAt> ReadAt for Window<D> {
    fn size(&self) -> u64 {
        self.len
    }

    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let below = self.below(offset, buf.len() as u64)?;
        self.device.read_at(buf, below)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        // At least one byte: the end of the window has no extent, though the device below goes on there.
        // The file offset that it names is already that of this byte.
        let mut extent = self.device.extent_at(self.below(offset, 1)?)?;
        extent.len = extent.len.min(self.len - offset);
        Ok(extent)
    }
}

impl<D: BlockDevice> BlockDevice for Window<D> {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.device.write_at(buf, self.below(offset, buf.len() as u64)?)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: Zero) -> Result<()> {
        self.device.write_zeroes(self.below(offset, len)?, len, mode)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.device.discard(self.below(offset, len)?, len)
    }

    fn flush(&self) -> Result<()> {
        self.device.flush()
    }
}
