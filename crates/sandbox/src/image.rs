//! The images of a command: what the caller gives, and what process 1 mounts of it.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use export::fuse::{File, Offer, Options, Ownership};
use export::loop_device::Attached;
use fs::{FileSystem, Writable};
use rustix::mount::{MountFlags, mount};

use crate::mounts::errno;
use crate::stage::Stage;

/// An image, opened.
pub enum Image {
    /// The file system in it, to be served through FUSE.
    Files(Arc<dyn FileSystem>),
    /// The same, to be written.
    Written(Arc<dyn Writable>),
    /// The disk that it is and its partitions, by their names in `/dev`, to be served through FUSE.
    Disk(Vec<File>),
    /// A loop device of the kernel, with the names that it and its partitions have in `/dev` inside, or with the file
    /// system that the kernel finds on it. It goes away with its last user.
    Loop {
        /// The device, kept open until it is mounted.
        attached: Attached,
        /// The file system.
        kind: Option<&'static str>,
        /// Nodes of the machine, and their names inside.
        nodes: Vec<(PathBuf, String)>,
    },
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files(_) => "Files",
            Self::Written(_) => "Written",
            Self::Disk(_) => "Disk",
            Self::Loop { .. } => "Loop",
        })
    }
}

/// An image, ready to be mounted by process 1.
#[derive(Debug)]
pub(crate) enum Prepared {
    Offer {
        offer: Offer,
        /// Of a disk: the names of its files.
        names: Vec<String>,
    },
    Loop {
        node: PathBuf,
        kind: Option<&'static str>,
        nodes: Vec<(PathBuf, String)>,
        _open: Attached,
    },
}

/// Who sees which owners.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owners {
    /// Whether the users of an image have numbers here; else all files are the one user's.
    pub real: bool,
    /// The one user and group, by their numbers inside.
    pub one: (u32, u32),
}

impl Owners {
    /// How a file system of this name is mounted.
    fn options(self, name: &str) -> Options {
        let one = Ownership { uid: Some(self.one.0), gid: Some(self.one.1), ..Ownership::default() };
        let ownership = if self.real && fs::has_owners(name) { Ownership::default() } else { one };
        Options { ownership, ..Options::of_user(self.real) }
    }
}

impl Prepared {
    /// Opens what is needed to serve it.
    pub fn new(image: Image, owners: Owners) -> block::Result<Self> {
        match image {
            Image::Files(files) => {
                let options = owners.options(files.name());
                Ok(Self::Offer { offer: Offer::directory(files, &options)?, names: Vec::new() })
            }
            Image::Written(files) => {
                let options = Options { read_only: false, ..owners.options(files.name()) };
                Ok(Self::Offer { offer: Offer::writable(files, &options)?, names: Vec::new() })
            }
            Image::Disk(files) => {
                let names = files.iter().map(|file| file.name.clone()).collect();
                Ok(Self::Offer { offer: Offer::disk(files, owners.real)?, names })
            }
            Image::Loop { attached, kind, nodes } => {
                Ok(Self::Loop { node: attached.path().to_owned(), kind, nodes, _open: attached })
            }
        }
    }

    /// Mounts its file system on a folder.
    pub fn mount_files(&self, stage: &Stage, on: &Path, read_only: bool, source: &OsStr) -> io::Result<()> {
        match self {
            Self::Offer { offer, .. } => offer.mount(on, source).map_err(|error| errno(&error)),
            Self::Loop { node, kind, .. } => {
                let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
                flags.set(MountFlags::RDONLY, read_only);
                Ok(mount(stage.of_host(node), on, kind.unwrap_or_default(), flags, None)?)
            }
        }
    }
}
