//! Randomness that can be repeated: a generator with a seed, netem's correlated numbers, netem's distributions.

/// A generator (SplitMix64): the same seed gives the same numbers, everywhere.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// One with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1, 1 left out.
    pub fn unit(&mut self) -> f64 {
        (self.u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Below `bound`; 0 for 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.u64()) * u128::from(bound)) >> 64) as u64
    }
}

/// Numbers from 0 to 1 of which each takes a share of the one before: `value · (1 − ρ) + last · ρ`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Correlated {
    /// ρ, from 0 to 1.
    pub correlation: f64,
    last: f64,
}

impl Correlated {
    /// With a correlation.
    pub fn new(correlation: f64) -> Self {
        Self { correlation, last: 0.0 }
    }

    /// The next.
    pub fn next(&mut self, random: &mut Random) -> f64 {
        let value = random.unit();
        if self.correlation > 0.0 {
            self.last = value * (1.0 - self.correlation) + self.last * self.correlation;
            return self.last;
        }
        value
    }

    /// The next for a [`Distribution`]: it follows the one before, and all of them together are spread as they would be
    /// if they did not: z · √(1 − ρ²) + last · ρ of normal numbers. The sum above becomes narrower with ρ, and netem,
    /// which takes the remainder of it, has no correlation of delays left (measured in tests/netem.rs).
    pub fn next_spread(&mut self, random: &mut Random) -> f64 {
        let value = random.unit();
        if self.correlation > 0.0 {
            let rho = self.correlation.min(1.0);
            let fresh = quantile(value.clamp(UNIT_MIN, 1.0 - UNIT_MIN));
            self.last = fresh * (1.0 - rho * rho).sqrt() + self.last * rho;
            return integral(self.last);
        }
        value
    }
}

/// A probability with netem's correlation.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Chance {
    /// From 0 to 1.
    pub probability: f64,
    /// The numbers that decide.
    pub draw: Correlated,
}

impl Chance {
    /// Whether it happens now.
    pub fn happens(&mut self, random: &mut Random) -> bool {
        self.probability > 0.0 && (self.draw.next(random) < self.probability || self.probability >= 1.0)
    }
}

/// How jitter is spread around the latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Distribution {
    /// All of ± jitter alike.
    #[default]
    Uniform,
    /// Jitter is the standard deviation.
    Normal,
    /// A long tail: α = 3, its mean at the latency.
    Pareto,
    /// A quarter normal, three quarters Pareto.
    ParetoNormal,
}

/// Nearer to 0 and to 1 no distribution is asked.
const UNIT_MIN: f64 = 1e-9;
/// netem's tables end here, in units of the jitter.
const SPREAD_MAX: f64 = 4.0;

impl Distribution {
    /// The word of netem.
    pub fn word(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Normal => "normal",
            Self::Pareto => "pareto",
            Self::ParetoNormal => "paretonormal",
        }
    }

    /// Where `unit` (from 0 to 1) lies in it, in units of the jitter.
    pub fn at(self, unit: f64) -> f64 {
        let unit = unit.clamp(UNIT_MIN, 1.0 - UNIT_MIN);
        // netem builds its Pareto table from (u^(-1/3) - 3/2) * 4/3.
        let pareto = |unit: f64| (((1.0 - unit).powf(-1.0 / 3.0) - 1.5) * 4.0 / 3.0).min(SPREAD_MAX);
        match self {
            Self::Uniform => 2.0 * unit - 1.0,
            Self::Normal => quantile(unit).clamp(-SPREAD_MAX, SPREAD_MAX),
            Self::Pareto => pareto(unit),
            Self::ParetoNormal => 0.25 * quantile(unit).clamp(-SPREAD_MAX, SPREAD_MAX) + 0.75 * pareto(unit),
        }
    }
}

/// The quantile of the normal distribution: bisection on its integral, which is exact enough for 40 steps and simple.
fn quantile(unit: f64) -> f64 {
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..40 {
        let middle = (low + high) / 2.0;
        if integral(middle) < unit { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// The share of the normal distribution below `x` (Abramowitz and Stegun 26.2.17, error below 7.5e-8).
fn integral(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let polynomial =
        t * (0.319_381_530 + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let tail = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * polynomial;
    if x >= 0.0 { 1.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..4).map(|_| random.u64()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn distributions_have_their_mean_and_spread() {
        let mut random = Random::new(1);
        for (distribution, mean, deviation) in [
            (Distribution::Uniform, 0.0, 1.0 / 3f64.sqrt()),
            (Distribution::Normal, 0.0, 1.0),
            (Distribution::Pareto, -0.03, 0.80),
            (Distribution::ParetoNormal, -0.02, 0.80),
        ] {
            let drawn: Vec<f64> = (0..100_000).map(|_| distribution.at(random.unit())).collect();
            let found = drawn.iter().sum::<f64>() / 1e5;
            let spread = (drawn.iter().map(|x| (x - found).powi(2)).sum::<f64>() / 1e5).sqrt();
            assert!((found - mean).abs() < 0.03, "{distribution:?}: mean {found}");
            assert!((spread - deviation).abs() < 0.08, "{distribution:?}: deviation {spread}");
        }
    }

    #[test]
    fn correlated_numbers_follow_each_other() {
        let mut random = Random::new(3);
        let mut correlated = Correlated::new(0.9);
        let drawn: Vec<f64> = (0..10_000).map(|_| correlated.next(&mut random)).collect();
        let step = drawn.windows(2).map(|pair| (pair[0] - pair[1]).abs()).sum::<f64>() / 1e4;
        assert!(step < 0.06, "{step}");
        // What is for distributions keeps its spread: a tenth of the numbers lies in each tenth.
        let mut correlated = Correlated::new(0.9);
        let drawn: Vec<f64> = (0..100_000).map(|_| correlated.next_spread(&mut random)).collect();
        for tenth in 0..10 {
            let (low, high) = (f64::from(tenth) / 10.0, f64::from(tenth + 1) / 10.0);
            let share = drawn.iter().filter(|unit| (low..high).contains(*unit)).count() as f64 / 1e5;
            assert!((share - 0.1).abs() < 0.015, "{low}: {share}");
        }
        let step = drawn.windows(2).map(|pair| (pair[0] - pair[1]).abs()).sum::<f64>() / 1e5;
        assert!(step < 0.15, "{step}: 0.33 for independent numbers");
    }
}
