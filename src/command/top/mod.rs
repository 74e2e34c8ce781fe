//! `loopbox top`: what all that loopbox holds does at this moment.

mod sample;
mod screen;

use std::time::{Duration, Instant};

use self::sample::Sampler;
use self::screen::Woken;
use super::{Result, Status};
use crate::print;

/// Watch all that loopbox holds: disks, mounts, links, sound cards; throughput, operations, latencies, packets, levels.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "On a terminal the view is renewed until q or Ctrl-C is pressed. Latencies are those of the answers \
                        of loopbox, to the next power of two; of a loop device, the kernel's average."
)]
pub struct Args {
    /// Print a line of JSON for each interval.
    #[arg(long)]
    json: bool,

    /// Seconds from one view to the next.
    #[arg(short, long, default_value = "1", value_parser = super::seconds, value_name = "SECONDS")]
    interval: Duration,

    /// End after so many.
    #[arg(short, long, value_name = "NUMBER")]
    count: Option<u64>,
}

/// Shows it.
pub fn run(args: &Args) -> Result {
    let mut sampler = Sampler::new()?;
    let live = !args.json && print::is_terminal();
    let screen = live.then(screen::Screen::begin).transpose()?;
    let mut history = screen::History::default();
    let mut rounds = 0;
    let mut text = String::new();
    loop {
        let until = Instant::now() + args.interval;
        match &screen {
            None => std::thread::sleep(args.interval),
            Some(screen) => loop {
                match screen.wait(until)? {
                    Woken::Time => break,
                    Woken::Resized => screen.show(&text)?,
                    Woken::Leave => return Ok(Status::Done),
                }
            },
        }
        let sample = sampler.next()?;
        if args.json {
            print::line(&serde_json::to_string(&sample)?)?;
            std::io::Write::flush(&mut std::io::stdout())?;
        } else {
            history.add(&sample);
            text = screen::text(&sample, &history);
            match &screen {
                Some(screen) => screen.show(&text)?,
                None => print::bytes(text.as_bytes())?,
            }
        }
        rounds += 1;
        // What is no terminal is not looked at twice.
        if args.count.map_or(!args.json && !live, |count| rounds >= count) {
            return Ok(Status::Done);
        }
    }
}
