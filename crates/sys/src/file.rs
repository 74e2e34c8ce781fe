//! Reading a file without waiting for its disk: `preadv2(2)` with `RWF_NOWAIT`.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

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

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    #[test]
    fn what_was_just_written_is_there() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut buf = [0; 4];
        assert_eq!(super::read_cached(file.as_fd(), &mut buf, 3).unwrap(), 4);
        assert_eq!(&buf, b"3456");
        assert_eq!(super::read_cached(file.as_fd(), &mut buf, 8).unwrap(), 2);
    }
}
