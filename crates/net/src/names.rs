//! A name server for a private network (RFC 1035): the names of a hosts file, and `NAME.localhost`.
//!
//! ```text
//! header, 12 bytes                      question
//!   0  u16  identifier                    labels: a length, 1 to 63, and that many bytes; 0 ends
//!   2  u16  flags                         u16  type    1 A, 28 AAAA, 255 any
//!   4  u16  questions                     u16  class   1 IN
//!   6  u16  answers                     answer
//!   8  u16  authorities                   u16  0xC00C, the name of the question
//!  10  u16  additional                    u16  type, u16 class, u32 seconds, u16 length, address
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use crate::hosts::{Hosts, is_localhost};
use crate::{Result, ResultExt as _};

const HEADER_BYTES: usize = 12;
/// What UDP carries without extensions.
const MESSAGE_BYTES_MAX: usize = 512;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_ANY: u16 = 255;
const NOT_IMPLEMENTED: u16 = 4;
const NO_SUCH_NAME: u16 = 3;

/// Answers queries at `socket`, in a thread of its own, as long as the process lives.
///
/// # Errors
/// When no thread can be started.
pub fn serve(socket: UdpSocket, hosts: Hosts) -> Result<()> {
    let serve = move || {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            if let Some(answer) = buffer.get(..length).and_then(|query| answer(query, &hosts)) {
                let _ = socket.send_to(&answer, from);
            }
        }
    };
    std::thread::Builder::new().name("names".into()).spawn(serve).context(|| "thread for names").map(drop)
}

/// The answer to a query; `None` for what is none.
pub fn answer(query: &[u8], hosts: &Hosts) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u16::from_be_bytes(query.get(at..)?.first_chunk().copied()?));
    let flags = word(2)?;
    const RESPONSE: u16 = 0x8000;
    const OPCODE: u16 = 0x7800;
    if flags & RESPONSE != 0 || word(4)? != 1 {
        return None;
    }
    let (name, end) = question_name(query)?;
    let (kind, question) = (word(end)?, query.get(HEADER_BYTES..end.checked_add(4)?)?);
    let mut addresses = hosts.addresses(&name);
    if addresses.is_empty() && is_localhost(&name) {
        addresses = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    let code = match () {
        () if flags & OPCODE != 0 => NOT_IMPLEMENTED,
        () if addresses.is_empty() => NO_SUCH_NAME,
        () => 0,
    };
    addresses.retain(|address| {
        matches!((kind, address), (TYPE_A | TYPE_ANY, IpAddr::V4(_)) | (TYPE_AAAA | TYPE_ANY, IpAddr::V6(_)))
    });
    if code != 0 {
        addresses.clear();
    }
    let mut out = query.get(..2)?.to_vec();
    // Response, authoritative, recursion available; opcode and the wish for recursion come back as they were.
    out.extend((RESPONSE | 0x0480 | flags & (OPCODE | 0x0100) | code).to_be_bytes());
    out.extend([0, 1]);
    let count_at = out.len();
    out.extend([0; 6]);
    out.extend(question);
    let mut count = 0u16;
    for address in addresses {
        let (kind, bytes) = match address {
            IpAddr::V4(address) => (TYPE_A, address.octets().to_vec()),
            IpAddr::V6(address) => (TYPE_AAAA, address.octets().to_vec()),
        };
        if out.len() + HEADER_BYTES + bytes.len() > MESSAGE_BYTES_MAX {
            break;
        }
        out.extend([0xc0, 0x0c]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1, 0, 0, 0, 0]);
        out.extend((bytes.len() as u16).to_be_bytes());
        out.extend(bytes);
        count += 1;
    }
    for (to, from) in out.iter_mut().skip(count_at).zip(count.to_be_bytes()) {
        *to = from;
    }
    Some(out)
}

/// The name of the first question, and where it ends.
fn question_name(query: &[u8]) -> Option<(String, usize)> {
    let mut at = HEADER_BYTES;
    let mut name = String::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at = at.checked_add(1)?;
        if length == 0 {
            return Some((name, at));
        }
        let label = query.get(at..at.checked_add(length)?)?;
        if length > 63 || name.len() > 253 || !label.is_ascii() {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|byte| char::from(*byte)));
        at = at.checked_add(length)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut out = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            out.push(label.len() as u8);
            out.extend(label.as_bytes());
        }
        out.push(0);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1]);
        out
    }

    #[test]
    fn names_have_the_addresses_of_the_hosts_file_and_of_localhost() {
        let hosts = Hosts::parse("127.0.0.7 db\n");
        let a = answer(&query("DB", TYPE_A), &hosts).unwrap();
        assert_eq!(a[..8], [7, 9, 0x85, 0x80, 0, 1, 0, 1]);
        assert!(a.ends_with(&[0, 4, 127, 0, 0, 7]));
        let none = answer(&query("db", TYPE_AAAA), &hosts).unwrap();
        assert_eq!(none[..8], [7, 9, 0x85, 0x80, 0, 1, 0, 0], "the name is there, no such address");
        let below = answer(&query("shop.localhost", TYPE_AAAA), &hosts).unwrap();
        assert!(below.ends_with(&Ipv6Addr::LOCALHOST.octets()));
        let unknown = answer(&query("example.org", TYPE_A), &hosts).unwrap();
        assert_eq!(unknown[3] & 0xf, NO_SUCH_NAME as u8);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_answered_or_not(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            if let Some(answer) = answer(&bytes, &Hosts::parse("127.0.0.1 a\n")) {
                proptest::prop_assert!(answer.len() <= bytes.len() + 64);
            }
        }
    }
}
