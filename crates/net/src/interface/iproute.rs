//! An interface as iproute2 6.1 prints it: `ip addr show`, `ip -s addr show`, `ip -j addr show`.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::{Address, Counters, Interface};

/// `IFF_…` in the order in which iproute2 prints them.
const FLAGS: [(u32, &str); 18] = [
    (0x8, "LOOPBACK"),
    (0x2, "BROADCAST"),
    (0x10, "POINTOPOINT"),
    (0x1000, "MULTICAST"),
    (0x80, "NOARP"),
    (0x200, "ALLMULTI"),
    (0x100, "PROMISC"),
    (0x400, "MASTER"),
    (0x800, "SLAVE"),
    (0x4, "DEBUG"),
    (0x8000, "DYNAMIC"),
    (0x4000, "AUTOMEDIA"),
    (0x2000, "PORTSEL"),
    (0x20, "NOTRAILERS"),
    (0x1, "UP"),
    (0x1_0000, "LOWER_UP"),
    (0x2_0000, "DORMANT"),
    (0x4_0000, "ECHO"),
];
const IFF_UP: u32 = 0x1;
const IFF_RUNNING: u32 = 0x40;

/// `IFA_F_…` in the order in which iproute2 prints them.
const ADDRESS_FLAGS: [(u32, &str); 12] = [
    (0x1, "secondary"),
    (0x2, "nodad"),
    (0x4, "optimistic"),
    (0x8, "dadfailed"),
    (0x10, "home"),
    (0x20, "deprecated"),
    (0x40, "tentative"),
    (0x80, "permanent"),
    (0x100, "mngtmpaddr"),
    (0x200, "noprefixroute"),
    (0x400, "autojoin"),
    (0x800, "stable-privacy"),
];
const IFA_F_SECONDARY: u32 = 0x1;
const IFA_F_PERMANENT: u32 = 0x80;

const STATES: [&str; 7] = ["UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP"];

/// The names that the machine's administrator gave to numbers: `/etc/iproute2/group` and `rt_scopes`.
#[derive(Debug, Clone, Default)]
pub struct Names {
    groups: HashMap<u32, String>,
    scopes: HashMap<u32, String>,
}

impl Names {
    /// Those of this machine; a file that is not there names nothing.
    pub fn of_machine() -> Self {
        let read = |name: &str| {
            ["/etc/iproute2", "/usr/share/iproute2"]
                .iter()
                .find_map(|folder| std::fs::read_to_string(format!("{folder}/{name}")).ok())
                .map(|text| numbers(&text))
                .unwrap_or_default()
        };
        Self { groups: read("group"), scopes: read("rt_scopes") }
    }

    fn group(&self, number: u32) -> String {
        self.groups.get(&number).cloned().unwrap_or_else(|| match number {
            0 => "default".to_owned(),
            _ => number.to_string(),
        })
    }

    fn scope(&self, number: u8) -> String {
        self.scopes.get(&u32::from(number)).cloned().unwrap_or_else(|| match number {
            0 => "global".to_owned(),
            200 => "site".to_owned(),
            253 => "link".to_owned(),
            254 => "host".to_owned(),
            255 => "nowhere".to_owned(),
            _ => number.to_string(),
        })
    }
}

/// Lines of `NUMBER NAME`; the number may be hexadecimal, `#` begins a comment.
fn numbers(text: &str) -> HashMap<u32, String> {
    let entry = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let number = words.next()?;
        let number = match number.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok()?,
            None => number.parse().ok()?,
        };
        Some((number, words.next()?.to_owned()))
    };
    text.lines().filter_map(entry).collect()
}

fn flag_words(flags: u32) -> Vec<String> {
    let mut words = Vec::new();
    if flags & IFF_UP != 0 && flags & IFF_RUNNING == 0 {
        words.push("NO-CARRIER".to_owned());
    }
    let mut rest = flags & !IFF_RUNNING;
    for (bit, word) in FLAGS {
        if rest & bit != 0 {
            rest &= !bit;
            words.push(word.to_owned());
        }
    }
    if rest != 0 {
        words.push(format!("{rest:x}"));
    }
    words
}

fn address_flag_words(address: &Address) -> Vec<&'static str> {
    let word = |(bit, word): (u32, &'static str)| match bit {
        IFA_F_PERMANENT => (address.flags & bit == 0).then_some("dynamic"),
        IFA_F_SECONDARY if address.local.is_ipv6() => (address.flags & bit != 0).then_some("temporary"),
        _ => (address.flags & bit != 0).then_some(word),
    };
    ADDRESS_FLAGS.into_iter().filter_map(word).collect()
}

fn hardware(address: &[u8]) -> String {
    address.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn link_type(kind: u16) -> String {
    match kind {
        772 => "loopback".to_owned(),
        1 => "ether".to_owned(),
        65534 => "none".to_owned(),
        _ => format!("[{kind}]"),
    }
}

fn state(state: u8) -> String {
    STATES.get(usize::from(state)).map_or_else(|| format!("{state:#x}"), |word| (*word).to_owned())
}

fn seconds(lifetime: u32) -> String {
    if lifetime == u32::MAX { "forever".to_owned() } else { format!("{lifetime}sec") }
}

/// `ip addr show`, with the counters of `ip -s` if `counters`.
pub fn text(interface: &Interface, names: &Names, counters: bool) -> String {
    let mut out = format!(
        "{}: {}: <{}> mtu {} qdisc {} state {} group {} qlen {}\n    link/{} {} brd {}\n",
        interface.index,
        interface.name,
        flag_words(interface.flags).join(","),
        interface.mtu,
        interface.qdisc,
        state(interface.state),
        names.group(interface.group),
        interface.queue_packets,
        link_type(interface.kind),
        hardware(&interface.address),
        hardware(&interface.broadcast),
    );
    for address in &interface.addresses {
        let family = if address.local.is_ipv4() { "inet" } else { "inet6" };
        let _ = write!(out, "    {family} {}", address.local);
        if let Some(peer) = address.peer {
            let _ = write!(out, " peer {peer}");
        }
        let _ = write!(out, "/{} ", address.prefix);
        if let Some(broadcast) = address.broadcast {
            let _ = write!(out, "brd {broadcast} ");
        }
        if let Some(anycast) = address.anycast {
            let _ = write!(out, "any {anycast} ");
        }
        let _ = write!(out, "scope {} ", names.scope(address.scope));
        for word in address_flag_words(address) {
            let _ = write!(out, "{word} ");
        }
        out.push_str(address.label.as_deref().unwrap_or_default());
        if let Some((valid, preferred)) = address.lifetime {
            let _ = write!(out, "\n       valid_lft {} preferred_lft ", seconds(valid));
            match preferred {
                0 => out.push_str("0sec"),
                _ => out.push_str(&seconds(preferred)),
            }
        }
        out.push('\n');
    }
    if counters {
        columns(&mut out, &interface.counters);
    }
    out
}

/// The counters in columns as wide as the longest of their numbers and headings.
fn columns(out: &mut String, counters: &Counters) {
    let c = counters;
    let received = [c.rx_bytes, c.rx_packets, c.rx_errors, c.rx_dropped, c.rx_missed_errors, c.multicast];
    let sent = [c.tx_bytes, c.tx_packets, c.tx_errors, c.tx_dropped, c.tx_carrier_errors, c.collisions];
    let digits = |number: u64| number.to_string().len();
    let widths: Vec<usize> = std::iter::zip(["*X errors:", "packets", "errors", "dropped", "heartbt", "overrun"], 0..)
        .map(|(heading, column): (&str, usize)| {
            let longest = |row: &[u64; 6]| row.get(column).copied().map_or(0, digits);
            heading.len().max(longest(&received)).max(longest(&sent))
        })
        .collect();
    let compressed_width = "compressed".len().max(digits(c.rx_compressed)).max(digits(c.tx_compressed));
    let mut half = |name: &str, headings: [&str; 6], numbers: [u64; 6], compressed: u64| {
        let _ = write!(out, "    {name}:");
        for (column, (heading, width)) in headings.iter().zip(&widths).enumerate() {
            let width = if column == 0 { width.saturating_sub(4) } else { *width };
            let _ = write!(out, " {heading:>width$}");
        }
        let heading = if compressed > 0 { "compressed" } else { "" };
        let _ = write!(out, " {heading:>compressed_width$}\n    ");
        for (number, width) in numbers.iter().zip(&widths) {
            let _ = write!(out, "{number:>width$} ");
        }
        if compressed > 0 {
            let _ = write!(out, "{compressed:>compressed_width$} ");
        }
        out.push('\n');
    };
    half("RX", ["bytes", "packets", "errors", "dropped", "missed", "mcast"], received, c.rx_compressed);
    half("TX", ["bytes", "packets", "errors", "dropped", "carrier", "collsns"], sent, c.tx_compressed);
}

/// What `ip -j addr show` prints, field by field.
#[derive(Debug, Serialize)]
pub struct Json {
    ifindex: u32,
    ifname: String,
    flags: Vec<String>,
    mtu: u32,
    qdisc: String,
    operstate: String,
    group: String,
    txqlen: u32,
    link_type: String,
    address: String,
    broadcast: String,
    addr_info: Vec<JsonAddress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stats64: Option<JsonCounters>,
}

#[derive(Debug, Serialize)]
struct JsonAddress {
    family: &'static str,
    local: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    prefixlen: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    broadcast: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    anycast: Option<String>,
    scope: String,
    #[serde(flatten)]
    flags: Flags,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_life_time: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preferred_life_time: Option<u32>,
}

/// Words that are set: `"secondary":true`.
#[derive(Debug)]
struct Flags(Vec<&'static str>);

impl Serialize for Flags {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|word| (word, true)))
    }
}

#[derive(Debug, Serialize)]
struct JsonCounters {
    rx: JsonReceived,
    tx: JsonSent,
}

#[derive(Debug, Serialize)]
struct JsonReceived {
    bytes: u64,
    packets: u64,
    errors: u64,
    dropped: u64,
    over_errors: u64,
    multicast: u64,
    #[serde(skip_serializing_if = "is_zero")]
    compressed: u64,
}

#[derive(Debug, Serialize)]
struct JsonSent {
    bytes: u64,
    packets: u64,
    errors: u64,
    dropped: u64,
    carrier_errors: u64,
    collisions: u64,
    #[serde(skip_serializing_if = "is_zero")]
    compressed: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// `ip -j addr show`, with the counters of `ip -s` if `counters`.
pub fn json(interface: &Interface, names: &Names, counters: bool) -> [Json; 1] {
    let c = &interface.counters;
    let address = |address: &Address| JsonAddress {
        family: if address.local.is_ipv4() { "inet" } else { "inet6" },
        local: address.local.to_string(),
        address: address.peer.map(|peer| peer.to_string()),
        prefixlen: address.prefix,
        broadcast: address.broadcast.map(|broadcast| broadcast.to_string()),
        anycast: address.anycast.map(|anycast| anycast.to_string()),
        scope: names.scope(address.scope),
        flags: Flags(address_flag_words(address)),
        label: address.label.clone(),
        valid_life_time: address.lifetime.map(|(valid, _)| valid),
        preferred_life_time: address.lifetime.map(|(_, preferred)| preferred),
    };
    [Json {
        ifindex: interface.index,
        ifname: interface.name.clone(),
        flags: flag_words(interface.flags),
        mtu: interface.mtu,
        qdisc: interface.qdisc.clone(),
        operstate: state(interface.state),
        group: names.group(interface.group),
        txqlen: interface.queue_packets,
        link_type: link_type(interface.kind),
        address: hardware(&interface.address),
        broadcast: hardware(&interface.broadcast),
        addr_info: interface.addresses.iter().map(address).collect(),
        stats64: counters.then_some(JsonCounters {
            rx: JsonReceived {
                bytes: c.rx_bytes,
                packets: c.rx_packets,
                errors: c.rx_errors,
                dropped: c.rx_dropped,
                over_errors: c.rx_over_errors,
                multicast: c.multicast,
                compressed: c.rx_compressed,
            },
            tx: JsonSent {
                bytes: c.tx_bytes,
                packets: c.tx_packets,
                errors: c.tx_errors,
                dropped: c.tx_dropped,
                carrier_errors: c.tx_carrier_errors,
                collisions: c.collisions,
                compressed: c.tx_compressed,
            },
        }),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_numbers_are_read_as_the_administrator_wrote_them() {
        let names = numbers("# device group names\n0\tdefault\n0x1f lab # a comment\nx y\n7\n");
        assert_eq!(names.len(), 2);
        assert_eq!(names.get(&31).map(String::as_str), Some("lab"));
    }

    #[test]
    fn wide_numbers_widen_both_halves_and_compressed_ones_have_a_column() {
        let mut out = String::new();
        let counters = Counters { rx_bytes: 123_456_789_012, tx_compressed: 5, ..Counters::default() };
        columns(&mut out, &counters);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[0], "    RX:    bytes packets errors dropped  missed   mcast           ");
        assert_eq!(lines[1], "    123456789012       0      0       0       0       0 ");
        assert_eq!(lines[2], "    TX:    bytes packets errors dropped carrier collsns compressed");
        assert_eq!(lines[3], "               0       0      0       0       0       0          5 ");
    }
}
