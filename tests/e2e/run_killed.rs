//! `loopbox run` killed (SIGKILL) before each step of its plan, and who cannot reach what it holds.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rig::{User, requires, requires_kernel, wait_until};

use crate::run_files::{Guard, SYSTEM, ext4, point, spec, squashfs};
use crate::session::Session;

/// The processes that have this in their environment.
fn marked(mark: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let found = processes.filter(|process| {
        std::fs::read(process.path().join("environ")).is_ok_and(|text| String::from_utf8_lossy(&text).contains(mark))
    });
    found.map(|process| process.file_name().to_string_lossy().into_owned()).collect()
}

/// Everything that a run can have.
fn everything(session: &Session) -> Vec<String> {
    let root = squashfs(session, "root", SYSTEM);
    let files = squashfs(session, "files", "echo hello >file");
    let disk = ext4(session, "disk.img");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let words = [
        "--root".to_owned(),
        spec(&root, ",overlay"),
        "--mount".to_owned(),
        spec(&files, ",overlay:/files"),
        "--mount".to_owned(),
        spec(&files, ":/tmp/read-only"),
        "--device".to_owned(),
        spec(&disk, ":sda"),
        "--bind".to_owned(),
        "/usr,ro".to_owned(),
        "--publish".to_owned(),
        format!("{port}:80"),
        "--latency".to_owned(),
        "1ms".to_owned(),
        "--capture".to_owned(),
        session.join("packets.pcapng").display().to_string(),
        "--sound".to_owned(),
        session.join("out.wav").display().to_string(),
    ];
    words.to_vec()
}

pub fn start(session: &Session, options: &[String], more: &[&str], mark: &str) -> Guard {
    let mut command = session.loopbox();
    command.arg("run").args(options).args(more).env("LOOPBOX_TEST_MARK", mark).env("LC_ALL", "C.UTF-8");
    Guard(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

pub fn nothing_is_left(session: &Session, mark: &str, at: &str) {
    wait_until("all processes are gone", || marked(mark).is_empty());
    // A process that is about to be gone has no environment any more, and its files still.
    wait_until("nothing is listed", || session.done(["list"]).is_empty());
    let folder = session.join("");
    let folder = folder.to_str().unwrap().trim_end_matches('/');
    let mounted = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounted.contains(folder), "{at}");
    wait_until("no loop device is left", || {
        !rig::run("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"]).contains(folder)
    });
    let find = rig::run_command(session.command("find").arg(session.join("runtime")).args(["-mindepth", "1"]));
    let left: Vec<&str> = find.lines().filter(|line| !line.ends_with("/loopbox") && !line.ends_with("/lock")).collect();
    assert!(left.is_empty(), "{at}: {left:?}");
}

#[test]
fn killed_before_any_step_it_leaves_nothing() {
    requires!("mksquashfs", "mkfs.ext4", "losetup");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    for user in [User::Ordinary, User::Myself] {
        let session = Session::new(user, "run-steps");
        let options = everything(&session);
        let plan = session
            .done(["run", "--dry-run"].into_iter().map(str::to_owned).chain(options.clone()).chain(["true".into()]));
        let steps: Vec<&str> = plan.lines().collect();
        assert!(steps.len() > 20, "{plan}");
        for (number, step) in steps.iter().enumerate() {
            let mark = format!("steps-{}-{number}-{user:?}", std::process::id());
            let mut child = start(&session, &options, &["--hold", &number.to_string(), "--", "true"], &mark);
            let mut line = String::new();
            BufReader::new(child.0.stderr.take().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, format!("held before step {number}\n"), "{step}");
            drop(child);
            nothing_is_left(&session, &mark, step);
        }
        // And while the command runs.
        let mark = format!("steps-{}-run-{user:?}", std::process::id());
        let mut child =
            start(&session, &options, &["--", "sh", "-c", "echo x >/files/x; echo ready; exec sleep 4713"], &mark);
        let mut line = String::new();
        let mut out = BufReader::new(child.0.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        drop(child);
        nothing_is_left(&session, &mark, "the command");
    }
}

#[test]
fn other_users_reach_nothing_of_it() {
    requires!("mksquashfs", "mkfs.ext4", "setpriv");
    rig::requires_root!();
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let session = Session::new(User::Ordinary, "run-others");
    let place = point(&session, "place");
    let files = squashfs(&session, "files", "echo secret >file");
    let disk = ext4(&session, "disk.img");
    let mut options = vec!["--mount".to_owned(), spec(&files, &format!(":{}", place.display()))];
    options.extend(["--device".to_owned(), spec(&disk, ""), "--link".to_owned(), "--sound".to_owned()]);
    options.push(session.join("out.wav").display().to_string());
    let script = format!("cat {}/file; exec sleep 4714", place.display());
    let mark = format!("others-{}", std::process::id());
    let mut child = start(&session, &options, &["--", "sh", "-c", &script], &mark);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "secret\n");

    let as_nobody = |script: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "--", "sh", "-c", script]);
        rig::text(&rig::output(&mut command))
    };
    let runtime = session.join("runtime");
    let sockets = rig::run("find", [runtime.to_str().unwrap(), "-type", "s"]);
    assert!(sockets.lines().count() >= 3, "the sockets of counters, link and sound card: {sockets}");
    for socket in sockets.lines() {
        UnixStream::connect(socket).unwrap();
        let said =
            as_nobody(&format!("python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"{socket}\")' 2>&1"));
        assert!(said.contains("Permission denied"), "{socket}: {said}");
    }
    for pid in marked(&mark) {
        for path in ["root", "cwd", "fd", "map_files", "environ", "mem"] {
            let said = as_nobody(&format!("ls /proc/{pid}/{path}/ 2>&1; cat /proc/{pid}/{path} 2>&1"));
            assert!(!said.contains("secret") && said.contains("ermission denied"), "{path}: {said}");
        }
        let said = as_nobody(&format!("kill -9 {pid} 2>&1; nsenter -U -t {pid} true 2>&1"));
        assert!(said.contains("not permitted") || said.contains("denied"), "{said}");
    }
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
    drop(child);
}

#[test]
fn privileges_are_given_up() {
    requires!("mksquashfs");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    for user in [User::Ordinary, User::Myself] {
        let session = Session::new(user, "run-privileges");
        let image = squashfs(&session, "root", SYSTEM);
        let try_all = "grep -E 'NoNewPrivs|CapBnd' /proc/self/status
            mount -t tmpfs none /tmp 2>&1 && echo MOUNTED; ip link set lo down 2>&1 && echo DOWN
            mknod /tmp/disk b 7 0 2>&1 && echo NODE; echo x >/proc/sys/kernel/core_pattern && echo PATTERN
            echo b >/proc/sysrq-trigger && echo RESET; cat /proc/1/environ && echo ENVIRON
            test $(head -c 1 /proc/kcore 2>/dev/null | wc -c) = 1 && echo KCORE; dmesg >/dev/null && echo LOG; hostname other && echo NAME";
        let words = ["run", "--root", image.to_str().unwrap(), "--bind", "/usr,ro", "--", "sh", "-c", try_all];
        let output = session.output(words);
        let said = rig::text(&output);
        assert!(said.contains("NoNewPrivs:\t1") && said.contains("CapBnd:\t00000000a00425fb"), "{said}");
        for done in ["MOUNTED", "DOWN", "NODE", "PATTERN", "RESET", "ENVIRON", "KCORE", "NAME"] {
            assert!(!said.contains(done), "{user:?}: {said}");
        }
    }
    let session = Session::new(User::Ordinary, "run-plain");
    let said = session.done(["run", "--", "grep", "-E", "NoNewPrivs|CapEff", "/proc/self/status"]);
    assert_eq!(said, "CapEff:\t0000000000000000\nNoNewPrivs:\t1\n");
}
