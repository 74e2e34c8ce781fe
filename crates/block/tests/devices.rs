//! Every device and layer of this crate under the suites of `testing`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backing::Memory;
use loopbox_block::layer::{Fault, Operation, ReadOnly, Stats, Window};
use loopbox_block::testing::{conformance, model};
use loopbox_block::{BlockDevice, Kind, ReadAt, Source, Zero};

const SIZE: u64 = 300_100;

fn memory() -> Memory {
    let memory = Memory::new(SIZE).unwrap();
    memory.write_at(&[3; 70_000], 100_000).unwrap();
    memory
}

#[test]
fn a_window_conforms() {
    conformance::check(|| Window::new(memory(), 4097, 200_000).unwrap());
    conformance::check(|| Window::new(memory(), 0, SIZE).unwrap());
    conformance::check(|| Window::new(memory(), SIZE - 1, 1).unwrap());
}

#[test]
fn a_window_leaves_what_is_around_it_alone() {
    let below = Arc::new(Memory::new(SIZE).unwrap());
    below.write_at(&vec![9; SIZE as usize], 0).unwrap();
    let window = Window::new(Arc::clone(&below), 1000, 200_000).unwrap();
    model::run(|| &window, &vec![9; 200_000], &model::steps_of(1, 200));
    let mut around = vec![0; 1000];
    below.read_at(&mut around, 0).unwrap();
    assert!(around.iter().all(|byte| *byte == 9));
    let mut around = vec![0; (SIZE - 201_000) as usize];
    below.read_at(&mut around, 201_000).unwrap();
    assert!(around.iter().all(|byte| *byte == 9));
}

#[test]
fn a_window_beyond_the_device_is_refused() {
    for (start, len) in [(0, SIZE + 1), (SIZE, 1), (u64::MAX, 1), (1, u64::MAX), (SIZE + 1, 0)] {
        assert_eq!(Window::new(memory(), start, len).unwrap_err().kind(), Kind::OutOfRange);
    }
}

#[test]
fn a_read_only_view_conforms() {
    conformance::check(|| ReadOnly::new(memory()));
}

#[test]
fn a_counted_device_conforms_and_is_counted() {
    let now = AtomicU64::new(0);
    let clock = || now.fetch_add(1000, Ordering::Relaxed);
    conformance::check(|| Stats::new(memory(), clock));
    let stats = Stats::new(Fault::at(memory(), 1).only(Operation::Write), clock);
    stats.write_at(&[1; 100], 0).unwrap();
    stats.write_at(&[1; 100], 0).unwrap_err();
    stats.write_zeroes(0, 4096, Zero::Deallocate).unwrap();
    let writes = stats.counted(Operation::Write);
    assert_eq!((writes.count, writes.failed, writes.bytes, writes.total_ns), (2, 1, 100, 2000));
    assert_eq!(writes.buckets[10], 2, "1000 ns have ten binary digits");
    assert_eq!(writes.quantile_ns(500), 1023);
    assert_eq!(stats.counted(Operation::WriteZeroes).bytes, 4096);
    assert_eq!(stats.counted(Operation::Read).quantile_ns(990), 0);
}

#[test]
fn a_device_that_fails_fails_where_it_is_told_to_and_touches_nothing() {
    conformance::check(|| Fault::never(memory()));
    for n in 0..4 {
        let fault = Fault::at(Memory::new(SIZE).unwrap(), n).kind(Kind::NoSpace);
        for at in 0..4 {
            let result = fault.write_at(&[1], at);
            assert_eq!(result.is_err(), at == n);
            assert!(result.err().is_none_or(|error| error.kind() == Kind::NoSpace));
        }
        assert_eq!(fault.operations(), 4);
        let mut read = [0; 4];
        fault.read_at(&mut read, 0).unwrap();
        assert_eq!(read.map(|byte| byte == 0), [0, 1, 2, 3].map(|at| at == n));
    }
    let gone = Fault::at(memory(), 1).lasting();
    gone.extent_at(0).unwrap();
    assert!(gone.read_at(&mut [0], 0).is_err() && gone.extent_at(0).is_err() && gone.flush().is_err());
    conformance::check_poisoned(&{
        let fault = Fault::at(memory(), 0).only(Operation::Flush);
        fault.flush().unwrap_err();
        fault
    });
}

#[test]
fn layers_that_watch_bytes_say_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = backing::FileBacking::create(folder.path().join("image"), 65536).unwrap();
    file.write_at(&[1; 65536], 0).unwrap();
    let window = Window::new(&file, 4096, 8192).unwrap();
    let extent = window.extent_at(10).unwrap();
    assert!(matches!(extent.source, Source::File { offset: 4106, .. }), "{extent:?}");
    assert_eq!(extent.len, 8182);
    assert!(matches!(Fault::never(&window).extent_at(0).unwrap().source, Source::Data));
    assert!(matches!(Stats::new(&window, || 0).extent_at(0).unwrap().source, Source::Data));
    assert!(matches!(ReadOnly::new(&window).extent_at(0).unwrap().source, Source::File { .. }));
}
