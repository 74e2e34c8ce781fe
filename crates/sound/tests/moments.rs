//! The card in virtual time: a recorder that comes at any moment hears all that is played from then on.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

mod bench;

use bench::protocol::{auth, packet, playback, record, samples};
use loopbox_sound::card::{Clock, Engine, Heard, Now, Options};
use loopbox_sound::pulse::command::op;
use loopbox_sound::pulse::frame::{self, Frame};
use loopbox_sound::pulse::tag::Reader;

/// Takes the samples that wait for a client.
fn take_samples(engine: &mut Engine, client: u32, heard: &mut Vec<u8>) {
    let wire = std::mem::take(engine.outgoing(client).unwrap());
    let (mut reader, mut rest) = (frame::Reader::default(), wire.as_slice());
    while let Some((frame, used)) = reader.next(rest).unwrap() {
        if let Frame::Samples { bytes, .. } = frame {
            heard.extend_from_slice(bytes);
        }
        rest = &rest[used..];
    }
}

/// A player of half a second that begins at 10 ms by a drain, as `paplay` does with a short file, and a recorder that
/// comes `micros` microseconds after; each is looked after every `step` microseconds. What was heard by the recorder and
/// by the WAV file.
fn meet(micros: i64, step: u64, recorder_first: bool, noise: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut engine = Engine::new(Options::default());
    let [player, recorder] = [(); 2].map(|()| engine.connect().unwrap());
    let now = |micros: u64| Now { nanos: micros * 1000, wall_micros: micros };
    for client in [player, recorder] {
        engine.receive(now(0), client, &auth());
    }
    let playing = [playback(1, u32::MAX), samples(0, noise)].concat();
    let drain = packet(op::DRAIN_PLAYBACK_STREAM, 2, |p| {
        p.u32(0);
    });
    let begins = 10_000_u64;
    let comes = begins.wrapping_add_signed(micros);
    engine.receive(now(1), player, &playing);
    let mut events = [(begins, player, drain), (comes, recorder, record(3))];
    events.sort_by_key(|(at, client, _)| (*at, (*client == recorder) != recorder_first));
    let (mut events, mut heard) = (events.into_iter().peekable(), Vec::new());
    for at in (0..700_000u64).step_by(step as usize) {
        // As a thread that is busy: what has come since the last time is taken now.
        while let Some((_, client, bytes)) = events.next_if(|(when, ..)| *when <= at) {
            engine.receive(now(at), client, &bytes);
        }
        engine.advance(now(at));
        take_samples(&mut engine, recorder, &mut heard);
    }
    let mut wav = Vec::new();
    for piece in engine.heard() {
        match piece {
            Heard::Samples(samples) => bench::protocol::SPEC.format.encode(&samples, &mut wav),
            Heard::Silence(frames) => wav.resize(wav.len() + 4 * frames as usize, 0),
        }
    }
    (heard, wav)
}

#[test]
fn a_recorder_that_comes_while_playing_begins_loses_nothing() {
    let noise = rig::noise(24_000 * 4);
    let fragment = 4000;
    for step in [250, 1000, 7_300, 21_000] {
        for micros in (-9_000i64..60_000).step_by(1_523).chain([-1, 0, 1]) {
            for recorder_first in [false, true] {
                let (heard, wav) = meet(micros, step, recorder_first, &noise);
                let what = format!("{micros} us after, looked at each {step} us, recorder first {recorder_first}");
                let (played, after) = wav.split_at(noise.len());
                assert!(played == noise && after.iter().all(|byte| *byte == 0), "{what}: the WAV file");
                // Silence until playing begins, or the noise from somewhere on; then silence.
                let first = heard.iter().position(|byte| *byte != 0).unwrap_or_else(|| panic!("{what}: silence"));
                let skipped = noise.windows(64).position(|window| window == &heard[first..first + 64]);
                let skipped = skipped.unwrap_or_else(|| panic!("{what}: not the noise"));
                assert!(first == 0 || skipped == 0, "{what}: {first} bytes of silence, then {skipped} were lost");
                // The clock is at most one look late.
                let late = (micros.max(0) as u64 + step) * 48 / 1000 * 4;
                assert!(skipped as u64 <= late, "{what}: {skipped} bytes were lost");
                let rest = &noise[skipped..];
                let length = rest.len().min(heard.len() - first);
                assert!(length + fragment >= rest.len(), "{what}: {length} bytes of {}", rest.len());
                assert!(heard[first..first + length] == rest[..length], "{what}: a hole");
            }
        }
    }
}

/// What a client of a stream is told of its read index, in bytes.
fn told(engine: &mut Engine, client: u32, at: Now, tag: u32) -> i64 {
    let ask = packet(op::GET_PLAYBACK_LATENCY, tag, |p| {
        p.u32(0).time((0, 0));
    });
    engine.receive(at, client, &ask);
    let answers = bench::protocol::answers(engine, client);
    let (.., rest) = answers.into_iter().find(|(_, answered, _)| *answered == tag).unwrap();
    let mut reader = Reader::new(&rest);
    reader.micros().unwrap();
    reader.micros().unwrap();
    reader.bool().unwrap();
    reader.time().unwrap();
    reader.time().unwrap();
    reader.i64().unwrap();
    reader.i64().unwrap()
}

#[test]
fn whoever_takes_its_time_from_a_free_card_is_told_no_more_than_has_passed() {
    let second = 48_000 * 4;
    for (prebuf, paced) in [(0, true), (4000, false)] {
        let mut engine = Engine::new(Options { clock: Clock::Free, ..Options::default() });
        let client = engine.connect().unwrap();
        let now = |millis: u64| Now { nanos: millis * 1_000_000, wall_micros: millis * 1000 };
        engine.receive(now(1000), client, &[auth(), playback(1, prebuf)].concat());
        assert_eq!(told(&mut engine, client, now(1000), 2), 0);
        engine.receive(now(1000), client, &samples(0, &rig::noise(second)));
        for _ in 0..100 {
            engine.advance(now(1001));
        }
        // It has played all of it.
        let frames = |heard: &Heard| if let Heard::Samples(samples) = heard { samples.len() / 2 } else { 0 };
        assert_eq!(engine.heard().iter().map(frames).sum::<usize>(), 48_000);
        for (tag, millis) in [(3, 1002), (4, 1100), (5, 1500), (6, 1990)] {
            let passed = (millis - 1000) as i64 * 48 * 4;
            let expected = if paced { passed } else { second as i64 };
            assert_eq!(told(&mut engine, client, now(millis), tag), expected, "prebuf {prebuf}, {millis} ms");
        }
        assert_eq!(told(&mut engine, client, now(2100), 7), second as i64);
    }
}
