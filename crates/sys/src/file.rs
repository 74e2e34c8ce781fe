//! Reading a file without waiting for its disk: `preadv2(2)` with `RWF_NOWAIT`; descriptors that a user names.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

/// Reads into `buf` at `offset` what the page cache holds there, and says how many bytes: fewer than asked where the
/// cache holds less, or at the end of the file.
///
/// # Errors
/// `EAGAIN` where the cache holds nothing; `EOPNOTSUPP` where the file system does not know; those of `pread`.
pub fn read_cached(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let offset = libc::off64_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: the one part is `buf`, which is borrowed for writing and outlives the call.
    let read = unsafe { libc::preadv64v2(fd.as_raw_fd(), &raw const part, 1, offset, libc::RWF_NOWAIT) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// A copy of the descriptor of that number, which shares its position in the file.
///
/// # Errors
/// `EBADF` where no such descriptor is open.
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the kernel is asked for a copy, and says so where there is no such descriptor; nothing is closed.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::{AsFd as _, AsRawFd as _};

    #[test]
    fn what_was_just_written_is_there() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut buf = [0; 4];
        assert_eq!(super::read_cached(file.as_fd(), &mut buf, 3).unwrap(), 4);
        assert_eq!(&buf, b"3456");
        assert_eq!(super::read_cached(file.as_fd(), &mut buf, 8).unwrap(), 2);
        let copy = super::duplicate(file.as_raw_fd()).unwrap();
        assert_eq!(super::read_cached(copy.as_fd(), &mut buf, 0).unwrap(), 4);
        assert!(super::duplicate(-1).is_err());
    }
}
