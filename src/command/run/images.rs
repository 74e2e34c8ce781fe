//! `--root`, `--mount`, `--device`, `--bind`: words of the command line become images and what the plan says of them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Error, Kind, ReadAt as _, Result};
use export::loop_device::{self, Attached};
use export::registry::{Registry, Use};
use format::spec::{self, Spec, Step};
use fs::FileSystem;
use fs::path::{LastLink, resolve};
use sandbox::Image;
use sandbox::plan::{Bind, By, Changes, Device, Mount};

use crate::command::{attach, mount};
use crate::stack::{Access, Stack};

/// Most bytes of a small file of an image that is read.
const SMALL_FILE_BYTES_MAX: usize = 64 << 10;

/// File systems that the kernel never writes to.
const READ_ONLY: &[&str] = &["squashfs", "erofs", "iso9660", "cramfs", "romfs"];

/// An image that is only opened when the plan is carried out.
type Open = Box<dyn FnOnce() -> Result<Image>>;

/// The images of a command, in the order of their numbers in the plan.
pub struct Images {
    /// Whether the kernel is asked first.
    by_kernel: bool,
    open: Vec<Open>,
    loops: usize,
}

/// A file system that is going to be mounted.
pub struct Mounted {
    /// What the plan says of it.
    pub mount: Mount,
    /// It, where loopbox can read it.
    pub files: Option<Arc<dyn FileSystem>>,
}

impl Images {
    /// None yet; of a user who may mount on the machine where `privileged`.
    pub fn new(privileged: bool) -> Self {
        Self { by_kernel: privileged && loop_device::Control::open().is_ok(), open: Vec::new(), loops: 0 }
    }

    /// Opens them.
    ///
    /// # Errors
    /// Those of the first that cannot be opened.
    pub fn open(self) -> Result<Vec<Image>> {
        self.open.into_iter().map(|open| open()).collect()
    }

    /// The file system of `image` at `point`.
    ///
    /// # Errors
    /// That of the spec, of the image, of its file system; where writing was asked for and is not possible.
    pub fn mount(&mut self, image: &OsStr, point: &Path, read_only: bool) -> Result<Mounted> {
        let mut spec = Spec::parse(image)?;
        let changes = changes(&mut spec);
        let read_only = read_only || spec.steps.contains(&Step::ReadOnly);
        let stack = Stack::open(&spec, Access::Read)?;
        let found = self.by_kernel.then(|| mount::for_kernel(&stack, image)).transpose()?.flatten();
        let place = found.and_then(|(part, kind)| Some((part.place()?, kind)));
        let number = self.open.len();
        let of = |by, changes| Mount {
            image: number,
            spec: image.to_string_lossy().into_owned(),
            point: point.to_owned(),
            by,
            changes,
        };
        if let Some(((offset, sizelimit), kind)) = place {
            let writes = changes.is_none() && !read_only && !READ_ONLY.contains(&kind) && writable(&spec.path);
            if changes.is_none() && !writes {
                refuse_writes(&spec, kind)?;
            }
            let options =
                loop_device::Options { offset, sizelimit, read_only: !writes, autoclear: true, ..Default::default() };
            let files = crate::inside::file_system(&spec, Arc::clone(&stack.device), image).ok();
            let path = spec.path.clone();
            self.open.push(Box::new(move || {
                let attached = loop_device::attach(&path, &options)?;
                Ok(Image::Loop { attached, kind: Some(kind), nodes: Vec::new() })
            }));
            let changes = changes.unwrap_or(if writes { Changes::Image } else { Changes::Refused });
            return Ok(Mounted { mount: of(By::Kernel(kind), changes), files });
        }
        let files = crate::inside::file_system(&spec, Arc::clone(&stack.device), image)?;
        if changes.is_none() && !read_only {
            if let Some(stack) = written(&stack, files.name())? {
                let typed = image.to_owned();
                self.open.push(Box::new(move || {
                    Ok(Image::Written(crate::inside::writable(&stack.spec, stack.device, &typed)?))
                }));
                return Ok(Mounted { mount: of(By::Fuse, Changes::Image), files: Some(files) });
            }
            refuse_writes(&spec, files.name())?;
        }
        let served = Arc::clone(&files);
        self.open.push(Box::new(move || Ok(Image::Files(served))));
        Ok(Mounted { mount: of(By::Fuse, changes.unwrap_or(Changes::Refused)), files: Some(files) })
    }

    /// The disk of `SPEC[:NAME]`.
    ///
    /// # Errors
    /// That of the spec and of the image.
    pub fn device(&mut self, typed: &OsStr) -> Result<Device> {
        let (image, name) = spec::split_path(typed, Path::exists);
        let spec = Spec::parse(image)?;
        let name = match name.map(|name| name.to_str().map(|name| name.strip_prefix("/dev/").unwrap_or(name))) {
            Some(Some(name)) => name.to_owned(),
            Some(None) => return Err(Error::new(Kind::Invalid, format!("name of the device {}", typed.display()))),
            None => {
                self.loops += 1;
                format!("loop{}", self.loops - 1)
            }
        };
        let options = attach::kernel_options(&spec).filter(|_| self.by_kernel);
        let kernel = options.is_some();
        let device =
            Device { image: self.open.len(), spec: image.to_string_lossy().into_owned(), name: name.clone(), kernel };
        // What is wrong with the image is said before anything is done.
        drop(Stack::open(&spec, Access::Read)?);
        self.open.push(match options {
            Some(options) => Box::new(move || {
                let options = loop_device::Options { autoclear: true, partitions: attach::spans(&spec), ..options };
                let attached = loop_device::attach(&spec.path, &options)?;
                let nodes = nodes(&attached, &name);
                Ok(Image::Loop { attached, kind: None, nodes })
            }),
            None => Box::new(move || {
                let stack = Stack::open(&spec, Access::WriteIfPossible)?;
                attach::refuse_loop_device(&spec.path, stack.device.limits().read_only)?;
                Ok(Image::Disk(attach::files(&stack.device, &name)?))
            }),
        });
        Ok(device)
    }
}

/// The nodes of a loop device, and the names that they have inside.
fn nodes(attached: &Attached, name: &str) -> Vec<(PathBuf, String)> {
    let whole = attached.path().to_owned();
    let digits = |node: &Path| {
        let text = node.to_string_lossy().into_owned();
        text.rsplit('p').next().and_then(|digits| digits.parse::<u32>().ok())
    };
    let parts =
        attached.partitions.iter().filter_map(|node| Some((node.clone(), attach::partition_name(name, digits(node)?))));
    std::iter::once((whole, name.to_owned())).chain(parts).collect()
}

/// The image, open to be written: one whose file system of this name loopbox writes, where the file lets it.
///
/// # Errors
/// `Busy`, with what to type, where another has it; those of opening it.
fn written(stack: &Stack, name: &str) -> Result<Option<Stack>> {
    let spec = &stack.spec;
    if !fs::is_written(name) || !writable(&spec.path) {
        return Ok(None);
    }
    let busy = |error: Error| match error.kind() {
        Kind::Busy => error.context("writing into an image that is in use (`,ro` reads it)"),
        _ => error,
    };
    attach::refuse_loop_device(&spec.path, false).map_err(busy)?;
    // A run without a registry is as good as one with it: only what it knows counts.
    let known = Registry::of_user()
        .and_then(|registry| registry.refuse_second(&export::registry::Image::at(&spec.path)?, Use::Directory, false));
    if let Err(error) = known
        && error.kind() == Kind::Busy
    {
        return Err(busy(error));
    }
    // After `rw` it is open for writing already, and nobody else may be.
    let stack = match stack.device.limits().read_only {
        true => Stack::open(spec, Access::WriteIfPossible).map_err(busy)?,
        false => stack.clone(),
    };
    Ok(Some(stack).filter(|stack| !stack.device.limits().read_only))
}

/// That nobody asked for writing, where a file system of this name is not written.
fn refuse_writes(spec: &Spec, name: &str) -> Result<()> {
    if !spec.steps.contains(&Step::ReadWrite) {
        return Ok(());
    }
    let why = if READ_ONLY.contains(&name) {
        format!("{name} is never written to")
    } else {
        format!("writing into {name} takes root, and a kernel that knows it")
    };
    Err(Error::new(
        Kind::ReadOnly,
        format!("{spec}: {why}; with `overlay` in place of `rw` changes are kept beside it"),
    ))
}

fn writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Takes the last `overlay` off a spec, where it means files: a folder of changes, or memory. That of a file of changes
/// stays: it is one of blocks.
fn changes(spec: &mut Spec) -> Option<Changes> {
    let changes = match spec.steps.last()? {
        Step::Overlay(None) => Changes::Memory,
        Step::Overlay(Some(path)) if !path.is_file() => Changes::Folder(std::path::absolute(path).ok()?),
        _ => return None,
    };
    spec.steps.pop();
    Some(changes)
}

/// `SPEC:PATH[,ro]`.
///
/// # Errors
/// Where there is no `:PATH`.
pub fn mount_words(typed: &OsStr) -> Result<(OsString, PathBuf, bool)> {
    let (image, point) = spec::split_path(typed, Path::exists);
    let Some(point) = point else {
        return Err(Error::new(Kind::Invalid, format!("--mount {}: no :PATH behind the image", typed.display())));
    };
    let (point, read_only) = read_only(point.as_bytes());
    Ok((image.to_owned(), point, read_only))
}

fn read_only(path: &[u8]) -> (PathBuf, bool) {
    let path_of = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    match (path.strip_suffix(b",ro"), path.strip_suffix(b",rw")) {
        (Some(path), _) => (path_of(path), true),
        (_, Some(path)) => (path_of(path), false),
        _ => (path_of(path), false),
    }
}

/// `HOST[:PATH][,ro]`; the same path inside where none is said.
///
/// # Errors
/// Where it is not there.
pub fn bind(typed: &OsStr) -> Result<Bind> {
    let (words, read_only) = read_only(typed.as_bytes());
    let bytes = words.as_os_str().as_bytes();
    let colon = bytes.iter().position(|byte| *byte == b':').filter(|_| !words.exists());
    let (host, inside) = match colon.and_then(|at| bytes.split_at_checked(at)) {
        Some((host, inside)) => (host, inside.get(1..)),
        None => (bytes, None),
    };
    let failed = |error| Error::io(format!("--bind {}", typed.display()), error);
    let from = std::path::absolute(OsStr::from_bytes(host)).map_err(failed)?;
    std::fs::metadata(&from).map_err(failed)?;
    let to = inside.map_or_else(|| from.clone(), |inside| PathBuf::from(OsStr::from_bytes(inside)));
    Ok(Bind { from, to, read_only })
}

/// Whether all of these are there in an image.
pub fn has_all(files: &dyn FileSystem, points: &[(PathBuf, bool)]) -> bool {
    points.iter().all(|(point, is_folder)| {
        let inode = resolve(files, point.as_os_str().as_bytes(), LastLink::Follow);
        let stat = inode.and_then(|inode| files.stat(inode));
        stat.is_ok_and(|stat| (stat.file_type == fs::FileType::Directory) == *is_folder)
    })
}

/// A small text file of an image.
pub fn text(files: &dyn FileSystem, path: &str) -> Option<String> {
    let inode = resolve(files, path.as_bytes(), LastLink::Follow).ok()?;
    let mut bytes = vec![0; SMALL_FILE_BYTES_MAX];
    let mut len = 0;
    while let Some(rest) = bytes.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match files.read(inode, rest, u64::try_from(len).ok()?).ok()? {
            0 => break,
            read => len += read,
        }
    }
    bytes.truncate(len);
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_taken_apart() {
        let words = |text: &str| mount_words(OsStr::new(text)).unwrap();
        assert_eq!(words("disk.img:/data"), ("disk.img".into(), "/data".into(), false));
        assert_eq!(
            words("disk.img,partition=2,overlay:/data,ro"),
            ("disk.img,partition=2,overlay".into(), "/data".into(), true)
        );
        assert!(mount_words(OsStr::new("disk.img")).is_err());
        assert_eq!(
            bind(OsStr::new("/etc:/host/etc,ro")).unwrap(),
            Bind { from: "/etc".into(), to: "/host/etc".into(), read_only: true }
        );
        assert_eq!(
            bind(OsStr::new("/etc")).unwrap(),
            Bind { from: "/etc".into(), to: "/etc".into(), read_only: false }
        );
        assert!(bind(OsStr::new("/no/such/place:/x")).is_err());
    }

    #[test]
    fn an_overlay_of_files_is_told_from_one_of_blocks() {
        let scratch = rig::Scratch::new("overlay");
        std::fs::write(scratch.join("blocks"), "x").unwrap();
        let changes = |words: String| {
            let mut spec = Spec::parse(words).unwrap();
            (changes(&mut spec), spec.steps.len())
        };
        let place = |name: &str| scratch.join(name).display().to_string();
        assert_eq!(changes("a.img,overlay".into()), (Some(Changes::Memory), 0));
        assert_eq!(changes(format!("a.img,overlay={}", place("new"))), (Some(Changes::Folder(scratch.join("new"))), 0));
        assert_eq!(changes(format!("a.img,overlay={}", place("blocks"))), (None, 1));
        assert_eq!(changes("a.img,overlay,partition=1".into()), (None, 2));
        assert_eq!(changes("a.img".into()), (None, 0));
    }
}
