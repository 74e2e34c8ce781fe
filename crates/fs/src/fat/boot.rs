//! The boot sector: where everything is.
//!
//! ```text
//! FAT     11 sector, 2 │ 13 sectors a cluster │ 14 reserved, 2 │ 16 tables │ 17 root entries, 2 │ 19 sectors, 2
//!         22 sectors a table, 2 │ 32 sectors, 4 │ FAT32: 36 sectors a table, 4 │ 40 flags, 2 │ 44 root, 4 │ 48 info, 2
//!         state (bit 0: in use) 37, FAT32 65 │ label 43, FAT32 71
//!         reserved sectors │ table │ table │ root directory (not FAT32) │ clusters 2, 3, …
//! exFAT   72 sectors, 8 │ 80 table, 4 │ 84 sectors of it, 4 │ 88 heap, 4 │ 92 clusters, 4 │ 96 root, 4 │ 106 flags, 2
//!         108 log2 sector │ 109 log2 sectors a cluster │ 110 tables
//!         boot region, 12 sectors, twice │ table │ … │ clusters 2, 3, …
//! ```

use block::bytes::{byte, has, le_u16, le_u32};
use block::{Error, Kind, ReadAt, Result};

use super::corrupt::Corrupt;

/// Bytes of the boot sector that are looked at.
pub(super) const BOOT_BYTES: usize = 512;
/// Clusters from which on it is FAT16, and FAT32.
pub(super) const FAT16_CLUSTERS_MIN: u32 = 4085;
pub(super) const FAT32_CLUSTERS_MIN: u32 = 65_525;
/// The most clusters: numbers from 0x0FFFFFF7 on (exFAT: 0xFFFFFFF7) mean something else.
const FAT32_CLUSTERS_MAX: u64 = 0x0fff_fff5;
const EXFAT_CLUSTERS_MAX: u64 = 0xffff_fff5;

/// Which of the four.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    Fat12,
    Fat16,
    Fat32,
    ExFat,
}

/// Where the root directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RootPlace {
    /// In a place of its own: first byte, bytes.
    Fixed(u64, u64),
    /// In clusters, from this one on.
    Cluster(u32),
}

/// Where everything is; positions and lengths in bytes, all inside the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub variant: Variant,
    pub sector_bytes: u32,
    pub cluster_bytes: u32,
    /// The table that is read.
    pub table_at: u64,
    /// Of one table.
    pub table_bytes: u64,
    /// Tables that are written, from `mirrors_at` on, one behind the other.
    pub mirrors: u8,
    pub mirrors_at: u64,
    pub heap_at: u64,
    /// Their numbers begin at 2.
    pub clusters: u32,
    pub root: RootPlace,
    /// The sector with the number of free clusters, of FAT32.
    pub info_at: Option<u64>,
    /// Where the boot sector says that the file system is in use, and with which bit.
    pub state_at: u64,
    pub state_bit: u8,
    /// The label in the boot sector, where there is one.
    pub label_at: Option<u64>,
}

impl Geometry {
    /// Reads and checks a boot sector.
    ///
    /// # Errors
    /// `Unsupported` where it is none; `Corrupt`; the failure of the device.
    pub fn read(device: &dyn ReadAt) -> Result<Self> {
        if device.size() < BOOT_BYTES as u64 {
            return Err(Error::new(Kind::Unsupported, "device without a boot sector"));
        }
        let mut bytes = [0; BOOT_BYTES];
        device.read_at(&mut bytes, 0)?;
        let wrong = || Corrupt::BootSector.at("boot sector");
        let geometry = if has(&bytes, 3, b"EXFAT   ") {
            exfat(&bytes).ok_or_else(wrong)?
        } else if is_fat(&bytes) {
            fat(&bytes).ok_or_else(wrong)?
        } else {
            return Err(Error::new(Kind::Unsupported, "device without a boot sector of FAT"));
        };
        geometry.check(device.size())
    }

    fn check(self, device_bytes: u64) -> Result<Self> {
        let entries = u64::from(self.clusters).saturating_add(2);
        let needed = match self.variant {
            Variant::Fat12 => entries.saturating_mul(3).div_ceil(2),
            Variant::Fat16 => entries.saturating_mul(2),
            Variant::Fat32 | Variant::ExFat => entries.saturating_mul(4),
        };
        if self.clusters == 0 || needed > self.table_bytes {
            let text = format!("table of {} bytes for {} clusters", self.table_bytes, self.clusters);
            return Err(Corrupt::Table.at(text));
        }
        let heap_bytes = u64::from(self.clusters).saturating_mul(self.cluster_bytes.into());
        let heap_end = self.heap_at.saturating_add(heap_bytes);
        let tables_end = self.mirrors_at.saturating_add(self.table_bytes.saturating_mul(self.mirrors.into()));
        if tables_end > self.heap_at {
            return Err(Corrupt::BootSector.at(format!("tables up to {tables_end}, clusters from {}", self.heap_at)));
        }
        if heap_end > device_bytes {
            let text = format!("clusters up to byte {heap_end} of a device of {device_bytes}");
            return Err(Corrupt::Truncated.at(text));
        }
        Ok(self)
    }

    /// First byte of a cluster, which must be one of this file system.
    pub fn cluster_at(&self, cluster: u32) -> Option<u64> {
        let index = cluster.checked_sub(2).filter(|index| *index < self.clusters)?;
        u64::from(index).checked_mul(self.cluster_bytes.into())?.checked_add(self.heap_at)
    }

    /// The cluster that holds a byte of the device.
    pub fn cluster_of(&self, at: u64) -> Option<u32> {
        let index = at.checked_sub(self.heap_at)?.checked_div(self.cluster_bytes.into())?;
        u32::try_from(index).ok().filter(|index| *index < self.clusters)?.checked_add(2)
    }

    /// Clusters that so many bytes take.
    pub fn clusters_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(u64::from(self.cluster_bytes).max(1))
    }

    pub fn is_exfat(&self) -> bool {
        self.variant == Variant::ExFat
    }
}

/// Whether it looks like FAT: the marks are weak, so all of them are asked for.
pub(super) fn is_fat(boot: &[u8]) -> bool {
    let at = |at| byte(boot, at).unwrap_or_default();
    let half = |at| le_u16(boot, at).unwrap_or_default();
    let signature = has(boot, 510, &[0x55, 0xaa]);
    let extended = matches!(at(38), 0x28 | 0x29) || matches!(at(66), 0x28 | 0x29);
    matches!(half(11), 512 | 1024 | 2048 | 4096)
        && at(13).is_power_of_two()
        && half(14) > 0
        && (1..=4).contains(&at(16))
        && matches!(at(21), 0xf0 | 0xf8..)
        && (half(22) > 0 || le_u32(boot, 36).unwrap_or_default() > 0)
        && (half(19) > 0 || le_u32(boot, 32).unwrap_or_default() > 0)
        && (half(17) > 0 || half(22) == 0)
        && (signature || extended || matches!(at(0), 0xeb | 0xe9))
}

fn fat(boot: &[u8]) -> Option<Geometry> {
    let half = |at| Some(u64::from(le_u16(boot, at)?));
    let word = |at| Some(u64::from(le_u32(boot, at)?));
    let sector = half(11)?;
    let (cluster_sectors, reserved, tables) = (u64::from(byte(boot, 13)?), half(14)?, byte(boot, 16)?);
    let (table_sectors, small) = if half(22)? == 0 { (word(36)?, false) } else { (half(22)?, true) };
    let sectors = if half(19)? == 0 { word(32)? } else { half(19)? };
    let cluster_bytes = cluster_sectors.checked_mul(sector)?;
    let root_bytes = half(17)?.checked_mul(32)?;
    let root_sector = reserved.checked_add(table_sectors.checked_mul(tables.into())?)?;
    let heap_sector = root_sector.checked_add(root_bytes.div_ceil(sector))?;
    let clusters = sectors.checked_sub(heap_sector)?.checked_div(cluster_sectors)?;
    // A table of FAT32 is told by its field of 32 bits, whatever the number of clusters.
    let variant = match clusters {
        _ if !small => Variant::Fat32,
        _ if clusters < FAT16_CLUSTERS_MIN.into() => Variant::Fat12,
        _ if clusters < FAT32_CLUSTERS_MIN.into() => Variant::Fat16,
        _ => return None,
    };
    // Tables larger than the clusters need hold clusters that are not there.
    let clusters = u32::try_from(clusters.min(FAT32_CLUSTERS_MAX)).ok()?;
    let table_bytes = table_sectors.checked_mul(sector)?;
    let first_table = reserved.checked_mul(sector)?;
    let fat32 = variant == Variant::Fat32;
    // Bit 7: only one of the tables is kept up to date.
    let flags = if fat32 { half(40)? } else { 0 };
    let active = if flags & 0x80 == 0 { 0 } else { flags & 15 };
    if active >= u64::from(tables) {
        return None;
    }
    let table_at = first_table.checked_add(active.checked_mul(table_bytes)?)?;
    let (mirrors, mirrors_at) = if flags & 0x80 == 0 { (tables, first_table) } else { (1, table_at) };
    let root = if fat32 {
        RootPlace::Cluster(word(44)? as u32)
    } else {
        RootPlace::Fixed(root_sector.checked_mul(sector)?, root_bytes)
    };
    let info = if fat32 { half(48)? } else { 0 };
    let extended = if fat32 { 64_u64 } else { 36 };
    let signature = byte(boot, if fat32 { 66 } else { 38 }) == Some(0x29);
    Some(Geometry {
        variant,
        sector_bytes: sector as u32,
        cluster_bytes: cluster_bytes as u32,
        table_at,
        table_bytes,
        mirrors,
        mirrors_at,
        heap_at: heap_sector.checked_mul(sector)?,
        clusters,
        root,
        info_at: (info > 0 && info < reserved).then(|| info.saturating_mul(sector)),
        state_at: extended.saturating_add(1),
        state_bit: 1,
        label_at: signature.then(|| extended.saturating_add(7)),
    })
}

fn exfat(boot: &[u8]) -> Option<Geometry> {
    let word = |at| Some(u64::from(le_u32(boot, at)?));
    let (sector_log, cluster_log) = (u32::from(byte(boot, 108)?), u32::from(byte(boot, 109)?));
    if !(9..=12).contains(&sector_log) || cluster_log > 25_u32.checked_sub(sector_log)? {
        return None;
    }
    let sector = 1_u64.checked_shl(sector_log)?;
    let cluster_bytes = sector.checked_shl(cluster_log)?;
    let tables = byte(boot, 110).filter(|tables| (1..=2).contains(tables))?;
    let flags = le_u16(boot, 106)?;
    let active = u64::from(flags & 1);
    if active >= u64::from(tables) {
        return None;
    }
    let table_bytes = word(84)?.checked_mul(sector)?;
    let table_at = word(80)?.checked_mul(sector)?.checked_add(active.checked_mul(table_bytes)?)?;
    Some(Geometry {
        variant: Variant::ExFat,
        sector_bytes: sector as u32,
        cluster_bytes: cluster_bytes as u32,
        table_at,
        table_bytes,
        mirrors: 1,
        mirrors_at: table_at,
        heap_at: word(88)?.checked_mul(sector)?,
        clusters: u32::try_from(word(92)?.min(EXFAT_CLUSTERS_MAX)).ok()?,
        root: RootPlace::Cluster(word(96)? as u32),
        info_at: None,
        state_at: 106,
        state_bit: 2,
        label_at: None,
    })
}
