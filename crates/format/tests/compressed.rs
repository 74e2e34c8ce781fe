//! Files that were compressed as a whole by the tools people use, read at any position and compared with what those
//! tools unpack.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backing::{FileBacking, Memory, Open};
use block::testing::conformance;
use block::{Kind, ReadAt as _, Result, Storage};
use loopbox_format::compressed::{self, Build, Compressed};
use loopbox_format::probe::{Format, probe};

/// A number after the other that looks random.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// 40 MiB and a bit: words that compress, noise that does not, and zeroes.
fn content() -> Vec<u8> {
    let mut bytes = vec![0_u8; (40 << 20) + 12_345];
    let mut state = 7;
    for (n, piece) in bytes.chunks_mut(300_000).enumerate() {
        match n % 4 {
            0 => {
                for word in piece.chunks_mut(8) {
                    let text = format!("{:08x}", random(&mut state) & 0xfff);
                    word.copy_from_slice(&text.as_bytes()[..word.len()]);
                }
            }
            1 if n % 8 == 1 => piece.iter_mut().for_each(|byte| *byte = random(&mut state) as u8),
            2 => piece.fill(n as u8),
            _ => {}
        }
    }
    bytes
}

struct Opened {
    device: Compressed,
    room: Arc<dyn Storage>,
}

fn open_in(file: Arc<dyn Storage>, keep_bytes_max: u64) -> Result<Opened> {
    let room: Arc<dyn Storage> = Arc::new(Memory::with_room(0, u64::MAX)?);
    let format = probe(&file)?.format;
    let mut last = 0;
    let mut progress = |bytes| {
        assert!(bytes >= last, "{bytes} after {last}");
        last = bytes;
    };
    let mut how = Build { format, name: b"it", keep_bytes_max, progress: &mut progress };
    compressed::build(&file, &*room, &mut how)?;
    let device = Compressed::open(file, Arc::clone(&room), format, b"it")?;
    Ok(Opened { device, room })
}

fn open(scratch: &rig::Scratch, name: &str, keep_bytes_max: u64) -> Result<Opened> {
    open_in(Arc::new(FileBacking::open(scratch.join(name), Open::READ)?), keep_bytes_max)
}

/// Reads in order on several threads, forward, backward, anywhere (`times`), and from several threads.
fn check(opened: &Opened, expected: &[u8], times: usize, what: &str) {
    let device = &opened.device;
    let size = device.size();
    assert_eq!(size, expected.len() as u64, "{what}");
    let read = |offset: u64, len: usize| {
        let mut bytes = vec![1; len];
        device.read_at(&mut bytes, offset).unwrap_or_else(|error| panic!("{what} at {offset}: {error:?}"));
        assert!(bytes == expected[offset as usize..offset as usize + len], "{what}: {len} bytes at {offset}");
    };
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..if times > 1 { 3 } else { 1 } {
            scope.spawn(|| {
                loop {
                    let offset = next.fetch_add(1 << 20, Ordering::Relaxed);
                    if offset >= size {
                        return;
                    }
                    read(offset, (size - offset).min(1 << 20) as usize);
                }
            });
        }
    });
    read(size - 4000, 4000);
    for offset in (0..size).step_by(1 << 20) {
        read(offset, (size - offset).min(1 << 20) as usize);
    }
    let mut state = size;
    for _ in 0..2 * times {
        let len = random(&mut state) % 300_000;
        read(random(&mut state) % (size - len), len as usize);
    }
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let read = &read;
            scope.spawn(move || {
                let mut state = thread;
                for _ in 0..times {
                    read(random(&mut state) % (size - 70_000), 70_000);
                }
            });
        }
    });
    let mut at = 0;
    while at < size {
        let extent = device.extent_at(at).unwrap();
        let run = &expected[at as usize..(at + extent.len) as usize];
        assert!(!extent.source.is_zero() || run.iter().all(|byte| *byte == 0), "{what} at {at}");
        at += extent.len;
    }
}

#[test]
fn what_is_read_is_what_the_tools_unpack() {
    rig::requires!("gzip", "pigz", "bgzip", "xz", "pixz", "zstd");
    let scratch = rig::Scratch::new("compressed");
    let content = content();
    let small = &content[..9 << 20];
    std::fs::write(scratch.join("disk"), &content).unwrap();
    std::fs::write(scratch.join("small"), small).unwrap();
    // With the room that a disk may take that is kept, and with none of it.
    for (line, keep) in [
        ("gzip -1 <small", 0),
        ("gzip -9 <small", 0),
        ("pigz -p2 <small", 0),
        ("pigz -i -b 512 <small", 0),
        ("bgzip <small", 0),
        ("head -c 7000001 small | gzip -nc; tail -c +7000002 small | gzip --name -c; head -c 4096 /dev/zero", 0),
        ("xz -0 -T1 -c disk", u64::MAX),
        ("xz -0 -T1 -c disk", 0),
        ("xz -0 -T2 --block-size=3MiB --check=sha256 -c small", 0),
        ("xz -0 --check=none --x86 --lzma2=preset=0 --block-size=5MiB -c small", 0),
        ("head -c 7000001 small | xz -0 -C crc32; head -c 512 /dev/zero; tail -c +7000002 small | xz -0", 0),
        ("pixz -0 -t <small", 0),
        ("zstd -1 -c disk", u64::MAX),
        ("zstd -1 -c disk", 0),
        ("zstd -1 -T2 --long=27 --check <disk", u64::MAX),
        ("zstd -1 --no-check <disk", 0),
        ("zstd -1 -c <disk", 9 << 20),
        ("split -b 1500000 small part. && zstd -q -1 part.?? && cat part.*.zst; rm part.*", 0),
        ("split -b 1500000 small part. && for part in part.??; do zstd -q -1 <$part; done; rm part.*", 0),
    ] {
        scratch.shell(&format!("({line}) >packed"));
        let opened = open(&scratch, "packed", keep).unwrap_or_else(|error| panic!("{line}: {error:?}"));
        let slow = line.contains("disk");
        // What can be entered at its beginning only takes its time.
        let times = if slow && keep == 0 { 1 } else { 5 };
        check(&opened, if slow { &content } else { small }, times, line);
        if slow {
            assert_eq!(opened.room.size() > 8 << 20, keep > 0, "{line}: what may be kept is kept");
        } else {
            assert!(opened.room.size() < 2 << 20, "{line}: an index of {} bytes", opened.room.size());
        }
    }
}

#[test]
fn it_keeps_the_promises_of_a_device() {
    rig::requires!("gzip", "xz", "zstd");
    let scratch = rig::Scratch::new("compressed");
    std::fs::write(scratch.join("disk"), &content()[..3 << 20]).unwrap();
    for line in ["gzip -5", "xz -0 --block-size=1MiB", "zstd -3"] {
        scratch.shell(&format!("{line} <disk >packed"));
        let opened = open(&scratch, "packed", 0).unwrap();
        conformance::check_reads(&opened.device);
        assert!(opened.device.limits().read_only);
    }
    for line in ["gzip", "xz", "zstd"] {
        scratch.shell(&format!("{line} </dev/null >packed"));
        assert_eq!(open(&scratch, "packed", 0).unwrap().device.size(), 0, "{line}");
    }
}

#[test]
fn what_is_broken_is_said_and_never_read_as_something_else() {
    rig::requires!("gzip", "xz", "zstd");
    let scratch = rig::Scratch::new("compressed");
    let content = &content()[..2 << 20];
    std::fs::write(scratch.join("disk"), content).unwrap();
    let mut state = 11;
    for line in ["gzip -6", "xz -0 --block-size=700KiB", "zstd -3 --check"] {
        scratch.shell(&format!("{line} <disk >packed"));
        let whole = std::fs::read(scratch.join("packed")).unwrap();
        let try_it = |bytes: &[u8]| -> Result<bool> {
            let memory = Memory::with_room(bytes.len() as u64, u64::MAX)?;
            block::BlockDevice::write_at(&memory, bytes, 0)?;
            let opened = open_in(Arc::new(memory), 0)?;
            let mut read = vec![0; opened.device.size().min(4 << 20) as usize];
            opened.device.read_at(&mut read, 0)?;
            Ok(read == content)
        };
        assert!(try_it(&whole).unwrap());
        for cut in [whole.len() - 1, whole.len() - 9, whole.len() / 2, 20] {
            let error = try_it(&whole[..cut]).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{line}, {cut}: {error:?}");
        }
        let mut found = 0;
        for _ in 0..60 {
            let mut broken = whole.clone();
            let at = random(&mut state) as usize % broken.len();
            broken[at] ^= 1 << (random(&mut state) % 8);
            match try_it(&broken) {
                // A date, or padding that nobody looks at.
                Ok(same) => assert!(same, "{line}: a changed byte at {at} was not seen"),
                Err(error) => {
                    let kind = error.kind();
                    assert!(matches!(kind, Kind::Corrupt | Kind::Limit | Kind::Unsupported), "{line}: {error:?}");
                    found += 1;
                }
            }
        }
        assert!(found >= 55, "{line}: {found}");
        for _ in 0..60 {
            let mut broken = whole.clone();
            for _ in 0..1 + random(&mut state) % 20 {
                let at = random(&mut state) as usize % broken.len();
                broken[at] = random(&mut state) as u8;
            }
            let room: Arc<dyn Storage> = Arc::new(Memory::with_room(0, 64 << 20).unwrap());
            compressed::fuzz(&broken, room);
        }
    }
}

#[test]
fn an_index_of_another_image_is_not_taken_and_a_changed_image_is_noticed() {
    rig::requires!("gzip");
    let scratch = rig::Scratch::new("compressed");
    std::fs::write(scratch.join("disk"), &content()[..4 << 20]).unwrap();
    scratch.shell("gzip -n <disk >packed; head -c 4194304 /dev/zero | tr '\\0' x >disk; gzip -n -1 <disk >other");
    let opened = open(&scratch, "packed", 0).unwrap();
    let file =
        |name: &str| -> Arc<dyn Storage> { Arc::new(FileBacking::open(scratch.join(name), Open::READ).unwrap()) };
    let again = |name: &[u8], format| Compressed::open(file("packed"), Arc::clone(&opened.room), format, name);
    assert_eq!(again(b"it", Format::Gzip).unwrap().size(), 4 << 20);
    assert_eq!(again(b"that", Format::Gzip).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(again(b"it", Format::Xz).unwrap_err().kind(), Kind::Corrupt);
    scratch.shell("truncate -s $(stat -c %s packed) other");
    let other = Compressed::open(file("other"), Arc::clone(&opened.room), Format::Gzip, b"it").unwrap();
    let error = other.read_at(&mut [0; 4096], 1 << 20).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
}

#[test]
fn claims_of_a_hostile_file_cost_nothing() {
    // A zstd frame of one exbibyte, and one with a window of 3 GiB.
    let frame = |rest: &[u8]| [&[0x28, 0xb5, 0x2f, 0xfd][..], rest].concat();
    let huge = frame(&[0xe0, 0, 0, 0, 0, 0, 0, 0, 0x10, 3, 0, 0, 0]);
    let window = frame(&[0x80, 0xad, 0, 0, 0, 1, 1, 0, 0]);
    // An xz index that tells of more blocks than there are bytes.
    let kind = |bytes: &[u8]| {
        let memory = Memory::with_room(bytes.len() as u64, u64::MAX).unwrap();
        block::BlockDevice::write_at(&memory, bytes, 0).unwrap();
        let opened = open_in(Arc::new(memory), u64::MAX)?;
        opened.device.read_at(&mut [0; 512], 0)
    };
    assert!(matches!(kind(&huge).unwrap_err().kind(), Kind::Corrupt | Kind::Limit));
    assert_eq!(kind(&window).unwrap_err().kind(), Kind::Limit);
    let mut index = vec![0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    index.resize(12, 0);
    index.extend(crc32fast::hash(&index).to_le_bytes());
    let mut footer = vec![3, 0, 0, 0, 0, 1];
    let sum = crc32fast::hash(&footer).to_le_bytes();
    footer.splice(0..0, sum);
    let file = [&b"\xfd7zXZ\0\0\x01"[..], &crc32fast::hash(&[0, 1]).to_le_bytes(), &index, &footer, b"YZ"].concat();
    assert_eq!(kind(&file).unwrap_err().kind(), Kind::Corrupt);
}
