//! `loopbox sound`: a card for programs of another process, as an ordinary user.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use rig::User;

use crate::session::Session;

/// A card in a process of its own.
pub struct Card {
    child: Child,
    environment: Vec<(String, String)>,
}

impl Card {
    /// Starts it; `wav` are the options behind the name of its file.
    pub fn start(session: &Session, wav: &str) -> Self {
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

    /// Runs a program at it.
    pub fn run(&self, session: &Session, program: &str, words: &[&str]) -> String {
        rig::run_command(session.command(program).args(words).envs(self.environment.iter().map(|(n, v)| (n, v))))
    }

    /// Ends it by a signal.
    pub fn signal(&mut self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
        self.child.wait().unwrap();
    }
}

fn noise() -> Vec<u8> {
    rig::noise(400_000)
}

fn samples(session: &Session) -> Vec<u8> {
    samples_of(session, "out.wav")
}

/// The samples of a file whose header must be right.
pub fn samples_of(session: &Session, name: &str) -> Vec<u8> {
    let file = std::fs::read(session.join(name)).unwrap();
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
    let picture = session.join("out.svg").display().to_string();
    session.done(["sound", "check", &wav, "--expect", "lufs>-3", "--plot", &picture]);
    assert!(std::fs::read_to_string(&picture).unwrap().starts_with("<svg"));
    let output = session.output(["sound", "check", &wav, "--expect", "length>4s, sound<1s"]);
    assert_eq!((output.status.code(), rig::text(&output).lines().count()), (Some(1), 1), "{}", rig::text(&output));
    let plan = session.done(["run", "--dry-run", "--sound", "x.wav", "--", "true"]);
    assert!(plan.contains("set PULSE_SERVER=unix:"), "{plan}");
    assert!(session.fails(["run", "--sound", "x.wav,rate=1", "--", "true"]).contains("8000"));
}

#[test]
fn a_fifo_is_made_for_the_cards_own_user_and_goes_with_it() {
    use std::io::Read as _;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    rig::requires!("pactl", "parec");
    let session = Session::new(User::Ordinary, "sound");
    std::fs::write(session.join("in.raw"), noise()).unwrap();
    let mut card = Card::start(&session, ",clock=x4");
    let words = |name: &str| format!("file={} source_name={name} rate=48000 channels=2", session.join(name).display());
    card.run(&session, "pactl", &["load-module", "module-pipe-source", &words("fifo")]);
    let made = session.join("fifo").symlink_metadata().unwrap();
    assert!(made.file_type().is_fifo() && made.mode() & 0o777 == 0o600, "{:o}", made.mode());
    if rig::is_root() {
        // Root's program reaches the card, and gets nothing made.
        let mut other = rig::User::Myself.command("pactl");
        other.args(["load-module", "module-pipe-source", &words("root")]);
        let output = rig::output(other.envs(card.environment.iter().map(|(n, v)| (n, v))));
        assert!(!output.status.success() && !session.join("root").exists(), "{}", rig::text(&output));
    }
    let mut recorder = session.command("parec");
    recorder.args(["--raw", "--format=s16le", "--rate=48000", "--channels=2", "-d", "fifo", "--latency-msec=20"]);
    let recorder = recorder.envs(card.environment.iter().map(|(n, v)| (n, v))).stdout(Stdio::piped());
    let mut recorder = recorder.spawn().unwrap();
    let script = format!("cat {} > {}", session.join("in.raw").display(), session.join("fifo").display());
    card.run(&session, "sh", &["-c", &script]);
    let (mut heard, mut block) = (Vec::new(), [0; 4096]);
    let mut output = recorder.stdout.take().unwrap();
    while heard.len() < noise().len() {
        let length = output.read(&mut block).unwrap();
        let block = block.get(..length).unwrap();
        let first = block.iter().position(|byte| *byte != 0).unwrap_or(length);
        heard.extend_from_slice(if heard.is_empty() { &block[first / 4 * 4..] } else { block });
    }
    recorder.kill().unwrap();
    recorder.wait().unwrap();
    assert!(heard.starts_with(&noise()));
    card.signal(rustix::process::Signal::TERM);
    assert!(!session.join("fifo").exists());
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

#[test]
fn the_loop_runs_between_two_cards_shows_levels_and_ends_by_a_signal() {
    let session = Session::new(User::Ordinary, "sound");
    let mut card = Card::start(&session, ",mic=tone");
    let server = card.environment[0].1.clone();
    let listed = session.done(["sound", "list", "--server", &server]);
    assert!(
        listed.contains("loopbox.mic") && listed.contains("default") && listed.contains("s16le 2ch 48000Hz"),
        "{listed}"
    );
    let json = session.done(["sound", "list", "--server", &server, "--json"]);
    assert!(json.contains(r#""name": "loopbox.monitor""#) || json.contains(r#""name":"loopbox.monitor""#), "{json}");
    let said = session.fails(["sound", "loop", "--server", &server, "--source", "nobody"]);
    assert!(said.contains("nobody") && said.contains("sound list"), "{said}");
    assert!(rig::text(&session.output(["sound", "loop", "--latency", "1h"])).contains("20ms"));
    assert!(session.fails(["sound", "list", "--server", "tcp:host"]).contains("unix"));
    let mut command = session.loopbox();
    command.args(["sound", "loop", "--server", &server, "--latency", "200ms", "--meter", "--wav"]);
    let mut looping = command.arg(session.join("loop.wav")).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(looping.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().is_some_and(|line| line.starts_with("loopbox.mic -> loopbox, ")));
    let level = lines.find(|line| line.contains("-20.0 dB") && line.contains("copying"));
    assert!(level.is_some_and(|line| line.contains("ms")));
    let id = rustix::process::Pid::from_child(&looping);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    assert!(looping.wait().unwrap().success());
    assert!(lines.last().is_some_and(|line| line.contains("gaps")));
    card.signal(rustix::process::Signal::TERM);
    session.done([
        "sound",
        "check",
        session.join("loop.wav").to_str().unwrap(),
        "--expect",
        "tone=997, sound>0.1s, peak<-19",
    ]);
}

#[test]
fn a_microphone_that_is_a_file_and_gaps_that_are_asked_for() {
    rig::requires!("paplay", "parec");
    let session = Session::new(User::Ordinary, "sound");
    std::fs::write(session.join("in.raw"), noise()).unwrap();
    let mut first = Card::start(&session, ",clock=free");
    first.run(&session, "paplay", &["--raw", "--rate=48000", session.join("in.raw").to_str().unwrap()]);
    first.signal(rustix::process::Signal::TERM);
    std::fs::rename(session.join("out.wav"), session.join("mic.wav")).unwrap();
    let mut second =
        Card::start(&session, &format!(",gap=20ms/1s,clock=free,mic={}", session.join("mic.wav").display()));
    let mut recorder = session.command("parec");
    recorder.args(["--raw", "--rate=48000", "--channels=2", "--format=s16le"]);
    let mut recorder =
        recorder.envs(second.environment.iter().map(|(n, v)| (n, v))).stdout(Stdio::piped()).spawn().unwrap();
    let mut heard = vec![0; 100_000];
    std::io::Read::read_exact(&mut recorder.stdout.take().unwrap(), &mut heard).unwrap();
    recorder.kill().unwrap();
    recorder.wait().unwrap();
    assert!(noise().starts_with(&heard), "the microphone is the file from its beginning");
    second.run(&session, "paplay", &["--raw", "--rate=48000", session.join("in.raw").to_str().unwrap()]);
    second.signal(rustix::process::Signal::TERM);
    let samples = samples(&session);
    let silent = samples.as_chunks::<4>().0.iter().filter(|frame| **frame == [0; 4]).count();
    assert!((1920..=2880).contains(&silent), "{silent} silent frames of two seconds");
    let wav = session.join("out.wav").display().to_string();
    assert!(session.fails(["run", "--sound", "x.wav,mic=/nowhere.wav", "--", "true"]).contains("nowhere"));
    assert_eq!(session.output(["sound", "check", &wav, "--expect", "gaps=0"]).status.code(), Some(1));
}

#[test]
fn a_folder_has_a_file_for_each_program_and_their_sum() {
    rig::requires!("paplay");
    let session = Session::new(User::Ordinary, "sound");
    // Quiet enough that the sum is no more than full scale.
    let quiet = |step: u64| -> Vec<u8> {
        let sample = |n: u64| ((n.wrapping_mul(step) >> 33) as i16 >> 2) | 1;
        (0..100_000).flat_map(|n| sample(n).to_le_bytes()).collect()
    };
    let (one, two) = (quiet(0x9e37_79b9_7f4a_7c15), quiet(0x2545_f491_4f6c_dd1d));
    std::fs::write(session.join("one.raw"), &one).unwrap();
    std::fs::write(session.join("two.raw"), &two).unwrap();
    let play = |name: &str| {
        format!("paplay --raw --rate=48000 --client-name={name} {}", session.join(format!("{name}.raw")).display())
    };
    let script = format!("{} & {} & wait; {}", play("one"), play("two"), play("one"));
    let folder = format!("{}/,clock=free", session.join("sound").display());
    session.done(["run", "--sound", &folder, "--", "sh", "-c", &script]);
    let files = ["mix", "one", "two", "one-2"].map(|name| samples_of(&session, &format!("sound/{name}.wav")));
    let sample = |file: &Vec<u8>, n: usize| file.get(2 * n..2 * n + 2).map_or(0, |b| i16::from_le_bytes([b[0], b[1]]));
    for n in 0..files[0].len() / 2 {
        assert_eq!(sample(&files[0], n), files[1..].iter().map(|file| sample(file, n)).sum::<i16>(), "sample {n}");
    }
    assert!(files[1].ends_with(&one) && files[2].ends_with(&two) && files[3].ends_with(&one));
    let events = std::fs::read_to_string(session.join("sound/events.jsonl")).unwrap();
    for (event, count) in [("created", 3), ("started", 3), ("drained", 3), ("removed", 3), ("underrun", 0)] {
        assert_eq!(events.matches(&format!(r#""event":"{event}""#)).count(), count, "{event} in:\n{events}");
    }
    assert!(events.contains(r#""application":"two""#) && events.contains(r#""file":"one-2.wav""#), "{events}");
}
