//! The disk as a Network Block Device: the whole protocol that clients use today.
//!
//! ```text
//! wire        the numbers of the protocol
//! handshake   options, until both sides agree on an export and on a dialect
//! reply       answers, in each of the three dialects: simple, structured, extended headers
//! connection  requests: all that are there are answered in one write
//! window      parts of files from which answers are sent without being copied first
//! line        a client's socket, its time to agree, and TLS over it
//! server      listening, counting connections, ending
//! ```
//!
//! **Batches.** One thread a connection reads whatever the client has sent, answers every whole request in it into one
//! buffer, and writes that buffer once. A read whose bytes are in the page cache costs one system call; what would wait
//! for the disk is handed to a few threads of the connection, so that it holds up nobody.
//!
//! **Multi-conn.** All connections write through one device, and `BlockDevice::flush` covers all that completed before
//! it: a flush on one connection covers the writes of all, as CAN_MULTI_CONN promises.

mod connection;
mod handshake;
mod line;
mod reply;
mod server;
mod waits;
mod window;
mod wire;

#[cfg(test)]
mod tests;

pub use server::{Address, Ending, Security, Server, serve_one};

use std::sync::Arc;

use block::BlockDevice;

use crate::counters::Counters;

/// Most bytes of the payload of one request, and of one read: the 32 MiB that clients count on.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Most bytes of an option that a client sends while both sides haggle.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Most options of one handshake.
pub const OPTIONS_MAX: u32 = 256;
/// Longest name of an export, bytes.
pub const NAME_BYTES_MAX: usize = 4096;
/// Most connections at one time.
pub const CONNECTIONS_MAX: usize = 256;
/// Most extents in the answer to one block status request.
pub const EXTENTS_MAX: usize = 4096;

/// A device that a server offers, and the name that clients ask for.
#[derive(Debug, Clone)]
pub struct Export {
    /// Its name; the empty one is what a client gets that names none.
    pub name: String,
    /// A line for people.
    pub description: String,
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// What clients do with it, and how many there are. Latencies are from when a request was looked at until the
    /// answer, with others that were there, was handed to the socket.
    pub counters: Arc<Counters>,
}
