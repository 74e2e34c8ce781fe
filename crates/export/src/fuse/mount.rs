//! Mounting a session: how a directory comes to be served.
//!
//! ```text
//! allowed to mount (root; a user namespace with its own mounts)    open /dev/fuse, mount(2) with fd=…
//! ordinary user                                                    fusermount3, set-uid root, does both and sends
//!                                                                  the descriptor back over a socket
//! ```

use std::ffi::{CString, OsStr, OsString};
use std::io::{IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use block::{Error, Kind, Result, ResultExt as _};
use rustix::io::Errno as Os;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

use super::Options;
use crate::{holders, mount_table};

/// The type under which the kernel lists what loopbox mounted.
pub const KIND: &str = "fuse.loopbox";
const SUBTYPE: &str = "loopbox";
/// Most dead mounts that are cleaned from one mount point.
const STALE_MAX: usize = 64;
/// The program that mounts for ordinary users, by its names.
const FUSERMOUNT: &[&str] = &["fusermount3", "fusermount"];

/// The path of a mount point, absolute and without links; what a dead process left mounted there is cleaned away.
///
/// # Errors
/// `NotFound`, `NotDirectory`; `Busy` when something of loopbox is mounted there already.
pub fn check_point(point: &Path) -> Result<PathBuf> {
    let context = || format!("mount point {}", point.display());
    let path = absolute(point).context(context)?;
    let mut cleaned = 0;
    let metadata = loop {
        let found = std::fs::metadata(&path);
        // Attributes that the kernel remembers do not tell that the one who knew them is dead.
        let gone = is_dead(&path)
            || found.as_ref().is_err_and(|error| error.raw_os_error() == Some(Os::NOTCONN.raw_os_error()));
        // Several may lie on each other.
        if !gone || cleaned == STALE_MAX {
            break found.context(context)?;
        }
        cleaned += 1;
        unmount(&path, Unmount::Lazy).context(|| format!("{}, left behind by a process that died", path.display()))?;
    };
    if !metadata.is_dir() {
        return Err(Error::new(Kind::NotDirectory, format!("{} is not a directory", point.display())));
    }
    if let Some(mounted) = mount_table::at(&path)?.filter(|mounted| mounted.kind == KIND) {
        let source = Path::new(&mounted.source).display().to_string();
        return Err(Error::new(
            Kind::Busy,
            format!("{} has {source} mounted on it (`loopbox umount` takes it away)", path.display()),
        ));
    }
    Ok(path)
}

/// Whether a FUSE mount is there whose server is gone. Asking for attributes would not tell: the kernel may know them.
pub fn is_dead(point: &Path) -> bool {
    matches!(rustix::fs::statfs(point), Err(Os::NOTCONN | Os::CONNABORTED))
}

/// An absolute path without links, also of a mount point whose server is gone.
///
/// # Errors
/// What the kernel said of a folder on the way.
pub fn absolute(point: &Path) -> std::io::Result<PathBuf> {
    match (point.parent(), point.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            let joined = std::fs::canonicalize(parent)?.join(name);
            // The last part may be a link as well; where it cannot be asked, it is none.
            match std::fs::read_link(&joined) {
                Ok(_) => std::fs::canonicalize(&joined),
                Err(_) => Ok(joined),
            }
        }
        _ => std::fs::canonicalize(point),
    }
}

/// Mounts a new session at `point`, and returns its device. `source` is what the table of mounts shows.
///
/// # Errors
/// What is missing, and what would help.
pub fn mount(point: &Path, source: &OsStr, options: &Options) -> Result<OwnedFd> {
    let direct = match sys::fuse::open() {
        Ok(device) => mount_directly(device.as_fd(), point, source, options).map(|()| device).map_err(Refused::Mount),
        Err(error) => Err(Refused::Open(error)),
    };
    let refused = match direct {
        Ok(device) => return Ok(device),
        Err(Refused::Mount(error)) if error.kind() != Kind::NotPermitted => return Err(error),
        Err(refused) => refused,
    };
    if let Refused::Open(error) = &refused
        && is_missing(error)
    {
        return Err(Error::new(Kind::NoDevice, MISSING));
    }
    match mount_by_program(point, source, options) {
        Ok(Some(device)) => Ok(device),
        Err(error) => Err(error),
        Ok(None) => Err(refused.error()),
    }
}

/// Why this process cannot mount by itself.
enum Refused {
    Open(std::io::Error),
    Mount(Error),
}

impl Refused {
    /// When there is no fusermount3 either.
    fn error(self) -> Error {
        match self {
            Self::Open(error) => Error::io(
                "/dev/fuse is closed to this user, and there is no fusermount3 (install fuse3, or as root: chmod 666 \
                 /dev/fuse)",
                error,
            ),
            Self::Mount(error) => Error::new(
                Kind::NotPermitted,
                "mounting as an ordinary user needs fusermount3 (install fuse3), or a namespace: unshare -Urm",
            )
            .with_source(error),
        }
    }
}

const MISSING: &str = "this kernel or container has no /dev/fuse";

fn is_missing(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Os::NOENT.raw_os_error())
}

/// A device whose mount another process of this user namespace makes, by [`mount_directly`]: no program can help.
///
/// # Errors
/// What is missing, and what would help.
pub fn open_device() -> Result<OwnedFd> {
    sys::fuse::open().map_err(|error| {
        if is_missing(&error) {
            return Error::new(
                Kind::NoDevice,
                format!("{MISSING} (as root: modprobe fuse; or --device /dev/fuse of the container)"),
            );
        }
        Error::io("/dev/fuse is closed to this user (as root: chmod 666 /dev/fuse)", error)
    })
}

/// Mounts a device by the one system call.
///
/// # Errors
/// What the kernel said.
pub fn mount_directly(device: BorrowedFd<'_>, point: &Path, source: &OsStr, options: &Options) -> Result<()> {
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={}",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw()
    );
    for (wanted, word) in [(options.allow_other, ",allow_other"), (options.check_permissions, ",default_permissions")] {
        if wanted {
            data.push_str(word);
        }
    }
    let data = CString::new(data).map_err(|error| Error::io("options of the mount", std::io::Error::other(error)))?;
    let mut flags = MountFlags::empty();
    for (wanted, flag) in [
        (options.read_only, MountFlags::RDONLY),
        (options.nosuid, MountFlags::NOSUID),
        (options.nodev, MountFlags::NODEV),
        (options.noexec, MountFlags::NOEXEC),
        (options.noatime, MountFlags::NOATIME),
    ] {
        flags.set(flag, wanted);
    }
    rustix::mount::mount(source, point, KIND, flags, data.as_c_str())
        .map_err(|os| Error::io(format!("mount on {}", point.display()), os))
}

/// `None` when there is no such program.
fn mount_by_program(point: &Path, source: &OsStr, options: &Options) -> Result<Option<OwnedFd>> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|os| Error::io("socket to fusermount3", os))?;
    let mut words = OsString::from("fsname=");
    // A comma would end the name, a backslash keeps it from doing so.
    words.push(OsString::from_vec(
        source
            .as_bytes()
            .iter()
            .flat_map(|byte| match byte {
                b',' | b'\\' => vec![b'\\', *byte],
                _ => vec![*byte],
            })
            .collect(),
    ));
    words.push(format!(",subtype={SUBTYPE}"));
    for (wanted, word) in [
        (options.read_only, ",ro"),
        (options.noexec, ",noexec"),
        (options.noatime, ",noatime"),
        (options.allow_other, ",allow_other"),
        (options.check_permissions, ",default_permissions"),
    ] {
        if wanted {
            words.push(word);
        }
    }
    let mut theirs = Some(theirs);
    for name in FUSERMOUNT {
        let Some(socket) = theirs.take() else { break };
        // Its standard input is the socket, so that no other program started at this moment inherits it.
        let kept = socket.try_clone().context(|| "socket to fusermount3")?;
        let mut command = Command::new(name);
        command.arg("-o").arg(&words).arg("--").arg(point).env("_FUSE_COMMFD", "0");
        let child = command.stdin(Stdio::from(socket)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        // The command holds the socket too.
        drop(command);
        match child {
            Ok(mut child) => {
                drop(kept);
                let device = receive(&ours);
                let mut said = String::new();
                if let Some(mut stderr) = child.stderr.take() {
                    let _ = stderr.read_to_string(&mut said);
                }
                let status = child.wait().context(|| "waiting for fusermount3")?;
                return match device {
                    Some(device) if status.success() => Ok(Some(device)),
                    _ => Err(refusal(name, point, said.trim())),
                };
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => theirs = Some(kept),
            Err(error) => return Err(Error::io(format!("starting {name}"), error)),
        }
    }
    Ok(None)
}

/// The descriptor that comes over the socket, unless it is closed first.
fn receive(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Os::INTR) => {}
            Err(_) => return None,
            Ok(_) => break,
        }
    }
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

/// What fusermount3 said, as an error of ours.
fn refusal(program: &str, point: &Path, said: &str) -> Error {
    let point = point.display();
    let text = said.lines().next_back().unwrap_or_default();
    let text = text.strip_prefix(program).map_or(text, |rest| rest.trim_start_matches(':')).trim();
    let (kind, advice) = if text.contains("user_allow_other") {
        (Kind::NotPermitted, ": write the line user_allow_other into /etc/fuse.conf, or leave out allow_other")
    } else if text.contains("write access") || text.contains("not owned") {
        (Kind::Denied, ": mount on a directory of your own")
    } else if text.contains("too many") {
        (Kind::Limit, ": see mount_max in /etc/fuse.conf")
    } else if text.contains("/dev/fuse") && text.contains("ermission denied") {
        (Kind::Denied, ": /dev/fuse is closed to this user; as root: chmod 666 /dev/fuse")
    } else if text.contains("busy") {
        (Kind::Busy, "")
    } else if text.contains("ermission denied") {
        (Kind::Denied, "")
    } else {
        (Kind::NotPermitted, "")
    };
    let text = if text.is_empty() { "it said nothing" } else { text };
    Error::new(kind, format!("{program} does not mount on {point}{advice}"))
        .with_source(std::io::Error::other(text.to_owned()))
}

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// Not while somebody uses it.
    Plain,
    /// At once out of sight; its users keep what they have open.
    Lazy,
}

/// Unmounts what is at `point`, an absolute path: by itself where that is allowed, else by fusermount3.
///
/// # Errors
/// `Busy`, naming who holds it; `Invalid` when nothing is mounted there; `NotPermitted`.
pub fn unmount(point: &Path, how: Unmount) -> Result<()> {
    let flags =
        UnmountFlags::NOFOLLOW | if how == Unmount::Lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(point, flags) {
        Ok(()) => return Ok(()),
        Err(Os::PERM) => {}
        Err(Os::BUSY) => return Err(busy(point)),
        Err(os) => return Err(Error::io(format!("unmount of {}", point.display()), os)),
    }
    for name in FUSERMOUNT {
        let words: &[&str] = if how == Unmount::Lazy { &["-u", "-z", "--"] } else { &["-u", "--"] };
        let done = Command::new(name).args(words).arg(point).stdin(Stdio::null()).env("LC_ALL", "C").output();
        match done {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                if said.contains("busy") {
                    return Err(busy(point));
                }
                return Err(Error::new(Kind::NotPermitted, format!("unmount of {}", point.display()))
                    .with_source(std::io::Error::other(said.trim().to_owned())));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(format!("starting {name}"), error)),
        }
    }
    Err(Error::new(Kind::NotPermitted, format!("unmount of {} (fusermount3 is not there)", point.display())))
}

fn busy(point: &Path) -> Error {
    let holders: Vec<String> = holders::of(point).iter().map(ToString::to_string).collect();
    let by = match holders.as_slice() {
        [] => "in use by a process that this user cannot see".to_owned(),
        some => format!("in use by {}", some.join(", ")),
    };
    Error::new(Kind::Busy, format!("{}: {by}", point.display()))
}
