//! What a session did: operations, bytes, latencies; and the socket where others of the same user ask for them.
//!
//! ```text
//! $XDG_RUNTIME_DIR/loopbox/3.stats        of holding 3
//! $XDG_RUNTIME_DIR/loopbox/run-77.stats   of what process 77 runs
//!
//!   connect ─► one line of JSON, a list of [`Counted`] ─► closed
//! ```
//! A thread waits in accept(2): nobody wakes up as long as nobody asks.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use block::{Error, Kind, Result, ResultExt as _};
use serde::{Deserialize, Serialize};

/// Buckets of the histogram: `n` counts latencies of `n` binary digits of nanoseconds.
const BUCKETS: usize = 65;
/// The longest answer.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// How long the other side may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is counted while it runs.
#[derive(Debug)]
pub struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    others: AtomicU64,
    latencies: [AtomicU64; BUCKETS],
    clients: AtomicU64,
}

/// What an operation was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// So many bytes were read.
    Read(u64),
    /// So many bytes were written.
    Write(u64),
    /// Anything else: a name looked up, a listing.
    Other,
}

/// Operations that are answered together: they are counted together, which costs no more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Batch {
    reads: u64,
    read_bytes: u64,
    writes: u64,
    written_bytes: u64,
    others: u64,
}

impl Batch {
    /// Adds an operation.
    pub fn add(&mut self, operation: Operation) {
        match operation {
            Operation::Read(bytes) => {
                self.reads += 1;
                self.read_bytes = self.read_bytes.saturating_add(bytes);
            }
            Operation::Write(bytes) => {
                self.writes += 1;
                self.written_bytes = self.written_bytes.saturating_add(bytes);
            }
            Operation::Other => self.others += 1,
        }
    }

    fn operations(&self) -> u64 {
        self.reads + self.writes + self.others
    }
}

/// One who uses what is counted, for as long as this lives.
#[derive(Debug)]
pub struct Client(Arc<Counters>);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What was counted of one thing, so far.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Counted {
    /// What it is: `disk`, `mount`, `nbd`, `vhost-user`, `sound`.
    pub kind: String,
    /// Its name: a path, mostly.
    pub name: String,
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Other operations.
    pub others: u64,
    /// How many operations took how long: the n-th counts those of n binary digits of nanoseconds.
    pub latencies: Vec<u64>,
    /// Of sound: the loudest sample since the last question, in dB of full scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_db: Option<f64>,
    /// Of a server: how many clients it has now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<u64>,
}

impl Default for Counters {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            reads: zero(),
            read_bytes: zero(),
            writes: zero(),
            written_bytes: zero(),
            others: zero(),
            latencies: std::array::from_fn(|_| zero()),
            clients: zero(),
        }
    }
}

impl Counters {
    /// Counts an operation that took so long.
    pub fn add(&self, operation: Operation, took: Duration) {
        let mut batch = Batch::default();
        batch.add(operation);
        self.add_all(&batch, took);
    }

    /// Counts operations that were answered together: each took so long.
    pub fn add_all(&self, batch: &Batch, took: Duration) {
        let add = |counter: &AtomicU64, number| {
            if number > 0 {
                counter.fetch_add(number, Ordering::Relaxed);
            }
        };
        add(&self.reads, batch.reads);
        add(&self.read_bytes, batch.read_bytes);
        add(&self.writes, batch.writes);
        add(&self.written_bytes, batch.written_bytes);
        add(&self.others, batch.others);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let digits = usize::try_from(u64::BITS - nanoseconds.leading_zeros()).unwrap_or(0);
        if let Some(bucket) = self.latencies.get(digits) {
            add(bucket, batch.operations());
        }
    }

    /// Counts a client until what is returned is dropped.
    pub fn client(self: &Arc<Self>) -> Client {
        self.clients.fetch_add(1, Ordering::Relaxed);
        Client(Arc::clone(self))
    }

    /// Clients at this moment.
    pub fn clients(&self) -> u64 {
        self.clients.load(Ordering::Relaxed)
    }

    /// What was counted so far, under a name.
    pub fn counted(&self, kind: &str, name: &str) -> Counted {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counted {
            kind: kind.to_owned(),
            name: name.to_owned(),
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            writes: get(&self.writes),
            written_bytes: get(&self.written_bytes),
            others: get(&self.others),
            latencies: self.latencies.iter().map(get).collect(),
            peak_db: None,
            clients: None,
        }
    }
}

/// Answers those who ask at `path`, in a thread of its own, until the returned [`Asked`] is dropped or the process ends.
///
/// # Errors
/// `Busy` when the path is taken by a process that lives; that of the thread.
pub fn serve(path: &Path, counted: impl Fn() -> Vec<Counted> + Send + 'static) -> Result<Asked> {
    let context = || format!("socket {}", path.display());
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).context(context)?;
    let answer = move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_write_timeout(Some(PATIENCE));
            if let Ok(mut line) = serde_json::to_vec(&counted()) {
                line.push(b'\n');
                let _ = stream.write_all(&line);
            }
        }
    };
    std::thread::Builder::new().name("counters".into()).spawn(answer).context(context)?;
    Ok(Asked(path.to_owned()))
}

/// A socket that goes away with this.
#[derive(Debug)]
pub struct Asked(PathBuf);

impl Drop for Asked {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Asks at `path`.
///
/// # Errors
/// That of the socket: nobody is there; `Corrupt` for an answer that is none.
pub fn ask(path: &Path) -> Result<Vec<Counted>> {
    let context = || format!("socket {}", path.display());
    let stream = UnixStream::connect(path).context(context)?;
    stream.set_read_timeout(Some(PATIENCE)).context(context)?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).context(context)?;
    serde_json::from_slice(&bytes).map_err(|error| Error::new(Kind::Corrupt, context()).with_source(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_told_what_was_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats");
        let counters = Arc::new(Counters::default());
        counters.add(Operation::Read(4096), Duration::from_nanos(1000));
        counters.add(Operation::Write(10), Duration::from_nanos(0));
        let mut batch = Batch::default();
        batch.add(Operation::Other);
        counters.add_all(&batch, Duration::MAX);
        let client = counters.client();
        assert_eq!(counters.clients(), 1);
        drop(client);
        assert_eq!(counters.clients(), 0);
        let counting = Arc::clone(&counters);
        let asked = serve(&path, move || vec![counting.counted("disk", "a")]).unwrap();
        let [one] = &ask(&path).unwrap()[..] else { panic!() };
        assert_eq!((one.reads, one.read_bytes, one.writes, one.written_bytes, one.others), (1, 4096, 1, 10, 1));
        assert_eq!((one.latencies[10], one.latencies[0], one.latencies[64]), (1, 1, 1));
        drop(asked);
        assert!(ask(&path).is_err());
        std::fs::write(&path, "x").unwrap();
        assert!(ask(&path).is_err());
    }
}
