//! Images that are written from front to back, beside QEMU's tools and loopbox's own readers.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod new_file;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use backing::{FileBacking, Open};
use block::testing::conformance;
use block::{BlockDevice, Kind, ReadAt as _, Result, Sequential as _, Storage};
use loopbox_format::gate::{Closed, Gate};
use loopbox_format::image::{self, format_of};
use loopbox_format::qcow2::{Compression, Create};
use loopbox_format::sequential::{Image, New, Style};

use new_file::NewFile;

/// A disk: its size, and what is in it; all else is zero.
struct Disk {
    size: u64,
    data: Vec<(u64, Vec<u8>)>,
}

impl Disk {
    fn bytes(&self, from: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        for (at, data) in &self.data {
            let (start, end) = ((*at).max(from), (at + data.len() as u64).min(from + len));
            if start < end {
                let part = &data[(start - at) as usize..(end - at) as usize];
                bytes[(start - from) as usize..(end - from) as usize].copy_from_slice(part);
            }
        }
        bytes
    }

    /// As it is, with holes.
    fn write_raw(&self, path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(self.size).unwrap();
        for (at, data) in &self.data {
            file.write_all_at(data, *at).unwrap();
        }
    }

    /// As an image.
    fn write(&self, path: &Path, new: &New) -> Result<()> {
        let output = NewFile(File::create(path).unwrap());
        let image = Image::begin(&output, new)?;
        let block = image.block();
        let mut numbers: Vec<u64> =
            self.data.iter().flat_map(|(at, data)| at / block..(at + data.len() as u64).div_ceil(block)).collect();
        numbers.dedup();
        for number in numbers {
            let bytes = self.bytes(number * block, block);
            if bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            let packed = if image.packs() { image.pack(number, &bytes)? } else { None };
            let at = image.place(number, packed.as_ref().map(|bytes| bytes.len() as u64))?;
            let there = (self.size - number * block).min(block) as usize;
            if let Some(packed) = packed {
                image.write(&packed, at)?;
                continue;
            }
            for (n, piece) in bytes[..there].chunks(4096).enumerate() {
                if piece.iter().any(|byte| *byte != 0) {
                    image.write(piece, at + n as u64 * 4096)?;
                }
            }
        }
        image.finish()
    }
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Some of it gets smaller when it is packed.
        if state >> 62 == 0 { 7 } else { (state >> 33) as u8 | 1 }
    };
    (0..len).map(|_| next()).collect()
}

fn styles() -> Vec<(&'static str, Style)> {
    let qcow2 = |cluster_bytes, compression, version, compress| Style::Qcow2 {
        create: Create { cluster_bytes, compression, version, ..Create::new(0) },
        compress,
    };
    let word = |format, subformat| Style::of(format_of(format).unwrap(), subformat).unwrap();
    vec![
        ("raw", Style::Raw),
        ("qcow2", qcow2(65536, Compression::Deflate, 3, false)),
        ("qcow2", qcow2(65536, Compression::Deflate, 3, true)),
        ("qcow2", qcow2(65536, Compression::Zstd, 3, true)),
        ("qcow2", qcow2(4096, Compression::Deflate, 2, true)),
        ("qcow2", qcow2(2 << 20, Compression::Deflate, 3, true)),
        ("qcow2", qcow2(512, Compression::Deflate, 3, false)),
        ("vpc", word("vpc", None)),
        ("vpc", word("vhd", Some("fixed"))),
        ("vhdx", word("vhdx", Some("dynamic"))),
        ("vmdk", word("vmdk", None)),
        ("vmdk", word("vmdk", Some("streamOptimized"))),
        ("vdi", word("vdi", None)),
    ]
}

fn open(path: &Path, word: &str) -> Arc<dyn BlockDevice> {
    let file: Arc<dyn Storage> = Arc::new(FileBacking::open(path, Open::READ).unwrap());
    image::open(file, format_of(word).unwrap(), &Gate::new(&Closed, path, (0, 0)), None).unwrap().device
}

fn new(size: u64, style: Style) -> New {
    New { size, style, id: 0x1234_5678_9abc_def0_1122_3344_5566_7788, seconds: 1_700_000_000, name: "image".into() }
}

#[test]
fn what_is_written_is_what_everybody_reads() {
    rig::requires!("qemu-img", "qemu-io");
    let scratch = rig::Scratch::new("sequential");
    // From its second sector on, one byte of all: QEMU can say whether it reads that.
    let marked = |len, seed| {
        let mut bytes = noise(len, seed);
        bytes[512..1024].fill(7);
        bytes
    };
    let large = [(0, marked(70_000, 1)), (3 << 30, marked(5 << 20, 2)), ((100 << 30) - 1536, marked(1536, 3))];
    let disks = [
        Disk { size: 512, data: vec![] },
        Disk { size: 512, data: vec![(0, noise(512, 1))] },
        Disk { size: (9 << 20) + 512, data: vec![(0, noise(9 << 20, 4)), (9 << 20, vec![9; 512])] },
        Disk { size: (40 << 20) + 1024, data: vec![(1 << 20, noise(900_000, 5)), (33 << 20, noise(3 << 20, 6))] },
        Disk { size: 100 << 30, data: large.to_vec() },
        Disk { size: 1 << 40, data: vec![((1 << 40) - 4096, marked(4096, 7))] },
        Disk { size: 1 << 40, data: vec![] },
    ];
    let (path, raw) = (scratch.join("image"), scratch.join("disk.raw"));
    for disk in &disks {
        disk.write_raw(&raw);
        for (word, style) in styles() {
            let what = format!("{style:?} of {} bytes", disk.size);
            if matches!(&style, Style::Qcow2 { create, .. } if disk.size > 1 << 30 && create.cluster_bytes < 65536)
                && disk.size > 64 << 30
            {
                // Too large for such clusters, some of them.
                continue;
            }
            disk.write(&path, &new(disk.size, style.clone())).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            // Of these QEMU compares holes block by block, for a minute.
            let compare = if matches!(word, "vhdx" | "vmdk" | "vdi") && disk.size > 1 << 30 {
                let reads = disk.data.iter().map(|(at, _)| format!("-c 'read -P 7 {} 512'", at + 512));
                let reads = reads.collect::<Vec<_>>().join(" ");
                format!("qemu-io -f {word} -r {reads} -c 'read -P 0 {} 512' image >/dev/null", disk.size / 2)
            } else {
                format!("qemu-img compare -q -f {word} -F raw image disk.raw")
            };
            scratch.shell(&format!("{compare} || {{ echo '{what}'; exit 1; }}"));
            if !matches!(word, "vpc" | "raw") {
                scratch.shell(&format!("qemu-img check -q -f {word} image || {{ echo '{what}'; exit 1; }}"));
            }
            let info = scratch.shell(&format!("qemu-img info -f {word} --output=json image"));
            assert!(info.contains(&format!("\"virtual-size\": {}", disk.size)), "{what}: {info}");
            let device = open(&path, word);
            assert_eq!(device.size(), disk.size, "{what}");
            for (at, data) in &disk.data {
                let mut read = vec![0; data.len()];
                device.read_at(&mut read, *at).unwrap();
                assert!(read == *data, "{what}, at {at}");
            }
            if disk.size < 20 << 20 {
                conformance::check_reads(&device);
            }
            // Holes take no room.
            let blocks = std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap()) * 512;
            let data: u64 = disk.data.iter().map(|(_, data)| data.len() as u64 + (256 << 10)).sum();
            assert!(blocks < data + (10 << 20), "{what}: {blocks}");
        }
    }
}

#[test]
fn the_same_disk_is_the_same_file_and_what_is_cut_short_is_none() {
    let scratch = rig::Scratch::new("sequential");
    let disk = Disk { size: 5 << 20, data: vec![(1 << 20, noise(300_000, 8))] };
    for (word, style) in styles() {
        let new = new(disk.size, style);
        disk.write(&scratch.join("one"), &new).unwrap();
        disk.write(&scratch.join("two"), &new).unwrap();
        let [one, two] = ["one", "two"].map(|name| std::fs::read(scratch.join(name)).unwrap());
        assert!(one == two, "{new:?}");
        // Before it is finished nothing takes it for an image.
        let output = NewFile(File::create(scratch.join("part")).unwrap());
        let image = Image::begin(&output, &new).unwrap();
        image.place(3, image.packs().then_some(100)).unwrap();
        drop(image);
        if word != "raw" {
            let file: Arc<dyn Storage> = Arc::new(FileBacking::open(scratch.join("part"), Open::READ).unwrap());
            let gate = Gate::new(&Closed, "part", (0, 0));
            assert!(image::open(file, format_of(word).unwrap(), &gate, None).is_err(), "{new:?}");
        }
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused() {
    let scratch = rig::Scratch::new("sequential");
    let output = NewFile(File::create(scratch.join("image")).unwrap());
    let style = |format, subformat| Style::of(format_of(format).unwrap(), subformat);
    for (format, subformat, most) in [
        ("vhd", None, 2040_u64 << 30),
        ("vhd", Some("fixed"), 2040 << 30),
        ("vhdx", None, 64 << 40),
        ("vmdk", Some("streamOptimized"), 2 << 40),
        ("vdi", None, 128 << 40),
    ] {
        let begin = |size| Image::begin(&output, &new(size, style(format, subformat).unwrap())).map(drop);
        begin(most).unwrap();
        let error = begin(most + 512).unwrap_err();
        assert_eq!(error.kind(), Kind::Limit, "{format}");
        assert!(error.to_string().contains(&most.to_string()), "{error}");
        assert_eq!(begin(u64::MAX).unwrap_err().kind(), Kind::Limit);
    }
    // Its own tables lie in the same file.
    let sparse = |size| Image::begin(&output, &new(size, style("vmdk", None).unwrap())).map(drop);
    sparse((2 << 40) - (1 << 30)).unwrap();
    assert_eq!(sparse(2 << 40).unwrap_err().kind(), Kind::Limit);
    assert_eq!(style("vhdx", Some("fixed")).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(style("parallels", None).unwrap_err().kind(), Kind::Unsupported);
    // A grain behind the last number of a sector.
    let image = Image::begin(&output, &new(2 << 40, style("vmdk", Some("streamOptimized")).unwrap())).unwrap();
    image.place(0, Some((2 << 40) - 65536)).unwrap();
    image.place(1, Some(65536)).unwrap_err();
}
