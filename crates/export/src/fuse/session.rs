//! A session: the requests of one mount, read from /dev/fuse, and their answers.
//!
//! ```text
//! kernel's queue ──read──► worker: parse → Nodes → writev ──► kernel        one worker a thread, each with
//!                ──read──► worker: parse → Nodes → writev ──► kernel        its own clone of the device
//! ```
//! A request is answered by the thread that read it: handing it over would cost more than answering it does. Where root
//! has turned FUSE over io_uring on, the kernel puts them into rings instead: see [`super::rings`].

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use block::{Error, Kind, Result};
use rustix::io::Errno as Os;
use zerocopy::IntoBytes;

use crate::counters::Counters;

use super::answer::{answer, put};
use super::nodes::{Answer, Nodes};
use super::request::{Malformed, Operation, Request};
use super::rings::Rings;
use super::wire::{Errno, InitIn, InitOut, MAJOR, MINOR_MAX, MINOR_MIN, OpenOut, OutHeader, init, open};

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
    /// The number under which the kernel knows the file that reads are passed to, where it lets this user.
    backing: OnceLock<Option<i32>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("device", &self.device).finish_non_exhaustive()
    }
}

/// Why a worker stops.
enum End {
    /// Unmounted, or aborted.
    Gone,
    /// The device does not work.
    Failed(Os),
}

impl End {
    fn result(self) -> Result<()> {
        match self {
            Self::Gone => Ok(()),
            Self::Failed(os) => Err(Error::io("reading a request from /dev/fuse", os)),
        }
    }
}

/// What was agreed on with the kernel.
struct Agreed {
    rings: Option<Rings>,
}

impl Session {
    /// A session on a device that is mounted, or about to be.
    pub fn new(device: OwnedFd, nodes: Box<dyn Nodes>) -> Self {
        Self { device, nodes, counters: Arc::default(), backing: OnceLock::new() }
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
            Ok(Some(agreed)) => {
                ready();
                match agreed.rings {
                    Some(rings) => self.work_by_rings(&mut first, rings),
                    None => self.work(&mut first),
                }
            }
            Ok(None) => Ok(()),
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
        end.result()
    }

    /// As [`Session::work`]: one thread reads what the rings are not given.
    fn work_by_rings(&self, first: &mut Worker<'_>, rings: Rings) -> Result<()> {
        let (by_rings, end) = rings.serve(self, || first.run());
        by_rings.and(end.result())
    }

    /// Answers one request, as [`answer()`] does, and counts it.
    pub fn answer(&self, request: Request<'_>, output: &mut [u8]) -> Option<Answer<usize>> {
        let start = Instant::now();
        let operation = request.operation.counted();
        let passed = match request.operation {
            Operation::Open(_) => self.passed(request.node),
            _ => None,
        };
        let done = match passed {
            Some(out) => Some(put(output, out.as_bytes())),
            None => answer(self.nodes.as_ref(), request, output),
        };
        self.counters.add(operation, start.elapsed());
        done
    }

    /// An open file whose reads the kernel passes on by itself.
    fn passed(&self, node: u64) -> Option<OpenOut> {
        let image = self.nodes.image(node)?;
        let backing = self.backing.get_or_init(|| sys::fuse::open_backing(self.device.as_fd(), image).ok());
        backing.map(|backing_id| OpenOut { fh: 0, open_flags: open::PASSTHROUGH | open::NOFLUSH, backing_id })
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

    /// Answers INIT. `None` when the mount was gone before.
    fn agree(&mut self) -> Result<Option<Agreed>> {
        loop {
            let len = match self.next() {
                Ok(len) => len,
                Err(End::Gone) => return Ok(None),
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
            let offered = offered(given, flags2);
            let mut wanted = self.session.nodes.init_flags();
            // Once that is agreed on, the kernel waits for them: they have to be there.
            let by_rings = offered & wanted & init::OVER_IO_URING != 0;
            let rings = by_rings.then(|| Rings::new(self.session.device.as_fd())).flatten();
            if rings.is_none() {
                wanted &= !init::OVER_IO_URING;
            }
            let out = agree(given, offered, wanted);
            send(self.device, request.unique, Ok(out.as_bytes()));
            return Ok(Some(Agreed { rings }));
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
                    if let Some(answer) = self.session.answer(request, &mut self.output) {
                        send(self.device, request.unique, answer.map(|len| &self.output[..len]));
                    }
                }
                Err(Malformed::Arguments(unique)) => send(self.device, unique, Err(Errno::INVAL)),
                Err(Malformed::Header) => {}
            }
        }
    }
}

/// The flags that an INIT offers.
fn offered(given: InitIn, flags2: u32) -> u64 {
    let more = given.flags & low(init::INIT_EXT) != 0;
    u64::from(given.flags) | if more { u64::from(flags2) << 32 } else { 0 }
}

/// The answer to an INIT of a version that is known.
fn agree(given: InitIn, offered: u64, wanted: u64) -> InitOut {
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
