//! Answers, in each of the three dialects.
//!
//! ```text
//! simple      u32 magic  u32 error  u64 cookie                                              [data]
//! chunk       u32 magic  u16 flags  u16 type  u64 cookie  u32 length                        [payload]
//! extended    u32 magic  u16 flags  u16 type  u64 cookie  u64 offset (of the request)  u64 length  [payload]
//! ```

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use block::Source;
use sys::mapping::{self, Piece};

use super::handshake::{ALLOCATION_ID, Dialect};
use super::window::Window;
use super::wire::{self, Request, chunk};
use crate::counters::{Batch, Operation};

/// Bytes of the header of a chunk.
const CHUNK_BYTES: usize = 20;
/// The same, extended.
const CHUNK_EXTENDED_BYTES: usize = 32;

/// One run of a block status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Bytes.
    pub len: u64,
    /// [`wire::STATE_HOLE`] and [`wire::STATE_ZERO`].
    pub state: u32,
}

impl Status {
    /// The state of where bytes are.
    pub fn state(source: Source<'_>) -> u32 {
        match source {
            Source::Hole => wire::STATE_HOLE | wire::STATE_ZERO,
            Source::Zero => wire::STATE_ZERO,
            Source::Data | Source::File { .. } => 0,
        }
    }
}

/// Bytes to be sent. Memory that was filled once is used again as it is, rather than cleared for each read.
#[derive(Debug, Default)]
pub struct Output {
    memory: Vec<u8>,
    len: usize,
    /// What goes in between, from files.
    mapped: Vec<Mapped>,
    mapped_bytes: usize,
    /// What was answered in them, and since when.
    batch: Batch,
    begun: Option<Instant>,
}

/// Bytes of a file that are sent from where they are.
#[derive(Debug)]
struct Mapped {
    /// How many bytes of the memory come before them.
    at: usize,
    window: Arc<Window>,
    start: usize,
    len: usize,
}

/// A place in an [`Output`].
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    len: usize,
    mapped: usize,
}

impl Output {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len + self.mapped_bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether some of them are still in a file.
    pub fn is_mapped(&self) -> bool {
        !self.mapped.is_empty()
    }

    /// Where the next byte goes.
    pub fn mark(&self) -> Mark {
        Mark { len: self.len, mapped: self.mapped.len() }
    }

    /// That an answer is being made: the time of the first counts for all.
    pub fn begin(&mut self) {
        self.begun.get_or_insert_with(Instant::now);
    }

    /// That it was made.
    pub fn count(&mut self, operation: Operation) {
        self.batch.add(operation);
    }

    /// Takes what was counted.
    pub fn counted(&mut self) -> Option<(Batch, Instant)> {
        Some((std::mem::take(&mut self.batch), self.begun.take()?))
    }

    /// Writes all of them to `stream`, whose descriptor `direct` is where it takes bytes as they are; only then may some
    /// be mapped.
    ///
    /// # Errors
    /// That of writing; of reading the file, when it was cut short since the answers were made.
    pub fn write_to(&self, mut stream: impl Write, direct: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
        let Some(direct) = direct.filter(|_| self.is_mapped()) else {
            stream.write_all(self.memory.get(..self.len).unwrap_or_default())?;
            return stream.flush();
        };
        let (mut pieces, mut done) = (Vec::with_capacity(2 * self.mapped.len() + 1), 0);
        for part in &self.mapped {
            pieces.push(Piece::Bytes(self.memory.get(done..part.at).unwrap_or_default()));
            pieces.push(Piece::Mapped { mapping: part.window.mapping(), start: part.start, len: part.len });
            done = part.at;
        }
        pieces.push(Piece::Bytes(self.memory.get(done..self.len).unwrap_or_default()));
        let mut next = 0;
        while let Some(rest) = pieces.get_mut(next..).filter(|rest| !rest.is_empty()) {
            let mut written = match mapping::write(direct, rest) {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::FAULT.raw_os_error()) => {
                    return self.write_read(stream, rest, next);
                }
                Err(error) => return Err(error),
            };
            for piece in rest {
                let len = piece.len();
                piece.skip(written);
                if len > written {
                    break;
                }
                written -= len;
                next += 1;
            }
        }
        Ok(())
    }

    /// Writes the pieces from the n-th on, those of files by reading them.
    fn write_read(&self, mut stream: impl Write, rest: &[Piece<'_>], first: usize) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        for (index, piece) in rest.iter().enumerate() {
            match piece {
                Piece::Bytes(more) => bytes.extend_from_slice(more),
                Piece::Mapped { start, len, .. } => {
                    // Every second piece is a mapped one.
                    let part = self.mapped.get((first + index) / 2);
                    let window = &part.ok_or(std::io::ErrorKind::InvalidInput)?.window;
                    let at = bytes.len();
                    bytes.resize(at + len, 0);
                    window.read(bytes.get_mut(at..).unwrap_or_default(), *start)?;
                }
            }
        }
        stream.write_all(&bytes)
    }

    /// Appends bytes of a file.
    pub fn map(&mut self, window: Arc<Window>, start: usize, len: usize) {
        self.mapped.push(Mapped { at: self.len, window, start, len });
        self.mapped_bytes += len;
    }

    /// Appends `bytes`.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
    }

    /// Appends `len` bytes of any content, which the caller fills.
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        let start = self.len;
        self.len += len;
        if self.memory.len() < self.len {
            self.memory.resize(self.len, 0);
        }
        self.memory.get_mut(start..self.len).unwrap_or_default()
    }

    /// Takes back all after a mark.
    pub fn truncate(&mut self, mark: Mark) {
        self.len = self.len.min(mark.len);
        self.mapped_bytes -=
            self.mapped.drain(mark.mapped.min(self.mapped.len())..).map(|part| part.len).sum::<usize>();
    }

    /// Takes back all, and gives back memory of more than `kept` bytes.
    pub fn clear(&mut self, kept: usize) {
        self.len = 0;
        self.mapped.clear();
        self.mapped_bytes = 0;
        if self.memory.len() > kept {
            self.memory.truncate(kept);
            self.memory.shrink_to_fit();
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.memory.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

/// A header of a chunk; `len` is that of the payload.
fn chunk_header(out: &mut Output, dialect: Dialect, request: &Request, flags: u16, kind: u16, len: u64) {
    let magic = if dialect.extended { wire::REPLY_CHUNK_EXTENDED } else { wire::REPLY_CHUNK };
    out.extend_from_slice(&magic.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&request.cookie.to_be_bytes());
    if dialect.extended {
        out.extend_from_slice(&request.offset.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
    } else {
        out.extend_from_slice(&(len as u32).to_be_bytes());
    }
}

fn simple(out: &mut Output, request: &Request, error: u32) {
    out.extend_from_slice(&wire::REPLY_SIMPLE.to_be_bytes());
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&request.cookie.to_be_bytes());
}

/// "Done", without data. A read is answered in chunks, also one of nothing.
pub fn done(out: &mut Output, dialect: Dialect, request: &Request) {
    if dialect.extended || (dialect.structured && request.command == wire::command::READ) {
        chunk_header(out, dialect, request, chunk::DONE, chunk::NONE, 0);
    } else {
        simple(out, request, 0);
    }
}

/// "It failed", with a sentence where the dialect has room for one.
pub fn failed(out: &mut Output, dialect: Dialect, request: &Request, error: u32, why: &str) {
    let in_chunks = matches!(request.command, wire::command::READ | wire::command::BLOCK_STATUS);
    if dialect.extended || (dialect.structured && in_chunks) {
        let why = why.as_bytes();
        let why = why.get(..why.len().min(4096)).unwrap_or_default();
        chunk_header(out, dialect, request, chunk::DONE, chunk::ERROR, 6 + why.len() as u64);
        out.extend_from_slice(&error.to_be_bytes());
        out.extend_from_slice(&(why.len() as u16).to_be_bytes());
        out.extend_from_slice(why);
    } else {
        simple(out, request, error);
    }
}

/// Where the answer began whose data is being appended.
#[derive(Debug, Clone, Copy)]
pub struct Data {
    /// Byte of the memory.
    start: usize,
    /// Bytes that are before it.
    before: usize,
}

/// Everything before the data of a read from `offset` on, which the caller appends, and then [`close_data`].
pub fn open_data(out: &mut Output, dialect: Dialect, request: &Request, offset: u64) -> Data {
    let data = Data { start: out.len, before: out.len() };
    if dialect.structured {
        chunk_header(out, dialect, request, 0, chunk::OFFSET_DATA, 0);
        out.extend_from_slice(&offset.to_be_bytes());
    } else {
        simple(out, request, 0);
    }
    data
}

/// Says how long the data became that was appended since `data` was opened, and whether it is the last of the answer.
pub fn close_data(out: &mut Output, dialect: Dialect, data: Data, last: bool) {
    if !dialect.structured {
        return;
    }
    let flags = if last { chunk::DONE } else { 0 };
    out.put(data.start + 4, &flags.to_be_bytes());
    if dialect.extended {
        let len = (out.len() - data.before - CHUNK_EXTENDED_BYTES) as u64;
        out.put(data.start + 24, &len.to_be_bytes());
    } else {
        let len = (out.len() - data.before - CHUNK_BYTES) as u32;
        out.put(data.start + 16, &len.to_be_bytes());
    }
}

/// A run of a read that holds nothing but zeroes; structured dialects only.
pub fn hole(out: &mut Output, dialect: Dialect, request: &Request, offset: u64, len: u32, last: bool) {
    let flags = if last { chunk::DONE } else { 0 };
    chunk_header(out, dialect, request, flags, chunk::OFFSET_HOLE, 12);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// The answer to a block status request.
pub fn block_status(out: &mut Output, dialect: Dialect, request: &Request, runs: &[Status]) {
    if dialect.extended {
        let len = 8 + 16 * runs.len() as u64;
        chunk_header(out, dialect, request, chunk::DONE, chunk::BLOCK_STATUS_EXT, len);
        out.extend_from_slice(&ALLOCATION_ID.to_be_bytes());
        out.extend_from_slice(&(runs.len() as u32).to_be_bytes());
        for run in runs {
            out.extend_from_slice(&run.len.to_be_bytes());
            out.extend_from_slice(&u64::from(run.state).to_be_bytes());
        }
    } else {
        chunk_header(out, dialect, request, chunk::DONE, chunk::BLOCK_STATUS, 4 + 8 * runs.len() as u64);
        out.extend_from_slice(&ALLOCATION_ID.to_be_bytes());
        for run in runs {
            out.extend_from_slice(&(run.len as u32).to_be_bytes());
            out.extend_from_slice(&run.state.to_be_bytes());
        }
    }
}
