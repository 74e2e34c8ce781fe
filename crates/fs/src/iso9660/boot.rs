//! The boot catalog (El Torito).
//!
//! ```text
//! 01 │ platform │ … │ check sum at 28 │ 55 AA        validation entry: its 16-bit words add up to 0
//! 88 or 00 │ media │ segment, 2 │ type │ 0 │ sectors, 2 │ block, 4       the default entry: bootable or not
//! 90, last 91 │ platform │ entries, 2 │ …            header of a section; then that many entries, each as above,
//!                                                    and 44 …: more of the entry before
//! ```

use block::bytes::{byte, le_u16, le_u32};
use block::{ReadAt, Result};

use super::Corrupt;
use super::volume::SECTOR_BYTES;

const ENTRY_BYTES: usize = 32;

/// How a program that is booted is presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootEntry {
    /// For which machines: 0 PC (BIOS), 1 PowerPC, 2 Mac, 0xEF EFI.
    pub platform: u8,
    /// Whether it is to be booted.
    pub bootable: bool,
    /// 0 as it is; 1 to 3 as a floppy disk, 4 as a hard disk.
    pub media: u8,
    /// Units of 512 bytes that are loaded.
    pub sectors: u16,
    /// Where it begins, bytes.
    pub start: u64,
}

/// The entries of the catalog at `start`, which is one sector.
///
/// # Errors
/// [`Corrupt::BootCatalog`]; the failure of the device.
pub(super) fn entries(device: &dyn ReadAt, start: u64) -> Result<Vec<BootEntry>> {
    let corrupt = || Corrupt::BootCatalog.at(format!("boot catalog at {start}"));
    if start.saturating_add(SECTOR_BYTES) > device.size() {
        return Err(corrupt());
    }
    let mut bytes = [0_u8; 2048];
    device.read_at(&mut bytes, start)?;
    let (validation, rest) = bytes.split_at_checked(ENTRY_BYTES).ok_or_else(corrupt)?;
    let sum = (0..16).filter_map(|word| le_u16(validation, 2_usize.saturating_mul(word))).fold(0, u16::wrapping_add);
    if byte(validation, 0) != Some(1) || validation.get(30..) != Some(&[0x55, 0xaa]) || sum != 0 {
        return Err(corrupt());
    }
    let mut platform = byte(validation, 1).unwrap_or(0);
    let mut found = Vec::new();
    // Entries that are still due in this section, and whether another section follows.
    let (mut due, mut more) = (1_u16, true);
    for entry in rest.chunks_exact(ENTRY_BYTES) {
        match byte(entry, 0) {
            Some(0x44) => {}
            Some(kind @ (0x90 | 0x91)) if due == 0 && more => {
                platform = byte(entry, 1).unwrap_or(0);
                due = le_u16(entry, 2).unwrap_or(0);
                more = kind == 0x90;
            }
            Some(kind @ (0x88 | 0)) if due > 0 => {
                due = due.saturating_sub(1);
                found.push(BootEntry {
                    platform,
                    bootable: kind == 0x88,
                    media: byte(entry, 1).unwrap_or(0) & 0x0f,
                    sectors: le_u16(entry, 6).unwrap_or(0),
                    start: u64::from(le_u32(entry, 8).unwrap_or(0)).saturating_mul(SECTOR_BYTES),
                });
            }
            _ => break,
        }
    }
    Ok(found)
}
