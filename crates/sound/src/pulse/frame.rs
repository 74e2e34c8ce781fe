//! What is on the socket: frames of five big-endian numbers and their payload.
//!
//! ```text
//!  0  length of the payload in bytes
//!  4  channel: 0xffffffff for a packet of control, the index of a stream for samples
//!  8  offset of a seek, 64 bits
//! 16  flags: seek mode in the low byte; the high bits stand for shared memory, which is never agreed on
//! ```

/// Bytes before a payload.
pub const HEADER_BYTES: usize = 20;
/// Most bytes of a packet of control.
pub const PACKET_BYTES_MAX: usize = 1 << 20;
/// Most bytes of a block of samples, as in PulseAudio.
pub const BLOCK_BYTES_MAX: u32 = 16 << 20;
/// The channel of control.
const CONTROL: u32 = u32::MAX;

/// Where a block of samples goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// Behind what was written last.
    Relative,
    /// Counted from the first byte of the stream.
    Absolute,
    /// Counted from what is played next.
    OnRead,
    /// Counted from the end of what was written.
    End,
}

/// A frame, or a part of one.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A packet of control: a tagstruct.
    Packet(Vec<u8>),
    /// Samples of a stream: a part of a block, as much as has come.
    Samples {
        /// The stream.
        channel: u32,
        /// Where the block goes; only its first part has it.
        seek: Option<(Seek, i64)>,
        /// Bytes of the whole block.
        length: u32,
        /// The part.
        bytes: &'a [u8],
    },
}

/// A peer that does not speak the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A packet or a block longer than its limit, in bytes.
    TooLong(u32),
    /// Shared memory, which was not agreed on, or a flag without meaning.
    Flags(u32),
}

/// Takes the bytes of a socket apart. It keeps a header and one packet; samples pass through.
#[derive(Debug, Default)]
pub struct Reader {
    header: Vec<u8>,
    packet: Vec<u8>,
    /// Bytes of samples that are still to come, and whether some have.
    left: u32,
    begun: bool,
}

impl Reader {
    /// The next frame of `bytes` and how many bytes it took; `None` when more have to come (all were taken).
    ///
    /// # Errors
    /// [`Violation`]: the peer has to be hung up on.
    #[allow(clippy::should_implement_trait, reason = "it takes the bytes")]
    pub fn next<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<(Frame<'a>, usize)>, Violation> {
        let mut rest = bytes;
        let mut take = |wanted: usize| {
            let (taken, behind) = rest.split_at(wanted.min(rest.len()));
            rest = behind;
            taken
        };
        if self.header.len() < HEADER_BYTES {
            self.header.extend_from_slice(take(HEADER_BYTES - self.header.len()));
            if self.header.len() < HEADER_BYTES {
                return Ok(None);
            }
            self.begin()?;
        }
        let [length, channel, high, low, flags] = self.words();
        if channel == CONTROL {
            self.packet.extend_from_slice(take((length as usize).saturating_sub(self.packet.len())));
            if self.packet.len() < length as usize {
                return Ok(None);
            }
            self.header.clear();
            let packet = std::mem::take(&mut self.packet);
            return Ok(Some((Frame::Packet(packet), bytes.len() - rest.len())));
        }
        let part = take(self.left as usize);
        if part.is_empty() && self.left > 0 {
            return Ok(None);
        }
        let mode = match flags & 0xff {
            0 => Seek::Relative,
            1 => Seek::Absolute,
            2 => Seek::OnRead,
            _ => Seek::End,
        };
        let offset = (u64::from(high) << 32 | u64::from(low)).cast_signed();
        let seek = if self.begun { None } else { Some((mode, offset)) };
        self.begun = true;
        self.left -= part.len() as u32;
        if self.left == 0 {
            self.header.clear();
        }
        Ok(Some((Frame::Samples { channel, seek, length, bytes: part }, bytes.len() - rest.len())))
    }

    fn words(&self) -> [u32; 5] {
        let mut words = [0; 5];
        for (word, bytes) in words.iter_mut().zip(self.header.as_chunks::<4>().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        words
    }

    fn begin(&mut self) -> Result<(), Violation> {
        let [length, channel, _, _, flags] = self.words();
        if channel == CONTROL {
            if length as usize > PACKET_BYTES_MAX {
                return Err(Violation::TooLong(length));
            }
            // Control has no flags, but for those of shared memory.
            return if flags == 0 { Ok(()) } else { Err(Violation::Flags(flags)) };
        }
        if length > BLOCK_BYTES_MAX {
            return Err(Violation::TooLong(length));
        }
        if flags > 3 {
            return Err(Violation::Flags(flags));
        }
        (self.left, self.begun) = (length, false);
        Ok(())
    }
}

/// Appends a packet of control.
pub fn put_packet(packet: &[u8], out: &mut Vec<u8>) {
    put_header(packet.len(), CONTROL, 0, 0, out);
    out.extend_from_slice(packet);
}

/// Appends a block of samples.
pub fn put_samples(channel: u32, samples: &[u8], out: &mut Vec<u8>) {
    put_samples_at(channel, Seek::Relative, 0, samples, out);
}

/// Appends a block of samples that goes to a place of its own.
pub fn put_samples_at(channel: u32, seek: Seek, offset: i64, samples: &[u8], out: &mut Vec<u8>) {
    put_header(samples.len(), channel, offset, seek as u32, out);
    out.extend_from_slice(samples);
}

fn put_header(length: usize, channel: u32, offset: i64, flags: u32, out: &mut Vec<u8>) {
    out.extend((length as u32).to_be_bytes());
    out.extend(channel.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(flags.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, Vec<u8>) {
        let (mut packets, mut samples) = (Vec::new(), Vec::new());
        let mut reader = Reader::default();
        for piece in pieces {
            let mut rest = *piece;
            while let Some((frame, used)) = reader.next(rest).unwrap() {
                match frame {
                    Frame::Packet(packet) => packets.push(packet),
                    Frame::Samples { channel, seek, length, bytes } => {
                        assert_eq!((channel, length), (3, 5));
                        assert_eq!(seek.is_some(), samples.len().is_multiple_of(5));
                        samples.extend_from_slice(bytes);
                    }
                }
                rest = &rest[used..];
            }
        }
        (packets, samples)
    }

    #[test]
    fn frames_come_out_however_they_are_cut() {
        let mut wire = Vec::new();
        put_packet(b"hello", &mut wire);
        put_samples(3, b"abcde", &mut wire);
        put_packet(b"", &mut wire);
        put_samples(3, b"fghij", &mut wire);
        let expected = (vec![b"hello".to_vec(), Vec::new()], b"abcdefghij".to_vec());
        assert_eq!(read(&[&wire]), expected);
        assert_eq!(read(&wire.chunks(1).collect::<Vec<_>>()), expected);
        for cut in 0..wire.len() {
            assert_eq!(read(&[&wire[..cut], &wire[cut..]]), expected, "{cut}");
        }
    }

    #[test]
    fn lies_about_lengths_and_flags_are_found() {
        let header = |words: [u32; 5]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
        let next = |words| Reader::default().next(&header(words)).unwrap_err();
        assert_eq!(next([u32::MAX, u32::MAX, 0, 0, 0]), Violation::TooLong(u32::MAX));
        assert_eq!(next([u32::MAX, 1, 0, 0, 0]), Violation::TooLong(u32::MAX));
        assert_eq!(next([16, 1, 0, 0, 0x8000_0000]), Violation::Flags(0x8000_0000));
        assert_eq!(next([0, u32::MAX, 0, 0, 0x4000_0000]), Violation::Flags(0x4000_0000));
    }
}
