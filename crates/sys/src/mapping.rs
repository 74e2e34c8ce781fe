//! Files in the address space that this program never looks into itself: `mmap(2)`, and `writev(2)` that copies from
//! there. What became of a file meanwhile is thus an error of a call (`EFAULT` where it was cut short), and never a
//! signal.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;

/// Most pieces of one [`write`](fn@write) (`UIO_MAXIOV`).
pub const PIECES_MAX: usize = 1024;

/// A part of a file, mapped for reading. There is no way to its bytes but [`Piece::Mapped`].
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<libc::c_void>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone, and no reference into it is ever made.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes from `offset` (of a page) on. The file may be shorter, now or later.
    ///
    /// # Errors
    /// Those of `mmap`: `EINVAL` for an offset within a page, `ENODEV` for what cannot be mapped.
    pub fn new(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        let (access, kind) = (rustix::mm::ProtFlags::READ, rustix::mm::MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
        let address = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, access, kind, fd, offset) }?;
        let address = NonNull::new(address).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { address, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped in `new` with this length, and nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.address.as_ptr(), self.len) };
    }
}

/// Bytes to be written.
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    /// These.
    Bytes(&'a [u8]),
    /// Those of a file.
    Mapped {
        /// The part of the file.
        mapping: &'a Mapping,
        /// First byte in that part.
        start: usize,
        /// Bytes; what lies outside of the mapping is not written.
        len: usize,
    },
}

impl Piece<'_> {
    /// How many bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Mapped { mapping, start, len } => (*len).min(mapping.len.saturating_sub(*start)),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Leaves out the first `count` bytes.
    pub fn skip(&mut self, count: usize) {
        match self {
            Self::Bytes(bytes) => *bytes = bytes.get(count..).unwrap_or_default(),
            Self::Mapped { start, len, .. } => {
                *start = start.saturating_add(count);
                *len = len.saturating_sub(count);
            }
        }
    }
}

/// Writes `pieces`, of which [`PIECES_MAX`] count, one after the other; says how many bytes of them were taken.
///
/// # Errors
/// Those of `writev`; `EFAULT` where a mapped piece lies behind the end of its file, or cannot be read.
pub fn write(fd: BorrowedFd<'_>, pieces: &[Piece<'_>]) -> io::Result<usize> {
    let parts: Vec<libc::iovec> = pieces
        .iter()
        .take(PIECES_MAX)
        .map(|piece| match piece {
            Piece::Bytes(bytes) => libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() },
            Piece::Mapped { mapping, start, .. } => libc::iovec {
                iov_base: mapping.address.as_ptr().wrapping_byte_add((*start).min(mapping.len)),
                iov_len: piece.len(),
            },
        })
        .collect();
    let count = libc::c_int::try_from(parts.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads, and does not write, the parts. Each is a slice that is borrowed over the call, or lies
    // within a mapping that is; bytes of the latter may change at any time, and only the kernel sees them.
    let written = unsafe { libc::writev(fd.as_raw_fd(), parts.as_ptr(), count) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// How often the calling thread has waited for the disk because a page of a mapping was not in memory.
pub fn major_faults() -> u64 {
    // SAFETY: a structure of integers, for which zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the structure, which outlives it.
    let done = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    if done == 0 { u64::try_from(usage.ru_majflt).unwrap_or(0) } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn pieces_of_a_file_go_through_a_socket_and_what_is_cut_off_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[b'a'; 8192]).unwrap();
        let mapping = Mapping::new(file.as_fd(), 4096, 1 << 20).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut pieces = [Piece::Bytes(b"xhead"), Piece::Mapped { mapping: &mapping, start: 4090, len: 6 }];
        pieces[0].skip(1);
        pieces[1].skip(2);
        assert_eq!(write(ours.as_fd(), &pieces).unwrap(), 8);
        let mut got = [0; 8];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"headaaaa");
        file.set_len(100).unwrap();
        assert_eq!(write(ours.as_fd(), &pieces).unwrap_err().raw_os_error(), Some(libc::EFAULT));
        // What is not mapped at all counts nothing.
        let outside = Piece::Mapped { mapping: &mapping, start: 1 << 30, len: 7 };
        assert!(outside.is_empty());
        assert_eq!(write(ours.as_fd(), &[outside, Piece::Bytes(b"y")]).unwrap(), 1);
        assert!(Mapping::new(file.as_fd(), 1, 4096).is_err());
        let _ = major_faults();
    }
}
