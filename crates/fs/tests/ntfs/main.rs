//! NTFS against ntfs-3g and broken images.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hostile;
mod image;
mod read;
