//! Requests of FUSE through an io_uring (Linux 6.14): the kernel puts each into memory of a slot, and one call hands in
//! the answers of all and waits for the next.
//!
//! ```text
//! slot   headers  0        128           256                  288      payload
//!                 │ header │ arguments   │ size, commit number │        │ names, data …
//! ```
//! The same place holds the answer: its header in place of the request's, all else in the payload. A slot belongs to one
//! of the kernel's queues, of which there is one for each processor.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use io_uring::opcode::UringCmd80;
use io_uring::squeue::Entry128;
use io_uring::types::Fd;
use io_uring::{IoUring, cqueue};

/// Bytes of the header of a request, at the most.
pub const HEADER_BYTES: usize = 128;
/// Bytes of the arguments that come before names and data, at the most.
pub const ARGUMENTS_BYTES: usize = 128;
/// `struct fuse_uring_req_header`.
const HEADERS_BYTES: usize = 288;
/// Room for the headers of a slot: its payload begins on a page.
const FRONT_BYTES: usize = 4096;
/// Where the size of the payload and the number of the request stand.
const COMMIT_AT: usize = HEADER_BYTES + ARGUMENTS_BYTES + 8;
const SIZE_AT: usize = COMMIT_AT + 8;
// FUSE_IO_URING_CMD_REGISTER, FUSE_IO_URING_CMD_COMMIT_AND_FETCH
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;
/// Where `len` is in `struct io_uring_sqe`.
const LEN_AT: usize = 24;

const _: () = assert!(size_of::<Entry128>() == 128);

/// Who has the memory of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// This process: it was not given away yet, or it was given back for good.
    Nobody,
    Kernel,
    /// This process, which is to answer what is in it.
    Asked,
}

#[derive(Debug)]
struct Slot {
    queue: u16,
    owner: Owner,
    /// Its first byte.
    front: *mut u8,
    /// Headers and payload, as the kernel wants them described.
    parts: Box<[libc::iovec; 2]>,
}

/// A ring, for one thread.
pub struct Ring {
    ring: IoUring<Entry128, cqueue::Entry>,
    device: OwnedFd,
    slots: Vec<Slot>,
    /// Slots with a request that nobody has looked at.
    asked: VecDeque<usize>,
    payload_bytes: usize,
    memory: *mut [u8],
}

// SAFETY: the memory that the pointers mean belongs to this ring alone, and moves with it.
unsafe impl Send for Ring {}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring for requests of the session of `device`: `each` slots for each of the `queues`, with payloads of
    /// `payload_bytes`, a multiple of the page size. Memory is taken where it is touched.
    ///
    /// # Errors
    /// Why there is no ring: `ENOSYS`, `EPERM`, `EINVAL` on kernels before 5.19.
    pub fn new(device: BorrowedFd<'_>, queues: &[u16], each: usize, payload_bytes: usize) -> io::Result<Self> {
        let count = queues.len() * each;
        let entries = u32::try_from(count.next_power_of_two()).map_err(io::Error::other)?;
        let ring = IoUring::<Entry128, cqueue::Entry>::builder().setup_coop_taskrun().build(entries)?;
        let device = device.try_clone_to_owned()?;
        let slot_bytes = FRONT_BYTES + payload_bytes;
        let memory = Box::into_raw(vec![0_u8; count * slot_bytes].into_boxed_slice());
        let slot = |n: usize| {
            // SAFETY: `n` is less than `count`, so that the whole slot lies inside the memory.
            let front = unsafe { memory.cast::<u8>().add(n * slot_bytes) };
            // SAFETY: as above; the payload comes behind the front.
            let payload = unsafe { front.add(FRONT_BYTES) };
            let part = |base: *mut u8, len| libc::iovec { iov_base: base.cast(), iov_len: len };
            let parts = Box::new([part(front, HEADERS_BYTES), part(payload, payload_bytes)]);
            Slot { queue: queues[n / each], owner: Owner::Nobody, front, parts }
        };
        let slots = (0..count).map(slot).collect();
        Ok(Self { ring, device, slots, asked: VecDeque::with_capacity(count), payload_bytes, memory })
    }

    /// Gives all slots to the kernel, with the next [`Ring::wait`].
    ///
    /// # Errors
    /// `ENOSPC` when it was done before.
    pub fn register(&mut self) -> io::Result<()> {
        for n in 0..self.slots.len() {
            self.push(n, REGISTER, 0)?;
        }
        Ok(())
    }

    fn push(&mut self, n: usize, command: u32, commit: u64) -> io::Result<()> {
        let slot = &mut self.slots[n];
        // `struct fuse_uring_cmd_req`: flags, number of the request, queue.
        let mut words = [0; 80];
        words[8..16].copy_from_slice(&commit.to_ne_bytes());
        words[16..18].copy_from_slice(&slot.queue.to_ne_bytes());
        let parts = slot.parts.as_ptr().expose_provenance() as u64;
        let fd = Fd(self.device.as_raw_fd());
        let built = UringCmd80::new(fd, command).cmd(words).addr(Some(parts)).build();
        let mut entry = built.user_data(n as u64);
        // SAFETY: an entry is the 128 bytes of a `struct io_uring_sqe`, in which a u32 is at this place; nothing else
        // refers to it. The crate has no word for the number of parts.
        unsafe { (&raw mut entry).cast::<u8>().add(LEN_AT).cast::<u32>().write(slot.parts.len() as u32) };
        slot.owner = Owner::Kernel;
        // SAFETY: the parts and the memory that they mean live until the kernel has given the slot back for good: when it
        // has not, dropping the ring frees neither. This process keeps away from the slot as long as the kernel has it.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.slots[n].owner = Owner::Nobody;
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }

    /// Hands in what was answered, without waiting.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn submit(&mut self) -> io::Result<()> {
        self.ring.submit().map(drop)
    }

    /// Hands in what was answered, and waits until there is a request.
    ///
    /// # Errors
    /// `ENOTCONN` or another errno when the session is at an end; `EINTR`.
    pub fn wait(&mut self) -> io::Result<()> {
        self.ring.submit_and_wait(1)?;
        let mut ended = None;
        for done in self.ring.completion() {
            let Some(n) = usize::try_from(done.user_data()).ok().filter(|n| *n < self.slots.len()) else { continue };
            if done.result() < 0 {
                self.slots[n].owner = Owner::Nobody;
                ended = Some(io::Error::from_raw_os_error(-done.result()));
            } else {
                self.slots[n].owner = Owner::Asked;
                self.asked.push_back(n);
            }
        }
        match ended {
            // The others follow.
            Some(error) if self.slots.iter().all(|slot| slot.owner != Owner::Kernel) => Err(error),
            _ => Ok(()),
        }
    }

    /// The next request that [`Ring::wait`] has found.
    pub fn take(&mut self) -> Option<Asked<'_>> {
        let n = self.asked.pop_front()?;
        Some(Asked { ring: self, n })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.slots.iter().any(|slot| slot.owner == Owner::Kernel) {
            // The kernel may still write there: the memory stays as long as the process does.
            std::mem::forget(std::mem::take(&mut self.slots));
            return;
        }
        // SAFETY: it comes from a box, and neither the kernel nor a slot uses it any more.
        drop(unsafe { Box::from_raw(self.memory) });
    }
}

/// A request. Dropped without an answer, it is never answered.
#[derive(Debug)]
pub struct Asked<'r> {
    ring: &'r mut Ring,
    n: usize,
}

impl Asked<'_> {
    fn bytes(&mut self) -> &mut [u8] {
        let len = FRONT_BYTES + self.ring.payload_bytes;
        // SAFETY: the slot's memory is that long and initialised; the kernel has given it back, and only one request of a
        // ring is at hand at a time.
        unsafe { std::slice::from_raw_parts_mut(self.ring.slots[self.n].front, len) }
    }

    /// Header, arguments, the whole payload, and how much of that is the request's.
    pub fn parts(&mut self) -> (&[u8], &[u8], &mut [u8], usize) {
        let (front, payload) = self.bytes().split_at_mut(FRONT_BYTES);
        let size: [u8; 4] = front[SIZE_AT..SIZE_AT + 4].try_into().unwrap_or_default();
        let len = usize::try_from(u32::from_ne_bytes(size)).unwrap_or(usize::MAX).min(payload.len());
        let (header, rest) = front.split_at(HEADER_BYTES);
        (header, &rest[..ARGUMENTS_BYTES], payload, len)
    }

    /// Answers with this header and the first `len` bytes of the payload, and gives the slot back, with the next
    /// [`Ring::submit`] or [`Ring::wait`].
    ///
    /// # Errors
    /// `ENOSPC`, which no ring comes to.
    pub fn answer(mut self, header: &[u8], len: u32) -> io::Result<()> {
        let front = self.bytes();
        let place = header.len().min(HEADER_BYTES);
        front[..place].copy_from_slice(&header[..place]);
        front[SIZE_AT..SIZE_AT + 4].copy_from_slice(&len.to_ne_bytes());
        let commit = u64::from_ne_bytes(front[COMMIT_AT..SIZE_AT].try_into().unwrap_or_default());
        self.ring.push(self.n, COMMIT_AND_FETCH, commit)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn what_is_no_session_gives_every_slot_back() {
        let file = tempfile::tempfile().unwrap();
        // The kernel may have no rings for this process.
        let Ok(mut ring) = Ring::new(file.as_fd(), &[0, 1], 2, 8192) else { return };
        ring.register().unwrap();
        let ended = (0..4).find_map(|_| ring.wait().err()).unwrap();
        assert_eq!(ended.raw_os_error(), Some(libc::EOPNOTSUPP));
        assert!(ring.take().is_none());
        assert!(ring.slots.iter().all(|slot| slot.owner == Owner::Nobody));
    }
}
