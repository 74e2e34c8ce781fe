//! A device is added, started, and taken away again.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use block::{Error, Kind, Result, ResultExt as _};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, Mode, OFlags, inotify};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use sys::ublk::{Channel, Control, Info};

use super::queue::{self, Shared};
use super::request::Disk;
use super::{BUFFER_BYTES, DEPTH, Identity, QUEUES_MAX, QUEUES_PREFERRED_MAX, node};
use crate::loop_device::{LOOKERS_WAIT_MAX, User, sentence, users_of, wait_until};
use crate::nbd::Export;
use crate::registry::{Process, Registry};
use crate::workers::Workers;

/// How long a disk may take to appear: the kernel reads its partition table.
const START_TIME: Duration = Duration::from_secs(60);
/// How long is waited for the number of a device to be free.
const NUMBER_TIME: Duration = Duration::from_secs(1);

/// A disk of the kernel that is served. Dropping it takes it away.
pub struct Server {
    control: Control,
    device: Info,
    path: PathBuf,
    shared: Arc<Shared>,
    /// Of each queue.
    threads: Vec<JoinHandle<()>>,
    /// Can be read from when no queue is served any more.
    gone: OwnedFd,
    over: bool,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("path", &self.path).field("device", &self.device).finish_non_exhaustive()
    }
}

impl Server {
    /// Makes a disk of `export`, with so many queues, and serves it on threads of its own. What goes wrong with requests
    /// is told to `report`.
    ///
    /// # Errors
    /// What is missing for it, as [`super::available`]; [`Kind::Unsupported`] for a device smaller than a block; what the
    /// driver said.
    pub fn start(export: &Export, queues: Option<u16>, report: impl Fn(Error) + Send + Sync + 'static) -> Result<Self> {
        let (mut control, flags) = node::control()?;
        let disk = Arc::new(Disk::new(Arc::clone(&export.device), Arc::clone(&export.counters))?);
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let preferred = processors.min(QUEUES_PREFERRED_MAX) as u16;
        let wanted = Info {
            queues: queues.unwrap_or(preferred).clamp(1, QUEUES_MAX),
            depth: DEPTH,
            buffer_bytes: BUFFER_BYTES,
            number: u32::MAX,
            pid: -1,
            flags,
            own: own(),
            ..Info::default()
        };
        let device = control.add(&wanted).context(|| "adding a disk to the kernel (ublk)")?;
        let (gone, to_gone) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|os| Error::io("a pipe", os))?;
        let shared = Shared { disk, workers: Workers::default(), report: Box::new(report), reports: AtomicU64::new(0) };
        let mut server = Self {
            control,
            device,
            path: node::disk(device.number),
            shared: Arc::new(shared),
            threads: vec![],
            gone,
            over: false,
        };
        server.begin(to_gone)?;
        Ok(server)
    }

    /// From a device that was added to a disk. What fails is undone by whoever drops this.
    fn begin(&mut self, to_gone: OwnedFd) -> Result<()> {
        let number = self.device.number;
        let name = self.path.display().to_string();
        let starting = || format!("starting {name}");
        let parameters = self.shared.disk.parameters();
        let channel = format!("/dev/ublkc{number}");
        let described = PathBuf::from(format!("/sys/class/ublk-char/ublkc{number}"));
        // By its path a user's right to the device is looked at.
        node::ready(Path::new(&channel), &described, FileType::CharacterDevice)?;
        self.control
            .set_parameters(&self.device, &parameters)
            .context(|| format!("describing {name} to the kernel"))?;
        let channel = Arc::new(Channel::open(number).context(|| format!("opening {channel}"))?);
        let (ready, served) = mpsc::sync_channel(usize::from(self.device.queues));
        let to_gone = Arc::new(to_gone);
        for queue in 0..self.device.queues {
            let (channel, device, encoded) = (Arc::clone(&channel), self.device, self.control.is_encoded());
            let (shared, ready, to_gone) = (Arc::clone(&self.shared), ready.clone(), Arc::clone(&to_gone));
            let thread = std::thread::Builder::new().name(format!("ublk-{queue}"));
            let thread = thread.spawn(move || {
                queue::serve(channel, &device, queue, encoded, &shared, &ready);
                drop(to_gone);
            });
            self.threads.push(thread.context(starting)?);
        }
        drop((channel, ready));
        for _ in 0..self.device.queues {
            served.recv().unwrap_or(Err(std::io::ErrorKind::BrokenPipe.into())).context(starting)?;
        }
        self.control.start(&self.device, START_TIME).context(starting)?;
        node::ready(&self.path, &node::folder(number), FileType::BlockDevice)
    }

    /// The disk.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is written down of it.
    pub fn identity(&self) -> Identity {
        Identity { number: self.device.number, own: self.device.own }
    }

    /// Bytes at the end of the image that are no whole block: they are not seen.
    pub fn rest(&self) -> u64 {
        self.shared.disk.rest()
    }

    /// Serves until `stop` can be read from. When it returns, what the kernel had to write is written, the disk is gone,
    /// and the device is flushed.
    ///
    /// # Errors
    /// [`Kind::Disconnected`] when somebody else took the disk away; that of the last flush.
    pub fn serve(mut self, stop: &impl AsFd) -> Result<()> {
        let waited = loop {
            let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(&self.gone, PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                Err(errno) => break Err(Error::io("waiting for the end", errno)),
                Ok(_) if fds.first().is_some_and(|stop| !stop.revents().is_empty()) => break Ok(()),
                Ok(_) => {
                    let context = format!("{} was taken away by somebody else", self.path.display());
                    break Err(Error::new(Kind::Disconnected, context));
                }
            }
        };
        waited.and(self.end())
    }

    fn end(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.over, true) {
            return Ok(());
        }
        if is_claimed(&self.path) {
            let users = sentence(users_of(&node::folder(self.device.number)));
            let context = format!(
                "{} is still in use ({users}): what was written is made safe, and it fails from now on",
                self.path.display()
            );
            (self.shared.report)(Error::new(Kind::Busy, context));
        }
        let what = || format!("taking {} away", self.path.display());
        let gone = |error: &std::io::Error| error.raw_os_error() == Some(Errno::NODEV.raw_os_error());
        let stopped = match self.control.stop(&self.device) {
            Err(error) if !gone(&error) => Err(Error::io(what(), error)),
            _ => Ok(()),
        };
        if stopped.is_ok() {
            for thread in self.threads.drain(..) {
                let _ = thread.join();
            }
        }
        // Where it is in use it goes with its last user.
        let deleted = match self.control.delete(&self.device, NUMBER_TIME) {
            Err(error) if !gone(&error) => Err(Error::io(what(), error)),
            _ => Ok(()),
        };
        let device = &self.shared.disk.device;
        let flushed = if device.limits().read_only { Ok(()) } else { device.flush() };
        flushed.and(stopped).and(deleted)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// A number that no other server has given to the driver, most probably.
fn own() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (now.as_nanos() as u64) ^ u64::from(std::process::id()) << 48
}

/// Whether somebody has it for himself alone: a mount, swap, another device.
fn is_claimed(disk: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(disk, flags, Mode::empty()).err() == Some(Errno::BUSY)
}

/// Takes away what a server left that died. What is still in use goes with its last user.
pub fn clean(left: Identity) {
    let Ok((mut control, _)) = node::control() else { return };
    // Another may have its number by now.
    if let Ok(device) = control.info(left.number)
        && device.own == left.own
    {
        let _ = control.delete(&device, NUMBER_TIME);
    }
}

/// Asks the process that serves a disk to end, and waits until it has; with `lazy` although the disk is in use.
///
/// # Errors
/// [`Kind::Busy`] while it is in use, naming by whom; what its process said of its end.
pub fn release(registry: &Registry, process: &Process, lazy: bool) -> Result<()> {
    let Some(Identity { number, .. }) = process.ublk else { return Ok(()) };
    let (disk, folder) = (node::disk(number), node::folder(number));
    let users = || users_of(&folder);
    let is_looked_at = |users: &[User]| users.iter().all(|user| matches!(user, User::Process { .. }));
    let found = users();
    if !lazy && !found.is_empty() {
        let closed = inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::CLOSE_NOWRITE;
        let free =
            is_looked_at(&found) && wait_until(&disk, closed, LOOKERS_WAIT_MAX, || users().is_empty()).unwrap_or(false);
        if !free {
            return Err(Error::new(Kind::Busy, format!("{} is in use: {}", disk.display(), sentence(found))));
        }
    }
    registry.end_process(process)
}
