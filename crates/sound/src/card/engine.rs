//! The card's state and its clock. Nothing here reads a clock, opens a file or knows a socket.

use std::collections::{BTreeMap, VecDeque};

use super::pipe::Pipe;
use super::stream::{Event, Playback, Record, Volume};
use super::{Clock, Now, Options};
use crate::pcm::{Map, Spec};
use crate::pulse::command::{event, facility, op};
use crate::pulse::frame;
use crate::pulse::tag::{Properties, Writer};

/// Most clients at a time.
pub const CLIENTS_MAX: usize = 64;
/// Most streams of one client.
pub const STREAMS_MAX: usize = 64;
/// Most streams of all clients together, as a sink of PulseAudio has.
pub const STREAMS_ALL_MAX: usize = 256;
/// Most sinks, those of modules among them.
pub const SINKS_MAX: usize = 16;
/// Most bytes in all buffers of all streams.
pub const BUFFERED_MAX: usize = 256 << 20;
/// Most bytes in the sample cache.
pub const SAMPLES_MAX: usize = 64 << 20;
/// Most bytes of one sample of the cache, as in PulseAudio.
pub const SAMPLE_MAX: u32 = 16 << 20;
/// Bytes that may wait for a client before it gets no more of what it records.
const OUTGOING_RECORDS: usize = 256 << 10;
/// Bytes that may wait for a client before it is hung up on.
const OUTGOING_MAX: usize = 4 << 20;
/// Frames that are mixed at a time.
const BLOCK: u64 = 2048;
/// Most blocks that a real clock makes before sockets are looked at again: 0.3 s at 48 kHz.
const REAL_BLOCKS: usize = 8;
/// Most blocks that a free clock makes before sockets are looked at again.
const FREE_BLOCKS: usize = 32;
/// Time between two calls while something plays, when nobody asks for less.
const TICK_NANOS: u64 = 50_000_000;
/// Time that a free clock waits for a program that neither writes nor reads.
const PATIENCE_NANOS: u64 = 2_000_000_000;
/// Longest time that samples may lie in a socket, and what has to be left to play when they are taken.
const WAIT_NANOS: u64 = 1_200_000;
const WAIT_MARGIN_NANOS: u64 = 4_000_000;
const NANOS: u128 = 1_000_000_000;

/// What the WAV file gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// Interleaved samples of the card.
    Samples(Vec<f64>),
    /// Frames of silence in which nobody played.
    Silence(u64),
}

/// What happened to a stream, for a folder of WAV files. Frames are those of the mix, from its first sound on.
#[derive(Debug, Clone, PartialEq)]
pub enum Happened {
    /// What it gave to the mix, before the sink's volume.
    Played {
        /// Its index.
        stream: u32,
        /// Where the samples belong.
        frame: u64,
        /// Interleaved samples of the card.
        samples: Vec<f64>,
    },
    /// Something that is worth a line.
    Event {
        /// Where it belongs; `None` before the first sound.
        frame: Option<u64>,
        /// In a word.
        event: &'static str,
        /// Its index.
        stream: u32,
        /// Whose it is.
        application: String,
    },
}

#[derive(Debug, Default)]
pub(super) struct Client {
    pub version: u32,
    pub authorized: bool,
    pub subscription: u32,
    pub properties: Properties,
    pub frames: frame::Reader,
    /// Whether what it sent last was samples and nothing else.
    pub only_samples: bool,
    pub outgoing: Vec<u8>,
    pub next_channel: u32,
    pub uploads: BTreeMap<u32, Upload>,
    /// Hung up on as soon as what waits has been sent.
    pub over: bool,
}

#[derive(Debug)]
pub(super) struct Upload {
    pub name: String,
    pub spec: Spec,
    pub map: Map,
    pub properties: Properties,
    pub length: usize,
    pub data: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Sample {
    pub index: u32,
    pub upload: Upload,
}

#[derive(Debug)]
pub(super) struct Sink {
    pub index: u32,
    pub name: String,
    pub description: String,
    pub module: Option<u32>,
    pub volume: Volume,
    pub suspended: bool,
    pub bus: Vec<f64>,
    /// What is played and not recorded yet.
    delay: VecDeque<f64>,
}

#[derive(Debug, Clone)]
pub(super) struct Source {
    pub index: u32,
    pub name: String,
    pub description: String,
    pub module: Option<u32>,
    /// The sink that it is the monitor of.
    pub monitor_of: Option<u32>,
    /// What it carries.
    pub carries: Carried,
    /// Which channel of that each of its channels is; `None`: the same.
    pub order: Option<Vec<usize>>,
    pub volume: Volume,
    pub suspended: bool,
}

/// What a source carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    Sink(u32),
    Microphone,
    /// What comes through the FIFO of a module.
    Pipe(u32),
}

/// A loop inside the card, of `module-loopback`.
#[derive(Debug)]
pub(super) struct Loop {
    pub module: u32,
    pub source: u32,
    pub sink: u32,
    /// What was carried and is not played yet.
    pub delay: VecDeque<f64>,
}

#[derive(Debug)]
pub(super) struct Module {
    pub index: u32,
    pub name: String,
    pub argument: String,
}

/// The card.
#[derive(Debug)]
pub struct Engine {
    pub(super) options: Options,
    pub(super) clients: BTreeMap<u32, Client>,
    pub(super) sinks: Vec<Sink>,
    pub(super) sources: Vec<Source>,
    pub(super) playbacks: BTreeMap<u32, Playback>,
    pub(super) records: BTreeMap<u32, Record>,
    pub(super) samples: Vec<Sample>,
    pub(super) modules: Vec<Module>,
    pub(super) loops: Vec<Loop>,
    pub(super) pipes: Vec<Pipe>,
    pub(super) default_sink: String,
    pub(super) default_source: String,
    pub(super) now: Now,
    next_index: u32,
    /// When the clock began, and the frames since.
    origin: Option<u64>,
    position: u64,
    /// When a free clock last moved.
    moved: u64,
    /// Whether something has been played; frames of silence since.
    hearing: bool,
    silence: u64,
    heard: Vec<Heard>,
    /// Whether each stream's part is kept; what happened; the frame of the mix that it belongs to, and where the mix ends.
    traces: bool,
    happened: Vec<Happened>,
    mark: u64,
    mixed: u64,
    pub(super) phase: u64,
    /// Where the microphone is in its file.
    pub(super) mic_at: usize,
}

impl Engine {
    /// A card with nobody at it.
    pub fn new(options: Options) -> Self {
        let channels = options.spec.channels;
        let mut engine = Self {
            options,
            clients: BTreeMap::new(),
            sinks: Vec::new(),
            sources: Vec::new(),
            playbacks: BTreeMap::new(),
            records: BTreeMap::new(),
            samples: Vec::new(),
            modules: Vec::new(),
            loops: Vec::new(),
            pipes: Vec::new(),
            default_sink: "loopbox".to_owned(),
            default_source: "loopbox.mic".to_owned(),
            now: Now::default(),
            next_index: 0,
            origin: None,
            position: 0,
            moved: 0,
            hearing: false,
            silence: 0,
            heard: Vec::new(),
            traces: false,
            happened: Vec::new(),
            mark: 0,
            mixed: 0,
            phase: 0,
            mic_at: 0,
        };
        engine.add_sink("loopbox", "loopbox: what is played is what is recorded", None);
        engine.sources.push(Source {
            index: 1,
            name: "loopbox.mic".to_owned(),
            description: "loopbox microphone".to_owned(),
            module: None,
            monitor_of: None,
            carries: Carried::Microphone,
            order: None,
            volume: Volume::normal(channels),
            suspended: false,
        });
        engine
    }

    /// A new sink and its monitor, which is the source of the same index (but for the microphone's, 1).
    pub(super) fn add_sink(&mut self, name: &str, description: &str, module: Option<u32>) -> u32 {
        let channels = self.options.spec.channels;
        let index = if module.is_none() { 0 } else { self.take_index().saturating_add(2) };
        let frames = self.options.delay.as_nanos() * u128::from(self.options.spec.rate) / NANOS;
        let delay = vec![0.0; usize::try_from(frames).unwrap_or(0) * usize::from(channels)].into();
        let (volume, bus) = (Volume::normal(channels), Vec::new());
        let (name, description) = (name.to_owned(), description.to_owned());
        self.sources.push(Source {
            index,
            name: format!("{name}.monitor"),
            description: format!("Monitor of {description}"),
            module,
            monitor_of: Some(index),
            carries: Carried::Sink(index),
            order: None,
            volume: volume.clone(),
            suspended: false,
        });
        self.sinks.push(Sink { index, name, description, module, volume, suspended: false, bus, delay });
        index
    }

    pub(super) fn take_index(&mut self) -> u32 {
        let index = self.next_index;
        self.next_index = index.wrapping_add(1) & 0x7fff_ffff;
        index
    }

    /// Somebody connects; `None` when the card is full.
    pub fn connect(&mut self) -> Option<u32> {
        if self.clients.len() >= CLIENTS_MAX {
            return None;
        }
        let index = self.take_index();
        self.clients.insert(index, Client::default());
        Some(index)
    }

    /// A client is gone: its streams end.
    pub fn disconnect(&mut self, client: u32) {
        if self.clients.remove(&client).is_none() {
            return;
        }
        let playbacks: Vec<u32> = self
            .playbacks
            .iter()
            .filter(|(_, s)| s.owner.is_some_and(|o| o.client == client))
            .map(|(n, _)| *n)
            .collect();
        let records: Vec<u32> =
            self.records.iter().filter(|(_, s)| s.owner.client == client).map(|(n, _)| *n).collect();
        playbacks.into_iter().for_each(|index| self.remove_playback(index));
        records.into_iter().for_each(|index| self.remove_record(index));
        self.notify(facility::CLIENT, event::REMOVE, client);
    }

    pub(super) fn remove_playback(&mut self, index: u32) {
        self.note("removed", index);
        if self.playbacks.remove(&index).is_some() {
            self.notify(facility::SINK_INPUT, event::REMOVE, index);
        }
    }

    pub(super) fn remove_record(&mut self, index: u32) {
        self.note("removed", index);
        if self.records.remove(&index).is_some() {
            self.notify(facility::SOURCE_OUTPUT, event::REMOVE, index);
        }
    }

    /// What waits to be sent to a client. Whoever sends removes it from the front.
    pub fn outgoing(&mut self, client: u32) -> Option<&mut Vec<u8>> {
        self.clients.get_mut(&client).map(|client| &mut client.outgoing)
    }

    /// Whether something waits to be sent to a client.
    pub fn waits_for(&self, client: u32) -> bool {
        self.clients.get(&client).is_some_and(|client| !client.outgoing.is_empty())
    }

    /// A client has closed its side: it is let go of with the next sending.
    pub fn end(&mut self, client: u32) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.over = true;
        }
    }

    /// Whether a client is to be hung up on.
    pub fn is_over(&self, client: u32) -> bool {
        self.clients.get(&client).is_none_or(|client| client.over)
    }

    /// Whether what a client sends can wait for the card's next turn, `nanos` from now: it sends nothing but samples, and its
    /// streams have enough to play until long after that.
    pub fn can_wait(&self, client: u32, nanos: u64) -> bool {
        let plays_on = |stream: &Playback| {
            let frames = u128::from(nanos + WAIT_MARGIN_NANOS) * u128::from(stream.spec.rate) / NANOS;
            stream.is_running() && stream.frames() as u128 >= frames
        };
        nanos <= WAIT_NANOS
            && self.keeps_time()
            && self.clients.get(&client).is_some_and(|client| client.only_samples)
            && self.playbacks.values().filter(|s| s.owner.is_some_and(|owner| owner.client == client)).all(plays_on)
    }

    /// Whether so much waits for a client that nothing is to be read from it.
    pub fn is_behind(&self, client: u32) -> bool {
        self.clients.get(&client).is_some_and(|client| client.outgoing.len() > 4 * OUTGOING_RECORDS)
    }

    /// What has been heard since the last call.
    pub fn heard(&mut self) -> Vec<Heard> {
        std::mem::take(&mut self.heard)
    }

    /// Keeps each stream's part of the mix, and what happens, for [`Engine::happened`].
    pub fn trace(&mut self) {
        self.traces = true;
    }

    /// What has happened since the last call.
    pub fn happened(&mut self) -> Vec<Happened> {
        std::mem::take(&mut self.happened)
    }

    /// Something happens to a stream.
    pub(super) fn note(&mut self, event: &'static str, stream: u32) {
        if !self.traces {
            return;
        }
        let playback = self.playbacks.get(&stream).map(|stream| &stream.properties);
        let properties = playback.or(self.records.get(&stream).map(|stream| &stream.properties));
        let name = ["application.name", "application.process.binary", "media.name"];
        let application = properties.and_then(|list| name.iter().find_map(|key| list.text(key)));
        let application = application.unwrap_or_default().to_owned();
        let frame = self.hearing.then_some(self.mark);
        self.happened.push(Happened::Event { frame, event, stream, application });
    }

    /// Whether it counts by time, or by little more.
    pub(super) fn keeps_time(&self) -> bool {
        matches!(self.options.clock, Clock::Real { speed_ppm: 0..=2_000_000 })
    }

    /// Frames of the card's clock so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn send(&mut self, client: u32, packet: Writer) {
        if let Some(client) = self.clients.get_mut(&client) {
            if client.outgoing.len() > OUTGOING_MAX {
                client.over = true;
            } else {
                frame::put_packet(&packet.into_bytes(), &mut client.outgoing);
            }
        }
    }

    /// A packet that nobody asked for.
    pub(super) fn say(&mut self, client: u32, command: u32, build: impl FnOnce(&mut Writer)) {
        let mut packet = Writer::new();
        packet.u32(command).u32(u32::MAX);
        build(&mut packet);
        self.send(client, packet);
    }

    /// Tells all who subscribed.
    pub(super) fn notify(&mut self, facility: u32, event: u32, index: u32) {
        let who: Vec<u32> =
            self.clients.iter().filter(|(_, c)| c.subscription & (1 << facility) != 0).map(|(n, _)| *n).collect();
        for client in who {
            self.say(client, op::SUBSCRIBE_EVENT, |packet| {
                packet.u32(facility | event).u32(index);
            });
        }
    }

    /// Moves the card's clock to `now`.
    pub fn advance(&mut self, now: Now) {
        self.now = now;
        self.finish_streams();
        match self.options.clock {
            Clock::Real { speed_ppm } => {
                let origin = *self.origin.get_or_insert(now.nanos);
                let rate = u128::from(self.options.spec.rate) * self.speed_ppb(speed_ppm);
                let frames = u128::from(now.nanos.saturating_sub(origin)) * rate / (NANOS * NANOS);
                let to = u64::try_from(frames).unwrap_or(u64::MAX);
                // A machine that is too slow for its streams falls behind, and still serves its clients.
                for _ in 0..REAL_BLOCKS {
                    if self.position >= to {
                        break;
                    }
                    let left = to - self.position;
                    let frames = if self.is_idle() { left } else { self.block().min(left) };
                    self.run(frames);
                }
                self.report_underruns();
            }
            Clock::Free => self.advance_free(),
        }
        self.send_records(false);
        self.send_requests(false);
    }

    /// The clock's speed, its drift included, in parts per thousand million.
    fn speed_ppb(&self, speed_ppm: u64) -> u128 {
        let nominal = u128::from(speed_ppm) * 1000;
        let drift = nominal * u128::from(self.options.drift_ppb.unsigned_abs()) / NANOS;
        if self.options.drift_ppb < 0 { nominal.saturating_sub(drift).max(1) } else { nominal + drift }
    }

    /// Silences what falls into a gap, of frames that begin at `first`.
    fn cut_gaps(&mut self, first: u64) {
        let (Some(gap), Some(sink)) = (self.options.gap, self.sinks.first_mut()) else { return };
        let frames = |time: std::time::Duration| time.as_nanos() * u128::from(self.options.spec.rate) / NANOS;
        let (period, sounding) = (frames(gap.period).max(1), frames(gap.period - gap.length));
        let channels = usize::from(self.options.spec.channels);
        for (number, frame) in (u128::from(first)..).zip(sink.bus.chunks_exact_mut(channels)) {
            if number % period >= sounding {
                frame.fill(0.0);
            }
        }
    }

    /// Most frames at a time: what a loop plays has to be carried before.
    fn block(&self) -> u64 {
        let channels = usize::from(self.options.spec.channels);
        self.loops.iter().map(|one| (one.delay.len() / channels) as u64).min().unwrap_or(BLOCK).clamp(1, BLOCK)
    }

    fn is_idle(&self) -> bool {
        self.loops.is_empty()
            && !self.playbacks.values().any(Playback::is_running)
            && self.records.values().all(|record| record.corked)
    }

    /// The frames that a free clock can make now; `None` when nothing plays.
    fn ready(&self) -> Option<u64> {
        let rate = self.options.spec.rate;
        if !self.playbacks.values().any(|stream| stream.leads(rate)) {
            return None;
        }
        let least = self.playbacks.values().filter_map(|stream| stream.ready(rate)).min().unwrap_or(BLOCK);
        Some(if self.is_reader_behind() { 0 } else { least.min(self.block()) })
    }

    fn is_reader_behind(&self) -> bool {
        self.records.values().any(|record| {
            !record.corked
                && record.pending.len() as u64 >= u64::from(record.fragsize)
                && self.clients.get(&record.owner.client).is_some_and(|client| client.outgoing.len() > OUTGOING_RECORDS)
        })
    }

    fn advance_free(&mut self) {
        for _ in 0..FREE_BLOCKS {
            match self.ready() {
                Some(0) if self.now.nanos.saturating_sub(self.moved) < PATIENCE_NANOS => {
                    self.send_requests(true);
                    self.send_records(true);
                    return;
                }
                Some(0) => {
                    // Whoever made the clock wait is not waited for any more until it does something.
                    self.report_underruns();
                    if self.is_reader_behind() {
                        self.run(self.block());
                    } else {
                        self.moved = self.now.nanos;
                    }
                }
                Some(frames) => {
                    self.run(frames);
                    self.moved = self.now.nanos;
                }
                None if !self.is_idle() => {
                    // Somebody records, or left a stream behind, and nothing plays: silence takes the time that it takes.
                    let frames = u128::from(self.now.nanos.saturating_sub(self.moved))
                        * u128::from(self.options.spec.rate)
                        / NANOS;
                    let frames = u64::try_from(frames).unwrap_or(0).min(self.block());
                    if frames == 0 || self.is_reader_behind() {
                        return;
                    }
                    self.run(frames);
                    let nanos = u128::from(frames) * NANOS / u128::from(self.options.spec.rate.max(1));
                    self.moved += u64::try_from(nanos).unwrap_or(0);
                }
                None => {
                    self.moved = self.now.nanos;
                    return;
                }
            }
            self.send_records(false);
        }
    }

    fn report_underruns(&mut self) {
        self.ask_streams(Playback::underrun);
    }

    fn finish_streams(&mut self) {
        self.ask_streams(Playback::finish);
    }

    fn ask_streams(&mut self, ask: impl Fn(&mut Playback, &mut Vec<Event>)) {
        let mut events = Vec::new();
        for (index, stream) in &mut self.playbacks {
            let mut own = Vec::new();
            ask(stream, &mut own);
            events.extend(own.into_iter().map(|event| (*index, event)));
        }
        self.tell(events);
    }

    /// Nanoseconds until [`Engine::advance`] has to be called again; `None`: not before somebody does something.
    pub fn due(&self) -> Option<u64> {
        let rate = self.options.spec.rate;
        // A request that waits for the next fragment to be sent goes with it.
        let recorded = self.records.values().any(|record| !record.corked);
        let streams = self.playbacks.values().filter_map(|stream| stream.due(rate, recorded));
        // Whoever is behind with reading is waited for by its socket.
        let reads =
            |client: u32| self.clients.get(&client).is_some_and(|client| client.outgoing.len() <= OUTGOING_RECORDS);
        let records =
            self.records.values().filter(|record| reads(record.owner.client)).filter_map(|record| record.due(rate));
        match self.options.clock {
            Clock::Real { speed_ppm } => {
                let looped = (!self.loops.is_empty()).then_some(u64::from(rate));
                let frames = streams.chain(records).chain(looped).min()?;
                let origin = u128::from(self.origin.unwrap_or(self.now.nanos));
                let position = u128::from(self.position) + u128::from(frames.max(1));
                let at = (position * NANOS * NANOS).div_ceil(u128::from(rate) * self.speed_ppb(speed_ppm)) + origin;
                let wait = u64::try_from(at).unwrap_or(u64::MAX).saturating_sub(self.now.nanos);
                Some(wait.clamp(200_000, TICK_NANOS))
            }
            Clock::Free => match self.ready() {
                Some(0) => Some((self.moved + PATIENCE_NANOS).saturating_sub(self.now.nanos).max(1_000_000)),
                Some(_) => Some(0),
                None => {
                    let idle = self.is_idle();
                    let frames = records.min().or((!idle).then_some(u64::from(rate)))?;
                    let nanos = u128::from(frames.max(1)) * NANOS / u128::from(rate.max(1));
                    let at = self.moved.saturating_add(u64::try_from(nanos).unwrap_or(TICK_NANOS));
                    Some(at.saturating_sub(self.now.nanos).clamp(1_000_000, TICK_NANOS))
                }
            },
        }
    }

    /// Lets `frames` frames pass.
    fn run(&mut self, frames: u64) {
        self.position += frames;
        if self.is_idle() {
            self.silence += if self.hearing { frames } else { 0 };
            self.mixed += if self.hearing { frames } else { 0 };
            self.mark = self.mixed;
            for sink in &mut self.sinks {
                let gone =
                    usize::try_from(frames).unwrap_or(usize::MAX).saturating_mul(self.options.spec.channels.into());
                let keep = sink.delay.len();
                sink.delay.drain(..gone.min(keep));
                sink.delay.resize(keep, 0.0);
            }
            return;
        }
        let channels = self.options.spec.channels;
        let frames = usize::try_from(frames).unwrap_or(0);
        let samples = frames * usize::from(channels);
        let mut events = Vec::new();
        let mut direct: BTreeMap<u32, Vec<f64>> =
            self.records.values().filter_map(|record| record.direct).map(|input| (input, vec![0.0; samples])).collect();
        let mut played = false;
        let mut parts = Vec::new();
        for sink in &mut self.sinks {
            sink.bus.clear();
            sink.bus.resize(samples, 0.0);
        }
        for (index, stream) in &mut self.playbacks {
            let Some(sink) = self.sinks.iter_mut().find(|sink| sink.index == stream.sink) else { continue };
            // One that has nothing to play counts as silence until it goes on.
            played |= sink.index == 0 && stream.is_running() && stream.frames() > 0;
            let mut own = Vec::new();
            let traced = self.traces && sink.index == 0;
            if traced || direct.contains_key(index) {
                let mut alone = vec![0.0; samples];
                stream.play(frames, &mut alone, &mut own);
                sink.bus.iter_mut().zip(&alone).for_each(|(sum, sample)| *sum += sample);
                if let Some(kept) = direct.get_mut(index) {
                    kept.copy_from_slice(&alone);
                }
                if traced && alone.iter().any(|sample| *sample != 0.0) {
                    parts.push((*index, alone));
                }
            } else {
                stream.play(frames, &mut sink.bus, &mut own);
            }
            events.extend(own.into_iter().map(|event| (*index, event)));
        }
        for one in &mut self.loops {
            let Some(sink) = self.sinks.iter_mut().find(|sink| sink.index == one.sink) else { continue };
            for (sum, sample) in sink.bus.iter_mut().zip(one.delay.drain(..samples.min(one.delay.len()))) {
                *sum += sample;
                played |= sink.index == 0 && sample != 0.0;
            }
        }
        for sink in &mut self.sinks {
            sink.volume.apply(&mut sink.bus, channels);
            if self.options.gain != 1.0 {
                sink.bus.iter_mut().for_each(|sample| *sample *= self.options.gain);
            }
        }
        self.cut_gaps(self.position - frames as u64);
        self.hear(played, frames as u64);
        if self.hearing {
            let frame = self.mixed;
            self.mark = frame;
            self.mixed += frames as u64;
            let parts = parts.into_iter().map(|(stream, samples)| Happened::Played { stream, frame, samples });
            self.happened.extend(parts);
        }
        for sink in &mut self.sinks {
            if !sink.delay.is_empty() {
                sink.delay.extend(&sink.bus);
                sink.bus.clear();
                sink.bus.extend(sink.delay.drain(..samples));
            }
        }
        self.record(frames, &direct);
        self.tell(events);
        self.mark = self.mixed;
    }

    /// The mix of the first sink, for the WAV file.
    fn hear(&mut self, played: bool, frames: u64) {
        let Some(sink) = self.sinks.first() else { return };
        self.hearing |= played;
        if !self.hearing {
            return;
        }
        if !played && sink.bus.iter().all(|sample| *sample == 0.0) {
            self.silence += frames;
            return;
        }
        if self.silence > 0 {
            self.heard.push(Heard::Silence(std::mem::take(&mut self.silence)));
        }
        match self.heard.last_mut() {
            Some(Heard::Samples(samples)) => samples.extend_from_slice(&sink.bus),
            _ => self.heard.push(Heard::Samples(sink.bus.clone())),
        }
    }

    fn tell(&mut self, events: Vec<(u32, Event)>) {
        for (index, event) in events {
            let word = match event {
                Event::Started => "started",
                Event::Underflow(_) => "underrun",
                Event::Drained(_) => "drained",
                Event::Over => "over",
            };
            self.note(word, index);
            let Some(owner) = self.playbacks.get(&index).map(|stream| stream.owner) else { continue };
            let Some(owner) = owner else {
                // A sample of the cache: nobody waits for news of it.
                if event == Event::Over {
                    self.remove_playback(index);
                }
                continue;
            };
            let newer = self.clients.get(&owner.client).is_some_and(|client| client.version >= 23);
            match event {
                Event::Started => self.say(owner.client, op::STARTED, |packet| {
                    packet.u32(owner.channel);
                }),
                Event::Underflow(at) => self.say(owner.client, op::UNDERFLOW, |packet| {
                    packet.u32(owner.channel);
                    if newer {
                        packet.i64(at);
                    }
                }),
                Event::Drained(tag) => {
                    let mut packet = Writer::new();
                    packet.u32(op::REPLY).u32(tag);
                    self.send(owner.client, packet);
                }
                Event::Over => {}
            }
        }
    }

    /// Asks clients for what their streams have consumed.
    pub(super) fn send_requests(&mut self, now: bool) {
        let mut requests = Vec::new();
        // Requests go with fragments of what is recorded, as if both were in time.
        let recorded = self.records.values().filter(|record| !record.corked).map(Record::pending_seconds);
        let late = recorded.min_by(f64::total_cmp).unwrap_or(f64::INFINITY);
        for stream in self.playbacks.values_mut() {
            let Some(owner) = stream.owner else { continue };
            let late = (late * f64::from(stream.spec.rate)).ceil() as usize;
            let late = late.saturating_mul(stream.spec.frame_bytes());
            let bytes = stream.buffer.request(now && stream.frames() == 0, late);
            if bytes > 0 {
                requests.push((owner, bytes));
            }
        }
        for (owner, bytes) in requests {
            self.say(owner.client, op::REQUEST, |packet| {
                packet.u32(owner.channel).u32(bytes);
            });
        }
    }

    /// Sends what was recorded: whole fragments, or all of it.
    fn send_records(&mut self, all: bool) {
        for record in self.records.values_mut() {
            let Some(client) = self.clients.get_mut(&record.owner.client) else { continue };
            let fragment = record.fragsize as usize;
            let mut sent = 0;
            while client.outgoing.len() <= OUTGOING_RECORDS {
                let left = record.pending.get(sent..).unwrap_or_default();
                let part = left.get(..fragment).unwrap_or(if all { left } else { &[] });
                if part.is_empty() {
                    break;
                }
                frame::put_samples(record.owner.channel, part, &mut client.outgoing);
                sent += part.len();
            }
            record.pending.drain(..sent);
            record.sent += sent as u64;
        }
    }
}
