//! What a card's clock is, told from when its frames came.
//!
//! Counts arrive late, by an amount that changes, and never early: of each quarter of a second the earliest one counts. A
//! straight line through up to half a minute of them is the clock. Where the latest of them leave the line, the clock has
//! changed and what is older is forgotten; where the count has jumped, the line jumps with it and keeps its slope.

use std::collections::VecDeque;

/// Seconds of which the earliest count is taken.
const WINDOW: f64 = 0.25;
/// Windows that the line goes through.
const POINTS_MAX: usize = 128;
/// Windows from which on the slope of the line is taken.
const POINTS_MIN: usize = 4;
/// Windows from which on it is known how good the line is.
const POINTS_KNOWN: usize = 8;
/// Windows that have to be late before the clock is believed to be slower: a busy machine makes some late, and none early.
const SLOWER_FOR: usize = 12;
/// Seconds by which no count is early, unless frames were skipped.
const EARLY: f64 = 0.002;
/// Seconds by which counts are late when frames were lost, if all of [`LATE_FOR`] are.
const LATE: f64 = 0.005;
/// Seconds after which what is late is believed to be lost.
const LATE_FOR: f64 = 0.1;
/// Furthest from the nominal rate that a clock is believed to be.
const OFF_MAX: f64 = 0.02;

#[derive(Debug, Clone, Copy)]
struct Point {
    at: f64,
    frames: f64,
}

/// A line through counts of frames over time.
#[derive(Debug, Clone)]
pub struct Clock {
    nominal: f64,
    /// Nanoseconds of the first count.
    start: Option<u64>,
    /// A point of the line, and its slope in frames a second.
    on: Point,
    rate: f64,
    points: VecDeque<Point>,
    /// The earliest count of this window, and by how much.
    best: Option<(f64, Point)>,
    window_end: f64,
    /// Since when all counts are late, and the least by which they are.
    late: Option<(f64, f64)>,
    /// Windows that were late one after the other.
    slower: usize,
    settled: bool,
    uncertainty: Option<f64>,
}

impl Clock {
    /// A clock of `nominal` Hz of which nothing is known yet.
    pub fn new(nominal: f64) -> Self {
        Self {
            nominal,
            start: None,
            on: Point { at: 0.0, frames: 0.0 },
            rate: nominal,
            points: VecDeque::new(),
            best: None,
            window_end: WINDOW,
            late: None,
            slower: 0,
            settled: false,
            uncertainty: None,
        }
    }

    /// At `nanos` the card had counted at least `frames`.
    pub fn observe(&mut self, nanos: u64, frames: u64) {
        let start = *self.start.get_or_insert(nanos);
        let point = Point { at: seconds(start, nanos), frames: frames as f64 };
        let mut early = point.frames - self.at(point.at);
        if early > EARLY * self.nominal || (self.points.is_empty() && early > 0.0) {
            self.shift(early);
            early = 0.0;
        }
        if early < -LATE * self.nominal {
            let (since, least) = self.late.unwrap_or((point.at, early));
            let least = least.max(early);
            self.late = Some((since, least));
            if point.at - since > LATE_FOR {
                self.shift(least);
                self.late = None;
                early -= least;
            }
        } else {
            self.late = None;
        }
        if self.best.is_none_or(|(best, _)| early >= best) {
            self.best = Some((early, point));
        }
        if point.at >= self.window_end {
            self.window_end = point.at + WINDOW;
            self.end_window();
        }
    }

    fn end_window(&mut self) {
        let Some((_, best)) = self.best.take() else { return };
        if !self.settled {
            // Streams begin with a jerk: nothing of the first window is kept.
            self.settled = true;
            self.on = best;
            return;
        }
        self.points.push_back(best);
        if self.points.len() > POINTS_MAX {
            self.points.pop_front();
        }
        self.fit();
        let recent = self.points.iter().rev().take(POINTS_MIN);
        let off = recent.map(|point| point.frames - self.at(point.at)).sum::<f64>() / POINTS_MIN as f64;
        let usual = self.deviation().max(0.000_02 * self.nominal);
        self.slower = if off < -1.5 * usual { self.slower + 1 } else { 0 };
        let changed = off > 1.5 * usual || self.slower >= SLOWER_FOR;
        if self.points.len() >= 3 * POINTS_MIN && changed {
            self.points.drain(..self.points.len() / 4 * 3);
            self.fit();
            self.slower = 0;
        }
        self.uncertainty = None;
        if let (Some(first), Some(last), POINTS_KNOWN..) = (self.points.front(), self.points.back(), self.points.len())
        {
            let error = self.deviation().max(0.000_005 * self.nominal) * (12.0 / self.points.len() as f64).sqrt();
            self.uncertainty = Some(error / ((last.at - first.at) * self.nominal));
        }
    }

    /// The line with the least squares of distances.
    fn fit(&mut self) {
        let count = self.points.len() as f64;
        let mean = |value: &dyn Fn(&Point) -> f64| self.points.iter().map(value).sum::<f64>() / count;
        let center = Point { at: mean(&|p| p.at), frames: mean(&|p| p.frames) };
        let over = self.points.iter().map(|p| (p.at - center.at) * (p.frames - center.frames)).sum::<f64>();
        let under = self.points.iter().map(|p| (p.at - center.at).powi(2)).sum::<f64>();
        self.on = center;
        if self.points.len() >= POINTS_MIN && under > 0.0 {
            self.rate = (over / under).clamp(self.nominal * (1.0 - OFF_MAX), self.nominal * (1.0 + OFF_MAX));
        }
    }

    /// The root of the mean square of the distances from the line, in frames.
    fn deviation(&self) -> f64 {
        let squares: f64 = self.points.iter().map(|point| (point.frames - self.at(point.at)).powi(2)).sum();
        (squares / (self.points.len() as f64).max(1.0)).sqrt()
    }

    /// The count has jumped.
    fn shift(&mut self, frames: f64) {
        self.on.frames += frames;
        self.points.iter_mut().for_each(|point| point.frames += frames);
        // What was seen of this window belongs to what was before.
        self.best = None;
    }

    fn at(&self, seconds: f64) -> f64 {
        self.on.frames + (seconds - self.on.at) * self.rate
    }

    /// The card's count at `nanos`.
    pub fn frames_at(&self, nanos: f64) -> f64 {
        self.at((nanos - self.start.unwrap_or(0) as f64) * 1e-9)
    }

    /// When the card's count is `frames`, in nanoseconds.
    pub fn nanos_of(&self, frames: f64) -> f64 {
        ((frames - self.on.frames) / self.rate + self.on.at) * 1e9 + self.start.unwrap_or(0) as f64
    }

    /// Frames a second.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Whether it is known where the card is.
    pub fn is_placed(&self) -> bool {
        !self.points.is_empty()
    }

    /// By how much of it the rate may be off; `None` when it is not measured yet.
    pub fn uncertainty(&self) -> Option<f64> {
        self.uncertainty
    }
}

fn seconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 * 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts every 5 ms of a clock that is `ppm` off, late by up to `late_micros`.
    fn run(clock: &mut Clock, from: f64, to: f64, ppm: f64, offset: f64, late_micros: u64) {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut at = from;
        while at < to {
            at += 0.005;
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let late = (state >> 20) % (late_micros + 1) * 1000;
            let frames = (at * 48_000.0 * (1.0 + ppm * 1e-6) + offset) as u64;
            clock.observe((at * 1e9) as u64 + late, frames);
        }
    }

    #[test]
    fn a_rate_is_measured_to_the_millionth_among_late_counts() {
        let mut clock = Clock::new(48_000.0);
        run(&mut clock, 0.0, 30.0, 200.0, 100.0, 2000);
        let ppm = (clock.rate() / 48_000.0 - 1.0) * 1e6;
        assert!((ppm - 200.0).abs() < 1.0, "{ppm}");
        assert!(clock.uncertainty().is_some_and(|error| error < 2e-6));
        let off = clock.frames_at(30e9) - (30.0 * 48_009.6 + 100.0);
        assert!(off.abs() < 4.0, "{off} frames off");
        assert!((clock.frames_at(clock.nanos_of(1e6)) - 1e6).abs() < 1e-3);
    }

    #[test]
    fn a_clock_that_changes_is_followed_and_a_jump_keeps_its_slope() {
        let mut clock = Clock::new(48_000.0);
        run(&mut clock, 0.0, 30.0, 0.0, 0.0, 200);
        // The same count at 30 s, another rate from there on.
        run(&mut clock, 30.0, 45.0, 300.0, -30.0 * 48_000.0 * 300e-6, 200);
        let ppm = (clock.rate() / 48_000.0 - 1.0) * 1e6;
        assert!((ppm - 300.0).abs() < 15.0, "{ppm}");
        let mut clock = Clock::new(48_000.0);
        run(&mut clock, 0.0, 20.0, 100.0, 0.0, 200);
        run(&mut clock, 20.0, 20.3, 100.0, -5760.0, 200);
        let off = clock.frames_at(20.3e9) - (20.3 * 48_004.8 - 5760.0);
        assert!(off.abs() < 12.0, "{off} frames off");
        assert!((clock.rate() / 48_004.8 - 1.0).abs() < 3e-6);
        run(&mut clock, 20.3, 20.4, 100.0, 0.0, 200);
        assert!((clock.frames_at(20.4e9) - 20.4 * 48_004.8).abs() < 12.0);
    }
}
