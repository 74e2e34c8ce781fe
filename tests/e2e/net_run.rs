//! `loopbox run --net private`: real programs on a loopback network of their own, as an ordinary user.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use rig::{User, requires};

use crate::session::Session;

/// Runs a script inside and returns what it printed.
fn inside(session: &Session, options: &[&str], script: &str) -> String {
    session.done([&["run"], options, &["--", "sh", "-euc", script]].concat())
}

#[test]
fn every_port_is_free_and_nothing_else_is_reached() {
    requires!("ip", "ss");
    let session = Session::new(User::Ordinary, "run");
    let outside = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = outside.local_addr().unwrap().port();
    assert_eq!(inside(&session, &[], "ss -Htln"), "");
    let shown = inside(&session, &[], "ip -o link; ip route; ip addr show lo");
    assert!(shown.starts_with("1: lo: <LOOPBACK,UP,LOWER_UP>") && !shown.contains("2: "), "{shown}");
    assert!(shown.contains("127.0.0.1/8") && shown.contains("::1/128"), "{shown}");
    let output = session.output(["run", "--", "bash", "-c", &format!("echo >/dev/tcp/127.0.0.1/{port}")]);
    assert!(rig::text(&output).contains("Connection refused"), "{}", rig::text(&output));
    let host =
        session.output(["run", "--net", "host", "--", "bash", "-c", &format!("echo >/dev/tcp/127.0.0.1/{port}")]);
    assert_eq!(host.status.code(), Some(0), "{}", rig::text(&host));
}

#[test]
fn the_user_stays_who_it_is_and_sees_its_own_processes() {
    for user in [User::Ordinary, User::Myself] {
        let session = Session::new(user, "who");
        let outside = rig::run_command(session.command("id").arg("-u"));
        assert_eq!(inside(&session, &[], "id -u"), outside);
        assert_eq!(inside(&session, &[], "echo /proc/[0-9]*"), "/proc/1 /proc/2\n", "init and the shell");
    }
}

#[test]
fn names_are_private() {
    requires!("getent");
    let session = Session::new(User::Ordinary, "names");
    let machine = std::fs::read("/etc/hosts").unwrap();
    let script = "getent ahosts db; getent ahosts shop.localhost; getent hosts a.b.localhost
        echo 127.0.0.9 mine >>/etc/hosts; getent ahosts mine; getent hosts example.org || echo unknown";
    let said = inside(&session, &["--host", "db=127.0.0.7"], script);
    for line in ["127.0.0.7       STREAM db", "STREAM shop.localhost", "::1             a.b.localhost"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(said.contains("127.0.0.9       STREAM mine") && said.ends_with("unknown\n"), "{said}");
    assert_eq!(std::fs::read("/etc/hosts").unwrap(), machine, "the machine's own file is as it was");
}

#[test]
fn status_signals_and_streams_pass_through() {
    let session = Session::new(User::Ordinary, "status");
    assert_eq!(session.output(["run", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(session.output(["run", "sh", "-c", "kill -TERM $$"]).status.signal(), Some(15));
    assert_eq!(session.output(["run", "no-such-program"]).status.code(), Some(127));
    assert_eq!(session.output(["run", "/etc/passwd"]).status.code(), Some(126));

    let mut child = session
        .loopbox()
        .args(["run", "--", "sh", "-c", "trap 'echo caught; exit 3' TERM; echo ready; while :; do read -r line; done"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    rig::run("kill", ["-TERM", &child.id().to_string()]);
    // The shell looks at its traps when its read returns.
    let _ = child.stdin.take().unwrap().write_all(b"go\n");
    out.read_to_string(&mut line).unwrap();
    assert_eq!((line.as_str(), child.wait().unwrap().code()), ("ready\ncaught\n", Some(3)));
}

#[test]
fn nothing_is_left_when_it_is_killed_or_ends() {
    let session = Session::new(User::Ordinary, "killed");
    let mark = session.join("mark");
    let script =
        format!("sleep 4711 & setsid sleep 4711 & exec 9>{0}; flock 9; echo ready; sleep 4711", mark.display());
    let mut child = session.loopbox().args(["run", "sh", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let free = || rig::output(session.command("flock").args(["-n"]).arg(&mark).arg("true")).status.success();
    assert!(!free(), "the lock is held inside");
    child.kill().unwrap();
    child.wait().unwrap();
    rig::wait_until("all processes inside are gone", free);
    let ended = session.done(["run", "sh", "-c", "sleep 4711 & setsid sleep 4711 & echo done"]);
    assert_eq!(ended, "done\n", "a process that holds standard output would have kept this waiting");
}

#[test]
fn a_published_port_is_reached_from_outside() {
    requires!("curl", "python3");
    let session = Session::new(User::Ordinary, "publish");
    std::fs::write(session.join("page"), "hello from inside").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = format!("cd {}; exec python3 -m http.server 80 --bind 127.0.0.1", session.join("").display());
    let publish = format!("{port}:80");
    let mut child = session
        .loopbox()
        .args(["run", "--publish", &publish, "sh", "-c", &server])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let url = format!("http://127.0.0.1:{port}/page");
    rig::wait_until("the page", || {
        let output = rig::output(session.command("curl").args(["-sf", &url]));
        output.stdout == b"hello from inside"
    });
    rig::run("kill", [child.id().to_string()]);
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let publish = taken.local_addr().unwrap().port().to_string();
    assert!(session.fails(["run", "--publish", &publish, "true"]).contains("in use"));
}

#[test]
fn eight_servers_share_one_port_side_by_side() {
    requires!("python3", "curl");
    let session = Session::new(User::Ordinary, "many");
    let script = "python3 -m http.server 8080 --bind 127.0.0.1 >/dev/null 2>&1 &
        until curl -so /dev/null http://127.0.0.1:8080/; do :; done
        curl -s -o /dev/null -w '%{http_code}' http://127.0.0.2:8080/ || echo 127.0.0.2 does not answer";
    let children: Vec<_> = (0..8)
        .map(|_| session.loopbox().args(["run", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap())
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text, "000127.0.0.2 does not answer\n");
    }
}

#[test]
fn the_plan_can_be_read_before_it_is_done() {
    let session = Session::new(User::Ordinary, "plan");
    let plan = session.done(["run", "--dry-run", "--publish", "8080:80", "--", "true"]);
    assert!(plan.starts_with("publish 127.0.0.1:8080:80/tcp\nnew user namespace: user "), "{plan}");
    assert!(plan.contains("mount /proc\n") && plan.ends_with("\nrun true\n"), "{plan}");
}

#[test]
fn sshd_and_nginx_serve_inside() {
    requires!("sshd", "ssh", "ssh-keygen", "nginx", "curl");
    let session = Session::new(User::Ordinary, "real");
    let folder = session.join("");
    let configuration = "daemon off; pid nginx.pid; error_log stderr; events {}
        http { access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u;
        scgi_temp_path s; server { listen 80; listen [::1]:80 ipv6only=on; location / { return 200 'nginx\\n'; } } }";
    std::fs::write(session.join("nginx.conf"), configuration).unwrap();
    let script = format!(
        "cd {0}; ssh-keygen -qt ed25519 -N '' -f key; cp key.pub authorized; chmod 600 authorized
        $(command -v sshd) -D -f /dev/null -h {0}/key -p 22 -o ListenAddress=127.0.0.1 -o UsePAM=no -o StrictModes=no \
            -o AuthorizedKeysFile={0}/authorized -o PidFile=none 2>sshd.log &
        nginx -p {0} -e stderr -c {0}/nginx.conf 2>nginx.log &
        until ss -Htln | grep -q ':22 ' && ss -Htln | grep -q '::1.:80 '; do :; done
        ssh -i key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR localhost echo over ssh
        curl -s http://localhost/; curl -s 'http://[::1]/'",
        folder.display()
    );
    let output = session.output(["run", "--", "sh", "-euc", &script]);
    let text = rig::text(&output);
    assert!(
        text.contains("over ssh") && text.contains("nginx\n"),
        "{text}{}",
        std::fs::read_to_string(session.join("sshd.log")).unwrap_or_default()
    );
}

/// Types into a terminal: each key when the text before it has appeared; prints all that appeared.
const TERMINAL: &str = "
import os, pty, sys
pid, fd = pty.fork()
if pid == 0: os.execvp('bash', ['bash', '--norc', '-i'])
keys = [a.encode().decode('unicode_escape').encode() for a in sys.argv[1:]]
out, at = b'', 0
while keys:
    found = out.find(keys[0], at)
    if found >= 0:
        at = found + len(keys[0]); os.write(fd, keys[1]); keys = keys[2:]
    else:
        out += os.read(fd, 4096)
try:
    while True: out += os.read(fd, 4096)
except OSError: pass
print(out.decode(), os.waitpid(pid, 0)[1])
";

#[test]
fn the_terminal_stops_continues_and_interrupts() {
    requires!("python3", "bash", "timeout");
    let session = Session::new(User::Ordinary, "terminal");
    let mut command = session.command("timeout");
    command.args(["20", "python3", "-c", TERMINAL]).env("L", crate::session::program()).env("PS1", "prompt> ");
    let inside = "tty; echo rea\"\"dy; read x; echo got $x; exec sleep 4712";
    command.args(["prompt> ", &format!("$L run sh -c '{inside}'\\n"), "ready\\r", "\\x1a", "Stopped", "fg\\nhello\\n"]);
    command.args(["got hello", "\\x03", "prompt> ", "echo status $?\\n", "status 130", "exit\\n"]);
    let text = rig::run_command(&mut command);
    assert!(text.contains("/dev/pts/") && text.contains("status 130"), "{text}");
}
