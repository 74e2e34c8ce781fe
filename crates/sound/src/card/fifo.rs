//! The FIFO of `module-pipe-source`. A client names it, so the card takes care:
//!
//! - only a client of the card's own user may ask (`SO_PEERCRED`),
//! - it makes the FIFO itself, for that user alone (0600); one that is there already has to be a FIFO of this user, and no link,
//! - it takes away what it made, and nothing else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::{Error, Kind, Result};

/// A FIFO that is open. Dropping it removes it, if it was made here.
#[derive(Debug)]
pub(super) struct Fifo {
    module: u32,
    fd: OwnedFd,
    /// Where it was made.
    made: Option<PathBuf>,
}

impl Fifo {
    /// Makes the FIFO that the client at the other end of `client` wants.
    ///
    /// # Errors
    /// [`Kind::Denied`] for another user's client, or another user's FIFO; [`Kind::Invalid`] for what is no FIFO; what the
    /// system says.
    pub fn open(client: &UnixStream, module: u32, path: &Path) -> Result<Self> {
        let failed = |error: Errno| Error::io(format!("the FIFO {}", path.display()), error);
        let user = rustix::process::geteuid();
        let asker = rustix::net::sockopt::socket_peercred(client).map_err(failed)?;
        if asker.uid != user {
            return Err(Error::new(Kind::Denied, "a FIFO for another user's program"));
        }
        let private = Mode::RUSR | Mode::WUSR;
        let made = match rustix::fs::mknodat(CWD, path, FileType::Fifo, private, 0) {
            Ok(()) => Some(path.to_owned()),
            Err(Errno::EXIST) => None,
            Err(error) => return Err(failed(error)),
        };
        // For reading and writing: it does not end when who writes goes, and the next may come.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // What is no FIFO is looked at without being opened: a device would notice.
        let before = rustix::fs::statat(CWD, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        check(&before, user, path)?;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
        check(&rustix::fs::fstat(&fd).map_err(failed)?, user, path)?;
        Ok(Self { module, fd, made })
    }

    /// The module that it is of.
    pub fn module(&self) -> u32 {
        self.module
    }

    /// What has come, at most `most` bytes and what an empty buffer has room for.
    pub fn read<'a>(&self, buffer: &'a mut Vec<u8>, most: usize) -> &'a [u8] {
        let room = buffer.spare_capacity_mut();
        let most = most.min(room.len());
        match room.get_mut(..most).filter(|room| !room.is_empty()).map(|room| rustix::io::read(&self.fd, room)) {
            Some(Ok((came, _))) => came,
            _ => &[],
        }
    }
}

fn check(stat: &Stat, user: rustix::process::Uid, path: &Path) -> Result<()> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Err(Error::new(Kind::Invalid, format!("{}: no FIFO", path.display())));
    }
    if stat.st_uid != user.as_raw() {
        return Err(Error::new(Kind::Denied, format!("{}: another user's FIFO", path.display())));
    }
    Ok(())
}

impl AsFd for Fifo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        let Some(path) = &self.made else { return };
        let same = |there: &Stat| {
            rustix::fs::fstat(&self.fd).is_ok_and(|own| own.st_ino == there.st_ino && own.st_dev == there.st_dev)
        };
        if rustix::fs::statat(CWD, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).as_ref().is_ok_and(same) {
            let _ = std::fs::remove_file(path);
        }
    }
}
