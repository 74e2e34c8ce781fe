//! The loop from a source to a sink: what one card records is what another one plays, at a latency that stays.
//!
//! ```text
//!  source ─► capture ─► input ──► voice ─────────► produce ─► sink
//!              │                    │ copy (bit by bit), or filter at a fraction of a frame
//!            Clock ── where it should be ── Clock ◄── request
//! ```
//!
//! engine   frames in, frames out; time is a parameter
//! clock    what a card's clock is, told from when its frames came
//! session  the loop as two clients of PulseAudio, still without I/O
//! driver   sockets and a terminal's level meter
//! fuzz     servers that lie

mod clock;
mod driver;
mod engine;
mod fuzz;
mod session;

pub use clock::Clock;
pub use driver::{Listed, Loop, Wishes, list};
pub use engine::{Engine, State};
pub use fuzz::fuzz;
pub use session::{Level, Session, Side, Status};
