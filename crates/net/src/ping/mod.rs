//! ICMP echo (RFC 792, RFC 4443), over a datagram socket where the machine allows one, over a raw socket otherwise.
//!
//! ```text
//! 0  u8   type       IPv4: 8 request, 0 reply; IPv6: 128, 129
//! 1  u8   code       0
//! 2  u16  checksum   the kernel's, but for a raw IPv4 socket
//! 4  u16  identifier of the process; the kernel's, for a datagram socket
//! 6  u16  sequence
//! 8  payload: nanoseconds since the start, then a pattern
//! ```

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, SocketFlags, SocketType, ipproto};

use crate::{Error, Kind, Result, ResultExt as _};

mod refusal;
mod statistics;

pub use refusal::Refusal;
pub use statistics::Statistics;

/// The longest payload of an IPv4 packet with an ICMP header, bytes.
pub const PAYLOAD_BYTES_MAX: usize = 65535 - 20 - 8;
/// The bytes that ping keeps in front of its pattern; with fewer, times are not measured.
const TIME_BYTES: usize = 16;
const HEADER_BYTES: usize = 8;

const IPPROTO_IP: i32 = 0;
const IP_RECVTTL: i32 = 12;
const IP_TTL: i32 = 2;
const IP_RECVERR: i32 = 11;
const IP_MULTICAST_TTL: i32 = 33;
const IPPROTO_IPV6: i32 = 41;
const IPV6_UNICAST_HOPS: i32 = 16;
const IPV6_MULTICAST_HOPS: i32 = 18;
const IPV6_RECVERR: i32 = 25;
const IPV6_RECVHOPLIMIT: i32 = 51;
const IPV6_HOPLIMIT: i32 = 52;

/// A socket that sends echo requests to one address and receives the replies.
#[derive(Debug)]
pub struct Ping {
    socket: OwnedFd,
    raw: bool,
    target: IpAddr,
    identifier: u16,
    start: Instant,
    buffer: Vec<u8>,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It was answered.
    Reply(Reply),
    /// Somebody on the way says that it is not.
    Refusal(Refusal),
}

/// A reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Which request it answers.
    pub sequence: u16,
    /// ICMP header and payload, bytes.
    pub bytes: usize,
    /// The time to live, or the hop limit, that was left.
    pub hops_left: Option<u8>,
    /// The way there and back; `None` when the payload is too short to say.
    pub time: Option<Duration>,
}

impl Ping {
    /// A socket for `target`, connected so that it is known at once whether a route leads there.
    ///
    /// # Errors
    /// [`Kind::Unreachable`] where none does; [`Kind::Denied`] where the machine allows neither kind of socket.
    pub fn open(target: IpAddr) -> Result<Self> {
        let (family, protocol) = match target {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let open = |kind| net::socket_with(family, kind, flags, Some(protocol));
        let (socket, raw) = match open(SocketType::DGRAM) {
            Ok(socket) => (socket, false),
            Err(Errno::ACCESS | Errno::PERM | Errno::PROTONOSUPPORT) => match open(SocketType::RAW) {
                Ok(socket) => (socket, true),
                Err(error) => {
                    return Err(Error::io(
                        "ICMP socket: neither net.ipv4.ping_group_range nor CAP_NET_RAW allows one; \
                         `loopbox run --net private` does",
                        error,
                    ));
                }
            },
            Err(error) => return Err(Error::io("ICMP socket", error)),
        };
        net::connect(&socket, &SocketAddr::new(target, 0)).context(|| "connect")?;
        let set = |level, options: [i32; 2]| {
            options.into_iter().try_for_each(|option| sys::socket::set_number(&socket, level, option, 1))
        };
        match target {
            IpAddr::V4(_) => set(IPPROTO_IP, [IP_RECVTTL, IP_RECVERR]),
            IpAddr::V6(_) => set(IPPROTO_IPV6, [IPV6_RECVHOPLIMIT, IPV6_RECVERR]),
        }
        .context(|| "asking for the time to live, and for errors")?;
        let identifier = (std::process::id() & 0xffff) as u16;
        Ok(Self { socket, raw, target, identifier, start: Instant::now(), buffer: vec![0; 1 << 16] })
    }

    /// Requests are sent with this time to live, or hop limit, from now on: so many routers pass them on, less one.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn set_hops(&self, hops: u8) -> Result<()> {
        let (level, options) = match self.target {
            IpAddr::V4(_) => (IPPROTO_IP, [IP_TTL, IP_MULTICAST_TTL]),
            IpAddr::V6(_) => (IPPROTO_IPV6, [IPV6_UNICAST_HOPS, IPV6_MULTICAST_HOPS]),
        };
        let mut set = options.into_iter();
        set.try_for_each(|option| sys::socket::set_number(&self.socket, level, option, hops.into()))
            .context(|| "setting the time to live")
    }

    /// Sends a request with a payload of `payload` bytes.
    ///
    /// # Errors
    /// Those of `send`; [`Kind::Invalid`] for a payload that no packet has room for.
    pub fn send(&self, sequence: u16, payload: usize) -> Result<()> {
        if payload > PAYLOAD_BYTES_MAX {
            return Err(Error::new(Kind::Invalid, format!("payload of {payload} bytes, {PAYLOAD_BYTES_MAX} at most")));
        }
        let kind = if self.target.is_ipv4() { 8 } else { 128 };
        let mut packet = vec![kind, 0, 0, 0];
        packet.extend(self.identifier.to_be_bytes());
        packet.extend(sequence.to_be_bytes());
        if payload >= TIME_BYTES {
            packet.extend((self.start.elapsed().as_nanos() as u64).to_be_bytes());
        }
        let pattern = packet.len() - HEADER_BYTES..payload;
        packet.extend(pattern.map(|at| at as u8));
        if self.raw && self.target.is_ipv4() {
            let sum = checksum(&packet).to_be_bytes();
            for (to, from) in packet.iter_mut().skip(2).zip(sum) {
                *to = from;
            }
        }
        loop {
            match net::send(&self.socket, &packet, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                // Too many packets are on their way: one that arrives makes room.
                Err(Errno::AGAIN | Errno::NOBUFS) => {
                    let wait = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                    let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(&wait));
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context(|| "sendmsg"),
            }
        }
    }

    /// The next reply or refusal that has arrived, if any.
    ///
    /// # Errors
    /// What the kernel reports without a packet: [`Kind::Unreachable`], for one.
    pub fn receive(&mut self) -> Result<Option<Event>> {
        loop {
            let received = match sys::socket::receive(&self.socket, &mut self.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => match (self.refusal(), error.kind()) {
                    (Some(refusal), _) => return Ok(Some(Event::Refusal(refusal))),
                    (None, std::io::ErrorKind::WouldBlock) => return Ok(None),
                    (None, _) => return Err(Error::io("recvmsg", error)),
                },
            };
            let hops_left = received
                .control_number(IPPROTO_IP, IP_TTL)
                .or_else(|| received.control_number(IPPROTO_IPV6, IPV6_HOPLIMIT))
                .and_then(|number| u8::try_from(number).ok());
            let packet = self.buffer.get(..received.len).unwrap_or_default();
            let identifier = self.raw.then_some(self.identifier);
            if let Some((sequence, payload)) = reply(packet, self.target.is_ipv4(), self.raw, identifier) {
                let sent = payload.first_chunk().copied().filter(|_| payload.len() >= TIME_BYTES);
                let now = self.start.elapsed();
                let time = sent.and_then(|sent| now.checked_sub(Duration::from_nanos(u64::from_be_bytes(sent))));
                return Ok(Some(Event::Reply(Reply {
                    sequence,
                    bytes: payload.len() + HEADER_BYTES,
                    hops_left,
                    time,
                })));
            }
        }
    }
}

impl Ping {
    /// The next refusal of this process' requests, if there is one.
    fn refusal(&mut self) -> Option<Refusal> {
        let (level, kind) = if self.target.is_ipv4() { (IPPROTO_IP, IP_RECVERR) } else { (IPPROTO_IPV6, IPV6_RECVERR) };
        loop {
            let received = sys::socket::receive_error(&self.socket, &mut self.buffer).ok()?;
            let note = received.control_bytes(level, kind);
            let request = self.buffer.get(..received.len).unwrap_or_default();
            let identifier = self.raw.then_some(self.identifier);
            if let Some(refusal) = note.and_then(|note| Refusal::parse(note, request, identifier)) {
                return Some(refusal);
            }
        }
    }
}

impl AsFd for Ping {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sequence number and payload of an echo reply; `None` for another packet, and for another process' reply.
/// A raw IPv4 socket receives the IP header as well.
fn reply(packet: &[u8], v4: bool, raw: bool, identifier: Option<u16>) -> Option<(u16, &[u8])> {
    let packet = if v4 && raw { packet.get(usize::from(*packet.first()? & 0xf) * 4..)? } else { packet };
    let word = |at: usize| Some(u16::from_be_bytes(packet.get(at..)?.first_chunk().copied()?));
    let kind = if v4 { 0 } else { 129 };
    if *packet.first()? != kind || identifier.is_some_and(|own| word(4) != Some(own)) {
        return None;
    }
    Some((word(6)?, packet.get(HEADER_BYTES..)?))
}

/// The checksum of RFC 1071: the complement of the sum of all words with end-around carry.
fn checksum(bytes: &[u8]) -> u16 {
    let word =
        |pair: &[u8]| u32::from(pair.first().copied().unwrap_or(0)) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[1]), !0x0100);
        assert_eq!(checksum(&vec![0xff; 65535]), 0x00ff);
    }

    #[test]
    fn only_replies_to_this_process_count() {
        let packet = [0, 0, 9, 9, 0, 7, 0, 3, 1, 2];
        assert_eq!(reply(&packet, true, false, None), Some((3, &[1, 2][..])));
        assert_eq!(reply(&packet, true, false, Some(8)), None);
        assert_eq!(reply(&packet, false, false, None), None, "type 0 is nothing in ICMPv6");
        assert_eq!(reply(&packet[..7], true, false, None), None);
        let with_header = [&[0x45; 20][..], &packet].concat();
        assert_eq!(reply(&with_header, true, true, Some(7)), Some((3, &[1, 2][..])));
        assert_eq!(reply(&[], true, true, None), None);
    }
}
