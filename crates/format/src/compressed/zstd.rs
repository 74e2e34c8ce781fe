//! zstd (RFC 8878): frames, each of which can be decoded alone, of blocks that cannot; and a table of all frames, where
//! the file is in the seekable format (contrib/seekable_format of the reference implementation).
//!
//! ```text
//! | 28 b5 2f fd | descriptor | window | dictionary | content size | block | block | … | check sum | next frame …
//! seekable: … | 5e 2a 4d 18 | size 4 | (compressed 4, decompressed 4, sum 4 or none) … | frames 4 | flags | b1 ea 92 8f
//! ```

use std::io::{self, Read};

use block::bytes::{byte, has, le_u16, le_u32, le_u64, read_up_to};
use block::{Error, Kind, ReadAt, Result};
use zrip_decode::streaming::FrameDecoder;

use super::build::Builder;
use super::index::{Kind as PointKind, POINTS_MAX, Point, SPACING};
use super::source::{Source, failed};

/// What is decoded, in messages.
pub(super) const WHAT: &str = "a zstd file";
const FRAME: u32 = 0xfd2f_b528;
/// What a frame may refer back to, bytes: the most that `zstd` decodes without being asked for more.
const WINDOW_BYTES_MAX: u64 = 128 << 20;
const SEEK_TABLE: u32 = 0x184d_2a5e;
const SEEKABLE: &[u8] = b"\xb1\xea\x92\x8f";

/// A frame.
#[derive(Debug, Clone, Copy)]
struct Frame {
    at: u64,
    /// Bytes that come out, where something says so.
    out: Option<u64>,
}

/// What a file is made of, as far as that is known without decoding it.
pub(super) struct Frames {
    frames: Vec<Frame>,
    end: u64,
}

impl Frames {
    /// Goes from frame to frame.
    pub(super) fn read(mut source: Source, image: &dyn ReadAt) -> Result<Self> {
        let sizes = seek_table(image)?;
        let mut frames: Vec<Frame> = Vec::new();
        loop {
            match next_frame(&mut source) {
                Ok(None) => break,
                Ok(Some(Next::Skipped)) => {}
                Ok(Some(Next::Frame(_, window))) if window > WINDOW_BYTES_MAX => {
                    let context = format!(
                        "a zstd file whose window is {} MiB, above {}: compress it with --long=27 or less",
                        window >> 20,
                        WINDOW_BYTES_MAX >> 20
                    );
                    return Err(Error::new(Kind::Limit, context));
                }
                Ok(Some(Next::Frame(frame, _))) => {
                    if frames.len() >= 8 * POINTS_MAX {
                        return Err(Error::new(Kind::Limit, "a zstd file of too many frames"));
                    }
                    let told = sizes.as_ref().and_then(|sizes| sizes.get(frames.len()));
                    frames.push(Frame { out: frame.out.or(told.copied()), ..frame });
                }
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    return Err(Error::new(Kind::Unsupported, "a zstd file that needs a dictionary"));
                }
                Err(error) => return Err(failed(error, WHAT)),
            }
        }
        Ok(Self { frames, end: source.position() })
    }

    /// Bytes that come out of all frames, and of the largest; none where that is not known.
    pub(super) fn sizes(&self) -> Result<Option<(u64, u64)>> {
        let (mut sum, mut largest) = (0_u64, 0);
        for frame in &self.frames {
            let Some(out) = frame.out else { return Ok(None) };
            sum = sum
                .checked_add(out)
                .filter(|sum| *sum <= i64::MAX as u64)
                .ok_or_else(|| Error::new(Kind::Limit, "a zstd file that claims to be larger than any file can be"))?;
            largest = largest.max(out);
        }
        Ok(Some((sum, largest)))
    }

    /// Whether there is only one, so that decoding can begin nowhere else.
    pub(super) fn is_one(&self) -> bool {
        self.frames.len() == 1
    }

    /// Notes the frames whose sizes are known, small ones together.
    pub(super) fn note(&self, builder: &mut Builder<'_>) -> Result<()> {
        let (mut out, mut last) = (0_u64, None);
        for frame in &self.frames {
            let len = frame.out.unwrap_or_default();
            if last.is_none_or(|last| out.saturating_sub(last) >= SPACING) && len > 0 {
                builder.add(Point { out, at: frame.at, kind: PointKind::Start, ..Point::default() })?;
                last = Some(out);
            }
            out = out.saturating_add(len);
        }
        Ok(())
    }

    /// Decodes all frames, and notes them.
    pub(super) fn decode(
        &self,
        open: impl Fn(u64, u64) -> Source,
        builder: &mut Builder<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        for (n, frame) in self.frames.iter().enumerate() {
            if builder.is_far_enough(SPACING) {
                builder.add(Point { out: builder.out(), at: frame.at, kind: PointKind::Start, ..Point::default() })?;
            }
            let end = self.frames.get(n.saturating_add(1)).map_or(self.end, |next| next.at);
            let source = open(frame.at, end);
            let reached = source.reached();
            let came = builder.push_all(decoder(source), WHAT, &mut || super::tell(&reached, progress))?;
            if frame.out.is_some_and(|told| told != came) {
                return Err(Error::new(Kind::Corrupt, "a zstd file whose frames are of another size than it says"));
            }
        }
        Ok(())
    }
}

/// A decoder of the frames of `source`.
pub(super) fn decoder(source: Source) -> FrameDecoder<Source> {
    FrameDecoder::with_limit(source, usize::MAX)
}

enum Next {
    /// A frame, and its window in bytes.
    Frame(Frame, u64),
    Skipped,
}

/// Reads the headers of a frame and of its blocks; nothing where the file ends.
fn next_frame(source: &mut Source) -> io::Result<Option<Next>> {
    let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let at = source.position();
    let mut magic = [0; 4];
    let first = source.read(&mut magic[..1])?;
    if first == 0 {
        return Ok(None);
    }
    source.read_exact(&mut magic[1..])?;
    let magic = u32::from_le_bytes(magic);
    if magic & 0xffff_fff0 == 0x184d_2a50 {
        let len = u32::from_le_bytes(source.array()?);
        source.skip(len.into())?;
        return Ok(Some(Next::Skipped));
    }
    if magic != FRAME {
        return Err(wrong("a frame of another kind"));
    }
    let descriptor = source.byte()?;
    let single = descriptor & 0x20 != 0;
    if descriptor & 8 != 0 {
        return Err(wrong("a frame with a reserved bit"));
    }
    let mut window = 0;
    if !single {
        let byte = source.byte()?;
        let base = 1_u64.wrapping_shl(u32::from(byte >> 3).saturating_add(10));
        window = base.saturating_add((base / 8).saturating_mul(u64::from(byte & 7)));
    }
    let mut dictionary = [0; 4];
    let len = [0, 1, 2, 4].get(usize::from(descriptor & 3)).copied().unwrap_or_default();
    source.read_exact(dictionary.get_mut(..len).unwrap_or_default())?;
    if dictionary != [0; 4] {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut size = [0; 8];
    let len = match descriptor >> 6 {
        0 => usize::from(single),
        1 => 2,
        2 => 4,
        _ => 8,
    };
    source.read_exact(size.get_mut(..len).unwrap_or_default())?;
    let out = match len {
        0 => None,
        1 => byte(&size, 0).map(u64::from),
        2 => le_u16(&size, 0).map(|size| u64::from(size).saturating_add(256)),
        _ => le_u64(&size, 0),
    };
    loop {
        let [a, b, c] = source.array()?;
        let header = u32::from_le_bytes([a, b, c, 0]);
        match header >> 1 & 3 {
            1 => source.skip(1)?,
            3 => return Err(wrong("a block of a reserved kind")),
            _ => source.skip(u64::from(header >> 3))?,
        }
        if header & 1 != 0 {
            break;
        }
    }
    if descriptor & 4 != 0 {
        source.skip(4)?;
    }
    Ok(Some(Next::Frame(Frame { at, out }, window)))
}

/// What the table at the end of a seekable file says that comes out of each frame.
fn seek_table(image: &dyn ReadAt) -> Result<Option<Vec<u64>>> {
    let footer = read_up_to(image, image.size().saturating_sub(9), 9)?;
    if !has(&footer, 5, SEEKABLE) {
        return Ok(None);
    }
    let entry_bytes: usize = if byte(&footer, 4).unwrap_or_default() & 0x80 == 0 { 8 } else { 12 };
    let count = le_u32(&footer, 0).and_then(|count| usize::try_from(count).ok()).unwrap_or_default();
    let bytes = count.saturating_mul(entry_bytes).saturating_add(17);
    if count > POINTS_MAX.saturating_mul(8) {
        return Err(Error::new(Kind::Limit, format!("a zstd file with a table of {count} frames")));
    }
    let Some(at) = image.size().checked_sub(bytes as u64) else { return Ok(None) };
    let table = read_up_to(image, at, bytes)?;
    if le_u32(&table, 0) != Some(SEEK_TABLE) {
        return Ok(None);
    }
    let entries = table.get(8..).unwrap_or_default().chunks_exact(entry_bytes).take(count);
    let sizes = entries.map(|entry| u64::from(le_u32(entry, 4).unwrap_or_default()));
    Ok(Some(sizes.collect()))
}
