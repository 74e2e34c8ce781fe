//! The loop and two cards in memory, with servers that lie.

use super::session::{OUTGOING_MAX, Session, Side};
use crate::card::{Engine, Now, Options};
use crate::pulse::command::op;
use crate::pulse::frame;
use crate::pulse::tag::Writer;

/// Most steps.
const STEPS_MAX: usize = 300;
const SIDES: [Side; 2] = [Side::Source, Side::Sink];
/// Cards that differ in rate, channels and format.
const CARDS: [&str; 4] =
    [",mic=tone", ",format=s32,drift=+200ppm", ",rate=44100,channels=1,mic=440", ",rate=192000,channels=5,format=f32"];

/// Bytes that are taken one by one; 0 when there are no more.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }
}

/// Lets two cards answer the loop as `data` says: rightly, with bytes changed, cut, or with packets that nobody asked for.
/// Nothing of it makes the loop panic, and what it holds stays bounded. For fuzzing.
pub fn fuzz(data: &[u8]) {
    let mut bytes = Bytes(data);
    let first = usize::from(bytes.byte());
    let mut cards = Vec::new();
    for choice in [first, first >> 2] {
        let mut options = Options::default();
        let parsed = options.parse(CARDS.get(choice % CARDS.len()).copied().unwrap_or_default().as_ref());
        debug_assert!(parsed.is_ok(), "{parsed:?}");
        let mut card = Engine::new(options);
        let Some(client) = card.connect() else { return };
        cards.push((card, client));
    }
    let mut session = Session::new(&[0; 256], None, None, 0.002 + f64::from(bytes.byte()) * 0.001);
    let mut nanos = 0;
    for _ in 0..STEPS_MAX {
        if bytes.0.is_empty() {
            return;
        }
        let step = bytes.byte();
        let liar = SIDES.get(usize::from(step >> 3 & 1)).copied().unwrap_or(Side::Sink);
        nanos += u64::from(step >> 4) * 500_000;
        let now = Now { nanos, wall_micros: nanos / 1000 };
        for (side, (card, client)) in SIDES.into_iter().zip(&mut cards) {
            let sent = std::mem::take(session.outgoing(side));
            card.receive(now, *client, &sent);
            card.advance(now);
            let _ = (card.heard(), card.due());
            let mut answer = card.outgoing(*client).map(std::mem::take).unwrap_or_default();
            if side == liar {
                lie(step & 7, &mut bytes, &mut answer);
            }
            if session.receive(nanos, side, &answer).is_err() {
                return;
            }
        }
        session.advance(nanos);
        let _ = (session.status(), session.due(), session.latency());
        assert!(SIDES.into_iter().all(|side| session.outgoing(side).len() < 2 * OUTGOING_MAX), "what waits is bounded");
    }
}

fn lie(how: u8, bytes: &mut Bytes<'_>, answer: &mut Vec<u8>) {
    match how {
        0..=2 => {}
        3 | 4 => {
            for _ in 0..how - 2 {
                let place = bytes.number() as usize % answer.len().max(1);
                let value = bytes.byte();
                if let Some(byte) = answer.get_mut(place) {
                    *byte = value;
                }
            }
        }
        5 => answer.truncate(bytes.number() as usize % (answer.len() + 1)),
        6 => {
            let command = [op::REQUEST, op::REPLY, op::ERROR, op::PLAYBACK_STREAM_KILLED, op::UNDERFLOW];
            let mut packet = Writer::new();
            let command = command.get(usize::from(bytes.byte()) % command.len()).copied().unwrap_or(op::REQUEST);
            packet.u32(command).u32(bytes.number() & 7).u32(bytes.number());
            frame::put_packet(&packet.into_bytes(), answer);
        }
        _ => {
            let (channel, length) = (bytes.number() & 1, bytes.number() as usize & 0xffff);
            frame::put_samples(channel, &vec![bytes.byte(); length], answer);
        }
    }
}
