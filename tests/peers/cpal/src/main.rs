//! `loopbox-peer-cpal play FILE`: plays frames of two 16-bit samples at 48 kHz on the default device, and half a second
//! of silence. `loopbox-peer-cpal record SECONDS`: writes such frames to standard output.

use std::io::Write as _;
use std::sync::mpsc;
use std::time::Duration;

use cpal::traits::{DeviceTrait as _, HostTrait as _, StreamTrait as _};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    let host = cpal::default_host();
    let config =
        cpal::StreamConfig { channels: 2, sample_rate: cpal::SampleRate(48_000), buffer_size: cpal::BufferSize::Default };
    let failed = |error| eprintln!("cpal: {error}");
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "play", file] => {
            let bytes = std::fs::read(file)?;
            let mut samples = bytes.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect::<Vec<_>>().into_iter();
            let (sender, done) = mpsc::channel();
            let device = host.default_output_device().ok_or("no output")?;
            let fill = move |block: &mut [i16], _: &cpal::OutputCallbackInfo| {
                if samples.len() == 0 {
                    let _ = sender.send(());
                }
                block.fill_with(|| samples.next().unwrap_or(0));
            };
            let stream = device.build_output_stream(&config, fill, failed, None)?;
            stream.play()?;
            done.recv()?;
            std::thread::sleep(Duration::from_millis(500));
        }
        [_, "record", seconds] => {
            let (sender, blocks) = mpsc::channel();
            let device = host.default_input_device().ok_or("no input")?;
            let take = move |block: &[i16], _: &cpal::InputCallbackInfo| {
                let _ = sender.send(block.iter().flat_map(|sample| sample.to_le_bytes()).collect::<Vec<u8>>());
            };
            let stream = device.build_input_stream(&config, take, failed, None)?;
            stream.play()?;
            let mut left = (seconds.parse::<f64>()? * 48_000.0) as usize * 4;
            while left > 0 {
                let block = blocks.recv()?;
                std::io::stdout().write_all(&block)?;
                left = left.saturating_sub(block.len());
            }
        }
        _ => return Err("play FILE, or record SECONDS".into()),
    }
    Ok(())
}
