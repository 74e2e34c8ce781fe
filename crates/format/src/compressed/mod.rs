//! Files compressed as a whole (gzip, xz, zstd), read at any position. Read only.
//!
//! ```text
//! file    | …… | …… | …… | …… |     compressed
//!           ▲         ▲    ▲        points: where decoding can begin, about every MiB; noted once, in an index
//! disk    | piece | piece | …       decoded from the point before, 256 KiB at one time, and remembered for a while
//! ```
//!
//! How far apart the points are is up to whoever compressed the file: gzip can be entered between any two of its
//! blocks, xz and zstd only where a block or a frame begins, and often there is only one. Then all of the disk is
//! decoded once, and kept in the index, where [`Build::keep_bytes_max`] allows that; where it does not, reading goes
//! on from where it was, or begins anew.

use std::fmt;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use block::bytes::read_vec;
use block::cache::Cache;
use block::{Error, Extent, Kind, Limits, ReadAt, Result, ResultExt as _, Source as Place, Storage, check_range};
use flate2::{Decompress, FlushDecompress};

use crate::probe::Format;

mod build;
mod gzip;
mod index;
mod source;
mod xz;
mod zstd;

use build::Builder;
use index::{Index, Known, PIECE, Point};
use source::{Source, failed};

/// Bytes of pieces that are remembered.
const CACHE_BYTES: usize = 32 << 20;
/// So many decoders are at work at one time, and stay where they are when they are done.
const LANES: usize = 4;
/// What is decoded before it is wanted, bytes: it has to stay remembered until then.
const AHEAD_BYTES_MAX: u64 = 24 << 20;
/// Who reads in order wants a piece that is not farther from the last one.
const IN_ORDER_PIECES: u64 = 16;
/// What comes out between two points, bytes, from which on the disk is rather kept as a whole.
const GAP_BYTES_MAX: u64 = 32 << 20;
/// The longest run of zeroes that is looked for at one time, pieces.
const RUN_MAX: usize = 4096;

/// Whether a format is read here.
pub fn is_read(format: Format) -> bool {
    matches!(format, Format::Gzip | Format::Xz | Format::Zstd)
}

/// How an index is made.
pub struct Build<'a> {
    /// What is compressed.
    pub format: Format,
    /// What image it is, in words of the caller: an index of another one is not taken. At most 64 KiB.
    pub name: &'a [u8],
    /// The most bytes of a disk that is kept in the index, where decoding can begin at few places only.
    pub keep_bytes_max: u64,
    /// Is told how many bytes of the file have been read.
    pub progress: &'a mut dyn FnMut(u64),
}

impl fmt::Debug for Build<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, keep_bytes_max, .. } = self;
        f.debug_struct("Build").field("format", format).field("keep_bytes_max", keep_bytes_max).finish_non_exhaustive()
    }
}

/// Makes the index of an image in `room`, which is empty. It may be read when this returns, and not before.
///
/// # Errors
/// [`Kind::Corrupt`] where the image is broken; [`Kind::Unsupported`]; [`Kind::Limit`]; those of either file.
pub fn build(image: &Arc<dyn Storage>, room: &dyn Storage, how: &mut Build<'_>) -> Result<()> {
    let bytes = image.size();
    let open = |at, end| Source::new(image, at, end);
    let (builder, size) = match how.format {
        Format::Gzip => {
            let mut builder = Builder::new(room, bytes, false);
            gzip::build(open(0, u64::MAX), &mut builder, how.progress)?;
            (builder, None)
        }
        Format::Xz => {
            let (points, out, largest) = xz::blocks(image)?;
            let keep = largest > GAP_BYTES_MAX && out <= how.keep_bytes_max.min(index::OUT_BYTES_MAX);
            let mut builder = Builder::new(room, bytes, keep);
            for (n, point) in points.iter().enumerate().filter(|_| keep) {
                let end = points.get(n.saturating_add(1)).map_or(out, |next| next.out);
                let source = open(point.at, xz::end(point));
                let reached = source.reached();
                let decoder = xz::open(source, point, end.saturating_sub(point.out));
                builder.push_all(decoder, xz::WHAT, &mut || tell(&reached, how.progress))?;
                if builder.out() != end {
                    return Err(Error::new(Kind::Corrupt, "an xz file whose blocks are of another size than it says"));
                }
            }
            xz::build(points, &mut builder)?;
            (builder, Some(out))
        }
        Format::Zstd => {
            let frames = zstd::Frames::read(open(0, u64::MAX), image)?;
            let sizes = frames.sizes()?;
            let keep = match sizes {
                Some((out, largest)) => largest > GAP_BYTES_MAX && out <= how.keep_bytes_max,
                // Not known before it is decoded; what is kept may then be too much, which is found on the way.
                None => frames.is_one(),
            };
            let mut builder = Builder::new(room, bytes, keep);
            builder.keep_bytes_max = how.keep_bytes_max;
            if keep || sizes.is_none() {
                frames.decode(open, &mut builder, how.progress)?;
            } else {
                frames.note(&mut builder)?;
            }
            (builder, sizes.map(|(out, _)| out))
        }
        other => return Err(Error::new(Kind::Unsupported, format!("{} at random positions", other.name()))),
    };
    builder.finish(how.format, how.name, size)
}

/// A decoder that has come as far as `at`.
struct Live {
    point: usize,
    at: u64,
    decoder: Box<dyn Read + Send>,
}

/// See the module.
pub struct Compressed {
    image: Arc<dyn Storage>,
    room: Arc<dyn Storage>,
    index: Index,
    pieces: Cache<Arc<[u8]>>,
    lanes: [Mutex<Option<Live>>; LANES],
    /// The piece that was decoded last.
    last: AtomicU64,
}

impl fmt::Debug for Compressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, index, .. } = self;
        let points = index.points.len();
        f.debug_struct("Compressed").field("image", image).field("points", &points).finish_non_exhaustive()
    }
}

impl Compressed {
    /// The disk of `image`, by an index that [`build`] has made.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] where the index is broken, or of another image than `name`: it is to be built again.
    pub fn open(image: Arc<dyn Storage>, room: Arc<dyn Storage>, format: Format, name: &[u8]) -> Result<Self> {
        let index = Index::read(&room, format, name, image.size())?;
        let pieces = Cache::new(CACHE_BYTES, |piece: &Arc<[u8]>| piece.len());
        Ok(Self { image, room, index, pieces, lanes: Default::default(), last: AtomicU64::new(0) })
    }

    /// What a user may want to know: words for [`crate::image::Details::features`].
    pub fn features(&self) -> Vec<String> {
        let mut features = Vec::new();
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        if self.index.pieces.iter().any(|piece| matches!(piece, Known::Kept { .. })) {
            features.push("kept decompressed in the cache".to_owned());
        } else if self.index.points.len() > 1 {
            features.push(format!("read from {} places", self.index.points.len()));
        }
        if let Some(gap) = self.slow() {
            features.push(format!("slow: {} MiB without a place to begin at", mib(gap)));
        }
        if self.index.ignored > 0 {
            features.push(format!("{} bytes behind its end are ignored", self.index.ignored));
        }
        features
    }

    /// The most bytes that are decoded for one that is read, where those are many: see [`Build::keep_bytes_max`].
    pub fn slow(&self) -> Option<u64> {
        let decoded =
            self.index.pieces.is_empty() || self.index.pieces.iter().any(|piece| matches!(piece, Known::Sum(_)));
        let ends = self.index.points.iter().skip(1).map(|point| point.out).chain([self.index.size]);
        let gap = self.index.points.iter().zip(ends).map(|(point, end)| end.saturating_sub(point.out)).max();
        gap.filter(|gap| decoded && *gap > 2 * GAP_BYTES_MAX)
    }

    fn known(&self, piece: u64) -> Option<Known> {
        self.index.pieces.get(usize::try_from(piece).ok()?).copied()
    }

    /// First byte and length of a piece.
    fn range(&self, piece: u64) -> (u64, u64) {
        let start = piece.saturating_mul(PIECE);
        (start, self.index.size.saturating_sub(start).min(PIECE))
    }

    /// A piece that is not known to be zeroes.
    fn piece(&self, number: u64) -> Result<Arc<[u8]>> {
        if let Some(piece) = self.pieces.peek((number, 0)) {
            return Ok(piece);
        }
        let (start, len) = self.range(number);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        if let Some(Known::Kept { slot, .. }) = self.known(number) {
            let at = self.index.kept_at.saturating_add(u64::from(slot).saturating_mul(PIECE));
            self.room.read_at(&mut bytes, at).context(|| "a disk that is kept decompressed in the cache")?;
            return self.checked(number, bytes);
        }
        let mut filled = 0_usize;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let at = start.saturating_add(filled as u64);
            let point = self.index.points.partition_point(|point| point.out <= at).saturating_sub(1);
            let end = self.index.points.get(point.saturating_add(1)).map_or(self.index.size, |next| next.out);
            let there = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(rest.len());
            if there == 0 {
                return Err(Error::new(Kind::Corrupt, "an index of a compressed image without an order"));
            }
            if let Some(piece) = self.decode(rest.get_mut(..there).unwrap_or_default(), at, point, number)? {
                return Ok(piece);
            }
            filled = filled.saturating_add(there);
        }
        self.checked(number, bytes)
    }

    /// A piece, after its sum where that is known; remembered.
    fn checked(&self, number: u64, bytes: Vec<u8>) -> Result<Arc<[u8]>> {
        let (Some(Known::Sum(sum)) | Some(Known::Kept { sum, .. })) = self.known(number) else {
            return Ok(self.remember(number, bytes));
        };
        if crc32c::crc32c(&bytes) != sum {
            let context = "a compressed image that is not what it was when its index was made: remove that from the \
                           cache (~/.cache/loopbox)";
            return Err(Error::new(Kind::Corrupt, context));
        }
        Ok(self.remember(number, bytes))
    }

    fn remember(&self, number: u64, bytes: Vec<u8>) -> Arc<[u8]> {
        let piece: Arc<[u8]> = bytes.into();
        // What is worked out already cannot fail, nor wait for another.
        let _ = self.pieces.get((number, 0), || Ok(Arc::clone(&piece)));
        piece
    }

    /// Fills `buf` with what comes out at `at`, which is behind `point` and before the next; or gives all of the piece,
    /// where another has decoded that meanwhile.
    fn decode(&self, buf: &mut [u8], at: u64, point: usize, piece: u64) -> Result<Option<Arc<[u8]>>> {
        let Some(mut lane) = self.enter(point, piece) else { return Ok(None) };
        if let Some(piece) = self.pieces.peek((piece, 0)) {
            return Ok(Some(piece));
        }
        self.decode_in(&mut lane, buf, at, point)?;
        Ok(None)
    }

    /// The lane of a point. Who reads in order and finds another at work there does not wait, but decodes what will be
    /// wanted next.
    fn enter(&self, point: usize, piece: u64) -> Option<MutexGuard<'_, Option<Live>>> {
        let lane = self.lanes.get(point % LANES)?;
        let in_order = self.last.swap(piece, Ordering::Relaxed).abs_diff(piece) <= IN_ORDER_PIECES;
        loop {
            match lane.try_lock() {
                Ok(lane) => return Some(lane),
                Err(TryLockError::WouldBlock) if in_order && self.decode_ahead(point) => {}
                Err(_) => return Some(lane.lock().unwrap_or_else(PoisonError::into_inner)),
            }
        }
    }

    /// Decodes a piece behind what `point` gives, where that is not far away, and no other is at it; whether it did.
    fn decode_ahead(&self, point: usize) -> bool {
        let next = point.saturating_add(1);
        let Some(first) = self.index.points.get(next) else { return false };
        let most = first.out.saturating_add(AHEAD_BYTES_MAX);
        let mut ahead = (next..next.saturating_add(LANES.saturating_sub(1))).map(|point| {
            let (from, lane) = (self.index.points.get(point)?.out, self.lanes.get(point % LANES)?);
            let end = self.index.points.get(point.saturating_add(1)).map_or(self.index.size, |next| next.out);
            let pieces = from.div_ceil(PIECE)..end / PIECE;
            if self.index.format == Format::Gzip || end > most {
                return None;
            }
            let mut lane = lane.try_lock().ok()?;
            let new = |piece: &u64| self.known(*piece) != Some(Known::Zero) && self.pieces.peek((*piece, 0)).is_none();
            let piece = pieces.into_iter().find(new)?;
            let (start, len) = self.range(piece);
            let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
            // What fails here will fail, and be told, when it is wanted.
            self.decode_in(&mut lane, &mut bytes, start, point).ok()?;
            self.checked(piece, bytes).ok()
        });
        ahead.any(|piece| piece.is_some())
    }

    /// Fills `buf` with what comes out at `at`, which is behind `point` and before the next.
    fn decode_in(&self, lane: &mut Option<Live>, buf: &mut [u8], at: u64, point: usize) -> Result<()> {
        let mut live = match lane.take() {
            Some(live) if live.point == point && live.at <= at => live,
            _ => self.start(point)?,
        };
        while live.at < at {
            let (start, len) = self.range(live.at / PIECE);
            let end = start.saturating_add(len);
            let whole = start == live.at && end <= at;
            let len = end.min(at).saturating_sub(live.at);
            let mut passed = vec![0; usize::try_from(len).unwrap_or_default()];
            let number = live.at / PIECE;
            self.read(&mut live, &mut passed)?;
            if whole && self.known(number) != Some(Known::Zero) {
                self.checked(number, passed)?;
            }
        }
        self.read(&mut live, buf)?;
        let end = self.index.points.get(point.saturating_add(1)).map(|next| next.out);
        if live.at < end.unwrap_or(self.index.size) {
            *lane = Some(live);
        } else if self.index.format != Format::Gzip || end.is_none() {
            // What stands at its end is the check sum, and it ends there.
            let more = live.decoder.read(&mut [0]).map_err(|error| failed(error, self.what()))?;
            if more > 0 {
                return Err(self.other_size());
            }
        }
        Ok(())
    }

    fn read(&self, live: &mut Live, buf: &mut [u8]) -> Result<()> {
        let mut filled = 0_usize;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match live.decoder.read(rest).map_err(|error| failed(error, self.what()))? {
                0 => return Err(self.other_size()),
                len => filled = filled.saturating_add(len),
            }
        }
        live.at = live.at.saturating_add(buf.len() as u64);
        Ok(())
    }

    fn what(&self) -> &'static str {
        match self.index.format {
            Format::Gzip => gzip::WHAT,
            Format::Xz => xz::WHAT,
            _ => zstd::WHAT,
        }
    }

    fn other_size(&self) -> Error {
        Error::new(Kind::Corrupt, format!("{} that unpacks to another size than it says", self.what()))
    }

    /// A decoder at a point.
    fn start(&self, number: usize) -> Result<Live> {
        let wrong = || Error::new(Kind::Corrupt, "an index of a compressed image without points");
        let point = *self.index.points.get(number).ok_or_else(wrong)?;
        let next = self.index.points.get(number.saturating_add(1));
        let end = next.map_or(u64::MAX, |next| next.at);
        let decoder: Box<dyn Read + Send> = match (self.index.format, point.kind) {
            (Format::Gzip, index::Kind::Start) => {
                Box::new(gzip::Gunzip::new(Source::new(&self.image, point.at, u64::MAX)))
            }
            (Format::Gzip, index::Kind::Block) => {
                let window = self.window(&point)?;
                let source = Source::new(&self.image, point.at, u64::MAX);
                Box::new(gzip::Gunzip::resume(source, point.bits, point.byte, &window))
            }
            (Format::Xz, _) => {
                let out = next.map_or(self.index.size, |next| next.out).saturating_sub(point.out);
                let source = Source::new(&self.image, point.at, xz::end(&point));
                Box::new(xz::open(source, &point, out))
            }
            _ => Box::new(zstd::decoder(Source::new(&self.image, point.at, end))),
        };
        Ok(Live { point: number, at: point.out, decoder })
    }

    /// What came before a block of a gzip file.
    fn window(&self, point: &Point) -> Result<Vec<u8>> {
        let broken = || Error::new(Kind::Corrupt, "an index of a compressed image whose windows are broken");
        let bytes = usize::try_from(point.window_bytes).unwrap_or(usize::MAX);
        if bytes > gzip::WINDOW_BYTES || point.window_len > point.window_bytes {
            return Err(broken());
        }
        let packed = read_vec(&self.room, point.place, usize::try_from(point.window_len).unwrap_or_default())?;
        if crc32c::crc32c(&packed) != point.window_sum {
            return Err(broken());
        }
        if point.window_len == point.window_bytes {
            return Ok(packed);
        }
        let mut window = vec![0; bytes];
        let mut inflate = Decompress::new(false);
        let done = inflate.decompress(&packed, &mut window, FlushDecompress::Finish);
        if done.is_ok() && inflate.total_out() == bytes as u64 { Ok(window) } else { Err(broken()) }
    }
}

impl ReadAt for Compressed {
    fn size(&self) -> u64 {
        self.index.size
    }

    fn limits(&self) -> Limits {
        Limits { block: 512, preferred: 65536, depth: LANES as u32, read_only: true }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.index.size, offset, buf.len() as u64)?;
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let number = at / PIECE;
            let (start, len) = self.range(number);
            let left = start.saturating_add(len).saturating_sub(at);
            let (part, more) = rest.split_at_mut(usize::try_from(left).unwrap_or(usize::MAX).min(rest.len()));
            if self.known(number) == Some(Known::Zero) {
                part.fill(0);
            } else {
                let piece = self.piece(number)?;
                let from = usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
                let there = piece.get(from..).and_then(|piece| piece.get(..part.len()));
                part.copy_from_slice(there.ok_or_else(|| self.other_size())?);
            }
            at = at.saturating_add(part.len() as u64);
            rest = more;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.index.size, offset, 1)?;
        let first = usize::try_from(offset / PIECE).unwrap_or(usize::MAX);
        let rest = self.index.size.saturating_sub(offset);
        let Some(pieces) = self.index.pieces.get(first..) else { return Ok(Extent { len: rest, source: Place::Data }) };
        let is_zero = |piece: &&Known| matches!(piece, Known::Zero);
        let zero = pieces.first().is_some_and(|piece| is_zero(&piece));
        let run = pieces.iter().take(RUN_MAX).take_while(|piece| is_zero(piece) == zero).count().max(1) as u64;
        let end = (offset / PIECE).saturating_add(run).saturating_mul(PIECE);
        // Where nothing is known of pieces, all of it is data.
        let len = if pieces.is_empty() { rest } else { end.saturating_sub(offset).min(rest) };
        Ok(Extent { len, source: if zero { Place::Zero } else { Place::Data } })
    }
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(512).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// How far a source has been read, told now and then.
fn tell(reached: &AtomicU64, progress: &mut dyn FnMut(u64)) {
    progress(reached.load(Ordering::Relaxed));
}

/// For fuzzing: takes `data` for a compressed image, indexes it in `room`, and reads some of it.
pub fn fuzz(data: &[u8], room: Arc<dyn Storage>) {
    use block::layer::{Fixed, ReadOnly};
    let Ok(found) = crate::probe::probe(&block::bytes::Bytes(data)) else { return };
    let image: Arc<dyn Storage> = Arc::new(Fixed::new(ReadOnly::new(block::bytes::Bytes(data.to_vec()))));
    let mut how = Build { format: found.format, name: b"fuzz", keep_bytes_max: 8 << 20, progress: &mut |_| {} };
    if build(&image, &*room, &mut how).is_err() {
        return;
    }
    let Ok(device) = Compressed::open(image, room, found.format, b"fuzz") else { return };
    let size = device.size();
    let mut piece = vec![0; 65536];
    for offset in [size.saturating_sub(65536), 0, size / 2] {
        let len = size.saturating_sub(offset).min(65536) as usize;
        let _ = device.read_at(piece.get_mut(..len).unwrap_or_default(), offset);
        let _ = device.extent_at(offset.min(size.saturating_sub(1)));
    }
}
