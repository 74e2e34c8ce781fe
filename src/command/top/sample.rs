//! One look at everything: counters of now, less those of the last look.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use block::Result;
use export::counters::{self, Counted};
use export::loop_device;
use export::registry::Registry;
use net::driver::{Request, ask};
use serde::Serialize;

/// Bytes of a sector in /sys/block/…/stat, whatever the device's own are.
const SECTOR_BYTES: u64 = 512;

/// A moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sample {
    /// Seconds since 1970.
    pub time: f64,
    /// Seconds that the rates are of.
    pub seconds: f64,
    /// All that is held.
    pub items: Vec<Item>,
}

/// One thing, a second of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Item {
    /// `disk`, `mount`, `loop`, `nbd`, `link`, `sound`.
    pub kind: String,
    /// Where it is.
    pub name: String,
    /// The process that serves it.
    pub pid: Option<i32>,
    /// Bytes read a second.
    pub read_bytes: f64,
    /// Bytes written a second.
    pub written_bytes: f64,
    /// Operations a second; of a link, packets; of sound, frames.
    pub operations: f64,
    /// Nanoseconds that half of the operations did not exceed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_p50_ns: Option<u64>,
    /// Nanoseconds that 99 of 100 operations did not exceed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_p99_ns: Option<u64>,
    /// Of a link: packets lost a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<f64>,
    /// Of sound: the loudest sample, dB of full scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_db: Option<f64>,
    /// Of a server: clients at this moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clients: Option<u64>,
}

/// Counters of one thing, since it began.
#[derive(Debug, Clone, Default)]
struct Total {
    counted: Counted,
    pid: Option<i32>,
    lost: Option<u64>,
    /// Milliseconds of all operations together, where that is all that is known.
    total_ms: Option<u64>,
}

/// Remembers the last look.
pub struct Sampler {
    registry: Registry,
    last: HashMap<(String, String, Option<i32>), Total>,
    at: Instant,
}

impl Sampler {
    /// Takes the first look.
    ///
    /// # Errors
    /// That of the registry.
    pub fn new() -> Result<Self> {
        let mut sampler = Self { registry: Registry::of_user()?, last: HashMap::new(), at: Instant::now() };
        sampler.next()?;
        Ok(sampler)
    }

    /// Looks again.
    ///
    /// # Errors
    /// That of the registry.
    pub fn next(&mut self) -> Result<Sample> {
        let totals = self.totals()?;
        let now = Instant::now();
        let seconds = now.duration_since(self.at).max(Duration::from_micros(1)).as_secs_f64();
        self.at = now;
        let mut next = HashMap::new();
        let mut items = Vec::new();
        for total in totals {
            let key = (total.counted.kind.clone(), total.counted.name.clone(), total.pid);
            items.push(item(&total, self.last.get(&key).unwrap_or(&Total::default()), seconds));
            next.insert(key, total);
        }
        self.last = next;
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Ok(Sample { time, seconds, items })
    }

    fn totals(&self) -> Result<Vec<Total>> {
        let mut totals: Vec<Total> =
            loop_device::list().unwrap_or_default().iter().filter_map(of_loop_device).collect();
        for holding in self.registry.list()?.iter().filter(|holding| holding.pid > 0) {
            let counted = counters::ask(&self.registry.stats(holding.number)).unwrap_or_default();
            totals.extend(counted.into_iter().map(|counted| Total {
                counted,
                pid: Some(holding.pid),
                ..Total::default()
            }));
        }
        for process in self.registry.processes()? {
            let pid = Some(process.pid);
            let counted = counters::ask(&self.registry.stats_of_process(process.pid)).unwrap_or_default();
            totals.extend(counted.into_iter().map(|counted| Total { counted, pid, ..Total::default() }));
            if process.link {
                totals.extend(of_link(process.pid));
            }
        }
        Ok(totals)
    }
}

/// /sys/block/loopN/stat, by the kernel's Documentation/block/stat.rst: reads, merged, sectors, ms, writes, …
fn of_loop_device(status: &loop_device::Status) -> Option<Total> {
    let device = status.device();
    let text = std::fs::read_to_string(format!("/sys/block/loop{}/stat", device.number)).ok()?;
    let numbers: Vec<u64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let number = |at: usize| numbers.get(at).copied();
    let counted = Counted {
        kind: "loop".to_owned(),
        name: device.path().display().to_string(),
        reads: number(0)?,
        read_bytes: number(2)?.saturating_mul(SECTOR_BYTES),
        writes: number(4)?,
        written_bytes: number(6)?.saturating_mul(SECTOR_BYTES),
        ..Counted::default()
    };
    Some(Total { counted, total_ms: Some(number(3)?.saturating_add(number(7)?)), ..Total::default() })
}

/// What a link says of itself: its last line is `received N delivered N lost N overflowed N …`.
fn of_link(pid: i32) -> Option<Total> {
    let path = crate::command::link::socket(u32::try_from(pid).ok()?).ok()?;
    let said = ask(&path, &Request::Show).ok()?;
    let words: Vec<&str> = said.lines().next_back()?.split_whitespace().collect();
    let value = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1)?.parse::<u64>().ok()
    };
    let counted =
        Counted { kind: "link".to_owned(), name: "lo".to_owned(), others: value("received")?, ..Counted::default() };
    let lost = value("lost")?.saturating_add(value("overflowed").unwrap_or(0));
    Some(Total { counted, pid: Some(pid), lost: Some(lost), total_ms: None })
}

fn item(now: &Total, last: &Total, seconds: f64) -> Item {
    let (new, old) = (&now.counted, &last.counted);
    let rate = |now: u64, last: u64| now.saturating_sub(last) as f64 / seconds;
    let operations = |counted: &Counted| counted.reads.saturating_add(counted.writes).saturating_add(counted.others);
    let latencies: Vec<u64> = new
        .latencies
        .iter()
        .enumerate()
        .map(|(at, count)| count.saturating_sub(old.latencies.get(at).copied().unwrap_or(0)))
        .collect();
    let average = now.total_ms.zip(last.total_ms).and_then(|(now_ms, last_ms)| {
        let count = operations(new).saturating_sub(operations(old));
        now_ms.saturating_sub(last_ms).saturating_mul(1_000_000).checked_div(count)
    });
    Item {
        kind: new.kind.clone(),
        name: new.name.clone(),
        pid: now.pid,
        read_bytes: rate(new.read_bytes, old.read_bytes),
        written_bytes: rate(new.written_bytes, old.written_bytes),
        operations: rate(operations(new), operations(old)),
        latency_p50_ns: quantile(&latencies, 500).or(average),
        latency_p99_ns: quantile(&latencies, 990),
        lost: now.lost.map(|lost| rate(lost, last.lost.unwrap_or(0))),
        peak_db: new.peak_db,
        clients: new.clients,
    }
}

/// Nanoseconds that so many of a thousand did not exceed, to the next power of two; `None` of none.
fn quantile(latencies: &[u64], per_mille: u64) -> Option<u64> {
    let all: u64 = latencies.iter().sum();
    let wanted = all.saturating_mul(per_mille).div_ceil(1000).max(1);
    let mut seen = 0_u64;
    let digits = latencies.iter().position(|count| {
        seen = seen.saturating_add(*count);
        seen >= wanted
    })?;
    Some(1_u64.checked_shl(u32::try_from(digits).ok()?).map_or(u64::MAX, |above| above - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_what_came_between_two_looks() {
        let total = |reads, bucket| {
            let mut latencies = vec![0; 65];
            latencies[10] = bucket;
            latencies[20] = 1;
            let counted = Counted { reads, read_bytes: reads * 4096, latencies, ..Counted::default() };
            Total { counted, lost: Some(reads), ..Total::default() }
        };
        let item = item(&total(300, 299), &total(100, 99), 2.0);
        assert!((item.operations - 100.0).abs() < 1e-9 && (item.read_bytes - 409_600.0).abs() < 1e-9);
        assert_eq!((item.latency_p50_ns, item.latency_p99_ns), (Some(1023), Some(1023)));
        assert!(item.lost.is_some_and(|lost| (lost - 100.0).abs() < 1e-9));
        assert_eq!(quantile(&[0; 65], 500), None);
        assert_eq!(quantile(&[0, 0, 1, 99], 10), Some(3));
    }
}
