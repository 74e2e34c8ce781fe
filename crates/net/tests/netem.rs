//! The link beside netem itself: the same words, in a guest whose kernel has netem; delays, losses, their bursts,
//! duplicates and order are compared as distributions.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "that is how a test fails")]

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use loopbox_net::link::Link;
use rig::guest::Guest;

/// A case: its words for the link, and for netem.
const CASES: &[(&str, &str)] = &[
    ("latency 20ms", "delay 20ms"),
    ("latency 40ms jitter 10ms", "delay 40ms 10ms"),
    // netem's correlation of delays has no effect: it takes the remainder of a correlated number.
    ("latency 40ms jitter 10ms 75%", "delay 40ms 10ms 75%"),
    ("latency 60ms jitter 10ms distribution normal", "delay 60ms 10ms distribution normal"),
    ("latency 60ms jitter 10ms distribution pareto", "delay 60ms 10ms distribution pareto"),
    ("latency 60ms jitter 10ms distribution paretonormal", "delay 60ms 10ms distribution paretonormal"),
    ("loss 10%", "loss 10%"),
    ("loss 20% 50%", "loss 20% 50%"),
    ("loss state 5% 30% 20% 60% 1%", "loss state 5% 30% 20% 60% 1%"),
    ("loss gemodel 5% 30% 70% 1%", "loss gemodel 5% 30% 70% 1%"),
    ("duplicate 10%", "duplicate 10%"),
    ("latency 20ms reorder 25% 50%", "delay 20ms reorder 25% 50%"),
    ("latency 20ms reorder 100% gap 5", "delay 20ms reorder 100% gap 5"),
    ("rate 400kbit", "rate 400kbit"),
    ("latency 20ms rate 800kbit", "delay 20ms rate 800kbit"),
    // Always full: what gets in waits for five others.
    ("rate 20kbit limit 6", "rate 20kbit limit 6"),
];
const PACKETS: u32 = 800;
const INTERVAL: Duration = Duration::from_millis(2);
/// Of each packet: an IP header, an ICMP header and 56 bytes; and the Ethernet header of `lo`, which netem counts.
const PACKET_BYTES: usize = 84 + 14;
/// Where tc looks for netem's tables, by architecture and distribution.
const TABLES: &[&str] = &["/usr/lib/x86_64-linux-gnu/tc", "/usr/lib/tc", "/usr/share/tc"];

/// What came of the packets of a case.
#[derive(Debug)]
struct Seen {
    /// Milliseconds of each first arrival, sorted.
    delays: Vec<f64>,
    lost: f64,
    /// Of those that are lost, the share whose successor is lost as well.
    burst: f64,
    duplicated: f64,
    /// The share of arrivals with a smaller number than the one before.
    reordered: f64,
    /// How far delays that follow each other lie apart, mean, milliseconds.
    step: f64,
}

impl Seen {
    /// From arrivals in their order: number, delay in milliseconds.
    fn of(arrivals: &[(u32, f64)], sent: u32) -> Self {
        let mut first: HashMap<u32, f64> = HashMap::new();
        let mut duplicated = 0.0;
        for (number, delay) in arrivals {
            match first.contains_key(number) {
                true => duplicated += 1.0,
                false => drop(first.insert(*number, *delay)),
            }
        }
        let lost: Vec<u32> = (0..sent).filter(|number| !first.contains_key(number)).collect();
        let bursts = lost.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count() as f64;
        let reordered = arrivals.windows(2).filter(|pair| pair[1].0 < pair[0].0).count() as f64;
        let steps: Vec<f64> =
            (1..sent).filter_map(|at| Some((first.get(&at)? - first.get(&(at - 1))?).abs())).collect();
        let mut delays: Vec<f64> = first.into_values().collect();
        delays.sort_by(f64::total_cmp);
        let packets = f64::from(sent);
        Self {
            delays,
            lost: lost.len() as f64 / packets,
            burst: bursts / (lost.len() as f64).max(1.0),
            duplicated: duplicated / packets,
            reordered: reordered / packets,
            step: steps.iter().sum::<f64>() / (steps.len() as f64).max(1.0),
        }
    }

    /// The standard error of a quantile of [`PACKETS`] delays that are spread like these.
    fn error(&self, share: f64) -> f64 {
        let slope = (self.quantile((share + 0.005).min(1.0)) - self.quantile((share - 0.01).max(0.0))) / 0.015;
        slope * (share * (1.0 - share) / f64::from(PACKETS)).sqrt()
    }

    fn quantile(&self, share: f64) -> f64 {
        self.delays[((self.delays.len() - 1) as f64 * share).round() as usize]
    }
}

/// The same packets through the link; more of them, so that only netem's are few.
fn simulated(rule: &str) -> Seen {
    let sent = PACKETS * 20;
    let mut link = Link::new(vec![rule.parse().unwrap()], 3);
    let mut arrivals = Vec::new();
    let mut number = 0;
    loop {
        let next = (number < sent).then(|| INTERVAL * number);
        match link.next_due() {
            Some(due) if next.is_none_or(|next| due <= next) => {
                let item: u32 = link.pop(due).unwrap().item;
                arrivals.push((item, due.saturating_sub(INTERVAL * item).as_secs_f64() * 1e3));
            }
            _ if next.is_none() => return Seen::of(&arrivals, sent),
            _ => {
                let _ = link.push(number, None, PACKET_BYTES, INTERVAL * number);
                number += 1;
            }
        }
    }
}

/// What ping printed: `64 bytes from 127.0.0.5: icmp_seq=1 ttl=64 time=20.1 ms`.
fn measured(text: &str) -> Seen {
    let field = |line: &str, name: &str| line.split_once(name)?.1.split(' ').next()?.parse::<f64>().ok();
    let lines = text.lines().filter_map(|line| Some((field(line, "icmp_seq=")? as u32 - 1, field(line, " time=")?)));
    Seen::of(&lines.collect::<Vec<_>>(), PACKETS)
}

#[test]
fn every_word_means_what_it_means_to_netem() {
    rig::requires_guest!();
    rig::requires!("tc", "ping", "tar");
    let scratch = rig::Scratch::new("netem");
    let results = scratch.join("results");
    std::fs::File::create(&results).unwrap().set_len(16 << 20).unwrap();
    let ping = format!("ping -n -i {} -c {PACKETS} -W 1", INTERVAL.as_secs_f64());
    // Only what goes to 127.0.0.5 is delayed: the answers come back at once.
    let mut script = format!(
        "set -e; mkdir /tmp/r; {ping} 127.0.0.5 >/tmp/r/none
        measure() {{ name=$1; shift
            tc qdisc add dev lo root handle 1: prio bands 3 priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
            tc qdisc add dev lo parent 1:3 handle 30: netem \"$@\"
            tc filter add dev lo parent 1: protocol ip prio 1 u32 match ip dst 127.0.0.5/32 flowid 1:3
            {ping} 127.0.0.5 >/tmp/r/$name || true; tc qdisc del dev lo root; }}\n"
    );
    for (number, (_, netem)) in CASES.iter().enumerate() {
        let limit = if netem.contains("limit") { "" } else { "limit 1000" };
        script.push_str(&format!("measure {number} {limit} {netem}\n"));
    }
    script.push_str("tar -cf /dev/vda -C /tmp/r .\n");
    let tables = TABLES.iter().find(|path| Path::new(path).join("normal.dist").exists()).expect("tables of tc");
    let guest = Guest::new().module("sch_netem").module("sch_prio").module("cls_u32").disk(&results);
    let guest = guest.program("tc").program("ping").file(tables.as_ref(), tables).patience(Duration::from_secs(900));
    // The guest's time is counted in instructions: what else this machine does makes no packet late.
    let guest = guest.argument(["-icount", "shift=3,sleep=off"]);
    let done = guest.run(&script);
    assert_eq!(done.status, 0, "{done}");
    let file = |name: &str| rig::run("tar", ["-xOf", results.to_str().unwrap(), &format!("./{name}")]);
    let idle = measured(&file("none"));
    let base = idle.quantile(0.5);
    // The guest's own noise, milliseconds.
    let noise = 0.7 + (idle.quantile(0.9) - base).min(1.5);
    let mut wrong = vec![];
    for (number, (rule, _)) in CASES.iter().enumerate() {
        let (ours, netem) = (simulated(rule), measured(&file(&number.to_string())));
        let mut compare = |what: &str, ours: f64, netem: f64, tolerance: f64| {
            let line = format!("{rule}: {what}: link {ours:.3}, netem {netem:.3}, within {tolerance:.3}");
            println!("{line}");
            if (ours - netem).abs() > tolerance {
                wrong.push(line);
            }
        };
        // Five standard deviations of the difference of two shares, and half as much again for correlated draws.
        let share = |share: f64| 7.5 * (2.0 * share * (1.0 - share) / f64::from(PACKETS)).sqrt() + 0.004;
        if !rule.contains("limit") {
            // How many find it full depends on how fast they are sent.
            compare("lost", ours.lost, netem.lost, share(ours.lost.max(netem.lost)));
        }
        if rule.contains("loss") {
            compare("lost after a loss", ours.burst, netem.burst, 0.2);
        }
        compare("duplicated", ours.duplicated, netem.duplicated, share(ours.duplicated));
        for (what, at) in [("p10", 0.1), ("p25", 0.25), ("median", 0.5), ("p75", 0.75), ("p90", 0.9), ("p99", 0.99)] {
            // Of a queue that is full: a third of what a packet takes, since a place is free for some time before one comes.
            let slack = noise + if rule.contains("limit") { 13.0 } else { 5.0 * ours.error(at) };
            compare(what, ours.quantile(at), netem.quantile(at) - base, slack);
        }
        if rule.contains("jitter") {
            // Where ours are correlated, netem's are as if they were not: two thirds of the jitter.
            let step = if rule.contains('%') { 2.0 * 10.0 / 3.0 } else { ours.step };
            compare("step", step, netem.step, noise + step * 0.15);
        }
        if rule.contains("reorder") {
            compare("reordered", ours.reordered, netem.reordered, 0.07);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
