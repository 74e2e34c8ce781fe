//! `loopbox sound`: a card for programs of another process, as an ordinary user.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use rig::User;

use crate::session::Session;

/// A card in a process of its own.
struct Card {
    child: Child,
    environment: Vec<(String, String)>,
}

impl Card {
    fn start(session: &Session, wav: &str) -> Self {
        let mut command = session.loopbox();
        command.args(["sound", "card", "--listen"]).arg(session.join("socket"));
        command.arg("--wav").arg(format!("{}{wav}", session.join("out.wav").display()));
        command.arg("--environment").arg(session.join(""));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let environment: Vec<(String, String)> = lines
            .map(|line| line.unwrap().split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap())
            .take(5)
            .collect();
        assert_eq!(environment.first().map(|(name, _)| name.as_str()), Some("PULSE_SERVER"));
        Self { child, environment }
    }

    fn run(&self, session: &Session, program: &str, words: &[&str]) -> String {
        rig::run_command(session.command(program).args(words).envs(self.environment.iter().map(|(n, v)| (n, v))))
    }

    fn signal(&mut self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
        self.child.wait().unwrap();
    }
}

fn noise() -> Vec<u8> {
    (0..400_000u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8 | 1).collect()
}

/// The samples of a file whose header must be right.
fn samples(session: &Session) -> Vec<u8> {
    let file = std::fs::read(session.join("out.wav")).unwrap();
    let word = |at: usize| u32::from_le_bytes([file[at], file[at + 1], file[at + 2], file[at + 3]]) as usize;
    assert_eq!((&file[..4], &file[96..100]), (&b"RIFF"[..], &b"data"[..]));
    assert_eq!(word(4), word(100) + 96);
    file[104..104 + word(100)].to_vec()
}

#[test]
fn an_ordinary_users_programs_play_and_the_file_is_what_they_played() {
    rig::requires!("paplay", "aplay");
    let session = Session::new(User::Ordinary, "sound");
    std::fs::write(session.join("in.raw"), noise()).unwrap();
    let file = session.join("in.raw").to_str().unwrap().to_owned();
    let mut card = Card::start(&session, ",clock=free");
    card.run(&session, "paplay", &["--raw", "--rate=48000", &file]);
    card.run(&session, "aplay", &["-q", "-t", "raw", "-f", "S16_LE", "-r", "48000", "-c", "2", &file]);
    card.signal(rustix::process::Signal::TERM);
    assert!(!session.join("socket").exists());
    let samples = samples(&session);
    assert!(samples.starts_with(&noise()), "paplay");
    assert!(samples.get(400_000..).unwrap().starts_with(&noise()), "aplay");
}

#[test]
fn after_a_kill_the_header_is_right_and_the_socket_can_be_had_again() {
    rig::requires!("paplay");
    let session = Session::new(User::Ordinary, "sound");
    std::fs::write(session.join("in.raw"), noise()).unwrap();
    let mut card = Card::start(&session, "");
    let mut player = session.command("paplay");
    player.args(["--raw", "--rate=48000", "--latency-msec=50"]).arg(session.join("in.raw"));
    let mut player = player.envs(card.environment.iter().map(|(n, v)| (n, v))).spawn().unwrap();
    rig::wait_until("some samples", || session.join("out.wav").metadata().is_ok_and(|meta| meta.len() > 60_000));
    card.signal(rustix::process::Signal::KILL);
    player.wait().unwrap();
    let samples = samples(&session);
    assert!(samples.len() > 20_000 && noise().starts_with(&samples), "{} bytes", samples.len());
    let mut second = Card::start(&session, "");
    second.signal(rustix::process::Signal::TERM);
}

#[test]
fn run_gives_a_command_a_card_of_its_own() {
    rig::requires!("paplay", "aplay", "pactl");
    let session = Session::new(User::Ordinary, "sound");
    std::fs::write(session.join("in.raw"), noise()).unwrap();
    let file = session.join("in.raw").display().to_string();
    let wav = format!("{},clock=free", session.join("out.wav").display());
    let script = format!(
        "pactl info | grep -q 'Default Source: loopbox.mic' && paplay --raw --rate=48000 {file} && \
         aplay -q -t raw -f S16_LE -r 48000 -c 2 {file}; exit 7"
    );
    let output = session.output(["run", "--sound", &wav, "--", "sh", "-c", &script]);
    assert_eq!(output.status.code(), Some(7), "{}", rig::text(&output));
    let samples = samples(&session);
    assert!(samples.starts_with(&noise()), "paplay: {}", rig::text(&output));
    assert!(samples.get(400_000..).unwrap().starts_with(&noise()), "aplay: {}", rig::text(&output));
    let wav = session.join("out.wav").display().to_string();
    assert!(session.done(["sound", "check", &wav]).contains("s16le 2ch 48000Hz"));
    session.done(["sound", "check", &wav, "--expect", "length>4s, rate=48000, peak>-1"]);
    let output = session.output(["sound", "check", &wav, "--expect", "length>4s, sound<1s"]);
    assert_eq!((output.status.code(), rig::text(&output).lines().count()), (Some(1), 1), "{}", rig::text(&output));
    let plan = session.done(["run", "--dry-run", "--sound", "x.wav", "--", "true"]);
    assert!(plan.contains("set PULSE_SERVER=unix:"), "{plan}");
    assert!(session.fails(["run", "--sound", "x.wav,rate=1", "--", "true"]).contains("8000"));
}

#[test]
fn a_card_that_cannot_be_says_why() {
    let session = Session::new(User::Ordinary, "sound");
    let socket = session.join("socket").to_str().unwrap().to_owned();
    for (option, says) in [("rate=1", "8000"), ("clock=late", "free"), ("colour=red", "colour")] {
        let said = session.fails(["sound", "card", "--listen", &socket, "-o", option]);
        assert!(said.contains(says), "{said}");
    }
    let mut card = Card::start(&session, "");
    let said = session.fails(["sound", "card", "--listen", &socket]);
    assert!(said.contains("listens there already"), "{said}");
    card.signal(rustix::process::Signal::TERM);
}
