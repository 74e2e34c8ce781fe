//! `loopbox serve`: an image offered to other programs, as a network block device, as the virtio disk of a guest, or as a
//! disk of the kernel.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;

use block::{Error, Kind, ResultExt as _};
use export::counters::{self, Asked, Counted, Counters};
use export::nbd::{Address, Ending, Export, NAME_BYTES_MAX, Security, Server, serve_one};
use export::registry::{Outcome, Place, Process, Registry, Working};
use export::{ublk, vhost_user};
use format::spec::{Spec, Step};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use sys::signal;
use sys::signalfd::SignalFd;

use super::{Result, Status};
use crate::stack::{Access, Stack};
use crate::{certificate, print};

/// How long a command may take to end once it is asked to.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Offer images as network block devices (NBD), until Ctrl-C: to QEMU, nbdcopy, nbdfuse, fio, the kernel's nbd client;
/// or one of them to a guest, as its virtio disk (vhost-user), or to the kernel, as /dev/ublkbN (ublk).
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "loopbox serve [OPTIONS] [NAME=]IMAGE... --nbd ADDRESS\n       loopbox serve [OPTIONS] \
                      [NAME=]IMAGE... --stdio\n       loopbox serve [OPTIONS] [NAME=]IMAGE... -- COMMAND [ARGUMENT]...\n       loopbox serve \
                      [OPTIONS] IMAGE --vhost-user SOCKET\n       loopbox serve [OPTIONS] IMAGE --ublk",
    after_help = "One image has the empty name; several have their file names, and the first is also the default.\n\
                  With COMMAND, loopbox ends when it ends, with its exit status; $uri in its environment says where \
                  the images are, $unixsocket the path of the socket, and $disk that of the kernel's disk."
)]
pub struct Args {
    /// The images, with their options, and the names by which clients ask for them: `root=disk.img,partition=2`.
    #[arg(required = true, value_name = "[NAME=]IMAGE")]
    images: Vec<OsString>,

    /// Where to listen: `unix:PATH` or a path with a slash; `127.0.0.1:10809`, `localhost:10809`, or a port (0: any).
    #[arg(long, value_name = "ADDRESS")]
    nbd: Option<String>,

    /// Serve the one client at the other end of standard input and output.
    #[arg(long, conflicts_with_all = ["nbd", "command", "exit_with_client"])]
    stdio: bool,

    /// Serve one image as the virtio disk of a guest (vhost-user-blk), on a unix socket.
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["nbd", "stdio", "tls", "tls_certificates"])]
    vhost_user: Option<PathBuf>,

    /// Make one image a disk of the kernel, /dev/ublkbN: as root, or where udev lets users have such disks.
    #[arg(long, conflicts_with_all = ["nbd", "stdio", "vhost_user", "tls", "tls_certificates", "exit_with_client"])]
    ublk: bool,

    /// Queues of the kernel's disk, each served by a thread; otherwise as many as processors, 4 at the most.
    #[arg(long, value_name = "NUMBER", requires = "ublk", value_parser = clap::value_parser!(u16).range(1..=i64::from(ublk::QUEUES_MAX)))]
    queues: Option<u16>,

    /// Refuse writes.
    #[arg(short, long)]
    read_only: bool,

    /// The name of the first image.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// End when the last client has gone, once one has come.
    #[arg(long, conflicts_with = "command")]
    exit_with_client: bool,

    /// Listen on an address that other machines can reach although TLS is not required.
    #[arg(long, requires = "nbd")]
    beyond_loopback: bool,

    #[command(flatten)]
    tls: Tls,

    /// A command to run while the images are served.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    #[command(flatten)]
    key: crate::passphrase::KeyFile,
}

/// TLS, in the words of nbdkit.
#[derive(Debug, clap::Args)]
struct Tls {
    /// Speak TLS: `require` refuses clients that do not, `on` takes both. Without --tls-certificates, with a
    /// certificate that is made on the spot and lasts as long as this command.
    #[arg(long, value_name = "MODE", num_args = 0..=1, require_equals = true, default_missing_value = "require")]
    #[arg(conflicts_with = "stdio")]
    tls: Option<TlsMode>,

    /// The folder of ca-cert.pem, server-cert.pem and server-key.pem (and ca-crl.pem); implies --tls.
    #[arg(long, value_name = "DIR", conflicts_with = "stdio")]
    tls_certificates: Option<PathBuf>,

    /// Let in clients alone whose certificate was signed by that of ca-cert.pem.
    #[arg(long, requires = "tls_certificates")]
    tls_verify_peer: bool,

    /// Write the certificate that is made on the spot to a file, for clients that are to trust it.
    #[arg(long, value_name = "FILE", requires = "tls", conflicts_with = "tls_certificates")]
    certificate: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TlsMode {
    Off,
    On,
    Require,
}

/// What the words about TLS come to, for a server at `address`.
fn security(args: &Tls, address: &Address) -> std::result::Result<Option<Security>, Box<dyn std::error::Error>> {
    let implied = args.tls_certificates.as_ref().map(|_| TlsMode::Require);
    let required = match args.tls.or(implied) {
        None | Some(TlsMode::Off) => return Ok(None),
        Some(mode) => mode == TlsMode::Require,
    };
    let configuration = match &args.tls_certificates {
        Some(folder) => {
            let clients = if args.tls_verify_peer { tls::Clients::Verified } else { tls::Clients::All };
            tls::from_folder(folder, clients).context(|| "TLS")?
        }
        None => {
            let bound = match address {
                Address::Tcp(text) => text.to_socket_addrs().map(Iterator::collect).unwrap_or_default(),
                Address::Unix(_) | Address::Passed => vec![],
            };
            let made = certificate::make(bound.iter().map(SocketAddr::ip), args.certificate.as_deref())?;
            made.configuration(&[]).context(|| "TLS")?
        }
    };
    Ok(Some(Security { configuration, required }))
}

/// Serves until it is told to end.
pub fn run(args: &Args) -> Result {
    args.key.remember();
    let said = args.nbd.is_some() || args.stdio || args.vhost_user.is_some() || args.ublk || !args.command.is_empty();
    let passed = if said { None } else { Address::passed() };
    if !said && passed.is_none() {
        let ways = "no way to serve: say --nbd ADDRESS, --vhost-user SOCKET, --ublk, --stdio, or -- COMMAND";
        return Err(Error::new(Kind::Invalid, ways).into());
    }
    let (exports, places) = exports(args)?;
    let signals = SignalFd::new(&[signal::TERM, signal::INT, signal::HUP]).context(|| "signals")?;
    if args.stdio {
        let _shown = show(&exports, Process { images: places, ..Process::default() });
        return serve_standard_streams(exports, &signals);
    }
    let ending = if args.exit_with_client { Ending::WithClients } else { Ending::Asked };
    if let Some(path) = &args.vhost_user {
        let server = guest_server(path, &exports)?;
        let socket = server.socket().to_path_buf();
        let place = Where { socket: Some(&socket), leftover: Some(&socket), ..Where::default() };
        return serve(args, exports, places, &place, &signals, |stop| server.serve(&stop, ending, warn));
    }
    if args.ublk {
        let server = kernel_disk(&exports, args.queues)?;
        let (disk, ublk) = (server.path().to_path_buf(), Some(server.identity()));
        let place = Where { disk: Some(&disk), ublk, ..Where::default() };
        return serve(args, exports, places, &place, &signals, |stop| server.serve(&stop));
    }
    let mut folder = None;
    let address = match (&args.nbd, passed) {
        (Some(text), _) => Address::parse(text)?,
        (None, Some(passed)) => passed,
        (None, None) => Address::Unix(folder.insert(Folder::new()?).0.join("nbd.sock")),
    };
    let security = security(&args.tls, &address)?;
    let server = Server::bind(&address, security, args.beyond_loopback, exports.clone())?;
    let (uri, socket) = (server.uri()?, server.socket().map(Path::to_path_buf));
    let folder = folder.as_ref().map(|Folder(path)| path.as_path());
    let leftover = folder.or(socket.as_deref());
    let passed = address == Address::Passed;
    let place = Where { uri: Some(&uri), socket: socket.as_deref(), leftover, passed, ..Where::default() };
    serve(args, exports, places, &place, &signals, |stop| server.serve(&stop, ending, &warn))
}

#[allow(clippy::needless_pass_by_value, reason = "the shape of a report")]
fn warn(error: Error) {
    print::warning(&print::error_text(&error));
}

/// The disk of a guest, which is one.
fn guest_server(path: &Path, exports: &[Export]) -> block::Result<vhost_user::Server> {
    match exports {
        [export] => vhost_user::Server::bind(path, export),
        _ => Err(Error::new(Kind::Invalid, "--vhost-user serves one image: a socket is one disk")),
    }
}

/// The disk of the kernel, which is one.
fn kernel_disk(exports: &[Export], queues: Option<u16>) -> block::Result<ublk::Server> {
    let [export] = exports else {
        return Err(Error::new(Kind::Invalid, "--ublk serves one image: it becomes one disk"));
    };
    let server = ublk::Server::start(export, queues, warn)?;
    if server.rest() > 0 {
        let rest = server.rest();
        print::warning(&format!("{}: the last {rest} bytes are no whole block, and are not seen", export.description));
    }
    Ok(server)
}

/// Where it is served.
#[derive(Default)]
struct Where<'a> {
    uri: Option<&'a str>,
    socket: Option<&'a Path>,
    disk: Option<&'a Path>,
    ublk: Option<ublk::Identity>,
    /// What is to be removed when this is killed.
    leftover: Option<&'a Path>,
    /// The socket was passed to this program.
    passed: bool,
}

/// Says where, or runs the command; and serves until it is told to end, or the command has.
fn serve(
    args: &Args,
    exports: Vec<Export>,
    places: Vec<Place>,
    place: &Where<'_>,
    signals: &SignalFd,
    serve: impl FnOnce(Any) -> block::Result<()>,
) -> Result {
    let path = place.socket.or(place.disk).map(|path| print::escaped(path.as_os_str().as_bytes()));
    let location = place.uri.map(str::to_owned).or(path).unwrap_or_default();
    let shown = show(
        &exports,
        Process {
            images: places,
            uri: Some(location.clone()),
            ublk: place.ublk,
            command: args.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            leftovers: place.leftover.into_iter().map(Path::to_path_buf).collect(),
            ..Process::default()
        },
    );
    drop(exports);
    let mut child = match args.command.split_first() {
        Some((program, words)) => Some(spawn(program, words, place, signals)?),
        None => None,
    };
    // Who passed a socket knows where it is, and may have use for standard output.
    if child.is_none() && !place.passed {
        print::line(&location)?;
        std::io::stdout().flush()?;
    }
    let served = serve(any_of(signals, child.as_ref())?);
    if let Some((working, asked)) = shown {
        drop(asked);
        let failed = served.as_ref().err().map(|error| print::error_text(error));
        working.end(failed.map_or(Outcome::Safe, Outcome::Failed))?;
    }
    heard(signals)?;
    let status = child.as_mut().map(end).transpose();
    served?;
    Ok(status?.map_or(Status::Done, |status| Status::Code(code(status))))
}

/// Lets `loopbox list` and `loopbox top` know of it; it serves where that cannot be, too.
fn show(exports: &[Export], process: Process) -> Option<(Working, Option<Asked>)> {
    let names = process.images.iter().map(|place| match &process.uri {
        Some(uri) => format!("{} at {uri}", place.image),
        None => place.image.clone(),
    });
    let kind = match &process.uri {
        Some(_) if process.ublk.is_some() => "ublk",
        Some(uri) if !uri.starts_with("nbd") => "vhost-user",
        _ => "nbd",
    };
    let counted: Vec<_> = names.zip(exports.iter().map(|export| Arc::clone(&export.counters))).collect();
    let process = Process { verb: "serve".to_owned(), ..process };
    let working = Registry::of_user().and_then(|registry| registry.work(process)).ok()?;
    let path = working.registry().stats_of_process(Pid::as_raw(Some(rustix::process::getpid())));
    let answer = move || {
        let of = |(name, counters): &(String, Arc<Counters>)| Counted {
            clients: Some(counters.clients()).filter(|_| kind != "ublk"),
            ..counters.counted(kind, name)
        };
        counted.iter().map(of).collect()
    };
    Some((working, counters::serve(&path, answer).ok()))
}

/// Opens the images; and what is written down of them.
fn exports(args: &Args) -> block::Result<(Vec<Export>, Vec<Place>)> {
    let mut exports: Vec<Export> = Vec::new();
    let mut places = Vec::new();
    for (n, words) in args.images.iter().enumerate() {
        let (name, words) = named(words);
        let mut spec = Spec::parse(words)?;
        if args.read_only {
            spec.steps.push(Step::ReadOnly);
        }
        let stack = Stack::open(&spec, Access::WriteIfPossible)?;
        let of_file = || spec.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = match (name, &args.name) {
            (_, Some(name)) if n == 0 => name.clone(),
            (Some(name), _) => name,
            (None, _) if args.images.len() == 1 => String::new(),
            (None, _) => of_file(),
        };
        if name.len() > NAME_BYTES_MAX {
            let context = format!("name of {} bytes, of {NAME_BYTES_MAX} at the most", name.len());
            return Err(Error::new(Kind::NameTooLong, context));
        }
        if exports.iter().any(|export| export.name == name) {
            let name = print::escaped(name.as_bytes());
            return Err(Error::new(Kind::Exists, format!("two images of the name {name}: say NAME={}", spec)));
        }
        let writes = match spec.steps.iter().rev().find(|step| matches!(step, Step::Overlay(_))) {
            _ if stack.device.limits().read_only => "read-only".to_owned(),
            Some(Step::Overlay(Some(file))) => file.display().to_string(),
            Some(_) => "memory".to_owned(),
            None => "image".to_owned(),
        };
        places.push(Place { image: words.to_string_lossy().into_owned(), at: PathBuf::from(&name), writes });
        exports.push(Export { name, description: of_file(), device: stack.device, counters: Arc::default() });
    }
    Ok((exports, places))
}

/// Takes `NAME=` off an image: a name has neither slash nor comma, and a file of that name is one.
fn named(words: &OsStr) -> (Option<String>, &OsStr) {
    let bytes = words.as_bytes();
    let at = bytes.iter().position(|byte| b"=/,\\".contains(byte)).filter(|at| bytes.get(*at) == Some(&b'='));
    let parts = at.and_then(|at| Some((std::str::from_utf8(bytes.get(..at)?).ok()?, bytes.get(at + 1..)?)));
    match parts {
        Some((name, rest)) if !Path::new(words).exists() => (Some(name.to_owned()), OsStr::from_bytes(rest)),
        _ => (None, words),
    }
}

/// A folder for a socket, which nobody else can enter; gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> block::Result<Self> {
        for n in 0..1000 {
            let path = std::env::temp_dir().join(format!("loopbox-nbd-{}-{n}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(format!("folder {}", path.display()), error)),
            }
        }
        Err(Error::new(Kind::Exists, "folder for a socket"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn spawn(program: &OsStr, words: &[OsString], place: &Where<'_>, signals: &SignalFd) -> block::Result<Child> {
    let mut command = Command::new(program);
    command.args(words).env("uri", place.uri.unwrap_or_default());
    command.env("unixsocket", place.socket.unwrap_or(Path::new("")));
    if let Some(disk) = place.disk {
        command.env("disk", disk);
    }
    sys::process::end_with_parent(&mut command, signals.blocked());
    command.spawn().context(|| format!("running {}", print::escaped(program.as_bytes())))
}

/// See [`any_of`].
struct Any {
    any: OwnedFd,
    /// What it looks at, which must stay open.
    _child: Option<OwnedFd>,
}

impl AsFd for Any {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.any.as_fd()
    }
}

/// A descriptor that can be read from when a signal has arrived or the command has ended.
fn any_of(signals: &SignalFd, child: Option<&Child>) -> block::Result<Any> {
    let failed = |errno| Error::io("waiting for signals", errno);
    let any = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
    let add = |fd| epoll::add(&any, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN).map_err(failed);
    add(signals.as_fd())?;
    let child = child.map(|child| pidfd_open(pid(child)?, PidfdFlags::empty()).map_err(failed)).transpose()?;
    if let Some(child) = &child {
        add(child.as_fd())?;
    }
    Ok(Any { any, _child: child })
}

fn pid(child: &Child) -> block::Result<Pid> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| Error::new(Kind::OutOfRange, format!("process number {}", child.id())))
}

/// Asks the command to end, where it has not yet, insists after a while, and says how it ended.
fn end(child: &mut Child) -> block::Result<ExitStatus> {
    let what = || "waiting for the command";
    if let Some(status) = child.try_wait().context(what)? {
        return Ok(status);
    }
    let ended = pidfd_open(pid(child)?, PidfdFlags::empty()).map_err(|errno| Error::io(what(), errno))?;
    let _ = kill_process(pid(child)?, Signal::TERM);
    if poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&PATIENCE)) == Ok(0) {
        let _ = child.kill();
    }
    child.wait().context(what)
}

/// The exit status, or 128 and the signal, as shells have it.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

/// Takes the signals that asked it to end, which would otherwise do so by force once they are let in again.
fn heard(signals: &SignalFd) -> block::Result<()> {
    while signals.next().context(|| "signals")?.is_some() {}
    Ok(())
}

/// One client on standard input and output; a signal ends it, when all that was written is flushed.
fn serve_standard_streams(exports: Vec<Export>, signals: &SignalFd) -> Result {
    let (done, to_done) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|errno| Error::io("a pipe", errno))?;
    let devices: Vec<_> = exports.iter().map(|export| export.device.clone()).collect();
    // Past the buffers of the standard library.
    let input = File::from(std::io::stdin().as_fd().try_clone_to_owned().context(|| "standard input")?);
    let output = File::from(std::io::stdout().as_fd().try_clone_to_owned().context(|| "standard output")?);
    let served = std::thread::spawn(move || {
        let served = serve_one(input, output, &exports);
        drop(to_done);
        served
    });
    let any = any_of(signals, None)?;
    let mut fds = [PollFd::new(&done, PollFlags::IN), PollFd::new(&any, PollFlags::IN)];
    while poll(&mut fds, None) == Err(rustix::io::Errno::INTR) {}
    if fds.first().is_some_and(|done| !done.revents().is_empty())
        && let Ok(served) = served.join()
    {
        served?;
        return Ok(Status::Done);
    }
    heard(signals)?;
    // The thread waits for its client, and ends with the process.
    for device in devices.iter().filter(|device| !device.limits().read_only) {
        device.flush()?;
    }
    Ok(Status::Done)
}
