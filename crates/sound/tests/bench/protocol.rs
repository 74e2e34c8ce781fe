//! Packets of clients, byte by byte, for tests without a socket.

use loopbox_sound::card::Engine;
use loopbox_sound::pcm::{Format, Spec, default_map};
use loopbox_sound::pulse::command::op;
use loopbox_sound::pulse::frame::{self, Frame};
use loopbox_sound::pulse::tag::{Properties, Reader, Writer};

/// What the streams are.
pub const SPEC: Spec = Spec { format: Format::S16le, channels: 2, rate: 48_000 };

pub fn packet(command: u32, tag: u32, build: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut packet = Writer::new();
    packet.u32(command).u32(tag);
    build(&mut packet);
    let mut wire = Vec::new();
    frame::put_packet(&packet.into_bytes(), &mut wire);
    wire
}

pub fn auth() -> Vec<u8> {
    packet(op::AUTH, 0, |p| {
        p.u32(13).arbitrary(&[0; 256]);
    })
}

pub fn playback(tag: u32, prebuf: u32) -> Vec<u8> {
    packet(op::CREATE_PLAYBACK_STREAM, tag, |p| {
        p.spec(&SPEC).map(&default_map(2)).index(None).maybe_text(None).u32(u32::MAX).bool(false);
        p.u32(u32::MAX).u32(prebuf).u32(u32::MAX).u32(0).volumes(&[0x1_0000; 2]);
        (0..9).for_each(|_| {
            p.bool(false);
        });
        p.properties(&Properties::default());
    })
}

pub fn record(tag: u32) -> Vec<u8> {
    packet(op::CREATE_RECORD_STREAM, tag, |p| {
        p.spec(&SPEC).map(&default_map(2)).index(None).maybe_text(None).u32(u32::MAX).bool(false).u32(4000);
        (0..9).for_each(|_| {
            p.bool(false);
        });
        p.properties(&Properties::default()).index(None);
    })
}

pub fn samples(channel: u32, bytes: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    frame::put_samples(channel, bytes, &mut wire);
    wire
}

/// The packets that wait for a client: command, tag, and the rest.
pub fn answers(engine: &mut Engine, client: u32) -> Vec<(u32, u32, Vec<u8>)> {
    let wire = std::mem::take(engine.outgoing(client).unwrap());
    let mut reader = frame::Reader::default();
    let mut rest = wire.as_slice();
    let mut answers = Vec::new();
    while let Some((frame, used)) = reader.next(rest).unwrap() {
        if let Frame::Packet(packet) = frame {
            let mut values = Reader::new(&packet);
            answers.push((values.u32().unwrap(), values.u32().unwrap(), packet.get(10..).unwrap().to_vec()));
        }
        rest = &rest[used..];
    }
    answers
}
