//! Images of other programs, as QEMU's tools write them, read and compared with what QEMU reads.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use backing::{FileBacking, Memory, Open};
use block::testing::conformance;
use block::{BlockDevice as _, Kind, ReadAt, Result, Storage};
use loopbox_format::gate::{Closed, Gate, Opened, Opener};
use loopbox_format::image::{self, format_of};
use loopbox_format::probe::{Format, probe};

/// Opens all that an image names.
#[derive(Debug)]
struct Files;

impl Opener for Files {
    fn open(&self, path: &Path, _: usize) -> Result<Opened> {
        let file = FileBacking::open(path, Open::READ)?;
        let metadata = file.file().metadata().unwrap();
        Ok(Opened { storage: Arc::new(file), identity: (metadata.dev(), metadata.ino()), path: path.to_owned() })
    }
}

fn open(path: &Path, opener: &dyn Opener) -> Result<Arc<dyn block::BlockDevice>> {
    let file: Arc<dyn Storage> = Arc::new(FileBacking::open(path, Open::READ)?);
    let format = probe(&file)?.format;
    assert_ne!(format, Format::Raw, "{path:?}");
    Ok(image::open(file, format, &Gate::new(opener, path, (0, 0)), None)?.device)
}

/// 9 MiB with data, zeroes and holes, not a whole number of any block.
fn raw(scratch: &rig::Scratch) {
    let mut bytes = vec![0_u8; (9 << 20) + 512];
    let mut state = 9_u64;
    for piece in bytes.chunks_mut(40_000).step_by(3) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        for (n, byte) in piece.iter_mut().enumerate() {
            *byte = (state >> (n % 50)) as u8;
        }
    }
    bytes[2 << 20..5 << 20].fill(0);
    std::fs::write(scratch.join("disk.raw"), bytes).unwrap();
}

const IMAGES: &[(&str, &str)] = &[
    ("vpc", "force_size=on"),
    ("vpc", "subformat=fixed,force_size=on"),
    ("vdi", ""),
    ("vdi", "static=on"),
    ("vhdx", ""),
    ("vhdx", "block_size=1M"),
    ("vhdx", "subformat=fixed"),
    ("parallels", ""),
    ("vmdk", ""),
    ("vmdk", "subformat=streamOptimized"),
    ("vmdk", "subformat=monolithicFlat"),
    ("vmdk", "subformat=twoGbMaxExtentSparse"),
    ("vmdk", "subformat=twoGbMaxExtentFlat"),
];

#[test]
fn images_of_qemu_are_read() {
    rig::requires!("qemu-img");
    let scratch = rig::Scratch::new("images");
    raw(&scratch);
    for (format, options) in IMAGES {
        let o = if options.is_empty() { String::new() } else { format!("-o {options}") };
        scratch.shell(&format!("qemu-img convert -f raw -O {format} {o} disk.raw image"));
        scratch.shell(&format!("qemu-img convert -f {format} -O raw image expected"));
        let device = open(&scratch.join("image"), &Files).unwrap_or_else(|error| panic!("{format} {o}: {error:?}"));
        let mut read = vec![1; device.size() as usize];
        device.read_at(&mut read, 0).unwrap();
        assert!(read == std::fs::read(scratch.join("expected")).unwrap(), "{format} {o}");
        conformance::check_reads(&device);
        assert!(device.limits().read_only);
        assert_eq!(device.write_at(&[1], 0).unwrap_err().kind(), Kind::ReadOnly);
        // What names other files opens none of them by itself.
        let closed = open(&scratch.join("image"), &Closed).map(drop);
        if options.contains("Flat") || options.contains("twoGb") {
            assert_eq!(closed.unwrap_err().kind(), Kind::NotPermitted);
        } else {
            closed.unwrap();
        }
        scratch.shell("rm -f image* expected");
    }
}

#[test]
fn broken_images_are_errors_and_nothing_worse() {
    rig::requires!("qemu-img");
    let scratch = rig::Scratch::new("images");
    raw(&scratch);
    let mut state = 3_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for (format, options) in IMAGES.iter().filter(|(_, options)| !options.contains("ixed") && !options.contains("Flat"))
    {
        let o = if options.is_empty() { String::new() } else { format!("-o {options}") };
        scratch.shell(&format!("qemu-img convert -f raw -O {format} {o} disk.raw image"));
        let whole = std::fs::read(scratch.join("image")).unwrap();
        scratch.shell("rm -f image*");
        let ends = [whole.len(), whole.len() / 2, 512, 64, 0];
        for end in ends {
            image::fuzz(&whole[..end], format_of(format).unwrap());
        }
        for _ in 0..150 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random() % 4 {
                let near = [512, 2048, 400 << 10, bytes.len()][random() % 4].min(bytes.len());
                let at = if random().is_multiple_of(4) {
                    bytes.len().saturating_sub(1 + random() % 1536)
                } else {
                    random() % near
                };
                bytes[at] = [0, 0xff, 1, 0x80, random() as u8][random() % 5];
            }
            image::fuzz(&bytes, format_of(format).unwrap());
        }
    }
}

#[test]
fn large_tables_are_read_where_they_are_needed() {
    rig::requires!("qemu-img", "qemu-io");
    let scratch = rig::Scratch::new("images");
    // Tables of 12, 192 and 160 MiB.
    for (format, options, size) in
        [("vpc", "force_size=on", 2_000_u64 << 30), ("vmdk", "", 3 << 40), ("vhdx", "block_size=1M", 20 << 40)]
    {
        let o = if options.is_empty() { String::new() } else { format!("-o {options}") };
        let last = size - 65536;
        scratch.shell(&format!(
            "qemu-img create -q -f {format} {o} image {size}; \
                 qemu-io -f {format} -c 'write -q -P 7 {last} 64k' -c 'write -q -P 8 1G 64k' image"
        ));
        let device = open(&scratch.join("image"), &Files).unwrap_or_else(|error| panic!("{format}: {error:?}"));
        assert_eq!(device.size(), size, "{format}");
        for (at, byte) in [(last, 7), (1 << 30, 8), (size / 2, 0)] {
            let mut read = [1; 4096];
            device.read_at(&mut read, at + 512).unwrap();
            assert_eq!(read, [byte; 4096], "{format} at {at}");
        }
        scratch.shell("rm image");
    }
}

#[test]
fn a_size_of_an_exbibyte_is_refused_in_words() {
    let memory = |bytes: &[u8]| {
        let memory: Arc<dyn Storage> = Arc::new(Memory::new(1 << 20).unwrap());
        memory.write_at(bytes, 0).unwrap();
        memory
    };
    let kind = |bytes: &[u8], format| {
        let gate = Gate::new(&Closed, "image", (0, 0));
        image::open(memory(bytes), format, &gate, None).unwrap_err().kind()
    };
    let mut vdi = vec![0; 512];
    vdi[64..72].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe, 1, 0, 1, 0]);
    vdi[76] = 1;
    vdi[368..376].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    vdi[376..380].copy_from_slice(&(1_u32 << 20).to_le_bytes());
    assert_eq!(kind(&vdi, Format::Vdi), Kind::Limit);
    let mut vmdk = vec![0; 512];
    vmdk[..8].copy_from_slice(b"KDMV\x01\0\0\0");
    vmdk[12..20].copy_from_slice(&(1_u64 << 51).to_le_bytes());
    vmdk[20] = 128;
    vmdk[45] = 2;
    assert_eq!(kind(&vmdk, Format::Vmdk), Kind::Limit);
}
