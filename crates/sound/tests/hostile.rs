//! Clients that lie, flood, stop reading or vanish: bounded memory, and the others hear nothing of it.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

mod bench;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bench::protocol::{SPEC, answers, auth, packet, playback, record, samples};
use loopbox_sound::card::{Card, Clock, Engine, Now, Options};
use loopbox_sound::pcm::default_map;
use loopbox_sound::pulse::command::op;
use loopbox_sound::pulse::tag::Properties;

/// What a whole session sends.
fn session() -> Vec<u8> {
    let simple = |command, tag| packet(command, tag, |_| {});
    let of = |command, tag| {
        packet(command, tag, |p| {
            p.u32(0);
        })
    };
    let volume = packet(op::SET_SINK_INPUT_VOLUME, 7, |p| {
        p.u32(1).volumes(&[0x8000; 2]);
    });
    let latency = packet(op::GET_PLAYBACK_LATENCY, 8, |p| {
        p.u32(0).time((1, 2));
    });
    let upload = packet(op::CREATE_UPLOAD_STREAM, 9, |p| {
        p.text("bell").spec(&SPEC).map(&default_map(2)).u32(400).properties(&Properties::default());
    });
    let module = packet(op::LOAD_MODULE, 10, |p| {
        p.text("module-null-sink").text("sink_name=second");
    });
    let pipe = packet(op::LOAD_MODULE, 17, |p| {
        p.text("module-pipe-source").text("file=/a/b source_name=pipe rate=44100 channels=1");
    });
    let name = packet(op::SET_CLIENT_NAME, 1, |p| {
        p.properties(&Properties::of(&[("application.name", "test")]));
    });
    let subscribe = packet(op::SUBSCRIBE, 2, |p| {
        p.u32(0x2ff);
    });
    [
        auth(),
        name,
        subscribe,
        playback(3, 0),
        record(4),
        samples(0, &[1; 4000]),
        volume,
        latency,
        upload,
        samples(2, &[2; 400]),
        packet(op::FINISH_UPLOAD_STREAM, 11, |p| {
            p.u32(2);
        }),
        module,
        pipe,
        simple(op::GET_SINK_INFO_LIST, 12),
        simple(op::GET_SOURCE_OUTPUT_INFO_LIST, 13),
        of(op::FLUSH_PLAYBACK_STREAM, 14),
        samples(0, &[3; 8000]),
        of(op::DRAIN_PLAYBACK_STREAM, 15),
        packet(op::DELETE_RECORD_STREAM, 16, |p| {
            p.u32(1);
        }),
    ]
    .concat()
}

fn at(millis: u64) -> Now {
    Now { nanos: millis * 1_000_000, wall_micros: millis * 1000 }
}

#[test]
fn a_session_works_so_that_its_mutations_mean_something() {
    let mut engine = Engine::new(Options::default());
    let client = engine.connect().unwrap();
    engine.receive(at(0), client, &session());
    let openings = engine.openings();
    assert_eq!(openings.len(), 1);
    engine.opened(&openings[0], true);
    let answers = answers(&mut engine, client);
    let errors: Vec<_> = answers.iter().filter(|(command, ..)| *command == op::ERROR).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let replies = answers.iter().filter(|(command, ..)| *command == op::REPLY).count();
    assert_eq!(replies, 15, "{answers:?}");
    assert!(!engine.is_over(client));
}

#[test]
fn ten_thousand_mutations_of_a_session_do_no_harm() {
    let good = session();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) as usize % below
    };
    for round in 0..10_000 {
        let mut bad = good.clone();
        for _ in 0..=random(3) {
            let place = random(bad.len());
            match random(4) {
                0 => bad[place] ^= 1 << random(8),
                1 => bad[place] = [0, 0xff, 0x7f, 0x80, b'L', b't', b'N'][random(7)],
                2 => bad.truncate(place.max(1)),
                _ => drop(bad.drain(place..(place + random(40)).min(bad.len()))),
            }
            if bad.is_empty() {
                bad.push(0);
            }
        }
        let clock = if round % 2 == 0 { Clock::REAL } else { Clock::Free };
        let mut engine = Engine::new(Options { clock, ..Options::default() });
        let client = engine.connect().unwrap();
        for (n, piece) in bad.chunks(1 + random(2000)).enumerate() {
            engine.receive(at(n as u64), client, piece);
            engine.advance(at(n as u64));
            for opening in engine.openings() {
                engine.opened(&opening, n % 2 == 0);
                engine.pipe_came(opening.module, piece);
            }
            assert!(engine.outgoing(client).unwrap().len() < 8 << 20);
            engine.heard();
        }
        engine.disconnect(client);
        assert_eq!(engine.due(), None, "round {round}: somebody left still keeps the card awake");
    }
}

#[test]
fn whoever_floods_and_never_reads_costs_bounded_memory() {
    let mut engine = Engine::new(Options::default());
    let client = engine.connect().unwrap();
    engine.receive(at(0), client, &[auth(), playback(1, 0), record(2)].concat());
    let block = samples(0, &vec![5; 1 << 20]);
    for n in 0..2000 {
        engine.receive(at(n), client, &block);
        engine.receive(at(n), client, &packet(op::GET_SINK_INFO_LIST, 9, |_| {}));
        assert!(engine.outgoing(client).unwrap().len() < 8 << 20);
        engine.heard();
    }
    // As many streams and clients as it likes.
    let mut streams = 0;
    for tag in 0..1000 {
        engine.receive(at(3000), client, &playback(tag, 0));
    }
    if let Some(outgoing) = engine.outgoing(client) {
        outgoing.clear();
    }
    while engine.connect().is_some() {
        streams += 1;
        assert!(streams < 1000);
    }
}

#[test]
fn time_is_counted_to_the_frame_and_an_idle_card_sleeps() {
    let mut engine = Engine::new(Options::default());
    engine.advance(at(0));
    assert_eq!(engine.due(), None);
    let client = engine.connect().unwrap();
    engine.receive(at(0), client, &[auth(), record(1)].concat());
    for nanos in (0..20_000_000_000u64).step_by(70_000_001) {
        engine.advance(Now { nanos, wall_micros: 0 });
        let expected = u128::from(nanos) * 48_000 / 1_000_000_000;
        assert_eq!(u128::from(engine.position()), expected);
        assert!(engine.due().is_some());
        engine.outgoing(client).unwrap().clear();
    }
    engine.disconnect(client);
    assert_eq!(engine.due(), None);
    for nanos in (20_000_000_000..3_600_000_000_000u64).step_by(1_700_000_001) {
        engine.advance(Now { nanos, wall_micros: 0 });
        assert_eq!(u128::from(engine.position()), u128::from(nanos) * 48_000 / 1_000_000_000);
    }
}

#[test]
fn clients_that_vanish_or_stop_reading_do_not_disturb_the_others() {
    let scratch = rig::Scratch::new("sound");
    let card = Card::start(Options::default(), &scratch.join("socket"), None).unwrap();
    let connect = || UnixStream::connect(card.socket()).unwrap();
    let mut silent = Vec::new();
    for n in 0..300 {
        let mut client = connect();
        client.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        let wire = session();
        let part = &wire[..if n % 3 == 0 { wire.len() } else { (n * 37) % wire.len() }];
        // Refused when the card has hung up on it.
        let _ = client.write_all(part);
        if n % 20 == 0 {
            silent.push(client);
        }
    }
    let mut honest = connect();
    honest.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    honest.write_all(&[auth(), packet(op::GET_SERVER_INFO, 77, |_| {})].concat()).unwrap();
    let mut reply = Vec::new();
    let mut block = [0; 1024];
    while !reply.windows(11).any(|window| window == b"loopbox.mic") {
        let length = honest.read(&mut block).unwrap();
        assert!(length > 0, "hung up on");
        reply.extend_from_slice(&block[..length]);
    }
    drop(silent);
    card.stop().unwrap();
}
