//! `loopbox run`: a command with disks, a loopback network and a sound card of its own.

mod images;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use export::counters::{self, Counters};
use export::registry::{Place, Process, Registry, Working};
use net::capture::Capture;
use net::publish::Publish;
use net::rule::Rule;
use sandbox::Ended;
use sandbox::plan::{Bind, Changes, Identity, LinkOptions, Net, Options, Plan, Root, Starter};

use self::images::Images;
use super::{Result, Status};
use crate::print;

/// Run a command with disks, a loopback network and a sound card of its own.
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
    /// The files of an image as the root, with /proc, /dev, /tmp and /run of its own.
    #[arg(long, value_name = "IMAGE", help_heading = "Files")]
    root: Option<OsString>,
    /// The files of an image at a path that only the command sees: FAT and exFAT are written to, others too by root where
    /// the kernel can; with IMAGE,overlay[=FOLDER] changes go to memory, or to files in FOLDER.
    #[arg(long, value_name = "IMAGE:PATH[,ro]", help_heading = "Files")]
    mount: Vec<OsString>,
    /// An image as a disk: /dev/loop0 and so on, or /dev/NAME.
    #[arg(long, value_name = "IMAGE[:NAME]", help_heading = "Files")]
    device: Vec<OsString>,
    /// A file or folder of the machine, at another path or into another root.
    #[arg(long, value_name = "HOST[:PATH][,ro]", help_heading = "Files")]
    bind: Vec<OsString>,
    /// Who the user is inside: `me`, as outside; `root`, of what is inside alone (the default with --root).
    #[arg(long, value_enum, value_name = "USER", help_heading = "Command")]
    r#as: Option<As>,
    /// The folder that it starts in.
    #[arg(long, value_name = "DIR", help_heading = "Command")]
    chdir: Option<PathBuf>,
    /// Set a variable; NAME alone: as it is outside (with --root only a few are there).
    #[arg(long, value_name = "NAME[=VALUE]", help_heading = "Command")]
    env: Vec<OsString>,
    /// Print the steps, and do none.
    #[arg(long)]
    dry_run: bool,
    /// Print the steps, the privilege that each uses, and what stands in for it where it is missing; and do none.
    #[arg(long)]
    explain: bool,
    /// Wait for ever before this step of the plan.
    #[arg(long, hide = true, value_name = "NUMBER")]
    hold: Option<usize>,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum As {
    Me,
    Root,
}

/// Variables that mean the same in every root.
const KEPT_VARIABLES: &[&str] = &["TERM", "COLORTERM", "NO_COLOR", "LANG", "LANGUAGE", "TZ"];
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the command's environment has in a root that is not the machine's.
fn environment_of_root(is_root: bool) -> Vec<(OsString, OsString)> {
    let (user, home) = if is_root { ("root", "/root") } else { ("", "/") };
    let mut variables: Vec<(OsString, OsString)> = std::env::vars_os()
        .filter(|(name, _)| {
            let name = name.to_string_lossy();
            name.starts_with("LC_") || KEPT_VARIABLES.contains(&name.as_ref())
        })
        .collect();
    variables.push(("PATH".into(), SEARCH_PATH.into()));
    variables.push(("HOME".into(), home.into()));
    if is_root {
        variables.push(("USER".into(), user.into()));
    }
    variables
}

/// `NAME=VALUE`, or a variable of this process.
fn variable(typed: &OsString) -> Option<(OsString, OsString)> {
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = typed.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=').and_then(|at| bytes.split_at_checked(at)) {
        Some((name, value)) => {
            let of = |bytes| std::ffi::OsStr::from_bytes(bytes).to_owned();
            Some((of(name), of(value.get(1..).unwrap_or_default())))
        }
        None => std::env::var_os(typed).map(|value| (typed.clone(), value)),
    }
}

/// The files that the machine's network needs in another root.
fn network_files() -> Vec<Bind> {
    let files = ["/etc/hosts", "/etc/resolv.conf"].map(PathBuf::from);
    let found = files.into_iter().filter(|file| file.exists());
    found.map(|file| Bind { from: file.clone(), to: file, read_only: true }).collect()
}

/// Fills in what the words about files say.
fn files(args: &Args, starter: &Starter, options: &mut Options) -> std::result::Result<Images, block::Error> {
    let mut images = Images::new(starter.privileged);
    let mut root_files = None;
    if let Some(image) = &args.root {
        let mounted = images.mount(image, Path::new("/"), false)?;
        options.nsswitch = mounted.files.as_deref().and_then(|files| images::text(files, "/etc/nsswitch.conf"));
        options.root = Some(Root { mount: mounted.mount, lacks_points: false });
        root_files = Some(mounted.files);
        if options.net == Net::Host {
            options.binds.extend(network_files());
        }
    }
    for typed in &args.mount {
        let (image, point, read_only) = images::mount_words(typed)?;
        options.mounts.push(images.mount(&image, &point, read_only)?.mount);
    }
    for typed in &args.device {
        options.devices.push(images.device(typed)?);
    }
    for typed in &args.bind {
        options.binds.push(images::bind(typed)?);
    }
    let points = options.points();
    if let (Some(root), Some(files)) = (&mut options.root, root_files) {
        let has_all = files.is_some_and(|files| images::has_all(&*files, &points));
        root.lacks_points = root.mount.changes == Changes::Refused && !has_all;
    }
    Ok(images)
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

/// What is written down of a run, for `loopbox list` and for whoever cleans up after it.
fn process(options: &Options, card: Option<&super::sound::Planned>) -> Process {
    let writes = |changes: &Changes| match changes {
        Changes::Refused => "read-only".to_owned(),
        Changes::Image => "image".to_owned(),
        Changes::Memory => "memory".to_owned(),
        Changes::Folder(folder) => folder.display().to_string(),
    };
    let root = options.root.iter().map(|root| (&root.mount, Path::new("/")));
    let mounts = root.chain(options.mounts.iter().map(|mount| (mount, mount.point.as_path())));
    let files = mounts.map(|(mount, at)| Place {
        image: mount.spec.clone(),
        at: at.to_owned(),
        writes: writes(&mount.changes),
    });
    let disks = options.devices.iter().map(|device| Place {
        image: device.spec.clone(),
        at: Path::new("/dev").join(&device.name),
        writes: "image".to_owned(),
    });
    Process {
        verb: "run".to_owned(),
        command: options.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        net: if options.net == Net::Private { "private" } else { "host" }.to_owned(),
        link: options.link.is_some(),
        images: files.chain(disks).collect(),
        sound: card.map(|card| card.wav().to_owned()),
        leftovers: card.map(|card| card.folder().to_owned()).into_iter().collect(),
        ..Process::default()
    }
}

/// What is counted of one image: `mount` or `disk`, where it is, and by whom.
type Thing = (&'static str, String, std::sync::Arc<Counters>);

fn things(options: &Options, running: &sandbox::Running) -> Vec<Thing> {
    let root = options.root.iter().map(|root| (root.mount.image, "mount", "/".to_owned()));
    let mounts = options.mounts.iter().map(|mount| (mount.image, "mount", mount.point.display().to_string()));
    let disks = options.devices.iter().map(|device| (device.image, "disk", format!("/dev/{}", device.name)));
    let names: Vec<_> = root.chain(mounts).chain(disks).collect();
    let found = running.counters().into_iter().filter_map(|(image, counters)| {
        let (_, kind, name) = names.iter().find(|(number, _, _)| *number == image)?;
        Some((*kind, name.clone(), counters))
    });
    found.collect()
}

/// Answers those who ask what the command does.
fn answer(working: &Working, things: Vec<Thing>, card: Option<&sound::card::Card>) -> Option<counters::Asked> {
    let meter = card.map(sound::card::Card::meter);
    let path = working.registry().stats_of_process(rustix::process::Pid::as_raw(Some(rustix::process::getpid())));
    let counted = move || {
        let disks = things.iter().map(|(kind, name, counters)| counters.counted(kind, name));
        disks.chain(meter.as_ref().map(|meter| super::sound::counted(meter))).collect()
    };
    counters::serve(&path, counted).ok()
}

/// Plans, spawns, and passes the end of the command on.
pub fn run(args: Args) -> Result {
    let link = link(&args)?;
    let captured = link.as_ref().and_then(|link| link.capture.clone());
    let socket = link.as_ref().map(|_| super::link::socket(std::process::id())).transpose()?;
    let card = args.sound.as_deref().map(super::sound::Planned::new).transpose()?;
    let identity = match args.r#as {
        Some(As::Me) => Identity::Keep,
        Some(As::Root) => Identity::Root,
        None if args.root.is_some() => Identity::Root,
        None => Identity::Keep,
    };
    let starter = Starter::current(identity);
    let mut options = Options {
        link,
        net: match args.net {
            Network::Private => Net::Private,
            Network::Host => Net::Host,
        },
        publish: args.publish.clone(),
        hosts: args.host.clone(),
        host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        nsswitch: std::fs::read_to_string("/etc/nsswitch.conf").ok(),
        identity,
        directory: args.chdir.clone(),
        current: std::env::current_dir().unwrap_or_else(|_| "/".into()),
        environment_alone: args.root.is_some(),
        command: args.command.clone(),
        ..Options::default()
    };
    if options.environment_alone {
        options.environment = environment_of_root(identity == Identity::Root);
    }
    if let Some(card) = &card {
        options.environment.extend(card.environment.iter().cloned());
        if args.root.is_some() {
            let folder = card.folder().to_owned();
            options.binds.push(Bind { from: folder.clone(), to: folder, read_only: false });
        }
    }
    options.environment.extend(args.env.iter().filter_map(variable));
    let images = files(&args, &starter, &mut options)?;
    let plan = Plan::new(&options, &starter)?;
    if args.dry_run || args.explain {
        let text = if args.explain { plan.explained() } else { plan.to_string() };
        print::bytes(text.as_bytes())?;
        return Ok(Status::Done);
    }
    let what = |path: &PathBuf| format!("capturing to {}", path.display());
    let captured = match &captured {
        Some(path) => Some(capture(path).map_err(|error| net::Error::io(what(path), error))?),
        None => None,
    };
    // Before the user namespace is entered, and the folder of the registry left.
    let working = Registry::of_user().and_then(|registry| registry.work(process(&options, card.as_ref()))).ok();
    let running = sandbox::spawn(&plan, images.open()?, args.hold)?;
    let things = things(&options, &running);
    // Behind the fork, which wants one thread, and before the command, which waits for `run`.
    let playing = card.as_ref().map(super::sound::Planned::start).transpose()?;
    let asked = working.as_ref().map(|working| answer(working, things, playing.as_ref()));
    let ended = running.capture_to(captured).link_at(socket).run();
    drop(asked);
    playing.map(sound::card::Card::stop).transpose()?;
    drop((card, working));
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
