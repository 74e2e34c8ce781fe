//! ext2, ext3 and ext4 against those who made them: mke2fs, debugfs and the kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hostile;
mod image;
mod journal;
mod kernel;
mod mke2fs;

#[global_allocator]
static COUNTED: rig::memory::Counted = rig::memory::Counted;
