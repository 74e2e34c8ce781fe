//! `loopbox show` beside iproute2 and net-tools.

use std::process::Command;

use rig::{User, requires, requires_root};

use crate::session::{Session, program};

/// Runs a script in a network namespace of its own, whose `lo` is up and quiet: `$L` is loopbox.
fn in_namespace(script: &str) -> String {
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-ec"]).arg(format!("ip link set lo up\n{script}")).env("L", program());
    rig::run_command(&mut command)
}

/// Runs `prepare`, then loopbox and the peer, and compares byte by byte.
fn compare(prepare: &str, loopbox: &str, peer: &str) {
    let both = in_namespace(&format!("{prepare}\n$L {loopbox}\necho ----\n{peer}"));
    let (ours, theirs) = both.split_once("----\n").unwrap();
    assert_eq!(ours, theirs, "`loopbox {loopbox}` beside `{peer}` after `{prepare}`");
}

/// Addresses of every kind that fits on lo, and traffic.
const CROWDED: &str = "ip addr add 10.1.2.3/24 brd + dev lo label lo:foo
    ip addr add 10.1.2.4/24 dev lo
    ip addr add 10.9.0.1 peer 10.9.0.2/32 dev lo
    ip addr add 10.8.0.1/16 dev lo scope link
    ip -6 addr add fd00::1/64 dev lo nodad
    ip -6 addr add fe80::1/64 dev lo noprefixroute
    ip link set lo mtu 1500 group 7 txqueuelen 50
    ping -qc3 -i 0.01 127.0.0.1 >/dev/null";

#[test]
fn show_is_what_iproute2_prints() {
    requires!("ip", "unshare", "ping");
    requires_root!();
    for prepare in ["true", "ip link set lo down", CROWDED, "ip link set lo promisc on; ip addr flush dev lo"] {
        compare(prepare, "show", "ip addr show lo");
        compare(prepare, "show --stats", "ip -s addr show lo");
        compare(prepare, "show --json", "ip -j addr show lo");
        compare(prepare, "show --json --stats", "ip -j -s addr show lo");
    }
}

#[test]
fn show_ifconfig_is_what_net_tools_prints() {
    requires!("ip", "ifconfig", "unshare", "ping");
    requires_root!();
    for bytes in ["0", "972", "2000", "70000"] {
        let prepare =
            format!("{CROWDED}\nping -qc1 -s {} 127.0.0.1 >/dev/null || true", bytes.replace("70000", "60000"));
        compare(&prepare, "show --ifconfig", "ifconfig lo");
    }
    for prepare in ["true", "ip link set lo down", "ip addr flush dev lo", "ip link set lo promisc on"] {
        compare(prepare, "show --ifconfig", "ifconfig lo");
    }
}

#[test]
fn an_ordinary_user_sees_the_same_and_can_watch() {
    requires!("ip");
    let session = Session::new(User::Ordinary, "show");
    let peer = rig::run_command(session.command("ip").args(["addr", "show", "lo"]));
    assert_eq!(session.done(["show"]), peer);
    let watched = session.done(["show", "--watch", "--interval", "0.01", "--count", "3"]);
    assert_eq!(watched.matches("RX").count(), 3, "{watched}");
    assert_eq!(watched.matches("packets/s").count(), 2, "{watched}");
    assert!(session.output(["show", "--interval", "1"]).status.code() == Some(2), "an interval without --watch");
}
