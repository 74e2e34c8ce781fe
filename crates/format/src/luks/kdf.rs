//! A passphrase becomes a key: PBKDF2 and Argon2, with a limit to what a header may ask for.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use block::{Error, Kind, Result};
use sys::memory::Secret;

use super::hash::Hash;

/// The most that deriving a key may cost, whatever a header claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Memory of Argon2, KiB.
    pub memory_kib: u32,
    /// Memory of Argon2 times its passes, KiB.
    pub passes_kib: u64,
    /// Iterations of PBKDF2.
    pub iterations: u32,
}

impl Cost {
    /// What `cryptsetup` can be told to write (4 GiB), and minutes of work at the most.
    pub const MAX: Self = Self { memory_kib: 4 << 20, passes_kib: 256 << 20, iterations: 1 << 29 };
}

/// How a key is derived from a passphrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kdf {
    /// RFC 8018.
    Pbkdf2 {
        /// Of its HMAC.
        hash: Hash,
        /// At least 1.
        iterations: u32,
        /// Any length.
        salt: Vec<u8>,
    },
    /// RFC 9106, version 0x13.
    Argon2 {
        /// Argon2id rather than Argon2i.
        id: bool,
        /// Passes, at least 1.
        time: u32,
        /// KiB.
        memory_kib: u32,
        /// Lanes, at least 1.
        lanes: u32,
        /// At least 8 bytes.
        salt: Vec<u8>,
    },
}

impl Kdf {
    /// Its name in a header.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pbkdf2 { .. } => "pbkdf2",
            Self::Argon2 { id: true, .. } => "argon2id",
            Self::Argon2 { id: false, .. } => "argon2i",
        }
    }

    /// The same with another salt.
    pub fn with_salt(mut self, new: Vec<u8>) -> Self {
        match &mut self {
            Self::Pbkdf2 { salt, .. } | Self::Argon2 { salt, .. } => *salt = new,
        }
        self
    }

    /// A key of `len` bytes.
    ///
    /// # Errors
    /// [`Kind::Limit`] where it costs more than `cost`; [`Kind::NoSpace`] where there is no memory for it;
    /// [`Kind::Corrupt`] for parameters that have no meaning.
    pub fn derive(&self, passphrase: &[u8], len: usize, cost: &Cost) -> Result<Secret> {
        let mut key = Secret::new(len).map_err(|error| Error::io("memory for a key", error))?;
        match self {
            Self::Pbkdf2 { iterations, .. } if *iterations > cost.iterations => {
                let context = format!("PBKDF2 of {iterations} iterations, {} at the most", cost.iterations);
                return Err(Error::new(Kind::Limit, context));
            }
            Self::Pbkdf2 { hash, iterations, salt } => hash.pbkdf2(passphrase, salt, *iterations, &mut key),
            Self::Argon2 { id, time, memory_kib, lanes, salt } => {
                let passes_kib = u64::from(*memory_kib).saturating_mul(u64::from(*time));
                if *memory_kib > cost.memory_kib || passes_kib > cost.passes_kib {
                    let context = format!(
                        "Argon2 of {memory_kib} KiB and {time} passes, {} KiB and {} KiB in all passes at the most",
                        cost.memory_kib, cost.passes_kib
                    );
                    return Err(Error::new(Kind::Limit, context));
                }
                let meaningless = |error: argon2::Error| Error::new(Kind::Corrupt, format!("Argon2: {error}"));
                let params = Params::new(*memory_kib, *time, *lanes, Some(len)).map_err(meaningless)?;
                let mut memory = Vec::new();
                if memory.try_reserve_exact(params.block_count()).is_err() {
                    let context = format!("{memory_kib} KiB of memory that the key slot's Argon2 needs");
                    return Err(Error::new(Kind::NoSpace, context));
                }
                memory.resize(params.block_count(), Block::default());
                let algorithm = if *id { Algorithm::Argon2id } else { Algorithm::Argon2i };
                let argon2 = Argon2::new(algorithm, Version::V0x13, params);
                argon2.hash_password_into_with_memory(passphrase, salt, &mut key, &mut memory).map_err(meaningless)?;
            }
        }
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_too_much_is_refused_before_it_costs_anything() {
        let cost = Cost { memory_kib: 64, passes_kib: 256, iterations: 1000 };
        let argon2 = |memory_kib, time, lanes, salt: &[u8]| Kdf::Argon2 {
            id: true,
            time,
            memory_kib,
            lanes,
            salt: salt.to_vec(),
        };
        let kind = |kdf: &Kdf| kdf.derive(b"x", 32, &cost).map(|key| key.len()).map_err(|error| error.kind());
        assert_eq!(kind(&argon2(64, 4, 1, &[1; 16])), Ok(32));
        assert_eq!(kind(&argon2(65, 1, 1, &[1; 16])), Err(Kind::Limit));
        assert_eq!(kind(&argon2(64, 5, 1, &[1; 16])), Err(Kind::Limit));
        assert_eq!(kind(&argon2(u32::MAX, u32::MAX, 1, &[1; 16])), Err(Kind::Limit));
        assert_eq!(kind(&argon2(64, 0, 1, &[1; 16])), Err(Kind::Corrupt));
        assert_eq!(kind(&argon2(64, 1, 0, &[1; 16])), Err(Kind::Corrupt));
        assert_eq!(kind(&argon2(64, 1, 100, &[1; 16])), Err(Kind::Corrupt));
        assert_eq!(kind(&argon2(64, 1, 1, &[1; 4])), Err(Kind::Corrupt));
        let pbkdf2 = Kdf::Pbkdf2 { hash: Hash::Sha256, iterations: 1001, salt: vec![] };
        assert_eq!(kind(&pbkdf2), Err(Kind::Limit));
    }

    /// RFC 9106, section 5.3 has a secret and data, so this one is of the reference program:
    /// `echo -n password | argon2 somesalt -id -t 2 -k 256 -p 1 -l 24`.
    #[test]
    fn argon2_is_that_of_the_reference_program() {
        let kdf = Kdf::Argon2 { id: true, time: 2, memory_kib: 256, lanes: 1, salt: b"somesalt".to_vec() };
        let key = kdf.derive(b"password", 32, &Cost::MAX).unwrap();
        assert_eq!(&key[..4], [0x9d, 0xfe, 0xb9, 0x10]);
    }
}
