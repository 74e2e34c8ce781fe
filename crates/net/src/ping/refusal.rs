//! What a router, or the other machine, reports instead of a reply, as the kernel hands it on (`ip(7)`, IP_RECVERR).
//!
//! ```text
//!  0  u32  errno
//!  4  u8   origin: 1 this machine, 2 ICMP, 3 ICMPv6
//!  5  u8   type, 6  u8  code      as the ICMP message has them (RFC 792, RFC 4443)
//!  8  u32  info: the MTU, for one; 12  u32  data
//! 16  sockaddr of who reports it: u16 family, then for IPv4 u16 port, u8 × 4;
//!     for IPv6 u16 port, u32 flow, u8 × 16, u32 scope
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;

/// A request that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which request.
    pub sequence: u16,
    /// Who reports it; unknown for what this machine says itself.
    pub from: Option<IpAddr>,
    /// Why, as ping words it.
    pub reason: String,
}

impl Refusal {
    /// Reads the kernel's note and the request that it is about, of which `identifier` is this process' own where others'
    /// come as well.
    pub(super) fn parse(note: &[u8], request: &[u8], identifier: Option<u16>) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes(request.get(at..)?.first_chunk().copied()?));
        let number = |at: usize| Some(u32::from_ne_bytes(note.get(at..)?.first_chunk().copied()?));
        if identifier.is_some_and(|own| word(4) != Some(own)) {
            return None;
        }
        let (origin, kind, code, info) = (*note.get(4)?, *note.get(5)?, *note.get(6)?, number(8)?);
        let (from, reason) = match origin {
            ORIGIN_ICMP => {
                (note.get(20..24)?.first_chunk::<4>().map(|b| Ipv4Addr::from(*b).into()), icmp(kind, code, info))
            }
            ORIGIN_ICMP6 => {
                (note.get(24..40)?.first_chunk::<16>().map(|b| Ipv6Addr::from(*b).into()), icmpv6(kind, code, info))
            }
            _ => {
                let error = std::io::Error::from_raw_os_error(number(0)?.cast_signed()).to_string();
                (None, error.split(" (os error").next().unwrap_or_default().to_owned())
            }
        };
        Some(Self { sequence: word(6)?, from, reason })
    }
}

/// The words of ping for a message of ICMP.
fn icmp(kind: u8, code: u8, info: u32) -> String {
    const UNREACHABLE: [&str; 16] = [
        "Destination Net Unreachable",
        "Destination Host Unreachable",
        "Destination Protocol Unreachable",
        "Destination Port Unreachable",
        "Frag needed and DF set",
        "Source Route Failed",
        "Destination Net Unknown",
        "Destination Host Unknown",
        "Source Host Isolated",
        "Destination Net Prohibited",
        "Destination Host Prohibited",
        "Destination Net Unreachable for Type of Service",
        "Destination Host Unreachable for Type of Service",
        "Packet filtered",
        "Precedence Violation",
        "Precedence Cutoff",
    ];
    match (kind, code) {
        (3, 4) => format!("Frag needed and DF set (mtu = {info})"),
        (3, _) => UNREACHABLE
            .get(usize::from(code))
            .map_or_else(|| format!("Dest Unreachable, Bad Code: {code}"), |words| (*words).to_owned()),
        (11, 0) => "Time to live exceeded".to_owned(),
        (11, 1) => "Frag reassembly time exceeded".to_owned(),
        (4, _) => "Source Quench".to_owned(),
        (12, _) => "Parameter problem".to_owned(),
        _ => format!("Bad ICMP type: {kind}"),
    }
}

/// The words of ping for a message of ICMPv6.
fn icmpv6(kind: u8, code: u8, info: u32) -> String {
    const UNREACHABLE: [&str; 5] = [
        "No route",
        "Administratively prohibited",
        "Beyond scope of source address",
        "Address unreachable",
        "Port unreachable",
    ];
    match (kind, code) {
        (1, _) => {
            let why = UNREACHABLE.get(usize::from(code));
            why.map_or_else(
                || format!("Destination unreachable: Unknown code {code}"),
                |why| format!("Destination unreachable: {why}"),
            )
        }
        (2, _) => format!("Packet too big: mtu={info}"),
        (3, 0) => "Time exceeded: Hop limit".to_owned(),
        (3, 1) => "Time exceeded: Defragmentation failure".to_owned(),
        (4, _) => "Parameter problem".to_owned(),
        _ => format!("unknown icmp type: {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_of_the_kernel_is_read() {
        let mut note = 113u32.to_ne_bytes().to_vec();
        note.extend([2, 11, 0, 0]);
        note.extend([0; 8]);
        note.extend([2, 0, 0, 0, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let request = [8, 0, 0, 0, 0, 7, 0, 3];
        let read = Refusal::parse(&note, &request, Some(7)).unwrap();
        assert_eq!(
            (read.sequence, read.from, read.reason.as_str()),
            (3, Some([192, 0, 2, 1].into()), "Time to live exceeded")
        );
        assert_eq!(Refusal::parse(&note, &request, Some(8)), None, "of another process");
        assert_eq!(Refusal::parse(&note[..10], &request, None), None);
        note[4] = 1;
        assert_eq!(Refusal::parse(&note, &request, None).unwrap().reason, "No route to host");
        assert_eq!(icmp(3, 1, 0), "Destination Host Unreachable");
        assert_eq!(icmpv6(1, 3, 0), "Destination unreachable: Address unreachable");
    }

    proptest::proptest! {
        #[test]
        fn any_note_is_read(note: Vec<u8>, request: Vec<u8>, identifier: Option<u16>) {
            let _ = Refusal::parse(&note, &request, identifier);
        }
    }
}
