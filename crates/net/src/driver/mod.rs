//! The link of a private network: the only I/O of rules and capture. A thread takes the packets of `lo` from a queue of
//! the kernel, asks the [`Link`], and says when each goes on.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RawProtocol, SendFlags, SocketFlags, SocketType, sendto, socket_with};

use crate::capture::Capture;
use crate::link::{Counts, Dropped, Link, Passed};
use crate::packet::{Headers, finish_checksum};
use crate::rule::Rule;
use crate::{Result, ResultExt as _};

mod control;
mod queue;

pub use control::{Request, ask, serve};
use queue::{HEADERS_BYTES, Held, MARK, Queue, WHOLE_BYTES};

/// A hand on a link that runs.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Mutex<Driver>>);

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Driver> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other rules from now on.
    ///
    /// # Errors
    /// Those of telling the kernel how much of each packet is needed now; the rules are the old ones then.
    pub fn set_rules(&self, rules: Vec<Rule>) -> Result<()> {
        let mut driver = self.lock();
        let whole = driver.capture.is_some() || rules.iter().any(needs_whole);
        driver.queue.configure(copy_bytes(whole), rules.is_empty())?;
        driver.link.set_rules(rules);
        Ok(())
    }

    /// The rules, what became of the packets, and how many the kernel had no room for because the driver was too slow.
    pub fn status(&self) -> (Vec<String>, Counts, u64) {
        let driver = self.lock();
        (driver.link.rules().map(ToString::to_string).collect(), driver.link.counts(), driver.missed)
    }

    /// Takes what has arrived so far, and ends the capture with its counts.
    ///
    /// # Errors
    /// Where the capture could not be written: what is in the file is not all that there was.
    pub fn finish(&self) -> Result<()> {
        let mut driver = self.lock();
        driver.turn()?;
        match driver.capture.take() {
            Some(capture) => capture.finish().context(|| "writing the capture"),
            None => Ok(()),
        }
    }
}

fn needs_whole(rule: &Rule) -> bool {
    rule.settings.corrupt.probability > 0.0 || rule.settings.duplicate.probability > 0.0
}

/// How much of each packet the kernel hands over.
fn copy_bytes(whole: bool) -> u32 {
    if whole { WHOLE_BYTES } else { HEADERS_BYTES }
}

/// Starts a link on the `lo` of this network namespace; it runs as long as the process lives.
///
/// # Errors
/// Where the kernel lacks NFQUEUE or nftables, or forbids them.
pub fn start(rules: Vec<Rule>, seed: u64, capture: Option<Capture>) -> Result<Handle> {
    let whole = capture.is_some() || rules.iter().any(needs_whole);
    let queue = Queue::open(copy_bytes(whole), rules.is_empty())?;
    let raw = Raw::open()?;
    let fd = queue.as_fd().try_clone_to_owned().context(|| "queue")?;
    let link = Link::new(rules, seed);
    let driver = Driver { link, queue, raw, capture, kept: HashMap::new(), start: Instant::now(), missed: 0 };
    let handle = Handle(Arc::new(Mutex::new(driver)));
    let runner = handle.clone();
    std::thread::Builder::new()
        .name("link".into())
        .spawn(move || run(&runner, &fd))
        .context(|| "thread for the link")?;
    Ok(handle)
}

/// Waits for packets or for a time to come, and does all that can be done then, for ever.
fn run(handle: &Handle, queue: &OwnedFd) {
    // Delays are asked for in microseconds; by default the kernel rounds sleeps by 50 of them.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    loop {
        let left = handle.lock().time_left();
        let timeout =
            left.map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() });
        let waited = poll(&mut [PollFd::new(queue, PollFlags::IN)], timeout.as_ref());
        let failed = !matches!(waited, Ok(_) | Err(rustix::io::Errno::INTR));
        if handle.lock().turn().is_err() || failed {
            // The queue is gone, and the network namespace with it, or memory is short: try again, slowly.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Sockets that send whole IP packets, with a mark that keeps them out of the queue.
struct Raw {
    ipv4: OwnedFd,
    ipv6: Option<OwnedFd>,
}

impl Raw {
    fn open() -> Result<Self> {
        const IPPROTO_RAW: u32 = 255;
        const SOL_SOCKET: i32 = 1;
        const SO_MARK: i32 = 36;
        let open = |family| {
            let protocol = RawProtocol::new(IPPROTO_RAW).map(rustix::net::Protocol::from_raw);
            let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
            sys::socket::set_number(&socket, SOL_SOCKET, SO_MARK, MARK.cast_signed())?;
            Ok::<_, std::io::Error>(socket)
        };
        let ipv4 = open(AddressFamily::INET).context(|| "raw socket for copies of packets")?;
        Ok(Self { ipv4, ipv6: open(AddressFamily::INET6).ok() })
    }

    fn send(&self, packet: &[u8]) {
        let Some(headers) = Headers::parse(packet) else { return };
        let socket = match headers.to {
            IpAddr::V4(_) => Some(&self.ipv4),
            IpAddr::V6(_) => self.ipv6.as_ref(),
        };
        if let Some(socket) = socket {
            // A copy that cannot be sent is a copy that is lost.
            let _ = sendto(socket, packet, SendFlags::DONTWAIT, &SocketAddr::new(headers.to, 0));
        }
    }
}

/// All that belongs to a link that runs.
#[derive(Debug)]
struct Driver {
    link: Link<u32>,
    queue: Queue,
    /// Where copies of packets come in.
    raw: Raw,
    capture: Option<Capture>,
    /// Whole packets that are needed when they are due, and how often.
    kept: HashMap<u32, (Vec<u8>, u8)>,
    start: Instant,
    /// Packets for which the kernel had no room, because this process was too slow.
    missed: u64,
}

impl Driver {
    /// How long until the next packet is due.
    fn time_left(&self) -> Option<Duration> {
        self.link.next_due().map(|due| due.saturating_sub(self.start.elapsed()))
    }

    /// Takes the packets that have arrived, and lets those go that are due.
    fn turn(&mut self) -> Result<()> {
        let Self { link, queue, raw, capture, kept, start, missed } = self;
        let mut drops = Vec::new();
        let missed_now = queue.receive(|packet| {
            let headers = Headers::parse(packet.bytes);
            // The time of each: a packet that comes while others are taken must not be let go early.
            let pushed = link.push(packet.id, headers.as_ref(), packet.len, start.elapsed());
            if let Some(capture) = capture {
                capture.packet(wall_clock(), packet.bytes, packet.len, pushed.err());
            }
            match pushed {
                // One that is cut must not take the place of the whole: it passes as it is, once.
                Ok(Passed { times, changed }) if packet.bytes.len() == packet.len && (changed || times > 1) => {
                    kept.insert(packet.id, (whole(&packet), times));
                }
                Ok(_) => {}
                Err(Dropped::Lost | Dropped::Overflow) => drops.push(packet.id),
            }
        })?;
        *missed += missed_now;
        if let Some(capture) = capture {
            capture.missed(missed_now);
        }
        for id in drops {
            queue.drop_packet(id);
        }
        let now = start.elapsed();
        while let Some(delivery) = link.pop(now) {
            let id = delivery.item;
            match (delivery.copy, delivery.corrupt_bit) {
                (true, _) => {
                    if let Some((packet, _)) = kept.get(&id) {
                        raw.send(packet);
                    }
                }
                (false, Some(bit)) => match kept.get(&id) {
                    Some((packet, _)) => queue.accept(id, Some(&with_bit_turned(packet, bit))),
                    None => queue.accept(id, None),
                },
                (false, None) => queue.accept(id, None),
            }
            if let Entry::Occupied(mut packet) = kept.entry(id) {
                let (_, times) = packet.get_mut();
                *times = times.saturating_sub(1);
                if *times == 0 {
                    packet.remove();
                }
            }
        }
        if let Some(capture) = capture {
            capture.flush();
        }
        queue.flush()
    }
}

/// The packet with its checksum in place.
fn whole(packet: &Held<'_>) -> Vec<u8> {
    let mut bytes = packet.bytes.to_vec();
    if packet.checksum_open {
        finish_checksum(&mut bytes);
    }
    bytes
}

fn with_bit_turned(packet: &[u8], bit: u64) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    // Not in the IP header: with a wrong address or length the packet would only be lost.
    let at = Headers::parse(packet).and_then(|headers| headers.transport_at).unwrap_or(0);
    let room = (bytes.len().saturating_sub(at) as u64 * 8).max(1);
    let bit = bit % room;
    if let Some(byte) = bytes.get_mut(at + (bit / 8) as usize) {
        *byte ^= 1 << (bit % 8);
    }
    bytes
}

fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Raw({:?})", self.ipv4.as_fd())
    }
}
