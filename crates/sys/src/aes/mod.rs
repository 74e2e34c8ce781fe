//! AES in XTS mode (IEEE Std 1619-2018, section 5) by the processor's AES instructions.
//!
//! ```text
//! tweak of a sector:    T0 = AES(K2, number of the sector, 128 bits little-endian);  Tj+1 = Tj · x in GF(2^128)
//! block j of a sector:  C = AES(K1, P ⊕ Tj) ⊕ Tj
//! ```
//! ```text
//! blocks   one block an instruction (AES, AVX), eight under way; the round keys, and what is left over
//! wide     four blocks an instruction (VAES, AVX-512), 32 under way
//! ```
//! Many blocks are under way at one time: an instruction takes several cycles, and one or two can begin in each of them.

#[cfg(target_arch = "x86_64")]
mod blocks;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod wide;

use crate::memory::Secret;

/// Bytes of a block.
const BLOCK: usize = 16;
/// The most round keys: of AES-256.
const ROUND_KEYS_MAX: usize = 15;

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
    /// The processor has instructions for four blocks.
    #[cfg(target_arch = "x86_64")]
    wide: bool,
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
    /// processor lacks the instructions (AES, PCLMULQDQ, AVX).
    pub fn new(key: &[u8]) -> Option<Self> {
        let rounds = match key.len() {
            32 => 10,
            64 => 14,
            _ => return None,
        };
        if !blocks::is_there() {
            return None;
        }
        let mut keys = Secret::new(3 * ROUND_KEYS_MAX * BLOCK).ok()?;
        let (data, tweak) = key.split_at(key.len() / 2);
        let (encrypt, rest) = keys.split_at_mut(ROUND_KEYS_MAX * BLOCK);
        let (decrypt, of_tweak) = rest.split_at_mut(ROUND_KEYS_MAX * BLOCK);
        // SAFETY: the processor has the instructions, as asked above.
        unsafe {
            blocks::expand(data, encrypt);
            blocks::invert(encrypt, decrypt, rounds);
            blocks::expand(tweak, of_tweak);
        }
        Some(Self { keys, rounds, wide: wide::is_there() })
    }

    /// Encrypts or decrypts the whole sectors of `buf`; bytes behind the last whole one stay as they are.
    pub fn apply(&self, direction: Direction, buf: &mut [u8], sectors: Sectors) {
        let (encrypt, rest) = self.keys.split_at(ROUND_KEYS_MAX * BLOCK);
        let (decrypt, tweak) = rest.split_at(ROUND_KEYS_MAX * BLOCK);
        if sectors.bytes == 0 || !sectors.bytes.is_multiple_of(BLOCK) {
            return;
        }
        let keys = if direction == Direction::Encrypt { encrypt } else { decrypt };
        let (keys, tweak) = (keys.as_chunks().0, tweak.as_chunks().0);
        let (Some(keys), Some(tweak)) = (keys.get(..=self.rounds), tweak.get(..=self.rounds)) else { return };
        // SAFETY: `new` has found the instructions in this processor.
        unsafe {
            match (direction, self.wide) {
                (Direction::Encrypt, true) => wide::sectors::<true>(keys, tweak, buf, sectors),
                (Direction::Decrypt, true) => wide::sectors::<false>(keys, tweak, buf, sectors),
                (Direction::Encrypt, false) => blocks::sectors::<true>(keys, tweak, buf, sectors),
                (Direction::Decrypt, false) => blocks::sectors::<false>(keys, tweak, buf, sectors),
            }
        }
    }
}
