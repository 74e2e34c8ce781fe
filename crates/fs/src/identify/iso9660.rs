//! ISO 9660 (ECMA-119): volume descriptors from sector 16 on, each of 2048 bytes.

use block::Result;
use block::bytes::{has, le_u16, le_u32};

use super::{Flag, Identity, Probe, be_letters, part, text, udf, utf16};

const SECTOR: u64 = 2048;
/// The first of the volume descriptors, a sector.
const DESCRIPTORS_START: u64 = 16;
/// The most volume descriptors that are looked at.
const DESCRIPTORS_MAX: u64 = 32;

pub(super) fn read(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let (mut primary, mut joliet, mut boot) = (None, None, false);
    for number in 0..DESCRIPTORS_MAX {
        let at = DESCRIPTORS_START.saturating_add(number).saturating_mul(SECTOR);
        let descriptor = probe.read(at, SECTOR as usize)?;
        if !has(&descriptor, 1, b"CD001") || descriptor.len() as u64 != SECTOR {
            break;
        }
        match descriptor.first() {
            Some(0) => boot |= has(&descriptor, 7, b"EL TORITO SPECIFICATION"),
            Some(1) => primary = primary.or(Some(descriptor)),
            Some(2) if [b"%/@", b"%/C", b"%/E"].iter().any(|escape| has(&descriptor, 88, *escape)) => {
                joliet = joliet.or(Some(descriptor));
            }
            Some(255) => break,
            _ => {}
        }
    }
    let Some(primary) = primary else { return Ok(None) };
    let block_bytes = u32::from(le_u16(&primary, 128).unwrap_or(2048));
    let blocks = u64::from(le_u32(&primary, 80).unwrap_or_default());
    let mut identity = Identity::new("iso9660").space(block_bytes, blocks, Some(0));
    let plain = text(part(&primary, 40, 32));
    identity.label = match &joliet {
        Some(joliet) => whole_label(&plain, &utf16(be_letters(part(joliet, 40, 32)))),
        None => plain,
    };
    identity.uuid = date(part(&primary, 830, 17)).or_else(|| date(part(&primary, 813, 17))).unwrap_or_default();
    for (flag, is_set) in [
        (Flag::RockRidge, has_rock_ridge(probe, &primary, block_bytes)?),
        (Flag::Joliet, joliet.is_some()),
        (Flag::ElTorito, boot),
        (Flag::UdfBridge, udf::has_recognition(probe)?),
    ] {
        if is_set {
            identity.flags.push(flag);
        }
    }
    Ok(Some(identity))
}

/// A Joliet label holds 16 letters, the primary one 32 of a small alphabet: where one begins like the other, both
/// together are the label.
fn whole_label(plain: &str, joliet: &str) -> String {
    let length = joliet.chars().count();
    let alike = plain.chars().zip(joliet.chars()).all(|(a, b)| a == '_' || a.eq_ignore_ascii_case(&b));
    if joliet.is_empty() {
        plain.to_owned()
    } else if alike && plain.chars().count() > length {
        joliet.chars().chain(plain.chars().skip(length)).collect()
    } else {
        joliet.to_owned()
    }
}

/// A date of 16 digits as blkid writes it in place of a UUID; `None` where none is set.
fn date(digits: &[u8]) -> Option<String> {
    let digits = digits.get(..16)?;
    if digits.iter().all(|digit| matches!(digit, b'0' | 0)) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut date = String::new();
    for (at, digit) in digits.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10 | 12 | 14) {
            date.push('-');
        }
        date.push(char::from(*digit));
    }
    Some(date)
}

/// Whether the first record of the root directory begins its system use area with the SUSP entry SP, and Rock Ridge's
/// RR or PX is in it too, or a continuation (CE), which then holds its ER.
fn has_rock_ridge(probe: &Probe<'_>, primary: &[u8], block_bytes: u32) -> Result<bool> {
    let at = u64::from(le_u32(primary, 158).unwrap_or_default()).saturating_mul(u64::from(block_bytes));
    let record = probe.read(at, 255)?;
    let length = record.first().copied().unwrap_or_default();
    // 33 bytes, a name of one byte; then possibly 14 bytes of CD-ROM XA.
    let area = part(&record, 34, usize::from(length.saturating_sub(34)));
    let contains = |wanted: &[u8]| area.windows(wanted.len()).any(|window| window == wanted);
    Ok(contains(b"SP\x07\x01\xbe\xef") && (contains(b"PX") || contains(b"RR\x05\x01") || contains(b"CE\x1c\x01")))
}
