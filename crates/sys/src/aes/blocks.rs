//! A block an instruction: AES-NI.

use std::arch::x86_64::*;

use super::{BLOCK, ROUND_KEYS_MAX, Sectors};

/// Blocks under way at one time, and sectors whose tweaks are made at one time.
const LANES: usize = 8;

/// Whether the processor has the instructions.
pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("aes") && is_x86_feature_detected!("avx") && is_x86_feature_detected!("pclmulqdq")
}

fn chunk(bytes: &[u8], at: usize) -> &[u8; BLOCK] {
    bytes[at * BLOCK..].first_chunk().unwrap_or(&[0; BLOCK])
}

#[target_feature(enable = "aes,avx,pclmulqdq")]
fn get(bytes: &[u8; BLOCK]) -> __m128i {
    // SAFETY: 16 bytes are there to be read, and the load asks for no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "aes,avx,pclmulqdq")]
fn put(bytes: &mut [u8; BLOCK], value: __m128i) {
    // SAFETY: 16 bytes are there to be written, and the store asks for no alignment.
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), value) }
}

/// Round keys, as they were stored.
#[target_feature(enable = "aes,avx,pclmulqdq")]
pub(super) fn load(keys: &[[u8; BLOCK]]) -> [__m128i; ROUND_KEYS_MAX] {
    let mut loaded = [_mm_setzero_si128(); ROUND_KEYS_MAX];
    for (loaded, key) in loaded.iter_mut().zip(keys) {
        *loaded = get(key);
    }
    loaded
}

/// The round keys of a key of 16 or 32 bytes (FIPS 197, section 5.2).
#[target_feature(enable = "aes,avx,pclmulqdq")]
pub(super) fn expand(key: &[u8], out: &mut [u8]) {
    /// A round key: the one `one key length` before, and the last word before, rotated and substituted.
    #[target_feature(enable = "aes,avx,pclmulqdq")]
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
#[target_feature(enable = "aes,avx,pclmulqdq")]
pub(super) fn invert(encrypt: &[u8], decrypt: &mut [u8], rounds: usize) {
    for (at, out) in decrypt.as_chunks_mut().0.iter_mut().enumerate().take(rounds + 1) {
        let key = get(chunk(encrypt, rounds - at));
        put(out, if at == 0 || at == rounds { key } else { _mm_aesimc_si128(key) });
    }
}

/// `x` times the tweak, in the field of 2^128 elements.
#[target_feature(enable = "aes,avx,pclmulqdq")]
#[inline]
fn times_x(tweak: __m128i) -> __m128i {
    let carries = _mm_srai_epi32::<31>(_mm_shuffle_epi32::<0x13>(tweak));
    let carries = _mm_and_si128(carries, _mm_set_epi32(0, 1, 0, 0x87));
    _mm_xor_si128(_mm_add_epi64(tweak, tweak), carries)
}

/// The tweak eight blocks further: times x^8, by a shift of a byte; what leaves at the top comes back as the polynomial's
/// multiple.
#[target_feature(enable = "aes,avx,pclmulqdq")]
#[inline]
fn times_x8(tweak: __m128i) -> __m128i {
    let polynomial = _mm_set_epi64x(0, 0x87);
    let carries = _mm_clmulepi64_si128::<0>(_mm_bsrli_si128::<15>(tweak), polynomial);
    _mm_xor_si128(_mm_bslli_si128::<1>(tweak), carries)
}

/// `N` blocks at one time. The keys are a slice whose length the compiler does not know: so they stay in a loop, and the
/// blocks side by side in it. Unrolled, it orders them one after the other, each of which waits for itself.
#[target_feature(enable = "aes,avx,pclmulqdq")]
#[inline]
fn rounds<const ENCRYPT: bool, const N: usize>(keys: &[__m128i], mut blocks: [__m128i; N]) -> [__m128i; N] {
    let [first, middle @ .., last] = keys else { return blocks };
    for block in &mut blocks {
        *block = _mm_xor_si128(*block, *first);
    }
    for key in middle {
        for block in &mut blocks {
            *block = if ENCRYPT { _mm_aesenc_si128(*block, *key) } else { _mm_aesdec_si128(*block, *key) };
        }
    }
    for block in &mut blocks {
        *block = if ENCRYPT { _mm_aesenclast_si128(*block, *last) } else { _mm_aesdeclast_si128(*block, *last) };
    }
    blocks
}

/// `N` blocks with their tweaks.
#[target_feature(enable = "aes,avx,pclmulqdq")]
#[inline]
fn blocks<const ENCRYPT: bool, const N: usize>(keys: &[__m128i], bytes: &mut [[u8; BLOCK]; N], tweaks: &[__m128i; N]) {
    let mut state = *tweaks;
    for at in 0..N {
        state[at] = _mm_xor_si128(get(&bytes[at]), tweaks[at]);
    }
    let state = rounds::<ENCRYPT, N>(keys, state);
    for at in 0..N {
        put(&mut bytes[at], _mm_xor_si128(state[at], tweaks[at]));
    }
}

/// One block after the other: what is left over. The tweak is that of the first one.
#[target_feature(enable = "aes,avx,pclmulqdq")]
pub(super) fn one_by_one<const ENCRYPT: bool>(keys: &[__m128i], bytes: &mut [[u8; BLOCK]], mut tweak: __m128i) {
    for one in bytes.as_chunks_mut::<1>().0 {
        blocks::<ENCRYPT, 1>(keys, one, &[tweak]);
        tweak = times_x(tweak);
    }
}

/// Does `each` with every sector of `buf` and the tweak of its first block; the tweaks of eight are made together.
#[target_feature(enable = "aes,avx,pclmulqdq")]
#[inline]
pub(super) fn with_tweaks(
    of_tweak: &[__m128i],
    buf: &mut [u8],
    sectors: Sectors,
    mut each: impl FnMut(&mut [[u8; BLOCK]], __m128i),
) {
    let mut number = sectors.first;
    for group in buf.chunks_mut(sectors.bytes * LANES) {
        let mut numbers = [_mm_setzero_si128(); LANES];
        for lane in &mut numbers {
            *lane = _mm_set_epi64x(0, number.cast_signed());
            number = number.wrapping_add(sectors.step);
        }
        let tweaks = rounds::<true, LANES>(of_tweak, numbers);
        for (sector, tweak) in group.chunks_exact_mut(sectors.bytes).zip(tweaks) {
            each(sector.as_chunks_mut().0, tweak);
        }
    }
}

/// All whole sectors of `buf`.
#[target_feature(enable = "aes,avx,pclmulqdq")]
pub(super) fn sectors<const ENCRYPT: bool>(
    keys: &[[u8; BLOCK]],
    of_tweak: &[[u8; BLOCK]],
    buf: &mut [u8],
    sectors: Sectors,
) {
    let (all, all_of_tweak) = (load(keys), load(of_tweak));
    let (keys, of_tweak) = (&all[..keys.len()], &all_of_tweak[..of_tweak.len()]);
    with_tweaks(of_tweak, buf, sectors, |sector, tweak| {
        let mut tweaks = [tweak; LANES];
        for at in 1..LANES {
            tweaks[at] = times_x(tweaks[at - 1]);
        }
        let (many, rest) = sector.as_chunks_mut::<LANES>();
        for eight in many {
            blocks::<ENCRYPT, LANES>(keys, eight, &tweaks);
            for tweak in &mut tweaks {
                *tweak = times_x8(*tweak);
            }
        }
        one_by_one::<ENCRYPT>(keys, rest, tweaks[0]);
    });
}
