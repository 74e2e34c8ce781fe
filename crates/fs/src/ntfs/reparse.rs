//! Reparse points: what stands in place of a file's or a directory's own content (MS-FSCC, 2.1.2).
//!
//! ```text
//! tag, 4 │ bytes, 2 │ 2 │ 8
//!   symbolic link   8 real name at, 2 │ its bytes, 2 │ shown name at, 2 │ its bytes, 2 │ flags, 4 (1: relative) │ 20 names
//!   junction        8 the same, without flags                                                            │ 16 names
//!   Linux's link    8 version, 4 │ 12 the target, UTF-8
//! ```
//! Targets are shown with `/` for `\`, and without the `\??\` that an absolute one begins with: `C:/folder`.

use block::Result;
use block::bytes::{le_u16, le_u32};

use super::corrupt::Corrupt;
use crate::{FileType, LINK_BYTES_MAX, utf16};

/// Bytes of a reparse point, at most.
pub(super) const BYTES_MAX: usize = 16 << 10;

const TAG_MOUNT_POINT: u32 = 0xa000_0003;
const TAG_SYMBOLIC_LINK: u32 = 0xa000_000c;
const TAG_DEDUPLICATED: u32 = 0x8000_0013;
const TAG_PACKED: u32 = 0x8000_0017;
const TAG_LINUX_LINK: u32 = 0xa000_001d;
const TAG_SOCKET: u32 = 0x8000_0023;
const TAG_LINUX_FIFO: u32 = 0x8000_0024;
const TAG_LINUX_CHARACTER: u32 = 0x8000_0025;
const TAG_LINUX_BLOCK: u32 = 0x8000_0026;

/// What a reparse point makes of a file.
#[derive(Debug)]
pub(super) enum Point {
    /// Nothing that matters here.
    None,
    Link(Vec<u8>),
    Special(FileType),
    /// The content stands in a form that is not read.
    Foreign(&'static str),
}

/// Reads a reparse point.
///
/// # Errors
/// `Corrupt`.
pub(super) fn read(bytes: &[u8]) -> Result<Point> {
    let broken = || Corrupt::ReparsePoint.at(format!("reparse point of {} bytes", bytes.len()));
    let tag = le_u32(bytes, 0).ok_or_else(broken)?;
    let names = match tag {
        TAG_SYMBOLIC_LINK => 20,
        TAG_MOUNT_POINT => 16,
        TAG_LINUX_LINK => return target(bytes.get(12..).ok_or_else(broken)?.to_vec()).map(Point::Link),
        TAG_SOCKET => return Ok(Point::Special(FileType::Socket)),
        TAG_LINUX_FIFO => return Ok(Point::Special(FileType::Fifo)),
        TAG_LINUX_CHARACTER => return Ok(Point::Special(FileType::CharacterDevice)),
        TAG_LINUX_BLOCK => return Ok(Point::Special(FileType::BlockDevice)),
        TAG_DEDUPLICATED => return Ok(Point::Foreign("content that Windows Server deduplicated")),
        TAG_PACKED => return Ok(Point::Foreign("content that Windows packed (CompactOS)")),
        _ => return Ok(Point::None),
    };
    let place = le_u16(bytes, 8).zip(le_u16(bytes, 10));
    let name = place.and_then(|(at, len)| bytes.get(names..)?.get(usize::from(at)..)?.get(..usize::from(len)));
    let units = utf16::units(name.ok_or_else(broken)?);
    let name: Vec<u8> =
        utf16::to_bytes(&units).into_iter().map(|byte| if byte == b'\\' { b'/' } else { byte }).collect();
    target(name.strip_prefix(b"/??/").unwrap_or(&name).to_vec()).map(Point::Link)
}

/// A target that a link may have.
///
/// # Errors
/// `Corrupt`.
pub(super) fn target(name: Vec<u8>) -> Result<Vec<u8>> {
    let sound = (1..=LINK_BYTES_MAX).contains(&name.len()) && !name.contains(&0);
    if sound { Ok(name) } else { Err(Corrupt::ReparsePoint.at(format!("target of {} bytes", name.len()))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(tag: u32, names: usize, name: &str) -> Vec<u8> {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let mut bytes = vec![0; names];
        bytes[..4].copy_from_slice(&tag.to_le_bytes());
        bytes[10..12].copy_from_slice(&(name.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&name);
        bytes
    }

    fn shown(bytes: &[u8]) -> Option<String> {
        match read(bytes) {
            Ok(Point::Link(target)) => Some(String::from_utf8(target).unwrap()),
            _ => None,
        }
    }

    #[test]
    fn links_of_every_kind() {
        assert_eq!(shown(&link(TAG_SYMBOLIC_LINK, 20, r"..\a\b")).unwrap(), "../a/b");
        assert_eq!(shown(&link(TAG_SYMBOLIC_LINK, 20, r"\??\C:\Users")).unwrap(), "C:/Users");
        assert_eq!(shown(&link(TAG_MOUNT_POINT, 16, r"\??\C:\Ünï\")).unwrap(), "C:/Ünï/");
        let linux = [&TAG_LINUX_LINK.to_le_bytes()[..], &[9, 0, 0, 0, 2, 0, 0, 0], b"a/b\\c"].concat();
        assert_eq!(shown(&linux).unwrap(), "a/b\\c");
        assert!(matches!(read(&TAG_LINUX_FIFO.to_le_bytes()), Ok(Point::Special(FileType::Fifo))));
        assert!(matches!(read(&TAG_PACKED.to_le_bytes()), Ok(Point::Foreign(_))));
        assert!(matches!(read(&0x9000_001a_u32.to_le_bytes()), Ok(Point::None)));
    }

    #[test]
    fn targets_that_none_may_have() {
        for name in ["", "a\0b", &"x".repeat(5000)] {
            assert_eq!(read(&link(TAG_SYMBOLIC_LINK, 20, name)).unwrap_err().kind(), block::Kind::Corrupt);
        }
        let whole = link(TAG_SYMBOLIC_LINK, 20, "abc");
        assert!((0..whole.len()).all(|len| read(&whole[..len]).is_err()));
    }
}
