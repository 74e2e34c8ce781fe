#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use super::*;
use crate::testing::memory::{Memory, Run, Stored};

/// An archive in a file of its folder.
fn archived(memory: &Memory, folder: &Path) -> Report {
    let file = File::create(folder.join("a.tar")).unwrap();
    let mut stream = Stream::new(file.as_fd());
    let report = archive(memory, memory.root(), b".", &mut stream, false, &()).unwrap();
    assert_eq!(file.metadata().unwrap().len(), stream.written());
    assert_eq!(stream.written() % RECORD_BYTES, 0);
    report
}

fn unpack(program: &str, options: &[&str], folder: &Path) -> std::path::PathBuf {
    let target = folder.join(program);
    std::fs::create_dir(&target).unwrap();
    let mut command = Command::new(program);
    command.args(["-xpf"]).arg(folder.join("a.tar")).args(options).arg("-C").arg(&target).env("LC_ALL", "C.UTF-8");
    let output = command.output().unwrap_or_else(|error| panic!("{program} (Debian: tar, libarchive-tools): {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {said}");
    assert_eq!(said.replace("tar: Ignoring unknown extended header keyword 'hdrcharset'\n", ""), "", "{program}");
    target
}

fn awkward() -> Memory {
    let mut memory = Memory::new();
    let root = memory.root();
    let mut directory = root;
    for _ in 0..8 {
        directory = memory.directory(directory, &[b'd'; 60]);
    }
    memory.file(directory, &[b'f'; 255], b"deep");
    let file = memory.file(root, "ünïcode 日本".as_bytes(), b"name");
    memory.node_mut(file).stat.permissions = 0o640;
    memory.link(root, b"zz linked", file);
    memory.file(root, b"\xff\xfe", b"no text");
    memory.file(root, b"line\nfeed", &[1; 512]);
    memory.symlink(root, b"long link", &[b't'; 300]);
    memory.symlink(root, b"short link", b"target");
    memory.special(root, b"pipe", FileType::Fifo, None);
    memory.special(root, b"socket", FileType::Socket, None);
    let old = memory.file(root, b"old", b"");
    memory.node_mut(old).stat.modified = crate::Time { seconds: -2, nanoseconds: 250_000_000 };
    let runs = vec![
        Run { start: 4096, stored: Stored::Bytes(vec![1; 5000]) },
        Run { start: 1 << 25, stored: Stored::Bytes(vec![2; 700]) },
    ];
    memory.sparse(root, b"sparse", (1 << 26) + 5, runs);
    memory.sparse(root, b"hole", 10 << 30, Vec::new());
    let attributed = memory.file(root, b"attributed", b"a");
    memory.node_mut(attributed).xattrs = vec![
        (b"user.binary".to_vec(), b"\0\n\xff=".to_vec()),
        (b"user.equal=%".to_vec(), b"1".to_vec()),
        (b"user.empty".to_vec(), Vec::new()),
    ];
    if rustix::process::geteuid().is_root() {
        memory.special(root, b"device", FileType::CharacterDevice, Some((259, 70_000)));
        memory.node_mut(old).stat.uid = 3_000_000_000;
        memory.node_mut(old).stat.gid = 54_321;
    }
    memory
}

#[test]
fn gnu_tar_and_bsdtar_read_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let memory = awkward();
    let report = archived(&memory, folder.path());
    assert_eq!((report.failures, report.sockets_left), (0, 1));
    assert!(std::fs::metadata(folder.path().join("a.tar")).unwrap().len() < 100 << 10, "holes are in the archive");
    let gnu: &[&str] = &["--xattrs", "--xattrs-include=*", "--warning=no-timestamp"];
    for (program, options) in [("tar", gnu), ("bsdtar", &["--xattrs"])] {
        let target = unpack(program, options, folder.path());
        let mut compared = 0;
        walk(&memory, memory.root(), Order::Name, &mut |step| {
            let (Step::Leave(found) | Step::File(found)) = step else { return Next::Continue };
            use std::os::unix::ffi::OsStrExt;
            let path = target.join(std::ffi::OsStr::from_bytes(found.path));
            if found.stat.file_type == FileType::Socket {
                assert!(std::fs::symlink_metadata(&path).is_err());
                return Next::Continue;
            }
            let host = std::fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{program}: {path:?}: {e}"));
            let what = format!("{program}: {}", Printable(found.path));
            let (image, link) = (found.stat, found.stat.file_type == FileType::SymbolicLink);
            assert!(link || host.mode() == image.mode(), "{what}: {:o}", host.mode());
            // bsdtar 3.6 reads -1.75 s as -1 s, and leaves a directory its times that was there before.
            if program == "tar" || (image.modified.seconds >= 0 && found.depth > 0) {
                assert_eq!(host.mtime(), image.modified.seconds, "{what}");
                assert_eq!(host.mtime_nsec(), i64::from(image.modified.nanoseconds), "{what}");
            }
            if rustix::process::geteuid().is_root() {
                assert_eq!((host.uid(), host.gid()), (image.uid, image.gid), "{what}");
            }
            match image.file_type {
                FileType::SymbolicLink => {
                    let target = std::fs::read_link(&path).unwrap();
                    assert_eq!(target.as_os_str().as_bytes(), memory.read_link(found.inode).unwrap(), "{what}");
                }
                FileType::Regular => {
                    assert_eq!(host.size(), image.size, "{what}");
                    if image.size < 1 << 30 {
                        let mut bytes = vec![0; image.size as usize];
                        assert_eq!(memory.read(found.inode, &mut bytes, 0).unwrap(), bytes.len());
                        assert!(std::fs::read(&path).unwrap() == bytes, "{what}");
                    }
                    assert_eq!(host.nlink(), u64::from(image.links), "{what}");
                }
                FileType::CharacterDevice => {
                    let (major, minor) = image.device.unwrap();
                    assert_eq!(host.rdev(), rustix::fs::makedev(major, minor), "{what}");
                }
                FileType::Fifo => assert!(host.file_type().is_fifo(), "{what}"),
                _ => {}
            }
            compared += 1;
            Next::Continue
        });
        assert_eq!(compared, report.members as usize, "{program}");
        let sparse = std::fs::metadata(target.join("sparse")).unwrap();
        assert!(sparse.blocks() * 512 < 1 << 20, "{program}: the hole is filled");
        let mut value = [0; 8];
        // bsdtar takes no notice of how GNU tar writes a `=`.
        let names: &[(&str, &[u8])] = &[("user.binary", b"\0\n\xff="), ("user.empty", b""), ("user.equal=%", b"1")];
        for (name, expected) in &names[..if program == "tar" { 3 } else { 2 }] {
            match rustix::fs::getxattr(target.join("attributed"), *name, &mut value) {
                Ok(len) => assert_eq!(&value[..len], *expected, "{program}: {name}"),
                Err(rustix::io::Errno::OPNOTSUPP) => println!("SKIP attributes: the scratch folder has none"),
                Err(errno) => panic!("{program}: {name}: {errno}"),
            }
        }
    }
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let build = |names: &[&[u8]]| {
        let mut memory = Memory::new();
        for name in names {
            let file = memory.file(Inode(1), name, name);
            memory.node_mut(file).stat.modified = crate::Time::default();
        }
        memory
    };
    let folder = tempfile::tempdir().unwrap();
    archived(&build(&[b"a", b"b", b"c"]), folder.path());
    let one = std::fs::read(folder.path().join("a.tar")).unwrap();
    archived(&build(&[b"c", b"a", b"b"]), folder.path());
    assert!(one == std::fs::read(folder.path().join("a.tar")).unwrap());
}

#[test]
fn a_file_that_fails_keeps_its_length_and_the_rest_follows() {
    let mut memory = Memory::new();
    let root = memory.root();
    let bad = memory.file(root, b"bad", &vec![7; 200_000]);
    memory.node_mut(bad).broken_from = Some(70_000);
    let short = memory.file(root, b"sparse", &[7; 10]);
    memory.node_mut(short).stat.blocks = 0;
    memory.node_mut(short).stat.size = 100_000;
    memory.node_mut(short).broken_from = Some(0);
    memory.file(root, b"z", b"last");
    let folder = tempfile::tempdir().unwrap();
    let report = archived(&memory, folder.path());
    assert_eq!((report.failures, report.members), (2, 4));
    let target = unpack("tar", &[], folder.path());
    assert_eq!(std::fs::read(target.join("z")).unwrap(), b"last");
    assert_eq!(std::fs::metadata(target.join("bad")).unwrap().len(), 200_000);
    assert_eq!(std::fs::metadata(target.join("sparse")).unwrap().len(), 100_000);
}

#[test]
fn a_closed_pipe_ends_it() {
    let mut memory = Memory::new();
    memory.file(Inode(1), b"big", &vec![1; 3_000_000]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut stream = Stream::new(writer.as_fd());
    let error = archive(&memory, Inode(1), b".", &mut stream, false, &()).unwrap_err();
    assert_eq!(error.find::<std::io::Error>().unwrap().kind(), std::io::ErrorKind::BrokenPipe);
}
