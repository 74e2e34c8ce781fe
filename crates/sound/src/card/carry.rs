//! What sources carry: the microphone, sinks, FIFOs.

use std::collections::BTreeMap;

use super::Mic;
use super::engine::{Carried, Engine, Source};

impl Engine {
    /// What the microphone carries next.
    fn microphone(&mut self, frames: usize) -> Vec<f64> {
        let channels = usize::from(self.options.spec.channels);
        let samples = frames * channels;
        let first = self.phase;
        self.phase += frames as u64;
        match &self.options.mic {
            Mic::Loop => self.sinks.first().map(|sink| sink.bus.clone()).unwrap_or_default(),
            Mic::Silence | Mic::Wav(_) => vec![0.0; samples],
            Mic::Samples(kept) => {
                let length = kept.len().max(1);
                let first = self.mic_at;
                self.mic_at = (first + samples) % length;
                (0..samples).map(|n| kept.get((first + n) % length).map_or(0.0, |x| f64::from(*x))).collect()
            }
            Mic::Tone(hertz) => {
                let rate = f64::from(self.options.spec.rate);
                let tone = |n: u64| (std::f64::consts::TAU * (n as f64 * *hertz / rate).fract()).sin() * 0.1;
                (first..first + frames as u64).flat_map(|n| std::iter::repeat_n(tone(n), channels)).collect()
            }
        }
    }

    pub(super) fn record(&mut self, frames: usize, direct: &BTreeMap<u32, Vec<f64>>) {
        let channels = self.options.spec.channels;
        let wanted = |source: &Source| {
            self.records.values().any(|record| record.source == source.index && !record.corked)
                || self.loops.iter().any(|one| one.source == source.index)
        };
        let wanted: Vec<bool> = self.sources.iter().map(wanted).collect();
        let listened = self.sources.iter().zip(&wanted).any(|(s, wanted)| *wanted && s.carries == Carried::Microphone);
        let microphone = if listened { self.microphone(frames) } else { Vec::new() };
        let mut piped = Vec::new();
        for pipe in &mut self.pipes {
            let carries = Carried::Pipe(pipe.module());
            pipe.listen(self.sources.iter().zip(&wanted).any(|(s, wanted)| *wanted && s.carries == carries));
            piped.push((pipe.module(), pipe.take(frames)));
        }
        for (source, _) in self.sources.iter().zip(wanted).filter(|(_, wanted)| *wanted) {
            let carried = match source.carries {
                Carried::Microphone => microphone.as_slice(),
                Carried::Pipe(module) => piped
                    .iter()
                    .find(|(of, _)| *of == module)
                    .map(|(_, samples)| samples.as_slice())
                    .unwrap_or_default(),
                Carried::Sink(sink) => {
                    self.sinks.iter().find(|s| s.index == sink).map(|s| s.bus.as_slice()).unwrap_or_default()
                }
            };
            let mut samples = match &source.order {
                None => carried.to_vec(),
                Some(order) => {
                    let reordered = |frame: &[f64]| -> Vec<f64> {
                        order.iter().map(|from| frame.get(*from).copied().unwrap_or(0.0)).collect()
                    };
                    carried.chunks_exact(channels.into()).flat_map(reordered).collect()
                }
            };
            source.volume.apply(&mut samples, channels);
            for record in self.records.values_mut().filter(|record| record.source == source.index) {
                match record.direct {
                    Some(input) => record.take(direct.get(&input).map_or(&samples, |alone| alone)),
                    None => record.take(&samples),
                }
            }
            for one in self.loops.iter_mut().filter(|one| one.source == source.index) {
                one.delay.extend(&samples);
            }
        }
    }
}
