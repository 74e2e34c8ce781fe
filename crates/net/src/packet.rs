//! The headers of an IP packet, as far as rules and checksums need them (RFC 791, RFC 8200, RFC 9293, RFC 768).
//!
//! ```text
//! IPv4                                  IPv6
//!   0  u4   version, u4 header length     0  u4   version
//!   2  u16  total length                  4  u16  payload length
//!   6  u16  flags, fragment offset        6  u8   next header
//!   9  u8   protocol                      8  u8 × 16  source
//!  12  u8 × 4  source                    24  u8 × 16  destination
//!  16  u8 × 4  destination               40  extension headers, payload
//! ```

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// ICMP, TCP, UDP and ICMPv6 as the field `protocol` has them.
pub const ICMP: u8 = 1;
/// See [`ICMP`].
pub const TCP: u8 = 6;
/// See [`ICMP`].
pub const UDP: u8 = 17;
/// See [`ICMP`].
pub const ICMPV6: u8 = 58;

/// How many extension headers of IPv6 are passed over.
const EXTENSIONS_MAX: usize = 8;

/// What a packet says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Source.
    pub from: IpAddr,
    /// Destination.
    pub to: IpAddr,
    /// The protocol above IP.
    pub protocol: u8,
    /// Where its header begins, bytes; `None` in a fragment that is not the first.
    pub transport_at: Option<usize>,
    /// Source and destination port of TCP and UDP.
    pub ports: Option<(u16, u16)>,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

impl Headers {
    /// Reads the headers; `None` for what is no IP packet.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let first = *packet.first()?;
        let mut headers = match first >> 4 {
            4 => {
                let from = Ipv4Addr::from(*packet.get(12..)?.first_chunk::<4>()?);
                let to = Ipv4Addr::from(*packet.get(16..)?.first_chunk::<4>()?);
                let length = usize::from(first & 0xf).checked_mul(4).filter(|length| *length >= 20)?;
                let first_fragment = u16_at(packet, 6)? & 0x1fff == 0;
                let transport_at = first_fragment.then_some(length);
                Self { from: from.into(), to: to.into(), protocol: *packet.get(9)?, transport_at, ports: None }
            }
            6 => {
                let from = Ipv6Addr::from(*packet.get(8..)?.first_chunk::<16>()?);
                let to = Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?);
                let (protocol, transport_at) = ipv6_transport(packet)?;
                Self { from: from.into(), to: to.into(), protocol, transport_at, ports: None }
            }
            _ => return None,
        };
        if let (TCP | UDP, Some(at)) = (headers.protocol, headers.transport_at) {
            let after = at.checked_add(2)?;
            headers.ports = u16_at(packet, at).zip(u16_at(packet, after));
        }
        Some(headers)
    }
}

/// The protocol behind the extension headers, and where it begins.
fn ipv6_transport(packet: &[u8]) -> Option<(u8, Option<usize>)> {
    let (mut next, mut at) = (*packet.get(6)?, 40usize);
    for _ in 0..EXTENSIONS_MAX {
        let length = match next {
            // Hop-by-hop, routing, destination options: eights of bytes after the first eight.
            0 | 43 | 60 => usize::from(*packet.get(at.checked_add(1)?)?).checked_add(1)?.checked_mul(8)?,
            44 => {
                if u16_at(packet, at.checked_add(2)?)? & 0xfff8 != 0 {
                    return Some((*packet.get(at)?, None));
                }
                8
            }
            _ => return Some((next, Some(at))),
        };
        next = *packet.get(at)?;
        at = at.checked_add(length)?;
    }
    None
}

/// The sum of RFC 1071 over `bytes`, on top of `sum`, not yet complemented.
fn sum(bytes: &[u8], sum: u32) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let folded = |sum: u64| (sum & 0xffff).saturating_add(sum >> 16);
    let mut total = u64::from(sum);
    for word in words {
        total = total.saturating_add(u64::from(u16::from_be_bytes(*word)));
    }
    if let [last] = rest {
        total = total.saturating_add(u64::from(*last) << 8);
    }
    for _ in 0..4 {
        total = folded(total);
    }
    u32::try_from(total).unwrap_or(0)
}

/// The checksum of RFC 1071 over `bytes`.
pub fn checksum(bytes: &[u8]) -> u16 {
    !(sum(bytes, 0) as u16)
}

/// Sets the checksum of TCP, UDP, ICMP or ICMPv6 in a whole packet: between sockets of one machine the kernel leaves
/// it undone. Says whether there was one to set.
pub fn finish_checksum(packet: &mut [u8]) -> bool {
    let Some(headers) = Headers::parse(packet) else { return false };
    let Some(at) = headers.transport_at else { return false };
    let offset = match headers.protocol {
        TCP => 16,
        UDP => 6,
        ICMP | ICMPV6 => 2,
        _ => return false,
    };
    let Some((_, transport)) = packet.split_at_mut_checked(at) else { return false };
    let length = u32::try_from(transport.len()).unwrap_or(u32::MAX);
    let mut pseudo = Vec::with_capacity(40);
    match (headers.protocol, headers.from, headers.to) {
        (ICMP, ..) => {}
        (_, IpAddr::V4(from), IpAddr::V4(to)) => pseudo.extend([from.octets(), to.octets()].concat()),
        (_, IpAddr::V6(from), IpAddr::V6(to)) => pseudo.extend([from.octets(), to.octets()].concat()),
        _ => return false,
    }
    if !pseudo.is_empty() {
        pseudo.extend(length.to_be_bytes());
        pseudo.extend([0, 0, 0, headers.protocol]);
    }
    let Some(field) = transport.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<2>()) else { return false };
    *field = [0, 0];
    let mut sum = !(sum(transport, sum(&pseudo, 0)) as u16);
    if sum == 0 && headers.protocol == UDP {
        sum = 0xffff;
    }
    if let Some(field) = transport.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<2>()) {
        *field = sum.to_be_bytes();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UDP packet from 127.0.0.1:5353 to 127.0.0.2:53 with 3 bytes of payload.
    fn udp() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 2];
        packet.extend([0x14, 0xe9, 0, 53, 0, 11, 0, 0, b'a', b'b', b'c']);
        packet
    }

    #[test]
    fn headers_of_ipv4_and_ipv6() {
        let headers = Headers::parse(&udp()).unwrap();
        assert_eq!((headers.from.to_string(), headers.to.to_string()), ("127.0.0.1".into(), "127.0.0.2".into()));
        assert_eq!((headers.protocol, headers.ports), (UDP, Some((5353, 53))));
        let mut six = vec![0x60, 0, 0, 0, 0, 16, 0, 64];
        six.extend(Ipv6Addr::LOCALHOST.octets());
        six.extend(Ipv6Addr::LOCALHOST.octets());
        six.extend([6, 0, 0, 0, 0, 0, 0, 0]);
        six.extend([0, 80, 1, 0, 0, 0, 0, 0]);
        let headers = Headers::parse(&six).unwrap();
        assert_eq!((headers.protocol, headers.transport_at, headers.ports), (TCP, Some(48), Some((80, 256))));
        let mut fragment = udp();
        fragment[7] = 5;
        assert_eq!(Headers::parse(&fragment).unwrap().ports, None);
    }

    #[test]
    fn a_finished_checksum_adds_up_to_nothing() {
        let mut packet = udp();
        assert!(finish_checksum(&mut packet));
        let pseudo = [127, 0, 0, 1, 127, 0, 0, 2, 0, 17, 0, 11];
        assert_eq!(checksum(&[&pseudo[..], &packet[20..]].concat()), 0);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), four: bool) {
            if let Some(first) = bytes.first_mut() {
                *first = if four { 0x40 | (*first & 0xf) } else { 0x60 };
            }
            let _ = Headers::parse(&bytes);
            let length = bytes.len();
            finish_checksum(&mut bytes);
            proptest::prop_assert_eq!(bytes.len(), length);
        }
    }
}
