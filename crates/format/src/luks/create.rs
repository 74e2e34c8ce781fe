//! New LUKS2 volumes.

use base64ct::{Base64, Encoding as _};
use block::{BlockDevice, Error, Kind, Result, Zero, check_range};
use serde_json::json;
use sys::memory::Secret;

use super::cipher::{CipherSpec, UNIT};
use super::hash::Hash;
use super::header::Header;
use super::kdf::{Cost, Kdf};
use super::slots::{Random, SALT_BYTES, new_slot, put_slot, random_vec, write_material};
use super::v2;

/// Bytes from the header to the data, as cryptsetup makes it: two copies of 16 KiB, and room for 32 slots or more.
pub const DATA_BYTE: u64 = 16 << 20;
/// Bytes of a copy of the header.
const COPY_BYTES: u64 = 16 << 10;
/// Iterations of PBKDF2 for the digest of a key that is random already.
const DIGEST_ITERATIONS: u32 = 100_000;

/// What a new volume is to be.
#[derive(Debug, Clone)]
pub struct Create {
    /// Such as `aes-xts-plain64`.
    pub cipher: String,
    /// Length of the volume's key, bytes.
    pub key_bytes: usize,
    /// Length of a sector, bytes.
    pub sector_bytes: u32,
    /// Of the first key slot; its salt is not used.
    pub kdf: Kdf,
    /// At most 47 bytes.
    pub label: String,
    /// Whether the data is on another device, from its first byte on.
    pub detached: bool,
}

impl Default for Create {
    /// AES-256 in XTS mode, sectors of 4096 bytes, Argon2id.
    fn default() -> Self {
        Self {
            cipher: "aes-xts-plain64".to_owned(),
            key_bytes: 64,
            sector_bytes: 4096,
            kdf: Kdf::Argon2 { id: true, time: 4, memory_kib: 256 << 10, lanes: 4, salt: Vec::new() },
            label: String::new(),
            detached: false,
        }
    }
}

/// Makes a volume on a device, whose first 16 MiB it overwrites; `passphrase` opens it.
///
/// # Errors
/// [`Kind::NoSpace`] for a device that is too small; [`Kind::Invalid`] for what makes no sense; [`Kind::Unsupported`]
/// for an encryption that is not known; the failure of the device.
pub fn create(device: &dyn BlockDevice, create: &Create, passphrase: &[u8], random: Random<'_>) -> Result<Header> {
    let cipher = CipherSpec::parse(&create.cipher)?;
    if create.label.len() > 47 {
        return Err(Error::new(Kind::NameTooLong, format!("a label of {} bytes, 47 at the most", create.label.len())));
    }
    if !(UNIT..=4096).contains(&create.sector_bytes) || !create.sector_bytes.is_power_of_two() {
        let context = format!("sectors of {} bytes (possible: 512, 1024, 2048, 4096)", create.sector_bytes);
        return Err(Error::new(Kind::Invalid, context));
    }
    let least = if create.detached { DATA_BYTE } else { DATA_BYTE.saturating_add(create.sector_bytes.into()) };
    if check_range(device.size(), 0, least).is_err() {
        return Err(Error::new(
            Kind::NoSpace,
            format!("a device of {} bytes for a LUKS2 header of {DATA_BYTE}", device.size()),
        ));
    }
    let memory = |error| Error::io("memory for a key", error);
    let mut key = Secret::new(create.key_bytes).map_err(memory)?;
    random(&mut key)?;
    // What does not fit the cipher is said before anything is written.
    cipher.with_key(&key)?;

    let salt = random_vec(SALT_BYTES, random)?;
    let kdf = Kdf::Pbkdf2 { hash: Hash::Sha256, iterations: DIGEST_ITERATIONS, salt: salt.clone() };
    let digest = kdf.derive(&key, Hash::Sha256.digest_bytes(), &Cost::MAX)?;
    let data_byte = if create.detached { 0 } else { DATA_BYTE };
    let mut metadata = json!({
        "keyslots": {},
        "tokens": {},
        "segments": {"0": {
            "type": "crypt", "offset": data_byte.to_string(), "size": "dynamic", "iv_tweak": "0",
            "encryption": create.cipher, "sector_size": create.sector_bytes,
        }},
        "digests": {"0": {
            "type": "pbkdf2", "keyslots": [], "segments": ["0"], "hash": "sha256", "iterations": DIGEST_ITERATIONS,
            "salt": Base64::encode_string(&salt), "digest": Base64::encode_string(&digest),
        }},
        "config": {
            "json_size": COPY_BYTES.saturating_sub(v2::BINARY_BYTES as u64).to_string(),
            "keyslots_size": DATA_BYTE.saturating_sub(COPY_BYTES.saturating_mul(2)).to_string(),
        },
    });
    let slot_kdf = create.kdf.clone().with_salt(random_vec(SALT_BYTES, random)?);
    let of_slot = CipherSpec::parse("aes-xts-plain64")?;
    let slot = new_slot(0, COPY_BYTES.saturating_mul(2), create.key_bytes, slot_kdf, of_slot);
    put_slot(&mut metadata, &slot, None)?;

    device.write_zeroes(0, DATA_BYTE, Zero::Deallocate)?;
    write_material(device, &slot, &key, passphrase, random)?;
    device.flush()?;
    let stored =
        v2::Stored { copy_bytes: COPY_BYTES, sequence: 0, binary: binary(create, random)?, metadata: json!({}) };
    v2::write(device, &stored, &metadata, random)?;
    Header::read(device)
}

/// The binary header, but for what is written each time.
fn binary(create: &Create, random: Random<'_>) -> Result<Vec<u8>> {
    let mut binary = vec![0; 24];
    binary.extend(v2::fixed::<48>(&create.label));
    binary.resize(168, 0);
    binary.extend(v2::fixed::<40>(&uuid(random)?));
    binary.resize(v2::BINARY_BYTES, 0);
    Ok(binary)
}

/// A random UUID (RFC 9562, version 4) as text.
fn uuid(random: Random<'_>) -> Result<String> {
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    let number = u128::from_be_bytes(bytes);
    let number = number & !(0xf << 76 | 0x3 << 62) | (0x4 << 76 | 0x2 << 62);
    let digits = format!("{number:032x}");
    let part = |from: usize, len: usize| digits.get(from..).and_then(|rest| rest.get(..len)).unwrap_or_default();
    Ok([part(0, 8), part(8, 4), part(12, 4), part(16, 4), part(20, 12)].join("-"))
}
