//! The driver's side of a virtio disk over vhost-user: what a guest's kernel does, without a guest, for tests that mean
//! harm and for benchmarks.
//!
//! A queue has slots, a request each: `head | data | status`, in three descriptors of its own.

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{
    Bytes as _, FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestRegionMmap, MmapRegion,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of data that a slot has room for.
pub const DATA_BYTES: u32 = 128 << 10;
/// Slots of a queue.
pub const SLOTS: u16 = 128;
/// Entries of a queue.
const SIZE: u16 = 512;
/// Where the parts of a queue are.
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x6000;
const HEADS: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const QUEUE_BYTES: u64 = DATA + DATA_BYTES as u64 * SLOTS as u64;
/// Feature bit: notifications by the number of the request.
const EVENT_IDX: u64 = 1 << 29;
/// Feature bits that this driver takes: those of a disk but SCSI, and of rings that are not packed.
const KNOWN: u64 = 0x7e76 | 1 << 28 | EVENT_IDX | 1 << 30 | 1 << 32;

/// A driver that is connected.
pub struct Driver {
    frontend: Frontend,
    memory: GuestMemoryMmap,
    queues: Vec<Queue>,
    /// What the device offered and the driver takes.
    pub features: u64,
}

struct Queue {
    kick: EventFd,
    call: EventFd,
    /// Whether it was called.
    called: Epoll,
    /// Requests made, told, and answered.
    made: u16,
    told: u16,
    answered: u16,
}

/// A request that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Its slot.
    pub slot: u16,
    /// Bytes that the device says it wrote.
    pub written: u32,
    /// Its status.
    pub status: u8,
}

/// A request to be made.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// 0: read, 1: write, 4: flush …
    pub kind: u32,
    /// The first sector.
    pub sector: u64,
    /// Bytes of data.
    pub len: u32,
}

fn start(queue: usize) -> u64 {
    queue as u64 * QUEUE_BYTES
}

impl Driver {
    /// Connects, and starts so many queues.
    ///
    /// # Panics
    /// When the device does not do what it has to.
    pub fn connect(socket: &Path, queues: usize) -> Self {
        let mut frontend = Frontend::connect(socket, queues as u64).unwrap();
        let features = frontend.get_features().unwrap() & KNOWN;
        frontend.set_owner().unwrap();
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        assert!(features & protocol != 0);
        frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ).unwrap();
        assert!(frontend.get_queue_num().unwrap() >= queues as u64);
        frontend.set_features(features).unwrap();
        let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let bytes = start(queues);
        rustix::fs::ftruncate(&file, bytes).unwrap();
        let region = MmapRegion::from_file(FileOffset::new(file.into(), 0), bytes as usize).unwrap();
        let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
        let info = VhostUserMemoryRegionInfo::from_guest_region(&region).unwrap();
        frontend.set_mem_table(&[info]).unwrap();
        let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
        let queue = |_| {
            let (kick, call, called) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap(), Epoll::new().unwrap());
            let event = EpollEvent::new(EventSet::IN, 0);
            called.ctl(ControlOperation::Add, call.as_raw_fd(), event).unwrap();
            Queue { kick, call, called, made: 0, told: 0, answered: 0 }
        };
        let queues = (0..queues).map(queue).collect();
        let mut driver = Self { frontend, memory, queues, features };
        for index in 0..driver.queues.len() {
            driver.start(index, 0);
        }
        driver
    }

    fn start(&mut self, index: usize, base: u16) {
        let address = |at: u64| self.memory.get_host_address(GuestAddress(start(index) + at)).unwrap() as u64;
        let addresses = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: address(0),
            used_ring_addr: address(USED),
            avail_ring_addr: address(AVAILABLE),
            log_addr: None,
        };
        self.frontend.set_vring_num(index, SIZE).unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        self.frontend.set_vring_addr(index, &addresses).unwrap();
        self.frontend.set_vring_call(index, &self.queues[index].call).unwrap();
        self.frontend.set_vring_kick(index, &self.queues[index].kick).unwrap();
        self.frontend.set_vring_enable(index, true).unwrap();
    }

    /// Stops a queue: how many requests the device has taken from it.
    ///
    /// # Panics
    /// When the device does not do what it has to.
    pub fn stop(&mut self, queue: usize) -> u32 {
        self.frontend.get_vring_base(queue).unwrap()
    }

    /// The configuration of the device.
    ///
    /// # Panics
    /// When the device does not do what it has to.
    pub fn configuration(&mut self, len: u32) -> Vec<u8> {
        let flags = VhostUserConfigFlags::empty();
        self.frontend.get_config(0, len, flags, &vec![0; len as usize]).unwrap().1
    }

    /// The memory, to do harm with.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Where the available ring of a queue lies in the memory.
    pub fn available(queue: usize) -> GuestAddress {
        GuestAddress(start(queue) + AVAILABLE)
    }

    /// Where the data of a slot lies in the memory.
    pub fn data(queue: usize, slot: u16) -> GuestAddress {
        GuestAddress(start(queue) + DATA + u64::from(slot) * u64::from(DATA_BYTES))
    }

    /// Makes a request, of which the device is told by [`Driver::tell`].
    ///
    /// # Panics
    /// When there is no such slot, or the data has no room in it.
    pub fn make(&mut self, queue: usize, slot: u16, request: Request) {
        assert!(slot < SLOTS && request.len <= DATA_BYTES);
        let head = start(queue) + HEADS + u64::from(slot) * 32;
        // Kind, sector, and a status that no device gives. Nothing is allocated here: benchmarks count this time too.
        let words = [u64::from(request.kind).to_le(), request.sector.to_le()];
        self.memory.write_obj(words, GuestAddress(head)).unwrap();
        self.memory.write_obj(0xee_u8, GuestAddress(head + 16)).unwrap();
        // Flags: 1 another follows, 2 the device writes.
        let takes = if matches!(request.kind, 0 | 8) { 2 } else { 0 };
        let data = (Self::data(queue, slot).0, request.len, 1 | takes);
        let all = [(head, 16, 1_u64), data, (head + 16, 1, 2)];
        let used = all.iter().enumerate().filter(|(n, _)| *n != 1 || request.len > 0);
        for (number, (_, (address, len, flags))) in (slot * 3..).zip(used) {
            let next = u64::from(number + 1) * (flags & 1);
            let words = [address.to_le(), (u64::from(*len) | flags << 32 | next << 48).to_le()];
            self.memory.write_obj(words, GuestAddress(start(queue) + u64::from(number) * 16)).unwrap();
        }
        let state = &mut self.queues[queue];
        let at = start(queue) + AVAILABLE + 4 + u64::from(state.made % SIZE) * 2;
        self.memory.write_obj(slot * 3, GuestAddress(at)).unwrap();
        state.made = state.made.wrapping_add(1);
    }

    /// Tells the device of all that was made, and wakes it where it wants to be; returns whether it did.
    ///
    /// # Panics
    /// When the system fails.
    pub fn tell(&mut self, queue: usize) -> bool {
        let state = &mut self.queues[queue];
        let (old, new) = (state.told, state.made);
        if old == new {
            return false;
        }
        let base = start(queue);
        self.memory.store(new, GuestAddress(base + AVAILABLE + 2), Ordering::Release).unwrap();
        state.told = new;
        fence(Ordering::SeqCst);
        let wanted = if self.features & EVENT_IDX != 0 {
            let event: u16 =
                self.memory.load(GuestAddress(base + USED + 4 + 8 * u64::from(SIZE)), Ordering::Acquire).unwrap();
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.memory.load::<u16>(GuestAddress(base + USED), Ordering::Acquire).unwrap() & 1 == 0
        };
        if wanted {
            state.kick.write(1).unwrap();
        }
        wanted
    }

    /// The answers that are there.
    ///
    /// # Panics
    /// When the device answers what was not asked.
    pub fn answers(&mut self, queue: usize, answers: &mut Vec<Answer>) {
        let (base, state) = (start(queue), &mut self.queues[queue]);
        let now: u16 = self.memory.load(GuestAddress(base + USED + 2), Ordering::Acquire).unwrap();
        while state.answered != now {
            let at = base + USED + 4 + u64::from(state.answered % SIZE) * 8;
            let [head, written]: [u32; 2] = self.memory.read_obj(GuestAddress(at)).unwrap();
            assert!(head % 3 == 0 && head < u32::from(SLOTS) * 3, "an answer to {head}");
            let slot = (head / 3) as u16;
            let status = GuestAddress(base + HEADS + u64::from(slot) * 32 + 16);
            let status = self.memory.read_obj(status).unwrap();
            answers.push(Answer { slot, written, status });
            state.answered = state.answered.wrapping_add(1);
        }
    }

    /// Waits until there is an answer: first by looking, for `spin`, then asleep.
    ///
    /// # Panics
    /// When none comes within 20 seconds.
    pub fn wait(&mut self, queue: usize, spin: Duration, answers: &mut Vec<Answer>) {
        let start_time = Instant::now();
        loop {
            self.answers(queue, answers);
            if !answers.is_empty() {
                return;
            }
            if start_time.elapsed() < spin {
                std::hint::spin_loop();
                continue;
            }
            let state = &self.queues[queue];
            let event = GuestAddress(start(queue) + AVAILABLE + 4 + 2 * u64::from(SIZE));
            self.memory.store(state.answered, event, Ordering::Release).unwrap();
            fence(Ordering::SeqCst);
            let now: u16 = self.memory.load(GuestAddress(start(queue) + USED + 2), Ordering::Acquire).unwrap();
            if now == state.answered {
                let mut events = [EpollEvent::default()];
                assert_eq!(state.called.wait(20_000, &mut events).unwrap(), 1, "no answer within 20 seconds");
                let _ = state.call.read();
            }
        }
    }
}
