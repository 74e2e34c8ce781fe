//! Who listens: sockets from `sock_diag(7)`, and the processes that hold them from `/proc/PID/fd`.
//!
//! ```text
//! inet_diag_req_v2, 56 bytes             inet_diag_msg, 72 bytes
//!   0  u8   family                         0  u8   family
//!   1  u8   protocol                       4  be16 source port
//!   4  u32  states, a bit each             8  u8 × 16  source address
//!   8  id, 48 bytes                       40  u32  interface
//!                                         64  u32  user
//!                                         68  u32  inode
//! ```

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::Result;
use crate::netlink::{self, Family, Message, NLM_F_DUMP, Received, Socket, u32_at};

mod explain;

pub use explain::{Check, explain};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SKV6ONLY: u16 = 11;
const TCP_LISTEN: u32 = 10;
/// The state of a UDP socket without a peer.
const TCP_CLOSE: u32 = 7;
/// How many open files of one process are looked at.
const FILES_MAX: usize = 1 << 20;

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A process that holds a socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name: `/proc/PID/comm`.
    pub name: String,
}

/// A socket that takes connections or packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listener {
    /// Its protocol.
    pub protocol: Protocol,
    /// The address it is bound to.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Whether a socket on `::` leaves IPv4 alone.
    pub ipv6_only: bool,
    /// The user that made it.
    pub uid: u32,
    /// The processes that hold it, as far as this user may see.
    pub processes: Vec<Process>,
    #[serde(skip)]
    inode: u32,
}

/// From where a listener can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// From every machine that reaches this one, IPv4 and IPv6.
    Outside,
    /// As `Outside`, IPv4 only.
    OutsideIpv4,
    /// As `Outside`, IPv6 only.
    OutsideIpv6,
    /// From this machine, at this one loopback address only.
    Loopback,
    /// At one address that is not a loopback address.
    Address,
}

impl Listener {
    /// From where it can be reached.
    pub fn reach(&self) -> Reach {
        match self.address {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Reach::OutsideIpv4,
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) if self.ipv6_only => Reach::OutsideIpv6,
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Reach::Outside,
            address if address.is_loopback() => Reach::Loopback,
            _ => Reach::Address,
        }
    }

    /// Whether a packet to `address` can end here.
    pub fn takes(&self, address: IpAddr) -> bool {
        match self.reach() {
            Reach::Outside => true,
            Reach::OutsideIpv4 => address.is_ipv4(),
            Reach::OutsideIpv6 => address.is_ipv6(),
            Reach::Loopback | Reach::Address => address == self.address,
        }
    }

    /// Whether both can be meant by one client: the same protocol and port, and an address that both take.
    /// The one on the narrower address wins; between two on the same one the kernel chooses (`SO_REUSEPORT`).
    pub fn shadows(&self, other: &Self) -> bool {
        (self.protocol, self.port) == (other.protocol, other.port)
            && self.inode != other.inode
            && (self.takes(other.address) || other.takes(self.address))
            && self.processes != other.processes
    }
}

/// All listeners of this network namespace, by port.
///
/// # Errors
/// Those of netlink; that a process is not this user's is none.
pub fn listeners() -> Result<Vec<Listener>> {
    let mut found = sockets()?;
    let mut holders = holders();
    for listener in &mut found {
        listener.processes = holders.remove(&listener.inode).unwrap_or_default();
    }
    found.sort_by_key(|listener| (listener.port, listener.protocol, listener.address));
    Ok(found)
}

/// The same without the processes that hold them, in the order of the kernel.
pub(crate) fn sockets() -> Result<Vec<Listener>> {
    let mut socket = Socket::open(Family::SockDiag)?;
    let mut found = Vec::new();
    for (protocol, number, state) in [(Protocol::Tcp, 6u8, TCP_LISTEN), (Protocol::Udp, 17, TCP_CLOSE)] {
        for family in [2u8, 10] {
            let mut request = vec![family, number, 0, 0];
            request.extend((1u32 << state).to_ne_bytes());
            request.extend([0; 48]);
            let request = Message::new(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &request);
            let take = |message: Received<'_>| listener(message, protocol);
            found.extend(socket.ask("asking the kernel for sockets", &request, take)?);
        }
    }
    Ok(found)
}

fn listener(message: Received<'_>, protocol: Protocol) -> Option<Listener> {
    let body = message.body;
    let port = u16::from_be_bytes(body.get(4..)?.first_chunk().copied()?);
    let address = match *body.first()? {
        2 => IpAddr::from(*body.get(8..)?.first_chunk::<4>()?),
        10 => IpAddr::from(*body.get(8..)?.first_chunk::<16>()?),
        _ => return None,
    };
    let only = netlink::attributes(body.get(72..)?).find(|(kind, _)| *kind == INET_DIAG_SKV6ONLY);
    let ipv6_only = only.and_then(|(_, payload)| payload.first().copied()).is_some_and(|only| only != 0);
    let (uid, inode) = (u32_at(body, 64)?, u32_at(body, 68)?);
    (port != 0).then_some(Listener { protocol, address, port, ipv6_only, uid, processes: Vec::new(), inode })
}

/// The processes that hold each socket, by inode.
fn holders() -> HashMap<u32, Vec<Process>> {
    let mut holders: HashMap<u32, Vec<Process>> = HashMap::new();
    for process in sys::process::Process::all() {
        for file in process.files().take(FILES_MAX) {
            let Ok(link) = std::fs::read_link(file) else { continue };
            let inode = link.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            let Some(inode) = inode else { continue };
            let held = holders.entry(inode).or_default();
            if held.iter().all(|holder| holder.pid != process.pid) {
                held.push(Process { pid: process.pid, name: process.name() });
            }
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str, inode: u32) -> Listener {
        let address: IpAddr = address.parse().unwrap();
        let processes = vec![Process { pid: inode, name: "x".into() }];
        Listener { protocol: Protocol::Tcp, address, port: 80, ipv6_only: false, uid: 0, processes, inode }
    }

    #[test]
    fn a_listener_takes_what_the_kernel_gives_it() {
        let (any4, any6, one) = (at("0.0.0.0", 1), at("::", 2), at("127.0.0.1", 3));
        let only6 = Listener { ipv6_only: true, ..at("::", 4) };
        let to = |address: &str| address.parse().unwrap();
        assert!(any4.takes(to("127.0.0.9")) && !any4.takes(to("::1")));
        assert!(any6.takes(to("127.0.0.9")) && any6.takes(to("::1")));
        assert!(only6.takes(to("::1")) && !only6.takes(to("127.0.0.1")));
        assert!(one.takes(to("127.0.0.1")) && !one.takes(to("127.0.0.2")));
        assert!(any4.shadows(&one) && one.shadows(&any6) && !one.shadows(&only6) && !one.shadows(&at("127.0.0.2", 5)));
        assert!(!one.shadows(&one.clone()));
    }

    #[test]
    fn sockets_of_this_process_are_found_with_it() {
        let tcp = std::net::TcpListener::bind("127.0.0.3:0").unwrap();
        let udp = std::net::UdpSocket::bind("[::1]:0").unwrap();
        let found = listeners().unwrap();
        for (protocol, address) in
            [(Protocol::Tcp, tcp.local_addr().unwrap()), (Protocol::Udp, udp.local_addr().unwrap())]
        {
            let one = found.iter().find(|l| l.protocol == protocol && l.port == address.port()).unwrap();
            assert_eq!((one.address, one.reach()), (address.ip(), Reach::Loopback));
            assert!(one.processes.iter().any(|process| process.pid == std::process::id()), "{one:?}");
        }
    }
}
