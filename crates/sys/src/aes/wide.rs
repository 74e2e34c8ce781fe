//! Four blocks an instruction: VAES with AVX-512.
//!
//! The tweaks of a sector's first 32 blocks are its first one, shifted by 0 to 31 bits; those of the next 32 are these,
//! shifted by four bytes. What leaves at the top of an element comes back as a multiple of the field's polynomial.

use std::arch::x86_64::*;

use super::{BLOCK, ROUND_KEYS_MAX, Sectors, blocks};

/// Registers under way at one time.
const REGISTERS: usize = 8;
/// Blocks of a register.
const PER_REGISTER: usize = 4;
/// Blocks under way at one time: a sector of 512 bytes.
const LANES: usize = REGISTERS * PER_REGISTER;

/// Whether the processor has the instructions, and the system keeps their registers.
pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
        && blocks::is_there()
}

#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq,aes,avx,pclmulqdq")]
#[inline]
fn get(bytes: &[[u8; BLOCK]; PER_REGISTER]) -> __m512i {
    // SAFETY: 64 bytes are there to be read, and the load asks for no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq,aes,avx,pclmulqdq")]
#[inline]
fn put(bytes: &mut [[u8; BLOCK]; PER_REGISTER], value: __m512i) {
    // SAFETY: 64 bytes are there to be written, and the store asks for no alignment.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), value) }
}

/// The tweaks of the first blocks of a sector.
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq,aes,avx,pclmulqdq")]
#[inline]
fn first_tweaks(tweak: __m128i) -> [__m512i; REGISTERS] {
    let tweak = _mm512_broadcast_i32x4(tweak);
    let polynomial = _mm512_set1_epi64(0x87);
    let mut tweaks = [tweak; REGISTERS];
    let mut shift = _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0);
    for one in &mut tweaks {
        // Of a shift by 0 nothing leaves: one by 64 gives zero.
        let carries = _mm512_srlv_epi64(tweak, _mm512_sub_epi64(_mm512_set1_epi64(64), shift));
        let within = _mm512_xor_si512(_mm512_sllv_epi64(tweak, shift), _mm512_bslli_epi128::<8>(carries));
        *one = _mm512_xor_si512(within, _mm512_clmulepi64_epi128::<0x01>(carries, polynomial));
        shift = _mm512_add_epi64(shift, _mm512_set1_epi64(PER_REGISTER as i64));
    }
    tweaks
}

/// The tweaks 32 blocks further.
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq,aes,avx,pclmulqdq")]
#[inline]
fn times_x32(tweaks: __m512i) -> __m512i {
    let carries = _mm512_bsrli_epi128::<12>(tweaks);
    let carries = _mm512_clmulepi64_epi128::<0>(carries, _mm512_set1_epi64(0x87));
    _mm512_xor_si512(_mm512_bslli_epi128::<4>(tweaks), carries)
}

#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq,aes,avx,pclmulqdq")]
#[inline]
fn many<const ENCRYPT: bool>(keys: &[__m512i], bytes: &mut [[u8; BLOCK]; LANES], tweaks: &[__m512i; REGISTERS]) {
    let [first, middle @ .., last] = keys else { return };
    let bytes = bytes.as_chunks_mut::<PER_REGISTER>().0;
    let mut state = *tweaks;
    for (state, bytes) in state.iter_mut().zip(&*bytes) {
        // Both at one time, and the first round key.
        *state = _mm512_xor_si512(*state, _mm512_xor_si512(get(bytes), *first));
    }
    for key in middle {
        for state in &mut state {
            *state = if ENCRYPT { _mm512_aesenc_epi128(*state, *key) } else { _mm512_aesdec_epi128(*state, *key) };
        }
    }
    for ((state, bytes), tweak) in state.iter().zip(bytes).zip(tweaks) {
        let done =
            if ENCRYPT { _mm512_aesenclast_epi128(*state, *last) } else { _mm512_aesdeclast_epi128(*state, *last) };
        put(bytes, _mm512_xor_si512(done, *tweak));
    }
}

/// All whole sectors of `buf`.
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq,aes,avx,pclmulqdq")]
pub(super) fn sectors<const ENCRYPT: bool>(
    keys: &[[u8; BLOCK]],
    of_tweak: &[[u8; BLOCK]],
    buf: &mut [u8],
    sectors: Sectors,
) {
    let (all, all_of_tweak) = (blocks::load(keys), blocks::load(of_tweak));
    let (narrow, of_tweak) = (&all[..keys.len()], &all_of_tweak[..of_tweak.len()]);
    let mut all = [_mm512_setzero_si512(); ROUND_KEYS_MAX];
    for (wide, narrow) in all.iter_mut().zip(narrow) {
        *wide = _mm512_broadcast_i32x4(*narrow);
    }
    let wide = &all[..keys.len()];
    blocks::with_tweaks(of_tweak, buf, sectors, |sector, tweak| {
        let mut tweaks = first_tweaks(tweak);
        let (whole, rest) = sector.as_chunks_mut::<LANES>();
        for bytes in whole {
            many::<ENCRYPT>(wide, bytes, &tweaks);
            for tweak in &mut tweaks {
                *tweak = times_x32(*tweak);
            }
        }
        blocks::one_by_one::<ENCRYPT>(narrow, rest, _mm512_castsi512_si128(tweaks[0]));
    });
}
