//! The sockets of the loop.

use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::session::{Session, Side, Status};
use crate::pulse::client::{self, Client, Device, Event, meaning};
use crate::pulse::command::op;
use crate::pulse::tag::Reader;
use crate::wav::Writer;
use crate::{Error, Kind, Result};

/// Time that a server has to answer in.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two reports.
const REPORT: Duration = Duration::from_millis(100);

/// What to loop.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// The source's server, as in `PULSE_SERVER`; `None` for this user's.
    pub source_server: Option<String>,
    /// The sink's server.
    pub sink_server: Option<String>,
    /// A name; `None` for the default.
    pub source: Option<String>,
    /// A name; `None` for the default.
    pub sink: Option<String>,
    /// Time from capture to playing.
    pub latency: Duration,
    /// What is played, as a WAV file of `f32`.
    pub wav: Option<PathBuf>,
}

/// The loop with its sockets.
#[derive(Debug)]
pub struct Loop {
    session: Session,
    sockets: [UnixStream; 2],
    start: Instant,
    wav: Option<PathBuf>,
    writer: Option<Writer>,
}

impl Loop {
    /// Connects; when it returns, it runs as soon as [`Loop::run`] does.
    ///
    /// # Errors
    /// No server, no source or sink of that name.
    pub fn connect(wishes: &Wishes) -> Result<Self> {
        let sockets = [connect(wishes.source_server.as_deref())?, connect(wishes.sink_server.as_deref())?];
        let (source, sink) = (wishes.source.clone(), wishes.sink.clone());
        let mut session = Session::new(&client::cookie(), source, sink, wishes.latency.as_secs_f64());
        if wishes.wav.is_some() {
            session.keep();
        }
        let mut made = Self { session, sockets, start: Instant::now(), wav: wishes.wav.clone(), writer: None };
        while made.session.spec().is_none() {
            if made.start.elapsed() > PATIENCE {
                return Err(Error::new(Kind::Disconnected, "the sound server does not answer within 10 s"));
            }
            made.turn(None, Some(Duration::from_millis(100)))?;
        }
        Ok(made)
    }

    /// The loop.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Runs until `stop` can be read; ten times a second it says how it does. The calling thread goes before others
    /// from then on, where this user may ask for that.
    ///
    /// # Errors
    /// A server that is gone; a WAV file that cannot be written.
    pub fn run(mut self, stop: BorrowedFd<'_>, mut report: impl FnMut(&Status)) -> Result<()> {
        if let (Some(path), Some(spec)) = (&self.wav, self.session.spec()) {
            let map = self.session.device(Side::Sink).map(|device| device.map.clone()).unwrap_or_default();
            let spec = crate::pcm::Spec { format: crate::pcm::Format::F32le, ..spec };
            self.writer = Some(Writer::create(path, spec, &map)?);
        }
        crate::be_on_time();
        let mut last = Instant::now();
        loop {
            let due = self
                .session
                .due()
                .map(|due| Duration::from_nanos(due.saturating_sub(self.nanos())).max(Duration::from_micros(200)));
            let wait = due.unwrap_or(REPORT).min(REPORT);
            if self.turn(Some(stop), Some(wait))? {
                return Ok(());
            }
            if let Some(writer) = &mut self.writer {
                let samples = self.session.take();
                if !samples.is_empty() {
                    let mut bytes = Vec::new();
                    writer.spec().format.encode(&samples, &mut bytes);
                    writer.write(&bytes)?;
                }
            }
            if last.elapsed() >= REPORT {
                last = Instant::now();
                if let Some(status) = self.session.status() {
                    report(&status);
                }
            }
        }
    }

    fn nanos(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Sends, waits, receives; whether it is to end.
    fn turn(&mut self, stop: Option<BorrowedFd<'_>>, wait: Option<Duration>) -> Result<bool> {
        for (socket, side) in self.sockets.iter().zip([Side::Source, Side::Sink]) {
            send(socket, self.session.outgoing(side)).map_err(|error| gone(side, error))?;
        }
        let mut wanted = Vec::with_capacity(3);
        for (socket, side) in self.sockets.iter().zip([Side::Source, Side::Sink]) {
            let write = if self.session.outgoing(side).is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            wanted.push(PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN | write));
        }
        wanted.extend(stop.map(|stop| PollFd::from_borrowed_fd(stop, PollFlags::IN)));
        let timeout = wait.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() });
        match rustix::event::poll(&mut wanted, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io("waiting for the sound server", error)),
        }
        let ready: Vec<bool> = wanted.iter().map(|fd| !(fd.revents() - PollFlags::OUT).is_empty()).collect();
        let mut bytes = [0; 16 << 10];
        for ((ready, side), mut socket) in ready.iter().zip([Side::Source, Side::Sink]).zip(&self.sockets) {
            if !ready {
                continue;
            }
            // What waits is taken whole: how late it is says something about the clock.
            let nanos = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            loop {
                match socket.read(&mut bytes) {
                    Ok(0) => return Err(gone(side, std::io::ErrorKind::UnexpectedEof.into())),
                    Ok(length) => self.session.receive(nanos, side, bytes.get(..length).unwrap_or_default())?,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(gone(side, error)),
                }
            }
        }
        let nanos = self.nanos();
        self.session.advance(nanos);
        for (socket, side) in self.sockets.iter().zip([Side::Source, Side::Sink]) {
            send(socket, self.session.outgoing(side)).map_err(|error| gone(side, error))?;
        }
        Ok(ready.get(2).copied().unwrap_or(false))
    }
}

fn gone(side: Side, error: std::io::Error) -> Error {
    let what = if side == Side::Source { "source" } else { "sink" };
    Error::io(format!("the sound server of the {what} is gone"), error)
}

fn connect(server: Option<&str>) -> Result<UnixStream> {
    let path = client::socket(server)?;
    let failed = |error| Error::io(format!("connection to the sound server at {}", path.display()), error);
    let socket = UnixStream::connect(&path).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket)
}

/// Sends as much as the socket takes.
fn send(socket: &UnixStream, outgoing: &mut Vec<u8>) -> std::io::Result<()> {
    let mut sent = 0;
    while sent < outgoing.len() {
        let rest = outgoing.get(sent..).unwrap_or_default();
        match rustix::net::send(socket.as_fd(), rest, rustix::net::SendFlags::NOSIGNAL) {
            Ok(length) => sent += length,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    outgoing.drain(..sent);
    Ok(())
}

/// What a server has.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Where it listens.
    pub server: PathBuf,
    /// What it calls itself.
    pub server_name: String,
    /// Its sources.
    pub sources: Vec<Device>,
    /// Its sinks.
    pub sinks: Vec<Device>,
    /// The name of the default source, and of the default sink.
    pub default_source: String,
    /// The name of the default sink.
    pub default_sink: String,
}

/// Asks a server for its sources and sinks.
///
/// # Errors
/// No server; an answer that is not the protocol.
pub fn list(server: Option<&str>) -> Result<Listed> {
    let path = client::socket(server)?;
    let socket = connect(server)?;
    let mut client = Client::new(&client::cookie(), "loopbox");
    let tags = [op::GET_SERVER_INFO, op::GET_SOURCE_INFO_LIST, op::GET_SINK_INFO_LIST]
        .map(|command| client.send(command, |_| {}));
    let mut answers: [Option<Vec<u8>>; 3] = [None, None, None];
    let start = Instant::now();
    while answers.iter().any(Option::is_none) {
        let failed = |error| Error::io(format!("asking the sound server at {}", path.display()), error);
        send(&socket, client.outgoing()).map_err(failed)?;
        if start.elapsed() > PATIENCE {
            return Err(failed(std::io::ErrorKind::TimedOut.into()));
        }
        for event in wait(&socket, &mut client, &path)? {
            match event {
                Event::Reply(tag, packet) => {
                    if let Some(place) = tags.iter().position(|asked| *asked == tag).and_then(|at| answers.get_mut(at))
                    {
                        *place = Some(packet);
                    }
                }
                Event::Refused(_, code) => {
                    let (kind, text) = meaning(code);
                    return Err(Error::new(kind, format!("the sound server at {}: {text}", path.display())));
                }
                _ => {}
            }
        }
    }
    let corrupt = |_| Error::new(Kind::Corrupt, format!("answer of the sound server at {}", path.display()));
    let [info, sources, sinks] = answers.map(Option::unwrap_or_default);
    let mut info = Reader::new(&info);
    let mut text = || info.text().map(Option::unwrap_or_default).map_err(corrupt);
    let server_name = text()?;
    for _ in ["version", "user", "host"] {
        text()?;
    }
    info.spec().map_err(corrupt)?;
    let mut text = || info.text().map(Option::unwrap_or_default).map_err(corrupt);
    let (default_sink, default_source) = (text()?, text()?);
    Ok(Listed {
        sources: Device::read_list(&sources).map_err(corrupt)?,
        sinks: Device::read_list(&sinks).map_err(corrupt)?,
        server: path.clone(),
        server_name,
        default_source,
        default_sink,
    })
}

/// Waits for a server to say something, for 100 ms.
fn wait(mut socket: &UnixStream, client: &mut Client, path: &Path) -> Result<Vec<Event>> {
    let failed = |error| Error::io(format!("asking the sound server at {}", path.display()), error);
    let timeout = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    match rustix::event::poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)) {
        Ok(0) | Err(Errno::INTR) => return Ok(Vec::new()),
        Ok(_) => {}
        Err(error) => return Err(failed(error.into())),
    }
    let mut bytes = [0; 16 << 10];
    let mut events = Vec::new();
    match socket.read(&mut bytes) {
        Ok(0) => return Err(failed(std::io::ErrorKind::UnexpectedEof.into())),
        Ok(length) => client.receive(bytes.get(..length).unwrap_or_default(), &mut events)?,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {}
        Err(error) => return Err(failed(error)),
    }
    Ok(events)
}
