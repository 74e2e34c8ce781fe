//! `loopbox sound`: a sound card made of memory.

use std::ffi::OsString;
use std::path::PathBuf;

use sound::card::{Card, Options};

use super::{Result, Status};
use crate::print;

/// A sound card made of memory: what is played comes back as what is recorded, and as a WAV file.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// A sound card that listens on a socket, until it is told to end.
    Card(CardArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Programs find it by PULSE_SERVER=unix:SOCKET. Options: rate=48000, channels=2, \
                        format=s16|s24|s32|f32, clock=real|free|x2, delay=20ms, gain=0.5, mic=loop|silence|tone|440.")]
struct CardArgs {
    /// The socket that programs connect to.
    #[arg(long, value_name = "SOCKET")]
    listen: PathBuf,

    /// What is played, as a WAV file, with the card's options: `out.wav,format=f32,clock=free`.
    #[arg(long, value_name = "FILE[,OPTION=VALUE]...")]
    wav: Option<OsString>,

    /// An option of the card.
    #[arg(short, long = "option", value_name = "NAME=VALUE")]
    option: Vec<String>,

    /// Write what ALSA programs need (`asound.conf`) into a folder, and print the environment for all programs.
    #[arg(long, value_name = "FOLDER")]
    environment: Option<PathBuf>,
}

/// Does it.
pub fn run(args: &Args) -> Result {
    match &args.command {
        Command::Card(args) => card(args),
    }
}

fn card(args: &CardArgs) -> Result {
    let mut options = Options::default();
    for option in &args.option {
        options.parse(format!(",{option}").as_ref())?;
    }
    let wav = args.wav.as_ref().map(|spec| options.parse(spec)).transpose()?;
    // Before the card has a thread: it inherits them blocked.
    let signals = sys::signal::Blocked::new(&[sys::signal::TERM, sys::signal::INT, sys::signal::HUP])?;
    let card = Card::start(options, &args.listen, wav.as_deref())?;
    match &args.environment {
        Some(folder) => {
            for (name, value) in card.environment(folder)? {
                print::line(&format!("{name}={}", value.display()))?;
            }
        }
        None => print::line(&format!("PULSE_SERVER=unix:{}", std::path::absolute(&args.listen)?.display()))?,
    }
    std::io::Write::flush(&mut std::io::stdout())?;
    signals.wait()?;
    card.stop()?;
    Ok(Status::Done)
}
