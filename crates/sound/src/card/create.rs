//! Streams, uploads and samples of the cache, as clients ask for them.

use super::dispatch::{Asker, Done, Fault, YES, no, put_attributes, reply};
use super::engine::{Engine, SAMPLE_MAX, SAMPLES_MAX, STREAMS_ALL_MAX, STREAMS_MAX, Sample, Upload};
use super::info::format_info;
use super::stream::{Owner, Playback, Record};
use crate::mix::Rules;
use crate::pcm::{Format, Map, Position, Spec, default_map};
use crate::pulse::buffer::Attributes;
use crate::pulse::command::{VOLUME_MAX, code, event, facility};
use crate::pulse::tag::{FormatInfo, Reader};

impl Engine {
    fn take_channel(&mut self, asker: Asker) -> Result<u32, Fault> {
        if self.playbacks.len() + self.records.len() >= STREAMS_ALL_MAX {
            return no(code::TOOLARGE);
        }
        let playbacks =
            self.playbacks.values().filter(|s| s.owner.is_some_and(|owner| owner.client == asker.client)).count();
        let records = self.records.values().filter(|s| s.owner.client == asker.client).count();
        let client = self.client(asker)?;
        if playbacks + records + client.uploads.len() >= STREAMS_MAX {
            return no(code::TOOLARGE);
        }
        let channel = client.next_channel;
        client.next_channel = channel.wrapping_add(1) & 0x7fff_ffff;
        Ok(channel)
    }

    pub(super) fn create_playback(&mut self, asker: Asker, r: &mut Reader<'_>) -> Done {
        let (asked, map, sink, name) = (r.spec()?, r.map()?, r.index()?, r.text()?);
        let maxlength = r.u32()?;
        let corked = r.bool()?;
        let attributes = Attributes { maxlength, tlength: r.u32()?, prebuf: r.u32()?, minreq: r.u32()? };
        let (_sync, mut volumes) = (r.u32()?, r.volumes()?);
        let flags = Flags::read(r)?;
        let (muted, _adjust) = (r.bool()?, r.bool()?);
        let properties = r.properties()?;
        let mut volume_set = true;
        if asker.version >= 14 {
            (volume_set, _) = (r.bool()?, r.bool()?);
        }
        if asker.version >= 15 {
            r.skip_bools(3)?;
        }
        if asker.version >= 17 {
            r.bool()?;
        }
        let passthrough = asker.version >= 18 && r.bool()?;
        let formats = if asker.version >= 21 { read_formats(r)? } else { Vec::new() };
        r.end()?;
        if passthrough {
            return no(code::NOTSUPPORTED);
        }
        let sink = self.sink(sink, name.as_deref())?;
        let (spec, map) = self.settle_spec(asked, map, &formats, flags)?;
        let attributes = attributes.settle(&spec);
        let channel = self.take_channel(asker)?;
        let index = self.take_index();
        let owner = Owner { client: asker.client, channel };
        let rules = flags.rules;
        let mut stream = Playback::new(Some(owner), sink, spec, map, rules, attributes);
        stream.connect(&self.options.map, self.options.spec.rate);
        (stream.corked, stream.volume.muted) = (corked, muted);
        volumes.iter_mut().for_each(|volume| *volume = (*volume).min(VOLUME_MAX));
        if volume_set && volumes.len() == usize::from(spec.channels) {
            stream.volume.channels = volumes;
        }
        stream.properties = self.client(asker)?.properties.clone();
        stream.properties.update(2, &properties);
        let missing = stream.buffer.request(true, 0);
        let answer = reply(|packet| {
            packet.u32(channel).u32(index).u32(missing);
            put_attributes(packet, attributes);
            let name = self.sinks.iter().find(|s| s.index == sink).map(|s| s.name.as_str());
            packet.spec(&spec).map(&stream.map).u32(sink).maybe_text(name).bool(false).micros(0);
            if asker.version >= 21 {
                packet.format_info(&format_info(&spec, &stream.map));
            }
        });
        self.playbacks.insert(index, stream);
        self.note("created", index);
        self.notify(facility::SINK_INPUT, event::NEW, index);
        answer
    }

    pub(super) fn create_record(&mut self, asker: Asker, r: &mut Reader<'_>) -> Done {
        let (asked, map, source, name) = (r.spec()?, r.map()?, r.index()?, r.text()?);
        let (maxlength, corked, fragsize) = (r.u32()?, r.bool()?, r.u32()?);
        let flags = Flags::read(r)?;
        r.skip_bools(2)?;
        let (properties, direct) = (r.properties()?, r.index()?);
        if asker.version >= 14 {
            r.bool()?;
        }
        if asker.version >= 15 {
            r.skip_bools(2)?;
        }
        let (mut formats, mut volume, mut muted) = (Vec::new(), None, false);
        if asker.version >= 22 {
            formats = read_formats(r)?;
            let volumes = r.volumes()?;
            muted = r.bool()?;
            volume = r.bool()?.then_some(volumes);
            r.skip_bools(3)?;
        }
        r.end()?;
        let source = self.source(source, name.as_deref())?;
        if direct.is_some_and(|input| !self.playbacks.contains_key(&input)) {
            return no(code::NOENTITY);
        }
        let (spec, map) = self.settle_spec(asked, map, &formats, flags)?;
        let (maxlength, fragsize) = Record::settle(&spec, maxlength, fragsize);
        let channel = self.take_channel(asker)?;
        let index = self.take_index();
        let owner = Owner { client: asker.client, channel };
        let mut stream = Record::new(owner, source, spec, map, flags.rules, maxlength, fragsize);
        stream.connect(&self.options.map, self.options.spec.rate);
        (stream.corked, stream.direct, stream.volume.muted) = (corked, direct, muted);
        if let Some(volumes) = volume.filter(|volumes| volumes.len() == usize::from(spec.channels)) {
            stream.volume.channels = volumes.into_iter().map(|volume| volume.min(VOLUME_MAX)).collect();
        }
        stream.properties = self.client(asker)?.properties.clone();
        stream.properties.update(2, &properties);
        let answer = reply(|packet| {
            packet.u32(channel).u32(index).u32(maxlength).u32(fragsize);
            let name = self.sources.iter().find(|s| s.index == source).map(|s| s.name.as_str());
            packet.spec(&spec).map(&stream.map).u32(source).maybe_text(name).bool(false);
            packet.micros(0);
            if asker.version >= 22 {
                packet.format_info(&format_info(&spec, &stream.map));
            }
        });
        self.records.insert(index, stream);
        self.note("recording", index);
        self.notify(facility::SOURCE_OUTPUT, event::NEW, index);
        answer
    }

    /// What a stream is, of what was asked for.
    fn settle_spec(
        &self,
        asked: (Option<Format>, u8, u32),
        map: Map,
        formats: &[FormatInfo],
        flags: Flags,
    ) -> Result<(Spec, Map), Fault> {
        let card = &self.options;
        let (mut spec, mut map) = if formats.is_empty() {
            let (format, channels, rate) = asked;
            (Spec { format: format.ok_or(Fault::Code(code::INVALID))?, channels, rate }, map)
        } else {
            let pcm = formats.iter().find(|format| format.encoding == 1).ok_or(Fault::Code(code::NOTSUPPORTED))?;
            let value = |key: &str| pcm.properties.text(key).map(|text| text.trim().trim_matches('"'));
            let number = |key: &str| value(key).and_then(|text| text.parse::<u32>().ok());
            let channels = number("format.channels").map_or(Ok(card.spec.channels), u8::try_from);
            let spec = Spec {
                format: value("format.sample_format").and_then(|text| text.parse().ok()).unwrap_or(card.spec.format),
                channels: channels.map_err(|_| Fault::Code(code::INVALID))?,
                rate: number("format.rate").unwrap_or(card.spec.rate),
            };
            let named = value("format.channel_map")
                .and_then(|text| text.split(',').map(Position::from_name).collect::<Option<Map>>());
            (spec, named.unwrap_or_else(|| default_map(spec.channels)))
        };
        if flags.fix_format {
            spec.format = card.spec.format;
        }
        if flags.fix_rate {
            spec.rate = card.spec.rate;
        }
        if flags.fix_channels {
            (spec.channels, map) = (card.spec.channels, card.map.clone());
        }
        if spec.is_valid() && map.len() == usize::from(spec.channels) { Ok((spec, map)) } else { no(code::INVALID) }
    }

    pub(super) fn create_upload(&mut self, asker: Asker, r: &mut Reader<'_>) -> Done {
        let (name, (format, channels, rate), map, length) = (r.text()?, r.spec()?, r.map()?, r.u32()?);
        let properties = r.properties()?;
        let spec = Spec { format: format.ok_or(Fault::Code(code::INVALID))?, channels, rate };
        let named = name.or_else(|| properties.text("event.id").or(properties.text("media.name")).map(str::to_owned));
        let name = named.filter(|name| !name.is_empty()).ok_or(Fault::Code(code::INVALID))?;
        if !spec.is_valid()
            || map.len() != usize::from(channels)
            || length == 0
            || !(length as usize).is_multiple_of(spec.frame_bytes())
        {
            return no(code::INVALID);
        }
        if length > SAMPLE_MAX {
            return no(code::TOOLARGE);
        }
        let channel = self.take_channel(asker)?;
        let upload = Upload { name, spec, map, properties, length: length as usize, data: Vec::new() };
        self.client(asker)?.uploads.insert(channel, upload);
        reply(|packet| {
            packet.u32(channel).u32(length);
        })
    }

    pub(super) fn end_upload(&mut self, asker: Asker, r: &mut Reader<'_>, keep: bool) -> Done {
        let channel = r.u32()?;
        let upload = self.client(asker)?.uploads.remove(&channel).ok_or(Fault::Code(code::NOENTITY))?;
        if !keep {
            return YES;
        }
        let cached: usize = self.samples.iter().map(|sample| sample.upload.data.len()).sum();
        if upload.data.is_empty() || cached + upload.data.len() > SAMPLES_MAX || self.samples.len() >= 1024 {
            return no(code::TOOLARGE);
        }
        self.samples.retain(|sample| sample.upload.name != upload.name);
        let index = self.take_index();
        self.samples.push(Sample { index, upload });
        self.notify(facility::SAMPLE_CACHE, event::NEW, index);
        YES
    }

    pub(super) fn play_sample(&mut self, r: &mut Reader<'_>) -> Done {
        let (sink, sink_name, volume, name, properties) = (r.index()?, r.text()?, r.u32()?, r.text()?, r.properties()?);
        let sink = self.sink(sink, sink_name.as_deref())?;
        let found = self.samples.iter().find(|sample| Some(&sample.upload.name) == name.as_ref());
        let upload = &found.ok_or(Fault::Code(code::NOENTITY))?.upload;
        if self.playbacks.values().filter(|stream| stream.owner.is_none()).count() >= STREAMS_MAX {
            return no(code::TOOLARGE);
        }
        let length = u32::try_from(upload.data.len()).unwrap_or(SAMPLE_MAX);
        let frame = u32::try_from(upload.spec.frame_bytes()).unwrap_or(1);
        let attributes = Attributes { maxlength: length, tlength: length, prebuf: 0, minreq: frame };
        let mut stream = Playback::new(None, sink, upload.spec, upload.map.clone(), Rules::default(), attributes);
        stream.connect(&self.options.map, self.options.spec.rate);
        stream.buffer.write(&upload.data);
        stream.properties = upload.properties.clone();
        stream.properties.update(2, &properties);
        stream.properties.set_text("media.name", &upload.name);
        if volume <= VOLUME_MAX {
            stream.volume.channels.fill(volume);
        }
        let index = self.take_index();
        self.playbacks.insert(index, stream);
        self.note("created", index);
        self.notify(facility::SINK_INPUT, event::NEW, index);
        reply(|packet| {
            packet.u32(index);
        })
    }
}

fn read_formats(r: &mut Reader<'_>) -> Result<Vec<FormatInfo>, Fault> {
    let count = r.u8()?;
    Ok((0..count).map(|_| r.format_info()).collect::<Result<_, _>>()?)
}

/// The flags that both kinds of streams have.
#[derive(Debug, Clone, Copy)]
struct Flags {
    rules: Rules,
    fix_format: bool,
    fix_rate: bool,
    fix_channels: bool,
}

impl Flags {
    fn read(r: &mut Reader<'_>) -> Result<Self, Fault> {
        let rules = Rules { no_remap: r.bool()?, no_remix: r.bool()? };
        let flags = Self { rules, fix_format: r.bool()?, fix_rate: r.bool()?, fix_channels: r.bool()? };
        // Moving and changing the rate are always possible.
        r.skip_bools(2)?;
        Ok(flags)
    }
}
