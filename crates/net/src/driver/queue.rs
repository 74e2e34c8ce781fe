//! NFQUEUE: packets that the kernel holds until user space says what becomes of them
//! (`linux/netfilter/nfnetlink_queue.h`, `nf_tables.h`). Made by netlink alone; no program is run.
//!
//! ```text
//! lo ─► input hook ─► table inet loopbox: unless the mark is ours ─► queue 0
//!                                             │ packet: number, headers, length
//!                                             ▼
//!                                           user space ── verdict: accept, accept this instead, drop
//! ```
//!
//! On the way in, since a packet that is held on the way out still counts against its sender's buffer, and TCP would
//! stop at two of them. Only ICMP is held on the way out: a packet is stamped with its time before the way in, and ping
//! takes that stamp.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use crate::netlink::{self, Family, Message, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, Socket};
use crate::packet::{ICMP, ICMPV6};
use crate::{Kind, Result, ResultExt as _};

/// The mark of packets that were sent by the driver itself, and are not queued again.
pub const MARK: u32 = 0x6c6f_6f70;
/// Packets that the kernel keeps for user space; more are dropped, and counted.
const QUEUE_PACKETS_MAX: u32 = 1 << 16;
/// What of a packet is needed for its headers, bytes.
pub const HEADERS_BYTES: u32 = 128;
/// A whole packet; the kernel's own limit.
pub const WHOLE_BYTES: u32 = 0xffff;

const NFNL_SUBSYS_QUEUE: u16 = 3;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFPROTO_INET: u8 = 1;

/// A packet (`NFQNL_MSG_PACKET`).
const PACKET: u16 = NFNL_SUBSYS_QUEUE << 8;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// A packet that the kernel holds.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// The number by which the kernel knows it.
    pub id: u32,
    /// Its first bytes.
    pub bytes: &'a [u8],
    /// Its length, bytes.
    pub len: usize,
    /// Whether its checksum is not yet computed.
    pub checksum_open: bool,
}

/// A queue of this network namespace.
#[derive(Debug)]
pub struct Queue {
    socket: Socket,
    verdicts: Vec<Message>,
    /// The number of the last packet: the kernel gives one to each, also to those for which there was no room.
    last_id: u32,
}

fn nfgenmsg(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

fn nftables(message: u16, flags: u16) -> Message {
    Message::new(NFNL_SUBSYS_NFTABLES << 8 | message, flags, &nfgenmsg(NFPROTO_INET, 0))
}

fn queue(message: u16, flags: u16) -> Message {
    Message::new(NFNL_SUBSYS_QUEUE << 8 | message, flags, &nfgenmsg(0, 0))
}

impl Queue {
    /// Leads all packets that come in by `lo` through a queue, of each the first `copy_bytes`. When user space is too
    /// slow, what finds no room is lost, or, with `fail_open`, passes unseen.
    ///
    /// # Errors
    /// [`crate::Kind::Denied`] without CAP_NET_ADMIN in the namespace; [`crate::Kind::Unsupported`] and others where
    /// the kernel lacks NFQUEUE or nftables.
    pub fn open(copy_bytes: u32, fail_open: bool) -> Result<Self> {
        let mut socket = Socket::open(Family::Netfilter)?;
        let bind = queue(2, NLM_F_ACK).attribute(1, &[1, 0, 0, 0]);
        let parameters = parameters(NLM_F_ACK, copy_bytes, fail_open);
        socket.execute("making a queue of the kernel (NFQUEUE)", vec![bind])?;
        socket.execute("configuring a queue of the kernel", vec![parameters])?;
        socket.set_receive_bytes(QUEUE_SOCKET_BYTES);
        let begin = Message::new(NFNL_MSG_BATCH_BEGIN, 0, &nfgenmsg(0, NFNL_SUBSYS_NFTABLES));
        let end = Message::new(NFNL_MSG_BATCH_END, 0, &nfgenmsg(0, NFNL_SUBSYS_NFTABLES));
        let expression = |list: Message, name: &str, fill: &dyn Fn(Message) -> Message| {
            list.nested(1, |element| element.text(1, name).nested(2, fill))
        };
        let table = nftables(0, NLM_F_CREATE | NLM_F_ACK).text(1, "loopbox");
        // Hooks: 1 is for what comes in, 3 for what goes out.
        let chain = |name: &str, hook: u32| {
            nftables(3, NLM_F_CREATE | NLM_F_ACK)
                .text(1, "loopbox")
                .text(3, name)
                .nested(4, |to| to.attribute(1, &hook.to_be_bytes()).attribute(2, &0u32.to_be_bytes()))
                .text(7, "filter")
        };
        let register = 1u32.to_be_bytes();
        let condition = |list, key: u32, operator: u32, value: &[u8]| {
            let list = expression(list, "meta", &|meta| meta.attribute(1, &register).attribute(2, &key.to_be_bytes()));
            expression(list, "cmp", &|cmp| {
                cmp.attribute(1, &register)
                    .attribute(2, &operator.to_be_bytes())
                    .nested(3, |data| data.attribute(1, value))
            })
        };
        const META_MARK: u32 = 3;
        const META_L4PROTO: u32 = 16;
        const EQUAL: u32 = 0;
        const OTHER: u32 = 1;
        let rule = |chain: &str, protocols: &[u8], operator: u32, to_queue: &dyn Fn(Message) -> Message| {
            let rule = nftables(6, NLM_F_CREATE | NLM_F_APPEND | NLM_F_ACK).text(1, "loopbox").text(2, chain);
            rule.nested(4, |list| {
                let list = condition(list, META_MARK, OTHER, &MARK.to_ne_bytes());
                let conditions =
                    protocols.iter().fold(list, |list, protocol| condition(list, META_L4PROTO, operator, &[*protocol]));
                to_queue(conditions)
            })
        };
        let by_expression = |list| {
            expression(list, "queue", &|queue| {
                queue.attribute(1, &0u16.to_be_bytes()).attribute(2, &1u16.to_be_bytes())
            })
        };
        // iptables' target NFQUEUE, revision 0, queue 0: for kernels that lack the expression.
        let by_target = |list| {
            expression(list, "target", &|target| {
                target.text(1, "NFQUEUE").attribute(2, &0u32.to_be_bytes()).attribute(3, &[0; 8])
            })
        };
        // A batch is done as a whole or not at all.
        let batch = |to_queue: &dyn Fn(Message) -> Message| {
            vec![
                begin.clone(),
                table.clone(),
                chain("input", 1),
                chain("output", 3),
                rule("input", &[ICMP, ICMPV6], OTHER, to_queue),
                rule("output", &[ICMP], EQUAL, to_queue),
                rule("output", &[ICMPV6], EQUAL, to_queue),
                end.clone(),
            ]
        };
        let what = "leading lo through a queue (nftables)";
        match socket.execute(what, batch(&by_expression)) {
            Err(error) if error.kind() == Kind::NotFound => {
                socket.execute(what, batch(&by_target))?;
            }
            other => other?,
        }
        socket.set_nonblocking()?;
        Ok(Self { socket, verdicts: Vec::new(), last_id: 0 })
    }

    /// From now on so many bytes of each packet, and what finds no room is lost, or passes.
    ///
    /// # Errors
    /// Those of sending.
    pub fn configure(&mut self, copy_bytes: u32, fail_open: bool) -> Result<()> {
        // Not waited for: packets come in between, and the kernel has no reason to refuse what it took before.
        self.socket.send([parameters(0, copy_bytes, fail_open)]).map(drop)
    }

    /// Passes each packet that has arrived to `take`. Says how many the kernel had no room for in between.
    ///
    /// # Errors
    /// Those of receiving.
    pub fn receive(&mut self, mut take: impl FnMut(Held<'_>)) -> Result<u64> {
        let mut missed = 0;
        for _ in 0..DATAGRAMS_A_TURN_MAX {
            match self.socket.receive() {
                Ok(bytes) => {
                    for packet in netlink::messages(bytes)
                        .filter(|message| message.kind == PACKET)
                        .filter_map(|message| held(message.body))
                    {
                        missed += u64::from(packet.id.wrapping_sub(self.last_id).saturating_sub(1));
                        self.last_id = packet.id;
                        take(packet);
                    }
                }
                Err(Errno::AGAIN) => break,
                // Counted by the numbers.
                Err(Errno::NOBUFS) => {}
                Err(error) => return Err(error).context(|| "receiving from a queue of the kernel"),
            }
        }
        Ok(missed)
    }

    /// Lets a packet go on, as it is or with other bytes.
    pub fn accept(&mut self, id: u32, instead: Option<&[u8]>) {
        let message = verdict(id, NF_ACCEPT);
        self.verdicts.push(match instead {
            Some(bytes) => message.attribute(10, bytes),
            None => message,
        });
    }

    /// Drops a packet.
    pub fn drop_packet(&mut self, id: u32) {
        self.verdicts.push(verdict(id, NF_DROP));
    }

    /// Tells the kernel all verdicts, in one call.
    ///
    /// # Errors
    /// Those of sending.
    pub fn flush(&mut self) -> Result<()> {
        while !self.verdicts.is_empty() {
            // What is longer than one datagram can be goes in several.
            let mut bytes = 0;
            let fits = self.verdicts.iter().take_while(|message| {
                bytes += message.len();
                bytes <= VERDICT_BYTES_MAX
            });
            let count = fits.count().max(1);
            self.socket.send(self.verdicts.drain(..count))?;
        }
        Ok(())
    }
}

/// How many datagrams are taken before verdicts are given.
const DATAGRAMS_A_TURN_MAX: usize = 256;
/// What is sent to the kernel in one datagram, bytes, unless one verdict is longer.
const VERDICT_BYTES_MAX: usize = 32 << 10;
/// Room asked for packets on their way to user space, bytes; the kernel gives an ordinary user less.
const QUEUE_SOCKET_BYTES: usize = 32 << 20;

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What the queue hands over, and what it does when it is full.
fn parameters(flags: u16, copy_bytes: u32, fail_open: bool) -> Message {
    const COPY_PACKET: u8 = 2;
    const F_FAIL_OPEN: u32 = 1;
    const F_GSO: u32 = 4;
    let mut copy = copy_bytes.to_be_bytes().to_vec();
    copy.push(COPY_PACKET);
    let set = if fail_open { F_GSO | F_FAIL_OPEN } else { F_GSO };
    queue(2, flags)
        .attribute(2, &copy)
        .attribute(3, &QUEUE_PACKETS_MAX.to_be_bytes())
        .attribute(4, &(F_GSO | F_FAIL_OPEN).to_be_bytes())
        .attribute(5, &set.to_be_bytes())
}

fn verdict(id: u32, verdict: u32) -> Message {
    let mut header = verdict.to_be_bytes().to_vec();
    header.extend(id.to_be_bytes());
    queue(1, 0).attribute(2, &header)
}

fn held(body: &[u8]) -> Option<Held<'_>> {
    let (mut id, mut bytes, mut len, mut information) = (None, None, None, 0);
    let number = |payload: &[u8]| payload.first_chunk().copied().map(u32::from_be_bytes);
    for (kind, payload) in netlink::attributes(body.get(4..)?) {
        match kind {
            1 => id = number(payload),
            10 => bytes = Some(payload),
            13 => len = number(payload),
            14 => information = number(payload)?,
            _ => {}
        }
    }
    let bytes = bytes.unwrap_or_default();
    let len = len.and_then(|len| usize::try_from(len).ok()).unwrap_or(bytes.len());
    const CHECKSUM_NOT_READY: u32 = 1;
    Some(Held { id: id?, bytes, len, checksum_open: information & CHECKSUM_NOT_READY != 0 })
}
