//! An encrypted image as a network block device, against qemu-nbd with its luks driver over the same file; and the cipher
//! itself in memory, on one core, against OpenSSL.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rig::Scratch;
use sys::aes::{AesXts, Direction, Sectors};

use crate::contest::{Contest, Row, Unit};
use crate::nbd::{Client, Load, raw_image, start};

/// Rounds of a row.
const ROUNDS: usize = 5;
/// How long a round in memory lasts.
const ROUND: Duration = Duration::from_millis(500);
/// Bytes of a request of those in order, and of a piece in memory.
const PIECE: usize = 128 << 10;

/// Pieces a second that the cipher alone decrypts.
fn in_memory(xts: &AesXts, sector: usize, piece: &mut [u8]) -> f64 {
    let (start, mut done) = (Instant::now(), 0_u64);
    while start.elapsed() < ROUND {
        xts.apply(Direction::Decrypt, piece, Sectors { first: done, step: 1, bytes: sector });
        done += 1;
    }
    done as f64 / start.elapsed().as_secs_f64()
}

/// The same by `openssl speed`, with its calls as long as a sector.
fn openssl(sector: usize) -> f64 {
    let mut command = Command::new("openssl");
    command.args(["speed", "-mr", "-seconds", "1", "-decrypt", "-evp", "aes-256-xts", "-bytes", &sector.to_string()]);
    let said = rig::run_command(&mut command);
    // `+F:26:AES-256-XTS:1234567890.00`: bytes a second.
    let line = said.lines().find(|line| line.starts_with("+F:"));
    let bytes = line.and_then(|line| line.rsplit(':').next()?.trim().parse::<f64>().ok());
    bytes.expect("bytes a second of openssl speed") / PIECE as f64
}

/// All rows.
pub fn rows(program: &Path) -> Vec<Row> {
    let scratch = Scratch::new("bench-luks");
    let path = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
    let (raw, volume, key) = (path("raw"), path("volume"), path("key"));
    raw_image(Path::new(&raw));
    std::fs::write(&key, "passphrase").unwrap();
    let secret = format!("secret,id=key,file={key}");
    let options = "key-secret=key,iter-time=10,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64";
    rig::run("qemu-img", ["convert", "--object", &secret, "-O", "luks", "-o", options, &raw, &volume]);
    std::fs::remove_file(&raw).unwrap();

    let mut rows = Vec::new();
    for sector in [512, 4096] {
        let key: Vec<u8> = (0..64).collect();
        let Some(xts) = AesXts::new(&key) else { continue };
        let mut piece = vec![7; PIECE];
        let name = format!("AES-256-XTS in memory, one core, sectors of {sector} bytes, 128 KiB");
        let contest = Contest::new(&name, Unit::OperationsPerSecond)
            .goal(1.0, "openssl")
            .value("loopbox", || in_memory(&xts, sector, &mut piece))
            .value("openssl", || openssl(sector));
        rows.push(contest.run(ROUNDS));
    }

    let (ours, qemu) = (scratch.join("loopbox.sock"), scratch.join("qemu.sock"));
    let (ours_path, qemu_path) = (path("loopbox.sock"), path("qemu.sock"));
    let image = format!("{volume},luks,key-file={key}");
    let _ours = start(&[program.to_str().unwrap(), "serve", &image, "--nbd", &ours_path], &ours);
    let options = format!("driver=luks,key-secret=key,file.filename={volume}");
    let words = ["qemu-nbd", "-t", "-e", "8", "--object", &secret, "--image-opts", "-k", &qemu_path, &options];
    let _qemu = start(&words, &qemu);
    let small = |depth| Load { bytes: 4096, depth, random: true, write: false };
    for (name, load) in [
        ("LUKS through NBD, page cache, 4 KiB random reads, 32 under way", small(32)),
        ("LUKS through NBD, page cache, 4 KiB random reads, 1 under way", small(1)),
        (
            "LUKS through NBD, page cache, 128 KiB reads in order, 8 under way",
            Load { bytes: PIECE as u32, depth: 8, random: false, write: false },
        ),
    ] {
        let (mut one, mut two) = (Client::connect(&ours), Client::connect(&qemu));
        let contest = Contest::new(name, Unit::OperationsPerSecond)
            .goal(2.0, "qemu-nbd")
            .value("loopbox", || one.run(load))
            .value("qemu-nbd", || two.run(load));
        rows.push(contest.run(ROUNDS));
    }
    rows
}
