//! The protocol as another implementation reads and writes it: the crate `pulseaudio`.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

use std::ffi::CString;

use loopbox_sound::card::{Engine, Now, Options};
use loopbox_sound::loopback::{Session, Side};
use pulseaudio::protocol as pa;

const NOW: Now = Now { nanos: 0, wall_micros: 0 };

/// The other implementation as a client of our card.
struct Client {
    engine: Engine,
    index: u32,
    version: u16,
}

impl Client {
    /// Sends a command and reads the answer.
    fn ask<T: pa::CommandReply>(&mut self, command: &pa::Command) -> T {
        let mut wire = Vec::new();
        pa::write_command_message(&mut wire, 7, command, self.version).unwrap();
        self.engine.receive(NOW, self.index, &wire);
        let answer = std::mem::take(self.engine.outgoing(self.index).unwrap());
        let mut rest = answer.as_slice();
        let (tag, reply) = pa::read_reply_message(&mut rest, self.version)
            .unwrap_or_else(|error| panic!("version {}, {command:?}: {error}", self.version));
        assert_eq!((tag, self.engine.is_over(self.index)), (7, false));
        reply
    }
}

#[test]
fn the_card_answers_in_every_version() {
    for version in 13..=pa::MAX_VERSION {
        let mut engine = Engine::new(Options::default());
        let index = engine.connect().unwrap();
        let mut client = Client { engine, index, version };
        let auth = pa::AuthParams { version, supports_shm: false, supports_memfd: false, cookie: vec![0; 256] };
        let answer: pa::AuthReply = client.ask(&pa::Command::Auth(auth));
        assert_eq!((answer.version, answer.use_shm, answer.use_memfd), (35, false, false));
        let _: pa::SetClientNameReply = client.ask(&pa::Command::SetClientName(pa::Props::new()));
        let info: pa::ServerInfo = client.ask(&pa::Command::GetServerInfo);
        assert_eq!(info.default_source_name, Some(CString::new("loopbox.mic").unwrap()));
        assert_eq!((info.sample_spec.sample_rate, info.sample_spec.channels), (48_000, 2));
        let sinks: pa::SinkInfoList = client.ask(&pa::Command::GetSinkInfoList);
        assert_eq!(sinks.len(), 1);
        assert_eq!((sinks[0].name.to_str().unwrap(), sinks[0].muted), ("loopbox", false));
        let spec = pa::SampleSpec { format: pa::SampleFormat::S16Le, channels: 2, sample_rate: 44_100 };
        let play = pa::PlaybackStreamParams {
            sample_spec: spec,
            channel_map: pa::ChannelMap::stereo(),
            sink_name: Some(CString::new("loopbox").unwrap()),
            buffer_attr: pa::stream::BufferAttr {
                max_length: u32::MAX,
                target_length: 17_640,
                pre_buffering: 0,
                minimum_request_length: 1764,
                fragment_size: u32::MAX,
            },
            cvolume: Some(pa::ChannelVolume::norm(2)),
            ..Default::default()
        };
        let made: pa::CreatePlaybackStreamReply = client.ask(&pa::Command::CreatePlaybackStream(play));
        assert_eq!(made.sample_spec, spec, "version {version}");
        assert_eq!((made.buffer_attr.target_length, made.requested_bytes), (17_640, 17_640));
        let record = pa::RecordStreamParams {
            sample_spec: spec,
            channel_map: pa::ChannelMap::stereo(),
            buffer_attr: pa::stream::BufferAttr { max_length: u32::MAX, fragment_size: 4410, ..Default::default() },
            cvolume: Some(pa::ChannelVolume::norm(2)),
            ..Default::default()
        };
        if version == 21 {
            // It expects the format, which is there since version 22.
            continue;
        }
        let recorded: pa::CreateRecordStreamReply = client.ask(&pa::Command::CreateRecordStream(record));
        assert_eq!(recorded.sample_spec, spec);
        let inputs: pa::SinkInputInfoList = client.ask(&pa::Command::GetSinkInputInfoList);
        assert_eq!((inputs.len(), inputs[0].index), (1, made.stream_index));
        let outputs: pa::SourceOutputInfoList = client.ask(&pa::Command::GetSourceOutputInfoList);
        assert_eq!((outputs.len(), outputs[0].index), (1, recorded.stream_index));
        // It does not know what is in a source's information since version 34.
        if version < 34 {
            let sources: pa::SourceInfoList = client.ask(&pa::Command::GetSourceInfoList);
            let names: Vec<_> = sources.iter().map(|source| source.name.to_str().unwrap()).collect();
            assert_eq!(names, ["loopbox.monitor", "loopbox.mic"]);
        }
    }
}

#[test]
fn the_loops_commands_are_what_another_server_reads() {
    let mut session = Session::new(&[9; 256], Some("loopbox.mic".to_owned()), Some("loopbox".to_owned()), 0.020);
    let read = |wire: &[u8]| -> Vec<pa::Command> {
        let mut rest = wire;
        let mut commands = Vec::new();
        while !rest.is_empty() {
            commands.push(pa::read_command_message(&mut rest, 15).unwrap().1);
        }
        commands
    };
    let mut cards = [(); 2].map(|()| Engine::new(Options::default()));
    let clients = [0, 1].map(|n| cards[n].connect().unwrap());
    let mut answered = |session: &mut Session| {
        for (n, side) in [Side::Source, Side::Sink].into_iter().enumerate() {
            let sent = std::mem::take(session.outgoing(side));
            cards[n].receive(NOW, clients[n], &sent);
            let answer = std::mem::take(cards[n].outgoing(clients[n]).unwrap());
            session.receive(0, side, &answer).unwrap();
        }
    };
    for side in [Side::Source, Side::Sink] {
        let asked = read(session.outgoing(side));
        let [pa::Command::Auth(auth), pa::Command::SetClientName(_)] = &asked[..] else { panic!("{asked:?}") };
        assert!(auth.version == 15 && auth.cookie == [9; 256]);
    }
    // Who it talks with is known: it asks for the device.
    answered(&mut session);
    let asked = read(session.outgoing(Side::Source));
    let [pa::Command::GetSourceInfo(info)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(info.name, Some(CString::new("loopbox.mic").unwrap()));
    let asked = read(session.outgoing(Side::Sink));
    let [pa::Command::GetSinkInfo(info)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(info.name, Some(CString::new("loopbox").unwrap()));
    // And for its streams.
    answered(&mut session);
    let asked = read(session.outgoing(Side::Source));
    let [pa::Command::CreateRecordStream(record)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(record.sample_spec.format, pa::SampleFormat::Float32Le);
    assert_eq!(record.buffer_attr.fragment_size, 120 * 8);
    assert!(record.flags.adjust_latency);
    let asked = read(session.outgoing(Side::Sink));
    let [pa::Command::CreatePlaybackStream(play)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((play.buffer_attr.target_length, play.buffer_attr.pre_buffering), (360 * 8, 0));
    assert!(play.flags.adjust_latency && !play.flags.start_corked);
}
