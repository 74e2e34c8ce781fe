//! A mount and the process that serves it: in the foreground, or in the background as a process of its own.
//!
//! ```text
//! loopbox mount ──fork──► child: new session, no terminal, serves until unmounted
//!     │                     │ ready, or why not
//!     └◄────── pipe ────────┘
//!     exits when the mount is usable
//! ```

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;

use block::{Error, Kind, Result, ResultExt as _};
use rustix::pipe::{PipeFlags, pipe_with};
use sys::process::{Fork, fork};
use sys::signal::{self, Blocked};

use crate::counters::{self, Asked};
use crate::fuse::Mount;
use crate::registry::{Held, Outcome, Use};

/// The first byte that the child sends when the mount is usable; any other one is the first of an error.
const READY: u8 = b'+';
/// Most bytes of an error that comes from the child.
const ERROR_BYTES_MAX: u64 = 4096;

/// Serves in this process until it is unmounted, or the process is asked to end. `ready` is called when it is usable.
///
/// # Errors
/// The failure of the session, or of making durable what was written.
pub fn foreground(mount: Mount, held: Held, ready: impl FnOnce() + Send + 'static) -> Result<()> {
    let signals = Blocked::new(&[signal::TERM, signal::INT, signal::HUP]).context(|| "signals")?;
    let asked = counted(&mount, &held);
    let served = mount.serve(signals, ready);
    drop(asked);
    end(held, served)
}

/// Answers those who ask what is done through the mount; it goes on without where that cannot be.
fn counted(mount: &Mount, held: &Held) -> Option<Asked> {
    let (counters, holding) = (mount.counters(), held.holding());
    let (kind, place) = match &holding.node {
        Some(node) if holding.used_as == Use::Disk => ("disk", node),
        _ => ("mount", &holding.point),
    };
    let name = place.display().to_string();
    counters::serve(&held.registry().stats(holding.number), move || vec![counters.counted(kind, &name)]).ok()
}

/// Serves in a new process, and returns when the mount is usable. This process must have a single thread.
///
/// # Errors
/// Why it did not come to be usable: then nothing is mounted any more.
pub fn background(mount: Mount, held: Held) -> Result<()> {
    let context = || "process of the mount";
    let (from_child, to_parent) = pipe_with(PipeFlags::CLOEXEC).map_err(|os| Error::io(context(), os))?;
    match fork() {
        Ok(Fork::Child) => {
            drop(from_child);
            let status = i32::from(child(mount, held, to_parent).is_err());
            std::process::exit(status);
        }
        Ok(Fork::Parent(_)) => {
            drop(to_parent);
            // The mount and the holding are the child's from now on, and are not undone here.
            let answer = wait(from_child);
            drop(mount);
            if answer.is_err() {
                let registry = held.registry().clone();
                drop(held);
                // Whatever a child that died left behind.
                registry.list()?;
            }
            answer
        }
        Err(error) => {
            let _ = crate::fuse::unmount(mount.point(), crate::fuse::Unmount::Lazy);
            let _ = end(held, Ok(()));
            Err(Error::io(context(), error))
        }
    }
}

fn end(held: Held, served: Result<()>) -> Result<()> {
    let outcome = match &served {
        Ok(()) => Outcome::Safe,
        Err(error) => Outcome::Failed(chain(error)),
    };
    served.and(held.end(outcome))
}

/// The child's life. What goes wrong is told to the parent while it listens, and after that to those who unmount.
fn child(mount: Mount, mut held: Held, to_parent: OwnedFd) -> Result<()> {
    let mut errors = File::from(to_parent);
    let ready = errors.try_clone();
    let mut asked = None;
    let served = prepare(&mut held).and_then(|signals| {
        let mut ready = ready.context(|| "pipe to the parent")?;
        asked = counted(&mount, &held);
        mount.serve(signals, move || {
            let _ = ready.write_all(&[READY]);
        })
    });
    let told = served.as_ref().err().map(|error| format!("{}\n{}", error.kind().errno(), chain(error)));
    drop(asked);
    let ended = end(held, served);
    if let Some(told) = told {
        let _ = errors.write_all(told.as_bytes());
    }
    ended
}

/// Away from the terminal and from the folder where it was started.
fn prepare(held: &mut Held) -> Result<Blocked> {
    let context = |os| Error::io("leaving the terminal", os);
    let signals = Blocked::new(&[signal::TERM, signal::INT, signal::HUP]).context(|| "signals")?;
    rustix::process::setsid().map_err(context)?;
    rustix::process::chdir("/").map_err(context)?;
    let null = File::options().read(true).write(true).open("/dev/null").context(|| "/dev/null")?;
    rustix::stdio::dup2_stdin(&null).map_err(context)?;
    rustix::stdio::dup2_stdout(&null).map_err(context)?;
    rustix::stdio::dup2_stderr(&null).map_err(context)?;
    sys::memory::lock_again();
    held.take_over()?;
    Ok(signals)
}

/// What the child says.
fn wait(from_child: OwnedFd) -> Result<()> {
    let mut pipe = File::from(from_child);
    let mut first = [0];
    let read = loop {
        match pipe.read(&mut first) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => break other.context(|| "pipe from the process of the mount")?,
        }
    };
    if read == 0 {
        return Err(Error::new(Kind::Disconnected, "the process of the mount died"));
    }
    if first == [READY] {
        return Ok(());
    }
    let mut said = first.to_vec();
    let _ = pipe.take(ERROR_BYTES_MAX).read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said).into_owned();
    let (errno, text) = said.split_once('\n').unwrap_or(("5", &said));
    Err(Error::new(Kind::from_errno(errno.parse().unwrap_or(5)), text.to_owned()))
}

/// An error and what caused it, as one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
