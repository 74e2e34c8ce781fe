//! A loop device as losetup speaks of it: by the node that it was named by, with what sysfs and the driver say.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

use rustix::io::Errno;
use sys::loop_device::{self as driver, Info};

/// The major number of loop devices.
const MAJOR: u32 = 7;

/// A node that is a loop device's.
#[derive(Debug)]
pub struct Device {
    /// As it is printed.
    pub path: PathBuf,
    /// Its device number.
    rdev: u64,
    /// `/sys/dev/block/MAJOR:MINOR`.
    folder: PathBuf,
}

/// The errno of an error.
pub fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// The node that is meant: names that do not begin at the root are those of `/dev`.
pub fn node(name: &OsStr) -> PathBuf {
    PathBuf::from("/dev").join(name)
}

impl Device {
    /// The one of this name.
    pub fn named(name: &OsStr) -> Result<Self, Errno> {
        let metadata = std::fs::metadata(name).map_err(|_| Errno::NODEV)?;
        let rdev = metadata.rdev();
        if !metadata.file_type().is_block_device() || rustix::fs::major(rdev) != MAJOR {
            return Err(Errno::NODEV);
        }
        let path =
            if name.as_bytes().starts_with(b"/") { PathBuf::from(name) } else { PathBuf::from("/dev").join(name) };
        let folder = PathBuf::from(format!("/sys/dev/block/{MAJOR}:{}", rustix::fs::minor(rdev)));
        Ok(Self { path, rdev, folder })
    }

    /// Those that are bound and have a node, in the order of the kernel's folder.
    pub fn used() -> impl Iterator<Item = Self> {
        let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
        entries.filter_map(|entry| {
            let name = entry.file_name();
            name.as_bytes().strip_prefix(b"loop")?;
            let bound = entry.path().join("loop/backing_file").exists();
            bound.then(|| Self::named(PathBuf::from("/dev").join(&name).as_os_str()).ok()).flatten()
        })
    }

    /// Opens the node.
    pub fn open(&self, write: bool) -> Result<File, Errno> {
        File::options().read(true).write(write).open(&self.path).map_err(|error| errno(&error))
    }

    /// What the driver says.
    pub fn info(&self) -> Result<Info, Errno> {
        driver::get_status(self.open(false)?)
    }

    /// The bytes of an attribute, without the line feed.
    fn attribute(&self, name: &str) -> Option<Vec<u8>> {
        let mut bytes = std::fs::read(self.folder.join(name)).ok()?;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        Some(bytes)
    }

    /// A number of an attribute.
    pub fn number(&self, name: &str) -> Option<u64> {
        std::str::from_utf8(&self.attribute(name)?).ok()?.parse().ok()
    }

    /// The name of the file.
    pub fn backing_file(&self) -> Option<OsString> {
        self.attribute("loop/backing_file").map(OsString::from_vec)
    }

    /// The offset; of a device that is not bound, none.
    pub fn offset(&self) -> Option<u64> {
        self.number("loop/offset")
    }

    /// The limit; of a device that is not bound, none.
    pub fn sizelimit(&self) -> Option<u64> {
        self.number("loop/sizelimit")
    }

    /// Major and minor number.
    pub fn numbers(&self) -> (u32, u32) {
        (rustix::fs::major(self.rdev), rustix::fs::minor(self.rdev))
    }

    /// Whether its file is the one with this device and inode, or where the driver does not tell, with this name.
    pub fn is_bound_to(&self, file: Option<(u64, u64)>, name: &OsStr) -> bool {
        match self.info() {
            Ok(info) => file == Some((info.device, info.inode)),
            Err(_) => self.backing_file().is_some_and(|bound| bound == name),
        }
    }
}
