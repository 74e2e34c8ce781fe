//! Browsers in `loopbox run --sound`, as an ordinary user: a page plays a tone by WebAudio and hears it through
//! `getUserMedia`, which takes the default microphone. Nothing is said to the browsers about sound.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rig::{User, requires};

use crate::session::Session;

/// Serves the page, and passes on what it tells.
fn serve() -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (sender, told) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || answer(&stream, &sender));
        }
    });
    (url, told)
}

/// Answers one request, if one comes: browsers also connect without one.
fn answer(mut stream: &TcpStream, sender: &Sender<String>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    while reader.read_line(&mut head).ok()? > 2 {
        let line = head.lines().next_back()?.to_ascii_lowercase();
        length = line.strip_prefix("content-length:").map_or(length, |number| number.trim().parse().unwrap());
    }
    let page = include_str!("sound_page.html");
    let body = if head.starts_with("GET / ") { page } else { "" };
    if head.starts_with("POST") {
        let mut text = vec![0; length];
        reader.read_exact(&mut text).ok()?;
        sender.send(String::from_utf8_lossy(&text).into_owned()).ok()?;
    }
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .ok()
}

/// The run, ended with the browser in it when it is dropped.
struct Run(Child);

impl Run {
    fn end(&mut self) {
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.end();
    }
}

/// Lets a browser open the page: it must hear the tone, and so must the WAV file.
fn hears_itself(session: &Session, browser: &str, words: &[&str]) {
    let (url, told) = serve();
    let wav = session.join("out.wav");
    let mut command = session.loopbox();
    command.args(["run", "--net", "host", "--sound"]).arg(&wav).args(["--", browser]).args(words).arg(&url);
    command.env("HOME", session.join("")).stdout(Stdio::null());
    command.stderr(std::fs::File::create(session.join("log")).unwrap());
    let mut run = Run(command.spawn().unwrap());
    let start = Instant::now();
    let mut last = String::new();
    loop {
        let log = || std::fs::read_to_string(session.join("log")).unwrap_or_default();
        assert!(start.elapsed() < Duration::from_secs(150), "it heard: {last}\n{}", log());
        assert!(run.0.try_wait().unwrap().is_none(), "it ended: {last}\n{}", log());
        let Ok(text) = told.recv_timeout(Duration::from_millis(100)) else { continue };
        assert!(!text.starts_with("error"), "{text}");
        let value = |name| text.split_whitespace().skip_while(|word| *word != name).nth(1).unwrap().parse::<f64>();
        let (hertz, peak) = (value("tone").unwrap_or(f64::NAN), value("peak").unwrap());
        if (hertz - 997.0).abs() < 0.5 && (0.45..0.55).contains(&peak) {
            assert!(text.contains("from ") && text.contains("loopbox microphone"), "{text}");
            break;
        }
        last = text;
    }
    run.end();
    session.done([
        "sound",
        "check",
        wav.to_str().unwrap(),
        "--expect",
        "tone=997+-3, sound>0.5s, peak=-6+-0.5, rate=48000",
    ]);
}

#[test]
fn chromium_plays_a_tone_and_hears_it() {
    requires!("chromium");
    let session = Session::new(User::Ordinary, "sound-chromium");
    let profile = format!("--user-data-dir={}", session.join("profile").display());
    // Nobody is there to say that the page may play and listen.
    let words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", &profile];
    let allow = ["--use-fake-ui-for-media-stream", "--autoplay-policy=no-user-gesture-required"];
    hears_itself(&session, "chromium", &[&words[..], &allow].concat());
}

#[test]
fn firefox_plays_a_tone_and_hears_it() {
    requires!("firefox-esr");
    let session = Session::new(User::Ordinary, "sound-firefox");
    let profile = session.join("profile").display().to_string();
    let allow = "user_pref('media.navigator.permission.disabled', true); user_pref('media.autoplay.default', 0); \
                 user_pref('media.autoplay.blocking_policy', 0);";
    rig::run_command(session.command("mkdir").arg(&profile));
    std::fs::write(session.join("profile/user.js"), allow).unwrap();
    hears_itself(&session, "firefox-esr", &["--headless", "--no-remote", "--profile", &profile]);
}
