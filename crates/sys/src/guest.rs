//! Bytes of a file straight into the memory of a guest, without waiting for the disk: `preadv2(2)` with `RWF_NOWAIT`.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use vm_memory::VolatileSlice;
use vm_memory::volatile_memory::PtrGuardMut;

/// Most pieces of one call (`UIO_MAXIOV`).
pub const PIECES_MAX: usize = 1024;

/// Reads into `room`, piece after piece, at `offset` what the page cache holds there, and says how many bytes: fewer
/// than there is room for where the cache holds less, or at the end of the file.
///
/// # Errors
/// `EAGAIN` where the cache holds nothing; `EINVAL` for more than [`PIECES_MAX`]; those of `preadv2`.
pub fn read_cached(fd: BorrowedFd<'_>, room: &[VolatileSlice<'_>], offset: u64) -> io::Result<usize> {
    // Most are in one piece: no list of them is made then.
    match room {
        [one] => read_into([one.ptr_guard_mut()].as_slice(), fd, offset),
        many => read_into(&many.iter().map(VolatileSlice::ptr_guard_mut).collect::<Vec<_>>(), fd, offset),
    }
}

fn read_into(room: &[PtrGuardMut], fd: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
    let offset = libc::off64_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let part = |guard: &PtrGuardMut| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() };
    let (one, many): (libc::iovec, Vec<libc::iovec>);
    let parts = match room {
        [guard] => {
            one = part(guard);
            std::slice::from_ref(&one)
        }
        guards => {
            many = guards.iter().map(part).collect();
            many.as_slice()
        }
    };
    let count = libc::c_int::try_from(parts.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: each part is memory that its slice says is mapped for writing, and that stays so as long as the slice is
    // borrowed; it is shared with others, who may read and write it at any time, and Rust never has a reference to it.
    let read = unsafe { libc::preadv64v2(fd.as_raw_fd(), parts.as_ptr(), count, offset, libc::RWF_NOWAIT) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

    #[test]
    fn pieces_of_a_guest_are_filled_one_after_the_other() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x5000), 0x1000)]);
        let memory = memory.unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let slice = |at, len| memory.get_slice(GuestAddress(at), len).unwrap();
        let room = [slice(0x5ffd, 3), slice(0x10, 4), slice(0x20, 8)];
        assert_eq!(super::read_cached(file.as_fd(), &room, 1).unwrap(), 9);
        let read = |at| {
            let mut bytes = [0; 4];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        assert_eq!((read(0x5ffc), read(0x10), read(0x20)), (*b"\x00123", *b"4567", *b"89\0\0"));
        assert!(super::read_cached(file.as_fd(), &room, u64::MAX).is_err());
        assert_eq!(super::read_cached(file.as_fd(), &room, 10).unwrap(), 0);
    }
}
