//! The PulseAudio native protocol, version 35 and its past down to 13.
//!
//! ```text
//! frame     what is on the socket: packets of control, and blocks of samples with channel, seek mode and offset
//! tag       tagstructs: what is in a packet
//! command   the numbers of commands, errors, events
//! client    the other side: a client, without its socket
//! buffer    the buffer of a playback stream: write and read index, prebuffering, requests
//! ```
//!
//! There is no specification but PulseAudio itself: `PROTOCOL` and `src/pulsecore/native-common.h` of its source.

pub mod buffer;
pub mod client;
pub mod command;
pub mod frame;
pub mod tag;

/// The newest version of the protocol that is spoken.
pub const VERSION: u32 = 35;
/// The oldest version of a client: 0.9.11, of 2008.
pub const VERSION_MIN: u32 = 13;

/// Feeds arbitrary bytes to everything here that reads what a peer sent; for fuzzing.
pub fn fuzz(data: &[u8]) {
    let mut frames = frame::Reader::default();
    let mut rest = data;
    while let Ok(Some((frame, used))) = frames.next(rest) {
        if let frame::Frame::Packet(packet) = frame {
            tag::Reader::new(&packet).walk();
        }
        rest = rest.get(used..).unwrap_or_default();
    }
    tag::Reader::new(data).walk();
}
