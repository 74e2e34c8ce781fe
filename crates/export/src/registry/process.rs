//! Processes of loopbox that hold something and are no mount: a run, a server, a sound card.
//!
//! ```text
//! run-77.json      locked by process 77 for as long as it lives
//! run-77.stats     where it is asked what was done        run-77.socket   where its link is asked and changed
//! ```
//! A file whose lock is free belongs to a process that is dead: it is removed, with all that the process said it would
//! remove itself.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use block::{Error, Kind, Result, ResultExt as _};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

use super::{ENTRY_BYTES_MAX, Outcome, Registry, remove_file};
use crate::ublk;

/// An image at a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Place {
    /// The spec as typed.
    pub image: String,
    /// Where it is: inside; of a server, the name by which clients ask for it.
    pub at: PathBuf,
    /// What becomes of writes: `read-only`, `image`, `memory`, or the folder of changes.
    pub writes: String,
}

/// A process, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// What it does: `run`, `serve`, `sound`.
    pub verb: String,
    /// When it began, seconds since 1970.
    pub since: u64,
    /// The command that it runs.
    pub command: Vec<String>,
    /// Its network: `private` or `host`.
    pub net: String,
    /// Whether its packets go through a link.
    pub link: bool,
    /// Images.
    pub images: Vec<Place>,
    /// Of a server: where clients reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Of a server: the disk of the kernel that it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ublk: Option<ublk::Identity>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Where it writes what is played.
    pub sound: Option<PathBuf>,
    /// Folders, and sockets, that it removes at its end.
    pub leftovers: Vec<PathBuf>,
}

/// A process that is written down; it is taken away with this.
#[derive(Debug)]
pub struct Working {
    registry: Registry,
    process: Process,
    /// Holds the lock.
    file: File,
}

/// Names that folders of loopbox begin with: nothing else is removed.
const OURS: &str = "loopbox-";

impl Registry {
    /// Writes down what this process holds.
    ///
    /// # Errors
    /// That of the folder.
    pub fn work(&self, process: Process) -> Result<Working> {
        let _lock = self.lock()?;
        let pid = Pid::as_raw(Some(getpid()));
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        let process = Process { pid, since, ..process };
        let (path, fresh) = (self.of_process(pid, "json"), self.folder.join(format!(".run-{pid}.json")));
        let context = || path.display().to_string();
        let _ = std::fs::remove_file(&fresh);
        let mut file =
            File::options().read(true).write(true).create_new(true).mode(0o600).open(&fresh).context(context)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|os| Error::io(context(), os))?;
        let bytes =
            serde_json::to_vec(&process).map_err(|error| Error::new(Kind::Invalid, context()).with_source(error))?;
        file.write_all(&bytes).context(context)?;
        std::fs::rename(&fresh, &path).context(context)?;
        Ok(Working { registry: self.clone(), process, file })
    }

    /// The processes that live, by number; what dead ones left is removed.
    ///
    /// # Errors
    /// That of reading the folder.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let _lock = self.lock()?;
        let context = || format!("registry {}", self.folder.display());
        let mut alive = Vec::new();
        for entry in std::fs::read_dir(&self.folder).context(context)? {
            let path = entry.context(context)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let pid = name.strip_prefix("run-").and_then(|name| name.strip_suffix(".json")?.parse::<i32>().ok());
            let Some(pid) = pid else { continue };
            let Ok(file) = File::open(&path) else { continue };
            let lives = matches!(flock(&file, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
            let mut bytes = Vec::new();
            file.take(ENTRY_BYTES_MAX).read_to_end(&mut bytes).context(context)?;
            match (serde_json::from_slice::<Process>(&bytes), lives) {
                (Ok(process), true) => alive.push(process),
                (Err(_), true) => {}
                (process, false) => self.clean_process(pid, &process.unwrap_or_default())?,
            }
        }
        alive.sort_by_key(|process| process.pid);
        Ok(alive)
    }

    /// Where a process is asked what was done through what it holds: see [`crate::counters`].
    pub fn stats_of_process(&self, pid: i32) -> PathBuf {
        self.of_process(pid, "stats")
    }

    fn of_process(&self, pid: i32, what: &str) -> PathBuf {
        self.folder.join(format!("run-{pid}.{what}"))
    }

    /// Asks a process to end, and waits until it has.
    ///
    /// # Errors
    /// [`Kind::Io`] when it could not make all that was written safe, or died.
    pub fn end_process(&self, process: &Process) -> Result<()> {
        let path = self.of_process(process.pid, "json");
        let mut file = match File::open(&path) {
            // It ended meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.context(|| path.display().to_string())?,
        };
        let exit = super::exit_of(process.pid, &file);
        if let Some(pid) = Pid::from_raw(process.pid) {
            match kill_process(pid, Signal::TERM) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(os) => return Err(Error::io(format!("asking process {} to end", process.pid), os)),
            }
        }
        super::blocking(&file, FlockOperation::LockShared).context(|| "waiting for the process that serves it")?;
        super::wait_for_exit(exit);
        let mut bytes = Vec::new();
        file.rewind().context(|| path.display().to_string())?;
        file.take(ENTRY_BYTES_MAX).read_to_end(&mut bytes).context(|| path.display().to_string())?;
        match serde_json::from_slice::<Process>(&bytes).ok().and_then(|ended| ended.outcome) {
            Some(Outcome::Safe) => Ok(()),
            Some(Outcome::Failed(why)) => Err(Error::new(Kind::Io, why)),
            None => Err(Error::new(Kind::Io, format!("process {} died before it had flushed", process.pid))),
        }
    }

    fn clean_process(&self, pid: i32, process: &Process) -> Result<()> {
        if let Some(left) = process.ublk {
            ublk::clean(left);
        }
        for path in &process.leftovers {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            match std::fs::symlink_metadata(path) {
                Ok(found) if found.is_dir() && name.starts_with(OURS) => remove_folder(path),
                Ok(found) if found.file_type().is_socket() && is_deserted(path) => remove_file(path)?,
                _ => {}
            }
        }
        for what in ["socket", "stats", "json"] {
            remove_file(&self.of_process(pid, what))?;
        }
        Ok(())
    }
}

/// Whether nobody listens at a socket: another server may have taken its place.
fn is_deserted(path: &Path) -> bool {
    let error = UnixStream::connect(path).err();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// Removes a folder and the files in it, and nothing below.
fn remove_folder(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let _ = std::fs::remove_file(entry.path());
    }
    let _ = std::fs::remove_dir(folder);
}

impl Working {
    /// The registry that it is in.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Tells those who wait for its end how that came about.
    ///
    /// # Errors
    /// That of writing it down.
    pub fn end(mut self, outcome: Outcome) -> Result<()> {
        let context = || "the outcome for those who wait";
        self.process.outcome = Some(outcome);
        let bytes = serde_json::to_vec(&self.process)
            .map_err(|error| Error::new(Kind::Invalid, context()).with_source(error))?;
        self.file.set_len(0).and_then(|()| self.file.rewind()).context(context)?;
        self.file.write_all(&bytes).context(context)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        for what in ["stats", "json"] {
            let _ = remove_file(&self.registry.of_process(self.process.pid, what));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_process_left_is_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let registry = Registry::at(scratch.path());
        let working = registry.work(Process { verb: "run".into(), ..Process::default() }).unwrap();
        let pid = Pid::as_raw(Some(getpid()));
        assert_eq!(registry.processes().unwrap().iter().map(|process| process.pid).collect::<Vec<_>>(), [pid]);
        drop(working);
        assert_eq!(registry.processes().unwrap(), []);

        let (ours, others) = (scratch.path().join("loopbox-sound-1-0"), scratch.path().join("precious"));
        for folder in [&ours, &others] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("file"), "x").unwrap();
        }
        let socket = |name: &str| {
            let path = scratch.path().join(name);
            (std::os::unix::net::UnixListener::bind(&path).unwrap(), path)
        };
        let ((dead, deserted), (_alive, taken)) = (socket("deserted"), socket("taken"));
        drop(dead);
        let leftovers = vec![ours.clone(), others.clone(), deserted.clone(), taken.clone(), others.join("file")];
        let dead = Process { pid: 1, leftovers, ..Process::default() };
        std::fs::write(scratch.path().join("run-1.json"), serde_json::to_vec(&dead).unwrap()).unwrap();
        std::fs::write(scratch.path().join("run-1.socket"), "").unwrap();
        std::fs::write(scratch.path().join("run-2.json"), "{").unwrap();
        assert_eq!(registry.processes().unwrap(), []);
        assert!(!ours.exists() && others.join("file").exists());
        assert!(!deserted.exists() && taken.exists());
        let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 3, "{left:?}: the lock and what is not ours");
    }
}
