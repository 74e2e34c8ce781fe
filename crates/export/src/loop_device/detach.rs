//! Letting go of an image, and knowing whether that happened.
//!
//! `LOOP_CLR_FD` says yes to a device that is in use: it only marks it to be cleared when the last user closes it. So
//! the device is looked at again, and a yes that did nothing becomes a "busy" that names the users.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use block::{Error, Kind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Dev, inotify};
use rustix::io::Errno;
use sys::loop_device::{self as driver, Flags};
use sys::process::Process;

use super::{Device, partitions, status};
use crate::mount_table;

/// How long programs that only look at new and changed disks (udev, blkid, a `list`) are waited for.
pub(crate) const LOOKERS_WAIT_MAX: Duration = Duration::from_secs(2);

/// The most users that are told.
const USERS_MAX: usize = 64;

/// What became of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detached {
    /// It is free.
    Now,
    /// It will be, when these are done with it.
    WhenReleased(Vec<User>),
}

/// Somebody who uses a device or one of its partitions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum User {
    /// It is mounted there.
    Mount(PathBuf),
    /// The kernel swaps to it.
    Swap(PathBuf),
    /// Another device is made of it.
    Holder(String),
    /// A process has it open.
    Process {
        /// Its number.
        pid: u32,
        /// Its name.
        name: String,
    },
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount(folder) => write!(f, "mounted on {}", folder.display()),
            Self::Swap(node) => write!(f, "swap on {}", node.display()),
            Self::Holder(name) => write!(f, "part of {name}"),
            Self::Process { pid, name } => write!(f, "open in process {pid} ({name})"),
        }
    }
}

/// Detaches a device. Where it is in use it stays as it is, and the error names the users; with `lazy` it goes when
/// they are done.
///
/// # Errors
/// [`Kind::NotFound`] when nothing is attached, [`Kind::Busy`] while it is in use, and who may not.
pub fn detach(device: &Device, lazy: bool) -> Result<Detached> {
    let name = device.path().display();
    let not_attached = || Error::new(Kind::NotFound, format!("nothing is attached at {name}"));
    let before = status(device.number);
    let partitions = partitions::found(&device.folder());
    let open = open(device)?;
    match driver::clear_fd(&open) {
        Ok(()) => {}
        Err(Errno::NXIO) => return Err(not_attached()),
        Err(error) => return Err(Error::io(format!("detaching {name}"), error)),
    }
    // The driver clears it when the last opener closes it: that may be us.
    drop(open);
    let sequence = before.as_ref().and_then(|status| status.sequence);
    let gone = || !is_bound(device, sequence);
    if !gone() {
        let mut users = self::users(device);
        let lookers_only = users.iter().all(|user| matches!(user, User::Process { .. }));
        let closed = inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::CLOSE_NOWRITE;
        if !lookers_only || !wait_until(device.path(), closed, LOOKERS_WAIT_MAX, gone).unwrap_or_else(|_| gone()) {
            if lazy {
                return Ok(Detached::WhenReleased(self::users(device)));
            }
            if stay(device, before.is_some_and(|status| status.autoclear), sequence)? {
                users.extend(self::users(device));
                return Err(Error::new(Kind::Busy, format!("{name} is in use: {}", sentence(users))));
            }
        }
    }
    partitions::remove_stale_nodes(&partitions);
    Ok(Detached::Now)
}

fn open(device: &Device) -> Result<File> {
    if device.path() == Device::new(device.number).path() {
        return Device::open(device.number, true).map(|(_, file)| file);
    }
    File::open(device.path()).map_err(|error| Error::io(format!("opening {}", device.path().display()), error))
}

/// Whether it is still bound to what it was bound to, and not to something new. It is not opened for that: closing it
/// again would be an event for who waits for one.
fn is_bound(device: &Device, sequence: Option<u64>) -> bool {
    let now = std::fs::read_to_string(device.folder().join("diskseq")).ok().and_then(|text| text.trim().parse().ok());
    device.folder().join("loop/backing_file").exists() && (sequence.is_none() || now.is_none() || now == sequence)
}

/// Takes the mark back that `LOOP_CLR_FD` left, and says whether the device is still bound.
fn stay(device: &Device, autoclear: bool, sequence: Option<u64>) -> Result<bool> {
    let open = open(device)?;
    let Ok(mut info) = driver::get_status(&open) else { return Ok(false) };
    // While it is open here it cannot become another.
    if !is_bound(device, sequence) {
        return Ok(false);
    }
    info.flags = info.flags().with(Flags::AUTOCLEAR, autoclear).0;
    for _ in 0..super::ATTEMPTS_MAX {
        match driver::set_status(&open, &info) {
            Err(Errno::AGAIN) => {}
            Err(error) => {
                let message = format!("{} goes when its users do: unmarking it", device.path().display());
                return Err(Error::io(message, error));
            }
            Ok(()) => break,
        }
    }
    Ok(true)
}

/// The users as a part of a sentence.
pub(crate) fn sentence(users: Vec<User>) -> String {
    let mut seen = HashSet::new();
    let words: Vec<String> =
        users.into_iter().filter(|user| seen.insert(user.clone())).map(|u| u.to_string()).collect();
    if words.is_empty() { "by a process that this user may not see".to_owned() } else { words.join(", ") }
}

/// Who uses a device or one of its partitions, as far as the caller may see. At most 64.
pub fn users(device: &Device) -> Vec<User> {
    users_of(&device.folder())
}

/// The same of any disk, by its folder in `/sys/block`.
pub fn users_of(disk: &Path) -> Vec<User> {
    let mut devs: HashSet<Dev> = partitions::dev_in(disk).into_iter().collect();
    let mut folders = vec![disk.to_owned()];
    for partition in partitions::found(disk) {
        devs.insert(partition.dev);
        folders.push(disk.join(partition.path.file_name().unwrap_or_default()));
    }
    let mut users: Vec<User> = mounts(&devs).into_iter().map(User::Mount).collect();
    for line in std::fs::read_to_string("/proc/swaps").unwrap_or_default().lines().skip(1) {
        let node = Path::new(line.split_whitespace().next().unwrap_or_default());
        if partitions::dev_of(node).is_some_and(|dev| devs.contains(&dev)) {
            users.push(User::Swap(node.to_owned()));
        }
    }
    for entry in folders.iter().filter_map(|folder| std::fs::read_dir(folder.join("holders")).ok()).flatten().flatten()
    {
        users.push(User::Holder(entry.file_name().to_string_lossy().into_owned()));
    }
    for other in super::list().unwrap_or_default() {
        if partitions::dev_of(&other.backing_file).is_some_and(|dev| devs.contains(&dev)) {
            users.push(User::Holder(format!("loop{}", other.number)));
        }
    }
    users.extend(processes(&devs));
    users.truncate(USERS_MAX);
    users
}

/// Where these devices are mounted, in any mount namespace that the caller may see.
fn mounts(devs: &HashSet<Dev>) -> Vec<PathBuf> {
    let mut namespaces = HashSet::new();
    let mut folders = Vec::new();
    let own = PathBuf::from("/proc/self");
    for process in std::iter::once(own).chain(Process::all().map(|process| process.folder)) {
        let namespace = std::fs::metadata(process.join("ns/mnt")).map(|metadata| metadata.ino());
        if !namespace.is_ok_and(|namespace| namespaces.insert(namespace)) {
            continue;
        }
        for mounted in mount_table::of(&process).unwrap_or_default() {
            let dev = match rustix::fs::major(mounted.device) {
                // btrfs has a device number of its own; the name of the source helps there.
                0 => partitions::dev_of(Path::new(&mounted.source)),
                _ => Some(mounted.device),
            };
            if dev.is_some_and(|dev| devs.contains(&dev)) {
                folders.push(mounted.point);
            }
        }
    }
    folders.sort();
    folders.dedup();
    folders
}

/// The processes that have one of these devices open.
fn processes(devs: &HashSet<Dev>) -> Vec<User> {
    Process::all()
        .filter(|process| process.pid != std::process::id())
        .filter(|process| process.files().any(|file| partitions::dev_of(&file).is_some_and(|dev| devs.contains(&dev))))
        .map(|process| User::Process { pid: process.pid, name: process.name() })
        .collect()
}

/// Waits until `done`, looking again at each event on `path`, for at most `longest`. Says whether it is done.
pub(crate) fn wait_until(
    path: impl rustix::path::Arg,
    events: inotify::WatchFlags,
    longest: Duration,
    mut done: impl FnMut() -> bool,
) -> rustix::io::Result<bool> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, path, events)?;
    let end = Instant::now() + longest;
    let mut buffer = [const { std::mem::MaybeUninit::uninit() }; 4096];
    loop {
        if done() {
            return Ok(true);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let mut reader = inotify::Reader::new(&watch, &mut buffer);
        while reader.next().is_ok() {}
    }
}
