//! The loop as two clients of PulseAudio: one records from a source, the other plays to a sink. No I/O, no clock.

use super::engine::{Engine, State};
use crate::mix::{Matrix, Rules};
use crate::pcm::{Format, Spec};
use crate::pulse::client::{Client, Device, Event, meaning};
use crate::pulse::command::{VOLUME_NORMAL, op};
use crate::pulse::tag::{Malformed, Properties, Reader};
use crate::resample::Resampler;
use crate::{Error, Kind, Result};

/// Most bytes that a server may want at once: four times PulseAudio's largest buffer.
const BUFFER_MAX: u32 = 16 << 20;
/// Most bytes that wait for a server.
pub(super) const OUTGOING_MAX: usize = 2 * BUFFER_MAX as usize;
/// Most seconds of latency that servers may make of what was asked for.
const LATENCY_MAX: f64 = 12.0;

/// One of the two servers, which may be the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What is recorded.
    Source = 0,
    /// What is played to.
    Sink = 1,
}

/// How loud a channel has been, of full scale.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Level {
    /// The largest sample.
    pub peak: f64,
    /// The root of the mean square.
    pub rms: f64,
}

/// How the loop does.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// How it runs.
    pub state: State,
    /// Seconds from capture to playing.
    pub latency: f64,
    /// How often input was missing.
    pub gaps: u64,
    /// How often it went on elsewhere.
    pub cuts: u64,
    /// Each channel's level since the last time.
    pub levels: Vec<Level>,
}

#[derive(Debug)]
struct Half {
    client: Client,
    name: Option<String>,
    asked_info: Option<u32>,
    device: Option<Device>,
    asked_stream: Option<u32>,
    stream: Option<Stream>,
}

/// What the server made of a stream: bytes that it asked for at first, and those of a fragment or of a request.
#[derive(Debug, Clone, Copy)]
struct Stream {
    channel: u32,
    missing: u32,
    piece: u32,
    device_micros: u64,
}

/// The loop.
#[derive(Debug)]
pub struct Session {
    halves: [Half; 2],
    latency: f64,
    engine: Option<Engine>,
    spec: Spec,
    matrix: Option<Matrix>,
    resampler: Option<Resampler>,
    /// A frame that has not come whole.
    rest: Vec<u8>,
    samples: Vec<f64>,
    mixed: Vec<f64>,
    output: Vec<f64>,
    bytes: Vec<u8>,
    keeps: bool,
    kept: Vec<f64>,
    peaks: Vec<f64>,
    squares: Vec<f64>,
    counted: u64,
}

impl Session {
    /// From a source to a sink, by name or each server's default, `latency` seconds apart.
    pub fn new(cookie: &[u8], source: Option<String>, sink: Option<String>, latency: f64) -> Self {
        let half = |name: Option<String>, command| {
            let mut client = Client::new(cookie, "loopbox");
            let asked = client.send(command, |packet| {
                packet.index(None).text(name.as_deref().unwrap_or(if command == op::GET_SINK_INFO {
                    "@DEFAULT_SINK@"
                } else {
                    "@DEFAULT_SOURCE@"
                }));
            });
            Half { client, name, asked_info: Some(asked), device: None, asked_stream: None, stream: None }
        };
        Self {
            halves: [half(source, op::GET_SOURCE_INFO), half(sink, op::GET_SINK_INFO)],
            latency,
            engine: None,
            spec: Spec { format: Format::F32le, channels: 2, rate: 48_000 },
            matrix: None,
            resampler: None,
            rest: Vec::new(),
            samples: Vec::new(),
            mixed: Vec::new(),
            output: Vec::new(),
            bytes: Vec::new(),
            keeps: false,
            kept: Vec::new(),
            peaks: Vec::new(),
            squares: Vec::new(),
            counted: 0,
        }
    }

    /// Keeps what is played for [`Session::take`].
    pub fn keep(&mut self) {
        self.keeps = true;
    }

    /// What was played since the last time.
    pub fn take(&mut self) -> Vec<f64> {
        std::mem::take(&mut self.kept)
    }

    /// What waits to be sent to a server.
    pub fn outgoing(&mut self, side: Side) -> &mut Vec<u8> {
        let [source, sink] = &mut self.halves;
        match side {
            Side::Source => source.client.outgoing(),
            Side::Sink => sink.client.outgoing(),
        }
    }

    /// The source or the sink, once the server has told of it.
    pub fn device(&self, side: Side) -> Option<&Device> {
        let [source, sink] = &self.halves;
        match side {
            Side::Source => source.device.as_ref(),
            Side::Sink => sink.device.as_ref(),
        }
    }

    /// What the loop's samples are, once it runs.
    pub fn spec(&self) -> Option<Spec> {
        self.engine.as_ref().map(|_| self.spec)
    }

    /// Seconds from capture to playing: what was asked for, or the least that the servers allow.
    pub fn latency(&self) -> f64 {
        self.latency
    }

    /// Nanoseconds of the time when [`Session::advance`] has to be called though nothing came.
    pub fn due(&self) -> Option<u64> {
        self.engine.as_ref().and_then(Engine::due)
    }

    /// How it does; levels are those since the last call.
    pub fn status(&mut self) -> Option<Status> {
        let engine = self.engine.as_ref()?;
        let (gaps, cuts) = engine.interruptions();
        let frames = (self.counted as f64).max(1.0);
        let levels = self.peaks.iter().zip(&self.squares);
        let levels = levels.map(|(peak, sum)| Level { peak: *peak, rms: (sum / frames).sqrt() }).collect();
        self.peaks.fill(0.0);
        self.squares.fill(0.0);
        self.counted = 0;
        let latency = engine.latency().unwrap_or(self.latency);
        Some(Status { state: engine.state(), latency, gaps, cuts, levels })
    }

    /// Takes what a server sent, which came at `nanos`.
    ///
    /// # Errors
    /// What the server refused; an answer that is not the protocol.
    pub fn receive(&mut self, nanos: u64, side: Side, bytes: &[u8]) -> Result<()> {
        let mut events = Vec::new();
        let [source, sink] = &mut self.halves;
        let half = if side == Side::Source { source } else { sink };
        half.client.receive(bytes, &mut events)?;
        let mut came = false;
        for event in events {
            match event {
                Event::Refused(tag, code) => return Err(self.refused(side, tag, code)),
                Event::Reply(tag, packet) => {
                    let done = self.reply(side, tag, &packet);
                    done.map_err(|_| Error::new(Kind::Corrupt, "answer of the sound server"))?;
                }
                Event::Samples(channel, bytes) if side == Side::Source => {
                    let [source, _] = &self.halves;
                    if self.engine.is_some() && source.stream.is_some_and(|stream| stream.channel == channel) {
                        self.captured(&bytes);
                        came = true;
                    }
                }
                Event::Request(channel, bytes) if side == Side::Sink => {
                    if bytes > BUFFER_MAX || self.halves.iter().any(|half| half.client.waiting() > OUTGOING_MAX) {
                        let what = format!("the sound server of the sink wants {bytes} bytes more than it takes");
                        return Err(Error::new(Kind::Limit, what));
                    }
                    let [_, sink] = &self.halves;
                    let frames = u64::from(bytes) / self.spec.frame_bytes() as u64;
                    if let Some(engine) = &mut self.engine
                        && sink.stream.is_some_and(|stream| stream.channel == channel)
                    {
                        engine.request(nanos, frames);
                    }
                }
                Event::Killed(_) => {
                    let what = if side == Side::Source { "the source" } else { "the sink" };
                    return Err(Error::new(Kind::Disconnected, format!("the loop's stream of {what} was ended")));
                }
                Event::Samples(..) | Event::Request(..) => {}
            }
        }
        if came && let Some(engine) = &mut self.engine {
            engine.capture(nanos, &self.mixed);
            self.mixed.clear();
        }
        self.start()?;
        self.advance(nanos);
        Ok(())
    }

    /// Produces what can be produced at `nanos`.
    pub fn advance(&mut self, nanos: u64) {
        let [_, sink] = &mut self.halves;
        let (Some(engine), Some(stream)) = (&mut self.engine, sink.stream) else { return };
        self.output.clear();
        engine.produce(nanos, &mut self.output);
        if self.output.is_empty() {
            return;
        }
        self.bytes.clear();
        self.spec.format.encode(&self.output, &mut self.bytes);
        let skipped = engine.take_skipped().saturating_mul(self.spec.frame_bytes() as u64);
        sink.client.samples(stream.channel, i64::try_from(skipped).unwrap_or(0), &self.bytes);
        for frame in self.output.chunks_exact(usize::from(self.spec.channels)) {
            self.counted += 1;
            for ((peak, sum), sample) in self.peaks.iter_mut().zip(&mut self.squares).zip(frame) {
                *peak = peak.max(sample.abs());
                *sum += sample * sample;
            }
        }
        if self.keeps && engine.state() != State::Acquiring {
            self.kept.extend_from_slice(&self.output);
        }
    }

    /// Samples of the source become frames of the sink's rate and channels.
    fn captured(&mut self, bytes: &[u8]) {
        let [source, _] = &self.halves;
        let Some(device) = &source.device else { return };
        let spec = Spec { format: self.spec.format, ..device.spec };
        self.rest.extend_from_slice(bytes);
        let whole = self.rest.len() / spec.frame_bytes() * spec.frame_bytes();
        self.samples.clear();
        spec.format.decode(self.rest.get(..whole).unwrap_or_default(), &mut self.samples);
        self.rest.drain(..whole);
        if let Some(resampler) = &mut self.resampler {
            resampler.push(&self.samples);
            self.samples.clear();
            resampler.pull(usize::MAX, &mut self.samples);
        }
        match &self.matrix {
            Some(matrix) => matrix.apply(&self.samples, &mut self.mixed),
            None => self.mixed.extend_from_slice(&self.samples),
        }
    }

    fn refused(&self, side: Side, tag: u32, code: u32) -> Error {
        let [source, sink] = &self.halves;
        let (half, what) = if side == Side::Source { (source, "source") } else { (sink, "sink") };
        let (kind, text) = meaning(code);
        let name = half.name.as_deref().unwrap_or("of the default");
        let text = match (kind, half.asked_info == Some(tag)) {
            (Kind::NotFound, true) => {
                format!("{what} `{name}`: the server has none of that name; `loopbox sound list`")
            }
            (Kind::Denied, _) => format!("{what} `{name}`: the server does not let this user in"),
            _ => format!("{what} `{name}`: {text} (error {code} of the server)"),
        };
        Error::new(kind, text)
    }

    fn reply(&mut self, side: Side, tag: u32, packet: &[u8]) -> std::result::Result<(), Malformed> {
        let [source, sink] = &mut self.halves;
        let half = if side == Side::Source { source } else { sink };
        let mut reader = Reader::new(packet);
        if half.asked_info == Some(tag) {
            half.asked_info = None;
            half.device = Some(Device::read(&mut reader)?);
            self.ask_streams();
        } else if half.asked_stream == Some(tag) {
            half.asked_stream = None;
            let (channel, _index) = (reader.u32()?, reader.u32()?);
            let missing = if side == Side::Sink { reader.u32()? } else { 0 };
            let (maxlength, mut piece) = (reader.u32()?, reader.u32()?);
            if side == Side::Sink {
                // Behind the length of the buffer, and what it wants before it plays.
                reader.u32()?;
                piece = reader.u32()?;
            }
            reader.spec()?;
            reader.map()?;
            reader.u32()?;
            reader.text()?;
            reader.bool()?;
            let piece = piece.min(maxlength);
            half.stream = Some(Stream { channel, missing, piece, device_micros: reader.micros()? });
        }
        Ok(())
    }

    /// Both devices are known: both streams can be made.
    fn ask_streams(&mut self) {
        let [source, sink] = &mut self.halves;
        let (Some(from), Some(to)) = (&source.device, &sink.device) else { return };
        // 32 bits of an integer are more than `f32` holds; all the other formats go through it unchanged.
        let wide = |format| matches!(format, Format::S32le | Format::S32be);
        let format = if wide(from.spec.format) && wide(to.spec.format) { Format::S32le } else { Format::F32le };
        self.spec = Spec { format, ..to.spec };
        self.matrix = (from.map != to.map).then(|| Matrix::new(&from.map, &to.map, Rules::default()));
        self.resampler =
            (from.spec.rate != to.spec.rate).then(|| Resampler::new(from.spec.channels, from.spec.rate, to.spec.rate));
        let (peaks, squares) = (vec![0.0; self.spec.channels.into()], vec![0.0; self.spec.channels.into()]);
        (self.peaks, self.squares) = (peaks, squares);
        let micros = (self.latency * 1e6) as u64;
        let record = Spec { format, ..from.spec };
        let properties = |what: &str| {
            Properties::of(&[("media.name", &format!("loopbox loop: {what}")), ("media.role", "abstract")])
        };
        source.asked_stream = Some(source.client.send(op::CREATE_RECORD_STREAM, |packet| {
            packet.spec(&record).map(&from.map).u32(from.index).maybe_text(None);
            packet.u32(u32::MAX).bool(false).u32(record.bytes_of(micros / 8));
            // No remap … variable rate, peaks; the latency is adjusted.
            flags(packet, &[false, false, false, false, false, false, false, false, true]);
            packet.properties(&properties(&to.description)).index(None);
            flags(packet, &[false, false, false]);
        }));
        let (target, least) = (self.spec.bytes_of(micros * 3 / 8), self.spec.bytes_of(micros / 8));
        sink.asked_stream = Some(sink.client.send(op::CREATE_PLAYBACK_STREAM, |packet| {
            packet.spec(&self.spec).map(&to.map).u32(to.index).maybe_text(None).u32(u32::MAX).bool(false);
            packet.u32(target).u32(0).u32(least).u32(0).volumes(&vec![VOLUME_NORMAL; to.map.len()]);
            flags(packet, &[false, false, false, false, false, false, false, false, true]);
            packet.properties(&properties(&from.description));
            flags(packet, &[false, false, false, false, false]);
        }));
    }

    /// Both streams are there: the engine can be made.
    fn start(&mut self) -> Result<()> {
        let [source, sink] = &self.halves;
        let (Some(record), Some(play), Some(from), None) = (source.stream, sink.stream, &source.device, &self.engine)
        else {
            return Ok(());
        };
        let seconds = |spec: Spec, bytes: u32| spec.micros(u64::from(bytes)) as f64 * 1e-6;
        let fragment = seconds(Spec { format: self.spec.format, ..from.spec }, record.piece);
        // A sink takes a request's worth at once, or what it holds itself.
        let taken = seconds(self.spec, play.piece).max(play.device_micros as f64 * 1e-6);
        let frame = self.spec.frame_bytes() as u64;
        let converted = self.resampler.as_ref().map_or(0.0, |r| r.delay() as f64 / f64::from(from.spec.rate));
        let devices = record.device_micros.saturating_add(play.device_micros) as f64 * 1e-6;
        // What the servers take at a time, the filters, and a little to be late in.
        let spare = (self.latency / 16.0).min(0.001);
        let least = fragment + taken + Engine::latency_min(self.spec.rate) + spare;
        let inner = (self.latency - devices - converted).max(least);
        let latency = inner + devices + converted;
        if latency > LATENCY_MAX || play.missing > BUFFER_MAX {
            let what = format!("the sound servers want {latency:.1} s of latency; {LATENCY_MAX} s are the most");
            return Err(Error::new(Kind::Limit, what));
        }
        self.latency = latency;
        self.engine = Some(Engine::new(self.spec.channels, self.spec.rate, inner, u64::from(play.missing) / frame));
        Ok(())
    }
}

fn flags(packet: &mut crate::pulse::tag::Writer, flags: &[bool]) {
    for flag in flags {
        packet.bool(*flag);
    }
}
