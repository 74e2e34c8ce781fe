//! The kernel's loop driver: the calls of `/dev/loop-control` and of `/dev/loopN`.
//!
//! Documented in `loop(4)` and `linux/loop.h`. Integers have the byte order of the machine:
//!
//! ```text
//! loop_info64, 232 bytes                         loop_config, 304 bytes (Linux 5.8)
//!   0  u64  device         of the backing file     0  u32  fd           of the backing file
//!   8  u64  inode          of the backing file     4  u32  block_size   logical, bytes; 0: the driver decides
//!  16  u64  rdevice        where that is one       8  loop_info64
//!  24  u64  offset         bytes                 240  u64 × 8           reserved, 0
//!  32  u64  sizelimit      bytes, 0: to the end
//!  40  u32  number         N
//!  44  u32  encrypt_type   0
//!  48  u32  encrypt_key_size
//!  52  u32  flags          see Flags
//!  56  u8 × 64  file_name  a name for people, cut, ends with 0
//! 120  u8 × 64  crypt_name
//! 184  u8 × 32  encrypt_key
//! 216  u64 × 2  init
//! ```

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libc::{c_int, c_ulong};
use rustix::io::{Errno, Result};

const LOOP_SET_FD: c_ulong = 0x4C00;
const LOOP_CLR_FD: c_ulong = 0x4C01;
const LOOP_SET_STATUS64: c_ulong = 0x4C04;
const LOOP_GET_STATUS64: c_ulong = 0x4C05;
const LOOP_SET_CAPACITY: c_ulong = 0x4C07;
const LOOP_SET_DIRECT_IO: c_ulong = 0x4C08;
const LOOP_SET_BLOCK_SIZE: c_ulong = 0x4C09;
const LOOP_CONFIGURE: c_ulong = 0x4C0A;
const LOOP_CTL_ADD: c_ulong = 0x4C80;
const LOOP_CTL_REMOVE: c_ulong = 0x4C81;
const LOOP_CTL_GET_FREE: c_ulong = 0x4C82;

/// The flags of a loop device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u32);

impl Flags {
    /// Writes are refused.
    pub const READ_ONLY: Self = Self(1);
    /// The device lets its file go when the last opener closes it.
    pub const AUTOCLEAR: Self = Self(4);
    /// The kernel looks for partitions.
    pub const PARTSCAN: Self = Self(8);
    /// The file is read and written past the page cache.
    pub const DIRECT_IO: Self = Self(16);

    /// Whether all of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These, and `other` when `on`.
    pub fn with(self, other: Self, on: bool) -> Self {
        if on { Self(self.0 | other.0) } else { Self(self.0 & !other.0) }
    }
}

/// `loop_info64`: what a device is bound to. The fields keep their names without the prefix `lo_`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
#[expect(missing_docs, reason = "drawn in the documentation of the module")]
pub struct Info {
    pub device: u64,
    pub inode: u64,
    pub rdevice: u64,
    pub offset: u64,
    pub sizelimit: u64,
    pub number: u32,
    pub encrypt_type: u32,
    pub encrypt_key_size: u32,
    pub flags: u32,
    pub file_name: [u8; 64],
    pub crypt_name: [u8; 64],
    pub encrypt_key: [u8; 32],
    pub init: [u64; 2],
}

impl Info {
    /// All zero.
    pub const ZERO: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };

    /// The flags.
    pub fn flags(&self) -> Flags {
        Flags(self.flags)
    }

    /// Sets the name for people: the first 63 bytes of `name`.
    pub fn set_file_name(&mut self, name: &[u8]) {
        self.file_name = [0; 64];
        for (to, from) in self.file_name.iter_mut().take(63).zip(name) {
            *to = *from;
        }
    }

    /// The name for people, up to its 0.
    pub fn file_name(&self) -> &[u8] {
        self.file_name.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// `loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

/// One call whose argument is a number.
fn call(fd: BorrowedFd<'_>, request: c_ulong, argument: c_ulong) -> Result<c_int> {
    // SAFETY: each request that comes here takes a number, not a pointer, and `fd` is open.
    let returned = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument) };
    if returned < 0 { Err(last_errno()) } else { Ok(returned) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// A number from the kernel, which is not negative.
fn number(returned: c_int) -> Result<u32> {
    u32::try_from(returned).map_err(|_| Errno::RANGE)
}

/// The number of a device that is free now; one is made where there is none. `control` is `/dev/loop-control`.
///
/// # Errors
/// Those of `LOOP_CTL_GET_FREE`.
pub fn get_free(control: impl AsFd) -> Result<u32> {
    number(call(control.as_fd(), LOOP_CTL_GET_FREE, 0)?)
}

/// Makes device `number`, or one with a number that the kernel picks, and says which.
///
/// # Errors
/// `EXIST` where there is one; otherwise those of `LOOP_CTL_ADD`.
pub fn add(control: impl AsFd, number: Option<u32>) -> Result<u32> {
    let argument = match number {
        Some(number) => c_ulong::from(number),
        // The driver takes a signed number and picks one when it is negative.
        None => c_ulong::MAX,
    };
    self::number(call(control.as_fd(), LOOP_CTL_ADD, argument)?)
}

/// Removes device `number`.
///
/// # Errors
/// `BUSY` while it is bound or open; `NODEV` where there is none.
pub fn remove(control: impl AsFd, number: u32) -> Result<()> {
    call(control.as_fd(), LOOP_CTL_REMOVE, c_ulong::from(number)).map(drop)
}

/// Binds `device` to `file` in one step, with `info` (offset, sizelimit, flags, name) and a logical block of
/// `block_size` bytes, 0 for what the driver thinks best.
///
/// # Errors
/// `BUSY` when it is bound; `INVAL` or `NOTTY` of a kernel before 5.8; otherwise those of `LOOP_CONFIGURE`.
pub fn configure(device: impl AsFd, file: impl AsFd, block_size: u32, info: &Info) -> Result<()> {
    let fd = file.as_fd().as_raw_fd();
    let config = Config { fd: fd as u32, block_size, info: *info, reserved: [0; 8] };
    // SAFETY: the request reads a `loop_config`, whose layout `Config` has, through a pointer that lives over the call.
    let returned = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
    if returned < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Binds `device` to the whole of `file`.
///
/// # Errors
/// `BUSY` when it is bound; otherwise those of `LOOP_SET_FD`.
pub fn set_fd(device: impl AsFd, file: impl AsFd) -> Result<()> {
    call(device.as_fd(), LOOP_SET_FD, file.as_fd().as_raw_fd() as c_ulong).map(drop)
}

/// What `device` is bound to.
///
/// # Errors
/// `NXIO` when it is not bound.
pub fn get_status(device: impl AsFd) -> Result<Info> {
    let mut info = Info::ZERO;
    // SAFETY: the request fills a `loop_info64`, whose layout `Info` has and of which every bit pattern is valid.
    let returned = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) };
    if returned < 0 { Err(last_errno()) } else { Ok(info) }
}

/// Sets offset, sizelimit, name and the flags that may change (autoclear both ways; partscan on).
///
/// # Errors
/// `NXIO` when it is not bound, `AGAIN` while pages of the old range are dirty; those of `LOOP_SET_STATUS64`.
pub fn set_status(device: impl AsFd, info: &Info) -> Result<()> {
    // SAFETY: the request reads a `loop_info64`, whose layout `Info` has, through a pointer that lives over the call.
    let returned = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_SET_STATUS64 as _, std::ptr::from_ref(info)) };
    if returned < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Asks `device` to let its file go: when this succeeds, that happens at the latest when the last opener closes it,
/// which may be much later.
///
/// # Errors
/// `NXIO` when it is not bound.
pub fn clear_fd(device: impl AsFd) -> Result<()> {
    call(device.as_fd(), LOOP_CLR_FD, 0).map(drop)
}

/// Takes over the size that the file has now.
///
/// # Errors
/// `NXIO` when it is not bound.
pub fn set_capacity(device: impl AsFd) -> Result<()> {
    call(device.as_fd(), LOOP_SET_CAPACITY, 0).map(drop)
}

/// Switches direct I/O on or off.
///
/// # Errors
/// `INVAL` when the file, the offset or the block size does not allow it; `NXIO` when it is not bound.
pub fn set_direct_io(device: impl AsFd, on: bool) -> Result<()> {
    call(device.as_fd(), LOOP_SET_DIRECT_IO, c_ulong::from(on)).map(drop)
}

/// Sets the logical block, in bytes.
///
/// # Errors
/// `INVAL` for what is no block size, `AGAIN` while pages are dirty, `NXIO` when it is not bound.
pub fn set_block_size(device: impl AsFd, bytes: u64) -> Result<()> {
    call(device.as_fd(), LOOP_SET_BLOCK_SIZE, bytes as c_ulong).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_lie_where_the_kernel_reads_them() {
        assert_eq!(std::mem::offset_of!(Info, offset), 24);
        assert_eq!(std::mem::offset_of!(Info, number), 40);
        assert_eq!(std::mem::offset_of!(Info, flags), 52);
        assert_eq!(std::mem::offset_of!(Info, file_name), 56);
        assert_eq!(std::mem::offset_of!(Info, init), 216);
        assert_eq!(std::mem::offset_of!(Config, info), 8);
        assert_eq!(std::mem::offset_of!(Config, reserved), 240);
    }

    #[test]
    fn a_long_name_is_cut_and_still_ends() {
        let mut info = Info::ZERO;
        info.set_file_name(&[b'x'; 100]);
        assert_eq!(info.file_name().len(), 63);
        info.set_file_name(b"disk.img");
        assert_eq!(info.file_name(), b"disk.img");
    }

    #[test]
    fn what_is_no_loop_device_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(get_status(&null).unwrap_err(), Errno::NOTTY);
        assert_eq!(clear_fd(&null).unwrap_err(), Errno::NOTTY);
    }
}
