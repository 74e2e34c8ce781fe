//! Pulse-code modulation: sample formats, channel maps, and samples as `f64` between -1 and 1.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Kind, Result};

/// Most channels of a stream, as in PulseAudio.
pub const CHANNELS_MAX: u8 = 32;
/// Highest rate of a stream in Hz, as in PulseAudio.
pub const RATE_MAX: u32 = 768_000;
/// Fewest frames a second: less is no sound, and its filter would be seconds long.
pub const RATE_MIN: u32 = 1000;

/// How one sample is stored. The order is that of PulseAudio's numbers, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the formats' own")]
pub enum Format {
    U8,
    Alaw,
    Ulaw,
    S16le,
    S16be,
    F32le,
    F32be,
    S32le,
    S32be,
    S24le,
    S24be,
    /// 24 bits in the low bytes of 32.
    S24In32le,
    /// 24 bits in the low bytes of 32.
    S24In32be,
}

/// Every format, by PulseAudio's number, with PulseAudio's name.
const FORMATS: &[(Format, &str)] = &[
    (Format::U8, "u8"),
    (Format::Alaw, "aLaw"),
    (Format::Ulaw, "uLaw"),
    (Format::S16le, "s16le"),
    (Format::S16be, "s16be"),
    (Format::F32le, "float32le"),
    (Format::F32be, "float32be"),
    (Format::S32le, "s32le"),
    (Format::S32be, "s32be"),
    (Format::S24le, "s24le"),
    (Format::S24be, "s24be"),
    (Format::S24In32le, "s24-32le"),
    (Format::S24In32be, "s24-32be"),
];

impl Format {
    /// The format of PulseAudio's number.
    pub fn from_number(number: u8) -> Option<Self> {
        FORMATS.get(usize::from(number)).map(|(format, _)| *format)
    }

    /// PulseAudio's number.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Bytes of one sample.
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::Alaw | Self::Ulaw => 1,
            Self::S16le | Self::S16be => 2,
            Self::S24le | Self::S24be => 3,
            _ => 4,
        }
    }

    /// The byte that silence is made of.
    pub fn silence(self) -> u8 {
        match self {
            Self::U8 => 0x80,
            Self::Alaw => 0xd5,
            Self::Ulaw => 0xff,
            _ => 0,
        }
    }

    /// Appends the samples of `bytes`; a rest that is no whole sample is left out.
    pub fn decode(self, bytes: &[u8], samples: &mut Vec<f64>) {
        const S16: f64 = 1.0 / 32768.0;
        const S32: f64 = 1.0 / 2_147_483_648.0;
        // 24 bits are read as the high bytes of 32.
        match self {
            Self::U8 => samples.extend(bytes.iter().map(|b| (f64::from(*b) - 128.0) / 128.0)),
            Self::Alaw => samples.extend(bytes.iter().map(|b| f64::from(alaw_decode(*b)) * S16)),
            Self::Ulaw => samples.extend(bytes.iter().map(|b| f64::from(ulaw_decode(*b)) * S16)),
            Self::S16le => each(bytes, samples, |b| f64::from(i16::from_le_bytes(b)) * S16),
            Self::S16be => each(bytes, samples, |b| f64::from(i16::from_be_bytes(b)) * S16),
            Self::F32le => each(bytes, samples, |b| f64::from(f32::from_le_bytes(b))),
            Self::F32be => each(bytes, samples, |b| f64::from(f32::from_be_bytes(b))),
            Self::S32le => each(bytes, samples, |b| f64::from(i32::from_le_bytes(b)) * S32),
            Self::S32be => each(bytes, samples, |b| f64::from(i32::from_be_bytes(b)) * S32),
            Self::S24le => each(bytes, samples, |[a, b, c]| f64::from(i32::from_le_bytes([0, a, b, c])) * S32),
            Self::S24be => each(bytes, samples, |[a, b, c]| f64::from(i32::from_be_bytes([a, b, c, 0])) * S32),
            Self::S24In32le => each(bytes, samples, |[a, b, c, _]| f64::from(i32::from_le_bytes([0, a, b, c])) * S32),
            Self::S24In32be => each(bytes, samples, |[_, a, b, c]| f64::from(i32::from_be_bytes([a, b, c, 0])) * S32),
        }
    }

    /// Appends the bytes of `samples`: rounded to the nearest, cut at full scale (`f32` is not cut).
    pub fn encode(self, samples: &[f64], bytes: &mut Vec<u8>) {
        bytes.reserve(samples.len().saturating_mul(self.bytes()));
        // A cast from f64 saturates, and makes 0 of what is no number.
        let s16 = |x: f64| (x * 32768.0).round_ties_even() as i16;
        let s24 = |x: f64| ((x * 8_388_608.0).round_ties_even() as i32).clamp(-8_388_608, 8_388_607);
        let s32 = |x: f64| (x * 2_147_483_648.0).round_ties_even() as i32;
        for x in samples.iter().copied() {
            match self {
                Self::U8 => bytes.push((x * 128.0 + 128.0).round_ties_even() as u8),
                Self::Alaw => bytes.push(alaw_encode(s16(x))),
                Self::Ulaw => bytes.push(ulaw_encode(s16(x))),
                Self::S16le => bytes.extend(s16(x).to_le_bytes()),
                Self::S16be => bytes.extend(s16(x).to_be_bytes()),
                Self::F32le => bytes.extend((x as f32).to_le_bytes()),
                Self::F32be => bytes.extend((x as f32).to_be_bytes()),
                Self::S32le => bytes.extend(s32(x).to_le_bytes()),
                Self::S32be => bytes.extend(s32(x).to_be_bytes()),
                Self::S24le => bytes.extend(s24(x).to_le_bytes().iter().take(3)),
                Self::S24be => bytes.extend(s24(x).to_be_bytes().iter().skip(1)),
                Self::S24In32le => bytes.extend((s24(x) & 0xff_ffff).to_le_bytes()),
                Self::S24In32be => bytes.extend((s24(x) & 0xff_ffff).to_be_bytes()),
            }
        }
    }
}

fn each<const N: usize>(bytes: &[u8], samples: &mut Vec<f64>, decode: impl Fn([u8; N]) -> f64) {
    samples.extend(bytes.as_chunks::<N>().0.iter().map(|chunk| decode(*chunk)));
}

/// ITU-T G.711, A-law.
fn alaw_decode(byte: u8) -> i16 {
    let byte = byte ^ 0x55;
    let mantissa = i16::from(byte & 0x0f) << 4;
    let exponent = (byte >> 4) & 7;
    let size = match exponent {
        0 => mantissa + 8,
        _ => (mantissa + 0x108) << (exponent - 1),
    };
    if byte & 0x80 == 0 { -size } else { size }
}

fn alaw_encode(sample: i16) -> u8 {
    let (sign, size) = if sample < 0 { (0, !sample) } else { (0x80, sample) };
    let size = (size >> 4) as u16; // 11 bits
    let code = if size < 32 {
        size as u8
    } else {
        let exponent = 12 - size.leading_zeros() as u16; // 2 to 7
        ((exponent << 4) | ((size >> (exponent - 1)) & 0x0f)) as u8
    };
    (sign | code) ^ 0x55
}

/// ITU-T G.711, µ-law.
fn ulaw_decode(byte: u8) -> i16 {
    let byte = !byte;
    let size = (((i32::from(byte & 0x0f) << 3) + 0x84) << ((byte >> 4) & 7)) - 0x84;
    (if byte & 0x80 == 0 { size } else { -size }) as i16
}

fn ulaw_encode(sample: i16) -> u8 {
    let (sign, size) = if sample < 0 { (0x80, -i32::from(sample)) } else { (0, i32::from(sample)) };
    let size = (size.min(32635) + 0x84) as u32;
    let exponent = 31 - size.leading_zeros() - 7; // 0 to 7
    let mantissa = (size >> (exponent + 3)) & 0x0f;
    !(sign | (exponent << 4) as u8 | mantissa as u8)
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FORMATS.get(usize::from(self.number())).map_or("", |(_, name)| name))
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let short = match text {
            "s16" => Some(Self::S16le),
            "s24" => Some(Self::S24le),
            "s32" => Some(Self::S32le),
            "f32" | "float32" => Some(Self::F32le),
            _ => None,
        };
        short
            .or_else(|| FORMATS.iter().find(|(_, name)| name.eq_ignore_ascii_case(text)).map(|(format, _)| *format))
            .ok_or_else(|| {
                Error::new(
                    Kind::Invalid,
                    format!("sample format `{text}`: not one of u8, s16, s24, s32, f32, s16be, s24-32le …"),
                )
            })
    }
}

/// Format, channels and rate of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    /// How a sample is stored.
    pub format: Format,
    /// Channels, 1 to [`CHANNELS_MAX`].
    pub channels: u8,
    /// Frames a second, [`RATE_MIN`] to [`RATE_MAX`].
    pub rate: u32,
}

impl Spec {
    /// Whether channels and rate are within their limits.
    pub fn is_valid(&self) -> bool {
        (1..=CHANNELS_MAX).contains(&self.channels) && (RATE_MIN..=RATE_MAX).contains(&self.rate)
    }

    /// Bytes of one frame: a sample of each channel.
    pub fn frame_bytes(&self) -> usize {
        self.format.bytes() * usize::from(self.channels)
    }

    /// Microseconds that `bytes` last.
    pub fn micros(&self, bytes: u64) -> u64 {
        let frames = u128::from(bytes) / self.frame_bytes().max(1) as u128;
        u64::try_from(frames * 1_000_000 / u128::from(self.rate.max(1))).unwrap_or(u64::MAX)
    }

    /// Bytes of whole frames that last `micros`, rounded up.
    pub fn bytes_of(&self, micros: u64) -> u32 {
        let frames = (u128::from(micros) * u128::from(self.rate)).div_ceil(1_000_000);
        u32::try_from(frames * self.frame_bytes() as u128).unwrap_or(u32::MAX)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}ch {}Hz", self.format, self.channels, self.rate)
    }
}

/// Where a channel is heard, by PulseAudio's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position(pub u8);

impl Position {
    /// One channel that is everywhere.
    pub const MONO: Self = Self(0);
    /// The channel for low frequencies.
    pub const LFE: Self = Self(7);
    /// How many there are.
    pub const COUNT: u8 = 51;

    /// PulseAudio's name.
    pub fn name(self) -> String {
        const NAMES: [&str; 12] = [
            "mono",
            "front-left",
            "front-right",
            "front-center",
            "rear-center",
            "rear-left",
            "rear-right",
            "lfe",
            "front-left-of-center",
            "front-right-of-center",
            "side-left",
            "side-right",
        ];
        const TOP: [&str; 7] = [
            "top-center",
            "top-front-left",
            "top-front-right",
            "top-front-center",
            "top-rear-left",
            "top-rear-right",
            "top-rear-center",
        ];
        let number = usize::from(self.0);
        match (NAMES.get(number), number.checked_sub(44).and_then(|n| TOP.get(n))) {
            (Some(name), _) | (_, Some(name)) => (*name).to_owned(),
            _ => format!("aux{}", number.saturating_sub(12)),
        }
    }

    /// The position of PulseAudio's name.
    pub fn from_name(name: &str) -> Option<Self> {
        (0..Self::COUNT).map(Self).find(|position| position.name() == name.trim())
    }

    /// -1 for what is heard on the left, 1 on the right, 0 in the middle.
    pub fn side(self) -> i8 {
        match self.0 {
            1 | 5 | 8 | 10 | 45 | 48 => -1,
            2 | 6 | 9 | 11 | 46 | 49 => 1,
            _ => 0,
        }
    }
}

/// The positions of a stream's channels, in their order.
pub type Map = Vec<Position>;

/// The map of a WAV file with that many channels.
pub fn default_map(channels: u8) -> Map {
    let numbers: &[u8] = match channels {
        1 => &[0],
        2 => &[1, 2],
        3 => &[1, 2, 3],
        4 => &[1, 2, 5, 6],
        5 => &[1, 2, 3, 5, 6],
        6 => &[1, 2, 3, 7, 5, 6],
        7 => &[1, 2, 3, 7, 4, 10, 11],
        8 => &[1, 2, 3, 7, 5, 6, 10, 11],
        _ => return (0..channels.min(CHANNELS_MAX)).map(|n| Position(12 + n)).collect(),
    };
    numbers.iter().copied().map(Position).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_every_format_comes_back() {
        let codes = |width: usize| -> Vec<u8> {
            let step = if width == 4 { 65_537 * 7 } else { 1 };
            (0..1u64 << (8 * width).min(32))
                .step_by(step)
                .flat_map(|n| n.to_le_bytes().into_iter().take(width))
                .collect()
        };
        for (format, name) in FORMATS {
            let mut bytes = if matches!(format, Format::S24le | Format::S24be) {
                codes(2).chunks(2).flat_map(|b| [b[0], b[1], b[0] ^ 0x5a]).collect()
            } else {
                codes(format.bytes())
            };
            match format {
                Format::S24In32le => bytes.chunks_mut(4).for_each(|b| b[3] = 0),
                Format::S24In32be => bytes.chunks_mut(4).for_each(|b| b[0] = 0),
                Format::F32le | Format::F32be => bytes.chunks_mut(4).for_each(|b| {
                    let value = u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & 0xbfff_ffff; // finite
                    b.copy_from_slice(&if *format == Format::F32le {
                        value.to_le_bytes()
                    } else {
                        value.to_be_bytes()
                    });
                }),
                _ => {}
            }
            let (mut samples, mut back) = (Vec::new(), Vec::new());
            format.decode(&bytes, &mut samples);
            format.encode(&samples, &mut back);
            // µ-law has two zeros.
            let differ = bytes.iter().zip(&back).filter(|(a, b)| a != b).count();
            assert_eq!(bytes.len(), back.len(), "{name}");
            assert_eq!(differ, usize::from(*format == Format::Ulaw), "{name}");
            assert_eq!(name.parse::<Format>().unwrap(), *format);
            assert_eq!(Format::from_number(format.number()), Some(*format));
            samples.clear();
            format.decode(&vec![format.silence(); format.bytes()], &mut samples);
            assert!(samples[0].abs() < 0.0003, "{name}: silence is {}", samples[0]);
        }
    }

    #[test]
    fn full_scale_is_cut_and_rounding_is_to_the_nearest() {
        let mut bytes = Vec::new();
        Format::S16le.encode(&[2.0, -2.0, f64::NAN, 0.4 / 32768.0, 0.6 / 32768.0], &mut bytes);
        assert_eq!(bytes, [0xff, 0x7f, 0, 0x80, 0, 0, 0, 0, 1, 0]);
        bytes.clear();
        Format::S24In32be.encode(&[2.0, -1.0 / 8_388_608.0], &mut bytes);
        assert_eq!(bytes, [0, 0x7f, 0xff, 0xff, 0, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn positions_have_the_names_of_pulseaudio() {
        for number in 0..Position::COUNT {
            assert_eq!(Position::from_name(&Position(number).name()), Some(Position(number)));
        }
        assert_eq!(Position(12).name(), "aux0");
        assert_eq!(Position(43).name(), "aux31");
        assert_eq!(Position(50).name(), "top-rear-center");
    }
}
