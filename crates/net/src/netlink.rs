//! Netlink: messages to the kernel and from it (`netlink(7)`).
//!
//! ```text
//! message                               attribute, aligned to 4
//!   0  u32  length    of all of it        0  u16  length   of all of it but the padding
//!   4  u16  type                          2  u16  type     and two flags: 0x8000 nested, 0x4000 big-endian
//!   6  u16  flags                         4  payload
//!   8  u32  sequence
//!  12  u32  port
//!  16  a fixed part, then attributes
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use crate::{Error, Kind, Result, ResultExt as _};

/// Room for one datagram of the kernel: a packet of 64 KiB with what is said of it is the longest.
const RECEIVE_BYTES: usize = 128 << 10;
/// A dump that is longer than this is a fault of the kernel.
const DUMP_BYTES_MAX: usize = 64 << 20;
/// How often a dump is asked for again when the tables changed meanwhile.
const DUMP_TRIES_MAX: u32 = 16;

const NLM_F_REQUEST: u16 = 0x1;
/// The kernel says whether it was done.
pub const NLM_F_ACK: u16 = 0x4;
/// All entries of a table.
pub const NLM_F_DUMP: u16 = 0x300;
/// Make it.
pub const NLM_F_CREATE: u16 = 0x400;
/// Put it behind those that are there.
pub const NLM_F_APPEND: u16 = 0x800;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The flag of an attribute that holds attributes.
pub const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A message that is being written.
#[derive(Debug, Clone)]
pub struct Message(Vec<u8>);

impl Message {
    /// A request of a type, with further flags, whose fixed part is `fixed`.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        let mut message = Self(bytes);
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Adds an attribute.
    #[must_use]
    pub fn attribute(mut self, kind: u16, payload: &[u8]) -> Self {
        let length = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
        debug_assert!(usize::from(length) == payload.len() + 4, "an attribute of more than 64 KiB");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(payload);
        self.pad();
        self
    }

    /// Adds a text that ends with 0.
    #[must_use]
    pub fn text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Adds an attribute that holds the attributes which `fill` adds.
    #[must_use]
    pub fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NLA_F_NESTED).to_ne_bytes());
        let mut filled = fill(self);
        let length = u16::try_from(filled.0.len() - start).unwrap_or(u16::MAX).to_ne_bytes();
        for (to, from) in filled.0.iter_mut().skip(start).zip(length) {
            *to = from;
        }
        filled
    }

    /// Its length, bytes.
    #[expect(clippy::len_without_is_empty, reason = "a message has a header")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The bytes, with length and sequence number in place.
    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX).to_ne_bytes();
        for (to, from) in self.0.iter_mut().zip(length) {
            *to = from;
        }
        for (to, from) in self.0.iter_mut().skip(8).zip(sequence.to_ne_bytes()) {
            *to = from;
        }
        self.0
    }
}

/// A message of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received<'a> {
    /// Its type.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The number of the request that it answers.
    pub sequence: u32,
    /// The fixed part and the attributes.
    pub body: &'a [u8],
}

/// The messages in a datagram; it ends at the first that does not fit.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let received = Received {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            body: bytes.get(16..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(received)
    })
}

/// The attributes in `bytes`, each type without its flags; it ends at the first that does not fit.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The number at a position, in the order of the machine.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

/// The number at a position, in the order of the machine.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

/// The number at a position, in the order of the machine.
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

/// The text up to its 0.
pub fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// Which part of the kernel is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Interfaces, addresses, routes: `rtnetlink(7)`.
    Route,
    /// nftables and queues.
    Netfilter,
    /// Sockets: `sock_diag(7)`.
    SockDiag,
}

/// A socket to the kernel.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens one, in the network namespace of the thread.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where the kernel lacks the family.
    pub fn open(family: Family) -> Result<Self> {
        let protocol = match family {
            Family::Route => None, // protocol 0
            Family::Netfilter => Some(netlink::NETFILTER),
            Family::SockDiag => Some(netlink::SOCK_DIAG),
        };
        let fd = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
            .context(|| format!("netlink socket ({family:?})"))?;
        net::bind(&fd, &netlink::SocketAddrNetlink::new(0, 0)).context(|| "binding a netlink socket")?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Sends messages as one datagram, numbered in their order, and returns the number of the first.
    ///
    /// # Errors
    /// Those of sending.
    pub fn send(&mut self, messages: impl IntoIterator<Item = Message>) -> Result<u32> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            bytes.extend(message.finish(self.sequence));
        }
        net::sendto(&self.fd, &bytes, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))
            .context(|| "sending a netlink message")?;
        Ok(first)
    }

    /// Receives one datagram into the socket's own room.
    ///
    /// # Errors
    /// Those of receiving.
    pub fn receive(&mut self) -> rustix::io::Result<&[u8]> {
        let buffer = &mut self.buffer;
        let received = loop {
            match net::recv(&self.fd, buffer.as_mut_slice(), RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                other => break other?.0,
            }
        };
        Ok(self.buffer.get(..received).unwrap_or_default())
    }

    /// Asks for room for what was not yet received; the kernel may give less.
    pub fn set_receive_bytes(&self, bytes: usize) {
        let _ = net::sockopt::set_socket_recv_buffer_size_force(&self.fd, bytes)
            .or_else(|_| net::sockopt::set_socket_recv_buffer_size(&self.fd, bytes));
    }

    /// From now on [`Socket::receive`] says `AGAIN` rather than wait.
    ///
    /// # Errors
    /// Those of `fcntl`.
    pub fn set_nonblocking(&self) -> Result<()> {
        rustix::io::ioctl_fionbio(&self.fd, true).context(|| "netlink socket")
    }

    /// Sends requests, each with [`NLM_F_ACK`], and waits until all are done. `what` says in an error what was tried.
    ///
    /// # Errors
    /// The first refusal.
    pub fn execute(&mut self, what: &str, messages: Vec<Message>) -> Result<()> {
        let mut left = messages.iter().filter(|m| u16_at(&m.0, 6).is_some_and(|f| f & NLM_F_ACK != 0)).count();
        let first = self.send(messages)?;
        let mut refused = None;
        while left > 0 {
            let bytes = self.receive().context(|| what.to_owned())?;
            // Answers to what was refused before may still be there.
            for message in self::messages(bytes).filter(|message| message.sequence >= first) {
                if message.kind == NLMSG_ERROR {
                    refused = refused.or(refusal(message).err());
                    left = left.saturating_sub(1);
                }
            }
        }
        match refused {
            Some(error) => Err(error).context(|| what.to_owned()),
            None => Ok(()),
        }
    }

    /// Sends a request and passes every message of the answer to `take`: one for a plain request, all entries of the
    /// table with [`NLM_F_DUMP`].
    ///
    /// # Errors
    /// The refusal of the kernel.
    pub fn ask<T>(
        &mut self,
        what: &str,
        request: &Message,
        mut take: impl FnMut(Received<'_>) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_TRIES_MAX {
            let sequence = self.send([request.clone()])?;
            let dump = u16_at(&request.0, 6).is_some_and(|flags| flags & NLM_F_DUMP == NLM_F_DUMP);
            let (mut found, mut bytes_seen, mut changed, mut done) = (Vec::new(), 0, false, false);
            while !done {
                let bytes = self.receive().context(|| what.to_owned())?;
                bytes_seen += bytes.len();
                if bytes_seen > DUMP_BYTES_MAX {
                    return Err(Error::new(Kind::Limit, format!("{what}: more than {DUMP_BYTES_MAX} bytes")));
                }
                for message in messages(bytes).filter(|message| message.sequence == sequence) {
                    changed |= message.flags & NLM_F_DUMP_INTR != 0;
                    match message.kind {
                        NLMSG_DONE => done = true,
                        NLMSG_ERROR => {
                            refusal(message).context(|| what.to_owned())?;
                            done = true;
                        }
                        _ => {
                            found.extend(take(message));
                            done |= !dump;
                        }
                    }
                }
            }
            if !changed {
                return Ok(found);
            }
        }
        Err(Error::new(Kind::Busy, format!("{what}: it changed each time it was read")))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What an error message says: its first four bytes are a negative errno, or 0 for done.
fn refusal(message: Received<'_>) -> rustix::io::Result<()> {
    match u32_at(message.body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(errno) => Err(Errno::from_raw_os_error(errno.saturating_neg())),
        None => Err(Errno::BADMSG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let message = Message::new(18, NLM_F_DUMP, &[1, 2, 3])
            .text(3, "lo")
            .nested(5, |inner| inner.attribute(1, &[9; 5]).attribute(2, &[]));
        let bytes = message.finish(7);
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].kind, read[0].flags, read[0].sequence), (18, NLM_F_DUMP | 1, 7));
        let found: Vec<_> = attributes(&read[0].body[4..]).collect();
        assert_eq!(found[0], (3, &b"lo\0"[..]));
        assert_eq!(found[1].0, 5);
        assert_eq!(attributes(found[1].1).collect::<Vec<_>>(), [(1, &[9; 5][..]), (2, &[][..])]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes: Vec<u8>) {
            let total: usize = messages(&bytes).map(|m| m.body.len() + attributes(m.body).count()).sum();
            assert!(total <= 2 * bytes.len());
            assert!(attributes(&bytes).count() <= bytes.len());
        }
    }

    #[test]
    fn a_refusal_of_the_kernel_is_an_error() {
        let mut socket = Socket::open(Family::Route).unwrap();
        let request = Message::new(18, 0, &[0; 16]).text(3, "no-such-if");
        let error = socket.ask("asking", &request, |_| Some(())).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{error:?}");
    }
}
