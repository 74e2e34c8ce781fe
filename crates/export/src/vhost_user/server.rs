//! Listening; one hypervisor at a time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use block::{Error, Kind, Result, ResultExt as _};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::VhostUserDaemon;

use super::device::{Device, Report};
use super::request::Disk;
use super::{ID_BYTES, Memory, SharedMemory};
use crate::nbd::Export;
use crate::pace::Pace;
use crate::socket::{self, Name};
use crate::workers::Workers;

/// When a server ends by itself.
pub use crate::nbd::Ending;

/// A server that listens. Dropping it takes its socket away.
pub struct Server {
    listener: UnixListener,
    name: Name,
    disk: Arc<Disk>,
    workers: Arc<Workers>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("name", &self.name).field("device", &self.disk.device).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens at `path`, a unix socket that only its owner can reach. Of the export's name (or, where that is empty,
    /// its description) the guest is told the first [`ID_BYTES`] bytes as the disk's serial number.
    ///
    /// # Errors
    /// [`Kind::Exists`] where another server listens; [`Kind::Unsupported`] for a device smaller than a sector; the
    /// failure of the system.
    pub fn bind(path: &Path, export: &Export) -> Result<Self> {
        let device = Arc::clone(&export.device);
        let id = if export.name.is_empty() { &export.description } else { &export.name };
        if device.size() < super::SECTOR_BYTES {
            let context = format!("a disk of {} bytes for a guest, whose sectors have 512", device.size());
            return Err(Error::new(Kind::Unsupported, context));
        }
        let (listener, name) = socket::listen(path)?;
        listener.set_nonblocking(true).context(|| "listening")?;
        let mut bytes = [0; ID_BYTES];
        bytes.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = from);
        let counters = Arc::clone(&export.counters);
        let disk = Arc::new(Disk { device, id: bytes, pace: Pace::default(), counters });
        Ok(Self { listener, name, disk, workers: Arc::default() })
    }

    /// The path of the socket, absolute.
    pub fn socket(&self) -> &Path {
        &self.name.path
    }

    /// Serves one hypervisor after the other until `stop` can be read from, or as `ending` says. When it returns, what
    /// guests have asked for is done and the device is flushed.
    ///
    /// # Errors
    /// That of waiting for hypervisors, or of the last flush. What goes wrong with one of them is told to `report`.
    pub fn serve(self, stop: &impl AsFd, ending: Ending, report: impl Fn(Error) + Send + Sync + 'static) -> Result<()> {
        let report: Report = Arc::new(report);
        let served = self.serve_all(stop.as_fd(), ending, &report);
        let limits = self.disk.device.limits();
        let flushed = if limits.read_only { Ok(()) } else { self.disk.device.flush() };
        served.and(flushed)
    }

    fn serve_all(&self, stop: BorrowedFd<'_>, ending: Ending, report: &Report) -> Result<()> {
        while !wait(stop, self.listener.as_fd())? {
            match self.serve_one(stop, report) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => report(error),
            }
            if ending == Ending::WithClients {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One hypervisor, from its first message to its last; whether it is time to end.
    fn serve_one(&self, stop: BorrowedFd<'_>, report: &Report) -> Result<bool> {
        let failed = |error: vhost_user_backend::Error| Error::new(Kind::Io, format!("a hypervisor: {error}"));
        let _client = self.disk.counters.client();
        let memory = SharedMemory::new(Memory::new());
        let device = Device::new(Arc::clone(&self.disk), Arc::clone(&self.workers), memory.clone(), Arc::clone(report));
        let device = Arc::new(device);
        let mut daemon = VhostUserDaemon::new("vhost-user".to_owned(), Arc::clone(&device), memory).map_err(failed)?;
        let listener = self.listener.try_clone().context(|| "accepting a hypervisor")?;
        daemon.start(&mut Listener::from(listener)).map_err(failed)?;
        let handle = daemon.shutdown_handle();
        let (gone, to_gone) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Error::io("a pipe", errno))?;
        let (ended, stopped) = std::thread::scope(|scope| {
            let daemon = &mut daemon;
            let waiting = scope.spawn(move || {
                let ended = daemon.wait();
                drop::<OwnedFd>(to_gone);
                ended
            });
            let stopped = wait(stop, gone.as_fd());
            device.close();
            if let Some(handle) = handle {
                // In any case: the thread that waits must end.
                handle.shutdown();
            }
            (waiting.join(), stopped)
        });
        // With its threads.
        drop(daemon);
        match ended {
            Ok(Err(vhost_user_backend::Error::HandleRequest(
                VhostError::Disconnected | VhostError::PartialMessage | VhostError::SocketBroken(_),
            )))
            | Ok(Ok(())) => {}
            Ok(Err(error)) => report(failed(error)),
            Err(_) => report(Error::new(Kind::Io, "a hypervisor: a thread that failed")),
        }
        stopped
    }
}

/// Waits until one of two can be read from: whether that is the first.
fn wait(stop: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool> {
    loop {
        let mut fds = [PollFd::new(&stop, PollFlags::IN), PollFd::new(&other, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io("waiting for hypervisors", errno)),
            Ok(_) => return Ok(fds.first().is_some_and(|stop| !stop.revents().is_empty())),
        }
    }
}
