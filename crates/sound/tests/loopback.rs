//! The loop between two cards whose clocks differ, in virtual time.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

use std::collections::VecDeque;
use std::f64::consts::TAU;

use loopbox_sound::loopback::{Engine, State};

const RATE: f64 = 48_000.0;

struct Random(u64);

impl Random {
    fn below(&mut self, most: f64) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64 * most
    }
}

/// A null sink of PulseAudio. It plays a block ahead, in pieces as they were given to it, and what it takes for the time are
/// their lengths, each cut down to whole microseconds. (Recorded of a real one: requests of 120 frames each 2.5 ms and 0 ppm
/// with a loop alone; of 145 each 3.02 ms and +274 ppm as soon as somebody recorded its monitor in fragments of 1 ms.)
struct Null {
    micros: u64,
    block: u64,
    /// Frames of each piece that it was given; of those that `feed` says at a second it has as many as it wants.
    given: VecDeque<u64>,
    feed: Option<fn(u64) -> u64>,
    played: u64,
    /// Frames that it played without having any; as many are dropped when they come.
    silent: u64,
    late: u64,
}

impl Null {
    fn new(block: u64, feed: Option<fn(u64) -> u64>) -> Self {
        Self { micros: 0, block, given: VecDeque::new(), feed, played: 0, silent: 0, late: 0 }
    }

    fn give(&mut self, frames: u64) {
        let late = self.late.min(frames);
        self.late -= late;
        if frames > late {
            self.given.push_back(frames - late);
        }
    }

    fn turn(&mut self, now: f64) {
        let ahead = (now * 1e6) as u64 + self.block * 1_000_000 / RATE as u64;
        let mut ate = 0;
        while self.micros < ahead && ate < self.block {
            if let (Some(feed), true) = (self.feed, self.given.is_empty()) {
                self.given.push_back(feed(self.micros / 1_000_000));
            }
            let piece = self.given.front_mut();
            let frames = piece.as_ref().map_or(self.block, |piece| self.block.min(**piece));
            match piece {
                Some(piece) if *piece > frames => *piece -= frames,
                Some(_) => drop(self.given.pop_front()),
                None => (self.silent, self.late) = (self.silent + frames, self.late + frames),
            }
            self.played += frames;
            self.micros += frames * 1_000_000 / RATE as u64;
            ate += frames;
        }
    }

    fn ppm(&self) -> f64 {
        (self.played as f64 / RATE / (self.micros as f64 * 1e-6) - 1.0) * 1e6
    }
}

/// Two cards and the loop between them. Channel 0 is a tone, channel 1 the number of the frame.
struct Bench {
    engine: Engine,
    source_rate: f64,
    sink_rate: f64,
    /// Seconds of a fragment and of a request, and by how much either comes late at most.
    piece: f64,
    late: f64,
    lead: f64,
    random: Random,
    now: f64,
    captured: u64,
    next_capture: f64,
    asked: u64,
    next_request: f64,
    /// The frames of the sink that were made, from `first` on.
    output: Vec<f64>,
    written: u64,
    /// Frames that were not there when the sink played them.
    missed: u64,
    /// A time in which nothing of the loop runs, and whether the source loses what it captures in it.
    stall: Option<(f64, f64, bool)>,
    lost: u64,
    /// Null sinks of PulseAudio instead of cards: whose monitor is the source, and the sink.
    nulls: Option<[Null; 2]>,
}

const HERTZ: f64 = 997.0;

impl Bench {
    fn new(latency: f64, source_ppm: f64, sink_ppm: f64) -> Self {
        let (piece, lead) = (latency / 8.0, latency * 3.0 / 8.0);
        Self {
            engine: Engine::new(2, 48_000, latency, (lead * RATE) as u64),
            source_rate: RATE * (1.0 + source_ppm * 1e-6),
            sink_rate: RATE * (1.0 + sink_ppm * 1e-6),
            piece,
            late: 0.000_2,
            lead: (lead * RATE).floor(),
            random: Random(0x2545_f491_4f6c_dd1d),
            now: 0.0,
            captured: 0,
            next_capture: 0.0,
            asked: 0,
            next_request: 0.0,
            output: Vec::new(),
            written: 0,
            missed: 0,
            stall: None,
            lost: 0,
            nulls: None,
        }
    }

    /// From a null sink of PulseAudio that a program gives pieces of `feed` frames to another one.
    fn nulls(latency: f64, feed: fn(u64) -> u64) -> Self {
        let bench = Self::new(latency, 0.0, 0.0);
        let block = bench.lead as u64 / 6;
        Self { late: 0.001, nulls: Some([Null::new(block, Some(feed)), Null::new(block, None)]), ..bench }
    }

    fn delayed(&mut self, at: f64) -> f64 {
        let at = at + self.random.below(self.late);
        match self.stall {
            Some((from, to, _)) if at >= from && at < to => to,
            _ => at,
        }
    }

    fn sample(frame: u64) -> [f64; 2] {
        let turn = (frame as f64 * HERTZ / RATE).fract();
        [(turn * TAU).sin() * 0.5, frame as f64]
    }

    fn run(&mut self, until: f64) {
        let mut samples = Vec::new();
        while self.now < until {
            let due = self.engine.due().map_or(f64::INFINITY, |nanos| nanos as f64 * 1e-9).max(self.now);
            let due = if due.is_finite() { self.delayed(due) } else { due };
            let next = self.next_capture.min(self.next_request).min(due);
            self.now = next;
            let nanos = (next * 1e9) as u64;
            if next == self.next_capture {
                // What a card captures is sent in whole fragments.
                let whole = (self.piece * RATE) as u64;
                let mut captured = (self.now * self.source_rate) as u64;
                let mut wake = f64::INFINITY;
                if let Some([source, _]) = &mut self.nulls {
                    source.turn(self.now);
                    (captured, wake) = (source.played, source.micros as f64 * 1e-6);
                }
                let end = captured / whole * whole;
                let loses = self.stall.is_some_and(|(_, to, loses)| loses && self.now == to);
                if loses {
                    self.lost += end.saturating_sub(self.captured + whole);
                    self.captured = end.saturating_sub(whole).max(self.captured);
                }
                samples.clear();
                samples.extend((self.captured..end.max(self.captured)).flat_map(Self::sample));
                if end > self.captured {
                    self.engine.capture(nanos, &samples);
                    self.captured = end;
                }
                let tick = ((end + whole) as f64 / self.source_rate).min(wake);
                self.next_capture = self.delayed(tick.max(self.now + 1e-9));
            } else if next == self.next_request {
                let whole = (self.piece * RATE) as u64;
                let mut end = (self.now * self.sink_rate) as u64 / whole * whole;
                let mut wake = f64::INFINITY;
                if let Some([_, sink]) = &mut self.nulls {
                    sink.turn(self.now);
                    wake = sink.micros as f64 * 1e-6;
                    end = if sink.played >= self.asked + whole { sink.played } else { self.asked };
                }
                if end > self.asked {
                    self.engine.request(nanos, end - self.asked);
                    self.asked = end;
                }
                let tick = ((end + whole) as f64 / self.sink_rate).min(wake);
                self.next_request = self.delayed(tick.max(self.now + 1e-9));
            }
            let played = (self.now * self.sink_rate) as u64;
            let before = self.written;
            let made = self.engine.produce(nanos, &mut self.output);
            self.written += made;
            if let Some([_, sink]) = &mut self.nulls {
                sink.give(made);
            } else if self.written > before && self.engine.state() != State::Acquiring {
                self.missed += played.saturating_sub(before).min(self.written - before);
            }
            assert!(self.written as f64 <= self.asked as f64 + self.lead);
        }
    }

    /// For each frame of the sink from `from` on, the seconds between its capture and its playing.
    fn latencies(&self, from: f64) -> impl Iterator<Item = f64> {
        let first = (from * self.sink_rate) as usize;
        let (source, sink) = (self.source_rate, self.sink_rate);
        self.output
            .as_chunks::<2>()
            .0
            .iter()
            .enumerate()
            .skip(first)
            .map(move |(at, [_, frame])| at as f64 / sink - frame / source)
    }
}

/// Signal over everything else of a tone in dB, and by how much of it its pitch is off, in a window.
fn tone(samples: &[[f64; 2]], turns_per_frame: f64) -> (f64, f64) {
    // Least squares with sine, cosine, and both times the time: a frequency that is a little off is one.
    let middle = samples.len() as f64 / 2.0;
    let basis = |at: usize| {
        let (sin, cos) = ((at as f64 * turns_per_frame).fract() * TAU).sin_cos();
        let t = (at as f64 - middle) / middle;
        [sin, cos, t * sin, t * cos]
    };
    let mut matrix = [[0.0; 5]; 4];
    for (at, [sample, _]) in samples.iter().enumerate() {
        let basis = basis(at);
        for (row, left) in matrix.iter_mut().zip(basis) {
            row.iter_mut().zip(basis).for_each(|(sum, right)| *sum += left * right);
            row[4] += left * sample;
        }
    }
    for at in 0..4 {
        let pivot = matrix[at];
        for (other, row) in matrix.iter_mut().enumerate() {
            if other != at {
                let factor = row[at] / pivot[at];
                row.iter_mut().zip(pivot).for_each(|(left, right)| *left -= factor * right);
            }
        }
    }
    let found: Vec<f64> = (0..4).map(|at| matrix[at][4] / matrix[at][at]).collect();
    let (mut signal, mut noise) = (0.0, 0.0);
    for (at, [sample, _]) in samples.iter().enumerate() {
        let ideal: f64 = basis(at).iter().zip(&found).map(|(value, gain)| value * gain).sum();
        signal += ideal * ideal;
        noise += (sample - ideal) * (sample - ideal);
    }
    // The phase's slope over the window.
    let turn = (found[3] * found[0] - found[2] * found[1]) / (found[0] * found[0] + found[1] * found[1]);
    (10.0 * (signal / noise).log10(), turn / middle / (TAU * turns_per_frame))
}

/// The same in pieces of half a second, whatever the pitch.
fn pieces(output: &[f64]) -> Vec<f64> {
    let pieces = output.as_chunks::<2>().0.chunks_exact(24_000);
    let quality = |piece: &[[f64; 2]]| {
        let mut turns = HERTZ / RATE;
        for _ in 0..4 {
            turns *= 1.0 + tone(piece, turns).1;
        }
        tone(piece, turns).0
    };
    pieces.map(quality).collect()
}

#[test]
fn a_clock_that_is_unsteady_costs_a_tone_a_moment_and_not_its_purity() {
    // A program that writes pieces of lengths that PulseAudio's null sink counts wrong: 0, +160, +170 ppm for 10 s each.
    let mut bench = Bench::nulls(0.020, |second| [120, 100, 47][second as usize / 10 % 3]);
    bench.run(90.0);
    let [source, sink] = bench.nulls.as_ref().unwrap();
    println!("source {:+.1} ppm, sink {:+.1} ppm, {} frames silent", source.ppm(), sink.ppm(), sink.silent);
    let mut found: Vec<f64> = pieces(&bench.output).split_off(6);
    found.sort_by(f64::total_cmp);
    let at = |part: usize| found[found.len() * part / 10];
    println!("{:.1}, {:.1}, {:.1}, {:.1} dB; {:?}", found[0], at(1), at(3), at(5), bench.engine.interruptions());
    assert_eq!(bench.engine.interruptions(), (0, 0));
    assert!(at(5) > 90.0, "{} dB", at(5));
}

#[test]
fn an_hour_at_200_ppm_is_a_clean_tone_at_its_pitch() {
    let mut bench = Bench::new(0.004, 200.0, 0.0);
    let (mut worst, mut off, mut least, mut most) = (f64::INFINITY, 0.0f64, f64::INFINITY, 0.0f64);
    let mut first = 0;
    for second in 1..3600u32 {
        bench.run(f64::from(second));
        let frames = bench.output.as_chunks::<2>().0;
        if second > 10 {
            for (at, [_, frame]) in frames.iter().enumerate() {
                let latency = (first + at) as f64 / bench.sink_rate - frame / bench.source_rate;
                (least, most) = (least.min(latency), most.max(latency));
            }
            if second % 20 == 0 {
                let (quality, ppm) = tone(frames, HERTZ / RATE * bench.source_rate / bench.sink_rate);
                (worst, off) = (worst.min(quality), off.max(ppm.abs() * 1e6));
            }
        }
        first += frames.len();
        bench.output.clear();
    }
    println!("SNR {worst:.1} dB, pitch off by {off:.2} ppm, latency {least:.6} to {most:.6} s");
    assert!(matches!(bench.engine.state(), State::Following(ratio) if (ratio - 1.0002).abs() < 2e-6));
    assert_eq!((bench.engine.interruptions(), bench.missed), ((0, 0), 0));
    assert!(worst > 90.0 && off < 5.0 && least > 0.003_5 && most < 0.004_5);
}

#[test]
fn clocks_that_agree_copy_every_sample() {
    let mut bench = Bench::new(0.020, 35.0, 35.0);
    bench.run(120.0);
    assert_eq!((bench.engine.state(), bench.engine.interruptions(), bench.missed), (State::Copying, (0, 0), 0));
    let frames = bench.output.as_chunks::<2>().0;
    let first = frames.iter().position(|frame| frame[1] > 0.0).unwrap() + 300;
    for (at, frame) in (frames[first][1] as u64..).zip(&frames[first..]) {
        assert_eq!(*frame, Bench::sample(at));
    }
    assert!(first < 48_000);
    let (least, most) = bench.latencies(2.0).fold((1.0f64, 0.0f64), |(a, b), latency| (a.min(latency), b.max(latency)));
    assert!(least > 0.0195 && most < 0.0205, "{least} to {most}");
}

#[test]
fn it_follows_a_source_that_is_slower_and_one_whose_rate_changes() {
    let mut bench = Bench::new(0.010, -300.0, 50.0);
    bench.run(30.0);
    assert_eq!((bench.engine.interruptions(), bench.missed), ((0, 0), 0));
    assert!(matches!(bench.engine.state(), State::Following(ratio) if (ratio - 0.99965).abs() < 3e-6));
    let mut worst = 0.0f64;
    for (at, latency) in bench.latencies(10.0).enumerate() {
        worst = worst.max((latency - 0.010).abs());
        assert!(worst < 0.001, "{latency} at frame {at}");
    }
}

#[test]
fn a_stall_costs_itself_and_nothing_behind_it() {
    // Everything comes, late: what could not be played in time is lost, and the rest is where it would have been.
    let mut bench = Bench::new(0.020, 100.0, 0.0);
    bench.stall = Some((20.0, 20.12, false));
    bench.run(40.0);
    let (gaps, cuts) = bench.engine.interruptions();
    println!("{gaps} gaps, {cuts} cuts, {} frames missed", bench.missed);
    assert!(gaps <= 1 && cuts == 0 && bench.missed < 6000);
    let before = bench.latencies(19.9).next().unwrap();
    for latency in bench.latencies(20.13) {
        assert!((latency - before).abs() < 0.000_1, "{latency} and {before} s");
    }
    // The source loses what it captured: one cut, within a fifth of a second, and the pitch stays.
    let mut bench = Bench::new(0.020, 100.0, 0.0);
    bench.stall = Some((20.0, 20.12, true));
    bench.run(40.0);
    assert!(bench.lost > 5000);
    let (gaps, cuts) = bench.engine.interruptions();
    println!("{gaps} gaps, {cuts} cuts, {} frames missed, {} lost", bench.missed, bench.lost);
    assert!(gaps <= 2 && cuts == 1);
    let frames = &bench.output.as_chunks::<2>().0;
    for second in 21..39 {
        let window = &frames[second * 48_000..][..48_000];
        let (quality, ppm) = tone(window, HERTZ / RATE * 1.0001);
        assert!(quality > 80.0 && ppm.abs() < 10e-6, "{quality} dB, {ppm} at {second} s");
    }
}
