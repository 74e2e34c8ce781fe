//! FAT and exFAT, against dosfstools, mtools, exfatprogs, and broken images.

#![allow(clippy::unwrap_used, clippy::panic)]

mod crash;
mod format;
mod guest;
mod hostile;
mod image;
mod read;
mod write;

#[global_allocator]
static COUNTED: rig::memory::Counted = rig::memory::Counted;
