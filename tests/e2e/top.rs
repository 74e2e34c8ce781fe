//! `loopbox top` and `loopbox list`: servers, and the live screen in a pseudo-terminal.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rig::{User, requires, requires_kernel, run_command, wait_until};
use serde_json::Value;

use crate::run_files::{Guard, ext4, point, spec, squashfs};
use crate::session::Session;

/// `loopbox serve` with these words, and the line that it begins with.
fn server(session: &Session, words: &[&str]) -> (Guard, String) {
    let mut command = session.loopbox();
    command.current_dir(session.join("")).arg("serve").args(words).stdout(Stdio::piped());
    let mut child = Guard(command.spawn().unwrap());
    let mut uri = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut uri).unwrap();
    (child, uri.trim().to_owned())
}

fn servers(session: &Session) -> Vec<Value> {
    let list: Value = serde_json::from_str(&session.done(["list", "--json"])).unwrap();
    let processes = list["processes"].as_array().unwrap();
    processes.iter().filter(|process| process["verb"] == "serve").cloned().collect()
}

fn end(child: &mut Child, signal: &str) {
    run_command(Command::new("kill").args([signal, &child.id().to_string()]));
    child.wait().unwrap();
}

#[test]
fn servers_are_listed_and_watched_and_cleaned_up_after() {
    requires!("truncate", "qemu-img", "nbdsh", "nbdinfo");
    for user in [User::Ordinary, User::Myself] {
        let session = Session::new(user, "top-serve");
        run_command(
            session
                .command("sh")
                .args(["-c", "cd $0; head -c 1M /dev/urandom >a; truncate -s 8M a b"])
                .arg(session.join("")),
        );
        let socket = session.join("nbd.sock");
        let (mut child, uri) = server(&session, &["one=a", "b,overlay", "--nbd", socket.to_str().unwrap()]);
        let pid = child.0.id();
        let [process] = &servers(&session)[..] else { panic!("not one server") };
        assert_eq!((&process["pid"], &process["uri"]), (&pid.into(), &uri.as_str().into()));
        assert_eq!(process["images"][0], serde_json::json!({"image": "a", "at": "one", "writes": "image"}));
        assert_eq!(process["images"][1], serde_json::json!({"image": "b,overlay", "at": "b", "writes": "memory"}));
        let listed = session.done(["list"]);
        assert!(listed.contains(&uri) && listed.contains("a:one (image) b,overlay:b (memory)"), "{listed}");

        // A client that stays: reads and writes until it is told to go.
        let script = "
import os
h.set_export_name('one'); h.connect_uri(os.environ['U'])
print('connected', flush=True)
while not os.path.exists('stop'):
    h.pread(65536, 0); h.pwrite(b'x' * 4096, 1 << 20)
";
        let mut command = session.command("nbdsh");
        command.current_dir(session.join("")).args(["-c", script]).env("U", uri.replace("///", "///one"));
        let mut client = Guard(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(client.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "connected\n");
        let look = session.done(["top", "--json", "--count", "1", "--interval", "1"]);
        let look: Value = serde_json::from_str(&look).unwrap();
        let items: Vec<&Value> =
            look["items"].as_array().unwrap().iter().filter(|item| item["kind"] == "nbd").collect();
        let number = |item: &Value, name: &str| item[name].as_f64().unwrap();
        let [one, two] = items[..] else { panic!("{look}") };
        assert_eq!(
            (&one["name"], &one["pid"], &one["clients"]),
            (&format!("a at {uri}").into(), &pid.into(), &1.into())
        );
        let (read, written) = (number(one, "read-bytes"), number(one, "written-bytes"));
        assert!(written > 4096.0 && (read / written / 16.0 - 1.0).abs() < 0.2, "16 times as much is read: {one}");
        assert!((number(one, "operations") - written / 2048.0).abs() < 0.2 * number(one, "operations"), "{one}");
        assert!(number(one, "latency-p50-ns") <= number(one, "latency-p99-ns"), "{one}");
        assert_eq!((number(two, "operations") as u64, &two["clients"]), (0, &0.into()));
        run_command(session.command("touch").arg(session.join("stop")));
        assert!(client.0.wait().unwrap().success());
        wait_until("the client is gone", || {
            session.done(["top", "--interval", "0.1"]).contains(&format!("a at {uri}, 0 clients"))
        });
        end(&mut child.0, "-TERM");
        assert!(servers(&session).is_empty() && !socket.exists());

        // Killed: whoever looks next cleans up, but for a socket that another server has by now.
        let (mut child, _) = server(&session, &["a", "--nbd", socket.to_str().unwrap()]);
        end(&mut child.0, "-KILL");
        assert!(socket.exists());
        assert!(servers(&session).is_empty() && !socket.exists());
        let (mut first, _) = server(&session, &["a", "--nbd", socket.to_str().unwrap()]);
        end(&mut first.0, "-KILL");
        let (mut second, _) = server(&session, &["b", "--nbd", socket.to_str().unwrap()]);
        assert_eq!(servers(&session).len(), 1);
        run_command(session.command("nbdinfo").args(["--size", &uri]));
        end(&mut second.0, "-TERM");

        // One with a command has a folder of its own.
        let mut command = session.loopbox();
        command.current_dir(session.join("")).args([
            "serve",
            "a",
            "--",
            "sh",
            "-c",
            "echo $unixsocket; exec sleep 4716",
        ]);
        let mut child = Guard(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut place = String::new();
        BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut place).unwrap();
        let folder = Path::new(place.trim()).parent().unwrap();
        assert_eq!(servers(&session)[0]["command"][0], "sh");
        end(&mut child.0, "-KILL");
        assert!(servers(&session).is_empty() && !folder.exists());
        let left = run_command(session.command("ls").arg(session.join("runtime/loopbox")));
        assert_eq!(left, "lock\n");
    }
}

/// Runs a command in a pseudo-terminal of 40 by 200: waits for texts, and does what comes after each: types it, or with
/// `size` and `kill` changes the terminal's size, or sends a signal. Prints a line of JSON: all that was shown, the end,
/// and whether the terminal was the same before and after.
const TERMINAL: &str = "
import fcntl, json, os, pty, signal, struct, sys, termios
steps = json.loads(sys.argv[1])
master, slave = pty.openpty()
def size(rows, columns): fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('4H', rows, columns, 0, 0))
size(40, 200)
before = termios.tcgetattr(slave)
pid = os.fork()
if pid == 0:
    os.setsid(); fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in (0, 1, 2): os.dup2(slave, fd)
    os.execvp(sys.argv[2], sys.argv[2:])
out, at, during = b'', 0, None
for text, what in steps:
    while (found := out.find(text.encode(), at)) < 0: out += os.read(master, 65536)
    at = found + len(text.encode())
    during = termios.tcgetattr(slave)
    if what.startswith('size '): size(*map(int, what.split()[1:])); at = len(out)
    elif what.startswith('kill '): os.kill(pid, getattr(signal, what.split()[1]))
    else: os.write(master, what.encode())
status = os.waitpid(pid, 0)[1]
os.set_blocking(master, False)
try:
    while True: out += os.read(master, 65536)
except OSError: pass
same = termios.tcgetattr(slave) == before
print(json.dumps({'shown': out.decode(), 'status': status, 'restored': same, 'was_raw': during[3] & termios.ICANON == 0}))
";

fn in_a_terminal(session: &Session, steps: &[(&str, &str)], words: &[&str]) -> Value {
    let mut command = session.command("timeout");
    let steps = serde_json::to_string(steps).unwrap();
    command.args(["60", "python3", "-c", TERMINAL, &steps]).arg(crate::session::program()).args(words);
    serde_json::from_str(&run_command(command.env("TERM", "xterm").env("LC_ALL", "C.UTF-8"))).unwrap()
}

/// What a terminal shows from the last time on that the screen began at its top.
fn last_screen(shown: &str) -> Vec<String> {
    let screen = shown.split("\x1b[?7h").next().unwrap().rsplit("\x1b[H").next().unwrap();
    let mut out = String::new();
    let mut rest = screen;
    while let Some((text, code)) = rest.split_once('\x1b') {
        out.push_str(text);
        rest = code.trim_start_matches(|letter: char| !letter.is_ascii_alphabetic()).get(1..).unwrap_or_default();
    }
    out.push_str(rest);
    out.lines().map(str::to_owned).collect()
}

#[test]
fn the_live_screen_draws_follows_the_terminal_and_gives_it_back() {
    requires!("python3", "timeout", "mksquashfs", "mkfs.ext4", "dd", "ping");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let session = Session::new(User::Ordinary, "top-screen");
    let place = point(&session, "place");
    let files = squashfs(&session, "files", "head -c 3000000 /dev/urandom >file");
    let disk = ext4(&session, "disk.img");
    let mount = spec(&files, &format!(":{}", place.display()));
    let script = "ping -q -i 0.002 127.0.0.1 >/dev/null & echo ready
        while :; do dd if=/dev/loop0 of=/dev/null bs=1M iflag=direct status=none; done";
    let (wav, disk) = (session.join("out.wav").display().to_string(), disk.display().to_string());
    let words = ["run", "--mount", &mount, "--device", &disk, "--link", "--sound", &wav, "--", "sh", "-c", script];
    let mut child = Guard(session.loopbox().args(words).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();

    // Keys that mean nothing, another size, which shows at once, and q.
    let steps = [("sound", "x\x1b[A"), ("sound", "size 4 60"), ("KIND", ""), ("KIND", "q")];
    let seen = in_a_terminal(&session, &steps, &["top", "--interval", "0.2"]);
    assert_eq!(
        (&seen["status"], &seen["restored"], &seen["was_raw"]),
        (&0.into(), &true.into(), &true.into()),
        "{seen}"
    );
    let shown = seen["shown"].as_str().unwrap();
    assert!(shown.starts_with("\x1b[?1049h\x1b[?25l") && shown.ends_with("\x1b[?25h\x1b[?1049l"), "{shown:?}");
    // The first screens had room for all, the last has 4 lines, of which one is left free.
    let first = shown.split("\x1b[J").nth(1).unwrap();
    let rows = last_screen(first);
    for (kind, name) in [("disk", "/dev/loop0"), ("mount", place.to_str().unwrap()), ("link", "lo"), ("sound", "card")]
    {
        let row = rows.iter().find(|row| row.starts_with(kind)).unwrap_or_else(|| panic!("no {kind}: {rows:?}"));
        assert!(row.trim_end().ends_with(name), "{row}");
        assert!(row.contains(['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']), "a line of what it did: {row}");
    }
    let busy = rows.iter().find(|row| row.starts_with("disk")).unwrap();
    assert!(busy.contains('█') && busy.contains("iB"), "{busy}");
    let last = last_screen(shown);
    assert_eq!(last.len(), 3, "{last:?}");
    assert!(last[0].starts_with("KIND"), "{last:?}");

    // A signal gives the terminal back as well, and so does ^C, which comes as a key.
    for what in ["kill SIGTERM", "\x03"] {
        let seen = in_a_terminal(&session, &[("sound", what)], &["top", "--interval", "0.2"]);
        assert_eq!((&seen["status"], &seen["restored"]), (&0.into(), &true.into()), "{what:?}: {seen}");
        assert!(seen["shown"].as_str().unwrap().ends_with("\x1b[?1049l"), "{seen}");
    }
    // As long as was asked for.
    let seen = in_a_terminal(&session, &[("KIND", "")], &["top", "--interval", "0.1", "--count", "2"]);
    assert_eq!((&seen["status"], &seen["restored"]), (&0.into(), &true.into()), "{seen}");
    end(&mut child.0, "-TERM");
}
