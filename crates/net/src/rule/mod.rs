//! What is done to packets, in netem's words and with netem's meaning, and to which of them.
//!
//! ```text
//! to 127.0.0.5 port 5432: latency 80ms jitter 5ms 25% distribution normal loss 2%
//! └────── match ───────┘  └─────────────────── settings ───────────────────────┘
//! ```

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::packet::Headers;

mod loss;
mod parse;
mod random;

pub use loss::{Loss, State};
pub use parse::{duration, percent, rate};
pub use random::{Chance, Correlated, Distribution, Random};

/// The packets that wait at a time, unless a rule says otherwise; netem's number.
pub const LIMIT_DEFAULT: usize = 1000;
/// The most that a rule may ask for.
pub const LIMIT_MAX: usize = 1 << 20;

/// What is done to packets.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// None gets through.
    pub block: bool,
    /// How long each is on its way.
    pub latency: Duration,
    /// How much that varies.
    pub jitter: Duration,
    /// How each delay follows the one before.
    pub jitter_draw: Correlated,
    /// How it is spread.
    pub distribution: Distribution,
    /// Which are lost.
    pub loss: Option<Loss>,
    /// Which come twice.
    pub duplicate: Chance,
    /// Which have one bit turned.
    pub corrupt: Chance,
    /// Which are sent at once, before those that wait.
    pub reorder: Chance,
    /// Every which one may be reordered.
    pub gap: u32,
    /// Bits a second.
    pub rate: Option<u64>,
    /// Packets that may wait.
    pub limit: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            block: false,
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            jitter_draw: Correlated::default(),
            distribution: Distribution::default(),
            loss: None,
            duplicate: Chance::default(),
            corrupt: Chance::default(),
            reorder: Chance::default(),
            gap: 1,
            rate: None,
            limit: LIMIT_DEFAULT,
        }
    }
}

/// Which packets a rule is for: those for which all that is said is true.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// The source, and how many of its bits count.
    pub from: Option<(IpAddr, u8)>,
    /// The destination, and how many of its bits count.
    pub to: Option<(IpAddr, u8)>,
    /// Source or destination port.
    pub port: Option<u16>,
    /// Source port.
    pub from_port: Option<u16>,
    /// Destination port.
    pub to_port: Option<u16>,
    /// `tcp`, `udp`, `icmp` (of both families).
    pub protocol: Option<Protocol>,
    /// `ipv4` or `ipv6`.
    pub ipv6: Option<bool>,
}

/// A protocol that a rule can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

impl Match {
    /// Whether a packet is meant.
    pub fn meets(&self, headers: &Headers) -> bool {
        let within = |net: Option<(IpAddr, u8)>, address| net.is_none_or(|(net, bits)| contains(net, bits, address));
        let port = |wanted: Option<u16>, found: &dyn Fn((u16, u16), u16) -> bool| {
            wanted.is_none_or(|wanted| headers.ports.is_some_and(|ports| found(ports, wanted)))
        };
        within(self.from, headers.from)
            && within(self.to, headers.to)
            && port(self.port, &|(from, to), wanted| from == wanted || to == wanted)
            && port(self.from_port, &|(from, _), wanted| from == wanted)
            && port(self.to_port, &|(_, to), wanted| to == wanted)
            && self.ipv6.is_none_or(|six| six == headers.from.is_ipv6())
            && self.protocol.is_none_or(|protocol| match protocol {
                Protocol::Tcp => headers.protocol == crate::packet::TCP,
                Protocol::Udp => headers.protocol == crate::packet::UDP,
                Protocol::Icmp => matches!(headers.protocol, crate::packet::ICMP | crate::packet::ICMPV6),
            })
    }
}

fn contains(net: IpAddr, bits: u8, address: IpAddr) -> bool {
    match (net, address) {
        (IpAddr::V4(net), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32u32.saturating_sub(bits.into())).unwrap_or(0);
            net.to_bits() & mask == address.to_bits() & mask
        }
        (IpAddr::V6(net), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128u32.saturating_sub(bits.into())).unwrap_or(0);
            net.to_bits() & mask == address.to_bits() & mask
        }
        _ => false,
    }
}

/// A match and its settings. The first rule that a packet meets is its rule.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rule {
    /// For which packets.
    pub of: Match,
    /// What is done to them.
    pub settings: Settings,
    text: String,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
