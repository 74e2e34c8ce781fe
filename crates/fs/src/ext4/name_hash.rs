//! The hashes of names: legacy, half of MD4, and TEA, each over signed or unsigned bytes.
//!
//! Specification: Documentation/filesystems/ext4/directory.rst; fs/ext4/hash.c of the kernel says what they give.

/// The largest hash; it stands for the end.
const END: u32 = 0x7FFF_FFFF << 1;

/// Which hash a directory uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    kind: Kind,
    unsigned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Legacy,
    HalfMd4,
    Tea,
}

impl Version {
    /// What the root of a tree says; `unsigned` is what the superblock says of the older ones.
    pub(super) fn from_disk(code: u8, unsigned: bool) -> Option<Self> {
        let kind = match code {
            0 | 3 => Kind::Legacy,
            1 | 4 => Kind::HalfMd4,
            2 | 5 => Kind::Tea,
            _ => return None, // siphash needs the key of an encrypted directory
        };
        Some(Self { kind, unsigned: unsigned || code > 2 })
    }

    fn byte(self, byte: u8) -> u32 {
        if self.unsigned { byte.into() } else { i32::from(byte.cast_signed()).cast_unsigned() }
    }
}

/// The hash of a name, its lowest bit 0.
pub(super) fn hash(version: Version, seed: [u32; 4], name: &[u8]) -> u32 {
    let mut state = match seed {
        [0, 0, 0, 0] => [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476],
        seed => seed,
    };
    let hash = match version.kind {
        Kind::Legacy => legacy(version, name),
        Kind::HalfMd4 => {
            let mut rest = name;
            while !rest.is_empty() {
                half_md4(&mut state, &words(version, rest));
                rest = rest.get(32..).unwrap_or_default();
            }
            state[1]
        }
        Kind::Tea => {
            let mut rest = name;
            while !rest.is_empty() {
                tea(&mut state, &words(version, rest));
                rest = rest.get(16..).unwrap_or_default();
            }
            state[0]
        }
    };
    match hash & !1 {
        END => END.wrapping_sub(2),
        hash => hash,
    }
}

/// The first `4 * N` bytes of a name as numbers, what is missing filled with the length of the rest of the name.
fn words<const N: usize>(version: Version, rest: &[u8]) -> [u32; N] {
    let len = (rest.len() & 0xFF) as u32;
    let pad = len.wrapping_mul(0x0101_0101);
    // The length counts without a bound, in the kernel too: names are at most 255 bytes.
    let mut words = [pad; N];
    for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
        *word = bytes.iter().fold(pad, |word, byte| version.byte(*byte).wrapping_add(word << 8));
    }
    words
}

fn legacy(version: Version, name: &[u8]) -> u32 {
    let (mut last, mut before) = (0x12A3_FE2D_u32, 0x37AB_E8F9_u32);
    for byte in name {
        let mut hash = before.wrapping_add(last ^ version.byte(*byte).wrapping_mul(7_152_373));
        if hash & 0x8000_0000 != 0 {
            hash = hash.wrapping_sub(0x7FFF_FFFF);
        }
        before = last;
        last = hash;
    }
    last << 1
}

/// TEA, sixteen rounds.
fn tea(state: &mut [u32; 4], key: &[u32; 4]) {
    let [a, b, c, d] = *key;
    let (mut left, mut right, mut sum) = (state[0], state[1], 0_u32);
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9E37_79B9);
        let mixed = |half: u32, low: u32, high: u32| {
            (half << 4).wrapping_add(low) ^ half.wrapping_add(sum) ^ (half >> 5).wrapping_add(high)
        };
        left = left.wrapping_add(mixed(right, a, b));
        right = right.wrapping_add(mixed(left, c, d));
    }
    state[0] = state[0].wrapping_add(left);
    state[1] = state[1].wrapping_add(right);
}

/// A round of MD4: what it mixes by, its constant, and the order and rotations of its words.
type Round = (fn(u32, u32, u32) -> u32, u32, [usize; 8], [u32; 4]);

const ROUNDS: [Round; 3] = [
    (|x, y, z| z ^ (x & (y ^ z)), 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
    (|x, y, z| (x & y).wrapping_add((x ^ y) & z), 0x5A82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
    (|x, y, z| x ^ y ^ z, 0x6ED9_EBA1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
];

/// MD4 with eight words and three half rounds.
fn half_md4(state: &mut [u32; 4], words: &[u32; 8]) {
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, rotations) in ROUNDS {
        for (index, rotation) in order.into_iter().zip(rotations.into_iter().cycle()) {
            let word = words.get(index).copied().unwrap_or(0).wrapping_add(constant);
            let sum = a.wrapping_add(mix(b, c, d)).wrapping_add(word).rotate_left(rotation);
            (a, b, c, d) = (d, sum, b, c);
        }
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_hash_a_tree_uses() {
        let half_md4 = |unsigned| Version { kind: Kind::HalfMd4, unsigned };
        assert_eq!(Version::from_disk(1, false), Some(half_md4(false)));
        assert_eq!(Version::from_disk(1, true), Some(half_md4(true)));
        assert_eq!(Version::from_disk(4, false), Some(half_md4(true)));
        assert_eq!(Version::from_disk(6, false), None);
    }

    #[test]
    fn signed_and_unsigned_differ_above_ascii_only() {
        let seed = [1, 2, 3, 4];
        for code in 0..3 {
            let (signed, unsigned) =
                (Version::from_disk(code, false).unwrap(), Version::from_disk(code, true).unwrap());
            assert_eq!(hash(signed, seed, b"plain"), hash(unsigned, seed, b"plain"));
            assert_ne!(hash(signed, seed, "grün".as_bytes()), hash(unsigned, seed, "grün".as_bytes()));
        }
    }
}
