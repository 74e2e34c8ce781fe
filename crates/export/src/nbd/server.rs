//! Listening, counting connections, ending.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use block::{Error, Kind, Result, ResultExt as _};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::pipe::PipeFlags;

use super::connection::{Connection, Direct};
use super::handshake::{Agreed, Dialect, Offer, greet, haggle};
use super::line::{Both, Line, Secure, Socket};
use super::window::Windows;
use super::{CONNECTIONS_MAX, Export};
use crate::socket::{self, Name};

/// How long a client may take to agree.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);
/// How long clients are given to take their last answers when the server ends.
const FAREWELL_TIME: Duration = Duration::from_secs(5);
/// How long nobody is accepted after it failed, for lack of descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket, which only its owner can reach.
    Unix(PathBuf),
    /// TCP: `127.0.0.1:10809`, `[::1]:10809`, `localhost:10809`.
    Tcp(String),
    /// The socket that whoever started this program listens on; see [`Address::passed`].
    Passed,
}

/// The descriptor of the first socket that is passed to a program: `SD_LISTEN_FDS_START` of sd_listen_fds(3).
const PASSED_FD: RawFd = 3;

impl Address {
    /// The socket that was passed to this program, as systemd does it and libnbd's programs do (`nbdinfo -- [ loopbox serve
    /// disk.img ]`): by `LISTEN_PID` and `LISTEN_FDS` in its environment, sd_listen_fds(3).
    pub fn passed() -> Option<Self> {
        let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
        let ours = number("LISTEN_PID") == Some(std::process::id()) && number("LISTEN_FDS") == Some(1);
        ours.then_some(Self::Passed)
    }

    /// Reads `unix:PATH`, a path with a slash in it, `HOST:PORT`, `tcp:HOST:PORT`, or a port on 127.0.0.1.
    ///
    /// # Errors
    /// [`Kind::Invalid`].
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let tcp = text.strip_prefix("tcp:").unwrap_or(text);
        if tcp.contains('/') {
            return Ok(Self::Unix(tcp.into()));
        }
        if tcp.parse::<u16>().is_ok() {
            return Ok(Self::Tcp(format!("127.0.0.1:{tcp}")));
        }
        match tcp.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) {
            Some((host, Ok(_))) if !host.is_empty() => Ok(Self::Tcp(tcp.to_owned())),
            _ => Err(Error::new(
                Kind::Invalid,
                format!("address `{text}`: say unix:PATH, a path with a slash, HOST:PORT, or a port"),
            )),
        }
    }
}

/// When a server ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// When it is told to.
    Asked,
    /// When the last client has gone, after the first has come.
    WithClients,
}

/// TLS, for clients that ask for it.
#[derive(Debug, Clone)]
pub struct Security {
    /// Who the server is, and whom it lets in.
    pub configuration: Arc<tls::Configuration>,
    /// Whether clients without TLS are refused.
    pub required: bool,
}

#[derive(Debug)]
enum Listener {
    /// Its name, unless it belongs to whoever passed the socket.
    Unix(UnixListener, Option<Name>),
    Tcp(TcpListener),
}

impl Listener {
    /// The socket that was passed.
    fn passed() -> Result<Self> {
        let what = || "the socket that was passed to this program";
        let socket = sys::file::duplicate(PASSED_FD).context(what)?;
        let failed = |errno| Error::io(what(), errno);
        let listens = rustix::net::sockopt::socket_acceptconn(&socket).map_err(failed)?;
        let domain = rustix::net::sockopt::socket_domain(&socket).map_err(failed)?;
        match domain {
            AddressFamily::UNIX if listens => Ok(Self::Unix(socket.into(), None)),
            AddressFamily::INET | AddressFamily::INET6 if listens => Ok(Self::Tcp(socket.into())),
            _ => Err(Error::new(Kind::Invalid, format!("{}: none of TCP or unix that listens", what()))),
        }
    }
}

/// A server that listens. Dropping it takes its unix socket away.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    security: Option<Security>,
    exports: Arc<[Export]>,
    windows: Windows,
    /// The ends of live connections, to hang up on them.
    live: Mutex<Vec<(usize, OwnedFd)>>,
}

impl Server {
    /// Listens at `address`. TCP is bound to loopback addresses alone, unless TLS is required or `beyond_loopback` is
    /// said: the protocol without TLS shows and takes everything, from everybody.
    ///
    /// # Errors
    /// [`Kind::NotPermitted`] for an address that is not of loopback; [`Kind::Exists`] where another server listens;
    /// the failure of the system.
    pub fn bind(
        address: &Address,
        security: Option<Security>,
        beyond_loopback: bool,
        exports: Vec<Export>,
    ) -> Result<Self> {
        let listener = match address {
            Address::Unix(path) => {
                let (listener, name) = socket::listen(path)?;
                Listener::Unix(listener, Some(name))
            }
            Address::Passed => Listener::passed()?,
            Address::Tcp(text) => {
                let what = || format!("listening on {text}");
                let mut addresses = text.to_socket_addrs().context(what)?;
                let chosen = addresses.next();
                let chosen = chosen.ok_or_else(|| Error::new(Kind::NotFound, format!("no address for {text}")))?;
                may_listen(chosen, security.as_ref(), beyond_loopback)?;
                Listener::Tcp(TcpListener::bind(chosen).context(what)?)
            }
        };
        if let (Address::Passed, Listener::Tcp(listener)) = (address, &listener) {
            let address = listener.local_addr().context(|| "address of a listening socket")?;
            may_listen(address, security.as_ref(), beyond_loopback)?;
        }
        match &listener {
            Listener::Unix(listener, _) => listener.set_nonblocking(true),
            Listener::Tcp(listener) => listener.set_nonblocking(true),
        }
        .context(|| "listening")?;
        Ok(Self { listener, security, exports: exports.into(), windows: Windows::default(), live: Mutex::default() })
    }

    /// The path of the unix socket that was made, absolute.
    pub fn socket(&self) -> Option<&Path> {
        match &self.listener {
            Listener::Unix(_, name) => name.as_ref().map(|name| name.path.as_path()),
            Listener::Tcp(_) => None,
        }
    }

    /// Where it listens, as clients want it: `nbd+unix:///?socket=PATH`, `nbd://127.0.0.1:10809`. It names the first
    /// export, which is the default one.
    ///
    /// # Errors
    /// That of the system.
    pub fn uri(&self) -> Result<String> {
        let scheme = if self.security.is_some() { "nbds" } else { "nbd" };
        Ok(match &self.listener {
            Listener::Unix(_, Some(name)) => format!("{scheme}+unix:///?socket={}", escaped(&name.path)),
            Listener::Unix(listener, None) => {
                let address = listener.local_addr().context(|| "address of a listening socket")?;
                let path = address.as_pathname().unwrap_or(Path::new(""));
                format!("{scheme}+unix:///?socket={}", escaped(path))
            }
            Listener::Tcp(listener) => {
                format!("{scheme}://{}", listener.local_addr().context(|| "address of a listening socket")?)
            }
        })
    }

    /// Serves until `stop` can be read from, or as `ending` says; a thread a connection. When it returns, what clients
    /// had sent is done, all connections have ended and all devices are flushed.
    ///
    /// # Errors
    /// That of waiting for clients, or of a last flush. What goes wrong with a client is told to `report`.
    pub fn serve(self, stop: &impl AsFd, ending: Ending, report: &(dyn Fn(Error) + Sync)) -> Result<()> {
        // Each connection that ends writes a byte.
        let (gone, to_gone) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|errno| Error::io("a pipe", errno))?;
        let accepted = std::thread::scope(|scope| {
            let done = self.accept_all(scope, stop.as_fd(), &gone, &to_gone, ending, report);
            self.hang_up(&gone);
            done
        });
        let mut flushed = Ok(());
        for export in self.exports.iter().filter(|export| !export.device.limits().read_only) {
            flushed = flushed.and(export.device.flush());
        }
        accepted.and(flushed)
    }

    fn accept_all<'scope, 'env>(
        &'env self,
        scope: &'scope std::thread::Scope<'scope, 'env>,
        stop: BorrowedFd<'_>,
        gone: &OwnedFd,
        to_gone: &'env OwnedFd,
        ending: Ending,
        report: &'env (dyn Fn(Error) + Sync),
    ) -> Result<()> {
        let (mut number, mut pause) = (0, false);
        while self.wait(stop, gone, ending, number > 0, pause)? {
            let accepted = self.accept();
            pause = accepted.is_err();
            let accepted = accepted.and_then(|stream| match stream {
                Some(stream) => Ok(Some((stream.as_fd().try_clone_to_owned().context(|| "an NBD client")?, stream))),
                None => Ok(None),
            });
            let (end, stream) = match accepted {
                Ok(Some(accepted)) => accepted,
                Ok(None) => continue,
                Err(error) => {
                    report(error);
                    continue;
                }
            };
            if self.live().len() >= CONNECTIONS_MAX {
                report(Error::new(Kind::Limit, format!("more than {CONNECTIONS_MAX} connections")));
                continue;
            }
            number += 1;
            // Here rather than in its thread: whoever hangs up finds it.
            self.live().push((number, end));
            let left = move || {
                self.live().retain(|(live, _)| *live != number);
                // A pipe that is full has been heard.
                let _ = rustix::io::write(to_gone, &[0]);
            };
            let named = std::thread::Builder::new().name(format!("nbd-{number}"));
            let spawned = named.spawn_scoped(scope, move || {
                if let Err(error) = self.client(stream) {
                    report(error);
                }
                left();
            });
            if let Err(error) = spawned {
                left();
                report(Error::io("a thread for an NBD client", error));
            }
        }
        Ok(())
    }

    /// Takes no more requests; hangs up on those who do not take their answers.
    fn hang_up(&self, gone: &OwnedFd) {
        let shut = |how| {
            for (_, end) in self.live().iter() {
                let _ = rustix::net::shutdown(end, how);
            }
        };
        shut(rustix::net::Shutdown::Read);
        let until = Instant::now() + FAREWELL_TIME;
        while !self.live().is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                shut(rustix::net::Shutdown::Both);
                return;
            }
            let time = rustix::event::Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            let _ = poll(&mut [PollFd::new(gone, PollFlags::IN)], Some(&time));
            drain(gone);
        }
    }

    fn live(&self) -> std::sync::MutexGuard<'_, Vec<(usize, OwnedFd)>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a client: `false` when it is time to end.
    fn wait(&self, stop: BorrowedFd<'_>, gone: &OwnedFd, ending: Ending, came: bool, pause: bool) -> Result<bool> {
        let listener = match &self.listener {
            Listener::Unix(listener, _) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        };
        if pause {
            let time = rustix::event::Timespec { tv_sec: 0, tv_nsec: ACCEPT_PAUSE.subsec_nanos().into() };
            let _ = poll(&mut [PollFd::new(&stop, PollFlags::IN)], Some(&time));
        }
        loop {
            let mut fds = [
                PollFd::new(&listener, PollFlags::IN),
                PollFd::new(&stop, PollFlags::IN),
                PollFd::new(gone, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(Error::io("waiting for NBD clients", errno)),
                Ok(_) => {}
            }
            let [new, stopped, left] = fds.map(|fd| !fd.revents().is_empty());
            if stopped {
                return Ok(false);
            }
            if left {
                drain(gone);
            }
            if new {
                return Ok(true);
            }
            if ending == Ending::WithClients && came && self.live().is_empty() {
                return Ok(false);
            }
        }
    }

    /// The next client; `None` when it was gone before it was looked at.
    fn accept(&self) -> Result<Option<Socket>> {
        let what = || "accepting an NBD client";
        let accepted = match &self.listener {
            Listener::Unix(listener, _) => listener.accept().map(|(stream, _)| Socket::Unix(stream)),
            Listener::Tcp(listener) => listener.accept().map(|(stream, _)| Socket::Tcp(stream)),
        };
        match accepted.map_err(|error| (Errno::from_io_error(&error), error)) {
            Ok(stream) => stream.prepare().context(what).map(|()| Some(stream)),
            Err((Some(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED), _)) => Ok(None),
            Err((_, error)) => Err(Error::io(what(), error)),
        }
    }

    /// One client, from its first byte to its last.
    fn client(&self, socket: Socket) -> Result<()> {
        let what = || "an NBD client";
        let line = Line::new(socket, Instant::now() + HANDSHAKE_TIME);
        let Some(zeroes) = greet(&mut &line)? else { return Ok(()) };
        let offer = self.security.as_ref().map_or(Offer::Plain, |security| match security.required {
            true => Offer::TlsRequired,
            false => Offer::Tls,
        });
        let served = match haggle(&mut &line, &self.exports, offer, zeroes)? {
            Agreed::Nothing => Ok(()),
            Agreed::Export(index, dialect) => {
                line.take_time().context(what)?;
                let direct = Direct { socket: line.as_fd(), windows: &self.windows };
                self.requests(index, dialect, &line, &line, Some(direct))
            }
            Agreed::Tls => {
                let Some(security) = &self.security else { return Ok(()) };
                let secure = Secure::accept(&line, &security.configuration).context(|| "TLS with an NBD client")?;
                let mut input = secure.input();
                let agreed = haggle(&mut Both(&mut input, &secure), &self.exports, Offer::TlsInUse, zeroes)?;
                let served = match agreed {
                    Agreed::Nothing | Agreed::Tls => Ok(()),
                    Agreed::Export(index, dialect) => {
                        line.take_time().context(what)?;
                        self.requests(index, dialect, input, &secure, None)
                    }
                };
                secure.close();
                served
            }
        };
        line.shutdown();
        served
    }

    fn requests(
        &self,
        index: usize,
        dialect: Dialect,
        input: impl Read,
        output: impl Write + Send,
        direct: Option<Direct<'_>>,
    ) -> Result<()> {
        let Some(export) = self.exports.get(index) else { return Ok(()) };
        Connection::new(input, output, export, dialect, direct).serve()
    }
}

/// TCP that other machines reach takes TLS, or a word that says so.
fn may_listen(address: SocketAddr, security: Option<&Security>, beyond_loopback: bool) -> Result<()> {
    if address.ip().is_loopback() || beyond_loopback || security.is_some_and(|security| security.required) {
        return Ok(());
    }
    Err(Error::new(
        Kind::NotPermitted,
        format!(
            "{address} can be reached from other machines, and NBD without TLS trusts them all: take 127.0.0.1, or say --tls, or --beyond-loopback"
        ),
    ))
}

fn drain(gone: &OwnedFd) {
    let mut bytes = [0; 512];
    let _ = rustix::io::read(gone, &mut bytes);
}

/// A path as a URI takes it.
fn escaped(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        if plain(*byte) {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Serves the one client at the other end of `input` and `output` (standard input and output, mostly).
///
/// # Errors
/// As [`Server::serve`].
pub fn serve_one(mut input: impl Read, output: impl Write + Send, exports: &[Export]) -> Result<()> {
    let mut both = Both(&mut input, output);
    let Some(zeroes) = greet(&mut both)? else { return Ok(()) };
    let Agreed::Export(index, dialect) = haggle(&mut both, exports, Offer::Plain, zeroes)? else { return Ok(()) };
    let Some(export) = exports.get(index) else { return Ok(()) };
    let output = both.1;
    let served = Connection::new(input, output, export, dialect, None).serve();
    let flushed = if export.device.limits().read_only { Ok(()) } else { export.device.flush() };
    served.and(flushed)
}
