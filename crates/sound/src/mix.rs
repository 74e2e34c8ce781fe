//! Channels of one map into channels of another.

use crate::pcm::Position;

/// How much of each input channel each output channel gets.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    inputs: usize,
    /// One row an output channel; `None` when every channel stays what it is.
    rows: Option<Vec<Vec<f64>>>,
}

/// What a stream forbids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// Channel n is channel n, wherever it is heard.
    pub no_remap: bool,
    /// Only channels of the same position are connected.
    pub no_remix: bool,
}

impl Matrix {
    /// From the channels of `from` to those of `to`.
    ///
    /// Channels of the same position are connected. A mono stream goes everywhere, and mono is the mean of all. What is
    /// left goes to the same side, or from the middle to both sides; a row that would add up to more than 1 is scaled
    /// down to 1. The channel for low frequencies is never made.
    pub fn new(from: &[Position], to: &[Position], rules: Rules) -> Self {
        let inputs = from.len();
        if from == to || (rules.no_remap && inputs == to.len()) {
            return Self { inputs, rows: None };
        }
        let mut rows = vec![vec![0.0; inputs]; to.len()];
        for (number, (row, position)) in rows.iter_mut().zip(to).enumerate() {
            for (index, (gain, source)) in row.iter_mut().zip(from).enumerate() {
                let same = if rules.no_remap { index == number } else { source == position };
                *gain = if same { 1.0 } else { 0.0 };
            }
        }
        if !rules.no_remap && !rules.no_remix {
            remix(&mut rows, from, to);
        }
        Self { inputs, rows: Some(rows) }
    }

    /// Whether every channel stays what it is.
    pub fn is_identity(&self) -> bool {
        self.rows.is_none()
    }

    /// Appends the frames of `input`, mixed.
    pub fn apply(&self, input: &[f64], output: &mut Vec<f64>) {
        let Some(rows) = &self.rows else {
            output.extend_from_slice(input);
            return;
        };
        for frame in input.chunks_exact(self.inputs.max(1)) {
            output
                .extend(rows.iter().map(|row| row.iter().zip(frame).map(|(gain, sample)| gain * sample).sum::<f64>()));
        }
    }
}

fn remix(rows: &mut [Vec<f64>], from: &[Position], to: &[Position]) {
    let used: Vec<bool> =
        (0..from.len()).map(|n| rows.iter().any(|row| row.get(n).is_some_and(|gain| *gain > 0.0))).collect();
    for (row, position) in rows.iter_mut().zip(to) {
        let met = row.iter().any(|gain| *gain > 0.0);
        if *position == Position::LFE {
            continue;
        }
        let wanted = |source: Position| {
            source == Position::MONO
                || *position == Position::MONO
                || (source != Position::LFE
                    && (source.side() == position.side()
                        || (position.side() != 0 && source.side() == 0)
                        || (position.side() == 0 && !met)))
        };
        for ((gain, source), used) in row.iter_mut().zip(from).zip(&used) {
            // A position that is met takes only what would be lost; one that is not takes what it can get.
            if *gain == 0.0 && (!met || !*used) && wanted(*source) {
                *gain = 1.0;
            }
        }
        let sum: f64 = row.iter().sum();
        if sum > 1.0 || (!met && sum > 0.0) {
            row.iter_mut().for_each(|gain| *gain /= sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pcm::default_map;

    fn apply(from: u8, to: u8, frame: &[f64]) -> Vec<f64> {
        let mut output = Vec::new();
        Matrix::new(&default_map(from), &default_map(to), Rules::default()).apply(frame, &mut output);
        output
    }

    #[test]
    fn mono_goes_everywhere_and_mono_is_the_mean() {
        assert_eq!(apply(1, 2, &[0.25]), [0.25, 0.25]);
        assert_eq!(apply(2, 1, &[0.5, 0.25]), [0.375]);
        assert_eq!(apply(2, 2, &[0.5, 0.25]), [0.5, 0.25]);
    }

    #[test]
    fn swapped_channels_are_swapped_back() {
        let mut output = Vec::new();
        Matrix::new(&[Position(2), Position(1)], &default_map(2), Rules::default()).apply(&[0.5, 0.25], &mut output);
        assert_eq!(output, [0.25, 0.5]);
        output.clear();
        let rules = Rules { no_remap: true, ..Rules::default() };
        Matrix::new(&[Position(2), Position(1)], &default_map(2), rules).apply(&[0.5, 0.25], &mut output);
        assert_eq!(output, [0.5, 0.25]);
    }

    #[test]
    fn surround_to_stereo_keeps_sides_and_never_exceeds_full_scale() {
        let output = apply(6, 2, &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        assert!(output[0] > 0.5 && output[1] == 0.0, "{output:?}");
        assert!(apply(6, 2, &[1.0; 6]).iter().all(|x| *x <= 1.0));
        let output = apply(2, 6, &[0.5, 0.25]);
        assert_eq!((output[0], output[1], output[3]), (0.5, 0.25, 0.0));
        assert!((output[2] - 0.375).abs() < 1e-9 && (output[4] - 0.5).abs() < 1e-9);
        let rules = Rules { no_remix: true, ..Rules::default() };
        let mut only = Vec::new();
        Matrix::new(&default_map(2), &default_map(6), rules).apply(&[0.5, 0.25], &mut only);
        assert_eq!(only, [0.5, 0.25, 0.0, 0.0, 0.0, 0.0]);
    }
}
