//! The hashes that a header may name.

use block::{Error, Kind, Result};
use cipher::array::Array;
use hmac::EagerHash;
use sha2::digest::Digest;
use zeroize::Zeroize as _;

/// A hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hash {
    /// SHA-1, cryptsetup's default for LUKS1 before 2.0.
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256, today's default.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
    /// RIPEMD-160.
    Ripemd160,
    /// Whirlpool.
    Whirlpool,
}

/// Calls a generic function with the type of a hash.
macro_rules! with_hash {
    ($hash:expr, $function:ident ( $($argument:expr),* )) => {
        match $hash {
            Hash::Sha1 => $function::<sha1::Sha1>($($argument),*),
            Hash::Sha224 => $function::<sha2::Sha224>($($argument),*),
            Hash::Sha256 => $function::<sha2::Sha256>($($argument),*),
            Hash::Sha384 => $function::<sha2::Sha384>($($argument),*),
            Hash::Sha512 => $function::<sha2::Sha512>($($argument),*),
            Hash::Ripemd160 => $function::<ripemd::Ripemd160>($($argument),*),
            Hash::Whirlpool => $function::<whirlpool::Whirlpool>($($argument),*),
        }
    };
}

impl Hash {
    /// All, with their names.
    const NAMES: [(Self, &str); 7] = [
        (Self::Sha1, "sha1"),
        (Self::Sha224, "sha224"),
        (Self::Sha256, "sha256"),
        (Self::Sha384, "sha384"),
        (Self::Sha512, "sha512"),
        (Self::Ripemd160, "ripemd160"),
        (Self::Whirlpool, "whirlpool"),
    ];

    /// By the name that a header gives it, whatever its case.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for another one.
    pub fn named(name: &str) -> Result<Self> {
        let found = Self::NAMES.iter().find(|(_, known)| known.eq_ignore_ascii_case(name));
        found.map(|(hash, _)| *hash).ok_or_else(|| {
            let name: String = name.chars().take(32).flat_map(char::escape_debug).collect();
            Error::new(Kind::Unsupported, format!("hash \"{name}\" of a LUKS header"))
        })
    }

    /// Its name in a header.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(hash, _)| *hash == self).map_or("", |(_, name)| name)
    }

    /// Bytes of a digest.
    pub fn digest_bytes(self) -> usize {
        fn len<D: Digest>() -> usize {
            <D as Digest>::output_size()
        }
        with_hash!(self, len())
    }

    /// The digest of several pieces, one after the other.
    pub fn digest(self, pieces: &[&[u8]]) -> Vec<u8> {
        fn digest<D: Digest>(pieces: &[&[u8]]) -> Vec<u8> {
            let mut hasher = D::new();
            pieces.iter().for_each(|piece| Digest::update(&mut hasher, piece));
            let mut output = hasher.finalize();
            let digest = output.to_vec();
            wipe(&mut output);
            digest
        }
        with_hash!(self, digest(pieces))
    }

    /// PBKDF2 with HMAC of this hash (RFC 8018, section 5.2) into `out`.
    pub fn pbkdf2(self, password: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
        fn derive<D: EagerHash>(password: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
            pbkdf2::pbkdf2_hmac::<D>(password, salt, iterations, out);
        }
        with_hash!(self, derive(password, salt, iterations, out));
    }
}

fn wipe<N: cipher::array::ArraySize>(bytes: &mut Array<u8, N>) {
    bytes.as_mut_slice().zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lengths_and_known_digests() {
        for (name, len, first) in [
            ("sha1", 20, [0xa9, 0x99]),
            ("sha224", 28, [0x23, 0x09]),
            ("SHA256", 32, [0xba, 0x78]),
            ("sha384", 48, [0xcb, 0x00]),
            ("sha512", 64, [0xdd, 0xaf]),
            ("ripemd160", 20, [0x8e, 0xb2]),
            ("whirlpool", 64, [0x4e, 0x24]),
        ] {
            let hash = Hash::named(name).unwrap();
            let digest = hash.digest(&[b"a", b"", b"bc"]);
            assert_eq!((hash.digest_bytes(), digest.len(), &digest[..2]), (len, len, &first[..]), "{name}");
            assert_eq!(hash.name(), name.to_lowercase());
        }
        assert_eq!(Hash::named("md5").unwrap_err().kind(), Kind::Unsupported);
        // RFC 6070, the second case.
        let mut key = [0; 20];
        Hash::Sha1.pbkdf2(b"password", b"salt", 2, &mut key);
        assert_eq!(&key[..4], [0xea, 0x6c, 0x01, 0x4d]);
    }
}
