//! Answers, in each of the three dialects.
//!
//! ```text
//! simple      u32 magic  u32 error  u64 cookie                                              [data]
//! chunk       u32 magic  u16 flags  u16 type  u64 cookie  u32 length                        [payload]
//! extended    u32 magic  u16 flags  u16 type  u64 cookie  u64 offset (of the request)  u64 length  [payload]
//! ```

use block::Source;

use super::handshake::{ALLOCATION_ID, Dialect};
use super::wire::{self, Request, chunk};

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

/// A header of a chunk; `len` is that of the payload.
fn chunk_header(out: &mut Vec<u8>, dialect: Dialect, request: &Request, flags: u16, kind: u16, len: u64) {
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

fn simple(out: &mut Vec<u8>, request: &Request, error: u32) {
    out.extend_from_slice(&wire::REPLY_SIMPLE.to_be_bytes());
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&request.cookie.to_be_bytes());
}

/// "Done", without data.
pub fn done(out: &mut Vec<u8>, dialect: Dialect, request: &Request) {
    if dialect.extended {
        chunk_header(out, dialect, request, chunk::DONE, chunk::NONE, 0);
    } else {
        simple(out, request, 0);
    }
}

/// "It failed", with a sentence where the dialect has room for one.
pub fn failed(out: &mut Vec<u8>, dialect: Dialect, request: &Request, error: u32, why: &str) {
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

/// Everything before the data of a read of `len` bytes, which the caller appends; [`take_back`] undoes it.
pub fn data_header(out: &mut Vec<u8>, dialect: Dialect, request: &Request, offset: u64, len: u64, last: bool) {
    if dialect.structured {
        let flags = if last { chunk::DONE } else { 0 };
        chunk_header(out, dialect, request, flags, chunk::OFFSET_DATA, len + 8);
        out.extend_from_slice(&offset.to_be_bytes());
    } else {
        simple(out, request, 0);
    }
}

/// A run of a read that holds nothing but zeroes; structured dialects only.
pub fn hole(out: &mut Vec<u8>, dialect: Dialect, request: &Request, offset: u64, len: u32, last: bool) {
    let flags = if last { chunk::DONE } else { 0 };
    chunk_header(out, dialect, request, flags, chunk::OFFSET_HOLE, 12);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// The answer to a block status request.
pub fn block_status(out: &mut Vec<u8>, dialect: Dialect, request: &Request, runs: &[Status]) {
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
