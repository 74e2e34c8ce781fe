//! One device, its node, and the driver's control node.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use block::{Error, Kind, Result};
use rustix::fs::{CWD, Dev, FileType, FlockOperation, Mode};
use sys::loop_device as driver;

/// Of every loop device.
const MAJOR: u32 = 7;
/// Of `/dev/loop-control`: a miscellaneous device with a minor of its own.
const CONTROL: (u32, u32) = (10, 237);
/// The most devices that a kernel can number: 20 bits.
pub const NUMBER_MAX: u32 = (1 << 20) - 1;

/// What to do where the driver is out of reach.
const ADVICE: &str = "run it as root, or attach in user space with `--user`";

/// A loop device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// N of `loopN`.
    pub number: u32,
    path: PathBuf,
}

impl Device {
    /// Device `number`, whose node is `/dev/loopN` or, on systems of old, `/dev/loop/N`.
    pub fn new(number: u32) -> Self {
        Self { number, path: PathBuf::from(format!("/dev/loop{number}")) }
    }

    /// The device that is meant by `/dev/loop3`, `loop3` or `3`, or by another node of it.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when there is no such file, [`Kind::Invalid`] when it is no loop device.
    pub fn named(name: &Path) -> Result<Self> {
        let text = name.to_str().unwrap_or_default();
        let short = text.strip_prefix("loop").unwrap_or(text);
        if !short.is_empty()
            && short.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(number @ 0..=NUMBER_MAX) = short.parse()
        {
            return Ok(Self::new(number));
        }
        let metadata = std::fs::metadata(name).map_err(|error| Error::io(format!("{}", name.display()), error))?;
        if !metadata.file_type().is_block_device() || rustix::fs::major(metadata.rdev()) != MAJOR {
            return Err(Error::new(Kind::Invalid, format!("{} is no loop device", name.display())));
        }
        Ok(Self { number: rustix::fs::minor(metadata.rdev()), path: name.to_owned() })
    }

    /// The node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the kernel describes it.
    pub fn folder(&self) -> PathBuf {
        PathBuf::from(format!("/sys/block/loop{}", self.number))
    }

    /// Opens device `number`; makes its node where `/dev` lacks it (a container's).
    ///
    /// # Errors
    /// [`Kind::NoDevice`] when there is no such device, [`Kind::Denied`] and [`Kind::NotPermitted`] for who may not.
    pub fn open(number: u32, read_only: bool) -> Result<(Self, File)> {
        let device = Self::new(number);
        let open = || OpenOptions::new().read(true).write(!read_only).open(&device.path);
        let opened = match open() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if !device.folder().exists() {
                    return Err(Error::new(Kind::NoDevice, format!("no {}", device.path.display())));
                }
                make_node(&device.path, FileType::BlockDevice, rustix::fs::makedev(MAJOR, number))?;
                open()
            }
            opened => opened,
        };
        let file = opened.map_err(|error| advised(&device.path, error))?;
        let rdev = file.metadata().map_err(|error| advised(&device.path, error))?.rdev();
        if rdev != rustix::fs::makedev(MAJOR, number) {
            let message = format!("{} is not loop device {number}: remove that node", device.path.display());
            return Err(Error::new(Kind::Invalid, message));
        }
        Ok((device, file))
    }
}

/// An error of opening a node, with what to do.
fn advised(path: &Path, error: std::io::Error) -> Error {
    let kind = Kind::from_errno(error.raw_os_error().unwrap_or_default());
    let name = path.display();
    let context = match kind {
        Kind::Denied => format!("opening {name} ({ADVICE})"),
        Kind::NotPermitted => {
            format!(
                "opening {name} (the container may not use loop devices: give it them with `--privileged`, or {ADVICE})"
            )
        }
        _ => format!("opening {name}"),
    };
    Error::io(context, error)
}

/// Makes a node. That somebody else made it meanwhile is fine.
pub(crate) fn make_node(path: &Path, kind: FileType, dev: Dev) -> Result<()> {
    match rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o660), dev) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(Error::io(format!("making the node {} that /dev lacks ({ADVICE})", path.display()), error)),
    }
}

/// The driver's control node, or none where a container has device nodes without it.
#[derive(Debug)]
pub struct Control(Option<File>);

impl Control {
    /// Opens `/dev/loop-control`, making it where `/dev` lacks it and the kernel has the driver.
    ///
    /// # Errors
    /// [`Kind::NoDevice`] when the kernel has no loop driver, [`Kind::Denied`] and [`Kind::NotPermitted`] for who may
    /// not use it.
    pub fn open() -> Result<Self> {
        let path = Path::new("/dev/loop-control");
        let open = || OpenOptions::new().read(true).write(true).open(path);
        let opened = match open() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if !Path::new("/sys/class/misc/loop-control").exists() && !has_nodes() {
                    let message =
                        "the kernel has no loop driver (`modprobe loop` loads it); `--user` attaches without one";
                    return Err(Error::new(Kind::NoDevice, message));
                }
                match make_node(path, FileType::CharacterDevice, rustix::fs::makedev(CONTROL.0, CONTROL.1)) {
                    Ok(()) => open(),
                    Err(_) if has_nodes() => return Ok(Self(None)),
                    Err(error) => return Err(error),
                }
            }
            opened => opened,
        };
        match opened {
            Ok(file) => Ok(Self(Some(file))),
            // The device cgroup of a container gives loop devices one by one.
            Err(error) if error.raw_os_error() == Some(1) && has_nodes() => Ok(Self(None)),
            Err(error) => Err(advised(path, error)),
        }
    }

    /// Waits until nobody else holds the lock, and takes it until this is dropped.
    pub(super) fn lock(&self) -> Result<()> {
        let Some(file) = &self.0 else { return Ok(()) };
        rustix::io::retry_on_intr(|| rustix::fs::flock(file, FlockOperation::LockExclusive))
            .map_err(|error| Error::io("locking /dev/loop-control", error))
    }

    /// Removes a device that is not in use, and with it its node.
    ///
    /// # Errors
    /// [`Kind::Busy`] while it is bound or open, [`Kind::NoDevice`] when there is none.
    pub fn remove(&self, number: u32) -> Result<()> {
        let file = self.0.as_ref().ok_or_else(|| Error::new(Kind::NoDevice, "no /dev/loop-control"))?;
        driver::remove(file, number).map_err(|error| Error::io(format!("removing loop device {number}"), error))
    }

    pub(super) fn candidates(&self) -> Result<Candidates<'_>> {
        match &self.0 {
            Some(file) => Ok(Candidates::Driver { file, fresh: false }),
            None => Ok(Candidates::Nodes(nodes().into_iter())),
        }
    }
}

/// The numbers of the nodes in `/dev`, smallest first.
fn nodes() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/dev") else { return Vec::new() };
    let mut numbers: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("loop")?.parse().ok())
        .filter(|number| *number <= NUMBER_MAX)
        .collect();
    numbers.sort_unstable();
    numbers
}

fn has_nodes() -> bool {
    !nodes().is_empty()
}

/// Where the next device to try comes from.
pub(super) enum Candidates<'a> {
    /// The driver names one; `fresh` asks it for a new one.
    Driver { file: &'a File, fresh: bool },
    /// The nodes that a container was given.
    Nodes(std::vec::IntoIter<u32>),
}

impl Candidates<'_> {
    pub(super) fn next_free(&mut self) -> Result<Option<u32>> {
        match self {
            Self::Driver { file, fresh } => {
                let named = if *fresh { driver::add(*file, None) } else { driver::get_free(*file) };
                named.map(Some).map_err(|error| Error::io("asking for a free loop device", error))
            }
            Self::Nodes(numbers) => Ok(numbers.next()),
        }
    }

    /// The last one was refused; `held` when it is free all the same.
    pub(super) fn refused(&mut self, held: bool) {
        if let Self::Driver { fresh, .. } = self {
            *fresh = held;
        }
    }
}
