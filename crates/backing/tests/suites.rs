//! Files and memory under the suites that every device must pass.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;

use block::testing::{conformance, model};
use block::{BlockDevice, Kind, ReadAt, Source, Zero};
use loopbox_backing::{FileBacking, Memory, Open};

const SIZE: u64 = 300_100;

/// A new file in `folder` with holes and data, opened as `open` says.
fn file(folder: &Path, open: Open) -> FileBacking {
    let path = folder.join("image");
    let _ = std::fs::remove_file(&path);
    let file = FileBacking::create(&path, SIZE).unwrap();
    file.write_at(&[7; 70_000], 131_072).unwrap();
    file.flush().unwrap();
    drop(file);
    FileBacking::open(&path, open).unwrap()
}

#[test]
fn a_file_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conformance::check(|| file(folder.path(), Open::WRITE));
    conformance::check(|| file(folder.path(), Open::READ));
}

#[test]
fn a_file_past_the_page_cache_conforms() {
    let folder = tempfile::tempdir().unwrap();
    match FileBacking::open(file(folder.path(), Open::READ).path(), Open { direct: true, ..Open::READ }) {
        Err(error) if error.kind() == Kind::Unsupported => println!("SKIP a_file_past_the_page_cache: {error}"),
        other => {
            other.unwrap();
            conformance::check(|| file(folder.path(), Open { direct: true, ..Open::WRITE }));
        }
    }
}

#[test]
fn a_file_keeps_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let initial = vec![5; 150_001];
    model::check(40, 30, &initial, || {
        std::fs::write(&path, &initial).unwrap();
        || FileBacking::open(&path, Open::WRITE).unwrap()
    });
}

#[test]
fn memory_conforms() {
    conformance::check(|| Memory::new(SIZE).unwrap());
    conformance::check(|| Memory::new(1).unwrap());
}

#[test]
fn memory_keeps_what_is_written() {
    model::check(60, 40, &vec![0; 300_001], || {
        let memory = Arc::new(Memory::new(300_001).unwrap());
        move || Arc::clone(&memory)
    });
}

#[test]
fn memory_takes_the_room_of_what_is_written_and_no_more_than_it_may() {
    let memory = Memory::with_room(1 << 40, 3 * 4096).unwrap();
    memory.write_at(&[1; 4096], (1 << 40) - 4096).unwrap();
    memory.write_at(&[1; 2], 4095).unwrap();
    assert_eq!(memory.used(), 3 * 4096);
    let error = memory.write_at(&[1], 1 << 30).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{error:?}");
    memory.write_at(&[2; 8192], 0).unwrap();
    memory.write_zeroes(0, 8192, Zero::Deallocate).unwrap();
    assert_eq!(memory.used(), 4096);
    assert!(matches!(memory.extent_at(0).unwrap().source, Source::Hole));
    memory.discard((1 << 40) - 4096, 4096).unwrap();
    assert_eq!(memory.used(), 0);
    assert_eq!(Memory::new(1 << 63).unwrap_err().kind(), Kind::Limit);
}
