//! What a disk is.
//!
//! A disk is an array of bytes with a fixed size that is read and written at positions. Two traits say so:
//! [`ReadAt`] for whoever only reads, [`BlockDevice`] for whoever also writes. Both are blocking, take `&self`, and
//! fill buffers that the caller owns: an export decides how many threads it runs and what they wait for.
//!
//! ```text
//! export     FUSE node, loop driver, NBD …      owns threads, asks extent_at first
//!   │
//! layer      window, overlay, read_only, …      a BlockDevice made of a BlockDevice
//!   │
//! backing    file, memory, …                    the bottom: bytes that are really somewhere
//! ```
//!
//! Data flows one way: nothing here knows what stands above it, owns a thread, reads a clock or draws a random number.

#![forbid(unsafe_code)]

pub mod bytes;
pub mod cache;
mod device;
mod error;
pub mod layer;
mod poison;
mod sequential;
#[cfg(feature = "testing")]
pub mod testing;

pub use device::{BlockDevice, Extent, Limits, ReadAt, Source, Storage, Zero, check_range};
pub use error::{Error, Kind, Result, ResultExt};
pub use poison::Poison;
pub use sequential::Sequential;
