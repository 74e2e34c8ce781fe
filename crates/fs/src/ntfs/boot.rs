//! The boot sector.
//!
//! ```text
//! 3 "NTFS    " │ 11 sector bytes, 2 │ 13 sectors of a cluster │ 40 sectors, 8 │ 48 cluster of the master file table, 8
//! 56 of its mirror, 8 │ 64 clusters of a record │ 68 clusters of an index block │ 72 serial number, 8 │ 510 55 AA
//! ```
//! A number of sectors above 128, and a number of clusters below 0, is the negative of a power of two, bytes for the
//! latter.

use block::Result;
use block::bytes::{byte, has, le_u16, le_u64};

use super::corrupt::Corrupt;

/// Bytes of a cluster, at most.
const CLUSTER_BYTES_MAX: u64 = 2 << 20;
/// Bytes of a record, at most.
const RECORD_BYTES_MAX: u64 = 4096;

/// What the boot sector says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boot {
    pub sector_bytes: u64,
    pub cluster_bytes: u64,
    pub record_bytes: u64,
    pub sectors: u64,
    /// Where the master file table and its mirror begin, bytes.
    pub table: u64,
    pub mirror: u64,
    pub serial: u64,
}

impl Boot {
    /// Whether a sector looks like one.
    pub fn is_at(sector: &[u8]) -> bool {
        has(sector, 3, b"NTFS    ")
    }

    /// Reads it.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn parse(sector: &[u8]) -> Result<Self> {
        Self::fields(sector).ok_or_else(|| Corrupt::BootSector.at("boot sector"))
    }

    fn fields(sector: &[u8]) -> Option<Self> {
        if !Self::is_at(sector) {
            return None;
        }
        let sector_bytes = u64::from(le_u16(sector, 11)?);
        let cluster_sectors = match byte(sector, 13)? {
            small @ 1..=128 => u64::from(small),
            log => 1_u64.checked_shl(u32::from(log.wrapping_neg()))?,
        };
        let cluster_bytes = sector_bytes.checked_mul(cluster_sectors)?;
        let record_bytes = match byte(sector, 64)? {
            clusters @ 1..=127 => cluster_bytes.checked_mul(u64::from(clusters))?,
            log => 1_u64.checked_shl(u32::from(log.wrapping_neg()))?,
        };
        let sound = sector_bytes.is_power_of_two()
            && (256..=4096).contains(&sector_bytes)
            && cluster_bytes.is_power_of_two()
            && (256..=CLUSTER_BYTES_MAX).contains(&cluster_bytes)
            && record_bytes.is_power_of_two()
            && (512..=RECORD_BYTES_MAX).contains(&record_bytes);
        let place = |at| le_u64(sector, at)?.checked_mul(cluster_bytes);
        sound.then_some(Self {
            sector_bytes,
            cluster_bytes,
            record_bytes,
            sectors: le_u64(sector, 40)?,
            table: place(48)?,
            mirror: place(56)?,
            serial: le_u64(sector, 72)?,
        })
    }
}
