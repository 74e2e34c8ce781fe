//! A disk and its partitions, as files of a directory: any program that opens an image file can use them.
//!
//! ```text
//! directory/             node 1
//!   loop3                node 2     the whole disk
//!   loop3p1 loop3p2 …    nodes 3…   windows of it
//! ```
//! The files behave as block devices do: their size stays, `O_TRUNC` does nothing, a write behind the end finds no
//! room, a hole that is punched reads as zero, and fsync means that it is on the medium.
//!
//! **One disk, one truth.** What is written through one file is read through the others at once. The kernel caches by
//! file, so a disk with partitions is not cached by it at all; a disk without is, for as long as it is attached: nobody
//! else writes to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use block::{BlockDevice, Source, Zero};

use super::nodes::{Answer, Listing, Node, Nodes, Valid};
use super::wire::{Attr, Errno, OpenIn, OpenOut, ROOT, SetAttrIn, StatFsOut, allocate, init, open, seek, set};

/// Attributes change (times, room taken): the kernel asks again after this.
const VALID_S: u64 = 1;
/// Most runs of a device that are looked at to say how much room it takes. What is behind them counts as taken.
const RUNS_MAX: usize = 4096;
/// Most of a device that is zeroed at a time for one request, bytes.
const BLOCK_BYTES: u32 = 4096;
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;

/// One file of the directory.
pub struct File {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub device: Arc<dyn BlockDevice>,
    /// The regular file that these bytes are, from the first to the last, where they are one: then requests may come by
    /// rings; of a disk that nobody writes, and where the kernel lets this user (root), reads go straight to it.
    pub image: Option<OwnedFd>,
}

/// The directory. Its first file is the whole disk.
pub struct Disk {
    files: Vec<State>,
    uid: u32,
    gid: u32,
    made: Moment,
}

struct State {
    file: File,
    permissions: AtomicU32,
    modified: AtomicU64,
    /// Whether blocks were written, zeroed or given up since they were counted.
    changed: AtomicBool,
    blocks: AtomicU64,
}

/// Nanoseconds since 1970.
#[derive(Clone, Copy)]
struct Moment(u64);

impl Moment {
    fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    fn seconds(self) -> u64 {
        self.0 / 1_000_000_000
    }

    fn nanoseconds(self) -> u32 {
        u32::try_from(self.0 % 1_000_000_000).unwrap_or(0)
    }
}

impl Disk {
    /// A directory of these files, which belong to the calling user.
    pub fn new(files: Vec<File>) -> Self {
        let made = Moment::now();
        let files = files
            .into_iter()
            .map(|file| State {
                permissions: AtomicU32::new(if file.device.limits().read_only { 0o400 } else { 0o600 }),
                modified: AtomicU64::new(made.0),
                changed: AtomicBool::new(true),
                blocks: AtomicU64::new(0),
                file,
            })
            .collect();
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Self { files, uid, gid, made }
    }

    fn state(&self, node: u64) -> Answer<&State> {
        let index = node.checked_sub(ROOT + 1).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.files.get(index)).ok_or(Errno::NOENT)
    }

    fn device(&self, node: u64) -> Answer<&dyn BlockDevice> {
        Ok(self.state(node)?.file.device.as_ref())
    }

    fn file_attr(&self, node: u64, state: &State) -> Attr {
        let modified = Moment(state.modified.load(Ordering::Relaxed));
        if state.changed.swap(false, Ordering::Relaxed) {
            state.blocks.store(blocks(state.file.device.as_ref()), Ordering::Relaxed);
        }
        Attr {
            size: state.file.device.size(),
            blocks: state.blocks.load(Ordering::Relaxed),
            mode: REGULAR | state.permissions.load(Ordering::Relaxed),
            ..self.common(node, modified)
        }
    }

    fn common(&self, ino: u64, modified: Moment) -> Attr {
        let (seconds, nanoseconds) = (modified.seconds(), modified.nanoseconds());
        Attr {
            ino,
            atime: seconds,
            mtime: seconds,
            ctime: seconds,
            atimensec: nanoseconds,
            mtimensec: nanoseconds,
            ctimensec: nanoseconds,
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            blksize: BLOCK_BYTES,
            ..Attr::default()
        }
    }

    /// That bytes of `node` were changed: the room that all of them take is counted anew.
    fn touch(&self, node: u64) {
        if let Ok(state) = self.state(node) {
            state.modified.store(Moment::now().0, Ordering::Relaxed);
        }
        for state in &self.files {
            if !state.changed.load(Ordering::Relaxed) {
                state.changed.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// Room that a device takes, in units of 512 bytes.
fn blocks(device: &dyn BlockDevice) -> u64 {
    let size = device.size();
    let (mut at, mut taken) = (0, 0u64);
    for _ in 0..RUNS_MAX {
        if at >= size {
            break;
        }
        let Ok(extent) = device.extent_at(at) else { break };
        if !matches!(extent.source, Source::Hole) {
            taken = taken.saturating_add(extent.len);
        }
        at = at.saturating_add(extent.len.max(1));
    }
    taken.saturating_add(size.saturating_sub(at)).div_ceil(512)
}

impl Nodes for Disk {
    fn init_flags(&self) -> u64 {
        // A ring is served by one thread: that is for answers which take no longer to make than to send.
        let plain = self.files.iter().any(|state| state.file.image.is_some());
        let ways = if plain { init::OVER_IO_URING | init::PASSTHROUGH } else { 0 };
        init::DIRECT_IO_ALLOW_MMAP | init::NO_OPENDIR_SUPPORT | ways
    }

    fn valid_s(&self) -> Valid {
        Valid { name_s: VALID_S, attr_s: VALID_S }
    }

    fn lookup(&self, directory: u64, name: &[u8]) -> Answer<Node> {
        if directory != ROOT {
            return Err(Errno::NOTDIR);
        }
        let found = (ROOT + 1..).zip(&self.files).find(|(_, state)| state.file.name.as_bytes() == name);
        Ok(found.map_or(Node::NONE, |(number, state)| Node { number, attr: self.file_attr(number, state) }))
    }

    fn attr(&self, node: u64) -> Answer<Attr> {
        if node == ROOT {
            return Ok(Attr { mode: DIRECTORY | 0o700, nlink: 2, ..self.common(ROOT, self.made) });
        }
        Ok(self.file_attr(node, self.state(node)?))
    }

    fn set_attr(&self, node: u64, change: &SetAttrIn) -> Answer<Attr> {
        let state = self.state(node)?;
        let meant = |field: u32| change.valid & field != 0;
        // open(O_TRUNC) comes without an open file, and is as harmless as it is to a block device. A program that
        // truncates what it has open means it, and is told.
        let truncates = meant(set::SIZE) && change.size != state.file.device.size();
        if truncates && (change.size != 0 || meant(set::FH)) {
            return Err(Errno::INVAL);
        }
        if (meant(set::UID) && change.uid != self.uid) || (meant(set::GID) && change.gid != self.gid) {
            return Err(Errno::PERM);
        }
        if meant(set::MODE) {
            state.permissions.store(change.mode & 0o777, Ordering::Relaxed);
        }
        if meant(set::MTIME) {
            let given = change.mtime.saturating_mul(1_000_000_000).saturating_add(change.mtimensec.into());
            let time = if meant(set::MTIME_NOW) { Moment::now().0 } else { given };
            state.modified.store(time, Ordering::Relaxed);
        }
        Ok(self.file_attr(node, state))
    }

    fn read_link(&self, _: u64) -> Answer<Vec<u8>> {
        Err(Errno::INVAL)
    }

    fn open(&self, node: u64, _: OpenIn) -> Answer<OpenOut> {
        self.state(node)?;
        let open_flags = match self.files.len() {
            1 => open::KEEP_CACHE | open::NOFLUSH,
            _ => open::DIRECT_IO | open::NOFLUSH,
        };
        Ok(OpenOut { open_flags: open_flags | open::PARALLEL_DIRECT_WRITES, ..OpenOut::default() })
    }

    fn image(&self, node: u64) -> Option<BorrowedFd<'_>> {
        let file = &self.state(node).ok()?.file;
        // Whoever writes could write behind the end, and the image would grow.
        file.image.as_ref().filter(|_| file.device.limits().read_only).map(AsFd::as_fd)
    }

    fn release(&self, _: u64, _: u64) {}

    fn read(&self, node: u64, buf: &mut [u8], offset: u64) -> Answer<usize> {
        let device = self.device(node)?;
        let len = clamp(device, offset, buf.len());
        device.read_at(&mut buf[..len], offset)?;
        Ok(len)
    }

    fn write(&self, node: u64, data: &[u8], offset: u64) -> Answer<u32> {
        let device = self.device(node)?;
        let len = clamp(device, offset, data.len());
        if len == 0 && !data.is_empty() {
            return Err(Errno::NOSPC);
        }
        device.write_at(&data[..len], offset)?;
        self.touch(node);
        u32::try_from(len).map_err(|_| Errno::INVAL)
    }

    fn create(&self, _: u64, _: &[u8], _: u32) -> Answer<Node> {
        Err(Errno::PERM)
    }

    fn remove(&self, _: u64, _: &[u8], _: bool) -> Answer<()> {
        Err(Errno::PERM)
    }

    fn rename(&self, _: (u64, &[u8]), _: (u64, &[u8]), _: u32) -> Answer<()> {
        Err(Errno::PERM)
    }

    fn close(&self) -> Answer<()> {
        self.sync()
    }

    fn sync(&self) -> Answer<()> {
        // Partitions are windows of the first one.
        Ok(self.files.first().map_or(Ok(()), |state| state.file.device.flush())?)
    }

    fn read_dir(&self, directory: u64, from: u64, listing: &mut Listing<'_>) -> Answer<()> {
        if directory != ROOT {
            return Err(Errno::NOTDIR);
        }
        let names = self.files.iter().map(|state| state.file.name.as_bytes());
        let all = [(&b"."[..], ROOT, DIRECTORY), (b"..", ROOT, DIRECTORY)]
            .into_iter()
            .chain(names.zip(ROOT + 1..).map(|(name, number)| (name, number, REGULAR)));
        for (next, (name, number, mode)) in (1..).zip(all) {
            if next > from && !listing.push(name, number, mode, next, None) {
                break;
            }
        }
        Ok(())
    }

    fn space(&self) -> Answer<StatFsOut> {
        let state = self.files.first().ok_or(Errno::NOENT)?;
        let blocks = state.file.device.size().div_ceil(BLOCK_BYTES.into());
        let files = u64::try_from(self.files.len()).unwrap_or(u64::MAX);
        Ok(StatFsOut { blocks, files, bsize: BLOCK_BYTES, frsize: BLOCK_BYTES, namelen: 255, ..StatFsOut::default() })
    }

    fn xattr(&self, _: u64, _: &[u8]) -> Answer<Vec<u8>> {
        Err(Errno::NOSYS)
    }

    fn xattrs(&self, _: u64) -> Answer<Vec<u8>> {
        Err(Errno::NOSYS)
    }

    fn allocate(&self, node: u64, offset: u64, len: u64, mode: u32) -> Answer<()> {
        let device = self.device(node)?;
        let mode = match mode & !allocate::KEEP_SIZE {
            allocate::PUNCH_HOLE => Zero::Deallocate,
            allocate::ZERO_RANGE => Zero::Allocate,
            // Taking room for what is there would be done by writing: as with block devices, it is not offered.
            _ => return Err(Errno::OPNOTSUPP),
        };
        device.write_zeroes(offset, len, mode)?;
        self.touch(node);
        Ok(())
    }

    fn seek(&self, node: u64, offset: u64, whence: u32) -> Answer<u64> {
        let device = self.device(node)?;
        let size = device.size();
        if offset >= size {
            return Err(Errno::NXIO);
        }
        let mut at = offset;
        while at < size {
            let extent = device.extent_at(at)?;
            let hole = matches!(extent.source, Source::Hole);
            match whence {
                seek::DATA if !hole => return Ok(at),
                seek::HOLE if hole => return Ok(at),
                seek::DATA | seek::HOLE => {}
                _ => return Err(Errno::INVAL),
            }
            at = at.saturating_add(extent.len.max(1)).min(size);
        }
        if whence == seek::HOLE { Ok(size) } else { Err(Errno::NXIO) }
    }
}

/// How many of `len` bytes at `offset` lie inside the device.
fn clamp(device: &dyn BlockDevice, offset: u64, len: usize) -> usize {
    let rest = device.size().saturating_sub(offset);
    usize::try_from(rest).unwrap_or(usize::MAX).min(len)
}
