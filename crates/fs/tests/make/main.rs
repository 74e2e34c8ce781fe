//! New file systems that hold a tree, as others see them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

mod erofs;
mod ext4;
mod fat;
mod folder;
mod image;
mod iso9660;
mod squashfs;
