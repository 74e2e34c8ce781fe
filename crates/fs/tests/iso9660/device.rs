//! Devices of the tests.

use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{Extent, Limits, ReadAt, Result, Source, check_range};

/// An image file.
#[derive(Debug)]
pub struct File {
    file: std::fs::File,
    size: u64,
}

impl File {
    pub fn open(path: &Path) -> Self {
        let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let size = file.metadata().unwrap().len();
        Self { file, size }
    }
}

impl ReadAt for File {
    fn size(&self) -> u64 {
        self.size
    }
    fn limits(&self) -> Limits {
        Limits { read_only: true, ..Limits::PLAIN }
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.size, offset, buf.len() as u64)?;
        self.file.read_exact_at(buf, offset).map_err(|error| block::Error::io("read", error))
    }
    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.size, offset, 1)?;
        Ok(Extent { len: self.size - offset, source: Source::File { fd: self.file.as_fd(), offset } })
    }
}

/// A device that counts the bytes that are read from it.
#[derive(Debug)]
pub struct Counted<D> {
    device: D,
    bytes: AtomicU64,
}

impl<D> Counted<D> {
    pub fn new(device: D) -> Self {
        Self { device, bytes: AtomicU64::new(0) }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl<D: ReadAt> ReadAt for Counted<D> {
    fn size(&self) -> u64 {
        self.device.size()
    }
    fn limits(&self) -> Limits {
        self.device.limits()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.device.read_at(buf, offset)
    }
    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        self.device.extent_at(offset)
    }
}

/// Bytes in memory.
#[derive(Debug)]
pub struct Memory(pub Vec<u8>);

impl ReadAt for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn limits(&self) -> Limits {
        Limits { read_only: true, ..Limits::PLAIN }
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.size(), offset, buf.len() as u64)?;
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }
    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.size(), offset, 1)?;
        Ok(Extent { len: self.size() - offset, source: Source::Data })
    }
}
