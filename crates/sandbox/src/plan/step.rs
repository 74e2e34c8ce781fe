//! The steps, and how they read.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use net::hosts::Hosts;
use net::publish::Publish;

use super::{Bind, Identity, LinkOptions, NAME_SERVER, Subordinate};

/// Where what is written to an image goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// Nothing is written.
    Refused,
    /// Into the image.
    Image,
    /// Into memory; dropped at the end.
    Memory,
    /// As files into a folder of the machine; kept.
    Folder(PathBuf),
}

/// Who reads the image's file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Loopbox, for the kernel's FUSE.
    Fuse,
    /// The kernel's file system of this name, on a loop device.
    Kernel(&'static str),
}

/// A file system of an image, at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Which of the images that are given to [`crate::spawn`].
    pub image: usize,
    /// The spec as typed.
    pub spec: String,
    /// Where.
    pub point: PathBuf,
    /// By whom.
    pub by: By,
    /// What becomes of writes.
    pub changes: Changes,
}

/// A disk in `/dev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Which of the images that are given to [`crate::spawn`].
    pub image: usize,
    /// The spec as typed.
    pub spec: String,
    /// Its name in `/dev`.
    pub name: String,
    /// Whether it is a loop device of the kernel, rather than a node served by loopbox.
    pub kernel: bool,
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Listen on a port of the machine, before its network is left.
    Publish(Publish),
    /// Enter a new user namespace.
    User {
        /// Who the user is in there.
        identity: Identity,
        /// The user's number outside.
        uid: u32,
        /// The group's number outside.
        gid: u32,
        /// Other numbers that the user has in there.
        subordinate: Option<Subordinate>,
    },
    /// Enter a new network namespace.
    Network,
    /// Set its `lo` up.
    LoopbackUp,
    /// Set a number of the kernel that belongs to the network namespace; where `/proc/sys` is read-only it stays.
    Sysctl {
        /// The path below `/proc/sys`.
        name: &'static str,
        /// The value.
        value: String,
    },
    /// Lead the packets of `lo` through a link.
    Link(LinkOptions),
    /// Answer names at [`NAME_SERVER`].
    Names(Hosts),
    /// Open `/dev/fuse` for each image that loopbox serves.
    Fuse(usize),
    /// Start process 1 of a new process namespace, which dies with the supervisor.
    Init,
    /// Enter a new mount namespace.
    Mounts,
    /// Begin another root: what was `/` is at a place that the command will not see.
    Stage,
    /// Mount an image's files: at `/`, the new root.
    Mount(Mount),
    /// Mount an empty file system in memory.
    Memory {
        /// Where.
        point: PathBuf,
        /// Permissions of its folder.
        mode: u32,
    },
    /// A `/dev` of its own: with the machine's devices, or with those alone that every program needs.
    Dev {
        /// All of the machine's.
        all: bool,
    },
    /// Put a disk into `/dev`.
    Device(Device),
    /// Show a file or folder of the machine.
    Bind(Bind),
    /// Mount a private file over one of the machine; a path that is not there is left alone, and made in a new root.
    File {
        /// The path.
        path: PathBuf,
        /// The content.
        content: String,
    },
    /// Mount a `/proc` of the new process namespace, where the machine allows it.
    Proc,
    /// Make what of `/proc` changes the machine read-only.
    GuardProc,
    /// Make the root read-only.
    Seal,
    /// Change to the new root, and let go of the old one.
    Enter,
    /// Give up capabilities.
    Capabilities,
    /// Programs that the command runs gain no privileges by set-user-id bits or file capabilities.
    NoNewPrivileges,
    /// Give the command these variables; alone, or over those that this process has.
    Environment {
        /// Whether nothing else is there.
        alone: bool,
        /// Names and values.
        variables: Vec<(OsString, OsString)>,
    },
    /// Change to this folder; without `must`, to `/` where it is not there.
    Directory {
        /// The folder.
        path: PathBuf,
        /// Whether it has to be there.
        must: bool,
    },
    /// Run the command.
    Run(Vec<OsString>),
}

fn shown(path: &Path) -> String {
    path.display().to_string().escape_debug().collect()
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Publish(publish) => write!(f, "publish {publish}"),
            Self::User { identity, uid, gid, subordinate } => {
                match identity {
                    Identity::Keep => write!(f, "new user namespace: user {uid}, group {gid}, as outside")?,
                    Identity::Root => write!(f, "new user namespace: root inside is user {uid}, group {gid}, outside")?,
                }
                match subordinate {
                    Some(Subordinate { uids, gids }) => {
                        write!(f, "; {} users from {}, {} groups from {}", uids.1, uids.0, gids.1, gids.0)
                    }
                    None => Ok(()),
                }
            }
            Self::Network => write!(f, "new network namespace"),
            Self::LoopbackUp => write!(f, "set lo up"),
            Self::Sysctl { name, value } => write!(f, "set {} to {value}", name.replace('/', ".")),
            Self::Link(link) => {
                write!(f, "lead lo through a link, seed {}", link.seed)?;
                link.rules.iter().try_for_each(|rule| write!(f, "; {rule}"))?;
                link.capture.iter().try_for_each(|file| write!(f, "; capture to {}", file.display()))
            }
            Self::Names(_) => write!(f, "answer names at {NAME_SERVER}"),
            Self::Fuse(1) => write!(f, "open /dev/fuse for 1 image"),
            Self::Fuse(images) => write!(f, "open /dev/fuse for {images} images"),
            Self::Init => write!(f, "new process namespace: process 1, which dies with this one"),
            Self::Mounts => write!(f, "new mount namespace"),
            Self::Stage => write!(f, "begin a new root, in memory"),
            Self::Mount(Mount { spec, point, by, changes, .. }) => {
                write!(f, "mount {} on {} by ", spec.escape_debug(), shown(point))?;
                match by {
                    By::Fuse => write!(f, "loopbox, through FUSE")?,
                    By::Kernel(name) => write!(f, "the kernel, as {name}")?,
                }
                match changes {
                    Changes::Refused => write!(f, ", read-only"),
                    Changes::Image => write!(f, ", writable"),
                    Changes::Memory => write!(f, ", changes in memory, dropped at the end"),
                    Changes::Folder(folder) => write!(f, ", changes kept in {}", shown(folder)),
                }
            }
            Self::Memory { point, .. } => write!(f, "mount memory on {}", shown(point)),
            Self::Dev { all: true } => write!(f, "mount a private /dev with the machine's devices"),
            Self::Dev { all: false } => {
                write!(f, "mount a private /dev: null, zero, full, random, urandom, tty, pts, shm")
            }
            Self::Device(Device { spec, name, kernel, .. }) => {
                let by = if *kernel { "the kernel's loop driver" } else { "loopbox, through FUSE" };
                write!(f, "put {} at /dev/{name}, by {by}", spec.escape_debug())
            }
            Self::Bind(Bind { from, to, read_only }) => {
                let how = if *read_only { ", read-only" } else { "" };
                write!(f, "show {} at {}{how}", shown(from), shown(to))
            }
            Self::File { path, content } => {
                write!(f, "mount {} bytes over {}", content.len(), path.display())
            }
            Self::Proc => write!(f, "mount /proc"),
            Self::GuardProc => write!(f, "make /proc/sys and its like read-only"),
            Self::Seal => write!(f, "make / read-only"),
            Self::Enter => write!(f, "change to the new root"),
            Self::Capabilities => write!(f, "give up capabilities over the machine, its network and its mounts"),
            Self::NoNewPrivileges => write!(f, "no new privileges by set-user-id programs"),
            Self::Environment { alone, variables } => {
                write!(f, "set{}", if *alone { " nothing but" } else { "" })?;
                variables.iter().try_for_each(|(name, value)| write!(f, " {}={}", name.display(), value.display()))
            }
            Self::Directory { path, must } => {
                write!(f, "change to the folder {}{}", shown(path), if *must { "" } else { ", or /" })
            }
            Self::Run(command) => {
                write!(f, "run")?;
                command.iter().try_for_each(|word| write!(f, " {}", word.display()))
            }
        }
    }
}
