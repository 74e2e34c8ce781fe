//! `loopbox attach`: a file becomes a disk.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use block::layer::Window;
use block::{BlockDevice, Error, Kind, ReadAt as _};
use export::fuse::{File, Mount};
use export::loop_device;
use export::registry::{Held, Image, Outcome, Registry, Use, Wanted};
use export::server;
use format::partition::{self, Role};
use format::spec::{Spec, Step};

use super::{Result, Status};
use crate::print;
use crate::stack::{self, Access, Stack};

/// What the kernel shows of an extended partition.
const EXTENDED_BYTES: u64 = 1024;

/// Make a disk of an image and print where it is: /dev/loopN, or a file that any program can use as a disk.
#[derive(Debug, clap::Args)]
#[command(after_help = "As root, and where the kernel has loop devices, the disk is /dev/loopN; otherwise, or with \
                        --user, it is a file in a folder of its own, with its partitions beside it.")]
pub struct Args {
    /// The image, with its options: `disk.img,offset=1M,ro`.
    #[arg(value_name = "IMAGE")]
    image: OsString,

    /// Serve it from user space, whoever you are.
    #[arg(long)]
    user: bool,

    /// Refuse writes.
    #[arg(short, long)]
    read_only: bool,

    /// Stay and serve it until it is detached or Ctrl-C is pressed (in user space only).
    #[arg(long)]
    foreground: bool,

    #[command(flatten)]
    key: crate::passphrase::KeyFile,
}

impl Args {
    /// `loopbox attach IMAGE`.
    pub fn of(image: &OsStr) -> Self {
        Self { image: image.to_owned(), user: false, read_only: false, foreground: false, key: Default::default() }
    }
}

/// Attaches it and prints where.
pub fn run(args: &Args) -> Result {
    args.key.remember();
    let mut spec = Spec::parse(&args.image)?;
    if args.read_only {
        spec.steps.push(Step::ReadOnly);
    }
    let by_kernel = !args.user && !args.foreground && loop_device::Control::open().is_ok();
    match kernel_options(&spec).filter(|_| by_kernel && stack::is_plain(&spec)) {
        Some(options) => attach_to_kernel(&spec, &options),
        None => serve(&spec, args.foreground),
    }
}

/// What the loop driver is asked for; `None` where it cannot do what the spec says.
pub fn kernel_options(spec: &Spec) -> Option<loop_device::Options> {
    let mut options = loop_device::Options { partscan: true, ..loop_device::Options::default() };
    for (above, step) in spec.steps.iter().enumerate() {
        match step {
            Step::ReadOnly => options.read_only = true,
            Step::Partition(_) => {
                let below = Spec { path: spec.path.clone(), steps: spec.steps.get(..=above)?.to_vec() };
                // What is wrong with it is said by who serves it.
                let stack = Stack::open(&below, Access::Read).ok()?;
                (options.offset, options.sizelimit) = (stack.start_byte?, stack.device.size());
            }
            Step::ReadWrite | Step::Direct | Step::Format(_) => {}
            Step::Block(bytes) => options.block_size = Some(*bytes),
            Step::Offset(offset) => {
                options.offset = options.offset.checked_add(*offset)?;
                if options.sizelimit > 0 {
                    options.sizelimit = options.sizelimit.checked_sub(*offset).filter(|left| *left > 0)?;
                }
            }
            Step::SizeLimit(0) => {}
            Step::SizeLimit(limit) if options.sizelimit == 0 => options.sizelimit = *limit,
            Step::SizeLimit(limit) => options.sizelimit = options.sizelimit.min(*limit),
            _ => return None,
        }
    }
    Some(options)
}

fn attach_to_kernel(spec: &Spec, options: &loop_device::Options) -> Result {
    let registry = Registry::of_user()?;
    let image = Image::at(&spec.path)?;
    registry.refuse_second(&image, Use::Loop, options.read_only)?;
    let options = &loop_device::Options { partitions: spans(spec), ..options.clone() };
    let attached = loop_device::attach(&spec.path, options)?;
    for note in &attached.notes {
        print::warning(note);
    }
    let device = attached.path().to_owned();
    let status = loop_device::status(attached.device.number);
    registry.add(Wanted {
        used_as: Use::Loop,
        spec: spec.to_string(),
        read_only: status.as_ref().is_some_and(|status| status.read_only),
        offset: options.offset,
        sizelimit: options.sizelimit,
        size: status.as_ref().map_or(0, |status| status.size),
        block: options.block_size.unwrap_or(512),
        point: None,
        node: Some(device.clone()),
        image,
    })?;
    print::line(&device.display().to_string())?;
    Ok(Status::Done)
}

/// Where the partitions lie, for a kernel that does not know their table; none where there is no table to be read.
pub fn spans(spec: &Spec) -> Vec<loop_device::Span> {
    let Ok(stack) = Stack::open(spec, Access::Read) else { return Vec::new() };
    let Ok(Some(table)) = partition::read(&stack.device) else { return Vec::new() };
    let span = |partition: &partition::Partition| {
        let (start, length) = partition.range(stack.device.size()).ok()?;
        let length = if partition.role == Role::Extended { length.min(EXTENDED_BYTES) } else { length };
        Some(loop_device::Span { number: partition.number, start, length })
    };
    table.partitions.iter().filter_map(span).collect()
}

fn serve(spec: &Spec, foreground: bool) -> Result {
    let registry = Registry::of_user()?;
    let image = Image::at(&spec.path)?;
    // Before it is opened, which another writer does not allow: where the other one is, is what helps.
    registry.refuse_second(&image, Use::Disk, spec.steps.contains(&Step::ReadOnly))?;
    let stack = Stack::open(spec, Access::WriteIfPossible)?;
    let (held, mount) = hold(&registry, image, &stack)?;
    let node = held.holding().node.clone().unwrap_or_default();
    if foreground {
        server::foreground(mount, held, move || {
            let _ = print::line(&node.display().to_string());
            let _ = std::io::stdout().flush();
        })?;
    } else {
        server::background(mount, held)?;
        print::line(&node.display().to_string())?;
    }
    Ok(Status::Done)
}

/// Writes it into the registry and mounts it.
fn hold(registry: &Registry, image: Image, stack: &Stack) -> block::Result<(Held, Mount)> {
    let limits = stack.device.limits();
    refuse_loop_device(&stack.spec.path, limits.read_only)?;
    let part = stack.start_byte.and_then(|_| kernel_options(&stack.spec)).unwrap_or_default();
    let wanted = Wanted {
        used_as: Use::Disk,
        spec: stack.spec.to_string(),
        read_only: limits.read_only,
        offset: part.offset,
        sizelimit: part.sizelimit,
        size: stack.device.size(),
        block: limits.block,
        point: None,
        node: None,
        image,
    };
    let held = registry.add(wanted)?;
    let holding = held.holding();
    let name = format!("loop{}", holding.number);
    let mounted = files(&stack.device, &name)
        .map(|mut files| {
            files.iter_mut().take(1).for_each(|whole| whole.image = stack.whole_file());
            files
        })
        .and_then(|files| Mount::disk(files, &holding.point, holding.image.path.as_os_str()));
    match mounted {
        Ok(mount) => Ok((held, mount)),
        Err(error) => {
            held.end(Outcome::Safe)?;
            Err(error)
        }
    }
}

/// That no loop device of the kernel has the image, when one of the two writes.
pub fn refuse_loop_device(image: &Path, read_only: bool) -> block::Result<()> {
    let Ok(found) = loop_device::find(image) else { return Ok(()) };
    match found.iter().find(|status| !(read_only && status.read_only)) {
        Some(status) => {
            let context = format!("{} is attached as {} already", image.display(), status.device().path().display());
            Err(Error::new(Kind::Busy, context))
        }
        None => Ok(()),
    }
}

/// What a partition of the disk `name` is called: loop0p1, sda1.
pub fn partition_name(name: &str, number: u32) -> String {
    let between = if name.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" };
    format!("{name}{between}{number}")
}

/// The disk, and the partitions that its table names.
pub fn files(device: &Arc<dyn BlockDevice>, name: &str) -> block::Result<Vec<File>> {
    let mut files = vec![File { name: name.to_owned(), device: Arc::clone(device), image: None }];
    let table = match partition::read(device) {
        Ok(table) => table,
        // The disk is of use all the same: its table may be what is to be mended.
        Err(error) => {
            print::warning(&format!("no partitions: {}", print::error_text(&error)));
            None
        }
    };
    for partition in table.iter().flat_map(|table| &table.partitions) {
        let window = partition.range(device.size()).and_then(|(start, len)| {
            // As the kernel does: of a box for logical partitions only its own table, for boot loaders.
            let len = if partition.role == Role::Extended { len.min(EXTENDED_BYTES) } else { len };
            Window::new(Arc::clone(device), start, len)
        });
        match window {
            Ok(window) if window.size() == 0 => {}
            Ok(window) => {
                files.push(File {
                    name: partition_name(name, partition.number),
                    device: Arc::new(window),
                    image: None,
                });
            }
            Err(error) => print::warning(&print::error_text(&error)),
        }
    }
    Ok(files)
}
