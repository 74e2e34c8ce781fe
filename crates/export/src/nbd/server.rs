//! Listening, counting connections, ending.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use block::{Error, Kind, Result, ResultExt as _};
use rustix::event::{PollFd, PollFlags, poll};

use super::connection::Connection;
use super::handshake::{Agreed, handshake};
use super::{CONNECTIONS_MAX, Export};

/// How long a client may take to agree.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket, which only its owner can reach.
    Unix(PathBuf),
    /// TCP: `127.0.0.1:10809`, `[::1]:10809`, `localhost:10809`.
    Tcp(String),
}

impl Address {
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

#[derive(Debug)]
enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

/// A server that listens. Dropping it takes its unix socket away.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    exports: Arc<[Export]>,
    /// The ends of live connections, to hang up on them.
    live: Arc<Mutex<Vec<(usize, OwnedFd)>>>,
    count: Arc<AtomicUsize>,
}

impl Server {
    /// Listens at `address`. TCP is bound to loopback addresses alone, unless `beyond_loopback` is said: the protocol
    /// without TLS shows and takes everything, from everybody.
    ///
    /// # Errors
    /// [`Kind::NotPermitted`] for an address that is not of loopback; [`Kind::Exists`] where another server listens;
    /// the failure of the system.
    pub fn bind(address: &Address, beyond_loopback: bool, exports: Vec<Export>) -> Result<Self> {
        let listener = match address {
            Address::Unix(path) => Listener::Unix(bind_unix(path)?, path.clone()),
            Address::Tcp(text) => {
                let what = || format!("listening on {text}");
                let mut addresses = text.to_socket_addrs().context(what)?;
                let chosen = addresses.next();
                let chosen = chosen.ok_or_else(|| Error::new(Kind::NotFound, format!("no address for {text}")))?;
                if !chosen.ip().is_loopback() && !beyond_loopback {
                    return Err(Error::new(
                        Kind::NotPermitted,
                        format!("{chosen} can be reached from other machines, and NBD without TLS trusts them all: take 127.0.0.1, or say --beyond-loopback"),
                    ));
                }
                Listener::Tcp(TcpListener::bind(chosen).context(what)?)
            }
        };
        Ok(Self { listener, exports: exports.into(), live: Arc::default(), count: Arc::default() })
    }

    /// Where it listens, as clients want it: `nbd+unix:///?socket=PATH`, `nbd://127.0.0.1:10809`.
    ///
    /// # Errors
    /// That of the system.
    pub fn uri(&self) -> Result<String> {
        let name = self.exports.first().map_or("", |export| export.name.as_str());
        Ok(match &self.listener {
            Listener::Unix(_, path) => format!("nbd+unix:///{name}?socket={}", path.display()),
            Listener::Tcp(listener) => {
                let address = listener.local_addr().context(|| "address of a listening socket")?;
                if name.is_empty() { format!("nbd://{address}") } else { format!("nbd://{address}/{name}") }
            }
        })
    }

    /// Serves until `stop` can be read from, or as `ending` says; a thread a connection. When it returns, all
    /// connections have ended and all devices are flushed.
    ///
    /// # Errors
    /// That of waiting for clients, or of a last flush. What goes wrong with a client is told to `report`.
    pub fn serve(self, stop: &OwnedFd, ending: Ending, report: &(dyn Fn(Error) + Sync)) -> Result<()> {
        let (gone_reader, gone_writer) =
            rustix::pipe::pipe().map_err(|errno| Error::io("a pipe", errno))?;
        let accepted = std::thread::scope(|scope| {
            let mut number = 0;
            let done = loop {
                match self.wait(stop, &gone_reader, ending) {
                    Ok(true) => {}
                    Ok(false) => break Ok(()),
                    Err(error) => break Err(error),
                }
                let stream = match self.accept() {
                    Ok(stream) => stream,
                    // A client that hung up at once, or no more descriptors: the next may fare better.
                    Err(error) => {
                        report(error);
                        continue;
                    }
                };
                if self.count.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
                    self.count.fetch_sub(1, Ordering::SeqCst);
                    report(Error::new(Kind::Limit, format!("more than {CONNECTIONS_MAX} connections")));
                    continue;
                }
                number += 1;
                let (server, gone) = (&self, gone_writer.as_fd());
                let named = std::thread::Builder::new().name(format!("nbd-{number}"));
                let spawned = named.spawn_scoped(scope, move || {
                    if let Err(error) = server.client(number, stream) {
                        report(error);
                    }
                    server.live().retain(|(live, _)| *live != number);
                    server.count.fetch_sub(1, Ordering::SeqCst);
                    let _ = rustix::io::write(gone, &[0]);
                });
                if let Err(error) = spawned {
                    self.count.fetch_sub(1, Ordering::SeqCst);
                    report(Error::io("a thread for an NBD client", error));
                }
            };
            for (_, end) in self.live().iter() {
                let _ = rustix::net::shutdown(end, rustix::net::Shutdown::Both);
            }
            done
        });
        let flushed = self.exports.iter().filter(|export| !export.device.limits().read_only);
        let flushed = flushed.map(|export| export.device.flush()).find(Result::is_err);
        accepted.and(flushed.unwrap_or(Ok(())))
    }

    fn live(&self) -> std::sync::MutexGuard<'_, Vec<(usize, OwnedFd)>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a client: `false` when it is time to end.
    fn wait(&self, stop: &OwnedFd, gone: &OwnedFd, ending: Ending) -> Result<bool> {
        let listener = match &self.listener {
            Listener::Unix(listener, _) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        };
        loop {
            let mut fds = [
                PollFd::new(&listener, PollFlags::IN),
                PollFd::new(stop, PollFlags::IN),
                PollFd::new(gone, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(Error::io("waiting for NBD clients", errno)),
                Ok(_) => {}
            }
            let [new, stopped, left] = fds.map(|fd| !fd.revents().is_empty());
            if stopped {
                return Ok(false);
            }
            if new {
                return Ok(true);
            }
            if left {
                let mut byte = [0];
                let _ = rustix::io::read(gone, &mut byte);
                if ending == Ending::WithClients && self.count.load(Ordering::SeqCst) == 0 {
                    return Ok(false);
                }
            }
        }
    }

    fn accept(&self) -> Result<Stream> {
        let what = || "accepting an NBD client";
        match &self.listener {
            Listener::Unix(listener, _) => Ok(Stream::Unix(listener.accept().context(what)?.0)),
            Listener::Tcp(listener) => {
                let stream = listener.accept().context(what)?.0;
                stream.set_nodelay(true).context(what)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    /// One client, from its first byte to its last.
    fn client(&self, number: usize, mut stream: Stream) -> Result<()> {
        let what = || "an NBD client";
        let end = stream.as_fd().try_clone_to_owned().context(what)?;
        self.live().push((number, end));
        stream.set_timeout(Some(HANDSHAKE_TIME)).context(what)?;
        let Agreed::Export(index, dialect) = handshake(&mut stream, &self.exports)? else { return Ok(()) };
        stream.set_timeout(None).context(what)?;
        let Some(export) = self.exports.get(index) else { return Ok(()) };
        let output = stream.try_clone().context(what)?;
        let served = Connection::new(&mut stream, output, Arc::clone(&export.device), dialect).serve();
        let _ = stream.shutdown();
        served
    }
}

/// Serves the one client at the other end of `input` and `output` (standard input and output, mostly).
///
/// # Errors
/// As [`Server::serve`].
pub fn serve_one(mut input: impl Read, output: impl Write + Send, exports: &[Export]) -> Result<()> {
    struct Both<'a, R, W>(&'a mut R, W);
    impl<R: Read, W> Read for Both<'_, R, W> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(buf)
        }
    }
    impl<R, W: Write> Write for Both<'_, R, W> {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.1.write(buf)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            self.1.flush()
        }
    }
    let mut both = Both(&mut input, output);
    let Agreed::Export(index, dialect) = handshake(&mut both, exports)? else { return Ok(()) };
    let Some(export) = exports.get(index) else { return Ok(()) };
    let output = both.1;
    let served = Connection::new(input, output, Arc::clone(&export.device), dialect).serve();
    let flushed = if export.device.limits().read_only { Ok(()) } else { export.device.flush() };
    served.and(flushed)
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = &self.listener {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Binds a unix socket that only its owner can reach; one that a dead server left is replaced.
fn bind_unix(path: &Path) -> Result<UnixListener> {
    let what = || format!("listening on {}", path.display());
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        if UnixStream::connect(path).is_ok() {
            return Err(Error::new(Kind::Exists, format!("another server listens on {}", path.display())));
        }
        std::fs::remove_file(path).context(what)?;
    }
    let listener = UnixListener::bind(path).context(what)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).context(what)?;
    Ok(listener)
}

/// A client's stream.
#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// The same call on either kind of stream.
macro_rules! either {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream {
            Stream::Unix($inner) => $call,
            Stream::Tcp($inner) => $call,
        }
    };
}

impl Stream {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        either!(self, stream => stream.as_fd())
    }

    fn set_timeout(&self, time: Option<Duration>) -> std::io::Result<()> {
        either!(self, stream => stream.set_read_timeout(time).and_then(|()| stream.set_write_timeout(time)))
    }

    fn try_clone(&self) -> std::io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    fn shutdown(&self) -> std::io::Result<()> {
        either!(self, stream => stream.shutdown(Shutdown::Both))
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        either!(self, stream => stream.read(buf))
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        either!(self, stream => stream.write(buf))
    }
    fn flush(&mut self) -> std::io::Result<()> {
        either!(self, stream => stream.flush())
    }
}
