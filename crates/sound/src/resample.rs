//! One rate into another: a bank of windowed-sinc filters.
//!
//! 128 taps (more when the rate falls), a Kaiser window of 120 dB. The position between two input frames is an exact
//! fraction, so nothing drifts however long a stream is. Rates that share a small ratio (44,100 and 48,000) have a filter
//! for each phase; others, and a ratio that changes, go between two phases of 512 by a cubic.

/// Input frames that a filter reaches to each side when the rate does not fall.
const HALF_TAPS: usize = 64;
/// Most phases that are tabulated one by one.
const PHASES_MAX: u64 = 1024;
/// Phases of a bank that is interpolated.
const PHASES: u64 = 512;
/// Denominator of a ratio that changes.
const FINE: u64 = 1 << 40;

/// A converter of interleaved frames.
#[derive(Debug, Clone)]
pub struct Resampler {
    channels: usize,
    /// Filters: phase after phase, `2 * half` taps each.
    bank: Vec<f64>,
    phases: u64,
    half: usize,
    /// Whether a phase falls between two filters.
    between: bool,
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
        let between = den > PHASES_MAX;
        Self::with(channels, step, den, if between { PHASES } else { den }, between)
    }

    /// A ratio of about 1 that [`Resampler::set_ratio`] changes while it runs.
    pub fn variable(channels: u8) -> Self {
        Self::with(channels, FINE, FINE, PHASES, true)
    }

    fn with(channels: u8, step: u64, den: u64, phases: u64, between: bool) -> Self {
        let fall = (step as f64 / den as f64).max(1.0);
        let half = (HALF_TAPS as f64 * fall).ceil() as usize;
        // One more phase than there are, and one before, for the cubic.
        let rows = if between { phases + 3 } else { phases };
        let mut bank = Vec::with_capacity(rows as usize * 2 * half);
        for row in 0..rows {
            let phase = (row as f64 - if between { 1.0 } else { 0.0 }) / phases as f64;
            let first = bank.len();
            bank.extend((0..2 * half).map(|tap| filter((tap as f64) - (half as f64 - 1.0) - phase, half as f64, fall)));
            let sum: f64 = bank.iter().skip(first).sum();
            bank.iter_mut().skip(first).for_each(|tap| *tap /= sum);
        }
        let channels = usize::from(channels.max(1));
        // Silence before the first frame: the first output frame is the first input frame.
        Self { channels, bank, phases, half, between, step, den, at: 0, history: vec![0.0; (half - 1) * channels] }
    }

    /// Input frames for each output frame from now on, between 0.5 and 2; for a [`Resampler::variable`] one.
    pub fn set_ratio(&mut self, ratio: f64) {
        self.step = (ratio.clamp(0.5, 2.0) * self.den as f64).round() as u64;
    }

    /// Input frames that have to be pushed so that `frames` can be pulled.
    pub fn needed(&self, frames: u64) -> usize {
        let Some(last) = frames.checked_sub(1) else { return 0 };
        let last = (u128::from(self.at) + u128::from(last) * u128::from(self.step)) / u128::from(self.den);
        (usize::try_from(last).unwrap_or(usize::MAX).saturating_add(2 * self.half))
            .saturating_sub(self.history.len() / self.channels)
    }

    /// Input frames that a frame waits for before it is heard.
    pub fn delay(&self) -> usize {
        self.half
    }

    /// Takes input frames.
    pub fn push(&mut self, input: &[f64]) {
        self.history.extend_from_slice(input);
    }

    /// Appends at most `frames` output frames, as many as the input allows, and returns how many.
    pub fn pull(&mut self, frames: usize, output: &mut Vec<f64>) -> usize {
        let taps = 2 * self.half;
        let mut made = 0;
        let mut blend = vec![0.0; if self.between { taps } else { 0 }];
        while made < frames {
            let first = (self.at / self.den) as usize * self.channels;
            let Some(window) = self.history.get(first..first + taps * self.channels) else { break };
            let filter = if self.between {
                self.blend(self.at % self.den, &mut blend);
                blend.as_slice()
            } else {
                let row = (self.at % self.den) as usize * taps;
                self.bank.get(row..row + taps).unwrap_or_default()
            };
            if self.channels == 2 {
                let (mut left, mut right) = (0.0, 0.0);
                for (tap, frame) in filter.iter().zip(window.as_chunks::<2>().0) {
                    left += tap * frame[0];
                    right += tap * frame[1];
                }
                output.extend([left, right]);
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

    /// The filter between phases, by Catmull and Rom's cubic.
    fn blend(&self, at: u64, filter: &mut [f64]) {
        let place = at as f64 / self.den as f64 * self.phases as f64;
        let (row, t) = (place.floor() as usize, place.fract());
        let taps = 2 * self.half;
        let gains = [
            ((-0.5 * t + 1.0) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1.0,
            ((-1.5 * t + 2.0) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        ];
        filter.fill(0.0);
        for (number, gain) in gains.iter().enumerate() {
            let from = (row + number) * taps;
            for (tap, stored) in filter.iter_mut().zip(self.bank.get(from..from + taps).unwrap_or_default()) {
                *tap += gain * stored;
            }
        }
    }
}

/// A sinc that ends below the lower of the two Nyquist frequencies, in a Kaiser window; `x` in input frames.
fn filter(x: f64, half: f64, fall: f64) -> f64 {
    const BETA: f64 = 12.0;
    // The transition ends at the Nyquist frequency.
    let cutoff = (1.0 - 3.9 / HALF_TAPS as f64) / fall;
    let place = x / half;
    if place.abs() >= 1.0 {
        return 0.0;
    }
    let angle = std::f64::consts::PI * x * cutoff;
    let sinc = if angle.abs() < 1e-9 { 1.0 } else { angle.sin() / angle };
    sinc * bessel(BETA * (1.0 - place * place).sqrt()) / bessel(BETA)
}

/// The modified Bessel function of the first kind, order 0.
fn bessel(x: f64) -> f64 {
    let quarter = x * x / 4.0;
    let (mut sum, mut term) = (1.0, 1.0);
    for n in 1..60 {
        term *= quarter / f64::from(n * n);
        sum += term;
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

    #[test]
    fn a_ratio_that_changes_is_exact() {
        let mut resampler = Resampler::variable(2);
        resampler.set_ratio(1.0002);
        let quality = check(&mut resampler, 48.0, 48.0 / 1.0002);
        assert!(quality > 110.0, "{quality:.1} dB");
    }
}
