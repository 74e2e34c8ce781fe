//! A session: the requests of one mount, read from /dev/fuse, and their answers.
//!
//! ```text
//! kernel's queue ──read──► worker: parse → Nodes → writev ──► kernel        one worker a thread, each with
//!                ──read──► worker: parse → Nodes → writev ──► kernel        its own clone of the device
//! ```
//! A request is answered by the thread that read it: handing it over would cost more than answering it does.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use block::{Error, Kind, Result};
use rustix::io::Errno as Os;
use zerocopy::IntoBytes;

use crate::counters::{Counters, Operation as Counted};

use super::nodes::{Answer, Listing, Nodes, entry_out};
use super::request::{Malformed, Operation, Request};
use super::wire::{
    AttrOut, Errno, GetXAttrOut, InitIn, InitOut, LSeekOut, MAJOR, MINOR_MAX, MINOR_MIN, MkDirIn, MkNodIn, OpenIn,
    OutHeader, WriteOut, init,
};

/// Most bytes that one READ or WRITE moves.
pub const TRANSFER_BYTES_MAX: usize = 1 << 20;
/// Room for the header and the arguments before the bytes of a WRITE: what the kernel demands, and more.
const ARGUMENTS_BYTES_MAX: usize = 4096;
/// Most threads that serve one mount.
const THREADS_MAX: usize = 4;
/// Requests that the kernel sends without waiting (readahead, direct I/O in flight).
const BACKGROUND_MAX: u16 = 64;
/// What every session asks for, where the kernel has it.
const FLAGS: u64 = init::ASYNC_READ
    | init::BIG_WRITES
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::ABORT_ERROR
    | init::MAX_PAGES
    | init::INIT_EXT;

/// A mounted /dev/fuse, and who answers.
pub struct Session {
    device: OwnedFd,
    nodes: Box<dyn Nodes>,
    counters: Arc<Counters>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("device", &self.device).finish_non_exhaustive()
    }
}

/// `S_IFDIR`.
const DIRECTORY: u32 = 0o040_000;

/// Why a worker stops.
enum End {
    /// Unmounted, or aborted.
    Gone,
    /// The device does not work.
    Failed(Os),
}

impl Session {
    /// A session on a device that is mounted, or about to be.
    pub fn new(device: OwnedFd, nodes: Box<dyn Nodes>) -> Self {
        Self { device, nodes, counters: Arc::default() }
    }

    /// What it did.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// The device.
    pub fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// Answers until the mount is gone, then makes what was written durable. `ready` is called when the kernel has
    /// agreed on a version: from then on the mount is usable.
    ///
    /// # Errors
    /// `Unsupported` when the kernel speaks no version that is known here; the failure of the device or of the flush.
    pub fn serve(&self, ready: impl FnOnce()) -> Result<()> {
        let mut first = Worker::new(self, self.device.as_fd());
        let served = match first.agree() {
            Ok(true) => {
                ready();
                self.work(&mut first)
            }
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        let synced = self.sync();
        served.and(synced)
    }

    /// Makes what was written durable, at the end.
    ///
    /// # Errors
    /// The failure of the flush.
    pub fn sync(&self) -> Result<()> {
        self.nodes
            .close()
            .map_err(|Errno(errno)| Error::io("flush of the device", std::io::Error::from_raw_os_error(errno)))
    }

    fn work(&self, first: &mut Worker<'_>) -> Result<()> {
        let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, THREADS_MAX);
        let clones: Vec<Option<OwnedFd>> = (1..threads).map(|_| self.clone_device()).collect();
        let end = std::thread::scope(|scope| {
            for clone in &clones {
                scope.spawn(move || {
                    // Where /dev/fuse is closed to this user (fusermount3 opened it) all read from the one there is.
                    let device = clone.as_ref().map_or(self.device.as_fd(), AsFd::as_fd);
                    Worker::new(self, device).run();
                });
            }
            first.run()
        });
        match end {
            End::Gone => Ok(()),
            End::Failed(os) => Err(Error::io("reading a request from /dev/fuse", os)),
        }
    }

    fn clone_device(&self) -> Option<OwnedFd> {
        let clone = sys::fuse::open().ok()?;
        sys::fuse::clone(clone.as_fd(), self.device.as_fd()).ok()?;
        Some(clone)
    }
}

/// A thread's part of a session: its buffers, made once.
struct Worker<'s> {
    session: &'s Session,
    device: BorrowedFd<'s>,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl<'s> Worker<'s> {
    fn new(session: &'s Session, device: BorrowedFd<'s>) -> Self {
        let input = vec![0; TRANSFER_BYTES_MAX + ARGUMENTS_BYTES_MAX];
        Self { session, device, input, output: vec![0; TRANSFER_BYTES_MAX] }
    }

    /// The next message.
    fn next(&mut self) -> std::result::Result<usize, End> {
        loop {
            match rustix::io::read(self.device, &mut self.input[..]) {
                // A device that stands in for /dev/fuse was closed.
                Ok(0) => return Err(End::Gone),
                Ok(len) => return Ok(len),
                // ENOENT: the request was taken back before it was read.
                Err(Os::INTR | Os::NOENT | Os::AGAIN) => {}
                Err(Os::NODEV | Os::CONNABORTED) => return Err(End::Gone),
                Err(os) => return Err(End::Failed(os)),
            }
        }
    }

    /// Answers INIT. False when the mount was gone before.
    fn agree(&mut self) -> Result<bool> {
        loop {
            let len = match self.next() {
                Ok(len) => len,
                Err(End::Gone) => return Ok(false),
                Err(End::Failed(os)) => return Err(Error::io("reading the first request from /dev/fuse", os)),
            };
            let request = match Request::parse(&self.input[..len]) {
                Ok(request) => request,
                Err(Malformed::Header) => continue,
                Err(Malformed::Arguments(unique)) => {
                    send(self.device, unique, Err(Errno::INVAL));
                    continue;
                }
            };
            let Operation::Init { given, flags2 } = request.operation else {
                send(self.device, request.unique, Err(Errno::IO));
                continue;
            };
            if given.major > MAJOR {
                // The kernel asks again, with the version that is named here.
                let out = InitOut { major: MAJOR, minor: MINOR_MAX, ..InitOut::default() };
                send(self.device, request.unique, Ok(out.as_bytes()));
                continue;
            }
            if given.major < MAJOR || given.minor < MINOR_MIN {
                send(self.device, request.unique, Err(Errno::PROTO));
                return Err(Error::new(
                    Kind::Unsupported,
                    format!("FUSE version {}.{} of this kernel, below {MAJOR}.{MINOR_MIN}", given.major, given.minor),
                ));
            }
            let out = agree(given, flags2, self.session.nodes.init_flags());
            send(self.device, request.unique, Ok(out.as_bytes()));
            return Ok(true);
        }
    }

    fn run(&mut self) -> End {
        loop {
            let len = match self.next() {
                Ok(len) => len,
                Err(end) => return end,
            };
            match Request::parse(&self.input[..len]) {
                Ok(request) => {
                    let start = Instant::now();
                    let operation = request.operation.counted();
                    answer(self.session.nodes.as_ref(), self.device, request, &mut self.output);
                    self.session.counters.add(operation, start.elapsed());
                }
                Err(Malformed::Arguments(unique)) => send(self.device, unique, Err(Errno::INVAL)),
                Err(Malformed::Header) => {}
            }
        }
    }
}

/// The answer to an INIT of a version that is known.
fn agree(given: InitIn, flags2: u32, wanted: u64) -> InitOut {
    let mut offered = u64::from(given.flags);
    if offered & init::INIT_EXT != 0 {
        offered |= u64::from(flags2) << 32;
    }
    let flags = offered & (FLAGS | wanted);
    let page = rustix::param::page_size();
    let write = if flags & init::MAX_PAGES == 0 { 32 * page } else { TRANSFER_BYTES_MAX };
    InitOut {
        major: MAJOR,
        minor: given.minor.min(MINOR_MAX),
        max_readahead: given.max_readahead,
        flags: low(flags),
        max_background: BACKGROUND_MAX,
        congestion_threshold: BACKGROUND_MAX / 4 * 3,
        max_write: u32::try_from(write).unwrap_or(4096),
        time_gran: 1,
        max_pages: u16::try_from(write.div_ceil(page)).unwrap_or(u16::MAX),
        flags2: low(flags >> 32),
        max_stack_depth: u32::from(flags & init::PASSTHROUGH != 0),
        ..InitOut::default()
    }
}

/// The lower 32 bits.
fn low(bits: u64) -> u32 {
    u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0)
}

impl Operation<'_> {
    /// As what it is counted.
    fn counted(&self) -> Counted {
        match self {
            Self::Read(given) => Counted::Read(given.size.into()),
            Self::Write(_, data) => Counted::Write(u64::try_from(data.len()).unwrap_or(0)),
            _ => Counted::Other,
        }
    }
}

/// Answers one request.
fn answer(nodes: &dyn Nodes, device: BorrowedFd<'_>, request: Request<'_>, output: &mut [u8]) {
    let Request { unique, node, operation } = request;
    let valid = nodes.valid_s();
    macro_rules! reply {
        ($answer:expr, $value:pat => $bytes:expr) => {
            match $answer {
                Ok($value) => send(device, unique, Ok($bytes)),
                Err(errno) => send(device, unique, Err(errno)),
            }
        };
    }
    match operation {
        // Neither is answered. An interrupted request is answered soon anyhow, as if it had not been.
        Operation::Forget | Operation::Interrupt => {}
        Operation::Init { .. } => send(device, unique, Err(Errno::IO)),
        Operation::Read(given) => {
            let len = usize::try_from(given.size).unwrap_or(usize::MAX).min(output.len());
            let buf = &mut output[..len];
            reply!(nodes.read(node, buf, given.offset), len => &output[..len]);
        }
        Operation::Write(given, data) => {
            reply!(nodes.write(node, data, given.offset), size => WriteOut { size, padding: 0 }.as_bytes());
        }
        Operation::Lookup { name } => {
            reply!(nodes.lookup(node, name), found => entry_out(found, valid).as_bytes());
        }
        Operation::GetAttr => {
            let attr = nodes.attr(node);
            reply!(attr, attr => AttrOut { attr_valid: valid.attr_s, attr, ..AttrOut::default() }.as_bytes());
        }
        Operation::SetAttr(change) => {
            let attr = nodes.set_attr(node, &change);
            reply!(attr, attr => AttrOut { attr_valid: valid.attr_s, attr, ..AttrOut::default() }.as_bytes());
        }
        Operation::ReadLink => reply!(nodes.read_link(node), target => &target),
        Operation::Link => send(device, unique, Err(Errno::PERM)),
        Operation::MkNod(MkNodIn { mode, .. }, name) => {
            reply!(nodes.create(node, name, mode), made => entry_out(made, valid).as_bytes());
        }
        Operation::MkDir(MkDirIn { mode, .. }, name) => {
            let mode = DIRECTORY | mode & 0o7777;
            reply!(nodes.create(node, name, mode), made => entry_out(made, valid).as_bytes());
        }
        Operation::Create(given, name) => {
            let how = OpenIn { flags: given.flags, open_flags: given.open_flags };
            let made = nodes.create(node, name, given.mode);
            let made = made.and_then(|made| Ok((entry_out(made, valid), nodes.open(made.number, how)?)));
            reply!(made, (entry, out) => [entry.as_bytes(), out.as_bytes()].concat().as_slice());
        }
        Operation::Unlink { name } => reply!(nodes.remove(node, name, false), () => &[]),
        Operation::RmDir { name } => reply!(nodes.remove(node, name, true), () => &[]),
        Operation::Rename { directory, flags, from, to } => {
            reply!(nodes.rename((node, from), (directory, to), flags), () => &[]);
        }
        Operation::Open(how) => reply!(nodes.open(node, how), out => out.as_bytes()),
        Operation::Release(given) => {
            nodes.release(node, given.fh);
            send(device, unique, Ok(&[]));
        }
        Operation::FSync => reply!(nodes.sync(), () => &[]),
        Operation::ReadDir(given) | Operation::ReadDirPlus(given) => {
            let plus = matches!(operation, Operation::ReadDirPlus(_));
            let len = usize::try_from(given.size).unwrap_or(usize::MAX).min(output.len());
            let mut listing = Listing::new(&mut output[..len], plus, valid);
            let done = nodes.read_dir(node, given.offset, &mut listing).map(|()| listing.len());
            reply!(done, len => &output[..len]);
        }
        Operation::StatFs => reply!(nodes.space(), out => out.as_bytes()),
        Operation::GetXAttr { size, name } => send_sized(device, unique, size, nodes.xattr(node, name)),
        Operation::ListXAttr { size } => send_sized(device, unique, size, nodes.xattrs(node)),
        Operation::Fallocate(given) => {
            reply!(nodes.allocate(node, given.offset, given.length, given.mode), () => &[]);
        }
        Operation::LSeek(given) => {
            reply!(nodes.seek(node, given.offset, given.whence), offset => LSeekOut { offset }.as_bytes());
        }
        Operation::Destroy | Operation::ReleaseDir => send(device, unique, Ok(&[])),
        // ENOSYS to OPENDIR: the kernel opens directories by itself from now on. So it is with FLUSH, ACCESS, …
        Operation::OpenDir | Operation::Other(_) => send(device, unique, Err(Errno::NOSYS)),
    }
}

/// An attribute, or its size where nothing but that is asked for (`size` 0).
fn send_sized(device: BorrowedFd<'_>, unique: u64, size: u32, value: Answer<Vec<u8>>) {
    let value = match value {
        Ok(value) => value,
        Err(errno) => return send(device, unique, Err(errno)),
    };
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => send(device, unique, Ok(GetXAttrOut { size: len, padding: 0 }.as_bytes())),
        Ok(len) if len <= size => send(device, unique, Ok(&value)),
        _ => send(device, unique, Err(Errno::RANGE)),
    }
}

/// Writes an answer. That it cannot be written is of no use to anybody: the request was taken back (`ENOENT`), or the
/// mount is gone, which the next read says.
fn send(device: BorrowedFd<'_>, unique: u64, answer: Answer<&[u8]>) {
    let (error, body) = match answer {
        Ok(body) => (0, body),
        Err(Errno(errno)) => (-errno, &[][..]),
    };
    let Ok(len) = u32::try_from(size_of::<OutHeader>() + body.len()) else { return };
    let header = OutHeader { len, error, unique };
    let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(body)];
    while let Err(Os::INTR) = rustix::io::writev(device, &parts) {}
}

#[cfg(test)]
mod tests;
