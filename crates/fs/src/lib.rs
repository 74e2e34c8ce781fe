//! File systems inside a device, read without the kernel.
//!
//! One trait, [`FileSystem`], serves mount, ls, cat, cp and tar. A file system is a pure function of the bytes of a
//! [`block::ReadAt`]: it opens nothing, owns no thread, and holds no state that a caller can see, so that one of them
//! serves any number of callers at once.
//!
//! Every image is taken to be hostile: each count, length and offset that it claims is checked against the device or
//! against a named limit before anything is allocated, no chain is followed without a bound, and what is wrong is an
//! error with a kind of its own.

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod ahead;
pub mod archive;
mod codec;
pub mod erofs;
pub mod ext4;
pub mod extract;
pub mod fat;
mod file_system;
pub mod folder;
pub mod identify;
pub mod insert;
pub mod iso9660;
pub mod make;
pub mod ntfs;
mod open;
pub mod path;
pub mod progress;
pub mod squashfs;
pub mod stream;
pub mod testing;
pub mod udf;
mod utf16;
pub mod walk;
mod writable;

use block::cache;
pub use file_system::{Cursor, Entry, FileExtent, FileSystem, FileType, Inode, Space, Stat, Time};
pub use open::{has_owners, is_written, open, open_writable};
pub use writable::{Changes, Writable};

/// The longest name of a directory entry that is passed on, bytes: the kernel's NAME_MAX.
pub const NAME_BYTES_MAX: usize = 255;
/// The longest target of a symbolic link, bytes: the kernel's PATH_MAX.
pub const LINK_BYTES_MAX: usize = 4096;
/// The longest value of an extended attribute, bytes: the kernel's XATTR_SIZE_MAX.
pub const XATTR_BYTES_MAX: usize = 65536;
