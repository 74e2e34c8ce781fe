//! UDF against those who made it: mkudffs with the kernel of a guest, and genisoimage.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bridge;
mod guest;
mod hostile;

#[global_allocator]
static COUNTED: rig::memory::Counted = rig::memory::Counted;
