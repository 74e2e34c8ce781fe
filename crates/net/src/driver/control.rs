//! Changes while it runs: a Unix socket that takes one line and answers with lines.
//!
//! ```text
//! show                          the rules, then the counts
//! set RULE ; RULE …             other rules; nothing, or `error: …`
//! ```

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use super::Handle;
use crate::rule::Rule;
use crate::{Error, Kind, Result, ResultExt as _};

/// The longest request.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// How long the other side may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked of a link that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The rules and the counts.
    Show,
    /// Other rules.
    Set(Vec<String>),
}

/// Serves requests at `path`, in a thread of its own, as long as the process lives.
///
/// # Errors
/// [`Kind::Busy`] when the path is taken.
pub fn serve(path: &Path, handle: Handle) -> Result<()> {
    let listener = UnixListener::bind(path).context(|| format!("listening at {}", path.display()))?;
    let serve = move || {
        for stream in listener.incoming().flatten() {
            // One that says nothing is waited for no longer than this.
            let _ = (stream.set_read_timeout(Some(PATIENCE)), stream.set_write_timeout(Some(PATIENCE)));
            let mut line = String::new();
            if BufReader::new((&stream).take(REQUEST_BYTES_MAX)).read_line(&mut line).is_ok() {
                let _ = (&stream).write_all(answer(line.trim(), &handle).as_bytes());
            }
        }
    };
    std::thread::Builder::new().name("control".into()).spawn(serve).context(|| "thread for the link").map(drop)
}

fn answer(line: &str, handle: &Handle) -> String {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    match verb {
        "show" => {
            let (rules, counts, missed) = handle.status();
            let mut out: String = rules.iter().fold(String::new(), |mut out, rule| {
                let _ = writeln!(out, "{rule}");
                out
            });
            let _ = writeln!(
                out,
                "received {} delivered {} lost {} overflowed {} duplicated {} corrupted {} reordered {} missed {missed}",
                counts.received,
                counts.delivered,
                counts.lost,
                counts.overflowed,
                counts.duplicated,
                counts.corrupted,
                counts.reordered
            );
            out
        }
        "set" => {
            let rules: Result<Vec<Rule>> =
                rest.split(';').map(str::trim).filter(|rule| !rule.is_empty()).map(str::parse).collect();
            match rules.and_then(|rules| handle.set_rules(rules)) {
                Ok(()) => String::new(),
                Err(error) => format!("error: {error}\n"),
            }
        }
        _ => "error: no such request\n".to_owned(),
    }
}

/// Asks the link that is served at `path`; returns the lines of its answer.
///
/// # Errors
/// [`Kind::NotFound`] where no link is served; [`Kind::Invalid`] with what the link says.
pub fn ask(path: &Path, request: &Request) -> Result<String> {
    let what = || format!("the link at {}", path.display());
    let mut stream = UnixStream::connect(path).context(what)?;
    stream.set_read_timeout(Some(PATIENCE)).context(what)?;
    let line = match request {
        Request::Show => "show\n".to_owned(),
        Request::Set(rules) => format!("set {}\n", rules.join(" ; ")),
    };
    stream.write_all(line.as_bytes()).context(what)?;
    let mut said = String::new();
    stream.take(REQUEST_BYTES_MAX).read_to_string(&mut said).context(what)?;
    match said.strip_prefix("error: ") {
        Some(error) => Err(Error::new(Kind::Invalid, error.trim().to_owned())),
        None => Ok(said),
    }
}
