//! A picture of a WAV file: each channel's waveform, and below them the spectrogram of their mean, 0 Hz at the bottom.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use crate::wav::Reader;
use crate::{Error, Kind, Result};

/// Pixels of the picture from left to right; each is a span of time.
const WIDTH: usize = 1200;
/// Pixels of a channel's waveform.
const WAVE: usize = 120;
/// Pixels of the spectrogram: half of a transform.
const SPECTRUM: usize = 256;
/// Most channels that are drawn.
const CHANNELS_MAX: usize = 8;
/// Decibels from black to white.
const RANGE: f64 = 100.0;
/// Frames of a transform.
const FRAMES: usize = 2 * SPECTRUM;
const BLOCK: usize = 65_536;

/// What is drawn.
struct Picture {
    /// Smallest and largest sample of each channel in each column.
    waves: Vec<Vec<(f64, f64)>>,
    /// Decibels of each frequency in each column.
    spectrum: Vec<[f64; SPECTRUM]>,
    seconds: f64,
    rate: u32,
}

/// Draws `wav` into `picture`, by its ending a PNG or an SVG.
///
/// # Errors
/// Those of [`Reader`]; [`Kind::Invalid`] for another ending; what the system says of the picture.
pub fn plot(wav: &Path, picture: &Path) -> Result<()> {
    let ending = picture.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    let draw: fn(&Picture) -> Vec<u8> = match ending.as_deref() {
        Some("png") => |picture| {
            let (pixels, height) = all(picture);
            png(&pixels, WIDTH, height)
        },
        Some("svg") => |picture| svg(picture).into_bytes(),
        _ => return Err(Error::new(Kind::Invalid, format!("picture {}: not `.png` or `.svg`", picture.display()))),
    };
    let bytes = draw(&read(wav)?);
    let failed = |error| Error::io(format!("writing of {}", picture.display()), error);
    std::fs::write(picture, bytes).map_err(failed)
}

fn read(wav: &Path) -> Result<Picture> {
    let mut reader = Reader::open(wav)?;
    let spec = reader.spec();
    let channels = usize::from(spec.channels);
    let total = reader.frames().max(1);
    let shown = channels.min(CHANNELS_MAX);
    let mut waves = vec![vec![(0.0f64, 0.0f64); WIDTH]; shown];
    let mut spectrum = vec![[-RANGE; SPECTRUM]; WIDTH];
    let column = |frame: u64| ((u128::from(frame) * WIDTH as u128 / u128::from(total)) as usize).min(WIDTH - 1);
    let (mut samples, mut frame) = (Vec::new(), 0u64);
    // The last frames, for transforms; one is made at the end of each column, or each half of its length.
    let mut recent = vec![0.0; FRAMES];
    let (mut place, mut made) = (0usize, None);
    while reader.read(BLOCK, &mut samples)? > 0 {
        for frames in samples.chunks_exact(channels) {
            let at = column(frame);
            for (wave, sample) in waves.iter_mut().zip(frames) {
                if let Some((least, most)) = wave.get_mut(at) {
                    (*least, *most) = (least.min(*sample), most.max(*sample));
                }
            }
            if let Some(slot) = recent.get_mut(place % FRAMES) {
                *slot = frames.iter().sum::<f64>() / channels as f64;
            }
            place += 1;
            if frame >= FRAMES as u64 / 2 && place.is_multiple_of(FRAMES / 2) && made != Some(at) {
                made = Some(at);
                let ordered: Vec<f64> =
                    (0..FRAMES).map(|n| recent.get((place + n) % FRAMES).copied().unwrap_or(0.0)).collect();
                let from = column((frame + 1).saturating_sub(FRAMES as u64));
                let levels = transform(&ordered);
                spectrum.iter_mut().take(at + 1).skip(from).for_each(|column| *column = levels);
            }
            frame += 1;
        }
        samples.clear();
    }
    // Columns of a long file between two transforms show what was before.
    Ok(Picture { waves, spectrum, seconds: total as f64 / f64::from(spec.rate), rate: spec.rate })
}

/// Decibels of full scale at each frequency, in a Hann window.
fn transform(samples: &[f64]) -> [f64; SPECTRUM] {
    let count = samples.len();
    let turn = |n: usize| std::f64::consts::TAU * n as f64 / count as f64;
    let mut values: Vec<(f64, f64)> =
        samples.iter().enumerate().map(|(n, x)| (x * (0.5 - 0.5 * turn(n).cos()), 0.0)).collect();
    // Cooley and Tukey, in place, radix 2.
    let bits = count.trailing_zeros();
    for n in 0..count {
        let mirrored = n.reverse_bits() >> (usize::BITS - bits);
        if mirrored > n {
            values.swap(n, mirrored);
        }
    }
    let mut half = 1;
    while half < count {
        for group in values.chunks_mut(2 * half) {
            let (left, right) = group.split_at_mut(half);
            for (n, (a, b)) in left.iter_mut().zip(right).enumerate() {
                let (sin, cos) = (std::f64::consts::PI * n as f64 / half as f64).sin_cos();
                let turned = (b.0 * cos + b.1 * sin, b.1 * cos - b.0 * sin);
                (*a, *b) = ((a.0 + turned.0, a.1 + turned.1), (a.0 - turned.0, a.1 - turned.1));
            }
        }
        half *= 2;
    }
    let mut levels = [-RANGE; SPECTRUM];
    for (level, (real, imaginary)) in levels.iter_mut().zip(values) {
        // A sine of full scale is 0 dB: half of it is on the other side, and the window takes half.
        let size = real.hypot(imaginary) * 4.0 / count as f64;
        *level = 20.0 * size.max(1e-9).log10();
    }
    levels
}

type Pixel = [u8; 3];

/// From black over violet and orange to white.
fn color(decibels: f64) -> Pixel {
    const STOPS: [[f64; 3]; 5] =
        [[0.0, 0.0, 4.0], [87.0, 16.0, 110.0], [188.0, 55.0, 84.0], [249.0, 142.0, 9.0], [252.0, 255.0, 164.0]];
    let place = ((decibels + RANGE) / RANGE).clamp(0.0, 1.0) * 3.999;
    let (index, part) = (place as usize, place.fract());
    let (Some(from), Some(to)) = (STOPS.get(index), STOPS.get(index + 1)) else { return [0; 3] };
    let mix = |n: usize| {
        let (from, to) = (from.get(n).copied().unwrap_or(0.0), to.get(n).copied().unwrap_or(0.0));
        (from + (to - from) * part) as u8
    };
    [mix(0), mix(1), mix(2)]
}

fn spectrogram(picture: &Picture) -> Vec<Pixel> {
    (0..SPECTRUM)
        .rev()
        .flat_map(|row| picture.spectrum.iter().map(move |column| color(column.get(row).copied().unwrap_or(-RANGE))))
        .collect()
}

/// The whole picture, and its height.
fn all(picture: &Picture) -> (Vec<Pixel>, usize) {
    let mut pixels = Vec::new();
    for wave in &picture.waves {
        for row in 0..WAVE {
            // The row's middle, from 1 at the top to -1.
            let value = 1.0 - (row as f64 + 0.5) * 2.0 / WAVE as f64;
            let half = 1.0 / WAVE as f64;
            pixels.extend(wave.iter().map(|(least, most)| {
                if *most >= value - half && *least <= value + half && most > least {
                    [40, 90, 160]
                } else if row == WAVE / 2 {
                    [180, 180, 180]
                } else if row == 0 {
                    [220, 220, 220]
                } else {
                    [255, 255, 255]
                }
            }));
        }
    }
    pixels.extend(spectrogram(picture));
    (pixels, picture.waves.len() * WAVE + SPECTRUM)
}

fn svg(picture: &Picture) -> String {
    const LEFT: usize = 60;
    let height = picture.waves.len() * WAVE + SPECTRUM;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        LEFT + WIDTH + 10,
        height + 30
    );
    for (number, wave) in picture.waves.iter().enumerate() {
        let middle = number as f64 * WAVE as f64 + WAVE as f64 / 2.0;
        let y = |value: f64| middle - value.clamp(-1.0, 1.0) * WAVE as f64 / 2.0;
        let mut points = String::new();
        for (x, (_, most)) in wave.iter().enumerate() {
            let _ = write!(points, "{},{:.1} ", LEFT + x, y(*most));
        }
        for (x, (least, _)) in wave.iter().enumerate().rev() {
            let _ = write!(points, "{},{:.1} ", LEFT + x, y(*least));
        }
        let _ = writeln!(text, "<text x=\"4\" y=\"{:.0}\">channel {}</text>", middle + 4.0, number + 1);
        let _ = writeln!(text, "<polygon points=\"{}\" fill=\"#285aa0\" stroke=\"#285aa0\"/>", points.trim_end());
    }
    let top = picture.waves.len() * WAVE;
    let image = base64(&png(&spectrogram(picture), WIDTH, SPECTRUM));
    let _ = writeln!(
        text,
        "<image x=\"{LEFT}\" y=\"{top}\" width=\"{WIDTH}\" height=\"{SPECTRUM}\" href=\"data:image/png;base64,{image}\"/>"
    );
    for part in 0..=4usize {
        let hertz = f64::from(picture.rate) / 2.0 * part as f64 / 4.0;
        let y = top + SPECTRUM - SPECTRUM * part / 4 + if part == 4 { 10 } else { 0 };
        let _ = writeln!(text, "<text x=\"4\" y=\"{y}\">{:.1} kHz</text>", hertz / 1000.0);
        let x = LEFT + WIDTH * part / 4;
        let anchor = if part == 4 { "end" } else { "start" };
        let seconds = picture.seconds * part as f64 / 4.0;
        let _ = writeln!(text, "<text x=\"{x}\" y=\"{}\" text-anchor=\"{anchor}\">{seconds:.2} s</text>", height + 16);
    }
    text.push_str("</svg>\n");
    text
}

/// A PNG of 8-bit colours: W3C's Portable Network Graphics, third edition.
fn png(pixels: &[Pixel], width: usize, height: usize) -> Vec<u8> {
    let mut lines = Vec::with_capacity((width * 3 + 1) * height);
    for line in pixels.chunks(width) {
        lines.push(0); // no filter
        lines.extend(line.iter().flatten());
    }
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    // Into memory: it cannot fail.
    let _ = packed.write_all(&lines);
    let packed = packed.finish().unwrap_or_default();
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |name: &[u8; 4], data: &[u8]| {
        file.extend((data.len() as u32).to_be_bytes());
        let mut sum = crc32fast::Hasher::new();
        sum.update(name);
        sum.update(data);
        file.extend(name);
        file.extend_from_slice(data);
        file.extend(sum.finalize().to_be_bytes());
    };
    let size = [(width as u32).to_be_bytes(), (height as u32).to_be_bytes()].concat();
    chunk(b"IHDR", &[&size[..], &[8, 2, 0, 0, 0]].concat());
    chunk(b"IDAT", &packed);
    chunk(b"IEND", &[]);
    file
}

/// RFC 4648.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let value = group.iter().fold(0u32, |all, byte| all << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let place = (value >> (18 - 6 * digit)) & 63;
            let shown = digit <= group.len();
            text.push(if shown { char::from(DIGITS.get(place as usize).copied().unwrap_or(b'A')) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tone_is_a_line_at_its_frequency() {
        let tone: Vec<f64> = (0..FRAMES).map(|n| (std::f64::consts::TAU * n as f64 / 8.0).sin()).collect();
        let levels = transform(&tone);
        let loudest = (0..SPECTRUM).max_by(|a, b| levels[*a].total_cmp(&levels[*b])).unwrap();
        assert_eq!(loudest, FRAMES / 8);
        assert!(levels[loudest].abs() < 0.1 && levels[10] < -100.0, "{} dB", levels[loudest]);
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        let pairs =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (plain, coded) in pairs {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
