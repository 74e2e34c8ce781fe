//! The directories that an extraction is in, from the destination down, with few of them open.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use block::{Error, Kind, Result};
use rustix::fs::{Mode, OFlags};

/// How many are open at one time: the rest are found again through `..`, and known by device and inode.
const OPEN_MAX: usize = 128;

struct Level {
    open: Option<Arc<OwnedFd>>,
    /// Device and inode, from the time when it was closed.
    identity: (u64, u64),
}

pub(super) struct Directories {
    root: Arc<OwnedFd>,
    levels: Vec<Level>,
}

impl Directories {
    pub fn new(root: Arc<OwnedFd>) -> Self {
        Self { root, levels: Vec::new() }
    }

    /// The destination itself.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// The innermost.
    pub fn current(&self) -> Result<Arc<OwnedFd>> {
        match self.levels.last() {
            None => Ok(Arc::clone(&self.root)),
            Some(level) => level.open.clone().ok_or_else(lost),
        }
    }

    /// One more, inside of the innermost.
    pub fn push(&mut self, directory: OwnedFd) -> Result<()> {
        let far = self.levels.len().checked_sub(OPEN_MAX).and_then(|index| self.levels.get_mut(index));
        if let Some(level) = far
            && let Some(open) = level.open.take()
        {
            level.identity = identity(&open)?;
        }
        self.levels.push(Level { open: Some(Arc::new(directory)), identity: (0, 0) });
        Ok(())
    }

    /// Takes the innermost away; the one around it is open again, and is the same as before.
    pub fn pop(&mut self) -> Result<Arc<OwnedFd>> {
        let inner = self.levels.pop().and_then(|level| level.open).ok_or_else(lost)?;
        if let Some(outer) = self.levels.last_mut()
            && outer.open.is_none()
        {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(&inner, "..", flags, Mode::empty())
                .map_err(|errno| Error::io("the directory above", errno))?;
            // Somebody may have moved the inner one meanwhile: then `..` is anywhere.
            if identity(&opened)? != outer.identity {
                return Err(Error::new(Kind::Io, "the directory above: moved by somebody else"));
            }
            outer.open = Some(Arc::new(opened));
        }
        Ok(inner)
    }
}

fn lost() -> Error {
    Error::new(Kind::Io, "the directory above could not be opened again")
}

fn identity(fd: impl AsFd) -> Result<(u64, u64)> {
    let stat = rustix::fs::fstat(fd).map_err(|errno| Error::io("a directory of the destination", errno))?;
    Ok((stat.st_dev, stat.st_ino))
}
