//! `loopbox list`: what is attached.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use export::loop_device;
use export::registry::{Process, Registry, Use};
use serde::Serialize;

use super::{Result, Status};
use crate::print::{self, Style, Table};

/// List the disks that are attached, what `loopbox mount` mounted, and what `loopbox run`, `serve` and `sound card` hold; what dead processes left is cleaned away.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A row: the names and the order of losetup's columns, and two more.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row {
    name: PathBuf,
    sizelimit: u64,
    offset: u64,
    autoclear: bool,
    ro: bool,
    back_file: PathBuf,
    dio: bool,
    log_sec: u64,
    kind: &'static str,
    pid: Option<i32>,
}

/// The shape of `losetup --json`.
#[derive(Debug, Serialize)]
struct Listing {
    loopdevices: Vec<Row>,
    /// Of loopbox alone.
    processes: Vec<Process>,
}

/// Prints the table.
pub fn run(args: &Args) -> Result {
    let mut rows: Vec<Row> = loop_device::list().unwrap_or_default().iter().map(of_kernel).collect();
    let holdings = Registry::of_user()?.list()?.into_iter().filter(|holding| holding.used_as != Use::Loop);
    rows.extend(holdings.map(|holding| Row {
        name: holding.node.filter(|_| holding.used_as == Use::Disk).unwrap_or(holding.point),
        sizelimit: holding.sizelimit,
        offset: holding.offset,
        autoclear: false,
        ro: holding.read_only,
        back_file: holding.image.path,
        dio: false,
        log_sec: holding.block.into(),
        kind: match holding.used_as {
            Use::Disk => "user",
            Use::Directory => "mount",
            Use::Kernel | Use::Loop => "kernel-mount",
        },
        pid: Some(holding.pid).filter(|pid| *pid > 0),
    }));
    let processes = Registry::of_user()?.processes()?;
    if args.json {
        print::json(&Listing { loopdevices: rows, processes })?;
        return Ok(Status::Done);
    }
    let none = rows.is_empty();
    if !none {
        print::bytes(devices(rows).as_bytes())?;
    }
    if !processes.is_empty() {
        let between = if none { "" } else { "\n" };
        print::bytes(format!("{between}{}", table(&processes)).as_bytes())?;
    }
    Ok(Status::Done)
}

/// What processes hold, beside disks and mounts that everybody sees: a line each, and one for each image.
fn table(processes: &[Process]) -> String {
    let mut table = Table::new();
    let heading = ["PID", "VERB", "NET", "IMAGES", "SOUND", "COMMAND"];
    table.row(heading.map(|title| (Style::Plain, title.to_owned())));
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    for process in processes {
        let images = process.images.iter().map(|place| {
            let at = if place.at.as_os_str().is_empty() { "" } else { ":" };
            print::escaped(format!("{}{at}{} ({})", place.image, place.at.display(), place.writes).as_bytes())
        });
        let net = match (&process.uri, process.link) {
            (Some(uri), _) => print::escaped(uri.as_bytes()),
            (None, true) => format!("{}, link", process.net),
            (None, false) => process.net.clone(),
        };
        let cells = [
            process.pid.to_string(),
            process.verb.clone(),
            or_none(net),
            or_none(images.collect::<Vec<_>>().join(" ")),
            process.sound.as_deref().map_or_else(|| "-".to_owned(), text),
            or_none(print::escaped(process.command.join(" ").as_bytes())),
        ];
        table.row(cells.map(|cell| (Style::Plain, cell)));
    }
    table.render()
}

fn devices(rows: Vec<Row>) -> String {
    let mut table = Table::new();
    let heading = ["NAME", "SIZELIMIT", "OFFSET", "AUTOCLEAR", "RO", "BACK-FILE", "DIO", "LOG-SEC", "KIND", "PID"];
    table.row(heading.map(|title| (Style::Plain, title.to_owned())));
    for row in rows {
        let bit = |bit: bool| u8::from(bit).to_string();
        let cells = [
            text(&row.name),
            row.sizelimit.to_string(),
            row.offset.to_string(),
            bit(row.autoclear),
            bit(row.ro),
            text(&row.back_file),
            bit(row.dio),
            row.log_sec.to_string(),
            row.kind.to_owned(),
            row.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        ];
        table.row(cells.map(|cell| (Style::Plain, cell)));
    }
    table.render()
}

fn text(path: &Path) -> String {
    print::escaped(path.as_os_str().as_bytes())
}

fn of_kernel(status: &loop_device::Status) -> Row {
    Row {
        name: status.device().path().to_owned(),
        sizelimit: status.sizelimit,
        offset: status.offset,
        autoclear: status.autoclear,
        ro: status.read_only,
        back_file: status.backing_file.clone(),
        dio: status.direct_io,
        log_sec: status.block_size,
        kind: "kernel",
        pid: None,
    }
}
