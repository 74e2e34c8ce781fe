//! A queue of `/dev/ublkcN`: requests come as the answers to commands, one command for each tag.
//!
//! ```text
//! tag 3   FETCH ─► waits in the kernel ─► a request, with its data in buffer 3 ─► lent to whoever does it
//!           ▲                                                                        │
//!           └──────────────── COMMIT_AND_FETCH, with the result ◄────────────────────┘
//! ```
//! The kernel has the buffer of a tag from the command to its answer, and this process from the answer to the next
//! command: never both. When the device is stopped each command is answered with an error, and there is no next one.

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};

use super::{Command, DEPTH_MAX, Descriptor, Info, Plain};

/// A command, as it lies in the ring.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Argument {
    queue: u16,
    tag: u16,
    result: i32,
    address: u64,
}

// SAFETY: fields of 2, 4 and 8 bytes that fill 16, in an order that needs no padding.
unsafe impl Plain for Argument {}

/// What the answer to looking at the bell is known by; tags are smaller.
const BELL: u64 = u64::MAX;

/// The open `/dev/ublkcN`. One process at a time has it.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Opens that of device `number`.
    ///
    /// # Errors
    /// `EBUSY` where another process has it; those of open(2).
    pub fn open(number: u32) -> io::Result<Self> {
        let path = format!("/dev/ublkc{number}");
        Ok(Self(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?))
    }
}

/// Pages that go when dropped.
#[derive(Debug)]
struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an address and a length; who may use the pages is decided by who makes references to them.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped with this length by whoever made this, and nothing refers to them any more.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// The buffer of one tag, while this process has it.
#[derive(Debug)]
struct Buffer {
    pages: Arc<Pages>,
    offset: usize,
    len: usize,
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `offset` and `len` lie inside of the pages, which were mapped as zeroes and live as long as this. Of
        // each tag there is one buffer at a time at the most, made when the kernel gave the tag and given up before it
        // gets it back: nobody else reads or writes these bytes.
        unsafe { std::slice::from_raw_parts(self.pages.start.as_ptr().add(self.offset), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` means that there is no other borrow.
        unsafe { std::slice::from_raw_parts_mut(self.pages.start.as_ptr().add(self.offset), self.len) }
    }
}

/// A request that the kernel gave. It is to be given back by [`Queue::commit`]: as long as it is not, whoever made it
/// waits.
#[derive(Debug)]
pub struct Request {
    tag: u16,
    /// What is asked for.
    pub descriptor: Descriptor,
    buffer: Buffer,
}

impl Request {
    /// The bytes to be written, or room for those that are read; at least as long as any request may be.
    pub fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }
}

/// Wakes the thread of a queue.
#[derive(Debug, Clone)]
pub struct Bell(Arc<OwnedFd>);

impl Bell {
    /// Wakes it, now or when it next waits.
    pub fn ring(&self) {
        // It fails when the counter is full: then it is awake anyway.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

/// Where a tag is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Kernel,
    Lent,
    /// Its device is stopped.
    Gone,
}

/// A queue; it stays in the thread that made it, which the driver knows it by.
pub struct Queue {
    // Closed before the memory goes.
    ring: IoUring<Entry128>,
    channel: Arc<Channel>,
    encoded: bool,
    number: u16,
    descriptors: Pages,
    buffers: Arc<Pages>,
    buffer_bytes: usize,
    places: Vec<Place>,
    bell: Bell,
    /// Whether the ring looks at the bell.
    watched: bool,
    /// Those that were taken together; empty between.
    answers: Vec<cqueue::Entry>,
    /// The first answer that was an error.
    failure: Option<i32>,
    here: PhantomData<*const ()>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("number", &self.number).field("places", &self.places).finish_non_exhaustive()
    }
}

impl Queue {
    /// Queue `number` of a device that was added, and a command for each of its tags. It is served when all queues are
    /// so, and the device is started.
    ///
    /// # Errors
    /// Those of `mmap`, of `io_uring_setup` and of the driver.
    pub fn new(channel: Arc<Channel>, device: &Info, number: u16, encoded: bool) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let depth = usize::from(device.depth);
        if depth == 0 || depth > DEPTH_MAX {
            return Err(invalid());
        }
        let page = rustix::param::page_size();
        let len = (depth * size_of::<Descriptor>()).next_multiple_of(page);
        let stride = (DEPTH_MAX * size_of::<Descriptor>()).next_multiple_of(page);
        let offset = u64::from(number) * stride as u64;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
        let start = unsafe {
            let nowhere = std::ptr::null_mut();
            rustix::mm::mmap(nowhere, len, ProtFlags::READ, MapFlags::SHARED, &channel.0, offset)
        }?;
        let descriptors = Pages { start: NonNull::new(start.cast()).ok_or_else(invalid)?, len };
        let buffer_bytes = usize::try_from(device.buffer_bytes).map_err(|_| invalid())?;
        let len = buffer_bytes.checked_mul(depth).filter(|len| *len > 0).ok_or_else(invalid)?;
        // SAFETY: as above.
        let start = unsafe {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, access, MapFlags::PRIVATE | MapFlags::NORESERVE)
        }?;
        let buffers = Arc::new(Pages { start: NonNull::new(start.cast()).ok_or_else(invalid)?, len });
        let entries = (depth as u32 + 1).next_power_of_two();
        let ring = IoUring::builder().setup_coop_taskrun().setup_single_issuer().build(entries)?;
        let bell = Bell(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?));
        let mut queue = Self {
            ring,
            channel,
            encoded,
            number,
            descriptors,
            buffers,
            buffer_bytes,
            places: vec![Place::Gone; depth],
            bell,
            watched: false,
            answers: Vec::with_capacity(depth + 1),
            failure: None,
            here: PhantomData,
        };
        for tag in 0..device.depth {
            queue.send(Command::Fetch, tag, 0)?;
        }
        queue.ring.submit()?;
        // What the driver refuses it refuses at once.
        queue.take(&mut Vec::new());
        match queue.failure {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(queue),
        }
    }

    /// What wakes [`Queue::wait`].
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Whether the device is stopped, and nothing can come any more.
    pub fn is_over(&self) -> bool {
        self.places.iter().all(|place| *place == Place::Gone)
    }

    /// Gives a request back with what came of it: bytes read or written, or a negative errno. It is sent with the next
    /// [`Queue::wait`].
    ///
    /// # Errors
    /// Those of `io_uring_enter`, where there is no room in the ring.
    pub fn commit(&mut self, request: Request, result: i32) -> io::Result<()> {
        let tag = request.tag;
        drop(request);
        self.send(Command::CommitAndFetch, tag, result)
    }

    /// Sends what was committed.
    ///
    /// # Errors
    /// Those of `io_uring_enter`.
    pub fn submit(&mut self) -> io::Result<()> {
        self.ring.submit().map(drop)
    }

    /// Sends what was committed, and waits until a request comes or the bell is rung. What came is added to `arrived`.
    ///
    /// # Errors
    /// Those of `io_uring_enter`.
    pub fn wait(&mut self, arrived: &mut Vec<Request>) -> io::Result<()> {
        if !self.watched {
            let bell = types::Fd(self.bell.0.as_raw_fd());
            let look = opcode::PollAdd::new(bell, libc::POLLIN as u32).build().user_data(BELL);
            self.push(&look.into())?;
            self.watched = true;
        }
        match self.ring.submit_and_wait(1) {
            // More answers than room for them: they are taken now.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINTR | libc::EAGAIN)) => {}
            other => drop(other?),
        }
        self.take(arrived);
        Ok(())
    }

    fn send(&mut self, command: Command, tag: u16, result: i32) -> io::Result<()> {
        let place = self.places.get_mut(usize::from(tag)).ok_or(io::ErrorKind::InvalidInput)?;
        *place = Place::Kernel;
        let address = self.buffers.start.as_ptr() as u64 + u64::from(tag) * self.buffer_bytes as u64;
        let argument = Argument { queue: self.number, tag, result, address };
        let mut bytes = [0; 80];
        bytes.iter_mut().zip(argument.bytes()).for_each(|(to, from)| *to = *from);
        let fd = types::Fd(self.channel.0.as_raw_fd());
        let entry = opcode::UringCmd80::new(fd, command.code(self.encoded)).cmd(bytes).build().user_data(tag.into());
        self.push(&entry)
    }

    fn push(&mut self, entry: &Entry128) -> io::Result<()> {
        if self.ring.submission().is_full() {
            self.ring.submit()?;
        }
        // SAFETY: a command names the channel and the buffer of its tag, which nobody in this process refers to from
        // here on until it is answered; both live until then, see `drop`. A look at the bell names that alone.
        unsafe { self.ring.submission().push(entry) }.map_err(io::Error::other)
    }

    /// Takes the answers that are there.
    fn take(&mut self, arrived: &mut Vec<Request>) {
        let mut answers = std::mem::take(&mut self.answers);
        answers.extend(self.ring.completion());
        for answer in answers.drain(..) {
            if answer.user_data() == BELL {
                self.watched = false;
                let _ = rustix::io::read(&*self.bell.0, &mut [0; 8]);
                continue;
            }
            let tag = usize::try_from(answer.user_data()).unwrap_or(usize::MAX);
            let Some(place) = self.places.get_mut(tag).filter(|place| **place == Place::Kernel) else { continue };
            if answer.result() != 0 {
                self.failure.get_or_insert(answer.result().saturating_abs());
                *place = Place::Gone;
                continue;
            }
            *place = Place::Lent;
            let descriptors = self.descriptors.start.as_ptr().cast::<Descriptor>();
            // SAFETY: `tag` is below the depth, for which the mapping has room; the driver wrote the descriptor before
            // it answered, and writes it again only after the next command of this tag. Any bytes make one.
            let descriptor = unsafe { descriptors.add(tag).read_volatile() };
            let buffer =
                Buffer { pages: Arc::clone(&self.buffers), offset: tag * self.buffer_bytes, len: self.buffer_bytes };
            arrived.push(Request { tag: tag as u16, descriptor, buffer });
        }
        self.answers = answers;
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // The kernel may still copy into buffers of commands that have no answer: they are never given back then.
        if self.places.contains(&Place::Kernel) {
            std::mem::forget(Arc::clone(&self.buffers));
        }
    }
}
