//! Frames in, frames out, at a latency that stays. Nothing here reads a clock or does I/O.
//!
//! Frames of the source and of the sink are counted from 0. Two [`Clock`]s say when each was captured and will be played:
//! from them follows which input frame an output frame should be. While the clocks agree the loop copies; when they part,
//! it goes on at a fraction of a frame, at the ratio of the two rates and a few millionths more or less. What cannot be
//! made good like that, a stall, is one cut, crossfaded.

use super::clock::Clock;
use crate::resample::{Bank, stereo};

/// Input frames that the filter reaches to each side.
const HALF: usize = 32;
/// Phases of the filter's bank.
const PHASES: u64 = 1024;
/// The filter's transition lies around the Nyquist frequency: up to 20 of 24 kHz pass, from 28 on nothing does.
const CUTOFF: f64 = 1.0;
/// The shape of its Kaiser window: 105 dB.
const BETA: f64 = 11.0;
/// Seconds that a crossfade lasts.
const FADE: f64 = 0.005;
/// Two clocks agree when they differ by less than this.
const SAME: f64 = 1.5e-6;
/// For this many seconds they have to agree before it is copied again.
const SAME_FOR: f64 = 5.0;
/// They part when they differ by more than this, and by more than it is uncertain by.
const PART: f64 = 5e-6;
/// A ratio that is less certain than this is none: everything is late, and the machine is busy.
const SURE: f64 = 50e-6;
/// Most that the pitch is off while a small error of the place is corrected.
const STEER_MAX: f64 = 3e-6;
/// Seconds in which a small error of the place goes.
const STEER_SECONDS: f64 = 60.0;
/// Seconds in which the ratio follows what is measured.
const SMOOTH: f64 = 8.0;
/// Most that the pitch changes in a second: an ear hears a hundred times more, and a tone stays one line. While a clock is
/// not known well it may be more.
const SLEW: f64 = 0.05e-6;
const SLEW_YOUNG: f64 = 0.7e-6;
/// A clock that changes by more than that leads to a place that is off by so much of a cut: the ratio changes at once, once,
/// so that the place comes back, and again when it is back.
const FAR: f64 = 0.5;
const NEAR: f64 = 0.2;
/// Seconds in which it comes back, the most that the pitch is off for that, and seconds between two such changes.
const FAR_SECONDS: f64 = 10.0;
const FAR_MAX: f64 = 0.001;
const STEP_SECONDS: f64 = 2.0;
/// Seconds before the sink is dry at which missing input is made up.
const MARGIN: f64 = 0.000_7;
/// Frames between two looks at the clocks.
const BLOCK: usize = 256;
/// Seconds of input that are kept behind what is played: a source that lost frames sets the loop back.
const BEHIND: f64 = 0.2;
/// Seconds of input that are kept at most.
const KEPT: f64 = 2.0;

/// How the loop runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum State {
    /// It does not know the clocks yet, and plays silence.
    Acquiring,
    /// The clocks agree: every sample is a copy.
    Copying,
    /// It is filtered, at so many input frames for each output frame.
    Following(f64),
}

/// Where it reads.
#[derive(Debug, Clone, Copy)]
struct Voice {
    frame: u64,
    fraction: f64,
    copies: bool,
}

impl Voice {
    fn place(&self) -> f64 {
        self.frame as f64 + self.fraction
    }

    fn at(place: f64, copies: bool) -> Self {
        let place = place.max(0.0);
        let frame = if copies { place.round() } else { place.floor() };
        Self { frame: frame as u64, fraction: if copies { 0.0 } else { place - frame }, copies }
    }

    fn advance(&mut self, step: f64) {
        if self.copies {
            self.frame += 1;
        } else {
            let fraction = self.fraction + step;
            self.frame += fraction as u64;
            self.fraction = fraction.fract();
        }
    }
}

/// The loop.
#[derive(Debug)]
pub struct Engine {
    channels: usize,
    rate: f64,
    /// Frames between a frame's capture and its playing.
    latency: f64,
    source: Clock,
    sink: Clock,
    bank: Bank,
    /// Input frames from `base` on; those behind `received` are made up.
    input: Vec<f64>,
    base: u64,
    received: u64,
    /// From here on real frames fade in over what was made up.
    blend: Option<u64>,
    /// Frames that the sink asked for, those before it played among them, and that it was given.
    asked: u64,
    lead: u64,
    written: u64,
    /// Frames that were not made since the sink has long played past them.
    skipped: u64,
    voice: Option<Voice>,
    /// Where it read before, and frames of the crossfade that are done.
    fading: Option<(Option<Voice>, u64)>,
    /// Frames that were written when it last looked at the clocks.
    looked: u64,
    /// Whether the sink has played past what it was given.
    dry: bool,
    /// Input frames for each output frame by the clocks' rates, and what part of it more for the place's sake.
    ratio: f64,
    correction: f64,
    measured: bool,
    agree: f64,
    /// Seconds since the ratio changed at once.
    steady: f64,
    gaps: u64,
    cuts: u64,
}

impl Engine {
    /// A loop at the sink's `rate` in Hz; `latency` is in seconds from capture to playing. `lead` frames are asked for by
    /// the sink before it plays the first one.
    pub fn new(channels: u8, rate: u32, latency: f64, lead: u64) -> Self {
        let rate = f64::from(rate.max(1));
        Self {
            channels: usize::from(channels.max(1)),
            rate,
            latency: latency * rate,
            source: Clock::new(rate),
            sink: Clock::new(rate),
            bank: Bank::new(PHASES, HALF, CUTOFF, BETA, true),
            input: Vec::new(),
            base: 0,
            received: 0,
            blend: None,
            asked: lead,
            lead,
            written: 0,
            skipped: 0,
            voice: None,
            fading: None,
            looked: 0,
            dry: false,
            ratio: 1.0,
            correction: 0.0,
            measured: false,
            agree: 0.0,
            steady: f64::INFINITY,
            gaps: 0,
            cuts: 0,
        }
    }

    /// Seconds that the filter and crossfades need of the latency.
    pub fn latency_min(rate: u32) -> f64 {
        (HALF + 1) as f64 / f64::from(rate.max(1)) + MARGIN
    }

    /// How it runs.
    pub fn state(&self) -> State {
        match self.voice {
            None => State::Acquiring,
            Some(voice) if voice.copies => State::Copying,
            Some(_) => State::Following(self.ratio),
        }
    }

    /// How often input was missing or came too late to be played, and how often it went on elsewhere.
    pub fn interruptions(&self) -> (u64, u64) {
        (self.gaps, self.cuts)
    }

    /// Seconds from capture to playing, as it is now.
    pub fn latency(&self) -> Option<f64> {
        let voice = self.voice?;
        let played = self.sink.nanos_of(self.written as f64);
        Some((self.source.frames_at(played) - voice.place()) / self.rate)
    }

    /// Interleaved frames that the source captured came at `nanos`.
    pub fn capture(&mut self, nanos: u64, samples: &[f64]) {
        let frames = (samples.len() / self.channels) as u64;
        self.source.observe(nanos, self.received + frames);
        let fade = FADE * self.rate;
        for (number, frame) in (self.received..).zip(samples.chunks_exact(self.channels)) {
            let end = self.end();
            if number >= end && self.blend.is_none() {
                self.input.extend_from_slice(frame);
                continue;
            }
            // What was made up is heard already, or is crossfaded.
            let from = *self.blend.get_or_insert_with(|| {
                let heard = self.voice.map_or(0, |voice| voice.frame + HALF as u64 + 1);
                heard.max(number).min(end)
            });
            if number < from || number < self.base {
                self.blend = None;
                continue;
            }
            let gain = ((number - from) as f64 / fade).min(1.0);
            let at = (number - self.base) as usize * self.channels;
            if number >= end {
                self.input.extend(frame.iter().map(|sample| sample * gain));
            } else if let Some(old) = self.input.get_mut(at..at + self.channels) {
                old.iter_mut().zip(frame).for_each(|(old, new)| *old += (new - *old) * gain);
            }
            if gain >= 1.0 && number + 1 >= end {
                self.blend = None;
            }
        }
        self.received += frames;
        self.forget();
    }

    /// The sink asked for frames at `nanos`, since it has played as many.
    pub fn request(&mut self, nanos: u64, frames: u64) {
        self.asked += frames;
        let played = self.asked - self.lead;
        self.sink.observe(nanos, played);
        let late = played.saturating_sub(self.written);
        if late > self.rate as u64 {
            self.written += late;
            self.skipped += late;
        }
    }

    /// Frames that the sink has played past and that are not made any more: what is produced next belongs behind them.
    pub fn take_skipped(&mut self) -> u64 {
        std::mem::take(&mut self.skipped)
    }

    /// Appends frames for the sink, as many as it asked for and the input allows, and returns how many.
    pub fn produce(&mut self, nanos: u64, output: &mut Vec<f64>) -> u64 {
        let before = self.written;
        if self.voice.is_none() {
            if !(self.source.is_placed() && self.sink.is_placed()) {
                let silence = self.asked - self.written;
                output.resize(output.len() + silence as usize * self.channels, 0.0);
                self.written = self.asked;
                return silence;
            }
            self.voice = Some(Voice::at(self.wanted(), true));
            self.fading = Some((None, 0));
        }
        let dry = self.asked - self.lead > self.written;
        self.gaps += u64::from(dry && !self.dry);
        self.dry = dry;
        loop {
            let left = self.asked - self.written;
            if left == 0 {
                break;
            }
            self.steer();
            let frames = (left.min(BLOCK as u64) as usize).min(self.possible());
            if frames == 0 {
                // The last moment: what is missing is made up.
                let margin = MARGIN * self.rate;
                if self.sink.frames_at(nanos as f64) + margin < self.written as f64 {
                    break;
                }
                self.make_up(margin as usize + 1);
                continue;
            }
            self.render(frames, output);
        }
        self.forget();
        self.written - before
    }

    /// Nanoseconds of the time when [`Engine::produce`] has to be called though nothing came.
    pub fn due(&self) -> Option<u64> {
        let waits = self.voice.is_some() && self.asked > self.written;
        waits.then(|| self.sink.nanos_of(self.written as f64 - MARGIN * self.rate).max(0.0) as u64)
    }

    /// The input frame that belongs to the next output frame.
    fn wanted(&self) -> f64 {
        self.source.frames_at(self.sink.nanos_of(self.written as f64)) - self.latency
    }

    fn end(&self) -> u64 {
        self.base + (self.input.len() / self.channels) as u64
    }

    /// Output frames that the input allows.
    fn possible(&self) -> usize {
        let old = self.fading.and_then(|(old, _)| old);
        let place = self.voice.iter().chain(old.iter()).map(|voice| voice.frame).max().unwrap_or(0);
        let left = self.end().saturating_sub(place + HALF as u64 + 1);
        (left as f64 / (self.ratio * 1.002)) as usize
    }

    /// Decides where and how it reads on.
    fn steer(&mut self) {
        let Some(voice) = self.voice else { return };
        let passed = (self.written - self.looked).min(BLOCK as u64) as f64 / self.rate;
        self.looked = self.written;
        let error = self.wanted() - voice.place();
        let cut = (self.latency / 8.0).clamp(0.000_5 * self.rate, 0.005 * self.rate);
        if let (Some(source), Some(sink)) = (self.source.uncertainty(), self.sink.uncertainty()) {
            let ratio = self.source.rate() / self.sink.rate();
            let apart = (ratio - 1.0).abs();
            self.agree = if apart < SAME { self.agree + passed } else { 0.0 };
            if voice.copies || !self.measured {
                self.measured = source + sink < SURE;
                (self.ratio, self.correction) = (if self.measured { ratio } else { 1.0 }, 0.0);
            } else {
                self.follow(ratio, source + sink, error, cut, passed);
            }
            if self.fading.is_none() && voice.copies && apart > PART.max(4.0 * (source + sink)) {
                self.go_on(voice.place(), false);
            }
        }
        if self.fading.is_some() {
            return;
        }
        let Some(voice) = self.voice else { return };
        let lost = voice.frame < self.base + HALF as u64 && self.base > 0;
        if error.abs() > cut || lost {
            self.cuts += 1;
            let wanted = self.wanted();
            self.go_on(wanted, voice.copies);
            if wanted + (HALF as f64) < self.received as f64 && voice.frame + HALF as u64 >= self.received {
                // It read what was made up, which nobody needs any more.
                let real = self.received.saturating_sub(self.base) as usize * self.channels;
                self.input.truncate(real);
                (self.fading, self.blend) = (Some((None, 0)), None);
            }
        } else if voice.copies && error.abs() > 0.7 * cut {
            self.go_on(voice.place(), false);
        } else if !voice.copies && self.agree > SAME_FOR && error.abs() < 0.3 * cut {
            self.go_on(voice.place(), true);
        }
    }

    /// Reads on at another place or in another way, by a crossfade.
    fn go_on(&mut self, place: f64, copies: bool) {
        self.fading = Some((self.voice, 0));
        self.agree = 0.0;
        self.voice = Some(Voice::at(place.max((self.base + HALF as u64) as f64), copies));
    }

    /// Changes the ratio: unheard, or at once where the place would go too far.
    fn follow(&mut self, ratio: f64, uncertainty: f64, error: f64, cut: f64, passed: f64) {
        self.steady += passed;
        let sure = uncertainty < SURE;
        let seconds = error / self.rate;
        // By how much the place is going to be more off, each second.
        let outward = (if sure { ratio - self.ratio } else { 0.0 } - self.correction) * error.signum();
        let back = seconds.abs() / FAR_SECONDS / 4.0;
        if error.abs() > FAR * cut && self.steady > STEP_SECONDS && outward > -back {
            // What is measured while everything is late is worth nothing: the place is.
            if sure && (ratio - self.ratio).abs() > 4.0 * uncertainty {
                self.ratio = ratio;
            }
            (self.correction, self.steady) = ((seconds / FAR_SECONDS).clamp(-FAR_MAX, FAR_MAX), 0.0);
        } else if self.correction.abs() > STEER_MAX {
            if error.abs() < NEAR * cut {
                (self.correction, self.steady) = (0.0, 0.0);
            }
        } else {
            let slew = if sure { uncertainty.clamp(SLEW, SLEW_YOUNG) * passed } else { 0.0 };
            self.ratio += ((ratio - self.ratio) * passed / SMOOTH).clamp(-slew, slew);
            let gentle = (seconds / STEER_SECONDS).clamp(-STEER_MAX, STEER_MAX);
            self.correction += (gentle - self.correction).clamp(-SLEW * passed, SLEW * passed);
        }
    }

    /// Input frames for each output frame, the correction of the place included.
    fn step(&self) -> f64 {
        self.ratio * (1.0 + self.correction)
    }

    fn render(&mut self, frames: usize, output: &mut Vec<f64>) {
        let (Some(mut voice), step) = (self.voice, self.step()) else { return };
        let fade = (FADE * self.rate) as u64;
        let mut filter = [0.0; 2 * HALF];
        let mut faded = Vec::new();
        for _ in 0..frames {
            let start = output.len();
            self.read(&voice, &mut filter, output);
            if let Some((mut old, done)) = self.fading {
                let gain = (done + 1) as f64 / (fade + 1) as f64;
                let gain = (1.0 - (gain * std::f64::consts::PI).cos()) / 2.0;
                faded.clear();
                match &mut old {
                    Some(old) => {
                        self.read(old, &mut filter, &mut faded);
                        old.advance(step);
                    }
                    None => faded.resize(self.channels, 0.0),
                }
                output
                    .iter_mut()
                    .skip(start)
                    .zip(&faded)
                    .for_each(|(new, old)| *new = if new == old { *old } else { *new * gain + old * (1.0 - gain) });
                self.fading = (done + 1 < fade).then_some((old, done + 1));
            }
            voice.advance(step);
        }
        self.voice = Some(voice);
        self.written += frames as u64;
    }

    /// Appends the frame at a place.
    fn read(&self, voice: &Voice, filter: &mut [f64; 2 * HALF], output: &mut Vec<f64>) {
        let start = output.len();
        let frame = voice.frame.checked_sub(self.base).map(|frame| frame as usize);
        if voice.copies {
            let at = frame.unwrap_or(usize::MAX / 64) * self.channels;
            output.extend_from_slice(self.input.get(at..at + self.channels).unwrap_or_default());
        } else if let Some(first) = frame.and_then(|frame| (frame + 1).checked_sub(HALF)) {
            let first = first * self.channels;
            let window = self.input.get(first..first + 2 * HALF * self.channels).unwrap_or_default();
            self.bank.blend(voice.fraction, filter);
            match self.channels {
                1 => output.push(filter.iter().zip(window).map(|(tap, sample)| tap * sample).sum()),
                2 => output.extend(stereo(filter, window)),
                channels => output.extend((0..channels).map(|channel| {
                    let samples = window.iter().skip(channel).step_by(channels);
                    filter.iter().zip(samples).map(|(tap, sample)| tap * sample).sum::<f64>()
                })),
            }
        }
        // What is no longer there is silence.
        output.resize(start + self.channels, 0.0);
    }

    /// Appends frames that never came: the last ones backwards, fading out.
    fn make_up(&mut self, frames: usize) {
        if self.end() == self.received {
            self.gaps += 1;
        }
        self.blend = None;
        let fade = FADE * self.rate;
        for _ in 0..frames {
            let past = self.end().saturating_sub(self.received);
            let gain = (1.0 - (past + 1) as f64 / fade).max(0.0);
            let mirror = self.received.checked_sub(past + 1).and_then(|frame| frame.checked_sub(self.base));
            let at = mirror.map_or(usize::MAX / 64, |frame| frame as usize) * self.channels;
            let frame: Vec<f64> =
                self.input.get(at..at + self.channels).unwrap_or_default().iter().map(|x| x * gain).collect();
            self.input.extend_from_slice(&frame);
            self.input.resize(self.input.len() + self.channels - frame.len(), 0.0);
        }
    }

    /// Lets go of input that is played, and of more than is kept.
    fn forget(&mut self) {
        let old = self.fading.and_then(|(old, _)| old);
        let place = self.voice.iter().chain(old.iter()).map(|voice| voice.frame).min();
        let behind = self.latency as u64 + (BEHIND * self.rate) as u64;
        let played = place.unwrap_or(u64::MAX).min(self.received).saturating_sub(behind);
        let kept = self.end().saturating_sub((KEPT * self.rate) as u64 + behind);
        let past = played.max(kept).saturating_sub(self.base);
        if past > (0.1 * self.rate) as u64 {
            let past = past.min(self.end() - self.base);
            self.input.drain(..past as usize * self.channels);
            self.base += past;
        }
    }
}
