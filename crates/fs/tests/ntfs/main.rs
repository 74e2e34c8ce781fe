//! NTFS against ntfs-3g, the kernel of a guest, and broken images.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod guest;
mod hostile;
mod image;
mod read;

#[global_allocator]
static COUNTED: rig::memory::Counted = rig::memory::Counted;
