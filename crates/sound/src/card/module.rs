//! Modules, as `pactl load-module` asks for them.

use super::dispatch::{Asker, Done, Fault, YES, no, reply};
use super::engine::{Carried, Engine, Loop, Module, SINKS_MAX, Source};
use super::stream::Volume;
use crate::pcm::Position;
use crate::pulse::command::{code, event, facility};
use crate::pulse::tag::Reader;

/// Most sources, those of sinks among them.
pub(super) const SOURCES_MAX: usize = 64;
/// Most loops inside the card.
const LOOPS_MAX: usize = 16;
/// Longest name of a sink or a source.
const NAME_MAX: usize = 128;

/// The words of a module's argument: `name=value`, the value perhaps in quotes.
pub(super) struct Arguments<'a>(&'a str);

impl<'a> Arguments<'a> {
    pub(super) fn value(&self, key: &str) -> Option<&'a str> {
        let words = self.0.split_whitespace().filter_map(|word| word.split_once('='));
        words.filter(|(name, _)| *name == key).map(|(_, value)| value.trim_matches(['"', '\''])).next()
    }

    pub(super) fn positions(&self, key: &str) -> Option<Vec<Position>> {
        self.value(key)?.split(',').map(Position::from_name).collect()
    }
}

impl Engine {
    pub(super) fn load_module(&mut self, asker: Asker, r: &mut Reader<'_>) -> Done {
        let (name, argument) = (r.text()?.unwrap_or_default(), r.text()?.unwrap_or_default());
        let arguments = Arguments(&argument);
        let index = self.take_index();
        match name.as_str() {
            "module-null-sink" => self.load_null_sink(index, &arguments)?,
            "module-remap-source" => self.load_remap_source(index, &arguments)?,
            "module-loopback" => self.load_loopback(index, &arguments)?,
            "module-pipe-source" => return self.load_pipe_source(asker, index, &arguments, &argument),
            _ => return no(code::MODINITFAILED),
        }
        self.modules.push(Module { index, name, argument });
        self.notify(facility::MODULE, event::NEW, index);
        reply(|packet| {
            packet.u32(index);
        })
    }

    pub(super) fn is_free(&self, name: &str) -> bool {
        let taken = self.sinks.iter().any(|s| s.name == name) || self.sources.iter().any(|s| s.name == name);
        !name.is_empty() && name.len() <= NAME_MAX && !taken
    }

    fn load_null_sink(&mut self, module: u32, arguments: &Arguments<'_>) -> Result<(), Fault> {
        let sink = arguments.value("sink_name").unwrap_or("null");
        if self.sinks.len() >= SINKS_MAX || !self.is_free(sink) || !self.is_free(&format!("{sink}.monitor")) {
            return no(code::MODINITFAILED);
        }
        let added = self.add_sink(sink, &format!("Null Output {sink}"), Some(module));
        self.notify(facility::SINK, event::NEW, added);
        self.notify(facility::SOURCE, event::NEW, added);
        Ok(())
    }

    /// A source that carries what another one does, perhaps with its channels in another order. It is no monitor, so that
    /// browsers show it.
    fn load_remap_source(&mut self, module: u32, arguments: &Arguments<'_>) -> Result<(), Fault> {
        let failed = Fault::Code(code::MODINITFAILED);
        let master = self.source(None, arguments.value("master"))?;
        let master = self.sources.iter().find(|source| source.index == master).ok_or(failed)?;
        let name = arguments.value("source_name").map_or_else(|| format!("{}.remapped", master.name), str::to_owned);
        let card = &self.options.map;
        let channels = arguments.value("channels").map_or(Some(card.len()), |text| text.parse().ok());
        let map = arguments.value("channel_map").map_or(Some(card.clone()), |_| arguments.positions("channel_map"));
        let from = arguments.value("master_channel_map");
        let from = from.map_or(map.clone(), |_| arguments.positions("master_channel_map"));
        let (Some(map), Some(from)) = (map, from) else { return no(code::INVALID) };
        // A card's sources are alike: as many channels as it has.
        if !self.is_free(&name)
            || self.sources.len() >= SOURCES_MAX
            || channels != Some(card.len())
            || map.len() != card.len()
            || from.len() != card.len()
        {
            return no(code::MODINITFAILED);
        }
        let place = |list: &[Position], wanted: &Position| list.iter().position(|position| position == wanted);
        let order: Option<Vec<usize>> =
            card.iter().map(|position| place(card, from.get(place(&map, position)?)?)).collect();
        let Some(order) = order else { return no(code::MODINITFAILED) };
        let order = order
            .into_iter()
            .map(|at| master.order.as_ref().map_or(at, |order| order.get(at).copied().unwrap_or(at)))
            .collect();
        let description = arguments.value("source_properties").and_then(|text| text.split_once("device.description="));
        let description = description.map_or_else(
            || format!("Remapped {}", master.description),
            |(_, text)| text.trim_matches(['"', '\'']).to_owned(),
        );
        let (carries, volume) = (master.carries, Volume::normal(self.options.spec.channels));
        let index = self.take_index().saturating_add(2);
        self.sources.push(Source {
            index,
            name,
            description,
            module: Some(module),
            monitor_of: None,
            carries,
            order: Some(order),
            volume,
            suspended: false,
        });
        self.notify(facility::SOURCE, event::NEW, index);
        Ok(())
    }

    /// What a source carries is played to a sink, later by `latency_msec`.
    fn load_loopback(&mut self, module: u32, arguments: &Arguments<'_>) -> Result<(), Fault> {
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<u32>().ok());
        let (source, sink) = (arguments.value("source"), arguments.value("sink"));
        let source = self.source(number(source), source)?;
        let sink = self.sink(number(sink), sink)?;
        let latency = arguments.value("latency_msec").map_or(Some(200), |text| text.parse::<u64>().ok());
        let Some(latency) = latency.filter(|latency| (1..=60_000).contains(latency)) else { return no(code::INVALID) };
        if self.loops.len() >= LOOPS_MAX {
            return no(code::MODINITFAILED);
        }
        let frames = usize::try_from(latency * u64::from(self.options.spec.rate) / 1000).unwrap_or(0).max(1);
        let delay = vec![0.0; frames * usize::from(self.options.spec.channels)].into();
        self.loops.push(Loop { module, source, sink, delay });
        Ok(())
    }

    pub(super) fn unload_module(&mut self, r: &mut Reader<'_>) -> Done {
        let index = r.u32()?;
        let Some(at) = self.modules.iter().position(|module| module.index == index) else { return no(code::NOENTITY) };
        self.modules.remove(at);
        let sinks: Vec<u32> = self.sinks.iter().filter(|s| s.module == Some(index)).map(|s| s.index).collect();
        // With a sink, or a source, goes what carries it.
        let orphan = |source: &Source| {
            source.module == Some(index)
                || source.carries == Carried::Pipe(index)
                || matches!(source.carries, Carried::Sink(sink) if sinks.contains(&sink))
        };
        let sources: Vec<u32> = self.sources.iter().filter(|s| orphan(s)).map(|s| s.index).collect();
        self.sinks.retain(|sink| !sinks.contains(&sink.index));
        self.pipes.retain(|pipe| pipe.module() != index);
        self.sources.retain(|source| !sources.contains(&source.index));
        self.loops.retain(|one| one.module != index && !sinks.contains(&one.sink) && !sources.contains(&one.source));
        if self.sink(None, None).is_err() {
            self.default_sink = "loopbox".to_owned();
        }
        if self.source(None, None).is_err() {
            self.default_source = "loopbox.mic".to_owned();
        }
        // Streams go to where they would be by default.
        let (sink, source) = (self.sink(None, None)?, self.source(None, None)?);
        let moved: Vec<u32> = self.playbacks.iter().filter(|(_, s)| sinks.contains(&s.sink)).map(|(n, _)| *n).collect();
        for stream in moved {
            self.playbacks.entry(stream).and_modify(|s| s.sink = sink);
            self.tell_moved(true, stream);
        }
        let moved: Vec<u32> =
            self.records.iter().filter(|(_, s)| sources.contains(&s.source)).map(|(n, _)| *n).collect();
        for stream in moved {
            self.records.entry(stream).and_modify(|s| s.source = source);
            self.tell_moved(false, stream);
        }
        sinks.into_iter().for_each(|gone| self.notify(facility::SINK, event::REMOVE, gone));
        sources.into_iter().for_each(|gone| self.notify(facility::SOURCE, event::REMOVE, gone));
        self.notify(facility::MODULE, event::REMOVE, index);
        YES
    }
}
