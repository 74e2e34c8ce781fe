//! `loopbox top`: what all that loopbox holds does at this moment.

mod sample;
mod screen;

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::sample::Sampler;
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
    loop {
        if wait(args.interval, screen.is_some())? {
            return Ok(Status::Done);
        }
        let sample = sampler.next()?;
        if args.json {
            print::line(&serde_json::to_string(&sample)?)?;
            std::io::Write::flush(&mut std::io::stdout())?;
        } else {
            history.add(&sample);
            let text = screen::text(&sample, &history);
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

/// Waits; true when the user wants to go.
fn wait(interval: Duration, keys: bool) -> std::io::Result<bool> {
    let timeout = Timespec { tv_sec: interval.as_secs().cast_signed(), tv_nsec: i64::from(interval.subsec_nanos()) };
    if !keys {
        std::thread::sleep(interval);
        return Ok(false);
    }
    let stdin = std::io::stdin();
    match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&timeout)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => Ok(false),
        Ok(_) => {
            let mut key = [0];
            // The end of the input is a wish to go, too. ^C comes as a key: 3.
            Ok(rustix::io::read(&stdin, &mut key)? == 0 || matches!(key, [b'q' | b'Q' | 3 | 4]))
        }
        Err(error) => Err(error.into()),
    }
}
