//! The nodes of the driver: who may open them, and where /dev lacks them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use block::{Error, Kind, Result};
use rustix::fs::{Access, CWD, FileType, accessat, inotify};
use rustix::io::Errno;
use sys::ublk::{CONTROL, Control, flag};

use crate::loop_device::{dev_in, make_node, wait_until};
use crate::user;

/// How long udev may take to give a user the nodes of its device.
const UDEV_WAIT_MAX: Duration = Duration::from_secs(5);
/// What lets users have disks of their own.
const RULES: &str = "as root, or let users have it by udev's rules for ublk";

/// The node of a disk.
pub fn disk(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{number}"))
}

/// Where the kernel describes a disk.
pub fn folder(number: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/ublkb{number}"))
}

/// Opens the driver, for a device of root's or, with [`flag::UNPRIVILEGED`], of another user's: with the flags that the
/// device is to have.
///
/// # Errors
/// [`Kind::NoDevice`] where the kernel has no driver; [`Kind::Denied`] and [`Kind::NotPermitted`] for who may not use
/// it: each with what would change it.
pub fn control() -> Result<(Control, u64)> {
    let control = open()?;
    if user::is_root() {
        return Ok((control, 0));
    }
    if control.features() & flag::UNPRIVILEGED == 0 {
        let context = format!("{CONTROL}: this kernel makes disks for root alone");
        return Err(Error::new(Kind::NotPermitted, context));
    }
    Ok((control, flag::UNPRIVILEGED))
}

/// Whether there can be disks here.
///
/// # Errors
/// What is missing.
pub fn available() -> Result<()> {
    control().map(drop)
}

fn open() -> Result<Control> {
    let described = Path::new("/sys/class/misc/ublk-control");
    if !Path::new(CONTROL).exists()
        && let Some(dev) = dev_in(described)
    {
        // A container's /dev: where it cannot be made, opening it says why.
        let _ = make_node(Path::new(CONTROL), FileType::CharacterDevice, dev);
    }
    Control::open().map_err(|error| {
        let kind = Kind::from_errno(error.raw_os_error().unwrap_or_default());
        match error.kind() {
            ErrorKind::NotFound if !described.exists() => {
                Error::new(Kind::NoDevice, format!("no {CONTROL}: the driver is missing (as root: modprobe ublk_drv)"))
            }
            ErrorKind::PermissionDenied if sys::io_uring::probe().is_err() => {
                let context = "disks of the kernel need io_uring, which is shut off (as root: sysctl \
                               kernel.io_uring_disabled=0)";
                Error::new(kind, context)
            }
            ErrorKind::PermissionDenied => Error::new(kind, format!("{CONTROL} may not be opened ({RULES})")),
            _ => Error::io(format!("opening {CONTROL}"), error),
        }
    })
}

/// Waits until a node of a device can be opened for reading and writing; makes it where /dev lacks it, as the kernel
/// describes it in `described`.
///
/// # Errors
/// [`Kind::Denied`] when it could not in time.
pub fn ready(node: &Path, described: &Path, kind: FileType) -> Result<()> {
    let usable = || accessat(CWD, node, Access::READ_OK | Access::WRITE_OK, rustix::fs::AtFlags::EACCESS);
    if user::is_root()
        && usable() == Err(Errno::NOENT)
        && let Some(dev) = dev_in(described)
    {
        return make_node(node, kind, dev);
    }
    let changes = inotify::WatchFlags::CREATE | inotify::WatchFlags::ATTRIB | inotify::WatchFlags::MOVED_TO;
    // A disk that is only read gives a user no right to write.
    let done = || !matches!(usable(), Err(Errno::NOENT | Errno::ACCESS | Errno::PERM));
    match wait_until("/dev", changes, UDEV_WAIT_MAX, done) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::new(Kind::Denied, format!("{} was not given to this user ({RULES})", node.display()))),
        Err(errno) => Err(Error::io("watching /dev", errno)),
    }
}
