//! The loop and two cards by the protocol itself, in memory and in virtual time; and servers that answer nonsense.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

use loopbox_sound::Kind;
use loopbox_sound::card::{Engine, Now, Options};
use loopbox_sound::loopback::{Session, Side, State};
use loopbox_sound::pulse::command::op;
use loopbox_sound::pulse::frame;
use loopbox_sound::pulse::tag::Writer;

struct Pair {
    session: Session,
    cards: [(Engine, u32); 2],
    nanos: u64,
    /// What the cards said, in order.
    said: Vec<(u64, Side, Vec<u8>)>,
}

const SIDES: [Side; 2] = [Side::Source, Side::Sink];

impl Pair {
    fn new(source: &str, sink: &str, latency: f64) -> Self {
        let card = |options: &str| {
            let mut parsed = Options::default();
            parsed.parse(options.as_ref()).unwrap();
            let mut engine = Engine::new(parsed);
            let client = engine.connect().unwrap();
            (engine, client)
        };
        let session = Session::new(&[0; 256], None, None, latency);
        Self { session, cards: [card(source), card(sink)], nanos: 0, said: Vec::new() }
    }

    fn run(&mut self, until: u64) {
        while self.nanos < until {
            let now = Now { nanos: self.nanos, wall_micros: self.nanos / 1000 };
            for (side, (card, client)) in SIDES.into_iter().zip(&mut self.cards) {
                let sent = std::mem::take(self.session.outgoing(side));
                card.receive(now, *client, &sent);
                card.advance(now);
                let answer = std::mem::take(card.outgoing(*client).unwrap());
                if !answer.is_empty() {
                    self.session.receive(self.nanos, side, &answer).unwrap();
                    self.said.push((self.nanos, side, answer));
                }
            }
            self.session.advance(self.nanos);
            self.nanos += 250_000;
        }
    }
}

#[test]
fn a_tone_goes_from_card_to_card_at_four_milliseconds() {
    let mut pair = Pair::new(",mic=tone,drift=+200ppm", ",format=f32", 0.004);
    pair.session.keep();
    pair.run(20_000_000_000);
    let status = pair.session.status().unwrap();
    assert!((pair.session.latency() - 0.004).abs() < 1e-9, "{} s", pair.session.latency());
    assert_eq!((status.gaps, status.cuts), (0, 0));
    assert!(matches!(status.state, State::Following(ratio) if (ratio - 1.0002).abs() < 5e-6), "{status:?}");
    assert!((status.levels[0].peak - 0.1).abs() < 1e-3 && (status.levels[1].rms - 0.0707).abs() < 1e-3);
    // The sink's card heard it without a hole.
    let (card, _) = &mut pair.cards[1];
    let heard: usize = card
        .heard()
        .into_iter()
        .map(|heard| match heard {
            loopbox_sound::card::Heard::Samples(samples) => {
                samples.chunks(2).filter(|frame| frame[0].abs() > 0.0).count()
            }
            loopbox_sound::card::Heard::Silence(_) => 0,
        })
        .sum();
    assert!(heard > 19 * 48_000, "{heard} frames");
}

#[test]
fn rates_and_channels_that_differ_are_converted() {
    let mut pair = Pair::new(",mic=tone,rate=44100,channels=1", ",rate=96000,channels=4", 0.030);
    pair.run(8_000_000_000);
    let status = pair.session.status().unwrap();
    assert_eq!((status.state, status.gaps, status.cuts), (State::Copying, 0, 0));
    assert_eq!(status.levels.len(), 4);
    assert!(status.levels.iter().all(|level| (level.peak - 0.1).abs() < 1e-3), "{:?}", status.levels);
}

#[test]
fn a_server_that_answers_nonsense_does_no_harm() {
    let mut pair = Pair::new(",mic=tone", "", 0.010);
    pair.run(100_000_000);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) as usize % below
    };
    for _ in 0..600 {
        let mut session = Session::new(&[0; 256], None, None, 0.010);
        let bad = random(pair.said.len().min(6));
        for (at, (nanos, side, answer)) in pair.said.iter().enumerate().take(40) {
            let mut answer = answer.clone();
            if at == bad {
                for _ in 0..=random(3) {
                    let place = random(answer.len());
                    match random(4) {
                        0 => answer[place] ^= 1 << random(8),
                        1 => answer[place] = [0, 0xff, 0x7f, b'L', b't', b'N'][random(6)],
                        2 => answer.truncate(place.max(1)),
                        _ => drop(answer.drain(place..(place + random(30)).min(answer.len() - 1).max(place))),
                    }
                }
            }
            if session.receive(*nanos, *side, &answer).is_err() {
                break;
            }
            session.advance(*nanos);
            assert!(session.outgoing(Side::Sink).len() < 32 << 20);
            session.outgoing(Side::Sink).clear();
        }
    }
}

#[test]
fn a_server_that_wants_too_much_is_left() {
    for bytes in [u32::MAX, 64 << 20] {
        let mut pair = Pair::new(",mic=tone", "", 0.010);
        pair.run(50_000_000);
        let mut packet = Writer::new();
        packet.u32(op::REQUEST).u32(u32::MAX).u32(0).u32(bytes);
        let mut wire = Vec::new();
        frame::put_packet(&packet.into_bytes(), &mut wire);
        let error = pair.session.receive(pair.nanos, Side::Sink, &wire).unwrap_err();
        assert_eq!(error.kind(), Kind::Limit, "{error}");
    }
    // One that asks and never takes: what waits for it is bounded.
    let mut pair = Pair::new(",mic=tone", "", 0.010);
    pair.run(50_000_000);
    let mut packet = Writer::new();
    packet.u32(op::REQUEST).u32(u32::MAX).u32(0).u32(1 << 18);
    let mut wire = Vec::new();
    frame::put_packet(&packet.into_bytes(), &mut wire);
    let refused = (0..200).find_map(|_| pair.session.receive(pair.nanos, Side::Sink, &wire).err());
    assert_eq!(refused.map(|error| error.kind()), Some(Kind::Limit));
    assert!(pair.session.outgoing(Side::Sink).len() < 64 << 20);
}

#[test]
fn lies_that_a_fuzzer_would_tell() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..300 {
        let lies: Vec<u8> = (0..400)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect();
        loopbox_sound::loopback::fuzz(&lies);
    }
}
