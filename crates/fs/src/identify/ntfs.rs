//! NTFS: a boot sector, and the record of the file `$Volume` in the master file table.

use block::Result;
use block::bytes::{has, le_u16, le_u32};

use super::{Flag, Identity, Probe, le_letters, part, utf16};
use crate::ntfs::{Boot, undo_fixups};

/// The number of `$Volume`.
const VOLUME_RECORD: u64 = 3;
const ATTRIBUTES_MAX: usize = 32;
const ATTRIBUTE_NAME: u32 = 0x60;
const ATTRIBUTE_INFORMATION: u32 = 0x70;

pub(super) fn read(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let Ok(boot) = Boot::parse(probe.head(0)) else { return Ok(None) };
    let mut identity = Identity::new("ntfs").space(boot.sector_bytes as u32, boot.sectors, None);
    identity.block_bytes = u32::try_from(boot.cluster_bytes).ok();
    identity.uuid = format!("{:016X}", boot.serial);
    let at = boot.table.saturating_add(VOLUME_RECORD.saturating_mul(boot.record_bytes));
    let mut record = probe.read(at, boot.record_bytes as usize)?;
    if has(&record, 0, b"FILE") {
        // What was not written whole is read as it is.
        let _ = undo_fixups(&mut record);
        read_record(&record, &mut identity);
    }
    Ok(Some(identity))
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
