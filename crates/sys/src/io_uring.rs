//! Whether the kernel lets this process make an io_uring.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

/// Makes a ring of two entries and closes it again.
///
/// # Errors
/// `ENOSYS` where the kernel has none, `EPERM` where it is shut off (`kernel.io_uring_disabled`, a seccomp filter).
pub fn probe() -> io::Result<()> {
    // `struct io_uring_params` (include/uapi/linux/io_uring.h): 120 bytes, all zero asks for the defaults.
    let mut params = [0_u32; 30];
    // SAFETY: the kernel reads and writes the 120 bytes of `params`, which outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2_u32, params.as_mut_ptr()) };
    match i32::try_from(fd) {
        Ok(fd) if fd >= 0 => {
            // SAFETY: the kernel has just made this descriptor, and nobody else has it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            Ok(())
        }
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_answer_is_yes_or_an_errno_that_means_no() {
        if let Err(error) = super::probe() {
            assert!(matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES)), "{error}");
        }
    }
}
