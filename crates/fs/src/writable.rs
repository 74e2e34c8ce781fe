//! The trait of file systems that are also written.

use block::Result;

use crate::{FileSystem, FileType, Inode, Time};

/// What is to be changed of what is known of a file; `None` leaves it as it is. What a file system does not hold is left
/// out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// When it was last read.
    pub accessed: Option<Time>,
    /// When its content last changed.
    pub modified: Option<Time>,
    /// When it was made.
    pub created: Option<Time>,
    /// The lower twelve bits of the mode.
    pub permissions: Option<u16>,
}

/// A file system that is also written, by any number of callers at once.
///
/// There is no clock in it: `now` is the time that a change is said to have. Each change is made in an order that a crash
/// may cut at any write: what was not being changed stays whole.
pub trait Writable: FileSystem {
    /// Makes a file: `Regular`, empty, or a `Directory`.
    ///
    /// # Errors
    /// [`block::Kind::Exists`]; `NotDirectory`; `Invalid` or `NameTooLong` for a name that the file system cannot hold;
    /// `Unsupported` for another type; `NoSpace`; the failure of the device.
    fn create(&self, directory: Inode, name: &[u8], file_type: FileType, now: Time) -> Result<Inode>;

    /// Writes all of `buf` at `offset` (bytes) of a regular file, which grows where it ends before; what lies between
    /// reads as zero. Nothing is changed where there is no room for all of it.
    ///
    /// # Errors
    /// `IsDirectory`; `Limit` beyond the largest file; `NoSpace`; the failure of the device.
    fn write(&self, inode: Inode, buf: &[u8], offset: u64, now: Time) -> Result<()>;

    /// Makes a regular file `size` bytes long; what is added reads as zero.
    ///
    /// # Errors
    /// As [`Writable::write`].
    fn truncate(&self, inode: Inode, size: u64, now: Time) -> Result<()>;

    /// Takes a name away: of an empty directory where `directory_wanted`, of another file otherwise. A file that is held
    /// can be used until it is released.
    ///
    /// # Errors
    /// `NotFound`; `IsDirectory` or `NotDirectory`; `NotEmpty`; the failure of the device.
    fn remove(&self, directory: Inode, name: &[u8], directory_wanted: bool, now: Time) -> Result<()>;

    /// Gives a file another name, maybe in another directory. With `replace`, what has that name is removed: a file by a
    /// file, an empty directory by a directory.
    ///
    /// # Errors
    /// As [`Writable::create`] and [`Writable::remove`]; `Invalid` for a directory that would be inside itself.
    fn rename(&self, from: (Inode, &[u8]), to: (Inode, &[u8]), replace: bool, now: Time) -> Result<()>;

    /// Changes what is known of a file.
    ///
    /// # Errors
    /// The failure of the device.
    fn change(&self, inode: Inode, changes: Changes) -> Result<()>;

    /// Keeps a file that is in use, as often as it is called, also when its name is removed.
    fn hold(&self, inode: Inode);

    /// Undoes one [`Writable::hold`]; the last one lets a file without a name go.
    ///
    /// # Errors
    /// The failure of the device.
    fn release(&self, inode: Inode) -> Result<()>;

    /// Changes the label; empty for none.
    ///
    /// # Errors
    /// `Invalid` for a label that the file system cannot hold; the failure of the device.
    fn set_label(&self, label: &str, now: Time) -> Result<()>;

    /// The size of the largest file, bytes.
    fn file_bytes_max(&self) -> u64;

    /// Returns when all that was done survives a power cut.
    ///
    /// # Errors
    /// The failure of the device, after which nothing is written any more.
    fn flush(&self) -> Result<()>;

    /// Flushes, and marks the file system as unmounted. A later change marks it as in use again.
    ///
    /// # Errors
    /// As [`Writable::flush`].
    fn close(&self) -> Result<()>;
}
