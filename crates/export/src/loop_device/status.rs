//! What devices are bound to.
//!
//! ```text
//! /sys/block/loopN/           every user
//!   dev size ro diskseq
//!   queue/logical_block_size
//!   loop/                     only while it is bound
//!     backing_file offset sizelimit autoclear partscan dio
//! LOOP_GET_STATUS64           who may open the node: the same in one call, and device and inode of the file
//! ```

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use block::{Error, Result};
use sys::loop_device::{self as driver, Flags};

use super::Device;

/// What the kernel puts behind the name of a file that was deleted.
const DELETED: &[u8] = b" (deleted)";

/// A file, whatever its name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device that the file system is on.
    pub device: u64,
    /// The inode.
    pub inode: u64,
}

impl Identity {
    /// Of an open file.
    ///
    /// # Errors
    /// That of `fstat`.
    pub fn of(file: &File) -> Result<Self> {
        let metadata = file.metadata().map_err(|error| Error::io("examining the image", error))?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }

    fn at(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// What a device is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// N of `loopN`.
    pub number: u32,
    /// The file, as its name was when it was attached or renamed since; ends with ` (deleted)` when that is what
    /// happened to it.
    pub backing_file: PathBuf,
    /// Which file it really is; `None` for who may not open the device.
    pub identity: Option<Identity>,
    /// First byte of the file.
    pub offset: u64,
    /// At most this many bytes; 0: to the end.
    pub sizelimit: u64,
    /// Bytes of the device.
    pub size: u64,
    /// Whether it goes when its last user goes.
    pub autoclear: bool,
    /// Whether the kernel looks for partitions.
    pub partscan: bool,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether the file is accessed past the page cache.
    pub direct_io: bool,
    /// Logical block, bytes.
    pub block_size: u64,
    /// Counts each time that a disk of this machine was given new contents; tells a device from its successor.
    pub sequence: Option<u64>,
}

impl Status {
    /// The device.
    pub fn device(&self) -> Device {
        Device::new(self.number)
    }

    /// Whether the file has no name any more.
    pub fn is_deleted(&self) -> bool {
        self.backing_file.as_os_str().as_bytes().ends_with(DELETED) && !self.backing_file.exists()
    }

    /// The identity, or where that is not known, that of the file that has the name now.
    pub fn identity_or_path(&self) -> Option<Identity> {
        self.identity.or_else(|| Identity::at(&self.backing_file))
    }
}

/// The numbers of all devices, bound or not, in the order of the kernel's folder.
///
/// # Errors
/// That of reading `/sys/block`.
pub fn numbers() -> Result<Vec<u32>> {
    let failed = |error| Error::io("reading /sys/block", error);
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/sys/block").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_prefix("loop")?.parse::<u32>().ok()));
    }
    Ok(numbers)
}

/// All devices that are bound, by number.
///
/// # Errors
/// That of reading `/sys/block`. A device that is let go meanwhile is left out.
pub fn list() -> Result<Vec<Status>> {
    let mut numbers = numbers()?;
    numbers.sort_unstable();
    Ok(numbers.into_iter().filter_map(status).collect())
}

/// The devices that are bound to a file.
///
/// # Errors
/// That the file cannot be examined, and those of [`list`].
pub fn find(file: &Path) -> Result<Vec<Status>> {
    let metadata = std::fs::metadata(file).map_err(|error| Error::io(format!("{}", file.display()), error))?;
    let identity = Identity { device: metadata.dev(), inode: metadata.ino() };
    Ok(list()?.into_iter().filter(|status| status.identity_or_path() == Some(identity)).collect())
}

/// What a device is bound to; `None` when it is not bound.
pub fn status(number: u32) -> Option<Status> {
    let folder = Device::new(number).folder();
    let backing_file = backing_file(&folder)?;
    let number_in = |name: &str| -> Option<u64> {
        attribute(&folder.join(name), |text| std::str::from_utf8(text).ok()?.trim_ascii_end().parse().ok())
    };
    let flag = |name: &str| number_in(name) == Some(1);
    // The driver's own word is one call; the folder has a file for each.
    let bound = bound(number);
    let has = |what, name: &str| bound.map_or_else(|| flag(name), |info| info.flags().contains(what));
    let (offset, sizelimit) = match &bound {
        Some(info) => (info.offset, info.sizelimit),
        None => (number_in("loop/offset")?, number_in("loop/sizelimit")?),
    };
    Some(Status {
        number,
        backing_file,
        identity: bound.map(|info| Identity { device: info.device, inode: info.inode }),
        offset,
        sizelimit,
        size: number_in("size").unwrap_or(0).saturating_mul(512),
        autoclear: has(Flags::AUTOCLEAR, "loop/autoclear"),
        partscan: has(Flags::PARTSCAN, "loop/partscan"),
        read_only: flag("ro"),
        direct_io: has(Flags::DIRECT_IO, "loop/dio"),
        block_size: number_in("queue/logical_block_size").unwrap_or(512),
        sequence: number_in("diskseq"),
    })
}

/// What `read` makes of a file of sysfs, which is one page at the most and comes whole with the first read.
fn attribute<T>(path: &Path, read: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
    let mut page = [0; 4096];
    let len = File::open(path).ok()?.read(&mut page).ok()?;
    read(page.get(..len)?)
}

/// The name of the file, as sysfs has it.
fn backing_file(folder: &Path) -> Option<PathBuf> {
    attribute(&folder.join("loop/backing_file"), |name| {
        Some(PathBuf::from(OsStr::from_bytes(name.strip_suffix(b"\n").unwrap_or(name))))
    })
}

/// What the driver itself says; `None` for who may not open the device.
fn bound(number: u32) -> Option<driver::Info> {
    let open = File::open(Device::new(number).path()).ok()?;
    let info = driver::get_status(&open).ok()?;
    (info.number == number).then_some(info)
}
