//! A file as a network block device over a unix socket: against nbdkit and qemu-nbd.
//!
//! Two clients: one of our own that batches (as many requests in one write as are free, all replies that are there in
//! one read), because libnbd's, fio's among them, are the limit themselves near 65,000 requests a second; and fio.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rig::Scratch;

use crate::contest::{Contest, Row, Unit};
use crate::images::evict;

/// Bytes of the image.
pub const IMAGE_BYTES: u64 = 512 << 20;
/// How long a round lasts.
const ROUND: Duration = Duration::from_millis(1000);
/// Rounds of a row.
const ROUNDS: usize = 5;

/// A server that is killed when it is dropped.
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server and waits until it takes connections.
pub fn start(words: &[&str], socket: &Path) -> Server {
    let mut command = Command::new(words[0]);
    let child = command.args(&words[1..]).stdout(Stdio::null()).stdin(Stdio::null()).spawn().unwrap();
    let server = Server(child);
    rig::wait_until("a server", || UnixStream::connect(socket).is_ok());
    server
}

/// What is asked for, round after round.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Of a request.
    pub bytes: u32,
    /// Requests under way.
    pub depth: usize,
    /// Anywhere, or one after the other.
    pub random: bool,
    /// Writes rather than reads.
    pub write: bool,
}

/// A client on a stream of its own, with simple replies: the least that any server has to do.
pub struct Client {
    stream: UnixStream,
    seed: u64,
    next: u64,
}

impl Client {
    /// Connects to a server of an image of [`raw_image`].
    pub fn connect(socket: &Path) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        // Fixed newstyle, no zeroes, the export of the empty name.
        stream.write_all(&3_u32.to_be_bytes()).unwrap();
        stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..8], IMAGE_BYTES.to_be_bytes());
        Self { stream, seed: 1, next: 0 }
    }

    fn append(&mut self, load: Load, out: &mut Vec<u8>) {
        let blocks = IMAGE_BYTES / u64::from(load.bytes);
        let block = if load.random {
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            self.seed % blocks
        } else {
            self.next += 1;
            self.next % blocks
        };
        out.extend(0x2560_9513_u32.to_be_bytes());
        out.extend([0, 0, 0, u8::from(load.write)]);
        out.extend(block.to_be_bytes());
        out.extend((block * u64::from(load.bytes)).to_be_bytes());
        out.extend(load.bytes.to_be_bytes());
        if load.write {
            out.resize(out.len() + load.bytes as usize, block as u8);
        }
    }

    /// Requests a second.
    pub fn run(&mut self, load: Load) -> f64 {
        let reply = if load.write { 16 } else { 16 + load.bytes as usize };
        let mut input = vec![0; (reply * load.depth).clamp(64 << 10, 4 << 20)];
        let (mut filled, mut skip, mut done, mut under_way) = (0, 0, 0_u64, 0);
        let mut out = Vec::new();
        let start = Instant::now();
        let mut elapsed = Duration::ZERO;
        loop {
            if elapsed < ROUND && under_way < load.depth {
                for _ in under_way..load.depth {
                    self.append(load, &mut out);
                }
                under_way = load.depth;
            }
            if under_way == 0 && skip == 0 {
                return done as f64 / elapsed.as_secs_f64();
            }
            self.stream.write_all(&out).unwrap();
            out.clear();
            filled += self.stream.read(&mut input[filled..]).unwrap();
            let mut at = 0;
            loop {
                let data = (filled - at).min(skip);
                (at, skip) = (at + data, skip - data);
                if skip > 0 || filled - at < 16 {
                    break;
                }
                assert_eq!(input[at..at + 8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "a reply without an error");
                (at, skip) = (at + 16, reply - 16);
                done += 1;
                under_way -= 1;
            }
            input.copy_within(at..filled, 0);
            filled -= at;
            elapsed = start.elapsed();
        }
    }
}

/// Requests a second by fio.
fn fio(socket: &Path, load: Load) -> f64 {
    let mut command = Command::new("fio");
    command.args(["--name=read", "--ioengine=nbd", "--time_based"]);
    command.arg(format!("--runtime={}ms", ROUND.as_millis()));
    command.arg(format!("--uri=nbd+unix:///?socket={}", socket.display()));
    command.args([format!("--bs={}", load.bytes), format!("--iodepth={}", load.depth)]);
    command.arg(if load.random { "--rw=randread" } else { "--rw=read" });
    crate::fio::rate(&mut command, "read")
}

/// Makes an image of bytes that nothing compresses.
pub fn raw_image(image: &Path) {
    let mut bytes = vec![0_u8; 1 << 20];
    let mut seed = 7_u64;
    let mut file = fs::File::create(image).unwrap();
    for _ in 0..IMAGE_BYTES >> 20 {
        for word in bytes.chunks_exact_mut(8) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&seed.to_le_bytes());
        }
        file.write_all(&bytes).unwrap();
    }
    file.sync_all().unwrap();
}

/// All rows.
pub fn rows(program: &Path) -> Vec<Row> {
    let scratch = Scratch::new("bench-nbd");
    let image = scratch.join("disk.img");
    raw_image(&image);
    let image = image.to_str().unwrap();
    let direct = format!("{image},direct");
    let socket = |name: &str| scratch.join(format!("{name}.sock"));
    let (ours, kit, qemu) = (socket("loopbox"), socket("nbdkit"), socket("qemu"));
    let path = |socket: &Path| socket.to_str().unwrap().to_owned();
    let program = program.to_str().unwrap();

    let small = |depth| Load { bytes: 4096, depth, random: true, write: false };
    let large = Load { bytes: 128 << 10, depth: 8, random: false, write: false };
    let mut rows = Vec::new();
    {
        let _ours = start(&[program, "serve", image, "--nbd", &path(&ours)], &ours);
        let _kit = start(&["nbdkit", "-f", "-U", &path(&kit), "file", image], &kit);
        let _qemu = start(&["qemu-nbd", "-t", "-e", "8", "-f", "raw", "-k", &path(&qemu), image], &qemu);
        for (name, load, goal) in [
            ("NBD, page cache, 4 KiB random reads, 32 under way", small(32), 6.0),
            ("NBD, page cache, 4 KiB random reads, 1 under way", small(1), 2.0),
            ("NBD, page cache, 128 KiB reads in order, 8 under way", large, 1.3),
        ] {
            let mut clients = [&ours, &kit, &qemu].map(|socket| Client::connect(socket));
            let [one, two, three] = &mut clients;
            let contest = Contest::new(name, Unit::OperationsPerSecond)
                .goal(goal, "nbdkit")
                .value("loopbox", || one.run(load))
                .value("nbdkit", || two.run(load))
                .value("qemu-nbd", || three.run(load));
            rows.push(contest.run(ROUNDS));
        }
        let contest = Contest::new("NBD, page cache, fio: 4 KiB random reads, 32 under way", Unit::OperationsPerSecond)
            .goal(1.3, "nbdkit")
            .value("loopbox", || fio(&ours, small(32)))
            .value("nbdkit", || fio(&kit, small(32)))
            .value("qemu-nbd", || fio(&qemu, small(32)));
        rows.push(contest.run(ROUNDS));
    }
    evict(Path::new(image));
    let _ours = start(&[program, "serve", &direct, "--nbd", &path(&ours)], &ours);
    let words = ["qemu-nbd", "-t", "-e", "8", "-f", "raw", "--cache=none", "--aio=native", "-k", &path(&qemu), image];
    let _qemu = start(&words, &qemu);
    for (name, load, goal) in [
        ("NBD, direct, 4 KiB random reads, 32 under way", small(32), 2.5),
        ("NBD, direct, 4 KiB random reads, 1 under way", small(1), 1.0),
        ("NBD, direct, 128 KiB reads in order, 8 under way", large, 1.0),
    ] {
        let (mut one, mut two) = (Client::connect(&ours), Client::connect(&qemu));
        let contest = Contest::new(name, Unit::OperationsPerSecond)
            .goal(goal, "qemu-nbd")
            .value("loopbox", || one.run(load))
            .value("qemu-nbd", || two.run(load));
        rows.push(contest.run(ROUNDS));
    }
    rows
}
