//! Bytes of a device, given at once where they are at hand, and not at all where they would be waited for.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use block::{BlockDevice, Extent, Result, Source};

/// Whether a device that does not say where its bytes are was fast lately: memory is, a disk is not.
#[derive(Debug, Default)]
pub struct Pace {
    /// Requests that are still handed to workers before the device is tried again.
    slow: AtomicU32,
    /// How many were slow, one after the other.
    late: AtomicU32,
}

impl Pace {
    /// So many slow requests in a row make a slow device: one alone may be a thread that lost its processor.
    const LATE_REQUESTS: u32 = 3;
    /// Requests that they cost.
    const SLOW_REQUESTS: u32 = 64;

    /// Whether the next request should be handed to a worker.
    pub fn is_slow(&self) -> bool {
        self.slow.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    /// Does it, and looks how long `len` bytes take.
    pub fn timed<T>(&self, len: u64, what: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = what();
        if start.elapsed() <= Duration::from_micros(50 + len / 1024) {
            self.late.store(0, Ordering::Relaxed);
        } else if self.late.fetch_add(1, Ordering::Relaxed) + 1 >= Self::LATE_REQUESTS {
            self.late.store(0, Ordering::Relaxed);
            self.slow.store(Self::SLOW_REQUESTS, Ordering::Relaxed);
        }
        done
    }

    /// Fills `room` with bytes at `at`, all of them in `extent`; when `quick`, only if they are not waited for:
    /// `false` where they would be.
    ///
    /// # Errors
    /// The failure of the device.
    pub fn read(
        &self,
        device: &dyn BlockDevice,
        extent: Extent<'_>,
        room: &mut [u8],
        at: u64,
        quick: bool,
    ) -> Result<bool> {
        match extent.source {
            Source::Hole | Source::Zero => room.fill(0),
            Source::File { fd, offset } if quick => {
                return Ok(matches!(sys::file::read_cached(fd, room, offset), Ok(read) if read == room.len()));
            }
            Source::Data if quick && self.is_slow() => return Ok(false),
            Source::Data => self.timed(room.len() as u64, || device.read_at(room, at))?,
            Source::File { .. } => device.read_at(room, at)?,
        }
        Ok(true)
    }
}
