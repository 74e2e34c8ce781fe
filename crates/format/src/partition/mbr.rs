//! The master boot record, and the chain of them in an extended partition.
//!
//! ```text
//! 0x000  boot code
//! 0x1b8  disk id, 32 bits
//! 0x1be  four entries of 16 bytes:  flag | CHS 3 | type | CHS 3 | first sector, 32 bits | sectors, 32 bits
//! 0x1fe  55 aa
//! ```
//! In an extended partition the first sector holds the same: one entry for a logical partition, counted from that
//! sector, and one for the next link, counted from the first sector of the extended partition.
//!
//! Which partitions there are, and their numbers, follow `block/partitions/msdos.c` of Linux, without the BSD, Minix and
//! Solaris tables inside of a partition, and without following a chain that loops.

use std::collections::BTreeSet;

use block::bytes::{has, le_u16, le_u32, read_up_to};
use block::{ReadAt, Result};

use super::{Partition, Problem, Role, Scheme, Table};

/// The most logical partitions: the kernel has 256 numbers for a disk.
pub const LOGICAL_MAX: u32 = 251;
/// The most links of a chain without a logical partition in them, as in the kernel.
const EMPTY_LINKS_MAX: u32 = 100;

const ENTRIES: usize = 0x1be;
const ENTRY_BYTES: usize = 16;
/// The type of the entry that protects a GPT.
const TYPE_GPT: u8 = 0xee;

#[derive(Debug, Clone, Copy)]
struct Entry {
    flag: u8,
    kind: u8,
    start_sector: u32,
    sectors: u32,
}

impl Entry {
    fn is_extended(self) -> bool {
        self.sectors > 0 && matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn partition(self, number: u32, role: Role, start_sector: u64, sector_bytes: u64, id: u32) -> Partition {
        Partition {
            number,
            start_byte: start_sector.saturating_mul(sector_bytes),
            size_bytes: u64::from(self.sectors).saturating_mul(sector_bytes),
            type_id: format!("{:02x}", self.kind),
            type_name: type_name(self.kind),
            role,
            name: String::new(),
            uuid: (id != 0).then(|| format!("{id:08x}-{number:02x}")),
            bootable: self.flag & 0x80 != 0,
            attributes: 0,
        }
    }
}

/// The four entries of a sector that has the signature.
fn entries(sector: &[u8]) -> Option<[Entry; 4]> {
    if !has(sector, 0x1fe, &[0x55, 0xaa]) {
        return None;
    }
    let entry = |slot: usize| {
        let at = sector.get(ENTRIES.checked_add(slot.checked_mul(ENTRY_BYTES)?)?..)?;
        Some(Entry { flag: *at.first()?, kind: *at.get(4)?, start_sector: le_u32(at, 8)?, sectors: le_u32(at, 12)? })
    };
    Some([entry(0)?, entry(1)?, entry(2)?, entry(3)?])
}

/// Whether the first sector holds an entry that protects a GPT, in the kernel's sense: type `ee`, from sector 1 on.
pub fn protects_gpt(first: &[u8]) -> bool {
    entries(first).is_some_and(|four| four.iter().any(|entry| entry.kind == TYPE_GPT && entry.start_sector == 1))
}

/// Reads the MBR of a device whose first 512 bytes are `first`. An MBR with nothing but the protection of a GPT counts.
///
/// # Errors
/// The failure of the device.
pub fn read(device: &dyn ReadAt, first: &[u8], sector_bytes: u32) -> Result<Option<Table>> {
    let Some(four) = entries(first).filter(|four| is_table(first, four, device.size(), sector_bytes)) else {
        return Ok(None);
    };
    let id = le_u32(first, 0x1b8).unwrap_or_default();
    let sector = u64::from(sector_bytes);
    let mut table = Table {
        scheme: Scheme::Mbr,
        id: (id != 0).then(|| format!("{id:08x}")),
        sector_bytes,
        partitions: Vec::new(),
        problems: Vec::new(),
        shadowed: None,
    };
    for (number, entry) in (1_u32..).zip(four).filter(|(_, entry)| entry.sectors > 0) {
        let role = if entry.is_extended() { Role::Extended } else { Role::Primary };
        table.partitions.push(entry.partition(number, role, u64::from(entry.start_sector), sector, id));
    }
    let mut next_number = 5;
    for extended in four.iter().filter(|entry| entry.is_extended()) {
        read_chain(device, *extended, id, &mut next_number, &mut table)?;
    }
    Ok(Some(table.check(device.size())))
}

fn read_chain(device: &dyn ReadAt, extended: Entry, id: u32, next: &mut u32, table: &mut Table) -> Result<()> {
    let sector = u64::from(table.sector_bytes);
    let first = u64::from(extended.start_sector);
    let end = first.saturating_add(u64::from(extended.sectors));
    let (mut here, mut here_sectors) = (first, u64::from(extended.sectors));
    let mut seen = BTreeSet::new();
    let mut empty_links = 0_u32;
    loop {
        if !seen.insert(here) {
            table.problems.push(Problem::ChainLoops { sector: here });
            return Ok(());
        }
        let link = read_up_to(device, here.saturating_mul(sector), 512)?;
        let Some(four) = entries(&link) else {
            table.problems.push(Problem::ChainBroken { sector: here });
            return Ok(());
        };
        empty_links = empty_links.saturating_add(1);
        for (slot, entry) in four.iter().enumerate().filter(|(_, entry)| entry.sectors > 0 && !entry.is_extended()) {
            let offset = u64::from(entry.start_sector);
            let sectors = u64::from(entry.sectors);
            let start = here.saturating_add(offset);
            // The two last slots are garbage on some disks: they count only where they make sense.
            let inside = offset.saturating_add(sectors) <= here_sectors
                && start >= first
                && start.saturating_add(sectors) <= end;
            if slot >= 2 && !inside {
                continue;
            }
            if *next >= LOGICAL_MAX.saturating_add(5) {
                table.problems.push(Problem::ChainTooLong);
                return Ok(());
            }
            table.partitions.push(entry.partition(*next, Role::Logical, start, sector, id));
            *next = next.saturating_add(1);
            empty_links = 0;
        }
        if empty_links > EMPTY_LINKS_MAX {
            table.problems.push(Problem::ChainTooLong);
            return Ok(());
        }
        let Some(link) = four.iter().find(|entry| entry.is_extended()) else { return Ok(()) };
        here = first.saturating_add(u64::from(link.start_sector));
        here_sectors = u64::from(link.sectors);
    }
}

/// Whether a first sector with the signature is a table, and not the boot sector of a file system or a program.
fn is_table(first: &[u8], four: &[Entry; 4], device_bytes: u64, sector_bytes: u32) -> bool {
    if four.iter().any(|entry| !matches!(entry.flag, 0 | 0x80)) {
        return false;
    }
    if four.iter().all(|entry| entry.sectors == 0) {
        // An empty table, as made by sfdisk and parted, has a disk id and nothing else; a boot sector has neither.
        let id = le_u32(first, 0x1b8).unwrap_or_default();
        let blank = first.get(ENTRIES..0x1fe).is_some_and(|entries| entries.iter().all(|byte| *byte == 0));
        return id != 0 && blank && !is_boot_sector(first);
    }
    !is_boot_sector(first) || are_sane(four, device_bytes, sector_bytes)
}

/// Whether the sector describes a FAT, exFAT or NTFS volume that begins right here.
fn is_boot_sector(first: &[u8]) -> bool {
    if has(first, 3, b"NTFS    ") || has(first, 3, b"EXFAT   ") || has(first, 3, b"-FVE-FS-") {
        return true;
    }
    let byte = |at: usize| first.get(at).copied().unwrap_or_default();
    let sector = le_u16(first, 11).unwrap_or_default();
    matches!(byte(0), 0xeb | 0xe9)
        && matches!(sector, 512 | 1024 | 2048 | 4096)
        && byte(13).is_power_of_two()
        && le_u16(first, 14).unwrap_or_default() > 0
        && matches!(byte(16), 1 | 2)
        && matches!(byte(21), 0xf0 | 0xf8..)
}

/// Whether each entry makes sense and none overlaps another: chance does not make such a thing of boot code.
fn are_sane(four: &[Entry; 4], device_bytes: u64, sector_bytes: u32) -> bool {
    let device_sectors = device_bytes.checked_div(u64::from(sector_bytes)).unwrap_or_default();
    let mut spans = Vec::new();
    for entry in four.iter().filter(|entry| entry.sectors > 0 || entry.kind != 0 || entry.start_sector > 0) {
        let start = u64::from(entry.start_sector);
        let end = start.saturating_add(u64::from(entry.sectors));
        if entry.kind == 0 || start == 0 || entry.sectors == 0 || end > device_sectors {
            return false;
        }
        spans.push((start, end));
    }
    spans.sort_unstable();
    spans.iter().zip(spans.iter().skip(1)).all(|(one, other)| one.1 <= other.0)
}

/// What a type is called; the list is of those that are met, not of all that were ever given out.
fn type_name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        0x00 => "empty type",
        0x01 => "FAT12",
        0x04 | 0x06 | 0x0e => "FAT16",
        0x05 | 0x0f => "extended",
        0x07 => "NTFS or exFAT",
        0x0b | 0x0c => "FAT32",
        0x11 | 0x14 | 0x16 | 0x17 | 0x1b | 0x1c | 0x1e => "hidden FAT or NTFS",
        0x27 => "Windows recovery",
        0x39 => "Plan 9",
        0x41 => "PowerPC PReP boot",
        0x42 => "Windows dynamic disk",
        0x63 => "GNU HURD",
        0x82 => "Linux swap",
        0x83 => "Linux",
        0x85 => "Linux extended",
        0x8e => "Linux LVM",
        0x96 => "ISO 9660",
        0xa5 => "FreeBSD",
        0xa6 => "OpenBSD",
        0xa8 => "Darwin UFS",
        0xa9 => "NetBSD",
        0xab => "Darwin boot",
        0xaf => "HFS or HFS+",
        0xbe => "Solaris boot",
        0xbf => "Solaris",
        0xcd => "hybrid ISO image",
        0xda => "data",
        0xea => "Linux extended boot",
        0xeb => "BeOS",
        0xee => "protection of a GPT",
        0xef => "EFI system",
        0xfb => "VMware VMFS",
        0xfd => "Linux RAID",
        _ => return None,
    })
}
