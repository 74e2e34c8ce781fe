//! The suites of every device.

use std::sync::Arc;

use backing::Memory;
use block::testing::{conformance, crash, model};
use block::{BlockDevice, ReadAt as _};
use loopbox_format::luks::{CipherSpec, Crypt, Segment};

/// Where the data begins in these tests.
const START: u64 = 8192;

fn segment(cipher: &str, sector_bytes: u32) -> Segment {
    Segment {
        start_byte: START,
        size_bytes: None,
        first_unit: 5,
        cipher: CipherSpec::parse(cipher).unwrap(),
        sector_bytes,
    }
}

fn key(bytes: usize) -> Vec<u8> {
    (1..=bytes as u8).collect()
}

const KINDS: [(&str, usize, u32); 6] = [
    ("aes-xts-plain64", 64, 4096),
    ("aes-xts-plain64", 32, 512),
    ("aes-xts-plain", 48, 1024),
    ("aes-cbc-essiv:sha256", 32, 512),
    ("twofish-xts-plain64", 64, 2048),
    ("camellia-cbc-plain64be", 16, 512),
];

#[test]
fn an_encrypted_device_conforms() {
    for (cipher, bytes, sector) in KINDS {
        conformance::check(|| {
            Crypt::new(Memory::new(140_000).unwrap(), &segment(cipher, sector), &key(bytes)).unwrap()
        });
    }
}

#[test]
fn an_encrypted_device_is_an_array_of_bytes() {
    for (cipher, bytes, sector) in KINDS {
        let initial = vec![9; 100 * 4096];
        model::check(12, 30, &initial, || {
            let memory = Arc::new(Memory::new(START + 100 * 4096 + 100).unwrap());
            let open = move || Crypt::new(Arc::clone(&memory), &segment(cipher, sector), &key(bytes)).unwrap();
            open().write_at(&[9; 100 * 4096], 0).unwrap();
            open
        });
    }
}

#[test]
fn what_was_flushed_survives() {
    for (cipher, bytes, sector) in [KINDS[1], KINDS[3], KINDS[0]] {
        // What was never written decrypts to something: that is what it reads as at first.
        let open = |disk: Arc<dyn BlockDevice>| Crypt::new(disk, &segment(cipher, sector), &key(bytes));
        let size = START + 16 * 4096;
        let first = open(Arc::new(crash::Disk::new(size, u64::MAX))).unwrap();
        let mut initial = vec![0; first.size() as usize];
        first.read_at(&mut initial, 0).unwrap();
        crash::check(size, &initial, &model::steps_of(3, 14), 2, open);
    }
}

/// The same bytes by the processor's instructions and by the crates: `plain64` and `plain` differ only above 2 TiB.
#[test]
fn fast_and_portable_are_the_same_cipher() {
    for (bytes, sector) in [(32, 512), (64, 512), (64, 4096), (32, 2048)] {
        let below = Arc::new(Memory::new(START + (1 << 20)).unwrap());
        let fast = Crypt::new(Arc::clone(&below), &segment("aes-xts-plain64", sector), &key(bytes)).unwrap();
        let portable = Crypt::new(below, &segment("aes-xts-plain", sector), &key(bytes)).unwrap();
        let plain: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
        fast.write_at(&plain, 0).unwrap();
        let mut read = vec![0; plain.len()];
        portable.read_at(&mut read, 0).unwrap();
        assert!(read == plain, "{bytes} bytes, sectors of {sector}");
        portable.write_at(&plain[7..], 7).unwrap();
        fast.read_at(&mut read, 0).unwrap();
        assert!(read == plain);
    }
}

#[test]
fn zeroes_below_are_not_zeroes_above_and_no_file_is_named() {
    let folder = rig::Scratch::new("luks");
    let file = backing::FileBacking::create(folder.join("volume"), START + 65536).unwrap();
    let device = Crypt::new(&file, &segment("aes-xts-plain64", 512), &key(64)).unwrap();
    let extent = device.extent_at(100).unwrap();
    assert!(matches!(extent.source, block::Source::Data), "{extent:?}");
    assert_eq!(extent.len, 65436);
    let mut read = [0; 512];
    device.read_at(&mut read, 0).unwrap();
    assert_ne!(read, [0; 512]);
}
