//! Files as devices: what the kernel and other programs do to them, and what is made of that.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use block::{BlockDevice, Kind, ReadAt, Source, Zero};
use loopbox_backing::{FileBacking, Open};

struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join("image");
        std::fs::write(&path, content).unwrap();
        path
    }
}

#[test]
fn the_size_is_exact_and_the_last_byte_is_read_and_written() {
    let scratch = Scratch::new();
    let path = scratch.file(&[7; 1001]);
    let device = FileBacking::open(&path, Open::WRITE).unwrap();
    assert_eq!(device.size(), 1001);
    device.write_at(&[1, 2], 999).unwrap();
    let mut last = [0; 3];
    device.read_at(&mut last, 998).unwrap();
    assert_eq!(last, [7, 1, 2]);
    assert_eq!(device.write_at(&[1, 2], 1000).unwrap_err().kind(), Kind::OutOfRange);
    assert_eq!(std::fs::read(&path).unwrap().len(), 1001);
}

#[test]
fn a_file_that_is_cut_short_in_use_is_an_error_and_never_zeroes() {
    let scratch = Scratch::new();
    let path = scratch.folder.path().join("sparse");
    let device = FileBacking::create(&path, 1 << 20).unwrap();
    device.write_at(&[1; 4096], 0).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
    let error = device.read_at(&mut [0; 4096], 4096).unwrap_err();
    assert_eq!(error.kind(), Kind::Io, "{error:?}");
    assert_eq!(device.extent_at(8192).unwrap_err().kind(), Kind::Io);
    device.read_at(&mut [0; 4096], 0).unwrap();
}

#[test]
fn two_writers_exclude_each_other_and_readers_look_in() {
    let scratch = Scratch::new();
    let path = scratch.file(&[0; 4096]);
    let writer = FileBacking::open(&path, Open::WRITE).unwrap();
    let error = FileBacking::open(&path, Open::WRITE).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{error:?}");
    FileBacking::open(&path, Open::READ).unwrap();
    FileBacking::open(&path, Open { lock: false, ..Open::WRITE }).unwrap();
    drop(writer);
    FileBacking::open(&path, Open::WRITE).unwrap();
}

#[test]
fn a_reader_is_refused_writes() {
    let scratch = Scratch::new();
    let device = FileBacking::open(scratch.file(&[9; 4096]), Open::READ).unwrap();
    assert!(device.limits().read_only);
    assert_eq!(device.write_at(&[0], 0).unwrap_err().kind(), Kind::ReadOnly);
    assert_eq!(device.write_zeroes(0, 1, Zero::Allocate).unwrap_err().kind(), Kind::ReadOnly);
    assert_eq!(device.discard(0, 1).unwrap_err().kind(), Kind::ReadOnly);
    device.flush().unwrap();
}

#[test]
fn what_is_no_image_is_refused_without_waiting() {
    let scratch = Scratch::new();
    let fifo = scratch.folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    assert_eq!(FileBacking::open(&fifo, Open::READ).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(FileBacking::open(scratch.folder.path(), Open::READ).unwrap_err().kind(), Kind::IsDirectory);
    assert_eq!(FileBacking::open("/dev/null", Open::READ).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(FileBacking::open(scratch.folder.path().join("no"), Open::READ).unwrap_err().kind(), Kind::NotFound);
    let path = scratch.file(&[1]);
    assert_eq!(FileBacking::create(&path, 1).unwrap_err().kind(), Kind::Exists);
    assert_eq!(std::fs::read(&path).unwrap(), [1]);
}

#[test]
fn holes_are_said_and_made() {
    let scratch = Scratch::new();
    let path = scratch.folder.path().join("sparse");
    let device = FileBacking::create(&path, 1 << 20).unwrap();
    let hole = device.extent_at(0).unwrap();
    assert!(matches!(hole.source, Source::Hole));
    assert_eq!(hole.len, 1 << 20);
    device.write_at(&[5; 65536], 131_072).unwrap();
    device.flush().unwrap();
    assert_eq!(device.extent_at(4096).unwrap().len, 131_072 - 4096);
    let data = device.extent_at(131_072 + 10).unwrap();
    assert_eq!(data.len, 65536 - 10);
    let Source::File { fd, offset } = data.source else { panic!("{data:?}") };
    assert_eq!((fd.as_raw_fd(), offset), (device.file().as_raw_fd(), 131_072 + 10));
    let before = device.file().metadata().unwrap().blocks();
    device.write_zeroes(131_072, 65536, Zero::Deallocate).unwrap();
    assert!(device.file().metadata().unwrap().blocks() < before);
    assert_eq!(device.extent_at(0).unwrap().len, 1 << 20);
    device.write_zeroes(0, 65536, Zero::Allocate).unwrap();
    assert!(device.file().metadata().unwrap().blocks() * 512 >= 65536);
    assert_eq!(device.file().metadata().unwrap().len(), 1 << 20);
}

#[test]
fn past_the_page_cache_every_alignment_reads_and_writes_the_same_bytes() {
    let scratch = Scratch::new();
    let content: Vec<u8> = (0..3_000_001_u32).map(|n| (n % 251) as u8).collect();
    let path = scratch.file(&content);
    let device = match FileBacking::open(&path, Open { direct: true, ..Open::WRITE }) {
        Err(error) if error.kind() == Kind::Unsupported => {
            println!("SKIP past_the_page_cache: {error}");
            return;
        }
        other => other.unwrap(),
    };
    for (offset, len) in [(0, 4096), (1, 4096), (4095, 2), (8192, 2_000_000), (13, 2_900_000), (2_999_000, 1001)] {
        let mut read = vec![0; len];
        device.read_at(&mut read, offset).unwrap();
        assert!(read == content[offset as usize..offset as usize + len], "{len} bytes at {offset}");
    }
    for (offset, len) in [(0, 4096), (4097, 3), (8192, 1 << 21), (2_999_999, 2)] {
        let data = vec![(offset % 200) as u8 + 1; len];
        device.write_at(&data, offset).unwrap();
        let (mut read, mut raw) = (vec![0; len], vec![0; len]);
        device.read_at(&mut read, offset).unwrap();
        File::open(&path).unwrap().read_exact_at(&mut raw, offset).unwrap();
        assert!(read == data && raw == data, "{len} bytes at {offset}");
    }
    device.flush().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), content.len() as u64);

    // Nobody who asks where the bytes are gets at them through the page cache.
    for offset in [0, 4096, 2_999_999] {
        assert!(matches!(device.extent_at(offset).unwrap().source, Source::Data), "at {offset}");
    }
}
