//! Process 1 of the new process namespace: mounts, starts the command, reaps, and dies with the supervisor.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount};
use rustix::net::{RecvFlags, SendFlags, recv};
use rustix::process::{Signal, WaitOptions, kill_process, wait, waitpid};
use sys::namespace::{UnshareFlags, unshare};
use sys::process::{Fork, fork};
use sys::signalfd::SignalFd;

use crate::plan::Step;
use crate::spawn::Report;

/// Where private files are made; in the new mount namespace, before the command runs, and gone when it does.
const WORKSHOP: &str = "/tmp";

/// The parent of process 1, which does nothing else: a process that has made a namespace for its children can start no
/// threads any more, and the supervisor needs some. Never returns.
pub(crate) fn parent(control: &OwnedFd, signals: &SignalFd, steps: &[Step]) -> ! {
    let started = rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(io::Error::from)
        .and_then(|()| unshare(UnshareFlags::NEWPID))
        .and_then(|()| fork());
    match started {
        Ok(Fork::Child) => main(control, signals, steps),
        Ok(Fork::Parent(init)) => while let Err(rustix::io::Errno::INTR) = waitpid(Some(init), WaitOptions::empty()) {},
        Err(error) => {
            let report = Report::Failed(error.raw_os_error().unwrap_or(5), 0);
            let _ = rustix::net::send(control, &report.to_bytes(), SendFlags::NOSIGNAL);
        }
    }
    std::process::exit(0)
}

/// Does the steps and never returns. Whatever happens is told through `control`.
fn main(control: &OwnedFd, signals: &SignalFd, steps: &[Step]) -> ! {
    let report = live(control, signals, steps);
    let _ = rustix::net::send(control, &report.to_bytes(), SendFlags::NOSIGNAL);
    // The kernel kills all processes of the namespace with its first.
    std::process::exit(0)
}

fn live(control: &OwnedFd, signals: &SignalFd, steps: &[Step]) -> Report {
    let failed = |error: &io::Error, step: usize| {
        Report::Failed(error.raw_os_error().unwrap_or(5), u32::try_from(step).unwrap_or(u32::MAX))
    };
    // When the supervisor is gone before this call, the socket is closed, and the next read says so.
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return failed(&error.into(), 0);
    }
    let mut environment: &[(OsString, OsString)] = &[];
    for (number, step) in steps.iter().enumerate() {
        let done = match step {
            Step::Mounts => enter_mount_namespace(),
            Step::File { path, content } => cover(path, content),
            Step::Proc => mount_proc(),
            Step::Environment(variables) => {
                environment = variables;
                Ok(())
            }
            Step::Run(command) => match go(control) {
                true => return supervise(control, signals, command, environment),
                false => return Report::Signalled(Signal::KILL.as_raw()),
            },
            _ => Ok(()),
        };
        if let Err(error) = done {
            return failed(&error, number);
        }
    }
    Report::Exited(0)
}

/// Waits until the supervisor lets the command go; false when it is gone.
fn go(control: &OwnedFd) -> bool {
    let mut word = [0; 4];
    loop {
        match recv(control, &mut word, RecvFlags::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok((4, _)) if word == [0; 4] => return true,
            Ok((4, _)) => {}
            _ => return false,
        }
    }
}

fn enter_mount_namespace() -> io::Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    Ok(())
}

/// Mounts a file with this content over `path`.
fn cover(path: &Path, content: &str) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", WORKSHOP, "tmpfs", flags, Some(c"size=1m,mode=0755"))?;
    let made = (|| {
        let file = Path::new(WORKSHOP).join("file");
        fs::write(&file, content)?;
        mount_bind(&file, path)?;
        Ok(())
    })();
    // The mount over `path` keeps the file, and the file its file system.
    unmount(WORKSHOP, UnmountFlags::DETACH)?;
    made
}

/// A `/proc` that shows the new process namespace. Containers that hide parts of theirs forbid it; then the old one
/// stays, whose `/proc/self` is right and whose other numbers are those of outside.
fn mount_proc() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match mount("proc", "/proc", "proc", flags, None) {
        Err(rustix::io::Errno::PERM) => Ok(()),
        other => Ok(other?),
    }
}

fn supervise(
    control: &OwnedFd,
    signals: &SignalFd,
    command: &[OsString],
    environment: &[(OsString, OsString)],
) -> Report {
    let errno = |error: &io::Error| Report::NotStarted(error.raw_os_error().unwrap_or(2));
    let Some((program, arguments)) = command.split_first() else { return Report::NotStarted(2) };
    let child = match fork() {
        Ok(Fork::Parent(child)) => child,
        Ok(Fork::Child) => {
            // The program would inherit the mask.
            let variables = environment.iter().map(|(name, value)| (name, value));
            let run = || Command::new(program).args(arguments).envs(variables).exec();
            let error = signals.unblock().err().unwrap_or_else(run);
            let _ = rustix::net::send(control, &errno(&error).to_bytes(), SendFlags::NOSIGNAL);
            std::process::exit(127)
        }
        Err(error) => return errno(&error),
    };
    loop {
        let mut files = [PollFd::new(control, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        let _ = poll(&mut files, None);
        let told = !files[0].revents().is_empty();
        // Only that something happened matters: the terminal's signals reach the command themselves.
        while let Ok(Some(_)) = signals.next() {}
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            if pid != child {
                continue;
            }
            if let Some(status) = status.exit_status() {
                return Report::Exited(status);
            }
            if let Some(signal) = status.terminating_signal() {
                return Report::Signalled(signal);
            }
            if let Some(signal) = status.stopping_signal() {
                let _ = rustix::net::send(control, &Report::Stopped(signal).to_bytes(), SendFlags::NOSIGNAL);
            }
        }
        if told {
            let mut word = [0; 4];
            match recv(control, &mut word, RecvFlags::DONTWAIT) {
                Ok((4, _)) => {
                    if let Some(signal) = Signal::from_named_raw(i32::from_ne_bytes(word)) {
                        let _ = kill_process(child, signal);
                    }
                }
                Ok((0, _)) => return Report::Signalled(Signal::KILL.as_raw()),
                _ => {}
            }
        }
    }
}
