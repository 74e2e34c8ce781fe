//! The line to a client: a socket with a time by which all must be said while both sides haggle, and TLS over it.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::waits::Waits;

/// Bytes of answers that a unix socket is asked to hold.
const SOCKET_BYTES: usize = 1 << 20;
/// Bytes that are read from the socket at one time, encrypted.
const INPUT_BYTES: usize = 256 << 10;
/// Bytes that are encrypted at one time.
const OUTPUT_BYTES: usize = 256 << 10;

/// How long the next request is looked for before the thread goes to sleep: to be woken up takes about as long.
const LOOKED_FOR: Duration = Duration::from_micros(20);

/// Threads that look for a request instead of sleeping.
static LOOKING: AtomicUsize = AtomicUsize::new(0);

/// Whether one more thread may look: half of the processors at the most, since clients need some too.
fn may_look() -> bool {
    static LOOKING_MAX: OnceLock<usize> = OnceLock::new();
    let processors = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let most = *LOOKING_MAX.get_or_init(|| processors() / 2);
    let one_more = |now| (now < most).then_some(now + 1);
    LOOKING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
}

/// A client's socket.
#[derive(Debug)]
pub enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// The same call on either kind of socket.
macro_rules! either {
    ($socket:expr, $inner:ident => $call:expr) => {
        match $socket {
            Socket::Unix($inner) => $call,
            Socket::Tcp($inner) => $call,
        }
    };
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(self, socket => socket.as_fd())
    }
}

impl Socket {
    /// Blocking, without delays, with room, and noticing a machine that is gone.
    pub fn prepare(&self) -> Result<()> {
        either!(self, socket => socket.set_nonblocking(false))?;
        match self {
            // The kernel takes what its limit allows of it.
            Self::Unix(socket) => rustix::net::sockopt::set_socket_send_buffer_size(socket, SOCKET_BYTES)?,
            Self::Tcp(socket) => {
                socket.set_nodelay(true)?;
                rustix::net::sockopt::set_socket_keepalive(socket, true)?;
            }
        }
        Ok(())
    }

    fn set_timeout(&self, time: Option<Duration>) -> Result<()> {
        either!(self, socket => socket.set_read_timeout(time).and_then(|()| socket.set_write_timeout(time)))
    }
}

/// A socket on which all must be said by a certain time, until that is lifted. Both ways can be used at one time.
#[derive(Debug)]
pub struct Line {
    socket: Socket,
    until: Instant,
    hurried: AtomicBool,
    waits: Mutex<Waits>,
}

impl Line {
    /// All must be said by `until`.
    pub fn new(socket: Socket, until: Instant) -> Self {
        Self { socket, until, hurried: AtomicBool::new(true), waits: Mutex::new(Waits::new(Instant::now())) }
    }

    /// From here on there is time.
    pub fn take_time(&self) -> Result<()> {
        self.hurried.store(false, Ordering::Relaxed);
        self.socket.set_timeout(None)
    }

    fn hurry(&self) -> Result<()> {
        if !self.hurried.load(Ordering::Relaxed) {
            return Ok(());
        }
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.socket.set_timeout(Some(left))
    }

    /// Reads what is there, or comes within a moment; `None` where it is better slept, or the search was in vain.
    ///
    /// A client that has one request under way sends the next as soon as it has its answer. Between the two there may be
    /// less time than it takes to put a thread to sleep and to wake it up. Others that want the processor get it.
    fn look(&self, buf: &mut [u8]) -> Result<Option<usize>> {
        if !locked(&self.waits).looks() || !may_look() {
            return Ok(None);
        }
        let start = Instant::now();
        let found = loop {
            match rustix::net::recv(&self.socket, &mut *buf, rustix::net::RecvFlags::DONTWAIT) {
                Ok((len, _)) => break Ok(Some(len)),
                Err(rustix::io::Errno::AGAIN) if start.elapsed() < LOOKED_FOR => std::thread::yield_now(),
                Err(rustix::io::Errno::AGAIN) => break Ok(None),
                Err(errno) => break Err(errno.into()),
            }
        };
        LOOKING.fetch_sub(1, Ordering::Relaxed);
        found
    }

    /// Hangs up.
    pub fn shutdown(&self) {
        let _ = either!(&self.socket, socket => socket.shutdown(Shutdown::Both));
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Read for &Line {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        if self.hurried.load(Ordering::Relaxed) {
            self.hurry()?;
            return either!(&self.socket, socket => (&*socket).read(buf));
        }
        let len = match self.look(buf)? {
            Some(len) => len,
            None => either!(&self.socket, socket => (&*socket).read(buf))?,
        };
        locked(&self.waits).note(Instant::now());
        Ok(len)
    }
}

impl Write for &Line {
    fn write(&mut self, buf: &[u8]) -> Result<usize> {
        self.hurry()?;
        either!(&self.socket, socket => (&*socket).write(buf))
    }
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Two ways as one stream.
pub struct Both<R, W>(pub R, pub W);

impl<R: Read, W> Read for Both<R, W> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        self.0.read(buf)
    }
}

impl<R, W: Write> Write for Both<R, W> {
    fn write(&mut self, buf: &[u8]) -> Result<usize> {
        self.1.write(buf)
    }
    fn flush(&mut self) -> Result<()> {
        self.1.flush()
    }
}

/// TLS over a line, whose handshake is done: one reads, others write.
///
/// The state is locked for as long as bytes are turned into others, never while the socket is waited for: a client
/// that takes no answers is still listened to.
pub struct Secure<'a> {
    line: &'a Line,
    state: Mutex<tls::Connection>,
    /// Encrypted bytes that are being sent, in the order of their encryption.
    sending: Mutex<Vec<u8>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::InvalidData, error)
}

impl<'a> Secure<'a> {
    /// Lets the client say hello, and both agree on keys.
    pub fn accept(line: &'a Line, configuration: &Arc<tls::Configuration>) -> Result<Self> {
        let mut state = tls::Connection::new(Arc::clone(configuration)).map_err(refused)?;
        let mut stream = line;
        while state.is_handshaking() {
            // A reason is sent to the client before this fails.
            state.complete_io(&mut stream)?;
        }
        // Tickets, which this is the time for.
        while state.wants_write() {
            state.write_tls(&mut stream)?;
        }
        // What is written comes in pieces of `OUTPUT_BYTES`, and is taken out at once.
        state.set_buffer_limit(None);
        Ok(Self { line, state: Mutex::new(state), sending: Mutex::default() })
    }

    /// The way in; there is one.
    pub fn input(&self) -> SecureInput<'_> {
        SecureInput { secure: self, bytes: vec![0; INPUT_BYTES], start: 0, end: 0 }
    }

    /// Says that no more comes, where the socket takes it at once.
    pub fn close(&self) {
        locked(&self.state).send_close_notify();
        if let Ok(mut sending) = self.sending.try_lock() {
            let _ = self.send(&mut sending, &[]);
        }
    }

    fn send(&self, sending: &mut Vec<u8>, buf: &[u8]) -> Result<usize> {
        sending.clear();
        let len = {
            let mut state = locked(&self.state);
            let len = state.writer().write(buf)?;
            while state.wants_write() {
                state.write_tls(sending)?;
            }
            len
        };
        let mut line = self.line;
        line.write_all(sending)?;
        Ok(len)
    }
}

impl Write for &Secure<'_> {
    fn write(&mut self, buf: &[u8]) -> Result<usize> {
        let part = buf.get(..OUTPUT_BYTES).unwrap_or(buf);
        self.send(&mut locked(&self.sending), part)
    }
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The way in of [`Secure`].
pub struct SecureInput<'a> {
    secure: &'a Secure<'a>,
    /// Encrypted: those from `start` to `end` wait.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl SecureInput<'_> {
    /// Decrypts what is there into `buf`: so many bytes, and whether the client has said that no more comes.
    fn decrypt(&mut self, buf: &mut [u8]) -> Result<(usize, bool)> {
        let mut state = locked(&self.secure.state);
        let mut filled = 0;
        loop {
            let room = buf.get_mut(filled..).unwrap_or_default();
            if room.is_empty() {
                return Ok((filled, false));
            }
            match state.reader().read(room) {
                Ok(0) => return Ok((filled, true)),
                Ok(len) => {
                    filled += len;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let mut waiting = self.bytes.get(self.start..self.end).unwrap_or_default();
            if waiting.is_empty() {
                return Ok((filled, false));
            }
            self.start += state.read_tls(&mut waiting)?;
            state.process_new_packets().map_err(refused)?;
        }
    }
}

impl Read for SecureInput<'_> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match self.decrypt(buf) {
                Ok((0, false)) => {}
                Ok((len, _)) => return Ok(len),
                Err(error) => {
                    // The client is told why.
                    if let Ok(mut sending) = self.secure.sending.try_lock() {
                        let _ = self.secure.send(&mut sending, &[]);
                    }
                    return Err(error);
                }
            }
            let mut line = self.secure.line;
            (self.start, self.end) = (0, 0);
            self.end = line.read(&mut self.bytes)?;
            if self.end == 0 {
                // Without a word; whether that is in order, the protocol above knows.
                return Ok(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> (Line, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let line = Line::new(Socket::Unix(ours), Instant::now());
        line.take_time().unwrap();
        (line, theirs)
    }

    #[test]
    fn what_comes_is_read_while_it_is_looked_for_and_afterwards() {
        let (line, mut theirs) = line();
        let mut buf = [0; 8];
        while !locked(&line.waits).looks() {
            locked(&line.waits).note(Instant::now());
        }
        theirs.write_all(b"here").unwrap();
        assert_eq!((&line).read(&mut buf).unwrap(), 4);
        // In vain, and then it is waited for.
        let before = Instant::now();
        let looked = line.look(&mut buf).unwrap();
        assert!(looked.is_none() && (before.elapsed() >= LOOKED_FOR || !looked_for_here()));
        let later = std::thread::spawn(move || theirs.write_all(b"late"));
        assert_eq!((&line).read(&mut buf).unwrap(), 4);
        assert_eq!(&buf[..4], b"late");
        later.join().unwrap().unwrap();
        assert_eq!((&line).read(&mut buf).unwrap(), 0);
    }

    /// A machine with one processor looks for nothing.
    fn looked_for_here() -> bool {
        std::thread::available_parallelism().unwrap().get() > 1
    }
}
