//! The partitions of a block device, as the kernel holds them: `linux/blkpg.h`.
//!
//! ```text
//! blkpg_ioctl_arg            blkpg_partition, 152 bytes
//!   i32   op                   0  i64  start     bytes
//!   i32   flags, 0             8  i64  length    bytes
//!   i32   datalen             16  i32  number    from 1
//!   *mut  data                20  u8 × 64  devname, unused
//!                             84  u8 × 64  volname, unused
//! ```

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, c_ulong};
use rustix::io::{Errno, Result};

/// `_IO(0x12, 95)` of `linux/fs.h`.
const BLKRRPART: c_ulong = 0x125F;
/// `_IO(0x12, 105)`.
const BLKPG: c_ulong = 0x1269;
const BLKPG_ADD_PARTITION: c_int = 1;

#[repr(C)]
struct Argument {
    op: c_int,
    flags: c_int,
    datalen: c_int,
    data: *mut c_void,
}

#[repr(C)]
struct Partition {
    start: i64,
    length: i64,
    number: c_int,
    devname: [u8; 64],
    volname: [u8; 64],
}

const _: () = assert!(size_of::<Partition>() == 152);

/// Has the kernel read the partition table of a block device again.
///
/// # Errors
/// `INVAL` when the device has no partitions (partscan is off), `BUSY` while one of them is open.
pub fn reread(device: impl AsFd) -> Result<()> {
    // SAFETY: the request has no argument, and the descriptor is open.
    checked(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKRRPART as _, 0 as c_ulong) })
}

/// Adds partition `number`: `length` bytes from byte `start` on.
///
/// # Errors
/// `BUSY` when it overlaps another or the number is taken, `INVAL` when it does not lie inside the device in whole
/// blocks.
pub fn add(device: impl AsFd, number: u32, start: u64, length: u64) -> Result<()> {
    let number = c_int::try_from(number).map_err(|_| Errno::INVAL)?;
    let (start, length) = i64::try_from(start).ok().zip(i64::try_from(length).ok()).ok_or(Errno::INVAL)?;
    let mut partition = Partition { start, length, number, devname: [0; 64], volname: [0; 64] };
    let mut argument = Argument {
        op: BLKPG_ADD_PARTITION,
        flags: 0,
        datalen: size_of::<Partition>() as c_int,
        data: (&raw mut partition).cast(),
    };
    // SAFETY: the request reads a `blkpg_ioctl_arg` and the `blkpg_partition` that it points to; both live over the
    // call and have the layouts of the header.
    checked(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKPG as _, &raw mut argument) })
}

fn checked(returned: c_int) -> Result<()> {
    if returned < 0 { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)) } else { Ok(()) }
}
