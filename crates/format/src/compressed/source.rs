//! The compressed bytes of a part of a file, one after the other.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{Error, Kind, Storage};

/// So many bytes are read at one time.
const BUFFER_BYTES: u64 = 128 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Source {
    storage: Arc<dyn Storage>,
    /// Where the next bytes for the buffer are.
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    used: usize,
    reached: Arc<AtomicU64>,
}

impl Source {
    /// The bytes from `at` to `end`, or to the end of the file where that comes first.
    pub(super) fn new(storage: &Arc<dyn Storage>, at: u64, end: u64) -> Self {
        let end = end.min(storage.size());
        let reached = Arc::new(AtomicU64::new(at));
        Self { storage: Arc::clone(storage), at, end, buffer: Vec::new(), used: 0, reached }
    }

    /// How far the file has been read, for who watches.
    pub(super) fn reached(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.reached)
    }

    /// Where the next byte is.
    pub(super) fn position(&self) -> u64 {
        self.at.saturating_sub(self.buffer.len().saturating_sub(self.used) as u64)
    }

    /// The next byte.
    pub(super) fn byte(&mut self) -> io::Result<u8> {
        let first = self.fill_buf()?.first().copied().ok_or(io::ErrorKind::UnexpectedEof)?;
        self.consume(1);
        Ok(first)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Leaves bytes out.
    pub(super) fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let buffered = self.buffer.len().saturating_sub(self.used) as u64;
        if bytes <= buffered {
            self.consume(usize::try_from(bytes).unwrap_or(usize::MAX));
            return Ok(());
        }
        let next = self.position().checked_add(bytes).filter(|next| *next <= self.end);
        self.at = next.ok_or(io::ErrorKind::UnexpectedEof)?;
        (self.buffer, self.used) = (Vec::new(), 0);
        Ok(())
    }
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used >= self.buffer.len() {
            let len = self.end.saturating_sub(self.at).min(BUFFER_BYTES);
            self.buffer.resize(usize::try_from(len).unwrap_or_default(), 0);
            self.used = 0;
            if let Err(error) = self.storage.read_at(&mut self.buffer, self.at) {
                self.buffer.clear();
                return Err(io::Error::other(error));
            }
            self.at = self.at.saturating_add(len);
            self.reached.store(self.at, Ordering::Relaxed);
        }
        Ok(self.buffer.get(self.used..).unwrap_or_default())
    }

    fn consume(&mut self, bytes: usize) {
        self.used = self.used.saturating_add(bytes).min(self.buffer.len());
    }
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let len = there.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), there.get(..len)) {
            to.copy_from_slice(from);
        }
        self.consume(len);
        Ok(len)
    }
}

/// What a decoder says, as an error of the disk: that of the file below where it is one, else `what` is broken.
pub(super) fn failed(error: io::Error, what: &'static str) -> Error {
    match error.downcast::<Error>() {
        Ok(below) => below,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Error::new(Kind::Corrupt, format!("{what} that was cut short"))
        }
        Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
            Error::new(Kind::Limit, format!("{what} that needs more memory than loopbox gives it")).with_source(error)
        }
        Err(error) => Error::new(Kind::Corrupt, format!("{what} that is broken")).with_source(error),
    }
}
