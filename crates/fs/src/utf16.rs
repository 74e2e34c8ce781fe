//! Names of UTF-16 as bytes, and back: halves of surrogate pairs that stand alone lose nothing.

use crate::NAME_BYTES_MAX;
use crate::path::is_name;

/// The little-endian letters of `bytes`.
pub(crate) fn units(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).filter_map(|pair| block::bytes::le_u16(pair, 0)).collect()
}

/// UTF-16 as bytes.
pub(crate) fn to_bytes(units: &[u16]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(units.len());
    for decoded in char::decode_utf16(units.iter().copied()) {
        match decoded {
            Ok(letter) => bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(alone) => {
                let unit = alone.unpaired_surrogate();
                bytes.extend_from_slice(&[
                    0xe0 | (unit >> 12) as u8,
                    0x80 | (unit >> 6 & 0x3f) as u8,
                    0x80 | (unit & 0x3f) as u8,
                ]);
            }
        }
    }
    bytes
}

/// Bytes as UTF-16; `None` where they are not such text.
pub(crate) fn to_units(name: &[u8]) -> Option<Vec<u16>> {
    match std::str::from_utf8(name) {
        Ok(text) => Some(text.encode_utf16().collect()),
        Err(_) => surrogates(name),
    }
}

/// The same, where halves of surrogate pairs stand alone.
fn surrogates(name: &[u8]) -> Option<Vec<u16>> {
    let mut units = Vec::with_capacity(name.len());
    let mut rest = name;
    while !rest.is_empty() {
        let (valid, after) = match std::str::from_utf8(rest) {
            Ok(text) => (text, &[][..]),
            Err(error) => {
                let (valid, after) = rest.split_at_checked(error.valid_up_to())?;
                (std::str::from_utf8(valid).ok()?, after)
            }
        };
        units.extend(valid.encode_utf16());
        rest = match after {
            [] => after,
            [0xed, second @ 0xa0..=0xbf, third @ 0x80..=0xbf, rest @ ..] => {
                units.push(0xd000 | u16::from(second & 0x3f) << 6 | u16::from(third & 0x3f));
                rest
            }
            _ => return None,
        };
    }
    Some(units)
}

/// What a long name is shown as: itself, or `None` where no file may be called so.
pub(crate) fn shown(units: &[u16]) -> Option<Vec<u8>> {
    let bytes = to_bytes(units);
    is_name(&bytes).then_some(bytes)
}

/// What a name is shown as that is too long in bytes, or holds what none may: its beginning, and a number that tells it from
/// others.
pub(crate) fn instead(units: &[u16], number: u64) -> Vec<u8> {
    let tail = format!("~{number:X}");
    let room = NAME_BYTES_MAX.saturating_sub(tail.len());
    let mut name = String::new();
    for letter in char::decode_utf16(units.iter().copied()).map(|letter| letter.unwrap_or('_')) {
        if name.len().saturating_add(letter.len_utf8()) > room {
            break;
        }
        name.push(if matches!(letter, '/' | '\0') { '_' } else { letter });
    }
    name.push_str(&tail);
    name.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_bytes_lose_nothing() {
        for name in [
            "plain".encode_utf16().collect(),
            "日本語 ünï 🦀".encode_utf16().collect::<Vec<u16>>(),
            vec![0x61, 0xd800],
            vec![0xdc00, 0xd83e, 0xdd80],
            vec![0xdbff, 0x41],
        ] {
            assert_eq!(to_units(&to_bytes(&name)), Some(name));
        }
        for wrong in [b"\xff".as_slice(), b"a\xc3", b"\xed\xa0", b"\xf8\x88\x80\x80\x80"] {
            assert_eq!(to_units(wrong), None);
        }
    }

    #[test]
    fn what_no_file_may_be_called_is_called_otherwise() {
        let units = |text: &str| text.encode_utf16().collect::<Vec<u16>>();
        assert_eq!(shown(&units("a/b")), None);
        assert_eq!(instead(&units("a/b"), 0x2a), b"a_b~2A");
        let long = instead(&units(&"日".repeat(255)), u64::from(u32::MAX));
        assert!(long.len() <= NAME_BYTES_MAX && long.ends_with(b"~FFFFFFFF") && is_name(&long));
    }
}
