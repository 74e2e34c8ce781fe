//! What a header calls its encryption (`aes-xts-plain64`), and that encryption of sectors.
//!
//! ```text
//! aes-cbc-essiv:sha256
//! ─┬─ ─┬─ ──┬────────
//!  │   │    the initial value of a sector: plain (its number, 32 bits little-endian), plain64, plain64be,
//!  │   │    essiv:HASH (its number encrypted by the hash of the key), null
//!  │   mode: xts, cbc, ecb
//!  block cipher: aes, serpent, twofish, camellia
//! ```
//! A sector's number counts sectors of 512 bytes, however long the sectors are.

use std::fmt;

use ::aes::{Aes128, Aes192, Aes256};
use ::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use block::{Error, Kind, Result};
use camellia::{Camellia128, Camellia192, Camellia256};
use serpent::Serpent;
use sys::aes::{AesXts, Direction, Sectors};
use twofish::Twofish;
use zeroize::Zeroizing;

use super::hash::Hash;

/// Bytes of a block of every cipher here.
const BLOCK: usize = 16;
/// Bytes of the unit in which sectors are numbered.
pub const UNIT: u32 = 512;

type Block = Array<u8, ::cipher::consts::U16>;

/// The encryption that a header names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CipherSpec {
    name: String,
    cipher: Algorithm,
    mode: Mode,
    iv: Iv,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Aes,
    Serpent,
    Twofish,
    Camellia,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Xts,
    Cbc,
    Ecb,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Iv {
    Null,
    Plain,
    Plain64,
    Plain64Be,
    Essiv(Hash),
}

impl CipherSpec {
    /// Reads `aes-xts-plain64` and its like.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for what is not one of those above; that of its hash.
    pub fn parse(name: &str) -> Result<Self> {
        let unknown = || {
            let shown: String = name.chars().take(64).flat_map(char::escape_debug).collect();
            let why = if name.starts_with("cipher_null") { ", which encrypts nothing" } else { "" };
            Error::new(Kind::Unsupported, format!("encryption \"{shown}\"{why}"))
        };
        let mut parts = name.splitn(3, '-');
        let cipher = match parts.next() {
            Some("aes") => Algorithm::Aes,
            Some("serpent") => Algorithm::Serpent,
            Some("twofish") => Algorithm::Twofish,
            Some("camellia") => Algorithm::Camellia,
            _ => return Err(unknown()),
        };
        let mode = match parts.next() {
            Some("xts") => Mode::Xts,
            Some("cbc") => Mode::Cbc,
            Some("ecb") => Mode::Ecb,
            _ => return Err(unknown()),
        };
        let iv = match parts.next() {
            Some("plain") => Iv::Plain,
            Some("plain64") => Iv::Plain64,
            Some("plain64be") => Iv::Plain64Be,
            Some("null") => Iv::Null,
            None if mode == Mode::Ecb => Iv::Null,
            Some(other) => Iv::Essiv(Hash::named(other.strip_prefix("essiv:").ok_or_else(unknown)?)?),
            None => return Err(unknown()),
        };
        Ok(Self { name: name.to_owned(), cipher, mode, iv })
    }

    /// As in the header.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// With a key, which for XTS is two of the cipher's keys.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a key of a length that the cipher does not take.
    pub fn with_key(&self, key: &[u8]) -> Result<Box<dyn SectorCipher>> {
        let length = || {
            Error::new(Kind::Unsupported, format!("a key of {} bits for {}", key.len().saturating_mul(8), self.name))
        };
        if (self.mode, self.cipher, self.iv) == (Mode::Xts, Algorithm::Aes, Iv::Plain64)
            && let Some(fast) = AesXts::new(key)
        {
            return Ok(Box::new(Fast(fast)));
        }
        let (data, tweak) = match self.mode {
            Mode::Xts => key.split_at_checked(key.len() / 2).ok_or_else(length)?,
            Mode::Cbc | Mode::Ecb => (key, [].as_slice()),
        };
        if self.mode == Mode::Xts && data.len() != tweak.len() {
            return Err(length());
        }
        let data = self.cipher.with_key(data).ok_or_else(length)?;
        let tweak = match (self.mode, self.iv) {
            (Mode::Xts, _) => Some(self.cipher.with_key(tweak).ok_or_else(length)?),
            (_, Iv::Essiv(hash)) => {
                let salt = Zeroizing::new(hash.digest(&[key]));
                Some(self.cipher.with_key(&salt).ok_or_else(length)?)
            }
            _ => None,
        };
        // ESSIV under XTS would need a third key; nobody writes that.
        if self.mode == Mode::Xts && matches!(self.iv, Iv::Essiv(_)) {
            return Err(Error::new(Kind::Unsupported, format!("encryption \"{}\"", self.name)));
        }
        Ok(Box::new(Portable { mode: self.mode, iv: self.iv, data, tweak, name: self.name.clone() }))
    }
}

/// Encrypts and decrypts whole sectors.
pub trait SectorCipher: Send + Sync + fmt::Debug {
    /// Does so with the sectors of `sector_bytes` in `buf`; `unit` is the number of the first, in units of 512 bytes.
    fn apply(&self, direction: Direction, buf: &mut [u8], unit: u64, sector_bytes: u32);
}

/// By the processor's instructions.
#[derive(Debug)]
struct Fast(AesXts);

impl SectorCipher for Fast {
    fn apply(&self, direction: Direction, buf: &mut [u8], unit: u64, sector_bytes: u32) {
        let step = u64::from(sector_bytes / UNIT);
        self.0.apply(direction, buf, Sectors { first: unit, step, bytes: sector_bytes as usize });
    }
}

/// By what the crates of the ciphers have for every processor.
struct Portable {
    mode: Mode,
    iv: Iv,
    data: Box<dyn Blocks>,
    /// Of the tweak, or of ESSIV.
    tweak: Option<Box<dyn Blocks>>,
    name: String,
}

impl fmt::Debug for Portable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Portable({})", self.name)
    }
}

impl Portable {
    fn iv_of(&self, unit: u64) -> Block {
        let number = match self.iv {
            Iv::Null => 0,
            // 32 bits, in which the number goes round.
            Iv::Plain => u128::from(unit & u64::from(u32::MAX)),
            Iv::Plain64 | Iv::Essiv(_) => u128::from(unit),
            Iv::Plain64Be => return Array(u128::from(unit).to_be_bytes()),
        };
        let mut iv = [Array(number.to_le_bytes())];
        if let (Iv::Essiv(_), Some(essiv)) = (self.iv, &self.tweak) {
            essiv.encrypt(&mut iv);
        }
        let [iv] = iv;
        iv
    }

    fn sector(&self, direction: Direction, sector: &mut [Block], unit: u64) {
        match (self.mode, direction) {
            (Mode::Ecb, Direction::Encrypt) => self.data.encrypt(sector),
            (Mode::Ecb, Direction::Decrypt) => self.data.decrypt(sector),
            (Mode::Cbc, Direction::Encrypt) => {
                let mut before = self.iv_of(unit);
                for block in sector {
                    xor(block, &before);
                    self.data.encrypt(std::slice::from_mut(block));
                    before = *block;
                }
            }
            (Mode::Cbc, Direction::Decrypt) => {
                let mut before = self.iv_of(unit);
                for group in sector.chunks_mut(BATCH) {
                    let mut encrypted = [Block::default(); BATCH];
                    encrypted.iter_mut().zip(group.iter()).for_each(|(copy, block)| *copy = *block);
                    self.data.decrypt(group);
                    for (block, encrypted) in group.iter_mut().zip(encrypted) {
                        xor(block, &before);
                        before = encrypted;
                    }
                }
            }
            (Mode::Xts, _) => {
                let mut tweak = [self.iv_of(unit)];
                if let Some(cipher) = &self.tweak {
                    cipher.encrypt(&mut tweak);
                }
                let [mut tweak] = tweak.map(|tweak| u128::from_le_bytes(tweak.0));
                for group in sector.chunks_mut(BATCH) {
                    let mut tweaks = [Block::default(); BATCH];
                    for slot in &mut tweaks {
                        *slot = Array(tweak.to_le_bytes());
                        // Times x: what is carried out comes back as x^7 + x^2 + x + 1.
                        let carry = if tweak >> 127 == 1 { 0x87 } else { 0 };
                        tweak = tweak << 1 ^ carry;
                    }
                    group.iter_mut().zip(&tweaks).for_each(|(block, tweak)| xor(block, tweak));
                    match direction {
                        Direction::Encrypt => self.data.encrypt(group),
                        Direction::Decrypt => self.data.decrypt(group),
                    }
                    group.iter_mut().zip(&tweaks).for_each(|(block, tweak)| xor(block, tweak));
                }
            }
        }
    }
}

/// Blocks that a cipher is given at one time.
const BATCH: usize = 8;

impl SectorCipher for Portable {
    fn apply(&self, direction: Direction, buf: &mut [u8], unit: u64, sector_bytes: u32) {
        let step = u64::from(sector_bytes / UNIT);
        let mut unit = unit;
        for sector in buf.chunks_exact_mut((sector_bytes as usize).max(BLOCK)) {
            self.sector(direction, Block::cast_slice_from_core_mut(sector.as_chunks_mut().0), unit);
            unit = unit.wrapping_add(step);
        }
    }
}

fn xor(block: &mut Block, other: &Block) {
    block.iter_mut().zip(other).for_each(|(byte, other)| *byte ^= other);
}

/// A block cipher with its key.
trait Blocks: Send + Sync {
    fn encrypt(&self, blocks: &mut [Block]);
    fn decrypt(&self, blocks: &mut [Block]);
}

impl<C> Blocks for C
where
    C: BlockCipherEncrypt<BlockSize = ::cipher::consts::U16> + BlockCipherDecrypt + Send + Sync,
{
    fn encrypt(&self, blocks: &mut [Block]) {
        self.encrypt_blocks(blocks);
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        self.decrypt_blocks(blocks);
    }
}

impl Algorithm {
    fn with_key(self, key: &[u8]) -> Option<Box<dyn Blocks>> {
        fn keyed<C: KeyInit + Blocks + 'static>(key: &[u8]) -> Option<Box<dyn Blocks>> {
            Some(Box::new(C::new_from_slice(key).ok()?))
        }
        match (self, key.len()) {
            (Self::Aes, 16) => keyed::<Aes128>(key),
            (Self::Aes, 24) => keyed::<Aes192>(key),
            (Self::Aes, 32) => keyed::<Aes256>(key),
            (Self::Serpent, 16 | 24 | 32) => keyed::<Serpent>(key),
            (Self::Twofish, 16 | 24 | 32) => keyed::<Twofish>(key),
            (Self::Camellia, 16) => keyed::<Camellia128>(key),
            (Self::Camellia, 24) => keyed::<Camellia192>(key),
            (Self::Camellia, 32) => keyed::<Camellia256>(key),
            _ => None,
        }
    }
}
