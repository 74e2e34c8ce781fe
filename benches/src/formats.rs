//! qcow2 served and converted: against qemu-nbd and qemu-img, on the same images.

use std::fs;
use std::path::Path;
use std::process::Command;

use rig::Scratch;

use crate::contest::{Contest, Row, Unit};
use crate::nbd::{Client, Load, raw_image, start};

/// Rounds of a row.
const ROUNDS: usize = 5;

/// Runs a command that writes `to`, which is gone first.
fn write(words: &[&str], to: &str) {
    let _ = fs::remove_file(to);
    rig::run_command(Command::new(words[0]).args(&words[1..]));
}

/// All rows.
pub fn rows(program: &Path) -> Vec<Row> {
    let scratch = Scratch::new("bench-formats");
    let path = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
    let (raw, qcow2, packed) = (path("disk.raw"), path("disk.qcow2"), path("packed.qcow2"));
    raw_image(Path::new(&raw));
    // Half of it text, which gets smaller.
    let text = "The words of a text that gets smaller when it is packed, number ";
    let lines: String = (0..400_000).map(|n| format!("{text}{n}\n")).collect();
    std::os::unix::fs::FileExt::write_all_at(
        &fs::File::options().write(true).open(&raw).unwrap(),
        &lines.repeat(8).as_bytes()[..200 << 20],
        256 << 20,
    )
    .unwrap();
    write(&["qemu-img", "convert", "-f", "raw", "-O", "qcow2", &raw, &qcow2], &qcow2);
    write(&["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", &raw, &packed], &packed);
    let program = program.to_str().unwrap();
    let mut rows = Vec::new();
    for (name, file) in [("qcow2", &qcow2), ("qcow2, half of it compressed", &packed)] {
        let (ours, theirs) = (scratch.join("loopbox.sock"), scratch.join("qemu.sock"));
        let socket = |socket: &Path| socket.to_str().unwrap().to_owned();
        let _ours = start(&[program, "serve", file, "--read-only", "--nbd", &socket(&ours)], &ours);
        let _qemu = start(&["qemu-nbd", "-r", "-t", "-e", "8", "-f", "qcow2", "-k", &socket(&theirs), file], &theirs);
        let small = Load { bytes: 4096, depth: 32, random: true, write: false };
        for (what, load, goal) in [
            ("4 KiB random reads, 32 under way", small, 2.0),
            ("4 KiB random reads, 1 under way", Load { depth: 1, ..small }, 2.0),
            ("128 KiB reads in order, 8 under way", Load { bytes: 128 << 10, depth: 8, random: false, ..small }, 1.0),
        ] {
            let (mut one, mut two) = (Client::connect(&ours), Client::connect(&theirs));
            let contest = Contest::new(format!("{name} as NBD: {what}"), Unit::OperationsPerSecond)
                .goal(goal, "qemu-nbd")
                .value("loopbox", || one.run(load))
                .value("qemu-nbd", || two.run(load));
            rows.push(contest.run(ROUNDS));
        }
    }
    rows.extend(writes(program, &scratch, &qcow2));
    let (to, theirs) = (path("to"), path("theirs"));
    for (name, from, format, ours, qemu) in [
        ("raw to qcow2", &raw, "qcow2", vec![], vec!["-f", "raw"]),
        ("qcow2 to raw", &qcow2, "raw", vec![], vec!["-f", "qcow2"]),
        ("compressed qcow2 to raw", &packed, "raw", vec![], vec!["-f", "qcow2"]),
        ("raw to compressed qcow2", &raw, "qcow2", vec!["--compress"], vec!["-c", "-f", "raw"]),
    ] {
        let ours = [vec![program, "convert", "--quiet", "--format", format], ours, vec![from, &to]].concat();
        let qemu = [vec!["qemu-img", "convert", "-O", format], qemu, vec![from, &theirs]].concat();
        let contest = Contest::new(format!("convert, 512 MiB, {name}"), Unit::Time)
            .goal(1.0, "qemu-img")
            .timed("loopbox", || write(&ours, &to))
            .timed("qemu-img", || write(&qemu, &theirs));
        rows.push(contest.run(ROUNDS));
    }
    // The above may still be in memory when they return, with both; here it is on the disk.
    let ours = [program, "convert", "--quiet", "--format", "qcow2", "--fsync", &raw, &to];
    let qemu = ["qemu-img", "convert", "-t", "writeback", "-f", "raw", "-O", "qcow2", &raw, &theirs];
    let contest = Contest::new("convert, 512 MiB, raw to qcow2, and onto the disk", Unit::Time)
        .goal(1.0, "qemu-img")
        .timed("loopbox", || write(&ours, &to))
        .timed("qemu-img", || write(&qemu, &theirs));
    rows.push(contest.run(ROUNDS));
    let packed = ["--format", "vmdk", "--subformat", "streamOptimized"];
    let ours = [&[program, "convert", "--quiet"][..], &packed, &[&raw, &to]].concat();
    let options = ["-o", "subformat=streamOptimized", "-f", "raw", "-O", "vmdk"];
    let qemu = [&["qemu-img", "convert"][..], &options, &[&raw, &theirs]].concat();
    let contest = Contest::new("convert, 512 MiB, raw to streamOptimized VMDK", Unit::Time)
        .goal(1.0, "qemu-img")
        .timed("loopbox", || write(&ours, &to))
        .timed("qemu-img", || write(&qemu, &theirs));
    rows.push(contest.run(ROUNDS));
    compressed(&scratch, program, &raw, &mut rows);
    rows
}

/// Writes into clusters that are there, and into an image that is empty.
fn writes(program: &str, scratch: &Scratch, full: &str) -> Vec<Row> {
    let path = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
    let (ours, theirs) = (path("written.qcow2"), path("written-by-qemu.qcow2"));
    let (our_socket, socket) = (path("writes.sock"), path("writes-qemu.sock"));
    let small = Load { bytes: 4096, depth: 32, random: true, write: true };
    let large = Load { bytes: 1 << 20, depth: 4, random: false, ..small };
    let (copy, create) = (vec!["cp", full], vec!["qemu-img", "create", "-q", "-f", "qcow2"]);
    let mut rows = Vec::new();
    for (what, load, make) in [
        ("4 KiB random writes over data, 32 under way", small, &copy),
        ("4 KiB random writes into an empty image, 32 under way", small, &create),
        ("1 MiB writes in order over data, 4 under way", large, &copy),
        ("1 MiB writes in order into an empty image, 4 under way", large, &create),
    ] {
        // A new image each time: one that was written to is not empty any more.
        let begin = |image: &str| {
            let words = [make.as_slice(), &[image], if make[0] == "cp" { &[] } else { &["512M"] }].concat();
            write(&words, image);
        };
        let contest = Contest::new(format!("qcow2 as NBD: {what}"), Unit::OperationsPerSecond)
            .goal(1.0, "qemu-nbd")
            .value("loopbox", || {
                begin(&ours);
                let socket = Path::new(&our_socket);
                let _server = start(&[program, "serve", &ours, "--nbd", &our_socket], socket);
                Client::connect(socket).run(load)
            })
            .value("qemu-nbd", || {
                begin(&theirs);
                let words = ["qemu-nbd", "-t", "-e", "8", "-f", "qcow2", "-k", &socket, &theirs];
                let _server = start(&words, Path::new(&socket));
                Client::connect(Path::new(&socket)).run(load)
            });
        rows.push(contest.run(ROUNDS));
    }
    rows
}

/// Images compressed as a whole, against nbdkit's filters.
fn compressed(scratch: &Scratch, program: &str, raw: &str, rows: &mut Vec<Row>) {
    let path = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
    let (to, theirs) = (path("to"), path("theirs"));
    for (format, pack) in [("gzip", "gzip -1"), ("xz", "xz -0 -T2 --block-size=8MiB")] {
        let file = path(format);
        rig::run("sh", ["-ec", &format!("{pack} <{raw} >{file}")]);
        let nbdkit = |filters: &str, range: &str| {
            let line = format!(
                "exec nbdkit -U - -r {filters} --filter={format} file {file} {range} --run 'nbdcopy $uri {theirs}'"
            );
            let _ = fs::remove_file(&theirs);
            rig::run("sh", ["-ec", &line]);
        };
        let part = format!("{file},offset=300M,sizelimit=64K");
        for (what, from, filters, range) in [
            ("64 KiB out of the middle, where its index is there", &part, "--filter=offset", "offset=300M range=64K"),
            ("all of it, 512 MiB", &file, "", ""),
        ] {
            let ours = [program, "convert", "--quiet", "--format", "raw", from, &to];
            let contest = Contest::new(format!("{format} to raw: {what}"), Unit::Time)
                .goal(1.0, "nbdkit")
                .timed("loopbox", || write(&ours, &to))
                .timed("nbdkit, nbdcopy", || nbdkit(filters, range));
            rows.push(contest.run(ROUNDS));
        }
    }
}
