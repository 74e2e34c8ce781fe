//! A client of any of the servers that plays one stream and records others, and keeps when all of it went and came.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use sound::pcm::{Format, Spec, default_map};
use sound::pulse::client::{Client, Event};
use sound::pulse::command::op;
use sound::pulse::tag::{Properties, Reader};

/// What is played and recorded.
pub const SPEC: Spec = Spec { format: Format::F32le, channels: 2, rate: 48_000 };

/// What to play where, and what to record.
#[derive(Debug, Clone, Copy)]
pub struct Session<'a> {
    /// As in `PULSE_SERVER`.
    pub address: &'a str,
    /// The sink; `None` for the default one.
    pub sink: Option<&'a str>,
    /// The sources.
    pub sources: &'a [&'a str],
    /// How much is written ahead, in microseconds; recorded is in fragments of a millisecond.
    pub latency_micros: u64,
    /// How long.
    pub time: Duration,
}

/// What went and what came.
#[derive(Debug, Default)]
pub struct Log {
    /// When a block was written, and the number of its first frame.
    pub written: Vec<(Instant, u64)>,
    /// Of each source when a fragment came, and its left channel.
    pub heard: Vec<Vec<(Instant, Vec<f32>)>>,
}

impl Session<'_> {
    /// Plays `signal`, a function of the frame's number, and records.
    pub fn run(&self, signal: impl Fn(u64) -> f32) -> Log {
        let mut socket = UnixStream::connect(self.address.strip_prefix("unix:").unwrap()).unwrap();
        let mut client = Client::new(&sound::pulse::client::cookie(), "bench");
        let flags = |packet: &mut sound::pulse::tag::Writer, flags: &[bool]| {
            flags.iter().for_each(|flag| {
                packet.bool(*flag);
            });
        };
        let adjust = [false, false, false, false, false, false, false, false, true];
        let records: Vec<u32> = self
            .sources
            .iter()
            .map(|source| {
                client.send(op::CREATE_RECORD_STREAM, |p| {
                    p.spec(&SPEC).map(&default_map(2)).index(None).text(source).u32(u32::MAX).bool(false);
                    p.u32(SPEC.bytes_of(1000));
                    flags(p, &adjust);
                    p.properties(&Properties::of(&[("media.name", "recorded")])).index(None);
                    flags(p, &[false; 3]);
                })
            })
            .collect();
        let length = SPEC.bytes_of(self.latency_micros);
        let play = client.send(op::CREATE_PLAYBACK_STREAM, |p| {
            p.spec(&SPEC).map(&default_map(2)).index(None).maybe_text(self.sink).u32(u32::MAX).bool(false);
            p.u32(length).u32(u32::MAX).u32(SPEC.bytes_of(1000)).u32(0).volumes(&[0x1_0000; 2]);
            flags(p, &adjust);
            p.properties(&Properties::of(&[("media.name", "played")]));
            flags(p, &[false; 5]);
        });
        let mut log = Log { written: Vec::new(), heard: vec![Vec::new(); records.len()] };
        let (mut playing, mut recording) = (None, vec![None; records.len()]);
        let (mut frame, mut wanted) = (0u64, 0u64);
        let (mut bytes, mut events) = ([0; 1 << 16], Vec::new());
        let start = Instant::now();
        while start.elapsed() < self.time {
            if let Some(channel) = playing
                && wanted > 0
            {
                let samples: Vec<u8> =
                    (frame..frame + wanted).flat_map(|n| [signal(n); 2]).flat_map(f32::to_le_bytes).collect();
                log.written.push((Instant::now(), frame));
                client.samples(channel, 0, &samples);
                frame += wanted;
                wanted = 0;
            }
            socket.write_all(client.outgoing()).unwrap();
            client.outgoing().clear();
            let length = socket.read(&mut bytes).unwrap();
            let now = Instant::now();
            client.receive(&bytes[..length], &mut events).unwrap();
            for event in events.drain(..) {
                match event {
                    Event::Reply(tag, packet) => {
                        let mut reader = Reader::new(&packet);
                        if tag == play {
                            playing = Some(reader.u32().unwrap());
                            reader.u32().unwrap();
                            wanted += u64::from(reader.u32().unwrap()) / 8;
                        } else if let Some(at) = records.iter().position(|asked| *asked == tag) {
                            recording[at] = Some(reader.u32().unwrap());
                        }
                    }
                    Event::Request(channel, bytes) if Some(channel) == playing => wanted += u64::from(bytes) / 8,
                    Event::Samples(channel, bytes) => {
                        let left =
                            bytes.as_chunks::<8>().0.iter().map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                        if let Some(at) = recording.iter().position(|known| *known == Some(channel)) {
                            log.heard[at].push((now, left.collect()));
                        }
                    }
                    Event::Refused(_, code) => panic!("{}: refused, {code}", self.address),
                    _ => {}
                }
            }
        }
        log
    }
}
