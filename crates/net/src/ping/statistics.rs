//! The closing lines of ping: counts and times, as iputils prints them.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::Duration;

use super::Reply;

/// What came of all requests so far.
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    /// Requests sent.
    pub transmitted: u64,
    /// Requests answered.
    pub received: u64,
    /// Replies beyond the first.
    pub duplicates: u64,
    /// Errors reported.
    pub errors: u64,
    answered: HashSet<u16>,
    times_us: Option<Times>,
}

/// Microseconds, as iputils keeps them.
#[derive(Debug, Clone, Copy)]
struct Times {
    min: u64,
    max: u64,
    sum: u64,
    squares: u128,
    count: u64,
    /// An average in which each time weighs an eighth, times eight.
    ewma8: u64,
}

impl Statistics {
    /// Counts a request: its number may be used again.
    pub fn sent(&mut self, sequence: u16) {
        self.transmitted += 1;
        self.answered.remove(&sequence);
    }

    /// Counts a reply; says whether it is the first to its request.
    pub fn reply(&mut self, reply: &Reply) -> bool {
        let first = self.answered.insert(reply.sequence);
        if first {
            self.received += 1;
        } else {
            self.duplicates += 1;
        }
        if let Some(time) = reply.time {
            let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            let zero = Times { min: us, max: us, sum: 0, squares: 0, count: 0, ewma8: us.saturating_mul(8) };
            let times = self.times_us.get_or_insert(zero);
            times.min = times.min.min(us);
            times.max = times.max.max(us);
            times.sum = times.sum.saturating_add(us);
            times.squares = times.squares.saturating_add(u128::from(us) * u128::from(us));
            times.count += 1;
            times.ewma8 = times.ewma8.saturating_add(us).saturating_sub(times.ewma8 / 8);
        }
        first
    }

    /// The longest time.
    pub fn time_max(&self) -> Option<Duration> {
        self.times_us.map(|times| Duration::from_micros(times.max))
    }

    /// The closing lines. `elapsed`: from the first request to the last event. `pace`: whether requests were sent as
    /// fast as replies came.
    pub fn summary(&self, target: &str, elapsed: Duration, pace: bool) -> String {
        let mut out = format!(
            "--- {target} ping statistics ---\n{} packets transmitted, {} received",
            self.transmitted, self.received
        );
        if self.duplicates > 0 {
            let _ = write!(out, ", +{} duplicates", self.duplicates);
        }
        if self.errors > 0 {
            let _ = write!(out, ", +{} errors", self.errors);
        }
        if self.transmitted > 0 {
            let lost = self.transmitted.saturating_sub(self.received);
            let percent = significant(lost as f64 * 100.0 / self.transmitted as f64);
            let _ = write!(out, ", {percent}% packet loss, time {}ms", elapsed.as_millis());
        }
        out.push('\n');
        let Some(times) = self.times_us else {
            out.push('\n');
            return out;
        };
        let mean = times.sum / times.count.max(1);
        let variance = (times.squares / u128::from(times.count.max(1))).saturating_sub(u128::from(mean).pow(2));
        let deviation = u64::try_from(variance.isqrt()).unwrap_or(u64::MAX);
        let ms = |us: u64| format!("{}.{:03}", us / 1000, us % 1000);
        let _ =
            write!(out, "rtt min/avg/max/mdev = {}/{}/{}/{} ms", ms(times.min), ms(mean), ms(times.max), ms(deviation));
        if pace && self.transmitted > 1 {
            let gap = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX) / (self.transmitted - 1);
            let _ = write!(out, ", ipg/ewma {}/{} ms", ms(gap), ms(times.ewma8 / 8));
        }
        out.push('\n');
        out
    }
}

/// A number as C's `%g` prints it, from 0 to 100: six digits, zeroes at the end left out.
fn significant(number: f64) -> String {
    let before_point = if number >= 1.0 { number.log10().floor() as usize + 1 } else { 1 };
    let text = format!("{number:.*}", 6usize.saturating_sub(before_point));
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// The time of one reply in milliseconds, with the digits that iputils shows.
pub(super) fn milliseconds(time: Duration) -> String {
    let us = time.as_micros();
    match us {
        100_000.. => format!("{}", (us + 500) / 1000),
        10_000.. => format!("{}.{}", (us + 50) / 1000, (us + 50) % 1000 / 100),
        1000.. => format!("{}.{:02}", (us + 5) / 1000, (us + 5) % 1000 / 10),
        _ => format!("0.{us:03}"),
    }
}

impl Reply {
    /// What ping says of it, without `(DUP!)`.
    pub fn line(&self, from: &str) -> String {
        let mut out = format!("{} bytes from {from}: icmp_seq={}", self.bytes, self.sequence);
        if let Some(hops) = self.hops_left {
            let _ = write!(out, " ttl={hops}");
        }
        if let Some(time) = self.time {
            let _ = write!(out, " time={} ms", milliseconds(time));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_of_iputils() {
        for (us, text) in
            [(20, "0.020"), (1234, "1.23"), (1236, "1.24"), (12_345, "12.3"), (99_951, "100.0"), (123_456, "123")]
        {
            assert_eq!(milliseconds(Duration::from_micros(us)), text);
        }
        for (number, text) in
            [(0.0, "0"), (100.0, "100"), (100.0 / 3.0, "33.3333"), (0.5, "0.5"), (1.0 / 3.0, "0.33333"), (50.0, "50")]
        {
            assert_eq!(significant(number), text);
        }
    }

    #[test]
    fn the_summary_counts_and_measures() {
        let mut statistics = Statistics::default();
        let reply =
            |sequence, us| Reply { sequence, bytes: 64, hops_left: Some(64), time: Some(Duration::from_micros(us)) };
        for sequence in 1..=3 {
            statistics.sent(sequence);
        }
        assert!(statistics.reply(&reply(1, 1000)) && statistics.reply(&reply(2, 3000)));
        assert!(!statistics.reply(&reply(2, 2000)));
        let text = statistics.summary("lo", Duration::from_millis(7), false);
        assert_eq!(
            text,
            "--- lo ping statistics ---\n\
             3 packets transmitted, 2 received, +1 duplicates, 33.3333% packet loss, time 7ms\n\
             rtt min/avg/max/mdev = 1.000/2.000/3.000/0.816 ms\n"
        );
        assert_eq!(reply(2, 2000).line("127.0.0.1"), "64 bytes from 127.0.0.1: icmp_seq=2 ttl=64 time=2.00 ms");
    }
}
