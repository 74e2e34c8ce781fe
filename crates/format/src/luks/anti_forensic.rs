//! The anti-forensic splitter (LUKS1 specification 1.2.3, section 2.4): a key spread over so much room that to lose a
//! part of it is to lose it all.
//!
//! ```text
//! stripe    1       2            n-1      n
//!         random  random   …   random   key ⊕ D       D = diffuse(… diffuse(s1) ⊕ s2 …)
//! ```

use sys::memory::Secret;
use zeroize::Zeroizing;

use super::hash::Hash;

/// The key of `len` bytes that `stripes` hold; `None` where these are not a whole number of them.
pub fn merge(stripes: &[u8], len: usize, hash: Hash) -> Option<Secret> {
    let mut key = Secret::new(len).ok()?;
    if !stripes.len().is_multiple_of(len.max(1)) {
        return None;
    }
    let mut parts = stripes.chunks_exact(len.max(1)).peekable();
    while let Some(part) = parts.next() {
        xor(&mut key, part);
        if parts.peek().is_some() {
            diffuse(&mut key, hash);
        }
    }
    Some(key)
}

/// Spreads `key` over `stripes`, which is filled with random bytes and a multiple of the key's length.
pub fn split(key: &[u8], stripes: &mut [u8], hash: Hash) {
    let mut sum = Zeroizing::new(vec![0; key.len()]);
    let mut parts = stripes.chunks_exact_mut(key.len().max(1)).peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_some() {
            xor(&mut sum, part);
            diffuse(&mut sum, hash);
        } else {
            part.copy_from_slice(key);
            xor(part, &sum);
        }
    }
}

fn xor(bytes: &mut [u8], others: &[u8]) {
    bytes.iter_mut().zip(others).for_each(|(byte, other)| *byte ^= other);
}

/// Replaces each piece as long as a digest by the digest of its number (32 bits, big-endian) and itself.
fn diffuse(bytes: &mut [u8], hash: Hash) {
    for (number, piece) in (0_u32..).zip(bytes.chunks_mut(hash.digest_bytes())) {
        let digest = Zeroizing::new(hash.digest(&[&number.to_be_bytes(), piece]));
        piece.iter_mut().zip(digest.iter()).for_each(|(byte, new)| *byte = *new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_split_is_merged_again_and_not_without_each_part() {
        for (len, stripes) in [(32, 4000), (64, 3), (17, 1), (33, 2)] {
            let key: Vec<u8> = (0..len as u8).collect();
            let mut split_key: Vec<u8> = (0..len * stripes).map(|n| (n * n / 7) as u8).collect();
            split(&key, &mut split_key, Hash::Sha256);
            assert_eq!(&merge(&split_key, len, Hash::Sha256).unwrap()[..], key);
            split_key[0] ^= 1;
            assert_ne!(&merge(&split_key, len, Hash::Sha256).unwrap()[..], key);
            assert!(merge(&split_key[1..], len, Hash::Sha256).is_none() || len == 1);
        }
    }
}
