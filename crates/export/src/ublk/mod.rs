//! The disk as a block device of the kernel that this process serves: `/dev/ublkbN`, by ublk_drv.
//!
//! ```text
//! server   a device is added, started, and taken away again; the registry's view of it
//! node     /dev/ublk-control, /dev/ublkcN and /dev/ublkbN: who may open them, and where /dev lacks them
//! queue    a thread for each queue: what is there is done, batch by batch, or handed to workers
//! request  a descriptor becomes a request, and is done
//! ```
//!
//! **Batches.** A thread takes all requests that its queue holds, does those that do not wait for the disk, and gives
//! their results back with the same system call that waits for the next. The others are done by the workers of the
//! server, so that they hold up nobody.
//!
//! **The end.** The kernel is asked to stop the device while its queues are still served: so it can write what it has in
//! its cache. When this process dies instead, the kernel fails what it has not been answered, and takes the disk away;
//! the number stays until somebody deletes it, which [`clean`] does.
//!
//! Sources: Documentation/block/ublk.rst and include/uapi/linux/ublk_cmd.h of Linux.

mod node;
mod queue;
mod request;
mod server;
#[cfg(test)]
mod tests;

pub use node::available;
pub use server::{Server, clean, release};

use serde::{Deserialize, Serialize};

/// Most queues.
pub const QUEUES_MAX: u16 = 16;
/// As many as there are processors, up to this, where nobody says how many.
const QUEUES_PREFERRED_MAX: usize = 4;
/// Requests of one queue.
const DEPTH: u16 = 64;
/// Most bytes that one request reads or writes.
const BUFFER_BYTES: u32 = 256 << 10;
/// Most sectors of one discard: 1 GiB.
const DISCARD_SECTORS_MAX: u32 = 1 << 21;
/// Largest block that the kernel is told of.
const BLOCK_BYTES_MAX: u32 = 4096;

/// What is written down of a device, to know it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// N of `/dev/ublkbN`.
    pub number: u32,
    /// What the driver keeps for its server, different for each.
    pub own: u64,
}
