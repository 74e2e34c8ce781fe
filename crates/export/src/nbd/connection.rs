//! Requests of one client: all that are there are answered in one write.
//!
//! ```text
//! socket ──read──► input ──parse──► answer at once ──► output ──one write──► socket
//!                                 └► would wait for the disk ──► workers ──► their own write
//! ```
//!
//! What is in the page cache (or is a hole, or in memory) is answered by the thread that reads the socket: handing it to
//! another costs more than the answer. What would wait goes to [`WORKERS`] threads of the connection, started when the
//! first request needs them; unless it is the only one there is, when nobody could be held up by waiting for it.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use block::{BlockDevice, Error, Kind, Result, Source, Zero, check_range};

use super::handshake::Dialect;
use super::reply::{self, Output, Status};
use super::window::Windows;
use super::wire::{self, Request, command, error, flag};
use super::{EXTENTS_MAX, Export, PAYLOAD_BYTES_MAX};
use crate::counters::{Client, Counters, Operation};
use crate::pace::Pace;

/// Threads of a connection that wait for the disk.
const WORKERS: usize = 16;
/// Bytes that are read from the socket at one time, unless one request is longer.
const INPUT_BYTES: usize = 256 << 10;
/// Memory for input, and as much for output, that all connections together keep from one request to the next.
const KEPT_BYTES: usize = 6 << 20;
/// What one of them keeps at the least.
const KEPT_BYTES_MIN: usize = 64 << 10;
/// What one of them keeps at the most.
const KEPT_BYTES_MAX: usize = 2 << 20;
/// Output that is written although more requests are there: the client reads while the next is made.
const OUTPUT_BYTES: usize = 128 << 10;
/// Requests that wait for a worker; more are waited for by the thread that reads.
const QUEUE_MAX: usize = 128;
/// Bytes of their payloads; one request alone may have more.
const QUEUE_BYTES_MAX: usize = 16 << 20;
/// Shorter runs of zeroes in a read are sent as data.
const HOLE_BYTES_MIN: u64 = 4096;
/// Runs of a device that are looked at for one request, at the most.
const RUNS_MAX: usize = 16 * EXTENTS_MAX;
/// Runs of a device that are looked at to tell whether zeroes are fast.
const FAST_RUNS_MAX: usize = 64;
/// Most bytes that one request has read ahead.
const CACHE_BYTES_MAX: u64 = 64 << 20;

/// A read that comes alone is sent from its file only when it is as long as this: a shorter one is copied sooner.
const MAPPED_BYTES_MIN: usize = 32 << 10;

/// After so many writes from files it is asked whether they had to wait for the disk.
const FAULTS_ASKED: u32 = 8;

/// Where answers can be sent from files as they are: the socket that takes them, and what is mapped.
#[derive(Debug, Clone, Copy)]
pub struct Direct<'a> {
    /// The socket.
    pub socket: BorrowedFd<'a>,
    /// Parts of files.
    pub windows: &'a Windows,
}

/// A client whose handshake is done.
pub struct Connection<'a, R, W> {
    input: R,
    shared: Arc<Shared<'a, W>>,
}

struct Shared<'a, W> {
    direct: Option<Direct<'a>>,
    device: Arc<dyn BlockDevice>,
    counters: Arc<Counters>,
    _client: Client,
    read_only: bool,
    dialect: Dialect,
    pace: Pace,
    pending: Mutex<Pending>,
    /// Answers were written.
    written: Condvar,
    stream: Mutex<W>,
    queue: Mutex<Queue>,
    /// Something was put into the queue, or it was closed.
    arrived: Condvar,
    /// Something was taken out of it.
    taken: Condvar,
}

/// Answers that whoever is writing to the stream takes along.
#[derive(Default)]
struct Pending {
    outputs: Vec<Output>,
    /// Of those.
    bytes: usize,
    writing: bool,
    /// Threads that wait for room.
    waiting: usize,
    /// What came of writing, when it failed: nothing is written any more.
    failed: Option<std::io::ErrorKind>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Of the payloads.
    bytes: usize,
    workers: usize,
    idle: usize,
    closed: bool,
}

struct Job {
    request: Request,
    payload: Vec<u8>,
}

/// How an answer is made.
enum Way<'b, 'a> {
    /// By waiting for the disk.
    Slowly,
    /// Only if it does not wait for the disk.
    Quickly(Option<&'b mut Files<'a>>),
}

/// What is known of files while the requests that were there at one time are answered.
struct Files<'a> {
    direct: Direct<'a>,
    /// The size of the last one.
    size: Option<(RawFd, u64)>,
    /// Whether more than one request was there.
    many: bool,
    /// Whether one of them was answered from where it is.
    mapped: bool,
    /// Writes since it was last asked whether one of them had to wait for the disk.
    writes: u32,
    /// How often that was, so far.
    faults: u64,
}

impl<'a> Files<'a> {
    fn new(direct: Direct<'a>) -> Self {
        let faults = sys::mapping::major_faults();
        Self { direct, size: None, many: false, mapped: false, writes: 0, faults }
    }

    /// That what was there is answered.
    fn answered(&mut self) {
        self.writes += u32::from(self.mapped);
        (self.size, self.many, self.mapped) = (None, false, false);
        if self.writes == FAULTS_ASKED {
            self.writes = 0;
            let faults = sys::mapping::major_faults();
            if faults != self.faults {
                self.faults = faults;
                self.direct.windows.forget();
            }
        }
    }

    /// Bytes of a file that a client may send for from where they are. One that was cut short meanwhile answers
    /// nothing of what is gone.
    fn size(&mut self, fd: BorrowedFd<'_>) -> u64 {
        match self.size {
            Some((known, size)) if known == fd.as_raw_fd() => size,
            _ => {
                let regular = |stat: &rustix::fs::Stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
                let stat = rustix::fs::fstat(fd).ok().filter(regular);
                let size = stat.and_then(|stat| u64::try_from(stat.st_size).ok()).unwrap_or(0);
                self.size = Some((fd.as_raw_fd(), size));
                size
            }
        }
    }

    /// Whether a read of so many bytes should come from where they are.
    fn fit(&mut self, fd: BorrowedFd<'_>, offset: u64, len: usize) -> bool {
        (self.many || len >= MAPPED_BYTES_MIN) && offset.saturating_add(len as u64) <= self.size(fd)
    }
}

/// Whether an answer was given.
enum Answered {
    Yes,
    /// It would have to wait for the disk.
    WouldWait,
}

/// As what a request is counted that was done.
fn counted(request: &Request) -> Operation {
    match request.command {
        command::READ => Operation::Read(request.len),
        command::WRITE => Operation::Write(request.len),
        _ => Operation::Other,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn waited<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

impl<'a, R: Read, W: Write + Send> Connection<'a, R, W> {
    /// The connection after the handshake; `input` and `output` are the two ways of one stream. `direct` is for one
    /// that changes nothing of what is written to it.
    pub fn new(input: R, output: W, export: &Export, dialect: Dialect, direct: Option<Direct<'a>>) -> Self {
        let shared = Shared {
            direct,
            read_only: export.device.limits().read_only,
            device: Arc::clone(&export.device),
            counters: Arc::clone(&export.counters),
            _client: export.counters.client(),
            dialect,
            pace: Pace::default(),
            pending: Mutex::default(),
            written: Condvar::new(),
            stream: Mutex::new(output),
            queue: Mutex::default(),
            arrived: Condvar::new(),
            taken: Condvar::new(),
        };
        Self { input, shared: Arc::new(shared) }
    }

    /// Serves requests until the client goes away; all that it has sent is done when this returns.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a client that breaks the protocol; [`Kind::Disconnected`] for one that goes away in the
    /// middle of a request; the failure of the stream.
    pub fn serve(mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        std::thread::scope(|scope| {
            let start = || {
                let shared = Arc::clone(&shared);
                let named = std::thread::Builder::new().name("nbd-worker".to_owned());
                named.spawn_scoped(scope, move || shared.work()).is_ok()
            };
            let served = self.requests(start);
            locked(&shared.queue).closed = true;
            shared.arrived.notify_all();
            served
        })
    }

    fn requests(&mut self, mut start_worker: impl FnMut() -> bool) -> Result<()> {
        let extended = self.shared.dialect.extended;
        let header = if extended { wire::REQUEST_EXTENDED_BYTES } else { wire::REQUEST_BYTES };
        let mut input = vec![0; INPUT_BYTES];
        let mut filled = 0;
        let mut output = Output::default();
        let mut files = self.shared.direct.map(Files::new);
        // A request whose payload is too long, and how many bytes of that are still to come: nothing of them is kept.
        // Clients want the answer after the last of them.
        let mut refused: Option<(Request, u64)> = None;
        loop {
            let room = input.get_mut(filled..).unwrap_or_default();
            let len = match self.input.read(room) {
                Ok(len) => len,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::io("reading from an NBD client", error)),
            };
            if len == 0 {
                // Without DISCONNECT, which is no crime; in the middle of a request it is.
                let whole = filled == 0 && refused.is_none();
                return if whole { Ok(()) } else { Err(Error::new(Kind::Disconnected, "half a request of a client")) };
            }
            filled += len;
            let mut at = 0;
            if let Some((request, left)) = refused.take() {
                at = left.min(filled as u64) as usize;
                refused = self.shared.refuse(&request, left - at as u64, &mut output);
            }
            let mut needed = header;
            while let Some(bytes) = input.get(at..filled).filter(|bytes| bytes.len() >= header) {
                let Some(request) = Request::parse(bytes, extended) else {
                    return Err(Error::new(Kind::Invalid, "a request without its magic"));
                };
                let payload_len = request.payload_bytes(extended);
                if payload_len > u64::from(PAYLOAD_BYTES_MAX) {
                    if request.command == command::DISCONNECT || payload_len > u64::from(u32::MAX) {
                        return Err(Error::new(
                            Kind::Limit,
                            format!("a request with a payload of {payload_len} bytes"),
                        ));
                    }
                    let here = payload_len.min((filled - at - header) as u64);
                    refused = self.shared.refuse(&request, payload_len - here, &mut output);
                    at += header + here as usize;
                    continue;
                }
                needed = header + payload_len as usize;
                let Some(payload) = bytes.get(header..needed) else { break };
                if request.command == command::DISCONNECT {
                    return self.shared.send(&mut output);
                }
                // The last one that there is may wait right here.
                let last = filled - at == needed;
                if let Some(files) = &mut files {
                    files.many |= !last;
                }
                self.shared.take(&request, payload, &mut output, last, files.as_mut(), &mut start_worker)?;
                at += needed;
                needed = header;
                if output.len() >= OUTPUT_BYTES {
                    self.shared.send(&mut output)?;
                }
            }
            self.shared.send(&mut output)?;
            if let Some(files) = &mut files {
                files.answered();
            }
            input.copy_within(at..filled, 0);
            filled -= at;
            // Not less than was there at first, unless there are many connections.
            let kept = self.shared.kept();
            let wanted = needed.max(filled).max(kept.min(INPUT_BYTES));
            if needed > input.len() {
                input.resize(needed, 0);
            } else if input.len() > kept && input.len() > wanted {
                input.truncate(wanted);
                input.shrink_to_fit();
            }
        }
    }
}

impl<W: Write + Send> Shared<'_, W> {
    /// Memory that this connection keeps.
    fn kept(&self) -> usize {
        let clients = usize::try_from(self.counters.clients()).unwrap_or(usize::MAX);
        (KEPT_BYTES / clients.max(1)).clamp(KEPT_BYTES_MIN, KEPT_BYTES_MAX)
    }

    /// Answers a request with too long a payload once all of that has been skipped.
    fn refuse(&self, request: &Request, left: u64, output: &mut Output) -> Option<(Request, u64)> {
        if left > 0 {
            return Some((*request, left));
        }
        let why = format!("a payload of {} bytes, of {PAYLOAD_BYTES_MAX} at the most", request.len);
        reply::failed(output, self.dialect, request, error::INVAL, &why);
        None
    }

    /// Writes what there is, and counts it.
    fn send(&self, output: &mut Output) -> Result<()> {
        let counted = output.counted();
        if output.is_empty() {
            return Ok(());
        }
        let sent = self.put(output);
        if let Some((batch, begun)) = counted {
            self.counters.add_all(&batch, begun.elapsed());
        }
        sent
    }

    /// Writes it, or leaves it to the thread that is writing: that takes along what has come meanwhile.
    fn put(&self, output: &mut Output) -> Result<()> {
        let mut pending = locked(&self.pending);
        // A client that does not read what it asked for.
        while pending.writing && pending.bytes >= OUTPUT_BYTES && pending.failed.is_none() {
            pending.waiting += 1;
            pending = waited(&self.written, pending);
            pending.waiting -= 1;
        }
        if pending.writing && pending.failed.is_none() {
            pending.bytes += output.len();
            pending.outputs.push(std::mem::take(output));
            return Ok(());
        }
        if pending.failed.is_none() {
            pending.writing = true;
            drop(pending);
            let mut wrote = self.write(output);
            pending = locked(&self.pending);
            while wrote.is_ok() && !pending.outputs.is_empty() {
                let outputs = std::mem::take(&mut pending.outputs);
                pending.bytes = 0;
                drop(pending);
                wrote = outputs.iter().try_for_each(|output| self.write(output));
                pending = locked(&self.pending);
                self.tell_waiting(&pending);
            }
            pending.writing = false;
            pending.failed = wrote.err().map(|error| error.kind());
            self.tell_waiting(&pending);
        }
        output.clear(self.kept());
        match pending.failed {
            None => Ok(()),
            Some(kind) => Err(Error::io("writing to an NBD client", kind)),
        }
    }

    /// A system call, unless nobody waits.
    fn tell_waiting(&self, pending: &Pending) {
        if pending.waiting > 0 {
            self.written.notify_all();
        }
    }

    fn write(&self, output: &Output) -> std::io::Result<()> {
        let mut stream = locked(&self.stream);
        output.write_to(&mut *stream, self.direct.map(|direct| direct.socket))
    }

    /// Answers a request, or hands it to a worker.
    fn take(
        &self,
        request: &Request,
        payload: &[u8],
        output: &mut Output,
        last: bool,
        files: Option<&mut Files<'_>>,
        start_worker: &mut impl FnMut() -> bool,
    ) -> Result<()> {
        let waits = matches!(request.command, command::FLUSH | command::TRIM | command::WRITE_ZEROES | command::CACHE)
            || request.flags & flag::FUA != 0;
        if !waits && matches!(self.answer(request, payload, output, Way::Quickly(files)), Answered::Yes) {
            return Ok(());
        }
        let mut queue = locked(&self.queue);
        if last && queue.jobs.is_empty() && queue.idle == queue.workers {
            drop(queue);
            // What was answered already need not wait with it.
            self.send(output)?;
            self.answer(request, payload, output, Way::Slowly);
            return Ok(());
        }
        if queue.jobs.len() >= queue.idle && queue.workers < WORKERS && start_worker() {
            queue.workers += 1;
        }
        if queue.workers == 0 {
            drop(queue);
            self.answer(request, payload, output, Way::Slowly);
            return Ok(());
        }
        while queue.jobs.len() >= QUEUE_MAX || (!queue.jobs.is_empty() && queue.bytes + payload.len() > QUEUE_BYTES_MAX)
        {
            if !output.is_empty() {
                drop(queue);
                self.send(output)?;
                queue = locked(&self.queue);
                continue;
            }
            queue = waited(&self.taken, queue);
        }
        queue.bytes += payload.len();
        queue.jobs.push_back(Job { request: *request, payload: payload.to_vec() });
        drop(queue);
        self.arrived.notify_one();
        Ok(())
    }

    /// A worker: takes jobs until there are none and the queue is closed.
    fn work(&self) {
        let mut output = Output::default();
        let mut queue = locked(&self.queue);
        loop {
            match queue.jobs.pop_front() {
                Some(job) => {
                    queue.bytes -= job.payload.len();
                    drop(queue);
                    self.taken.notify_one();
                    self.answer(&job.request, &job.payload, &mut output, Way::Slowly);
                    // A client that is gone is found out by the thread that reads.
                    let _ = self.send(&mut output);
                    queue = locked(&self.queue);
                }
                None if queue.closed => return,
                None => {
                    queue.idle += 1;
                    queue = waited(&self.arrived, queue);
                    queue.idle -= 1;
                }
            }
        }
    }

    /// Does what is asked and appends the answer.
    fn answer(&self, request: &Request, payload: &[u8], output: &mut Output, way: Way<'_, '_>) -> Answered {
        let before = output.mark();
        output.begin();
        match self.attempt(request, payload, output, way) {
            Ok(answered) => {
                match answered {
                    Answered::WouldWait => output.truncate(before),
                    Answered::Yes => output.count(counted(request)),
                }
                answered
            }
            Err(failure) => {
                output.truncate(before);
                output.count(Operation::Other);
                let number = error::of(&failure, request);
                reply::failed(output, self.dialect, request, number, &failure.to_string());
                Answered::Yes
            }
        }
    }

    fn attempt(&self, request: &Request, payload: &[u8], output: &mut Output, way: Way<'_, '_>) -> Result<Answered> {
        self.check_flags(request)?;
        let changes = matches!(request.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if changes && self.read_only {
            return Err(Error::new(Kind::ReadOnly, "the export takes no writes"));
        }
        if request.command != command::FLUSH {
            check_range(self.device.size(), request.offset, request.len)?;
            // What such a request means the protocol leaves open; nbdkit answers so too.
            if request.len == 0 {
                return Err(Error::new(Kind::Invalid, "a request of no bytes"));
            }
        }
        match request.command {
            command::READ => {
                if request.len > u64::from(PAYLOAD_BYTES_MAX) {
                    return Err(Error::new(Kind::Limit, format!("a read of {} bytes", request.len)));
                }
                return self.read(request, output, way);
            }
            command::WRITE => {
                if matches!(way, Way::Quickly(_)) && self.pace.is_slow() {
                    return Ok(Answered::WouldWait);
                }
                self.pace.timed(request.len, || self.device.write_at(payload, request.offset))?;
            }
            command::FLUSH => {}
            command::TRIM => self.device.discard(request.offset, request.len)?,
            command::CACHE => self.cache(request)?,
            command::WRITE_ZEROES => {
                if request.flags & flag::FAST_ZERO != 0 && !self.zeroes_are_fast(request)? {
                    return Err(Error::new(Kind::Unsupported, "zeroes would have to be written one by one"));
                }
                let mode = if request.flags & flag::NO_HOLE != 0 { Zero::Allocate } else { Zero::Deallocate };
                self.device.write_zeroes(request.offset, request.len, mode)?;
            }
            command::BLOCK_STATUS => {
                if !self.dialect.allocation {
                    return Err(Error::new(Kind::Invalid, "no context was chosen"));
                }
                let runs = self.runs(request)?;
                reply::block_status(output, self.dialect, request, &runs);
                return Ok(Answered::Yes);
            }
            other => return Err(Error::new(Kind::Invalid, format!("command {other}"))),
        }
        // FUA of a read or a hint means nothing.
        if request.command == command::FLUSH || (changes && request.flags & flag::FUA != 0) {
            self.device.flush()?;
        }
        reply::done(output, self.dialect, request);
        Ok(Answered::Yes)
    }

    /// Flags that a command does not have are an error, as the protocol wants it.
    fn check_flags(&self, request: &Request) -> Result<()> {
        let mut known = match request.command {
            command::READ if self.dialect.structured => flag::DF,
            command::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
            command::BLOCK_STATUS => flag::REQ_ONE,
            _ => 0,
        };
        if self.dialect.extended && request.command == command::WRITE {
            known |= flag::PAYLOAD_LEN;
        }
        // On every command, as the protocol has it: some clients set it on all once it is offered.
        known |= flag::FUA;
        if request.flags & !known != 0 {
            return Err(Error::new(Kind::Invalid, format!("flags {:#x}", request.flags & !known)));
        }
        Ok(())
    }

    /// One walk over the runs of the range: data that lies side by side is one chunk, zeroes are told where they can be.
    fn read(&self, request: &Request, output: &mut Output, way: Way<'_, '_>) -> Result<Answered> {
        let (quick, mut files) = match way {
            Way::Slowly => (false, None),
            Way::Quickly(files) => (true, files),
        };
        let end = request.offset.saturating_add(request.len);
        let holes = self.dialect.structured && request.flags & flag::DF == 0;
        let mut data = None;
        let mut at = request.offset;
        while at < end {
            let extent = self.device.extent_at(at)?;
            let len = extent.len.max(1).min(end - at);
            let last = at + len == end;
            let whole = len == request.len;
            if holes && extent.source.is_zero() && (len >= HOLE_BYTES_MIN || whole) {
                if let Some(chunk) = data.take() {
                    reply::close_data(output, self.dialect, chunk, false);
                }
                reply::hole(output, self.dialect, request, at, len as u32, last);
            } else {
                data.get_or_insert_with(|| reply::open_data(output, self.dialect, request, at));
                let file = match (extent.source, &mut files) {
                    (Source::File { fd, offset }, Some(files)) => {
                        files.fit(fd, offset, len as usize).then_some((fd, offset, files.direct.windows))
                    }
                    _ => None,
                };
                if let Some((window, start)) = file.and_then(|(fd, offset, windows)| windows.find(fd, offset, len)) {
                    output.map(window, start, len as usize);
                    if let Some(files) = &mut files {
                        files.mapped = true;
                    }
                } else {
                    let room = output.room(len as usize);
                    if !self.pace.read(&self.device, extent, room, at, quick)? {
                        return Ok(Answered::WouldWait);
                    }
                    if let Some((fd, offset, windows)) = file {
                        windows.see(fd, offset, len);
                    }
                }
            }
            at += len;
        }
        if let Some(chunk) = data {
            reply::close_data(output, self.dialect, chunk, true);
        }
        Ok(Answered::Yes)
    }

    /// Reads ahead: the kernel is told which bytes of a file will be wanted.
    fn cache(&self, request: &Request) -> Result<()> {
        let end = request.offset + request.len.min(CACHE_BYTES_MAX);
        let mut at = request.offset;
        for _ in 0..RUNS_MAX {
            if at >= end {
                break;
            }
            let extent = self.device.extent_at(at)?;
            let len = extent.len.min(end - at).max(1);
            if let (Source::File { fd, offset }, Some(len)) = (extent.source, std::num::NonZeroU64::new(len)) {
                // Advice: that a file cannot take it is no error.
                let _ = rustix::fs::fadvise(fd, offset, Some(len), rustix::fs::Advice::WillNeed);
            }
            at += len;
        }
        Ok(())
    }

    /// Whether a range is zero already, or lies in a file, where the kernel punches a hole.
    fn zeroes_are_fast(&self, request: &Request) -> Result<bool> {
        let end = request.offset + request.len;
        let mut at = request.offset;
        for _ in 0..FAST_RUNS_MAX {
            if at >= end {
                return Ok(true);
            }
            let extent = self.device.extent_at(at)?;
            if matches!(extent.source, Source::Data) {
                return Ok(false);
            }
            at = at.saturating_add(extent.len.max(1));
        }
        Ok(false)
    }

    /// The runs of a block status: neighbours of one state are one run. They end early where there are very many.
    fn runs(&self, request: &Request) -> Result<Vec<Status>> {
        let most = if request.flags & flag::REQ_ONE != 0 { 1 } else { EXTENTS_MAX };
        let end = request.offset + request.len;
        // Lengths of the old headers have 32 bits; clients want multiples of 512 and more.
        let longest = if self.dialect.extended { u64::MAX } else { u64::from(u32::MAX) & !0xffff };
        let mut runs: Vec<Status> = Vec::new();
        let mut at = request.offset;
        for _ in 0..RUNS_MAX {
            if at >= end {
                break;
            }
            let extent = self.device.extent_at(at)?;
            let state = Status::state(extent.source);
            let len = extent.len.max(1).min(end - at).min(longest);
            let full = runs.len() == most;
            match runs.last_mut() {
                Some(run) if run.state == state && run.len.saturating_add(len) <= longest => run.len += len,
                _ if full => break,
                _ => runs.push(Status { len, state }),
            }
            at += len;
        }
        Ok(runs)
    }
}
