//! Thin safe calls to the kernel, where rustix has none, and to instructions of the processor: the only unsafe code of
//! loopbox.
//!
//! One file an interface of the kernel. No policy: a function here makes one call, and says what the kernel said.
//! Where rustix offers a safe call, use that and add nothing here.

pub mod aes;
pub mod allocation;
pub mod file;
pub mod fuse;
pub mod fuse_ring;
pub mod guest;
pub mod image;
pub mod io_uring;
pub mod loop_device;
pub mod mapping;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod partition;
pub mod process;
pub mod scheduler;
pub mod signal;
pub mod signalfd;
pub mod socket;
pub mod ublk;
