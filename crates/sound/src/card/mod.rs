//! The card: an engine without clock and I/O, and the one thread that drives it.
//!
//! ```text
//!   clients ─► driver ─► Engine::receive(now, bytes)        commands and samples
//!              │         Engine::advance(now)               the card's clock: streams ► mix ► monitor, mic, WAV
//!              │◄─────── Engine::outgoing, heard, due       replies, the mix, when it wants to be called again
//! ```

mod carry;
mod create;
mod dispatch;
mod driver;
mod engine;
mod fifo;
mod folder;
mod info;
mod module;
mod pipe;
mod stream;

use std::time::Duration;

pub use driver::{Card, Environment, Meter};
pub use engine::{Engine, Happened, Heard};
pub use pipe::Opening;

use crate::pcm::{Format, Map, Spec, default_map};
use crate::{Error, Kind, Result};

/// What time it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds of a clock that never goes back.
    pub nanos: u64,
    /// Microseconds since 1970, which clients compare with theirs.
    pub wall_micros: u64,
}

/// What the card counts its frames by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// Time, at a speed in parts per million: 1,000,000 is real.
    Real {
        /// The speed.
        speed_ppm: u64,
    },
    /// As fast as programs write and read.
    Free,
}

impl Clock {
    /// Real time.
    pub const REAL: Self = Self::Real { speed_ppm: 1_000_000 };
}

impl std::str::FromStr for Clock {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let speed = match text {
            "real" => return Ok(Self::REAL),
            "free" => return Ok(Self::Free),
            _ => text.strip_prefix('x').and_then(|speed| speed.parse::<f64>().ok()),
        };
        match speed {
            Some(speed) if (0.01..=1000.0).contains(&speed) => {
                Ok(Self::Real { speed_ppm: (speed * 1_000_000.0).round() as u64 })
            }
            _ => Err(Error::new(Kind::Invalid, format!("clock `{text}`: not `real`, `free`, or `x` and 0.01 to 1000"))),
        }
    }
}

/// What the default source carries.
#[derive(Debug, Clone, PartialEq)]
pub enum Mic {
    /// What is played.
    Loop,
    /// Nothing.
    Silence,
    /// A sine of this frequency in Hz, at a tenth of full scale.
    Tone(f64),
    /// A WAV file, over and over, from when the first program records. An [`Engine`] wants it as [`Mic::Samples`].
    Wav(std::path::PathBuf),
    /// Frames of the card's rate and channels, over and over.
    Samples(std::sync::Arc<[f32]>),
}

/// Silence that is put into what is played: of every `period` the last `length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// How long it is silent.
    pub length: Duration,
    /// How often.
    pub period: Duration,
}

/// What card to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// What the card is said to be, and the WAV file is.
    pub spec: Spec,
    /// Where its channels are heard.
    pub map: Map,
    /// What it counts by.
    pub clock: Clock,
    /// Amplification of what is heard.
    pub gain: f64,
    /// Time between what is played and what is recorded.
    pub delay: Duration,
    /// What the default source carries.
    pub mic: Mic,
    /// By how much a real clock is wrong, in parts per thousand million.
    pub drift_ppb: i64,
    /// Silence that a test wants to find.
    pub gap: Option<Gap>,
}

impl Default for Options {
    fn default() -> Self {
        let spec = Spec { format: Format::S16le, channels: 2, rate: 48_000 };
        Self {
            spec,
            map: default_map(2),
            clock: Clock::REAL,
            gain: 1.0,
            delay: Duration::ZERO,
            mic: Mic::Loop,
            drift_ppb: 0,
            gap: None,
        }
    }
}

impl Options {
    /// Longest delay.
    pub const DELAY_MAX: Duration = Duration::from_secs(60);

    /// Most samples of a microphone's WAV file: 5 minutes of 8 channels at 48 kHz, 20 of stereo.
    pub const MIC_SAMPLES_MAX: u64 = 5 * 60 * 8 * 48_000;

    /// Takes a spec apart, a path and options behind commas (`out.wav,rate=44100,clock=free`), and sets the options.
    ///
    /// # Errors
    /// Those of [`Options::set`]; [`Kind::Invalid`] for an option without a value or text that is not UTF-8.
    pub fn parse(&mut self, spec: &std::ffi::OsStr) -> Result<std::path::PathBuf> {
        use std::os::unix::ffi::OsStrExt as _;
        let mut words = spec.as_bytes().split(|byte| *byte == b',');
        let path = words.next().unwrap_or_default();
        for word in words {
            let (name, value) =
                std::str::from_utf8(word).ok().and_then(|word| word.split_once('=')).ok_or_else(|| {
                    Error::new(Kind::Invalid, format!("`{}`: not `name=value`", String::from_utf8_lossy(word)))
                })?;
            self.set(name, value)?;
        }
        Ok(std::ffi::OsStr::from_bytes(path).into())
    }

    /// Sets an option of a spec: `rate=44100`, `channels=1`, `format=f32`, `clock=free`, `delay=20ms`, `gain=0.5`,
    /// `mic=silence`, `mic=tone`, `mic=440` or `mic=in.wav`, `drift=+200ppm`, `gap=20ms/1s`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for an unknown name or a value out of its range.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let invalid = |what: &str| Error::new(Kind::Invalid, format!("{name}={value}: {what}"));
        match name {
            "rate" => {
                let rate = value.parse().ok().filter(|rate| (8000..=384_000).contains(rate));
                self.spec.rate = rate.ok_or_else(|| invalid("not 8000 to 384000"))?;
            }
            "channels" => {
                let channels = value.parse().ok().filter(|channels| (1..=32).contains(channels));
                self.spec.channels = channels.ok_or_else(|| invalid("not 1 to 32"))?;
                self.map = default_map(self.spec.channels);
            }
            "format" => self.spec.format = value.parse()?,
            "clock" => self.clock = value.parse()?,
            "gain" => {
                let gain = value.parse().ok().filter(|gain| (0.0..=1000.0).contains(gain));
                self.gain = gain.ok_or_else(|| invalid("not 0 to 1000"))?;
            }
            "delay" => {
                let time = duration(value).filter(|time| *time <= Self::DELAY_MAX);
                self.delay = time.ok_or_else(|| invalid("not 0s to 60s (`20ms`, `1.5s`)"))?;
            }
            "mic" => {
                self.mic = match value {
                    "loop" => Mic::Loop,
                    "silence" => Mic::Silence,
                    "tone" => Mic::Tone(997.0),
                    path if path.contains('/') || path.ends_with(".wav") => Mic::Wav(path.into()),
                    _ => {
                        let hertz = value.parse().ok().filter(|hertz| (1.0..=100_000.0).contains(hertz));
                        let what = "not `loop`, `silence`, `tone`, a frequency in Hz, or a file (`in.wav`)";
                        Mic::Tone(hertz.ok_or_else(|| invalid(what))?)
                    }
                };
            }
            "drift" => {
                let ppm = value.strip_suffix("ppm").unwrap_or(value).parse::<f64>().ok();
                let ppm = ppm.filter(|ppm| ppm.abs() <= 100_000.0);
                self.drift_ppb = (ppm.ok_or_else(|| invalid("not -100000ppm to +100000ppm"))? * 1000.0).round() as i64;
            }
            "gap" => {
                let times = value.split_once('/').map(|(length, period)| (duration(length), duration(period)));
                let Some((Some(length), Some(period))) = times else { return Err(invalid("not as in `20ms/1s`")) };
                if length >= period || period < Duration::from_millis(1) {
                    return Err(invalid("not shorter than its period, which is 1 ms at least"));
                }
                self.gap = Some(Gap { length, period });
            }
            _ => {
                let known = "rate, channels, format, clock, delay, drift, gain, gap, mic";
                return Err(Error::new(Kind::Invalid, format!("option `{name}`: a sound card has {known}")));
            }
        }
        Ok(())
    }

    /// Reads the WAV file of a microphone; what it holds becomes samples of the card.
    ///
    /// # Errors
    /// Those of [`crate::wav::Reader`]; [`Kind::Limit`] for a file that is too long to be kept.
    pub fn load(&mut self) -> Result<()> {
        let Mic::Wav(path) = &self.mic else { return Ok(()) };
        let mut reader = crate::wav::Reader::open(path)?;
        let from = reader.spec();
        let seconds = reader.frames() / u64::from(from.rate);
        if reader.frames() == 0 {
            return Err(Error::new(Kind::Invalid, format!("{}: no samples for a microphone", path.display())));
        }
        if seconds * u64::from(self.spec.rate) * u64::from(self.spec.channels) > Self::MIC_SAMPLES_MAX {
            let what = format!("{}: {seconds} s are too long for a microphone", path.display());
            return Err(Error::new(Kind::Limit, what));
        }
        let matrix = crate::mix::Matrix::new(&default_map(from.channels), &self.map, crate::mix::Rules::default());
        let mut resampler = (from.rate != self.spec.rate)
            .then(|| crate::resample::Resampler::new(from.channels, from.rate, self.spec.rate));
        let (mut samples, mut mixed, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        let wanted = reader.frames() as u128 * u128::from(self.spec.rate) / u128::from(from.rate);
        while reader.read(65_536, &mut samples)? > 0 {
            if let Some(resampler) = &mut resampler {
                if reader.frames() == 0 {
                    samples.resize(samples.len() + resampler.delay() * usize::from(from.channels), 0.0);
                }
                resampler.push(&samples);
                samples.clear();
                resampler.pull(usize::MAX, &mut samples);
            }
            matrix.apply(&samples, &mut mixed);
            samples.clear();
            kept.extend(mixed.drain(..).map(|sample| sample as f32));
        }
        kept.truncate(usize::try_from(wanted).unwrap_or(usize::MAX).saturating_mul(self.spec.channels.into()));
        self.mic = Mic::Samples(kept.into());
        Ok(())
    }
}

/// A time as it is typed: `20ms`, `1.5s`; `None` for what is none, or longer than a thousand days.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.strip_suffix("ms").map_or((text.strip_suffix('s'), 1.0), |ms| (Some(ms), 0.001));
    let seconds = number?.parse::<f64>().ok()? * unit;
    (0.0..=86_400_000.0).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

/// A client that sends `data`, in pieces, to a card whose clock is free or real: nothing of it makes the card panic, and
/// what it holds stays bounded. For fuzzing.
pub fn fuzz(data: &[u8]) {
    crate::pulse::fuzz(data);
    let (first, rest) = data.split_first().unwrap_or((&0, &[]));
    let clock = if first & 1 == 0 { Clock::REAL } else { Clock::Free };
    let mut engine = Engine::new(Options { clock, ..Options::default() });
    let Some(client) = engine.connect() else { return };
    let mut now = Now::default();
    for piece in rest.chunks(usize::from(first >> 1) * 16 + 16) {
        engine.receive(now, client, piece);
        now.nanos += 1_000_000;
        engine.advance(now);
        let _ = (engine.due(), engine.heard());
        for opening in engine.openings() {
            engine.opened(&opening, first & 2 == 0);
            engine.pipe_came(opening.module, piece);
        }
        if engine.is_over(client) {
            break;
        }
        if let Some(outgoing) = engine.outgoing(client) {
            outgoing.clear();
        }
    }
    engine.disconnect(client);
}
