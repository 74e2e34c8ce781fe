//! Signals as a file that is read: `signalfd(2)`, so that one `poll` waits for them and for sockets.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::signal::Blocked;

/// Every signal that can be blocked, the ones that a fault of the program itself raises left out.
pub const ALL: &[i32] = &[
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGVTALRM,
    libc::SIGWINCH,
    libc::SIGIO,
    libc::SIGPWR,
];

/// A signal that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// Which one.
    pub number: i32,
    /// Whether a process sent it; otherwise the kernel, of its own or for the terminal.
    pub sent: bool,
}

/// Signals that no longer interrupt the calling thread, nor those that it starts, and are read instead.
/// Dropping it lets them interrupt again.
#[derive(Debug)]
pub struct SignalFd {
    fd: OwnedFd,
    blocked: Blocked,
}

impl SignalFd {
    /// Blocks `signals` for the calling thread and reads them from now on; never waits when it reads.
    ///
    /// # Errors
    /// `EINVAL` for a number that is no signal; those of `signalfd`.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let blocked = Blocked::new(signals)?;
        // SAFETY: the set is initialised, and the call checks its own flags.
        let fd = unsafe { libc::signalfd(-1, &raw const blocked.0, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave the descriptor to nobody but us.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, blocked })
    }

    /// Lets the signals interrupt again: for a process that is about to become another program.
    ///
    /// # Errors
    /// None that is known.
    pub fn unblock(&self) -> io::Result<()> {
        self.blocked.unblock()
    }

    /// Those that are blocked, for a child that is not to inherit that.
    pub fn blocked(&self) -> Blocked {
        self.blocked
    }

    /// The next signal that has arrived, if any.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn next(&self) -> io::Result<Option<Signal>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer has room for `size` bytes and lives over the call.
        let got = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if got < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: plain integers, initialised with zeroes before the kernel wrote to them.
        let info = unsafe { info.assume_init() };
        Ok(Some(Signal { number: info.ssi_signo.cast_signed(), sent: info.ssi_code <= 0 }))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SignalFd {
    fn drop(&mut self) {
        let _ = self.blocked.unblock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_read_and_says_who_sent_it() {
        std::thread::spawn(|| {
            let signals = SignalFd::new(&[libc::SIGUSR1]).unwrap();
            assert_eq!(signals.next().unwrap(), None);
            // SAFETY: sends a signal to the calling thread, in which it is blocked.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1) };
            assert_eq!(signals.next().unwrap(), Some(Signal { number: libc::SIGUSR1, sent: true }));
            assert_eq!(signals.next().unwrap(), None);
        })
        .join()
        .unwrap();
        assert!(SignalFd::new(&[4711]).is_err());
    }
}
