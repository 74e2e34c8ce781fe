//! The process that serves a disk is killed (SIGKILL) while it is written to: nothing stays behind that the next
//! command does not clean away, and nothing is lost that was said to be safe.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rig::{User, have_filesystem, requires, requires_kernel, requires_root, run_command, wait_until};

use crate::session::Session;

/// How often it is killed.
const ROUNDS: usize = 4;

fn holding(session: &Session) -> Option<(PathBuf, String)> {
    let list: serde_json::Value = serde_json::from_str(&session.done(["list", "--json"])).unwrap();
    let row = list["loopdevices"].as_array().unwrap().iter().find(|row| row["kind"] == "user")?.clone();
    Some((row["name"].as_str().unwrap().into(), row["pid"].to_string()))
}

fn kill(pid: &str) {
    run_command(Command::new("kill").args(["-9", pid]));
}

/// Runs `script` with `argument` until it has printed `lines` lines, does `then`, and returns all lines of it.
fn lines_until(session: &Session, script: &str, argument: &Path, lines: usize, then: impl FnOnce()) -> Vec<String> {
    let mut command = session.command("bash");
    command.args(["-c", script]).arg(argument).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut writer = command.spawn().unwrap();
    let mut output = BufReader::new(writer.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut said: Vec<String> = output.by_ref().take(lines).collect();
    then();
    said.extend(output);
    writer.wait().unwrap();
    said
}

#[test]
fn what_was_synced_is_in_the_image() {
    requires!("fusermount3", "dd", "bash");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let session = Session::new(User::Ordinary, "killed-writing");
    let image = session.join("disk.img");
    run_command(session.command("truncate").arg("--size=16M").arg(&image));
    for round in 1..=ROUNDS {
        session.done([Path::new("attach"), Path::new("--user"), &image]);
        let (node, pid) = holding(&session).unwrap();
        // Block n holds its number and the round's, and is said when it is synced.
        let script = format!(
            "for ((n = 0; n < 4000; n++)); do
               printf '%08d %06d\\n' $n {round} | dd of=$0 bs=16 seek=$((n * 16)) conv=notrunc,fsync status=none || exit 1
               echo $n
             done"
        );
        let synced = lines_until(&session, &script, &node, 20 * round, || kill(&pid));
        assert!(synced.len() >= 20 * round && synced.len() < 4000, "{} blocks", synced.len());
        wait_until("it is cleaned away", || holding(&session).is_none());
        let bytes = std::fs::read(&image).unwrap();
        for number in &synced {
            let number: usize = number.parse().unwrap();
            let block = &bytes[number * 256..][..16];
            assert_eq!(block, format!("{number:08} {round:06}\n").as_bytes(), "block {number} of round {round}");
        }
    }
}

#[test]
fn a_journal_brings_the_file_system_back() {
    requires!("mkfs.ext4", "e2fsck", "debugfs", "bash");
    requires_root!();
    requires_kernel!(have_filesystem("ext4") && Path::new("/dev/loop-control").exists(), "ext4 or loop devices");
    let session = Session::new(User::Myself, "killed-journal");
    let (image, point) = (session.join("disk.img"), session.join("mnt"));
    std::fs::create_dir(&point).unwrap();
    run_command(session.command("truncate").arg("--size=32M").arg(&image));
    run_command(session.command("mkfs.ext4").args(["-q", "-F"]).arg(&image));
    for round in 1..=ROUNDS {
        session.done([Path::new("attach"), Path::new("--user"), &image]);
        let (node, pid) = holding(&session).unwrap();
        // The kernel's ext4 with its journal on a loop device on the node.
        session.done([Path::new("mount"), &node, &point]);
        let script = format!(
            "for ((n = 0; n < 2000; n++)); do
               echo {round}-$n > $0/{round}-$n && sync $0/{round}-$n $0 || exit 1
               echo {round}-$n
             done"
        );
        let synced = lines_until(&session, &script, &point, 10 * round, || kill(&pid));
        assert!(synced.len() >= 10 * round && synced.len() < 2000, "{} files", synced.len());
        // The kernel's mount outlives its disk; taking it away may report what could not be written.
        let _ = session.output([Path::new("umount"), &point]);
        assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(point.to_str().unwrap()));
        wait_until("it is cleaned away", || holding(&session).is_none());

        let replayed = rig::output(session.command("e2fsck").arg("-fy").arg(&image));
        assert!(matches!(replayed.status.code(), Some(0 | 1)), "{}", rig::text(&replayed));
        run_command(session.command("e2fsck").arg("-fn").arg(&image));
        for name in &synced {
            let read = run_command(session.command("debugfs").args(["-R", &format!("cat /{name}")]).arg(&image));
            assert_eq!(read.trim(), name, "synced in round {round}");
        }
    }
}
