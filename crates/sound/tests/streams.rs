//! Streams in virtual time: what each word of the protocol does to what is heard.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

mod bench;

use bench::protocol::{SPEC, auth, packet, samples};
use loopbox_sound::card::{Engine, Now, Options};
use loopbox_sound::pcm::{Format, Spec, default_map};
use loopbox_sound::pulse::command::{code, event, facility, op};
use loopbox_sound::pulse::frame::{self, Frame};
use loopbox_sound::pulse::tag::{Properties, Reader};

/// Indices of the streams, which come after their client's.
const PLAYED: u32 = 1;

/// A client that plays and records at a card of its own.
struct Client {
    engine: Engine,
    client: u32,
    millis: u64,
    heard: Vec<u8>,
    packets: Vec<(u32, u32, Vec<u8>)>,
}

impl Client {
    /// Plays a stream of `spec`, which begins at `prebuf` bytes, and records one.
    fn new(options: &str, spec: Spec, prebuf: u32) -> Self {
        let mut parsed = Options::default();
        parsed.parse(options.as_ref()).unwrap();
        let mut engine = Engine::new(parsed);
        let client = engine.connect().unwrap();
        let mut new = Self { engine, client, millis: 0, heard: Vec::new(), packets: Vec::new() };
        let map = default_map(spec.channels);
        let volumes = vec![0x1_0000; spec.channels.into()];
        new.send(&auth());
        new.ask(op::CREATE_PLAYBACK_STREAM, |p| {
            p.spec(&spec).map(&map).index(None).maybe_text(None).u32(u32::MAX).bool(false);
            p.u32(u32::MAX).u32(prebuf).u32(u32::MAX).u32(0).volumes(&volumes);
            (0..9).for_each(|_| _ = p.bool(false));
            p.properties(&Properties::default());
        });
        new.ask(op::CREATE_RECORD_STREAM, |p| {
            p.spec(&spec).map(&map).index(None).maybe_text(None).u32(u32::MAX).bool(false).u32(1);
            (0..9).for_each(|_| _ = p.bool(false));
            p.properties(&Properties::default()).index(None);
        });
        new
    }

    fn stereo(options: &str, prebuf: u32) -> Self {
        Self::new(options, SPEC, prebuf)
    }

    fn send(&mut self, wire: &[u8]) {
        self.engine.receive(Now { nanos: self.millis * 1_000_000, wall_micros: 0 }, self.client, wire);
        self.collect();
    }

    /// Asks for something that is granted.
    fn ask(&mut self, command: u32, build: impl FnOnce(&mut loopbox_sound::pulse::tag::Writer)) {
        self.packets.clear();
        self.send(&packet(command, 77, build));
        assert!(self.replied(), "{command}: {:?}", self.packets);
    }

    fn of_stream(&mut self, command: u32) {
        self.ask(command, |p| {
            p.u32(0);
        });
    }

    fn cork(&mut self, corked: bool) {
        self.ask(op::CORK_PLAYBACK_STREAM, |p| {
            p.u32(0).bool(corked);
        });
    }

    /// Lets time pass, a millisecond at a time; what is heard meanwhile is kept.
    fn go(&mut self, millis: u64) {
        for _ in 0..millis {
            self.millis += 1;
            self.engine.advance(Now { nanos: self.millis * 1_000_000, wall_micros: 0 });
            self.collect();
        }
    }

    fn collect(&mut self) {
        let wire = std::mem::take(self.engine.outgoing(self.client).unwrap());
        let (mut reader, mut rest) = (frame::Reader::default(), wire.as_slice());
        while let Some((frame, used)) = reader.next(rest).unwrap() {
            match frame {
                Frame::Samples { bytes, .. } => self.heard.extend_from_slice(bytes),
                Frame::Packet(packet) => {
                    let mut values = Reader::new(&packet);
                    self.packets.push((values.u32().unwrap(), values.u32().unwrap(), packet[10..].to_vec()));
                }
            }
            rest = &rest[used..];
        }
    }

    fn replied(&self) -> bool {
        self.packets.iter().any(|(command, tag, _)| (*command, *tag) == (op::REPLY, 77))
    }

    fn was_told(&self, command: u32) -> bool {
        self.packets.iter().any(|(said, ..)| *said == command)
    }

    /// The left channel of what was heard, of 16 bits.
    fn left(&self) -> Vec<i16> {
        self.heard.chunks_exact(4).map(|frame| i16::from_le_bytes([frame[0], frame[1]])).collect()
    }

    /// What is heard at this moment.
    fn level(&mut self) -> i16 {
        self.go(5);
        *self.left().last().unwrap()
    }
}

fn stereo(left: impl Iterator<Item = i16>) -> Vec<u8> {
    left.flat_map(|sample| [sample; 2]).flat_map(i16::to_le_bytes).collect()
}

/// Frames that are counted from 1 on.
fn counted(from: i16, frames: i16) -> Vec<u8> {
    stereo(from..from + frames)
}

fn is_counted(heard: &[i16], from: i16, to: i16) {
    let sounding: Vec<i16> = heard.iter().copied().filter(|sample| *sample != 0).collect();
    assert_eq!(sounding, (from..=to).collect::<Vec<_>>());
}

#[test]
fn every_format_comes_back_at_every_rate_and_number_of_channels() {
    for format in (0..).map_while(Format::from_number) {
        for (channels, rate) in [(1, 8000), (2, 44_100), (3, 48_000), (6, 96_000), (32, 192_000), (2, 384_000)] {
            let spec = Spec { format, channels, rate };
            let mut client = Client::new(&format!(",rate={rate},channels={channels}"), spec, 1);
            let words = rig::noise(usize::from(channels) * 4 * 500);
            let random = words.chunks_exact(4).map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap()) | 1 << 28));
            let random: Vec<f64> = random.map(|word| word / f64::from(1 << 31)).collect();
            let mut played = Vec::new();
            format.encode(&random, &mut played);
            client.send(&samples(0, &played));
            client.go(100);
            let mut heard = client.heard.chunks_exact(spec.frame_bytes());
            let silence = vec![format.silence(); spec.frame_bytes()];
            let quiet = heard.clone().take_while(|frame| *frame == silence).count();
            heard.by_ref().take(quiet).for_each(drop);
            let heard: Vec<u8> = heard.flatten().copied().take(played.len()).collect();
            assert!(heard == played, "{spec}: {} of {} bytes", heard.len(), played.len());
        }
    }
}

#[test]
fn other_rates_and_numbers_of_channels_are_converted() {
    for (channels, rate) in [(1, 8000), (1, 44_100), (6, 48_000), (2, 96_000), (5, 22_050)] {
        let spec = Spec { format: Format::F32le, channels, rate };
        let mut client = Client::new("", spec, 1);
        let tone = |n: u32| ((f64::from(n * 997) / f64::from(rate)).fract() * std::f64::consts::TAU).sin() * 0.5;
        let tone: Vec<f64> = (0..rate / 2).flat_map(|n| vec![tone(n); channels.into()]).collect();
        let (mut played, mut heard) = (Vec::new(), Vec::new());
        spec.format.encode(&tone, &mut played);
        client.send(&samples(0, &played));
        client.send(&packet(op::DRAIN_PLAYBACK_STREAM, 5, |p| _ = p.u32(0)));
        client.go(600);
        spec.format.decode(&client.heard, &mut heard);
        let left: Vec<f64> = heard.chunks_exact(channels.into()).map(|frame| frame[0]).collect();
        let rising = left.windows(2).filter(|pair| pair[0] < -0.01 && pair[1] >= -0.01).count();
        let peak = left.iter().copied().fold(0.0, f64::max);
        assert!(rising.abs_diff(498) <= 2 && (0.4..0.6).contains(&peak), "{spec}: {rising} periods, peak {peak}");
    }
}

#[test]
fn volumes_are_cubic_and_mute_is_silence() {
    let mut client = Client::stereo("", 4);
    client.send(&samples(0, &stereo(std::iter::repeat_n(16_000, 48_000))));
    assert_eq!(client.level(), 16_000);
    for (volume, mute, index) in [
        (op::SET_SINK_INPUT_VOLUME, op::SET_SINK_INPUT_MUTE, PLAYED),
        (op::SET_SOURCE_OUTPUT_VOLUME, op::SET_SOURCE_OUTPUT_MUTE, PLAYED + 1),
        (op::SET_SINK_VOLUME, op::SET_SINK_MUTE, 0),
        (op::SET_SOURCE_VOLUME, op::SET_SOURCE_MUTE, 1),
    ] {
        let of_device = matches!(volume, op::SET_SINK_VOLUME | op::SET_SOURCE_VOLUME);
        for (percent, expected) in [(0x8000, 2000), (0x1_0000, 16_000)] {
            client.ask(volume, |p| {
                p.u32(index);
                if of_device {
                    p.maybe_text(None);
                }
                p.volumes(&[percent; 2]);
            });
            assert_eq!(client.level(), expected, "{volume}");
        }
        for (muted, expected) in [(true, 0), (false, 16_000)] {
            client.ask(mute, |p| {
                p.u32(index);
                if of_device {
                    p.maybe_text(None);
                }
                p.bool(muted);
            });
            assert_eq!(client.level(), expected, "{mute}");
        }
    }
}

#[test]
fn a_corked_stream_stands_still_and_a_flushed_one_forgets() {
    let mut client = Client::stereo("", 4);
    client.send(&samples(0, &counted(1, 9600)));
    client.go(50);
    client.cork(true);
    let before = client.heard.len();
    client.go(50);
    assert!(client.heard[before..].iter().all(|byte| *byte == 0));
    client.cork(false);
    client.go(200);
    is_counted(&client.left(), 1, 9600);
    client.heard.clear();
    client.send(&samples(0, &counted(1, 9600)));
    client.go(50);
    client.of_stream(op::FLUSH_PLAYBACK_STREAM);
    client.go(50);
    is_counted(&client.left(), 1, 50 * 48);
    client.heard.clear();
    client.send(&samples(0, &counted(1, 480)));
    client.go(50);
    is_counted(&client.left(), 1, 480);
}

#[test]
fn what_is_too_little_to_begin_waits_for_a_trigger_and_an_underrun_is_said() {
    let mut client = Client::stereo("", 40_000);
    client.send(&samples(0, &counted(1, 4800)));
    client.go(50);
    assert!(client.heard.iter().all(|byte| *byte == 0) && !client.was_told(op::STARTED));
    client.packets.clear();
    client.send(&packet(op::TRIGGER_PLAYBACK_STREAM, 77, |p| {
        p.u32(0);
    }));
    client.go(50);
    assert!(client.was_told(op::STARTED) && !client.was_told(op::UNDERFLOW));
    client.go(100);
    is_counted(&client.left(), 1, 4800);
    assert!(client.was_told(op::UNDERFLOW));
    // It waits for as much again.
    client.heard.clear();
    client.send(&samples(0, &counted(1, 4800)));
    client.go(50);
    assert!(client.heard.iter().all(|byte| *byte == 0));
    client.send(&samples(0, &counted(4801, 9600)));
    client.go(400);
    is_counted(&client.left(), 1, 14_400);
}

#[test]
fn a_drain_is_answered_when_all_was_played() {
    let mut client = Client::stereo("", 40_000);
    client.send(&samples(0, &counted(1, 4800)));
    client.packets.clear();
    client.send(&packet(op::DRAIN_PLAYBACK_STREAM, 77, |p| {
        p.u32(0);
    }));
    client.go(98);
    assert!(!client.replied());
    client.go(5);
    assert!(client.replied());
    is_counted(&client.left(), 1, 4800);
}

#[test]
fn a_seek_writes_over_what_is_not_played_yet() {
    let mut client = Client::stereo("", 4);
    client.send(&samples(0, &counted(1, 4800)));
    client.go(20);
    // An absolute offset, in the header of the frame.
    let mut wire = samples(0, &counted(20_000, 1200));
    wire[8..16].copy_from_slice(&(2400i64 * 4).to_be_bytes());
    wire[16..20].copy_from_slice(&1u32.to_be_bytes());
    client.send(&wire);
    client.go(100);
    let heard: Vec<i16> = client.left().into_iter().filter(|sample| *sample != 0).collect();
    let expected: Vec<i16> = (1..=2400).chain(20_000..21_200).collect();
    assert_eq!(heard[..3600], expected[..]);
}

#[test]
fn delay_gain_and_speed_are_what_the_options_say() {
    for (options, begins, level) in
        [("", 0..=48, 16_000), (",delay=20ms", 960..=1008, 16_000), (",gain=0.5", 0..=48, 8000)]
    {
        let mut client = Client::stereo(options, 4);
        client.go(10);
        let before = client.left().len();
        client.send(&samples(0, &stereo(std::iter::repeat_n(16_000, 4800))));
        client.go(60);
        let heard = client.left();
        let first = heard[before..].iter().position(|sample| *sample != 0).unwrap();
        assert!(begins.contains(&first), "{options}: {first}");
        assert_eq!(*heard.last().unwrap(), level, "{options}");
    }
    let mut fast = Client::stereo(",clock=x4", 4);
    fast.go(1000);
    assert_eq!((fast.engine.position(), fast.left().len()), (4 * 48_000, 4 * 48_000));
}

#[test]
fn whoever_subscribes_is_told_and_who_asks_for_nonsense_learns_it() {
    let mut client = Client::stereo("", 4);
    client.ask(op::SUBSCRIBE, |p| {
        p.u32(1 << facility::SINK_INPUT);
    });
    client.cork(true);
    let told = client.packets.iter().find(|(command, ..)| *command == op::SUBSCRIBE_EVENT).unwrap();
    let mut values = Reader::new(&told.2);
    assert_eq!((values.u32(), values.u32()), (Ok(facility::SINK_INPUT | event::CHANGE), Ok(PLAYED)));
    for (command, number, expected) in [
        (op::CORK_RECORD_STREAM, 9, code::NOENTITY),
        (op::FLUSH_PLAYBACK_STREAM, 9, code::NOENTITY),
        (op::SET_SINK_INPUT_MUTE, 999, code::NOENTITY),
        (op::KILL_CLIENT, 999, code::NOENTITY),
    ] {
        client.packets.clear();
        client.send(&packet(command, 5, |p| {
            p.u32(number).bool(true);
        }));
        let (said, tag, rest) = client.packets.first().unwrap();
        assert_eq!((*said, *tag, Reader::new(rest).u32()), (op::ERROR, 5, Ok(expected)), "{command}");
    }
}

#[test]
fn samples_may_wait_for_the_next_turn_and_words_may_not() {
    const TURN: u64 = 1_000_000;
    let mut client = Client::stereo("", 4);
    assert!(!client.engine.can_wait(client.client, TURN), "words came last");
    client.send(&samples(0, &counted(1, 960)));
    assert!(client.engine.can_wait(client.client, TURN) && !client.engine.can_wait(client.client, 3 * TURN));
    client.cork(false);
    assert!(!client.engine.can_wait(client.client, TURN));
    client.send(&samples(0, &counted(961, 48)));
    client.go(15);
    assert!(client.engine.can_wait(client.client, TURN));
    client.go(3);
    assert!(!client.engine.can_wait(client.client, TURN), "there is little left to play");
    let mut free = Client::stereo(",clock=free", 4);
    free.send(&samples(0, &counted(1, 960)));
    assert!(!free.engine.can_wait(free.client, TURN));
}
