//! A regular file, or a block device of the kernel.
//!
//! ## Who else has it open
//! Who opens a file for writing takes an exclusive advisory lock on it (`flock`), and a second one is told
//! [`Kind::Busy`]: two writers of one image destroy it. Who only reads takes none, so that one can always look into an
//! image, also while it is in use (and may then see it change). The lock belongs to the open file: it lasts as long as
//! any copy of the descriptor, one that was given to the kernel's loop driver included. On a block device it also
//! keeps udev from probing while it is being written. QEMU's locks are others (byte ranges), and neither sees the
//! other's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use block::{
    BlockDevice, Error, Extent, Kind, Limits, Poison, ReadAt, Result, ResultExt, Source, Storage, Zero, check_range,
};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::direct::Direct;

/// Zeroes are written in pieces of this many bytes where the file system cannot make them.
const ZEROES: &[u8] = &[0; 64 << 10];

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// For writing too.
    pub write: bool,
    /// Past the page cache (`O_DIRECT`). Requests that are not aligned still work, more slowly.
    pub direct: bool,
    /// Refuse when another has it open for writing. Means nothing for a file that is only read.
    pub lock: bool,
    /// Logical block of the disk, bytes, a power of two; `None`: 512, or the block device's own.
    pub block: Option<u32>,
}

impl Open {
    /// For reading.
    pub const READ: Self = Self { write: false, direct: false, lock: true, block: None };
    /// For reading and writing, excluding other writers.
    pub const WRITE: Self = Self { write: true, direct: false, lock: true, block: None };
}

/// A regular file or a block device, whose bytes are the device's.
///
/// The size is that of the moment when it was opened, exact to the byte, until it is made larger. A file that is cut short while it is open
/// gives [`Kind::Io`] for what is gone.
#[derive(Debug)]
pub struct FileBacking {
    file: File,
    /// The same file again, with `O_DIRECT`.
    direct: Option<Direct>,
    path: PathBuf,
    size: AtomicU64,
    limits: Limits,
    is_block_device: bool,
    /// It had no hole when it was opened: extents need not be asked for. (A `File` extent is right over a hole too.)
    dense: bool,
    /// What the file system has refused once.
    cannot: Cannot,
    poison: Poison,
    growing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Cannot {
    punch: AtomicBool,
    zero: AtomicBool,
}

impl FileBacking {
    /// Opens the regular file or block device at `path`.
    ///
    /// # Errors
    /// That of opening; [`Kind::Busy`] when another has it open for writing; [`Kind::Invalid`] when it is neither a
    /// regular file nor a block device; [`Kind::Unsupported`] when the file system has no `O_DIRECT`.
    pub fn open(path: impl AsRef<Path>, open: Open) -> Result<Self> {
        let path = path.as_ref();
        let what = || path.display().to_string();
        // Before opening: a named pipe would be waited for.
        is_block_device(&std::fs::metadata(path).context(what)?, path)?;
        let file = OpenOptions::new().read(true).write(open.write).open(path).context(what)?;
        Self::new(file, path, open)
    }

    /// Makes a regular file of `size` bytes, all of it a hole, and opens it for reading and writing.
    ///
    /// # Errors
    /// [`Kind::Exists`] when there is one; that of the file system, when no file is left behind.
    pub fn create(path: impl AsRef<Path>, size: u64) -> Result<Self> {
        let path = path.as_ref();
        let what = || path.display().to_string();
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).context(what)?;
        file.set_len(size)
            .map_err(|error| Error::io(format!("{}: setting its size to {size} bytes", path.display()), error))
            .and_then(|()| Self::new(file, path, Open::WRITE))
            .inspect_err(|_| drop(std::fs::remove_file(path)))
    }

    /// The device of a file that is open already, as `open` says; `path` names it in errors, and is where it is opened
    /// again for [`Open::direct`].
    ///
    /// # Errors
    /// As [`FileBacking::open`].
    pub fn new(file: File, path: impl Into<PathBuf>, open: Open) -> Result<Self> {
        let path = path.into();
        let what = || path.display().to_string();
        let metadata = file.metadata().context(what)?;
        let is_block_device = is_block_device(&metadata, &path)?;
        if open.write && open.lock {
            lock(&file, &path)?;
        }
        let (size, block) = if is_block_device {
            let size = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|errno| Error::io(what(), errno))?;
            (size, rustix::fs::ioctl_blksszget(&file).unwrap_or(512))
        } else {
            (metadata.len(), 512)
        };
        let block = open.block.unwrap_or(block).clamp(1, 1 << 16).next_power_of_two();
        let preferred = u32::try_from(metadata.blksize()).unwrap_or(4096).clamp(4096, 1 << 20).next_power_of_two();
        let limits = Limits { block, preferred: preferred.max(block), depth: 32, read_only: !open.write };
        let direct = open.direct.then(|| open_direct(&path, open, &metadata, block.max(4096))).transpose()?;
        let dense = is_block_device || size == 0 || rustix::fs::seek(&file, SeekFrom::Hole(0)) == Ok(size);
        let (cannot, poison) = (Cannot::default(), Poison::new());
        let size = AtomicU64::new(size);
        Ok(Self { file, direct, path, size, limits, is_block_device, dense, cannot, poison, growing: Mutex::new(()) })
    }

    /// The file, for who wants its descriptor. Its position is not used by anybody; what is written here is not seen
    /// by layers above.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device of the kernel rather than a regular file.
    pub fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    #[cold]
    fn failure(&self, what: &str, offset: u64, len: u64, error: io::Error) -> Error {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return self.truncated(offset);
        }
        Error::io(format!("{}: {what} of {len} bytes at {offset}", self.path.display()), error)
    }

    #[cold]
    fn truncated(&self, offset: u64) -> Error {
        let text = format!("{}: cut short of its {} bytes while in use", self.path.display(), self.size());
        Error::new(Kind::Io, text).context(format!("read at {offset}"))
    }

    fn writable(&self, offset: u64, len: u64) -> Result<()> {
        if self.limits.read_only {
            return Err(Error::new(Kind::ReadOnly, format!("{}: opened for reading only", self.path.display())));
        }
        self.poison.check()?;
        check_range(self.size(), offset, len)
    }

    /// Has the kernel make a hole or zeroes; false when it cannot here.
    fn fallocate(&self, flags: FallocateFlags, cannot: &AtomicBool, offset: u64, len: u64) -> Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        if cannot.load(Ordering::Relaxed) {
            return Ok(false);
        }
        loop {
            return match rustix::fs::fallocate(&self.file, flags | FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) => Ok(true),
                Err(Errno::INTR) => continue,
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    cannot.store(true, Ordering::Relaxed);
                    Ok(false)
                }
                Err(Errno::INVAL) => Ok(false),
                Err(errno) => Err(self.failure("making zeroes", offset, len, errno.into())),
            };
        }
    }

    /// The part of a range that the kernel makes zeroes of as a whole: all of it in a file, whole blocks on a device.
    fn whole_blocks(&self, offset: u64, len: u64) -> (u64, u64) {
        if !self.is_block_device {
            return (offset, offset + len);
        }
        let (block, end) = (u64::from(self.limits.block), offset + len);
        let start = offset.next_multiple_of(block).min(end);
        (start, (end / block * block).max(start))
    }

    fn write_zero_bytes(&self, mut offset: u64, end: u64) -> Result<()> {
        while offset < end {
            let len = (end - offset).min(ZEROES.len() as u64);
            let zeroes = &ZEROES[..len as usize];
            self.file.write_all_at(zeroes, offset).map_err(|error| self.failure("write", offset, len, error))?;
            offset += len;
        }
        Ok(())
    }

    /// Bytes of the file; where they are to pass by the page cache, no descriptor that would bring them into it.
    fn file_extent(&self, offset: u64, len: u64) -> Extent<'_> {
        let source = match self.direct {
            Some(_) => Source::Data,
            None => Source::File { fd: self.file.as_fd(), offset },
        };
        Extent { len, source }
    }
}

/// Which of the two it is.
fn is_block_device(metadata: &std::fs::Metadata, path: &Path) -> Result<bool> {
    let file_type = metadata.file_type();
    match (file_type.is_file(), file_type.is_block_device()) {
        (true, _) => Ok(false),
        (_, true) => Ok(true),
        _ if file_type.is_dir() => Err(Error::new(Kind::IsDirectory, format!("{}: a directory", path.display()))),
        _ => Err(Error::new(Kind::Invalid, format!("{}: neither a regular file nor a block device", path.display()))),
    }
}

fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::new(
            Kind::Busy,
            format!("{}: open for writing elsewhere; close it there, or open it read-only", path.display()),
        )),
        // A file system without locks.
        Err(std::fs::TryLockError::Error(error)) => match Errno::from_io_error(&error) {
            Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOLCK | Errno::INVAL) => Ok(()),
            _ => Err(Error::io(format!("{}: locking it", path.display()), error)),
        },
    }
}

fn open_direct(path: &Path, open: Open, metadata: &std::fs::Metadata, align: u32) -> Result<Direct> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or_default();
    let opened = OpenOptions::new().read(true).write(open.write).custom_flags(flags).open(path);
    let file = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::INVAL) => Error::new(
            Kind::Unsupported,
            format!("{}: its file system cannot go past the page cache (O_DIRECT)", path.display()),
        ),
        _ => Error::io(format!("{}: opening it again for O_DIRECT", path.display()), error),
    })?;
    let again = file.metadata().context(|| path.display().to_string())?;
    if (again.dev(), again.ino()) != (metadata.dev(), metadata.ino()) {
        return Err(Error::new(Kind::Busy, format!("{}: another file now than a moment ago", path.display())));
    }
    Ok(Direct::new(file, align))
}

impl AsFd for FileBacking {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl ReadAt for FileBacking {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = buf.len() as u64;
        check_range(self.size(), offset, len)?;
        match &self.direct {
            Some(direct) => direct.read(buf, offset),
            None => self.file.read_exact_at(buf, offset),
        }
        .map_err(|error| self.failure("read", offset, len, error))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.size(), offset, 1)?;
        let rest = self.size() - offset;
        if self.dense {
            return Ok(self.file_extent(offset, rest));
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok(Extent { len: (data - offset).min(rest), source: Source::Hole }),
            Ok(_) => {
                let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(offset)).unwrap_or(offset);
                // A hole made since: what is there is still said truly, only for a page.
                let len = hole.checked_sub(offset).filter(|len| *len > 0).unwrap_or(4096);
                Ok(self.file_extent(offset, len.min(rest)))
            }
            // No data from here on; or the file has become shorter, when nothing should look like zeroes.
            Err(Errno::NXIO) => {
                let now = self.file.metadata().context(|| self.path.display().to_string())?.len();
                if now < self.size() {
                    Err(self.truncated(offset))
                } else {
                    Ok(Extent { len: rest, source: Source::Hole })
                }
            }
            Err(_) => Ok(self.file_extent(offset, rest)),
        }
    }
}

impl BlockDevice for FileBacking {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let len = buf.len() as u64;
        self.writable(offset, len)?;
        let failed = |error| self.failure("write", offset, len, error);
        match &self.direct {
            Some(direct) if direct.write(buf, offset).map_err(failed)? => Ok(()),
            _ => self.file.write_all_at(buf, offset).map_err(failed),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: Zero) -> Result<()> {
        self.writable(offset, len)?;
        let (start, end) = self.whole_blocks(offset, len);
        let made = match mode {
            Zero::Deallocate => self.fallocate(FallocateFlags::PUNCH_HOLE, &self.cannot.punch, start, end - start)?,
            Zero::Allocate => self.fallocate(FallocateFlags::ZERO_RANGE, &self.cannot.zero, start, end - start)?,
        };
        if !made {
            return self.write_zero_bytes(offset, offset + len);
        }
        self.write_zero_bytes(offset, start)?;
        self.write_zero_bytes(end, offset + len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.writable(offset, len)?;
        let (start, end) = self.whole_blocks(offset, len);
        self.fallocate(FallocateFlags::PUNCH_HOLE, &self.cannot.punch, start, end - start).map(drop)
    }

    fn flush(&self) -> Result<()> {
        if self.limits.read_only {
            return Ok(());
        }
        self.poison.flush(|| {
            loop {
                match rustix::fs::fdatasync(&self.file) {
                    Ok(()) => return Ok(()),
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(Error::io(format!("{}: flush", self.path.display()), errno)),
                }
            }
        })
    }
}

impl Storage for FileBacking {
    fn grow(&self, size: u64) -> Result<()> {
        self.writable(0, 0)?;
        let now = self.size();
        if size <= now {
            return Ok(());
        }
        if self.is_block_device {
            let context = format!("{}: room for {size} bytes on a device of {now}", self.path.display());
            return Err(Error::new(Kind::NoSpace, context));
        }
        // Of two that do this side by side, the one that comes last may not cut off what the other one has made.
        let _one_at_a_time = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if size > self.size() {
            let failed = |error| Error::io(format!("{}: setting its size to {size} bytes", self.path.display()), error);
            self.file.set_len(size).map_err(failed)?;
            self.size.fetch_max(size, Ordering::AcqRel);
        }
        Ok(())
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}
