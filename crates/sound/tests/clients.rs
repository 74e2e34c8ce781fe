//! Programs that nobody here wrote play and record; every sample is compared.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

mod bench;

use std::path::PathBuf;

use bench::{Bench, float_noise, noise, same, sound};

#[test]
fn pactl_sees_the_card_and_sets_it() {
    rig::requires!("pactl");
    let bench = Bench::new("rate=44100,channels=1");
    let info = bench.run("pactl", &["info"]);
    for line in
        ["Default Sink: loopbox", "Default Source: loopbox.mic", "Default Sample Specification: s16le 1ch 44100Hz"]
    {
        assert!(info.contains(line), "{line} in:\n{info}");
    }
    let list = bench.run("pactl", &["list"]);
    assert!(list.contains("Monitor Source: loopbox.monitor") && list.contains("Name: loopbox.mic"), "{list}");
    bench.run("pactl", &["set-sink-volume", "loopbox", "50%"]);
    bench.run("pactl", &["set-sink-mute", "@DEFAULT_SINK@", "1"]);
    bench.run("pactl", &["set-source-volume", "loopbox.mic", "-6dB"]);
    let sinks = bench.run("pactl", &["list", "sinks"]);
    assert!(sinks.contains("50%") && sinks.contains("Mute: yes"), "{sinks}");
    let module = bench.run("pactl", &["load-module", "module-null-sink", "sink_name=second"]);
    assert!(bench.run("pactl", &["list", "short", "sources"]).contains("second.monitor"));
    bench.run("pactl", &["set-default-sink", "second"]);
    assert!(bench.run("pactl", &["info"]).contains("Default Sink: second"));
    bench.run("pactl", &["unload-module", module.trim()]);
    assert!(bench.run("pactl", &["info"]).contains("Default Sink: loopbox"));
    assert!(!rig::output(&mut bench.command("pactl", &["load-module", "module-x"])).status.success());
    assert!(!rig::output(&mut bench.command("pactl", &["set-sink-volume", "nobody", "50%"])).status.success());
}

#[test]
fn with_a_free_clock_what_paplay_plays_is_the_wav_file_each_time_the_same() {
    rig::requires!("paplay");
    // 10 seconds, and a number of frames that no block divides.
    let frames = 10 * 48_000 + 7;
    for (format, name, bytes) in [
        ("s16", "s16le", noise(frames * 4)),
        ("s24", "s24le", noise(frames * 6)),
        ("s32", "s32le", noise(frames * 8)),
        ("f32", "float32le", float_noise(frames * 2)),
    ] {
        let play = |bytes: &[u8]| {
            let mut bench = Bench::new(&format!("clock=free,format={format}"));
            let file = bench.file("in.raw", bytes);
            let start = std::time::Instant::now();
            bench.run("paplay", &["--raw", &format!("--format={name}"), "--rate=48000", "--channels=2", &file]);
            println!("{name}: 10 s in {:?}", start.elapsed());
            bench.wav()
        };
        same(&play(&bytes), &bytes);
        if format == "s16" {
            same(&play(&bytes), &bytes);
        }
    }
}

#[test]
fn a_rate_that_differs_keeps_length_and_repeats() {
    rig::requires!("paplay");
    let tone: Vec<u8> = (0..44_100 * 3)
        .flat_map(|n| {
            (((f64::from(n) * std::f64::consts::TAU * 997.0 / 44_100.0).sin() * 16_000.0).round() as i16).to_le_bytes()
        })
        .collect();
    let play = || {
        let mut bench = Bench::new("clock=free,format=f32,channels=1");
        let file = bench.file("in.raw", &tone);
        bench.run("paplay", &["--raw", "--format=s16le", "--rate=44100", "--channels=1", &file]);
        bench.wav()
    };
    let once = play();
    same(&once, &play());
    let samples: Vec<f32> = once.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    assert!((144_000..144_200).contains(&samples.len()), "{} samples", samples.len());
    let ideal = |n: usize| (n as f64 * std::f64::consts::TAU * 997.0 / 48_000.0).sin() * 16_000.0 / 32_768.0;
    let worst = (1000..143_000).map(|n| (f64::from(samples[n]) - ideal(n)).abs()).fold(0.0, f64::max);
    assert!(worst < 1.0 / 30_000.0, "off by {worst}");
}

#[test]
fn parec_records_what_paplay_plays() {
    rig::requires!("paplay", "parec", "pactl");
    for (source, format, bytes) in
        [("loopbox.mic", "s16le", noise(48_000 * 4)), ("loopbox.monitor", "float32le", float_noise(48_000 * 2))]
    {
        let bench = Bench::new("");
        let format = format!("--format={format}");
        let words = ["--raw", "--rate=48000", "--channels=2", &format];
        let recorder = bench.recorder("parec", &[&words[..], &["-d", source, "--latency-msec=5"]].concat());
        let file = bench.file("in.raw", &bytes);
        // All of it is written ahead: on a busy machine a player comes late.
        bench.run("paplay", &[&words[..], &["--latency-msec=2000", &file]].concat());
        same(&recorder.heard(bytes.len()), &bytes);
    }
}

#[test]
fn aplay_and_arecord_by_the_plugin_of_alsa() {
    rig::requires!("aplay", "arecord", "pactl");
    let mut bench = Bench::new("");
    let bytes = noise(48_000 * 4);
    let words = ["-q", "-t", "raw", "-f", "S16_LE", "-r", "48000", "-c", "2"];
    let recorder = bench.recorder("arecord", &words);
    let file = bench.file("in.raw", &bytes);
    bench.run("aplay", &[&words[..], &[&file]].concat());
    same(&recorder.heard(bytes.len()), &bytes);
    same(&bench.wav()[..bytes.len()], &bytes);
}

#[test]
fn ffmpeg_both_ways() {
    rig::requires!("ffmpeg", "pactl");
    let mut bench = Bench::new("");
    let bytes = noise(48_000 * 4);
    let format = ["-f", "s16le", "-ar", "48000", "-ac", "2"];
    let quiet = ["-v", "error", "-nostdin"];
    let input = ["-f", "pulse", "-sample_rate", "48000", "-channels", "2", "-i", "loopbox.mic"];
    let recorder = bench.recorder("ffmpeg", &[&quiet[..], &input, &format, &["-flush_packets", "1", "-"]].concat());
    // It does not drain: what it has written ahead when it ends is never heard.
    let file = bench.file("in.raw", &[&bytes[..], &bytes].concat());
    let output = ["-f", "pulse", "-buffer_duration", "200", "loopbox"];
    bench.run("ffmpeg", &[&quiet[..], &format, &["-i", &file], &output].concat());
    same(&recorder.heard(bytes.len()), &bytes);
    same(&bench.wav()[..bytes.len()], &bytes);
}

#[test]
fn sox_both_ways() {
    rig::requires!("sox", "pactl");
    let mut bench = Bench::new("");
    let bytes = noise(48_000 * 4);
    let format = ["-t", "raw", "-e", "signed-integer", "-b", "16", "-r", "48000", "-c", "2"];
    let device = ["-t", "pulseaudio", "default"];
    let heard = bench.scratch.join("heard.raw").to_str().unwrap().to_owned();
    let record = [&["-q", "-r", "48000", "-c", "2"][..], &device, &format, &[&heard, "trim", "0", "3"]].concat();
    let mut recorder = bench.command("sox", &record).spawn().unwrap();
    rig::wait_until("sox's stream", || !bench.run("pactl", &["list", "short", "source-outputs"]).is_empty());
    let file = bench.file("in.raw", &bytes);
    bench.run("sox", &[&["-q", "-D"][..], &format, &[&file], &device].concat());
    assert!(recorder.wait().unwrap().success());
    let heard = std::fs::read(heard).unwrap();
    let first = heard.iter().position(|byte| *byte != 0).unwrap();
    same(&heard[first..first + bytes.len()], &bytes);
    same(&bench.wav()[..bytes.len()], &bytes);
}

#[test]
fn espeak_speaks_in_no_time_and_twice_the_same() {
    rig::requires!("espeak-ng");
    let speak = || {
        let mut bench = Bench::new("clock=free,channels=1,rate=22050");
        bench.run("espeak-ng", &["one two three four five six seven eight nine ten"]);
        bench.wav()
    };
    let wav = speak();
    assert!(wav.len() > 22_050 * 2, "{} bytes", wav.len());
    same(&wav, &speak());
}

#[test]
fn a_sample_is_uploaded_played_and_removed() {
    rig::requires!("pactl");
    let mut bench = Bench::new("clock=free,channels=1");
    let mut writer = {
        let spec = sound::pcm::Spec { format: sound::pcm::Format::S16le, channels: 1, rate: 48_000 };
        sound::wav::Writer::create(&bench.scratch.join("bell.wav"), spec, &sound::pcm::default_map(1)).unwrap()
    };
    let bytes = noise(20_000);
    writer.write(&bytes).unwrap();
    let path: PathBuf = bench.scratch.join("bell.wav");
    bench.run("pactl", &["upload-sample", path.to_str().unwrap(), "bell"]);
    assert!(bench.run("pactl", &["list", "short", "samples"]).contains("bell"));
    bench.run("pactl", &["play-sample", "bell"]);
    rig::wait_until("the end of the sample", || bench.run("pactl", &["list", "short", "sink-inputs"]).is_empty());
    bench.run("pactl", &["remove-sample", "bell"]);
    assert!(!rig::output(&mut bench.command("pactl", &["play-sample", "bell"])).status.success());
    same(&bench.wav(), &bytes);
}

#[test]
fn modules_remap_a_source_and_loop_a_sink() {
    rig::requires!("pactl", "paplay", "parec");
    let bench = Bench::new("clock=free");
    let sink = bench.run("pactl", &["load-module", "module-null-sink", "sink_name=second"]);
    let virtual_mic = ["load-module", "module-remap-source", "master=second.monitor", "source_name=virtual"];
    bench.run("pactl", &virtual_mic);
    let swapped = "master=second.monitor source_name=swapped channel_map=front-left,front-right \
                   master_channel_map=front-right,front-left";
    bench.run("pactl", &["load-module", "module-remap-source", swapped]);
    let looped =
        bench.run("pactl", &["load-module", "module-loopback", "source=virtual", "sink=loopbox", "latency_msec=7"]);
    for bad in ["master=nobody", "source_name=virtual", "channels=3", "channel_map=front-left,nowhere"] {
        let mut command = bench.command("pactl", &["load-module", "module-remap-source", bad]);
        assert!(!rig::output(&mut command).status.success(), "{bad}");
    }
    let list = bench.run("pactl", &["list", "sources"]);
    assert!(list.contains("Name: virtual") && list.contains("Monitor of Sink: n/a"), "{list}");
    let bytes = noise(48_000 * 4);
    let file = bench.file("in.raw", &bytes);
    let words = ["--raw", "--format=s16le", "--rate=48000", "--channels=2"];
    let record = |source: &str| bench.recorder("parec", &[&words[..], &["-d", source, "--latency-msec=20"]].concat());
    // What goes to `second` is heard from the source that is remapped, and from that whose sides are swapped.
    for (source, swaps) in [("virtual", false), ("swapped", true)] {
        let recorder = record(source);
        bench.run("paplay", &[&words[..], &["-d", "second", &file]].concat());
        let mut expected = bytes.clone();
        if swaps {
            expected.as_chunks_mut::<4>().0.iter_mut().for_each(|[a, b, c, d]| (*a, *b, *c, *d) = (*c, *d, *a, *b));
        }
        same(&recorder.heard(bytes.len()), &expected);
        let outputs = ["list", "short", "source-outputs"];
        rig::wait_until("the recorder's end", || bench.run("pactl", &outputs).is_empty());
    }
    // And through the loop from the first sink's monitor, until the loop goes.
    let recorder = record("loopbox.monitor");
    bench.run("paplay", &[&words[..], &["-d", "second", &file]].concat());
    same(&recorder.heard(bytes.len()), &bytes);
    bench.run("pactl", &["unload-module", looped.trim()]);
    bench.run("pactl", &["unload-module", sink.trim()]);
    let list = bench.run("pactl", &["list", "short", "sources"]);
    assert!(!list.contains("virtual") && !list.contains("second") && list.contains("loopbox.mic"), "{list}");
}

#[test]
fn what_is_written_into_a_fifo_is_what_its_source_carries() {
    rig::requires!("pactl", "parec");
    let bench = Bench::new("");
    let path = |name: &str| bench.scratch.join(name).display().to_string();
    let load = |words: &str| rig::output(&mut bench.command("pactl", &["load-module", "module-pipe-source", words]));
    let words = format!("file={} source_name=pipe format=s16le rate=48000 channels=2", path("fifo"));
    let loaded = load(&words);
    assert!(loaded.status.success(), "{}", rig::text(&loaded));
    let module = rig::text(&loaded).trim().to_owned();
    let list = bench.run("pactl", &["list", "sources"]);
    assert!(list.contains("Name: pipe") && list.contains("Unix FIFO source"), "{list}");
    assert!(bench.run("pactl", &["list", "short", "modules"]).contains("module-pipe-source"));
    // What is no FIFO stays what it is, a link is not followed, and nonsense makes nothing.
    let plain = bench.file("plain", b"kept");
    std::os::unix::fs::symlink(path("fifo"), path("link")).unwrap();
    let file = format!("file={} source_name=other", path("other"));
    for bad in [
        String::new(),
        "file=relative".to_owned(),
        format!("file={plain}"),
        format!("file={}", path("link")),
        format!("file={}", path("nowhere/fifo")),
        "file=/dev/zero".to_owned(),
        words.clone(),
        format!("{file} rate=0"),
        format!("{file} rate=fast"),
        format!("{file} rate=4000000000"),
        format!("{file} channels=33"),
        format!("{file} format=mp3"),
        format!("{file} channels=2 channel_map=mono"),
    ] {
        assert!(!load(&bad).status.success(), "{bad}");
    }
    assert_eq!(std::fs::read(&plain).unwrap(), b"kept");
    assert!(!bench.scratch.join("other").exists());
    // Two writers and two readers, one after the other.
    let bytes = noise(24_000 * 4);
    let file = bench.file("in.raw", &bytes);
    let format = ["--raw", "--format=s16le", "--rate=48000", "--channels=2", "-d", "pipe", "--latency-msec=20"];
    for _ in 0..2 {
        let recorder = bench.recorder("parec", &format);
        bench.run("sh", &["-c", "cat \"$0\" > \"$1\"", &file, &path("fifo")]);
        same(&recorder.heard(bytes.len()), &bytes);
        rig::wait_until("the recorder's end", || bench.run("pactl", &["list", "short", "source-outputs"]).is_empty());
    }
    bench.run("pactl", &["unload-module", &module]);
    assert!(!bench.run("pactl", &["list", "short", "sources"]).contains("pipe"));
    rig::wait_until("the FIFO's end", || !bench.scratch.join("fifo").exists());
    // One that is there already is used, and stays.
    bench.run("mkfifo", &[&path("own")]);
    let module = bench.run("pactl", &["load-module", "module-pipe-source", &format!("file={}", path("own"))]);
    bench.run("pactl", &["unload-module", module.trim()]);
    assert!(!bench.run("pactl", &["list", "short", "modules"]).contains("pipe") && bench.scratch.join("own").exists());
}
