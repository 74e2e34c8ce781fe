//! The one thread that does the card's I/O: it waits for clients and for the time that the engine asks for.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::engine::CLIENTS_MAX;
use super::fifo::Fifo;
use super::folder::Output;
use super::{Engine, Heard, Now, Options};
use crate::{Error, Kind, Result};

/// Time without clients after which memory that is not needed is given back.
const QUIET: Duration = Duration::from_millis(300);
/// Bytes that are read at once. A buffer of that size is only in memory as far as it was ever filled.
const BUFFER_BYTES: usize = 64 << 10;
/// Most bytes that are taken from one client before the others have their turn.
const READ_BYTES: usize = 256 << 10;

/// A card that listens on a socket. Dropping it ends it.
#[derive(Debug)]
pub struct Card {
    socket: PathBuf,
    stop: OwnedFd,
    meter: Arc<Meter>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// How loud it is.
#[derive(Debug, Default)]
pub struct Meter {
    frames: AtomicU64,
    peak: AtomicU32,
}

impl Meter {
    /// Frames of the card so far, and the loudest sample since the last question (1 is full scale).
    pub fn take(&self) -> (u64, f32) {
        (self.frames.load(Ordering::Relaxed), f32::from_bits(self.peak.swap(0, Ordering::Relaxed)))
    }

    fn add(&self, position: u64, heard: &[Heard]) {
        self.frames.store(position, Ordering::Relaxed);
        let samples = heard.iter().filter_map(|piece| match piece {
            Heard::Samples(samples) => Some(samples),
            Heard::Silence(_) => None,
        });
        let peak = samples.flatten().fold(0.0_f32, |peak, sample| peak.max(sample.abs() as f32));
        // Positive numbers are in the order of their bits.
        self.peak.fetch_max(peak.to_bits(), Ordering::Relaxed);
    }
}

/// What a program has to find in its environment so that it plays and records here, and nowhere else.
pub type Environment = Vec<(&'static str, OsString)>;

impl Card {
    /// Listens on `socket` and plays into `wav`, a file, or a folder for a file of each stream. When it returns, programs can connect.
    ///
    /// # Errors
    /// [`Kind::Busy`] when something listens there already; those of [`Options::load`]; what the system says.
    pub fn start(mut options: Options, socket: &Path, wav: Option<&Path>) -> Result<Self> {
        options.load()?;
        let wav = wav.map(|path| Output::create(path, &options)).transpose()?;
        let listener = listen(socket)?;
        let failed = |error: Errno| Error::io("an event counter", error);
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?;
        let stopped = stop.try_clone().map_err(|error| Error::io("an event counter", error))?;
        let meter = Arc::<Meter>::default();
        let measured = Arc::clone(&meter);
        let mut engine = Engine::new(options);
        if wav.as_ref().is_some_and(Output::is_folder) {
            engine.trace();
        }
        let driver = Driver {
            meter: measured,
            engine,
            listener,
            stop: stopped,
            clients: Vec::new(),
            fifos: Vec::new(),
            lean: false,
            wav,
            failure: None,
        };
        let thread = std::thread::Builder::new().name("sound card".to_owned()).spawn(|| driver.run());
        let thread = thread.map_err(|error| Error::io("a thread for the sound card", error))?;
        Ok(Self { socket: socket.to_owned(), stop, meter, thread: Some(thread) })
    }

    /// What programs have to find in their environment so that they come to the card at `socket`, which need not be
    /// there yet. ALSA wants a file: it is written into `folder`.
    ///
    /// # Errors
    /// What the system says about the file.
    pub fn environment(socket: &Path, folder: &Path) -> Result<Environment> {
        let absolute = std::path::absolute(socket).map_err(|error| Error::io("the path of the socket", error))?;
        let server = format!("unix:{}", absolute.display());
        let alsa = folder.join("asound.conf");
        let devices = format!("{{\n    type pulse\n    server \"{server}\"\n    hint.description \"loopbox\"\n}}\n");
        let text =
            format!("</usr/share/alsa/alsa.conf>\npcm.!default {devices}pcm.pulse {devices}ctl.!default {devices}");
        // A control has no hint.
        let (pcm, control) = text.split_at(text.rfind("ctl.").unwrap_or(text.len()));
        let text = format!("{pcm}{}", control.replace("    hint.description \"loopbox\"\n", ""));
        std::fs::write(&alsa, text).map_err(|error| Error::io(format!("writing of {}", alsa.display()), error))?;
        Ok(vec![
            ("PULSE_SERVER", server.into()),
            ("ALSA_CONFIG_PATH", alsa.into()),
            ("PIPEWIRE_REMOTE", folder.join("no-pipewire").into()),
            ("JACK_NO_START_SERVER", "1".into()),
            ("JACK_DEFAULT_SERVER", "loopbox-has-none".into()),
        ])
    }

    /// How loud it is, while it runs.
    pub fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends it: what was played is in the WAV file.
    ///
    /// # Errors
    /// Why the WAV file is not whole.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        let result = thread.join().unwrap_or_else(|_| Err(Error::new(Kind::Io, "the sound card's thread")));
        let _ = std::fs::remove_file(&self.socket);
        result
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Binds a socket; one that nobody listens on any more is replaced.
fn listen(socket: &Path) -> Result<UnixListener> {
    let context = || format!("listening on {}", socket.display());
    let listener = match UnixListener::bind(socket) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => match UnixStream::connect(socket) {
            Ok(_) => return Err(Error::new(Kind::Busy, format!("{}: something listens there already", context()))),
            Err(refused) if refused.kind() == std::io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(socket).map_err(|error| Error::io(context(), error))?;
                UnixListener::bind(socket)
            }
            Err(_) => Err(error),
        },
        result => result,
    };
    let listener = listener.map_err(|error| Error::io(context(), error))?;
    listener.set_nonblocking(true).map_err(|error| Error::io(context(), error))?;
    Ok(listener)
}

struct Driver {
    meter: Arc<Meter>,
    engine: Engine,
    listener: UnixListener,
    stop: OwnedFd,
    clients: Vec<(u32, UnixStream)>,
    fifos: Vec<Fifo>,
    /// Whether memory was given back since the last client came.
    lean: bool,
    wav: Option<Output>,
    failure: Option<Error>,
}

/// What there is to do.
struct Ready {
    /// Places of the clients that are to be read from.
    clients: Vec<usize>,
    /// Whether somebody connects.
    newcomers: bool,
}

impl Driver {
    fn run(mut self) -> Result<()> {
        // A free clock waits for everybody, and takes all the time that it gets.
        if self.engine.keeps_time() {
            crate::be_on_time();
        }
        let start = Instant::now();
        let now = || Now {
            nanos: u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
            wall_micros: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64,
        };
        let mut bytes = Vec::with_capacity(BUFFER_BYTES);
        loop {
            self.engine.advance(now());
            self.write_heard();
            self.send();
            let Some(ready) = self.wait()? else { break };
            for (client, stream) in ready.clients.into_iter().filter_map(|at| self.clients.get(at)) {
                receive(&mut self.engine, *client, stream, &mut bytes, now);
            }
            self.pipes(&mut bytes);
            if ready.newcomers {
                self.accept();
            }
        }
        self.engine.advance(now());
        self.write_heard();
        match self.failure {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Waits for something to do, or `None` when it is to end.
    fn wait(&mut self) -> Result<Option<Ready>> {
        let due = self.engine.due();
        let can_wait =
            |client| !self.engine.is_behind(client) && due.is_some_and(|nanos| self.engine.can_wait(client, nanos));
        let waiting: Vec<bool> = self.clients.iter().map(|(client, _)| can_wait(*client)).collect();
        let mut wanted = vec![PollFd::new(&self.stop, PollFlags::IN)];
        let full = self.clients.len() >= CLIENTS_MAX;
        wanted.push(PollFd::new(&self.listener, if full { PollFlags::empty() } else { PollFlags::IN }));
        for ((client, stream), waits) in self.clients.iter().zip(&waiting) {
            let read = if *waits || self.engine.is_behind(*client) { PollFlags::empty() } else { PollFlags::IN };
            let write = if self.engine.waits_for(*client) { PollFlags::OUT } else { PollFlags::empty() };
            wanted.push(PollFd::new(stream, read | write));
        }
        for fifo in self.fifos.iter().filter(|fifo| self.engine.pipe_room(fifo.module()) > 0) {
            wanted.push(PollFd::new(fifo, PollFlags::IN));
        }
        let due = due.map(Duration::from_nanos);
        let quiet = due.is_none() && self.clients.is_empty() && !self.lean;
        let timeout = due.or(quiet.then_some(QUIET));
        let timeout =
            timeout.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) });
        let woken = match rustix::event::poll(&mut wanted, timeout.as_ref()) {
            Ok(0) if quiet => {
                // Most of what a start and a client need is not needed to wait for the next one. Nothing lies between the
                // code that is let go of and waiting, which would have it back.
                self.lean = true;
                sys::image::trim_heap();
                sys::image::forget_code();
                rustix::event::poll(&mut wanted, None)
            }
            woken => woken,
        };
        match woken {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io("waiting for the clients of the sound card", error)),
        }
        let happened = |at: usize| {
            wanted.get(at).is_some_and(|fd| fd.revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR))
        };
        if happened(0) {
            return Ok(None);
        }
        let clients = waiting.iter().enumerate().filter(|(at, waits)| **waits || happened(at + 2)).map(|(at, _)| at);
        Ok(Some(Ready { clients: clients.collect(), newcomers: happened(1) }))
    }

    /// Opens the FIFOs that were asked for, lets go of those of modules that are gone, and reads from the others.
    fn pipes(&mut self, bytes: &mut Vec<u8>) {
        for opening in self.engine.openings() {
            let client = self.clients.iter().find(|(client, _)| *client == opening.client());
            let fifo = client.and_then(|(_, stream)| Fifo::open(stream, opening.module, &opening.path).ok());
            self.engine.opened(&opening, fifo.is_some());
            self.fifos.extend(fifo);
        }
        let engine = &mut self.engine;
        self.fifos.retain(|fifo| engine.has_pipe(fifo.module()));
        for fifo in &self.fifos {
            bytes.clear();
            engine.pipe_came(fifo.module(), fifo.read(bytes, engine.pipe_room(fifo.module())));
        }
    }

    fn accept(&mut self) {
        while self.clients.len() < CLIENTS_MAX {
            let Ok((stream, _)) = self.listener.accept() else { return };
            if stream.set_nonblocking(true).is_ok()
                && let Some(client) = self.engine.connect()
            {
                self.clients.push((client, stream));
                self.lean = false;
            }
        }
    }

    /// Sends what waits, and lets those go who are gone.
    fn send(&mut self) {
        let engine = &mut self.engine;
        self.clients.retain(|(client, stream)| {
            let sent = engine.outgoing(*client).is_some_and(|outgoing| send(stream, outgoing));
            let stays = sent && !engine.is_over(*client);
            if !stays {
                engine.disconnect(*client);
            }
            stays
        });
    }

    fn write_heard(&mut self) {
        let (heard, happened) = (self.engine.heard(), self.engine.happened());
        self.meter.add(self.engine.position(), &heard);
        let Some(wav) = &mut self.wav else { return };
        if heard.is_empty() && happened.is_empty() {
            return;
        }
        if let Err(error) = wav.write(heard, happened) {
            // The card goes on without the file; whoever stops it learns why.
            self.failure = Some(error);
            self.wav = None;
        }
    }
}

fn receive(engine: &mut Engine, client: u32, stream: &UnixStream, bytes: &mut Vec<u8>, now: impl Fn() -> Now) {
    let mut taken = 0;
    while taken < READ_BYTES {
        bytes.clear();
        match rustix::io::read(stream, rustix::buffer::spare_capacity(bytes)) {
            Ok(length) if length > 0 => taken += length,
            Err(Errno::AGAIN) => return,
            Err(Errno::INTR) => continue,
            // Gone: what it has sent is still done.
            Ok(_) | Err(_) => return engine.end(client),
        }
        engine.receive(now(), client, bytes);
        if bytes.len() < bytes.capacity() {
            return;
        }
    }
}

/// Sends as much as the socket takes; false when the other side is gone.
fn send(stream: &UnixStream, outgoing: &mut Vec<u8>) -> bool {
    let mut sent = 0;
    let alive = loop {
        let rest = outgoing.get(sent..).unwrap_or_default();
        if rest.is_empty() {
            break true;
        }
        match rustix::net::send(stream.as_fd(), rest, rustix::net::SendFlags::NOSIGNAL) {
            Ok(length) => sent += length,
            Err(Errno::AGAIN) => break true,
            Err(Errno::INTR) => {}
            Err(_) => break false,
        }
    };
    outgoing.drain(..sent);
    alive
}
