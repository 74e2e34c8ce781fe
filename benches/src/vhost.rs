//! A file as the virtio disk of a guest: against qemu-storage-daemon, by a driver without a guest.

use std::path::Path;
use std::time::{Duration, Instant};

use rig::Scratch;
use rig::vhost::{Driver, Request};

use crate::contest::{Contest, Row, Unit};
use crate::nbd::{IMAGE_BYTES, Load, raw_image, start};

/// How long a round lasts.
const ROUND: Duration = Duration::from_millis(1000);
/// Rounds of a row.
const ROUNDS: usize = 5;

/// Requests a second, on one queue; answers are waited for asleep, as a guest's kernel does.
fn run(driver: &mut Driver, load: Load) -> f64 {
    let sectors = u64::from(load.bytes / 512);
    let blocks = IMAGE_BYTES / u64::from(load.bytes);
    let (mut seed, mut next, mut done) = (0x9e37_79b9_7f4a_7c15_u64, 0, 0_u64);
    let mut request = || {
        let block = if load.random {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % blocks
        } else {
            next += 1;
            next % blocks
        };
        Request { kind: u32::from(load.write), sector: block * sectors, len: load.bytes }
    };
    for slot in 0..load.depth {
        driver.make(0, slot as u16, request());
    }
    driver.tell(0);
    let (mut answers, mut under_way) = (Vec::new(), load.depth);
    let start = Instant::now();
    while under_way > 0 {
        driver.wait(0, Duration::ZERO, &mut answers);
        let goes_on = start.elapsed() < ROUND;
        for answer in answers.drain(..) {
            assert_eq!(answer.status, 0);
            done += 1;
            if goes_on {
                driver.make(0, answer.slot, request());
            } else {
                under_way -= 1;
            }
        }
        driver.tell(0);
    }
    done as f64 / start.elapsed().as_secs_f64()
}

/// All rows.
pub fn rows(program: &Path) -> Vec<Row> {
    let scratch = Scratch::new("bench-vhost");
    let path = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
    let (image, copy) = (scratch.join("disk.img"), scratch.join("copy.img"));
    // Each by the same writes: how large the pieces are that the page cache keeps a file in follows from those, and
    // ext4 needs seven times as long for a small write into a large piece.
    raw_image(&image);
    raw_image(&copy);
    let (ours, qemu) = (scratch.join("loopbox.sock"), scratch.join("qemu.sock"));
    let words = [program.to_str().unwrap(), "serve", &path("disk.img"), "--vhost-user", &path("loopbox.sock")];
    let _ours = start(&words, &ours);
    let file = format!("driver=file,node-name=file,filename={}", path("copy.img"));
    let export = format!(
        "type=vhost-user-blk,id=disk,node-name=file,addr.type=unix,addr.path={},writable=on,num-queues=1",
        path("qemu.sock")
    );
    let _qemu = start(&["qemu-storage-daemon", "--blockdev", &file, "--export", &export], &qemu);
    let (mut one, mut two) = (Driver::connect(&ours, 1), Driver::connect(&qemu, 1));
    let small = Load { bytes: 4096, depth: 32, random: true, write: false };
    let mut rows = Vec::new();
    for (name, load, goal) in [
        ("4 KiB random reads, 32 under way", small, 7.0),
        ("4 KiB random reads, 1 under way", Load { depth: 1, ..small }, 3.0),
        ("128 KiB reads in order, 8 under way", Load { bytes: 128 << 10, depth: 8, random: false, write: false }, 1.8),
        ("4 KiB random writes, 32 under way", Load { write: true, ..small }, 1.0),
    ] {
        let contest =
            Contest::new(format!("disk of a guest (vhost-user), page cache, {name}"), Unit::OperationsPerSecond)
                .goal(goal, "qemu-storage-daemon")
                .value("loopbox", || run(&mut one, load))
                .value("qemu-storage-daemon", || run(&mut two, load));
        rows.push(contest.run(ROUNDS));
    }
    rows
}
