//! New partition tables.
//!
//! ```text
//! MBR   sector 0
//! GPT   sector 0: protective MBR │ 1: header │ 2 to 33: 128 entries │ … │ 32 sectors of entries │ last: backup header
//! ```
//! Sectors have 512 bytes. The same description gives the same bytes.

use block::{BlockDevice, Error, Kind, Result};

use super::{Scheme, gpt, guid};

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Partitions begin at multiples of this, bytes.
pub const ALIGN_BYTES: u64 = 1 << 20;
/// Sectors of the GPT at either end: header and entries.
const GPT_SECTORS: u64 = 33;
const GPT_ENTRIES: usize = 128;
const GPT_ENTRY_BYTES: usize = 128;
const GPT_HEADER_BYTES: usize = 92;
const NAME_UNITS_MAX: usize = 36;
const MBR_PARTITIONS_MAX: usize = 4;

/// A table to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// Which.
    pub scheme: Scheme,
    /// The disk's GUID; of an MBR the lowest 32 bits.
    pub id: u128,
    /// The partitions, numbered from 1.
    pub partitions: Vec<New>,
}

/// A partition to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct New {
    /// First byte: a whole sector.
    pub start_byte: u64,
    /// Bytes: whole sectors.
    pub size_bytes: u64,
    /// Its type in an MBR.
    pub mbr_type: u8,
    /// Its type in a GPT, as a GUID's text.
    pub gpt_type: &'static str,
    /// Its own GUID, in a GPT.
    pub id: u128,
    /// Its name in a GPT.
    pub name: String,
}

/// Bytes behind the last partition that a table takes.
pub fn tail_bytes(scheme: Scheme) -> u64 {
    match scheme {
        Scheme::Mbr => 0,
        Scheme::Gpt => GPT_SECTORS * SECTOR,
    }
}

impl Create {
    /// Writes the table. The device's first bytes, and for a GPT its last ones, are replaced.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where partitions lie outside of what the table leaves them, are too many, or have too long a
    /// name; the failure of the device.
    pub fn write(&self, device: &dyn BlockDevice) -> Result<()> {
        let sectors = device.size() / SECTOR;
        let (first, behind) = match self.scheme {
            Scheme::Mbr => (1, sectors.min(u32::MAX.into())),
            Scheme::Gpt => (1 + GPT_SECTORS, sectors.saturating_sub(GPT_SECTORS)),
        };
        let most = if self.scheme == Scheme::Mbr { MBR_PARTITIONS_MAX } else { GPT_ENTRIES };
        if self.partitions.len() > most {
            return Err(Error::new(Kind::Invalid, format!("{} partitions", self.partitions.len())));
        }
        for (number, new) in (1..).zip(&self.partitions) {
            let whole = new.start_byte.is_multiple_of(SECTOR) && new.size_bytes.is_multiple_of(SECTOR);
            let end = new.start_byte.saturating_add(new.size_bytes) / SECTOR;
            if !whole || new.size_bytes == 0 || new.start_byte / SECTOR < first || end > behind {
                let text = format!(
                    "partition {number}: {} bytes at {} on a disk of {} bytes",
                    new.size_bytes,
                    new.start_byte,
                    device.size()
                );
                return Err(Error::new(Kind::Invalid, text));
            }
        }
        match self.scheme {
            Scheme::Mbr => {
                let entries =
                    self.partitions.iter().map(|new| (new.mbr_type, new.start_byte / SECTOR, new.size_bytes / SECTOR));
                device.write_at(&mbr(self.id as u32, entries), 0)
            }
            Scheme::Gpt => self.gpt(device, sectors),
        }
    }

    fn gpt(&self, device: &dyn BlockDevice, sectors: u64) -> Result<()> {
        let mut entries = Vec::new();
        for new in &self.partitions {
            let units: Vec<u16> = new.name.encode_utf16().collect();
            let kind = guid::bytes(new.gpt_type).filter(|_| units.len() <= NAME_UNITS_MAX);
            let kind = kind.ok_or_else(|| {
                Error::new(
                    Kind::Invalid,
                    format!("the name {:?} for a partition: it has {NAME_UNITS_MAX} letters", new.name),
                )
            })?;
            let first = new.start_byte / SECTOR;
            let last = first.saturating_add(new.size_bytes / SECTOR).saturating_sub(1);
            entries.extend_from_slice(&kind);
            entries.extend_from_slice(&guid::of_number(new.id));
            entries.extend_from_slice(&first.to_le_bytes());
            entries.extend_from_slice(&last.to_le_bytes());
            entries.extend_from_slice(&[0; 8]);
            units.iter().for_each(|unit| entries.extend_from_slice(&unit.to_le_bytes()));
            entries.resize(entries.len().next_multiple_of(GPT_ENTRY_BYTES), 0);
        }
        entries.resize(GPT_ENTRIES * GPT_ENTRY_BYTES, 0);
        let last = sectors.saturating_sub(1);
        let second_entries = last.saturating_sub(GPT_SECTORS - 1);
        let header = |own: u64, other: u64, entries_at: u64| {
            let mut header = gpt::SIGNATURE.to_vec();
            header.extend_from_slice(&0x1_0000_u32.to_le_bytes());
            header.extend_from_slice(&(GPT_HEADER_BYTES as u32).to_le_bytes());
            header.extend_from_slice(&[0; 8]);
            for number in [own, other, 1 + GPT_SECTORS, second_entries.saturating_sub(1)] {
                header.extend_from_slice(&number.to_le_bytes());
            }
            header.extend_from_slice(&guid::of_number(self.id));
            header.extend_from_slice(&entries_at.to_le_bytes());
            header.extend_from_slice(&(GPT_ENTRIES as u32).to_le_bytes());
            header.extend_from_slice(&(GPT_ENTRY_BYTES as u32).to_le_bytes());
            header.extend_from_slice(&crc32fast::hash(&entries).to_le_bytes());
            let checksum = crc32fast::hash(&header);
            header.iter_mut().skip(16).zip(checksum.to_le_bytes()).for_each(|(to, byte)| *to = byte);
            header.resize(SECTOR as usize, 0);
            header
        };
        // The backup first: a table that is there in part is then not taken.
        device.write_at(&entries, second_entries.saturating_mul(SECTOR))?;
        device.write_at(&header(last, 1, second_entries), last.saturating_mul(SECTOR))?;
        device.write_at(&entries, 2 * SECTOR)?;
        device.write_at(&header(1, last, 2), SECTOR)?;
        device.write_at(&mbr(0, [(0xee, 1, last)].into_iter()), 0)
    }
}

/// A sector with these partitions: type, first sector, sectors.
fn mbr(id: u32, partitions: impl Iterator<Item = (u8, u64, u64)>) -> Vec<u8> {
    let word = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
    let mut sector = vec![0; 0x1b8];
    sector.extend_from_slice(&id.to_le_bytes());
    sector.extend_from_slice(&[0; 2]);
    for (kind, start, sectors) in partitions {
        sector.push(0);
        sector.extend_from_slice(&cylinder_head_sector(start));
        sector.push(kind);
        sector.extend_from_slice(&cylinder_head_sector(start.saturating_add(sectors).saturating_sub(1)));
        sector.extend_from_slice(&word(start));
        sector.extend_from_slice(&word(sectors));
    }
    sector.resize(0x1fe, 0);
    sector.extend_from_slice(&[0x55, 0xaa]);
    sector
}

/// A sector as BIOS calls of old name it, of 255 heads and 63 sectors: head, sector and high bits of the cylinder, the
/// cylinder; the largest one for all that they cannot reach.
fn cylinder_head_sector(sector: u64) -> [u8; 3] {
    let (track, on_track) = (sector / 63, sector % 63);
    let (cylinder, head) = (track / 255, track % 255);
    if cylinder > 1023 {
        return [0xfe, 0xff, 0xff];
    }
    [head as u8, (cylinder >> 8 << 6) as u8 | (on_track as u8).wrapping_add(1), cylinder as u8]
}
