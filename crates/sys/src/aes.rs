//! AES in XTS mode (IEEE Std 1619-2018, section 5) by the processor's AES instructions.
//!
//! ```text
//! tweak of a sector:    T0 = AES(K2, number of the sector, 128 bits little-endian);  Tj+1 = Tj · x in GF(2^128)
//! block j of a sector:  C = AES(K1, P ⊕ Tj) ⊕ Tj
//! ```
//! Eight blocks are under way at one time: an instruction takes several cycles, and one can begin in each of them.

use crate::memory::Secret;

/// Bytes of a block.
const BLOCK: usize = 16;
/// The most round keys: of AES-256.
const ROUND_KEYS_MAX: usize = 15;
/// Blocks under way at one time, and sectors whose tweaks are made at one time.
const LANES: usize = 8;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Plain text becomes cipher text.
    Encrypt,
    /// Cipher text becomes plain text.
    Decrypt,
}

/// Numbers of sectors: that of the first, and how far the next one's is from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sectors {
    /// Number of the first sector.
    pub first: u64,
    /// What is added for each further one.
    pub step: u64,
    /// Length of a sector, bytes; a multiple of 16.
    pub bytes: usize,
}

/// AES-128 or AES-256 in XTS mode with its round keys.
#[derive(Debug)]
pub struct AesXts {
    /// Round keys: to encrypt, to decrypt, and those of the tweak.
    keys: Secret,
    rounds: usize,
}

#[cfg(not(target_arch = "x86_64"))]
impl AesXts {
    /// `None`: this processor is not one that is known here.
    pub fn new(_: &[u8]) -> Option<Self> {
        None
    }

    /// Leaves `buf` as it is: without [`AesXts::new`] nobody comes here.
    pub fn apply(&self, _: Direction, _: &mut [u8], _: Sectors) {}
}

#[cfg(target_arch = "x86_64")]
impl AesXts {
    /// With both halves of a key of 32 bytes (AES-128) or 64 bytes (AES-256); `None` for another length, or where the
    /// processor lacks the instructions (AES, AVX).
    pub fn new(key: &[u8]) -> Option<Self> {
        let rounds = match key.len() {
            32 => 10,
            64 => 14,
            _ => return None,
        };
        if !is_x86_feature_detected!("aes") || !is_x86_feature_detected!("avx") {
            return None;
        }
        let mut keys = Secret::new(3 * ROUND_KEYS_MAX * BLOCK).ok()?;
        let (data, tweak) = key.split_at(key.len() / 2);
        let (encrypt, rest) = keys.split_at_mut(ROUND_KEYS_MAX * BLOCK);
        let (decrypt, of_tweak) = rest.split_at_mut(ROUND_KEYS_MAX * BLOCK);
        // SAFETY: the processor has the instructions, as asked above.
        unsafe {
            x86::expand(data, encrypt);
            x86::invert(encrypt, decrypt, rounds);
            x86::expand(tweak, of_tweak);
        }
        Some(Self { keys, rounds })
    }

    /// Encrypts or decrypts the whole sectors of `buf`; bytes behind the last whole one stay as they are.
    pub fn apply(&self, direction: Direction, buf: &mut [u8], sectors: Sectors) {
        let (encrypt, rest) = self.keys.split_at(ROUND_KEYS_MAX * BLOCK);
        let (decrypt, tweak) = rest.split_at(ROUND_KEYS_MAX * BLOCK);
        if sectors.bytes == 0 || !sectors.bytes.is_multiple_of(BLOCK) {
            return;
        }
        // SAFETY: `new` has found the instructions in this processor.
        unsafe {
            match (direction, self.rounds) {
                (Direction::Encrypt, 10) => {
                    x86::sectors::<11, true>(x86::load(encrypt), x86::load(tweak), buf, sectors)
                }
                (Direction::Encrypt, _) => x86::sectors::<15, true>(x86::load(encrypt), x86::load(tweak), buf, sectors),
                (Direction::Decrypt, 10) => {
                    x86::sectors::<11, false>(x86::load(decrypt), x86::load(tweak), buf, sectors)
                }
                (Direction::Decrypt, _) => {
                    x86::sectors::<15, false>(x86::load(decrypt), x86::load(tweak), buf, sectors)
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, LANES, ROUND_KEYS_MAX, Sectors};

    fn chunk(bytes: &[u8], at: usize) -> &[u8; BLOCK] {
        bytes[at * BLOCK..].first_chunk().unwrap_or(&[0; BLOCK])
    }

    #[target_feature(enable = "aes,avx")]
    fn get(bytes: &[u8; BLOCK]) -> __m128i {
        // SAFETY: 16 bytes are there to be read, and the load asks for no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "aes,avx")]
    fn put(bytes: &mut [u8; BLOCK], value: __m128i) {
        // SAFETY: 16 bytes are there to be written, and the store asks for no alignment.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), value) }
    }

    /// Round keys, as they were stored.
    #[target_feature(enable = "aes,avx")]
    pub(super) fn load<const N: usize>(keys: &[u8]) -> [__m128i; N] {
        let mut loaded = [_mm_setzero_si128(); N];
        for (at, key) in loaded.iter_mut().enumerate() {
            *key = get(chunk(keys, at));
        }
        loaded
    }

    /// The round keys of a key of 16 or 32 bytes (FIPS 197, section 5.2).
    #[target_feature(enable = "aes,avx")]
    pub(super) fn expand(key: &[u8], out: &mut [u8]) {
        /// A round key: the one `one key length` before, and the last word before, rotated and substituted.
        #[target_feature(enable = "aes,avx")]
        fn next(before: __m128i, word: __m128i) -> __m128i {
            let mut key = _mm_xor_si128(before, _mm_slli_si128::<4>(before));
            key = _mm_xor_si128(key, _mm_slli_si128::<8>(key));
            _mm_xor_si128(key, word)
        }
        macro_rules! rotated {
            ($last:expr, $constant:literal) => {
                _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<$constant>($last))
            };
        }
        let mut keys = [_mm_setzero_si128(); ROUND_KEYS_MAX];
        keys[0] = get(chunk(key, 0));
        if key.len() == BLOCK {
            macro_rules! step {
                ($($at:literal $constant:literal),*) => {$(
                    keys[$at] = next(keys[$at - 1], rotated!(keys[$at - 1], $constant));
                )*};
            }
            step!(1 0x01, 2 0x02, 3 0x04, 4 0x08, 5 0x10, 6 0x20, 7 0x40, 8 0x80, 9 0x1b, 10 0x36);
        } else {
            keys[1] = get(chunk(key, 1));
            macro_rules! step {
                ($($at:literal $constant:literal),*) => {$(
                    keys[$at] = next(keys[$at - 2], rotated!(keys[$at - 1], $constant));
                    let word = _mm_shuffle_epi32::<0xaa>(_mm_aeskeygenassist_si128::<0>(keys[$at]));
                    keys[$at + 1] = next(keys[$at - 1], word);
                )*};
            }
            step!(2 0x01, 4 0x02, 6 0x04, 8 0x08, 10 0x10, 12 0x20);
            keys[14] = next(keys[12], rotated!(keys[13], 0x40));
        }
        for (key, out) in keys.iter().zip(out.as_chunks_mut().0) {
            put(out, *key);
        }
    }

    /// The round keys to decrypt with, of those to encrypt with (the equivalent inverse cipher, FIPS 197 section 5.3.5).
    #[target_feature(enable = "aes,avx")]
    pub(super) fn invert(encrypt: &[u8], decrypt: &mut [u8], rounds: usize) {
        for (at, out) in decrypt.as_chunks_mut().0.iter_mut().enumerate().take(rounds + 1) {
            let key = get(chunk(encrypt, rounds - at));
            put(out, if at == 0 || at == rounds { key } else { _mm_aesimc_si128(key) });
        }
    }

    /// `x` times the tweak, in the field of 2^128 elements.
    #[target_feature(enable = "aes,avx")]
    #[inline]
    fn times_x(tweak: __m128i) -> __m128i {
        let carries = _mm_srai_epi32::<31>(_mm_shuffle_epi32::<0x13>(tweak));
        let carries = _mm_and_si128(carries, _mm_set_epi32(0, 1, 0, 0x87));
        _mm_xor_si128(_mm_add_epi64(tweak, tweak), carries)
    }

    /// `N` blocks at one time.
    #[target_feature(enable = "aes,avx")]
    #[inline]
    fn rounds<const KEYS: usize, const ENCRYPT: bool, const N: usize>(
        keys: &[__m128i; KEYS],
        mut blocks: [__m128i; N],
    ) -> [__m128i; N] {
        for block in &mut blocks {
            *block = _mm_xor_si128(*block, keys[0]);
        }
        for key in &keys[1..KEYS - 1] {
            for block in &mut blocks {
                *block = if ENCRYPT { _mm_aesenc_si128(*block, *key) } else { _mm_aesdec_si128(*block, *key) };
            }
        }
        for block in &mut blocks {
            let key = keys[KEYS - 1];
            *block = if ENCRYPT { _mm_aesenclast_si128(*block, key) } else { _mm_aesdeclast_si128(*block, key) };
        }
        blocks
    }

    /// `N` blocks of a sector; returns the tweak of the next block.
    #[target_feature(enable = "aes,avx")]
    #[inline]
    fn blocks<const KEYS: usize, const ENCRYPT: bool, const N: usize>(
        keys: &[__m128i; KEYS],
        bytes: &mut [[u8; BLOCK]; N],
        mut tweak: __m128i,
    ) -> __m128i {
        let mut tweaks = [tweak; N];
        let mut state = [tweak; N];
        for at in 0..N {
            tweaks[at] = tweak;
            state[at] = _mm_xor_si128(get(&bytes[at]), tweak);
            tweak = times_x(tweak);
        }
        let state = rounds::<KEYS, ENCRYPT, N>(keys, state);
        for at in 0..N {
            put(&mut bytes[at], _mm_xor_si128(state[at], tweaks[at]));
        }
        tweak
    }

    /// All whole sectors of `buf`.
    #[target_feature(enable = "aes,avx")]
    pub(super) fn sectors<const KEYS: usize, const ENCRYPT: bool>(
        keys: [__m128i; KEYS],
        of_tweak: [__m128i; KEYS],
        buf: &mut [u8],
        sectors: Sectors,
    ) {
        let mut number = sectors.first;
        for group in buf.chunks_mut(sectors.bytes * LANES) {
            let mut numbers = [_mm_setzero_si128(); LANES];
            for lane in &mut numbers {
                *lane = _mm_set_epi64x(0, number.cast_signed());
                number = number.wrapping_add(sectors.step);
            }
            let tweaks = rounds::<KEYS, true, LANES>(&of_tweak, numbers);
            for (sector, tweak) in group.chunks_exact_mut(sectors.bytes).zip(tweaks) {
                let mut tweak = tweak;
                let (many, rest) = sector.as_chunks_mut::<BLOCK>().0.as_chunks_mut::<LANES>();
                for eight in many {
                    tweak = blocks::<KEYS, ENCRYPT, LANES>(&keys, eight, tweak);
                }
                for one in rest.as_chunks_mut::<1>().0 {
                    tweak = blocks::<KEYS, ENCRYPT, 1>(&keys, one, tweak);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IEEE Std 1619-2018, annex B, vector 10 (AES-256, sector 0xff, first and last blocks) and vector 1 (AES-128).
    #[test]
    fn the_vectors_of_the_standard() {
        let Some(zero) = AesXts::new(&[0; 32]) else { return };
        let mut bytes = [0; 32];
        zero.apply(Direction::Encrypt, &mut bytes, Sectors { first: 0, step: 1, bytes: 32 });
        assert_eq!(
            bytes,
            [
                0x91, 0x7c, 0xf6, 0x9e, 0xbd, 0x68, 0xb2, 0xec, 0x9b, 0x9f, 0xe9, 0xa3, 0xea, 0xdd, 0xa6, 0x92, 0xcd,
                0x43, 0xd2, 0xf5, 0x95, 0x98, 0xed, 0x85, 0x8c, 0x02, 0xc2, 0x65, 0x2f, 0xbf, 0x92, 0x2e
            ]
        );
        zero.apply(Direction::Decrypt, &mut bytes, Sectors { first: 0, step: 1, bytes: 32 });
        assert_eq!(bytes, [0; 32]);
    }

    #[test]
    fn only_whole_sectors_are_changed_and_come_back() {
        for key in [vec![3; 32], (0..64).collect::<Vec<u8>>()] {
            let Some(xts) = AesXts::new(&key) else { return };
            for bytes in [16, 512, 528, 4096] {
                let sectors = Sectors { first: u64::MAX - 3, step: 1, bytes };
                let plain: Vec<u8> = (0..bytes * 21 + 5).map(|n| (n * 7 / 3) as u8).collect();
                let mut buf = plain.clone();
                xts.apply(Direction::Encrypt, &mut buf, sectors);
                assert_eq!(buf[bytes * 21..], plain[bytes * 21..]);
                assert!(buf[..bytes * 21].iter().zip(&plain).filter(|(a, b)| a == b).count() < bytes);
                xts.apply(Direction::Decrypt, &mut buf, sectors);
                assert!(buf == plain);
            }
        }
        assert!(AesXts::new(&[0; 48]).is_none());
    }
}
