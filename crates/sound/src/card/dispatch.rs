//! Commands of clients.

use super::engine::{BUFFERED_MAX, Client, Engine, Sample};
use super::stream::{Owner, Record, Volume};
use super::{Clock, Now};
use crate::pulse::buffer::Attributes;
use crate::pulse::command::{VOLUME_MAX, code, event, facility, op};
use crate::pulse::frame::{Frame, Seek};
use crate::pulse::tag::{Malformed, Properties, Reader, Writer};
use crate::pulse::{VERSION, VERSION_MIN};

/// Why a command is not done.
pub(super) enum Fault {
    /// It is answered with this error.
    Code(u32),
    /// The packet makes no sense: the client is hung up on.
    Malformed,
}

impl From<Malformed> for Fault {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

pub(super) type Done = Result<Option<Writer>, Fault>;

/// A simple yes.
pub(super) const YES: Done = Ok(None);

pub(super) fn no<T>(code: u32) -> Result<T, Fault> {
    Err(Fault::Code(code))
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub client: u32,
    pub version: u32,
    pub tag: u32,
}

impl Engine {
    /// Takes what a client sent, at `now`.
    pub fn receive(&mut self, now: Now, client: u32, bytes: &[u8]) {
        self.advance(now);
        let Some(mut frames) = self.clients.get_mut(&client).map(|client| std::mem::take(&mut client.frames)) else {
            return;
        };
        let mut rest = bytes;
        let mut only_samples = true;
        loop {
            let taken = match frames.next(rest) {
                Ok(Some((Frame::Packet(packet), taken))) => {
                    self.command(client, &packet);
                    only_samples = false;
                    taken
                }
                Ok(Some((Frame::Samples { channel, seek, length, bytes }, taken))) => {
                    self.samples_came(client, channel, seek, length, bytes);
                    taken
                }
                Ok(None) => break,
                Err(_) => {
                    self.end(client);
                    break;
                }
            };
            if self.is_over(client) {
                break;
            }
            rest = rest.get(taken..).unwrap_or_default();
        }
        if let Some(client) = self.clients.get_mut(&client) {
            client.frames = frames;
            client.only_samples = only_samples;
        }
        self.send_requests(false);
    }

    fn samples_came(&mut self, client: u32, channel: u32, seek: Option<(Seek, i64)>, length: u32, bytes: &[u8]) {
        let held: usize = self.playbacks.values().map(|stream| stream.buffer.held()).sum();
        let owner = Some(Owner { client, channel });
        if let Some(stream) = self.playbacks.values_mut().find(|stream| stream.owner == owner) {
            if !(length as usize).is_multiple_of(stream.spec.frame_bytes()) {
                return;
            }
            if let Some((mode, offset)) = seek.filter(|(mode, offset)| *mode != Seek::Relative || *offset != 0) {
                stream.buffer.seek(mode, offset);
            }
            if held.saturating_add(bytes.len()) > BUFFERED_MAX || !stream.buffer.write(bytes) {
                self.say(client, op::OVERFLOW, |packet| {
                    packet.u32(channel);
                });
            }
        } else if let Some(upload) = self.clients.get_mut(&client).and_then(|client| client.uploads.get_mut(&channel)) {
            let room = upload.length.saturating_sub(upload.data.len()).min(bytes.len());
            upload.data.extend_from_slice(bytes.get(..room).unwrap_or_default());
        }
    }

    fn command(&mut self, client: u32, packet: &[u8]) {
        let mut reader = Reader::new(packet);
        let (Ok(command), Ok(tag)) = (reader.u32(), reader.u32()) else { return self.end(client) };
        let Some((version, authorized)) = self.clients.get(&client).map(|c| (c.version, c.authorized)) else { return };
        let asker = Asker { client, version, tag };
        let done = if authorized || command == op::AUTH {
            self.perform(command, asker, &mut reader)
        } else {
            no(code::ACCESS)
        };
        let mut reply = Writer::new();
        match done {
            Ok(answer) => {
                // These are answered when they are done.
                if command == op::DRAIN_PLAYBACK_STREAM || (command == op::LOAD_MODULE && answer.is_none()) {
                    return;
                }
                reply.u32(op::REPLY).u32(tag);
                if let Some(answer) = answer {
                    reply.append(answer);
                }
            }
            Err(Fault::Code(code)) => {
                reply.u32(op::ERROR).u32(tag).u32(code);
            }
            Err(Fault::Malformed) => {
                reply.u32(op::ERROR).u32(tag).u32(code::PROTOCOL);
                self.end(client);
            }
        }
        self.send(client, reply);
        self.send_requests(false);
    }

    fn perform(&mut self, command: u32, asker: Asker, r: &mut Reader<'_>) -> Done {
        match command {
            op::AUTH => self.auth(asker, r),
            op::SET_CLIENT_NAME => self.set_client_name(asker, r),
            op::CREATE_PLAYBACK_STREAM => self.create_playback(asker, r),
            op::CREATE_RECORD_STREAM => self.create_record(asker, r),
            op::DELETE_PLAYBACK_STREAM => {
                let index = self.playback_of(asker, r)?;
                self.remove_playback(index);
                YES
            }
            op::DELETE_RECORD_STREAM => {
                let index = self.record_of(asker, r)?;
                self.remove_record(index);
                YES
            }
            op::CREATE_UPLOAD_STREAM => self.create_upload(asker, r),
            op::FINISH_UPLOAD_STREAM | op::DELETE_UPLOAD_STREAM => {
                self.end_upload(asker, r, command == op::FINISH_UPLOAD_STREAM)
            }
            op::PLAY_SAMPLE => self.play_sample(r),
            op::REMOVE_SAMPLE => {
                let name = r.text()?;
                let at = self.samples.iter().position(|s| Some(&s.upload.name) == name.as_ref());
                let sample = self.samples.remove(at.ok_or(Fault::Code(code::NOENTITY))?);
                self.notify(facility::SAMPLE_CACHE, event::REMOVE, sample.index);
                YES
            }
            op::EXIT => no(code::ACCESS),
            op::LOOKUP_SINK | op::LOOKUP_SOURCE => {
                let name = r.text()?;
                let index = if command == op::LOOKUP_SINK {
                    self.sink(None, name.as_deref())?
                } else {
                    self.source(None, name.as_deref())?
                };
                reply(|packet| {
                    packet.u32(index);
                })
            }
            op::STAT => reply(|packet| {
                (0..5).for_each(|_| {
                    packet.u32(0);
                });
            }),
            op::GET_PLAYBACK_LATENCY => self.playback_latency(asker, r),
            op::GET_RECORD_LATENCY => self.record_latency(asker, r),
            op::DRAIN_PLAYBACK_STREAM => {
                let index = self.playback_of(asker, r)?;
                if let Some(stream) = self.playbacks.get_mut(&index) {
                    stream.buffer.trigger();
                    stream.drain = Some(asker.tag);
                }
                YES
            }
            op::CORK_PLAYBACK_STREAM => {
                let index = self.playback_of(asker, r)?;
                let corked = r.bool()?;
                if let Some(stream) = self.playbacks.get_mut(&index) {
                    stream.corked = corked;
                    stream.playing &= !corked;
                    if stream.drain.is_none() {
                        stream.buffer.prebuffer();
                    }
                }
                self.note(if corked { "corked" } else { "uncorked" }, index);
                self.notify(facility::SINK_INPUT, event::CHANGE, index);
                YES
            }
            op::FLUSH_PLAYBACK_STREAM | op::TRIGGER_PLAYBACK_STREAM | op::PREBUF_PLAYBACK_STREAM => {
                let index = self.playback_of(asker, r)?;
                if let Some(stream) = self.playbacks.get_mut(&index) {
                    match command {
                        op::FLUSH_PLAYBACK_STREAM => stream.buffer.flush(),
                        op::TRIGGER_PLAYBACK_STREAM => stream.buffer.trigger(),
                        _ => stream.buffer.prebuffer(),
                    }
                    stream.playing &= command != op::FLUSH_PLAYBACK_STREAM;
                }
                YES
            }
            op::CORK_RECORD_STREAM | op::FLUSH_RECORD_STREAM => {
                let index = self.record_of(asker, r)?;
                let corked = if command == op::CORK_RECORD_STREAM { Some(r.bool()?) } else { None };
                if let Some(stream) = self.records.get_mut(&index) {
                    match corked {
                        Some(corked) => stream.corked = corked,
                        None => stream.pending.clear(),
                    }
                }
                self.notify(facility::SOURCE_OUTPUT, event::CHANGE, index);
                YES
            }
            op::SET_PLAYBACK_STREAM_BUFFER_ATTR | op::SET_RECORD_STREAM_BUFFER_ATTR => {
                self.set_buffer(asker, r, command == op::SET_PLAYBACK_STREAM_BUFFER_ATTR)
            }
            op::UPDATE_PLAYBACK_STREAM_SAMPLE_RATE | op::UPDATE_RECORD_STREAM_SAMPLE_RATE => {
                self.set_rate(asker, r, command == op::UPDATE_PLAYBACK_STREAM_SAMPLE_RATE)
            }
            op::SUBSCRIBE => {
                let mask = r.u32()?;
                self.client(asker)?.subscription = mask;
                YES
            }
            op::SET_SINK_VOLUME..=op::SET_SOURCE_MUTE
            | op::SET_SINK_INPUT_MUTE
            | op::SET_SOURCE_OUTPUT_VOLUME
            | op::SET_SOURCE_OUTPUT_MUTE => self.set_volume(command, r),
            op::SET_DEFAULT_SINK | op::SET_DEFAULT_SOURCE => {
                let name = r.text()?.ok_or(Fault::Code(code::INVALID))?;
                if command == op::SET_DEFAULT_SINK {
                    self.sink(None, Some(&name))?;
                    self.default_sink = name;
                } else {
                    self.source(None, Some(&name))?;
                    self.default_source = name;
                }
                self.notify(facility::SERVER, event::CHANGE, u32::MAX);
                YES
            }
            op::SET_PLAYBACK_STREAM_NAME | op::SET_RECORD_STREAM_NAME => {
                let playback = command == op::SET_PLAYBACK_STREAM_NAME;
                let index = if playback { self.playback_of(asker, r)? } else { self.record_of(asker, r)? };
                let name = r.text()?.ok_or(Fault::Code(code::INVALID))?;
                self.properties_of(playback, index)?.set_text("media.name", &name);
                self.stream_changed(playback, index);
                YES
            }
            op::UPDATE_PLAYBACK_STREAM_PROPLIST..=op::UPDATE_CLIENT_PROPLIST
            | op::UPDATE_RECORD_STREAM_PROPLIST
            | op::REMOVE_RECORD_STREAM_PROPLIST..=op::REMOVE_CLIENT_PROPLIST => {
                self.change_properties(command, asker, r)
            }
            op::MOVE_SINK_INPUT | op::MOVE_SOURCE_OUTPUT => self.move_stream(r, command == op::MOVE_SINK_INPUT),
            op::KILL_CLIENT | op::KILL_SINK_INPUT | op::KILL_SOURCE_OUTPUT => self.kill(command, r),
            op::SUSPEND_SINK | op::SUSPEND_SOURCE => {
                // A card of memory has nothing to save: it takes note.
                let (index, name, suspended) = (r.index()?, r.text()?, r.bool()?);
                let is_sink = command == op::SUSPEND_SINK;
                let all = index.is_none() && name.as_deref().is_none_or(str::is_empty);
                let one = match (all, is_sink) {
                    (true, _) => None,
                    (_, true) => Some(self.sink(index, name.as_deref())?),
                    _ => Some(self.source(index, name.as_deref())?),
                };
                if is_sink {
                    self.sinks
                        .iter_mut()
                        .filter(|s| one.is_none_or(|one| one == s.index))
                        .for_each(|s| s.suspended = suspended);
                } else {
                    self.sources
                        .iter_mut()
                        .filter(|s| one.is_none_or(|one| one == s.index))
                        .for_each(|s| s.suspended = suspended);
                }
                YES
            }
            op::GET_SERVER_INFO..=op::GET_SAMPLE_INFO_LIST | op::GET_CARD_INFO | op::GET_CARD_INFO_LIST => {
                self.get_info(command, asker, r)
            }
            op::LOAD_MODULE => self.load_module(asker, r),
            op::UNLOAD_MODULE => self.unload_module(r),
            op::EXTENSION => no(code::NOEXTENSION),
            op::SET_CARD_PROFILE | op::SET_SINK_PORT | op::SET_SOURCE_PORT | op::SET_PORT_LATENCY_OFFSET => {
                no(code::NOENTITY)
            }
            op::SEND_OBJECT_MESSAGE => no(code::NOENTITY),
            _ => no(code::NOTIMPLEMENTED),
        }
    }

    pub(super) fn client(&mut self, asker: Asker) -> Result<&mut Client, Fault> {
        self.clients.get_mut(&asker.client).ok_or(Fault::Code(code::BADSTATE))
    }

    fn auth(&mut self, asker: Asker, r: &mut Reader<'_>) -> Done {
        // The upper half are flags: shared memory, which is not taken up. Who may connect, the socket's mode decides.
        let version = r.u32()? & 0xffff;
        r.arbitrary()?;
        if version < VERSION_MIN {
            return no(code::VERSION);
        }
        let client = self.client(asker)?;
        let new = !client.authorized;
        (client.version, client.authorized) = (version.min(VERSION), true);
        if new {
            self.notify(facility::CLIENT, event::NEW, asker.client);
        }
        reply(|packet| {
            packet.u32(VERSION);
        })
    }

    fn set_client_name(&mut self, asker: Asker, r: &mut Reader<'_>) -> Done {
        let properties = r.properties()?;
        self.client(asker)?.properties.update(2, &properties);
        self.notify(facility::CLIENT, event::CHANGE, asker.client);
        reply(|packet| {
            packet.u32(asker.client);
        })
    }

    /// The index of a sink, by index or name; without either the default.
    pub(super) fn sink(&self, index: Option<u32>, name: Option<&str>) -> Result<u32, Fault> {
        let name = name.filter(|name| !matches!(*name, "@DEFAULT_SINK@" | "")).unwrap_or(&self.default_sink);
        let found = self.sinks.iter().find(|sink| index.map_or(sink.name == name, |index| sink.index == index));
        found.map(|sink| sink.index).ok_or(Fault::Code(code::NOENTITY))
    }

    pub(super) fn source(&self, index: Option<u32>, name: Option<&str>) -> Result<u32, Fault> {
        let monitor = format!("{}.monitor", self.default_sink);
        let name = match name {
            None | Some("" | "@DEFAULT_SOURCE@") => &self.default_source,
            Some("@DEFAULT_MONITOR@") => &monitor,
            Some(name) => name,
        };
        let found = self.sources.iter().find(|source| index.map_or(source.name == name, |index| source.index == index));
        found.map(|source| source.index).ok_or(Fault::Code(code::NOENTITY))
    }

    fn playback_of(&self, asker: Asker, r: &mut Reader<'_>) -> Result<u32, Fault> {
        let owner = Some(Owner { client: asker.client, channel: r.u32()? });
        let found = self.playbacks.iter().find(|(_, stream)| stream.owner == owner);
        found.map(|(index, _)| *index).ok_or(Fault::Code(code::NOENTITY))
    }

    fn record_of(&self, asker: Asker, r: &mut Reader<'_>) -> Result<u32, Fault> {
        let owner = Owner { client: asker.client, channel: r.u32()? };
        let found = self.records.iter().find(|(_, stream)| stream.owner == owner);
        found.map(|(index, _)| *index).ok_or(Fault::Code(code::NOENTITY))
    }

    fn set_buffer(&mut self, asker: Asker, r: &mut Reader<'_>, playback: bool) -> Done {
        if playback {
            let index = self.playback_of(asker, r)?;
            let attributes = Attributes { maxlength: r.u32()?, tlength: r.u32()?, prebuf: r.u32()?, minreq: r.u32()? };
            let stream = self.playbacks.get_mut(&index).ok_or(Fault::Code(code::NOENTITY))?;
            let attributes = attributes.settle(&stream.spec);
            stream.buffer.set_attributes(attributes);
            return reply(|packet| {
                put_attributes(packet, attributes);
                packet.micros(0);
            });
        }
        let index = self.record_of(asker, r)?;
        let (maxlength, fragsize) = (r.u32()?, r.u32()?);
        let stream = self.records.get_mut(&index).ok_or(Fault::Code(code::NOENTITY))?;
        (stream.maxlength, stream.fragsize) = Record::settle(&stream.spec, maxlength, fragsize);
        reply(|packet| {
            packet.u32(stream.maxlength).u32(stream.fragsize).micros(stream.spec.micros(u64::from(stream.fragsize)));
        })
    }

    fn set_rate(&mut self, asker: Asker, r: &mut Reader<'_>, playback: bool) -> Done {
        let index = if playback { self.playback_of(asker, r)? } else { self.record_of(asker, r)? };
        let rate = r.u32()?;
        let (map, card) = (self.options.map.clone(), self.options.spec.rate);
        if !(crate::pcm::RATE_MIN..=crate::pcm::RATE_MAX).contains(&rate) {
            return no(code::INVALID);
        }
        if let Some(stream) = self.playbacks.get_mut(&index).filter(|_| playback) {
            stream.spec.rate = rate;
            stream.connect(&map, card);
        } else if let Some(stream) = self.records.get_mut(&index) {
            stream.spec.rate = rate;
            stream.connect(&map, card);
        }
        self.stream_changed(playback, index);
        YES
    }

    fn playback_latency(&mut self, asker: Asker, r: &mut Reader<'_>) -> Done {
        let index = self.playback_of(asker, r)?;
        let time = r.time()?;
        let now = self.wall();
        let (nanos, free) = (self.now.nanos, self.options.clock == Clock::Free);
        let stream = self.playbacks.get_mut(&index).ok_or(Fault::Code(code::NOENTITY))?;
        // A stream that plays silence for want of data still plays: its read index goes on.
        let playing = stream.playing || stream.is_running();
        let read = stream.told_index(nanos, free);
        reply(|packet| {
            packet.micros(0).micros(0).bool(playing).time(time).time(now);
            packet.i64(stream.buffer.write_index()).i64(read);
            packet.u64(stream.underrun_for).u64(stream.playing_for);
        })
    }

    fn record_latency(&mut self, asker: Asker, r: &mut Reader<'_>) -> Done {
        let index = self.record_of(asker, r)?;
        let time = r.time()?;
        let now = self.wall();
        let stream = self.records.get(&index).ok_or(Fault::Code(code::NOENTITY))?;
        let delay = u64::try_from(self.options.delay.as_micros()).unwrap_or(0);
        reply(|packet| {
            packet.micros(delay).micros(0).bool(!stream.corked).time(time).time(now);
            packet.i64(stream.written.cast_signed()).i64(stream.sent.cast_signed());
        })
    }

    fn wall(&self) -> (u32, u32) {
        ((self.now.wall_micros / 1_000_000) as u32, (self.now.wall_micros % 1_000_000) as u32)
    }

    fn set_volume(&mut self, command: u32, r: &mut Reader<'_>) -> Done {
        let index = r.index()?;
        let device =
            matches!(command, op::SET_SINK_VOLUME | op::SET_SOURCE_VOLUME | op::SET_SINK_MUTE | op::SET_SOURCE_MUTE);
        let name = if device { r.text()? } else { None };
        let mute = matches!(
            command,
            op::SET_SINK_MUTE | op::SET_SOURCE_MUTE | op::SET_SINK_INPUT_MUTE | op::SET_SOURCE_OUTPUT_MUTE
        );
        let change = if mute { Err(r.bool()?) } else { Ok(r.volumes()?) };
        if change.as_ref().is_ok_and(|volumes| volumes.is_empty() || volumes.iter().any(|volume| *volume > VOLUME_MAX))
        {
            return no(code::INVALID);
        }
        let (facility, index, volume) = match command {
            op::SET_SINK_VOLUME | op::SET_SINK_MUTE => {
                let index = self.sink(index, name.as_deref())?;
                (
                    facility::SINK,
                    index,
                    self.sinks.iter_mut().find(|sink| sink.index == index).map(|sink| &mut sink.volume),
                )
            }
            op::SET_SOURCE_VOLUME | op::SET_SOURCE_MUTE => {
                let index = self.source(index, name.as_deref())?;
                (facility::SOURCE, index, self.sources.iter_mut().find(|s| s.index == index).map(|s| &mut s.volume))
            }
            op::SET_SINK_INPUT_VOLUME | op::SET_SINK_INPUT_MUTE => {
                let index = index.ok_or(Fault::Code(code::INVALID))?;
                (facility::SINK_INPUT, index, self.playbacks.get_mut(&index).map(|stream| &mut stream.volume))
            }
            _ => {
                let index = index.ok_or(Fault::Code(code::INVALID))?;
                (facility::SOURCE_OUTPUT, index, self.records.get_mut(&index).map(|stream| &mut stream.volume))
            }
        };
        let volume: &mut Volume = volume.ok_or(Fault::Code(code::NOENTITY))?;
        match change {
            Err(muted) => volume.muted = muted,
            Ok(volumes) if volumes.len() == volume.channels.len() => volume.channels = volumes,
            Ok(volumes) => volume.channels.fill(volumes.first().copied().unwrap_or(0)),
        }
        self.notify(facility, event::CHANGE, index);
        YES
    }

    fn properties_of(&mut self, playback: bool, index: u32) -> Result<&mut Properties, Fault> {
        let found = if playback {
            self.playbacks.get_mut(&index).map(|stream| &mut stream.properties)
        } else {
            self.records.get_mut(&index).map(|stream| &mut stream.properties)
        };
        found.ok_or(Fault::Code(code::NOENTITY))
    }

    fn stream_changed(&mut self, playback: bool, index: u32) {
        let facility = if playback { facility::SINK_INPUT } else { facility::SOURCE_OUTPUT };
        self.notify(facility, event::CHANGE, index);
    }

    fn change_properties(&mut self, command: u32, asker: Asker, r: &mut Reader<'_>) -> Done {
        let of_client = matches!(command, op::UPDATE_CLIENT_PROPLIST | op::REMOVE_CLIENT_PROPLIST);
        let playback = matches!(command, op::UPDATE_PLAYBACK_STREAM_PROPLIST | op::REMOVE_PLAYBACK_STREAM_PROPLIST);
        let index = match (of_client, playback) {
            (true, _) => asker.client,
            (_, true) => self.playback_of(asker, r)?,
            _ => self.record_of(asker, r)?,
        };
        let properties =
            if of_client { &mut self.client(asker)?.properties } else { self.properties_of(playback, index)? };
        if command <= op::UPDATE_CLIENT_PROPLIST {
            let mode = r.u32()?;
            properties.update(mode, &r.properties()?);
        } else {
            while let Some(key) = r.text()? {
                properties.remove(&key);
            }
        }
        if of_client {
            self.notify(facility::CLIENT, event::CHANGE, index);
        } else {
            self.stream_changed(playback, index);
        }
        YES
    }

    fn move_stream(&mut self, r: &mut Reader<'_>, playback: bool) -> Done {
        let (stream, index, name) = (r.u32()?, r.index()?, r.text()?);
        if playback {
            let sink = self.sink(index, name.as_deref())?;
            self.playbacks.get_mut(&stream).ok_or(Fault::Code(code::NOENTITY))?.sink = sink;
        } else {
            let source = self.source(index, name.as_deref())?;
            self.records.get_mut(&stream).ok_or(Fault::Code(code::NOENTITY))?.source = source;
        }
        self.tell_moved(playback, stream);
        YES
    }

    /// Tells a stream's client where it is now.
    pub(super) fn tell_moved(&mut self, playback: bool, index: u32) {
        let place = if playback {
            self.playbacks.get(&index).and_then(|s| Some((s.owner?, s.sink, Some(s.buffer.attributes()), (0, 0))))
        } else {
            self.records.get(&index).map(|s| (s.owner, s.source, None, (s.maxlength, s.fragsize)))
        };
        let Some((owner, device, attributes, (maxlength, fragsize))) = place else { return };
        let name = if playback {
            self.sinks.iter().find(|sink| sink.index == device).map(|sink| sink.name.clone())
        } else {
            self.sources.iter().find(|source| source.index == device).map(|source| source.name.clone())
        };
        self.say(owner.client, if playback { op::PLAYBACK_STREAM_MOVED } else { op::RECORD_STREAM_MOVED }, |packet| {
            packet.u32(owner.channel).u32(device).maybe_text(name.as_deref()).bool(false);
            match attributes {
                Some(attributes) => put_attributes(packet, attributes),
                None => {
                    packet.u32(maxlength).u32(fragsize);
                }
            }
            packet.micros(0);
        });
        self.stream_changed(playback, index);
    }

    fn kill(&mut self, command: u32, r: &mut Reader<'_>) -> Done {
        let index = r.u32()?;
        match command {
            op::KILL_CLIENT if self.clients.contains_key(&index) => self.end(index),
            op::KILL_SINK_INPUT if self.playbacks.contains_key(&index) => {
                if let Some(owner) = self.playbacks.get(&index).and_then(|stream| stream.owner) {
                    self.say(owner.client, op::PLAYBACK_STREAM_KILLED, |packet| {
                        packet.u32(owner.channel);
                    });
                }
                self.remove_playback(index);
            }
            op::KILL_SOURCE_OUTPUT if self.records.contains_key(&index) => {
                if let Some(owner) = self.records.get(&index).map(|stream| stream.owner) {
                    self.say(owner.client, op::RECORD_STREAM_KILLED, |packet| {
                        packet.u32(owner.channel);
                    });
                }
                self.remove_record(index);
            }
            _ => return no(code::NOENTITY),
        }
        YES
    }

    fn get_info(&mut self, command: u32, asker: Asker, r: &mut Reader<'_>) -> Done {
        let version = asker.version;
        let mut packet = Writer::new();
        let p = &mut packet;
        let nobody = Fault::Code(code::NOENTITY);
        match command {
            op::GET_SERVER_INFO => self.server_info(version, p),
            op::GET_SINK_INFO => {
                let index = self.sink(r.index()?, r.text()?.as_deref())?;
                self.sink_info(self.sinks.iter().find(|sink| sink.index == index).ok_or(nobody)?, version, p);
            }
            op::GET_SINK_INFO_LIST => self.sinks.iter().for_each(|sink| self.sink_info(sink, version, p)),
            op::GET_SOURCE_INFO => {
                let index = self.source(r.index()?, r.text()?.as_deref())?;
                self.source_info(self.sources.iter().find(|s| s.index == index).ok_or(nobody)?, version, p);
            }
            op::GET_SOURCE_INFO_LIST => self.sources.iter().for_each(|source| self.source_info(source, version, p)),
            op::GET_MODULE_INFO => {
                let index = r.u32()?;
                self.module_info(self.modules.iter().find(|m| m.index == index).ok_or(nobody)?, version, p);
            }
            op::GET_MODULE_INFO_LIST => self.modules.iter().for_each(|module| self.module_info(module, version, p)),
            op::GET_CLIENT_INFO => {
                let index = r.u32()?;
                self.client_info(index, &self.clients.get(&index).ok_or(nobody)?.properties, p);
            }
            op::GET_CLIENT_INFO_LIST => {
                let known = self.clients.iter().filter(|(_, client)| client.authorized);
                known.for_each(|(index, client)| self.client_info(*index, &client.properties, p));
            }
            op::GET_SINK_INPUT_INFO => {
                let index = r.u32()?;
                self.sink_input_info(index, self.playbacks.get(&index).ok_or(nobody)?, version, p);
            }
            op::GET_SINK_INPUT_INFO_LIST => {
                self.playbacks.iter().for_each(|(index, stream)| self.sink_input_info(*index, stream, version, p));
            }
            op::GET_SOURCE_OUTPUT_INFO => {
                let index = r.u32()?;
                self.source_output_info(index, self.records.get(&index).ok_or(nobody)?, version, p);
            }
            op::GET_SOURCE_OUTPUT_INFO_LIST => {
                self.records.iter().for_each(|(index, stream)| self.source_output_info(*index, stream, version, p));
            }
            op::GET_SAMPLE_INFO => {
                let (index, name) = (r.index()?, r.text()?);
                let wanted =
                    |s: &&Sample| index.map_or(Some(&s.upload.name) == name.as_ref(), |index| s.index == index);
                self.sample_info(self.samples.iter().find(wanted).ok_or(nobody)?, version, p);
            }
            op::GET_SAMPLE_INFO_LIST => self.samples.iter().for_each(|sample| self.sample_info(sample, version, p)),
            op::GET_CARD_INFO_LIST => {}
            _ => return no(code::NOENTITY),
        }
        Ok(Some(packet))
    }
}

pub(super) fn reply(build: impl FnOnce(&mut Writer)) -> Done {
    let mut packet = Writer::new();
    build(&mut packet);
    Ok(Some(packet))
}

pub(super) fn put_attributes(packet: &mut Writer, attributes: Attributes) {
    packet.u32(attributes.maxlength).u32(attributes.tlength).u32(attributes.prebuf).u32(attributes.minreq);
}
