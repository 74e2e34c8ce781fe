//! The view: a row for each thing, with a line of what it did lately.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use sys::signal;
use sys::signalfd::SignalFd;

use super::sample::{Item, Sample};
use crate::print::{self, Style, Table};

/// Looks that a line shows.
const LOOKS: usize = 24;
const BARS: &[char] = &['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A terminal in which keys come as they are pressed, and which is as it was when this is dropped: a signal that asks
/// the process to end is a wish to leave, too.
pub struct Screen {
    before: Option<Termios>,
    signals: SignalFd,
}

/// What ended a wait.
pub enum Woken {
    /// The time has come.
    Time,
    /// The terminal has another size.
    Resized,
    /// The user wants to go.
    Leave,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// That of the terminal.
    pub fn begin() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
            tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        }
        let signals = SignalFd::new(&[signal::WINCH, signal::TERM, signal::INT, signal::HUP])?;
        // Another screen, without a cursor; what is too long for a line is not continued on the next.
        write!(io::stdout(), "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J")?;
        Ok(Self { before, signals })
    }

    /// Waits for a time, or for what comes before.
    ///
    /// # Errors
    /// That of the terminal.
    pub fn wait(&self, until: Instant) -> io::Result<Woken> {
        let stdin = io::stdin();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let time = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            let mut files = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            match poll(&mut files, Some(&time)) {
                Ok(0) => return Ok(Woken::Time),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [key, told] = files.map(|file| !file.revents().is_empty());
            if told {
                let mut resized = true;
                while let Some(signal) = self.signals.next()? {
                    resized &= signal.number == signal::WINCH;
                }
                return Ok(if resized { Woken::Resized } else { Woken::Leave });
            }
            if key {
                let mut key = [0];
                // The end of the input is a wish to go, too. ^C comes as a key: 3. Other keys mean nothing.
                if rustix::io::read(&stdin, &mut key)? == 0 || matches!(key, [b'q' | b'Q' | 3 | 4]) {
                    return Ok(Woken::Leave);
                }
            }
        }
    }

    /// Shows a text, from the top.
    ///
    /// # Errors
    /// That of the terminal.
    pub fn show(&self, text: &str) -> io::Result<()> {
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
        let rows = size.map(|size| usize::from(size.ws_row)).filter(|rows| *rows > 0).unwrap_or(24);
        let mut out = String::from("\x1b[H");
        for line in text.lines().take(rows.saturating_sub(1)) {
            out.push_str(line);
            out.push_str("\x1b[K\r\n");
        }
        out.push_str("\x1b[J");
        let mut stdout = io::stdout();
        stdout.write_all(out.as_bytes())?;
        stdout.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write!(io::stdout(), "\x1b[?7h\x1b[?25h\x1b[?1049l");
        let _ = io::stdout().flush();
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// What each thing did at the last looks.
#[derive(Debug, Default)]
pub struct History(HashMap<(String, Option<i32>), VecDeque<f64>>);

impl History {
    /// Adds a look; what is gone is forgotten.
    pub fn add(&mut self, sample: &Sample) {
        self.0.retain(|key, _| sample.items.iter().any(|item| key_of(item) == *key));
        for item in &sample.items {
            let looks = self.0.entry(key_of(item)).or_default();
            looks.push_back(height(item));
            if looks.len() > LOOKS {
                looks.pop_front();
            }
        }
    }
}

fn key_of(item: &Item) -> (String, Option<i32>) {
    (format!("{} {}", item.kind, item.name), item.pid)
}

/// What the line shows: bytes where there are any kinds of them, packets, or how far the level is above silence.
fn height(item: &Item) -> f64 {
    match item.kind.as_str() {
        "sound" => item.peak_db.map_or(0.0, |peak| (peak + 60.0).max(0.0)),
        "link" => item.operations,
        _ => item.read_bytes + item.written_bytes,
    }
}

/// The view as text.
pub fn text(sample: &Sample, history: &History) -> String {
    let mut table = Table::new();
    let heading = ["KIND", "PID", "READ/s", "WRITTEN/s", "OPS/s", "p50", "p99", "LOST/s", "LEVEL", "LATELY", "NAME"];
    table.row(heading.map(|title| (Style::Bold, title.to_owned())));
    for item in &sample.items {
        let is_flow = matches!(item.kind.as_str(), "link" | "sound");
        let bytes = |bytes: f64| if is_flow { "-".to_owned() } else { print::size(bytes.round() as u64) };
        let time = |nanoseconds: Option<u64>| nanoseconds.map_or_else(|| "-".to_owned(), duration);
        let clients = item.clients.map(|clients| format!(", {clients} client{}", if clients == 1 { "" } else { "s" }));
        let name = format!("{}{}", item.name, clients.unwrap_or_default());
        let lately = history.0.get(&key_of(item)).map(spark).unwrap_or_default();
        let cells = [
            (Style::Good, item.kind.clone()),
            (Style::Plain, item.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())),
            (Style::Plain, bytes(item.read_bytes)),
            (Style::Plain, bytes(item.written_bytes)),
            (Style::Plain, format!("{:.0}", item.operations)),
            (Style::Plain, time(item.latency_p50_ns)),
            (Style::Plain, time(item.latency_p99_ns)),
            (Style::Plain, item.lost.map_or_else(|| "-".to_owned(), |lost| format!("{lost:.0}"))),
            (Style::Plain, item.peak_db.map_or_else(|| "-".to_owned(), |peak| format!("{peak:.0} dB"))),
            (Style::Link, lately),
            (Style::Name, print::escaped(name.as_bytes())),
        ];
        table.row(cells);
    }
    if sample.items.is_empty() {
        return "nothing is held: no disk, mount, link or sound card\n".to_owned();
    }
    table.render()
}

/// A bar for each look, the highest as high as there is.
fn spark(looks: &VecDeque<f64>) -> String {
    let most = looks.iter().copied().fold(0.0, f64::max);
    let bar = |look: &f64| {
        let share = if most > 0.0 { look / most } else { 0.0 };
        let at = (share * (BARS.len() - 1) as f64).round() as usize;
        BARS.get(at).copied().unwrap_or('█')
    };
    let fill = std::iter::repeat_n(' ', LOOKS.saturating_sub(looks.len()));
    fill.chain(looks.iter().map(bar)).collect()
}

fn duration(nanoseconds: u64) -> String {
    let time = Duration::from_nanos(nanoseconds);
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{} µs", time.as_micros()),
        1_000_000..1_000_000_000 => format!("{} ms", time.as_millis()),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_as_high_as_its_highest() {
        let line = spark(&VecDeque::from([0.0, 50.0, 100.0]));
        assert_eq!(line.trim_start(), "▁▅█");
        assert_eq!(line.chars().count(), LOOKS);
        assert_eq!(spark(&VecDeque::from([0.0])).trim_start(), "▁");
        assert_eq!([duration(5), duration(1023), duration(5_000_000)], ["5 ns", "1 µs", "5 ms"]);
    }
}
