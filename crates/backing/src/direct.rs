//! Reads and writes past the page cache (`O_DIRECT`), which want offset, length and memory aligned.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The most that is copied through aligned memory at one time, bytes.
const BOUNCE_MAX: usize = 1 << 20;

/// A file opened with `O_DIRECT`, and what it wants its requests aligned to.
#[derive(Debug)]
pub(crate) struct Direct {
    file: File,
    align: usize,
}

impl Direct {
    /// `align` (bytes) is a power of two.
    pub(crate) fn new(file: File, align: u32) -> Self {
        Self { file, align: (align as usize).min(BOUNCE_MAX) }
    }

    fn fits(&self, offset: u64, len: usize) -> bool {
        offset.is_multiple_of(self.align as u64) && len.is_multiple_of(self.align)
    }

    fn memory_fits(&self, buf: &[u8]) -> bool {
        buf.as_ptr().addr().is_multiple_of(self.align)
    }

    /// Fills `buf`; what is not aligned is read a little wider, through aligned memory.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.fits(offset, buf.len()) && self.memory_fits(buf) {
            return self.file.read_exact_at(buf, offset);
        }
        let mut bounce =
            Bounce::new(BOUNCE_MAX.min((buf.len() + 2 * self.align).next_multiple_of(self.align)), self.align);
        let memory = bounce.bytes();
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let skip = (at % self.align as u64) as usize;
            let want = (skip + buf.len() - done).next_multiple_of(self.align).min(memory.len());
            let read = match self.file.read_at(&mut memory[..want], at - skip as u64) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            // The end of a file need not be aligned: a short read is good as far as it goes.
            let Some(got) = memory[..read].get(skip..).filter(|got| !got.is_empty()) else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let len = got.len().min(buf.len() - done);
            buf[done..done + len].copy_from_slice(&got[..len]);
            done += len;
        }
        Ok(())
    }

    /// Writes `buf` when offset and length are aligned, and says whether it did. What is not would have to be read
    /// first, and two such writes side by side would undo each other: the kernel's page cache does that right.
    pub(crate) fn write(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        if !self.fits(offset, buf.len()) {
            return Ok(false);
        }
        if self.memory_fits(buf) {
            return self.file.write_all_at(buf, offset).map(|()| true);
        }
        let mut bounce = Bounce::new(BOUNCE_MAX.min(buf.len()), self.align);
        let memory = bounce.bytes();
        let mut at = offset;
        for chunk in buf.chunks(memory.len().max(1)) {
            memory[..chunk.len()].copy_from_slice(chunk);
            self.file.write_all_at(&memory[..chunk.len()], at)?;
            at += chunk.len() as u64;
        }
        Ok(true)
    }
}

/// Aligned memory.
struct Bounce {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Bounce {
    fn new(len: usize, align: usize) -> Self {
        let memory = vec![0; len + align];
        let start = memory.as_ptr().addr().next_multiple_of(align) - memory.as_ptr().addr();
        Self { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
