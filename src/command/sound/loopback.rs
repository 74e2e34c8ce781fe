//! `loopbox sound loop` and `loopbox sound list`: from a source to a sink of a sound server.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use sound::loopback::{Level, Loop, Side, State, Status as How, Wishes};
use sound::pulse::client::Device;

use super::super::{Result, Status};
use crate::print::{self, Style, Table};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Servers: PulseAudio, PipeWire (pipewire-pulse), or a card of loopbox. It ends by Ctrl-C, SIGTERM, or when a \
                  server goes. While both clocks agree every sample is a copy; otherwise it is resampled."
)]
pub struct LoopArgs {
    /// The source to record from; without, the default one.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,

    /// The sink to play to; without, the default one.
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,

    /// Time from capture to playing: `20ms`, `0.1s`.
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = duration)]
    latency: Duration,

    /// Write what is played to a WAV file, too.
    #[arg(long, value_name = "FILE")]
    wav: Option<PathBuf>,

    /// Show levels: a line that moves on a terminal, a line each second otherwise.
    #[arg(long)]
    meter: bool,

    /// The sound server, as in PULSE_SERVER: `unix:/run/user/1000/pulse/native`.
    #[arg(long, value_name = "ADDRESS")]
    server: Option<String>,

    /// The sink's server, when it is another one.
    #[arg(long, value_name = "ADDRESS")]
    sink_server: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// The sound server, as in PULSE_SERVER: `unix:/run/user/1000/pulse/native`.
    #[arg(long, value_name = "ADDRESS")]
    server: Option<String>,

    /// Print JSON.
    #[arg(short, long)]
    json: bool,
}

fn duration(text: &str) -> std::result::Result<Duration, String> {
    let found = sound::card::duration(text).filter(|time| (0.001..=10.0).contains(&time.as_secs_f64()));
    found.ok_or_else(|| "not 1ms to 10s (`20ms`, `0.1s`)".to_owned())
}

/// Loops until a signal comes.
pub fn run(args: &LoopArgs) -> Result {
    let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
    let signals = sys::signal::Blocked::new(&[sys::signal::TERM, sys::signal::INT, sys::signal::HUP])?;
    let signalled = stop.try_clone()?;
    std::thread::spawn(move || {
        let _ = signals.wait();
        let _ = rustix::io::write(&signalled, &1u64.to_ne_bytes());
    });
    let running = Loop::connect(&Wishes {
        source_server: args.server.clone(),
        sink_server: args.sink_server.clone().or_else(|| args.server.clone()),
        source: args.source.clone(),
        sink: args.sink.clone(),
        latency: args.latency,
        wav: args.wav.clone(),
    })?;
    let session = running.session();
    let name = |side| session.device(side).map(|device| device.name.clone()).unwrap_or_default();
    let spec = session.spec().map(|spec| spec.to_string()).unwrap_or_default();
    let granted = session.latency();
    print::line(&format!(
        "{} -> {}, {spec}, latency {:.1} ms",
        print::escaped(name(Side::Source).as_bytes()),
        print::escaped(name(Side::Sink).as_bytes()),
        granted * 1e3
    ))?;
    std::io::stdout().flush()?;
    if granted > args.latency.as_secs_f64() + 0.000_5 {
        print::warning(&format!("the servers allow no less than {:.1} ms", granted * 1e3));
    }
    let mut last = None;
    let mut meter = Meter::default();
    running.run(stop.as_fd(), |how| {
        last = Some((how.state, how.gaps, how.cuts));
        if args.meter {
            meter.show(how);
        }
    })?;
    meter.end();
    if let Some((state, gaps, cuts)) = last {
        print::line(&format!("{}, {gaps} gaps, {cuts} cuts", describe(state)))?;
    }
    Ok(Status::Done)
}

fn describe(state: State) -> String {
    match state {
        State::Acquiring => "acquiring".to_owned(),
        State::Copying => "copying".to_owned(),
        State::Following(ratio) => format!("following at {:+.1} ppm", (ratio - 1.0) * 1e6),
    }
}

/// The levels on a terminal, or as lines.
#[derive(Default)]
struct Meter {
    reports: u64,
    levels: Vec<Level>,
    shown: bool,
}

impl Meter {
    fn show(&mut self, how: &How) {
        let terminal = print::is_terminal();
        self.levels.resize(how.levels.len(), Level::default());
        for (kept, new) in self.levels.iter_mut().zip(&how.levels) {
            kept.peak = kept.peak.max(new.peak);
            kept.rms = kept.rms.max(new.rms);
        }
        self.reports += 1;
        if !terminal && !self.reports.is_multiple_of(10) {
            return;
        }
        let bars: Vec<String> = self.levels.iter().map(|level| bar(*level, if terminal { 24 } else { 0 })).collect();
        let text = format!("{}  {:.1} ms  {}", bars.join("  "), how.latency * 1e3, describe(how.state));
        let mut out = std::io::stdout();
        // Whoever reads has gone: the loop goes on.
        let _ = if terminal { write!(out, "\r\x1b[K{text}") } else { writeln!(out, "{text}") };
        let _ = out.flush();
        self.shown = terminal;
        // The peak falls by 20 dB a second.
        self.levels.iter_mut().for_each(|level| {
            *level = if terminal { Level { peak: level.peak * 0.794, rms: 0.0 } } else { Level::default() };
        });
    }

    fn end(&self) {
        if self.shown {
            let _ = writeln!(std::io::stdout());
        }
    }
}

/// A bar from -60 to 0 dB: the root mean square in full, the peak as a mark.
fn bar(level: Level, width: usize) -> String {
    let db = |value: f64| 20.0 * value.max(1e-6).log10();
    let place = |value: f64| (((db(value) + 60.0) / 60.0).clamp(0.0, 1.0) * width as f64).round() as usize;
    let (full, mark) = (place(level.rms), place(level.peak));
    let cells: String = (1..=width)
        .map(|at| {
            if at <= full {
                '█'
            } else if at == mark {
                '│'
            } else {
                '·'
            }
        })
        .collect();
    let text = format!("{:>6.1} dB", db(level.peak).max(-99.9));
    if level.peak >= 1.0 { format!("{cells}{}", print::styled(Style::Bad, &text)) } else { format!("{cells}{text}") }
}

#[derive(Serialize)]
struct Row<'a> {
    kind: &'static str,
    name: &'a str,
    description: &'a str,
    format: String,
    channels: u8,
    rate: u32,
    state: &'static str,
    muted: bool,
    default: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    monitor_of: Option<&'a str>,
}

/// Lists sources and sinks.
pub fn list(args: &ListArgs) -> Result {
    let listed = sound::loopback::list(args.server.as_deref())?;
    let row = |kind, device: &'_ Device, default: &str| {
        // Owned by `listed`, which outlives the rows.
        (kind, device.clone(), device.name == default)
    };
    let devices: Vec<(&'static str, Device, bool)> =
        (listed.sources.iter().map(|d| row("source", d, &listed.default_source)))
            .chain(listed.sinks.iter().map(|d| row("sink", d, &listed.default_sink)))
            .collect();
    let rows: Vec<Row<'_>> = devices
        .iter()
        .map(|(kind, device, default)| Row {
            kind,
            name: &device.name,
            description: &device.description,
            format: device.spec.format.to_string(),
            channels: device.spec.channels,
            rate: device.spec.rate,
            state: ["running", "idle", "suspended"].get(device.state as usize).copied().unwrap_or("unknown"),
            muted: device.muted,
            default: *default,
            monitor_of: device.monitor.as_deref().filter(|_| *kind == "source"),
        })
        .collect();
    if args.json {
        print::json(&rows)?;
        return Ok(Status::Done);
    }
    let mut table = Table::new();
    let titles = ["KIND", "NAME", "FORMAT", "STATE", "", "DESCRIPTION"];
    table.row(titles.map(|title| (Style::Bold, title.to_owned())));
    for row in &rows {
        let state = if row.muted { format!("{}, muted", row.state) } else { row.state.to_owned() };
        table.row([
            (Style::Plain, row.kind.to_owned()),
            (Style::Plain, print::escaped(row.name.as_bytes())),
            (Style::Plain, format!("{} {}ch {}Hz", row.format, row.channels, row.rate)),
            (if row.state == "running" { Style::Good } else { Style::Plain }, state),
            (Style::Plain, if row.default { "default" } else { "" }.to_owned()),
            (Style::Plain, print::escaped(row.description.as_bytes())),
        ]);
    }
    print::bytes(table.render().as_bytes())?;
    Ok(Status::Done)
}
