//! Trees to compare: one with everything awkward in it, and manifests of trees wherever they are.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use ::fs::{Cursor, FileSystem, FileType, Time};
use sha2::{Digest as _, Sha256};

/// What to leave out of a sample tree, for a format that cannot hold it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Names that are no UTF-8, and control characters.
    pub odd_names: bool,
    /// Device nodes, when root; fifos and sockets.
    pub special: bool,
    /// `user.` attributes.
    pub xattrs: bool,
    /// A sparse file of 64 MiB with three islands.
    pub sparse: bool,
    /// How many files one big directory holds.
    pub many: u32,
}

impl Sample {
    /// All of it.
    pub const ALL: Self = Self { odd_names: true, special: true, xattrs: true, sparse: true, many: 300 };
}

/// Text that shrinks to a fifth, different from line to line, the same each time.
pub fn text(len: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(len + 80);
    let mut n = 0_u64;
    while text.len() < len {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.extend_from_slice(format!("line {} of the text, number {}\n", text.len(), n >> 50).as_bytes());
    }
    text.truncate(len);
    text
}

/// Fills `folder` with a hundred files that make every structure of a small image: a directory of several blocks, deep
/// folders, symbolic links of both kinds, text that shrinks, a sparse file, attributes that files share.
///
/// # Panics
/// When the folder cannot be written.
pub fn small(folder: &Path) {
    fs::create_dir_all(folder.join("many")).unwrap();
    for n in 0..120 {
        fs::write(folder.join(format!("many/{n}-{}", "n".repeat(n % 90))), text(n * 3)).unwrap();
    }
    fs::create_dir_all(folder.join("a/b/c")).unwrap();
    std::os::unix::fs::symlink("a/b/c", folder.join("short")).unwrap();
    std::os::unix::fs::symlink("long/".repeat(40), folder.join("long")).unwrap();
    fs::write(folder.join("a/text"), text(30_000)).unwrap();
    let sparse = fs::File::create(folder.join("sparse")).unwrap();
    for n in 0..60 {
        sparse.write_all_at(b"x", n * 3000).unwrap();
    }
    for (name, bytes) in [("user.a", 10), ("user.b", 300), ("user.c", 150)] {
        for path in ["sparse", "a"] {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(folder.join(path), name, &vec![1; bytes], flags).unwrap();
        }
    }
}

/// Fills `folder` with files, the same ones each time: sizes around block boundaries, long and odd names, deep
/// directories, hard and symbolic links, modes, times, attributes, holes.
///
/// # Panics
/// When the folder cannot be written.
pub fn make(folder: &Path, sample: Sample) {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = |len: usize| -> Vec<u8> {
        (0..len)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                (seed >> 24) as u8
            })
            .collect()
    };
    fs::create_dir_all(folder.join("sizes")).unwrap();
    for len in [
        0, 1, 59, 60, 61, 127, 160, 511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096, 4097, 65_537,
        1_100_003,
    ] {
        fs::write(folder.join(format!("sizes/{len}")), bytes(len)).unwrap();
    }
    fs::create_dir(folder.join("links")).unwrap();
    fs::write(folder.join("links/one"), b"one file, three names\n").unwrap();
    fs::hard_link(folder.join("links/one"), folder.join("links/two")).unwrap();
    fs::hard_link(folder.join("links/one"), folder.join("three")).unwrap();
    let symlink = |target: &str, name: &str| std::os::unix::fs::symlink(target, folder.join(name)).unwrap();
    symlink("one", "links/relative");
    symlink("/etc/hostname", "links/absolute");
    symlink("nowhere/at/all", "links/dangling");
    symlink("loop", "links/loop");
    symlink("..", "links/up");
    symlink("../sizes", "links/folder");
    symlink(&"long/".repeat(11), "links/fast59");
    symlink(&format!("{}end", "component/".repeat(20)), "links/slow");
    symlink(&format!("{}/end", "c".repeat(200)), "links/long_component");
    let deep = folder.join((1..=12).map(|n| format!("deep{n}")).collect::<Vec<_>>().join("/"));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), b"twelve down\n").unwrap();
    fs::create_dir(folder.join("empty")).unwrap();
    fs::create_dir(folder.join("names")).unwrap();
    for name in [
        "UPPER",
        "lower",
        "MiXeD.TXT",
        "a.b.c.d",
        ".hidden",
        "with space",
        "semi;1",
        "ünïcödé",
        "日本語",
        "tab\there",
        "quote'\"",
        "trailing.",
        "-dash",
    ] {
        fs::write(folder.join("names").join(name), name).unwrap();
    }
    for len in [100, 220] {
        let name = format!("long{}{}", "n".repeat(len), len);
        fs::write(folder.join("names").join(&name), &name).unwrap();
    }
    if sample.odd_names {
        for name in [&b"\xff\xfe not utf-8"[..], b"line\nbreak", b"back\\slash", b"\x01control"] {
            fs::write(folder.join("names").join(OsStr::from_bytes(name)), name).unwrap();
        }
    }
    fs::create_dir(folder.join("many")).unwrap();
    for n in 0..sample.many {
        fs::write(folder.join(format!("many/file-{n:05}")), format!("{n}\n")).unwrap();
    }
    if sample.sparse {
        let file = fs::File::create(folder.join("sparse")).unwrap();
        file.set_len(64 << 20).unwrap();
        for at in [0_u64, 5 << 20, (64 << 20) - 4096] {
            file.write_all_at(&bytes(4096), at).unwrap();
        }
    }
    if sample.special {
        rustix::fs::mknodat(rustix::fs::CWD, folder.join("fifo"), rustix::fs::FileType::Fifo, 0o640.into(), 0).unwrap();
        if crate::is_root() {
            for (name, kind, device) in [
                ("null", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
                ("big", rustix::fs::FileType::BlockDevice, rustix::fs::makedev(259, 70_000)),
            ] {
                rustix::fs::mknodat(rustix::fs::CWD, folder.join(name), kind, 0o600.into(), device).unwrap();
            }
        }
    }
    if sample.xattrs {
        let set = |name: &str, attribute: &str, value: &[u8]| {
            rustix::fs::setxattr(folder.join(name), attribute, value, rustix::fs::XattrFlags::empty()).unwrap();
        };
        set("three", "user.comment", b"three names, one attribute");
        set("sizes/1", "user.empty", b"");
        set("sizes/2048", "user.binary", &[0, 1, 2, 255, 0]);
        set("sizes/4096", "user.long", &[b'x'; 900]);
        set("empty", "user.on_a_folder", b"yes");
    }
    for (name, mode) in
        [("sizes/60", 0o400), ("sizes/61", 0o4755), ("sizes/127", 0o2711), ("sizes/160", 0o000), ("empty", 0o1777)]
    {
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    if crate::is_root() {
        for (name, uid, gid) in [("sizes/1", 1000, 1001), ("sizes/2047", 65_534, 70_000), ("deep1", 3, 4)] {
            std::os::unix::fs::chown(folder.join(name), Some(uid), Some(gid)).unwrap();
        }
    }
    set_times(folder);
}

/// Gives every file a modification time of its own, that depends on its place alone; whole seconds, after 1980.
///
/// # Panics
/// When the folder cannot be written.
pub fn set_times(folder: &Path) {
    let mut paths = Vec::new();
    collect(folder, &mut paths);
    paths.sort();
    for (n, path) in paths.iter().enumerate().rev() {
        let seconds = 946_684_800 + 86_413 * n as i64;
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn collect(folder: &Path, paths: &mut Vec<std::path::PathBuf>) {
    paths.push(folder.to_path_buf());
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), paths);
        } else {
            paths.push(entry.path());
        }
    }
}

/// Everything about a file that two views of one tree must agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Bytes of a regular file; 0 of all others.
    pub size: u64,
    /// Modification time.
    pub modified: Time,
    /// Names of it; of a directory 0, since formats differ.
    pub links: u32,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
    /// Target of a symbolic link.
    pub target: Option<Vec<u8>>,
    /// SHA-256 of the content of a regular file, in hexadecimal.
    pub sha256: Option<String>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path (in order) that is the same file, when it has several names.
    pub same_as: Option<Vec<u8>>,
}

/// A tree: paths relative to its root (empty for the root itself) and their files.
pub type Manifest = BTreeMap<Vec<u8>, File>;

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The manifest of a folder of this machine.
///
/// # Panics
/// When it cannot be read.
pub fn of_folder(folder: &Path) -> Manifest {
    let mut manifest = Manifest::new();
    let mut paths = Vec::new();
    collect(folder, &mut paths);
    paths.sort();
    let mut first = BTreeMap::new();
    for path in paths {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(folder).unwrap().as_os_str().as_bytes().to_vec();
        let kind = meta.file_type();
        let mut xattrs = BTreeMap::new();
        let mut list = vec![0_u8; 65_536];
        if let Ok(len) = rustix::fs::llistxattr(&path, &mut list) {
            for attribute in list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                let mut value = vec![0_u8; 65_536];
                let len = rustix::fs::lgetxattr(&path, OsStr::from_bytes(attribute), &mut value).unwrap();
                value.truncate(len);
                xattrs.insert(attribute.to_vec(), value);
            }
        }
        let same_as = (!kind.is_dir() && meta.nlink() > 1)
            .then(|| first.entry((meta.dev(), meta.ino())).or_insert_with(|| name.clone()).clone())
            .filter(|first| *first != name);
        let device = (kind.is_block_device() || kind.is_char_device())
            .then(|| (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())));
        let file = File {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            size: if kind.is_file() { meta.size() } else { 0 },
            modified: Time { seconds: meta.mtime(), nanoseconds: meta.mtime_nsec() as u32 },
            links: if kind.is_dir() { 0 } else { meta.nlink() as u32 },
            device,
            target: kind.is_symlink().then(|| fs::read_link(&path).unwrap().into_os_string().into_vec()),
            sha256: kind.is_file().then(|| {
                let file = fs::File::open(&path).unwrap();
                content_sha256(meta.size(), |buf, offset| file.read_at(buf, offset).unwrap())
            }),
            xattrs,
            same_as,
        };
        manifest.insert(name, file);
    }
    manifest
}

/// The manifest of a file system that loopbox reads.
///
/// # Panics
/// When a call fails, or it holds a directory in itself.
pub fn of_file_system(files: &dyn FileSystem) -> Manifest {
    let mut manifest = Manifest::new();
    let mut found = Vec::new();
    let mut open = vec![(Vec::new(), files.root())];
    while let Some((path, inode)) = open.pop() {
        assert!(path.len() < 4096, "a directory that holds itself: {}", path.escape_ascii());
        let stat = files.stat(inode).unwrap_or_else(|error| panic!("stat {}: {error:?}", path.escape_ascii()));
        if stat.file_type == FileType::Directory {
            let mut visit = |entry: ::fs::Entry<'_>| {
                let mut path = path.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(entry.name);
                open.push((path, entry.inode));
                ControlFlow::Continue(())
            };
            let listed = files.read_dir(inode, Cursor::START, &mut visit);
            listed.unwrap_or_else(|error| panic!("read_dir {}: {error:?}", path.escape_ascii()));
        }
        found.push((path, inode, stat));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let mut first = BTreeMap::new();
    for (path, inode, stat) in found {
        let directory = stat.file_type == FileType::Directory;
        let regular = stat.file_type == FileType::Regular;
        let xattrs = files.xattrs(inode).unwrap().into_iter();
        let xattrs = xattrs.map(|name| (name.clone(), files.xattr(inode, &name).unwrap())).collect();
        let same_as = (!directory && stat.links > 1)
            .then(|| first.entry(stat.number).or_insert_with(|| path.clone()).clone())
            .filter(|first| *first != path);
        let file = File {
            mode: stat.mode(),
            owner: (stat.uid, stat.gid),
            size: if regular { stat.size } else { 0 },
            modified: stat.modified,
            links: if directory { 0 } else { stat.links },
            device: stat.device,
            target: (stat.file_type == FileType::SymbolicLink).then(|| files.read_link(inode).unwrap()),
            sha256: regular.then(|| content_sha256(stat.size, |buf, offset| files.read(inode, buf, offset).unwrap())),
            xattrs,
            same_as,
        };
        manifest.insert(path, file);
    }
    manifest
}

fn content_sha256(size: u64, mut read: impl FnMut(&mut [u8], u64) -> usize) -> String {
    let mut hash = Sha256::new();
    let mut buf = vec![0_u8; 1 << 20];
    let mut offset = 0;
    while offset < size {
        let len = read(&mut buf, offset);
        assert!(len > 0, "end of file at {offset} of {size}");
        hash.update(&buf[..len]);
        offset += len as u64;
    }
    hex(hash)
}

/// Asserts that two trees are the same.
///
/// # Panics
/// When they are not: with the first ten differences.
pub fn assert_same(left_name: &str, left: &Manifest, right_name: &str, right: &Manifest) {
    let mut differences = Vec::new();
    for path in left.keys().chain(right.keys().filter(|path| !left.contains_key(*path))) {
        match (left.get(path), right.get(path)) {
            (Some(a), Some(b)) if a == b => {}
            (a, b) => {
                let shown = path.escape_ascii();
                differences.push(format!("{shown}\n  {left_name}: {a:?}\n  {right_name}: {b:?}"));
            }
        }
    }
    let shown = differences.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
    assert!(differences.is_empty(), "{} differences:\n{shown}", differences.len());
}
