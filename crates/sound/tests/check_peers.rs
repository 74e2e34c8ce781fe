//! What is measured and drawn, as ffmpeg measures and reads it.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

use loopbox_sound::{check, pcm, plot, wav};

#[test]
fn loudness_is_that_of_ffmpeg_and_the_picture_can_be_read() {
    rig::requires!("ffmpeg");
    let scratch = rig::Scratch::new("check");
    let file = scratch.join("a.wav");
    let spec = pcm::Spec { format: pcm::Format::S24le, channels: 2, rate: 44_100 };
    let mut writer = wav::Writer::create(&file, spec, &pcm::default_map(2)).unwrap();
    // A tone that grows, with a quiet part that the gate leaves out.
    let samples: Vec<f64> = (0..44_100 * 6u32)
        .flat_map(|n| {
            let t = f64::from(n) / 44_100.0;
            let gain = if t < 2.0 { 0.001 } else { 0.1 * t };
            [(t * 1000.0 * std::f64::consts::TAU).sin() * gain, (t * 300.0 * std::f64::consts::TAU).sin() * gain * 0.3]
        })
        .collect();
    let mut bytes = Vec::new();
    spec.format.encode(&samples, &mut bytes);
    writer.write(&bytes).unwrap();
    let name = file.to_str().unwrap();
    let said = rig::output(std::process::Command::new("ffmpeg").args([
        "-nostdin",
        "-hide_banner",
        "-i",
        name,
        "-af",
        "ebur128",
        "-f",
        "null",
        "-",
    ]));
    let said = rig::text(&said);
    let loudness = said.rsplit_once("I:").unwrap().1.split_whitespace().next().unwrap().parse::<f64>().unwrap();
    let measured = check::measure(&file).unwrap().loudness_lufs;
    assert!((measured - loudness).abs() < 0.11, "{measured} and {loudness} LUFS");
    for (picture, height) in [("a.png", 2 * 120 + 256), ("a.svg", 0)] {
        let picture = scratch.join(picture);
        plot::plot(&file, &picture).unwrap();
        if height > 0 {
            let raw = rig::output(std::process::Command::new("ffmpeg").args([
                "-nostdin",
                "-v",
                "error",
                "-i",
                picture.to_str().unwrap(),
                "-f",
                "rawvideo",
                "-pix_fmt",
                "rgb24",
                "-",
            ]));
            assert_eq!(raw.stdout.len(), 1200 * height * 3, "{}", rig::text(&raw));
            // The two tones, 300 and 1000 Hz, are bright; 10 kHz is dark. 22050 Hz is 256 rows.
            let brightness = |hertz: usize| {
                let row = height - 1 - hertz * 256 / 22_050;
                let at = (row * 1200 + 1000) * 3;
                raw.stdout[at..at + 3].iter().map(|byte| u32::from(*byte)).sum::<u32>()
            };
            assert!(brightness(1000) > 300 && brightness(10_000) < 150);
        } else {
            let text = std::fs::read_to_string(picture).unwrap();
            assert!(text.starts_with("<svg") && text.matches("<polygon").count() == 2 && text.contains("11.0 kHz"));
        }
    }
    assert!(plot::plot(&file, &scratch.join("a.gif")).is_err());
}
