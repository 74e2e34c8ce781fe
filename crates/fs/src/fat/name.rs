//! Names: UTF-16 on disk, bytes here; and the short ones of DOS.
//!
//! Bytes are UTF-8; half of a surrogate pair that stands alone, which disks may hold, is kept as the three bytes that
//! UTF-8 would give it, so that such a file can be named, too.

use block::bytes::byte;
use block::{Error, Kind, Result};

use crate::path::{Printable, is_name};
use crate::utf16::to_units;

/// The longest name, in units of UTF-16.
pub(super) const NAME_UNITS_MAX: usize = 255;

/// How the bytes of short names from 128 on are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CodePage {
    /// Of the first PCs; what the kernel takes where nothing is said.
    #[default]
    Cp437,
    /// Western Europe.
    Cp850,
}

const CP437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";
const CP850: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜø£Ø×ƒáíóúñÑªº¿®¬½¼¡«»░▒▓│┤ÁÂÀ©╣║╗╝¢¥┐└┴┬├─┼ãÃ╚╔╩╦╠═╬¤ðÐÊËÈıÍÎÏ┘┌█▄¦Ì▀ÓßÔÒõÕµþÞÚÛÙýÝ¯´\u{ad}±‗¾¶§÷¸°¨·¹³²■\u{a0}";

impl CodePage {
    fn char(self, byte: u8) -> char {
        let high = if self == Self::Cp437 { CP437 } else { CP850 };
        match byte.checked_sub(128) {
            None => char::from(byte),
            Some(place) => high.chars().nth(place.into()).unwrap_or(char::REPLACEMENT_CHARACTER),
        }
    }

    /// Text of this code page, without the blanks at its end.
    pub(super) fn text(self, bytes: &[u8]) -> String {
        let text: String = bytes.iter().take_while(|byte| **byte != 0).map(|byte| self.char(*byte)).collect();
        text.trim_end_matches(' ').to_owned()
    }
}

/// Which letters are the same but for their case.
#[derive(Debug)]
pub(super) enum Fold {
    /// As Unicode has it, one unit to one unit.
    Unicode,
    /// As the table of the file system (exFAT) has it: 65,536 units.
    Table(Vec<u16>),
}

impl Fold {
    pub fn unit(&self, unit: u16) -> u16 {
        match self {
            Self::Table(table) => table.get(usize::from(unit)).copied().unwrap_or(unit),
            Self::Unicode if unit < 128 => u16::from((unit as u8).to_ascii_uppercase()),
            Self::Unicode => {
                let Some(letter) = char::from_u32(unit.into()) else { return unit };
                let mut upper = letter.to_uppercase();
                let one = upper.next().filter(|_| upper.next().is_none());
                one.and_then(|upper| u16::try_from(u32::from(upper)).ok()).unwrap_or(unit)
            }
        }
    }

    pub fn name(&self, units: &[u16]) -> Vec<u16> {
        units.iter().map(|unit| self.unit(*unit)).collect()
    }
}

/// A short name as it stands in an entry: eight bytes, three bytes, blanks behind each.
pub(super) type Short = [u8; 11];

/// What stands for 0xE5 as the first byte, which means that an entry is not in use.
const KANJI_E5: u8 = 0x05;
/// Bits of byte 12 of an entry: the name, or its extension, is in lower case.
const LOWER_BASE: u8 = 0x08;
const LOWER_EXTENSION: u8 = 0x10;

/// A short name as UTF-16, the dot between; `case` is byte 12 of its entry.
pub(super) fn short_units(short: &Short, case: u8, page: CodePage) -> Vec<u16> {
    let mut bytes = *short;
    if let Some(first) = bytes.first_mut().filter(|first| **first == KANJI_E5) {
        *first = 0xe5;
    }
    let (base, extension) = bytes.split_at(8);
    let part = |bytes: &[u8], lower: bool| {
        let text = page.text(bytes);
        if lower { text.to_lowercase() } else { text }
    };
    let (base, extension) = (part(base, case & LOWER_BASE != 0), part(extension, case & LOWER_EXTENSION != 0));
    let text = if extension.is_empty() { base } else { format!("{base}.{extension}") };
    text.encode_utf16().collect()
}

/// The checksum by which long names know their short one.
pub(super) fn checksum(short: &Short) -> u8 {
    short.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// That a name can be given to a file; without the dots at its end, which are not kept.
///
/// # Errors
/// [`Kind::Invalid`], [`Kind::NameTooLong`].
pub(super) fn acceptable(name: &[u8]) -> Result<Vec<u16>> {
    let invalid = |why: &str| Err(Error::new(Kind::Invalid, format!("{}: {why}", Printable(name))));
    if !is_name(name) {
        let kind = if name.len() > crate::NAME_BYTES_MAX { Kind::NameTooLong } else { Kind::Invalid };
        return Err(Error::new(kind, format!("{} as a name", Printable(name))));
    }
    let Some(mut units) = to_units(name) else { return invalid("a name that is not UTF-8, which FAT cannot hold") };
    while units.last() == Some(&u16::from(b'.')) {
        units.pop();
    }
    if units.is_empty() {
        return invalid("a name of dots alone, which FAT cannot hold");
    }
    if units.iter().any(|unit| is_bad(*unit)) {
        return invalid("a name that FAT cannot hold (it has none of \" * / : < > ? \\ | and control characters)");
    }
    if units.len() > NAME_UNITS_MAX {
        return Err(Error::new(Kind::NameTooLong, format!("a name of {} units, above 255", units.len())));
    }
    Ok(units)
}

fn is_bad(unit: u16) -> bool {
    unit < 32 || u8::try_from(unit).is_ok_and(|byte| b"\"*/:<>?\\|\x7f".contains(&byte))
}

/// Whether a byte may stand in a short name as it is.
fn is_short(unit: u16) -> bool {
    u8::try_from(unit)
        .is_ok_and(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"!#$%&'()-@^_`{}~".contains(&byte))
}

/// The name as a short one, where it is one as it stands.
pub(super) fn exact_short(units: &[u16]) -> Option<Short> {
    let dot = u16::from(b'.');
    let mut parts = units.split(|unit| *unit == dot);
    let (base, extension) = (parts.next()?, parts.next().unwrap_or_default());
    let fits = (1..=8).contains(&base.len()) && extension.len() <= 3 && parts.next().is_none();
    let dotted = units.contains(&dot);
    (fits && dotted != extension.is_empty() && base.iter().chain(extension).all(|unit| is_short(*unit)))
        .then(|| short_of(base, extension))
}

fn short_of(base: &[u16], extension: &[u16]) -> Short {
    let mut short = [b' '; 11];
    let place = |to: &mut [u8], from: &[u16]| to.iter_mut().zip(from).for_each(|(to, unit)| *to = *unit as u8);
    let (front, back) = short.split_at_mut(8);
    place(front, base);
    place(back, extension);
    short
}

/// A short name for a long one that no other file of the directory has, as far as `is_taken` knows.
pub(super) fn new_short(units: &[u16], is_taken: impl Fn(&Short) -> bool) -> Option<Short> {
    let dot = u16::from(b'.');
    let usable = |part: &[u16], most: usize| -> Vec<u16> {
        let upper = part.iter().map(|unit| Fold::Unicode.unit(*unit));
        let wanted = upper.filter(|unit| *unit != u16::from(b' ') && *unit != dot);
        wanted.map(|unit| if is_short(unit) { unit } else { u16::from(b'_') }).take(most).collect()
    };
    let last_dot = units.iter().rposition(|unit| *unit == dot).filter(|place| *place > 0);
    let (base, extension) = match last_dot.and_then(|place| units.split_at_checked(place)) {
        Some((base, extension)) => (usable(base, 8), usable(extension, 3)),
        None => (usable(units, 8), Vec::new()),
    };
    let hash = units.iter().fold(0x811c_9dc5_u32, |hash, unit| (hash ^ u32::from(*unit)).wrapping_mul(0x0100_0193));
    let numbered = |front: &[u16], tail: &str| {
        let keep = 8_usize.saturating_sub(tail.len());
        let base: Vec<u16> = front.iter().copied().take(keep).chain(tail.encode_utf16()).collect();
        Some(short_of(&base, &extension)).filter(|short| !is_taken(short))
    };
    let few = (1..=4_u32).find_map(|n| numbered(&base, &format!("~{n}")));
    few.or_else(|| {
        // Many alike: four digits that depend on the whole name.
        let front: Vec<u16> = base.iter().copied().take(2).collect();
        (0..0x1_0000_u32).find_map(|n| numbered(&front, &format!("{:04X}~1", hash.wrapping_add(n) & 0xffff)))
    })
}

/// The label in an entry or a boot sector: eleven bytes of ASCII upper case, as the tools of FAT want them.
///
/// # Errors
/// [`Kind::Invalid`].
pub(super) fn label(label: &str) -> Result<Short> {
    let fits = label.len() <= 11
        && label.bytes().all(|byte| matches!(byte, 32..=126) && !b"\"*+,./:;<=>?[\\]|".contains(&byte))
        && !label.starts_with(' ');
    if !fits {
        let text = format!("{:?} as a label: FAT has 11 characters of ASCII, without \"*+,./:;<=>?[\\]|", label);
        return Err(Error::new(Kind::Invalid, text));
    }
    let mut short = [b' '; 11];
    short.iter_mut().zip(label.bytes()).for_each(|(to, byte)| *to = byte.to_ascii_uppercase());
    Ok(short)
}

/// The short name of an entry.
pub(super) fn short_at(entry: &[u8]) -> Short {
    let mut short = [b' '; 11];
    for (at, to) in short.iter_mut().enumerate() {
        *to = byte(entry, at).unwrap_or(b' ');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(text: &str) -> Vec<u16> {
        text.encode_utf16().collect()
    }

    #[test]
    fn short_names_are_read_with_their_case_and_code_page() {
        let read = |short: &Short, case, page| String::from_utf16(&short_units(short, case, page)).unwrap();
        assert_eq!(read(b"README  TXT", 0, CodePage::Cp437), "README.TXT");
        assert_eq!(read(b"README  TXT", 0x18, CodePage::Cp437), "readme.txt");
        assert_eq!(read(b"README  TXT", 0x10, CodePage::Cp437), "README.txt");
        assert_eq!(read(b"\x05\x9cX        ", 0, CodePage::Cp437), "σ£X");
        assert_eq!(read(b"\xb7\xd1         ", 0, CodePage::Cp850), "ÀÐ");
        assert_eq!(CP437.chars().count(), 128);
        assert_eq!(CP850.chars().count(), 128);
    }

    #[test]
    fn a_name_is_short_as_it_stands_or_not() {
        assert_eq!(exact_short(&units("README.TXT")), Some(*b"README  TXT"));
        assert_eq!(exact_short(&units("A")), Some(*b"A          "));
        for name in ["readme.txt", "A.", ".A", "TOOLONGNAME", "A.LONG", "A.B.C", "A B", "A+B", "Ä"] {
            assert_eq!(exact_short(&units(name)), None, "{name}");
        }
    }

    #[test]
    fn new_short_names_are_free() {
        let mut taken = std::collections::HashSet::new();
        for n in 0..2000 {
            let short = new_short(&units(&format!("a long name {n}.text")), |short| taken.contains(short)).unwrap();
            assert!(taken.insert(short), "{n}");
        }
        assert!(taken.contains(b"ALONGN~1TEX"), "{:?}", taken.iter().next());
        assert_eq!(new_short(&units(".hidden"), |_| false), Some(*b"HIDDEN~1   "));
        assert_eq!(new_short(&units("日本.x"), |_| false), Some(*b"__~1    X  "));
    }

    #[test]
    fn names_that_fat_cannot_hold_are_refused() {
        for name in ["a:b", "a*", "\u{1}", "...", "q?"] {
            assert_eq!(acceptable(name.as_bytes()).unwrap_err().kind(), Kind::Invalid, "{name}");
        }
        assert_eq!(acceptable("a".repeat(256).as_bytes()).unwrap_err().kind(), Kind::NameTooLong);
        assert_eq!(acceptable(b"dots...").unwrap(), units("dots"));
        assert!(label("MY DISK").is_ok() && label("a label that is long").is_err() && label("a.b").is_err());
    }

    #[test]
    fn checksum_of_the_specification() {
        // As mtools writes it for "LONGNA~1TXT".
        let by_hand =
            b"LONGNA~1TXT".iter().fold(0_u32, |sum, byte| ((sum & 1) * 0x80 + (sum >> 1) + u32::from(*byte)) & 0xff);
        assert_eq!(u32::from(checksum(b"LONGNA~1TXT")), by_hand);
    }
}
