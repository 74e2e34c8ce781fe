//! A session that one process serves and another one mounts: a process with mounts of its own, whose server is not in
//! that mount namespace.
//!
//! ```text
//! server    Offer::directory ─ fork ─┬─ Offer::serve          threads of this process
//!                                    └─ Offer::mount          the other one, in its mount namespace
//! ```
//! Both have to be in one user namespace, the one that the device was opened in.

use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use block::{Result, ResultExt as _};
use fs::{FileSystem, Writable};

use crate::counters::Counters;

use super::session::Session;
use super::{File, Nodes, Options, mount};

/// A session that is not mounted yet.
#[derive(Debug)]
pub struct Offer {
    session: Arc<Session>,
    options: Options,
    writes: bool,
}

impl Offer {
    /// Of a file system.
    ///
    /// # Errors
    /// Why /dev/fuse cannot be opened, and what would change it.
    pub fn directory(files: Arc<dyn FileSystem>, options: &Options) -> Result<Self> {
        Self::of(super::directory(files, options))
    }

    /// Of a file system that is written, but for `options.read_only`.
    ///
    /// # Errors
    /// As [`Offer::directory`].
    pub fn writable(files: Arc<dyn Writable>, options: &Options) -> Result<Self> {
        Self::of(super::writable(files, options))
    }

    /// Of a directory with a disk and its partitions, as [`super::Mount::disk`]; `shared` with all users of the user
    /// namespace.
    ///
    /// # Errors
    /// As [`Offer::directory`].
    pub fn disk(files: Vec<File>, shared: bool) -> Result<Self> {
        let (nodes, options) = super::disk(files);
        Self::of((nodes, Options { allow_other: shared, check_permissions: shared, ..options }))
    }

    fn of((nodes, options): (Box<dyn Nodes>, Options)) -> Result<Self> {
        let session = Arc::new(Session::new(mount::open_device()?, nodes));
        Ok(Self { session, options, writes: !options.read_only })
    }

    /// Whether something could be written that has to be made durable at the end.
    pub fn writes(&self) -> bool {
        self.writes
    }

    /// What was done through it.
    pub fn counters(&self) -> Arc<Counters> {
        self.session.counters()
    }

    /// Mounts it. Whoever looks into it waits until it is served.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn mount(&self, point: &Path, source: &OsStr) -> Result<()> {
        mount::mount_directly(self.session.device().as_fd(), point, source, &self.options)
    }

    /// Serves on threads of this process, from when it is mounted until the mount is gone; then makes durable what was
    /// written.
    ///
    /// # Errors
    /// That of starting a thread.
    pub fn serve(&self) -> Result<JoinHandle<Result<()>>> {
        let session = Arc::clone(&self.session);
        let thread = std::thread::Builder::new().name("files".into());
        thread.spawn(move || session.serve(|| {})).context(|| "thread of a mount")
    }
}
