//! What a file has beside its content: owner, extended attributes, mode, times; in this order, because each of them
//! takes away from the one before: a new owner clears set-user-ID and capabilities, a mode may forbid attributes, and
//! everything changes times.

use std::os::fd::{AsFd, OwnedFd};

use block::{Kind, Result};
use rustix::fs::{AtFlags, Gid, Timespec, Timestamps, Uid, XattrFlags};

use super::{Shared, Tally, entry, host, proc_path};
use crate::{FileType, Inode, Stat, Time};

/// Set-user-ID and set-group-ID.
const SET_UID: u16 = 0o4000;
const SET_GID: u16 = 0o2000;

/// Gives an open file or directory what `stat` says of it.
pub(super) fn keep_open(shared: &Shared<'_>, inode: Inode, stat: &Stat, file: &OwnedFd, name: &[u8]) -> Result<()> {
    let permissions = keep_owner(shared, stat, |uid, gid| rustix::fs::fchown(file, uid, gid));
    let attributes =
        each_xattr(shared, inode, |xattr, value| rustix::fs::fsetxattr(file, xattr, value, XattrFlags::empty()));
    let mode = rustix::fs::fchmod(file, entry::mode(permissions));
    let times = rustix::fs::futimens(file, &times(stat));
    // All is tried; the first failure is told.
    attributes?;
    mode.map_err(|errno| host("setting the mode of", name, errno))?;
    times.map_err(|errno| host("setting the times of", name, errno))
}

/// The same for what cannot be opened: links, devices, pipes, sockets.
pub(super) fn keep_by_name(
    shared: &Shared<'_>,
    inode: Inode,
    stat: &Stat,
    directory: &OwnedFd,
    name: &[u8],
) -> Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let permissions = keep_owner(shared, stat, |uid, gid| rustix::fs::chownat(directory, name, uid, gid, flags));
    let opened = entry::open_path(directory.as_fd(), name).map_err(|errno| host("opening", name, errno))?;
    let path = proc_path(opened.as_fd());
    let attributes = each_xattr(shared, inode, |xattr, value| {
        rustix::fs::setxattr(path.as_str(), xattr, value, XattrFlags::empty())
    });
    let mode = match stat.file_type {
        FileType::SymbolicLink => Ok(()),
        _ => rustix::fs::chmodat(rustix::fs::CWD, path.as_str(), entry::mode(permissions), AtFlags::empty()),
    };
    let times = rustix::fs::utimensat(directory, name, &times(stat), flags);
    attributes?;
    mode.map_err(|errno| host("setting the mode of", name, errno))?;
    times.map_err(|errno| host("setting the times of", name, errno))
}

/// Keeps owner and group, or the group alone; returns the permissions without the bits whose owner was not kept.
fn keep_owner(
    shared: &Shared<'_>,
    stat: &Stat,
    change: impl Fn(Option<Uid>, Option<Gid>) -> rustix::io::Result<()>,
) -> u16 {
    // To the kernel, the highest number means "as it is".
    let uid = (stat.uid != u32::MAX).then(|| Uid::from_raw(stat.uid));
    let gid = (stat.gid != u32::MAX).then(|| Gid::from_raw(stat.gid));
    let both = uid.is_some() && gid.is_some();
    if both && change(uid, gid).is_ok() {
        return stat.permissions;
    }
    Tally::add(&shared.tally.owners_left, 1);
    let mut permissions = stat.permissions;
    if uid != Some(rustix::process::geteuid()) {
        permissions &= !SET_UID;
    }
    if gid.is_none() || change(None, gid).is_err() {
        permissions &= !SET_GID;
    }
    permissions
}

/// Sets each extended attribute; one that the host does not take is counted.
fn each_xattr(shared: &Shared<'_>, inode: Inode, set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>) -> Result<()> {
    for name in shared.fs.xattrs(inode)? {
        match shared.fs.xattr(inode, &name) {
            Ok(value) => {
                if set(&name, &value).is_err() {
                    Tally::add(&shared.tally.xattrs_left, 1);
                }
            }
            Err(error) if error.kind() == Kind::NoAttribute => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn times(stat: &Stat) -> Timestamps {
    let spec =
        |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds.min(999_999_999)) as _ };
    Timestamps { last_access: spec(stat.accessed), last_modification: spec(stat.modified) }
}
