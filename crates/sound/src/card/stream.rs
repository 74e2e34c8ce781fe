//! Streams: what a program plays, what a program records.

use crate::mix::{Matrix, Rules};
use crate::pcm::{Map, Position, Spec};
use crate::pulse::buffer::{Attributes, Buffer};
use crate::pulse::command::gain;
use crate::pulse::tag::Properties;
use crate::resample::Resampler;

/// Volumes of channels and mute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volume {
    pub channels: Vec<u32>,
    pub muted: bool,
}

impl Volume {
    pub fn normal(channels: u8) -> Self {
        Self { channels: vec![crate::pulse::command::VOLUME_NORMAL; usize::from(channels)], muted: false }
    }

    /// Whether samples stay what they are.
    fn is_unity(&self) -> bool {
        !self.muted && self.channels.iter().all(|volume| *volume == crate::pulse::command::VOLUME_NORMAL)
    }

    /// Amplifies interleaved frames of that many channels.
    pub fn apply(&self, samples: &mut [f64], channels: u8) {
        if self.muted {
            samples.fill(0.0);
        } else if !self.is_unity() {
            let gains: Vec<f64> = self.channels.iter().map(|volume| gain(*volume)).collect();
            let same = gains.len() == usize::from(channels);
            let mean = gains.iter().sum::<f64>() / gains.len().max(1) as f64;
            for frame in samples.chunks_exact_mut(usize::from(channels.max(1))) {
                for (n, sample) in frame.iter_mut().enumerate() {
                    *sample *= if same { gains.get(n).copied().unwrap_or(1.0) } else { mean };
                }
            }
        }
    }
}

/// What a playback stream says while it is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Started,
    Underflow(i64),
    Drained(u32),
    /// A sample of the cache has been played.
    Over,
}

/// Where a stream belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub client: u32,
    pub channel: u32,
}

/// A sink input.
#[derive(Debug)]
pub(super) struct Playback {
    /// `None`: a sample of the cache.
    pub owner: Option<Owner>,
    pub sink: u32,
    pub spec: Spec,
    pub map: Map,
    pub rules: Rules,
    pub buffer: Buffer,
    pub properties: Properties,
    pub volume: Volume,
    pub corked: bool,
    /// The tag that waits for the end.
    pub drain: Option<u32>,
    /// Whether it is heard, or has run dry since.
    pub playing: bool,
    pub underrun_said: bool,
    pub playing_for: u64,
    pub underrun_for: u64,
    /// Whether a free clock has given up waiting for it.
    pub released: bool,
    /// Where it was said to be, in bytes, and when.
    told: (i64, u64),
    matrix: Matrix,
    resampler: Option<Resampler>,
    /// Frames of silence in the resampler behind the last frame.
    quiet: usize,
    bytes: Vec<u8>,
    samples: Vec<f64>,
    mixed: Vec<f64>,
}

impl Playback {
    pub fn new(owner: Option<Owner>, sink: u32, spec: Spec, map: Map, rules: Rules, attributes: Attributes) -> Self {
        Self {
            owner,
            sink,
            spec,
            rules,
            buffer: Buffer::new(attributes, spec.format.silence()),
            properties: Properties::default(),
            volume: Volume::normal(spec.channels),
            corked: false,
            drain: None,
            playing: false,
            underrun_said: false,
            playing_for: 0,
            underrun_for: u64::MAX,
            released: false,
            told: (0, 0),
            matrix: Matrix::new(&map, &map, rules),
            map,
            resampler: None,
            quiet: usize::MAX,
            bytes: Vec::new(),
            samples: Vec::new(),
            mixed: Vec::new(),
        }
    }

    /// Connects it to a sink of that map and rate.
    pub fn connect(&mut self, map: &[Position], rate: u32) {
        self.matrix = Matrix::new(&self.map, map, self.rules);
        self.resampler = (self.spec.rate != rate).then(|| Resampler::new(self.spec.channels, self.spec.rate, rate));
        self.quiet = usize::MAX;
    }

    /// Whether time passes for it.
    pub fn is_running(&self) -> bool {
        !self.corked && !self.buffer.is_prebuffering() && (self.frames() > 0 || self.plays_on() || self.has_tail())
    }

    /// With `prebuf` 0, or while a free clock waits for it, an empty buffer is no end.
    fn plays_on(&self) -> bool {
        self.buffer.attributes().prebuf == 0 && self.owner.is_some()
    }

    fn has_tail(&self) -> bool {
        self.resampler.as_ref().is_some_and(|resampler| self.quiet < resampler.delay())
    }

    fn tail(&self) -> usize {
        self.resampler.as_ref().map_or(0, |resampler| resampler.delay().saturating_sub(self.quiet))
    }

    /// Frames in the buffer.
    pub fn frames(&self) -> usize {
        self.buffer.length() / self.spec.frame_bytes()
    }

    /// Frames of a card of that rate that it can play before it is dry or at its end; `None` when it waits for nothing.
    pub fn ready(&self, rate: u32) -> Option<u64> {
        if !self.is_running() {
            // A free clock waits for what was being played and is not finished.
            let starved =
                self.playing && !self.corked && self.drain.is_none() && !self.released && self.owner.is_some();
            return starved.then_some(0);
        }
        let Some(resampler) = &self.resampler else {
            return match self.frames() {
                0 if self.drain.is_some() || self.released || self.owner.is_none() => None,
                frames => Some(frames as u64),
            };
        };
        let ends = self.drain.is_some() || self.owner.is_none() || self.released;
        let input = self.frames() + if ends { self.tail() } else { 0 };
        // The largest number of frames that needs no more input.
        let mut low = 0u64;
        let mut high = (input as u64).saturating_mul(u64::from(rate)) / u64::from(self.spec.rate) + 2;
        while low < high {
            let middle = (low + high).div_ceil(2);
            if resampler.needed(middle) <= input { low = middle } else { high = middle - 1 }
        }
        if low == 0 && ends { None } else { Some(low) }
    }

    /// Whether a free clock goes by it: it has something to play, or is expected to.
    pub fn leads(&self, rate: u32) -> bool {
        (!self.released || self.frames() > 0) && (self.is_running() || self.ready(rate).is_some())
    }

    /// Frames of a card of that rate until something has to be said about it; where it is `recorded` a request that does not
    /// matter yet waits for a fragment to go with.
    pub fn due(&self, rate: u32, recorded: bool) -> Option<u64> {
        if !self.is_running() {
            return None;
        }
        let frame = self.spec.frame_bytes();
        let request = self.buffer.before_request().div_ceil(frame);
        let least = self.buffer.attributes().minreq as usize / frame;
        let patient = recorded && self.frames() > request + 2 * least;
        let request = request + if patient { least / 2 } else { 0 };
        let end = if self.plays_on() && self.drain.is_none() { request } else { self.frames() + self.tail() };
        Some((request.min(end) as u64).saturating_mul(u64::from(rate)).div_ceil(u64::from(self.spec.rate)))
    }

    /// Plays `frames` frames into `bus`, which has `channels`.
    pub fn play(&mut self, frames: usize, bus: &mut [f64], events: &mut Vec<Event>) {
        if self.corked {
            return;
        }
        let frame = self.spec.frame_bytes();
        if self.is_running() {
            let wanted = self.resampler.as_ref().map_or(frames, |resampler| resampler.needed(frames as u64));
            let have = self.frames().min(wanted);
            self.bytes.clear();
            self.samples.clear();
            self.mixed.clear();
            self.buffer.read(have * frame, &mut self.bytes);
            self.spec.format.decode(&self.bytes, &mut self.samples);
            self.volume.apply(&mut self.samples, self.spec.channels);
            if have > 0 {
                self.playing_for = self.playing_for.saturating_add((have * frame) as u64);
                self.underrun_for = 0;
                (self.underrun_said, self.released) = (false, false);
                self.quiet = 0;
                if !self.playing {
                    self.playing = true;
                    events.push(Event::Started);
                }
            }
            if let Some(resampler) = &mut self.resampler {
                self.samples.resize(wanted * usize::from(self.spec.channels), 0.0);
                resampler.push(&self.samples);
                self.samples.clear();
                resampler.pull(frames, &mut self.samples);
                self.quiet = self.quiet.saturating_add(wanted - have);
            }
            self.matrix.apply(&self.samples, &mut self.mixed);
            bus.iter_mut().zip(&self.mixed).for_each(|(sum, sample)| *sum += sample);
            if have < wanted && self.plays_on() && self.drain.is_none() {
                self.buffer.skip((wanted - have) * frame);
                self.underrun_for = self.underrun_for.saturating_add(((wanted - have) * frame) as u64);
            }
        } else if self.underrun_for != u64::MAX {
            self.underrun_for = self.underrun_for.saturating_add((frames * frame) as u64);
        }
        self.finish(events);
    }

    /// Says so when it was asked for the end and has come to it.
    pub fn finish(&mut self, events: &mut Vec<Event>) {
        if self.corked || self.frames() > 0 || self.has_tail() {
            return;
        }
        if self.owner.is_none() {
            events.push(Event::Over);
        } else if let Some(tag) = self.drain.take() {
            events.push(Event::Drained(tag));
            self.playing = false;
            self.underrun_said = true;
            self.buffer.prebuffer();
        }
    }

    /// The read index that its client is told at `nanos`.
    ///
    /// While a free clock counts, a stream that plays on without data (`prebuf` 0: its client takes the time from it) is
    /// said to go no faster than time: libpulse draws a curve through what it is told, and one that jumps by a second
    /// within a millisecond and then stands still leads it below 0, where GStreamer waits for the end of time.
    pub fn told_index(&mut self, nanos: u64, free: bool) -> i64 {
        let index = self.buffer.read_index();
        if !free || self.buffer.attributes().prebuf > 0 {
            return index;
        }
        let (before, when) = self.told;
        let passed = self.spec.bytes_of((nanos.saturating_sub(when) / 1000).min(60_000_000));
        self.told = (index.min(before.saturating_add(i64::from(passed))), nanos);
        self.told.0
    }

    /// Says that it has run dry, when it has: a real clock at once, a free clock when it has waited in vain.
    pub fn underrun(&mut self, events: &mut Vec<Event>) {
        if self.drain.is_none() && self.owner.is_some() && self.frames() == 0 && !self.corked {
            if self.playing && !self.underrun_said {
                self.underrun_said = true;
                events.push(Event::Underflow(self.buffer.read_index()));
            }
            self.playing = false;
            self.released = true;
            self.buffer.prebuffer();
        }
    }
}

/// A source output.
#[derive(Debug)]
pub(super) struct Record {
    pub owner: Owner,
    pub source: u32,
    /// The only sink input that it hears.
    pub direct: Option<u32>,
    pub spec: Spec,
    pub map: Map,
    pub rules: Rules,
    pub maxlength: u32,
    pub fragsize: u32,
    pub properties: Properties,
    pub volume: Volume,
    pub corked: bool,
    /// Bytes that wait to be sent.
    pub pending: Vec<u8>,
    /// Bytes that were recorded, and that were sent.
    pub written: u64,
    pub sent: u64,
    matrix: Matrix,
    resampler: Option<Resampler>,
    samples: Vec<f64>,
}

impl Record {
    pub fn new(owner: Owner, source: u32, spec: Spec, map: Map, rules: Rules, maxlength: u32, fragsize: u32) -> Self {
        Self {
            owner,
            source,
            direct: None,
            spec,
            rules,
            maxlength,
            fragsize,
            properties: Properties::default(),
            volume: Volume::normal(spec.channels),
            corked: false,
            pending: Vec::new(),
            written: 0,
            sent: 0,
            matrix: Matrix::new(&map, &map, rules),
            map,
            resampler: None,
            samples: Vec::new(),
        }
    }

    /// The metrics of its buffer, settled: fragments of 20 ms where the client has no wish.
    pub fn settle(spec: &Spec, maxlength: u32, fragsize: u32) -> (u32, u32) {
        let frame = u32::try_from(spec.frame_bytes()).unwrap_or(1).max(1);
        let whole = |bytes: u32| (bytes / frame * frame).max(frame);
        let maxlength = whole(maxlength.min(crate::pulse::buffer::MAXLENGTH));
        let fragsize = if fragsize == u32::MAX { spec.bytes_of(20_000) } else { fragsize };
        (maxlength, whole(fragsize.min(maxlength / 2)))
    }

    /// Connects it to a source of that map and rate.
    pub fn connect(&mut self, map: &[Position], rate: u32) {
        self.matrix = Matrix::new(map, &self.map, self.rules);
        self.resampler = (self.spec.rate != rate).then(|| Resampler::new(self.spec.channels, rate, self.spec.rate));
    }

    /// Takes what a source carries.
    pub fn take(&mut self, bus: &[f64]) {
        if self.corked {
            return;
        }
        self.samples.clear();
        self.matrix.apply(bus, &mut self.samples);
        if let Some(resampler) = &mut self.resampler {
            resampler.push(&self.samples);
            self.samples.clear();
            resampler.pull(usize::MAX, &mut self.samples);
        }
        self.volume.apply(&mut self.samples, self.spec.channels);
        let room = (self.maxlength as usize).saturating_sub(self.pending.len()) / self.spec.frame_bytes();
        // Whoever does not read loses what is newest, as with PulseAudio.
        self.samples.truncate(room * usize::from(self.spec.channels));
        let before = self.pending.len();
        self.spec.format.encode(&self.samples, &mut self.pending);
        self.written += (self.pending.len() - before) as u64;
    }

    /// Seconds of what it has recorded and not sent.
    pub fn pending_seconds(&self) -> f64 {
        (self.pending.len() / self.spec.frame_bytes()) as f64 / f64::from(self.spec.rate)
    }

    /// Frames of a card of that rate until a fragment is full.
    pub fn due(&self, rate: u32) -> Option<u64> {
        let left = (self.fragsize as usize).saturating_sub(self.pending.len()).div_ceil(self.spec.frame_bytes());
        (!self.corked).then(|| (left as u64).saturating_mul(u64::from(rate)).div_ceil(u64::from(self.spec.rate)))
    }
}
