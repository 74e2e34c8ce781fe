//! What is sent: bytes at hand, or a file, read piece by piece where a slow disk holds up nobody else.

use std::collections::VecDeque;
use std::fs::File;
use std::future::Future as _;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::{Bytes, Frame, SizeHint};
use tokio::task::JoinHandle;

use super::range::Part;

/// Read at a time, bytes.
const CHUNK_BYTES: u64 = 256 << 10;

/// A piece of a body.
#[derive(Debug)]
pub enum Piece {
    /// These bytes.
    Bytes(Bytes),
    /// A part of the file.
    Part(Part),
}

/// The pieces that are not yet sent.
#[derive(Debug)]
struct Source {
    file: File,
    pieces: VecDeque<Piece>,
    gzip: Option<GzEncoder<Vec<u8>>>,
}

#[derive(Debug)]
enum State {
    Waiting(Box<Source>),
    Reading(JoinHandle<(Box<Source>, io::Result<Option<Bytes>>)>),
    Ended,
}

/// The body of a response.
#[derive(Debug)]
pub struct Body {
    /// What goes first.
    bytes: Bytes,
    file: State,
    /// What is left to send, bytes; `None` where it is compressed on the way.
    left: Option<u64>,
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self { left: Some(text.len() as u64), bytes: text.into(), file: State::Ended }
    }
}

impl Body {
    /// Nothing.
    pub fn empty() -> Self {
        String::new().into()
    }

    /// Pieces of a file.
    pub fn pieces(file: File, pieces: Vec<Piece>) -> Self {
        let len = |piece: &Piece| match piece {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Part(part) => part.len,
        };
        let left = pieces.iter().map(len).fold(0, u64::saturating_add);
        let source = Box::new(Source { file, pieces: pieces.into(), gzip: None });
        Self { bytes: Bytes::new(), file: State::Waiting(source), left: Some(left) }
    }

    /// A file of `size` bytes, compressed.
    pub fn gzip(file: File, size: u64) -> Self {
        let gzip = Some(GzEncoder::new(Vec::new(), Compression::new(4)));
        let pieces = [Piece::Part(Part { start: 0, len: size })].into();
        Self { bytes: Bytes::new(), file: State::Waiting(Box::new(Source { file, pieces, gzip })), left: None }
    }

    /// How many bytes it has, where that is known.
    pub fn len(&self) -> Option<u64> {
        self.left
    }
}

impl Source {
    /// The next bytes; `None` at the end.
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let bytes = match self.pieces.pop_front() {
                None => {
                    let rest = self.gzip.take().map(GzEncoder::finish).transpose()?;
                    return Ok(rest.filter(|rest| !rest.is_empty()).map(Bytes::from));
                }
                Some(Piece::Bytes(bytes)) => bytes,
                Some(Piece::Part(Part { start, len })) => {
                    let now = len.min(CHUNK_BYTES);
                    // Chunks are at most 256 KiB: the number fits.
                    let mut bytes = vec![0; now as usize];
                    // A file that became shorter ends the connection: the length was promised.
                    self.file.read_exact_at(&mut bytes, start)?;
                    if len > now {
                        self.pieces.push_front(Piece::Part(Part { start: start.saturating_add(now), len: len - now }));
                    }
                    bytes.into()
                }
            };
            let Some(gzip) = &mut self.gzip else { return Ok(Some(bytes)) };
            gzip.write_all(&bytes)?;
            if !gzip.get_ref().is_empty() {
                return Ok(Some(std::mem::take(gzip.get_mut()).into()));
            }
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if !self.bytes.is_empty() {
            self.left = Some(0);
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.bytes)))));
        }
        loop {
            match std::mem::replace(&mut self.file, State::Ended) {
                State::Ended => return Poll::Ready(None),
                State::Waiting(mut source) => {
                    self.file = State::Reading(tokio::task::spawn_blocking(move || {
                        let read = source.next();
                        (source, read)
                    }));
                }
                State::Reading(mut reading) => {
                    let Poll::Ready(read) = Pin::new(&mut reading).poll(cx) else {
                        self.file = State::Reading(reading);
                        return Poll::Pending;
                    };
                    let (source, read) = read.map_err(io::Error::other)?;
                    let Some(bytes) = read? else { return Poll::Ready(None) };
                    self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
                    if self.left != Some(0) {
                        self.file = State::Waiting(source);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0) || (self.bytes.is_empty() && matches!(self.file, State::Ended))
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
