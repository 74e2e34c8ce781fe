//! The loopback interface as the kernel describes it (`rtnetlink(7)`).
//!
//! ```text
//! ifinfomsg, 16 bytes                  ifaddrmsg, 8 bytes
//!   0  u8   family                       0  u8   family
//!   2  u16  type (ARPHRD)                1  u8   prefix length
//!   4  i32  index                        2  u8   flags, the first 8 bits
//!   8  u32  flags (IFF)                  3  u8   scope
//!  12  u32  change                       4  u32  index
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::{self, Family, Message, NLM_F_ACK, NLM_F_DUMP, Received, Socket, text_of, u16_at, u32_at, u64_at};
use crate::{Error, Kind, Result};

mod ifconfig;
mod iproute;

pub use ifconfig::{Inet6, ifconfig};
pub use iproute::{Json, Names, json, text};

/// The name of the loopback interface in every network namespace.
pub const LOOPBACK: &str = "lo";
/// Its index in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `IFF_…`.
    pub flags: u32,
    /// `ARPHRD_…`.
    pub kind: u16,
    /// The longest packet, bytes.
    pub mtu: u32,
    /// The queueing discipline.
    pub qdisc: String,
    /// `IF_OPER_…`.
    pub state: u8,
    /// The group, a number.
    pub group: u32,
    /// The length of the transmit queue, packets.
    pub queue_packets: u32,
    /// The address of the link layer.
    pub address: Vec<u8>,
    /// The broadcast address of the link layer.
    pub broadcast: Vec<u8>,
    /// The counters.
    pub counters: Counters,
    /// The addresses, in the order of the kernel.
    pub addresses: Vec<Address>,
}

/// `rtnl_link_stats64`, in the kernel's order and with its names. Bytes where the name says so, packets otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names of linux/if_link.h")]
pub struct Counters {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
    pub multicast: u64,
    pub collisions: u64,
    pub rx_length_errors: u64,
    pub rx_over_errors: u64,
    pub rx_crc_errors: u64,
    pub rx_frame_errors: u64,
    pub rx_fifo_errors: u64,
    pub rx_missed_errors: u64,
    pub tx_aborted_errors: u64,
    pub tx_carrier_errors: u64,
    pub tx_fifo_errors: u64,
    pub tx_heartbeat_errors: u64,
    pub tx_window_errors: u64,
    pub rx_compressed: u64,
    pub tx_compressed: u64,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The address itself.
    pub local: IpAddr,
    /// The other end, where it is another.
    pub peer: Option<IpAddr>,
    /// The broadcast address.
    pub broadcast: Option<IpAddr>,
    /// The anycast address.
    pub anycast: Option<IpAddr>,
    /// Bits.
    pub prefix: u8,
    /// `RT_SCOPE_…`.
    pub scope: u8,
    /// `IFA_F_…`.
    pub flags: u32,
    /// The label: the interface's name, or one that begins with it. IPv4 only.
    pub label: Option<String>,
    /// The lifetimes in seconds, `u32::MAX` for ever: valid, preferred.
    pub lifetime: Option<(u32, u32)>,
}

/// The loopback interface of this network namespace.
///
/// # Errors
/// [`Kind::NotFound`] where there is none; those of netlink.
pub fn loopback() -> Result<Interface> {
    let mut socket = Socket::open(Family::Route)?;
    let what = "asking the kernel for the interface lo";
    let request = Message::new(RTM_GETLINK, 0, &[0; 16]).text(3, LOOPBACK);
    let mut found = socket.ask(what, &request, link)?;
    let mut interface = found.pop().ok_or_else(|| Error::new(Kind::NotFound, "no interface lo"))?;
    let request = Message::new(RTM_GETADDR, NLM_F_DUMP, &[0; 8]);
    let index = interface.index;
    let addresses = socket.ask("asking the kernel for addresses", &request, |message| address(message, index))?;
    interface.addresses = addresses;
    Ok(interface)
}

/// The addresses of all interfaces of this network namespace, each with the interface's name.
///
/// # Errors
/// Those of netlink.
pub fn addresses() -> Result<Vec<(String, IpAddr)>> {
    let mut socket = Socket::open(Family::Route)?;
    let request = Message::new(RTM_GETLINK, NLM_F_DUMP, &[0; 16]);
    let links = socket.ask("asking the kernel for interfaces", &request, link)?;
    let mut found = Vec::new();
    for link in links {
        let request = Message::new(RTM_GETADDR, NLM_F_DUMP, &[0; 8]);
        let index = link.index;
        let of = socket.ask("asking the kernel for addresses", &request, |message| address(message, index))?;
        found.extend(of.into_iter().map(|address| (link.name.clone(), address.local)));
    }
    Ok(found)
}

/// Sets the loopback interface of this network namespace up.
///
/// # Errors
/// [`Kind::Denied`] without CAP_NET_ADMIN in the namespace.
pub fn set_loopback_up() -> Result<()> {
    const IFF_UP: u32 = 1;
    let mut fixed = vec![0; 4];
    fixed.extend(LOOPBACK_INDEX.to_ne_bytes());
    fixed.extend(IFF_UP.to_ne_bytes());
    fixed.extend(IFF_UP.to_ne_bytes());
    let request = Message::new(RTM_NEWLINK, NLM_F_ACK, &fixed);
    Socket::open(Family::Route)?.execute("setting lo up", vec![request])
}

/// The interface that a message describes, without its addresses.
fn link(message: Received<'_>) -> Option<Interface> {
    if message.kind != RTM_NEWLINK {
        return None;
    }
    let mut interface = Interface {
        kind: u16_at(message.body, 2)?,
        index: u32_at(message.body, 4)?,
        flags: u32_at(message.body, 8)?,
        ..Interface::default()
    };
    for (kind, payload) in netlink::attributes(message.body.get(16..)?) {
        match kind {
            1 => interface.address = payload.to_vec(),
            2 => interface.broadcast = payload.to_vec(),
            3 => interface.name = text_of(payload),
            4 => interface.mtu = u32_at(payload, 0)?,
            6 => interface.qdisc = text_of(payload),
            13 => interface.queue_packets = u32_at(payload, 0)?,
            16 => interface.state = payload.first().copied()?,
            23 => interface.counters = counters(payload)?,
            27 => interface.group = u32_at(payload, 0)?,
            _ => {}
        }
    }
    Some(interface)
}

fn counters(payload: &[u8]) -> Option<Counters> {
    let mut next = (0..).step_by(8).map_while(|at| u64_at(payload, at));
    // Fields are filled in the order of the text, which is the kernel's.
    Some(Counters {
        rx_packets: next.next()?,
        tx_packets: next.next()?,
        rx_bytes: next.next()?,
        tx_bytes: next.next()?,
        rx_errors: next.next()?,
        tx_errors: next.next()?,
        rx_dropped: next.next()?,
        tx_dropped: next.next()?,
        multicast: next.next()?,
        collisions: next.next()?,
        rx_length_errors: next.next()?,
        rx_over_errors: next.next()?,
        rx_crc_errors: next.next()?,
        rx_frame_errors: next.next()?,
        rx_fifo_errors: next.next()?,
        rx_missed_errors: next.next()?,
        tx_aborted_errors: next.next()?,
        tx_carrier_errors: next.next()?,
        tx_fifo_errors: next.next()?,
        tx_heartbeat_errors: next.next()?,
        tx_window_errors: next.next()?,
        rx_compressed: next.next()?,
        tx_compressed: next.next()?,
    })
}

/// The address that a message describes, if it is one of interface `index`.
fn address(message: Received<'_>, index: u32) -> Option<Address> {
    let body = message.body;
    if u32_at(body, 4)? != index {
        return None;
    }
    let (mut local, mut remote) = (None, None);
    let mut address = Address {
        local: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        peer: None,
        broadcast: None,
        anycast: None,
        prefix: *body.get(1)?,
        flags: u32::from(*body.get(2)?),
        scope: *body.get(3)?,
        label: None,
        lifetime: None,
    };
    for (kind, payload) in netlink::attributes(body.get(8..)?) {
        match kind {
            1 => remote = ip(payload),
            2 => local = ip(payload),
            3 => address.label = Some(text_of(payload)),
            4 => address.broadcast = ip(payload),
            5 => address.anycast = ip(payload),
            6 => address.lifetime = Some((u32_at(payload, 4)?, u32_at(payload, 0)?)),
            8 => address.flags = u32_at(payload, 0)?,
            _ => {}
        }
    }
    address.local = local.or(remote)?;
    address.peer = remote.filter(|remote| *remote != address.local);
    Some(address)
}

fn ip(payload: &[u8]) -> Option<IpAddr> {
    match payload.len() {
        4 => payload.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes).into()),
        16 => payload.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_loopback_interface() {
        let lo = loopback().unwrap();
        assert_eq!((lo.index, lo.name.as_str(), lo.kind), (1, "lo", 772));
        assert!(lo.flags & 8 != 0, "IFF_LOOPBACK");
        assert_eq!(lo.address, [0; 6]);
        assert!(addresses().unwrap().contains(&("lo".to_owned(), Ipv4Addr::LOCALHOST.into())));
    }
}
