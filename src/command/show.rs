//! `loopbox show`: the loopback interface.

use std::time::Duration;

use net::interface::{self, Counters, Interface, Names};

use super::{Result, Status};
use crate::print::{self, Style, Table};

/// The loopback interface, as `ip addr show lo` prints it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Add the counters, as `ip -s addr show lo`.
    #[arg(short, long)]
    stats: bool,
    /// Print what `ifconfig lo` prints.
    #[arg(long, conflicts_with_all = ["stats", "json"])]
    ifconfig: bool,
    /// Print JSON, as `ip -j addr show lo`.
    #[arg(short, long)]
    json: bool,
    /// Show the counters again and again, received beside sent, until it is interrupted.
    #[arg(short, long, conflicts_with_all = ["stats", "json", "ifconfig"])]
    watch: bool,
    /// Seconds between two looks.
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = super::seconds, requires = "watch")]
    interval: Duration,
    /// How many looks; without it, no end.
    #[arg(short, long, value_name = "NUMBER", requires = "watch")]
    count: Option<u64>,
}

/// Asks the kernel and prints.
pub fn run(args: &Args) -> Result {
    if args.watch {
        return watch(args);
    }
    let lo = interface::loopback()?;
    let names = Names::of_machine();
    if args.json {
        print::line(&serde_json::to_string(&interface::json(&lo, &names, args.stats))?)?;
    } else if args.ifconfig {
        let inet6 = interface::Inet6::of(&lo.name)?;
        print::bytes(interface::ifconfig(&lo, &inet6).as_bytes())?;
    } else {
        print::bytes(interface::text(&lo, &names, args.stats).as_bytes())?;
    }
    Ok(Status::Done)
}

fn watch(args: &Args) -> Result {
    let mut before: Option<Counters> = None;
    let mut looks = 0u64;
    loop {
        let lo = interface::loopback()?;
        if print::is_terminal() {
            print::bytes(b"\x1b[H\x1b[2J")?;
        }
        print::bytes(counters(&lo, before.as_ref(), args.interval).as_bytes())?;
        before = Some(lo.counters);
        looks += 1;
        if args.count.is_some_and(|count| looks >= count) {
            return Ok(Status::Done);
        }
        std::thread::sleep(args.interval);
    }
}

/// The counters in two columns; with the rates since `before`.
fn counters(lo: &Interface, before: Option<&Counters>, interval: Duration) -> String {
    let c = &lo.counters;
    let zero = Counters::default();
    let old = before.unwrap_or(&zero);
    let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / interval.as_secs_f64().max(1e-9);
    let mut table = Table::new();
    let plain = |text: String| (Style::Plain, text);
    table.row([(Style::Bold, lo.name.clone()), (Style::Bold, "RX".into()), (Style::Bold, "TX".into())]);
    for (name, rx, tx) in [
        ("bytes", c.rx_bytes, c.tx_bytes),
        ("packets", c.rx_packets, c.tx_packets),
        ("errors", c.rx_errors, c.tx_errors),
        ("dropped", c.rx_dropped, c.tx_dropped),
    ] {
        table.row([plain(name.into()), plain(rx.to_string()), plain(tx.to_string())]);
    }
    if before.is_some() {
        for (name, rx, tx) in [
            ("bytes/s", rate(c.rx_bytes, old.rx_bytes), rate(c.tx_bytes, old.tx_bytes)),
            ("packets/s", rate(c.rx_packets, old.rx_packets), rate(c.tx_packets, old.tx_packets)),
        ] {
            table.row([plain(name.into()), plain(format!("{rx:.0}")), plain(format!("{tx:.0}"))]);
        }
    }
    table.render()
}
