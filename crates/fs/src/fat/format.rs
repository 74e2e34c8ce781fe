//! New FAT and exFAT file systems.
//!
//! ```text
//! FAT    reserved: boot sector, FAT32: information 1, copies 6 and 7 │ two tables │ root (not FAT32) │ clusters
//! exFAT  boot region 0 to 11, again 12 to 23 │ table │ clusters: bitmap, up-case table, root directory
//! ```
//! The same description gives the same bytes. The size of clusters is that of mkfs.fat and of Windows for exFAT.

use block::{BlockDevice, Error, Kind, Result, Zero};

use super::boot::{FAT16_CLUSTERS_MIN, FAT32_CLUSTERS_MIN};
use super::entry::{BITMAP, UP_CASE, VOLUME_LABEL};
use super::name;
use super::time::Stamp;
use crate::Time;

const SECTOR: u64 = 512;
/// What stands where a program to boot would: nothing that runs.
const JUMP_FAT: [u8; 3] = [0xeb, 0x3c, 0x90];
const JUMP_FAT32: [u8; 3] = [0xeb, 0x58, 0x90];
const JUMP_EXFAT: [u8; 3] = [0xeb, 0x76, 0x90];
/// A hard disk.
const MEDIA: u8 = 0xf8;
const TABLES: u64 = 2;
/// Entries of the root directory of FAT12 and FAT16.
const ROOT_ENTRIES: u64 = 512;
const FAT32_RESERVED: u64 = 32;
/// The table and the clusters of exFAT begin at multiples of this.
const EXFAT_ALIGN: u64 = 1 << 20;
/// The boot region without its checksums.
const EXFAT_REGION_BYTES: usize = 11 * 512;
const EXFAT_BYTES_MIN: u64 = 1 << 20;
const FAT_BYTES_MIN: u64 = 64 << 10;

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Type {
    /// FAT12, FAT16 or FAT32, as the size demands.
    #[default]
    Fat,
    /// FAT32, which needs 33 MiB or more.
    Fat32,
    /// exFAT.
    ExFat,
}

/// What is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Format {
    /// Which.
    pub file_system: Type,
    /// Empty for none.
    pub label: String,
    /// The serial number, by which it is found again.
    pub serial: u32,
    /// Bytes before it on the disk, where it is in a partition.
    pub start_bytes: u64,
    /// The time of what is made with it.
    pub time: Time,
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    to.iter_mut().skip(at).zip(bytes).for_each(|(to, byte)| *to = *byte);
}

fn half(number: u64) -> [u8; 2] {
    u16::try_from(number).unwrap_or(u16::MAX).to_le_bytes()
}

fn word(number: u64) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes()
}

impl Format {
    /// Makes the file system: all of the device is its.
    ///
    /// # Errors
    /// `Invalid` for a label or a size that it cannot have; the failure of the device.
    pub fn make(&self, device: &dyn BlockDevice) -> Result<()> {
        let bytes = (device.size() / SECTOR).saturating_mul(SECTOR);
        match self.file_system {
            Type::ExFat => self.exfat(device, bytes)?,
            Type::Fat | Type::Fat32 => self.fat(device, bytes)?,
        }
        device.flush()
    }

    /// Of one of so many bytes: bytes of a cluster, and how many clusters are free for files and directories, the root of
    /// FAT32 and exFAT among them; `None` where there is none of that size.
    pub fn room(&self, bytes: u64) -> Option<(u64, u64)> {
        if self.file_system == Type::ExFat {
            let layout = ExFatLayout::of(bytes, up_case_table().len() as u64)?;
            // The root directory is one of those that are counted.
            return Some((1 << layout.cluster_log, layout.clusters.saturating_sub(layout.used()).saturating_add(1)));
        }
        let layout = Layout::of(bytes / SECTOR, self.file_system == Type::Fat32)?;
        // That of FAT12 and FAT16 takes no cluster.
        let fixed_root = u64::from(layout.bits != 32);
        Some((layout.cluster_sectors.saturating_mul(SECTOR), layout.clusters.saturating_add(fixed_root)))
    }

    fn fat(&self, device: &dyn BlockDevice, bytes: u64) -> Result<()> {
        let wrong = |why: &str| Error::new(Kind::Invalid, format!("FAT of {bytes} bytes: {why}"));
        let sectors = bytes / SECTOR;
        if bytes < FAT_BYTES_MIN || sectors > u64::from(u32::MAX) {
            return Err(wrong("it has 64 KiB to 2 TiB"));
        }
        let layout = Layout::of(sectors, self.file_system == Type::Fat32).ok_or_else(|| {
            wrong(if self.file_system == Type::Fat32 {
                "FAT32 needs 33 MiB or more"
            } else {
                "no size of clusters fits"
            })
        })?;
        let label = if self.label.is_empty() { *b"NO NAME    " } else { name::label(&self.label)? };
        let fat32 = layout.bits == 32;
        let mut boot = [0_u8; SECTOR as usize];
        put(&mut boot, 0, if fat32 { &JUMP_FAT32 } else { &JUMP_FAT });
        put(&mut boot, 3, b"loopbox ");
        put(&mut boot, 11, &half(SECTOR));
        put(&mut boot, 13, &[layout.cluster_sectors as u8]);
        put(&mut boot, 14, &half(layout.reserved));
        put(&mut boot, 16, &[TABLES as u8]);
        put(&mut boot, 17, &half(layout.root_entries));
        // Sixteen bits where they suffice.
        if sectors < 0x1_0000 && !fat32 {
            put(&mut boot, 19, &half(sectors));
        } else {
            put(&mut boot, 32, &word(sectors));
        }
        put(&mut boot, 21, &[MEDIA]);
        if !fat32 {
            put(&mut boot, 22, &half(layout.table_sectors));
        }
        // What old programs want to know of the disk: sectors a track, heads.
        put(&mut boot, 24, &half(63));
        put(&mut boot, 26, &half(255));
        put(&mut boot, 28, &word(self.start_bytes / SECTOR));
        if fat32 {
            put(&mut boot, 36, &word(layout.table_sectors));
            put(&mut boot, 44, &word(2));
            put(&mut boot, 48, &half(1));
            put(&mut boot, 50, &half(6));
        }
        let extended = if fat32 { 64_usize } else { 36 };
        put(&mut boot, extended, &[0x80, 0, 0x29]);
        put(&mut boot, extended.saturating_add(3), &self.serial.to_le_bytes());
        put(&mut boot, extended.saturating_add(7), &label);
        let kind: &[u8; 8] = match layout.bits {
            12 => b"FAT12   ",
            16 => b"FAT16   ",
            _ => b"FAT32   ",
        };
        put(&mut boot, extended.saturating_add(18), kind);
        put(&mut boot, 510, &[0x55, 0xaa]);
        let heap_sector = layout.heap_sector();
        let first_cluster = layout.cluster_sectors;
        let cleared = heap_sector.saturating_add(first_cluster).saturating_mul(SECTOR);
        device.write_zeroes(0, cleared.min(bytes), Zero::Deallocate)?;
        if fat32 {
            let mut info = [0_u8; SECTOR as usize];
            put(&mut info, 0, b"RRaA");
            put(&mut info, 484, b"rrAa");
            put(&mut info, 488, &word(layout.clusters.saturating_sub(1)));
            put(&mut info, 492, &word(2));
            put(&mut info, 510, &[0x55, 0xaa]);
            for copy in [0, 6] {
                device.write_at(&info, SECTOR.saturating_mul(1_u64.saturating_add(copy)))?;
            }
            device.write_at(&boot, SECTOR.saturating_mul(6))?;
        }
        let head: &[u8] = match layout.bits {
            12 => &[MEDIA, 0xff, 0xff],
            16 => &[MEDIA, 0xff, 0xff, 0xff],
            _ => &[MEDIA, 0xff, 0xff, 0x0f, 0xff, 0xff, 0xff, 0x0f, 0xff, 0xff, 0xff, 0x0f],
        };
        for table in 0..TABLES {
            let at = layout.reserved.saturating_add(table.saturating_mul(layout.table_sectors));
            device.write_at(head, at.saturating_mul(SECTOR))?;
        }
        if !self.label.is_empty() {
            let mut entry = [0_u8; 32];
            let stamp = Stamp::of(self.time);
            put(&mut entry, 0, &label);
            put(&mut entry, 11, &[0x08]);
            put(&mut entry, 22, &stamp.time.to_le_bytes());
            put(&mut entry, 24, &stamp.date.to_le_bytes());
            let root = heap_sector.saturating_sub(layout.root_sectors());
            device.write_at(&entry, root.saturating_mul(SECTOR))?;
        }
        device.write_at(&boot, 0)
    }

    fn exfat(&self, device: &dyn BlockDevice, bytes: u64) -> Result<()> {
        if bytes < EXFAT_BYTES_MIN {
            return Err(Error::new(Kind::Invalid, format!("exFAT of {bytes} bytes: it needs 1 MiB")));
        }
        let label: Vec<u16> = self.label.encode_utf16().collect();
        if label.len() > 11 {
            return Err(Error::new(Kind::Invalid, format!("{:?} as a label: exFAT has 11 characters", self.label)));
        }
        let upper = up_case_table();
        let layout = ExFatLayout::of(bytes, upper.len() as u64)
            .ok_or_else(|| Error::new(Kind::Invalid, format!("exFAT of {bytes} bytes: too small")))?;
        let ExFatLayout {
            cluster_log, table_at, table_bytes, heap_at, clusters, bitmap_clusters, upper_clusters, ..
        } = layout;
        let (cluster, bitmap_bytes, used) = (1_u64 << cluster_log, clusters.div_ceil(8), layout.used());
        let upper_first = bitmap_clusters.saturating_add(2);
        let root_first = upper_first.saturating_add(upper_clusters);
        let at = |cluster_number: u64| heap_at.saturating_add(cluster_number.saturating_sub(2).saturating_mul(cluster));
        device.write_zeroes(0, at(root_first).saturating_add(cluster), Zero::Deallocate)?;
        // Table: each of the three is a chain of neighbours.
        let mut table = Vec::new();
        table.extend_from_slice(&0xffff_fff8_u32.to_le_bytes());
        table.extend_from_slice(&u32::MAX.to_le_bytes());
        for (first, count) in [(2, bitmap_clusters), (upper_first, upper_clusters), (root_first, 1)] {
            let last = first.saturating_add(count).saturating_sub(1);
            (first..last).for_each(|cluster| table.extend_from_slice(&word(cluster.saturating_add(1))));
            table.extend_from_slice(&u32::MAX.to_le_bytes());
        }
        device.write_at(&table, table_at)?;
        let mut bitmap = vec![0_u8; bitmap_bytes as usize];
        for index in 0..used {
            bitmap.iter_mut().skip((index / 8) as usize).take(1).for_each(|byte| *byte |= 1 << (index % 8));
        }
        device.write_at(&bitmap, at(2))?;
        device.write_at(&upper, at(upper_first))?;
        let mut root = Vec::new();
        if !label.is_empty() {
            let mut entry = [0_u8; 32];
            put(&mut entry, 0, &[VOLUME_LABEL, label.len() as u8]);
            let units: Vec<u8> = label.iter().flat_map(|unit| unit.to_le_bytes()).collect();
            put(&mut entry, 2, &units);
            root.push(entry);
        }
        let mut entry = [0_u8; 32];
        put(&mut entry, 0, &[BITMAP]);
        put(&mut entry, 20, &word(2));
        put(&mut entry, 24, &bitmap_bytes.to_le_bytes());
        root.push(entry);
        let mut entry = [0_u8; 32];
        put(&mut entry, 0, &[UP_CASE]);
        put(&mut entry, 4, &table_sum(&upper, &[]).to_le_bytes());
        put(&mut entry, 20, &word(upper_first));
        put(&mut entry, 24, &(upper.len() as u64).to_le_bytes());
        root.push(entry);
        device.write_at(&root.concat(), at(root_first))?;
        let mut boot = [0_u8; SECTOR as usize];
        put(&mut boot, 0, &JUMP_EXFAT);
        put(&mut boot, 3, b"EXFAT   ");
        put(&mut boot, 64, &(self.start_bytes / SECTOR).to_le_bytes());
        put(&mut boot, 72, &(bytes / SECTOR).to_le_bytes());
        put(&mut boot, 80, &word(table_at / SECTOR));
        put(&mut boot, 84, &word(table_bytes / SECTOR));
        put(&mut boot, 88, &word(heap_at / SECTOR));
        put(&mut boot, 92, &word(clusters));
        put(&mut boot, 96, &word(root_first));
        put(&mut boot, 100, &self.serial.to_le_bytes());
        put(&mut boot, 105, &[1]);
        // 512 bytes a sector, one table, the first disk, and that it is not said how full it is.
        put(&mut boot, 108, &[9, cluster_log.saturating_sub(9) as u8, 1, 0x80, 0xff]);
        put(&mut boot, 510, &[0x55, 0xaa]);
        let mut region = boot.to_vec();
        for _ in 0..8 {
            let mut sector = [0_u8; SECTOR as usize];
            put(&mut sector, 510, &[0x55, 0xaa]);
            region.extend_from_slice(&sector);
        }
        region.resize(EXFAT_REGION_BYTES, 0);
        // Flags and percentage change, and do not count.
        let sum = table_sum(&region, &[106, 107, 112]);
        region.extend((0..SECTOR / 4).flat_map(|_| sum.to_le_bytes()));
        device.write_at(&region, 12 * SECTOR)?;
        device.write_at(&region, 0)
    }
}

/// The checksum of the boot region and of the up-case table.
fn table_sum(bytes: &[u8], without: &[usize]) -> u32 {
    let counted = bytes.iter().enumerate().filter(|(at, _)| !without.contains(at));
    counted.fold(0_u32, |sum, (_, byte)| sum.rotate_right(1).wrapping_add(u32::from(*byte)))
}

/// The up-case table, with runs of units that stand for themselves as FFFF and their length: the letters of Latin-1 and
/// Latin Extended-A, Greek, Cyrillic, Armenian, and full width. The same whatever Unicode becomes.
fn up_case_table() -> Vec<u8> {
    let upper = |unit: u16| match unit {
        0x61..=0x7a | 0xe0..=0xf6 | 0xf8..=0xfe | 0x3b1..=0x3c1 | 0x3c3..=0x3cb | 0x430..=0x44f => {
            unit.wrapping_sub(32)
        }
        0xff => 0x178,
        0x101..=0x12f | 0x133..=0x137 | 0x14b..=0x177 if unit % 2 == 1 => unit.wrapping_sub(1),
        0x13a..=0x148 | 0x17a..=0x17e if unit.is_multiple_of(2) => unit.wrapping_sub(1),
        0x450..=0x45f => unit.wrapping_sub(80),
        0x561..=0x586 => unit.wrapping_sub(48),
        0xff41..=0xff5a => unit.wrapping_sub(32),
        _ => unit,
    };
    let mut units: Vec<u16> = Vec::new();
    let mut same = 0_u16;
    // A run of one or two costs as much as it saves, and the first 128 units are to be written out.
    for unit in 0..=u16::MAX {
        let other = upper(unit);
        if other == unit && unit >= 128 && unit != u16::MAX {
            same = same.saturating_add(1);
            continue;
        }
        if same > 0 {
            units.extend([u16::MAX, same]);
            same = 0;
        }
        units.push(other);
    }
    units.iter().flat_map(|unit| unit.to_le_bytes()).collect()
}

/// Where everything goes on exFAT, in bytes.
struct ExFatLayout {
    cluster_log: u32,
    table_at: u64,
    table_bytes: u64,
    heap_at: u64,
    clusters: u64,
    bitmap_clusters: u64,
    upper_clusters: u64,
}

impl ExFatLayout {
    /// Of a size, and the size of the up-case table; `None` where it is too small.
    fn of(bytes: u64, upper_bytes: u64) -> Option<Self> {
        let cluster_log: u32 = match bytes {
            0..EXFAT_BYTES_MIN => return None,
            EXFAT_BYTES_MIN..0x1000_0001 => 12,
            0x1000_0001..0x8_0000_0001 => 15,
            _ => 17,
        };
        let cluster = 1_u64 << cluster_log;
        // A small one does not afford the alignment.
        let align = if bytes >= EXFAT_ALIGN.saturating_mul(64) { EXFAT_ALIGN } else { 4096 };
        let table_at = align.max(24 * SECTOR).next_multiple_of(align);
        let most = bytes.saturating_sub(table_at) >> cluster_log;
        let table_bytes = most.saturating_add(2).saturating_mul(4).next_multiple_of(SECTOR);
        let heap_at = table_at.saturating_add(table_bytes).next_multiple_of(align.max(cluster.min(align)));
        let clusters = bytes.saturating_sub(heap_at) >> cluster_log;
        let bitmap_clusters = clusters.div_ceil(8).div_ceil(cluster);
        let upper_clusters = upper_bytes.div_ceil(cluster);
        let layout = Self { cluster_log, table_at, table_bytes, heap_at, clusters, bitmap_clusters, upper_clusters };
        (layout.clusters >= layout.used()).then_some(layout)
    }

    /// Clusters of the bitmap, the up-case table and the root directory.
    fn used(&self) -> u64 {
        self.bitmap_clusters.saturating_add(self.upper_clusters).saturating_add(1)
    }
}

/// Where everything goes, in sectors.
struct Layout {
    bits: u32,
    reserved: u64,
    table_sectors: u64,
    root_entries: u64,
    cluster_sectors: u64,
    clusters: u64,
}

impl Layout {
    /// Of a number of sectors: the kind and the size of clusters that fit it.
    fn of(sectors: u64, must_be_32: bool) -> Option<Self> {
        const MIB: u64 = (1 << 20) / SECTOR;
        if must_be_32 || sectors >= 512 * MIB {
            let cluster = match sectors / MIB {
                0..=260 => 1,
                261..=8192 => 8,
                8193..=16_384 => 16,
                16_385..=32_768 => 32,
                _ => 64,
            };
            return Self::with(sectors, 32, FAT32_RESERVED, 0, cluster)
                .filter(|layout| layout.clusters >= FAT32_CLUSTERS_MIN.into());
        }
        // Clusters of 512 bytes to 32 KiB: the smallest ones that FAT12 can count up to 8 MiB, FAT16 above.
        let bits: &[u32] = if sectors <= 8 * MIB { &[12, 16] } else { &[16, 12] };
        let tries = bits.iter().flat_map(|bits| (0..=6).map(move |log| (*bits, 1_u64 << log)));
        tries.filter(|(_, cluster)| *cluster >= 4 || sectors <= 4 * MIB).find_map(|(bits, cluster)| {
            let layout = Self::with(sectors, bits, 1, ROOT_ENTRIES, cluster)?;
            let fits = match bits {
                12 => layout.clusters < FAT16_CLUSTERS_MIN.into(),
                _ => (u64::from(FAT16_CLUSTERS_MIN)..u64::from(FAT32_CLUSTERS_MIN)).contains(&layout.clusters),
            };
            (fits && layout.clusters > 0).then_some(layout)
        })
    }

    fn with(sectors: u64, bits: u32, reserved: u64, root_entries: u64, cluster_sectors: u64) -> Option<Self> {
        let mut layout = Self { bits, reserved, table_sectors: 1, root_entries, cluster_sectors, clusters: 0 };
        // The larger the table, the fewer clusters it must hold: it ends within a few steps.
        loop {
            let clusters = sectors.checked_sub(layout.heap_sector())?.checked_div(cluster_sectors)?;
            let needed = clusters.saturating_add(2).saturating_mul(bits.into()).div_ceil(8).div_ceil(SECTOR);
            layout.clusters = clusters;
            if needed <= layout.table_sectors {
                return Some(layout);
            }
            layout.table_sectors = needed;
        }
    }

    fn root_sectors(&self) -> u64 {
        if self.bits == 32 { 0 } else { self.root_entries.saturating_mul(32) / SECTOR }
    }

    fn heap_sector(&self) -> u64 {
        let tables = self.table_sectors.saturating_mul(TABLES);
        self.reserved.saturating_add(tables).saturating_add(self.root_sectors())
    }
}
