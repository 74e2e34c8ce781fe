//! FAT12, FAT16, FAT32 (Microsoft's "FAT: General Overview of On-Disk Format") and exFAT (its specification 1.00).

use block::Result;
use block::bytes::{has, le_u16, le_u32, le_u64};

use super::{Flag, Identity, Probe, block_of_log, le_letters, part, text, utf16};

/// The most clusters of a root directory that are looked at for the label.
const ROOT_CLUSTERS_MAX: u32 = 16;
/// The most bytes of a cluster that are looked at.
const CLUSTER_BYTES_MAX: u64 = 1 << 16;
const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_LONG_NAME: u8 = 0x0f;

pub(super) fn vfat(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let bs = probe.head(0);
    let byte = |at: usize| bs.get(at).copied().unwrap_or_default();
    let half = |at| u64::from(le_u16(bs, at).unwrap_or_default());
    let word = |at| u64::from(le_u32(bs, at).unwrap_or_default());
    let or = |small: u64, large: u64| if small == 0 { large } else { small };
    let sector = half(11);
    let (cluster_sectors, reserved, fats) = (u64::from(byte(13)), half(14), u64::from(byte(16)));
    if !matches!(sector, 512 | 1024 | 2048 | 4096)
        || !byte(13).is_power_of_two()
        || reserved == 0
        || fats == 0
        || fats > 4
        || !matches!(byte(21), 0xf0 | 0xf8..)
    {
        return Ok(None);
    }
    let (fat_sectors, sectors, root_entries) = (or(half(22), word(36)), or(half(19), word(32)), half(17));
    let root_sectors = root_entries.saturating_mul(32).div_ceil(sector);
    let root_sector = reserved.saturating_add(fats.saturating_mul(fat_sectors));
    let data_sector = root_sector.saturating_add(root_sectors);
    let Some(data_sectors) = sectors.checked_sub(data_sector).filter(|_| fat_sectors > 0) else { return Ok(None) };
    let clusters = data_sectors.checked_div(cluster_sectors).unwrap_or_default();
    let fat32 = half(22) == 0;
    let version = match clusters {
        _ if fat32 => "FAT32",
        0..4085 => "FAT12",
        _ => "FAT16",
    };
    let extended = if fat32 { 64 } else { 36 };
    let at = |field: usize| field.saturating_add(extended);
    let signature = matches!(byte(at(2)), 0x28 | 0x29);
    // Without the signature of an extended boot sector or of any boot sector it could be chance.
    if !signature && !has(bs, 510, &[0x55, 0xaa]) && !matches!(byte(0), 0xeb | 0xe9) {
        return Ok(None);
    }
    let mut identity = Identity::new("vfat").space(sector as u32, sectors, None);
    identity.version = Some(version.to_owned());
    if signature {
        let serial = word(at(3));
        identity.uuid = format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff);
        let label = text(part(bs, at(7), 11));
        identity.label = if label == "NO NAME" { String::new() } else { label };
    }
    let cluster_bytes = cluster_sectors.saturating_mul(sector);
    let label = if fat32 {
        let chain = Chain {
            fat_at: reserved.saturating_mul(sector),
            heap_at: data_sector.saturating_mul(sector),
            cluster_bytes,
            clusters,
            bits: 0x0fff_ffff,
        };
        chain.find(probe, word(44) as u32, root_label)?
    } else {
        let len = root_entries.saturating_mul(32).min(CLUSTER_BYTES_MAX) as usize;
        root_label(&probe.read(root_sector.saturating_mul(sector), len)?)
    };
    identity.label = label.unwrap_or(identity.label);
    if byte(at(1)) & 1 != 0 {
        identity.flags.push(Flag::Dirty);
    }
    if fat32 {
        let info = probe.read(half(48).saturating_mul(sector), 512)?;
        let free = le_u32(&info, 488).filter(|_| has(&info, 0, b"RRaA") && has(&info, 484, b"rrAa"));
        identity.used_bytes = free
            .filter(|free| *free != u32::MAX)
            .and_then(|free| clusters.checked_sub(u64::from(free)))
            .and_then(|used| used.checked_mul(cluster_bytes));
    }
    Ok(Some(identity))
}

/// The label in a part of a root directory, decoded as Latin where it is not ASCII.
fn root_label(entries: &[u8]) -> Option<String> {
    let entries = entries.chunks_exact(32).take_while(|entry| entry.first() != Some(&0));
    let mut labels = entries.filter(|entry| {
        let attributes = entry.get(11).copied().unwrap_or_default();
        entry.first() != Some(&0xe5) && attributes & ATTRIBUTE_LONG_NAME == ATTRIBUTE_LABEL
    });
    labels.next().map(|entry| {
        let mut name = part(entry, 0, 11).to_vec();
        if let Some(first) = name.first_mut().filter(|first| **first == 0x05) {
            *first = 0xe5;
        }
        text(&name)
    })
}

pub(super) fn exfat(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let bs = probe.head(0);
    let word = |at| le_u32(bs, at).unwrap_or_default();
    let log = |at: usize| u32::from(bs.get(at).copied().unwrap_or_default());
    let Some(sector) = Some(log(108)).filter(|log| *log <= 12).and_then(block_of_log) else { return Ok(None) };
    if !has(bs, 3, b"EXFAT   ") || log(109) > 25 || log(110) > 2 {
        return Ok(None);
    }
    let cluster_bytes = u64::from(sector).checked_shl(log(109)).unwrap_or_default();
    let mut identity = Identity::new("exfat").space(sector, le_u64(bs, 72).unwrap_or_default(), None);
    let serial = word(100);
    identity.uuid = format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff);
    let (minor, major) = (bs.get(104).copied().unwrap_or_default(), bs.get(105).copied().unwrap_or_default());
    identity.version = Some(format!("{major}.{minor}"));
    let chain = Chain {
        fat_at: u64::from(word(80)).saturating_mul(u64::from(sector)),
        heap_at: u64::from(word(88)).saturating_mul(u64::from(sector)),
        cluster_bytes,
        clusters: u64::from(word(92)),
        bits: u32::MAX,
    };
    let label = chain.find(probe, word(96), |entries| {
        let mut entries = entries.chunks_exact(32).take_while(|entry| entry.first() != Some(&0));
        let entry = entries.find(|entry| entry.first() == Some(&0x83))?;
        let letters = usize::from(entry.get(1).copied().unwrap_or_default().min(11));
        Some(utf16(le_letters(part(entry, 2, 22)).take(letters)))
    })?;
    identity.label = label.unwrap_or_default();
    let state = le_u16(bs, 106).unwrap_or_default();
    if state & 2 != 0 {
        identity.flags.push(Flag::Dirty);
    }
    if state & 4 != 0 {
        identity.flags.push(Flag::Errors);
    }
    Ok(Some(identity))
}

/// A chain of clusters, for the root directory.
struct Chain {
    fat_at: u64,
    heap_at: u64,
    cluster_bytes: u64,
    clusters: u64,
    bits: u32,
}

impl Chain {
    /// What `look` finds first in the clusters from `cluster` on.
    fn find(
        &self,
        probe: &Probe<'_>,
        mut cluster: u32,
        look: impl Fn(&[u8]) -> Option<String>,
    ) -> Result<Option<String>> {
        for _ in 0..ROOT_CLUSTERS_MAX {
            let Some(index) = u64::from(cluster).checked_sub(2).filter(|index| *index < self.clusters) else { break };
            let at = self.heap_at.saturating_add(index.saturating_mul(self.cluster_bytes));
            let entries = probe.read(at, self.cluster_bytes.min(CLUSTER_BYTES_MAX) as usize)?;
            if let Some(found) = look(&entries) {
                return Ok(Some(found));
            }
            let next = probe.read(self.fat_at.saturating_add(u64::from(cluster).saturating_mul(4)), 4)?;
            cluster = le_u32(&next, 0).unwrap_or_default() & self.bits;
        }
        Ok(None)
    }
}
