//! NTFS: a boot sector, and the record of the file `$Volume` in the master file table.

use block::Result;
use block::bytes::{has, le_u16, le_u32, le_u64};

use super::{Flag, Identity, Probe, le_letters, part, utf16};

/// The number of `$Volume`.
const VOLUME_RECORD: u64 = 3;
const ATTRIBUTES_MAX: usize = 32;
const ATTRIBUTE_NAME: u32 = 0x60;
const ATTRIBUTE_INFORMATION: u32 = 0x70;

pub(super) fn read(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let bs = probe.head(0);
    let sector = u64::from(le_u16(bs, 11).unwrap_or_default());
    if !has(bs, 3, b"NTFS    ") || !matches!(sector, 256..=4096) || !sector.is_power_of_two() {
        return Ok(None);
    }
    let byte = |at: usize| bs.get(at).copied().unwrap_or_default();
    // Sectors of a cluster; above 128 the negative of a power of two.
    let cluster_sectors = match byte(13) {
        small @ 0..=128 => u64::from(small),
        log => 1_u64.checked_shl(u32::from(log.wrapping_neg())).unwrap_or_default(),
    };
    let cluster = sector.saturating_mul(cluster_sectors);
    let record_bytes = match byte(64) {
        clusters @ 0..=127 => cluster.saturating_mul(u64::from(clusters)),
        log => 1_u64.checked_shl(u32::from(log.wrapping_neg())).unwrap_or_default(),
    };
    if !(256..=65536).contains(&record_bytes) || !record_bytes.is_power_of_two() || !cluster.is_power_of_two() {
        return Ok(None);
    }
    let sectors = le_u64(bs, 40).unwrap_or_default();
    let mut identity = Identity::new("ntfs").space(sector as u32, sectors, None);
    identity.block_bytes = u32::try_from(cluster).ok();
    identity.uuid = format!("{:016X}", le_u64(bs, 72).unwrap_or_default());
    let table_at = le_u64(bs, 48).unwrap_or_default().saturating_mul(cluster);
    let at = table_at.saturating_add(VOLUME_RECORD.saturating_mul(record_bytes));
    let mut record = probe.read(at, record_bytes as usize)?;
    if has(&record, 0, b"FILE") {
        undo_fixups(&mut record);
        read_record(&record, &mut identity);
    }
    Ok(Some(identity))
}

/// The last two bytes of each 512 are kept in an array in the header.
fn undo_fixups(record: &mut [u8]) {
    let Some((at, count)) = le_u16(record, 4).zip(le_u16(record, 6)) else { return };
    let saved = part(record, usize::from(at), usize::from(count).saturating_mul(2)).to_vec();
    for (sector, saved) in record.chunks_exact_mut(512).zip(saved.chunks_exact(2).skip(1)) {
        if let Some(end) = sector.last_chunk_mut::<2>() {
            end.copy_from_slice(saved);
        }
    }
}

fn read_record(record: &[u8], identity: &mut Identity) {
    let mut at = usize::from(le_u16(record, 20).unwrap_or_default());
    for _ in 0..ATTRIBUTES_MAX {
        let attribute = record.get(at..).unwrap_or_default();
        let (Some(kind), Some(length)) = (le_u32(attribute, 0), le_u32(attribute, 4)) else { return };
        if kind == u32::MAX || length == 0 {
            return;
        }
        let (len, value_at) = (le_u32(attribute, 16).unwrap_or_default(), le_u16(attribute, 20).unwrap_or_default());
        let value = part(attribute, usize::from(value_at), len as usize);
        match kind {
            ATTRIBUTE_NAME => identity.label = utf16(le_letters(value)),
            ATTRIBUTE_INFORMATION => {
                identity.version = value.get(8).zip(value.get(9)).map(|(major, minor)| format!("{major}.{minor}"));
                if le_u16(value, 10).is_some_and(|flags| flags & 1 != 0) {
                    identity.flags.push(Flag::Dirty);
                }
            }
            _ => {}
        }
        at = at.saturating_add(length as usize);
    }
}
