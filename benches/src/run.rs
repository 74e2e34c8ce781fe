//! Worlds of their own for `true`, started and ended: against bwrap with squashfuse, unshare and systemd-nspawn; and a
//! hundred of them side by side. All by the ordinary user of the tests, but for systemd-nspawn, which needs root.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rig::User;

use crate::contest::{Contest, Row, Unit};

/// Rounds of a row.
const ROUNDS: usize = 15;
/// How many run side by side.
const MANY: usize = 100;

/// What a row runs: a script of a shell, by the ordinary user.
fn shell(script: &str) -> impl FnMut() + '_ {
    move || {
        rig::run_command(User::Ordinary.command("sh").args(["-euc", script]));
    }
}

/// All rows of this group.
pub fn rows(program: &Path) -> Vec<Row> {
    let scratch = rig::Scratch::of(User::Ordinary, "bench-run");
    let at = |name: &str| scratch.join(name).display().to_string();
    let (image, tree, point, program) = (at("root.squashfs"), at("tree"), at("point"), program.display().to_string());
    let make = format!(
        "mkdir -p {tree}/bin {tree}/proc {tree}/dev {tree}/tmp {tree}/run {tree}/etc {point}; touch {tree}/etc/hosts {tree}/etc/resolv.conf
         cp $(command -v busybox) {tree}/bin/; for name in true sh; do ln -s busybox {tree}/bin/$name; done
         mksquashfs {tree} {image} -quiet -no-progress -comp zstd"
    );
    rig::run_command(User::Ordinary.command("sh").args(["-euc", &make]));

    let root = format!("{program} run --net host --root {image} -- true");
    let bwrap_root = format!(
        "squashfuse {image} {point}; bwrap --unshare-user --unshare-pid --ro-bind {point} / --proc /proc --dev /dev --tmpfs /tmp \
         true; fusermount3 -u {point}"
    );
    let plain = "bwrap --unshare-user --unshare-pid --ro-bind / / --proc /proc --dev /dev --tmpfs /tmp true";
    let mut contest = Contest::new("true in a root from squashfs, start to end", Unit::Time)
        .timed("loopbox", shell(&root))
        .timed("bwrap and squashfuse", shell(&bwrap_root))
        .timed("bwrap, no image", shell(plain))
        .timed("unshare, no image", shell("unshare -Urmpf true"))
        .goal(1.0, "squashfuse");
    let nspawn = || {
        let mut command = Command::new("systemd-nspawn");
        command.args(["--quiet", "--register=no", "--keep-unit", "--as-pid2", "--read-only", "-D", &tree, "true"]);
        rig::output(command.stdin(Stdio::null())).status.success()
    };
    if nspawn() {
        contest = contest.timed("systemd-nspawn, a folder, by root", || assert!(nspawn()));
    } else {
        eprintln!("  systemd-nspawn does not run here");
    }
    let mut rows = vec![contest.run(ROUNDS)];

    let mount = format!("{program} run --net private --mount {image}:{point} -- true");
    let bwrap_mount = format!(
        "squashfuse {image} {point}; bwrap --unshare-user --unshare-pid --unshare-net --dev-bind / / --proc /proc true; \
         fusermount3 -u {point}"
    );
    rows.push(
        Contest::new("true with a private network and a mount, start to end", Unit::Time)
            .timed("loopbox", shell(&mount))
            .timed("bwrap and squashfuse", shell(&bwrap_mount))
            .timed("unshare, no image", shell("unshare -Urnmpf true"))
            .goal(1.0, "squashfuse")
            .run(ROUNDS),
    );

    let words = ["run", "--root", &image, "--", "sh", "-c", "echo ready; read wait"].map(str::to_owned);
    let side_by_side = || {
        let start = |_| {
            let mut command = User::Ordinary.command(&program);
            let child = command.args(&words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            (child.id(), child)
        };
        let mut children: Vec<(u32, Child)> = (0..MANY).map(start).collect();
        for (_, child) in &mut children {
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n");
        }
        let bytes = children.iter().map(|(pid, _)| private_bytes(*pid)).sum::<u64>() / MANY as u64;
        for (_, mut child) in children {
            drop(child.stdin.take());
            child.wait().unwrap();
        }
        bytes
    };
    let mut bytes = 0;
    rows.push(
        Contest::new("a hundred roots side by side: start and end of one of them", Unit::Time)
            .value("loopbox", || {
                let start = std::time::Instant::now();
                bytes = side_by_side();
                start.elapsed().as_secs_f64() / MANY as f64
            })
            .run(3),
    );
    eprintln!(
        "    memory of one of a hundred (supervisor, its parts shared by others counted by share): {} KiB",
        bytes >> 10
    );
    rows
}

/// The memory of a process, and of those that it started by itself, in shares (PSS), bytes.
fn private_bytes(pid: u32) -> u64 {
    let own = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = own.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib: u64 = line.and_then(|text| text.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0);
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    kib * 1024 + children.split_whitespace().filter_map(|child| child.parse().ok()).map(private_bytes).sum::<u64>()
}
