//! The file allocation table: for each cluster, which one follows.
//!
//! ```text
//! FAT12  12 bits an entry, two in three bytes      0 free │ 2… the next cluster │ FF7 bad │ FF8… the last one
//! FAT16  16 bits                                   the same with FFF7, FFF8…
//! FAT32  32 bits, the upper four kept as they are  the same with FFFFFF7, FFFFFF8…
//! exFAT  32 bits                                   FFFFFFF7 bad │ FFFFFFFF the last one; free is what the bitmap says
//! ```
//! Pages of it are kept as they are on the device; what changes is written by [`Table::write`], into every table.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use block::bytes::{le_u16, le_u32};
use block::{BlockDevice, ReadAt, Result};

use super::boot::{Geometry, Variant};
use super::corrupt::Corrupt;

/// Bytes of a page: whole sectors, and whole pairs of FAT12 entries.
const PAGE_BYTES: usize = 12_288;
const PAGE: u64 = PAGE_BYTES as u64;
/// The most pages that are kept.
const PAGES_MAX: usize = 1024;

/// What an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Free,
    Next(u32),
    End,
    Bad,
}

/// The pages.
#[derive(Debug, Default)]
pub(super) struct Table {
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    held: HashMap<u64, Box<[u8]>>,
    /// What of a page is to be written.
    dirty: BTreeMap<u64, Range<usize>>,
}

/// Where an entry is: page, byte in it, and whether it is the upper one of a pair.
fn place(variant: Variant, cluster: u32) -> (u64, usize, bool) {
    let cluster = u64::from(cluster);
    let at = match variant {
        Variant::Fat12 => cluster.saturating_add(cluster / 2),
        Variant::Fat16 => cluster.saturating_mul(2),
        Variant::Fat32 | Variant::ExFat => cluster.saturating_mul(4),
    };
    (at / PAGE, (at % PAGE) as usize, cluster % 2 == 1)
}

impl Pages {
    fn page(&mut self, device: &dyn ReadAt, geometry: &Geometry, number: u64) -> Result<&mut Box<[u8]>> {
        if !self.held.contains_key(&number) {
            if self.held.len() >= PAGES_MAX {
                let clean = self.held.keys().copied().find(|page| !self.dirty.contains_key(page));
                clean.and_then(|page| self.held.remove(&page));
            }
            let start = number.saturating_mul(PAGE_BYTES as u64);
            let len = geometry.table_bytes.saturating_sub(start).min(PAGE_BYTES as u64);
            let bytes = block::bytes::read_vec(device, geometry.table_at.saturating_add(start), len as usize)?;
            self.held.insert(number, bytes.into_boxed_slice());
        }
        self.held.get_mut(&number).ok_or_else(|| Corrupt::Table.at("page of the table"))
    }
}

impl Table {
    /// What the entry of a cluster says.
    ///
    /// # Errors
    /// The failure of the device.
    pub fn get(&self, device: &dyn ReadAt, geometry: &Geometry, cluster: u32) -> Result<Link> {
        let (number, at, upper) = place(geometry.variant, cluster);
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let page = pages.page(device, geometry, number)?;
        let behind = || Corrupt::Table.at(format!("entry of cluster {cluster}"));
        let (value, bad) = match geometry.variant {
            Variant::Fat12 => {
                let pair = le_u16(page, at).ok_or_else(behind)?;
                (u32::from(if upper { pair >> 4 } else { pair & 0xfff }), 0xff7)
            }
            Variant::Fat16 => (le_u16(page, at).ok_or_else(behind)?.into(), 0xfff7),
            Variant::Fat32 => (le_u32(page, at).ok_or_else(behind)? & 0x0fff_ffff, 0x0fff_fff7),
            Variant::ExFat => (le_u32(page, at).ok_or_else(behind)?, 0xffff_fff7),
        };
        Ok(match value {
            0 => Link::Free,
            _ if value == bad => Link::Bad,
            _ if value > bad => Link::End,
            _ => Link::Next(value),
        })
    }

    /// Changes an entry; [`Table::write`] writes it.
    ///
    /// # Errors
    /// The failure of the device.
    pub fn set(&self, device: &dyn ReadAt, geometry: &Geometry, cluster: u32, link: Link) -> Result<()> {
        let (number, at, upper) = place(geometry.variant, cluster);
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let page = pages.page(device, geometry, number)?;
        let value = match link {
            Link::Free => 0,
            Link::Next(next) => next,
            Link::End => u32::MAX,
            Link::Bad => 0xffff_fff7,
        };
        let old = |bytes: usize| match bytes {
            2 => le_u16(page, at).map(u32::from),
            _ => le_u32(page, at),
        };
        let behind = || Corrupt::Table.at(format!("entry of cluster {cluster}"));
        let (value, bytes) = match geometry.variant {
            Variant::Fat12 if upper => (old(2).ok_or_else(behind)? & 0xf | (value & 0xfff) << 4, 2),
            Variant::Fat12 => (old(2).ok_or_else(behind)? & 0xf000 | value & 0xfff, 2),
            Variant::Fat16 => (value & 0xffff, 2),
            Variant::Fat32 => (old(4).ok_or_else(behind)? & 0xf000_0000 | value & 0x0fff_ffff, 4),
            Variant::ExFat => (value, 4),
        };
        let end = at.saturating_add(bytes);
        let room = page.get_mut(at..end).ok_or_else(behind)?;
        room.iter_mut().zip(value.to_le_bytes()).for_each(|(to, byte)| *to = byte);
        let dirty = pages.dirty.entry(number).or_insert(at..end);
        *dirty = dirty.start.min(at)..dirty.end.max(end);
        Ok(())
    }

    /// Writes what was changed, in every table, by whole sectors.
    ///
    /// # Errors
    /// The failure of the device: what was not written is still to be written.
    pub fn write(&self, device: &dyn BlockDevice, geometry: &Geometry) -> Result<()> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let Pages { held, dirty } = &mut *pages;
        let sector = geometry.sector_bytes as usize;
        while let Some((&number, range)) = dirty.first_key_value() {
            if let Some(page) = held.get(&number) {
                let start = range.start.checked_div(sector).unwrap_or_default().saturating_mul(sector);
                let end = range.end.checked_next_multiple_of(sector).unwrap_or(range.end).min(page.len());
                let at = number.saturating_mul(PAGE_BYTES as u64).saturating_add(start as u64);
                for mirror in 0..u64::from(geometry.mirrors) {
                    let table = geometry.mirrors_at.saturating_add(mirror.saturating_mul(geometry.table_bytes));
                    device.write_at(page.get(start..end).unwrap_or_default(), table.saturating_add(at))?;
                }
            }
            dirty.pop_first();
        }
        Ok(())
    }

    /// Forgets what was changed and is not written, and all pages with it.
    pub fn forget(&self) {
        *self.pages.lock().unwrap_or_else(PoisonError::into_inner) = Pages::default();
    }

    /// Whether the entries of two clusters are written at one time.
    pub fn together(geometry: &Geometry, one: u32, other: u32) -> bool {
        place(geometry.variant, one).0 == place(geometry.variant, other).0
    }
}
