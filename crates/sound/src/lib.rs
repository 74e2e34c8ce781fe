//! A sound card made of memory: what is played comes back as what is recorded, and as a WAV file.
//!
//! ```text
//! card        the card: an engine without clock or I/O (time is a parameter), and the one thread that drives it
//! pulse       the PulseAudio native protocol: frames, tagstructs, stream buffers
//! pcm         sample formats, channel maps, what a frame is
//! mix         channels of one map into channels of another
//! resample    one rate into another
//! loopback    the loop from a source to a sink: an engine without clock or I/O, and a client that drives it
//! check       what is in a WAV file, and whether it was expected
//! plot        a picture of a WAV file
//! wav         WAV and RF64 files, right after a kill at any moment
//! ```
//!
//! Inside, a sample is an `f64`: every 8, 16, 24 and 32 bit integer and every `f32` passes through it unchanged.

#![forbid(unsafe_code)]

pub mod card;
pub mod check;
mod error;
pub mod loopback;
pub mod mix;
pub mod pcm;
pub mod plot;
pub mod pulse;
pub mod resample;
pub mod wav;

pub use error::{Error, Kind, Result};

/// The priority that PulseAudio and PipeWire's clients have as well, above which are the kernel's own threads.
const PRIORITY: u32 = 5;
/// Nanoseconds that an ordinary thread gets at a time when it has to be on time.
const SLICE_NANOS: u64 = 500_000;

/// The calling thread has to be on time: it goes before others where this user may ask for that, and otherwise its turn
/// comes sooner. On a busy machine a turn is otherwise up to 30 ms late, which is more than a short buffer lasts.
fn be_on_time() {
    if sys::scheduler::set_round_robin(PRIORITY).is_err() {
        // An old kernel, or a filter of system calls: it runs as all do.
        let _ = sys::scheduler::set_slice(SLICE_NANOS);
        // Timers of ordinary threads are up to 50 µs late, so that they come together.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    }
}
