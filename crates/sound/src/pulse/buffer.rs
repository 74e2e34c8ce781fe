//! The buffer of a playback stream: what a client wrote ahead, between a read and a write index that count all bytes of
//! the stream.
//!
//! ```text
//!        read index              write index     read + maxlength
//! ───────────┼───────────────────────┼─────────────────┤
//!   played   │ length: to be played  │
//! ```
//!
//! A client is asked for bytes as they are consumed, not as the buffer is filled: it may write past `tlength`, and then
//! still gets a request for each `minreq` bytes that are played. Until `prebuf` bytes are there nothing is played; with
//! `prebuf` 0 the read index goes on without data, and what comes late is dropped.

use super::frame::Seek;

/// Most bytes of a buffer, as in PulseAudio.
pub const MAXLENGTH: u32 = 4 << 20;

/// The metrics of a buffer, in bytes. On the way in, [`u32::MAX`] leaves one to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Most bytes that are held.
    pub maxlength: u32,
    /// Bytes that the client is asked to keep written ahead.
    pub tlength: u32,
    /// Bytes that have to be there before it plays.
    pub prebuf: u32,
    /// The smallest request.
    pub minreq: u32,
}

impl Attributes {
    /// What becomes of a client's wish: 2 s ahead and requests of 20 ms where it has none.
    pub fn settle(self, spec: &crate::pcm::Spec) -> Self {
        let frame = u32::try_from(spec.frame_bytes()).unwrap_or(1).max(1);
        let whole = |bytes: u32| (bytes / frame * frame).max(frame);
        let maxlength = whole(self.maxlength.min(MAXLENGTH));
        let tlength = if self.tlength == u32::MAX { spec.bytes_of(2_000_000) } else { self.tlength };
        let tlength = whole(tlength.min(maxlength));
        let minreq = if self.minreq == u32::MAX { spec.bytes_of(20_000).min(tlength / 4) } else { self.minreq };
        let minreq = whole(minreq.min(MAXLENGTH / 2));
        let tlength = tlength.max(minreq.saturating_mul(2));
        let most = tlength + frame - minreq;
        let prebuf = if self.prebuf == 0 { 0 } else { whole(self.prebuf.min(most)) };
        Self { maxlength: maxlength.max(tlength), tlength, prebuf, minreq }
    }
}

/// The buffer.
#[derive(Debug, Clone)]
pub struct Buffer {
    attributes: Attributes,
    /// Bytes from the read index on; `head` of them are played already.
    data: Vec<u8>,
    head: usize,
    read: i64,
    write: i64,
    prebuffering: bool,
    /// Bytes that are consumed and not yet asked for.
    missing: i64,
    /// Bytes that are asked for and not yet written.
    requested: i64,
    silence: u8,
}

impl Buffer {
    /// An empty one with settled attributes.
    pub fn new(attributes: Attributes, silence: u8) -> Self {
        let missing = i64::from(attributes.tlength);
        let prebuffering = attributes.prebuf > 0;
        Self { attributes, data: Vec::new(), head: 0, read: 0, write: 0, prebuffering, missing, requested: 0, silence }
    }

    /// Its metrics.
    pub fn attributes(&self) -> Attributes {
        self.attributes
    }

    /// New metrics, settled.
    pub fn set_attributes(&mut self, attributes: Attributes) {
        self.missing += i64::from(attributes.tlength) - i64::from(self.attributes.tlength);
        self.attributes = attributes;
    }

    /// Bytes from the beginning of the stream to what is played next.
    pub fn read_index(&self) -> i64 {
        self.read
    }

    /// Bytes from the beginning of the stream to where the next write goes.
    pub fn write_index(&self) -> i64 {
        self.write
    }

    /// Bytes that can be played.
    pub fn length(&self) -> usize {
        usize::try_from(self.write.saturating_sub(self.read)).unwrap_or(0)
    }

    /// Whether it waits for more before it plays.
    pub fn is_prebuffering(&self) -> bool {
        self.prebuffering && self.length() < self.attributes.prebuf as usize
    }

    /// Bytes that it holds in memory.
    pub fn held(&self) -> usize {
        self.data.len() - self.head
    }

    /// Moves the write index.
    pub fn seek(&mut self, seek: Seek, offset: i64) {
        let from = match seek {
            Seek::Relative => self.write,
            Seek::Absolute => 0,
            Seek::OnRead => self.read,
            Seek::End => self.read.saturating_add(i64::try_from(self.held()).unwrap_or(0)).max(self.write),
        };
        // Half of the range: differences of indices stay within 64 bits.
        self.move_write(from.saturating_add(offset).clamp(i64::MIN / 2, i64::MAX / 2), seek == Seek::Relative);
    }

    /// Writes at the write index; false when a part did not fit, and is silence.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        let (from, to) = (self.write, self.write.saturating_add(i64::try_from(bytes.len()).unwrap_or(i64::MAX)));
        self.move_write(to, true);
        // What is late is dropped.
        let late = usize::try_from(self.read.saturating_sub(from)).unwrap_or(0).min(bytes.len());
        let bytes = bytes.get(late..).unwrap_or_default();
        let at = usize::try_from(from.saturating_sub(self.read)).unwrap_or(0);
        let room = (self.attributes.maxlength as usize).saturating_sub(at);
        let part = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        if !part.is_empty() {
            if self.head > 0 && (self.head >= self.data.len() || self.head > 65_536) {
                self.data.drain(..self.head.min(self.data.len()));
                self.head = 0;
            }
            let (start, end) = (self.head + at, self.head + at + part.len());
            if start == self.data.len() {
                self.data.extend_from_slice(part);
            } else {
                if self.data.len() < end {
                    self.data.resize(end, self.silence);
                }
                if let Some(place) = self.data.get_mut(start..end) {
                    place.copy_from_slice(part);
                }
            }
        }
        part.len() == bytes.len()
    }

    /// Takes the next `bytes` bytes, silence where there are none, appended to `out`; the read index moves.
    pub fn read(&mut self, bytes: usize, out: &mut Vec<u8>) {
        let end = out.len() + bytes;
        let held = self.length().min(bytes).min(self.held());
        out.extend_from_slice(self.data.get(self.head..self.head + held).unwrap_or_default());
        out.resize(end, self.silence);
        self.skip(bytes);
    }

    /// Moves the read index without looking.
    pub fn skip(&mut self, bytes: usize) {
        self.prebuffering = false;
        self.head = (self.head + bytes).min(self.data.len());
        if self.head == self.data.len() {
            self.data.clear();
            self.head = 0;
        }
        let moved = i64::try_from(bytes).unwrap_or(0);
        self.read = self.read.saturating_add(moved);
        self.missing = self.missing.saturating_add(moved);
    }

    /// Drops all that is to be played; it prebuffers again.
    pub fn flush(&mut self) {
        self.data.clear();
        self.head = 0;
        self.move_write(self.read, false);
        self.prebuffer();
    }

    /// Nothing plays until `prebuf` bytes are there.
    pub fn prebuffer(&mut self) {
        self.prebuffering = self.attributes.prebuf > 0;
    }

    /// What is there plays.
    pub fn trigger(&mut self) {
        self.prebuffering = false;
    }

    /// Bytes to ask the client for; 0 for no request. `now` asks for less than `minreq`, too. Of what was played since a whole
    /// request, as much as `late` bytes is asked for with the next one, when that is a little: this one should have been
    /// earlier.
    pub fn request(&mut self, now: bool, late: usize) -> u32 {
        let least = if now || self.is_prebuffering() { 1 } else { i64::from(self.attributes.minreq) };
        if self.missing < least {
            return 0;
        }
        let minreq = i64::from(self.attributes.minreq.max(1));
        let over = (self.missing % minreq).min(i64::try_from(late).unwrap_or(i64::MAX));
        let left = if least > 1 && over < minreq / 4 { over } else { 0 };
        let asked = u32::try_from(self.missing - left).unwrap_or(u32::MAX).min(i32::MAX as u32);
        self.missing -= i64::from(asked);
        self.requested = self.requested.saturating_add(i64::from(asked));
        asked
    }

    /// Bytes that are played before the next request is due.
    pub fn before_request(&self) -> usize {
        usize::try_from(i64::from(self.attributes.minreq) - self.missing).unwrap_or(0)
    }

    fn move_write(&mut self, to: i64, accounted: bool) {
        let moved = to.saturating_sub(self.write);
        self.write = to;
        if accounted {
            self.requested = self.requested.saturating_sub(moved);
        } else {
            self.missing = self.missing.saturating_sub(moved);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(prebuf: u32) -> Buffer {
        Buffer::new(Attributes { maxlength: 100, tlength: 40, prebuf, minreq: 10 }, 0)
    }

    fn read(buffer: &mut Buffer, bytes: usize) -> Vec<u8> {
        let mut out = Vec::new();
        buffer.read(bytes, &mut out);
        out
    }

    #[test]
    fn requests_follow_consumption_even_past_tlength() {
        let mut buffer = buffer(20);
        assert_eq!(buffer.request(false, 100), 40);
        assert!(buffer.write(&[1; 10]) && buffer.is_prebuffering());
        assert!(buffer.write(&[1; 70]) && !buffer.is_prebuffering());
        assert_eq!((buffer.request(false, 100), buffer.before_request()), (0, 10));
        assert_eq!(read(&mut buffer, 13), [1; 13]);
        assert_eq!((buffer.request(false, 100), buffer.request(false, 100)), (13, 0));
        buffer.skip(5);
        assert_eq!((buffer.before_request(), buffer.request(false, 100), buffer.request(true, 100)), (5, 0, 5));
        // A little too late: the next request is in time.
        buffer.skip(11);
        assert_eq!((buffer.request(false, 100), buffer.before_request()), (10, 9));
        buffer.skip(9);
        assert_eq!(buffer.request(false, 100), 10);
        buffer.skip(12);
        assert_eq!((buffer.request(false, 1), buffer.before_request()), (11, 9));
    }

    #[test]
    fn what_does_not_fit_is_silence_and_said() {
        let mut buffer = buffer(0);
        assert!(buffer.write(&[1; 90]));
        assert!(!buffer.write(&[2; 20]));
        assert_eq!((buffer.length(), buffer.held()), (110, 100));
        buffer.skip(50);
        assert!(buffer.write(&[3; 10]));
        let rest = read(&mut buffer, 70);
        assert_eq!(rest, [vec![1; 40], vec![2; 10], vec![0; 10], vec![3; 10]].concat());
    }

    #[test]
    fn without_prebuf_the_read_index_goes_on_and_late_bytes_are_dropped() {
        let mut buffer = buffer(0);
        assert_eq!(read(&mut buffer, 8), [0; 8]);
        assert!(buffer.write(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]));
        assert_eq!((buffer.read_index(), buffer.write_index()), (8, 10));
        assert_eq!(read(&mut buffer, 3), [9, 10, 0]);
    }

    #[test]
    fn seeks_rewrite_and_leave_silence() {
        let mut buffer = buffer(0);
        assert!(buffer.write(&[1; 6]));
        buffer.seek(Seek::Absolute, 2);
        assert!(buffer.write(&[2; 2]));
        buffer.seek(Seek::End, 2);
        assert!(buffer.write(&[3; 2]));
        buffer.seek(Seek::OnRead, 1);
        assert!(buffer.write(&[4]));
        buffer.seek(Seek::Absolute, 10);
        assert_eq!(read(&mut buffer, 10), [1, 4, 2, 2, 1, 1, 0, 0, 3, 3]);
        for offset in [i64::MIN, i64::MAX] {
            for seek in [Seek::Relative, Seek::Absolute, Seek::OnRead, Seek::End] {
                buffer.seek(seek, offset);
                buffer.write(&[1; 5]);
                assert!(buffer.held() <= 100);
            }
        }
        buffer.flush();
        assert_eq!((buffer.length(), buffer.held()), (0, 0));
    }

    #[test]
    fn a_wish_is_settled_as_pulseaudio_does() {
        let spec = crate::pcm::Spec { format: crate::pcm::Format::S16le, channels: 2, rate: 48_000 };
        let any = Attributes { maxlength: u32::MAX, tlength: u32::MAX, prebuf: u32::MAX, minreq: u32::MAX };
        let settled = any.settle(&spec);
        assert_eq!(settled, Attributes { maxlength: 4 << 20, tlength: 384_000, prebuf: 380_164, minreq: 3840 });
        for value in [0, 1, 3, 5, 1000, u32::MAX - 1] {
            let settled = Attributes { maxlength: value, tlength: value, prebuf: value, minreq: value }.settle(&spec);
            assert!(settled.tlength <= settled.maxlength && settled.prebuf <= settled.tlength, "{value}: {settled:?}");
            assert!(
                settled.tlength >= 2 * settled.minreq
                    && settled.tlength.is_multiple_of(4)
                    && settled.maxlength <= MAXLENGTH
            );
        }
    }
}
