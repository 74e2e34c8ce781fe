//! Storage whose flushes do nothing.

use std::os::fd::BorrowedFd;

use crate::{BlockDevice, Extent, Limits, ReadAt, Result, Storage, Zero};

/// For a file that is made as a whole, and thrown away when that fails: nothing in it has to survive a power cut
/// before it is done. And for tests of what finds out that a flush was forgotten.
#[derive(Debug)]
pub struct Unflushed<D>(D);

impl<D: BlockDevice> Unflushed<D> {
    /// `storage`, without its flushes.
    pub fn new(storage: D) -> Self {
        Self(storage)
    }
}

impl<D: ReadAt> ReadAt for Unflushed<D> {
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

impl<D: BlockDevice> BlockDevice for Unflushed<D> {
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
        Ok(())
    }
}

impl<D: Storage> Storage for Unflushed<D> {
    fn grow(&self, size: u64) -> Result<()> {
        self.0.grow(size)
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        self.0.file()
    }
}
