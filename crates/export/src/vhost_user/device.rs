//! What the device is, and its threads: a queue is emptied, batch by batch.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use block::Error;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringT as _};
use virtio_queue::QueueOwnedT as _;
use vm_memory::GuestAddressSpace as _;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::lane::{Lane, Taken};
use super::request::{Disk, Parsed, RANGES_MAX, Request, kind};
use super::{Memory, QUEUE_SIZE_MAX, QUEUES_MAX, SECTOR_BYTES, SharedMemory, Vring};
use crate::workers::Workers;
use crate::{counters, locked};

/// Threads that empty queues.
const THREADS: usize = 16;
/// Requests that are taken at one time.
const BATCH_MAX: usize = 128;
/// Bytes after which answers are given although more requests are there: the guest goes on while the next are done.
const ANSWER_BYTES: u64 = 512 << 10;
/// Requests after which they are, where at least half as many are left: one notification then costs little a request,
/// and the guest is awake by the time the others are done.
const ANSWERS: usize = 16;
/// Bytes of a read that may be another processor's: copying them takes longer than waking who does it.
const LARGE_BYTES: u64 = 64 << 10;
/// So many such reads, and a worker does half of them.
const LARGE_READS: usize = 4;
/// How long a queue is looked at again before its thread sleeps: about what waking it costs.
const PATIENCE: Duration = Duration::from_micros(30);
/// Segments of data of one request that a guest is told of.
const SEGMENTS_MAX: u32 = 254;
/// Most sectors of one range of a discard that a guest is told of: 1 GiB.
const RANGE_SECTORS_MAX: u32 = 1 << 21;
/// Failures that are told one by one; of a disk that is gone a guest makes thousands.
const REPORTS_MAX: u64 = 16;

/// Bits of virtio's features (sections 5.2.3 and 6).
mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
}

/// What is told of failures.
pub type Report = Arc<dyn Fn(Error) + Send + Sync>;

/// What a thread keeps from one batch to the next.
#[derive(Default)]
struct Batch {
    requests: Vec<Request>,
    taken: Vec<Taken>,
    /// Which of the requests go to workers.
    slow: Vec<usize>,
    /// What was done of them, and since when.
    counted: counters::Batch,
    begun: Option<Instant>,
    buffer: Vec<u8>,
}

/// The device, as one hypervisor sees it.
pub struct Device {
    disk: Arc<Disk>,
    workers: Arc<Workers>,
    memory: SharedMemory,
    lanes: Arc<[Lane]>,
    batches: Vec<Mutex<Batch>>,
    /// Whether the guest flushes; one that does not counts on every write.
    flushes: Arc<AtomicBool>,
    reports: Arc<AtomicU64>,
    report: Report,
    /// Threads that empty queues at this moment, and processors.
    awake: AtomicUsize,
    processors: usize,
    /// Nothing is taken from queues any more.
    closing: AtomicBool,
}

/// A request of a lane, by its number there.
type Numbered = (u64, Request);

impl Device {
    pub fn new(disk: Arc<Disk>, workers: Arc<Workers>, memory: SharedMemory, report: Report) -> Self {
        Self {
            disk,
            workers,
            memory,
            lanes: (0..QUEUES_MAX).map(|_| Lane::default()).collect(),
            batches: (0..THREADS).map(|_| Mutex::default()).collect(),
            flushes: Arc::new(AtomicBool::new(false)),
            reports: Arc::new(AtomicU64::new(0)),
            report,
            awake: AtomicUsize::new(0),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            closing: AtomicBool::new(false),
        }
    }

    /// Answers nothing any more, and waits until all that was taken is done. To be called before the hypervisor is
    /// hung up on: it looks at the answers then, and hands all that has none to who comes next.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.lanes.iter().for_each(Lane::close);
    }

    fn reporter(&self) -> impl Fn(Error) + Send + 'static {
        let (reports, report) = (Arc::clone(&self.reports), Arc::clone(&self.report));
        move |error| {
            if reports.fetch_add(1, Ordering::Relaxed) < REPORTS_MAX {
                report(error);
            }
        }
    }

    /// Virtio's block configuration (section 5.2.4).
    fn configuration(&self) -> Vec<u8> {
        let limits = self.disk.device.limits();
        let block = limits.block.max(SECTOR_BYTES as u32);
        let sectors = self.disk.device.size() / SECTOR_BYTES;
        let preferred = limits.preferred.max(block);
        let exponent = (preferred / block).trailing_zeros().min(8) as u8;
        let mut bytes = Vec::with_capacity(60);
        bytes.extend_from_slice(&sectors.to_le_bytes());
        bytes.extend_from_slice(&0_u32.to_le_bytes()); // size_max: any
        bytes.extend_from_slice(&SEGMENTS_MAX.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]); // geometry: none
        bytes.extend_from_slice(&block.to_le_bytes());
        bytes.extend_from_slice(&[exponent, 0]); // blocks of a physical one; the first is aligned
        bytes.extend_from_slice(&1_u16.to_le_bytes()); // min_io_size, blocks
        bytes.extend_from_slice(&(preferred / block).to_le_bytes()); // opt_io_size, blocks
        bytes.extend_from_slice(&[1, 0]); // write back
        bytes.extend_from_slice(&(QUEUES_MAX as u16).to_le_bytes());
        for may_unmap in [false, true] {
            bytes.extend_from_slice(&RANGE_SECTORS_MAX.to_le_bytes());
            bytes.extend_from_slice(&RANGES_MAX.to_le_bytes());
            match may_unmap {
                false => bytes.extend_from_slice(&(preferred / SECTOR_BYTES as u32).to_le_bytes()),
                true => bytes.extend_from_slice(&[1, 0, 0, 0]),
            }
        }
        bytes
    }

    /// Takes what a queue holds, does or hands over all of it: how many those were.
    fn batch(&self, batch: &mut Batch, lane: &Lane, vring: &Vring) -> usize {
        let memory = self.memory.memory();
        let count = {
            let mut ring = vring.get_mut();
            if !ring.is_enabled() || self.closing.load(Ordering::Acquire) {
                return 0;
            }
            let Ok(chains) = ring.get_queue_mut().iter(&*memory) else { return 0 };
            let mut count = 0;
            for chain in chains.take(BATCH_MAX) {
                if batch.requests.len() == count {
                    batch.requests.push(Request::default());
                }
                if let Some(request) = batch.requests.get_mut(count) {
                    let segment = |descriptor: virtio_queue::desc::split::Descriptor| {
                        (descriptor.addr(), descriptor.len(), descriptor.is_write_only())
                    };
                    request.fill(chain.head_index(), chain.map(segment));
                }
                count += 1;
            }
            count
        };
        if count == 0 {
            return 0;
        }
        let large = batch.requests.iter().take(count).filter(|request| request.takes() >= LARGE_BYTES).count();
        if large >= LARGE_READS && self.awake.load(Ordering::Relaxed) < self.processors {
            self.share(batch, count, lane, vring, &memory);
            return count;
        }
        let report = self.reporter();
        batch.begun = Some(Instant::now());
        let (mut first, mut bytes) = (0, 0);
        for at in 0..count {
            let Some(request) = batch.requests.get(at) else { break };
            let parsed = request.parse(&memory);
            let mut done = self.quickly(request, parsed.as_ref(), &memory, &mut batch.buffer, &report);
            if let (None, Some(parsed)) = (done, &parsed)
                && count == 1
                && (parsed.kind == kind::IN || parsed.kind == kind::OUT && self.flushes.load(Ordering::Relaxed))
                && !lane.is_waited_for()
            {
                // Alone, it may wait right here: nobody is held up.
                done = request.perform(parsed, &self.disk, &memory, &mut batch.buffer, false, &report);
            }
            match (done, parsed) {
                (None, _) => batch.slow.push(at),
                (Some(_), Some(parsed)) => batch.counted.add(parsed.operation()),
                (Some(_), None) => {}
            }
            batch.taken.push(Taken { head: request.head, done });
            bytes += request.len();
            let (since, left) = (at + 1 - first, count - at - 1);
            if left == 0 || bytes >= ANSWER_BYTES || since >= ANSWERS && left >= ANSWERS / 2 {
                self.pass_on(batch, first, lane, vring);
                (first, bytes) = (at + 1, 0);
            }
        }
        count
    }

    /// Does what need not wait: bytes that were written to the guest's memory.
    fn quickly(
        &self,
        request: &Request,
        parsed: Option<&Parsed>,
        memory: &Memory,
        buffer: &mut Vec<u8>,
        report: &dyn Fn(Error),
    ) -> Option<u32> {
        match parsed {
            // Neither a head nor a status: it is given back as it is.
            None => Some(0),
            // Its answer means that it is safe.
            Some(parsed) if parsed.kind == kind::OUT && !self.flushes.load(Ordering::Relaxed) => None,
            Some(parsed) => request.perform(parsed, &self.disk, memory, buffer, true, report),
        }
    }

    /// Does what was taken, together with a worker: every other one of the large reads is the worker's.
    fn share(&self, batch: &mut Batch, count: usize, lane: &Lane, vring: &Vring, memory: &Memory) {
        let begun = Instant::now();
        batch.taken.extend(batch.requests.iter().take(count).map(|request| Taken { head: request.head, done: None }));
        let number = lane.append(&batch.taken, vring);
        batch.taken.clear();
        let (mut ours, mut theirs, mut is_ours) = (Vec::with_capacity(count), Vec::with_capacity(count / 2), false);
        for (at, request) in batch.requests.iter_mut().enumerate().take(count) {
            is_ours = request.takes() < LARGE_BYTES || !is_ours;
            match is_ours {
                true => ours.push(at),
                false => theirs.push((number + at as u64, std::mem::take(request))),
            }
        }
        self.give(theirs, lane, vring, true);
        let report = self.reporter();
        for at in ours {
            let Some(request) = batch.requests.get_mut(at) else { continue };
            let (number, parsed) = (number + at as u64, request.parse(memory));
            match self.quickly(request, parsed.as_ref(), memory, &mut batch.buffer, &report) {
                Some(done) => {
                    if let Some(parsed) = parsed {
                        self.disk.counters.add(parsed.operation(), begun.elapsed());
                    }
                    lane.finish(number, done, vring);
                }
                None => self.give(vec![(number, std::mem::take(request))], lane, vring, false),
            }
        }
    }

    /// Answers what is done of the requests from `first` on, and hands over the others.
    fn pass_on(&self, batch: &mut Batch, first: usize, lane: &Lane, vring: &Vring) {
        let number = lane.append(&batch.taken, vring);
        batch.taken.clear();
        let took = batch.begun.replace(Instant::now()).map(|begun| begun.elapsed()).unwrap_or_default();
        self.disk.counters.add_all(&std::mem::take(&mut batch.counted), took);
        for at in batch.slow.drain(..) {
            let Some(request) = batch.requests.get_mut(at).map(std::mem::take) else { continue };
            self.give(vec![(number + (at - first) as u64, request)], lane, vring, false);
        }
    }

    /// Has a worker do and answer requests, one after the other; `may_be_quick` when they may be in the page cache.
    fn give(&self, requests: Vec<Numbered>, lane: &Lane, vring: &Vring, may_be_quick: bool) {
        let (disk, memory, lanes) = (Arc::clone(&self.disk), self.memory.clone(), Arc::clone(&self.lanes));
        let Some(index) = self.lanes.iter().position(|other| std::ptr::eq(other, lane)) else { return };
        let (vring, report, flushes) = (vring.clone(), self.reporter(), Arc::clone(&self.flushes));
        let begun = Instant::now();
        self.workers.give(Box::new(move |buffer| {
            let memory = memory.memory();
            for (number, request) in requests {
                let parsed = request.parse(&memory);
                let done = parsed.and_then(|parsed| {
                    let mut perform = |quick| request.perform(&parsed, &disk, &memory, buffer, quick, &report);
                    let is_read = parsed.kind == kind::IN;
                    let quick = if may_be_quick && is_read { perform(true) } else { None };
                    let written = quick.or_else(|| perform(false))?;
                    let durable = parsed.kind != kind::OUT || flushes.load(Ordering::Relaxed);
                    match durable || disk.device.flush().map_err(&report).is_ok() {
                        true => Some(written),
                        false => request.fail(&parsed, &memory),
                    }
                });
                if let Some(parsed) = parsed {
                    disk.counters.add(parsed.operation(), begun.elapsed());
                }
                if let Some(lane) = lanes.get(index) {
                    lane.finish(number, done.unwrap_or_default(), &vring);
                }
            }
        }));
    }

    /// Empties the queues of a thread until they stay empty for a while.
    fn empty(&self, vrings: &[Vring], thread: usize) {
        let Some(batch) = self.batches.get(thread) else { return };
        let mut batch = locked(batch);
        self.awake.fetch_add(1, Ordering::Relaxed);
        let lanes = || vrings.iter().zip(self.lanes.iter().skip(thread).step_by(THREADS));
        for (vring, lane) in lanes() {
            lane.begin();
            let _ = vring.disable_notification();
        }
        let mut until = None;
        loop {
            let done: usize = lanes().map(|(vring, lane)| self.batch(&mut batch, lane, vring)).sum();
            if done > 0 {
                until = Some(Instant::now() + PATIENCE);
                continue;
            }
            if until.is_some_and(|until| Instant::now() < until) {
                std::hint::spin_loop();
                continue;
            }
            // What came before the guest was told to say so is seen by this look.
            let more = lanes().filter(|(vring, _)| vring.enable_notification().unwrap_or(false)).count();
            if more == 0 {
                break;
            }
            for (vring, _) in lanes() {
                let _ = vring.disable_notification();
            }
            if lanes().map(|(vring, lane)| self.batch(&mut batch, lane, vring)).sum::<usize>() == 0 {
                // A ring that says so of requests that it does not have.
                lanes().for_each(|(vring, _)| drop(vring.enable_notification()));
                break;
            }
        }
        self.awake.fetch_sub(1, Ordering::Relaxed);
        lanes().for_each(|(_, lane)| lane.rest());
    }
}

impl VhostUserBackend for Device {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES_MAX
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE_MAX
    }

    fn features(&self) -> u64 {
        let access =
            if self.disk.device.limits().read_only { feature::RO } else { feature::DISCARD | feature::WRITE_ZEROES };
        access
            | feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::FLUSH
            | feature::TOPOLOGY
            | feature::MQ
            | feature::INDIRECT_DESC
            | feature::EVENT_IDX
            | feature::VERSION_1
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        self.flushes.store(features & feature::FLUSH != 0, Ordering::Relaxed);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // What a later version has more of is zero.
        let all = self.configuration().into_iter().chain(std::iter::repeat(0));
        all.skip(offset.min(4096) as usize).take(size.min(4096) as usize).collect()
    }

    fn update_memory(&self, _memory: SharedMemory) -> std::io::Result<()> {
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        let of = |thread: usize| (thread..QUEUES_MAX).step_by(THREADS).fold(0, |mask, queue| mask | 1 << queue);
        (0..THREADS).map(of).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::CLOEXEC).ok()
    }

    fn stop_vring(&self, queue: u32) -> std::io::Result<()> {
        if let Some(lane) = self.lanes.get(queue as usize) {
            lane.settle();
        }
        Ok(())
    }

    fn handle_event(&self, event: u16, _set: EventSet, vrings: &[Vring], thread: usize) -> std::io::Result<()> {
        if usize::from(event) < vrings.len() {
            self.empty(vrings, thread);
        }
        Ok(())
    }
}
