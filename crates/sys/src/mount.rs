//! `mount_setattr(2)`, which rustix does not have: flags of a whole tree of mounts at once.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Makes a mount, and all below it, read-only; other flags stay.
///
/// # Errors
/// `ENOSYS` on kernels before 5.12; `EPERM` without the privilege in the user namespace that the mount belongs to.
pub fn make_read_only(tree: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is an empty string with its NUL, the structure lives over the call, and its size is given; the
    // kernel reads both and writes neither.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
