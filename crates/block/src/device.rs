//! The two traits, and what they speak of.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;

use crate::{Error, Kind, Result};

/// Bytes of a fixed number that are read at positions.
///
/// Any offset and any length inside the device is accepted; [`Limits`] says which ones are cheap.
pub trait ReadAt: Send + Sync + Debug {
    /// Size in bytes. It does not change while the device lives, unless it is made larger ([`Storage::grow`]).
    fn size(&self) -> u64;

    /// What a client should know before it sends requests.
    fn limits(&self) -> Limits;

    /// Fills the whole of `buf` with the bytes at `offset` (bytes): exact, never short.
    ///
    /// # Errors
    /// [`Kind::OutOfRange`] when it does not lie inside the device as a whole; otherwise the failure of what is below.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// One run from `offset` (bytes) on, and where its bytes really are.
    ///
    /// The run starts at `offset`, is at least one byte and at most the rest of the device, and need not be the longest
    /// that could be said; but a device answers in time that does not grow with the length of the run.
    ///
    /// # Errors
    /// [`Kind::OutOfRange`] when `offset` is not below [`ReadAt::size`]; otherwise the failure of what is below.
    fn extent_at(&self, offset: u64) -> Result<Extent<'_>>;
}

/// A device that is also written.
///
/// There are no default methods: a layer that forgot one would corrupt what is below it. A device that takes no writes
/// says so in [`Limits::read_only`] and answers each of these, [`BlockDevice::flush`] excepted, with
/// [`Kind::ReadOnly`]. After a flush that failed, every method that changes bytes, and flush, answer
/// [`Kind::Poisoned`].
pub trait BlockDevice: ReadAt {
    /// Writes the whole of `buf` at `offset` (bytes). It is durable after the next [`BlockDevice::flush`].
    ///
    /// # Errors
    /// [`Kind::OutOfRange`] when it does not lie inside the device as a whole; otherwise the failure of what is below,
    /// after which the range may hold old bytes, new bytes, or some of each.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()>;

    /// Makes `len` bytes at `offset` read as zero, with or without keeping their room: see [`Zero`].
    ///
    /// # Errors
    /// As [`BlockDevice::write_at`].
    fn write_zeroes(&self, offset: u64, len: u64, mode: Zero) -> Result<()>;

    /// Gives up `len` bytes at `offset`: what they read as afterwards is not defined (old bytes, or zero).
    ///
    /// # Errors
    /// As [`BlockDevice::write_at`]. That nothing can be given up is not an error.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;

    /// Returns when all writes that completed before it survive a power cut.
    ///
    /// # Errors
    /// The failure of what is below, after which the device refuses writes.
    fn flush(&self) -> Result<()>;
}

/// A device that an image format is stored on: it can be made larger.
pub trait Storage: BlockDevice {
    /// Makes it at least `size` bytes large; what is new reads as zero, and [`ReadAt::size`] says the new size.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] where there is no more room; [`Kind::ReadOnly`]; otherwise the failure of what is below.
    fn grow(&self, size: u64) -> Result<()>;

    /// The file of which byte n is the device's byte n, up to its size; `None` where there is none.
    fn file(&self) -> Option<BorrowedFd<'_>>;
}

/// How zeroes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Zero {
    /// The room is kept: a later write there does not fail for lack of it.
    Allocate,
    /// The room may be given back (a hole).
    Deallocate,
}

/// What a client of a device should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Logical block, bytes, a power of two from 1 on: the unit that is written as a whole. Kernels want 512 or more.
    pub block: u32,
    /// Requests are cheapest in multiples of this, bytes: a cluster, a page. A power of two, at least `block`.
    pub preferred: u32,
    /// How many requests at one time still make it faster.
    pub depth: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl Limits {
    /// Of a plain device: blocks of 512 bytes, pages of 4096 preferred, 32 requests at one time, writable.
    pub const PLAIN: Self = Self { block: 512, preferred: 4096, depth: 32, read_only: false };
}

/// A run of bytes of a device, from an offset that the caller named.
#[derive(Debug, Clone, Copy)]
pub struct Extent<'a> {
    /// Length in bytes, at least 1.
    pub len: u64,
    /// Where the bytes are.
    pub source: Source<'a>,
}

/// Where the bytes of an [`Extent`] are.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Nowhere: not allocated, reads as zero.
    Hole,
    /// Allocated, and known to read as zero.
    Zero,
    /// Only [`ReadAt::read_at`] gives them.
    Data,
    /// In this file, from this byte on, as they are: nothing above or beside changes or watches them. Valid for the
    /// life of the device.
    File {
        /// The file, open for reading (and for writing when the device is writable).
        fd: BorrowedFd<'a>,
        /// First byte of the run in that file.
        offset: u64,
    },
}

impl Source<'_> {
    /// Whether the run reads as zero without being read.
    pub fn is_zero(&self) -> bool {
        matches!(self, Self::Hole | Self::Zero)
    }
}

/// That `len` bytes at `offset` lie inside `size` bytes.
///
/// # Errors
/// [`Kind::OutOfRange`], with the numbers.
pub fn check_range(size: u64, offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::new(Kind::OutOfRange, format!("{len} bytes at {offset} of a device of {size} bytes"))),
    }
}

macro_rules! forward {
    ($($holder:ty),*) => {$(
        impl<T: ReadAt + ?Sized> ReadAt for $holder {
            fn size(&self) -> u64 {
                (**self).size()
            }
            fn limits(&self) -> Limits {
                (**self).limits()
            }
            fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
                (**self).read_at(buf, offset)
            }
            fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
                (**self).extent_at(offset)
            }
        }
        impl<T: BlockDevice + ?Sized> BlockDevice for $holder {
            fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
                (**self).write_at(buf, offset)
            }
            fn write_zeroes(&self, offset: u64, len: u64, mode: Zero) -> Result<()> {
                (**self).write_zeroes(offset, len, mode)
            }
            fn discard(&self, offset: u64, len: u64) -> Result<()> {
                (**self).discard(offset, len)
            }
            fn flush(&self) -> Result<()> {
                (**self).flush()
            }
        }
        impl<T: Storage + ?Sized> Storage for $holder {
            fn grow(&self, size: u64) -> Result<()> {
                (**self).grow(size)
            }
            fn file(&self) -> Option<BorrowedFd<'_>> {
                (**self).file()
            }
        }
    )*};
}
forward!(std::sync::Arc<T>, Box<T>, &T);
