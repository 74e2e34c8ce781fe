//! `loopbox sound`: a sound card made of memory, and the loop from a source to a sink.

mod loopback;

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use sound::card::{Card, Options};

use super::{Result, Status};
use crate::print;

/// A sound card made of memory: what is played is what is recorded, and a WAV file; and the loop from a source to a sink.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// A sound card that listens on a socket, until it is told to end.
    Card(CardArgs),
    /// Measure a WAV file, and say whether it is what was expected.
    Check(CheckArgs),
    /// What a source records is what a sink plays.
    Loop(loopback::LoopArgs),
    /// Sources and sinks of a sound server.
    List(loopback::ListArgs),
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

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Expectations: sound>0.5s, length<10s, tone=997, tone=440+-2, gaps=0, peak<-1, rms>-40 (dB of full \
                        scale), lufs=-23+-1, rate=48000, channels=2. Exit status 1, and a line each, when one is not met."
)]
struct CheckArgs {
    /// The file.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// What it has to be, behind commas; without, what was measured is printed.
    #[arg(long, value_name = "EXPECTATION[,EXPECTATION]...")]
    expect: Option<String>,

    /// Draw it, waveform and spectrogram, into a picture: `out.png`, `out.svg`.
    #[arg(long, value_name = "PICTURE")]
    plot: Option<PathBuf>,
}

/// A card for one command: where it will be, and what the command has to know.
#[derive(Debug)]
pub struct Planned {
    options: Options,
    wav: PathBuf,
    folder: PathBuf,
    /// Variables for the command.
    pub environment: Vec<(OsString, OsString)>,
}

impl Planned {
    /// From a spec, `out.wav,format=f32`, with a private folder that is gone when this is dropped.
    ///
    /// # Errors
    /// An option that is wrong; no folder.
    pub fn new(spec: &OsStr) -> sound::Result<Self> {
        let mut options = Options::default();
        let wav = options.parse(spec)?;
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_dir());
        let parent = runtime.unwrap_or_else(std::env::temp_dir);
        let mut made = None;
        for number in 0..100 {
            let folder = parent.join(format!("loopbox-sound-{}-{number}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
                Ok(()) => {
                    made = Some(folder);
                    break;
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(sound::Error::io(format!("creation of {}", folder.display()), error)),
            }
        }
        let what = || format!("a folder for the sound card's socket in {}", parent.display());
        let folder = made.ok_or_else(|| sound::Error::new(sound::Kind::Busy, what()))?;
        let mut planned = Self { options, wav, folder, environment: Vec::new() };
        let environment = Card::environment(&planned.socket(), &planned.folder)?;
        planned.environment = environment.into_iter().map(|(name, value)| (name.into(), value)).collect();
        Ok(planned)
    }

    /// Where what is played is written.
    pub fn wav(&self) -> &std::path::Path {
        &self.wav
    }

    /// Its private folder, which the environment names.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("pulse")
    }

    /// Starts it: a thread of this process.
    ///
    /// # Errors
    /// Those of [`Card::start`].
    pub fn start(&self) -> sound::Result<Card> {
        Card::start(self.options.clone(), &self.socket(), Some(&self.wav))
    }
}

impl Drop for Planned {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Lets `loopbox list` and `loopbox top` know of a card of its own; it plays where that cannot be, too.
fn show(
    socket: &std::path::Path,
    wav: Option<&std::path::Path>,
    card: &Card,
) -> Option<(export::registry::Working, export::counters::Asked)> {
    let process = export::registry::Process {
        verb: "sound".to_owned(),
        command: vec![socket.display().to_string()],
        sound: wav.map(|wav| wav.to_owned()),
        ..Default::default()
    };
    let working = export::registry::Registry::of_user().and_then(|registry| registry.work(process)).ok()?;
    let pid = rustix::process::Pid::as_raw(Some(rustix::process::getpid()));
    let meter = card.meter();
    let path = working.registry().stats_of_process(pid);
    let asked = export::counters::serve(&path, move || vec![counted(&meter)]).ok()?;
    Some((working, asked))
}

/// A card as `loopbox top` shows it.
pub fn counted(meter: &sound::card::Meter) -> export::counters::Counted {
    let (frames, peak) = meter.take();
    export::counters::Counted {
        kind: "sound".to_owned(),
        name: "card".to_owned(),
        writes: frames,
        peak_db: Some(20.0 * f64::from(peak.max(1e-6)).log10()),
        ..Default::default()
    }
}

/// Does it.
pub fn run(args: &Args) -> Result {
    match &args.command {
        Command::Card(args) => card(args),
        Command::Check(args) => check(args),
        Command::Loop(args) => loopback::run(args),
        Command::List(args) => loopback::list(args),
    }
}

fn check(args: &CheckArgs) -> Result {
    let expectations = args.expect.as_deref().map(sound::check::expectations).transpose()?;
    let found = sound::check::measure(&args.file)?;
    if let Some(picture) = &args.plot {
        sound::plot::plot(&args.file, picture)?;
    }
    let Some(expectations) = expectations else {
        print::line(&format!("format    {}", found.spec))?;
        print::line(&format!("length    {:.3} s", found.length_seconds))?;
        print::line(&format!("sound     {:.3} s", found.sound_seconds))?;
        print::line(&format!("peak      {:.2} dB", found.peak_db))?;
        print::line(&format!("rms       {:.2} dB", found.rms_db))?;
        print::line(&format!("loudness  {:.1} LUFS", found.loudness_lufs))?;
        print::line(&format!("gaps      {}", found.gaps))?;
        print::line(&format!("tone      {:.2} Hz", found.tone_hertz))?;
        return Ok(Status::Done);
    };
    let mut status = Status::Done;
    for failure in expectations.iter().filter_map(|expectation| expectation.failure(&found)) {
        print::line(&failure)?;
        status = Status::No;
    }
    Ok(status)
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
            for (name, value) in Card::environment(&args.listen, folder)? {
                print::line(&format!("{name}={}", value.display()))?;
            }
        }
        None => print::line(&format!("PULSE_SERVER=unix:{}", std::path::absolute(&args.listen)?.display()))?,
    }
    std::io::Write::flush(&mut std::io::stdout())?;
    let shown = show(&args.listen, wav.as_deref(), &card);
    signals.wait()?;
    drop(shown);
    card.stop()?;
    Ok(Status::Done)
}
