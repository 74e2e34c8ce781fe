//! Images mounted, read, copied out of, and attached: against the kernel's loop mount, fuse2fs, fuseiso, xorriso, 7z,
//! debugfs and losetup.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::contest::{Contest, Row, Unit};
use crate::images::{FILES, Images, evict};

/// A way to mount, and to unmount.
#[derive(Clone)]
pub(crate) struct Mounter {
    pub name: &'static str,
    mount: Vec<String>,
    umount: Vec<String>,
}

impl Mounter {
    pub fn new(name: &'static str, mount: &[&str], umount: &[&str]) -> Self {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Self { name, mount: words(mount), umount: words(umount) }
    }

    fn command(words: &[String], image: &Path, folder: &Path) {
        let fill = |word: &String| match word.as_str() {
            "IMAGE" => image.as_os_str().to_owned(),
            "DIR" => folder.as_os_str().to_owned(),
            word => word.into(),
        };
        let mut command = Command::new(fill(&words[0]));
        command.args(words[1..].iter().map(fill));
        rig::run_command(&mut command);
    }

    pub fn mount(&self, image: &Path, folder: &Path) {
        Self::command(&self.mount, image, folder);
    }

    /// Some peers return before the mount is gone: waits until it is.
    pub fn umount(&self, image: &Path, folder: &Path) {
        Self::command(&self.umount, image, folder);
        rig::wait_until("unmounted", || !mounted(folder));
    }
}

fn mounted(folder: &Path) -> bool {
    let shown = folder.display().to_string();
    fs::read_to_string("/proc/self/mounts").unwrap().lines().any(|line| line.split(' ').nth(1) == Some(&shown))
}

/// Loopbox in user space first, then its peers for the format.
fn mounters(program: &Path, format: &str) -> Vec<Mounter> {
    let program = program.to_str().unwrap();
    let fuse = Mounter::new("loopbox", &[program, "mount", "--user", "IMAGE", "DIR"], &[program, "umount", "DIR"]);
    let mut all = vec![fuse];
    if format == "ext4" {
        all.push(Mounter::new("fuse2fs", &["fuse2fs", "-o", "ro", "IMAGE", "DIR"], &["fusermount3", "-u", "DIR"]));
    } else {
        all.push(Mounter::new("fuseiso", &["fuseiso", "IMAGE", "DIR"], &["fusermount", "-u", "DIR"]));
    }
    if rig::have_filesystem(if format == "iso" { "iso9660" } else { format }) {
        all.push(Mounter::new("kernel, loop", &["mount", "-o", "loop,ro", "IMAGE", "DIR"], &["umount", "DIR"]));
    }
    all
}

/// All rows of this group.
pub fn rows(program: &Path) -> Vec<Row> {
    let images = Images::make();
    let mut rows = Vec::new();
    for (format, image) in [("ext4", &images.ext4), ("iso", &images.iso)] {
        rows.extend(mounted_rows(program, &images, format, image));
    }
    rows.extend(copied_rows(program, &images));
    rows
}

fn mounted_rows(program: &Path, images: &Images, format: &str, image: &Path) -> Vec<Row> {
    let peer = if format == "ext4" { "fuse2fs" } else { "fuseiso" };
    let all: Vec<(Mounter, PathBuf)> = mounters(program, format)
        .into_iter()
        .enumerate()
        .map(|(n, mounter)| {
            let folder = images.scratch.join(format!("{format}-{n}"));
            fs::create_dir_all(&folder).unwrap();
            (mounter, folder)
        })
        .collect();
    let mut rows = Vec::new();

    let mut contest = Contest::new(format!("{format}: mount to first byte"), Unit::Time);
    for (mounter, folder) in &all {
        contest = contest.value(mounter.name, move || {
            let start = std::time::Instant::now();
            mounter.mount(image, folder);
            let mut byte = [0];
            fs::File::open(folder.join("big")).unwrap().read_exact_at(&mut byte, 0).unwrap();
            let took = start.elapsed().as_secs_f64();
            mounter.umount(image, folder);
            took
        });
    }
    rows.push(contest.goal(1.0, peer).run(21));

    // Cold: mounted anew, and the image's pages dropped; what each peer caches above it is gone with the mount.
    let cold = |name: &str, task: &dyn Fn(&Path), rounds: usize, goal: f64| {
        let mut contest = Contest::new(format!("{format}: {name}, cold"), Unit::Time);
        for (mounter, folder) in &all {
            contest = contest.value(mounter.name, move || {
                evict(image);
                mounter.mount(image, folder);
                let start = std::time::Instant::now();
                task(folder);
                let took = start.elapsed().as_secs_f64();
                mounter.umount(image, folder);
                took
            });
        }
        contest.goal(goal, peer).run(rounds)
    };
    rows.push(cold("1 GiB read in order", &|folder| read_all(&folder.join("big")), 3, 1.0));
    rows.push(cold(&format!("find over {FILES} files"), &|folder| find(folder), 5, 3.0));
    rows.push(cold(&format!("tar over {FILES} files"), &|folder| tar(folder), 3, 3.0));

    // Warm: mounted once, each task done before.
    for (mounter, folder) in &all {
        mounter.mount(image, folder);
    }
    let warm = |name: &str, unit: Unit, task: &dyn Fn(&Path) -> f64, rounds: usize, goal: f64| {
        let mut contest = Contest::new(format!("{format}: {name}, warm"), unit);
        for (mounter, folder) in &all {
            contest = contest.value(mounter.name, move || task(folder));
        }
        contest.goal(goal, peer).run(rounds)
    };
    let timed = |task: fn(&Path)| {
        move |folder: &Path| {
            let start = std::time::Instant::now();
            task(folder);
            start.elapsed().as_secs_f64()
        }
    };
    rows.push(warm("1 GiB read in order", Unit::Time, &timed(|folder| read_all(&folder.join("big"))), 5, 1.0));
    rows.push(warm("4 KiB read at random", Unit::OperationsPerSecond, &random_reads, 5, 1.0));
    rows.push(warm(&format!("find over {FILES} files"), Unit::Time, &timed(find), 7, 3.0));
    rows.push(warm(&format!("tar over {FILES} files"), Unit::Time, &timed(tar), 5, 3.0));
    for (mounter, folder) in &all {
        mounter.umount(image, folder);
    }
    rows
}

pub(crate) fn read_all(file: &Path) {
    let file = fs::File::open(file).unwrap();
    let mut buf = vec![0; 1 << 20];
    let mut offset = 0;
    let size = file.metadata().unwrap().len();
    while offset < size {
        let len = file.read_at(&mut buf, offset).unwrap();
        assert!(len > 0);
        offset += len as u64;
    }
}

/// Reads of 4 KiB a second, over half a second, at places that do not repeat; the file's pages are dropped before.
pub(crate) fn random_reads(folder: &Path) -> f64 {
    let path = folder.join("big");
    evict(&path);
    let file = fs::File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let pages = file.metadata().unwrap().len() / 4096;
    let mut buf = [0; 4096];
    let mut place = 1_u64;
    let start = std::time::Instant::now();
    let mut count = 0_u32;
    while start.elapsed().as_millis() < 500 {
        for _ in 0..64 {
            // A full period over the pages of the file, a power of two.
            place = (place * 5 + 12_345) % pages;
            file.read_exact_at(&mut buf, place * 4096).unwrap();
        }
        count += 64;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

pub(crate) fn find(folder: &Path) {
    let out = rig::run("find", [folder.join("many").as_os_str(), OsStr::new("-printf"), OsStr::new("%s\n")]);
    assert!(out.lines().count() >= FILES);
}

pub(crate) fn tar(folder: &Path) {
    // GNU tar reads nothing when it writes to /dev/null itself; through a pipe it does.
    let command = format!("tar -C '{}' -cf - many | cat > /dev/null", folder.display());
    rig::run("sh", ["-c", &command]);
}

/// Copies out of an image, to the same disk.
fn copied_rows(program: &Path, images: &Images) -> Vec<Row> {
    let out = images.scratch.join("out");
    let mut rows = Vec::new();
    for (format, image) in [("ext4", &images.ext4), ("iso", &images.iso)] {
        let source = |path: &str| format!("{}:{path}", image.display());
        let run = |program: &Path, words: &[&OsStr]| {
            let mut command = Command::new(program);
            rig::run_command(command.args(words));
        };
        let timed = |task: &dyn Fn()| extraction(&out, task);
        let (all, big) = (source("/"), source("/big"));
        let mut contest = Contest::new(format!("{format}: copy all out ({FILES} files and 1 GiB), warm"), Unit::Time)
            .value("loopbox", || timed(&|| run(program, &["cp".as_ref(), all.as_ref(), out.join("x").as_ref()])))
            .value("cp of the plain files", || {
                timed(&|| run("cp".as_ref(), &["-a".as_ref(), images.tree.as_ref(), out.join("x").as_ref()]))
            })
            .value("7z", || {
                let into = format!("-o{}", out.display());
                timed(&|| run("7z".as_ref(), &["x".as_ref(), "-y".as_ref(), into.as_ref(), image.as_ref()]))
            });
        if format == "ext4" {
            contest = contest.value("debugfs rdump", || {
                let request = format!("rdump / {}", out.display());
                timed(&|| run("debugfs".as_ref(), &["-R".as_ref(), request.as_ref(), image.as_ref()]))
            });
        } else {
            contest = contest.value("xorriso", || {
                timed(&|| {
                    let words = ["-osirrox", "on", "-indev"].map(OsStr::new);
                    let rest = [image.as_ref(), OsStr::new("-extract"), OsStr::new("/"), out.as_ref()];
                    run("xorriso".as_ref(), &[&words[..], &rest[..]].concat());
                })
            });
        }
        rows.push(contest.goal(1.0, "").run(3));
        let row = Contest::new(format!("{format}: one file of 1 GiB to a pipe, warm"), Unit::Time)
            .timed("loopbox cat", || piped(&format!("'{}' cat '{big}'", program.display())))
            .timed("cat of the plain file", || piped(&format!("cat '{}'", images.tree.join("big").display())));
        let row = if format == "ext4" {
            row.timed("debugfs cat", || piped(&format!("debugfs -R 'cat /big' '{}'", image.display())))
        } else {
            row.timed("bsdtar", || piped(&format!("bsdtar -xOf '{}' big", image.display())))
        };
        rows.push(row.timed("7z", || piped(&format!("7z x -so '{}' big", image.display()))).goal(1.0, "").run(5));
    }
    rows
}

/// Does `task`, which writes into the empty folder `out`: seconds.
pub(crate) fn extraction(out: &Path, task: &dyn Fn()) -> f64 {
    put_aside(out);
    fs::create_dir(out).unwrap();
    // What the contender before wrote is not written back at this one's cost.
    rustix::fs::sync();
    let start = std::time::Instant::now();
    task();
    start.elapsed().as_secs_f64()
}

/// Moves a folder away, and empties the large file in it. Nothing is removed while there is something to measure: ext4
/// without a journal does not give the numbers of removed files out for minutes, and whoever makes the next files pays
/// for the search past them.
fn put_aside(out: &Path) {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let aside = out.with_file_name(format!("aside-{number}"));
    if fs::rename(out, &aside).is_err() {
        return;
    }
    let below = fs::read_dir(&aside).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    for folder in std::iter::once(aside.clone()).chain(below) {
        if let Ok(big) = fs::OpenOptions::new().write(true).open(folder.join("big")) {
            big.set_len(0).unwrap();
        }
    }
}

pub(crate) fn piped(command: &str) {
    // One that fails is no contender.
    rig::run("bash", ["-c", &format!("set -o pipefail; {command} 2>/dev/null | cat > /dev/null")]);
}

/// The loop driver: `loopbox attach`, and the same program called as losetup, which keeps no record of its own.
pub fn loop_rows(program: &Path) -> Vec<Row> {
    let scratch = rig::Scratch::new("bench-loop");
    let image = &scratch.join("disk.img");
    fs::File::create(image).unwrap().set_len(1 << 30).unwrap();
    let link = scratch.join("losetup");
    std::os::unix::fs::symlink(program, &link).unwrap();
    let shown =
        |program: &Path, words: &[&OsStr]| rig::run_command(Command::new(program).args(words)).trim().to_owned();
    let by_losetup = |losetup: &Path| {
        let device = shown(losetup, &["-f".as_ref(), "-P".as_ref(), "--show".as_ref(), image.as_ref()]);
        shown(losetup, &["-d".as_ref(), device.as_ref()]);
    };
    let theirs = rig::which("losetup").unwrap();
    vec![
        Contest::new("loopbox attach, loopbox detach", Unit::Time)
            .timed("loopbox", || {
                let device = shown(program, &["attach".as_ref(), image.as_ref()]);
                shown(program, &["detach".as_ref(), device.as_ref()]);
            })
            .timed("losetup -P", || by_losetup(&theirs))
            .goal(1.0, "")
            .run(41),
        Contest::new("losetup -f -P, losetup -d", Unit::Time)
            .timed("loopbox, called as losetup", || by_losetup(&link))
            .timed("losetup -P", || by_losetup(&theirs))
            .goal(1.0, "")
            .run(41),
    ]
}
