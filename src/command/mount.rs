//! `loopbox mount`: the file system of an image becomes a part of the tree.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{BlockDevice, Error, Kind, ReadAt as _, ResultExt as _};
use export::fuse::{Mount, Options, check_point};
use export::loop_device;
use export::registry::{Image, Outcome, Registry, Use, Wanted};
use export::server;
use format::spec::{self, Spec, Step};
use fs::Writable;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::{Result, Status};
use crate::inside::Found;
use crate::print;
use crate::stack::{Access, Stack};

/// Mount the file system of an image on a directory, and return when it is usable.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "As root the kernel mounts it, where it knows the file system. Otherwise, or with --user, loopbox \
                        serves it from user space, FAT and exFAT to be written, others to be read: an ordinary user \
                        then uses all files in it, whatever their modes, and nobody else does (but with -o \
                        allow_other, when modes count)."
)]
pub struct Args {
    /// The image, with its options: `disk.img,partition=2`.
    #[arg(value_name = "IMAGE")]
    image: OsString,

    /// The directory.
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Options as for mount(8), separated by commas: ro, uid=, gid=, umask=, fmask=, dmask=, allow_other,
    /// default_permissions, noexec, nosuid, nodev, noatime; and those of an image: offset=, sizelimit=,
    /// partition=, luks, key-file= and the rest, which are stacked on it in their order.
    #[arg(short, long = "options", value_name = "OPTIONS")]
    options: Vec<OsString>,

    /// Mount read-only.
    #[arg(short, long)]
    read_only: bool,

    /// Serve it from user space, whoever you are.
    #[arg(long)]
    user: bool,

    /// Stay and serve it until it is unmounted or Ctrl-C is pressed.
    #[arg(short, long)]
    foreground: bool,

    #[command(flatten)]
    key: crate::passphrase::KeyFile,
}

impl Args {
    /// `loopbox mount IMAGE DIR`.
    pub fn of(image: &OsStr, directory: &OsStr) -> Self {
        Self {
            image: image.to_owned(),
            directory: directory.into(),
            options: Vec::new(),
            read_only: false,
            user: false,
            foreground: false,
            key: Default::default(),
        }
    }

    /// The words of all `-o`.
    fn words(&self) -> impl Iterator<Item = &OsStr> {
        self.options.iter().flat_map(|options| spec::words(options)).filter(|word| !word.is_empty())
    }
}

/// What was asked for with `-o`.
struct Asked {
    options: Options,
    /// `rw` rather than nothing or `ro`.
    write: bool,
    /// `ro`.
    read_only: bool,
    /// What only the kernel may understand.
    others: Vec<String>,
}

/// Mounts it.
pub fn run(args: &Args) -> Result {
    args.key.remember();
    let mut spec = Spec::parse(&args.image)?;
    let asked = asked(args, &mut spec)?;
    let by_kernel = !args.user && !args.foreground && loop_device::Control::open().is_ok();
    let stack = Stack::open(&spec, Access::Read)?;
    match by_kernel.then(|| for_kernel(&stack, &args.image)).transpose()?.flatten() {
        Some((part, kind)) => mount_by_kernel(args, &asked, &part, kind)?,
        None => serve(args, &asked, &stack)?,
    }
    Ok(Status::Done)
}

/// The stack, or that of the one partition of it, that holds files, and the name of its file system; `None` where the
/// kernel does not know that, or where it is more than a part of the file.
///
/// # Errors
/// `Invalid`, with what to type, where several partitions hold one.
pub fn for_kernel(stack: &Stack, typed: &OsStr) -> block::Result<Option<(Stack, &'static str)>> {
    if stack.start_byte.is_none() {
        return Ok(None);
    }
    let known = std::fs::read_to_string("/proc/filesystems").context(|| "/proc/filesystems")?;
    let is_known = |name: &str| known.lines().any(|line| !line.starts_with("nodev") && line.trim() == name);
    let open = |device: Arc<dyn BlockDevice>| {
        let found = fs::identify::identify(&device)?;
        let found = found.ok_or_else(|| Error::new(Kind::Unsupported, "no file system"))?;
        let by_kernel = is_known(found.name);
        if !by_kernel {
            // It counts among the partitions when loopbox reads it.
            fs::open(device.clone())?;
        }
        let holds = by_kernel.then_some((device, found.name));
        Ok(Found { name: found.name, label: found.label, holds })
    };
    match crate::inside::find(&stack.spec, Arc::clone(&stack.device), typed, &open) {
        // Said again, and better, by who serves it.
        Err(error) if error.kind() != Kind::Invalid => Ok(None),
        Err(error) => Err(error),
        Ok((found, start)) => Ok(found.map(|(device, kind)| {
            let start_byte = stack.start_byte.and_then(|below| below.checked_add(start));
            (Stack { device, start_byte, ..stack.clone() }, kind)
        })),
    }
}

/// Takes the options apart: those of the mount, and those of the image, which go behind what is in `spec`.
fn asked(args: &Args, spec: &mut Spec) -> block::Result<Asked> {
    let mut options = Options::of_user(export::user::is_root());
    let (mut write, mut read_only, mut others) = (false, args.read_only, Vec::new());
    // One behind the other, as in a spec: `luks,key-file=…` is one step of two words.
    let mut stacked = spec.to_os_string();
    let mut more = false;
    for word in args.words() {
        let Some(text) = word.to_str() else {
            return Err(Error::new(Kind::Invalid, format!("option {} of a mount", word.display())));
        };
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let number = |radix| {
            value.and_then(|value| u32::from_str_radix(value, radix).ok()).ok_or_else(|| {
                Error::new(Kind::Invalid, format!("number of the option {}", print::escaped(text.as_bytes())))
            })
        };
        match name {
            "ro" => (read_only, write) = (true, false),
            "rw" => (read_only, write) = (false, true),
            "uid" => options.ownership.uid = Some(number(10)?),
            "gid" => options.ownership.gid = Some(number(10)?),
            "umask" => {
                options.ownership.file_mask = number(8)?;
                options.ownership.directory_mask = number(8)?;
            }
            "fmask" => options.ownership.file_mask = number(8)?,
            "dmask" => options.ownership.directory_mask = number(8)?,
            "allow_other" => options.allow_other = true,
            "default_permissions" => options.check_permissions = true,
            "suid" | "nosuid" => options.nosuid = name == "nosuid",
            "dev" | "nodev" => options.nodev = name == "nodev",
            "exec" | "noexec" => options.noexec = name == "noexec",
            "atime" | "noatime" => options.noatime = name == "noatime",
            // Words of mount(8) that change nothing here.
            "defaults" | "loop" | "user" | "users" | "nouser" | "auto" | "noauto" | "nofail" | "_netdev"
            | "relatime" => {
                continue;
            }
            _ if spec::WORDS.iter().any(|known| known.name == name) => {
                stacked.push(",");
                stacked.push(text);
                more = true;
                continue;
            }
            _ => {}
        }
        if !matches!(name, "ro" | "rw" | "suid" | "nosuid" | "dev" | "nodev" | "exec" | "noexec" | "atime" | "noatime")
        {
            others.push(text.to_owned());
        }
    }
    if more {
        *spec = Spec::parse(stacked)?;
    }
    Ok(Asked { options, write, read_only, others })
}

/// Options that loopbox's own mounts know.
fn is_ours(option: &str) -> bool {
    const OURS: &[&str] = &["uid", "gid", "umask", "fmask", "dmask", "allow_other", "default_permissions"];
    OURS.contains(&option.split('=').next().unwrap_or(option))
}

fn serve(args: &Args, asked: &Asked, stack: &Stack) -> block::Result<()> {
    if let Some(unknown) = asked.others.iter().find(|option| !is_ours(option)) {
        return Err(Error::new(Kind::Invalid, format!("unknown option {}", print::escaped(unknown.as_bytes()))));
    }
    let files = crate::inside::file_system(&stack.spec, Arc::clone(&stack.device), &args.image)?;
    let mut options = asked.options;
    let written = written(args, asked, stack, files.name())?;
    options.read_only = written.is_none();
    if !fs::has_owners(files.name()) {
        // As with a mount by the kernel: they are those of whoever mounts.
        options.ownership.uid.get_or_insert(rustix::process::getuid().as_raw());
        options.ownership.gid.get_or_insert(rustix::process::getgid().as_raw());
    }
    let registry = Registry::of_user()?;
    let point = check_point(&args.directory)?;
    let wanted = Wanted { point: Some(point.clone()), read_only: options.read_only, ..wanted(stack, Use::Directory)? };
    let held = registry.add(wanted)?;
    let source = held.holding().image.path.clone().into_os_string();
    let mounted = match written {
        Some(writable) => Mount::writable(writable, &point, &source, &options),
        None => Mount::directory(files, &point, &source, &options),
    };
    let mount = match mounted {
        Ok(mount) => mount,
        Err(error) => {
            held.end(Outcome::Safe)?;
            return Err(error);
        }
    };
    if args.foreground {
        return server::foreground(mount, held, move || {
            let _ = writeln!(std::io::stderr(), "mounted on {}; Ctrl-C unmounts it", point.display());
        });
    }
    server::background(mount, held)
}

/// The file system to be written, where loopbox can, the image lets it, and nobody asked for less.
fn written(args: &Args, asked: &Asked, stack: &Stack, name: &str) -> block::Result<Option<Arc<dyn Writable>>> {
    if asked.read_only {
        return Ok(None);
    }
    if !fs::is_written(name) {
        let context = format!("rw: {name}, which loopbox reads and does not write");
        return if asked.write { Err(Error::new(Kind::ReadOnly, context)) } else { Ok(None) };
    }
    let stack = Stack::open(&stack.spec, Access::WriteIfPossible)?;
    if stack.device.limits().read_only {
        let context = format!("rw: {}, which this user may only read", stack.spec);
        return if asked.write { Err(Error::new(Kind::ReadOnly, context)) } else { Ok(None) };
    }
    crate::inside::writable(&stack.spec, stack.device, &args.image).map(Some)
}

fn wanted(stack: &Stack, used_as: Use) -> block::Result<Wanted> {
    let (offset, sizelimit) = stack.place().unwrap_or_default();
    Ok(Wanted {
        used_as,
        image: Image::at(&stack.spec.path)?,
        spec: stack.spec.to_string(),
        read_only: true,
        offset,
        sizelimit,
        size: stack.device.size(),
        block: stack.device.limits().block,
        point: None,
        node: None,
    })
}

fn mount_by_kernel(args: &Args, asked: &Asked, stack: &Stack, kind: &str) -> block::Result<()> {
    let spec = &stack.spec;
    let Some((offset, sizelimit)) = stack.place() else { return serve(args, asked, stack) };
    let registry = Registry::of_user()?;
    let point = check_point(&args.directory)?;
    let mut read_only = asked.read_only || spec.steps.contains(&Step::ReadOnly);
    let mut wanted = wanted(stack, Use::Kernel)?;
    registry.refuse_second(&wanted.image, Use::Kernel, read_only)?;
    let options = loop_device::Options { offset, sizelimit, read_only, autoclear: true, ..Default::default() };
    let attached = loop_device::attach(&spec.path, &options)?;
    read_only |= loop_device::status(attached.device.number).is_some_and(|status| status.read_only);
    let data: Vec<&str> = asked.others.iter().map(String::as_str).collect();
    let data = std::ffi::CString::new(data.join(",")).map_err(|_| Error::new(Kind::Invalid, "options with a NUL"))?;
    let mut flags = MountFlags::empty();
    let words = |word: &str| args.words().any(|option| option.as_bytes() == word.as_bytes());
    for (word, flag) in [
        ("nosuid", MountFlags::NOSUID),
        ("nodev", MountFlags::NODEV),
        ("noexec", MountFlags::NOEXEC),
        ("noatime", MountFlags::NOATIME),
    ] {
        flags.set(flag, words(word));
    }
    let mount = |flags| rustix::mount::mount(attached.path(), &point, kind, flags, data.as_c_str());
    flags.set(MountFlags::RDONLY, read_only);
    let done = match mount(flags) {
        Err(Errno::ROFS | Errno::ACCESS) if !asked.write && !read_only => {
            read_only = true;
            mount(flags | MountFlags::RDONLY)
        }
        other => other,
    };
    done.map_err(|os| {
        let context =
            format!("mount of {spec} on {} by the kernel, as {kind} (--user mounts it without)", point.display());
        Error::io(context, os)
    })?;
    wanted.read_only = read_only;
    wanted.node = Some(attached.path().to_owned());
    wanted.point = Some(point);
    registry.add(wanted).map(drop)
}

/// Whether `path` is one of the image's names.
pub fn is_image(image: &Image, path: &Path) -> bool {
    Image::at(path).is_ok_and(|found| (found.device, found.inode) == (image.device, image.inode))
}
