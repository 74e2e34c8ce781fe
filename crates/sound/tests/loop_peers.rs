//! The loop between real sound servers: our own card and PulseAudio.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use loopbox_sound as sound;
use rig::Scratch;
use rig::sound::Server;
use sound::card::{Card, Options};
use sound::loopback::{Loop, State, Status, Wishes};

/// A loop on a thread; it ends when this is dropped.
struct Looping {
    stop: OwnedFd,
    thread: Option<std::thread::JoinHandle<sound::Result<()>>>,
    reports: Receiver<Status>,
}

impl Looping {
    fn start(wishes: &Wishes) -> Self {
        let running = Loop::connect(wishes).unwrap();
        let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let stopped = stop.try_clone().unwrap();
        let (sender, reports) = std::sync::mpsc::channel();
        let thread =
            std::thread::spawn(move || running.run(stopped.as_fd(), |status| drop(sender.send(status.clone()))));
        Self { stop, thread: Some(thread), reports }
    }

    /// Waits until it reports what is wanted, which it returns.
    fn until(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let mut last = None;
        for _ in 0..400 {
            let status =
                self.reports.recv_timeout(Duration::from_secs(5)).unwrap_or_else(|_| panic!("{what}: {last:?}"));
            if wanted(&status) {
                return status;
            }
            last = Some(status);
        }
        panic!("{what}: {last:?}");
    }

    /// Waits until nothing has been heard for a second.
    fn quiet(&self) -> Status {
        let _ = self.reports.try_iter().count();
        let silent = std::cell::Cell::new(0);
        self.until("the end", |status| {
            silent.set(if status.levels.iter().all(|level| level.peak == 0.0) { silent.get() + 1 } else { 0 });
            silent.get() == 10
        })
    }

    fn end(mut self) -> sound::Result<()> {
        rustix::io::write(&self.stop, &1u64.to_ne_bytes()).unwrap();
        self.thread.take().unwrap().join().unwrap()
    }
}

fn card(scratch: &Scratch, name: &str, options: &str) -> (Card, String, PathBuf) {
    let mut parsed = Options::default();
    let wav = scratch.join(format!("{name}.wav"));
    let spec = format!("{},{options}", wav.display());
    parsed.parse(spec.trim_end_matches(',').as_ref()).unwrap();
    let card = Card::start(parsed, &scratch.join(name), Some(&wav)).unwrap();
    let address = format!("unix:{}", card.socket().display());
    (card, address, wav)
}

fn run(server: &str, program: &str, words: &[&str]) -> String {
    rig::run_command(Command::new(program).args(words).env("PULSE_SERVER", server))
}

fn samples(path: &Path) -> Vec<f64> {
    let mut reader = sound::wav::Reader::open(path).unwrap();
    let mut samples = Vec::new();
    reader.read(reader.frames() as usize, &mut samples).unwrap();
    samples
}

fn wishes(from: &str, to: &str, source: &str, sink: &str, millis: u64) -> Wishes {
    Wishes {
        source_server: Some(from.to_owned()),
        sink_server: Some(to.to_owned()),
        source: Some(source.to_owned()),
        sink: Some(sink.to_owned()),
        latency: Duration::from_millis(millis),
        wav: None,
    }
}

#[test]
fn two_cards_of_one_clock_every_sample_is_a_copy() {
    rig::requires!("paplay");
    let scratch = Scratch::new("loop");
    let (from, from_server, _) = card(&scratch, "from", "format=s16");
    let (to, to_server, heard) = card(&scratch, "to", "format=s16");
    let mut wanted = wishes(&from_server, &to_server, "loopbox.monitor", "loopbox", 400);
    wanted.wav = Some(scratch.join("loop.wav"));
    let looping = Looping::start(&wanted);
    looping.until("the clocks", |status| status.state == State::Copying);
    let bytes = rig::noise(2 * 48_000 * 4);
    std::fs::write(scratch.join("in.raw"), &bytes).unwrap();
    let file = scratch.join("in.raw");
    let format = ["--raw", "--format=s16le", "--rate=48000", "--channels=2"];
    run(&from_server, "paplay", &[&format[..], &["--latency-msec=1000", file.to_str().unwrap()]].concat());
    let status = looping.quiet();
    assert_eq!((status.state, status.gaps, status.cuts), (State::Copying, 0, 0));
    looping.end().unwrap();
    to.stop().unwrap();
    from.stop().unwrap();
    let mut expected = Vec::new();
    sound::pcm::Format::S16le.decode(&bytes, &mut expected);
    let heard = samples(&heard);
    let first = heard.iter().position(|sample| *sample != 0.0).unwrap() / 2 * 2;
    let differs = heard[first..].iter().zip(&expected).position(|(left, right)| left != right);
    assert_eq!((differs, heard.len() - first >= expected.len()), (None, true), "of {} samples", expected.len());
}

#[test]
fn a_card_that_drifts_is_followed() {
    rig::requires!("paplay");
    let scratch = Scratch::new("loop");
    let (from, from_server, _) = card(&scratch, "from", "drift=+200ppm");
    let (to, to_server, heard) = card(&scratch, "to", "format=f32,drift=-100ppm");
    let looping = Looping::start(&wishes(&from_server, &to_server, "loopbox.monitor", "loopbox", 400));
    let tone: Vec<u8> = (0..48_000 * 12u32)
        .flat_map(|n| {
            (((f64::from(n) * std::f64::consts::TAU * 997.0 / 48_000.0).sin() * 16_000.0) as i16).to_le_bytes()
        })
        .collect();
    std::fs::write(scratch.join("in.raw"), tone).unwrap();
    let file = scratch.join("in.raw");
    run(&from_server, "paplay", &["--raw", "--format=s16le", "--rate=48000", "--channels=1", file.to_str().unwrap()]);
    let follows = |status: &Status| matches!(status.state, State::Following(ratio) if (ratio - 1.0003).abs() < 50e-6);
    let status = looping.until("the drift", follows);
    println!("{status:?}");
    looping.end().unwrap();
    to.stop().unwrap();
    from.stop().unwrap();
    let measure = sound::check::measure(&heard).unwrap();
    println!("{measure:?}");
    assert!((measure.tone_hertz / (997.0 * 1.0003) - 1.0).abs() < 100e-6);
}

#[test]
fn from_one_null_sink_of_pulseaudio_to_another() {
    rig::requires!("pulseaudio", "pactl", "pacat", "parec");
    carries_a_tone(&Server::pulseaudio(), 3.0);
}

#[test]
fn from_one_null_sink_of_pipewire_to_another() {
    rig::requires!("dbus-daemon", "pipewire", "wireplumber", "pipewire-pulse", "pactl", "pacat", "parec");
    // Its sinks tick late on a busy machine, which the loop makes good by cuts.
    carries_a_tone(&Server::pipewire(), 15.0);
}

/// Loops from one sink of a server to the other, plays a tone to the first, and records what the second plays.
fn carries_a_tone(server: &Server, hertz: f64) {
    let listed = sound::loopback::list(Some(server.address())).unwrap();
    assert_eq!(listed.sinks.iter().map(|sink| sink.name.as_str()).collect::<Vec<_>>(), ["A", "B"]);
    assert_eq!(listed.sources.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["A.monitor", "B.monitor"]);
    let scratch = Scratch::new("loop");
    let mut wanted = wishes(server.address(), server.address(), "A.monitor", "B", 400);
    wanted.wav = Some(scratch.join("loop.wav"));
    let looping = Looping::start(&wanted);
    looping.until("the clocks", |status| status.state != State::Acquiring);
    // A second of silence before: a stream that begins makes PulseAudio's sink go back, which its monitor does not.
    let tone: Vec<u8> = (0..48_000 * 9u32)
        .flat_map(|n| {
            let n = n.saturating_sub(48_000);
            let sample = ((f64::from(n) * std::f64::consts::TAU * 997.0 / 48_000.0).sin() * 0.5) as f32;
            [sample; 2].into_iter().flat_map(f32::to_le_bytes)
        })
        .collect();
    std::fs::write(scratch.join("in.raw"), tone).unwrap();
    let format = ["--raw", "--format=float32le", "--rate=48000", "--channels=2"];
    let mut recorder = Command::new("parec");
    recorder.args(format).args(["-d", "B.monitor", "--latency-msec=50"]).env("PULSE_SERVER", server.address());
    let mut recorder = recorder.stdout(Stdio::piped()).spawn().unwrap();
    let mut output = recorder.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let file = scratch.join("in.raw");
    run(server.address(), "pacat", &[&format[..], &["-p", "-d", "A", file.to_str().unwrap()]].concat());
    let status = looping.quiet();
    println!("{status:?}");
    looping.end().unwrap();
    recorder.kill().unwrap();
    recorder.wait().unwrap();
    // What B was heard to play is the tone, without a hole.
    let mut heard = Vec::new();
    sound::pcm::Format::F32le.decode(&reader.join().unwrap(), &mut heard);
    let spec = sound::pcm::Spec { format: sound::pcm::Format::F32le, channels: 2, rate: 48_000 };
    let mut writer = sound::wav::Writer::create(&scratch.join("heard.wav"), spec, &sound::pcm::default_map(2)).unwrap();
    let mut bytes = Vec::new();
    spec.format.encode(&heard, &mut bytes);
    writer.write(&bytes).unwrap();
    let measures = ["loop.wav", "heard.wav"].map(|file| sound::check::measure(&scratch.join(file)).unwrap());
    println!("{measures:?}");
    for measure in measures {
        assert!(measure.sound_seconds > 7.8 && (measure.tone_hertz - 997.0).abs() < hertz);
        assert_eq!(measure.gaps, 0);
    }
}

#[test]
fn what_is_not_there_is_said() {
    let scratch = Scratch::new("loop");
    let (card, server, _) = card(&scratch, "card", "");
    let error = Loop::connect(&wishes(&server, &server, "nobody", "loopbox", 20)).unwrap_err();
    assert_eq!(error.kind(), sound::Kind::NotFound);
    assert!(error.to_string().contains("nobody"), "{error}");
    let looping = Looping::start(&wishes(&server, &server, "loopbox.mic", "loopbox", 20));
    card.stop().unwrap();
    let error = looping.thread.as_ref().map(|_| ()).map(|()| looping.end().unwrap_err()).unwrap();
    assert_eq!(error.kind(), sound::Kind::Disconnected, "{error}");
    assert!(Loop::connect(&wishes(&server, &server, "loopbox.mic", "loopbox", 20)).is_err());
}
