//! What loopbox holds on this machine, for one user, and the cleaning up after a process that died.
//!
//! ```text
//! $XDG_RUNTIME_DIR/loopbox/        mode 0700
//!   lock                           held for the moment of each change
//!   3.json                         one holding; locked (flock) by the process that serves it, for as long as it lives
//!   run-77.json                    what process 77 runs, serves or plays; locked in the same way
//!   3.stats, run-77.stats          sockets where they are asked what they did
//!   loop3/                         where the disk of holding 3 is mounted: loop3/loop3, loop3/loop3p1 …
//! ```
//! A file whose lock is free belongs to a process that is dead: whoever comes next unmounts what it left and removes
//! the file. A process that ends well writes its [`Outcome`] into the file first, so that whoever waits for the lock
//! knows whether all that was written is safe.

pub mod folder;
mod process;

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use block::{Error, Kind, Result, ResultExt as _};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::fuse::{self, Unmount};
use crate::loop_device::{self, Device};
use crate::mount_table;

pub use process::{Place, Process, Working};

/// Most holdings of one user.
pub const HOLDINGS_MAX: u32 = 65536;
/// Most bytes of one file of the registry.
const ENTRY_BYTES_MAX: u64 = 64 << 10;

/// What is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Use {
    /// A disk as a node: `loopbox attach`.
    Disk,
    /// A file system, mounted in user space: `loopbox mount`.
    Directory,
    /// A disk as a loop device of the kernel: `loopbox attach` by root.
    Loop,
    /// A file system, mounted by the kernel from a loop device: `loopbox mount` by root.
    Kernel,
}

impl Use {
    /// Whether the kernel serves it, rather than a process.
    fn by_kernel(self) -> bool {
        matches!(self, Self::Loop | Self::Kernel)
    }
}

/// An image: the file, however it is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// By the name under which it was opened, absolute.
    pub path: PathBuf,
    /// The file system that it is on.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

impl Image {
    /// The image at `path`.
    ///
    /// # Errors
    /// That of asking for its inode.
    pub fn at(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).context(|| path.display().to_string())?;
        let path = std::path::absolute(path).context(|| path.display().to_string())?;
        Ok(Self { path, device: metadata.dev(), inode: metadata.ino() })
    }
}

/// Something that loopbox holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Its number in the registry.
    pub number: u32,
    /// What it is.
    #[serde(rename = "use")]
    pub used_as: Use,
    /// Of what.
    pub image: Image,
    /// The spec as typed.
    pub spec: String,
    /// Whether nobody writes.
    pub read_only: bool,
    /// First byte of the image, where it is a part of it.
    pub offset: u64,
    /// Bytes, where it is a part of it; 0 means all.
    pub sizelimit: u64,
    /// Size of the disk, bytes.
    pub size: u64,
    /// Logical block of the disk, bytes.
    pub block: u32,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Of a disk: the node. Of a loop device, or a mount of one: that.
    pub node: Option<PathBuf>,
    /// The process that serves it; 0 for the kernel.
    pub pid: i32,
    /// When it began, seconds since 1970.
    pub since: u64,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// How a holding ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All that was written is safe.
    Safe,
    /// It is not, for this reason.
    Failed(String),
}

/// What is to be held.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What as.
    pub used_as: Use,
    /// Of what.
    pub image: Image,
    /// The spec as typed.
    pub spec: String,
    /// Whether nobody writes.
    pub read_only: bool,
    /// First byte of the image, where it is a part of it.
    pub offset: u64,
    /// Bytes, where it is a part of it; 0 means all.
    pub sizelimit: u64,
    /// Size of the disk, bytes.
    pub size: u64,
    /// Logical block of the disk, bytes.
    pub block: u32,
    /// Where it is mounted; of a disk the registry says it.
    pub point: Option<PathBuf>,
    /// The loop device, where the kernel serves it.
    pub node: Option<PathBuf>,
}

/// The registry of one user.
#[derive(Debug, Clone)]
pub struct Registry {
    folder: PathBuf,
}

/// A holding of this process: others see that it lives.
#[derive(Debug)]
pub struct Held {
    registry: Registry,
    holding: Holding,
    file: File,
}

impl Registry {
    /// That of the calling user.
    ///
    /// # Errors
    /// `Denied` when the folder is not this user's alone; that of making it.
    pub fn of_user() -> Result<Self> {
        Ok(Self { folder: folder::of_user()? })
    }

    /// The one in `folder`, which is there.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// All that is held, by number, after cleaning away what dead processes left.
    ///
    /// # Errors
    /// That of reading the folder.
    pub fn list(&self) -> Result<Vec<Holding>> {
        let _lock = self.lock()?;
        self.sweep()
    }

    /// The holding that is mounted at `point`, or whose node is that.
    ///
    /// # Errors
    /// As [`Registry::list`].
    pub fn find(&self, point: &Path) -> Result<Option<Holding>> {
        let is_it = |holding: &Holding| {
            holding.point == point || (holding.used_as == Use::Disk && holding.node.as_deref() == Some(point))
        };
        Ok(self.list()?.into_iter().rfind(is_it))
    }

    /// That `image` may be held, by one who reads only or one who also writes.
    ///
    /// # Errors
    /// `Busy`, naming where it is held already, when one of the two writes.
    pub fn refuse_second(&self, image: &Image, used_as: Use, read_only: bool) -> Result<()> {
        refuse(&self.list()?, image, used_as, read_only)
    }

    /// Takes a number, and with it, for a disk, a place to mount it.
    ///
    /// # Errors
    /// `Busy` when the image is held already and one of the two writes; `Limit`; that of the folder.
    pub fn add(&self, wanted: Wanted) -> Result<Held> {
        let _lock = self.lock()?;
        let holdings = self.sweep()?;
        refuse(&holdings, &wanted.image, wanted.used_as, wanted.read_only)?;
        let taken = |number: &u32| holdings.iter().any(|holding| holding.number == *number);
        let Some(number) = (0..HOLDINGS_MAX).find(|number| !taken(number)) else {
            return Err(Error::new(Kind::Limit, format!("{HOLDINGS_MAX} holdings of one user")));
        };
        let (point, node) = match wanted.used_as {
            Use::Disk => {
                let point = self.folder.join(format!("loop{number}"));
                let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&point);
                made.context(|| format!("folder {}", point.display()))?;
                let node = point.join(format!("loop{number}"));
                (point, Some(node))
            }
            _ => (wanted.point.unwrap_or_default(), wanted.node),
        };
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        let holding = Holding {
            number,
            used_as: wanted.used_as,
            image: wanted.image,
            spec: wanted.spec,
            read_only: wanted.read_only,
            offset: wanted.offset,
            sizelimit: wanted.sizelimit,
            size: wanted.size,
            block: wanted.block,
            point,
            node,
            pid: if wanted.used_as.by_kernel() { 0 } else { Pid::as_raw(Some(getpid())) },
            since,
            outcome: None,
        };
        let file = self.write(&holding)?;
        Ok(Held { registry: self.clone(), holding, file })
    }

    /// Unmounts a holding, and waits until its process has made everything durable and is gone.
    ///
    /// With [`Unmount::Lazy`] it goes out of sight at once, and its process ends with its last user: that is not waited
    /// for.
    ///
    /// # Errors
    /// `Busy`, naming who uses it; `Io` when its process failed to make everything durable, or died.
    pub fn release(&self, holding: &Holding, how: Unmount) -> Result<()> {
        let entry = self.entry(holding.number);
        if holding.used_as == Use::Loop {
            if let Some(node) = &holding.node {
                loop_device::detach(&Device::named(node)?, how == Unmount::Lazy)?;
            }
            let _lock = self.lock()?;
            return remove_file(&entry);
        }
        let mut file = match File::open(&entry) {
            Ok(file) => file,
            // It ended meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io(entry.display().to_string(), error)),
        };
        let top = mount_table::at(&holding.point)?;
        if top.as_ref().is_some_and(|top| !holding.used_as.by_kernel() && top.kind != fuse::KIND) {
            let context = format!("{}: something else is mounted over it", holding.point.display());
            return Err(Error::new(Kind::Busy, context));
        }
        let exit = exit_of(holding.pid, &file);
        if top.is_some() {
            fuse::unmount(&holding.point, how)?;
        } else if let Some(pid) = Pid::from_raw(holding.pid).filter(|_| holding.used_as != Use::Kernel) {
            // It is mounted where this process cannot see it (another mount namespace), or not yet, or no more.
            match kill_process(pid, Signal::TERM) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(os) => return Err(Error::io(format!("asking process {} to end", holding.pid), os)),
            }
        }
        if holding.used_as == Use::Kernel {
            let _lock = self.lock()?;
            return remove_file(&entry);
        }
        if how == Unmount::Lazy {
            return Ok(());
        }
        blocking(&file, FlockOperation::LockShared).context(|| "waiting for the process that serves it")?;
        wait_for_exit(exit);
        let ended = read_entry(&mut file)?;
        match ended.outcome {
            Some(Outcome::Safe) => Ok(()),
            Some(Outcome::Failed(why)) => Err(Error::new(Kind::Io, format!("{}: {why}", ended.image.path.display()))),
            // It was only just handed over to the process that serves it, with a record of its own.
            None if self.list()?.iter().any(|other| other.number == ended.number && other.image == ended.image) => {
                self.release(&ended, how)
            }
            None => {
                let context =
                    format!("the process that served {} died before it had flushed", ended.image.path.display());
                Err(Error::new(Kind::Io, context))
            }
        }
    }

    /// Where a holding is asked what was done through it: see [`crate::counters`].
    pub fn stats(&self, number: u32) -> PathBuf {
        self.folder.join(format!("{number}.stats"))
    }

    fn entry(&self, number: u32) -> PathBuf {
        self.folder.join(format!("{number}.json"))
    }

    /// The lock on the whole registry, until it is dropped.
    fn lock(&self) -> Result<File> {
        let path = self.folder.join("lock");
        let context = || format!("lock of the registry, {}", path.display());
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .context(context)?;
        blocking(&file, FlockOperation::LockExclusive).context(context)?;
        Ok(file)
    }

    /// Cleans up after dead processes, and returns what is alive. Under the lock.
    fn sweep(&self) -> Result<Vec<Holding>> {
        let context = || format!("registry {}", self.folder.display());
        let mut alive = Vec::new();
        for entry in std::fs::read_dir(&self.folder).context(context)? {
            let path = entry.context(context)?.path();
            let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json")?.parse::<u32>().ok());
            let Some(number) = number else { continue };
            let mut file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io(path.display().to_string(), error)),
            };
            let holding = read_entry(&mut file);
            let lives = match &holding {
                Ok(holding) if holding.used_as == Use::Loop => is_attached(holding),
                Ok(holding) if holding.used_as == Use::Kernel => mount_table::at(&holding.point)?
                    .is_some_and(|mounted| Some(Path::new(&mounted.source)) == holding.node.as_deref()),
                _ => matches!(flock(&file, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK)),
            };
            match holding {
                Ok(holding) if lives => alive.push(holding),
                // Locked, so somebody's, and not to be understood: another version of loopbox.
                Err(_) if lives => {}
                Ok(holding) => self.clean(&holding)?,
                Err(_) => {
                    self.clean_place(&self.folder.join(format!("loop{number}")));
                    remove_file(&path)?;
                }
            }
        }
        alive.sort_by_key(|holding| holding.number);
        Ok(alive)
    }

    /// Takes away what a dead process left.
    fn clean(&self, holding: &Holding) -> Result<()> {
        if !holding.used_as.by_kernel() {
            unmount_dead(&holding.point);
        }
        if holding.used_as == Use::Disk {
            self.clean_place(&holding.point);
        }
        remove_file(&self.stats(holding.number))?;
        remove_file(&self.entry(holding.number))
    }

    /// Removes a folder of the registry, if it is empty.
    fn clean_place(&self, point: &Path) {
        unmount_dead(point);
        if point.parent() == Some(&self.folder) {
            let _ = std::fs::remove_dir(point);
        }
    }

    /// Writes the file of a holding, at once and locked by whoever has the returned file. Under the lock.
    fn write(&self, holding: &Holding) -> Result<File> {
        let path = self.entry(holding.number);
        let fresh = self.folder.join(format!(".{}.json", holding.number));
        let context = || path.display().to_string();
        let _ = std::fs::remove_file(&fresh);
        let mut file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&fresh).context(context)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|os| Error::io(context(), os))?;
        file.write_all(&json(holding)?).context(context)?;
        std::fs::rename(&fresh, &path).context(context)?;
        Ok(file)
    }
}

impl Held {
    /// What it is.
    pub fn holding(&self) -> &Holding {
        &self.holding
    }

    /// That the calling process, a fork of the one that made it, serves it from now on.
    ///
    /// # Errors
    /// That of writing it down.
    pub fn take_over(&mut self) -> Result<()> {
        let _lock = self.registry.lock()?;
        self.holding.pid = Pid::as_raw(Some(getpid()));
        self.file = self.registry.write(&self.holding)?;
        Ok(())
    }

    /// Where it is written down.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Gives it back: the number and the place are free, and those who wait are told how it ended.
    ///
    /// # Errors
    /// That of the folder.
    pub fn end(mut self, outcome: Outcome) -> Result<()> {
        let _lock = self.registry.lock()?;
        if self.holding.used_as == Use::Disk {
            self.registry.clean_place(&self.holding.point);
        }
        remove_file(&self.registry.entry(self.holding.number))?;
        self.holding.outcome = Some(outcome);
        let context = || "the outcome for those who wait";
        self.file.set_len(0).and_then(|()| self.file.rewind()).context(context)?;
        self.file.write_all(&json(&self.holding)?).context(context)
    }
}

/// Whether a loop device still has the image that it was given.
fn is_attached(holding: &Holding) -> bool {
    let device = holding.node.as_ref().and_then(|node| Device::named(node).ok());
    let identity = device.and_then(|device| loop_device::status(device.number)?.identity_or_path());
    identity.is_some_and(|found| (found.device, found.inode) == (holding.image.device, holding.image.inode))
}

fn refuse(holdings: &[Holding], image: &Image, used_as: Use, read_only: bool) -> Result<()> {
    let same = |other: &&Holding| {
        // Of two loop devices the driver knows more: they may have different parts.
        (other.image.device, other.image.inode) == (image.device, image.inode)
            && !(used_as.by_kernel() && other.used_as.by_kernel())
    };
    let Some(other) = holdings.iter().filter(same).find(|other| !(other.read_only && read_only)) else {
        return Ok(());
    };
    let (how, place) = match (&other.node, other.used_as) {
        (Some(node), Use::Disk | Use::Loop) => ("attached as", node),
        _ => ("mounted on", &other.point),
    };
    Err(Error::new(Kind::Busy, format!("{} is {how} {} already", image.path.display(), place.display())))
}

/// Unmounts what is at `point` as long as nobody serves it.
fn unmount_dead(point: &Path) {
    while fuse::is_dead(point) {
        if fuse::unmount(point, Unmount::Lazy).is_err() {
            break;
        }
    }
}

fn json(holding: &Holding) -> Result<Vec<u8>> {
    serde_json::to_vec(holding).map_err(|error| {
        Error::new(Kind::Invalid, format!("record of {}", holding.image.path.display())).with_source(error)
    })
}

fn read_entry(file: &mut File) -> Result<Holding> {
    let context = || "record of the registry";
    file.rewind().context(context)?;
    let mut bytes = Vec::new();
    file.take(ENTRY_BYTES_MAX).read_to_end(&mut bytes).context(context)?;
    serde_json::from_slice(&bytes).map_err(|error| Error::new(Kind::Corrupt, context()).with_source(error))
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path.display().to_string(), error)),
        _ => Ok(()),
    }
}

/// How long a process takes at the most that has nothing left to do but to end.
const EXIT_TIME: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// The end of the process that has `file` locked, to be waited for.
fn exit_of(pid: i32, file: &File) -> Option<OwnedFd> {
    let exit = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // As long as it is locked, the number is that of the process that locked it.
    matches!(flock(file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK)).then_some(exit)
}

/// Waits until a process is gone that has said how it ended: with it go its locks on images.
fn wait_for_exit(exit: Option<OwnedFd>) {
    if let Some(exit) = exit {
        let _ = poll(&mut [PollFd::new(&exit, PollFlags::IN)], Some(&EXIT_TIME));
    }
}

/// A lock that is waited for.
fn blocking(file: &File, operation: FlockOperation) -> std::io::Result<()> {
    loop {
        match flock(file, operation) {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests;
