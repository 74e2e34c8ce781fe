//! `loopbox ping` beside iputils, `loopbox ports`, `loopbox hosts`.

use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Stdio;

use rig::{User, requires, requires_root};

use crate::session::Session;

/// The text without the digits of its times: what two runs have in common.
fn timeless(text: &str) -> String {
    let line = |line: &str| {
        let at = if line.starts_with("rtt ") { 0 } else { line.find("time").unwrap_or(line.len()) };
        let (kept, times) = line.split_at(at);
        format!("{kept}{}\n", times.replace(|c: char| c.is_ascii_digit() || c == '.', ""))
    };
    text.lines().map(line).collect()
}

#[test]
fn ping_prints_what_iputils_prints() {
    requires!("ping");
    requires_root!();
    let session = Session::new(User::Myself, "ping");
    for words in [
        "-c 2 -i 0.01 127.0.0.1",
        "-c 1 ::1",
        "-c 1 localhost",
        "-c 1 -n localhost",
        "-q -c 3 -i 0 127.0.0.5",
        "-q -c 3 -f 127.0.0.5",
        "-c 1 -s 8 127.0.0.1",
        "-c 1 -s 0 127.0.0.1",
        "-c 1 -s 60000 ::1",
        "-c 1 nosuch.invalid",
        "-c 1 -4 ::1",
    ] {
        let ours = session.output(std::iter::once("ping").chain(words.split(' ')));
        let theirs = rig::output(session.command("ping").args(words.split(' ')));
        let text = |output: &std::process::Output| timeless(&String::from_utf8_lossy(&output.stdout));
        assert_eq!(text(&ours), text(&theirs), "ping {words}");
        assert_eq!(ours.status.code(), theirs.status.code(), "ping {words}: {}", rig::text(&ours));
    }
}

#[test]
fn ping_ends_with_its_summary_when_interrupted() {
    requires_root!();
    let session = Session::new(User::Myself, "interrupt");
    let mut child = session.loopbox().args(["ping", "127.0.0.1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut text = String::new();
    let mut byte = [0; 1];
    while !text.contains("icmp_seq=1") {
        out.read_exact(&mut byte).unwrap();
        text.push(char::from(byte[0]));
    }
    rig::run("kill", ["-INT", &child.id().to_string()]);
    out.read_to_string(&mut text).unwrap();
    assert!(text.contains("1 packets transmitted, 1 received, 0% packet loss"), "{text}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn ping_floods_only_what_is_loopback() {
    let session = Session::new(User::Ordinary, "flood");
    assert!(session.fails(["ping", "-f", "192.0.2.1"]).contains("not a loopback address"));
}

#[test]
fn ports_says_who_listens_and_why_not() {
    let session = Session::new(User::Myself, "ports");
    let one = TcpListener::bind("127.0.0.9:0").unwrap();
    let port = one.local_addr().unwrap().port();
    let table = session.done(["ports"]);
    let row = table.lines().find(|line| line.contains("127.0.0.9") && line.contains(&port.to_string())).unwrap();
    assert!(row.contains(&format!("({})", std::process::id())) && row.contains("127.0.0.9 only"), "{row}");
    let json: Vec<String> = session.done(["ports", "--json"]).lines().map(str::trim).map(str::to_owned).collect();
    assert!(json.contains(&format!("\"port\": {port},")), "{json:?}");
    assert!(session.done(["ports", &format!("127.0.0.9:{port}")]).contains("is accepted"));
    let output = session.output(["ports", &format!("127.0.0.8:{port}")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(rig::text(&output).contains("not on 127.0.0.8: another address"), "{}", rig::text(&output));
    assert!(session.fails(["ports", "nonsense"]).contains("no NAME:PORT"));
}

#[test]
fn hosts_edits_a_file_and_keeps_what_is_not_its_own() {
    let session = Session::new(User::Myself, "hosts");
    let file = session.join("hosts");
    std::fs::write(&file, "# mine\n127.0.0.1\tlocalhost\n10.0.0.1 db # the old one\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let link = session.join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let hosts = |words: &[&str]| session.output([&["hosts", "--file", link.to_str().unwrap()], words].concat());
    assert_eq!(hosts(&["check"]).status.code(), Some(0));
    assert_eq!(hosts(&["add", "web"]).status.code(), Some(0));
    assert_eq!(hosts(&["add", "db", "10.0.0.2"]).status.code(), Some(2), "db has an address already");
    assert_eq!(hosts(&["remove", "db"]).status.code(), Some(0));
    assert_eq!(hosts(&["remove", "db"]).status.code(), Some(1));
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        "# mine\n127.0.0.1\tlocalhost\n# the old one\n127.0.0.1\tweb\n"
    );
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o640);
    assert!(link.is_symlink());
    assert!(rig::text(&hosts(&["list"])).contains("127.0.0.1  web"));
    std::fs::write(&file, "10.0.0.1 localhost\n").unwrap();
    let checked = hosts(&["check"]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(rig::text(&checked).contains("not the loopback interface"), "{}", rig::text(&checked));
}
