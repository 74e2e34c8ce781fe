//! FUSE: a file system or a disk, served to every program of the machine by a process of an ordinary user.
//!
//! ```text
//! Mount::directory   any fs::FileSystem        → Directory ┐
//! Mount::writable    any fs::Writable          → Directory ┤
//! Mount::disk        any block::BlockDevice    → Disk      ┴─ Nodes ─ Session ─ /dev/fuse ─ kernel ─ programs
//! ```
//! One session of our own serves both: it speaks the protocol to the kernel directly, without libfuse.

mod answer;
mod directory;
mod mount;
mod node;
mod nodes;
mod offer;
mod request;
mod rings;
mod session;
mod wire;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use block::{Error, Kind, Result};
use fs::{FileSystem, Writable};

pub use directory::Ownership;
pub use mount::{KIND, Unmount, absolute, check_point, is_dead, unmount};
pub use node::File;
pub use offer::Offer;

use crate::Attachment;
use directory::Directory;
use node::Disk;
use nodes::Nodes;
use session::Session;

/// How something is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Nobody writes.
    pub read_only: bool,
    /// Set-user-id bits of the image mean nothing.
    pub nosuid: bool,
    /// Device files of the image are no devices.
    pub nodev: bool,
    /// Programs of the image are not run.
    pub noexec: bool,
    /// Reading leaves no trace.
    pub noatime: bool,
    /// Other users may use it. Else only the one who mounted it does, whatever the modes say.
    pub allow_other: bool,
    /// Modes and owners are obeyed. Else whoever may use the mount reads all of it.
    pub check_permissions: bool,
    /// Whom the files belong to.
    pub ownership: Ownership,
}

impl Options {
    /// As the user who mounts expects it. An ordinary user reads all files of an image that is in his hands anyhow, and
    /// nobody else does; root mounts for everybody, and modes and owners are obeyed, as with a mount by the kernel.
    pub fn of_user(root: bool) -> Self {
        Self {
            read_only: true,
            nosuid: true,
            nodev: true,
            noexec: false,
            noatime: true,
            allow_other: root,
            check_permissions: root,
            ownership: Ownership::default(),
        }
    }
}

/// The nodes of a file system, and the options that go with them.
fn directory(files: Arc<dyn FileSystem>, options: &Options) -> (Box<dyn Nodes>, Options) {
    let acl = options.check_permissions;
    let check_permissions = options.check_permissions || options.allow_other;
    let options = Options { read_only: true, check_permissions, ..*options };
    (Box::new(Directory::new(files, options.ownership, acl)), options)
}

/// The same of one that is written, but for `options.read_only`.
fn writable(files: Arc<dyn Writable>, options: &Options) -> (Box<dyn Nodes>, Options) {
    if options.read_only {
        return directory(files, options);
    }
    let check_permissions = options.check_permissions || options.allow_other;
    let options = Options { check_permissions, ..*options };
    (Box::new(Directory::writable(files, options.ownership)), options)
}

/// The nodes of a disk, and the options that go with them.
fn disk(files: Vec<File>) -> (Box<dyn Nodes>, Options) {
    let read_only = files.first().is_some_and(|file| file.device.limits().read_only);
    let options = Options { read_only, noexec: true, ..Options::of_user(false) };
    (Box::new(Disk::new(files)), options)
}

/// A mount that nobody serves yet: whoever looks into it waits.
#[derive(Debug)]
pub struct Mount {
    session: Arc<Session>,
    point: PathBuf,
}

impl Mount {
    /// Mounts a file system on `point`; `source` is what the table of mounts shows for it.
    ///
    /// # Errors
    /// What is wrong with the mount point; what is missing to mount.
    pub fn directory(files: Arc<dyn FileSystem>, point: &Path, source: &OsStr, options: &Options) -> Result<Self> {
        let (nodes, options) = directory(files, options);
        Self::of(nodes, point, source, &options)
    }

    /// Mounts a file system that is written, but for `options.read_only`.
    ///
    /// # Errors
    /// As [`Mount::directory`].
    pub fn writable(files: Arc<dyn Writable>, point: &Path, source: &OsStr, options: &Options) -> Result<Self> {
        let (nodes, options) = writable(files, options);
        Self::of(nodes, point, source, &options)
    }

    /// Mounts a directory with a disk and its partitions on `point`. The first file is the whole disk, the others are
    /// windows of it.
    ///
    /// # Errors
    /// As [`Mount::directory`].
    pub fn disk(files: Vec<File>, point: &Path, source: &OsStr) -> Result<Self> {
        let (nodes, options) = disk(files);
        Self::of(nodes, point, source, &options)
    }

    fn of(nodes: Box<dyn Nodes>, point: &Path, source: &OsStr, options: &Options) -> Result<Self> {
        let point = check_point(point)?;
        let device = mount::mount(&point, source, options)?;
        Ok(Self { session: Arc::new(Session::new(device, nodes)), point })
    }

    /// What is done through it.
    pub fn counters(&self) -> Arc<crate::counters::Counters> {
        self.session.counters()
    }

    /// Where it is mounted, absolute.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Serves until it is unmounted or one of `signals` arrives (which unmounts it, out from under its users if need
    /// be), and makes what was written durable. `ready` is called when the mount is usable. For a process whose only
    /// work this is: after a signal, threads may still wait for users that went on.
    ///
    /// # Errors
    /// The failure of the session, or of the flush at its end.
    pub fn serve(self, signals: sys::signal::Blocked, ready: impl FnOnce() + Send + 'static) -> Result<()> {
        enum Event {
            Ended(Result<()>),
            Signal,
        }
        let (events, next) = mpsc::channel();
        let (session, ended) = (Arc::clone(&self.session), events.clone());
        std::thread::spawn(move || {
            let result = session.serve(ready);
            // The device goes with the last who has it: before anybody is told that it is over.
            drop(session);
            let _ = ended.send(Event::Ended(result));
        });
        std::thread::spawn(move || {
            while signals.wait().is_ok() {
                let _ = events.send(Event::Signal);
            }
        });
        loop {
            match next.recv() {
                Ok(Event::Ended(result)) => {
                    // It may have been aborted rather than unmounted.
                    if mount_is_ours(&self.point) {
                        let _ = unmount(&self.point, Unmount::Lazy);
                    }
                    return result;
                }
                // Something else may be mounted over it.
                Ok(Event::Signal) if !mount_is_ours(&self.point) => return self.session.sync(),
                Ok(Event::Signal) => {
                    if unmount(&self.point, Unmount::Plain).is_err() {
                        let _ = unmount(&self.point, Unmount::Lazy);
                        return self.session.sync();
                    }
                }
                Err(_) => return Err(Error::new(Kind::Io, "the threads of the session ended")),
            }
        }
    }

    /// Serves on threads of this process, until it is detached or unmounted.
    ///
    /// # Errors
    /// The failure to agree with the kernel.
    pub fn spawn(self) -> Result<Served> {
        let (ready, is_ready) = mpsc::channel();
        let session = Arc::clone(&self.session);
        let thread = std::thread::spawn(move || {
            session.serve(move || {
                let _ = ready.send(());
            })
        });
        if is_ready.recv().is_err() {
            let result = join(thread);
            let _ = unmount(&self.point, Unmount::Lazy);
            return Err(result
                .err()
                .unwrap_or_else(|| Error::new(Kind::Disconnected, "unmounted before it was ready")));
        }
        Ok(Served { point: self.point, thread: Some(thread) })
    }
}

fn mount_is_ours(point: &Path) -> bool {
    crate::mount_table::at(point).is_ok_and(|found| found.is_some_and(|mounted| mounted.kind == KIND))
}

fn join(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|_| Err(Error::new(Kind::Io, "the session's thread")))
}

/// A mount that threads of this process serve. Dropping it unmounts, lazily where it is in use.
#[derive(Debug)]
pub struct Served {
    point: PathBuf,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Served {
    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }
}

impl Attachment for Served {
    fn location(&self) -> String {
        self.point.display().to_string()
    }

    fn detach(mut self: Box<Self>) -> Result<()> {
        let running = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        if running {
            unmount(&self.point, Unmount::Plain)?;
        }
        self.thread.take().map_or(Ok(()), join)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            if thread.is_finished() {
                return;
            }
            match unmount(&self.point, Unmount::Plain) {
                Ok(()) => drop(join(thread)),
                // Its users keep the thread, and the thread the device, until the last of them is gone.
                Err(_) => drop(unmount(&self.point, Unmount::Lazy)),
            }
        }
    }
}
