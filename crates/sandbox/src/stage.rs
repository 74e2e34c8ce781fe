//! Where the new world is built: the places of process 1 while it mounts.
//!
//! ```text
//! over the machine's root         in a new root (Step::Stage)
//!   root      /                     root      /new        what the command will see as /
//!   host      /                     host      /old        what was / before, gone at Step::Enter
//!   workshop  /tmp, for a moment    workshop  /work       where a mount is put together before it is moved to its place
//! ```
//! **Names inside an image are not to be trusted**: `/etc` in it may be a link to `/old/home`. Whatever is looked up
//! below the root is looked up with `RESOLVE_IN_ROOT`, so that links end inside of it, and is known by its descriptor
//! from then on.

use std::cell::Cell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, open, openat2, readlinkat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree, unmount};
use rustix::process::{chdir, pivot_root};

/// Links that one name may lead through.
const LINKS_MAX: usize = 16;
const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// The places.
#[derive(Debug)]
pub(crate) struct Stage {
    root: PathBuf,
    host: PathBuf,
    workshop: PathBuf,
    /// Whether the root is another one than the machine's.
    is_new: bool,
    /// How often the workshop of a new root was used.
    used: Cell<u32>,
    /// Whether `/dev` is.
    pub own_dev: bool,
}

/// What something is mounted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    Folder,
    File,
}

impl Stage {
    /// Over the machine's root.
    pub fn over_the_machine() -> Self {
        Self {
            root: "/".into(),
            host: "/".into(),
            workshop: "/tmp".into(),
            is_new: false,
            used: Cell::new(0),
            own_dev: false,
        }
    }

    /// Makes room for a new root: what was `/` is below `/old` from now on.
    pub fn begin(&mut self) -> io::Result<()> {
        mount("tmpfs", "/tmp", "tmpfs", FLAGS, Some(c"size=4m,mode=0755"))?;
        for folder in ["/tmp/new", "/tmp/old", "/tmp/work"] {
            std::fs::create_dir(folder)?;
        }
        pivot_root("/tmp", "/tmp/old")?;
        chdir("/")?;
        let (root, host, workshop) = ("/new".into(), "/old".into(), "/work".into());
        *self = Self { root, host, workshop, is_new: true, used: Cell::new(0), own_dev: false };
        Ok(())
    }

    /// Changes to the new root, and lets go of the old one.
    pub fn enter(&mut self) -> io::Result<()> {
        chdir(&self.root)?;
        // The old root comes to lie on the new one, and the first thing that is there is taken away: that is the old one.
        pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        chdir("/")?;
        *self = Self::over_the_machine();
        Ok(())
    }

    /// Whether the root is another one than the machine's.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// A path of the machine.
    pub fn of_host(&self, path: &Path) -> PathBuf {
        self.host.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A path by which an open file can be named for as long as it is open.
    pub fn of_descriptor(&self, fd: BorrowedFd<'_>) -> PathBuf {
        use std::os::fd::AsRawFd as _;
        self.of_host(Path::new("/proc/self/fd")).join(fd.as_raw_fd().to_string())
    }

    /// Whether `path` is there inside.
    pub fn has(&self, path: &Path) -> io::Result<bool> {
        match self.look(path) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn open_root(&self) -> rustix::io::Result<OwnedFd> {
        open(&self.root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    }

    /// Opens what is at `path` inside, as a name.
    fn look(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        look(self.open_root()?, path, OFlags::empty())
    }

    /// What is at `path` inside, made where it is missing: in a new root only.
    pub fn point(&self, path: &Path, kind: Point) -> io::Result<OwnedFd> {
        let found = match self.look(path) {
            Err(Errno::NOENT) if self.is_new || (self.own_dev && path.starts_with("/dev")) => {
                self.make(path, kind, LINKS_MAX)?
            }
            found => found?,
        };
        let is_folder = FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::Directory;
        match (kind, is_folder) {
            (Point::Folder, false) => Err(Errno::NOTDIR.into()),
            (Point::File, true) => Err(Errno::ISDIR.into()),
            _ => Ok(found),
        }
    }

    /// Makes a missing file or folder, and the folders above it. A link that leads nowhere is followed first.
    fn make(&self, path: &Path, kind: Point, links_left: usize) -> rustix::io::Result<OwnedFd> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return self.look(path) };
        let links_left = links_left.checked_sub(1).ok_or(Errno::LOOP)?;
        let folder = match self.look(parent) {
            Err(Errno::NOENT) => self.make(parent, Point::Folder, links_left)?,
            found => found?,
        };
        if let Ok(target) = readlinkat(&folder, name, Vec::new()) {
            use std::os::unix::ffi::OsStrExt as _;
            let target = Path::new(OsStr::from_bytes(target.as_bytes()));
            return self.make(&lexical(&parent.join(target)), kind, links_left);
        }
        match kind {
            Point::Folder => match mkdirat(&folder, name, Mode::from(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            },
            Point::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&folder, name, flags, Mode::from(0o644))?;
            }
        }
        look(folder, Path::new(name), OFlags::NOFOLLOW)
    }

    /// Puts a mount together in a folder of its own, in memory and out of sight, from where `make` moves it to its place.
    ///
    /// The workshop of a new root stays until that is entered: an unmount waits for all processors.
    pub fn in_workshop<T>(&self, make: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
        if self.is_new {
            let folder = self.workshop.join(self.used.replace(self.used.get().saturating_add(1)).to_string());
            std::fs::create_dir(&folder)?;
            return make(&folder);
        }
        mount("tmpfs", &self.workshop, "tmpfs", FLAGS, Some(c"size=4m,mode=0755"))?;
        let made = make(&self.workshop);
        // What was moved away stays, and so does what others are made of.
        unmount(&self.workshop, UnmountFlags::DETACH)?;
        made
    }
}

fn look(root: OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let below = path.strip_prefix("/").unwrap_or(path);
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let flags = OFlags::PATH | OFlags::CLOEXEC | flags;
    loop {
        // EAGAIN: a folder was renamed meanwhile, so that `..` could have led out.
        match openat2(&root, below, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A kernel before 5.6 has no such call, and no image to be feared either when its own root is meant.
            other => return other,
        }
    }
}

/// Without `.` and `..`, which do not lead above the root.
fn lexical(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

/// Moves the mount at `from` to the place that `target` is.
pub(crate) fn move_to(from: &Path, target: &OwnedFd) -> io::Result<()> {
    Ok(move_mount(CWD, from, target, "", MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)?)
}

/// A second mount of what is at `from`, and of all that is mounted below it, which is nowhere yet.
pub(crate) fn copy_of(from: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, from, flags)?)
}

/// Puts a mount that is nowhere yet to where `target` is.
pub(crate) fn attach(tree: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree.as_fd(), "", target.as_fd(), "", flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_above_the_root() {
        assert_eq!(lexical(Path::new("/etc/../../run/./x")), Path::new("/run/x"));
        assert_eq!(lexical(Path::new("/")), Path::new("/"));
    }

    #[test]
    fn links_of_an_image_end_inside_of_it() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("new");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir(scratch.path().join("outside")).unwrap();
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, root.join(name)).unwrap();
        link("/run/systemd/resolve/stub.conf", "etc/resolv.conf");
        link("../../../../../outside", "etc/up");
        link(scratch.path().join("outside").to_str().unwrap(), "absolute");
        link("round", "round");
        let stage = Stage { root: root.clone(), is_new: true, ..Stage::over_the_machine() };
        stage.point(Path::new("/etc/resolv.conf"), Point::File).unwrap();
        assert!(root.join("run/systemd/resolve/stub.conf").is_file());
        stage.point(Path::new("/etc/up/a/b"), Point::Folder).unwrap();
        assert!(root.join("outside/a/b").is_dir());
        stage.point(Path::new("/absolute/c"), Point::Folder).unwrap();
        assert_eq!(std::fs::read_dir(scratch.path().join("outside")).unwrap().count(), 0, "nothing was made outside");
        assert!(stage.point(Path::new("/round"), Point::File).is_err());
        assert!(stage.point(Path::new("/etc"), Point::File).is_err());
        assert!(stage.point(Path::new("/etc/resolv.conf"), Point::Folder).is_err());
        assert!(stage.has(Path::new("/etc")).unwrap() && !stage.has(Path::new("/no")).unwrap());
    }
}
