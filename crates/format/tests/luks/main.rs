//! Encrypted volumes, made and read by loopbox, by cryptsetup and by QEMU.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod cryptsetup;
mod dm_crypt;
mod hostile;
mod key_slots;
mod qemu;
mod suites;
mod volume;
