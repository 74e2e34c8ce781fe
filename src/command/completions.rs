//! `loopbox completions`: a shell's completions, from the definition of the command line.

use super::{Result, Status};

/// Print the completions for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: loopbox completions bash > ~/.local/share/bash-completion/completions/loopbox")]
pub struct Args {
    /// The shell.
    shell: clap_complete::Shell,
}

/// Prints them to standard output.
pub fn run(args: &Args) -> Result {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut crate::cli::definition(), "loopbox", &mut text);
    crate::print::bytes(&text)?;
    Ok(Status::Done)
}
