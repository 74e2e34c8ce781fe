//! gzip (RFC 1952): members of one deflate stream (RFC 1951) each; `bgzip` and `pigz` make the same.
//!
//! ```text
//! | 1f 8b 8 | flags | time 4 | … 2 | extra, name, comment, sum | block | block | … | crc32 4 | length 4 |  next member …
//! a deflate block begins at any bit, and refers back up to 32 KiB: with those, decoding can begin there
//! ```

use std::io::{self, BufRead as _, Read};
use std::ops::Range;

use block::Result;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress, inflate_flags};

use super::build::Builder;
use super::index::{Kind as PointKind, Point, SPACING};
use super::source::{Source, failed};

/// What a block may refer back to, bytes.
pub(super) const WINDOW_BYTES: usize = 32 << 10;
/// What has been given is kept so far back, bytes: a power of two.
const RING_BYTES: usize = 4 * WINDOW_BYTES;
/// What is decoded, in messages.
pub(super) const WHAT: &str = "a gzip file";

const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;
const HEADER_SUM: u8 = 2;

enum State {
    /// A member begins here, or nothing does any more.
    Header,
    Body,
    Trailer,
    End,
}

/// What a step came upon, behind the bytes that it gave.
enum Step {
    Data,
    /// A member begins at this byte of the file.
    Member(u64),
    /// A block begins.
    Block(BlockBoundaryState),
    End,
}

/// A decoder.
pub(super) struct Gunzip {
    source: Source,
    inflate: Box<DecompressorOxide>,
    ring: Box<[u8]>,
    /// Where in the ring the next byte goes.
    at: usize,
    /// What the last step gave.
    given: Range<usize>,
    /// Of this member, from its first byte on; none where it was not decoded from there.
    sum: Option<crc32fast::Hasher>,
    /// Bytes of this member, from where it was begun.
    member_bytes: u64,
    state: State,
    members: u64,
    flags: u32,
}

impl Gunzip {
    /// From the first byte of a member.
    pub(super) fn new(source: Source) -> Self {
        Self {
            source,
            inflate: Box::default(),
            ring: vec![0; RING_BYTES].into(),
            at: 0,
            given: 0..0,
            sum: None,
            member_bytes: 0,
            state: State::Header,
            members: 0,
            flags: inflate_flags::TINFL_FLAG_HAS_MORE_INPUT,
        }
    }

    /// From a block on: `bits` (fewer than 8) of the byte before `source` belong to it; `window` is what came before.
    pub(super) fn resume(source: Source, bits: u8, byte: u8, window: &[u8]) -> Self {
        let state = BlockBoundaryState { num_bits: bits & 7, bit_buf: byte, ..Default::default() };
        let mut this = Self::new(source);
        *this.inflate = DecompressorOxide::from_block_boundary_state(&state);
        let len = window.len().min(WINDOW_BYTES);
        if let (Some(to), Some(from)) = (this.ring.get_mut(..len), window.get(..len)) {
            to.copy_from_slice(from);
        }
        (this.at, this.state) = (len, State::Body);
        this
    }

    fn data(&self) -> &[u8] {
        self.ring.get(self.given.clone()).unwrap_or_default()
    }

    /// The last bytes of this member, up to 32 KiB.
    fn window(&self) -> Vec<u8> {
        let len = usize::try_from(self.member_bytes).unwrap_or(usize::MAX).min(WINDOW_BYTES);
        let before = len.saturating_sub(self.at);
        let older = self.ring.get(RING_BYTES.saturating_sub(before)..).unwrap_or_default();
        let newer = self.ring.get(self.at.saturating_sub(len)..self.at).unwrap_or_default();
        [older, newer].concat()
    }

    fn step(&mut self) -> io::Result<Step> {
        self.given = self.at..self.at;
        match self.state {
            State::Header => {
                if self.members > 0 && !self.another_member()? {
                    self.state = State::End;
                    return Ok(Step::End);
                }
                let start = self.source.position();
                self.read_header()?;
                *self.inflate = DecompressorOxide::new();
                (self.sum, self.member_bytes) = (Some(crc32fast::Hasher::new()), 0);
                (self.members, self.state) = (self.members.saturating_add(1), State::Body);
                Ok(Step::Member(start))
            }
            State::Body => self.read_body(),
            State::Trailer => {
                let sum = u32::from_le_bytes(self.source.array()?);
                let len = u32::from_le_bytes(self.source.array()?);
                if let Some(own) = self.sum.take()
                    && (own.finalize() != sum || self.member_bytes & 0xffff_ffff != u64::from(len))
                {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "its check sum is another"));
                }
                (self.state, self.members) = (State::Header, self.members.max(1));
                Ok(Step::Data)
            }
            State::End => Ok(Step::End),
        }
    }

    fn read_body(&mut self) -> io::Result<Step> {
        if self.at >= self.ring.len() {
            self.at = 0;
        }
        let input = self.source.fill_buf()?;
        if input.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (status, taken, given) = decompress(&mut self.inflate, input, &mut self.ring, self.at, self.flags);
        self.source.consume(taken);
        self.given = self.at..self.at.saturating_add(given);
        self.at = self.given.end;
        self.member_bytes = self.member_bytes.saturating_add(given as u64);
        let data = self.ring.get(self.given.clone()).unwrap_or_default();
        if let Some(sum) = &mut self.sum {
            sum.update(data);
        }
        match status {
            TINFLStatus::Done => {
                self.state = State::Trailer;
                Ok(Step::Data)
            }
            TINFLStatus::BlockBoundary => Ok(match self.inflate.block_boundary_state() {
                Some(state) => Step::Block(state),
                None => Step::Data,
            }),
            TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput if taken > 0 || given > 0 => Ok(Step::Data),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no deflate stream")),
        }
    }

    /// Whether a member follows; zeroes and what is none are left out, as gzip does.
    fn another_member(&mut self) -> io::Result<bool> {
        loop {
            let there = self.source.fill_buf()?;
            match there.iter().position(|byte| *byte != 0) {
                None if there.is_empty() => return Ok(false),
                None => {
                    let all = there.len();
                    self.source.consume(all);
                }
                Some(zeroes) => {
                    let is_member = there.get(zeroes) == Some(&0x1f);
                    self.source.consume(zeroes);
                    return Ok(is_member);
                }
            }
        }
    }

    fn read_header(&mut self) -> io::Result<()> {
        let wrong = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        let head: [u8; 10] = self.source.array()?;
        let [0x1f, 0x8b, 8, flags, ..] = head else { return wrong("a member of another kind") };
        if flags & 0xe0 != 0 {
            return wrong("a member with unknown flags");
        }
        if flags & EXTRA != 0 {
            let len = u16::from_le_bytes(self.source.array()?);
            self.source.skip(len.into())?;
        }
        for _ in 0..u32::from(flags & NAME != 0).saturating_add(u32::from(flags & COMMENT != 0)) {
            while self.source.byte()? != 0 {}
        }
        if flags & HEADER_SUM != 0 {
            self.source.skip(2)?;
        }
        Ok(())
    }
}

impl Read for Gunzip {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.given.is_empty() {
            if matches!(self.step()?, Step::End) {
                return Ok(0);
            }
        }
        let len = self.given.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), self.data().get(..len)) {
            to.copy_from_slice(from);
        }
        self.given.start = self.given.start.saturating_add(len);
        Ok(len)
    }
}

/// Decodes all of a file once, and notes where decoding can begin.
pub(super) fn build(source: Source, builder: &mut Builder<'_>, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let reached = source.reached();
    let mut gunzip = Gunzip::new(source);
    gunzip.flags |= inflate_flags::TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
    let mut spacing = SPACING;
    loop {
        let step = gunzip.step().map_err(|error| failed(error, WHAT))?;
        builder.push(gunzip.data())?;
        super::tell(&reached, progress);
        let point = match step {
            Step::Member(at) => Point { out: builder.out(), at, kind: PointKind::Start, ..Point::default() },
            Step::Block(state) => Point {
                out: builder.out(),
                at: gunzip.source.position(),
                kind: PointKind::Block,
                bits: state.num_bits,
                byte: state.bit_buf,
                ..Point::default()
            },
            Step::Data => continue,
            Step::End => break,
        };
        if builder.is_far_enough(spacing) {
            let window = if point.kind == PointKind::Block { gunzip.window() } else { Vec::new() };
            let point = builder.with_window(point, &window)?;
            spacing = builder.add_spaced(point, spacing);
        }
    }
    builder.ignored = builder.image_bytes().saturating_sub(gunzip.source.position());
    Ok(())
}
