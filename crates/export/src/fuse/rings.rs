//! Requests through io_uring, where root has turned that on (`/sys/module/fuse/parameters/enable_uring`, Linux 6.14).
//!
//! ```text
//! program on processor 0 ──► queue 0 ──► ring of a thread: parse → Nodes → answer, and wait for the next in one call
//! program on processor 1 ──► queue 1 ──► ring of a thread
//! FORGET, INTERRUPT      ──► /dev/fuse ──► a worker, as without rings
//! ```
//! The kernel has a queue for each processor that there could be, and waits until all of them have a slot.

use std::os::fd::BorrowedFd;

use block::{Error, Result};
use rustix::thread::{CpuSet, sched_setaffinity};
use sys::fuse_ring::{Asked, HEADER_BYTES, Ring};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::request::{Malformed, Operation, Request};
use super::session::{Session, TRANSFER_BYTES_MAX};
use super::wire::{Errno, InHeader, OutHeader, WriteIn, opcode};

/// The processors that there could be.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
/// Most queues that are served: each takes a slot.
const QUEUES_MAX: u16 = 64;
/// Most slots of a queue.
const SLOTS_MAX: usize = 8;
/// Most slots of a session: each may come to hold [`TRANSFER_BYTES_MAX`].
const SLOTS_TOTAL: usize = 32;
/// Most threads.
const THREADS_MAX: u16 = 8;
/// An answer of this size is handed in at once: it takes others longer to make than a call does.
const LARGE_BYTES: usize = 32 << 10;
/// Room for answers that do not go straight into a slot.
const SMALL_BYTES: usize = 256;

/// The rings of a session, one for each of its threads.
#[derive(Debug)]
pub struct Rings(Vec<(Ring, CpuSet)>);

impl Rings {
    /// Rings for the session of `device`; `None` where this machine has none for this process.
    pub fn new(device: BorrowedFd<'_>) -> Option<Self> {
        let queues = queues(&std::fs::read_to_string(POSSIBLE).ok()?)?;
        let each = (SLOTS_TOTAL / usize::from(queues)).clamp(1, SLOTS_MAX);
        let threads = queues.min(THREADS_MAX);
        let ring = |thread: u16| {
            let own: Vec<u16> = (thread..queues).step_by(threads.into()).collect();
            let mut processors = CpuSet::new();
            own.iter().for_each(|queue| processors.set(usize::from(*queue)));
            Some((Ring::new(device, &own, each, TRANSFER_BYTES_MAX).ok()?, processors))
        };
        (0..threads).map(ring).collect::<Option<Vec<_>>>().map(Self)
    }

    /// Answers, on a thread for each ring, until the session ends or `others` has returned, which is called on this
    /// thread.
    pub fn serve<T>(self, session: &Session, others: impl FnOnce() -> T) -> (Result<()>, T) {
        std::thread::scope(|scope| {
            let threads: Vec<_> = self.0.into_iter().map(|ring| scope.spawn(|| work(session, ring))).collect();
            let other = others();
            let ends = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(Error::new(block::Kind::Io, "a thread of the session")))
            });
            (ends.collect(), other)
        })
    }
}

/// How many queues the kernel has: one more than the highest number in a list as `0-3` or `0,2-5`.
fn queues(possible: &str) -> Option<u16> {
    let last = possible.trim().rsplit([',', '-']).next()?.parse::<u16>().ok()?;
    last.checked_add(1).filter(|queues| *queues <= QUEUES_MAX)
}

/// One thread's life.
fn work(session: &Session, (mut ring, processors): (Ring, CpuSet)) -> Result<()> {
    // On the processor of whoever asks, who waits meanwhile: the other way round, each request wakes another processor
    // up, and its answer this one. Where it may not run there, it runs where it may.
    let _ = sched_setaffinity(None, &processors);
    let mut message = Vec::new();
    let failed = |error| Error::io("requests of FUSE through io_uring", error);
    ring.register().map_err(failed)?;
    loop {
        match ring.wait() {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // Unmounted, or aborted.
            Err(error) if matches!(error.raw_os_error(), Some(ends::NOTCONN | ends::CANCELED)) => {
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        }
        while let Some(asked) = ring.take() {
            if answer(session, asked, &mut message).map_err(failed)? >= LARGE_BYTES {
                ring.submit().map_err(failed)?;
            }
        }
    }
}

/// What a ring ends with.
mod ends {
    use rustix::io::Errno;

    pub const NOTCONN: i32 = Errno::NOTCONN.raw_os_error();
    pub const CANCELED: i32 = Errno::CANCELED.raw_os_error();
}

/// Answers one request, and says how many bytes that took.
fn answer(session: &Session, mut asked: Asked<'_>, message: &mut Vec<u8>) -> std::io::Result<usize> {
    let (header, arguments, payload, size) = asked.parts();
    let Ok((front, _)) = InHeader::read_from_prefix(header) else { return Ok(0) };
    let answer = if front.opcode == opcode::WRITE {
        // What is written is not copied once more.
        let mut small = [0; SMALL_BYTES];
        let answer = written(&front, arguments, &payload[..size])
            .ok_or(Errno::INVAL)
            .and_then(|request| session.answer(request, &mut small).unwrap_or(Err(Errno::IO)));
        answer.inspect(|len| payload[..*len].copy_from_slice(&small[..*len]))
    } else {
        // In one piece, as it would have been read from the device.
        let first = usize::try_from(front.len).unwrap_or(usize::MAX).saturating_sub(size_of::<InHeader>() + size);
        message.clear();
        message.extend_from_slice(&header[..size_of::<InHeader>()]);
        message.extend_from_slice(arguments.get(..first).unwrap_or_default());
        message.extend_from_slice(&payload[..size]);
        match Request::parse(message) {
            // What has no answer comes by the device; here, all is answered.
            Ok(request) => session.answer(request, payload).unwrap_or(Ok(0)),
            Err(Malformed::Header | Malformed::Arguments(_)) => Err(Errno::INVAL),
        }
    };
    let (error, len) = match answer {
        Ok(len) => (0, len),
        Err(Errno(errno)) => (-errno, 0),
    };
    let body = u32::try_from(len).unwrap_or(0);
    let total = u32::try_from(size_of::<OutHeader>() + len).unwrap_or(0);
    let out = OutHeader { len: total, error, unique: front.unique };
    asked.answer(out.as_bytes(), body)?;
    Ok(len)
}

/// A WRITE, whose data stands alone.
fn written<'a>(front: &InHeader, arguments: &[u8], data: &'a [u8]) -> Option<Request<'a>> {
    let (given, _) = WriteIn::read_from_prefix(arguments).ok()?;
    let whole = usize::try_from(given.size) == Ok(data.len());
    whole.then_some(Request { unique: front.unique, node: front.nodeid, operation: Operation::Write(given, data) })
}

const _: () = assert!(size_of::<InHeader>() <= HEADER_BYTES && size_of::<OutHeader>() <= HEADER_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_those_of_all_processors_that_could_be() {
        assert_eq!(queues("0\n"), Some(1));
        assert_eq!(queues("0-1\n"), Some(2));
        assert_eq!(queues("0,2-5\n"), Some(6));
        assert_eq!(queues("0-63\n"), Some(64));
        assert_eq!(queues("0-64\n"), None);
        assert_eq!(queues(""), None);
    }

    #[test]
    fn a_write_has_all_that_it_says() {
        let front = InHeader { unique: 7, nodeid: 2, opcode: opcode::WRITE, ..InHeader::default() };
        let given = WriteIn { offset: 512, size: 3, ..WriteIn::default() };
        let request = written(&front, given.as_bytes(), b"abc").unwrap();
        assert_eq!((request.unique, request.node), (7, 2));
        assert_eq!(request.operation, Operation::Write(given, b"abc"));
        assert!(written(&front, given.as_bytes(), b"ab").is_none());
        assert!(written(&front, &given.as_bytes()[..8], b"abc").is_none());
    }
}
