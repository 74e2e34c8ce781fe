//! What the card says about itself: sinks, sources, streams, clients, samples, modules.

use super::engine::{Engine, Module, Sample, Sink, Source};
use super::stream::{Playback, Record};
use crate::pcm::{Format, Spec};
use crate::pulse::command::VOLUME_NORMAL;
use crate::pulse::tag::{FormatInfo, Properties, Writer};

const DRIVER: &str = "loopbox";
/// Latency and decibel volume.
const DEVICE_FLAGS: u32 = 0x22;
/// Volume steps of a device.
const STEPS: u32 = VOLUME_NORMAL + 1;

/// The extended form of a spec.
pub(super) fn format_info(spec: &Spec, map: &[crate::pcm::Position]) -> FormatInfo {
    let map: Vec<String> = map.iter().map(|position| position.name()).collect();
    let properties = Properties::of(&[
        ("format.sample_format", &format!("\"{}\"", spec.format)),
        ("format.rate", &spec.rate.to_string()),
        ("format.channels", &spec.channels.to_string()),
        ("format.channel_map", &format!("\"{}\"", map.join(","))),
    ]);
    FormatInfo { encoding: 1, properties }
}

/// Clients of old versions do not know all formats.
fn known(spec: &Spec, version: u32) -> Spec {
    let format = match spec.format {
        Format::S24le | Format::S24In32le if version < 15 => Format::F32le,
        Format::S24be | Format::S24In32be if version < 15 => Format::F32be,
        format => format,
    };
    Spec { format, ..*spec }
}

impl Engine {
    fn device_properties(&self, description: &str, class: &str) -> Properties {
        Properties::of(&[
            ("device.description", description),
            ("device.class", class),
            ("device.icon_name", if class == "monitor" { "audio-input-microphone" } else { "audio-card" }),
        ])
    }

    pub(super) fn server_info(&self, version: u32, packet: &mut Writer) {
        packet.text("PulseAudio (on loopbox)").text(env!("CARGO_PKG_VERSION")).text("loopbox").text("loopbox");
        packet.spec(&known(&self.options.spec, version));
        packet.text(&self.default_sink).text(&self.default_source).u32(0x6c6f_6f70);
        if version >= 15 {
            packet.map(&self.options.map);
        }
    }

    pub(super) fn sink_info(&self, sink: &Sink, version: u32, packet: &mut Writer) {
        let running = self.playbacks.values().any(|stream| stream.sink == sink.index && !stream.corked);
        packet.u32(sink.index).text(&sink.name).text(&sink.description).spec(&known(&self.options.spec, version));
        packet.map(&self.options.map).index(sink.module).volumes(&sink.volume.channels).bool(sink.volume.muted);
        let monitor = self.sources.iter().find(|source| source.monitor_of == Some(sink.index));
        packet.index(monitor.map(|source| source.index)).maybe_text(monitor.map(|source| source.name.as_str()));
        packet.micros(0).text(DRIVER).u32(DEVICE_FLAGS);
        let properties = self.device_properties(&sink.description, "abstract");
        self.device_end(&properties, state(sink.suspended, running), version, version >= 21, packet);
    }

    pub(super) fn source_info(&self, source: &Source, version: u32, packet: &mut Writer) {
        let running = self.records.values().any(|stream| stream.source == source.index && !stream.corked);
        packet.u32(source.index).text(&source.name).text(&source.description).spec(&known(&self.options.spec, version));
        packet.map(&self.options.map).index(source.module).volumes(&source.volume.channels).bool(source.volume.muted);
        let sink = self.sinks.iter().find(|sink| Some(sink.index) == source.monitor_of);
        packet.index(source.monitor_of).maybe_text(sink.map(|sink| sink.name.as_str()));
        packet.micros(0).text(DRIVER).u32(DEVICE_FLAGS);
        let class = if source.monitor_of.is_some() { "monitor" } else { "sound" };
        let properties = self.device_properties(&source.description, class);
        self.device_end(&properties, state(source.suspended, running), version, version >= 22, packet);
    }

    fn device_end(&self, properties: &Properties, state: u32, version: u32, formats: bool, packet: &mut Writer) {
        packet.properties(properties).micros(0);
        if version >= 15 {
            packet.volume(VOLUME_NORMAL).u32(state).u32(STEPS).index(None);
        }
        if version >= 16 {
            packet.u32(0).maybe_text(None);
        }
        if formats {
            packet.u8(1).format_info(&FormatInfo { encoding: 1, properties: Properties::default() });
        }
    }

    pub(super) fn sink_input_info(&self, index: u32, stream: &Playback, version: u32, packet: &mut Writer) {
        let client = stream.owner.map(|owner| owner.client);
        packet.u32(index).text(stream.properties.text("media.name").unwrap_or("")).index(None).index(client);
        packet.u32(stream.sink).spec(&known(&stream.spec, version)).map(&stream.map).volumes(&stream.volume.channels);
        packet.micros(stream.spec.micros(stream.buffer.length() as u64)).micros(0);
        packet.text(self.resampling(stream.spec.rate)).text(DRIVER).bool(stream.volume.muted);
        packet.properties(&stream.properties);
        if version >= 19 {
            packet.bool(stream.corked);
        }
        if version >= 20 {
            packet.bool(true).bool(true);
        }
        if version >= 21 {
            packet.format_info(&format_info(&stream.spec, &stream.map));
        }
    }

    pub(super) fn source_output_info(&self, index: u32, stream: &Record, version: u32, packet: &mut Writer) {
        packet.u32(index).text(stream.properties.text("media.name").unwrap_or("")).index(None);
        packet.u32(stream.owner.client).u32(stream.source).spec(&known(&stream.spec, version)).map(&stream.map);
        packet.micros(stream.spec.micros(stream.pending.len() as u64)).micros(0);
        packet.text(self.resampling(stream.spec.rate)).text(DRIVER).properties(&stream.properties);
        if version >= 19 {
            packet.bool(stream.corked);
        }
        if version >= 22 {
            packet.volumes(&stream.volume.channels).bool(stream.volume.muted).bool(true).bool(true);
            packet.format_info(&format_info(&stream.spec, &stream.map));
        }
    }

    fn resampling(&self, rate: u32) -> &'static str {
        if rate == self.options.spec.rate { "copy" } else { "sinc-128" }
    }

    pub(super) fn client_info(&self, index: u32, properties: &Properties, packet: &mut Writer) {
        packet
            .u32(index)
            .text(properties.text("application.name").unwrap_or(""))
            .index(None)
            .text(DRIVER)
            .properties(properties);
    }

    pub(super) fn module_info(&self, module: &Module, version: u32, packet: &mut Writer) {
        packet.u32(module.index).text(&module.name).text(&module.argument).index(None);
        if version < 15 {
            packet.bool(false);
        } else {
            packet.properties(&Properties::default());
        }
    }

    pub(super) fn sample_info(&self, sample: &Sample, version: u32, packet: &mut Writer) {
        let upload = &sample.upload;
        let volumes = vec![VOLUME_NORMAL; usize::from(upload.spec.channels)];
        packet
            .u32(sample.index)
            .text(&upload.name)
            .volumes(&volumes)
            .micros(upload.spec.micros(upload.data.len() as u64));
        packet.spec(&known(&upload.spec, version)).map(&upload.map).u32(upload.data.len() as u32);
        packet.bool(false).maybe_text(None).properties(&upload.properties);
    }
}

fn state(suspended: bool, running: bool) -> u32 {
    match (suspended, running) {
        (true, _) => 2,
        (_, true) => 0,
        _ => 1,
    }
}
