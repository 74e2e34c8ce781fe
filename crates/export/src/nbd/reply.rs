//! Answers, in each of the three dialects.
//!
//! ```text
//! simple      u32 magic  u32 error  u64 cookie                                              [data]
//! chunk       u32 magic  u16 flags  u16 type  u64 cookie  u32 length                        [payload]
//! extended    u32 magic  u16 flags  u16 type  u64 cookie  u64 offset (of the request)  u64 length  [payload]
//! ```

use std::time::Instant;

use block::Source;

use super::handshake::{ALLOCATION_ID, Dialect};
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
    /// What was answered in them, and since when.
    batch: Batch,
    begun: Option<Instant>,
}

impl Output {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
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

    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        self.memory.get(..self.len).unwrap_or_default()
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

    /// Takes back all but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Takes back all, and gives back memory of more than `kept` bytes.
    pub fn clear(&mut self, kept: usize) {
        self.len = 0;
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
    start: usize,
}

/// Everything before the data of a read from `offset` on, which the caller appends, and then [`close_data`].
pub fn open_data(out: &mut Output, dialect: Dialect, request: &Request, offset: u64) -> Data {
    let start = out.len();
    if dialect.structured {
        chunk_header(out, dialect, request, 0, chunk::OFFSET_DATA, 0);
        out.extend_from_slice(&offset.to_be_bytes());
    } else {
        simple(out, request, 0);
    }
    Data { start }
}

/// Says how long the data became that was appended since `data` was opened, and whether it is the last of the answer.
pub fn close_data(out: &mut Output, dialect: Dialect, data: Data, last: bool) {
    if !dialect.structured {
        return;
    }
    let flags = if last { chunk::DONE } else { 0 };
    out.put(data.start + 4, &flags.to_be_bytes());
    if dialect.extended {
        let len = (out.len() - data.start - CHUNK_EXTENDED_BYTES) as u64;
        out.put(data.start + 24, &len.to_be_bytes());
    } else {
        let len = (out.len() - data.start - CHUNK_BYTES) as u32;
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
