//! `loopbox run`: a command with a loopback network, and a sound card, of its own.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use net::capture::Capture;
use net::publish::Publish;
use net::rule::Rule;
use sandbox::Ended;
use sandbox::plan::{LinkOptions, Net, Options, Plan, Starter};

use super::{Result, Status};
use crate::print;

/// Run a command with a loopback network of its own.
///
/// Exit status: that of the command; 126 when it cannot be run, 127 when it is not found. A signal that ends the command
/// ends loopbox as well.
#[derive(Debug, clap::Args)]
#[command(override_usage = "loopbox run [OPTIONS] [--] COMMAND [ARGUMENT]...")]
pub struct Args {
    /// The network: `private`, with nothing but an `lo` on which every port is free; or the machine's, `host`.
    #[arg(long, value_enum, default_value_t, value_name = "NETWORK", help_heading = "Network")]
    net: Network,
    /// Let the outside reach a port: of the machine (at 127.0.0.1, or ADDRESS), and inside where it is another.
    #[arg(long, value_name = "[ADDRESS:]PORT[:PORT][/udp]", help_heading = "Network")]
    publish: Vec<Publish>,
    /// Give a name an address, inside only.
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = host, help_heading = "Network")]
    host: Vec<(String, IpAddr)>,
    /// How long each packet is on its way: 20ms.
    #[arg(long, value_name = "TIME", help_heading = "Link")]
    latency: Option<String>,
    /// How much that varies, and how much each delay follows the last: 5ms, '5ms 25%'.
    #[arg(long, value_name = "TIME [SHARE]", help_heading = "Link")]
    jitter: Option<String>,
    /// How jitter is spread: uniform, normal, pareto, paretonormal.
    #[arg(long, value_name = "NAME", help_heading = "Link")]
    distribution: Option<String>,
    /// Packets lost: 1%, '1% 25%', 'state 1% 20%', 'gemodel 1% 10% 70% 0.1%'.
    #[arg(long, value_name = "SHARE", help_heading = "Link")]
    loss: Option<String>,
    /// Packets that come twice.
    #[arg(long, value_name = "SHARE", help_heading = "Link")]
    duplicate: Option<String>,
    /// Packets that overtake those that wait.
    #[arg(long, value_name = "SHARE", help_heading = "Link")]
    reorder: Option<String>,
    /// Packets with one bit turned.
    #[arg(long, value_name = "SHARE", help_heading = "Link")]
    corrupt: Option<String>,
    /// Bits a second: 10mbit.
    #[arg(long, value_name = "RATE", help_heading = "Link")]
    rate: Option<String>,
    /// Packets that may wait; more are lost.
    #[arg(long, value_name = "PACKETS", help_heading = "Link")]
    limit: Option<String>,
    /// For a part of the traffic: 'to 127.0.0.5 port 5432: latency 80ms loss 2%', 'udp: block'. The first that a packet
    /// meets is its rule.
    #[arg(long, value_name = "MATCH: SETTINGS", help_heading = "Link")]
    rule: Vec<Rule>,
    /// The same seed, the same losses and delays.
    #[arg(long, default_value_t = 1, value_name = "NUMBER", help_heading = "Link")]
    seed: u64,
    /// Have a link, so that `loopbox link set` can give it rules later.
    #[arg(long, help_heading = "Link")]
    link: bool,
    /// Write every packet to a pcapng file, or to standard output: -.
    #[arg(long, value_name = "FILE", help_heading = "Link")]
    capture: Option<PathBuf>,
    /// Give it a sound card of its own, and write what it plays to a WAV file: out.wav, 'out.wav,format=f32,clock=free'.
    #[arg(long, value_name = "FILE[,OPTION=VALUE]...", help_heading = "Sound")]
    sound: Option<OsString>,
    /// Print the steps, and do none.
    #[arg(long)]
    dry_run: bool,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Network {
    #[default]
    Private,
    Host,
}

fn host(text: &str) -> std::result::Result<(String, IpAddr), String> {
    let (name, address) = text.split_once('=').ok_or("not NAME=ADDRESS")?;
    let address = address.parse().map_err(|_| format!("not an address: {address}"))?;
    Ok((name.to_owned(), address))
}

/// The link that the options ask for, if any does.
fn link(args: &Args) -> net::Result<Option<LinkOptions>> {
    let words = [
        ("latency", &args.latency),
        ("jitter", &args.jitter),
        ("distribution", &args.distribution),
        ("loss", &args.loss),
        ("duplicate", &args.duplicate),
        ("reorder", &args.reorder),
        ("corrupt", &args.corrupt),
        ("rate", &args.rate),
        ("limit", &args.limit),
    ];
    let settings: Vec<String> =
        words.into_iter().filter_map(|(word, value)| value.as_ref().map(|value| format!("{word} {value}"))).collect();
    let mut rules = args.rule.clone();
    if !settings.is_empty() {
        rules.push(settings.join(" ").parse()?);
    }
    let wanted = args.link || !rules.is_empty() || args.capture.is_some();
    Ok(wanted.then(|| LinkOptions { rules, seed: args.seed, capture: args.capture.clone() }))
}

/// The file of a capture, or standard output.
fn capture(path: &Path) -> std::io::Result<Capture> {
    if path == Path::new("-") {
        return Capture::new(Box::new(std::io::stdout()));
    }
    Capture::new(Box::new(std::fs::File::create(path)?))
}

/// Plans, spawns, and passes the end of the command on.
pub fn run(args: Args) -> Result {
    let link = link(&args)?;
    let captured = link.as_ref().and_then(|link| link.capture.clone());
    let socket = link.as_ref().map(|_| super::link::socket(std::process::id())).transpose()?;
    let card = args.sound.as_deref().map(super::sound::Planned::new).transpose()?;
    let options = Options {
        link,
        net: match args.net {
            Network::Private => Net::Private,
            Network::Host => Net::Host,
        },
        publish: args.publish,
        hosts: args.host,
        host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        nsswitch: std::fs::read_to_string("/etc/nsswitch.conf").ok(),
        environment: card.as_ref().map(|card| card.environment.clone()).unwrap_or_default(),
        command: args.command,
    };
    let plan = Plan::new(&options, &Starter::current())?;
    if args.dry_run {
        print::bytes(plan.to_string().as_bytes())?;
        return Ok(Status::Done);
    }
    let what = |path: &PathBuf| format!("capturing to {}", path.display());
    let captured = match &captured {
        Some(path) => Some(capture(path).map_err(|error| net::Error::io(what(path), error))?),
        None => None,
    };
    let running = sandbox::spawn(&plan)?;
    // Behind the fork, which wants one thread, and before the command, which waits for `run`.
    let playing = card.as_ref().map(super::sound::Planned::start).transpose()?;
    let ended = running.capture_to(captured).link_at(socket).run();
    playing.map(sound::card::Card::stop).transpose()?;
    drop(card);
    match ended? {
        Ended::Exited(status) => Ok(Status::Code(status)),
        Ended::Signalled(signal) => {
            end_as(signal);
            Ok(Status::Code(u8::try_from(signal + 128).unwrap_or(u8::MAX)))
        }
        Ended::NotStarted(errno) => {
            let program = options.command.first().map(|word| word.display().to_string()).unwrap_or_default();
            let error = std::io::Error::from_raw_os_error(errno);
            let status = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
            print::error(&net::Error::io(format!("running {program}"), error));
            Ok(Status::Code(status))
        }
    }
}

/// Ends this process by a signal, without a core dump, so that a shell sees what it would see of the command itself.
fn end_as(signal: i32) {
    use rustix::process::{Resource, Rlimit, Signal, getpid, kill_process, setrlimit};
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    if let Some(signal) = Signal::from_named_raw(signal) {
        let _ = kill_process(getpid(), signal);
    }
}
