//! `loopbox ports`: who listens on the loopback interface.

use std::collections::HashMap;

use net::ports::{self, Listener, Process, Protocol, Reach};
use serde::Serialize;

use super::{Result, Status};
use crate::print::{self, Style, Table};

/// Who listens on the loopback interface, on which of its addresses, and who else can reach it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Explain why a connection to it is refused: a list of checks; exit status 1 if it is.
    #[arg(value_name = "NAME:PORT")]
    target: Option<String>,
    /// Print JSON.
    #[arg(short, long)]
    json: bool,
}

#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    listener: &'a Listener,
    reach: Reach,
    shadows: Vec<&'a Process>,
}

/// Asks the kernel and prints.
pub fn run(args: &Args) -> Result {
    let listeners = ports::listeners()?;
    if let Some(target) = &args.target {
        let (checks, answers) = ports::explain(target, &listeners)?;
        if args.json {
            print::json(&checks)?;
        } else {
            let mut table = Table::new();
            for check in checks {
                let mark = if check.good { (Style::Good, "yes".into()) } else { (Style::Bad, "no".into()) };
                table.row([mark, (Style::Plain, print::escaped(check.found.as_bytes()))]);
            }
            print::bytes(table.render().as_bytes())?;
        }
        return Ok(if answers { Status::Done } else { Status::No });
    }
    let rows: Vec<Row<'_>> = listeners
        .iter()
        .filter(|listener| listener.reach() != Reach::Address)
        .map(|listener| Row {
            listener,
            reach: listener.reach(),
            shadows: listeners.iter().filter(|o| o.shadows(listener)).flat_map(|o| &o.processes).collect(),
        })
        .collect();
    if args.json {
        print::json(&rows)?;
    } else {
        print::bytes(table(&rows).as_bytes())?;
    }
    Ok(Status::Done)
}

fn table(rows: &[Row<'_>]) -> String {
    let users = users();
    let mut table = Table::new();
    let heading = |text: &str| (Style::Bold, text.to_owned());
    table.row(["PROTO", "ADDRESS", "PORT", "USER", "PROCESS", "REACHED FROM"].map(heading));
    for row in rows {
        let l = row.listener;
        let protocol = match l.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        let (style, reach) = match row.reach {
            Reach::Outside => (Style::Warning, "outside".to_owned()),
            Reach::OutsideIpv4 => (Style::Warning, "outside, IPv4 only".to_owned()),
            Reach::OutsideIpv6 => (Style::Warning, "outside, IPv6 only".to_owned()),
            Reach::Loopback | Reach::Address => (Style::Plain, format!("{} only", l.address)),
        };
        let mut reach = reach;
        if !row.shadows.is_empty() {
            reach.push_str(&format!("; beside {}", processes(&mut row.shadows.iter().copied())));
        }
        table.row([
            (Style::Plain, protocol.to_owned()),
            (Style::Name, l.address.to_string()),
            (Style::Plain, l.port.to_string()),
            (Style::Plain, users.get(&l.uid).cloned().unwrap_or_else(|| l.uid.to_string())),
            (Style::Plain, processes(&mut l.processes.iter())),
            (style, reach),
        ]);
    }
    table.render()
}

fn processes(processes: &mut dyn Iterator<Item = &Process>) -> String {
    let names: Vec<String> =
        processes.map(|process| format!("{} ({})", print::escaped(process.name.as_bytes()), process.pid)).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(", ") }
}

/// The names of users, from `/etc/passwd`.
fn users() -> HashMap<u32, String> {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        Some((fields.nth(1)?.parse().ok()?, name))
    };
    text.lines().filter_map(user).collect()
}
