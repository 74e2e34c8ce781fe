//! Signals that are waited for rather than caught: sigprocmask(2) and sigwaitinfo(2).

use std::io;
use std::mem::MaybeUninit;

/// Asked to end by another process.
pub const TERM: i32 = libc::SIGTERM;
/// Ctrl-C.
pub const INT: i32 = libc::SIGINT;
/// The terminal is gone.
pub const HUP: i32 = libc::SIGHUP;
/// The terminal has another size.
pub const WINCH: i32 = libc::SIGWINCH;

/// A set of signals that the calling thread, and the threads that it starts, are no longer interrupted by.
#[derive(Clone, Copy)]
pub struct Blocked(pub(crate) libc::sigset_t);

impl std::fmt::Debug for Blocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Blocked")
    }
}

impl Blocked {
    /// Blocks `signals` for the calling thread and those that it starts from now on.
    ///
    /// # Errors
    /// `EINVAL` for a number that is no signal.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset fills the whole set that the pointer, valid for a write, points to.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for signal in signals {
            // SAFETY: `set` is initialised, and the call checks the number.
            if unsafe { libc::sigaddset(&raw mut set, *signal) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: `set` is initialised; the old mask is not asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
            0 => Ok(Self(set)),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Waits for one of them, and says which.
    ///
    /// # Errors
    /// What the kernel said; never `EINTR`.
    pub fn wait(&self) -> io::Result<i32> {
        loop {
            // SAFETY: the set is initialised; details of the signal are not asked for.
            let signal = unsafe { libc::sigwaitinfo(&raw const self.0, std::ptr::null_mut()) };
            if signal > 0 {
                return Ok(signal);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Lets them interrupt the calling thread again: for a process about to run something else.
    ///
    /// # Errors
    /// None that is known.
    pub fn unblock(&self) -> io::Result<()> {
        // SAFETY: the set is initialised; the old mask is not asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const self.0, std::ptr::null_mut()) } {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_waited_for() {
        let thread = std::thread::spawn(|| {
            let blocked = Blocked::new(&[libc::SIGUSR2]).unwrap();
            // SAFETY: sends a signal to the calling thread, in which it is blocked.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
            blocked.wait().unwrap()
        });
        assert_eq!(thread.join().unwrap(), libc::SIGUSR2);
        assert!(Blocked::new(&[4711]).is_err());
    }
}
