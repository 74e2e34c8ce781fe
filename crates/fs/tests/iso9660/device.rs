//! Devices of the tests.

use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

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
