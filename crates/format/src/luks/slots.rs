//! Changes to the key slots, in an order that a power cut at any moment leaves usable.
//!
//! - A slot is added by writing its key material, then (flushed) the header that speaks of it.
//! - A slot is removed by overwriting its key material with random bytes, then (flushed) the header. Between the two it is
//!   a slot that nothing opens.
//! - LUKS2: the second copy of the header is written and flushed before the first: one of them is always whole.
//! - LUKS1: the fields of a slot are written while it is marked as not in use; the mark, which lies in one sector, last.

use base64ct::{Base64, Encoding as _};
use block::{BlockDevice, Error, Kind, Result, check_range};
use serde_json::{Map, Value, json};
use sys::aes::Direction;
use zeroize::Zeroizing;

use super::cipher::{CipherSpec, UNIT};
use super::corrupt::Corrupt;
use super::hash::Hash;
use super::header::{Header, SLOTS_MAX, Slot, Unlocked, Version};
use super::kdf::{Cost, Kdf};
use super::{anti_forensic, v1, v2};

/// Fills a buffer with random bytes that nobody can guess.
pub type Random<'a> = &'a dyn Fn(&mut [u8]) -> Result<()>;

/// Stripes of a new slot, as everybody has it.
pub(super) const STRIPES: u32 = 4000;
/// Bytes of a new slot's salt.
pub(super) const SALT_BYTES: usize = 32;
/// Where the key material of LUKS2 begins and ends.
const ALIGN: u64 = 4096;

/// Random bytes.
pub(super) fn random_vec(len: usize, random: Random<'_>) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    random(&mut bytes)?;
    Ok(bytes)
}

impl Header {
    /// Adds a key slot that `passphrase` opens, and returns the header as it is then, and the slot's number. `device` is
    /// what the header was read from; the salt of `kdf` is not used.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] where all slots are in use or there is no room for another; [`Kind::Invalid`] for a key
    /// derivation that the version does not have; the failure of the device.
    pub fn add_key(
        &self,
        device: &dyn BlockDevice,
        unlocked: &Unlocked,
        passphrase: &[u8],
        kdf: &Kdf,
        random: Random<'_>,
    ) -> Result<(Self, u32)> {
        let kdf = kdf.clone().with_salt(random_vec(SALT_BYTES, random)?);
        let slot = match &self.version {
            Version::One(stored) => self.free_slot_of_version_1(stored, kdf)?,
            Version::Two(stored) => self.free_slot_of_version_2(stored, kdf, unlocked)?,
        };
        let number = slot.number;
        // What another slot, the header or the data lies in is not written over.
        self.check_area(&slot)?;
        if let Version::One(stored) = &self.version {
            let mut bytes = stored.bytes.clone();
            v1::put_slot(&mut bytes, &slot, false);
            write(device, &bytes, 0)?;
            device.flush()?;
        }
        write_material(device, &slot, &unlocked.key, passphrase, random)?;
        device.flush()?;
        match &self.version {
            Version::One(stored) => {
                let mut bytes = stored.bytes.clone();
                v1::put_slot(&mut bytes, &slot, true);
                write(device, &bytes, 0)?;
                device.flush()?;
            }
            Version::Two(stored) => {
                let mut metadata = stored.metadata.clone();
                put_slot(&mut metadata, &slot, Some(unlocked.slot))?;
                v2::write(device, stored, &metadata, random)?;
            }
        }
        Ok((Self::read(device)?, number))
    }

    /// Removes a key slot and overwrites its key material; the last one only where `even_last` is true, because then
    /// nothing opens the volume any more. Returns the header as it is then.
    ///
    /// # Errors
    /// [`Kind::NotFound`] where the slot is not in use; [`Kind::Invalid`] for the last one; the failure of the device.
    pub fn remove_key(&self, device: &dyn BlockDevice, slot: u32, even_last: bool, random: Random<'_>) -> Result<Self> {
        let found = self.slots.iter().find(|known| known.number == slot);
        let found = found.ok_or_else(|| Error::new(Kind::NotFound, format!("key slot {slot}")))?;
        if self.slots.len() == 1 && !even_last {
            let context = format!("key slot {slot} is the last one: without it nothing opens the volume any more");
            return Err(Error::new(Kind::Invalid, context));
        }
        self.check_area(found)?;
        check_range(device.size(), found.area_byte, found.area_bytes() as u64)?;
        write(device, &random_vec(found.area_bytes(), random)?, found.area_byte)?;
        device.flush()?;
        match &self.version {
            Version::One(stored) => {
                let mut bytes = stored.bytes.clone();
                v1::clear_slot(&mut bytes, slot);
                write(device, &bytes, 0)?;
                device.flush()?;
            }
            Version::Two(stored) => {
                let mut metadata = stored.metadata.clone();
                remove_slot(&mut metadata, slot);
                v2::write(device, stored, &metadata, random)?;
            }
        }
        Self::read(device)
    }

    /// That a slot's key material lies behind the header, before the data, and over no other slot's.
    fn check_area(&self, slot: &Slot) -> Result<()> {
        let range = |slot: &Slot| (slot.area_byte, slot.area_byte.saturating_add(slot.area_bytes() as u64));
        let (start, end) = range(slot);
        let header_end = match &self.version {
            Version::One(_) => v1::HEADER_BYTES as u64,
            Version::Two(stored) => stored.copy_bytes.saturating_mul(2),
        };
        // With a detached header the data may begin at byte 0 of another device.
        let data = self.segment.start_byte;
        let over_data = data > 0 && end > data;
        let over = |other: &Slot| {
            let (other_start, other_end) = range(other);
            other.number != slot.number && start < other_end && other_start < end
        };
        if start < header_end || over_data || self.slots.iter().any(over) {
            return Err(Corrupt::SlotArea(slot.number).into());
        }
        Ok(())
    }

    fn free_slot_of_version_1(&self, stored: &v1::Stored, kdf: Kdf) -> Result<Slot> {
        let hash = self.digest.hash;
        if !matches!(&kdf, Kdf::Pbkdf2 { hash: other, .. } if *other == hash) {
            let context = format!("a LUKS1 header knows PBKDF2 with {} alone", hash.name());
            return Err(Error::new(Kind::Invalid, context));
        }
        let used = |number: &u32| self.slots.iter().any(|slot| slot.number == *number);
        let number = (0..v1::SLOTS).find(|number| !used(number));
        let number =
            number.ok_or_else(|| Error::new(Kind::NoSpace, format!("all {} key slots are in use", v1::SLOTS)))?;
        let (area_byte, stripes) = v1::area(&stored.bytes, number);
        if stripes == 0 || stripes > super::header::STRIPES_MAX {
            return Err(Corrupt::Field { field: "the number of stripes", value: stripes.into() }.into());
        }
        Ok(Slot {
            number,
            area_byte,
            cipher: self.segment.cipher.clone(),
            cipher_key_bytes: stored.key_bytes,
            stripes,
            hash,
            kdf,
            key_bytes: stored.key_bytes,
            ignored: false,
            preferred: false,
        })
    }

    fn free_slot_of_version_2(&self, stored: &v2::Stored, kdf: Kdf, unlocked: &Unlocked) -> Result<Slot> {
        let full = |what: &str| Error::new(Kind::NoSpace, what.to_owned());
        let taken = areas(&stored.metadata);
        let number = (0..SLOTS_MAX).find(|number| !taken.iter().any(|(slot, ..)| slot == number));
        let number = number.ok_or_else(|| full("all 32 key slots are in use"))?;
        let encryption = CipherSpec::parse("aes-xts-plain64")?;
        let mut slot = new_slot(number, 0, unlocked.key.len(), kdf, encryption);
        let start = stored.copy_bytes.saturating_mul(2);
        let room = stored.metadata.pointer("/config/keyslots_size").and_then(Value::as_str);
        let room = room.and_then(|bytes| bytes.parse::<u64>().ok()).unwrap_or_default();
        let end = start.saturating_add(room);
        // The first gap that is long enough: at the beginning, or behind one of the areas.
        let bytes = area_bytes(&slot);
        let mut candidates: Vec<u64> =
            taken.iter().map(|(_, at, len)| at.saturating_add(*len)).chain([start]).collect();
        candidates.sort_unstable();
        let free = candidates.into_iter().filter_map(|at| at.checked_next_multiple_of(ALIGN)).find(|at| {
            let after = at.saturating_add(bytes);
            *at >= start
                && after <= end
                && !taken.iter().any(|(_, other, len)| *at < other.saturating_add(*len) && *other < after)
        });
        slot.area_byte = free.ok_or_else(|| full("no room for the key material of another key slot"))?;
        Ok(slot)
    }
}

/// A slot of LUKS2 as they are made here.
pub(super) fn new_slot(number: u32, area_byte: u64, key_bytes: usize, kdf: Kdf, cipher: CipherSpec) -> Slot {
    Slot {
        number,
        area_byte,
        cipher,
        cipher_key_bytes: 64,
        stripes: STRIPES,
        hash: Hash::Sha256,
        kdf,
        key_bytes,
        ignored: false,
        preferred: false,
    }
}

/// Room of a slot of LUKS2, bytes.
fn area_bytes(slot: &Slot) -> u64 {
    (slot.area_bytes() as u64).checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX)
}

/// Numbers, first bytes and lengths of all areas that the metadata of LUKS2 names, known or not.
fn areas(metadata: &Value) -> Vec<(u32, u64, u64)> {
    let slots = metadata.get("keyslots").and_then(Value::as_object).into_iter().flatten();
    slots
        .filter_map(|(name, slot)| {
            let number = |path: &str| slot.pointer(path).and_then(Value::as_str)?.parse::<u64>().ok();
            Some((name.parse().ok()?, number("/area/offset")?, number("/area/size")?))
        })
        .collect()
}

/// Writes the key, split and encrypted, into a slot's area.
pub(super) fn write_material(
    device: &dyn BlockDevice,
    slot: &Slot,
    key: &[u8],
    passphrase: &[u8],
    random: Random<'_>,
) -> Result<()> {
    check_range(device.size(), slot.area_byte, slot.area_bytes() as u64)?;
    let derived = slot.kdf.derive(passphrase, slot.cipher_key_bytes, &Cost::MAX)?;
    let mut material = Zeroizing::new(random_vec(slot.area_bytes(), random)?);
    let stripes = slot.key_bytes.saturating_mul(slot.stripes as usize);
    if let Some(stripes) = material.get_mut(..stripes) {
        anti_forensic::split(key, stripes, slot.hash);
    }
    slot.cipher.with_key(&derived)?.apply(Direction::Encrypt, &mut material, 0, UNIT);
    write(device, &material, slot.area_byte)
}

pub(super) fn write(device: &dyn BlockDevice, bytes: &[u8], at: u64) -> Result<()> {
    device.write_at(bytes, at)
}

/// Puts a slot into the metadata of LUKS2, and into the digest that has the slot `beside`, or into the only one.
pub(super) fn put_slot(metadata: &mut Value, slot: &Slot, beside: Option<u32>) -> Result<()> {
    let kdf = match &slot.kdf {
        Kdf::Pbkdf2 { hash, iterations, salt } => {
            json!({"type": "pbkdf2", "hash": hash.name(), "iterations": iterations, "salt": Base64::encode_string(salt)})
        }
        Kdf::Argon2 { time, memory_kib, lanes, salt, .. } => json!({
            "type": slot.kdf.name(), "time": time, "memory": memory_kib, "cpus": lanes,
            "salt": Base64::encode_string(salt),
        }),
    };
    let value = json!({
        "type": "luks2",
        "key_size": slot.key_bytes,
        "af": {"type": "luks1", "stripes": slot.stripes, "hash": slot.hash.name()},
        "area": {
            "type": "raw", "offset": slot.area_byte.to_string(), "size": area_bytes(slot).to_string(),
            "encryption": slot.cipher.name(), "key_size": slot.cipher_key_bytes,
        },
        "kdf": kdf,
    });
    let name = slot.number.to_string();
    let missing = || Error::from(Corrupt::Json("no key slots or no digests".to_owned()));
    let slots = metadata.get_mut("keyslots").and_then(Value::as_object_mut).ok_or_else(missing)?;
    slots.insert(name.clone(), value);
    let beside = beside.map(|slot| Value::from(slot.to_string()));
    for digest in digests(metadata) {
        let Some(slots) = digest.get_mut("keyslots").and_then(Value::as_array_mut) else { continue };
        if beside.as_ref().is_none_or(|beside| slots.contains(beside)) {
            slots.push(name.into());
            return Ok(());
        }
    }
    Err(missing())
}

fn digests(metadata: &mut Value) -> impl Iterator<Item = &mut Value> {
    metadata.get_mut("digests").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut)
}

/// Takes a slot out of the metadata of LUKS2: out of its digests and tokens too.
fn remove_slot(metadata: &mut Value, slot: u32) {
    let name = slot.to_string();
    if let Some(slots) = metadata.get_mut("keyslots").and_then(Value::as_object_mut) {
        slots.remove(&name);
    }
    for kind in ["digests", "tokens"] {
        let users = metadata.get_mut(kind).and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut);
        for slots in users.filter_map(|user| user.get_mut("keyslots").and_then(Value::as_array_mut)) {
            slots.retain(|other| other.as_str() != Some(&name));
        }
    }
}
