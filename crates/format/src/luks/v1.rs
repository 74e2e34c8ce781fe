//! LUKS1 (LUKS On-Disk Format Specification 1.2.3): a header of 592 bytes, numbers big-endian.
//!
//! ```text
//!   0 "LUKS" ba be   6 version 1     8 cipher [32]   40 mode [32]    72 hash [32]
//! 104 first sector of the data     108 bytes of the key            112 digest of the key [20]
//! 132 its salt [32]                164 its iterations              168 UUID [40]
//! 208 eight key slots, 48 bytes each:
//!       0 ac71f3 in use, dead not   4 iterations   8 salt [32]   40 first sector of the key material   44 stripes
//! ```

use block::bytes::{array, be_u16, be_u32, has, read_up_to};
use block::{ReadAt, Result};

use super::cipher::{CipherSpec, UNIT};
use super::corrupt::Corrupt;
use super::hash::Hash;
use super::header::{Digest, Header, Segment, Slot, Version};
use super::kdf::Kdf;

/// What a header begins with, of both versions.
pub const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
/// Bytes of the header.
pub const HEADER_BYTES: usize = 592;
/// Key slots.
pub const SLOTS: u32 = 8;

/// Where the slots stand, and how long they are.
const SLOTS_AT: usize = 208;
const SLOT_BYTES: usize = 48;
const ACTIVE: u32 = 0x00ac_71f3;
const DEAD: u32 = 0x0000_dead;

/// What only this version has.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) key_bytes: usize,
    /// The header as it is on the device.
    pub(super) bytes: Vec<u8>,
}

/// A text of at most `len` bytes that ends with a NUL byte.
pub(super) fn text(bytes: &[u8], at: usize, len: usize) -> String {
    let field = bytes.get(at..).map(|rest| rest.get(..len).unwrap_or(rest)).unwrap_or_default();
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned()
}

/// Where a slot's fields stand in the header.
pub(super) fn slot_at(number: u32) -> usize {
    (number as usize).saturating_mul(SLOT_BYTES).saturating_add(SLOTS_AT)
}

/// Reads the header.
pub(super) fn read(device: &dyn ReadAt) -> Result<Header> {
    let bytes = read_up_to(device, 0, HEADER_BYTES)?;
    if !has(&bytes, 0, MAGIC) {
        return Err(Corrupt::NoMagic.into());
    }
    parse(bytes)
}

fn parse(bytes: Vec<u8>) -> Result<Header> {
    if bytes.len() < HEADER_BYTES {
        return Err(Corrupt::Truncated.into());
    }
    let number = |at| be_u32(&bytes, at).unwrap_or_default();
    let version = be_u16(&bytes, 6).unwrap_or_default();
    if version != 1 {
        return Err(Corrupt::Field { field: "the version", value: version.into() }.into());
    }
    let cipher = CipherSpec::parse(&format!("{}-{}", text(&bytes, 8, 32), text(&bytes, 40, 32)))?;
    let hash = Hash::named(&text(&bytes, 72, 32))?;
    let key_bytes = number(108) as usize;
    let mut slots = Vec::new();
    for slot in 0..SLOTS {
        let at = slot_at(slot);
        let field = |offset: usize| number(at.saturating_add(offset));
        match field(0) {
            ACTIVE => slots.push(Slot {
                number: slot,
                area_byte: u64::from(field(40)).saturating_mul(UNIT.into()),
                cipher: cipher.clone(),
                cipher_key_bytes: key_bytes,
                stripes: field(44),
                hash,
                kdf: Kdf::Pbkdf2 {
                    hash,
                    iterations: field(4),
                    salt: array::<32>(&bytes, at.saturating_add(8)).unwrap_or_default().to_vec(),
                },
                key_bytes,
                ignored: false,
                preferred: false,
            }),
            DEAD => {}
            other => return Err(Corrupt::Field { field: "the mark of a key slot", value: other.into() }.into()),
        }
    }
    Ok(Header {
        uuid: text(&bytes, 168, 40),
        label: String::new(),
        slots,
        segment: Segment {
            start_byte: u64::from(number(104)).saturating_mul(UNIT.into()),
            size_bytes: None,
            first_unit: 0,
            cipher,
            sector_bytes: UNIT,
        },
        digest: Digest {
            slots: (0..SLOTS).collect(),
            hash,
            iterations: number(164),
            salt: array::<32>(&bytes, 132).unwrap_or_default().to_vec(),
            digest: array::<20>(&bytes, 112).unwrap_or_default().to_vec(),
        },
        problems: Vec::new(),
        version: Version::One(Stored { key_bytes, bytes }),
    })
}

/// First byte and stripes of a slot's key material, in use or not.
pub(super) fn area(header: &[u8], slot: u32) -> (u64, u32) {
    let field = |offset: usize| be_u32(header, slot_at(slot).saturating_add(offset)).unwrap_or_default();
    (u64::from(field(40)).saturating_mul(UNIT.into()), field(44))
}

fn put(header: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(room) = header.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
        room.copy_from_slice(bytes);
    }
}

/// Writes what is new in a slot into the header: iterations, salt, and whether it is in use.
pub(super) fn put_slot(header: &mut [u8], slot: &Slot, active: bool) {
    let at = slot_at(slot.number);
    if let Kdf::Pbkdf2 { iterations, salt, .. } = &slot.kdf {
        put(header, at.saturating_add(4), &iterations.to_be_bytes());
        put(header, at.saturating_add(8), salt);
    }
    put(header, at, &if active { ACTIVE } else { DEAD }.to_be_bytes());
}

/// Marks a slot as not in use, and forgets what it had.
pub(super) fn clear_slot(header: &mut [u8], slot: u32) {
    let at = slot_at(slot);
    put(header, at, &DEAD.to_be_bytes());
    put(header, at.saturating_add(4), &[0; 36]);
}
