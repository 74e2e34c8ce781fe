//! qcow2 under the suites that every device must pass, and beside QEMU's tools: images written by both sides.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod new_file;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backing::{FileBacking, Memory, Open};
use block::bytes::Bytes;
use block::layer::Fixed;
use block::testing::{conformance, crash, model};
use block::{BlockDevice, Kind, ReadAt, Result, Sequential as _, Source, Storage, Zero};
use loopbox_format::qcow2::check::{Repair, check};
use loopbox_format::qcow2::{Compression, Corrupt, Create, Qcow2, create, fuzz};
use loopbox_format::sequential::{Image, New, Style};

use new_file::NewFile;

const SIZE: u64 = 300_032;

fn like(version: u32, cluster_bytes: u32) -> Create {
    Create { version, cluster_bytes, ..Create::new(SIZE) }
}

fn backed(what: Create) -> Create {
    Create { backing: Some(("base.img".into(), "raw".into())), ..what }
}

/// What lies below, shorter than the disk, with zeroes in it.
fn base() -> Arc<dyn ReadAt> {
    Arc::new(Bytes(base_bytes()))
}

fn base_bytes() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8 + 1).collect();
    bytes[30_000..60_000].fill(0);
    bytes
}

fn initial(what: &Create) -> Vec<u8> {
    let mut bytes = if what.backing.is_some() { base_bytes() } else { vec![] };
    bytes.resize(what.size as usize, 0);
    bytes
}

fn open(storage: Arc<dyn Storage>) -> Result<Qcow2> {
    Qcow2::open(storage, Some(base()))
}

fn storage(what: &Create) -> Arc<dyn Storage> {
    let memory: Arc<dyn Storage> = Arc::new(Memory::new(0).unwrap());
    create(&memory, what).unwrap();
    memory
}

/// Nothing wrong.
fn sound(storage: &dyn Storage) {
    let report = check(storage, Repair::Nothing).unwrap();
    assert!(report.is_good(), "{report:?}");
}

#[test]
fn it_conforms() {
    for (version, cluster) in [(3, 65536), (2, 4096), (3, 512), (3, 2 << 20)] {
        conformance::check(|| open(storage(&like(version, cluster))).unwrap());
        conformance::check(|| open(storage(&backed(like(version, cluster)))).unwrap());
    }
}

#[test]
fn it_keeps_what_is_written() {
    for (version, cluster) in [(3, 65536), (2, 4096), (3, 512)] {
        for what in [like(version, cluster), backed(like(version, cluster))] {
            model::check(12, 30, &initial(&what), || {
                let storage = storage(&what);
                move || {
                    sound(&storage);
                    open(Arc::clone(&storage)).unwrap()
                }
            });
        }
    }
}

#[test]
fn a_crash_leaves_leaks_and_nothing_worse() {
    for what in [backed(like(3, 4096)), like(2, 1024), like(3, 512)] {
        let what = Create { size: 50_176, ..what };
        let opened = std::sync::atomic::AtomicU32::new(0);
        crash::check(300_000, &initial(&what), &model::steps_of(u64::from(what.cluster_bytes), 8), 1, |disk| {
            let storage: Arc<dyn Storage> = Arc::new(Fixed::new(disk));
            match create(&storage, &what) {
                Err(error) if error.kind() == Kind::Exists => {
                    if opened.fetch_add(1, std::sync::atomic::Ordering::Relaxed).is_multiple_of(5) {
                        let report = check(&storage, Repair::Nothing)?;
                        assert_eq!(report.corruptions, 0, "{report:?}");
                    }
                }
                made => made?,
            }
            open(storage)
        });
    }
}

#[test]
fn a_file_serves_extents_that_stay_true() {
    let scratch = rig::Scratch::new("qcow2");
    let path = scratch.join("disk.qcow2");
    let file: Arc<dyn Storage> = Arc::new(FileBacking::create(&path, 0).unwrap());
    create(&file, &Create::new(1 << 30)).unwrap();
    let image = Qcow2::open(Arc::clone(&file), None).unwrap();
    image.write_at(&[7; 200_000], 1 << 20).unwrap();
    let Source::File { fd, offset } = image.extent_at((1 << 20) + 5).unwrap().source else { panic!("no file") };
    let read = |fd: std::os::fd::BorrowedFd<'_>| {
        let file = std::fs::File::from(fd.try_clone_to_owned().unwrap());
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, offset).unwrap();
        byte[0]
    };
    assert_eq!(read(fd), 7);
    image.discard(1 << 20, 1 << 20).unwrap();
    assert_eq!(read(fd), 0);
    image.write_at(&[9; 100], 1 << 20).unwrap();
    assert_eq!(read(fd), 9, "the cluster is where it was");
    image.flush().unwrap();
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap()) * 512;
    image.write_at(&vec![1; 8 << 20], 16 << 20).unwrap();
    image.flush().unwrap();
    let full = blocks();
    image.discard(16 << 20, 8 << 20).unwrap();
    image.flush().unwrap();
    assert!(blocks() + (7 << 20) < full, "a discard gives room back: {full}, {}", blocks());
}

/// A folder with images, and QEMU's tools on them.
struct Qemu(rig::Scratch);

impl Qemu {
    fn new() -> Self {
        Self(rig::Scratch::new("qcow2"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn run(&self, line: &str) -> String {
        rig::run_command(rig::User::Myself.command("sh").args(["-ec", line]).current_dir(self.0.path()))
    }

    fn check(&self, name: &str) {
        let report = self.run(&format!("qemu-img check --output=json {name} || true"));
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert!(report["corruptions"].is_null() && report["leaks"].is_null(), "{report}");
        assert_eq!(report["check-errors"], 0);
    }

    fn same(&self, one: &str, other: &str) {
        self.run(&format!("qemu-img compare -q {one} {other}"));
    }

    fn file(&self, name: &str, open: Open) -> Arc<dyn Storage> {
        Arc::new(FileBacking::open(self.path(name), open).unwrap())
    }

    /// A raw disk with data, zeroes and holes.
    fn raw(&self, name: &str, bytes: u64) {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::File::create(self.path(name)).unwrap();
        file.set_len(bytes).unwrap();
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for piece in 0..bytes / 65536 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let text = format!("{state:x} {piece} the words of a text that gets smaller ").repeat(900);
            if !state.is_multiple_of(3) {
                file.write_all_at(&text.as_bytes()[..(state % 30_000) as usize + 1], piece * 65536).unwrap();
            }
        }
    }
}

fn bytes(device: &dyn ReadAt) -> Vec<u8> {
    let mut bytes = vec![0; device.size() as usize];
    device.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn equals(device: &dyn ReadAt, raw: &Path) {
    assert!(bytes(device) == std::fs::read(raw).unwrap(), "differs from {raw:?}");
}

#[test]
fn images_of_qemu_are_read_and_written() {
    rig::requires!("qemu-img", "qemu-io");
    let qemu = Qemu::new();
    qemu.raw("disk.raw", 6 << 20);
    for options in [
        "-o compat=1.1",
        "-o compat=0.10",
        "-o cluster_size=512,refcount_bits=1",
        "-o cluster_size=4k,refcount_bits=64",
        "-o cluster_size=2M,lazy_refcounts=on",
        "-o extended_l2=on,cluster_size=128k",
        "-o preallocation=metadata",
        "-c",
        "-c -o compression_type=zstd,cluster_size=16k",
        "-c -o compat=0.10,cluster_size=4k",
    ] {
        qemu.run(&format!(
            "rm -f d.qcow2 && qemu-img convert -O qcow2 {options} disk.raw d.qcow2 && cp disk.raw d.raw"
        ));
        let image = Qcow2::open(qemu.file("d.qcow2", Open::READ), None).unwrap();
        equals(&image, &qemu.path("disk.raw"));
        conformance::check_reads(&image);
        drop(image);
        // What loopbox writes, QEMU reads; what QEMU then writes, loopbox reads.
        let raw = FileBacking::open(qemu.path("d.raw"), Open::WRITE).unwrap();
        let image = Qcow2::open(qemu.file("d.qcow2", Open::WRITE), None).unwrap();
        for (n, step) in model::steps_of(7, 60).into_iter().enumerate() {
            let (offset, len) = step.range(image.size());
            for device in [&image as &dyn BlockDevice, &raw] {
                match n % 4 {
                    0 => device.write_zeroes(offset, len, Zero::Deallocate).unwrap(),
                    1 if n % 8 == 1 => device.write_zeroes(offset, len, Zero::Allocate).unwrap(),
                    _ => device.write_at(&vec![n as u8; len as usize], offset).unwrap(),
                }
            }
        }
        image.flush().unwrap();
        drop((image, raw));
        qemu.check("d.qcow2");
        qemu.same("d.qcow2", "d.raw");
        for file in ["-f qcow2 d.qcow2", "-f raw d.raw"] {
            qemu.run(&format!(
                "qemu-io -c 'write -P 17 100k 300k' -c 'write -z 1M 200k' -c 'write -P 3 5000 1000' {file} >/dev/null"
            ));
        }
        equals(&Qcow2::open(qemu.file("d.qcow2", Open::READ), None).unwrap(), &qemu.path("d.raw"));
    }
}

/// An image of compressed clusters.
fn write_compressed(path: &Path, create: Create, disk: &[u8]) {
    let output = NewFile(std::fs::File::create(path).unwrap());
    let cluster = create.cluster_bytes as usize;
    let style = Style::Qcow2 { create, compress: true };
    let new = New { size: disk.len() as u64, style, id: 0, seconds: 0, name: String::new() };
    let image = Image::begin(&output, &new).unwrap();
    for (n, bytes) in disk.chunks(cluster).enumerate() {
        let packed = image.pack(n as u64, bytes).unwrap();
        let at = image.place(n as u64, packed.as_ref().map(|bytes| bytes.len() as u64)).unwrap();
        image.write(packed.as_deref().unwrap_or(bytes), at).unwrap();
    }
    image.finish().unwrap();
}

#[test]
fn images_of_loopbox_are_read_and_written_by_qemu() {
    rig::requires!("qemu-img", "qemu-io");
    let qemu = Qemu::new();
    for (version, cluster, compression) in
        [(3, 65536, Compression::Deflate), (2, 4096, Compression::Deflate), (3, 65536, Compression::Zstd)]
    {
        qemu.run("rm -f d.qcow2");
        qemu.raw("disk.raw", 3 << 20);
        let raw = std::fs::read(qemu.path("disk.raw")).unwrap();
        let create = Create { compression, ..like(version, cluster) };
        write_compressed(&qemu.path("d.qcow2"), create, &raw);
        let image = Qcow2::open(qemu.file("d.qcow2", Open::READ), None).unwrap();
        equals(&image, &qemu.path("disk.raw"));
        drop(image);
        qemu.check("d.qcow2");
        qemu.same("d.qcow2", "disk.raw");
        let check = check(&*qemu.file("d.qcow2", Open::READ), Repair::Nothing).unwrap();
        assert!(check.is_good() && check.compressed_clusters > 10, "{check:?}");
        // Compressed clusters written over give their room back.
        let image = Qcow2::open(qemu.file("d.qcow2", Open::WRITE), None).unwrap();
        image.write_at(&vec![9; 1 << 20], 5000).unwrap();
        image.discard(2 << 20, 1 << 20).unwrap();
        drop(image);
        qemu.check("d.qcow2");
        qemu.run("qemu-io -c 'write -P 1 0 3M' -f qcow2 d.qcow2 >/dev/null && qemu-img resize -q d.qcow2 8G");
        let image = Qcow2::open(qemu.file("d.qcow2", Open::WRITE), None).unwrap();
        assert!(bytes(&block::layer::Window::new(&image, 0, 3 << 20).unwrap()).iter().all(|byte| *byte == 1));
        image.write_at(&[5; 100], (8 << 30) - 100).unwrap();
        drop(image);
        qemu.check("d.qcow2");
    }
}

#[test]
fn a_compressed_cluster_that_is_cut_off_is_said_to_be() {
    rig::requires!("qemu-img");
    let qemu = Qemu::new();
    let text: String = (0..40_000).map(|n| format!("{:08x}", n * 77_777_777_u64)).collect();
    std::fs::write(qemu.path("disk.raw"), &text.as_bytes()[..256 << 10]).unwrap();
    for compression in ["zlib", "zstd"] {
        let options = format!("-o compression_type={compression}");
        qemu.run(&format!("qemu-img convert -c {options} -f raw -O qcow2 disk.raw cut.qcow2"));
        let file = std::fs::File::options().write(true).open(qemu.path("cut.qcow2")).unwrap();
        let last = check(&*qemu.file("cut.qcow2", Open::READ), Repair::Nothing).unwrap();
        assert_eq!(last.compressed_clusters, 4);
        file.set_len(file.metadata().unwrap().len() - 5000).unwrap();
        let image = Qcow2::open(qemu.file("cut.qcow2", Open::READ), None).unwrap();
        let mut cluster = vec![0; 65536];
        image.read_at(&mut cluster, 0).unwrap();
        assert!(cluster == text.as_bytes()[..65536]);
        let error = image.read_at(&mut cluster, 192 << 10).unwrap_err();
        assert!(matches!(error.find(), Some(Corrupt::Truncated(_))), "{compression}: {error:?}");
    }
}

#[test]
fn snapshots_are_read_and_not_written_to() {
    rig::requires!("qemu-img", "qemu-io");
    let qemu = Qemu::new();
    for options in ["", "-o extended_l2=on", "-o compat=0.10,cluster_size=4k"] {
        qemu.raw("disk.raw", 4 << 20);
        qemu.run(&format!("qemu-img convert -O qcow2 {options} disk.raw d.qcow2"));
        qemu.run("qemu-img snapshot -c before d.qcow2");
        let image = Qcow2::open(qemu.file("d.qcow2", Open::WRITE), None).unwrap();
        image.write_at(&vec![1; 1 << 20], 100_000).unwrap();
        image.write_zeroes(2 << 20, 1 << 20, Zero::Deallocate).unwrap();
        let now = bytes(&image);
        assert_eq!(image.snapshots().unwrap()[0].name, "before");
        drop(image);
        qemu.check("d.qcow2");
        let before = Qcow2::open_snapshot(qemu.file("d.qcow2", Open::WRITE), None, "before").unwrap();
        equals(&before, &qemu.path("disk.raw"));
        assert_eq!(before.write_at(&[1], 0).unwrap_err().kind(), Kind::ReadOnly);
        drop(before);
        let error = Qcow2::open_snapshot(qemu.file("d.qcow2", Open::READ), None, "other").unwrap_err();
        assert!(error.kind() == Kind::NotFound && error.to_string().contains("before"), "{error}");
        std::fs::write(qemu.path("now.raw"), now).unwrap();
        qemu.same("d.qcow2", "now.raw");
        qemu.run("qemu-img snapshot -a before d.qcow2 && qemu-img compare -q d.qcow2 disk.raw");
        qemu.check("d.qcow2");
    }
}

#[test]
fn leaks_and_worse_are_found_as_qemu_finds_them_and_mended() {
    rig::requires!("qemu-img", "qemu-io");
    let qemu = Qemu::new();
    qemu.raw("disk.raw", 4 << 20);
    qemu.run("qemu-img convert -O qcow2 disk.raw d.qcow2");
    let before = std::fs::read(qemu.path("d.qcow2")).unwrap();
    let block = |bytes: &[u8]| {
        let table = u64::from_be_bytes(*bytes[48..].first_chunk().unwrap()) as usize;
        u64::from_be_bytes(*bytes[table..].first_chunk().unwrap()) as usize
    };
    // Counts that are too high, and too low.
    for (counts, leaks, corruptions) in [(vec![(9, 2), (8, 5)], 2, 0), (vec![(9, 0), (7, 3)], 1, 1)] {
        let mut bytes = before.clone();
        for (cluster, count) in &counts {
            bytes[block(&before) + cluster * 2 + 1] = *count;
        }
        std::fs::write(qemu.path("b.qcow2"), bytes).unwrap();
        let report = qemu.run("qemu-img check --output=json b.qcow2 || true");
        let theirs: serde_json::Value = serde_json::from_str(&report).unwrap();
        let ours = check(&*qemu.file("b.qcow2", Open::READ), Repair::Nothing).unwrap();
        assert_eq!(ours.leaks, leaks);
        assert_eq!(theirs["leaks"].as_u64().unwrap_or_default(), leaks);
        assert!(ours.corruptions >= corruptions && !ours.is_good());
        let mended = check(&*qemu.file("b.qcow2", Open::WRITE), Repair::Leaks).unwrap();
        assert_eq!((mended.leaks_fixed, mended.is_good()), (leaks, corruptions == 0), "{mended:?}");
        check(&*qemu.file("b.qcow2", Open::WRITE), Repair::All).unwrap();
        qemu.check("b.qcow2");
        qemu.same("b.qcow2", "disk.raw");
    }
    // A writer with lazy refcounts that was killed.
    qemu.run("qemu-img create -q -f qcow2 -o lazy_refcounts=on l.qcow2 64M");
    qemu.run("qemu-io -c 'write -P 5 1M 3M' -c flush -c abort l.qcow2 >/dev/null 2>&1 || true");
    let image = Qcow2::open(qemu.file("l.qcow2", Open::READ), None).unwrap();
    assert!(image.header().dirty, "QEMU leaves the mark");
    drop(image);
    let image = Qcow2::open(qemu.file("l.qcow2", Open::WRITE), None).unwrap();
    let mut read = [0; 10];
    image.read_at(&mut read, 2 << 20).unwrap();
    assert_eq!((read, image.header().dirty), ([5; 10], false));
    image.write_at(&[6; 100_000], 10 << 20).unwrap();
    drop(image);
    qemu.check("l.qcow2");
}

#[test]
fn tables_that_are_counted_as_free_are_not_written_over() {
    rig::requires!("qemu-img", "qemu-io");
    let qemu = Qemu::new();
    qemu.run("qemu-img create -q -f qcow2 d.qcow2 64M; qemu-io -c 'write -P 1 0 64k' d.qcow2 >/dev/null");
    qemu.run("qemu-img snapshot -c s d.qcow2; qemu-io -c 'write -P 2 0 64k' d.qcow2 >/dev/null");
    let before = std::fs::read(qemu.path("d.qcow2")).unwrap();
    let word = |at: usize| u64::from_be_bytes(*before[at..].first_chunk().unwrap()) & 0x00ff_ffff_ffff_fe00;
    let (l1, counts, snapshots) = (word(40), word(48), word(64));
    let block = word(counts as usize);
    let tables =
        [0, counts, block, l1, word(l1 as usize), snapshots, word(snapshots as usize)].map(|offset| offset / 65536);
    let new = |file: &str| {
        let image = Qcow2::open(qemu.file(file, Open::WRITE), None).unwrap();
        // Where nothing is yet, and where a cluster is shared with the snapshot.
        let done = (0..12).try_for_each(|n| image.write_at(&[3; 65536], (8 << 20) + n * 65536));
        let in_place = image.write_at(&[4; 512], 0);
        (done, in_place, image.flush())
    };
    for cluster in tables {
        let mut bytes = before.clone();
        bytes[block as usize + cluster as usize * 2..][..2].fill(0);
        std::fs::write(qemu.path("b.qcow2"), &bytes).unwrap();
        let (done, in_place, flushed) = new("b.qcow2");
        let error = done.unwrap_err();
        assert_eq!(error.find(), Some(&Corrupt::Overlap(cluster)), "{error:?}");
        assert!(in_place.is_ok() && flushed.is_ok(), "what is there is written to as before");
        let after = std::fs::read(qemu.path("b.qcow2")).unwrap();
        let at = cluster as usize * 65536;
        if cluster != block / 65536 {
            assert!(after[at..at + 65536] == before[at..at + 65536], "cluster {cluster} was changed");
        }
        // QEMU refuses the same image.
        std::fs::write(qemu.path("q.qcow2"), &bytes).unwrap();
        let said = qemu.run("qemu-io -c 'write -P 3 8M 64k' q.qcow2 2>&1 || true");
        assert!(said.contains("orrupt") || said.contains("nvalid"), "{said}");
        check(&*qemu.file("b.qcow2", Open::WRITE), Repair::All).unwrap();
        qemu.check("b.qcow2");
        new("b.qcow2").0.unwrap();
        qemu.check("b.qcow2");
    }
}

#[test]
fn what_is_wrong_is_said() {
    rig::requires!("qemu-img");
    let qemu = Qemu::new();
    qemu.raw("disk.raw", 4 << 20);
    qemu.run("qemu-img convert -O qcow2 disk.raw d.qcow2");
    let whole = std::fs::read(qemu.path("d.qcow2")).unwrap();
    let corrupt = |bytes: &[u8]| {
        let memory: Arc<dyn Storage> = Arc::new(Memory::new(bytes.len() as u64).unwrap());
        memory.write_at(bytes, 0).unwrap();
        let image = Qcow2::open(memory, None)?;
        let mut read = vec![0; image.size() as usize];
        image.read_at(&mut read, 0)
    };
    let kind_of = |bytes: &[u8]| {
        let error = corrupt(bytes).unwrap_err();
        (error.kind(), error.find::<Corrupt>().cloned())
    };
    assert_eq!(kind_of(&whole[..50]), (Kind::Corrupt, Some(Corrupt::Header)));
    assert!(matches!(kind_of(&whole[..1000]), (Kind::Corrupt, Some(Corrupt::Truncated(_)))));
    assert!(matches!(kind_of(&whole[..whole.len() / 2]), (Kind::Corrupt, Some(Corrupt::BeyondEnd(_)))));
    let with = |at: usize, field: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + field.len()].copy_from_slice(field);
        kind_of(&bytes)
    };
    assert_eq!(with(24, &(1_u64 << 60).to_be_bytes()).0, Kind::Limit);
    assert_eq!(with(36, &u32::MAX.to_be_bytes()).0, Kind::Limit);
    assert_eq!(with(56, &u32::MAX.to_be_bytes()).0, Kind::Limit);
    assert_eq!(with(32, &2_u32.to_be_bytes()).0, Kind::Unsupported);
    assert_eq!(with(72, &(1_u64 << 40).to_be_bytes()).0, Kind::Unsupported);
    assert_eq!(with(72, &4_u64.to_be_bytes()).0, Kind::Unsupported);
    assert_eq!(with(20, &22_u32.to_be_bytes()), (Kind::Corrupt, Some(Corrupt::ClusterBits(22))));
    assert_eq!(with(72, &2_u64.to_be_bytes()).0, Kind::Corrupt);
    assert_eq!(with(0, b"QFIx"), (Kind::Corrupt, Some(Corrupt::Magic)));
}

#[test]
fn broken_images_are_errors_and_nothing_worse() {
    rig::requires!("qemu-img");
    let qemu = Qemu::new();
    qemu.raw("disk.raw", 1 << 20);
    let mut state = 1_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for options in ["-o cluster_size=4k", "-c -o cluster_size=4k", "-o cluster_size=16k,extended_l2=on"] {
        qemu.run(&format!("qemu-img convert -O qcow2 {options} disk.raw d.qcow2; qemu-img snapshot -c s d.qcow2"));
        let whole = std::fs::read(qemu.path("d.qcow2")).unwrap();
        // Where the tables are: where most bytes matter.
        for _ in 0..700 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random() % 4 {
                let range = [112, 112, 65536, whole.len()][random() % 4].min(whole.len());
                let at = random() % range;
                bytes[at] = [0, 0xff, 1, 0x80, random() as u8][random() % 5];
            }
            if random().is_multiple_of(8) {
                bytes.truncate(random() % whole.len());
            }
            let memory: Arc<dyn Storage> = Arc::new(Memory::with_room(bytes.len() as u64, 64 << 20).unwrap());
            memory.write_at(&bytes, 0).unwrap();
            fuzz(&memory);
        }
    }
}
