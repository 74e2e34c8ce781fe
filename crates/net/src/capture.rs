//! Packets in a file: pcapng (draft-ietf-opsawg-pcapng), times in nanoseconds.
//!
//! ```text
//! block                                 section header, interface, packets, statistics
//!   0  u32  type                          0x0A0D0D0A, 1, 6, 5
//!   4  u32  length of all of it
//!   8  body, options, padded to 4
//!      u32  length again
//! ```

use std::io::{BufWriter, Write};
use std::time::Duration;

use crate::link::Dropped;

/// Raw IP, version 4 or 6.
const LINKTYPE_RAW: u16 = 101;
/// The longest packet that is kept.
const SNAP_BYTES: u32 = 65_535;
const OUTBOUND: u32 = 2;

/// A capture of the interface `lo`.
pub struct Capture {
    out: BufWriter<Box<dyn Write + Send>>,
    received: u64,
    dropped: u64,
    missed: u64,
    written: u64,
    failed: bool,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Capture({} packets)", self.received)
    }
}

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = code.to_ne_bytes().to_vec();
    bytes.extend((value.len() as u16).to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let padded = body.len().next_multiple_of(4);
    let length = (padded + 12) as u32;
    let mut bytes = kind.to_ne_bytes().to_vec();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(body);
    bytes.resize(padded + 8, 0);
    bytes.extend(length.to_ne_bytes());
    bytes
}

impl Capture {
    /// Begins a capture that is written to `out`.
    ///
    /// # Errors
    /// Those of writing.
    pub fn new(out: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let mut capture = Self {
            out: BufWriter::with_capacity(1 << 18, out),
            received: 0,
            dropped: 0,
            missed: 0,
            written: 0,
            failed: false,
        };
        let mut section = 0x1A2B_3C4Du32.to_ne_bytes().to_vec();
        section.extend([1u16, 0].map(u16::to_ne_bytes).concat());
        section.extend(u64::MAX.to_ne_bytes());
        section.extend(option(4, concat!("loopbox ", env!("CARGO_PKG_VERSION")).as_bytes()));
        section.extend(option(0, &[]));
        let mut interface = LINKTYPE_RAW.to_ne_bytes().to_vec();
        interface.extend([0; 2]);
        interface.extend(SNAP_BYTES.to_ne_bytes());
        interface.extend(option(2, b"lo"));
        interface.extend(option(9, &[9]));
        interface.extend(option(0, &[]));
        capture.out.write_all(&block(0x0A0D_0D0A, &section))?;
        capture.out.write_all(&block(1, &interface))?;
        capture.out.flush()?;
        Ok(capture)
    }

    /// A packet of `len` bytes, of which `bytes` are here, that was sent at `time` (since 1970).
    pub fn packet(&mut self, time: Duration, bytes: &[u8], len: usize, dropped: Option<Dropped>) {
        self.received += 1;
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let mut body = Vec::with_capacity(bytes.len() + 64);
        for number in [0, (nanoseconds >> 32) as u32, nanoseconds as u32, bytes.len() as u32, len as u32] {
            body.extend(number.to_ne_bytes());
        }
        body.extend(bytes);
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend(option(2, &OUTBOUND.to_ne_bytes()));
        if let Some(dropped) = dropped {
            self.dropped += 1;
            body.extend(option(
                1,
                match dropped {
                    Dropped::Lost => b"lost by a rule",
                    Dropped::Overflow => b"lost: more wait than the limit allows",
                },
            ));
        }
        body.extend(option(0, &[]));
        self.write(&block(6, &body));
        self.written += 1;
    }

    /// Notes packets that the kernel had no room for.
    pub fn missed(&mut self, packets: u64) {
        self.missed += packets;
    }

    /// Hands on what is written so far, with the counts that belong to it.
    pub fn flush(&mut self) {
        if self.written > 0 {
            self.written = 0;
            if self.out.flush().is_err() {
                self.failed = true;
            }
        }
    }

    /// Ends it with the counts: received, dropped by rules, and those that the kernel had no room for.
    ///
    /// # Errors
    /// When something, now or before, could not be written.
    pub fn finish(mut self) -> std::io::Result<()> {
        let mut body = vec![0; 12];
        for (code, count) in [(4, self.received), (5, self.dropped), (7, self.missed)] {
            body.extend(option(code, &count.to_ne_bytes()));
        }
        if self.missed > 0 {
            body.extend(option(1, b"packets are missing: the kernel had no room for them"));
        }
        body.extend(option(0, &[]));
        self.write(&block(5, &body));
        match self.out.flush() {
            Ok(()) if !self.failed => Ok(()),
            Ok(()) => Err(std::io::Error::other("packets are missing from the file")),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if !self.failed && self.out.write_all(bytes).is_err() {
            // A reader that went away, or a full disk: the traffic goes on.
            self.failed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_as_long_as_they_say() {
        let bytes = block(6, &[1, 2, 3]);
        assert_eq!(bytes.len(), 16);
        assert_eq!(bytes[4..8], bytes[12..16]);
        assert_eq!(option(1, b"abc").len(), 8);
    }
}
