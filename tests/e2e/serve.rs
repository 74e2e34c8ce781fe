//! `loopbox serve` and its real clients: libnbd's tools, QEMU's, fio.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rig::{User, requires, run_command, wait_until};

use crate::session::Session;

const MIB: u64 = 1 << 20;

/// A server in the foreground; killed when dropped.
pub struct Server {
    process: Child,
    /// What it printed.
    pub uri: String,
}

impl Server {
    /// Starts it in the session's folder, and waits until it says where it is.
    pub fn start(session: &Session, words: &[&str]) -> Self {
        let mut process = session
            .loopbox()
            .current_dir(session.join("."))
            .arg("serve")
            .args(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut uri = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut uri).unwrap();
        if uri.is_empty() {
            let mut said = String::new();
            process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("no server: {said}");
        }
        Self { process, uri: uri.trim().to_owned() }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    fn signal(&self, signal: &str) {
        run_command(Command::new("kill").args([signal, &self.process.id().to_string()]));
    }

    /// Asks it to end; what it said on standard error.
    pub fn end(mut self) -> String {
        self.signal("-TERM");
        let status = self.process.wait().unwrap();
        let mut said = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(status.success(), "{status}: {said}");
        said
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An image with data, zeroes and holes: `size` bytes, of which some pieces are filled.
pub fn image(session: &Session, name: &str, size: u64) -> PathBuf {
    let path = session.join(name);
    run_command(session.command("truncate").arg(format!("--size={size}")).arg(&path));
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for piece in 0..size / MIB {
        let bytes: Vec<u8> = (0..32 << 10).flat_map(|_| random().to_le_bytes()).collect();
        let len = (random() % 4 * 65536) as usize;
        file.write_all_at(&bytes[..len], piece * MIB + random() % 128 * 4096).unwrap();
    }
    path
}

pub fn same(one: &Path, other: &Path) {
    assert!(std::fs::read(one).unwrap() == std::fs::read(other).unwrap(), "{one:?} and {other:?} differ");
}

fn words(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn nbdinfo_sees_sizes_flags_holes_and_exports() {
    requires!("nbdinfo", "qemu-img");
    let session = Session::new(User::Ordinary, "nbd-info");
    let disk = image(&session, "disk.img", 16 * MIB);
    image(&session, "odd.img", 10_000_001);
    let server = Server::start(&session, &["disk.img", "other=odd.img,ro", "--nbd", "./a socket"]);
    assert!(server.uri.starts_with("nbd+unix:///?socket=/") && server.uri.ends_with("/a%20socket"), "{}", server.uri);
    let socket = session.join("a socket").metadata().unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let info = |words: &[&str]| run_command(session.command("nbdinfo").args(words));
    let uri = server.uri.as_str();
    assert_eq!(info(&["--size", uri]).trim(), (16 * MIB).to_string());
    let list: serde_json::Value = serde_json::from_str(&info(&["--list", "--json", uri])).unwrap();
    let exports = list["exports"].as_array().unwrap();
    let (first, second) = (&exports[0], &exports[1]);
    assert_eq!((&first["export-name"], &second["export-name"]), (&"disk.img".into(), &"other".into()));
    assert_eq!(second["export-size"], 10_000_001);
    assert_eq!((&first["is_read_only"], &second["is_read_only"]), (&false.into(), &true.into()));
    for flag in ["can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim"] {
        assert_eq!(first[flag], true, "{flag}");
    }
    assert_eq!(second["can_trim"], false);

    // The same map as QEMU finds in the file.
    let map: serde_json::Value = serde_json::from_str(&info(&["--map", "--json", uri])).unwrap();
    let of_file = run_command(session.command("qemu-img").args(["map", "--output=json", "-f", "raw"]).arg(&disk));
    let of_file: serde_json::Value = serde_json::from_str(&of_file).unwrap();
    let runs = |map: &serde_json::Value, start: &str, is_data: &dyn Fn(&serde_json::Value) -> bool| {
        let rows = map.as_array().unwrap().iter();
        rows.map(|row| (row[start].as_u64().unwrap(), row["length"].as_u64().unwrap(), is_data(row)))
            .collect::<Vec<_>>()
    };
    let found = runs(&map, "offset", &|row| row["type"] == 0);
    assert!(found.len() > 8, "{map}");
    assert_eq!(found, runs(&of_file, "start", &|row| row["data"] == true));
    assert_eq!(server.end(), "");
    assert!(!session.join("a socket").exists());
}

#[test]
fn nbdcopy_takes_all_out_and_puts_all_in() {
    requires!("nbdcopy");
    let session = Session::new(User::Ordinary, "nbd-copy");
    let disk = image(&session, "disk.img", 64 * MIB);
    for (address, connections) in [("unix:nbd.sock", "1"), ("0", "4")] {
        let copy = session.join("copy.img");
        let server = Server::start(&session, &["disk.img", "--read-only", "--nbd", address]);
        run_command(session.command("nbdcopy").args(["-C", connections, &server.uri]).arg(&copy));
        same(&disk, &copy);
        assert!(copy.metadata().unwrap().blocks() < 64 * MIB / 512, "holes are kept");
        assert_eq!(server.end(), "");

        let target = session.join("target.img");
        run_command(session.command("truncate").arg("--size=64M").arg(&target));
        let server = Server::start(&session, &["target.img", "--nbd", address]);
        run_command(session.command("nbdcopy").args(["--flush", "-C", connections]).arg(&disk).arg(&server.uri));
        assert_eq!(server.end(), "");
        same(&disk, &target);
        std::fs::remove_file(&target).unwrap();
        std::fs::remove_file(&copy).unwrap();
    }
}

/// Every request and error by libnbd, which checks the protocol itself; strict mode is off where the server's own
/// answer is wanted.
const SCRIPT: &str = r#"
import errno, os, nbd
h.add_meta_context("base:allocation")
h.connect_uri(os.environ["uri"])
size = h.get_size()
assert size == 16 << 20 and h.can_meta_context("base:allocation") and h.get_structured_replies_negotiated()
h.set_strict_mode(0)

def fails(wanted, call, *words):
    try:
        call(*words)
    except nbd.Error as error:
        assert error.errno == errno.errorcode[wanted], (call.__name__, words[1:], error.errno, error.string)
    else:
        raise AssertionError((call.__name__, words[1:]))

h.pwrite(b"hello" * 1000, 1 << 20)
assert h.pread(5000, 1 << 20) == b"hello" * 1000
h.pwrite(b"fua", 5, nbd.CMD_FLAG_FUA)
assert h.pread(5, 4, nbd.CMD_FLAG_DF) [1:4] == b"fua"
h.zero(2000, (1 << 20) + 1)
h.zero(4096, 1 << 20, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
try:
    h.zero(4096, 1 << 20, nbd.CMD_FLAG_FAST_ZERO)
except nbd.Error as error:
    # Of a file the kernel makes holes; an overlay would have to write zeroes.
    assert error.errno in ("EOPNOTSUPP", "ENOTSUP") and os.environ["overlay"], (error.errno, error.string)
assert h.pread(5000, 1 << 20) == bytes(4096) + (b"hello" * 1000)[4096:]
h.trim(8192, 1 << 20)
h.cache(1 << 20, 0)
h.flush()
chunks = []
h.pread_structured(4 << 20, 2 << 20, lambda data, at, kind, error: chunks.append((at, len(data), kind)))
assert sum(len for _, len, _ in chunks) == 4 << 20, chunks
runs = []
h.block_status(size, 0, lambda name, at, entries, error: runs.extend(entries[::2]))
assert 0 < sum(runs) <= size
h.block_status(size, 0, lambda name, at, entries, error: runs.append(len(entries)), nbd.CMD_FLAG_REQ_ONE)
assert runs[-1] == 2

fails(errno.EINVAL, h.pread, 512, size)
fails(errno.EINVAL, h.pread, 2, size - 1)
fails(errno.EINVAL, h.pread, 0, 0)
fails(errno.EINVAL, h.pwrite, b"", 0)
fails(errno.ENOSPC, h.pwrite, b"xy", size - 1)
fails(errno.ENOSPC, h.zero, 512, size)
fails(errno.EINVAL, h.trim, 512, size)
fails(errno.EINVAL, h.cache, 512, size)
fails(errno.EINVAL, h.block_status, 512, size, lambda *_: 0)
fails(errno.EINVAL, h.pread, 512, 0, 1 << 14)
fails(errno.EINVAL, h.pwrite, b"x", 0, nbd.CMD_FLAG_REQ_ONE)
fails(errno.EINVAL, h.pread, (32 << 20) + 1, 0)
fails(errno.EINVAL, h.pwrite, bytes((32 << 20) + 1), 0)
assert h.pread(3, 5) == b"fua"
# 64 requests under way at one time.
buffers = [nbd.Buffer(65536) for _ in range(64)]
cookies = [h.aio_pread(buffer, n * 65536) for n, buffer in enumerate(buffers)]
while cookies:
    h.poll(-1)
    cookies = [cookie for cookie in cookies if not h.aio_command_completed(cookie)]
assert bytes(buffers[0].to_bytearray())[5:8] == b"fua"
h.shutdown()
print("all asked")
"#;

#[test]
fn nbdsh_asks_for_everything() {
    requires!("nbdsh");
    let session = Session::new(User::Ordinary, "nbd-sh");
    for image_words in ["disk.img", "disk.img,overlay", "disk.img,direct"] {
        image(&session, "disk.img", 16 * MIB);
        let overlay = if image_words.contains("overlay") { "1" } else { "" };
        let output = rig::output(session.loopbox().env("overlay", overlay).current_dir(session.join(".")).args([
            "serve",
            image_words,
            "--",
            "nbdsh",
            "-c",
            SCRIPT,
        ]));
        if image_words.contains("direct") && rig::text(&output).contains("O_DIRECT") {
            rig::skip(rig::test_name!(), "this file system cannot go past the page cache");
            continue;
        }
        assert!(output.status.success(), "{image_words}: {}", rig::text(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "all asked", "{image_words}");
    }
    // Read only, on standard streams, started by the client.
    let script = format!(
        r#"
import errno, nbd
h.connect_command(["{}", "serve", "--stdio", "--read-only", "{}"])
assert h.is_read_only()
h.set_strict_mode(0)
for call, words in [(h.pwrite, (b"x", 0)), (h.trim, (512, 0)), (h.zero, (512, 0))]:
    try:
        call(*words)
        raise AssertionError(call)
    except nbd.Error as error:
        assert error.errno == "EPERM"
h.flush()
assert len(h.pread(512, 0)) == 512
h.shutdown()
"#,
        crate::session::program().display(),
        session.join("disk.img").display()
    );
    run_command(session.command("nbdsh").args(["-c", &script]));
}

#[test]
fn qemu_reads_writes_compares_and_maps() {
    requires!("qemu-img", "qemu-io");
    let session = Session::new(User::Ordinary, "nbd-qemu");
    let disk = image(&session, "disk.img", 16 * MIB);
    let before = session.join("before.img");
    run_command(session.command("cp").args(["--sparse=always"]).arg(&disk).arg(&before));
    let server = Server::start(&session, &["disk.img", "--nbd", "unix:nbd.sock"]);
    let uri = server.uri.as_str();
    let qemu = |program: &str, arguments: &[&str]| run_command(session.command(program).args(arguments));
    qemu("qemu-img", &["compare", "-f", "raw", "-F", "raw", words(&before), uri]);
    let out = session.join("out.qcow2");
    qemu("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", uri, words(&out)]);
    qemu("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", words(&out), words(&before)]);
    let map = qemu("qemu-img", &["map", "--output=json", "-f", "raw", uri]);
    let holes = map.matches("\"data\": false").count();
    assert!(holes > 4, "{map}");
    let io = |command: &str| {
        let said = qemu("qemu-io", &["-f", "raw", "-c", command, uri]);
        assert!(!said.contains("verification failed") && !said.contains("rror"), "{command}: {said}");
    };
    for command in [
        "write -P 0x5a 1M 128k",
        "read -P 0x5a 1M 128k",
        "write -f -P 0x5b 1234567 4321",
        "read -P 0x5b 1234567 4321",
        "write -z 2M 1M",
        "read -P 0 2M 1M",
        "write -z -u 4M 1M",
        "read -P 0 4M 1M",
        "discard 6M 1M",
        "flush",
        "aio_write -P 0x5c 8M 1M",
        "read -P 0x5c 8M 1M",
    ] {
        io(command);
    }
    // And put it back, by QEMU.
    qemu("qemu-img", &["convert", "-n", "-f", "qcow2", "-O", "raw", words(&out), uri]);
    assert_eq!(server.end(), "");
    same(&disk, &before);
}

#[test]
fn fio_verifies_what_it_wrote_on_several_connections() {
    requires!("fio");
    let session = Session::new(User::Ordinary, "nbd-fio");
    for image_words in ["disk.img", "disk.img,overlay"] {
        image(&session, "disk.img", 32 * MIB);
        let server = Server::start(&session, &[image_words, "--nbd", "unix:nbd.sock"]);
        let mut fio = session.command("fio");
        fio.current_dir(session.join(".")).args([
            "--name=verify",
            "--ioengine=nbd",
            "--rw=randwrite",
            "--bsrange=512-64k",
        ]);
        fio.args(["--bsrange=4k-64k", "--iodepth=32", "--size=8M", "--numjobs=3", "--offset_increment=8M"]);
        fio.args(["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randrepeat=0"]);
        fio.arg(format!("--uri={}", server.uri));
        let said = run_command(&mut fio);
        assert_eq!(said.matches("err= 0").count(), 3, "{said}");
        assert_eq!(server.end(), "");
    }
}

/// A thousand clients, one after the other, each killed with 32 requests under way.
const KILLED: &str = r#"
import os, nbd, signal
buffers = [nbd.Buffer(65536) for _ in range(32)]
data = nbd.Buffer.from_bytearray(bytearray(b"x" * 65536))

def ask(begun):
    client = nbd.NBD()
    client.connect_uri(os.environ["uri"])
    while True:
        under_way = [client.aio_pread(buffer, n * 65536) if n % 2 else client.aio_pwrite(data, n * 65536)
                     for n, buffer in enumerate(buffers)]
        os.write(begun, b"!")
        while under_way:
            client.poll(-1)
            under_way = [cookie for cookie in under_way if not client.aio_command_completed(cookie)]

for n in range(1000):
    heard, begun = os.pipe()
    victim = os.fork()
    if victim == 0:
        try:
            ask(begun)
        finally:
            os._exit(1)
    os.close(begun)
    # Some at once, some after a few rounds.
    for _ in range(1 + n % 3):
        assert os.read(heard, 1) == b"!"
    os.kill(victim, signal.SIGKILL)
    assert os.waitpid(victim, 0)[1] == signal.SIGKILL
    os.close(heard)
print("all killed")
"#;

#[test]
fn a_client_that_is_killed_disturbs_no_other() {
    requires!("nbdsh", "qemu-io");
    let session = Session::new(User::Ordinary, "nbd-killed");
    image(&session, "disk.img", 16 * MIB);
    let server = Server::start(&session, &["disk.img", "--nbd", "unix:nbd.sock"]);
    let threads = || std::fs::read_dir(format!("/proc/{}/task", server.process.id())).unwrap().count();
    let without_clients = threads();
    let nbdsh = |script: &str| {
        let mut command = session.command("nbdsh");
        command.env("uri", &server.uri).args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line, "begun\n");
        child
    };
    // One that stays, and counts.
    let mut other = nbdsh(
        r#"
import os, nbd, sys
h.connect_uri(os.environ["uri"])
print("begun", flush=True)
n = 0
while not os.path.exists(os.environ["uri"].split("=")[1] + ".enough"):
    n += 1
    h.pwrite(n.to_bytes(8, "big"), 8 << 20)
    assert h.pread(8, 8 << 20) == n.to_bytes(8, "big")
h.flush()
sys.exit(0 if n > 20 else 1)
"#,
    );
    let killed = run_command(session.command("nbdsh").env("uri", &server.uri).args(["-c", KILLED]));
    assert_eq!(killed.trim(), "all killed");
    std::fs::write(session.join("nbd.sock.enough"), "").unwrap();
    assert!(other.wait().unwrap().success(), "the client that stayed");
    wait_until("the threads of all clients are gone", || threads() == without_clients);
    let said = run_command(session.command("qemu-io").args(["-f", "raw", "-c", "read 0 1M", &server.uri]));
    assert!(said.contains("read 1048576/1048576"), "{said}");
    server.end();
}

/// Reads what the round before flushed; writes on one connection, flushes on another, and kills the server.
const FLUSHED: &str = r#"
import os
round = int(os.environ["round"])
h.connect_uri(os.environ["uri"])
for place in (4096, 700 << 10):
    assert h.pread(8, place) == (round - 1).to_bytes(8, "big"), place
if int(os.environ["server"]):
    other = nbd.NBD()
    other.connect_uri(os.environ["uri"])
    assert h.can_multi_conn()
    h.pwrite(round.to_bytes(8, "big"), 4096)
    h.pwrite(round.to_bytes(8, "big"), 700 << 10)
    other.flush()
    h.pwrite(b"nobody said that this is safe", 65536)
    os.kill(int(os.environ["server"]), 9)
"#;

#[test]
fn what_was_flushed_outlives_the_server() {
    requires!("nbdsh", "qemu-img");
    let session = Session::new(User::Ordinary, "nbd-restart");
    let disk = session.join("disk.img");
    run_command(session.command("truncate").arg("--size=1M").arg(&disk));
    let qcow2 = session.join("disk.qcow2");
    run_command(session.command("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&qcow2).arg("1M"));
    for words in ["disk.img,overlay=changes", "disk.img", "disk.qcow2"] {
        let ask = |round: u64, kill: bool| {
            // A socket that the killed one left is no obstacle.
            let server = Server::start(&session, &[words, "--nbd", "unix:nbd.sock"]);
            let mut nbdsh = session.command("nbdsh");
            nbdsh.env("uri", &server.uri).env("round", round.to_string());
            nbdsh.env("server", if kill { server.id() } else { 0 }.to_string());
            run_command(nbdsh.args(["-c", "import nbd", "-c", FLUSHED]));
            server
        };
        for round in 1..=3 {
            drop(ask(round, true));
        }
        assert_eq!(ask(4, false).end(), "");
    }
    assert!(session.join("changes").exists());
    run_command(session.command("qemu-img").args(["check", "-q"]).arg(&qcow2));
}

#[test]
fn clients_start_it_and_pass_their_socket() {
    requires!("nbdinfo", "nbdcopy");
    let session = Session::new(User::Ordinary, "nbd-passed");
    let disk = image(&session, "disk.img", 4 * MIB);
    let program = crate::session::program();
    let served = |options: &[&str]| {
        let mut words = vec!["--", "[", words(program), "serve", words(&disk)];
        words.extend(options);
        words.push("]");
        words.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let said = run_command(session.command("nbdinfo").arg("--json").args(served(&["--read-only"])));
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&said["exports"][0]["export-size"], &said["exports"][0]["is_read_only"]),
        (&(4 * MIB).into(), &true.into())
    );
    // Standard output is the client's.
    let output = rig::output(session.command("nbdcopy").args(served(&[])).arg("-"));
    assert!(output.status.success() && output.stdout == std::fs::read(&disk).unwrap(), "{}", rig::text(&output));
    // What is passed to another process counts for nothing.
    let mut other = session.loopbox();
    let output = rig::output(other.args(["serve", words(&disk)]).env("LISTEN_FDS", "1").env("LISTEN_PID", "1"));
    assert!(rig::text(&output).contains("no way to serve"), "{}", rig::text(&output));
}

#[test]
fn it_ends_as_it_is_told() {
    requires!("nbdinfo");
    let session = Session::new(User::Ordinary, "nbd-ends");
    image(&session, "disk.img", MIB);
    let serve = |words: &[&str]| {
        let mut command = session.loopbox();
        command.current_dir(session.join(".")).arg("serve").args(words);
        command
    };
    // With its command: the exit status is the command's.
    for (script, wanted) in [("exit 7", 7), ("kill -9 $$", 137), ("nbdinfo --size \"$uri\" && test -S $unixsocket", 0)]
    {
        let output = rig::output(serve(&["disk.img", "--", "sh", "-c", script]).stderr(Stdio::null()));
        assert_eq!(output.status.code(), Some(wanted), "{script}: {}", rig::text(&output));
    }
    // A command that is not there.
    let output = rig::output(&mut serve(&["disk.img", "--nbd", "./sock", "--", "/no/such/program"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(!session.join("sock").exists());
    // It takes its command along.
    let mut server = serve(&["disk.img", "--", "sh", "-c", "echo $$; exec sleep 1000"]);
    let mut server = server.stdout(Stdio::piped()).spawn().unwrap();
    let mut command = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut command).unwrap();
    run_command(Command::new("kill").args(["-INT", &server.id().to_string()]));
    assert_eq!(server.wait().unwrap().code(), Some(128 + 15));
    assert!(!Path::new(&format!("/proc/{}", command.trim())).exists());
    // With its last client.
    let mut server = Server::start(&session, &["disk.img", "--nbd", "0", "--exit-with-client"]);
    run_command(session.command("nbdinfo").args(["--size", &server.uri]));
    assert!(server.process.wait().unwrap().success());
    // Two on one socket, two names that are one, an address of others, no address.
    let server = Server::start(&session, &["disk.img,ro", "--nbd", "./sock"]);
    for (words, wanted) in [
        (&["disk.img,ro", "--nbd", "./sock"][..], "another server listens on"),
        (&["a=disk.img,ro", "a=disk.img,ro", "--nbd", "0"], "two images of the name a"),
        (&["disk.img,ro", "--nbd", "0.0.0.0:0"], "--beyond-loopback"),
        (&["disk.img,ro"], "no way to serve"),
        (&["none.img", "--nbd", "0"], "none.img"),
    ] {
        let output = rig::output(&mut serve(words));
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(rig::text(&output).contains(wanted), "{words:?}: {}", rig::text(&output));
    }
    assert_eq!(server.end(), "");
}

/// Reads a file in batches that becomes shorter and longer again. Read twice, so that it is sent from where it is.
const CUT_SHORT: &str = r#"
import nbd, os
disk, size, piece = os.environ["disk"], 4 << 20, 65536
h.connect_uri(os.environ["uri"])

def begun(h):
    buffers = [nbd.Buffer(piece) for _ in range(size // piece)]
    return [h.aio_pread(buffer, n * piece) for n, buffer in enumerate(buffers)]

def heard(h, cookies):
    """How many of them were answered, and how many with an error; all others were hung up on."""
    done = failed = 0
    try:
        while cookies:
            h.poll(-1)
            for cookie in list(cookies):
                try:
                    if h.aio_command_completed(cookie):
                        done += 1
                        cookies.remove(cookie)
                except nbd.Error as error:
                    if h.aio_is_dead() or h.aio_is_closed():
                        return done, failed
                    assert error.errno == "EIO", error
                    failed += 1
                    cookies.remove(cookie)
    except nbd.Error as error:
        assert h.aio_is_dead() or h.aio_is_closed(), error
    return done, failed

count = size // piece
for _ in range(3):
    assert heard(h, begun(h)) == (count, 0)
# Of what is gone each read fails, and all else is there.
os.truncate(disk, size // 2)
for _ in range(3):
    assert heard(h, begun(h)) == (count // 2, count // 2)
os.truncate(disk, size)
# While reads are under way.
for _ in range(40):
    cookies = begun(h)
    os.truncate(disk, 0)
    done, failed = heard(h, cookies)
    os.truncate(disk, size)
    if h.aio_is_dead() or h.aio_is_closed():
        h = nbd.NBD()
        h.connect_uri(os.environ["uri"])
    else:
        assert done + failed == count
    assert heard(h, begun(h)) == (count, 0)
assert h.pread(piece, 0) == bytes(piece)
print("all read")
"#;

#[test]
fn a_file_that_is_cut_short_is_an_error_and_the_server_lives() {
    requires!("nbdsh");
    let session = Session::new(User::Ordinary, "nbd-cut");
    for image_words in ["disk.img", "disk.img,ro"] {
        // Without holes, which would not be read at all.
        let disk = session.join("disk.img");
        std::fs::write(&disk, vec![1; (4 * MIB) as usize]).unwrap();
        run_command(Command::new("chmod").arg("666").arg(&disk));
        let server = Server::start(&session, &[image_words, "--nbd", "unix:nbd.sock"]);
        let mut nbdsh = session.command("nbdsh");
        nbdsh.env("uri", &server.uri).env("disk", &disk).args(["-c", CUT_SHORT]);
        assert_eq!(run_command(&mut nbdsh).trim(), "all read", "{image_words}");
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.id())).unwrap();
        assert!(maps.contains("/disk.img"), "{image_words}: sent from where it is");
        // What was hung up on is said.
        let said = server.end();
        assert!(said.lines().all(|line| line.contains("writing to an NBD client")), "{said}");
    }
}

/// 64 connections that read and write in small pieces and in large ones, and stay.
const CROWD: &str = r#"
import nbd, os
clients = []
for _ in range(64):
    client = nbd.NBD()
    client.connect_uri(os.environ["uri"])
    clients.append(client)
for round in range(2):
    for client in clients:
        small = [nbd.Buffer(4096) for _ in range(32)]
        cookies = [client.aio_pread(buffer, n * 4096) for n, buffer in enumerate(small)]
        while cookies:
            client.poll(-1)
            cookies = [cookie for cookie in cookies if not client.aio_command_completed(cookie)]
        client.pread(1 << 20, 0)
        client.pwrite(bytes(1 << 20), 1 << 20)
        client.flush()
memory = {}
for line in open("/proc/" + os.environ["server"] + "/status"):
    name, value = line.split(":", 1)
    memory[name] = value.strip()
kib = lambda name: int(memory[name].split()[0])
print(kib("RssAnon") + kib("VmPTE"))
"#;

#[test]
fn sixty_four_connections_take_little_memory() {
    requires!("nbdsh");
    let session = Session::new(User::Ordinary, "nbd-crowd");
    image(&session, "disk.img", 16 * MIB);
    let server = Server::start(&session, &["disk.img", "--nbd", "unix:nbd.sock"]);
    let mut nbdsh = session.command("nbdsh");
    nbdsh.env("uri", &server.uri).env("server", server.id().to_string()).args(["-c", CROWD]);
    // What belongs to it alone, and page tables. What is in the page cache is counted as file pages.
    let kib: u64 = run_command(&mut nbdsh).trim().parse().unwrap();
    assert!(kib < 20 << 10, "{kib} KiB");
    assert_eq!(server.end(), "");
}
