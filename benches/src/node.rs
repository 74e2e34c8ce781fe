//! A disk in user space, as a file that programs open: against the FUSE export of qemu-storage-daemon and nbdfuse, and,
//! for scale, the image itself and the kernel's loop device.
//!
//! The nodes are opened with `O_DIRECT`, so that each request goes to whoever serves it, who reads the image from the page
//! cache; what the kernel keeps above the node has a row of its own. All by the ordinary user of the tests, but for the
//! loop device and the last rows.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rig::{Scratch, User};

use crate::contest::{Contest, Row, Unit};
use crate::{fio, nbd};

/// Rounds of a row.
const ROUNDS: usize = 5;

/// What fio does to a file.
#[derive(Clone, Copy)]
struct Load {
    how: &'static str,
    bytes: u32,
    depth: u32,
}

const ONE: Load = Load { how: "randread", bytes: 4096, depth: 1 };
const MANY: Load = Load { how: "randread", bytes: 4096, depth: 32 };
const LARGE: Load = Load { how: "read", bytes: 1 << 20, depth: 1 };
const SIDE_BY_SIDE: Load = Load { how: "read", bytes: 128 << 10, depth: 8 };
const WRITES: Load = Load { how: "randwrite", bytes: 4096, depth: 32 };
const LARGE_WRITES: Load = Load { how: "write", bytes: 1 << 20, depth: 1 };

/// Which cache a request may be answered from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cache {
    /// None above the file: `O_DIRECT`.
    Past,
    /// That of the file, which holds all of it.
    Kept,
}

/// Operations a second on `file`.
fn run(user: User, file: &Path, load: Load, cache: Cache) -> f64 {
    let mut command = user.command("fio");
    command.args(["--name=node", "--time_based", "--runtime=1s", "--thread", "--norandommap", "--randrepeat=0"]);
    command.args(["--invalidate=0", "--fallocate=none", "--allow_file_create=0"]);
    command.arg(format!("--filename={}", file.display())).arg(format!("--size={}", nbd::IMAGE_BYTES));
    command.args([format!("--rw={}", load.how), format!("--bs={}", load.bytes), format!("--iodepth={}", load.depth)]);
    command.arg(if load.depth == 1 { "--ioengine=psync" } else { "--ioengine=io_uring" });
    command.arg(format!("--direct={}", u8::from(cache == Cache::Past)));
    fio::rate(&mut command, if load.how.ends_with("write") { "write" } else { "read" })
}

/// A server in the foreground, asked to end when it is dropped, and waited for.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        rig::run("kill", [self.0.id().to_string()]);
        let _ = self.0.wait();
    }
}

/// Starts it, and waits until `node` is a file with the bytes of the image.
fn start(command: &mut Command, node: &Path) -> Server {
    let server = Server(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let size = || User::Ordinary.command("stat").args(["-c", "%s"]).arg(node).output().unwrap().stdout;
    rig::wait_until("a node", || String::from_utf8_lossy(&size()).trim() == nbd::IMAGE_BYTES.to_string());
    server
}

/// A disk of loopbox in user space, let go when it is dropped.
struct Attached<'p> {
    program: &'p Path,
    user: User,
    node: PathBuf,
}

impl<'p> Attached<'p> {
    fn new(program: &'p Path, user: User, words: &[&str], image: &Path) -> Self {
        let said = rig::run_command(user.command(program).args(["attach", "--user"]).args(words).arg(image));
        Self { program, user, node: PathBuf::from(said.trim()) }
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        rig::run_command(self.user.command(self.program).arg("detach").arg(&self.node));
    }
}

/// A loop device, detached when it is dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(image: &Path) -> Option<Self> {
        let said = Command::new("losetup").args(["-f", "--show"]).arg(image).output().ok()?;
        said.status.success().then(|| Self(PathBuf::from(String::from_utf8_lossy(&said.stdout).trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        rig::run("losetup", ["-d".as_ref(), self.0.as_os_str()]);
    }
}

/// All rows of this group.
pub fn rows(program: &Path) -> Vec<Row> {
    let scratch = Scratch::of(User::Ordinary, "bench-node");
    let image = |name: &str| {
        let path = scratch.join(name);
        nbd::raw_image(&path);
        let (uid, gid) = User::Ordinary.ids();
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        path
    };
    // Each has its own: two that write do not meet.
    let [plain, ours, qemu, kit, looped] = ["plain", "ours", "qemu", "kit", "looped"].map(image);
    let point = scratch.join("point");
    rig::run_command(User::Ordinary.command("mkdir").arg(&point));
    let export = scratch.join("export");
    rig::run_command(User::Ordinary.command("touch").arg(&export));

    let mut daemon = User::Ordinary.command("qemu-storage-daemon");
    daemon.arg("--blockdev").arg(format!("driver=file,filename={},node-name=disk", qemu.display()));
    daemon.arg("--export");
    daemon.arg(format!("type=fuse,id=node,node-name=disk,mountpoint={},writable=on", export.display()));
    let mut bridge = User::Ordinary.command("nbdfuse");
    bridge.arg(point.join("disk")).args(["--command", "nbdkit", "-s", "file"]).arg(&kit);

    let mut rows = Vec::new();
    {
        let _daemon = start(&mut daemon, &export);
        let _bridge = start(&mut bridge, &point.join("disk"));
        let attached = Attached::new(program, User::Ordinary, &[], &ours);
        let device = Loop::new(&looped);
        let bridged = point.join("disk");
        for (name, load, goal) in [
            ("4 KiB random reads, 1 under way", ONE, 2.5),
            ("4 KiB random reads, 32 under way", MANY, 3.5),
            ("1 MiB reads in order, 1 under way", LARGE, 1.0),
            ("128 KiB reads in order, 8 under way", SIDE_BY_SIDE, 1.0),
            ("4 KiB random writes, 32 under way", WRITES, 1.0),
            ("1 MiB writes in order, 1 under way", LARGE_WRITES, 1.0),
        ] {
            let past = |file| move || run(User::Ordinary, file, load, Cache::Past);
            let mut contest = Contest::new(format!("node: {name}"), Unit::OperationsPerSecond)
                .goal(goal, "qemu")
                .value("loopbox", past(&attached.node))
                .value("qemu-storage-daemon", past(&export))
                .value("nbdfuse", past(&bridged))
                .value("the image itself, cached", || run(User::Ordinary, &plain, load, Cache::Kept));
            if let Some(Loop(device)) = &device {
                contest = contest.value("kernel, loop, cached", || run(User::Myself, device, load, Cache::Kept));
            }
            rows.push(contest.run(ROUNDS));
        }
        let again = |file| move || run(User::Ordinary, file, ONE, Cache::Kept);
        for node in [&attached.node, &export, &bridged] {
            rig::run_command(User::Ordinary.command("cat").arg(node).stdout(Stdio::null()));
        }
        let contest = Contest::new("node: 4 KiB random reads of what was read before", Unit::OperationsPerSecond)
            .goal(0.9, "image")
            .value("loopbox", again(&attached.node))
            .value("qemu-storage-daemon", again(&export))
            .value("nbdfuse", again(&bridged))
            .value("the image itself, cached", again(&plain));
        rows.push(contest.run(ROUNDS));
    }
    if rig::is_root() {
        rows.extend(by_root(program, &ours, &plain));
    }
    rows
}

/// Root has reads of a disk that nobody writes passed to the image by the kernel.
fn by_root(program: &Path, image: &Path, plain: &Path) -> Vec<Row> {
    let attached = Attached::new(program, User::Myself, &["--read-only"], image);
    [("1", ONE), ("32", MANY)]
        .map(|(depth, load)| {
            let cached = |file| move || run(User::Myself, file, load, Cache::Kept);
            let name = format!("node of root, read-only: 4 KiB random reads, {depth} under way");
            Contest::new(name, Unit::OperationsPerSecond)
                .goal(0.9, "image")
                .value("loopbox", cached(&attached.node))
                .value("the image itself, cached", cached(plain))
                .run(ROUNDS)
        })
        .into()
}
