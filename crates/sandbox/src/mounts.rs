//! The steps of process 1 that mount.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, mount};

use crate::image::Prepared;
use crate::plan::{Bind, Changes, Device, Mount};
use crate::stage::{Point, Stage, attach, copy_of, move_to};

/// Devices that every program expects.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];
const NOT_DANGEROUS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Mounts an image's files; `told` is called when they have to be served.
pub(crate) fn files(
    stage: &Stage,
    wanted: &Mount,
    image: Prepared,
    told: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let target = stage.point(&wanted.point, Point::Folder)?;
    let folder = match &wanted.changes {
        Changes::Folder(path) => Some(changes_folder(&stage.of_host(path))?),
        _ => None,
    };
    stage.in_workshop(|workshop| {
        let lower = workshop.join("image");
        fs::create_dir(&lower)?;
        image.mount_files(stage, &lower, wanted.changes != Changes::Image, OsStr::new(&wanted.spec))?;
        // From here on its server alone holds it: when that dies, who waits for an answer is told so.
        drop(image);
        told()?;
        if wanted.changes == Changes::Image {
            // Until it is asked, the kernel believes that the top folder is root's, who may be nobody in here; and lets
            // nobody write into that.
            fs::metadata(&lower)?;
        }
        let upper = match (&wanted.changes, &folder) {
            (Changes::Refused | Changes::Image, _) => return move_to(&lower, &target),
            (_, Some(folder)) => stage.of_descriptor(folder.as_fd()),
            _ => {
                let memory = workshop.join("memory");
                fs::create_dir(&memory)?;
                mount("tmpfs", &memory, "tmpfs", NOT_DANGEROUS, Some(c"mode=0700"))?;
                memory
            }
        };
        let merged = workshop.join("merged");
        fs::create_dir(&merged)?;
        overlay(&lower, &upper, &merged)?;
        move_to(&merged, &target)
    })
}

/// The folder of changes, open: made where it is missing, closed to others.
fn changes_folder(path: &Path) -> io::Result<OwnedFd> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    Ok(open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Joins an image's files with changes to them: `upper/files` and the kernel's own `upper/work`.
fn overlay(lower: &Path, upper: &Path, merged: &Path) -> io::Result<()> {
    let (files, work) = (upper.join("files"), upper.join("work"));
    for folder in [&files, &work] {
        match fs::DirBuilder::new().mode(0o755).create(folder) {
            // The top folder of what is seen has the owner and mode of the changes' one.
            Ok(()) if folder == &files => like(lower, &files),
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    let words = |more: &str| {
        let text =
            format!("lowerdir={},upperdir={},workdir={}{more}", lower.display(), files.display(), work.display());
        std::ffi::CString::new(text).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
    };
    // In a user namespace the kernel keeps its notes in user.* attributes, from Linux 5.11 on.
    match mount("overlay", merged, "overlay", NOT_DANGEROUS, words(",userxattr")?.as_c_str()) {
        Err(rustix::io::Errno::INVAL) => Ok(mount("overlay", merged, "overlay", NOT_DANGEROUS, words("")?.as_c_str())?),
        other => Ok(other?),
    }
}

/// Gives `to` the mode and owner of `from`, as far as that is possible.
fn like(from: &Path, to: &Path) {
    use std::os::unix::fs::{MetadataExt as _, chown};
    if let Ok(metadata) = fs::metadata(from) {
        let _ = chown(to, Some(metadata.uid()), Some(metadata.gid()));
        let _ = fs::set_permissions(to, metadata.permissions());
    }
}

/// An empty file system in memory.
pub(crate) fn memory(stage: &Stage, point: &Path, mode: u32) -> io::Result<()> {
    let target = stage.point(point, Point::Folder)?;
    let words = std::ffi::CString::new(format!("mode={mode:04o}")).unwrap_or_default();
    stage.in_workshop(|workshop| {
        let made = workshop.join("memory");
        fs::create_dir(&made)?;
        mount("tmpfs", &made, "tmpfs", NOT_DANGEROUS, words.as_c_str())?;
        move_to(&made, &target)
    })
}

/// Shows a file or folder of the machine.
pub(crate) fn bind(stage: &Stage, wanted: &Bind) -> io::Result<()> {
    let from = stage.of_host(&wanted.from);
    let kind = if fs::metadata(&from)?.is_dir() { Point::Folder } else { Point::File };
    let target = stage.point(&wanted.to, kind)?;
    let tree = copy_of(&from)?;
    if wanted.read_only {
        sys::mount::make_read_only(tree.as_fd())?;
    }
    attach(&tree, &target)
}

/// Makes files of these contents, in memory; each is a mount that is nowhere yet.
pub(crate) fn covers<'a>(stage: &Stage, contents: impl Iterator<Item = &'a str>) -> io::Result<VecDeque<OwnedFd>> {
    stage.in_workshop(|workshop| {
        let made = contents.enumerate().map(|(number, content)| {
            let file = workshop.join(number.to_string());
            fs::write(&file, content)?;
            // The mount keeps the file, and the file its file system.
            copy_of(&file)
        });
        made.collect()
    })
}

/// Mounts a file over `path`; over the machine's root, only where there is one.
pub(crate) fn cover(stage: &Stage, path: &Path, file: &OwnedFd) -> io::Result<()> {
    if !stage.is_new() && !stage.has(path)? {
        return Ok(());
    }
    attach(file, &stage.point(path, Point::File)?)
}

/// A `/dev` of its own.
pub(crate) fn dev(stage: &mut Stage, all: bool) -> io::Result<()> {
    let target = stage.point(Path::new("/dev"), Point::Folder)?;
    stage.in_workshop(|workshop| {
        let dev = workshop.join("dev");
        fs::create_dir(&dev)?;
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        mount("tmpfs", &dev, "tmpfs", flags, Some(c"mode=0755,size=1m"))?;
        let host = stage.of_host(Path::new("/dev"));
        if all {
            devices_of_the_machine(&host, &dev)?;
        } else {
            devices_that_all_need(stage, &host, &dev)?;
        }
        move_to(&dev, &target)
    })?;
    stage.own_dev = true;
    Ok(())
}

fn devices_of_the_machine(host: &Path, dev: &Path) -> io::Result<()> {
    for entry in fs::read_dir(host)? {
        let entry = entry?;
        let (kind, to) = (entry.file_type()?, dev.join(entry.file_name()));
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &to)?;
        } else if kind.is_dir() || kind.is_char_device() || kind.is_block_device() || kind.is_file() {
            show(&entry.path(), &to, kind.is_dir())?;
        }
    }
    Ok(())
}

/// Makes `to` and shows `from` there.
fn show(from: &Path, to: &Path, is_folder: bool) -> io::Result<()> {
    if is_folder {
        fs::create_dir(to)?;
    } else {
        fs::File::create(to)?;
    }
    let target = open(to, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    attach(&copy_of(from)?, &target)
}

fn devices_that_all_need(stage: &Stage, host: &Path, dev: &Path) -> io::Result<()> {
    for name in DEVICES {
        show(&host.join(name), &dev.join(name), false)?;
    }
    for folder in ["pts", "shm"] {
        fs::create_dir(dev.join(folder))?;
    }
    mount("tmpfs", dev.join("shm"), "tmpfs", NOT_DANGEROUS | MountFlags::NOEXEC, Some(c"mode=1777"))?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    // The group of terminals, 5 everywhere, may have no number in this user namespace.
    let pts = |words| mount("devpts", dev.join("pts"), "devpts", flags, Some(words));
    if pts(c"newinstance,ptmxmode=0666,mode=0620,gid=5").is_err() {
        pts(c"newinstance,ptmxmode=0666,mode=0620")?;
    }
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        std::os::unix::fs::symlink(target, dev.join(name))?;
    }
    // The terminal, so that its name can be found by its number.
    if let Some(terminal) = terminal() {
        let _ = show(&stage.of_host(&terminal), &dev.join("console"), false);
    }
    Ok(())
}

/// The terminal that the command will have, by its name outside.
fn terminal() -> Option<PathBuf> {
    let found = |fd: rustix::fd::BorrowedFd<'_>| {
        if !rustix::termios::isatty(fd) {
            return None;
        }
        use std::os::unix::ffi::OsStringExt as _;
        let name = rustix::termios::ttyname(fd, Vec::new()).ok()?;
        Some(PathBuf::from(std::ffi::OsString::from_vec(name.into_bytes())))
    };
    found(rustix::stdio::stdin()).or_else(|| found(rustix::stdio::stderr()))
}

/// Puts a disk, and its partitions, into `/dev`; `told` is called when it has to be served.
pub(crate) fn device(
    stage: &Stage,
    wanted: &Device,
    image: Prepared,
    told: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let place = |from: &Path, name: &str| {
        let point = Path::new("/dev").join(name);
        let target = stage.point(&point, Point::File)?;
        attach(&copy_of(from)?, &target)
    };
    match image {
        Prepared::Loop { nodes, _open, .. } => {
            nodes.iter().try_for_each(|(node, name)| place(&stage.of_host(node), name))
        }
        Prepared::Offer { offer, names } => stage.in_workshop(|workshop| {
            let disk = workshop.join("disk");
            fs::create_dir(&disk)?;
            offer.mount(&disk, OsStr::new(&wanted.spec)).map_err(|error| errno(&error))?;
            drop(offer);
            told()?;
            names.iter().try_for_each(|name| place(&disk.join(name), name))
        }),
    }
}

/// The errno of an error of the disk.
pub(crate) fn errno(error: &block::Error) -> io::Error {
    let said = error.find::<io::Error>().and_then(io::Error::raw_os_error);
    io::Error::from_raw_os_error(said.unwrap_or_else(|| error.kind().errno()))
}

/// A `/proc` that shows the new process namespace. Containers that hide parts of theirs forbid it; then the old one
/// stays, whose `/proc/self` is right and whose other numbers are those of outside.
pub(crate) fn proc(stage: &Stage) -> io::Result<()> {
    let point = stage.point(Path::new("/proc"), Point::Folder)?;
    let flags = NOT_DANGEROUS | MountFlags::NOEXEC;
    let mounted = mount("proc", stage.of_descriptor(point.as_fd()), "proc", flags, None);
    match mounted {
        Err(rustix::io::Errno::PERM) if stage.is_new() => attach(&copy_of(&stage.of_host(Path::new("/proc")))?, &point),
        Err(rustix::io::Errno::PERM) => Ok(()),
        other => Ok(other?),
    }
}

/// Makes read-only what of `/proc` changes the machine, for a root that is the machine's.
pub(crate) fn guard_proc(stage: &Stage) -> io::Result<()> {
    for path in ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/kcore", "/proc/acpi"]
    {
        let path = Path::new(path);
        if !stage.has(path)? {
            continue;
        }
        let folder = stage.point(path, Point::Folder);
        let target = match folder {
            Ok(folder) => folder,
            Err(_) => stage.point(path, Point::File)?,
        };
        let tree = copy_of(&stage.of_descriptor(target.as_fd()))?;
        sys::mount::make_read_only(tree.as_fd())?;
        attach(&tree, &target)?;
    }
    Ok(())
}

/// Makes the root alone read-only, and nothing that is mounted in it.
pub(crate) fn seal(stage: &Stage) -> io::Result<()> {
    let root = stage.point(Path::new("/"), Point::Folder)?;
    let flags = NOT_DANGEROUS | MountFlags::BIND | MountFlags::RDONLY;
    Ok(rustix::mount::mount_remount(stage.of_descriptor(root.as_fd()), flags, "")?)
}
