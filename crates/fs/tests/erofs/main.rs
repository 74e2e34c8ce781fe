//! erofs against those who made it: mkfs.erofs, fsck.erofs and the kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hostile;
mod image;
mod kernel;
mod mkfs;

#[global_allocator]
static COUNTED: rig::memory::Counted = rig::memory::Counted;
