//! The sound card and the loop: against PulseAudio with null sinks and PipeWire, both without hardware.

mod client;

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use client::{Log, SPEC, Session};
use rig::Scratch;
use rig::sound::Server;

use crate::contest::{Contest, Row, Score, Unit};

/// How much is written ahead.
const ASKED_MICROS: u64 = 20_000;
/// Time that a stream is measured for, and what of its beginning does not count.
const STREAM: Duration = Duration::from_secs(11);
const SETTLE: Duration = Duration::from_secs(1);
/// Time that an idle server is watched for.
const IDLE: Duration = Duration::from_secs(2);
/// Clicks of the loop's latency, in frames.
const CLICK_PERIOD: u64 = 9_600;
const CLICK: u64 = 48;
/// The tone of the loop's quality.
const HERTZ: f64 = 997.0;

/// A card or another server.
enum Peer {
    Card(Child, String, #[expect(dead_code, reason = "it is removed when it is dropped")] Scratch),
    Other(Server),
}

impl Peer {
    fn card(program: &Path, options: &[&str]) -> Self {
        let scratch = Scratch::new("bench-sound");
        let socket = scratch.join("socket");
        let mut command = Command::new(program);
        command.args(["sound", "card", "--listen"]).arg(&socket);
        options.iter().for_each(|option| {
            command.args(["-o", option]);
        });
        let child = command.stdout(Stdio::null()).stdin(Stdio::null()).spawn().unwrap();
        Self::Card(child, format!("unix:{}", socket.display()), scratch)
    }

    fn address(&self) -> &str {
        match self {
            Self::Card(_, address, _) => address,
            Self::Other(server) => server.address(),
        }
    }

    /// Waits until it can be connected to.
    fn wait(self) -> Self {
        let path = self.address().strip_prefix("unix:").unwrap().to_owned();
        while UnixStream::connect(&path).is_err() {
            std::thread::sleep(Duration::from_micros(200));
        }
        self
    }

    fn processes(&self) -> Vec<u32> {
        match self {
            Self::Card(child, ..) => vec![child.id()],
            Self::Other(server) => server.processes(),
        }
    }

    /// The names of the sink, and of the source that has what is played.
    fn names(&self) -> (Option<&str>, &str) {
        if let Self::Card(..) = self { (None, "loopbox.mic") } else { (Some("A"), "A.monitor") }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Self::Card(child, ..) = self {
            let _ = (child.kill(), child.wait());
        }
    }
}

/// A number behind a word in a file of /proc.
fn proc_number(path: &str, word: &str) -> f64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(word));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

/// Times that threads of the processes went to sleep, and so were woken.
fn wakes(processes: &[u32]) -> f64 {
    let threads = processes.iter().flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten());
    threads
        .flatten()
        .map(|task| proc_number(&task.path().join("status").display().to_string(), "voluntary_ctxt_switches:"))
        .sum()
}

/// Processor seconds of the processes, by the scheduler's own count.
fn processor_seconds(processes: &[u32]) -> f64 {
    let threads = processes.iter().flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten());
    let nanos = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split_whitespace().next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or(0.0)
    };
    threads.flatten().map(nanos).sum::<f64>() / 1e9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The frame that a sample was: numbers up to 2^22 fit into an `f32` exactly, and 0 is silence.
fn number(sample: f32) -> u64 {
    (f64::from(sample) * f64::from(1 << 23)) as u64
}

fn numbered(frame: u64) -> f32 {
    (frame % (1 << 22) + 1) as f32 / (1 << 23) as f32
}

/// What a stream of numbered frames says of a server.
struct Streamed {
    latency: f64,
    ppm: f64,
    gaps: f64,
    processor: f64,
}

impl Streamed {
    fn measure(peer: &Peer) -> Self {
        let (sink, source) = peer.names();
        let processes = peer.processes();
        let before = processor_seconds(&processes);
        let session =
            Session { address: peer.address(), sink, sources: &[source], latency_micros: ASKED_MICROS, time: STREAM };
        let log = session.run(numbered);
        let processor = (processor_seconds(&processes) - before) / STREAM.as_secs_f64();
        let heard = &log.heard[0];
        let begin = heard[0].0 + SETTLE;
        let mut latencies = Vec::new();
        let (mut gaps, mut last, mut frames) = (0.0, None, 0u64);
        let mut counts = Vec::new();
        for (at, samples) in heard {
            frames += samples.len() as u64;
            if *at < begin {
                continue;
            }
            counts.push((at.duration_since(begin).as_secs_f64(), frames as f64));
            for sample in samples {
                let now = number(*sample);
                gaps += f64::from(last.is_some_and(|last| now != last + 1));
                last = Some(now);
            }
            if let Some(frame) = last.and_then(|last| last.checked_sub(1)) {
                let block = log.written.partition_point(|(_, first)| *first <= frame);
                latencies.push(at.duration_since(log.written[block - 1].0).as_secs_f64());
            }
        }
        // The slope of frames over time, by least squares.
        let count = counts.len() as f64;
        let (time, frame) = counts.iter().fold((0.0, 0.0), |sum, (t, f)| (sum.0 + t / count, sum.1 + f / count));
        let over: f64 = counts.iter().map(|(t, f)| (t - time) * (f - frame)).sum();
        let under: f64 = counts.iter().map(|(t, _)| (t - time).powi(2)).sum();
        let ppm = (over / under / f64::from(SPEC.rate) - 1.0).abs() * 1e6;
        Self { latency: (median(latencies) - ASKED_MICROS as f64 * 1e-6).abs(), ppm, gaps, processor }
    }
}

/// Rows of what is measured at once, a score a contender.
fn rows_of(names: &[(&str, Unit, Option<f64>)], contenders: &[(&str, Vec<Vec<f64>>)]) -> Vec<Row> {
    let row = |(at, (name, unit, aim)): (usize, &(&str, Unit, Option<f64>))| {
        eprintln!("  {name}");
        let score = |(contender, rounds): &(&str, Vec<Vec<f64>>)| {
            let rounds: Vec<f64> = rounds.iter().map(|round| round[at]).filter(|value| value.is_finite()).collect();
            let score = Score { name: (*contender).to_owned(), rounds };
            eprintln!("    {:24} {}", score.name, unit.shown(score.median()));
            score
        };
        let scores = contenders.iter().map(score).filter(|score| !score.rounds.is_empty()).collect();
        Row { name: (*name).to_owned(), unit: *unit, scores, goal: None, aim: *aim }.recorded()
    };
    names.iter().enumerate().map(row).collect()
}

/// All rows of this group.
pub fn rows(program: &Path) -> Vec<Row> {
    let program = program.canonicalize().unwrap();
    let mut rows = vec![
        Contest::new("a sound server from start to the first connection", Unit::Time)
            .timed("loopbox", || drop(Peer::card(&program, &[]).wait()))
            .value("PulseAudio", || Server::pulseaudio().ready.as_secs_f64())
            .value("PipeWire, four processes", || Server::pipewire().ready.as_secs_f64())
            .aim(0.005)
            .run(5),
    ];
    let start: [(&str, &dyn Fn() -> Peer); 3] = [
        ("loopbox", &|| Peer::card(&program, &[]).wait()),
        ("PulseAudio", &|| Peer::Other(Server::pulseaudio())),
        ("PipeWire, four processes", &|| Peer::Other(Server::pipewire())),
    ];
    let measured = start.map(|(name, start)| {
        let peer = start();
        std::thread::sleep(Duration::from_secs(1));
        let processes = peer.processes();
        let before = wakes(&processes);
        std::thread::sleep(IDLE);
        let wakes = (wakes(&processes) - before) / IDLE.as_secs_f64();
        let memory = processes.iter().map(|pid| proc_number(&format!("/proc/{pid}/smaps_rollup"), "Pss:")).sum::<f64>();
        let rounds = (0..2).map(|_| {
            let streamed = Streamed::measure(&peer);
            vec![memory * 1024.0, wakes, streamed.latency, streamed.ppm, streamed.processor, streamed.gaps]
        });
        (name, rounds.collect::<Vec<_>>())
    });
    let names = [
        ("memory of an idle sound server (shared parts by share)", Unit::Bytes, Some(1.5e6)),
        ("wake-ups of an idle sound server", Unit::PerSecond, Some(0.0)),
        ("from a write to its recording: how far from the 20 ms asked for", Unit::Time, Some(0.000_5)),
        ("error of the clock, over 10 s", Unit::PartsPerMillion, Some(5.0)),
        ("processor time for a second of a stream both ways at 20 ms", Unit::Time, None),
        ("gaps in 10 s of such a stream", Unit::Count, Some(0.0)),
    ];
    rows.extend(rows_of(&names, &measured));
    rows.push(free_clock(&program));
    rows.extend(loops(&program));
    rows
}

/// Ten minutes by paplay.
fn free_clock(program: &Path) -> Row {
    let scratch = Scratch::new("bench-free");
    let seconds = 600;
    std::fs::write(scratch.join("in.raw"), rig::noise(seconds * 48_000 * 4)).unwrap();
    let card = Peer::card(program, &["clock=free"]).wait();
    let play = || {
        let mut command = Command::new("paplay");
        command.args(["--raw", "--rate=48000"]).arg(scratch.join("in.raw"));
        rig::run_command(command.env("PULSE_SERVER", card.address()));
    };
    Contest::new("paplay of ten minutes by the free clock", Unit::Time)
        .timed("loopbox", play)
        .aim(seconds as f64 / 500.0)
        .run(3)
}

/// The loops from sink A to sink B of a server.
fn loops(program: &Path) -> Vec<Row> {
    let pulse = Server::pulseaudio();
    let pipewire = Server::pipewire();
    let ours = |server: &Server, millis: &str| {
        let mut command = server.command(program.to_str().unwrap());
        command.args(["sound", "loop", "--source", "A.monitor", "--sink", "B", "--latency", millis]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        child
    };
    let module = |latency: &str| {
        let words = ["load-module", "module-loopback", "source=A.monitor", "sink=B", latency];
        pulse.pactl(&words).trim().to_owned()
    };
    let pw_loopback = || {
        let mut command = pipewire.command("pw-loopback");
        command.args(["--capture-props={ stream.capture.sink=true target.object=A }"]);
        command.args(["--playback-props={ target.object=B }"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut found: Vec<(&str, Vec<Vec<f64>>)> = Vec::new();
    for (name, server) in [
        ("loopbox, PulseAudio", &pulse),
        ("module-loopback", &pulse),
        ("loopbox, PipeWire", &pipewire),
        ("pw-loopback", &pipewire),
    ] {
        let mut running = None;
        let mut loaded = None;
        match name {
            "module-loopback" => loaded = Some(module("latency_msec=20")),
            "pw-loopback" => running = Some(pw_loopback()),
            _ => running = Some(ours(server, "20ms")),
        }
        std::thread::sleep(Duration::from_secs(2));
        let session = |time, sources| {
            let session = Session { address: server.address(), sink: Some("A"), sources, latency_micros: 50_000, time };
            move |signal: fn(u64) -> f32| session.run(signal)
        };
        let clicks = session(Duration::from_secs(5), &["A.monitor", "B.monitor"])(|frame| {
            if frame % CLICK_PERIOD < CLICK { 0.5 } else { 0.0 }
        });
        let tone = session(Duration::from_secs(6), &["B.monitor"])(|frame| {
            ((frame as f64 * HERTZ / f64::from(SPEC.rate)).fract() * std::f64::consts::TAU).sin() as f32 * 0.5
        });
        found.push((name, vec![vec![added(&clicks), noise(&tone)]]));
        if let Some(mut child) = running {
            let _ = (child.kill(), child.wait());
        }
        if let Some(module) = loaded {
            pulse.pactl(&["unload-module", &module]);
        }
    }
    let names = [
        ("a loop between two null sinks, 20 ms asked for: latency added", Unit::Time, None),
        ("a tone through it: all else, below the tone", Unit::Decibel, None),
    ];
    rows_of(&names, &found)
}

/// Seconds from a click at the first source to the same at the second.
fn added(log: &Log) -> f64 {
    let clicks = |heard: &Vec<(Instant, Vec<f32>)>| {
        let (mut times, mut quiet) = (Vec::new(), 0);
        for (at, samples) in heard {
            for (place, sample) in samples.iter().enumerate() {
                if *sample > 0.25 && quiet > 2 * CLICK {
                    let behind = (samples.len() - place) as f64 / f64::from(SPEC.rate);
                    times.push(*at - Duration::from_secs_f64(behind));
                }
                quiet = if *sample > 0.25 { 0 } else { quiet + 1 };
            }
        }
        times
    };
    let (first, second) = (clicks(&log.heard[0]), clicks(&log.heard[1]));
    let next =
        |at: &Instant| second.iter().find(|later| *later > at).map(|later| later.duration_since(*at).as_secs_f64());
    median(first.iter().filter_map(next).collect())
}

/// The tone over everything else in dB: the median of pieces of half a second, each with the frequency that suits best.
fn noise(log: &Log) -> f64 {
    let samples: Vec<f64> =
        log.heard[0].iter().flat_map(|(_, samples)| samples).map(|sample| f64::from(*sample)).collect();
    let piece = SPEC.rate as usize / 2;
    let pieces = samples
        .chunks_exact(piece)
        .filter(|piece| piece.iter().filter(|x| x.abs() > 0.01).count() > piece.len() * 9 / 10);
    median(
        pieces
            .skip(2)
            .map(|piece| {
                let (mut low, mut high) = (HERTZ * 0.998, HERTZ * 1.002);
                for _ in 0..40 {
                    let (a, b) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
                    if rest(piece, a) < rest(piece, b) { high = b } else { low = a }
                }
                let all: f64 = piece.iter().map(|x| x * x).sum();
                let rest = rest(piece, f64::midpoint(low, high));
                10.0 * ((all - rest) / rest.max(1e-12)).log10()
            })
            .collect(),
    )
}

/// What is left of the squares without a tone of that frequency.
fn rest(samples: &[f64], hertz: f64) -> f64 {
    let (mut ss, mut sc, mut cc, mut xs, mut xc, mut xx) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    for (n, x) in samples.iter().enumerate() {
        let (s, c) = (n as f64 * hertz / f64::from(SPEC.rate) * std::f64::consts::TAU).sin_cos();
        ss += s * s;
        sc += s * c;
        cc += c * c;
        xs += x * s;
        xc += x * c;
        xx += x * x;
    }
    let determinant = ss * cc - sc * sc;
    let (a, b) = ((xs * cc - xc * sc) / determinant, (xc * ss - xs * sc) / determinant);
    xx - a * xs - b * xc
}
