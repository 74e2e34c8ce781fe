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
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use block::{BlockDevice, Error, Kind, Result, Source, Zero, check_range};

use super::handshake::Dialect;
use super::reply::{self, Status};
use super::wire::{self, Request, command, error, flag};
use super::{EXTENTS_MAX, PAYLOAD_BYTES_MAX};

/// Threads of a connection that wait for the disk.
const WORKERS: usize = 8;
/// Bytes that are read from the socket at one time, unless one request is longer.
const INPUT_BYTES: usize = 256 << 10;
/// Output that is written although more requests are there.
const OUTPUT_BYTES: usize = 1 << 20;
/// Requests that wait for a worker; more are waited for by the thread that reads.
const QUEUE_MAX: usize = 128;

/// A client whose handshake is done.
pub struct Connection<R, W> {
    input: R,
    shared: Arc<Shared<W>>,
}

struct Shared<W> {
    device: Arc<dyn BlockDevice>,
    dialect: Dialect,
    output: Mutex<W>,
    queue: Mutex<Queue>,
    /// Something was put into the queue, or it was closed.
    arrived: Condvar,
    /// Something was taken out of it.
    taken: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    workers: usize,
    idle: usize,
    closed: bool,
}

struct Job {
    request: Request,
    payload: Vec<u8>,
}

/// Whether an answer was given.
enum Answered {
    Yes,
    /// It would have to wait for the disk.
    WouldWait,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R: Read, W: Write + Send> Connection<R, W> {
    /// The connection after the handshake; `input` and `output` are the two ways of one stream.
    pub fn new(input: R, output: W, device: Arc<dyn BlockDevice>, dialect: Dialect) -> Self {
        let shared = Shared {
            device,
            dialect,
            output: Mutex::new(output),
            queue: Mutex::default(),
            arrived: Condvar::new(),
            taken: Condvar::new(),
        };
        Self { input, shared: Arc::new(shared) }
    }

    /// Serves requests until the client goes away; all that it has sent is done when this returns.
    ///
    /// # Errors
    /// [`Kind::Invalid`] and [`Kind::Limit`] for a client that breaks the protocol; the failure of the stream.
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
        let mut output = Vec::with_capacity(INPUT_BYTES);
        loop {
            let room = input.get_mut(filled..).unwrap_or_default();
            let len = match self.input.read(room) {
                Ok(len) => len,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::io("reading from an NBD client", error)),
            };
            if len == 0 {
                // Without DISCONNECT, which is no crime; in the middle of a request it is.
                return if filled == 0 { Ok(()) } else { Err(Error::new(Kind::Disconnected, "half a request")) };
            }
            filled += len;
            let mut at = 0;
            let mut needed = header;
            while let Some(bytes) = input.get(at..filled).filter(|bytes| bytes.len() >= header) {
                let Some(request) = Request::parse(bytes, extended) else {
                    return Err(Error::new(Kind::Invalid, "a request without its magic"));
                };
                let payload_len = request.payload_bytes(extended);
                if payload_len > u64::from(PAYLOAD_BYTES_MAX) {
                    // It cannot be skipped in good faith: the client breaks what it was told.
                    return Err(Error::new(Kind::Limit, format!("a request with a payload of {payload_len} bytes")));
                }
                needed = header + payload_len as usize;
                let Some(payload) = bytes.get(header..needed) else { break };
                if request.command == command::DISCONNECT {
                    return self.shared.send(&mut output);
                }
                // The last one that there is may wait right here.
                let last = filled - at == needed;
                self.shared.take(&request, payload, &mut output, last, &mut start_worker)?;
                at += needed;
                needed = header;
                if output.len() >= OUTPUT_BYTES {
                    self.shared.send(&mut output)?;
                }
            }
            self.shared.send(&mut output)?;
            input.copy_within(at..filled, 0);
            filled -= at;
            // Room for the rest of a long request, which is given back when it was served.
            let wanted = needed.max(INPUT_BYTES);
            if input.len() != wanted && filled <= wanted {
                input.resize(wanted, 0);
                input.shrink_to(INPUT_BYTES);
            }
        }
    }
}

impl<W: Write + Send> Shared<W> {
    /// Writes what there is, all at once.
    fn send(&self, output: &mut Vec<u8>) -> Result<()> {
        if output.is_empty() {
            return Ok(());
        }
        let mut stream = locked(&self.output);
        let sent = stream.write_all(output).and_then(|()| stream.flush());
        drop(stream);
        output.clear();
        output.shrink_to(4 * OUTPUT_BYTES);
        sent.map_err(|error| Error::io("writing to an NBD client", error))
    }

    /// Answers a request, or hands it to a worker.
    fn take(
        &self,
        request: &Request,
        payload: &[u8],
        output: &mut Vec<u8>,
        last: bool,
        start_worker: &mut impl FnMut() -> bool,
    ) -> Result<()> {
        let waits = matches!(request.command, command::FLUSH | command::TRIM | command::WRITE_ZEROES)
            || request.flags & flag::FUA != 0;
        if !waits && matches!(self.answer(request, payload, output, true), Answered::Yes) {
            return Ok(());
        }
        let mut queue = locked(&self.queue);
        if last && queue.jobs.is_empty() && queue.idle == queue.workers {
            drop(queue);
            // What was answered already need not wait with it.
            self.send(output)?;
            self.answer(request, payload, output, false);
            return Ok(());
        }
        if queue.idle == 0 && queue.workers < WORKERS && start_worker() {
            queue.workers += 1;
        }
        if queue.workers == 0 {
            drop(queue);
            self.answer(request, payload, output, false);
            return Ok(());
        }
        while queue.jobs.len() >= QUEUE_MAX {
            queue = self.taken.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.jobs.push_back(Job { request: *request, payload: payload.to_vec() });
        drop(queue);
        self.arrived.notify_one();
        Ok(())
    }

    /// A worker: takes jobs until there are none and the queue is closed.
    fn work(&self) {
        let mut output = Vec::new();
        let mut queue = locked(&self.queue);
        loop {
            match queue.jobs.pop_front() {
                Some(job) => {
                    drop(queue);
                    self.taken.notify_one();
                    self.answer(&job.request, &job.payload, &mut output, false);
                    // A client that is gone is found out by the thread that reads.
                    let _ = self.send(&mut output);
                    queue = locked(&self.queue);
                }
                None if queue.closed => return,
                None => {
                    queue.idle += 1;
                    queue = self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
                    queue.idle -= 1;
                }
            }
        }
    }

    /// Does what is asked and appends the answer; when `quick`, only if it does not wait for the disk.
    fn answer(&self, request: &Request, payload: &[u8], output: &mut Vec<u8>, quick: bool) -> Answered {
        let before = output.len();
        match self.attempt(request, payload, output, quick) {
            Ok(answered) => {
                if matches!(answered, Answered::WouldWait) {
                    output.truncate(before);
                }
                answered
            }
            Err(failure) => {
                output.truncate(before);
                let mut number = error::of(&failure);
                let writes = matches!(request.command, command::WRITE | command::WRITE_ZEROES | command::TRIM);
                if writes && failure.kind() == Kind::OutOfRange {
                    number = error::NOSPC;
                }
                reply::failed(output, self.dialect, request, number, &failure.to_string());
                Answered::Yes
            }
        }
    }

    fn attempt(&self, request: &Request, payload: &[u8], output: &mut Vec<u8>, quick: bool) -> Result<Answered> {
        let size = self.device.size();
        self.check_flags(request)?;
        match request.command {
            command::READ => {
                if request.len > u64::from(PAYLOAD_BYTES_MAX) {
                    return Err(Error::new(Kind::Limit, format!("a read of {} bytes", request.len)));
                }
                check_range(size, request.offset, request.len)?;
                return self.read(request, output, quick);
            }
            command::WRITE => {
                check_range(size, request.offset, request.len)?;
                self.device.write_at(payload, request.offset)?;
            }
            command::FLUSH => {}
            command::TRIM => {
                check_range(size, request.offset, request.len)?;
                self.device.discard(request.offset, request.len)?;
            }
            command::CACHE => {
                check_range(size, request.offset, request.len)?;
                self.cache(request)?;
            }
            command::WRITE_ZEROES => {
                check_range(size, request.offset, request.len)?;
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
                check_range(size, request.offset, request.len)?;
                if request.len == 0 {
                    return Err(Error::new(Kind::Invalid, "a status of no bytes"));
                }
                let runs = self.runs(request)?;
                reply::block_status(output, self.dialect, request, &runs);
                return Ok(Answered::Yes);
            }
            other => return Err(Error::new(Kind::Invalid, format!("command {other}"))),
        }
        if request.command == command::FLUSH || request.flags & flag::FUA != 0 {
            self.device.flush()?;
        }
        reply::done(output, self.dialect, request);
        Ok(Answered::Yes)
    }

    /// Flags that a command does not have are an error, as the protocol wants it.
    fn check_flags(&self, request: &Request) -> Result<()> {
        let mut known = match request.command {
            command::READ if self.dialect.structured => flag::DF,
            command::WRITE | command::TRIM => flag::FUA,
            command::WRITE_ZEROES => flag::FUA | flag::NO_HOLE | flag::FAST_ZERO,
            command::BLOCK_STATUS => flag::REQ_ONE,
            _ => 0,
        };
        if self.dialect.extended && request.command == command::WRITE {
            known |= flag::PAYLOAD_LEN;
        }
        // Harmless where it means nothing: some clients set it on everything once it is offered.
        known |= flag::FUA;
        if request.flags & !known != 0 {
            return Err(Error::new(Kind::Invalid, format!("flags {:#x}", request.flags & !known)));
        }
        Ok(())
    }

    fn read(&self, request: &Request, output: &mut Vec<u8>, quick: bool) -> Result<Answered> {
        let end = request.offset + request.len;
        let one_chunk = !self.dialect.structured || request.flags & flag::DF != 0 || request.len == 0;
        if one_chunk {
            reply::data_header(output, self.dialect, request, request.offset, request.len, true);
            return self.read_data(request.offset, request.len, output, quick);
        }
        let mut offset = request.offset;
        while offset < end {
            let (mut run_end, zero) = self.run(offset, end)?;
            // One chunk for all data that lies side by side.
            while !zero && run_end < end {
                let (next_end, next_zero) = self.run(run_end, end)?;
                if next_zero {
                    break;
                }
                run_end = next_end;
            }
            let (len, last) = (run_end - offset, run_end == end);
            if zero {
                reply::hole(output, self.dialect, request, offset, len as u32, last);
            } else {
                reply::data_header(output, self.dialect, request, offset, len, last);
                if matches!(self.read_data(offset, len, output, quick)?, Answered::WouldWait) {
                    return Ok(Answered::WouldWait);
                }
            }
            offset = run_end;
        }
        Ok(Answered::Yes)
    }

    /// Where the run that begins at `offset` ends, `end` at the most, and whether it reads as zero.
    fn run(&self, offset: u64, end: u64) -> Result<(u64, bool)> {
        let extent = self.device.extent_at(offset)?;
        Ok((offset.saturating_add(extent.len.max(1)).min(end), extent.source.is_zero()))
    }

    /// Appends the bytes.
    fn read_data(&self, offset: u64, len: u64, output: &mut Vec<u8>, quick: bool) -> Result<Answered> {
        let start = output.len();
        output.resize(start + len as usize, 0);
        let mut rest = output.get_mut(start..).unwrap_or_default();
        if !quick {
            self.device.read_at(rest, offset)?;
            return Ok(Answered::Yes);
        }
        let mut at = offset;
        while !rest.is_empty() {
            let extent = self.device.extent_at(at)?;
            let run = extent.len.min(rest.len() as u64).max(1) as usize;
            let Some((now, later)) = rest.split_at_mut_checked(run) else { break };
            match extent.source {
                Source::Hole | Source::Zero => {}
                Source::File { fd, offset } => match sys::file::read_cached(fd, now, offset) {
                    Ok(read) if read == now.len() => {}
                    _ => return Ok(Answered::WouldWait),
                },
                Source::Data => return Ok(Answered::WouldWait),
            }
            at += run as u64;
            rest = later;
        }
        Ok(Answered::Yes)
    }

    /// Reads ahead: the kernel is told which bytes of a file will be wanted.
    fn cache(&self, request: &Request) -> Result<()> {
        let end = request.offset + request.len;
        let mut at = request.offset;
        while at < end {
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
        if request.len == 0 {
            return Ok(true);
        }
        let extent = self.device.extent_at(request.offset)?;
        Ok(!matches!(extent.source, Source::Data))
    }

    /// The runs of a block status: neighbours of one state are one run.
    fn runs(&self, request: &Request) -> Result<Vec<Status>> {
        let most = if request.flags & flag::REQ_ONE != 0 { 1 } else { EXTENTS_MAX };
        let end = request.offset + request.len;
        // Lengths of the old headers have 32 bits; clients want multiples of 512 and more.
        let longest = if self.dialect.extended { u64::MAX } else { u64::from(u32::MAX) & !0xffff };
        let mut runs: Vec<Status> = Vec::new();
        let mut at = request.offset;
        while at < end {
            let extent = self.device.extent_at(at)?;
            let state = Status::state(extent.source);
            let len = extent.len.max(1).min(end - at);
            let full = runs.len() == most;
            match runs.last_mut() {
                Some(run) if run.state == state && run.len.saturating_add(len) <= longest => run.len += len,
                _ if full => break,
                _ => runs.push(Status { len: len.min(longest), state }),
            }
            at += len.min(longest);
        }
        Ok(runs)
    }
}

