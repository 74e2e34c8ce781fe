//! The card: an engine without clock and I/O, and the one thread that drives it.
//!
//! ```text
//!   clients ─► driver ─► Engine::receive(now, bytes)        commands and samples
//!              │         Engine::advance(now)               the card's clock: streams ► mix ► monitor, mic, WAV
//!              │◄─────── Engine::outgoing, heard, due       replies, the mix, when it wants to be called again
//! ```

mod create;
mod dispatch;
mod driver;
mod engine;
mod info;
mod stream;

use std::time::Duration;

pub use driver::{Card, Environment, Meter};
pub use engine::{Engine, Heard};

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
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mic {
    /// What is played.
    Loop,
    /// Nothing.
    Silence,
    /// A sine of this frequency in Hz, at a tenth of full scale.
    Tone(f64),
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
}

impl Default for Options {
    fn default() -> Self {
        let spec = Spec { format: Format::S16le, channels: 2, rate: 48_000 };
        Self { spec, map: default_map(2), clock: Clock::REAL, gain: 1.0, delay: Duration::ZERO, mic: Mic::Loop }
    }
}

impl Options {
    /// Longest delay.
    pub const DELAY_MAX: Duration = Duration::from_secs(60);

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
    /// `mic=silence`, `mic=tone` or `mic=440`.
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
                let (number, unit) =
                    value.strip_suffix("ms").map_or((value.strip_suffix('s'), 1.0), |ms| (Some(ms), 0.001));
                let seconds = number.and_then(|number| number.parse::<f64>().ok()).map(|number| number * unit);
                let seconds = seconds.filter(|s| (0.0..=Self::DELAY_MAX.as_secs_f64()).contains(s));
                self.delay = Duration::from_secs_f64(seconds.ok_or_else(|| invalid("not 0s to 60s (`20ms`, `1.5s`)"))?);
            }
            "mic" => {
                self.mic = match value {
                    "loop" => Mic::Loop,
                    "silence" => Mic::Silence,
                    "tone" => Mic::Tone(997.0),
                    _ => {
                        let hertz = value.parse().ok().filter(|hertz| (1.0..=100_000.0).contains(hertz));
                        Mic::Tone(hertz.ok_or_else(|| invalid("not `loop`, `silence`, `tone` or a frequency in Hz"))?)
                    }
                };
            }
            _ => {
                let known = "rate, channels, format, clock, delay, gain, mic";
                return Err(Error::new(Kind::Invalid, format!("option `{name}`: a sound card has {known}")));
            }
        }
        Ok(())
    }
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
        if engine.is_over(client) {
            break;
        }
        if let Some(outgoing) = engine.outgoing(client) {
            outgoing.clear();
        }
    }
    engine.disconnect(client);
}
