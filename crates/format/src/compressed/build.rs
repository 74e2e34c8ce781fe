//! An index in the making.

use std::io::Read;

use block::{Error, Kind, Result, ResultExt as _, Storage};
use flate2::{Compress, Compression, FlushCompress, Status};

use super::index::{HEAD_BYTES, Index, Known, OUT_BYTES_MAX, PIECE, POINTS_MAX, Point, SPACED_POINTS_MAX};
use super::source::failed;
use crate::probe::Format;

/// What comes out, in order, and what is noted of it.
pub(super) struct Builder<'a> {
    room: &'a dyn Storage,
    /// Where the index goes on.
    end: u64,
    image_bytes: u64,
    out: u64,
    points: Vec<Point>,
    /// Bytes at the end of the image that mean nothing.
    pub(super) ignored: u64,
    pieces: Vec<Known>,
    /// The piece that is being filled.
    piece: Vec<u8>,
    /// Where kept pieces begin, and how many there are; none where they are not kept.
    kept: Option<(u64, u32)>,
    /// From so many bytes on that come out nothing is kept any more.
    pub(super) keep_bytes_max: u64,
}

impl<'a> Builder<'a> {
    /// Into `room`, which is empty.
    pub(super) fn new(room: &'a dyn Storage, image_bytes: u64, keep: bool) -> Self {
        Self {
            room,
            end: HEAD_BYTES,
            image_bytes,
            out: 0,
            points: Vec::new(),
            ignored: 0,
            pieces: Vec::new(),
            piece: Vec::new(),
            kept: keep.then_some((HEAD_BYTES, 0)),
            keep_bytes_max: u64::MAX,
        }
    }

    /// Bytes of the image.
    pub(super) fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    /// Bytes that came out so far.
    pub(super) fn out(&self) -> u64 {
        self.out
    }

    fn append(&mut self, bytes: &[u8]) -> Result<u64> {
        let what = || "the index of a compressed image";
        let at = self.end;
        self.end = at.saturating_add(bytes.len() as u64);
        self.room.grow(self.end).context(what)?;
        self.room.write_at(bytes, at).context(what)?;
        Ok(at)
    }

    /// More bytes that came out.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.out = self.out.saturating_add(bytes.len() as u64);
        if self.out > OUT_BYTES_MAX {
            let context = format!("a compressed image of more than {} TiB", OUT_BYTES_MAX >> 40);
            return Err(Error::new(Kind::Limit, context));
        }
        while !bytes.is_empty() {
            let room = (PIECE as usize).saturating_sub(self.piece.len());
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.piece.len() as u64 == PIECE {
                self.end_piece()?;
            }
        }
        Ok(())
    }

    fn end_piece(&mut self) -> Result<()> {
        let piece = std::mem::take(&mut self.piece);
        let sum = crc32c::crc32c(&piece);
        let known = match self.kept.filter(|_| self.out <= self.keep_bytes_max) {
            _ if super::is_zero(&piece) => Known::Zero,
            Some((at, slot)) => {
                self.append(&piece)?;
                // A place is as long as a piece, also under the last one, which may be shorter.
                self.kept = Some((at, slot.saturating_add(1)));
                Known::Kept { slot, sum }
            }
            None => Known::Sum(sum),
        };
        self.pieces.push(known);
        self.piece = piece;
        self.piece.clear();
        Ok(())
    }

    /// All that `reader`, a decoder of `what`, gives.
    pub(super) fn push_all(
        &mut self,
        mut reader: impl Read,
        what: &'static str,
        tell: &mut dyn FnMut(),
    ) -> Result<u64> {
        let before = self.out;
        let mut bytes = vec![0; 128 << 10];
        loop {
            tell();
            match reader.read(&mut bytes).map_err(|error| failed(error, what))? {
                0 => return Ok(self.out.saturating_sub(before)),
                len => self.push(bytes.get(..len).unwrap_or_default())?,
            }
        }
    }

    /// Whether the last point lies so far back; also where there is none.
    pub(super) fn is_far_enough(&self, spacing: u64) -> bool {
        self.points.last().is_none_or(|last| self.out.saturating_sub(last.out) >= spacing)
    }

    /// `point` with its window, which goes into the index.
    pub(super) fn with_window(&mut self, point: Point, window: &[u8]) -> Result<Point> {
        if window.is_empty() {
            return Ok(point);
        }
        let packed = pack(window);
        let place = self.append(&packed)?;
        let bytes = |len: usize| u32::try_from(len).unwrap_or_default();
        Ok(Point {
            place,
            window_len: bytes(packed.len()),
            window_bytes: bytes(window.len()),
            window_sum: crc32c::crc32c(&packed),
            ..point
        })
    }

    /// One more point; of too many every second one goes. Gives how far apart they are to be from now on.
    pub(super) fn add_spaced(&mut self, point: Point, spacing: u64) -> u64 {
        self.points.push(point);
        if self.points.len() < SPACED_POINTS_MAX {
            return spacing;
        }
        let mut n = 0_usize;
        self.points.retain(|_| {
            n = n.wrapping_add(1);
            n % 2 == 1
        });
        spacing.saturating_mul(2)
    }

    /// One more point.
    pub(super) fn add(&mut self, point: Point) -> Result<()> {
        if self.points.len() >= POINTS_MAX {
            let context = format!("a compressed image of more than {POINTS_MAX} blocks");
            return Err(Error::new(Kind::Limit, context));
        }
        self.points.push(point);
        Ok(())
    }

    /// Writes the tables, and the head last. `size`: bytes that come out, where not all of them were pushed.
    pub(super) fn finish(mut self, format: Format, name: &[u8], size: Option<u64>) -> Result<()> {
        if !self.piece.is_empty() {
            self.end_piece()?;
        }
        let size = size.unwrap_or(self.out);
        // A point at the very end is one that nothing follows.
        while self.points.last().is_some_and(|point| point.out >= size) {
            self.points.pop();
        }
        // Where nothing comes out between two, the later one says it all.
        let mut points: Vec<Point> = Vec::with_capacity(self.points.len());
        for point in self.points.drain(..) {
            if points.last().is_some_and(|last| last.out == point.out) {
                points.pop();
            }
            points.push(point);
        }
        let index = Index {
            format,
            size,
            name: name.to_vec(),
            ignored: self.ignored,
            points,
            pieces: std::mem::take(&mut self.pieces),
            kept_at: self.kept.map_or(0, |(at, _)| at),
        };
        let (head, tables) = index.to_bytes(self.end);
        self.append(&tables)?;
        self.room.write_at(&head, 0).context(|| "the index of a compressed image")
    }
}

/// A window as it is kept.
fn pack(window: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(window.len().saturating_add(1024));
    let done = Compress::new(Compression::fast(), false).compress_vec(window, &mut packed, FlushCompress::Finish);
    if matches!(done, Ok(Status::StreamEnd)) && packed.len() < window.len() { packed } else { window.to_vec() }
}
