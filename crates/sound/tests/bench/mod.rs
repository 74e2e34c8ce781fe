//! A card with a WAV file, and programs at it.

#![allow(dead_code, reason = "each test takes what it needs")]

pub mod protocol;

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub use loopbox_sound as sound;
use rig::Scratch;
pub use rig::noise;
use sound::card::{Card, Environment, Options};
use sound::wav::Reader;

pub struct Bench {
    pub scratch: Scratch,
    card: Option<Card>,
    environment: Environment,
}

impl Bench {
    /// A card with options of a spec, and a WAV file.
    pub fn new(options: &str) -> Self {
        let scratch = Scratch::new("sound");
        let mut parsed = Options::default();
        let spec = format!("{},{options}", scratch.join("out.wav").display());
        let wav = parsed.parse(spec.trim_end_matches(',').as_ref()).unwrap();
        let card = Card::start(parsed, &scratch.join("socket"), Some(&wav)).unwrap();
        let environment = Card::environment(card.socket(), scratch.path()).unwrap();
        Self { scratch, card: Some(card), environment }
    }

    pub fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = rig::User::Myself.command(program);
        command
            .args(words)
            .env("HOME", self.scratch.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    pub fn run(&self, program: &str, words: &[&str]) -> String {
        rig::run_command(&mut self.command(program, words))
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.scratch.join(name), bytes).unwrap();
        self.scratch.join(name).to_str().unwrap().to_owned()
    }

    /// Ends the card: the samples of its WAV file, as stored.
    pub fn wav(&mut self) -> Vec<u8> {
        self.card.take().unwrap().stop().unwrap();
        stored(&self.scratch.join("out.wav"))
    }

    /// Starts a program that records, and waits until the card has its stream.
    pub fn recorder(&self, program: &str, words: &[&str]) -> Recorder {
        let mut child = self.command(program, words).stdout(Stdio::piped()).spawn().unwrap();
        rig::wait_until("the recorder's stream", || {
            !self.run("pactl", &["list", "short", "source-outputs"]).is_empty()
        });
        let output = child.stdout.take().unwrap();
        Recorder { child, output }
    }
}

pub struct Recorder {
    child: Child,
    output: std::process::ChildStdout,
}

impl Recorder {
    /// Reads until it has heard `bytes` bytes from the first that is not silence.
    pub fn heard(mut self, bytes: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        let mut block = [0; 4096];
        let start = std::time::Instant::now();
        while heard.len() < bytes {
            assert!(start.elapsed().as_secs() < 20, "heard {} of {bytes} bytes in 20 s", heard.len());
            let length = self.output.read(&mut block).unwrap();
            assert!(length > 0, "the recorder ended after {} bytes", heard.len());
            let from = if heard.is_empty() { block[..length].iter().position(|byte| *byte != 0) } else { Some(0) };
            // Whole frames of 4 bytes: the first samples are not 0 in their low byte.
            heard.extend_from_slice(&block[from.unwrap_or(length)..length]);
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        heard.truncate(bytes);
        heard
    }
}

pub fn stored(path: &Path) -> Vec<u8> {
    let mut reader = Reader::open(path).unwrap();
    let mut samples = Vec::new();
    reader.read(usize::MAX >> 8, &mut samples).unwrap();
    let mut bytes = Vec::new();
    reader.spec().format.encode(&samples, &mut bytes);
    bytes
}

/// Noise in `f32`, below full scale.
pub fn float_noise(samples: usize) -> Vec<u8> {
    noise(samples * 4)
        .chunks(4)
        .flat_map(|b| (i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32 / 3e9).to_le_bytes())
        .collect()
}

pub fn same(left: &[u8], right: &[u8]) {
    assert_eq!(left.len(), right.len(), "bytes");
    if let Some(at) = left.iter().zip(right).position(|(a, b)| a != b) {
        panic!("they differ from byte {at} on");
    }
}
