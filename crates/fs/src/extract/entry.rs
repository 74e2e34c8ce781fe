//! One entry made in an open directory, whatever stands there already, and without following any link.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use block::{Error, Kind, Result};
use rustix::fs::{AtFlags, FileType as HostType, Mode, OFlags, RawMode};
use rustix::io::Errno;

use super::host;
use crate::path::Printable;
use crate::{FileType, Stat};

/// How often an entry that appears again and again is removed: somebody else is at work there.
const REPLACE_MAX: usize = 4;

/// A file that may get further names: where its first one is, from the destination on, and what it is on the host.
pub(super) struct Placed {
    path: Vec<u8>,
    identity: Identity,
}

/// What tells one file of the host from another, also when the inode of a removed one is given to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    file_type: HostType,
    size: i64,
    modified: (i64, u64),
}

/// Makes an entry; one that is there and is no directory gives way.
fn replace<T>(directory: &OwnedFd, name: &[u8], mut make: impl FnMut() -> rustix::io::Result<T>) -> Result<T> {
    for _ in 0..REPLACE_MAX {
        match make() {
            Err(Errno::EXIST) => match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) => {
                    let text = format!("\"{}\": a directory is there, and is not replaced", Printable(name));
                    return Err(Error::new(Kind::IsDirectory, text));
                }
                Err(errno) => return Err(host("replacing", name, errno)),
            },
            other => return other.map_err(|errno| host("making", name, errno)),
        }
    }
    Err(host("making", name, Errno::EXIST))
}

/// A new directory, or the one that is there; open.
pub(super) fn directory(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(host("making the directory", name, errno)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(opened) => Ok(opened),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            let text = format!("\"{}\": something that is no directory is there", Printable(name));
            Err(Error::new(Kind::NotDirectory, text))
        }
        Err(errno) => Err(host("opening the directory", name, errno)),
    }
}

/// A new regular file, empty, open for writing, for nobody else's eyes.
pub(super) fn file(directory: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    replace(directory, name, || rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR))
}

/// A new symbolic link.
pub(super) fn symbolic_link(directory: &OwnedFd, name: &[u8], target: &[u8]) -> Result<()> {
    replace(directory, name, || rustix::fs::symlinkat(target, directory, name))
}

/// A new device, pipe or socket; `false` when the user may make no devices.
pub(super) fn special(directory: &OwnedFd, name: &[u8], stat: &Stat) -> Result<bool> {
    let file_type = match stat.file_type {
        FileType::BlockDevice => HostType::BlockDevice,
        FileType::CharacterDevice => HostType::CharacterDevice,
        FileType::Fifo => HostType::Fifo,
        _ => HostType::Socket,
    };
    let device = stat.device.map_or(0, |(major, minor)| rustix::fs::makedev(major, minor));
    let made = replace(directory, name, || {
        match rustix::fs::mknodat(directory, name, file_type, Mode::RUSR | Mode::WUSR, device) {
            Err(Errno::PERM) => Ok(false),
            other => other.map(|()| true),
        }
    })?;
    Ok(made)
}

/// One more name of a file; `false` when that does not work here, and a copy is needed.
pub(super) fn link(root: &OwnedFd, first: &Placed, directory: &OwnedFd, name: &[u8]) -> Result<bool> {
    let Some((parent, first_name)) = open_parent(root, &first.path) else { return Ok(false) };
    let parent = parent.as_ref().unwrap_or(root);
    if identity(directory, name) == Some(first.identity) {
        // The image has one name twice: it is the same file already.
        return Ok(true);
    }
    let linked =
        replace(directory, name, || match rustix::fs::linkat(parent, first_name, directory, name, AtFlags::empty()) {
            Err(Errno::EXIST) => Err(Errno::EXIST),
            other => Ok(other.is_ok()),
        })?;
    if linked && identity(directory, name) != Some(first.identity) {
        // The image has replaced the first one by another of the same name.
        let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
        return Ok(false);
    }
    Ok(linked)
}

/// What `name` is, for further names of it.
pub(super) fn placed(directory: &OwnedFd, name: &[u8], path: Vec<u8>) -> Result<Placed> {
    let identity = identity(directory, name).ok_or_else(|| host("looking at", name, Errno::NOENT))?;
    Ok(Placed { path, identity })
}

/// The directory of a path from the destination on (`None`: the destination itself), without following links.
fn open_parent<'a>(root: &OwnedFd, path: &'a [u8]) -> Option<(Option<OwnedFd>, &'a [u8])> {
    let mut names = path.split(|byte| *byte == b'/');
    let last = names.next_back()?;
    let mut here: Option<OwnedFd> = None;
    for name in names {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let outer = here.as_ref().unwrap_or(root);
        here = Some(rustix::fs::openat(outer, name, flags, Mode::empty()).ok()?);
    }
    Some((here, last))
}

fn identity(directory: &OwnedFd, name: &[u8]) -> Option<Identity> {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(Identity {
        device: stat.st_dev,
        inode: stat.st_ino,
        file_type: HostType::from_raw_mode(stat.st_mode),
        size: stat.st_size,
        modified: (stat.st_mtime, stat.st_mtime_nsec),
    })
}

/// Removes what was made and is not whole, unless its name belongs to something else by now.
pub(super) fn remove_if_same(directory: &OwnedFd, name: &[u8], file: &OwnedFd) {
    let Ok(open) = rustix::fs::fstat(file) else { return };
    // The file is open: its inode is nobody else's.
    if identity(directory, name).is_some_and(|named| (named.device, named.inode) == (open.st_dev, open.st_ino)) {
        let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
    }
}

/// An entry that can be named, and not read: a link, a device.
pub(super) fn open_path(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory.as_fd(), name, flags, Mode::empty())
}

/// Permissions as the host takes them.
pub(super) fn mode(permissions: u16) -> Mode {
    Mode::from_raw_mode(RawMode::from(permissions) & 0o7777)
}
