//! UDF (ECMA-167, OSTA UDF 2.60): a recognition sequence from byte 32768 on, an anchor at sector 256 (or near the end),
//! and a sequence of descriptors that the anchor points to.

use block::Result;
use block::bytes::{has, le_u16, le_u32};

use super::{Flag, Identity, Probe, be_letters, part, utf16};

/// The most structures of the recognition sequence, and descriptors of the volume, that are looked at.
const STRUCTURES_MAX: u64 = 64;

const TAG_PRIMARY: u16 = 1;
const TAG_ANCHOR: u16 = 2;
const TAG_PARTITION: u16 = 5;
const TAG_LOGICAL: u16 = 6;
const TAG_TERMINATOR: u16 = 8;
const TAG_INTEGRITY: u16 = 9;

/// Whether the recognition sequence names UDF.
pub(super) fn has_recognition(probe: &Probe<'_>) -> Result<bool> {
    for step in [2048_u64, 4096] {
        for number in 0..STRUCTURES_MAX {
            let structure = probe.read(number.saturating_mul(step).saturating_add(32768), 6)?;
            let known: [&[u8]; 5] = [b"CD001", b"BEA01", b"TEA01", b"BOOT2", b"CDW02"];
            if has(&structure, 1, b"NSR02") || has(&structure, 1, b"NSR03") {
                return Ok(true);
            }
            if !known.iter().any(|known| has(&structure, 1, known)) {
                break;
            }
        }
    }
    Ok(false)
}

pub(super) fn read(probe: &Probe<'_>) -> Result<Option<Identity>> {
    if !has_recognition(probe)? {
        return Ok(None);
    }
    for block_bytes in [2048_u32, 512, 1024, 4096] {
        let block = u64::from(block_bytes);
        let blocks = probe.device.size().checked_div(block).unwrap_or_default();
        let anchors = [256, blocks.saturating_sub(1), blocks.saturating_sub(257)];
        for at in anchors {
            let anchor = probe.read(at.saturating_mul(block), 32)?;
            if le_u16(&anchor, 0) == Some(TAG_ANCHOR) && le_u32(&anchor, 12).map(u64::from) == Some(at) {
                let start = u64::from(le_u32(&anchor, 20).unwrap_or_default());
                let count = u64::from(le_u32(&anchor, 16).unwrap_or_default()).checked_div(block).unwrap_or_default();
                return read_sequence(probe, start, count, block_bytes).map(Some);
            }
        }
    }
    Ok(Some(Identity::new("udf")))
}

fn read_sequence(probe: &Probe<'_>, start: u64, count: u64, block_bytes: u32) -> Result<Identity> {
    let mut identity = Identity::new("udf");
    identity.block_bytes = Some(block_bytes);
    let block = u64::from(block_bytes);
    for sector in (start..).take(count.min(STRUCTURES_MAX) as usize) {
        let descriptor = probe.read(sector.saturating_mul(block), 512)?;
        match le_u16(&descriptor, 0) {
            Some(TAG_PRIMARY) => identity.uuid = volume_set_uuid(part(&descriptor, 72, 128)),
            Some(TAG_PARTITION) => {
                let blocks = u64::from(le_u32(&descriptor, 192).unwrap_or_default());
                identity.size_bytes = blocks.checked_mul(block);
            }
            Some(TAG_LOGICAL) => {
                identity.label = dstring(part(&descriptor, 84, 128));
                identity.version = le_u16(&descriptor, 240).map(|bcd| format!("{:x}.{:02x}", bcd >> 8, bcd & 0xff));
                let integrity = u64::from(le_u32(&descriptor, 436).unwrap_or_default());
                read_integrity(probe, integrity, block, &mut identity)?;
            }
            Some(TAG_TERMINATOR | 0) | None => break,
            _ => {}
        }
    }
    Ok(identity)
}

/// Whether the volume was closed, and how many blocks of its first partition are free.
fn read_integrity(probe: &Probe<'_>, sector: u64, block: u64, identity: &mut Identity) -> Result<()> {
    let descriptor = probe.read(sector.saturating_mul(block), 512)?;
    if le_u16(&descriptor, 0) != Some(TAG_INTEGRITY) {
        return Ok(());
    }
    if le_u32(&descriptor, 28) == Some(0) {
        identity.flags.push(Flag::Dirty);
    }
    // The table of free blocks comes before that of sizes, one number each for a partition; only one is summed up.
    if let (Some(1), Some(free), Some(size)) =
        (le_u32(&descriptor, 72), le_u32(&descriptor, 80), le_u32(&descriptor, 84))
        && free != u32::MAX
    {
        identity.used_bytes = u64::from(size).checked_sub(u64::from(free)).and_then(|used| used.checked_mul(block));
    }
    Ok(())
}

/// A dstring: how many bytes its last byte says, the first of them the width of its letters, 8 or 16 bits.
fn dstring(field: &[u8]) -> String {
    let length = usize::from(field.last().copied().unwrap_or_default());
    let used = field.get(..length).unwrap_or_default();
    let letters = used.get(1..).unwrap_or_default();
    match used.first() {
        Some(8 | 254) => utf16(letters.iter().map(|letter| u16::from(*letter))),
        Some(16 | 255) => utf16(be_letters(letters)),
        _ => String::new(),
    }
}

/// The UUID that util-linux and udftools make of the volume set identifier: its first 16 hexadecimal digits, or as many
/// as there are and the bytes after them as digits.
fn volume_set_uuid(field: &[u8]) -> String {
    let identifier = dstring(field);
    let bytes = identifier.as_bytes();
    if bytes.len() < 8 {
        return String::new();
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let digits = bytes.iter().take(16).take_while(|byte| byte.is_ascii_hexdigit()).count();
    let plain = |len: usize| String::from_utf8_lossy(part(bytes, 0, len)).to_ascii_lowercase();
    match digits {
        16 => plain(16),
        8.. => plain(8) + &hex(bytes.get(8..).unwrap_or_default().get(..4).unwrap_or_default()),
        _ => hex(part(bytes, 0, 8)),
    }
}
