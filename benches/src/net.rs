//! The private network and its link: against the kernel's own `lo`, socat, pasta and slirp4netns. (toxiproxy is in no
//! Debian release.)
//!
//! One client and one server for all, [`talk`], which this program is itself when it is called so: bulk data one way, one
//! small request at a time, and one connection after the other. Inside `loopbox run` both ends run in the private
//! network; of the proxies the client is on their one side and the server on the other.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rig::Scratch;

use crate::contest::{Contest, Row, Unit};

pub mod talk;

/// Rounds of a row.
const ROUNDS: usize = 5;
const ROUND_MS: &str = "400";
/// Where the server is, and where socat leads to it.
const SERVER_PORT: u16 = 6701;
const SOCAT_PORT: u16 = 6702;
/// Clock ticks of `/proc/PID/stat`: a constant of the interface.
const TICKS_PER_SECOND: f64 = 100.0;

/// Programs that run beside, ended when dropped.
struct Beside(Vec<Child>);

impl Beside {
    fn start(&mut self, words: &[&str]) -> u32 {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.0.push(command.spawn().unwrap_or_else(|error| panic!("{words:?}: {error}")));
        self.0.last().unwrap().id()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        for child in self.0.iter_mut().rev() {
            let _ = (child.kill(), child.wait());
        }
    }
}

/// Processor seconds of a process and of those that it has waited for.
fn processor_seconds(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // utime, stime, cutime, cstime.
    fields[11..15].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / TICKS_PER_SECOND
}

/// A way between client and server: the words before those of the client, and where it finds the server.
struct Way {
    name: &'static str,
    words: Vec<String>,
    target: String,
    /// What else works for it.
    beside: Vec<u32>,
}

impl Way {
    fn new(name: &'static str, words: &[&str], target: &str) -> Self {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Self { name, words, target: target.to_owned(), beside: vec![] }
    }

    /// What the client measured, and the processor seconds that all of it took.
    fn run(&self, kind: &str) -> (f64, f64) {
        let client = std::env::current_exe().unwrap();
        let seconds = || {
            let beside = self.beside.iter().map(|pid| processor_seconds(&pid.to_string()));
            processor_seconds("self") + beside.sum::<f64>()
        };
        let before = seconds();
        let mut command = match self.words.split_first() {
            None => Command::new(&client),
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(&client);
                command
            }
        };
        command.args(["talk", kind, &self.target, ROUND_MS]).stderr(Stdio::null());
        let said = rig::run_command(&mut command);
        let value = said.trim().parse().unwrap_or_else(|_| panic!("{command:?}: {said}"));
        (value, seconds() - before)
    }
}

/// The rows.
pub fn rows(program: &Path) -> Vec<Row> {
    let scratch = Scratch::new("bench-net");
    let program = program.canonicalize().unwrap().display().to_string();
    let loopbox = |options: &[&'static str]| [&[program.as_str(), "run"], options, &["--"]].concat().join("\n");
    std::thread::spawn(|| talk::serve(SERVER_PORT));
    let mut beside = Beside(vec![]);
    let (listen, to) = (
        format!("TCP-LISTEN:{SOCAT_PORT},bind=127.0.0.1,fork,reuseaddr,nodelay"),
        format!("TCP:127.0.0.1:{SERVER_PORT},nodelay"),
    );
    let socat = beside.start(&["socat", "-b", "262144", &listen, &to]);
    let holder = beside.start(&["unshare", "--user", "--map-root-user", "--net", "sleep", "600"]);
    rig::wait_until("a namespace", || {
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        std::fs::read_link(format!("/proc/{holder}/ns/net")).is_ok_and(|other| other != own)
    });
    let ready = ready_file(&scratch);
    let holder = holder.to_string();
    let slirp_words =
        format!("exec slirp4netns --configure --mtu=65520 --ready-fd=3 {holder} tap0 3>{}", ready.display());
    let slirp = beside.start(&["sh", "-c", &slirp_words]);
    rig::wait_until("slirp4netns", || std::fs::metadata(&ready).is_ok_and(|meta| meta.len() > 0));

    let of_loopbox = |options: &[&'static str]| {
        let words = loopbox(options);
        Way::new("loopbox", &words.split('\n').collect::<Vec<_>>(), "here")
    };
    let server = format!("127.0.0.1:{SERVER_PORT}");
    let port = SERVER_PORT.to_string();
    let mut peers = vec![
        Way::new("the kernel's lo", &[], "here"),
        Way::new("proxy: socat", &[], &format!("127.0.0.1:{SOCAT_PORT}")),
        Way::new("proxy: pasta", &["pasta", "--runas", "0", "--config-net", "-T", &port, "--"], &server),
        Way::new(
            "proxy: slirp4netns",
            &["nsenter", "-t", &holder, "--user", "--net", "--preserve-credentials", "--"],
            &format!("10.0.2.2:{SERVER_PORT}"),
        ),
    ];
    peers[1].beside = vec![socat];
    peers[3].beside = vec![slirp];
    let link = of_loopbox(&["--link"]);
    let all = || std::iter::once(&link).chain(&peers);

    let mut rows = vec![start(&program)];
    let mut bulk = Contest::new("TCP, one stream, through a link", Unit::BitsPerSecond).goal(1.0, "proxy");
    let mut echo = Contest::new("round trips of 64 bytes, one at a time", Unit::OperationsPerSecond).goal(1.0, "proxy");
    let mut connect = Contest::new("connections, one after the other", Unit::OperationsPerSecond).goal(1.0, "proxy");
    let mut processor = Contest::new("processor time a gigabyte", Unit::Time).goal(1.0, "proxy");
    for way in all() {
        bulk = bulk.value(way.name, || way.run("bulk").0 * 8.0);
        echo = echo.value(way.name, || way.run("echo").0);
        connect = connect.value(way.name, || way.run("connect").0);
        processor = processor.value(way.name, || {
            let (rate, seconds) = way.run("bulk");
            seconds / (rate * talk::seconds(ROUND_MS) / 1e9)
        });
    }
    rows.extend([bulk, echo, connect, processor].map(|contest| contest.run(ROUNDS)));
    let captured = of_loopbox(&["--capture", "/dev/null"]);
    let plain = Way::new("the kernel's lo", &[], "here");
    let contest = Contest::new("TCP, one stream, all of it captured", Unit::BitsPerSecond)
        .value("loopbox", || captured.run("bulk").0 * 8.0)
        .value("dumpcap on the kernel's lo", || {
            let mut dumpcap = Beside(vec![]);
            dumpcap.start(&["dumpcap", "-q", "-i", "lo", "-w", "/dev/null"]);
            // It opens its socket; there is no event to wait for.
            std::thread::sleep(Duration::from_millis(300));
            plain.run("bulk").0 * 8.0
        });
    rows.push(contest.run(ROUNDS));
    rows
}

/// A file into which slirp4netns writes when it is ready.
fn ready_file(scratch: &Scratch) -> PathBuf {
    let ready = scratch.join("ready");
    std::fs::write(&ready, "").unwrap();
    ready
}

/// From nothing to the end of `true`.
fn start(program: &str) -> Row {
    let run = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        move || {
            let _ = rig::run_command(&mut command);
        }
    };
    Contest::new("start of a private network, and `true` in it", Unit::Time)
        .goal(1.0, "bwrap")
        .timed("loopbox", run(&[program, "run", "--", "true"]))
        .timed("unshare", run(&["unshare", "--user", "--map-root-user", "--net", "true"]))
        .timed("bwrap", run(&["bwrap", "--unshare-net", "--bind", "/", "/", "true"]))
        .timed("loopbox with a link", run(&[program, "run", "--link", "--", "true"]))
        .run(21)
}
