//! The kernel's loop driver: a file becomes `/dev/loopN`, without a process that serves it. Root only.
//!
//! ```text
//! device      one device: its node in /dev, made where a container lacks it
//! status      what a device is bound to: sysfs for every user, the driver's own word for root
//! detach      letting go, and finding out whether that happened
//! partitions  the nodes of its partitions
//! ```
//!
//! **One image, one device.** Two devices on the same bytes have two page caches and corrupt a file system that is
//! mounted through both. So the image is known by its device and inode, not by its name, and [`attach`] looks for it
//! among all devices first, under a lock on `/dev/loop-control` that other careful programs take too.
//!
//! **The free device may be gone** by the time it is bound: the driver names one, the next caller gets the same name,
//! and one of the two is told "busy". That is tried again, up to [`ATTEMPTS_MAX`] times.
//!
//! **Direct I/O** keeps the bytes from being cached twice. It needs a file system that can do it and an offset and a
//! block size that are aligned to its blocks; else the device works through the page cache and [`Attached::notes`]
//! says why.

mod detach;
mod device;
mod partitions;
mod status;

use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use block::{Error, Kind, Result};
use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;
use sys::loop_device::{self as driver, Flags, Info};

pub use detach::{Detached, User, detach, users, users_of};
pub(crate) use detach::{LOOKERS_WAIT_MAX, sentence, wait_until};
pub(crate) use device::make_node;
pub use device::{Control, Device, NUMBER_MAX};
pub use partitions::Span;
pub(crate) use partitions::dev_in;
pub use status::{Identity, Status, find, list, numbers, status};

/// How often another device is tried when the free one was taken meanwhile.
pub const ATTEMPTS_MAX: usize = 64;

/// Bytes of a block that every program expects of a disk, unless it is told otherwise.
const BLOCK_SIZE: u32 = 512;

/// The largest block of any kernel; most stop at their page size.
const BLOCK_SIZE_MAX: u32 = 64 << 10;

/// How an image is attached.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// First byte of the image that is byte 0 of the device.
    pub offset: u64,
    /// At most this many bytes from there; 0: to the end.
    pub sizelimit: u64,
    /// Logical block, bytes; `None` is 512.
    pub block_size: Option<u32>,
    /// Refuse writes. An image that may not be written is attached so in any case, and a note says it.
    pub read_only: bool,
    /// Have the partitions, and their nodes, there on return.
    pub partscan: bool,
    /// What to tell the kernel of the partitions when it finds none itself: it may be built without their table.
    pub partitions: Vec<Span>,
    /// Let the image go when the last opener closes the device: [`Attached`] is one until it is dropped.
    pub autoclear: bool,
    /// Do without direct I/O.
    pub buffered: bool,
    /// What to do when the image is attached already.
    pub sharing: Sharing,
}

/// What to do when bytes of the image are attached already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// It fails with [`Kind::Busy`] and says which device has it, unless both only read.
    #[default]
    Refuse,
    /// As `Refuse`, but a device with the very same offset and size is taken (`losetup --nooverlap`).
    Reuse,
    /// Attached once more: the caller keeps them coherent.
    Allow,
}

/// An image that is attached. Dropping this closes the device and leaves it attached, unless [`Options::autoclear`].
#[derive(Debug)]
pub struct Attached {
    /// The device.
    pub device: Device,
    /// Whether it was there already ([`Sharing::Reuse`]).
    pub reused: bool,
    /// The nodes of its partitions, by number.
    pub partitions: Vec<PathBuf>,
    /// What a user should know: no direct I/O and why, read only and why, bytes that no sector covers.
    pub notes: Vec<String>,
    _open: File,
}

impl Attached {
    /// The node: `/dev/loopN`.
    pub fn path(&self) -> &Path {
        self.device.path()
    }
}

/// Attaches an image.
///
/// # Errors
/// [`Kind::Busy`] when it is attached already (see [`Sharing`]), [`Kind::NotPermitted`] or [`Kind::Denied`] for who may
/// not, [`Kind::NoDevice`] without a loop driver, and what the driver says of the options.
pub fn attach(image: &Path, options: &Options) -> Result<Attached> {
    if let Some(size) = options.block_size
        && !(size.is_power_of_two() && (BLOCK_SIZE..=BLOCK_SIZE_MAX).contains(&size))
    {
        let message = format!("block size {size}: it is a power of two from {BLOCK_SIZE} to {BLOCK_SIZE_MAX}");
        return Err(Error::new(Kind::Invalid, message));
    }
    let mut notes = Vec::new();
    let (file, read_only) = open_image(image, options.read_only, &mut notes)?;
    let control = Control::open()?;
    if options.sharing != Sharing::Allow {
        // Held until this returns: nobody who takes it attaches the image between the look and the deed.
        control.lock()?;
        if let Some(attached) = shared(image, &file, read_only, options)? {
            return Ok(attached);
        }
    }
    let info = info(image, &file, read_only, options, &mut notes)?;
    let (device, open) = bind_free(&control, image, &file, options, &info)?;
    drop(control);
    if info.flags().contains(Flags::DIRECT_IO)
        && driver::get_status(&open).is_ok_and(|bound| !bound.flags().contains(Flags::DIRECT_IO))
    {
        notes.push("no direct I/O: the kernel does not offer it for this file".to_owned());
    }
    let mut partitions = Vec::new();
    if options.partscan {
        partitions = partitions::nodes(&device, &open, &options.partitions, &mut notes)?;
    }
    Ok(Attached { device, reused: false, partitions, notes, _open: open })
}

/// Opens an image for reading and writing, or for reading alone where that is wanted or all there is.
fn open_image(image: &Path, read_only: bool, notes: &mut Vec<String>) -> Result<(File, bool)> {
    let failed = |error: std::io::Error| Error::io(format!("opening {}", image.display()), error);
    // Before it is opened: opening a FIFO would wait for its other end.
    let kind = std::fs::metadata(image).map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::new(Kind::Invalid, format!("{} is neither a file nor a block device", image.display())));
    }
    if !read_only {
        match OpenOptions::new().read(true).write(true).open(image) {
            Ok(file) => return Ok((file, false)),
            Err(error) => match Kind::from_errno(error.raw_os_error().unwrap_or_default()) {
                kind @ (Kind::ReadOnly | Kind::Denied | Kind::NotPermitted) => notes.push(match kind {
                    Kind::ReadOnly => "read only: the file lies on a read-only file system".to_owned(),
                    _ => "read only: the file may not be written".to_owned(),
                }),
                _ => return Err(failed(error)),
            },
        }
    }
    Ok((File::open(image).map_err(failed)?, true))
}

/// Looks for a device that has bytes of the image already.
fn shared(image: &Path, file: &File, read_only: bool, options: &Options) -> Result<Option<Attached>> {
    let here = Identity::of(file)?;
    let wanted = span(options.offset, options.sizelimit);
    for other in list()? {
        let theirs = span(other.offset, other.sizelimit);
        let overlap = wanted.start < theirs.end && theirs.start < wanted.end;
        if !overlap || other.identity_or_path() != Some(here) || (read_only && other.read_only) {
            continue;
        }
        let same = (other.offset, other.sizelimit, other.read_only) == (options.offset, options.sizelimit, read_only)
            && options.block_size.is_none_or(|size| u64::from(size) == other.block_size);
        if same && options.sharing == Sharing::Reuse {
            let (device, open) = Device::open(other.number, read_only)?;
            return Ok(Some(Attached { device, reused: true, partitions: Vec::new(), notes: Vec::new(), _open: open }));
        }
        let how = if same { "" } else { ", with another offset, size or mode" };
        return Err(Error::new(
            Kind::Busy,
            format!(
                "{} is attached already, at /dev/loop{}{how}: two devices on the same bytes corrupt them; \
                 use that one, detach it first, or attach both read only",
                image.display(),
                other.number
            ),
        ));
    }
    Ok(None)
}

/// The bytes of a file that a device covers, as far as it may ever grow.
fn span(offset: u64, sizelimit: u64) -> std::ops::Range<u64> {
    let end = if sizelimit == 0 { u64::MAX } else { offset.saturating_add(sizelimit) };
    offset..end
}

/// What the driver is asked for.
fn info(image: &Path, file: &File, read_only: bool, options: &Options, notes: &mut Vec<String>) -> Result<Info> {
    let failed = |error: std::io::Error| Error::io(format!("examining {}", image.display()), error);
    let metadata = file.metadata().map_err(failed)?;
    let block = u64::from(options.block_size.unwrap_or(BLOCK_SIZE));
    if metadata.is_file() {
        let rest = metadata.len().saturating_sub(options.offset);
        let covered = if options.sizelimit == 0 { rest } else { rest.min(options.sizelimit) };
        if covered < block {
            let size = metadata.len();
            let message =
                format!("{} of {size} bytes: nothing to attach from byte {}", image.display(), options.offset);
            return Err(Error::new(Kind::Invalid, message));
        }
        if !covered.is_multiple_of(block) {
            notes.push(format!("the last {} bytes are cut off: they fill no block of {block}", covered % block));
        }
    }
    let direct_io = !options.buffered
        && match unaligned(file, options.offset, block) {
            None => true,
            Some(why) => {
                notes.push(format!("no direct I/O: {why}"));
                false
            }
        };
    let mut info = Info { offset: options.offset, sizelimit: options.sizelimit, ..Info::ZERO };
    info.flags = Flags::default()
        .with(Flags::READ_ONLY, read_only)
        .with(Flags::AUTOCLEAR, options.autoclear)
        .with(Flags::PARTSCAN, options.partscan)
        .with(Flags::DIRECT_IO, direct_io)
        .0;
    info.set_file_name(image.as_os_str().as_bytes());
    Ok(info)
}

/// Why direct I/O cannot be; `None` when it can, or when only the driver knows (before Linux 6.1).
fn unaligned(file: &File, offset: u64, block: u64) -> Option<String> {
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return None;
    }
    match u64::from(stat.stx_dio_offset_align) {
        0 => Some("the file system does not offer it for this file".to_owned()),
        align if !block.is_multiple_of(align) => {
            Some(format!("it needs blocks of {align} bytes, the disk has {block}"))
        }
        align if !offset.is_multiple_of(align) => Some(format!("offset {offset} is not a multiple of {align} bytes")),
        _ => None,
    }
}

/// Finds a free device and binds it.
fn bind_free(control: &Control, image: &Path, file: &File, options: &Options, info: &Info) -> Result<(Device, File)> {
    let block_size = options.block_size.unwrap_or(BLOCK_SIZE);
    let mut candidates = control.candidates()?;
    for _ in 0..ATTEMPTS_MAX {
        let Some(number) = candidates.next_free()? else { break };
        let (device, open) = match Device::open(number, false) {
            Ok(opened) => opened,
            // Removed since it was named.
            Err(error) if error.kind() == Kind::NoDevice => continue,
            Err(error) => return Err(error),
        };
        match bind(&open, file, block_size, info) {
            Ok(()) => return Ok((device, open)),
            // Either somebody bound it meanwhile, or it is free and yet held by somebody, for whom the driver would
            // name it again and again.
            Err(Errno::BUSY) => candidates.refused(driver::get_status(&open).is_err()),
            // A buffer of the device is being written back, or it is just being cleared.
            Err(Errno::AGAIN | Errno::NXIO | Errno::NODEV) => candidates.refused(false),
            Err(error) => {
                return Err(Error::io(format!("attaching {} to /dev/loop{number}", image.display()), error));
            }
        }
    }
    Err(Error::new(
        Kind::Busy,
        format!(
            "{}: no free loop device after {ATTEMPTS_MAX} attempts; `loopbox list` shows who has them",
            image.display()
        ),
    ))
}

/// Binds a device: in one step, or in two with a kernel before 5.8.
///
/// # Errors
/// As [`driver::configure`].
pub fn bind(device: &File, file: &File, block_size: u32, info: &Info) -> rustix::io::Result<()> {
    match driver::configure(device, file, block_size, info) {
        // What an unknown request gives, and what a bad option gives too: the old way tells them apart.
        Err(Errno::INVAL | Errno::NOTTY) => {}
        done => return done,
    }
    driver::set_fd(device, file)?;
    let set = || {
        retry_again(|| driver::set_status(device, info))?;
        if block_size != 0 && block_size != BLOCK_SIZE {
            retry_again(|| driver::set_block_size(device, u64::from(block_size)))?;
        }
        if info.flags().contains(Flags::DIRECT_IO) {
            // Asked for, not required: the caller sees in the status whether it came.
            let _ = driver::set_direct_io(device, true);
        }
        Ok(())
    };
    set().inspect_err(|_| {
        let _ = driver::clear_fd(device);
    })
}

/// Repeats what the driver refuses while it still writes back buffers of the device.
fn retry_again(mut call: impl FnMut() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    let mut said = Err(Errno::AGAIN);
    for _ in 0..ATTEMPTS_MAX {
        said = call();
        if said != Err(Errno::AGAIN) {
            break;
        }
    }
    said
}
