//! How the next request is waited for: asleep, or by looking for it for a moment first.
//!
//! Which is sooner depends on the machine: a sleeping thread that is woken up on its own processor is as fast as one that
//! looks, and where an idle processor is woken up for the client, slower. So both are tried, and the better one is used:
//!
//! ```text
//! reads   ├ asleep ┤ looking ┤ asleep ┤ looking ┤ the better one, SETTLED_ROUNDS rounds … ┤ asleep ┤ …
//!         └ ROUND_READS
//! ```

use std::time::{Duration, Instant};

/// Reads of a round.
const ROUND_READS: u32 = 512;
/// Rounds of a trial: every other one looks.
const TRIAL_ROUNDS: u32 = 4;
/// Rounds that its outcome holds for.
const SETTLED_ROUNDS: u32 = 64;
/// A client that takes longer between two requests thinks: no longer time counts.
const LONG: Duration = Duration::from_micros(200);

/// What was tried, of one connection.
#[derive(Debug)]
pub struct Waits {
    round: u32,
    reads: u32,
    last: Instant,
    /// What the reads of a trial took, asleep and looking.
    took: [Duration; 2],
    better_looking: bool,
}

impl Waits {
    /// Nothing was tried.
    pub fn new(now: Instant) -> Self {
        Self { round: 0, reads: 0, last: now, took: [Duration::ZERO; 2], better_looking: false }
    }

    /// Whether the next request is to be looked for.
    pub fn looks(&self) -> bool {
        if self.round < TRIAL_ROUNDS { self.round % 2 == 1 } else { self.better_looking }
    }

    /// That something was read.
    pub fn note(&mut self, now: Instant) {
        let took = now.saturating_duration_since(self.last).min(LONG);
        self.last = now;
        let way = usize::from(self.looks());
        if let Some(sum) = self.took.get_mut(way) {
            *sum += took;
        }
        self.reads += 1;
        if self.reads < ROUND_READS {
            return;
        }
        self.reads = 0;
        self.round += 1;
        if self.round == TRIAL_ROUNDS {
            let [asleep, looking] = self.took;
            // Looking takes processor time: a tenth is what it has to bring.
            self.better_looking = looking + asleep / 10 < asleep;
        }
        if self.round == TRIAL_ROUNDS + SETTLED_ROUNDS {
            *self = Self::new(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes on for some reads, which take so many microseconds asleep and looking; says how many looked.
    fn go(waits: &mut Waits, now: &mut Instant, reads: u32, asleep: u64, looking: u64) -> u32 {
        let mut looked = 0;
        for _ in 0..reads {
            let looks = waits.looks();
            looked += u32::from(looks);
            *now += Duration::from_micros(if looks { looking } else { asleep });
            waits.note(*now);
        }
        looked
    }

    #[test]
    fn the_better_way_is_used_until_the_next_trial() {
        let (trial, settled) = (TRIAL_ROUNDS * ROUND_READS, SETTLED_ROUNDS * ROUND_READS);
        let mut now = Instant::now();
        let mut waits = Waits::new(now);
        for (asleep, looking, better_looking) in [(20, 12, true), (20, 30, false), (20, 19, false), (5000, 4000, false)]
        {
            assert_eq!(go(&mut waits, &mut now, trial, asleep, looking), trial / 2);
            let looked = go(&mut waits, &mut now, settled, asleep, looking);
            assert_eq!(looked, if better_looking { settled } else { 0 }, "{asleep} {looking}");
        }
    }
}
