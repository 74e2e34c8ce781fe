#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::testing::memory::{Memory, Run, Stored};

/// A destination inside a folder that holds something else, which must stay as it is.
struct Host {
    _folder: tempfile::TempDir,
    outside: PathBuf,
    inside: PathBuf,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (outside, inside) = (folder.path().join("outside"), folder.path().join("inside"));
        fs::create_dir(&outside).unwrap();
        fs::create_dir(&inside).unwrap();
        fs::write(outside.join("secret"), "kept").unwrap();
        Self { _folder: folder, outside, inside }
    }

    fn extract_with(&self, memory: &Memory, threads: usize) -> (Report, Vec<String>) {
        let failures = Failures::default();
        let directory = File::open(&self.inside).unwrap().into();
        let options = Options { fail_fast: false, threads };
        let to = Destination { directory, name: None };
        let report = extract(memory, memory.root(), to, options, &failures).unwrap();
        let said = failures.0.into_inner().unwrap();
        assert_eq!(report.failures as usize, said.len(), "{said:?}");
        (report, said)
    }

    fn extract(&self, memory: &Memory) -> (Report, Vec<String>) {
        self.extract_with(memory, 1)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.inside.join(name)
    }

    /// Nothing changed outside of the destination.
    fn check_outside(&self) {
        let names: Vec<_> = fs::read_dir(&self.outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"]);
        assert_eq!(fs::read(self.outside.join("secret")).unwrap(), b"kept");
        assert_eq!(fs::metadata(self.outside.join("secret")).unwrap().mode() & 0o7777, 0o644);
        assert_eq!(fs::read_dir(self.inside.parent().unwrap()).unwrap().count(), 2);
    }
}

#[derive(Default)]
struct Failures(Mutex<Vec<String>>);

impl Progress for Failures {
    fn failed(&self, path: &[u8], error: &Error) {
        self.0.lock().unwrap().push(format!("{} {:?}", Printable(path), error.kind()));
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Owners that this process may give: its own.
fn own(memory: &mut Memory, last: u64) {
    for n in 1..=last {
        let stat = &mut memory.node_mut(Inode(n)).stat;
        stat.uid = rustix::process::geteuid().as_raw();
        stat.gid = rustix::process::getegid().as_raw();
    }
}

#[test]
fn a_tree_comes_out_as_it_is() {
    for threads in [0, 1, 3] {
        let host = Host::new();
        let mut memory = Memory::new();
        let top = memory.root();
        let dir = memory.directory(top, b"dir");
        let file = memory.file(dir, b"file", b"content");
        memory.link(top, b"second name", file);
        memory.link(dir, b"third", file);
        let big: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 253) as u8).collect();
        let big_file = memory.file(dir, b"big", &big);
        let link = memory.symlink(top, b"link", b"dir/file");
        let pipe = memory.special(top, b"pipe", FileType::Fifo, None);
        memory.special(top, b"socket", FileType::Socket, None);
        memory.node_mut(dir).stat.permissions = 0o1570;
        memory.node_mut(file).stat.permissions = 0o4751;
        memory.node_mut(file).xattrs.push((b"user.name".to_vec(), b"value".to_vec()));
        memory.node_mut(dir).xattrs.push((b"user.dir".to_vec(), b"d".to_vec()));
        let stat = memory.stat(pipe).unwrap();
        own(&mut memory, stat.number + 1);
        let (report, said) = host.extract_with(&memory, threads);
        assert_eq!(said, [""; 0]);
        assert_eq!((report.directories, report.files, report.owners_left), (1, 7, 0), "{report:?}");
        assert_eq!(report.bytes, 3_000_007);
        assert!(bytes(&host.path("dir/big")) == big);
        assert_eq!(bytes(&host.path("second name")), b"content");
        let first = fs::metadata(host.path("dir/file")).unwrap();
        assert_eq!(first.nlink(), 3);
        assert_eq!(first.ino(), fs::metadata(host.path("dir/third")).unwrap().ino());
        assert_eq!(first.mode() & 0o7777, 0o4751);
        for (path, inode) in [("dir", dir), ("dir/file", file), ("dir/big", big_file), ("link", link), ("pipe", pipe)] {
            let (host, image) = (fs::symlink_metadata(host.path(path)).unwrap(), memory.stat(inode).unwrap());
            assert_eq!(host.mtime(), image.modified.seconds, "{path}");
            assert_eq!(host.mtime_nsec(), i64::from(image.modified.nanoseconds), "{path}");
            if image.file_type != FileType::SymbolicLink {
                assert_eq!(host.mode(), image.mode(), "{path}");
            }
        }
        assert_eq!(fs::read_link(host.path("link")).unwrap(), Path::new("dir/file"));
        assert!(fs::metadata(host.path("pipe")).unwrap().file_type().is_fifo());
        assert!(fs::metadata(host.path("socket")).unwrap().file_type().is_socket());
        for (path, name, value) in [("dir/file", "user.name", b"value".as_slice()), ("dir", "user.dir", b"d")] {
            let mut buf = [0; 16];
            match rustix::fs::getxattr(host.path(path), name, &mut buf) {
                Ok(n) => assert_eq!(&buf[..n], value),
                Err(errno) => {
                    assert!(report.xattrs_left > 0, "{errno}");
                    println!("SKIP extended attributes: the file system of the scratch folder has none");
                }
            }
        }
        host.check_outside();
    }
}

#[test]
fn a_file_alone_gets_the_name_that_it_is_given() {
    let host = Host::new();
    let mut memory = Memory::new();
    let file = memory.file(memory.root(), b"file", b"content");
    let options = Options::default();
    let to = |name: Option<&[u8]>| Destination {
        directory: File::open(&host.inside).unwrap().into(),
        name: name.map(<[u8]>::to_vec),
    };
    let report = extract(&memory, file, to(Some(b"other")), options, &()).unwrap();
    assert_eq!((report.files, report.failures), (1, 0));
    assert_eq!(bytes(&host.path("other")), b"content");
    let report = extract(&memory, memory.root(), to(Some(b"copy")), options, &()).unwrap();
    assert_eq!((report.directories, report.files), (1, 1));
    assert_eq!(bytes(&host.path("copy/file")), b"content");
    assert_eq!(extract(&memory, file, to(None), options, &()).unwrap_err().kind(), Kind::NotDirectory);
    for name in [b"..".as_slice(), b"../x", b""] {
        assert_eq!(extract(&memory, file, to(Some(name)), options, &()).unwrap_err().kind(), Kind::Invalid);
    }
    host.check_outside();
}

#[test]
fn names_that_lead_out_are_refused() {
    let host = Host::new();
    let mut memory = Memory::new();
    let top = memory.root();
    for name in [b"../outside/secret".as_slice(), b"..", b".", b"", b"/etc/x", b"a/../../b", b"nul\0"] {
        memory.file(top, name, b"bad");
        memory.directory(top, name);
        memory.symlink(top, name, b"/");
    }
    memory.file(top, b"good", b"good");
    let (report, said) = host.extract(&memory);
    assert_eq!(said.len(), 21, "{said:?}");
    assert_eq!(report.files, 1);
    assert_eq!(bytes(&host.path("good")), b"good");
    assert_eq!(fs::read_dir(&host.inside).unwrap().count(), 1);
    host.check_outside();
}

#[test]
fn a_link_and_then_a_directory_of_its_name_lead_nowhere() {
    let host = Host::new();
    let mut memory = Memory::new();
    let top = memory.root();
    let outside = host.outside.to_str().unwrap().as_bytes().to_vec();
    for target in [outside.as_slice(), b"../outside"] {
        memory.symlink(top, b"x", target);
        let directory = memory.directory(top, b"x");
        memory.file(directory, b"secret", b"bad");
        memory.file(directory, b"new", b"bad");
    }
    // A file through a link, a hard link to a link, metadata through a link.
    let mut to_file = outside.clone();
    to_file.extend_from_slice(b"/secret");
    let link = memory.symlink(top, b"y", &to_file);
    memory.link(top, b"y2", link);
    let file = memory.file(top, b"y", b"good");
    memory.node_mut(file).stat.permissions = 0o777;
    let device = memory.special(top, b"z", FileType::Fifo, None);
    memory.node_mut(device).stat.permissions = 0o777;
    memory.symlink(top, b"z", &to_file);
    own(&mut memory, 9);
    let (_, said) = host.extract(&memory);
    assert_eq!(said, ["x NotDirectory", "x NotDirectory"]);
    assert!(fs::symlink_metadata(host.path("x")).unwrap().is_symlink());
    assert_eq!(bytes(&host.path("y")), b"good");
    host.check_outside();
}

#[test]
fn links_that_were_there_before_are_not_followed() {
    let host = Host::new();
    symlink(&host.outside, host.path("dir")).unwrap();
    symlink(host.outside.join("secret"), host.path("file")).unwrap();
    fs::hard_link(host.outside.join("secret"), host.path("hard")).unwrap();
    fs::create_dir(host.path("kept")).unwrap();
    fs::write(host.path("kept/old"), "old").unwrap();
    fs::create_dir(host.path("full")).unwrap();
    let mut memory = Memory::new();
    let top = memory.root();
    let dir = memory.directory(top, b"dir");
    memory.file(dir, b"secret", b"bad");
    memory.file(top, b"file", b"new");
    memory.file(top, b"hard", b"new");
    memory.symlink(top, b"full", b"x");
    let kept = memory.directory(top, b"kept");
    memory.file(kept, b"fresh", b"fresh");
    let (_, said) = host.extract(&memory);
    assert_eq!(said, ["dir NotDirectory", "full IsDirectory"]);
    assert_eq!(bytes(&host.path("file")), b"new");
    assert_eq!(bytes(&host.path("hard")), b"new");
    assert_eq!((bytes(&host.path("kept/old")), bytes(&host.path("kept/fresh"))), (b"old".into(), b"fresh".into()));
    host.check_outside();
}

#[test]
fn a_replaced_first_name_makes_no_wrong_link() {
    let host = Host::new();
    let mut memory = Memory::new();
    let top = memory.root();
    let file = memory.file(top, b"a", b"content");
    memory.symlink(top, b"a", b"../outside/secret");
    memory.link(top, b"b", file);
    memory.link(top, b"b", file);
    let (_, said) = host.extract(&memory);
    assert_eq!(said, [""; 0]);
    assert!(fs::symlink_metadata(host.path("a")).unwrap().is_symlink());
    assert_eq!(bytes(&host.path("b")), b"content");
    host.check_outside();
}

#[test]
fn loops_and_depth_end() {
    let host = Host::new();
    let mut memory = Memory::new();
    let mut above = memory.root();
    for _ in 0..10_000 {
        above = memory.directory(above, b"d");
    }
    let inner = memory.directory(memory.root(), b"inner");
    memory.link(inner, b"self", inner);
    memory.link(inner, b"root", Inode(1));
    memory.file(inner, b"file", b"");
    let (report, said) = host.extract(&memory);
    assert_eq!(said.len(), 3, "{said:?}");
    assert_eq!(report.directories as usize, crate::walk::DEPTH_MAX);
    assert_eq!(report.files, 1);
    // Metadata reached every level, on the way back up too.
    let first = fs::metadata(host.path("d")).unwrap();
    assert_eq!(first.mtime(), memory.stat(Inode(2)).unwrap().modified.seconds);
    host.check_outside();
    let removed = std::process::Command::new("rm").arg("-rf").arg(&host.inside).status().unwrap();
    assert!(removed.success());
}

#[test]
fn one_bad_file_is_removed_and_the_rest_goes_on() {
    for threads in [0, 2] {
        let host = Host::new();
        let mut memory = Memory::new();
        let top = memory.root();
        memory.file(top, b"a", b"a");
        let broken = memory.file(top, b"broken", &vec![1; 3_000_000]);
        memory.node_mut(broken).broken_from = Some(2_500_000);
        memory.link(top, b"broken again", broken);
        let alone = memory.file(top, b"broken alone", &vec![1; 300_000]);
        memory.node_mut(alone).broken_from = Some(0);
        let short = memory.file(top, b"short", b"12345");
        memory.node_mut(short).stat.size = 5;
        memory.node_mut(short).runs.clear();
        memory.file(top, b"z", b"z");
        let (_, mut said) = host.extract_with(&memory, threads);
        said.sort();
        assert_eq!(said, ["broken Io", "broken again Io", "broken alone Io"]);
        let mut names: Vec<_> = fs::read_dir(&host.inside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "short", "z"]);
    }
    let host = Host::new();
    let mut memory = Memory::new();
    let broken = memory.file(memory.root(), b"broken", b"1");
    memory.node_mut(broken).broken_from = Some(0);
    memory.file(memory.root(), b"z", b"z");
    let to = Destination { directory: File::open(&host.inside).unwrap().into(), name: None };
    let report = extract(&memory, memory.root(), to, Options { fail_fast: true, threads: 0 }, &()).unwrap();
    assert_eq!((report.failures, report.files), (1, 1));
    assert!(!host.path("z").exists());
}

#[test]
fn holes_stay_holes_and_files_are_copied_by_the_kernel() {
    let host = Host::new();
    let mut stored = tempfile::tempfile_in(&host.outside).unwrap();
    let content: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 241) as u8).collect();
    stored.write_all(&content).unwrap();
    let stored = Arc::new(stored);
    let mut memory = Memory::new();
    let size = 1 << 30;
    let runs = vec![
        Run { start: 1 << 20, stored: Stored::File { file: Arc::clone(&stored), offset: 3, len: 900_000 } },
        Run { start: 1 << 29, stored: Stored::Bytes(vec![9; 10]) },
        Run { start: (1 << 29) + 10, stored: Stored::Zero(1 << 20) },
        Run { start: 1 << 30, stored: Stored::File { file: stored, offset: 0, len: 10 } },
    ];
    let file = memory.sparse(memory.root(), b"sparse", size, runs.clone());
    memory.sparse(memory.root(), b"hole", size, Vec::new());
    memory.sparse(memory.root(), b"end", size + 10, runs);
    let (report, said) = host.extract(&memory);
    assert_eq!(said, [""; 0]);
    assert_eq!(report.bytes, 3 * size + 10);
    for (name, len) in [("sparse", size), ("hole", size), ("end", size + 10)] {
        let metadata = fs::metadata(host.path(name)).unwrap();
        assert_eq!(metadata.len(), len, "{name}");
        assert!(metadata.blocks() * 512 < 4 << 20, "{name}: {} blocks", metadata.blocks());
    }
    let copy = File::open(host.path("sparse")).unwrap();
    for at in [0, (1 << 20) - 10, (1 << 20) + 899_990, (1 << 29) - 5, size - 100] {
        use std::os::unix::fs::FileExt;
        let (mut one, mut other) = ([1; 100], [2; 100]);
        copy.read_exact_at(&mut one, at).unwrap();
        memory.read(file, &mut other, at).unwrap();
        assert_eq!(one, other, "at {at}");
    }
    let end = File::open(host.path("end")).unwrap();
    let mut tail = [0; 10];
    std::os::unix::fs::FileExt::read_exact_at(&end, &mut tail, size).unwrap();
    assert_eq!(tail, content[..10]);
}

#[test]
fn privilege_is_given_only_with_its_owner() {
    let host = Host::new();
    let mut memory = Memory::new();
    let file = memory.file(memory.root(), b"setuid", b"");
    let stat = &mut memory.node_mut(file).stat;
    (stat.uid, stat.gid, stat.permissions) = (u32::MAX, u32::MAX, 0o6755);
    let foreign = memory.file(memory.root(), b"foreign", b"");
    let stat = &mut memory.node_mut(foreign).stat;
    (stat.uid, stat.gid, stat.permissions) = (12_345, 54_321, 0o6755);
    let device = memory.special(memory.root(), b"null", FileType::CharacterDevice, Some((1, 3)));
    own(&mut memory, 1);
    let (report, said) = host.extract(&memory);
    assert_eq!(said, [""; 0]);
    assert_eq!(fs::metadata(host.path("setuid")).unwrap().mode() & 0o7777, 0o755);
    if root() {
        let foreign = fs::metadata(host.path("foreign")).unwrap();
        assert_eq!((foreign.uid(), foreign.gid(), foreign.mode() & 0o7777), (12_345, 54_321, 0o6755));
        let null = fs::metadata(host.path("null")).unwrap();
        assert_eq!((null.rdev(), null.mode()), (rustix::fs::makedev(1, 3), memory.stat(device).unwrap().mode()));
        assert_eq!((report.owners_left, report.devices_left), (1, 0));
    } else {
        assert_eq!(fs::metadata(host.path("foreign")).unwrap().mode() & 0o7777, 0o755);
        assert_eq!((report.owners_left, report.devices_left), (2, 1));
    }
}
