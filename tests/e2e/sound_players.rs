//! Players and frameworks that nobody here wrote: each by root and by an ordinary user at a card of another process, and
//! in `run` with a user namespace of its own; every sample is compared.

use std::path::{Path, PathBuf};

use rig::{User, requires};

use crate::session::Session;
use crate::sound::{Card, samples_of};

/// A second of noise, in frames that no block divides.
const BYTES: usize = (48_000 + 7) * 4;

/// How a player comes to the card.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// By the variables that `sound card` prints.
    Environment(User),
    /// In `run`.
    Run,
}

/// Plays a second through a program in all ways and with the clocks given, and compares what the card has written.
///
/// A quarter of a second of silence is behind it: ffplay and PortAudio end without a drain, and what they have written
/// ahead, some 20 and 50 ms, is then never heard when time is real. A little is before it: GStreamer clips a frame when its
/// clock comes a moment after it was asked for the first time.
fn plays(clocks: &[&str], program: &str, words: &str) {
    for way in [Way::Environment(User::Myself), Way::Environment(User::Ordinary), Way::Run] {
        for clock in clocks {
            let user = if let Way::Environment(user) = way { user } else { User::Ordinary };
            let session = Session::new(user, "player");
            let file = session.join("in.raw").display().to_string();
            std::fs::write(&file, [vec![0; 400], rig::noise(BYTES), vec![0; 48_000]].concat()).unwrap();
            let words: Vec<String> = words.split_whitespace().map(|word| word.replace("FILE", &file)).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match way {
                Way::Environment(_) => {
                    let mut card = Card::start(&session, &format!(",clock={clock}"));
                    // Whatever it writes into its home is written into the session's folder.
                    let home = format!("HOME={}", session.join("").display());
                    card.run(&session, "env", &[&[&home, "timeout", "60", program][..], &words].concat());
                    card.signal(rustix::process::Signal::TERM);
                }
                Way::Run => {
                    let wav = format!("{},clock={clock}", session.join("out.wav").display());
                    session.done([&["run", "--sound", &wav, "--", "timeout", "60", program][..], &words].concat());
                }
            }
            let heard = samples_of(&session, "out.wav");
            let first = heard.iter().position(|byte| *byte != 0).unwrap_or(0);
            let (heard, played) = (&heard[first..], rig::noise(BYTES));
            let same = heard.iter().zip(&played).take_while(|(heard, played)| heard == played).count();
            assert_eq!(same, BYTES, "{program}, {way:?}, clock={clock}: of {} bytes", heard.len());
        }
    }
}

#[test]
fn mpv_plays() {
    requires!("mpv");
    plays(
        &["real", "free"],
        "mpv",
        "--no-config --no-video --ao=pulse --really-quiet --demuxer=rawaudio --demuxer-rawaudio-rate=48000 \
         --demuxer-rawaudio-channels=2 --demuxer-rawaudio-format=s16le FILE",
    );
}

#[test]
fn mplayer_plays() {
    requires!("mplayer");
    plays(
        &["real", "free"],
        "mplayer",
        "-really-quiet -noconfig all -nolirc -ao pulse -demuxer rawaudio -rawaudio rate=48000:channels=2:samplesize=2 FILE",
    );
}

#[test]
fn gstreamer_plays() {
    requires!("gst-launch-1.0");
    plays(
        &["real", "free"],
        "gst-launch-1.0",
        "-q filesrc location=FILE ! rawaudioparse format=pcm pcm-format=s16le sample-rate=48000 num-channels=2 ! pulsesink",
    );
}

#[test]
fn ffplay_plays_by_sdl() {
    requires!("ffplay");
    plays(
        &["real", "free"],
        "env",
        "SDL_AUDIODRIVER=pulseaudio SDL_VIDEODRIVER=dummy ffplay -nodisp -autoexit -loglevel error -f s16le -ar 48000 -ac \
         2 FILE",
    );
}

#[test]
fn portaudio_plays_by_alsa() {
    requires!("python3");
    // No spaces: words are taken apart there.
    let script = "p=__import__('pyaudio').PyAudio();s=p.open(format=8,channels=2,rate=48000,output=True,\
                  frames_per_buffer=1024);s.write(open('FILE','rb').read());s.stop_stream();s.close();p.terminate()";
    plays(&["real"], "/usr/bin/python3", &format!("-c {script}"));
}

#[test]
fn cpal_plays_and_records_by_alsa() {
    requires!("cc", "pkg-config");
    if !rig::strict() && !Path::new("/usr/include/alsa/asoundlib.h").exists() {
        return rig::skip(rig::test_name!(), "no headers of ALSA (Debian: libasound2-dev)");
    }
    let copy = rig::Scratch::new("cpal");
    std::fs::copy(cpal(), copy.join("cpal")).unwrap();
    let program = copy.join("cpal").display().to_string();
    plays(&["real", "free"], &program, "play FILE");
    let session = Session::new(User::Ordinary, "player");
    let mut card = Card::start(&session, ",mic=tone");
    let script = format!("{program} record 1 >{}", session.join("heard.raw").display());
    card.run(&session, "sh", &["-c", &script]);
    card.signal(rustix::process::Signal::TERM);
    let heard = std::fs::read(session.join("heard.raw")).unwrap();
    let left = |frame: &[u8]| i16::from_le_bytes([frame[0], frame[1]]);
    let samples: Vec<i16> = heard.chunks_exact(4).map(left).collect();
    let rising = samples.windows(2).filter(|pair| pair[0] < 0 && pair[1] >= 0).count();
    assert!(samples.len() >= 48_000, "{} frames", samples.len());
    assert!(rising.abs_diff(997 * samples.len() / 48_000) <= 2, "{rising} periods of {} frames", samples.len());
}

/// The program in `tests/peers/cpal`, which needs ALSA's library to be built.
fn cpal() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = root.join("target/peers");
    let mut command = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(root.join("tests/peers/cpal"))
        .args(["build", "--quiet", "--locked", "--target-dir"])
        .arg(&target);
    // ALSA's plugins are loaded at run time: the C library cannot be a part of it, as it is of the project's own program.
    rig::run_command(command.env("RUSTFLAGS", "-Ctarget-feature=-crt-static").env_remove("CARGO_ENCODED_RUSTFLAGS"));
    let built = |folder: PathBuf| Some(folder.join("debug/loopbox-peer-cpal")).filter(|file| file.exists());
    let folders = std::fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().path());
    folders.chain([target]).find_map(built).expect("the program that was built")
}
