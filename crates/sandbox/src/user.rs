//! The user namespace: who the user is inside, and which other users there are.
//!
//! ```text
//! one user      this process writes its maps itself          inside 0 (or the same number) = the user outside
//! several       a child outside runs newuidmap, newgidmap    inside 1… = the numbers that /etc/subuid gives the user
//! ```

use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use net::{Error, Result, ResultExt as _};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, getpid, waitpid};
use sys::namespace::{UnshareFlags, unshare};
use sys::process::{Fork, fork};
use sys::signalfd::SignalFd;

use crate::plan::Subordinate;

/// Who is in the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inside {
    /// The one user.
    One,
    /// Others too.
    Several,
}

/// Enters a new user namespace in which the user and group `outside` have the numbers `one`.
pub(crate) fn enter(
    one: (u32, u32),
    outside: (u32, u32),
    subordinate: Option<Subordinate>,
    signals: &SignalFd,
) -> Result<Inside> {
    let mapper = subordinate.map(|other| Mapper::start(outside, other, signals)).transpose()?;
    unshare(UnshareFlags::NEWUSER).context(|| {
        "new user namespace (this machine may forbid it to ordinary users: `loopbox doctor` says what would allow it; \
         `loopbox ls`, `cp`, `tar` and `serve` need none)"
    })?;
    if let Some(mapper) = mapper
        && mapper.map()
    {
        return Ok(Inside::Several);
    }
    // The kernel wants groups to stay as they are before an ordinary user may map its own.
    let (uid_map, gid_map) = (format!("{} {} 1", one.0, outside.0), format!("{} {} 1", one.1, outside.1));
    for (file, content) in [("setgroups", "deny".to_owned()), ("uid_map", uid_map), ("gid_map", gid_map)] {
        fs::write(format!("/proc/self/{file}"), content).context(|| format!("writing /proc/self/{file}"))?;
    }
    Ok(Inside::One)
}

/// A child that stays outside, and maps the users of its parent when it is told to.
struct Mapper {
    child: Pid,
    go: OwnedFd,
}

impl Mapper {
    fn start(outside: (u32, u32), other: Subordinate, signals: &SignalFd) -> Result<Self> {
        let (wait, go) = pipe_with(PipeFlags::CLOEXEC).map_err(|os| Error::io("pipe", os))?;
        let parent = getpid();
        match fork().context(|| "a process that maps users")? {
            Fork::Parent(child) => Ok(Self { child, go }),
            Fork::Child => {
                drop(go);
                let mut byte = [0];
                let told = rustix::io::read(&wait, &mut byte) == Ok(1) && signals.unblock().is_ok();
                let start = |program: &str, own: u32, (first, count): (u32, u32)| {
                    let words = [parent.as_raw_pid(), 0].map(|number| number.to_string());
                    let rest = [own, 1, 1, first, count].map(|number| number.to_string());
                    let mut command = Command::new(program);
                    command.args(words).args(rest).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                    command.spawn().ok()
                };
                // Side by side: each of them takes as long as all the rest of the start.
                let done = told && {
                    let both = [start("newuidmap", outside.0, other.uids), start("newgidmap", outside.1, other.gids)];
                    let done = both
                        .map(|child| child.is_some_and(|mut child| child.wait().is_ok_and(|status| status.success())));
                    done == [true, true]
                };
                std::process::exit(i32::from(!done))
            }
        }
    }

    /// Has it done; false when the machine's programs refuse.
    fn map(self) -> bool {
        let told = rustix::io::write(&self.go, &[1]) == Ok(1);
        drop(self.go);
        loop {
            match waitpid(Some(self.child), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(Some((_, status))) => return told && status.exit_status() == Some(0),
                _ => return false,
            }
        }
    }
}
