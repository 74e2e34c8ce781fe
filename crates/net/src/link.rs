//! The link: packets go in, and come out later, twice, changed, or not at all. Pure: time and seed are parameters.
//!
//! The order of the steps is netem's: duplicate and loss are drawn first (one of each leaves one packet), then one bit
//! may be turned, then the limit is looked at, then the delay is drawn, or the packet overtakes those that wait.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::packet::Headers;
use crate::rule::{Random, Rule};

/// A moment: the time since some start.
pub type Moment = Duration;

/// What became of the packets so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Went in.
    pub received: u64,
    /// Came out, copies too.
    pub delivered: u64,
    /// Lost by a rule, blocked ones too.
    pub lost: u64,
    /// Lost because more waited than the limit allows.
    pub overflowed: u64,
    /// Came twice.
    pub duplicated: u64,
    /// Had a bit turned.
    pub corrupted: u64,
    /// Overtook others.
    pub reordered: u64,
}

/// A packet that comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery<T> {
    /// What went in.
    pub item: T,
    /// Whether it is the second of two.
    pub copy: bool,
    /// The bit to turn, counted from the first of the packet.
    pub corrupt_bit: Option<u64>,
    /// When it was due.
    pub due: Moment,
}

/// How a packet will come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// How often: once or twice.
    pub times: u8,
    /// Whether a bit of it will be turned.
    pub changed: bool,
}

/// Why a packet does not come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// A rule lost it, or blocks it.
    Lost,
    /// More wait than the limit allows.
    Overflow,
}

#[derive(Debug)]
struct Waiting<T> {
    /// Nanoseconds, and the order of arrival among the same.
    key: (i128, i64),
    rule: Option<usize>,
    delivery: Delivery<T>,
}

impl<T> PartialEq for Waiting<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<T> Eq for Waiting<T> {}

impl<T> PartialOrd for Waiting<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Waiting<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

#[derive(Debug)]
struct State {
    rule: Rule,
    waiting: usize,
    /// Packets since the last that overtook.
    counter: u32,
    /// When the last packet that waits leaves, nanoseconds.
    last: i128,
}

/// A link with its rules and what waits in it.
#[derive(Debug)]
pub struct Link<T> {
    states: Vec<State>,
    /// Counts the changes of rules: what waits under old ones is not counted under new ones.
    generation_start: i64,
    waiting: BinaryHeap<Reverse<Waiting<T>>>,
    random: Random,
    arrivals: i64,
    counts: Counts,
}

impl<T: Copy> Link<T> {
    /// A link. The first rule that a packet meets is its rule; one that meets none passes at once.
    pub fn new(rules: Vec<Rule>, seed: u64) -> Self {
        let mut link = Self {
            states: Vec::new(),
            generation_start: 0,
            waiting: BinaryHeap::new(),
            random: Random::new(seed),
            arrivals: 0,
            counts: Counts::default(),
        };
        link.set_rules(rules);
        link
    }

    /// Other rules from now on; what waits comes out when it was to.
    pub fn set_rules(&mut self, rules: Vec<Rule>) {
        self.states = rules.into_iter().map(|rule| State { rule, waiting: 0, counter: 0, last: i128::MIN }).collect();
        self.generation_start = self.arrivals;
    }

    /// The rules.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.states.iter().map(|state| &state.rule)
    }

    /// What became of the packets so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A packet of `bytes` goes in at `now`; says how often it comes out, and whether as it is.
    ///
    /// # Errors
    /// Why it does not come out; then `item` is not returned by [`Link::pop`] either.
    pub fn push(
        &mut self,
        item: T,
        headers: Option<&Headers>,
        bytes: usize,
        now: Moment,
    ) -> std::result::Result<Passed, Dropped> {
        self.counts.received += 1;
        let now = nanoseconds(now);
        let meets = |state: &State| match headers {
            Some(headers) => state.rule.of.meets(headers),
            None => state.rule.of == Default::default(),
        };
        let Some(number) = self.states.iter().position(meets) else {
            self.wait(None, now, item, false, None);
            return Ok(Passed { times: 1, changed: false });
        };
        let Some(state) = self.states.get_mut(number) else { return Err(Dropped::Lost) };
        let (settings, random) = (&mut state.rule.settings, &mut self.random);
        let mut count = 1;
        if settings.duplicate.happens(random) {
            count += 1;
        }
        if settings.block || settings.loss.as_mut().is_some_and(|loss| loss.happens(random)) {
            count = if settings.block { 0 } else { count - 1 };
        }
        if count == 0 {
            self.counts.lost += 1;
            return Err(Dropped::Lost);
        }
        let corrupt = settings.corrupt.happens(random).then(|| random.below(bytes as u64 * 8));
        let mut passed = 0u8;
        for copy in [false, true].into_iter().take(count) {
            let Some(state) = self.states.get_mut(number) else { break };
            if state.waiting >= state.rule.settings.limit {
                break;
            }
            state.waiting += 1;
            let due = due(state, bytes, now, &mut self.random, &mut self.counts);
            // The copy is whole: netem copies before it turns bits.
            self.wait(Some(number), due, item, copy, corrupt.filter(|_| !copy));
            passed += 1;
        }
        if passed == 0 {
            self.counts.overflowed += 1;
            return Err(Dropped::Overflow);
        }
        self.counts.duplicated += u64::from(passed == 2);
        self.counts.corrupted += u64::from(corrupt.is_some());
        Ok(Passed { times: passed, changed: corrupt.is_some() })
    }

    fn wait(&mut self, rule: Option<usize>, due: i128, item: T, copy: bool, corrupt_bit: Option<u64>) {
        self.arrivals += 1;
        let moment = Duration::from_nanos(u64::try_from(due).unwrap_or(0));
        let delivery = Delivery { item, copy, corrupt_bit, due: moment };
        self.waiting.push(Reverse(Waiting { key: (due, self.arrivals), rule, delivery }));
    }

    /// When the next packet is due; the past means now.
    pub fn next_due(&self) -> Option<Moment> {
        self.waiting.peek().map(|Reverse(waiting)| waiting.delivery.due)
    }

    /// The next packet that is due at `now`.
    pub fn pop(&mut self, now: Moment) -> Option<Delivery<T>> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse(waiting) = self.waiting.pop()?;
        self.counts.delivered += 1;
        let current = waiting.key.1 > self.generation_start;
        if let Some(state) = waiting.rule.filter(|_| current).and_then(|number| self.states.get_mut(number)) {
            state.waiting = state.waiting.saturating_sub(1);
        }
        Some(waiting.delivery)
    }
}

fn nanoseconds(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}

/// When a packet that is let in leaves.
fn due(state: &mut State, bytes: usize, now: i128, random: &mut Random, counts: &mut Counts) -> i128 {
    let settings = &mut state.rule.settings;
    let overtakes = settings.reorder.probability > 0.0
        && state.counter >= settings.gap.saturating_sub(1)
        && settings.reorder.happens(random);
    if overtakes {
        state.counter = 0;
        counts.reordered += 1;
        return now;
    }
    state.counter = state.counter.saturating_add(1);
    let mut delay = nanoseconds(settings.latency);
    if !settings.jitter.is_zero() {
        let unit = settings.jitter_draw.next_spread(random);
        delay += (settings.distribution.at(unit) * settings.jitter.as_nanos() as f64) as i128;
    }
    let mut from = now;
    if let Some(rate) = settings.rate {
        if state.waiting > 1 && state.last > now {
            // The line is busy until then; what the packet waits for that counts towards its delay.
            delay = (delay - (state.last - now)).max(0);
            from = state.last;
        }
        delay += bytes as i128 * 8 * 1_000_000_000 / i128::from(rate.max(1));
    }
    let due = from + delay;
    state.last = state.last.max(due);
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Sends `packets` of `bytes` each `every`; what came out: number, moment, whether a copy.
    fn simulate(rule: &str, seed: u64, packets: u32, every: Duration, bytes: usize) -> (Vec<(u32, Duration)>, Counts) {
        let mut link = Link::new(vec![rule.parse().unwrap()], seed);
        let mut out = Vec::new();
        for number in 0..packets {
            let now = every * number;
            while let Some(due) = link.next_due().filter(|due| *due <= now) {
                let delivery = link.pop(due).unwrap();
                out.push((delivery.item, due));
            }
            let _ = link.push(number, None, bytes, now);
        }
        while let Some(due) = link.next_due() {
            let delivery = link.pop(due).unwrap();
            out.push((delivery.item, due));
        }
        (out, link.counts())
    }

    #[test]
    fn latency_is_exact_and_keeps_the_order() {
        let (out, counts) = simulate("latency 20ms", 1, 1000, MS, 100);
        assert_eq!((counts.received, counts.delivered), (1000, 1000));
        for (number, due) in out {
            assert_eq!(due, MS * number + 20 * MS);
        }
    }

    #[test]
    fn jitter_spreads_and_correlation_binds() {
        let delays = |rule: &str| -> Vec<f64> {
            let (out, _) = simulate(rule, 5, 20_000, 100 * MS, 100);
            out.iter().map(|(number, due)| (*due - 100 * MS * *number).as_secs_f64() * 1e3).collect()
        };
        let uniform = delays("latency 20ms jitter 5ms");
        assert!(uniform.iter().all(|delay| (15.0..=25.0).contains(delay)));
        let mean = uniform.iter().sum::<f64>() / uniform.len() as f64;
        assert!((mean - 20.0).abs() < 0.1, "{mean}");
        let normal = delays("latency 50ms jitter 5ms distribution normal");
        let mean = normal.iter().sum::<f64>() / normal.len() as f64;
        let deviation = (normal.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / normal.len() as f64).sqrt();
        assert!((deviation - 5.0).abs() < 0.15, "{deviation}");
        let bound = delays("latency 20ms jitter 5ms 95%");
        let step = |delays: &[f64]| delays.windows(2).map(|p| (p[0] - p[1]).abs()).sum::<f64>() / delays.len() as f64;
        assert!(step(&bound) * 3.0 < step(&uniform));
    }

    #[test]
    fn loss_over_100_000_packets_lies_in_its_interval() {
        let (_, counts) = simulate("loss 1%", 42, 100_000, MS, 100);
        // 99.9 %: 3.29 standard deviations of the binomial distribution, 31.5.
        assert!((counts.lost as f64 - 1000.0).abs() < 104.0, "{counts:?}");
        assert_eq!(counts.lost + counts.delivered, 100_000);
        assert_eq!(simulate("loss 1%", 42, 1000, MS, 100), simulate("loss 1%", 42, 1000, MS, 100), "a seed repeats");
        assert_eq!(simulate("block", 1, 10, MS, 100).1.lost, 10);
        assert_eq!(simulate("loss 100%", 1, 10, MS, 100).1.lost, 10);
    }

    #[test]
    fn the_rate_is_kept_within_a_thousandth() {
        // 1000 packets of 1250 bytes at 10 Mbit/s last a second.
        let (out, _) = simulate("rate 10mbit", 1, 1000, Duration::ZERO, 1250);
        let last = out.last().unwrap().1.as_secs_f64();
        assert!((last - 1.0).abs() < 0.001, "{last}");
        // Latency is added once, not to each.
        let (out, _) = simulate("rate 10mbit latency 20ms", 1, 1000, Duration::ZERO, 1250);
        let last = out.last().unwrap().1.as_secs_f64();
        assert!((last - 1.02).abs() < 0.001, "{last}");
    }

    #[test]
    fn the_limit_drops_what_is_too_much() {
        let (out, counts) = simulate("latency 1s limit 7", 1, 100, Duration::ZERO, 100);
        assert_eq!((out.len(), counts.overflowed), (7, 93));
    }

    #[test]
    fn duplicates_corruption_and_order() {
        let (out, counts) = simulate("duplicate 10%", 3, 10_000, MS, 100);
        assert_eq!(out.len() as u64, 10_000 + counts.duplicated);
        assert!((counts.duplicated as f64 - 1000.0).abs() < 100.0, "{counts:?}");
        let (_, counts) = simulate("corrupt 5%", 3, 10_000, MS, 100);
        assert!((counts.corrupted as f64 - 500.0).abs() < 75.0, "{counts:?}");
        let (out, counts) = simulate("latency 10ms reorder 25% 50%", 3, 10_000, MS, 100);
        assert!(counts.reordered > 500, "{counts:?}");
        assert!(out.windows(2).any(|pair| pair[0].0 > pair[1].0));
        let (out, _) = simulate("latency 10ms reorder 100% gap 5", 3, 10, MS, 100);
        assert_eq!(out[0].0, 4, "every fifth is sent at once");
    }

    #[test]
    fn rules_are_for_their_part_of_the_traffic_and_change_while_it_runs() {
        let to = |address: &str, port| Headers {
            from: "127.0.0.1".parse().unwrap(),
            to: address.parse().unwrap(),
            protocol: crate::packet::TCP,
            transport_at: Some(20),
            ports: Some((50_000, port)),
        };
        let rules = ["to 127.0.0.5 port 5432: latency 80ms", "udp: block", "latency 1ms"];
        let mut link = Link::new(rules.iter().map(|rule| rule.parse().unwrap()).collect(), 1);
        link.push(1, Some(&to("127.0.0.5", 5432)), 100, MS).unwrap();
        link.push(2, Some(&to("127.0.0.5", 80)), 100, MS).unwrap();
        let udp = Headers { protocol: crate::packet::UDP, ..to("127.0.0.1", 53) };
        assert_eq!(link.push(3, Some(&udp), 100, MS), Err(Dropped::Lost));
        link.set_rules(vec!["from 127.0.0.9: block".parse().unwrap()]);
        link.push(4, Some(&udp), 100, MS).unwrap();
        let due: Vec<_> = std::iter::from_fn(|| link.pop(Duration::from_secs(1))).map(|d| (d.item, d.due)).collect();
        assert_eq!(due, [(4, MS), (2, 2 * MS), (1, 81 * MS)]);
    }

    #[test]
    fn an_hour_takes_a_moment() {
        // An hour of 100 packets a second. What other tests do beside it is not counted.
        let processor =
            || Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime)).unwrap();
        let start = processor();
        let (out, _) =
            simulate("latency 20ms jitter 5ms distribution pareto loss 1% rate 10mbit", 9, 360_000, 10 * MS, 500);
        let took = processor() - start;
        assert!(out.len() > 350_000 && out.last().unwrap().1 > Duration::from_secs(3599));
        // A second for the program as it is built for users; without optimisation it may be slower.
        let most = Duration::from_secs(if cfg!(debug_assertions) { 3 } else { 1 });
        assert!(took < most, "{took:?}");
    }
}
