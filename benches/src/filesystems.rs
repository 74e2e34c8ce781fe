//! Images read, searched, and copied out of: against the kernel's loop mount, squashfuse_ll, erofsfuse, fusefat, exfat-fuse,
//! ntfs-3g, unsquashfs, fsck.erofs, mcopy and 7z.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rig::Scratch;

use crate::contest::{Contest, Row, Unit};
use crate::disk::{Mounter, extraction, find, piped, random_reads, read_all, tar};
use crate::images::{FILES, evict};

/// Bytes of the big file: text that shrinks to a third.
const BIG_BYTES: usize = 128 << 20;

/// A format, the image, who else mounts it, and who else takes it apart.
struct Format {
    name: &'static str,
    image: PathBuf,
    /// The peer's program, and the words that mount and unmount.
    fuse: Option<(&'static str, Vec<&'static str>, Vec<&'static str>)>,
    extract: Vec<Extractor>,
}

/// A peer's name, and its words; `IMAGE` and `DIR` are filled in.
type Extractor = (&'static str, Vec<&'static str>);

/// All rows of this group.
pub fn rows(program: &Path) -> Vec<Row> {
    eprintln!("  (making images)");
    let scratch = Scratch::new("bench-filesystems");
    let tree = tree(&scratch);
    let squashfs = scratch.join("bench.squashfs");
    let words = ["-noappend", "-no-progress", "-quiet", "-comp", "zstd", "-Xcompression-level", "6"].map(OsStr::new);
    rig::run("mksquashfs", [&[tree.as_os_str(), squashfs.as_os_str()], &words[..]].concat());
    let erofs = scratch.join("bench.erofs");
    let words = ["--quiet", "-zlz4hc,6", "-C65536"].map(OsStr::new);
    rig::run("mkfs.erofs", [&words[..], &[erofs.as_os_str(), tree.as_os_str()]].concat());
    let fat = written(program, &scratch, &tree, "fat");
    let exfat = written(program, &scratch, &tree, "exfat");
    let udf = scratch.join("bench.udf");
    let words = ["-quiet", "-udf", "-o"].map(OsStr::new);
    rig::run("genisoimage", [&words[..], &[udf.as_os_str(), tree.as_os_str()]].concat());
    let seven: Extractor = ("7z", vec!["7z", "x", "-y", "-oDIR", "IMAGE"]);
    let formats = [
        Format {
            name: "squashfs",
            image: squashfs,
            fuse: Some(("squashfuse_ll", vec!["squashfuse_ll", "IMAGE", "DIR"], FUSERMOUNT.to_vec())),
            extract: vec![("unsquashfs", vec!["unsquashfs", "-q", "-n", "-f", "-d", "DIR", "IMAGE"]), seven.clone()],
        },
        Format {
            name: "erofs",
            image: erofs,
            fuse: Some(("erofsfuse", vec!["erofsfuse", "IMAGE", "DIR"], FUSERMOUNT.to_vec())),
            extract: vec![("fsck.erofs", vec!["fsck.erofs", "--extract=DIR", "--overwrite", "IMAGE"])],
        },
        Format {
            name: "vfat",
            image: fat,
            fuse: Some(("fusefat", vec!["fusefat", "-o", "ro", "IMAGE", "DIR"], UMOUNT.to_vec())),
            extract: vec![("mcopy", vec!["mcopy", "-s", "-m", "-n", "-Q", "-i", "IMAGE", "::*", "DIR"]), seven.clone()],
        },
        Format {
            name: "exfat",
            image: exfat,
            // It takes block devices alone, which mount makes.
            fuse: Some((
                "mount.exfat-fuse",
                vec!["mount", "-t", "exfat-fuse", "-o", "loop,ro", "IMAGE", "DIR"],
                UMOUNT.to_vec(),
            )),
            extract: Vec::new(),
        },
        Format {
            name: "ntfs",
            image: ntfs(&scratch, &tree),
            fuse: Some(("ntfs-3g", vec!["ntfs-3g", "-o", "ro", "IMAGE", "DIR"], UMOUNT.to_vec())),
            extract: vec![seven.clone()],
        },
        Format { name: "udf", image: udf, fuse: None, extract: vec![seven] },
    ];
    let mut rows = Vec::new();
    for format in &formats {
        rows.extend(mounted_rows(program, &scratch, format));
        rows.extend(copied_rows(program, &scratch, &tree, format));
    }
    rows
}

const FUSERMOUNT: &[&str] = &["fusermount3", "-u", "DIR"];
const UMOUNT: &[&str] = &["umount", "DIR"];

/// A tree in a file system that loopbox writes.
fn written(program: &Path, scratch: &Scratch, tree: &Path, kind: &str) -> PathBuf {
    let image = scratch.join(format!("bench.{kind}"));
    let words = ["create", "--fs", kind, "--size", "768M", "--from"].map(OsStr::new);
    rig::run_command(Command::new(program).args(words).arg(tree).arg(&image));
    image
}

/// The same in an NTFS volume, by ntfs-3g.
fn ntfs(scratch: &Scratch, tree: &Path) -> PathBuf {
    let (image, folder) = (scratch.join("bench.ntfs"), scratch.join("ntfs-written"));
    fs::File::create(&image).unwrap().set_len(768 << 20).unwrap();
    fs::create_dir_all(&folder).unwrap();
    rig::run("mkntfs", ["-q".as_ref(), "-F".as_ref(), image.as_os_str()]);
    let writer = Mounter::new("ntfs-3g", &["ntfs-3g", "IMAGE", "DIR"], UMOUNT);
    writer.mount(&image, &folder);
    rig::run("cp", ["-rT".as_ref(), tree.as_os_str(), folder.as_os_str()]);
    writer.umount(&image, &folder);
    image
}

fn tree(scratch: &Scratch) -> PathBuf {
    let tree = scratch.join("tree");
    let mut text = Vec::with_capacity(BIG_BYTES + 100);
    let mut n = 1_u64;
    while text.len() < BIG_BYTES {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.extend_from_slice(format!("{:x} of {}, line {}\n", n >> 20, n >> 58, text.len()).as_bytes());
    }
    text.truncate(BIG_BYTES);
    fs::create_dir_all(&tree).unwrap();
    fs::write(tree.join("big"), &text).unwrap();
    for n in 0..FILES {
        let folder = tree.join(format!("many/{:03}", n / 200));
        if n % 200 == 0 {
            fs::create_dir_all(&folder).unwrap();
        }
        fs::write(folder.join(format!("file-{n:05}.dat")), &text[n * 5000..][..(n * 7919) % 16_384]).unwrap();
    }
    tree
}

fn mounted_rows(program: &Path, scratch: &Scratch, format: &Format) -> Vec<Row> {
    let (own, image) = (program.to_str().unwrap(), &format.image);
    let mut mounters =
        vec![Mounter::new("loopbox", &[own, "mount", "--user", "IMAGE", "DIR"], &[own, "umount", "DIR"])];
    let fuse = format.fuse.as_ref().map_or("", |(name, ..)| *name);
    match &format.fuse {
        Some((name, mount, umount)) if rig::which(name).is_some() => mounters.push(Mounter::new(name, mount, umount)),
        Some((name, ..)) => eprintln!("  (no {name}: left out)"),
        None => {}
    }
    if rig::have_filesystem(format.name) {
        mounters.push(Mounter::new("kernel, loop", &["mount", "-o", "loop,ro", "IMAGE", "DIR"], &["umount", "DIR"]));
    }
    let all: Vec<(Mounter, PathBuf)> = mounters
        .into_iter()
        .enumerate()
        .map(|(n, mounter)| {
            let folder = scratch.join(format!("{}-{n}", format.name));
            fs::create_dir_all(&folder).unwrap();
            (mounter, folder)
        })
        .collect();
    let mut rows = Vec::new();
    let mut contest = Contest::new(format!("{}: mount to first byte", format.name), Unit::Time);
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
    rows.push(contest.goal(1.0, fuse).run(9));
    // Mounted anew and the image's pages dropped: what each caches above it is gone with the mount.
    let mut cold = |name: &str, task: &dyn Fn(&Path), rounds: usize| {
        let mut contest = Contest::new(format!("{}: {name}, cold", format.name), Unit::Time);
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
        rows.push(contest.goal(2.0, fuse).run(rounds));
    };
    cold("128 MiB read in order", &|folder| read_all(&folder.join("big")), 3);
    cold(&format!("find over {FILES} files"), &|folder| find(folder), 3);
    cold(&format!("tar over {FILES} files"), &|folder| tar(folder), 2);
    for (mounter, folder) in &all {
        mounter.mount(image, folder);
    }
    let mut contest = Contest::new(format!("{}: 4 KiB read at random", format.name), Unit::OperationsPerSecond);
    for (mounter, folder) in &all {
        contest = contest.value(mounter.name, move || random_reads(folder));
    }
    rows.push(contest.goal(2.0, fuse).run(2));
    for (mounter, folder) in &all {
        mounter.umount(image, folder);
    }
    rows
}

fn copied_rows(program: &Path, scratch: &Scratch, tree: &Path, format: &Format) -> Vec<Row> {
    let out = scratch.join("out");
    let timed = |task: &dyn Fn()| extraction(&out, task);
    let source = |path: &str| format!("{}:{path}", format.image.display());
    let all = source("/");
    let name = format!("{}: copy all out ({FILES} files and 128 MiB), warm", format.name);
    let mut contest = Contest::new(name, Unit::Time).value("loopbox", || {
        timed(&|| {
            let words: [&OsStr; 3] = ["cp".as_ref(), all.as_ref(), out.join("x").as_os_str().to_owned().leak()];
            rig::run_command(Command::new(program).args(words));
        })
    });
    for (name, words) in &format.extract {
        let target = out.join("y").display().to_string();
        contest = contest.value(*name, {
            let timed = &timed;
            move || {
                let image = format.image.display().to_string();
                let fill = |word: &&str| word.replace("DIR", &target).replace("IMAGE", &image);
                let words: Vec<String> = words.iter().map(fill).collect();
                let took = timed(&|| {
                    // Some of them want it to be there.
                    fs::create_dir(&target).unwrap();
                    rig::run(&words[0], &words[1..]);
                });
                let folders = fs::read_dir(Path::new(&target).join("many")).map_or(0, Iterator::count);
                assert_eq!(folders, FILES / 200, "{words:?} has not copied all");
                took
            }
        });
    }
    let contest = contest.value("cp of the plain files", || {
        timed(&|| {
            rig::run("cp", [OsStr::new("-a"), tree.as_os_str(), out.join("x").as_os_str()]);
        })
    });
    let image = format.image.display().to_string();
    let image = image.as_str();
    let big = source("/big");
    let mut cat = Contest::new(format!("{}: one file of 128 MiB to a pipe, warm", format.name), Unit::Time)
        .timed("loopbox cat", || piped(&format!("'{}' cat '{big}'", program.display())));
    if format.name == "squashfs" {
        cat = cat
            .timed("unsquashfs -cat", move || piped(&format!("unsquashfs -cat '{image}' big")))
            .timed("7z", move || piped(&format!("7z x -so '{image}' big")));
    }
    vec![contest.goal(1.0, "").run(2), cat.goal(1.0, "").run(3)]
}
