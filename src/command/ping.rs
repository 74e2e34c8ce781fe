//! `loopbox ping`: ICMP echo, with the words and the output of iputils.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use net::hosts::{self, Hosts};
use net::ping::{Event, PAYLOAD_BYTES_MAX, Ping, Statistics};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sys::signalfd::SignalFd;

use super::{Result, Status, seconds};
use crate::print;

/// What the wait for the last replies is at most, when none came at all and -W does not say.
const LINGER: Duration = Duration::from_secs(10);
/// The pace of a flood without replies.
const FLOOD_INTERVAL: Duration = Duration::from_millis(10);

/// Send ICMP echo requests and show the replies, as ping does.
///
/// Exit status: 0 when a reply came, 1 when none did, 2 for anything else.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The address or the name.
    target: String,
    /// How many requests; without it, until interrupted.
    #[arg(short, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Seconds between two requests.
    #[arg(short, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// The payload, bytes.
    #[arg(short, value_name = "BYTES", default_value_t = 56, value_parser = payload)]
    size: usize,
    /// Seconds to wait for the last replies.
    #[arg(short = 'W', value_name = "SECONDS", value_parser = seconds)]
    wait: Option<Duration>,
    /// IPv4 only.
    #[arg(short = '4', conflicts_with = "ipv6")]
    ipv4: bool,
    /// IPv6 only.
    #[arg(short = '6')]
    ipv6: bool,
    /// Only the first line and the closing ones.
    #[arg(short)]
    quiet: bool,
    /// Flood: the next request as soon as the reply is here. Only to loopback addresses.
    #[arg(short)]
    flood: bool,
    /// The time to live, or hop limit, of requests: routers that they may pass, and one.
    #[arg(short = 't', value_name = "HOPS", value_parser = clap::value_parser!(u8).range(1..))]
    hops: Option<u8>,
    /// Numbers only: look no names up for addresses.
    #[arg(short = 'n')]
    numeric: bool,
}

fn payload(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(bytes) if bytes <= PAYLOAD_BYTES_MAX => Ok(bytes),
        _ => Err(format!("not a number of bytes from 0 to {PAYLOAD_BYTES_MAX}")),
    }
}

/// Sends, receives, prints.
pub fn run(args: &Args) -> Result {
    let wanted = |address: &IpAddr| if args.ipv4 { address.is_ipv4() } else { !args.ipv6 || address.is_ipv6() };
    let addresses = hosts::resolve(&args.target)?;
    let address = addresses.into_iter().find(wanted).ok_or_else(|| {
        net::Error::new(net::Kind::NotFound, format!("{}: Address family for hostname not supported", args.target))
    })?;
    if args.flood && !address.is_loopback() {
        let what = format!("flood to {address}, which is not a loopback address");
        return Err(net::Error::new(net::Kind::Denied, what).into());
    }
    let signals = SignalFd::new(&[sys::signal::INT, sys::signal::TERM])?;
    let mut ping = Ping::open(address)?;
    if let Some(hops) = args.hops {
        ping.set_hops(hops)?;
    }
    let from = source_name(args, address);
    print::line(&first_line(args, address))?;
    let mut round = Round::new(args);
    while round.goes_on() {
        if round.next_request() {
            ping.send(round.sequence(), args.size)?;
            if args.flood && !args.quiet {
                print::bytes(b".")?;
            }
        }
        wait(&ping, &signals, round.wake())?;
        if signals.next()?.is_some() {
            break;
        }
        loop {
            match ping.receive() {
                Ok(Some(Event::Refusal(refusal))) => {
                    round.statistics.errors += 1;
                    if !args.quiet {
                        let from = refusal.from.map_or_else(|| from.clone(), |address| source_name(args, address));
                        print::line(&format!("From {from} icmp_seq={} {}", refusal.sequence, refusal.reason))?;
                    }
                }
                Ok(Some(Event::Reply(reply))) => {
                    let first = round.statistics.reply(&reply);
                    round.answered();
                    let duplicate = if first { "" } else { " (DUP!)" };
                    if args.flood && !args.quiet {
                        print::bytes(b"\x08 \x08")?;
                    } else if !args.quiet {
                        print::line(&format!("{}{duplicate}", reply.line(&from)))?;
                    }
                }
                Ok(None) => break,
                Err(error) if error.kind() == net::Kind::Unreachable => {
                    round.statistics.errors += 1;
                    if !args.quiet {
                        let reason = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                        let reason = reason.split(" (os error").next().unwrap_or_default();
                        print::line(&format!("From {from} icmp_seq={} {reason}", round.sequence()))?;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    let summary = round.statistics.summary(&args.target, round.elapsed(), args.flood || args.interval.is_zero());
    print::bytes(format!("\n{summary}").as_bytes())?;
    Ok(if round.statistics.received > 0 { Status::Done } else { Status::No })
}

fn first_line(args: &Args, address: IpAddr) -> String {
    let (target, size) = (&args.target, args.size);
    match address {
        IpAddr::V4(_) => format!("PING {target} ({address}) {size}({}) bytes of data.", size + 28),
        IpAddr::V6(_) if target.parse::<IpAddr>().is_ok() => format!("PING {target}({address}) {size} data bytes"),
        IpAddr::V6(_) => {
            let name = source_name(args, address);
            let source = if name.contains(' ') { name } else { format!("{target} ({address})") };
            format!("PING {target}({source}) {size} data bytes")
        }
    }
}

/// `NAME (ADDRESS)` where the hosts file has a name and the target was one; else the address.
fn source_name(args: &Args, address: IpAddr) -> String {
    if args.numeric || args.target.parse::<IpAddr>().is_ok() {
        return address.to_string();
    }
    let hosts = Hosts::read(std::path::Path::new(hosts::PATH)).unwrap_or_default();
    hosts.name(address).map_or_else(|| address.to_string(), |name| format!("{name} ({address})"))
}

/// When the next request is due, and when it is over.
struct Round<'a> {
    args: &'a Args,
    statistics: Statistics,
    start: Instant,
    due: Instant,
    last_event: Instant,
    last_sent: Instant,
}

impl<'a> Round<'a> {
    fn new(args: &'a Args) -> Self {
        let now = Instant::now();
        let statistics = Statistics::default();
        Self { args, statistics, start: now, due: now, last_event: now, last_sent: now }
    }

    fn all_sent(&self) -> bool {
        self.args.count.is_some_and(|count| self.statistics.transmitted >= count)
    }

    fn goes_on(&self) -> bool {
        let all_answered = self.statistics.received + self.statistics.errors >= self.statistics.transmitted;
        !self.all_sent() || (!all_answered && Instant::now() < self.give_up())
    }

    fn give_up(&self) -> Instant {
        let patience = match (self.args.wait, self.statistics.time_max()) {
            (Some(wait), _) => wait,
            (None, Some(longest)) => self.args.interval.max(longest * 2),
            (None, None) => LINGER,
        };
        self.last_sent + patience
    }

    /// Whether a request is due now; it is counted.
    fn next_request(&mut self) -> bool {
        let now = Instant::now();
        let send = !self.all_sent() && now >= self.due;
        if send {
            if self.statistics.transmitted == 0 {
                self.start = now;
            }
            self.due = now + if self.args.flood { FLOOD_INTERVAL } else { self.args.interval };
            (self.last_event, self.last_sent) = (now, now);
            let next = (self.statistics.transmitted + 1) as u16;
            self.statistics.sent(next);
        }
        send
    }

    fn answered(&mut self) {
        self.last_event = Instant::now();
        if self.args.flood {
            self.due = self.last_event;
        }
    }

    fn sequence(&self) -> u16 {
        self.statistics.transmitted as u16
    }

    fn wake(&self) -> Instant {
        if self.all_sent() { self.give_up() } else { self.due }
    }

    /// From the first request to the last event.
    fn elapsed(&self) -> Duration {
        self.last_event.saturating_duration_since(self.start)
    }
}

/// Waits for a reply or a signal, until `wake` at most.
fn wait(ping: &Ping, signals: &SignalFd, wake: Instant) -> std::io::Result<()> {
    let mut files = [PollFd::new(ping, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
    let left = wake.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).map_err(std::io::Error::other)?;
    match poll(&mut files, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
