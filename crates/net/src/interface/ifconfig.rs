//! An interface as `ifconfig` of net-tools 2.10 prints it.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Interface;
use crate::{Result, ResultExt as _};

/// `IFF_…` in the order in which net-tools prints them.
const FLAGS: [(u32, &str); 14] = [
    (0x1, "UP"),
    (0x2, "BROADCAST"),
    (0x4, "DEBUG"),
    (0x8, "LOOPBACK"),
    (0x10, "POINTOPOINT"),
    (0x20, "NOTRAILERS"),
    (0x40, "RUNNING"),
    (0x80, "NOARP"),
    (0x100, "PROMISC"),
    (0x200, "ALLMULTI"),
    (0x800, "SLAVE"),
    (0x400, "MASTER"),
    (0x1000, "MULTICAST"),
    (0x8000, "DYNAMIC"),
];

/// A line of `/proc/net/if_inet6`, whose order, unlike that of netlink, is the one that `ifconfig` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inet6 {
    address: Ipv6Addr,
    prefix: u8,
    scope: u32,
}

impl Inet6 {
    /// Those of an interface of this network namespace; none where the kernel has no IPv6.
    ///
    /// # Errors
    /// When `/proc/net/if_inet6` is there and cannot be read.
    pub fn of(interface: &str) -> Result<Vec<Self>> {
        match std::fs::read_to_string("/proc/thread-self/net/if_inet6") {
            Ok(text) => Ok(text.lines().filter_map(|line| Self::parse(line, interface)).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).context(|| "reading /proc/net/if_inet6"),
        }
    }

    /// `ADDRESS INDEX PREFIX SCOPE FLAGS NAME`, all hexadecimal but the name.
    fn parse(line: &str, interface: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let address = Ipv6Addr::from_bits(u128::from_str_radix(words.next()?, 16).ok()?);
        let prefix = u8::from_str_radix(words.nth(1)?, 16).ok()?;
        let scope = u32::from_str_radix(words.next()?, 16).ok()?;
        (words.nth(1)? == interface).then_some(Self { address, prefix, scope })
    }
}

/// `ifconfig NAME`.
pub fn ifconfig(interface: &Interface, inet6: &[Inet6]) -> String {
    let flags = interface.flags & 0xffff;
    let words: Vec<&str> = FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, word)| *word).collect();
    let words = if words.is_empty() { "NO FLAGS".to_owned() } else { words.join(",") };
    let mut out = format!("{}: flags={flags}<{words}>  mtu {}\n", interface.name, interface.mtu);
    let labelled = |label: &Option<String>| label.as_deref() == Some(interface.name.as_str());
    if let Some(address) = interface.addresses.iter().find(|address| labelled(&address.label)) {
        let mask = Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(address.prefix.min(32))).unwrap_or(0));
        let _ = write!(out, "        inet {}  netmask {mask}", address.local);
        if flags & 0x2 != 0 {
            let broadcast = address.broadcast.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            let _ = write!(out, "  broadcast {broadcast}");
        }
        out.push('\n');
    }
    for Inet6 { address, prefix, scope } in inet6 {
        let word = match scope & 0xf0 {
            0 => "global",
            0x10 => "host",
            0x20 => "link",
            0x40 => "site",
            0x80 => "compat",
            _ => "unknown",
        };
        let _ = writeln!(out, "        inet6 {address}  prefixlen {prefix}  scopeid 0x{scope:x}<{word}>");
    }
    let c = &interface.counters;
    let kind = if interface.kind == 772 { "loop" } else { "unspec" };
    let title = if interface.kind == 772 { "Local Loopback" } else { "UNSPEC" };
    let _ = writeln!(out, "        {kind}  txqueuelen {}  ({title})", interface.queue_packets);
    // The sums are those of /proc/net/dev.
    let missed = c.rx_dropped.saturating_add(c.rx_missed_errors);
    let frame = [c.rx_length_errors, c.rx_over_errors, c.rx_crc_errors, c.rx_frame_errors];
    let frame = frame.into_iter().fold(0, u64::saturating_add);
    let carrier = [c.tx_carrier_errors, c.tx_aborted_errors, c.tx_window_errors, c.tx_heartbeat_errors];
    let carrier = carrier.into_iter().fold(0, u64::saturating_add);
    let _ = writeln!(out, "        RX packets {}  bytes {} ({})", c.rx_packets, c.rx_bytes, size(c.rx_bytes));
    let _ = writeln!(
        out,
        "        RX errors {}  dropped {missed}  overruns {}  frame {frame}",
        c.rx_errors, c.rx_fifo_errors
    );
    let _ = writeln!(out, "        TX packets {}  bytes {} ({})", c.tx_packets, c.tx_bytes, size(c.tx_bytes));
    let _ = writeln!(
        out,
        "        TX errors {}  dropped {} overruns {}  carrier {carrier}  collisions {}\n",
        c.tx_errors, c.tx_dropped, c.tx_fifo_errors, c.collisions
    );
    out
}

/// A number of bytes with one digit after the point, cut and not rounded, as net-tools does it.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 5] = [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let (unit, bits) = UNITS.into_iter().find(|(_, bits)| bytes > 1 << bits).unwrap_or(("B", 0));
    let tenths = (u128::from(bytes) * 10) >> bits;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_cut_and_1024_is_still_bytes() {
        for (bytes, text) in [(0, "0.0 B"), (1024, "1024.0 B"), (1025, "1.0 KiB"), (3193, "3.1 KiB")] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "16383.9 PiB");
    }

    #[test]
    fn a_line_of_if_inet6() {
        let line = "00000000000000000000000000000001 01 80 10 80       lo";
        let one = Inet6 { address: Ipv6Addr::LOCALHOST, prefix: 128, scope: 16 };
        assert_eq!(Inet6::parse(line, "lo"), Some(one));
        assert_eq!(Inet6::parse(line, "eth0"), None);
        assert_eq!(Inet6::parse("zz", "lo"), None);
    }
}
