//! What a recorded name becomes where Rock Ridge does not say it.

use crate::NAME_BYTES_MAX;

/// A name of the primary tree as the kernel shows it (`map=normal`): lower case, without the version `;1` and the
/// dot of an empty extension; `;` and `/` become dots.
pub(super) fn plain(recorded: &[u8], name: &mut Vec<u8>) {
    name.clear();
    let end = recorded.iter().position(|byte| *byte == 0).unwrap_or(recorded.len());
    let recorded = recorded.get(..end).unwrap_or(recorded);
    let kept = recorded.strip_suffix(b".;1").or_else(|| recorded.strip_suffix(b";1")).unwrap_or(recorded);
    name.extend(kept.iter().map(|byte| match byte {
        b';' | b'/' => b'.',
        byte => byte.to_ascii_lowercase(),
    }));
}

/// A name of the tree of an enhanced volume descriptor: as recorded; a version, which it should not have, is cut off.
pub(super) fn enhanced(recorded: &[u8], name: &mut Vec<u8>) {
    name.clear();
    let end = recorded.iter().position(|byte| *byte == 0).unwrap_or(recorded.len());
    let recorded = recorded.get(..end).unwrap_or(recorded);
    let kept = recorded.strip_suffix(b";1").unwrap_or(recorded);
    name.extend(kept.iter().map(|byte| if *byte == b'/' { b'.' } else { *byte }));
}

/// A name of the Joliet tree: UTF-16, the high byte first, becomes UTF-8, without the version and dots at the end;
/// what is no character becomes U+FFFD, and `/` a dot. It is cut where [`NAME_BYTES_MAX`] is reached.
pub(super) fn joliet(recorded: &[u8], name: &mut Vec<u8>) {
    name.clear();
    let mut bytes = [0; 4];
    for character in utf16(recorded) {
        let bytes = match character {
            '\0' => break,
            '/' => b".",
            character => character.encode_utf8(&mut bytes).as_bytes(),
        };
        if name.len().saturating_add(bytes.len()) > NAME_BYTES_MAX {
            break;
        }
        name.extend_from_slice(bytes);
    }
    if name.len() > 2 && name.ends_with(b";1") {
        name.truncate(name.len().saturating_sub(2));
    }
    while name.len() > 1 && name.ends_with(b".") {
        name.pop();
    }
}

/// The characters of UTF-16 with the high byte first.
pub(super) fn utf16(bytes: &[u8]) -> impl Iterator<Item = char> {
    let units = bytes.chunks_exact(2).filter_map(|pair| Some(u16::from_be_bytes(*pair.first_chunk()?)));
    char::decode_utf16(units).map(|character| character.unwrap_or(char::REPLACEMENT_CHARACTER))
}

/// Whether a name can be passed on: not empty, not too long, one component of a path, and not one of the two that
/// every directory has.
pub(super) fn is_possible(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(translate: fn(&[u8], &mut Vec<u8>), recorded: &[u8]) -> Vec<u8> {
        let mut name = b"before".to_vec();
        translate(recorded, &mut name);
        name
    }

    #[test]
    fn names_as_the_kernel_shows_them() {
        assert_eq!(with(plain, b"README.TXT;1"), b"readme.txt");
        assert_eq!(with(plain, b"README.;1"), b"readme");
        assert_eq!(with(plain, b"README.TXT;2"), b"readme.txt.2");
        assert_eq!(with(plain, b"A/B;1"), b"a.b");
        assert_eq!(with(plain, b"AB\0CD"), b"ab");
        assert_eq!(with(plain, b";1"), b"");
        assert_eq!(with(enhanced, b"Read Me.txt"), b"Read Me.txt");
        assert_eq!(with(joliet, b"\0A\0\xe4\0.\0t\0;\x001"), "Aä.t".as_bytes());
        assert_eq!(with(joliet, b"\xd8\x3d\xde\x00\0.\0."), "😀".as_bytes());
        assert_eq!(with(joliet, b"\xd8\x3d\0/"), "\u{fffd}.".trim_end_matches('.').as_bytes());
        assert_eq!(with(joliet, &b"\x67\x2c".repeat(103)).len(), 255);
    }

    #[test]
    fn names_that_a_path_cannot_hold() {
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(!is_possible(name), "{}", name.escape_ascii());
        }
        assert!(is_possible(&[0xff; 255]));
    }
}
