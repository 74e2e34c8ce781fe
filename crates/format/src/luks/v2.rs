//! LUKS2 (LUKS2 On-Disk Format Specification 1.1): two copies of a header and its metadata, then the key material.
//!
//! ```text
//! 0                 4096            H                4096 + H        2 H
//! | binary header 1 | JSON 1        | binary header 2 | JSON 2       | key slots …   | data …
//!
//! binary header, numbers big-endian:
//!   0 "LUKS" ba be, of the second copy "SKUL" ba be    6 version 2    8 H, bytes of header and JSON
//!  16 sequence number, the higher copy counts         24 label [48]  72 checksum algorithm [32]  104 salt [64]
//! 168 UUID [40]   208 subsystem [48]   256 its own first byte   448 checksum [64], of all H bytes with zeroes here
//! ```

use std::collections::BTreeMap;

use base64ct::{Base64, Encoding as _};
use block::bytes::{be_u16, be_u64, has, read_up_to};
use block::{BlockDevice, Error, Kind, ReadAt, Result};
use serde::Deserialize;
use serde_json::Value;

use super::cipher::CipherSpec;
use super::corrupt::Corrupt;
use super::hash::Hash;
use super::header::{Digest, Header, Problem, SLOTS_MAX, Segment, Slot, Version};
use super::kdf::Kdf;
use super::slots::{Random, random_vec};
use super::v1::{MAGIC, text};

/// What the second copy begins with.
pub const MAGIC_SECOND: &[u8; 6] = b"SKUL\xba\xbe";
/// Bytes of a binary header.
pub const BINARY_BYTES: usize = 4096;
/// The lengths that a copy (header and JSON) may have: 16 KiB to 4 MiB.
pub const COPY_BYTES: [u64; 9] =
    [16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];
/// Where the checksum stands, and how long it is at the most.
const CHECKSUM_AT: usize = 448;
const CHECKSUM_BYTES: usize = 64;
/// The longest salt or digest, bytes.
const BASE64_BYTES_MAX: usize = 512;

/// What only this version has.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// Bytes of a copy.
    pub(super) copy_bytes: u64,
    pub(super) sequence: u64,
    /// The binary header as it is on the device.
    pub(super) binary: Vec<u8>,
    /// All of the metadata: what is not known here stays as it is.
    pub(super) metadata: Value,
}

/// A copy whose checksum is right.
struct Copy {
    sequence: u64,
    copy_bytes: u64,
    bytes: Vec<u8>,
}

/// The header of a device that has a copy of one; `None` where there is none of this version.
pub(super) fn read(device: &dyn ReadAt) -> Result<Option<Result<Header>>> {
    let head = read_up_to(device, 0, BINARY_BYTES)?;
    let is_first = has(&head, 0, MAGIC);
    if is_first && be_u16(&head, 6) == Some(1) {
        return Ok(None);
    }
    let first = if is_first { read_copy(device, 0, MAGIC)? } else { Err(Corrupt::NoMagic) };
    let mut second = Err(Corrupt::NoMagic);
    match &first {
        Ok(copy) => second = read_copy(device, copy.copy_bytes, MAGIC_SECOND)?,
        Err(_) => {
            for at in COPY_BYTES {
                second = read_copy(device, at, MAGIC_SECOND)?;
                if second.is_ok() {
                    break;
                }
            }
        }
    }
    let (copy, problem) = match (first, second) {
        (Ok(first), Ok(second)) if second.sequence > first.sequence => (second, Some(Problem::CopiesDiffer)),
        (Ok(first), Ok(second)) if second.sequence < first.sequence => (first, Some(Problem::CopiesDiffer)),
        (Ok(first), Ok(_)) => (first, None),
        (Ok(first), Err(why)) => (first, Some(Problem::SecondaryDamaged(why))),
        (Err(why), Ok(second)) => (second, Some(Problem::PrimaryDamaged(why))),
        (Err(_), Err(_)) if !is_first => return Ok(None),
        (Err(why), Err(_)) => return Ok(Some(Err(why.into()))),
    };
    Ok(Some(parse(copy, problem)))
}

fn read_copy(device: &dyn ReadAt, at: u64, magic: &[u8]) -> Result<std::result::Result<Copy, Corrupt>> {
    let head = read_up_to(device, at, BINARY_BYTES)?;
    if !has(&head, 0, magic) {
        return Ok(Err(Corrupt::NoMagic));
    }
    if head.len() < BINARY_BYTES {
        return Ok(Err(Corrupt::Truncated));
    }
    let version = be_u16(&head, 6).unwrap_or_default();
    if version != 2 {
        return Ok(Err(Corrupt::Field { field: "the version", value: version.into() }));
    }
    let copy_bytes = be_u64(&head, 8).unwrap_or_default();
    if !COPY_BYTES.contains(&copy_bytes) {
        return Ok(Err(Corrupt::HeaderLength(copy_bytes)));
    }
    let offset = be_u64(&head, 256).unwrap_or_default();
    if offset != at || at != 0 && at != copy_bytes {
        return Ok(Err(Corrupt::HeaderOffset(offset)));
    }
    // 4 MiB at the most, as checked.
    let bytes = read_up_to(device, at, copy_bytes as usize)?;
    if bytes.len() as u64 != copy_bytes {
        return Ok(Err(Corrupt::Truncated));
    }
    if checksum(&bytes).is_none_or(|(computed, stored)| computed != stored) {
        return Ok(Err(Corrupt::Checksum));
    }
    let sequence = be_u64(&bytes, 16).unwrap_or_default();
    Ok(Ok(Copy { sequence, copy_bytes, bytes }))
}

/// The checksum that a copy should have, and the one that it has; `None` for an algorithm that is not known.
pub(super) fn checksum(copy: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let hash = Hash::named(&text(copy, 72, 32)).ok()?;
    let (before, rest) = copy.split_at_checked(CHECKSUM_AT)?;
    let (stored, after) = rest.split_at_checked(CHECKSUM_BYTES)?;
    let computed = hash.digest(&[before, &[0; CHECKSUM_BYTES], after]);
    Some((computed, stored.get(..hash.digest_bytes())?.to_vec()))
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    keyslots: BTreeMap<String, Value>,
    #[serde(default)]
    segments: BTreeMap<String, JsonSegment>,
    #[serde(default)]
    digests: BTreeMap<String, JsonDigest>,
    #[serde(default)]
    config: JsonConfig,
}

#[derive(Deserialize)]
struct JsonKeyslot {
    #[serde(rename = "type")]
    kind: String,
    key_size: u32,
    priority: Option<i64>,
    af: JsonSplitter,
    area: JsonArea,
    kdf: JsonKdf,
}

#[derive(Deserialize)]
struct JsonSplitter {
    #[serde(rename = "type")]
    kind: String,
    stripes: u32,
    hash: String,
}

#[derive(Deserialize)]
struct JsonArea {
    #[serde(rename = "type")]
    kind: String,
    offset: String,
    size: String,
    encryption: String,
    key_size: u32,
}

#[derive(Deserialize)]
struct JsonKdf {
    #[serde(rename = "type")]
    kind: String,
    salt: String,
    hash: Option<String>,
    iterations: Option<u32>,
    time: Option<u32>,
    memory: Option<u32>,
    cpus: Option<u32>,
}

#[derive(Deserialize)]
struct JsonSegment {
    #[serde(rename = "type")]
    kind: String,
    offset: String,
    size: String,
    iv_tweak: Option<String>,
    encryption: Option<String>,
    sector_size: Option<u32>,
    integrity: Option<Value>,
    #[serde(default)]
    flags: Vec<String>,
}

#[derive(Deserialize)]
struct JsonDigest {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    keyslots: Vec<String>,
    #[serde(default)]
    segments: Vec<String>,
    hash: Option<String>,
    iterations: Option<u32>,
    salt: String,
    digest: String,
}

#[derive(Default, Deserialize)]
struct JsonConfig {
    #[serde(default)]
    requirements: JsonRequirements,
}

#[derive(Default, Deserialize)]
struct JsonRequirements {
    #[serde(default)]
    mandatory: Vec<String>,
}

fn unsupported(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Kind::Unsupported, what)
}

/// A word of the header for a message.
fn shown(word: &str) -> String {
    word.chars().take(64).flat_map(char::escape_debug).collect()
}

fn decimal(text: &str, field: &'static str) -> Result<u64> {
    text.parse().map_err(|_| Corrupt::Json(format!("{field} is \"{}\"", shown(text))).into())
}

fn base64(text: &str, field: &'static str) -> Result<Vec<u8>> {
    let bytes = Base64::decode_vec(text).map_err(|_| Corrupt::Base64(field))?;
    if bytes.len() > BASE64_BYTES_MAX {
        return Err(Corrupt::Field { field, value: bytes.len() as u64 }.into());
    }
    Ok(bytes)
}

fn slot_number(text: &str) -> Result<u32> {
    let number = decimal(text, "the number of a key slot")?;
    match u32::try_from(number) {
        Ok(number) if number < SLOTS_MAX => Ok(number),
        _ => Err(Corrupt::Field { field: "the number of a key slot", value: number }.into()),
    }
}

fn parse(copy: Copy, problem: Option<Problem>) -> Result<Header> {
    let json = copy.bytes.get(BINARY_BYTES..).unwrap_or_default();
    let end = json.iter().position(|byte| *byte == 0).unwrap_or(json.len());
    let bad = |error: serde_json::Error| Error::from(Corrupt::Json(error.to_string()));
    let metadata: Value = serde_json::from_slice(json.get(..end).unwrap_or_default()).map_err(bad)?;
    let parsed = Metadata::deserialize(&metadata).map_err(bad)?;
    if let Some(requirement) = parsed.config.requirements.mandatory.first() {
        let what = match requirement.as_str() {
            "online-reencrypt" | "online-reencrypt-v2" | "online-reencrypt-v3" | "offline-reencrypt" => {
                "a LUKS2 volume whose reencryption is under way: end it with `cryptsetup reencrypt`".to_owned()
            }
            other => format!("a LUKS2 volume that requires \"{}\"", shown(other)),
        };
        return Err(unsupported(what));
    }
    let (segment_name, segment) = segment(&parsed)?;
    let digest = parsed.digests.values().find(|digest| digest.segments.contains(&segment_name));
    let digest = self::digest(digest.ok_or(Corrupt::NoDigest)?)?;
    let mut problems: Vec<Problem> = problem.into_iter().collect();
    let mut slots = Vec::new();
    for (name, slot) in &parsed.keyslots {
        let number = slot_number(name)?;
        match self::slot(number, slot, copy.copy_bytes) {
            Ok(slot) => slots.push(slot),
            Err(error) if error.kind() == Kind::Unsupported => {
                problems.push(Problem::SlotUnknown { slot: number, why: error.to_string() });
            }
            Err(error) => return Err(error),
        }
    }
    slots.sort_by_key(|slot| slot.number);
    let binary = copy.bytes.get(..BINARY_BYTES).unwrap_or_default().to_vec();
    Ok(Header {
        uuid: text(&binary, 168, 40),
        label: text(&binary, 24, 48),
        slots,
        segment,
        digest,
        problems,
        version: Version::Two(Stored { copy_bytes: copy.copy_bytes, sequence: copy.sequence, binary, metadata }),
    })
}

/// The one segment that holds the data.
fn segment(metadata: &Metadata) -> Result<(String, Segment)> {
    let mut segments = metadata.segments.iter().filter(|(_, segment)| {
        // What a reencryption that has ended may leave.
        !segment.flags.iter().any(|flag| flag.starts_with("backup-"))
    });
    let (Some((name, segment)), None) = (segments.next(), segments.next()) else {
        return Err(unsupported("a LUKS2 volume that is not one segment"));
    };
    if segment.kind != "crypt" {
        return Err(unsupported(format!("a LUKS2 segment of the type \"{}\"", shown(&segment.kind))));
    }
    if segment.integrity.is_some() {
        return Err(unsupported("a LUKS2 volume with integrity (dm-integrity)"));
    }
    let encryption = segment.encryption.as_deref().ok_or_else(|| Corrupt::Json("no encryption".to_owned()))?;
    let size_bytes = match segment.size.as_str() {
        "dynamic" => None,
        bytes => Some(decimal(bytes, "the length of a segment")?),
    };
    let first_unit = segment.iv_tweak.as_deref().map_or(Ok(0), |units| decimal(units, "iv_tweak"))?;
    let segment = Segment {
        start_byte: decimal(&segment.offset, "the first byte of a segment")?,
        size_bytes,
        first_unit,
        cipher: CipherSpec::parse(encryption)?,
        sector_bytes: segment.sector_size.unwrap_or(512),
    };
    Ok((name.clone(), segment))
}

fn digest(digest: &JsonDigest) -> Result<Digest> {
    if digest.kind != "pbkdf2" {
        return Err(unsupported(format!("a digest of the type \"{}\"", shown(&digest.kind))));
    }
    let bytes = base64(&digest.digest, "the digest of the key")?;
    if bytes.len() < 16 {
        return Err(Corrupt::Field { field: "the length of the key's digest", value: bytes.len() as u64 }.into());
    }
    Ok(Digest {
        slots: digest.keyslots.iter().map(|name| slot_number(name)).collect::<Result<_>>()?,
        hash: Hash::named(digest.hash.as_deref().unwrap_or_default())?,
        iterations: digest.iterations.unwrap_or_default(),
        salt: base64(&digest.salt, "the salt of the key's digest")?,
        digest: bytes,
    })
}

fn slot(number: u32, value: &Value, copy_bytes: u64) -> Result<Slot> {
    let kind = value.get("type").and_then(Value::as_str).unwrap_or_default();
    if kind != "luks2" {
        return Err(unsupported(format!("a key slot of the type \"{}\"", shown(kind))));
    }
    let slot = JsonKeyslot::deserialize(value).map_err(|error| Corrupt::Json(format!("key slot {number}: {error}")))?;
    let types = [slot.kind.as_str(), slot.af.kind.as_str(), slot.area.kind.as_str()];
    if types != ["luks2", "luks1", "raw"] {
        return Err(unsupported(format!("a key slot of the types {}", types.map(shown).join(", "))));
    }
    let missing = |field: &str| Error::from(Corrupt::Json(format!("key slot {number}: no {field}")));
    let salt = base64(&slot.kdf.salt, "the salt of a key slot")?;
    let kdf = match slot.kdf.kind.as_str() {
        "pbkdf2" => Kdf::Pbkdf2 {
            hash: Hash::named(&slot.kdf.hash.ok_or_else(|| missing("hash"))?)?,
            iterations: slot.kdf.iterations.ok_or_else(|| missing("iterations"))?,
            salt,
        },
        name @ ("argon2i" | "argon2id") => Kdf::Argon2 {
            id: name == "argon2id",
            time: slot.kdf.time.ok_or_else(|| missing("time"))?,
            memory_kib: slot.kdf.memory.ok_or_else(|| missing("memory"))?,
            lanes: slot.kdf.cpus.ok_or_else(|| missing("cpus"))?,
            salt,
        },
        other => return Err(unsupported(format!("the key derivation \"{}\"", shown(other)))),
    };
    let parsed = Slot {
        number,
        area_byte: decimal(&slot.area.offset, "the first byte of a key slot")?,
        cipher: CipherSpec::parse(&slot.area.encryption)?,
        cipher_key_bytes: slot.area.key_size as usize,
        stripes: slot.af.stripes,
        hash: Hash::named(&slot.af.hash)?,
        kdf,
        key_bytes: slot.key_size as usize,
        ignored: slot.priority == Some(0),
        preferred: slot.priority == Some(2),
    };
    let area_bytes = decimal(&slot.area.size, "the length of a key slot")?;
    if parsed.area_byte < copy_bytes.saturating_mul(2) || area_bytes < parsed.area_bytes() as u64 {
        return Err(Corrupt::SlotArea(number).into());
    }
    Ok(parsed)
}

/// A first copy of 16 KiB, whose checksum is right, around metadata of any kind.
pub(super) fn copy_around(metadata: &[u8]) -> Vec<u8> {
    let [bytes, ..] = COPY_BYTES;
    copy(&[], MAGIC, 0, bytes, 1, &[0; 64], metadata)
}

/// A copy of the header: `binary` with what is new in it, and the metadata, cut where there is no room.
fn copy(binary: &[u8], magic: &[u8], at: u64, copy_bytes: u64, sequence: u64, salt: &[u8], json: &[u8]) -> Vec<u8> {
    let mut copy = binary.to_vec();
    copy.resize(BINARY_BYTES, 0);
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(room) = copy.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
            room.copy_from_slice(bytes);
        }
    };
    put(0, magic);
    put(6, &2_u16.to_be_bytes());
    put(8, &copy_bytes.to_be_bytes());
    put(16, &sequence.to_be_bytes());
    put(72, &fixed::<32>("sha256"));
    put(104, salt);
    put(256, &at.to_be_bytes());
    put(CHECKSUM_AT, &[0; CHECKSUM_BYTES]);
    copy.extend_from_slice(json);
    // 4 MiB at the most.
    copy.resize(copy_bytes as usize, 0);
    let sum = Hash::Sha256.digest(&[&copy]);
    if let Some(room) = copy.get_mut(CHECKSUM_AT..).and_then(|rest| rest.get_mut(..sum.len())) {
        room.copy_from_slice(&sum);
    }
    copy
}

/// Writes both copies of the header with other metadata: the second one first.
pub(super) fn write(device: &dyn BlockDevice, stored: &Stored, metadata: &Value, random: Random<'_>) -> Result<()> {
    let json = serde_json::to_vec(metadata).map_err(|error| Corrupt::Json(error.to_string()))?;
    let room = stored.copy_bytes.saturating_sub(BINARY_BYTES as u64);
    // A zero byte ends it.
    if json.len() as u64 >= room {
        return Err(Error::new(
            Kind::NoSpace,
            format!("metadata of {} bytes in {room} bytes of the header", json.len()),
        ));
    }
    let sequence = stored.sequence.saturating_add(1);
    for (magic, at) in [(MAGIC_SECOND, stored.copy_bytes), (MAGIC, 0)] {
        let salt = random_vec(64, random)?;
        let copy = copy(&stored.binary, magic, at, stored.copy_bytes, sequence, &salt, &json);
        device.write_at(&copy, at)?;
        device.flush()?;
    }
    Ok(())
}

/// A text in a field of `N` bytes, which it does not fill.
pub(super) fn fixed<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    field.iter_mut().take(N.saturating_sub(1)).zip(text.bytes()).for_each(|(room, byte)| *room = byte);
    field
}
