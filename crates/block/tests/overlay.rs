//! Copy on write: what is written is kept, what is below never changes.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;

use backing::{FileBacking, Memory, Open};
use loopbox_block::layer::overlay::{CLUSTER_MAX, Corrupt, Layout, Overlay, WrongBase};
use loopbox_block::layer::{Fault, Operation, ReadOnly, Unflushed};
use loopbox_block::testing::crash::Disk;
use loopbox_block::testing::{conformance, crash, model};
use loopbox_block::{BlockDevice, Kind, ReadAt, Source, Zero};

const SIZE: u64 = 300_100;

/// Bytes with holes: a fifth is zero, in runs that are no clusters.
fn content(size: u64) -> Vec<u8> {
    (0..size).map(|at| if at / 10_000 % 5 == 1 { 0 } else { (at % 251) as u8 + 1 }).collect()
}

/// A base that panics when it is changed, for nobody holds it as anything but `ReadAt`.
fn base(size: u64) -> Arc<dyn ReadAt> {
    let memory = Memory::new(size).unwrap();
    for (n, chunk) in content(size).chunks(10_000).enumerate().filter(|(n, _)| n % 5 != 1) {
        memory.write_at(chunk, n as u64 * 10_000).unwrap();
    }
    Arc::new(memory)
}

fn layout(size: u64) -> Layout {
    Layout::new(size).unwrap()
}

fn memory(size: u64) -> Arc<Memory> {
    Arc::new(Memory::new(layout(size).size()).unwrap())
}

#[test]
fn an_overlay_conforms() {
    conformance::check(|| Overlay::open_or_create(base(SIZE), memory(SIZE)).unwrap());
    conformance::check(|| Overlay::volatile(base(SIZE), memory(SIZE), layout(SIZE)).unwrap());
    conformance::check(|| Overlay::open_or_create(base(1), memory(1)).unwrap());
    let large = Layout::with_cluster(SIZE, 65536).unwrap();
    conformance::check(|| Overlay::create(base(SIZE), Memory::new(large.size()).unwrap(), large).unwrap());
}

#[test]
fn an_overlay_of_an_overlay_keeps_what_is_written_and_the_base_what_it_had() {
    let below = base(SIZE);
    model::check(40, 40, &content(SIZE), || {
        let stores = [memory(SIZE), memory(SIZE)];
        let below = Arc::clone(&below);
        move || {
            let middle: Arc<dyn ReadAt> =
                Arc::new(Overlay::open_or_create(Arc::clone(&below), Arc::clone(&stores[0])).unwrap());
            Overlay::open_or_create(middle, Arc::clone(&stores[1])).unwrap()
        }
    });
    let mut after = vec![0; SIZE as usize];
    below.read_at(&mut after, 0).unwrap();
    assert!(after == content(SIZE));
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_flushed() {
    let size = 20_000;
    let below = base(size);
    for seed in 0..3 {
        crash::check(layout(size).size(), &content(size), &model::steps_of(seed, 16), 2, |disk| {
            Overlay::open_or_create(Arc::clone(&below), disk)
        });
    }
}

#[test]
#[should_panic(expected = "power cut")]
fn the_crash_suite_catches_a_flush_that_is_forgotten() {
    let steps = model::steps_of(0, 16);
    crash::check(layout(20_000).size(), &content(20_000), &steps, 2, |disk| {
        Overlay::open_or_create(base(20_000), Unflushed::new(disk))
    });
}

fn in_file(folder: &Path, base: &Arc<dyn ReadAt>) -> Overlay<Arc<dyn ReadAt>, FileBacking> {
    let path = folder.join("overlay");
    if !path.exists() {
        FileBacking::create(&path, layout(base.size()).size()).unwrap();
    }
    Overlay::open_or_create(Arc::clone(base), FileBacking::open(&path, Open::WRITE).unwrap()).unwrap()
}

#[test]
fn an_overlay_in_a_sparse_file_takes_the_room_of_what_is_written_and_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let below: Arc<dyn ReadAt> = Arc::new(Memory::new(10 << 30).unwrap());
    let overlay = in_file(folder.path(), &below);
    overlay.write_at(b"far away", (10 << 30) - 8).unwrap();
    overlay.flush().unwrap();
    drop(overlay);
    let room = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(folder.path().join("overlay")).unwrap()) * 512;
    assert!(room < 256 << 10, "{room} bytes");
    let mut read = [0; 8];
    in_file(folder.path(), &below).read_at(&mut read, (10 << 30) - 8).unwrap();
    assert_eq!(&read, b"far away");
}

#[test]
fn file_extents_are_said_only_where_they_stay_true() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base");
    std::fs::write(&path, content(SIZE)).unwrap();
    let below: Arc<dyn ReadAt> = Arc::new(FileBacking::open(&path, Open::READ).unwrap());
    let overlay = in_file(folder.path(), &below);
    assert!(matches!(overlay.extent_at(0).unwrap().source, Source::Data));
    overlay.write_at(&[1; 5000], 4096).unwrap();
    overlay.flush().unwrap();
    assert_eq!(overlay.extent_at(0).unwrap().len, 4096);
    let copied = overlay.extent_at(4100).unwrap();
    assert!(matches!(copied.source, Source::File { .. }), "{copied:?}");
    assert_eq!(copied.len, 8192 - 4);
    // Its data goes, the extent stays true.
    overlay.write_zeroes(4096, 8192, Zero::Deallocate).unwrap();
    let Source::File { fd, offset } = copied.source else { panic!() };
    let mut read = [9; 100];
    rustix::io::pread(fd, &mut read, offset).unwrap();
    assert_eq!(read, [0; 100]);
    drop(overlay);
    let frozen = FileBacking::open(folder.path().join("overlay"), Open::READ).unwrap();
    let frozen = Overlay::open(Arc::clone(&below), frozen).unwrap();
    assert!(matches!(frozen.extent_at(0).unwrap().source, Source::File { .. }));
    conformance::check(|| &frozen);
}

#[test]
fn another_base_is_refused() {
    let store = memory(SIZE);
    Overlay::open_or_create(base(SIZE), Arc::clone(&store)).unwrap();
    let wrong = |other: Arc<dyn ReadAt>| {
        let error = Overlay::open(other, Arc::clone(&store)).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        *error.find::<WrongBase>().unwrap()
    };
    assert_eq!(wrong(base(SIZE + 1)), WrongBase::Size { made_for: SIZE, base: SIZE + 1 });
    assert_eq!(wrong(Arc::new(Memory::new(SIZE).unwrap())), WrongBase::Content);
    let changed = Memory::new(SIZE).unwrap();
    changed.write_at(&content(SIZE), 0).unwrap();
    Overlay::open(&changed, Arc::clone(&store)).unwrap();
    changed.write_at(&[0xFF], SIZE - 1).unwrap();
    assert_eq!(wrong(Arc::new(changed)), WrongBase::Content);
}

#[test]
fn damage_is_told_and_nothing_else_is_overwritten() {
    let corrupt_over = |size: u64, store: &Arc<Memory>| {
        let error = Overlay::open_or_create(base(size), Arc::clone(store)).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
        *error.find::<Corrupt>().unwrap()
    };
    let corrupt = |store: &Arc<Memory>| corrupt_over(SIZE, store);
    let store = memory(SIZE);
    store.write_at(b"something else", 0).unwrap();
    assert_eq!(corrupt(&store), Corrupt::Magic);
    assert_eq!(Overlay::create(base(SIZE), &store, layout(SIZE)).unwrap_err().kind(), Kind::Exists);
    for at in 0..512 {
        // A small one: each time the base is read for its fingerprint.
        let store = memory(5000);
        Overlay::open_or_create(base(5000), Arc::clone(&store)).unwrap();
        let mut byte = [0];
        store.read_at(&mut byte, at).unwrap();
        store.write_at(&[!byte[0]], at).unwrap();
        assert!(matches!(corrupt_over(5000, &store), Corrupt::Magic | Corrupt::Checksum { .. }));
    }
    let store = memory(SIZE);
    Overlay::open_or_create(base(SIZE), Arc::clone(&store)).unwrap();
    // 74 clusters: bit 74 is behind them.
    store.write_at(&[1 << 2], 4096 + 9).unwrap();
    assert_eq!(corrupt(&store), Corrupt::Bitmap);
    let small = Memory::new(layout(SIZE).size() - 1).unwrap();
    assert_eq!(Overlay::open_or_create(base(SIZE), small).unwrap_err().kind(), Kind::Invalid);
    let tiny = Memory::new(100).unwrap();
    assert_eq!(Overlay::open(base(SIZE), tiny).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn a_failed_flush_of_the_bitmap_ends_all_writing() {
    // 0 writes the header; 1 the data; 2 the bitmap.
    let fault = Fault::at(memory(SIZE), 2).only(Operation::Write);
    let overlay = Overlay::open_or_create(base(SIZE), fault).unwrap();
    overlay.write_at(&[1; 4096], 0).unwrap();
    assert_eq!(overlay.flush().unwrap_err().kind(), Kind::Io);
    conformance::check_poisoned(&overlay);
}

#[test]
fn no_room_is_an_error_and_the_base_shows_through() {
    let store = Memory::with_room(layout(SIZE).size(), 3 * 4096).unwrap();
    let overlay = Overlay::open_or_create(base(SIZE), store).unwrap();
    let error = overlay.write_at(&[7; 200_000], 0).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace);
    let mut read = vec![0; 200_000];
    overlay.read_at(&mut read, 0).unwrap();
    assert!(read == content(SIZE)[..200_000]);
}

#[test]
fn zeroes_over_what_is_zero_take_no_room() {
    let below: Arc<dyn ReadAt> = Arc::new(ReadOnly::new(Memory::new(1 << 30).unwrap()));
    let store = memory(1 << 30);
    let overlay = Overlay::open_or_create(below, Arc::clone(&store)).unwrap();
    let before = store.used();
    overlay.write_zeroes(100, 1 << 29, Zero::Deallocate).unwrap();
    assert_eq!(store.used(), before);
}

#[test]
fn the_bytes_are_those_of_the_document() {
    let store = memory(SIZE);
    let overlay = Overlay::open_or_create(Arc::new(Memory::new(SIZE).unwrap()), Arc::clone(&store)).unwrap();
    overlay.write_at(&[0xAB; 2], 5 * 4096 - 1).unwrap();
    overlay.flush().unwrap();
    // FNV-1a over the 188,416 zero bytes that the fingerprint looks at.
    let fingerprint = (0..188_416).fold(0xCBF2_9CE4_8422_2325_u64, |hash, _| hash.wrapping_mul(0x0100_0000_01B3));
    let mut header = b"loopbox overlay\0\x01\0\0\0\0\x10\0\0".to_vec();
    for number in [SIZE, 4096, 65536, fingerprint] {
        header.extend(number.to_le_bytes());
    }
    header.resize(508, 0);
    let mut crc = !0_u32;
    for byte in &header {
        crc ^= u32::from(*byte);
        (0..8).for_each(|_| crc = crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 });
    }
    header.extend((!crc).to_le_bytes());
    let mut stored = vec![0; 65536 + 5 * 4096 + 2];
    store.read_at(&mut stored, 0).unwrap();
    assert_eq!(stored[..512], header);
    assert!(stored[512..4096].iter().all(|byte| *byte == 0));
    assert_eq!(stored[4096..4099], [0b0011_0000, 0, 0]);
    assert_eq!(stored[65536 + 5 * 4096 - 2..], [0, 0xAB, 0xAB, 0]);
}

#[test]
fn the_geometry_has_limits() {
    assert_eq!(layout(128 << 30).cluster, 4096);
    assert_eq!(layout((128 << 30) + 1).cluster, 8192);
    assert_eq!(layout(32 << 40).cluster, CLUSTER_MAX);
    assert_eq!(Layout::new((32 << 40) + 1).unwrap_err().kind(), Kind::Limit);
    for cluster in [0, 1, 2048, 5000, CLUSTER_MAX * 2] {
        assert_eq!(Layout::with_cluster(SIZE, cluster).unwrap_err().kind(), Kind::Invalid);
    }
}

#[test]
fn a_disk_of_the_crash_suite_conforms_and_loses_only_what_was_not_flushed() {
    conformance::check(|| Disk::new(SIZE, u64::MAX));
    crash::check(20_000, &[0; 20_000], &model::steps_of(9, 20), 2, Ok);
}
