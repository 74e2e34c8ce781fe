//! Unix sockets that only their owner can reach, and their names.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use block::{Error, Kind, Result, ResultExt as _};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The name of a unix socket, taken away when dropped, unless another has replaced it.
#[derive(Debug)]
pub struct Name {
    /// Absolute.
    pub path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for Name {
    fn drop(&mut self) {
        if identity(&self.path).ok() == Some(self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Listens at a path, with mode 0600; a socket that a dead server left is replaced.
///
/// # Errors
/// [`Kind::Exists`] where another server listens; the failure of the system.
pub fn listen(path: &Path) -> Result<(UnixListener, Name)> {
    let what = || format!("listening on {}", path.display());
    let path = std::path::absolute(path).context(what)?;
    let listener = bind(&path)?;
    let identity = identity(&path).context(what)?;
    Ok((listener, Name { path, identity }))
}

fn bind(path: &Path) -> Result<UnixListener> {
    let what = || format!("listening on {}", path.display());
    let failed = |errno| Error::io(what(), errno);
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let socket =
        |flags| rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | flags, None);
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        let probe = socket(SocketFlags::NONBLOCK).map_err(failed)?;
        match rustix::net::connect(&probe, &address) {
            Err(Errno::CONNREFUSED) => std::fs::remove_file(path).context(what)?,
            Err(Errno::NOENT) => {}
            // One that is too busy to answer at once is alive too.
            Ok(()) | Err(Errno::AGAIN) => {
                return Err(Error::new(Kind::Exists, format!("another server listens on {}", path.display())));
            }
            Err(errno) => return Err(failed(errno)),
        }
    }
    let socket = socket(SocketFlags::empty()).map_err(failed)?;
    // The name gets the mode of the socket: there is no moment in which others could connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    rustix::net::bind(&socket, &address).map_err(failed)?;
    rustix::net::listen(&socket, 128).map_err(failed)?;
    Ok(socket.into())
}
