//! fork(2), for a program that has one thread; children that end with their parent.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::Pid;

/// Which of the two processes one is after [`fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The one that called; the other one is this.
    Parent(Pid),
    /// The new one.
    Child,
}

/// Makes a second process, a copy of this one, provided that this one has a single thread.
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] when there are more threads than the calling one (their locks would stay locked in
/// the copy for ever); else what the kernel said.
pub fn fork() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("fork with {threads} threads running")));
    }
    // SAFETY: fork itself has no preconditions on memory. What makes it dangerous are locks held by other threads
    // (allocator, standard streams), which the child would inherit locked; there is no other thread, as counted above,
    // and only this thread could start one.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => Ok(Fork::Child),
        _ => match Pid::from_raw(pid) {
            Some(child) if pid > 0 => Ok(Fork::Parent(child)),
            _ => Err(io::Error::last_os_error()),
        },
    }
}

/// Has `command` start with `signals` no longer blocked, and be asked to end (SIGTERM) when the thread that starts it
/// ends, however that comes about.
pub fn end_with_parent(command: &mut Command, signals: crate::signal::Blocked) {
    let begin = move || {
        signals.unblock()?;
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
        Ok(())
    };
    // SAFETY: between fork and exec only two system calls are made, pthread_sigmask and prctl, both safe there; nothing
    // is allocated, and no lock is taken.
    unsafe { command.pre_exec(begin) };
}
