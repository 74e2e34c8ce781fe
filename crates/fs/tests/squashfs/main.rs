//! squashfs against those who made it: mksquashfs, unsquashfs and the kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hostile;
mod image;
mod kernel;
mod mksquashfs;
