//! The link of `loopbox run`: what is asked beside what ping, iperf3 and tshark measure, as an ordinary user.

use rig::{User, requires};

use crate::session::{Session, program};

/// Runs a script inside, `$L` being loopbox, and returns what it printed.
fn inside(session: &Session, options: &[&str], script: &str) -> String {
    rig::run_command(
        session.loopbox().env("L", program()).args(["run"]).args(options).args(["--", "sh", "-euc", script]),
    )
}

/// min, mean, max of ping's closing line, milliseconds.
fn round_trip(text: &str) -> [f64; 3] {
    let line = text.lines().find(|line| line.starts_with("rtt ")).unwrap_or_else(|| panic!("no times: {text}"));
    let numbers: Vec<f64> = line.split(" = ").nth(1).unwrap().split('/').take(3).map(|n| n.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

/// A count of `loopbox link show`.
fn count(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with("received ")).unwrap_or_else(|| panic!("no counts: {text}"));
    let mut words = line.split(' ').skip_while(|word| *word != name);
    words.nth(1).unwrap().parse().unwrap()
}

#[test]
fn latency_is_added_each_way_for_both_families() {
    requires!("ping");
    let session = Session::new(User::Ordinary, "latency");
    for address in ["127.0.0.1", "::1"] {
        let [min, ..] = round_trip(&inside(&session, &["--latency", "20ms"], &format!("ping -qc5 -i 0.01 {address}")));
        // Never less than asked; what comes on top is this machine's load.
        assert!((40.0..60.0).contains(&min), "{address}: {min} ms");
    }
    let [min, ..] = round_trip(&inside(&session, &["--link"], "ping -qc5 -i 0.01 127.0.0.1"));
    assert!(min < 10.0, "{min} ms through a link without rules");
}

#[test]
fn loss_is_repeated_by_its_seed() {
    let session = Session::new(User::Ordinary, "loss");
    let script = "$L ping -q -i 0 -c 2000 -W 0.1 127.0.0.5; $L link show";
    // Requests alone: with the replies among them, the order would be another each time.
    let rule = "to 127.0.0.5: loss 10%";
    let lost = |seed: &str| count(&inside(&session, &["--rule", rule, "--seed", seed], script), "lost");
    let first = lost("7");
    // 200, and 5 standard deviations.
    assert!(first.abs_diff(200) < 67, "{first}");
    assert_eq!(lost("7"), first);
}

#[test]
fn the_rate_is_what_iperf3_measures() {
    requires!("iperf3");
    let session = Session::new(User::Ordinary, "rate");
    let script = "iperf3 -s -1 -D -I /tmp/iperf3-$$.pid; until ss -Htln | grep -q :5201; do :; done
        iperf3 -c 127.0.0.1 -u -b 100M -l 1000 -t 1 --json; rm -f /tmp/iperf3-$$.pid";
    let text = inside(&session, &["--rule", "udp: rate 20mbit limit 1000"], script);
    let received = text.split("\"sum_received\"").nth(1).unwrap_or_else(|| panic!("{text}"));
    let bits = received.split("\"bits_per_second\":").nth(1).unwrap().split(',').next().unwrap().trim();
    let bits: f64 = bits.parse().unwrap();
    // 1000 bytes of payload in 1028 of packet.
    assert!((bits / 19.46e6 - 1.0).abs() < 0.15, "{bits} bit/s");
}

#[test]
fn rules_are_for_a_part_and_change_while_it_runs() {
    requires!("ping");
    let session = Session::new(User::Ordinary, "rules");
    let script = "ping -qc2 -i 0.01 127.0.0.5; ping -qc2 -i 0.01 127.0.0.1
        $L link set 'to 127.0.0.5: block'; $L ping -qc1 -W 0.1 127.0.0.5 || echo blocked
        $L link set 'latency 30ms'; ping -qc2 -i 0.01 127.0.0.5; $L link set; ping -qc2 -i 0.01 127.0.0.5
        $L link set 'to 127.0.0.5: duplicate 100%'; ping -c2 -i 0.05 127.0.0.5 | grep DUP
        $L link set 'to 127.0.0.6: corrupt 100%'; $L ping -qc2 -i 0.01 -W 0.2 127.0.0.6 || echo damaged; $L link show";
    let text = inside(&session, &["--rule", "to 127.0.0.5: latency 15ms"], script);
    let times: Vec<f64> = text.lines().filter(|line| line.starts_with("rtt")).map(|line| round_trip(line)[0]).collect();
    assert_eq!(times.len(), 4, "{text}");
    assert!(times[0] >= 15.0 && times[1] < 15.0 && times[2] >= 60.0 && times[3] < 15.0, "{times:?}");
    assert!(text.contains("blocked") && text.contains("(DUP!)") && text.contains("damaged"), "{text}");
    assert!(session.fails(["link", "show"]).contains("no `loopbox run` with a link is running"));
    assert!(session.fails(["run", "--latency", "x", "true"]).contains("no time"));
    assert!(session.fails(["run", "--net", "host", "--latency", "1ms", "true"]).contains("without a private network"));
}

#[test]
fn duplicates_and_turned_bits_reach_programs() {
    requires!("ping");
    let session = Session::new(User::Ordinary, "duplicate");
    for address in ["127.0.0.1", "::1"] {
        let text = inside(&session, &["--duplicate", "100%"], &format!("ping -qc10 -i 0.01 {address}"));
        assert!(text.contains("+") && text.contains("duplicates") && text.contains("10 received"), "{text}");
    }
    let script = "$L ping -q -i 0 -c 300 -W 0.1 127.0.0.1; $L link show";
    let text = inside(&session, &["--corrupt", "50%"], script);
    // A packet with a turned bit is dropped by its checksum: a quarter of the replies is left.
    let received: u64 =
        text.split(" packets transmitted, ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((40..=110).contains(&received), "{text}");
}

#[test]
fn tshark_reads_every_packet_of_a_capture() {
    requires!("ping", "tshark");
    let session = Session::new(User::Ordinary, "capture");
    let file = session.join("run.pcapng");
    let name = file.to_str().unwrap();
    let options = ["--capture", name, "--rule", "to 127.0.0.9: block"];
    let script =
        "ping -qc3 -i 0.01 127.0.0.1; ping -qc3 -i 0.01 ::1; $L ping -qc2 -i 0.01 -W 0.01 127.0.0.9 || $L link show";
    let counts = inside(&session, &options, script);
    let fields =
        ["-T", "fields", "-e", "frame.interface_name", "-e", "frame.comment", "-e", "icmp.type", "-e", "icmpv6.type"];
    let read = rig::run_command(session.command("tshark").args(["-r", name]).args(fields));
    let lines: Vec<&str> = read.lines().collect();
    assert_eq!((lines.len() as u64, count(&counts, "received")), (14, 14), "{read}");
    assert!(lines.iter().all(|line| line.starts_with("lo\t")), "{read}");
    assert_eq!(lines.iter().filter(|line| line.contains("lost by a rule")).count(), 2, "{read}");
    assert_eq!(lines.iter().filter(|line| line.ends_with("\t129")).count(), 3, "{read}");
}

#[test]
fn real_servers_work_through_a_slow_link() {
    requires!("curl", "python3", "redis-server", "redis-benchmark");
    let session = Session::new(User::Ordinary, "servers");
    let script = "redis-server --port 6379 --save '' --dir /tmp >/dev/null & until redis-cli ping >/dev/null 2>&1; do :; done
        redis-benchmark -q -n 200 -c 20 -t set,get; python3 -m http.server --bind ::1 8000 >/dev/null 2>&1 &
        until curl -so /dev/null 'http://[::1]:8000/'; do :; done; curl -s -o /dev/null -w '%{http_code} %{time_connect}' http://shop.localhost:8000/";
    let text = inside(&session, &["--latency", "2ms", "--loss", "0.5%"], script);
    assert!(text.contains("GET: "), "{text}");
    let (code, time) = text.lines().last().unwrap().split_once(' ').unwrap();
    assert_eq!(code, "200");
    assert!(time.parse::<f64>().unwrap() >= 0.004, "{time}");
}

#[test]
fn a_capture_under_full_load_holds_every_packet_whole() {
    requires!("iperf3", "tshark");
    let session = Session::new(User::Ordinary, "load");
    let file = session.join("run.pcapng");
    let script = "iperf3 -s -1 -D -I /tmp/iperf3-$$.pid; until ss -Htln | grep -q :5201; do :; done
        iperf3 -c ::1 -n 40M --json; rm -f /tmp/iperf3-$$.pid; $L link show";
    let text = inside(&session, &["--capture", file.to_str().unwrap()], script);
    let (received, missed) = (count(&text, "received"), count(&text, "missed"));
    let read = rig::run_command(session.command("tshark").arg("-r").arg(&file).args([
        "-T",
        "fields",
        "-e",
        "frame.cap_len",
        "-e",
        "frame.len",
    ]));
    let lengths: Vec<(u64, u64)> = read
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(kept, len)| (kept.parse().unwrap(), len.parse().unwrap()))
        .collect();
    // The connection that ends after the counts were printed adds a few.
    assert!(lengths.len() as u64 >= received, "{} packets in the file, {received} counted", lengths.len());
    // The kernel hands over 65531 bytes at most.
    assert!(lengths.iter().all(|(kept, len)| kept == len.min(&65_531)), "a packet is cut: {lengths:?}");
    let bytes: u64 = lengths.iter().map(|(_, len)| len).sum();
    // What arrived went through the link; what was only sent may still have been in a buffer at the end.
    let (_, sum) = text.split_once("\"sum_received\":").unwrap();
    let (_, arrived) = sum.split_once("\"bytes\":").unwrap();
    let arrived: u64 = arrived.split([',', '}']).next().unwrap().trim().parse().unwrap();
    assert!(arrived > 20 << 20, "{arrived} bytes arrived of 40 MiB");
    assert!(bytes + missed * 65_535 >= arrived, "{bytes} bytes in the file of {arrived}, {missed} packets missed");
}
