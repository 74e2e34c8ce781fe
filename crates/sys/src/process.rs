//! fork(2), for a program that has one thread; children that end with their parent; the processes of the machine.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
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
    check_single_thread()?;
    // SAFETY: fork itself has no preconditions on memory. What makes it dangerous are locks held by other threads
    // (allocator, standard streams), which the child would inherit locked; there is no other thread, as counted above,
    // and only this thread could start one.
    which(unsafe { libc::fork() })
}

/// The same, with the second process as the first of a new process namespace. The calling process stays as it is: unlike
/// one that has made a namespace for its children by `unshare(2)`, it can start threads.
///
/// # Errors
/// As [`fork`]; `EPERM` where the machine forbids the namespace.
pub fn fork_first() -> io::Result<Fork> {
    check_single_thread()?;
    // The signal is what the parent is told the end by.
    let flags = i64::from(libc::CLONE_NEWPID | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with no stack given this is fork(2): the child has a copy of all memory and goes on
    // here. As above there is no other thread whose locks it could inherit. What the C library would do beside is to
    // note the child's number, which it reads for robust and error-checking mutexes alone: its next fork and each new
    // thread note their own.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    which(i32::try_from(pid).unwrap_or(-1))
}

fn check_single_thread() -> io::Result<()> {
    match std::fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        threads => Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("fork with {threads} threads running"))),
    }
}

/// What fork(2) returned, read before anything else is called.
fn which(pid: i32) -> io::Result<Fork> {
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

/// Says that this thread, and those that it starts, write what others wait for: memory that they need is not made free by
/// waiting for them.
///
/// # Errors
/// `EPERM` without `CAP_SYS_RESOURCE`; `EINVAL` on kernels before 5.6.
pub fn set_io_flusher() -> io::Result<()> {
    // `PR_SET_IO_FLUSHER` of linux/prctl.h, which libc does not have.
    const SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: this call takes numbers alone.
    match unsafe { libc::prctl(SET_IO_FLUSHER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A process of the machine: its folder in /proc, of which a user sees what the kernel lets him see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// `/proc/PID`.
    pub folder: PathBuf,
}

impl Process {
    /// All that there are now.
    pub fn all() -> impl Iterator<Item = Self> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| Some(Self { pid: entry.file_name().to_str()?.parse().ok()?, folder: entry.path() }))
    }

    /// The name of its program, at most 15 bytes; empty when it is gone.
    pub fn name(&self) -> String {
        let name = std::fs::read(self.folder.join("comm")).unwrap_or_default();
        String::from_utf8_lossy(&name).trim_end().to_owned()
    }

    /// Its open files: links (`/proc/PID/fd/N`) to what they are. None when they may not be seen.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        std::fs::read_dir(self.folder.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_one_of_all() {
        let _open = std::fs::File::open("/proc/self/exe").unwrap();
        let own = Process::all().find(|process| process.pid == std::process::id()).unwrap();
        assert!(own.name().starts_with("loopbox_sys"), "{}", own.name());
        let exe = std::env::current_exe().unwrap();
        assert!(own.files().any(|link| std::fs::read_link(link).is_ok_and(|target| target == exe)));
    }
}
