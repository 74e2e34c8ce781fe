//! The GUID partition table (UEFI specification 2.10, section 5.3).
//!
//! ```text
//! 0x00 "EFI PART"   0x08 revision      0x0c header bytes   0x10 CRC-32 of the header
//! 0x18 own sector   0x20 other header  0x28 first usable   0x30 last usable sector
//! 0x38 disk GUID    0x48 first sector of the entries  0x50 number  0x54 bytes of one  0x58 CRC-32 of them all
//! ```
//! An entry: type GUID, own GUID, first and last sector (64 bits each), attributes (64 bits), 36 letters of UTF-16.

use std::fmt;

use block::bytes::{has, le_u16, le_u32, le_u64, read_up_to};
use block::{ReadAt, Result};

use super::{Partition, Problem, Role, Scheme, Table, guid};

/// What a header begins with.
pub const SIGNATURE: &[u8] = b"EFI PART";
/// The most bytes of all entries together: 32,768 partitions, what the kernel takes at most.
pub const ENTRIES_BYTES_MAX: u64 = 4 << 20;

const HEADER_BYTES_MIN: usize = 92;
const ENTRY_BYTES_MIN: u32 = 128;
const ENTRY_BYTES_MAX: u32 = 4096;
const ATTRIBUTE_LEGACY_BOOT: u64 = 1 << 2;

/// Why a header is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Corrupt {
    /// It does not begin with the signature, or lies behind the end of the device.
    NoSignature,
    /// The length of the header is below 92 bytes or above a sector.
    HeaderLength(u32),
    /// The checksum of the header is another one.
    HeaderChecksum {
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
    /// It says that it is in another sector than the one that it is in.
    OwnSector(u64),
    /// The usable sectors are none, or reach behind the end of the device.
    UsableSectors {
        /// As stored.
        first: u64,
        /// As stored.
        last: u64,
    },
    /// The length of an entry is no power of two from 128 to 4096 bytes.
    EntryLength(u32),
    /// More entries than [`ENTRIES_BYTES_MAX`] hold.
    TooManyEntries(u32),
    /// The entries lie behind the end of the device.
    EntriesBeyondEnd(u64),
    /// The checksum of the entries is another one.
    EntriesChecksum {
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSignature => f.write_str("no signature"),
            Self::HeaderLength(bytes) => write!(f, "header of {bytes} bytes"),
            Self::HeaderChecksum { stored, computed } => {
                write!(f, "header checksum {stored:08x}, computed {computed:08x}")
            }
            Self::OwnSector(sector) => write!(f, "says that it is in sector {sector}"),
            Self::UsableSectors { first, last } => write!(f, "usable sectors {first} to {last}"),
            Self::EntryLength(bytes) => write!(f, "entries of {bytes} bytes"),
            Self::TooManyEntries(number) => write!(f, "{number} entries"),
            Self::EntriesBeyondEnd(sector) => write!(f, "entries from sector {sector} on, behind the end"),
            Self::EntriesChecksum { stored, computed } => {
                write!(f, "entries checksum {stored:08x}, computed {computed:08x}")
            }
        }
    }
}

impl std::error::Error for Corrupt {}

/// A header whose checksums are right, with the bytes of its entries.
struct Header {
    other_sector: u64,
    id: Option<String>,
    entry_bytes: u32,
    entries: Vec<u8>,
}

/// Reads the GPT of a device with sectors of `sector_bytes`: the primary one, or its backup where that is damaged; why
/// the primary one is not taken where neither is.
///
/// # Errors
/// The failure of the device.
pub fn read(device: &dyn ReadAt, sector_bytes: u32) -> Result<std::result::Result<Table, Corrupt>> {
    let sectors = device.size().checked_div(u64::from(sector_bytes)).unwrap_or_default();
    let Some(last_sector) = sectors.checked_sub(1) else { return Ok(Err(Corrupt::NoSignature)) };
    let mut problems = Vec::new();
    let header = match read_header(device, 1, sector_bytes, last_sector)? {
        Ok(header) => {
            if header.other_sector != last_sector {
                problems.push(Problem::BackupNotAtEnd { sector: header.other_sector });
            }
            if let Err(why) = read_header(device, header.other_sector, sector_bytes, last_sector)? {
                problems.push(Problem::BackupDamaged(why));
            }
            header
        }
        Err(why) => match read_header(device, last_sector, sector_bytes, last_sector)? {
            Ok(header) => {
                problems.push(Problem::PrimaryDamaged(why));
                header
            }
            Err(_) => return Ok(Err(why)),
        },
    };
    let mut partitions = Vec::new();
    for (number, entry) in (1_u32..).zip(header.entries.chunks_exact(header.entry_bytes as usize)) {
        match read_entry(number, entry, u64::from(sector_bytes)) {
            Some(Ok(partition)) => partitions.push(partition),
            Some(Err(problem)) => problems.push(problem),
            None => {}
        }
    }
    let table = Table { scheme: Scheme::Gpt, id: header.id, sector_bytes, partitions, problems, shadowed: None };
    Ok(Ok(table.check(device.size())))
}

fn read_header(
    device: &dyn ReadAt,
    sector: u64,
    sector_bytes: u32,
    last_sector: u64,
) -> Result<std::result::Result<Header, Corrupt>> {
    let Some(at) = sector.checked_mul(u64::from(sector_bytes)) else { return Ok(Err(Corrupt::NoSignature)) };
    let bytes = read_up_to(device, at, sector_bytes as usize)?;
    let checked = match check_header(&bytes, sector, last_sector) {
        Ok(checked) => checked,
        Err(why) => return Ok(Err(why)),
    };
    let Some(entries_at) = checked.entries_sector.checked_mul(u64::from(sector_bytes)) else {
        return Ok(Err(Corrupt::EntriesBeyondEnd(checked.entries_sector)));
    };
    let entries = read_up_to(device, entries_at, checked.entries_bytes)?;
    if entries.len() != checked.entries_bytes {
        return Ok(Err(Corrupt::EntriesBeyondEnd(checked.entries_sector)));
    }
    let computed = crc32fast::hash(&entries);
    if computed != checked.entries_checksum {
        return Ok(Err(Corrupt::EntriesChecksum { stored: checked.entries_checksum, computed }));
    }
    let id = bytes.get(0x38..).and_then(guid::text);
    Ok(Ok(Header { other_sector: checked.other_sector, id, entry_bytes: checked.entry_bytes, entries }))
}

struct Checked {
    other_sector: u64,
    entries_sector: u64,
    entry_bytes: u32,
    entries_bytes: usize,
    entries_checksum: u32,
}

fn check_header(bytes: &[u8], sector: u64, last_sector: u64) -> std::result::Result<Checked, Corrupt> {
    if !has(bytes, 0, SIGNATURE) || bytes.len() < HEADER_BYTES_MIN {
        return Err(Corrupt::NoSignature);
    }
    let field32 = |at| le_u32(bytes, at).unwrap_or_default();
    let field64 = |at| le_u64(bytes, at).unwrap_or_default();
    let length = field32(0x0c);
    let header = bytes.get(..length as usize).filter(|header| header.len() >= HEADER_BYTES_MIN);
    let header = header.ok_or(Corrupt::HeaderLength(length))?;
    let stored = field32(0x10);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header.get(..0x10).unwrap_or_default());
    hasher.update(&[0; 4]);
    hasher.update(header.get(0x14..).unwrap_or_default());
    let computed = hasher.finalize();
    if computed != stored {
        return Err(Corrupt::HeaderChecksum { stored, computed });
    }
    if field64(0x18) != sector {
        return Err(Corrupt::OwnSector(field64(0x18)));
    }
    let (first, last) = (field64(0x28), field64(0x30));
    // The device may have been cut since: what lies behind its end is a matter of each partition.
    if last < first || first > last_sector {
        return Err(Corrupt::UsableSectors { first, last });
    }
    let (number, entry_bytes) = (field32(0x50), field32(0x54));
    if !(ENTRY_BYTES_MIN..=ENTRY_BYTES_MAX).contains(&entry_bytes) || !entry_bytes.is_power_of_two() {
        return Err(Corrupt::EntryLength(entry_bytes));
    }
    let entries_bytes = u64::from(number).saturating_mul(u64::from(entry_bytes));
    if entries_bytes > ENTRIES_BYTES_MAX {
        return Err(Corrupt::TooManyEntries(number));
    }
    Ok(Checked {
        other_sector: field64(0x20),
        entries_sector: field64(0x48),
        entry_bytes,
        entries_bytes: entries_bytes as usize,
        entries_checksum: field32(0x58),
    })
}

/// The partition of an entry; `None` for one that is not in use.
fn read_entry(number: u32, entry: &[u8], sector_bytes: u64) -> Option<std::result::Result<Partition, Problem>> {
    if entry.get(..16)?.iter().all(|byte| *byte == 0) {
        return None;
    }
    let type_id = guid::text(entry)?;
    let (first, last) = (le_u64(entry, 32)?, le_u64(entry, 40)?);
    let Some(sectors) = last.checked_sub(first).and_then(|more| more.checked_add(1)) else {
        return Some(Err(Problem::NegativeSize { number }));
    };
    let attributes = le_u64(entry, 48)?;
    let letters = (56_usize..128).step_by(2).map_while(|at| le_u16(entry, at)).take_while(|letter| *letter != 0);
    Some(Ok(Partition {
        number,
        start_byte: first.saturating_mul(sector_bytes),
        size_bytes: sectors.saturating_mul(sector_bytes),
        type_name: guid::type_name(&type_id),
        type_id,
        role: Role::Primary,
        name: char::decode_utf16(letters).map(|letter| letter.unwrap_or(char::REPLACEMENT_CHARACTER)).collect(),
        uuid: entry.get(16..).and_then(guid::text),
        bootable: attributes & ATTRIBUTE_LEGACY_BOOT != 0,
        attributes,
    }))
}
