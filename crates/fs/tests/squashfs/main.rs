//! squashfs against those who made it: mksquashfs, unsquashfs and the kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hostile;
mod image;
mod kernel;
mod mksquashfs;

#[global_allocator]
static COUNTED: rig::memory::Counted = rig::memory::Counted;
