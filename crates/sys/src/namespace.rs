//! Namespaces: `unshare(2)`, which rustix has as an unsafe call.

use std::io;

pub use rustix::thread::UnshareFlags;

/// Moves the calling process into new namespaces.
///
/// # Errors
/// `EPERM` where the machine forbids it, `EINVAL` when the process has several threads and `NEWUSER` is among the
/// flags, `ENOSPC` where a limit on namespaces is reached.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // Sharing of file descriptors is what makes the call unsafe: another holder's table could change under it.
    if flags.contains(UnshareFlags::FILES) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: without `FILES` the call changes what the kernel resolves names and numbers against, and no memory and
    // no file descriptor of this process.
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    Ok(())
}
