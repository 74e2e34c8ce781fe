//! VHDX images that were not closed: their log, written here as MS-VHDX 2.3 says, is replayed as QEMU replays it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::path::PathBuf;
use std::sync::Arc;

use backing::{FileBacking, Open};
use block::{Kind, ReadAt as _, Result, Storage};
use loopbox_format::gate::{Closed, Gate};
use loopbox_format::image;
use loopbox_format::probe::Format;

const GUID: [u8; 16] = *b"the log's own id";
const SECTOR: usize = 4096;
/// The disk: 4 MiB in blocks of 1 MiB, zeroes from 2 MiB + 8 KiB on for 8 KiB.
const ZEROES: usize = (2 << 20) + 8192;

struct Image {
    scratch: rig::Scratch,
    /// The file, closed properly.
    whole: Vec<u8>,
    disk: Vec<u8>,
    log_at: usize,
    log_len: usize,
    bat_at: usize,
    /// Where the sectors of zeroes are in the file.
    zeroes_at: usize,
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(*bytes[at..].first_chunk().unwrap()) as usize
}

impl Image {
    fn new() -> Self {
        let scratch = rig::Scratch::new("vhdx");
        let mut disk: Vec<u8> = (0..4_u32 << 20).map(|n| (n / 3) as u8 | 1).collect();
        disk[ZEROES..ZEROES + 2 * SECTOR].fill(0);
        std::fs::write(scratch.join("disk"), &disk).unwrap();
        let line = "qemu-img convert -f raw -O vhdx -o block_size=1M disk image";
        rig::run_command(rig::User::Myself.command("sh").args(["-ec", line]).current_dir(scratch.path()));
        let whole = std::fs::read(scratch.join("image")).unwrap();
        let header = 64 << 10;
        let (log_len, log_at) = (u32_at(&whole, header + 68), u64_at(&whole, header + 72) as usize);
        let bat = [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6];
        let entry = (192 << 10..256 << 10).find(|at| whole[*at..].starts_with(&bat)).unwrap();
        let bat_at = u64_at(&whole, entry + 16) as usize;
        let block = u64_at(&whole, bat_at + 2 * 8) as usize & !0xf_ffff;
        Self { scratch, disk, log_at, log_len, bat_at, zeroes_at: block + 8192, whole }
    }

    fn bat(&self) -> &[u8] {
        &self.whole[self.bat_at..self.bat_at + SECTOR]
    }

    /// The file with a log in use, whose ring holds these entries.
    fn dirty(&self, entries: &[(usize, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = self.whole.clone();
        for at in [64 << 10, 128 << 10] {
            let header = &mut bytes[at..at + SECTOR];
            header[48..64].copy_from_slice(&GUID);
            header[4..8].fill(0);
            let sum = crc32c::crc32c(header).to_le_bytes();
            header[4..8].copy_from_slice(&sum);
        }
        for (place, entry) in entries {
            for (n, byte) in entry.iter().enumerate() {
                bytes[self.log_at + (place + n) % self.log_len] = *byte;
            }
        }
        bytes[self.bat_at..self.bat_at + SECTOR].fill(0);
        bytes
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.scratch.join(name), bytes).unwrap();
        self.scratch.join(name)
    }

    /// What loopbox reads.
    fn read(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let path = self.file("dirty", bytes);
        let storage: Arc<dyn Storage> = Arc::new(FileBacking::open(&path, Open::READ)?);
        let device = image::open(storage, Format::Vhdx, &Gate::new(&Closed, &path, (0, 0)), None)?.device;
        let mut read = vec![1; device.size() as usize];
        // In odd pieces, across whatever was replayed.
        for (n, piece) in read.chunks_mut(77_777).enumerate() {
            device.read_at(piece, n as u64 * 77_777)?;
        }
        assert!(std::fs::read(&path).unwrap() == bytes, "the file stays as it is");
        Ok(read)
    }

    /// What QEMU reads after it has written the log back.
    fn read_by_qemu(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.file("qemu", bytes);
        let line = "qemu-img check -q -r all -f vhdx qemu >/dev/null 2>&1; qemu-img convert -f vhdx -O raw qemu raw";
        let mut command = rig::User::Myself.command("sh");
        let output = rig::output(command.args(["-ec", line]).current_dir(self.scratch.path()));
        output.status.success().then(|| std::fs::read(self.scratch.join("raw")).unwrap())
    }
}

enum Change<'a> {
    Data(usize, &'a [u8]),
    Zero(usize, usize),
}

/// An entry of the log of a file of `file_bytes`.
fn entry(number: u64, tail: usize, file_bytes: usize, changes: &[Change<'_>]) -> Vec<u8> {
    let mut table = Vec::new();
    let mut data = Vec::new();
    for change in changes {
        match change {
            Change::Data(at, bytes) => {
                table.extend(b"desc");
                table.extend(&bytes[4092..]);
                table.extend(&bytes[..8]);
                table.extend((*at as u64).to_le_bytes());
                data.extend(b"data");
                data.extend(((number >> 32) as u32).to_le_bytes());
                data.extend(&bytes[8..4092]);
                data.extend((number as u32).to_le_bytes());
            }
            Change::Zero(at, len) => {
                table.extend(b"zero\0\0\0\0");
                table.extend((*len as u64).to_le_bytes());
                table.extend((*at as u64).to_le_bytes());
            }
        }
        table.extend(number.to_le_bytes());
    }
    let front = (64 + table.len()).next_multiple_of(SECTOR);
    let mut bytes = b"loge\0\0\0\0".to_vec();
    bytes.extend(((front + data.len()) as u32).to_le_bytes());
    bytes.extend((tail as u32).to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes.extend((changes.len() as u32).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(GUID);
    bytes.extend((file_bytes as u64).to_le_bytes());
    bytes.extend((file_bytes as u64).to_le_bytes());
    bytes.extend(table);
    bytes.resize(front, 0);
    bytes.extend(data);
    let sum = crc32c::crc32c(&bytes).to_le_bytes();
    bytes[4..8].copy_from_slice(&sum);
    bytes
}

#[test]
fn a_log_is_replayed_as_qemu_replays_it() {
    rig::requires!("qemu-img");
    let image = Image::new();
    let (len, bat) = (image.whole.len(), image.bat());
    // One block fewer than there are.
    let mut other = bat.to_vec();
    other[8..16].fill(0);
    let right = |number, tail| entry(number, tail, len, &[Change::Data(image.bat_at, bat)]);
    let wrong = |number, tail| entry(number, tail, len, &[Change::Data(image.bat_at, &other)]);
    let end = image.log_len - SECTOR;
    let two = right(1, 0).len();
    let mut without_block = image.disk.clone();
    without_block[1 << 20..2 << 20].fill(0);
    let mut torn = right(9, 0);
    torn[5000] ^= 1;
    type Ring = Vec<(usize, Vec<u8>)>;
    let cases: Vec<(&str, Ring, &[u8])> = vec![
        ("one entry", vec![(0, right(1, 0))], &image.disk),
        ("elsewhere", vec![(0x8_0000, right(7, 0x8_0000))], &image.disk),
        ("the later one counts", vec![(0, wrong(1, 0)), (two, right(2, 0))], &image.disk),
        ("in their order", vec![(0, right(1, 0)), (two, wrong(2, 0))], &without_block),
        ("around the end of the ring", vec![(end, right(5, end))], &image.disk),
        ("two around the end", vec![(end, wrong(5, end)), (SECTOR, right(6, end))], &image.disk),
        ("an older run beside it", vec![(0x2_0000, wrong(3, 0x2_0000)), (0x4_0000, right(8, 0x4_0000))], &image.disk),
        ("an older run behind it", vec![(0x2_0000, right(9, 0x2_0000)), (0x4_0000, wrong(4, 0x4_0000))], &image.disk),
        ("a torn entry at the end", vec![(0, right(8, 0)), (two, torn)], &image.disk),
        ("numbers with a gap", vec![(0, right(1, 0)), (two, wrong(0x1_0000_0003, two))], &without_block),
        ("high numbers", vec![(0, right(0x7_1234_5678, 0))], &image.disk),
    ];
    for (what, ring, expected) in cases {
        let dirty = image.dirty(&ring);
        let read = image.read(&dirty).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(read == expected, "{what}");
        assert!(image.read_by_qemu(&dirty).as_deref() == Some(expected), "{what}: QEMU reads something else");
    }
    // A run whose first entry is gone is none; QEMU does not look at where it says that it begins.
    let dirty = image.dirty(&[(0, right(1, 0)), (two, wrong(7, 0x4_0000))]);
    assert!(image.read(&dirty).unwrap() == image.disk);
    // Zeroes over what a crash left, and data over a part of them.
    let mut mine = vec![7; SECTOR];
    mine[4095] = 9;
    let changes = [Change::Data(image.bat_at, bat), Change::Zero(image.zeroes_at - SECTOR, 3 * SECTOR)];
    let later = [Change::Data(image.zeroes_at, &mine)];
    let first = entry(1, 0, len, &changes);
    let at = first.len();
    let mut dirty = image.dirty(&[(0, first), (at, entry(2, 0, len, &later))]);
    dirty[image.zeroes_at..image.zeroes_at + 2 * SECTOR].fill(0xee);
    let mut expected = image.disk.clone();
    expected[ZEROES - SECTOR..ZEROES].fill(0);
    expected[ZEROES..ZEROES + SECTOR].copy_from_slice(&mine);
    assert!(image.read(&dirty).unwrap() == expected);
    assert!(image.read_by_qemu(&dirty) == Some(expected));
}

#[test]
fn a_log_that_cannot_be_is_an_error_and_an_empty_one_is_none() {
    rig::requires!("qemu-img");
    let image = Image::new();
    let len = image.whole.len();
    // The table is as it was, and no entry is whole.
    let mut empty = image.dirty(&[]);
    empty[image.bat_at..image.bat_at + SECTOR].copy_from_slice(image.bat());
    assert!(image.read(&empty).unwrap() == image.disk);
    assert!(image.read_by_qemu(&empty).as_deref() == Some(&*image.disk));
    // The file was longer when the log was written.
    let longer = image.dirty(&[(0, entry(1, 0, len + (1 << 20), &[Change::Data(image.bat_at, image.bat())]))]);
    assert_eq!(image.read(&longer).unwrap_err().kind(), Kind::Corrupt);
    assert!(image.read_by_qemu(&longer).is_none());
    // Any byte of the log may be any other.
    let whole = entry(3, 0, len, &[Change::Data(image.bat_at, image.bat()), Change::Zero(image.zeroes_at, SECTOR)]);
    for at in (0..whole.len()).step_by(411).chain(0..160) {
        for flip in [1, 0xff] {
            let mut broken = whole.clone();
            broken[at] ^= flip;
            // With a sum that is right again, so that what it says is looked at.
            broken[4..8].fill(0);
            let sum = crc32c::crc32c(&broken).to_le_bytes();
            broken[4..8].copy_from_slice(&sum);
            image::fuzz(&image.dirty(&[(0, broken)]), Format::Vhdx);
        }
    }
}
