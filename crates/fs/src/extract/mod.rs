//! A tree of an image, made anew in a directory of the host: what `cp -a` would do, had the image been mounted.
//!
//! The image is hostile and the host is not to suffer. **The destination is never left**: every entry is made by its
//! one name, checked, relative to the open directory it belongs in; no link is ever followed on the way, whether the
//! image made it or it was there before. An entry that is there already is replaced (a directory is merged with, and
//! stays a directory), so that no byte is written into a file that has other names on the host.
//!
//! ```text
//! main thread    walk ─► mkdir, create, symlink, link, mknod ─┐ open file         directories closed: owner, mode, times
//! other threads                                               └─► content, owner, attributes, mode, times
//! ```
//!
//! A file is created with mode 0600 and has its own only when its content is whole; a file whose content failed is
//! removed. Set-user-ID and set-group-ID bits are given only together with their owner. What the user may not do
//! (owners, devices, some attributes) is left, counted in [`Report`], and no failure.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use block::{Error, Kind, Result};

use crate::path::{Printable, is_name};
use crate::progress::Progress;
use crate::walk::{Found, Next, Order, Step, walk};
use crate::{FileSystem, FileType, Inode, Stat};

mod content;
mod directories;
mod entry;
mod metadata;

use content::Copier;
use directories::Directories;
use entry::Placed;

/// How many files may wait, open, for another thread.
const QUEUE_FILES: usize = 64;
/// Files up to this size are not handed to another thread: it would cost more than the copy, bytes.
const HANDED_BYTES_MIN: u64 = 128 << 10;

/// How to extract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Whether the first failure ends it.
    pub fail_fast: bool,
    /// Threads that copy content beside the one that walks; 0 for none.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(0, |n| n.get().saturating_sub(1).min(3));
        Self { fail_fast: false, threads }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Directories made or merged with.
    pub directories: u64,
    /// Files of all other types, and further names of files.
    pub files: u64,
    /// Bytes of content, with holes.
    pub bytes: u64,
    /// Failures, each of which [`Progress::failed`] was told.
    pub failures: u64,
    /// Files whose owner or group could not be kept.
    pub owners_left: u64,
    /// Extended attributes that could not be set.
    pub xattrs_left: u64,
    /// Devices that could not be made.
    pub devices_left: u64,
}

/// Where an extraction goes.
#[derive(Debug)]
pub struct Destination {
    /// An open directory.
    pub directory: OwnedFd,
    /// The name of the copy in that directory; `None`: what is in the source directory goes right into it, and it keeps
    /// its own owner, mode and times.
    pub name: Option<Vec<u8>>,
}

/// Copies `source` and all below it.
///
/// # Errors
/// [`Kind::Invalid`] when a name is no name, [`Kind::NotDirectory`] when something that is no directory is to be merged
/// with one. All failures of single files are counted in the report and told to `progress` instead.
pub fn extract(
    fs: &dyn FileSystem,
    source: Inode,
    to: Destination,
    options: Options,
    progress: &dyn Progress,
) -> Result<Report> {
    match &to.name {
        Some(name) if !is_name(name) => {
            return Err(Error::new(Kind::Invalid, format!("the name \"{}\"", Printable(name))));
        }
        None if fs.stat(source)?.file_type != FileType::Directory => {
            return Err(Error::new(Kind::NotDirectory, "a file instead of a directory"));
        }
        _ => {}
    }
    let shared = Shared { fs, progress, options, stop: AtomicBool::new(false), tally: Tally::default() };
    let root = Arc::new(to.directory);
    std::thread::scope(|scope| {
        let mut queue = None;
        if options.threads > 0 {
            let (sender, receiver) = sync_channel(QUEUE_FILES);
            let receiver = Arc::new(Mutex::new(receiver));
            for _ in 0..options.threads {
                let (receiver, shared) = (Arc::clone(&receiver), &shared);
                scope.spawn(move || finish_all(shared, &receiver));
            }
            queue = Some(sender);
        }
        let mut extraction = Extraction {
            shared: &shared,
            name: to.name,
            directories: Directories::new(root),
            linked: HashMap::new(),
            copier: Copier::default(),
            queue,
        };
        walk(fs, source, Order::Directory, &mut |step| extraction.step(step));
        // Dropping the queue ends the threads.
    });
    Ok(shared.tally.report())
}

/// What all threads see.
struct Shared<'a> {
    fs: &'a dyn FileSystem,
    progress: &'a dyn Progress,
    options: Options,
    stop: AtomicBool,
    tally: Tally,
}

#[derive(Default)]
struct Tally {
    directories: AtomicU64,
    files: AtomicU64,
    bytes: AtomicU64,
    failures: AtomicU64,
    owners_left: AtomicU64,
    xattrs_left: AtomicU64,
    devices_left: AtomicU64,
}

impl Tally {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    fn report(&self) -> Report {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Report {
            directories: get(&self.directories),
            files: get(&self.files),
            bytes: get(&self.bytes),
            failures: get(&self.failures),
            owners_left: get(&self.owners_left),
            xattrs_left: get(&self.xattrs_left),
            devices_left: get(&self.devices_left),
        }
    }
}

impl Shared<'_> {
    fn failed(&self, path: &[u8], error: &Error) {
        Tally::add(&self.tally.failures, 1);
        self.progress.failed(path, error);
        if self.options.fail_fast {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn next(&self) -> Next {
        if self.stop.load(Ordering::Relaxed) { Next::Stop } else { Next::Continue }
    }
}

/// A regular file that was created and waits for its content.
struct Unfinished {
    file: OwnedFd,
    directory: Arc<OwnedFd>,
    name: Vec<u8>,
    path: Vec<u8>,
    inode: Inode,
    stat: Stat,
}

/// The work of a thread beside the one that walks.
fn finish_all(shared: &Shared<'_>, queue: &Mutex<Receiver<Unfinished>>) {
    let mut copier = Copier::default();
    loop {
        let received = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(unfinished) = received else { return };
        finish(shared, &mut copier, &unfinished);
    }
}

/// Fills a file and gives it what belongs to it, or removes it; says whether it is there.
fn finish(shared: &Shared<'_>, copier: &mut Copier, unfinished: &Unfinished) -> bool {
    let Unfinished { file, directory, name, path, inode, stat } = unfinished;
    if let Err(error) = copier.copy(shared, *inode, stat.size, file) {
        entry::remove_if_same(directory, name, file);
        shared.failed(path, &error);
        return false;
    }
    if let Err(error) = metadata::keep_open(shared, *inode, stat, file, path) {
        shared.failed(path, &error);
    }
    true
}

struct Extraction<'a> {
    shared: &'a Shared<'a>,
    name: Option<Vec<u8>>,
    directories: Directories,
    /// Files with further names: their number in the image, and where the first one is.
    linked: HashMap<u64, Placed>,
    copier: Copier,
    queue: Option<SyncSender<Unfinished>>,
}

impl Extraction<'_> {
    fn step(&mut self, step: Step<'_>) -> Next {
        let outcome = match &step {
            Step::Enter(found) => {
                if let Err(error) = self.enter(found) {
                    self.shared.failed(found.path, &error);
                    return if self.shared.next() == Next::Stop { Next::Stop } else { Next::Skip };
                }
                Ok(())
            }
            Step::File(found) => self.file(found).map_err(|error| (found.path, error)),
            Step::Leave(found) => self.leave(found).map_err(|error| (found.path, error)),
            Step::Failed { path, error } => {
                self.shared.failed(path, error);
                Ok(())
            }
        };
        if let Err((path, error)) = outcome {
            self.shared.failed(path, &error);
        }
        self.shared.next()
    }

    /// The name of an entry on the host: that of the walk, but where it started.
    fn name_of<'b>(&'b self, found: &Found<'b>) -> &'b [u8] {
        match &self.name {
            Some(name) if found.depth == 0 => name,
            _ => found.name,
        }
    }

    fn enter(&mut self, found: &Found<'_>) -> Result<()> {
        if found.depth == 0 && self.name.is_none() {
            return Ok(());
        }
        let opened = entry::directory(&*self.directories.current()?, self.name_of(found))?;
        self.directories.push(opened)?;
        Tally::add(&self.shared.tally.directories, 1);
        self.shared.progress.placed(found.path, found.stat);
        Ok(())
    }

    fn leave(&mut self, found: &Found<'_>) -> Result<()> {
        if found.depth == 0 && self.name.is_none() {
            return Ok(());
        }
        let directory = self.directories.pop()?;
        metadata::keep_open(self.shared, found.inode, found.stat, &directory, found.path)
    }

    fn file(&mut self, found: &Found<'_>) -> Result<()> {
        let directory = self.directories.current()?;
        let name = self.name_of(found).to_vec();
        let linked = found.stat.links > 1;
        if linked
            && let Some(first) = self.linked.get(&found.stat.number)
            && entry::link(self.directories.root(), first, &directory, &name)?
        {
            self.placed(found);
            return Ok(());
        }
        match found.stat.file_type {
            FileType::Regular => {
                let file = entry::file(&directory, &name)?;
                self.placed(found);
                let unfinished = Unfinished {
                    file,
                    directory: Arc::clone(&directory),
                    name: name.clone(),
                    path: found.path.to_vec(),
                    inode: found.inode,
                    stat: found.stat.clone(),
                };
                // A file that gets further names must be whole before: else they would be names of a removed one.
                let Some(unfinished) = self.hand_over(unfinished, linked) else { return Ok(()) };
                if !finish(self.shared, &mut self.copier, &unfinished) {
                    return Ok(());
                }
            }
            FileType::SymbolicLink => {
                let target = self.shared.fs.read_link(found.inode)?;
                entry::symbolic_link(&directory, &name, &target)?;
                self.placed(found);
                metadata::keep_by_name(self.shared, found.inode, found.stat, &directory, &name)?;
            }
            _ => {
                if !entry::special(&directory, &name, found.stat)? {
                    Tally::add(&self.shared.tally.devices_left, 1);
                    return Ok(());
                }
                self.placed(found);
                metadata::keep_by_name(self.shared, found.inode, found.stat, &directory, &name)?;
            }
        }
        if linked {
            let mut path = self.name.clone().unwrap_or_default();
            if found.depth > 0 {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(found.path);
            }
            self.linked.insert(found.stat.number, entry::placed(&directory, &name, path)?);
        }
        Ok(())
    }

    fn placed(&self, found: &Found<'_>) {
        Tally::add(&self.shared.tally.files, 1);
        self.shared.progress.placed(found.path, found.stat);
    }

    /// Gives a file to another thread, or back where that makes no sense or all are busy.
    fn hand_over(&self, unfinished: Unfinished, linked: bool) -> Option<Unfinished> {
        match &self.queue {
            Some(queue) if !linked && unfinished.stat.size >= HANDED_BYTES_MIN => match queue.try_send(unfinished) {
                Ok(()) => None,
                Err(TrySendError::Full(unfinished) | TrySendError::Disconnected(unfinished)) => Some(unfinished),
            },
            _ => Some(unfinished),
        }
    }
}

/// A failure of the host, on an entry of this name.
fn host(what: &str, name: &[u8], errno: rustix::io::Errno) -> Error {
    Error::io(format!("{what} \"{}\"", Printable(name)), errno)
}

/// The directory of `/proc` in which an open file that only names something can be reached by a path.
fn proc_path(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests;
