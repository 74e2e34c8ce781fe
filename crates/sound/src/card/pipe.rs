//! `module-pipe-source`: what somebody writes into a FIFO is what a source carries. Here is no FIFO, but what comes out of it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::dispatch::{Asker, Done, no};
use super::engine::{Carried, Engine, Module, Source};
use super::module::{Arguments, SOURCES_MAX};
use super::stream::Volume;
use crate::mix::{Matrix, Rules};
use crate::pcm::{Format, RATE_MAX, RATE_MIN, Spec, default_map};
use crate::pulse::command::{code, event, facility, op};
use crate::pulse::tag::Writer;
use crate::resample::Resampler;

/// Most FIFOs.
const PIPES_MAX: usize = 16;
/// Longest path of one, as in Linux.
const PATH_MAX: usize = 4095;
/// Frames that are read ahead of the card's clock: 1/4 s.
const AHEAD_PER_SECOND: u32 = 4;

/// A FIFO that a client wants; [`Engine::opened`] says whether it is there.
#[derive(Debug)]
pub struct Opening {
    /// The module that it is for.
    pub module: u32,
    /// Where it is to be, an absolute path.
    pub path: PathBuf,
    asker: Asker,
    argument: String,
    source: Source,
}

impl Opening {
    /// Who wants it.
    pub fn client(&self) -> u32 {
        self.asker.client
    }
}

/// What came through a FIFO and is not recorded yet.
#[derive(Debug)]
pub(super) struct Pipe {
    /// What is asked for and not there yet.
    opening: Option<Opening>,
    module: u32,
    spec: Spec,
    matrix: Matrix,
    resampler: Option<Resampler>,
    /// A frame that has not come whole.
    rest: Vec<u8>,
    samples: Vec<f64>,
    mixed: Vec<f64>,
    /// Samples of the card.
    queue: VecDeque<f64>,
    card: Spec,
    /// Whether somebody listens: a FIFO that nobody listens to is not read.
    heard: bool,
}

impl Pipe {
    pub fn module(&self) -> u32 {
        self.module
    }

    /// Whether somebody listens.
    pub fn listen(&mut self, heard: bool) {
        self.heard = heard && self.opening.is_none();
    }

    /// Frames of the card, silence where nothing came.
    pub fn take(&mut self, frames: usize) -> Vec<f64> {
        let samples = frames.saturating_mul(usize::from(self.card.channels));
        if !self.heard {
            return Vec::new();
        }
        let mut taken: Vec<f64> = self.queue.drain(..samples.min(self.queue.len())).collect();
        taken.resize(samples, 0.0);
        taken
    }

    /// Bytes that it takes.
    fn room(&self) -> usize {
        let ahead = (self.card.rate / AHEAD_PER_SECOND) as usize;
        let held = self.queue.len() / usize::from(self.card.channels.max(1));
        let left = ahead.saturating_sub(held) as u64 * u64::from(self.spec.rate) / u64::from(self.card.rate.max(1));
        if self.heard { (left as usize).saturating_mul(self.spec.frame_bytes()) } else { 0 }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let whole = self.rest.len() / self.spec.frame_bytes() * self.spec.frame_bytes();
        self.samples.clear();
        self.mixed.clear();
        self.spec.format.decode(self.rest.get(..whole).unwrap_or_default(), &mut self.samples);
        self.rest.drain(..whole);
        if let Some(resampler) = &mut self.resampler {
            resampler.push(&self.samples);
            self.samples.clear();
            resampler.pull(usize::MAX, &mut self.samples);
        }
        self.matrix.apply(&self.samples, &mut self.mixed);
        self.queue.extend(&self.mixed);
    }
}

impl Engine {
    /// A source of a FIFO: it is there when [`Engine::opened`] says that the FIFO is.
    pub(super) fn load_pipe_source(
        &mut self,
        asker: Asker,
        module: u32,
        arguments: &Arguments<'_>,
        argument: &str,
    ) -> Done {
        let name = arguments.value("source_name").unwrap_or("fifo_input");
        let path = arguments.value("file").unwrap_or_default();
        let card = self.options.spec;
        let number = |key: &str, usual: u32| arguments.value(key).map_or(Some(usual), |text| text.parse::<u32>().ok());
        let rate = number("rate", card.rate).filter(|rate| (RATE_MIN..=RATE_MAX).contains(rate));
        let channels = number("channels", card.channels.into()).and_then(|channels| u8::try_from(channels).ok());
        let format = arguments.value("format").map_or(Some(Format::S16le), |text| text.parse().ok());
        let (Some(rate), Some(channels), Some(format)) = (rate, channels, format) else { return no(code::INVALID) };
        let spec = Spec { format, channels, rate };
        let usual = if channels == card.channels { self.options.map.clone() } else { default_map(channels) };
        let map = arguments.value("channel_map").map_or(Some(usual), |_| arguments.positions("channel_map"));
        let map = map.filter(|map| spec.is_valid() && map.len() == usize::from(channels));
        let Some(map) = map else { return no(code::INVALID) };
        if !Path::new(path).is_absolute() || path.len() > PATH_MAX || path.contains('\0') {
            return no(code::INVALID);
        }
        let taken = |pipe: &Pipe| pipe.opening.as_ref().is_some_and(|opening| opening.source.name == name);
        if !self.is_free(name)
            || self.pipes.iter().any(taken)
            || self.pipes.len() >= PIPES_MAX
            || self.sources.len() >= SOURCES_MAX
        {
            return no(code::MODINITFAILED);
        }
        let index = self.take_index().saturating_add(2);
        let source = Source {
            index,
            name: name.to_owned(),
            description: format!("Unix FIFO source {path}"),
            module: Some(module),
            monitor_of: None,
            carries: Carried::Pipe(module),
            order: None,
            volume: Volume::normal(card.channels),
            suspended: false,
        };
        let (path, argument) = (PathBuf::from(path), argument.to_owned());
        let matrix = Matrix::new(&map, &self.options.map, Rules::default());
        let opening = Opening { module, path, asker, argument, source };
        self.pipes.push(Pipe {
            opening: Some(opening),
            module,
            spec,
            matrix,
            resampler: (rate != card.rate).then(|| Resampler::new(channels, rate, card.rate)),
            rest: Vec::new(),
            samples: Vec::new(),
            mixed: Vec::new(),
            queue: VecDeque::new(),
            card,
            heard: false,
        });
        Ok(None)
    }

    /// The FIFOs that clients wait for; each has to be answered by [`Engine::opened`].
    pub fn openings(&mut self) -> Vec<Opening> {
        self.pipes.iter_mut().filter_map(|pipe| pipe.opening.take()).collect()
    }

    /// A FIFO is there, or cannot be: its client learns it.
    pub fn opened(&mut self, opening: &Opening, is_there: bool) {
        let mut packet = Writer::new();
        if is_there {
            self.sources.push(opening.source.clone());
            let (index, argument) = (opening.module, opening.argument.clone());
            self.modules.push(Module { index, name: "module-pipe-source".to_owned(), argument });
            self.notify(facility::MODULE, event::NEW, index);
            self.notify(facility::SOURCE, event::NEW, opening.source.index);
            packet.u32(op::REPLY).u32(opening.asker.tag).u32(index);
        } else {
            self.pipes.retain(|pipe| pipe.module != opening.module);
            packet.u32(op::ERROR).u32(opening.asker.tag).u32(code::MODINITFAILED);
        }
        self.send(opening.asker.client, packet);
    }

    /// Whether a module has a FIFO.
    pub fn has_pipe(&self, module: u32) -> bool {
        self.pipes.iter().any(|pipe| pipe.module == module)
    }

    /// Bytes that may be read from a module's FIFO now.
    pub fn pipe_room(&self, module: u32) -> usize {
        self.pipes.iter().find(|pipe| pipe.module == module).map_or(0, Pipe::room)
    }

    /// What came through a module's FIFO.
    pub fn pipe_came(&mut self, module: u32, bytes: &[u8]) {
        if let Some(pipe) = self.pipes.iter_mut().find(|pipe| pipe.module == module) {
            let room = pipe.room().min(bytes.len());
            pipe.push(bytes.get(..room).unwrap_or_default());
        }
    }
}
