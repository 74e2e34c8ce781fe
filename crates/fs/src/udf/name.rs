//! Names: OSTA compressed Unicode (UDF 2.60, 2.1.1), and what becomes of those that a file cannot have.
//!
//! ```text
//! 8 │ letters of Unicode's first 256, 1 byte each          16 │ letters of UTF-16, big-endian, 2 bytes each
//! ```

use crate::NAME_BYTES_MAX;
use block::bytes::be_u16;

use super::descriptor::crc;

/// Letters of a name that an ending behind a dot may have, to be kept when the name is cut.
const ENDING_BYTES_MAX: usize = 6;

/// The text of a name; what is no UTF-16 is replaced. `None` where it is no compressed Unicode.
pub(super) fn text(bytes: &[u8]) -> Option<String> {
    let (width, letters) = bytes.split_first()?;
    match width {
        8 | 254 => Some(letters.iter().map(|letter| char::from(*letter)).collect()),
        16 | 255 => {
            let letters = letters.chunks_exact(2).filter_map(|pair| be_u16(pair, 0));
            Some(char::decode_utf16(letters).map(|letter| letter.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
        }
        _ => None,
    }
}

/// The text of a field of fixed length, whose last byte says how many are used.
pub(super) fn field(bytes: &[u8]) -> String {
    let used = bytes.last().and_then(|len| bytes.get(..usize::from(*len)));
    used.and_then(text).unwrap_or_default()
}

/// The name of a file: as it is where a file can have it; otherwise with `_` for what cannot be, cut to its length, and
/// the CRC of its bytes, which keeps names apart (as UDF 4.2.2.1.5 has it for UNIX).
pub(super) fn file_name(bytes: &[u8]) -> Option<Vec<u8>> {
    let text = text(bytes).filter(|text| !text.is_empty())?;
    let sound = !text.contains(['/', '\0']) && text.len() <= NAME_BYTES_MAX && text != "." && text != "..";
    if sound {
        return Some(text.into_bytes());
    }
    let clean: String = text.chars().map(|letter| if matches!(letter, '/' | '\0') { '_' } else { letter }).collect();
    let ending = 2..=ENDING_BYTES_MAX;
    let dot = clean.rfind('.').filter(|dot| *dot > 0 && ending.contains(&clean.len().saturating_sub(*dot)));
    let (stem, ending) = clean.split_at_checked(dot.unwrap_or(clean.len()))?;
    let mark = format!("#{:04X}", crc(bytes.get(1..)?));
    let room = NAME_BYTES_MAX.checked_sub(mark.len())?.checked_sub(ending.len())?;
    let mut end = room.min(stem.len());
    while !stem.is_char_boundary(end) {
        end = end.checked_sub(1)?;
    }
    Some([stem.get(..end)?, &mark, ending].concat().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_of_one_and_of_two_bytes() {
        assert_eq!(text(b"\x08a\xE9").as_deref(), Some("aé"));
        assert_eq!(text(b"\x10\x65\xE5\xD8\x3D\xDE\x00").as_deref(), Some("日😀"));
        assert_eq!(text(b"\x10\xD8\x3D").as_deref(), Some("\u{FFFD}"));
        assert_eq!((text(b""), text(b"\x07a")), (None, None));
        assert_eq!(field(b"\x08ab\0\0\x03"), "ab");
        assert_eq!(field(b"\x08ab\0\0\x30"), "");
    }

    #[test]
    fn names_that_no_file_can_have_get_a_mark() {
        assert_eq!(file_name(b"\x08plain.txt").unwrap(), b"plain.txt");
        let slash = file_name(b"\x08a/b.txt").unwrap();
        assert!(slash.starts_with(b"a_b#") && slash.ends_with(b".txt") && slash.len() == 12, "{slash:?}");
        assert_ne!(file_name(b"\x08a/b"), file_name(b"\x08a\0b"));
        assert!(file_name(b"\x08..").unwrap().starts_with(b"..#"));
        let long: Vec<u8> = [16].into_iter().chain([0x65, 0xE5].repeat(120)).collect();
        let name = file_name(&long).unwrap();
        assert!(name.len() <= 255 && String::from_utf8(name).unwrap().starts_with("日日"));
    }
}
