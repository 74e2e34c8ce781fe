//! Headers that lie.

use block::bytes::Bytes;
use block::{Kind, ReadAt as _};
use loopbox_format::luks::{Corrupt, Cost, Crypt, Header};
use rig::requires;
use sha2::Digest as _;

use crate::volume::{Folder, PASSPHRASE};

/// How many headers are spoiled, of each kind; `LOOPBOX_MUTATIONS` says another number.
const MUTATIONS: u64 = 600;
/// What a spoiled header may cost.
const COST: Cost = Cost { memory_kib: 256, passes_kib: 1024, iterations: 1000 };

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Makes the checksum of the copy at `at` right again.
fn mend(bytes: &mut [u8], at: usize) {
    let copy = &mut bytes[at..at + (16 << 10)];
    copy[448..512].fill(0);
    let sum = sha2::Sha256::digest(&*copy);
    copy[448..480].copy_from_slice(&sum);
}

/// Reads, unlocks and reads on, and says whether it came to the end.
fn walk(bytes: &[u8]) -> bool {
    let device = Bytes(bytes);
    let Ok(header) = Header::read(&device) else { return false };
    let _ = format!("{header:?} {:?}", header.problems.first().map(ToString::to_string));
    let Ok(unlocked) = header.unlock(&device, PASSPHRASE, None, &COST) else { return false };
    let Ok(crypt) = Crypt::new(&device, &header.segment, &unlocked.key) else { return false };
    let mut read = vec![0; crypt.size().min(100_000) as usize];
    crypt.read_at(&mut read, 0).unwrap();
    true
}

#[test]
fn spoiled_headers_are_errors_at_worst() {
    requires!("cryptsetup");
    let folder = Folder::new();
    let mutations = std::env::var("LOOPBOX_MUTATIONS").map_or(MUTATIONS, |number| number.parse().unwrap());
    for words in [&["--type", "luks1", "--hash", "sha256"][..], &["--type", "luks2"]] {
        let mut image = std::fs::read(folder.formatted("volume", words)).unwrap();
        // Up to the first key slot's end and a bit of data.
        image.truncate((16 << 20) + 8192);
        let is_v2 = words.contains(&"luks2");
        // Half of the writing is where words and numbers are.
        let json_end = 4096 + image[4096..16 << 10].iter().position(|byte| *byte == 0).unwrap();
        let mut random = Random(0x9e37_79b9);
        let (mut opened, mut bytes) = (0, image.clone());
        for n in 0..mutations {
            bytes[..64 << 10].copy_from_slice(&image[..64 << 10]);
            for _ in 0..1 + random.below(3) {
                let at = match (is_v2, random.below(4)) {
                    (false, _) => random.below(592) as usize,
                    (true, 0) => random.below(512) as usize,
                    (true, _) => 4096 + random.below(json_end as u64 - 4096) as usize,
                };
                bytes[at] = match random.below(5) {
                    0 => bytes[at] ^ (1 << random.below(8)),
                    1 => b'9',
                    2 => 0xff,
                    3 => bytes[4096 + random.below(600) as usize],
                    _ => random.below(256) as u8,
                };
            }
            if is_v2 && n % 8 > 0 {
                mend(&mut bytes, 0);
                bytes[16 << 10] = 0;
            }
            let end = if random.below(20) == 0 { random.below(1 << 19) as usize } else { bytes.len() };
            opened += u64::from(walk(&bytes[..end]));
        }
        assert!(opened > mutations / 50 && opened < mutations, "{words:?}: {opened} of {mutations} were opened");
    }
}

#[test]
fn what_a_header_claims_is_checked_before_it_costs_anything() {
    requires!("cryptsetup");
    let folder = Folder::new();
    let image = std::fs::read(folder.formatted("volume", &["--type", "luks2", "--sector-size", "512"])).unwrap();
    let with = |from: &str, to: &str| {
        let mut bytes = image.clone();
        let json = String::from_utf8(bytes[4096..16 << 10].to_vec()).unwrap();
        let json = json.trim_end_matches('\0');
        assert!(json.contains(from), "{from}: {json}");
        let json = json.replace(from, to);
        bytes[4096..16 << 10].fill(0);
        bytes[4096..4096 + json.len()].copy_from_slice(json.as_bytes());
        mend(&mut bytes, 0);
        bytes[16 << 10] = 0;
        bytes
    };
    let read = |bytes: &[u8]| Header::read(&Bytes(bytes)).unwrap_err();
    let unlock = |bytes: &[u8]| {
        let header = Header::read(&Bytes(bytes)).unwrap();
        header.unlock(&Bytes(bytes), PASSPHRASE, None, &Cost::MAX).unwrap_err()
    };
    assert_eq!(unlock(&with("\"memory\":64", "\"memory\":4294967295")).kind(), Kind::Limit);
    assert_eq!(unlock(&with("\"time\":4", "\"time\":4294967295")).kind(), Kind::Limit);
    assert_eq!(unlock(&with("\"cpus\":1", "\"cpus\":0")).kind(), Kind::Corrupt);
    assert_eq!(unlock(&with("\"offset\":\"32768\"", "\"offset\":\"18446744073709551000\"")).kind(), Kind::Corrupt);
    assert_eq!(read(&with("\"offset\":\"32768\"", "\"offset\":\"4096\"")).find(), Some(&Corrupt::SlotArea(0)));
    assert_eq!(read(&with("\"stripes\":4000", "\"stripes\":4000000000")).kind(), Kind::Corrupt);
    assert_eq!(read(&with("\"sector_size\":512", "\"sector_size\":0")).kind(), Kind::Corrupt);
    assert_eq!(read(&with("\"sector_size\":512", "\"sector_size\":8192")).kind(), Kind::Corrupt);
    assert_eq!(read(&with("\"segments\":[\"0\"]", "\"segments\":[\"1\"]")).find(), Some(&Corrupt::NoDigest));
    assert_eq!(read(&with("aes-xts-plain64\",\"sector", "cipher_null-ecb\",\"sector")).kind(), Kind::Unsupported);
    assert_eq!(read(&with("\"type\":\"crypt\"", "\"type\":\"linear\"")).kind(), Kind::Unsupported);
    let integrity = "\"sector_size\":512,\"integrity\":{\"type\":\"hmac(sha256)\"}";
    assert_eq!(read(&with("\"sector_size\":512", integrity)).kind(), Kind::Unsupported);
    let requirement = "\"config\":{\"requirements\":{\"mandatory\":[\"online-reencrypt-v2\"]},";
    let error = read(&with("\"config\":{", requirement));
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("cryptsetup reencrypt"), "{error:?}");
    let far = with("\"offset\":\"16777216\"", "\"offset\":\"9007199254740992\"");
    let header = Header::read(&Bytes(&far)).unwrap();
    assert_eq!(Crypt::new(Bytes(&far), &header.segment, &[0; 64]).unwrap_err().kind(), Kind::Corrupt);
    // A million brackets are no reason to run out of stack.
    let deep = with("\"tokens\":{}", &format!("\"tokens\":{}", "[".repeat(10_000)));
    assert!(matches!(read(&deep).find(), Some(Corrupt::Json(_))));
    for end in [0, 5, 100, 591, 4095, 4096, 16383] {
        assert!(Header::read(&Bytes(&image[..end])).is_err(), "{end} bytes");
    }
}
