//! What the headers of both versions say, in one shape; and how a passphrase opens it.

use block::bytes::read_vec;
use block::{Error, Kind, ReadAt, Result, ResultExt as _, check_range};
use sys::aes::Direction;
use sys::memory::Secret;

use super::cipher::{CipherSpec, UNIT};
use super::corrupt::Corrupt;
use super::hash::Hash;
use super::kdf::{Cost, Kdf};
use super::{anti_forensic, v1, v2};

/// The longest key, bytes: twice that of AES-256 is what is in use.
pub const KEY_BYTES_MAX: usize = 128;
/// The most stripes of the anti-forensic splitter; 4000 is what is in use.
pub const STRIPES_MAX: u32 = 8192;
/// The most key slots: what LUKS2 has.
pub const SLOTS_MAX: u32 = 32;

/// A header, read and checked.
#[derive(Debug, Clone)]
pub struct Header {
    /// As text.
    pub uuid: String,
    /// Of LUKS2; empty where there is none.
    pub label: String,
    /// The key slots that are in use, by their numbers.
    pub slots: Vec<Slot>,
    /// The encrypted data.
    pub segment: Segment,
    /// By what a key is known to be the right one.
    pub digest: Digest,
    /// What is wrong with it, without making it useless.
    pub problems: Vec<Problem>,
    pub(super) version: Version,
}

/// What only one of the versions has.
#[derive(Debug, Clone)]
pub(super) enum Version {
    One(v1::Stored),
    Two(v2::Stored),
}

/// A key slot: a copy of the volume's key that one passphrase opens.
#[derive(Debug, Clone)]
pub struct Slot {
    /// Its number, from 0.
    pub number: u32,
    /// First byte of its key material.
    pub area_byte: u64,
    /// What the key material is encrypted with.
    pub cipher: CipherSpec,
    /// Length of that key, bytes.
    pub cipher_key_bytes: usize,
    /// Of the anti-forensic splitter.
    pub stripes: u32,
    /// Of the anti-forensic splitter.
    pub hash: Hash,
    /// How its key is derived from the passphrase.
    pub kdf: Kdf,
    /// Length of the volume's key in it, bytes.
    pub key_bytes: usize,
    /// Whether it is only tried when it is asked for.
    pub ignored: bool,
    /// Whether it is tried before others.
    pub preferred: bool,
}

impl Slot {
    /// Bytes of its key material: whole sectors.
    pub fn area_bytes(&self) -> usize {
        // Both have limits far below those of the types.
        let bytes = self.key_bytes.saturating_mul(self.stripes as usize);
        bytes.checked_next_multiple_of(UNIT as usize).unwrap_or(usize::MAX)
    }
}

/// The encrypted data.
#[derive(Debug, Clone)]
pub struct Segment {
    /// Its first byte on the device.
    pub start_byte: u64,
    /// Its length, where it does not reach to the end of the device.
    pub size_bytes: Option<u64>,
    /// The number of its first sector, in units of 512 bytes.
    pub first_unit: u64,
    /// What it is encrypted with.
    pub cipher: CipherSpec,
    /// Length of its sectors: 512 to 4096.
    pub sector_bytes: u32,
}

/// A digest of the volume's key.
#[derive(Debug, Clone)]
pub struct Digest {
    /// The slots whose key it is of.
    pub slots: Vec<u32>,
    /// Of PBKDF2.
    pub hash: Hash,
    /// Of PBKDF2.
    pub iterations: u32,
    /// Of PBKDF2.
    pub salt: Vec<u8>,
    /// What comes out.
    pub digest: Vec<u8>,
}

/// What is wrong with a header that can be used all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The first copy is damaged; the second one was taken.
    PrimaryDamaged(Corrupt),
    /// The second copy is damaged.
    SecondaryDamaged(Corrupt),
    /// The copies differ; the newer one was taken.
    CopiesDiffer,
    /// A key slot is of a kind, or has an encryption, that is not known here.
    SlotUnknown {
        /// Its number.
        slot: u32,
        /// Why.
        why: String,
    },
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PrimaryDamaged(why) => {
                write!(f, "the first copy of the header is damaged ({why}), the second is taken")
            }
            Self::SecondaryDamaged(why) => write!(f, "the second copy of the header is damaged ({why})"),
            Self::CopiesDiffer => f.write_str("the copies of the header differ, the newer one is taken"),
            Self::SlotUnknown { slot, why } => write!(f, "key slot {slot} cannot be used: {why}"),
        }
    }
}

/// The volume's key, and which slot it is from.
#[derive(Debug)]
pub struct Unlocked {
    /// The slot that the passphrase opened.
    pub slot: u32,
    /// The key of the encrypted data.
    pub key: Secret,
}

impl Header {
    /// Reads the header at the beginning of a device, or its second copy.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] with a [`Corrupt`] where there is none that can be used; [`Kind::Unsupported`] for what is
    /// known and not served: an encryption or a hash that is not known, integrity, a reencryption under way.
    pub fn read(device: &dyn ReadAt) -> Result<Self> {
        let header = match v2::read(device)? {
            Some(header) => header?,
            None => v1::read(device)?,
        };
        header.check()?;
        Ok(header)
    }

    /// 1 or 2.
    pub fn version(&self) -> u16 {
        match self.version {
            Version::One(_) => 1,
            Version::Two(_) => 2,
        }
    }

    /// Bytes of the volume's key.
    pub fn key_bytes(&self) -> Option<usize> {
        match &self.version {
            Version::One(stored) => Some(stored.key_bytes),
            Version::Two(_) => {
                self.slots.iter().find(|slot| self.digest.slots.contains(&slot.number)).map(|slot| slot.key_bytes)
            }
        }
    }

    /// What both versions demand.
    fn check(&self) -> Result<()> {
        let bad = |field, value: u64| Err(Error::from(Corrupt::Field { field, value }));
        let segment = &self.segment;
        if !(UNIT..=4096).contains(&segment.sector_bytes) || !segment.sector_bytes.is_power_of_two() {
            return bad("the length of a sector", segment.sector_bytes.into());
        }
        if self.digest.iterations == 0 {
            return bad("the number of iterations", 0);
        }
        for slot in &self.slots {
            if slot.key_bytes == 0 || slot.key_bytes > KEY_BYTES_MAX {
                return bad("the length of a key", slot.key_bytes as u64);
            }
            if slot.cipher_key_bytes == 0 || slot.cipher_key_bytes > KEY_BYTES_MAX {
                return bad("the length of a key slot's own key", slot.cipher_key_bytes as u64);
            }
            if slot.stripes == 0 || slot.stripes > STRIPES_MAX {
                return bad("the number of stripes", slot.stripes.into());
            }
        }
        Ok(())
    }

    /// The volume's key, by a passphrase that opens one of the slots: all of them are tried, in the order of their
    /// priorities and numbers, or only `slot`. `device` is what the header was read from.
    ///
    /// # Errors
    /// [`Kind::Denied`] where it opens none; [`Kind::NotFound`] where there is no such slot; [`Kind::Limit`] where a
    /// slot costs more than `cost`.
    pub fn unlock(&self, device: &dyn ReadAt, passphrase: &[u8], slot: Option<u32>, cost: &Cost) -> Result<Unlocked> {
        let mut slots: Vec<&Slot> = match slot {
            Some(number) => {
                let found = self.slots.iter().find(|slot| slot.number == number);
                vec![found.ok_or_else(|| Error::new(Kind::NotFound, format!("key slot {number}")))?]
            }
            None => self.slots.iter().filter(|slot| !slot.ignored).collect(),
        };
        slots.retain(|slot| self.digest.slots.contains(&slot.number));
        slots.sort_by_key(|slot| !slot.preferred);
        let mut failed = None;
        for slot in &slots {
            match self.key_of(device, slot, passphrase, cost) {
                Ok(Some(key)) => return Ok(Unlocked { slot: slot.number, key }),
                Ok(None) => {}
                // Another slot may still open.
                Err(error) => failed = Some(error.context(format!("key slot {}", slot.number))),
            }
        }
        let none = match slots.len() {
            0 => "no key slot: nothing opens it any more",
            1 => "no key available with this passphrase",
            _ => "no key available with this passphrase in any key slot",
        };
        Err(failed.unwrap_or_else(|| Error::new(Kind::Denied, none)))
    }

    /// The key in a slot, where the passphrase is that of the slot.
    fn key_of(&self, device: &dyn ReadAt, slot: &Slot, passphrase: &[u8], cost: &Cost) -> Result<Option<Secret>> {
        let len = slot.area_bytes();
        check_range(device.size(), slot.area_byte, len as u64).map_err(|_| Corrupt::SlotArea(slot.number))?;
        let derived = slot.kdf.derive(passphrase, slot.cipher_key_bytes, cost)?;
        let cipher = slot.cipher.with_key(&derived)?;
        // No secret yet: on the device it is as it is here.
        let mut material = zeroize::Zeroizing::new(read_vec(device, slot.area_byte, len).context(|| "key material")?);
        cipher.apply(Direction::Decrypt, &mut material, 0, UNIT);
        let stripes = material.get(..slot.key_bytes.saturating_mul(slot.stripes as usize)).unwrap_or_default();
        let key = anti_forensic::merge(stripes, slot.key_bytes, slot.hash);
        let key = key.ok_or_else(|| Error::new(Kind::NoSpace, "memory for a key"))?;
        Ok(self.is_key(&key, cost)?.then_some(key))
    }

    /// Whether this is the key of the encrypted data.
    fn is_key(&self, key: &[u8], cost: &Cost) -> Result<bool> {
        let digest = &self.digest;
        let kdf = Kdf::Pbkdf2 { hash: digest.hash, iterations: digest.iterations, salt: digest.salt.clone() };
        let computed = kdf.derive(key, digest.digest.len(), cost).context(|| "digest of the key")?;
        Ok(!computed.is_empty()
            && computed.iter().zip(&digest.digest).fold(0, |sum, (one, other)| sum | (one ^ other)) == 0)
    }
}
