//! The device of FUSE, /dev/fuse: its ioctls. Requests are read from it, and replies written to it, as to any file.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

/// Where the device is.
pub const DEVICE: &str = "/dev/fuse";

const MAGIC: u8 = 229;
// _IOR(229, 0, u32), _IOW(229, 1, struct fuse_backing_map), _IOW(229, 2, u32)
const CLONE: Opcode = opcode::read::<u32>(MAGIC, 0);
const BACKING_OPEN: Opcode = opcode::write::<BackingMap>(MAGIC, 1);
const BACKING_CLOSE: Opcode = opcode::write::<u32>(MAGIC, 2);

#[repr(C)]
#[derive(Clone, Copy)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// Opens the device: a session that is not mounted yet.
///
/// # Errors
/// `ENOENT` where there is none, `EACCES` where it is closed to this user, `ENODEV` where the kernel has no FUSE.
pub fn open() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// Joins `device`, freshly opened, to the mounted session of `session`: a second queue of replies, for another thread.
///
/// # Errors
/// `EINVAL` when `session` is not mounted or `device` already is; `ENOTTY` on kernels before 4.2.
pub fn clone(device: BorrowedFd<'_>, session: BorrowedFd<'_>) -> io::Result<()> {
    let number = session.as_raw_fd().cast_unsigned();
    // SAFETY: CLONE reads a u32, the number of an open descriptor, from the pointer; `Setter` passes one to a live u32.
    unsafe { ioctl(device, Setter::<CLONE, u32>::new(number)) }?;
    Ok(())
}

struct OpenBacking(BackingMap);

// SAFETY: BACKING_OPEN reads a `struct fuse_backing_map` from the pointer, which points to one that lives through the
// call, and writes nothing; what it returns is the number of the backing, or an errno.
unsafe impl rustix::ioctl::Ioctl for OpenBacking {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        BACKING_OPEN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(out: i32, _: *mut std::ffi::c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

/// Makes `file` known to the session as the one that reads and writes may be passed to; the number is what the answer
/// to an open names.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN in the initial user namespace; `ENOTTY` on kernels before 6.9; `EOPNOTSUPP` when the
/// session did not agree on passthrough.
pub fn open_backing(session: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<i32> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: `OpenBacking` describes the call rightly, as said there.
    Ok(unsafe { ioctl(session, OpenBacking(map)) }?)
}

/// Forgets what [`open_backing`] made known. Files that are open go on.
///
/// # Errors
/// `ENOENT` for a number that is not known.
pub fn close_backing(session: BorrowedFd<'_>, backing: i32) -> io::Result<()> {
    // SAFETY: BACKING_CLOSE reads a u32 from the pointer; `Setter` passes one to a live u32.
    unsafe { ioctl(session, Setter::<BACKING_CLOSE, u32>::new(backing.cast_unsigned())) }?;
    Ok(())
}
