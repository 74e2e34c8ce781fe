//! Rules as they are typed.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use super::{Chance, Correlated, Distribution, LIMIT_MAX, Loss, Match, Protocol, Rule, Settings, State};
use crate::{Error, Kind, Result};

/// The longest latency.
const LATENCY_MAX: Duration = Duration::from_secs(3600);

fn wrong(what: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, what.into())
}

/// A number and a unit: `1.5ms`.
fn number(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let number: f64 = digits.parse().ok()?;
    number.is_finite().then_some((number, unit))
}

/// `20ms`, `1.5s`, `100us`.
///
/// # Errors
/// [`Kind::Invalid`] for another word, and for more than an hour.
pub fn duration(text: &str) -> Result<Duration> {
    let error = || wrong(format!("no time from 0s to {}s: {text:?} (20ms, 1.5s, 100us)", LATENCY_MAX.as_secs()));
    let (number, unit) = number(text).ok_or_else(error)?;
    let seconds = match unit {
        "s" | "sec" | "secs" => number,
        "ms" | "msec" | "msecs" => number / 1e3,
        "us" | "usec" | "usecs" => number / 1e6,
        "ns" => number / 1e9,
        _ => return Err(error()),
    };
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| error())?;
    if duration > LATENCY_MAX { Err(error()) } else { Ok(duration) }
}

/// `1%`: from 0 to 1.
///
/// # Errors
/// [`Kind::Invalid`] for another word, and for more than 100%.
pub fn percent(text: &str) -> Result<f64> {
    match number(text) {
        Some((number, "%")) if (0.0..=100.0).contains(&number) => Ok(number / 100.0),
        _ => Err(wrong(format!("no share from 0% to 100%: {text:?}"))),
    }
}

/// `10mbit`, in bits a second; `bps` and its multiples are bytes, as with tc.
///
/// # Errors
/// [`Kind::Invalid`] for another word, for 0, and for more than 10 Tbit/s.
pub fn rate(text: &str) -> Result<u64> {
    let error = || wrong(format!("no rate: {text:?} (10mbit, 1gbit, 500kbit)"));
    let (number, unit) = number(text).ok_or_else(error)?;
    let unit = unit.to_ascii_lowercase();
    let (prefix, bits) = match (unit.strip_suffix("bit"), unit.strip_suffix("bps")) {
        (Some(prefix), _) => (prefix, 1.0),
        (None, Some(prefix)) => (prefix, 8.0),
        (None, None) if unit.is_empty() => ("", 1.0),
        (None, None) => return Err(error()),
    };
    let factor = match prefix {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "t" => 1e12,
        "ki" => 1024.0,
        "mi" => 1024.0 * 1024.0,
        "gi" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(error()),
    };
    let rate = number * bits * factor;
    if (1.0..=1e13).contains(&rate) { Ok(rate as u64) } else { Err(error()) }
}

/// Words with a look at the next.
struct Words<'a>(std::iter::Peekable<std::str::SplitWhitespace<'a>>);

impl<'a> Words<'a> {
    fn new(text: &'a str) -> Self {
        Self(text.split_whitespace().peekable())
    }

    fn value(&mut self, of: &str) -> Result<&'a str> {
        self.0.next().ok_or_else(|| wrong(format!("nothing after `{of}`")))
    }

    /// The next word, if it is a share.
    fn share(&mut self) -> Result<Option<f64>> {
        self.0.next_if(|word| word.ends_with('%')).map(percent).transpose()
    }

    fn chance(&mut self, of: &str) -> Result<Chance> {
        let probability = percent(self.value(of)?)?;
        Ok(Chance { probability, draw: Correlated::new(self.share()?.unwrap_or(0.0)) })
    }
}

impl FromStr for Settings {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut settings = Self::default();
        let mut words = Words::new(text);
        while let Some(word) = words.0.next() {
            match word {
                "block" => settings.block = true,
                "latency" | "delay" => settings.latency = duration(words.value(word)?)?,
                "jitter" => {
                    settings.jitter = duration(words.value(word)?)?;
                    settings.jitter_draw = Correlated::new(words.share()?.unwrap_or(0.0));
                }
                "distribution" => {
                    let name = words.value(word)?;
                    settings.distribution =
                        [Distribution::Uniform, Distribution::Normal, Distribution::Pareto, Distribution::ParetoNormal]
                            .into_iter()
                            .find(|distribution| distribution.word() == name)
                            .ok_or_else(|| {
                                wrong(format!("no distribution: {name:?} (uniform, normal, pareto, paretonormal)"))
                            })?;
                }
                "loss" => settings.loss = Some(loss(&mut words)?),
                "duplicate" => settings.duplicate = words.chance(word)?,
                "corrupt" => settings.corrupt = words.chance(word)?,
                "reorder" => settings.reorder = words.chance(word)?,
                "gap" => {
                    let value = words.value(word)?;
                    settings.gap = value.parse().map_err(|_| wrong(format!("no number: {value:?}")))?;
                }
                "rate" => settings.rate = Some(rate(words.value(word)?)?),
                "limit" => {
                    let value = words.value(word)?;
                    settings.limit = value
                        .parse()
                        .ok()
                        .filter(|limit| (1..=LIMIT_MAX).contains(limit))
                        .ok_or_else(|| wrong(format!("no number of packets from 1 to {LIMIT_MAX}: {value:?}")))?;
                }
                _ => return Err(wrong(format!("not a word of the link: {word:?}"))),
            }
        }
        if settings.reorder.probability > 0.0 && settings.latency.is_zero() {
            return Err(wrong("reorder without latency: there is nothing to overtake"));
        }
        Ok(settings)
    }
}

fn loss(words: &mut Words<'_>) -> Result<Loss> {
    let next = |words: &mut Words<'_>, otherwise: f64| Ok::<_, Error>(words.share()?.unwrap_or(otherwise));
    match words.0.next_if(|word| matches!(*word, "state" | "gemodel" | "random")) {
        Some("state") => {
            let p13 = percent(words.value("loss state")?)?;
            let p31 = next(words, 1.0 - p13)?;
            let (p32, p23, p14) = (next(words, 0.0)?, next(words, 1.0)?, next(words, 0.0)?);
            Ok(Loss::State { p13, p31, p32, p23, p14, at: State::Good })
        }
        Some("gemodel") => {
            let p = percent(words.value("loss gemodel")?)?;
            let (r, loss_bad, loss_good) = (next(words, 1.0 - p)?, next(words, 1.0)?, next(words, 0.0)?);
            Ok(Loss::Gemodel { p, r, loss_bad, loss_good, bad: false })
        }
        _ => Ok(Loss::Random(words.chance("loss")?)),
    }
}

impl FromStr for Match {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut of = Self::default();
        let mut words = Words::new(text);
        while let Some(word) = words.0.next() {
            match word {
                "from" => of.from = Some(network(words.value(word)?)?),
                "to" => of.to = Some(network(words.value(word)?)?),
                "port" => of.port = Some(port(words.value(word)?)?),
                "from-port" => of.from_port = Some(port(words.value(word)?)?),
                "to-port" => of.to_port = Some(port(words.value(word)?)?),
                "tcp" => of.protocol = Some(Protocol::Tcp),
                "udp" => of.protocol = Some(Protocol::Udp),
                "icmp" => of.protocol = Some(Protocol::Icmp),
                "ipv4" => of.ipv6 = Some(false),
                "ipv6" => of.ipv6 = Some(true),
                _ => return Err(wrong(format!("not a word of a match: {word:?}"))),
            }
        }
        Ok(of)
    }
}

fn port(text: &str) -> Result<u16> {
    text.parse().map_err(|_| wrong(format!("no port: {text:?}")))
}

fn network(text: &str) -> Result<(IpAddr, u8)> {
    let error = || wrong(format!("no address: {text:?}"));
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address: IpAddr = address.parse().map_err(|_| error())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| error()))?;
    if bits > most { Err(error()) } else { Ok((address, bits)) }
}

impl FromStr for Rule {
    type Err = Error;

    /// `MATCH: SETTINGS`; without `: `, settings for all packets. `MATCH:` lets those packets alone.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let (of, settings) = match text.split_once(": ").or_else(|| Some((text.strip_suffix(':')?, ""))) {
            Some((of, settings)) => (of.parse()?, settings),
            None => (Match::default(), text),
        };
        Ok(Self { of, settings: settings.parse()?, text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_read() {
        let text =
            "to 127.0.0.5 port 5432: latency 80ms jitter 5ms 25% distribution normal loss 2% rate 10mbit limit 5";
        let rule: Rule = text.parse().unwrap();
        assert_eq!(rule.of.to, Some(("127.0.0.5".parse().unwrap(), 32)));
        assert_eq!(rule.of.port, Some(5432));
        let settings = &rule.settings;
        assert_eq!((settings.latency.as_millis(), settings.jitter.as_millis()), (80, 5));
        assert_eq!((settings.rate, settings.limit), (Some(10_000_000), 5));
        assert_eq!(settings.distribution, Distribution::Normal);
        assert_eq!(settings.loss, Some(Loss::Random(Chance { probability: 0.02, draw: Correlated::new(0.0) })));
        assert_eq!(rule.to_string(), text);
        let six: Rule = "from ::1/64 tcp ipv6: block".parse().unwrap();
        assert!(six.settings.block && six.of.from == Some(("::1".parse().unwrap(), 64)));
        let chain: Settings = "loss gemodel 1% 10% 70% 0.1%".parse().unwrap();
        assert!(matches!(chain.loss, Some(Loss::Gemodel { bad: false, .. })));
    }

    #[test]
    fn a_rule_without_settings_is_what_it_shows() {
        for text in ["udp: ", " : ", "udp:"] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(rule.settings, Settings::default());
            assert_eq!(rule.to_string().parse::<Rule>().unwrap(), rule);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, said) in [
            ("latency", "nothing after `latency`"),
            ("latency 20", "no time"),
            ("latency 2h", "no time"),
            ("latency 99999s", "no time"),
            ("loss 101%", "no share"),
            ("loss 1", "no share"),
            ("rate 0mbit", "no rate"),
            ("rate 10mb", "no rate"),
            ("limit 0", "no number of packets"),
            ("distribution x", "no distribution"),
            ("reorder 25%", "without latency"),
            ("slow", "not a word of the link"),
            ("to nowhere: block", "no address"),
            ("to 1.2.3.4/33: block", "no address"),
            ("port 99999: block", "no port"),
        ] {
            let error = text.parse::<Rule>().unwrap_err();
            assert!(error.to_string().contains(said), "{text}: {error}");
        }
        assert_eq!(rate("1mbps").unwrap(), 8_000_000);
        assert_eq!(duration("1.5ms").unwrap(), Duration::from_micros(1500));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_rule_or_an_error(text in "(to|from|port|latency|loss|state|rate|[0-9.]{1,9}(ms|%|mbit)?|: | ){0,12}") {
            let _ = text.parse::<Rule>();
        }
    }
}
