//! What is in a WAV file, and whether it is what was expected.

use std::path::Path;

use crate::pcm::Spec;
use crate::wav::Reader;
use crate::{Error, Kind, Result};

/// Frames that are read at a time.
const BLOCK: usize = 65_536;
/// Below this, -80 dB of full scale, it is silence.
const SILENCE: f64 = 1e-4;
/// A silence of this many seconds between two sounds is a gap.
const GAP_SECONDS: f64 = 0.005;
/// Frames over which the frequency of a tone is measured: so many at most, so that it costs nothing.
const TONE_FRAMES: usize = 1 << 20;

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Measure {
    /// Format, channels and rate.
    pub spec: Spec,
    /// Length of the file.
    pub length_seconds: f64,
    /// Time in which something is heard.
    pub sound_seconds: f64,
    /// The largest sample in dB of full scale; minus infinity for silence.
    pub peak_db: f64,
    /// Root of the mean square of all samples, in dB of full scale.
    pub rms_db: f64,
    /// Silences of 5 ms and more between two sounds.
    pub gaps: u64,
    /// Integrated loudness in LUFS (EBU R 128); minus infinity for silence.
    pub loudness_lufs: f64,
    /// The frequency of the first channel's zero crossings between gaps, in Hz; 0 for silence.
    pub tone_hertz: f64,
}

/// Measures a file.
///
/// # Errors
/// Those of [`Reader`].
pub fn measure(path: &Path) -> Result<Measure> {
    let mut reader = Reader::open(path)?;
    let spec = reader.spec();
    let (channels, rate) = (usize::from(spec.channels), f64::from(spec.rate));
    let gap = (GAP_SECONDS * rate).ceil() as u64;
    let (mut peak, mut sum, mut frames, mut sounding, mut gaps, mut silent) = (0.0f64, 0.0, 0u64, 0u64, 0, None::<u64>);
    let mut crossings = Crossings::default();
    let unmeasured = |error| Error::new(Kind::Unsupported, format!("loudness of {spec}: {error}"));
    let mut loudness =
        ebur128::EbuR128::new(u32::from(spec.channels), spec.rate, ebur128::Mode::I).map_err(unmeasured)?;
    let mut samples = Vec::new();
    while reader.read(BLOCK, &mut samples)? > 0 {
        loudness.add_frames_f64(&samples).map_err(unmeasured)?;
        for frame in samples.chunks_exact(channels) {
            let loudest = frame.iter().fold(0.0f64, |most, sample| most.max(sample.abs()));
            sum += frame.iter().map(|sample| sample * sample).sum::<f64>();
            peak = peak.max(loudest);
            if loudest >= SILENCE {
                // Silence that is shorter than a gap belongs to the sound.
                let before = silent.unwrap_or(0);
                gaps += u64::from(silent.is_some() && before >= gap);
                sounding += 1 + if silent.is_some() && before < gap { before } else { 0 };
                silent = Some(0);
            } else if let Some(silent) = &mut silent {
                *silent += 1;
                if *silent == gap {
                    crossings.pause();
                }
            }
            if frames < TONE_FRAMES as u64 {
                crossings.take(frame.first().copied().unwrap_or(0.0));
            }
            frames += 1;
        }
        samples.clear();
    }
    let count = (frames as f64 * channels as f64).max(1.0);
    Ok(Measure {
        spec,
        length_seconds: frames as f64 / rate,
        sound_seconds: sounding as f64 / rate,
        peak_db: 20.0 * peak.log10(),
        rms_db: 10.0 * (sum / count).log10(),
        gaps,
        loudness_lufs: loudness.loudness_global().map_err(unmeasured)?,
        tone_hertz: crossings.per_frame() * rate,
    })
}

/// What is left, a frame later, of the level that a crossing is compared to: it halves in 10 ms or so.
const LEVEL_FADE: f64 = 0.999;
/// A wave that is smaller than this share of the level is what a filter leaves behind the end of a tone, and no wave of it.
const LEAST_WAVE: f64 = 1.0 / 16.0;

/// Rising zero crossings, each at a fraction of a frame.
#[derive(Default)]
struct Crossings {
    level: f64,
    /// Whether it was far enough below zero.
    low: bool,
    last: f64,
    at: f64,
    first: Option<f64>,
    latest: f64,
    count: u64,
    /// Frames from first to latest crossing, of what was before a pause.
    frames: f64,
}

impl Crossings {
    fn take(&mut self, sample: f64) {
        self.level = (self.level * LEVEL_FADE).max(sample.abs());
        self.low |= sample < -self.level * LEAST_WAVE;
        if self.last < 0.0 && sample >= 0.0 && std::mem::take(&mut self.low) {
            let place = self.at - sample / (sample - self.last);
            match self.first {
                None => self.first = Some(place),
                Some(_) => self.count += 1,
            }
            self.latest = place;
        }
        self.last = sample;
        self.at += 1.0;
    }

    /// What comes does not belong to what was.
    fn pause(&mut self) {
        self.frames += self.first.take().map_or(0.0, |first| self.latest - first);
    }

    fn per_frame(&self) -> f64 {
        let frames = self.frames + self.first.map_or(0.0, |first| self.latest - first);
        if self.count > 0 { self.count as f64 / frames } else { 0.0 }
    }
}

/// An expectation: `sound>0.5s`, `length<10s`, `tone=997`, `tone=440+-2`, `gaps=0`, `peak<-1`, `rms>-40`,
/// `lufs=-23+-1`, `rate=48000`, `channels=2`.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    text: String,
    quantity: Quantity,
    relation: Relation,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Quantity {
    Sound,
    Length,
    Tone,
    Gaps,
    Peak,
    Rms,
    Loudness,
    Rate,
    Channels,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Relation {
    Less(f64),
    More(f64),
    Equal { value: f64, within: f64 },
}

const QUANTITIES: &[(&str, Quantity)] = &[
    ("sound", Quantity::Sound),
    ("length", Quantity::Length),
    ("tone", Quantity::Tone),
    ("gaps", Quantity::Gaps),
    ("peak", Quantity::Peak),
    ("rms", Quantity::Rms),
    ("lufs", Quantity::Loudness),
    ("rate", Quantity::Rate),
    ("channels", Quantity::Channels),
];

/// Takes expectations apart, which stand behind commas.
///
/// # Errors
/// [`Kind::Invalid`] for an unknown word, a relation that is none of `<`, `>`, `=`, or no number.
pub fn expectations(text: &str) -> Result<Vec<Expectation>> {
    text.split(',').map(str::trim).map(expectation).collect()
}

fn expectation(text: &str) -> Result<Expectation> {
    let known = "not sound, length, tone, gaps, peak, rms, lufs, rate or channels, then `<`, `>` or `=`, then a number";
    let invalid = || Error::new(Kind::Invalid, format!("expectation `{text}`: {known}"));
    let at = text.find(['<', '>', '=']).ok_or_else(invalid)?;
    let (name, rest) = text.split_at(at);
    let (sign, number) = rest.split_at(1);
    let (_, quantity) = QUANTITIES.iter().find(|(word, _)| *word == name.trim()).ok_or_else(invalid)?;
    let units = if matches!(quantity, Quantity::Sound | Quantity::Length) { "s" } else { "" };
    let parse = |text: &str| {
        let text = text.trim().trim_end_matches("Hz").trim_end_matches("dB").trim_end_matches("LUFS");
        let text = if units.is_empty() { text } else { text.trim_end_matches(units) };
        text.trim().parse::<f64>().ok().filter(|number| number.is_finite()).ok_or_else(invalid)
    };
    let relation = match (sign, number.split_once("+-")) {
        ("<", None) => Relation::Less(parse(number)?),
        (">", None) => Relation::More(parse(number)?),
        ("=", Some((value, within))) => Relation::Equal { value: parse(value)?, within: parse(within)?.abs() },
        ("=", None) => {
            let value = parse(number)?;
            // What is counted is exact; what is measured is not.
            let within = match quantity {
                Quantity::Gaps | Quantity::Rate | Quantity::Channels => 0.0,
                Quantity::Tone => value.abs() * 0.001,
                Quantity::Sound | Quantity::Length => 0.01,
                Quantity::Peak | Quantity::Rms | Quantity::Loudness => 0.1,
            };
            Relation::Equal { value, within }
        }
        _ => return Err(invalid()),
    };
    Ok(Expectation { text: text.to_owned(), quantity: *quantity, relation })
}

impl Expectation {
    /// `None` when it is met; otherwise a line that says what was found instead.
    pub fn failure(&self, measure: &Measure) -> Option<String> {
        let (found, unit) = match self.quantity {
            Quantity::Sound => (measure.sound_seconds, " s"),
            Quantity::Length => (measure.length_seconds, " s"),
            Quantity::Tone => (measure.tone_hertz, " Hz"),
            Quantity::Gaps => (measure.gaps as f64, ""),
            Quantity::Peak => (measure.peak_db, " dB"),
            Quantity::Rms => (measure.rms_db, " dB"),
            Quantity::Loudness => (measure.loudness_lufs, " LUFS"),
            Quantity::Rate => (f64::from(measure.spec.rate), " Hz"),
            Quantity::Channels => (f64::from(measure.spec.channels), ""),
        };
        let met = match self.relation {
            Relation::Less(value) => found < value,
            Relation::More(value) => found > value,
            Relation::Equal { value, within } => (found - value).abs() <= within,
        };
        let found = (found * 1000.0).round() / 1000.0;
        (!met).then(|| format!("expected {}, found {found}{unit}", self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pcm::{Format, default_map};
    use crate::wav::Writer;

    fn file(samples: &[f64]) -> Measure {
        let scratch = rig::Scratch::new("check");
        let spec = Spec { format: Format::S16le, channels: 2, rate: 48_000 };
        let mut writer = Writer::create(&scratch.join("a.wav"), spec, &default_map(2)).unwrap();
        let stereo: Vec<f64> = samples.iter().flat_map(|sample| [*sample; 2]).collect();
        let mut bytes = Vec::new();
        spec.format.encode(&stereo, &mut bytes);
        writer.write(&bytes).unwrap();
        measure(&scratch.join("a.wav")).unwrap()
    }

    fn tone(frames: usize, hertz: f64) -> Vec<f64> {
        (0..frames).map(|n| (n as f64 * std::f64::consts::TAU * hertz / 48_000.0).sin() * 0.5).collect()
    }

    #[test]
    fn a_tone_is_measured_and_expected() {
        let measure = file(&tone(96_000, 997.0));
        assert!((measure.tone_hertz - 997.0).abs() < 0.01, "{measure:?}");
        let met = "sound>1.9s, length=2s, tone=997, gaps=0, peak<-6, rms=-9.03, rate=48000, channels=2, tone=1000+-5, lufs=-5.99+-0.1";
        for expectation in expectations(met).unwrap() {
            assert_eq!(expectation.failure(&measure), None);
        }
        for failed in ["sound<1s", "tone=1000", "gaps>0", "peak<-20", "channels=1", "length>3s"] {
            let expectation = expectations(failed).unwrap().remove(0);
            assert!(expectation.failure(&measure).is_some_and(|line| line.contains(failed)), "{failed}");
        }
    }

    #[test]
    fn gaps_and_silence_are_counted() {
        let mut samples = vec![0.0; 4800];
        samples.extend(tone(4800, 1000.0));
        samples.extend([0.0; 480]);
        samples.extend(tone(4800, 1000.0));
        samples.extend([0.0; 100]);
        samples.extend(tone(4800, 1000.0));
        samples.extend([0.0; 48_000]);
        let measure = file(&samples);
        assert_eq!(measure.gaps, 1);
        // The gap is not counted as a slower tone, what is shorter than one is.
        assert!((measure.tone_hertz - 1000.0).abs() < 10.0, "{measure:?}");
        assert!((measure.sound_seconds - 0.302).abs() < 0.002, "{measure:?}");
        // What a filter leaves behind the end is not counted as a higher one.
        let mut rings = tone(4810, 997.0);
        rings.extend(
            (0..100).flat_map(|n| [0.01 * (-f64::from(n) / 8.0).exp() * if n % 2 == 0 { 1.0 } else { -1.0 }; 2]),
        );
        assert!((file(&rings).tone_hertz - 997.0).abs() < 2.0);
        let silence = file(&[0.0; 100]);
        assert_eq!((silence.gaps, silence.sound_seconds, silence.tone_hertz), (0, 0.0, 0.0));
        assert!(expectations("sound>0s").unwrap()[0].failure(&silence).is_some());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["", "sound", "noise>1", "sound>", "peak<nan", "tone>1+-2", "gaps=x"] {
            assert_eq!(expectations(text).unwrap_err().kind(), Kind::Invalid, "{text}");
        }
    }
}
