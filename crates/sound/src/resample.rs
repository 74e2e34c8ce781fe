//! One rate into another: a bank of windowed-sinc filters.
//!
//! 128 taps (more when the rate falls), a Kaiser window of 120 dB. The position between two input frames is an exact
//! fraction, so nothing drifts however long a stream is. Rates that share a small ratio (44,100 and 48,000) have a filter
//! for each phase; others, and the loop's ratio, which changes, go between two phases of 1024 (fewer when the rate falls: the
//! filter is longer, and as much smoother), so that no bank is larger than 4 MiB.

/// Input frames that a filter reaches to each side when the rate does not fall.
const HALF_TAPS: usize = 64;
/// Most phases that are tabulated one by one.
const PHASES_MAX: u64 = 1024;
/// Phases of a bank that is interpolated.
const PHASES: u64 = 1024;
/// The transition of a resampler's filter ends at the Nyquist frequency.
const CUTOFF: f64 = 1.0 - 3.9 / HALF_TAPS as f64;
/// The shape of its Kaiser window: 120 dB.
const BETA: f64 = 12.0;

/// Filters for the positions between two input frames.
#[derive(Debug, Clone)]
pub(crate) struct Bank {
    /// Phase after phase, `2 * half` taps each.
    taps: Vec<f64>,
    phases: u64,
    half: usize,
    /// Whether a position falls between two filters.
    between: bool,
}

impl Bank {
    /// A sinc of `2 * half` taps that ends at `cutoff` times the Nyquist frequency, in a Kaiser window of that `beta`.
    pub(crate) fn new(phases: u64, half: usize, cutoff: f64, beta: f64, between: bool) -> Self {
        // One more phase than there are.
        let rows = if between { phases + 1 } else { phases };
        let mut taps = Vec::with_capacity(rows as usize * 2 * half);
        for row in 0..rows {
            let phase = row as f64 / phases as f64;
            let first = taps.len();
            taps.extend((0..2 * half).map(|tap| {
                let x = (tap as f64) - (half as f64 - 1.0) - phase;
                windowed_sinc(x, half as f64, cutoff, beta)
            }));
            let sum: f64 = taps.iter().skip(first).sum();
            taps.iter_mut().skip(first).for_each(|tap| *tap /= sum);
        }
        Self { taps, phases, half, between }
    }

    /// The filter of one of the phases.
    fn row(&self, row: usize) -> &[f64] {
        let taps = 2 * self.half;
        self.taps.get(row * taps..(row + 1) * taps).unwrap_or_default()
    }

    /// The filter of a fraction of a frame, from 0 up to 1: -120 dB off at most, between two of 1024 phases.
    pub(crate) fn blend(&self, fraction: f64, filter: &mut [f64]) {
        let place = fraction * self.phases as f64;
        let (row, t) = (place as usize, place.fract());
        for ((tap, a), b) in filter.iter_mut().zip(self.row(row)).zip(self.row(row + 1)) {
            *tap = a + (b - a) * t;
        }
    }
}

/// A converter of interleaved frames.
#[derive(Debug, Clone)]
pub struct Resampler {
    channels: usize,
    bank: Bank,
    /// Input frames an output frame advances: `step / den`.
    step: u64,
    den: u64,
    /// Where the next output frame is, in `1 / den` input frames behind the first frame of `history` + `half`.
    at: u64,
    history: Vec<f64>,
}

impl Resampler {
    /// From `input` Hz to `output` Hz, both above 0.
    pub fn new(channels: u8, input: u32, output: u32) -> Self {
        let (input, output) = (u64::from(input.max(1)), u64::from(output.max(1)));
        let divisor = gcd(input, output);
        let (step, den) = (input / divisor, output / divisor);
        let fall = (step as f64 / den as f64).max(1.0);
        let between = den as f64 * fall > (2 * PHASES_MAX) as f64 || den > PHASES_MAX;
        let phases = if between { (PHASES as f64 / fall).ceil() as u64 } else { den };
        // Even, so that the taps are a multiple of 4.
        let half = ((HALF_TAPS as f64 * fall).ceil() as usize).next_multiple_of(2);
        let bank = Bank::new(phases, half, CUTOFF / fall, BETA, between);
        let channels = usize::from(channels.max(1));
        // Silence before the first frame: the first output frame is the first input frame.
        Self { channels, bank, step, den, at: 0, history: vec![0.0; (half - 1) * channels] }
    }

    /// Input frames that have to be pushed so that `frames` can be pulled.
    pub fn needed(&self, frames: u64) -> usize {
        let Some(last) = frames.checked_sub(1) else { return 0 };
        let last = (u128::from(self.at) + u128::from(last) * u128::from(self.step)) / u128::from(self.den);
        (usize::try_from(last).unwrap_or(usize::MAX).saturating_add(2 * self.bank.half))
            .saturating_sub(self.history.len() / self.channels)
    }

    /// Input frames that a frame waits for before it is heard.
    pub fn delay(&self) -> usize {
        self.bank.half
    }

    /// Takes input frames.
    pub fn push(&mut self, input: &[f64]) {
        self.history.extend_from_slice(input);
    }

    /// Appends at most `frames` output frames, as many as the input allows, and returns how many.
    pub fn pull(&mut self, frames: usize, output: &mut Vec<f64>) -> usize {
        let taps = 2 * self.bank.half;
        let mut made = 0;
        let mut blend = vec![0.0; if self.bank.between { taps } else { 0 }];
        while made < frames {
            let first = (self.at / self.den) as usize * self.channels;
            let Some(window) = self.history.get(first..first + taps * self.channels) else { break };
            let filter = if self.bank.between {
                self.bank.blend((self.at % self.den) as f64 / self.den as f64, &mut blend);
                blend.as_slice()
            } else {
                self.bank.row((self.at % self.den) as usize)
            };
            if self.channels == 2 {
                output.extend(stereo(filter, window));
            } else {
                for channel in 0..self.channels {
                    let samples = window.iter().skip(channel).step_by(self.channels);
                    output.push(filter.iter().zip(samples).map(|(tap, sample)| tap * sample).sum());
                }
            }
            self.at += self.step;
            made += 1;
        }
        let past = ((self.at / self.den) as usize).min(self.history.len() / self.channels);
        self.history.drain(..past * self.channels);
        self.at -= past as u64 * self.den;
        made
    }
}

/// A sinc in a Kaiser window whose top is not 1; `x` and `half`, where the window ends, in input frames.
fn windowed_sinc(x: f64, half: f64, cutoff: f64, beta: f64) -> f64 {
    let place = x / half;
    if place.abs() >= 1.0 {
        return 0.0;
    }
    let angle = std::f64::consts::PI * x * cutoff;
    let sinc = if angle.abs() < 1e-9 { 1.0 } else { angle.sin() / angle };
    sinc * bessel(beta * (1.0 - place * place).sqrt())
}

/// Two interleaved channels through a filter of a multiple of 4 taps, in sums that do not wait for each other.
pub(crate) fn stereo(filter: &[f64], window: &[f64]) -> [f64; 2] {
    let mut sums = [0.0; 8];
    for (taps, frames) in filter.as_chunks::<4>().0.iter().zip(window.as_chunks::<8>().0) {
        for (tap, (sum, frame)) in
            taps.iter().zip(sums.as_chunks_mut::<2>().0.iter_mut().zip(frames.as_chunks::<2>().0))
        {
            sum[0] += tap * frame[0];
            sum[1] += tap * frame[1];
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    [a + c + e + g, b + d + f + h]
}

/// The modified Bessel function of the first kind, order 0.
fn bessel(x: f64) -> f64 {
    let quarter = x * x / 4.0;
    let (mut sum, mut term) = (1.0, 1.0);
    for n in 1..60 {
        term *= quarter / f64::from(n * n);
        sum += term;
        if term < 1e-17 * sum {
            break;
        }
    }
    sum
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Converts a tone and returns signal over everything else in dB, by least squares against the ideal tone.
    fn quality(input: u32, output: u32, hertz: f64) -> f64 {
        let mut resampler = Resampler::new(2, input, output);
        check(&mut resampler, f64::from(input) / hertz, f64::from(output) / hertz)
    }

    fn check(resampler: &mut Resampler, input_period: f64, output_period: f64) -> f64 {
        let tone = |n: usize, period: f64| (std::f64::consts::TAU * n as f64 / period).sin();
        let mut output = Vec::new();
        let mut n = 0;
        while output.len() < 2 * 6000 {
            let needed = resampler.needed(37);
            let frames: Vec<f64> = (n..n + needed).flat_map(|n| [tone(n, input_period); 2]).collect();
            n += needed;
            resampler.push(&frames);
            assert_eq!(resampler.pull(37, &mut output), 37);
        }
        let (mut signal, mut noise) = (0.0, 0.0);
        for (n, frame) in output.chunks(2).enumerate().skip(1000) {
            let ideal = tone(n, output_period);
            assert_eq!(frame[0], frame[1]);
            signal += ideal * ideal;
            noise += (frame[0] - ideal) * (frame[0] - ideal);
        }
        10.0 * (signal / noise).log10()
    }

    #[test]
    fn a_tone_keeps_its_place_and_pitch() {
        for (input, output) in [(44_100, 48_000), (48_000, 44_100), (8_000, 48_000), (96_000, 48_000), (47_999, 48_000)]
        {
            let quality = quality(input, output, 997.0);
            assert!(quality > 110.0, "{input} to {output} Hz: {quality:.1} dB");
        }
        assert!(quality(44_100, 48_000, 17_000.0) > 90.0);
        // Longer filters, of fewer phases.
        for (input, output) in [(384_000, 47_999), (96_000, 8_009), (768_000, 1_001)] {
            let quality = quality(input, output, 97.0);
            assert!(quality > 110.0, "{input} to {output} Hz: {quality:.1} dB");
        }
    }

    #[test]
    fn no_bank_is_large() {
        for (input, output) in [(768_000, 1_000), (767_999, 1_023), (48_000, 1_001), (1_000, 768_000), (1_001, 767_999)]
        {
            let taps = Resampler::new(2, input, output).bank.taps.len();
            assert!(taps <= 4 << 17, "{input} to {output} Hz: {taps} taps");
        }
    }

    #[test]
    fn what_is_above_the_new_nyquist_frequency_is_gone() {
        let mut resampler = Resampler::new(1, 48_000, 24_000);
        resampler
            .push(&(0..20_000).map(|n| (std::f64::consts::TAU * f64::from(n) * 15.0 / 48.0).sin()).collect::<Vec<_>>());
        let mut output = Vec::new();
        resampler.pull(8_000, &mut output);
        let peak = output.iter().skip(500).fold(0.0f64, |peak, x| peak.max(x.abs()));
        assert!(peak < 1e-5, "{peak}");
    }
}
