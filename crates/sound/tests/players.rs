//! Players and frameworks that nobody here wrote; every sample is compared.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

mod bench;

use bench::{Bench, noise, same};

/// A second and a bit of noise, in frames that no block divides.
fn second() -> Vec<u8> {
    noise((48_000 + 7) * 4)
}

/// Plays a second through a program and compares what the card has written.
///
/// A quarter of a second of silence is behind it: ffplay and PortAudio end without a drain, and what they have written
/// ahead, some 20 and 50 ms, is then never heard when time is real. GStreamer begins with silence.
fn plays(options: &str, program: &str, words: impl Fn(&str) -> Vec<String>) {
    let mut bench = Bench::new(options);
    let bytes = second();
    let file = bench.file("in.raw", &[&bytes[..], &[0; 48_000]].concat());
    let words = words(&file);
    bench.run(program, &words.iter().map(String::as_str).collect::<Vec<_>>());
    let heard = bench.wav();
    let first = heard.iter().position(|byte| *byte != 0).unwrap_or(0);
    let heard = &heard[first..];
    assert!(heard.len() >= bytes.len(), "{} of {} bytes were heard", heard.len(), bytes.len());
    same(&heard[..bytes.len()], &bytes);
}

fn split(words: &str, file: &str) -> Vec<String> {
    words.split_whitespace().map(|word| word.replace("FILE", file)).collect()
}

#[test]
fn mpv_with_both_clocks() {
    rig::requires!("mpv");
    for clock in ["clock=real", "clock=free"] {
        plays(clock, "mpv", |file| {
            split(
                "--no-config --no-video --ao=pulse --really-quiet --demuxer=rawaudio --demuxer-rawaudio-rate=48000 \
                 --demuxer-rawaudio-channels=2 --demuxer-rawaudio-format=s16le FILE",
                file,
            )
        });
    }
}

#[test]
fn mplayer_with_both_clocks() {
    rig::requires!("mplayer");
    for clock in ["clock=real", "clock=free"] {
        plays(clock, "mplayer", |file| {
            split(
                "-really-quiet -noconfig all -nolirc -ao pulse -demuxer rawaudio -rawaudio \
                 rate=48000:channels=2:samplesize=2 FILE",
                file,
            )
        });
    }
}

#[test]
fn gstreamer_plays() {
    rig::requires!("gst-launch-1.0");
    // With a free clock it plays right most times, and hangs sometimes.
    plays("clock=real", "gst-launch-1.0", |file| {
        split(
            "-q filesrc location=FILE ! rawaudioparse format=pcm pcm-format=s16le sample-rate=48000 \
             num-channels=2 ! pulsesink",
            file,
        )
    });
}

#[test]
fn gstreamer_records() {
    rig::requires!("gst-launch-1.0", "paplay", "pactl");
    let bench = Bench::new("");
    let bytes = second();
    let words = "-q pulsesrc buffer-time=2000000 latency-time=10000 ! audio/x-raw,format=S16LE,rate=48000,channels=2 ! fdsink fd=1 sync=false";
    let recorder = bench.recorder("gst-launch-1.0", &words.split_whitespace().collect::<Vec<_>>());
    let file = bench.file("in.raw", &bytes);
    bench.run("paplay", &["--raw", "--format=s16le", "--rate=48000", "--channels=2", "--latency-msec=400", &file]);
    same(&recorder.heard(bytes.len()), &bytes);
}

#[test]
fn ffplay_by_sdl() {
    rig::requires!("ffplay");
    for clock in ["clock=real", "clock=free"] {
        plays(clock, "env", |file| {
            split(
                "SDL_AUDIODRIVER=pulseaudio SDL_VIDEODRIVER=dummy ffplay -nodisp -autoexit -loglevel error -f s16le -ar \
                 48000 -ac 2 FILE",
                file,
            )
        });
    }
}

#[test]
fn portaudio_by_alsa() {
    rig::requires!("python3");
    let script = "import sys, pyaudio\n\
                  p = pyaudio.PyAudio()\n\
                  s = p.open(format=pyaudio.paInt16, channels=2, rate=48000, output=True, frames_per_buffer=1024)\n\
                  b = open(sys.argv[1], 'rb').read()\n\
                  s.write(b)\n\
                  s.stop_stream()\n\
                  s.close()\n\
                  p.terminate()\n";
    plays("clock=real", "python3", |file| vec!["-c".to_owned(), script.to_owned(), file.to_owned()]);
}
