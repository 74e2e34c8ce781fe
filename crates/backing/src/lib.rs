//! Where a disk's bytes come from.
//!
//! - [`FileBacking`]: a regular file or a block device of the kernel.
//! - [`Memory`]: pages that are there once they are written.

#![forbid(unsafe_code)]

mod direct;
pub mod file;
pub mod memory;

pub use file::{FileBacking, Open};
pub use memory::Memory;
