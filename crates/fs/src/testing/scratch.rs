//! Bytes in memory that are written, for what is tried on images.

use std::sync::RwLock;

use block::{BlockDevice, Extent, Limits, ReadAt, Result, Source, Zero, check_range};

/// A device of a copy of these bytes.
#[derive(Debug)]
pub struct Scratch(RwLock<Vec<u8>>);

impl Scratch {
    /// Of a copy of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        Self(RwLock::new(bytes.to_vec()))
    }
}

impl ReadAt for Scratch {
    fn size(&self) -> u64 {
        self.0.read().unwrap().len() as u64
    }

    fn limits(&self) -> Limits {
        Limits::PLAIN
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.size(), offset, buf.len() as u64)?;
        buf.copy_from_slice(&self.0.read().unwrap()[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.size(), offset, 1)?;
        Ok(Extent { len: self.size() - offset, source: Source::Data })
    }
}

impl BlockDevice for Scratch {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        check_range(self.size(), offset, buf.len() as u64)?;
        self.0.write().unwrap()[offset as usize..][..buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: Zero) -> Result<()> {
        check_range(self.size(), offset, len)?;
        self.0.write().unwrap()[offset as usize..][..len as usize].fill(0);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        check_range(self.size(), offset, len)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
