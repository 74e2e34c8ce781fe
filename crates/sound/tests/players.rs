//! A framework that nobody here wrote records; every sample is compared.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

mod bench;

use bench::{Bench, noise, same};

#[test]
fn gstreamer_records() {
    rig::requires!("gst-launch-1.0", "paplay", "pactl");
    let bench = Bench::new("");
    let bytes = noise((48_000 + 7) * 4);
    let words = "-q pulsesrc buffer-time=2000000 latency-time=10000 ! audio/x-raw,format=S16LE,rate=48000,channels=2 ! fdsink fd=1 sync=false";
    let recorder = bench.recorder("gst-launch-1.0", &words.split_whitespace().collect::<Vec<_>>());
    let file = bench.file("in.raw", &bytes);
    bench.run("paplay", &["--raw", "--format=s16le", "--rate=48000", "--channels=2", "--latency-msec=400", &file]);
    same(&recorder.heard(bytes.len()), &bytes);
}
