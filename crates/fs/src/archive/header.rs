//! A member's header: a block of ustar, and before it, where that cannot say everything, an extended one of pax.
//!
//! ```text
//! bytes    0  100  108  116  124  136   148    156   157   257    263   265   297   329    337    345   500  512
//!          name│mode│uid │gid │size│mtime│chksum│type │link │"ustar"│"00"│uname│gname│major │minor │prefix│zero
//! ```
//!
//! POSIX.1-2024, pax, "ustar Interchange Format" and "pax Extended Header"; sparse files as GNU tar's manual has them
//! ("PAX Format, Version 1.0"), extended attributes and ACLs as star and GNU tar write them (`SCHILY.xattr.`,
//! `SCHILY.acl.`).

use crate::{Stat, Time};

/// The unit of an archive, bytes.
pub(super) const BLOCK_BYTES: usize = 512;
/// The highest user or group number that seven octal digits hold.
const ID_MAX: u32 = 0o777_7777;
/// The highest size and time that eleven octal digits hold.
const NUMBER_MAX: u64 = 0o777_7777_7777;
/// Who owns a file for a reader that knows no pax, when the number does not fit: nobody.
const NOBODY: u32 = 65_534;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Member<'a> {
    File,
    /// One more name of an earlier member.
    Link(&'a [u8]),
    SymbolicLink(&'a [u8]),
    Directory,
    CharacterDevice,
    BlockDevice,
    Fifo,
    /// A file in the sparse form, which holds this many bytes when it is whole.
    Sparse(u64),
}

/// Both headers of a member whose content takes `size` bytes in the archive.
pub(super) fn headers(path: &[u8], member: Member<'_>, stat: &Stat, size: u64, records: Records) -> Vec<u8> {
    let mut records = records;
    let mut block = [0_u8; BLOCK_BYTES];
    let mut name = path.to_vec();
    if let Member::Sparse(whole) = member {
        records.add(b"GNU.sparse.major", b"1");
        records.add(b"GNU.sparse.minor", b"0");
        records.add_path(b"GNU.sparse.name", path);
        records.add(b"GNU.sparse.realsize", whole.to_string().as_bytes());
        name = beside(path, b"GNUSparseFile.0");
    }
    if !put_path(&mut block, &name) {
        records.add_path(b"path", &name);
    }
    octal(&mut block, 100, 8, u64::from(stat.permissions & 0o7777));
    for (at, id, key) in [(108, stat.uid, b"uid"), (116, stat.gid, b"gid")] {
        if id > ID_MAX {
            records.add(key, id.to_string().as_bytes());
        }
        octal(&mut block, at, 8, u64::from(if id > ID_MAX { NOBODY } else { id }));
    }
    if size > NUMBER_MAX {
        records.add(b"size", size.to_string().as_bytes());
    }
    octal(&mut block, 124, 12, if size > NUMBER_MAX { 0 } else { size });
    let seconds = u64::try_from(stat.modified.seconds).ok().filter(|seconds| *seconds <= NUMBER_MAX);
    if seconds.is_none() || stat.modified.nanoseconds != 0 {
        records.add(b"mtime", decimal(stat.modified).as_bytes());
    }
    octal(&mut block, 136, 12, seconds.unwrap_or(0));
    let (type_flag, target) = match member {
        Member::File | Member::Sparse(_) => (b'0', None),
        Member::Link(target) => (b'1', Some(target)),
        Member::SymbolicLink(target) => (b'2', Some(target)),
        Member::CharacterDevice => (b'3', None),
        Member::BlockDevice => (b'4', None),
        Member::Directory => (b'5', None),
        Member::Fifo => (b'6', None),
    };
    put(&mut block, 156, &[type_flag]);
    if let Some(target) = target {
        if target.len() <= 100 && target.is_ascii() {
            put(&mut block, 157, target);
        } else {
            records.add_path(b"linkpath", target);
            put(&mut block, 157, target.get(..100).unwrap_or(target));
        }
    }
    if let Some((major, minor)) = stat.device
        && matches!(member, Member::CharacterDevice | Member::BlockDevice)
    {
        // Seven octal digits hold all that Linux has: 12 bits and 20 bits.
        octal(&mut block, 329, 8, u64::from(major.min(ID_MAX)));
        octal(&mut block, 337, 8, u64::from(minor.min(ID_MAX)));
    }
    seal(&mut block);
    let mut all = Vec::new();
    if !records.bytes.is_empty() {
        all = extended(path, &records);
    }
    all.extend_from_slice(&block);
    all
}

/// The extended header as a member of its own.
fn extended(path: &[u8], records: &Records) -> Vec<u8> {
    let mut content = Vec::new();
    if records.binary {
        record(&mut content, b"hdrcharset", b"BINARY");
    }
    content.extend_from_slice(&records.bytes);
    let mut block = [0_u8; BLOCK_BYTES];
    let name = beside(path, b"PaxHeaders");
    put(&mut block, 0, name.get(..100).unwrap_or(&name));
    for (at, width, value) in [(100, 8, 0o644), (108, 8, 0), (116, 8, 0), (124, 12, content.len() as u64), (136, 12, 0)]
    {
        octal(&mut block, at, width, value);
    }
    put(&mut block, 156, b"x");
    seal(&mut block);
    let mut all = block.to_vec();
    all.extend_from_slice(&content);
    all.resize(all.len().next_multiple_of(BLOCK_BYTES), 0);
    all
}

/// `directory/name` → `directory/folder/name`: where readers without pax put what they do not know.
fn beside(path: &[u8], folder: &[u8]) -> Vec<u8> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash.saturating_add(1));
    let (directory, name) = path.split_at_checked(at).unwrap_or((b"", path));
    [directory, folder, b"/", name].concat()
}

/// Puts a path into `name` and `prefix`; `false` (and its beginning in `name`) where it does not fit, or is no ASCII.
fn put_path(block: &mut [u8; BLOCK_BYTES], path: &[u8]) -> bool {
    if path.is_ascii() {
        if path.len() <= 100 {
            put(block, 0, path);
            return true;
        }
        // At a slash that leaves at most 155 bytes before it, and 1 to 100 after it.
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for at in slashes.take_while(|at| *at <= 155).filter(|at| *at > 0) {
            let (Some(prefix), Some(name)) = (path.get(..at), path.get(at.saturating_add(1)..)) else { continue };
            if (1..=100).contains(&name.len()) {
                put(block, 0, name);
                put(block, 345, prefix);
                return true;
            }
        }
    }
    put(block, 0, path.get(..100).unwrap_or(path));
    false
}

fn put(block: &mut [u8; BLOCK_BYTES], at: usize, bytes: &[u8]) {
    if let Some(target) = block.get_mut(at..at.saturating_add(bytes.len())) {
        target.copy_from_slice(bytes);
    }
}

/// A number in a field of `width` bytes: octal digits and a NUL.
fn octal(block: &mut [u8; BLOCK_BYTES], at: usize, width: usize, value: u64) {
    let digits = width.saturating_sub(1);
    put(block, at, format!("{value:0digits$o}").as_bytes());
}

/// Magic, version and checksum: the sum of all bytes, those of the checksum itself taken as spaces.
fn seal(block: &mut [u8; BLOCK_BYTES]) {
    put(block, 257, b"ustar\x0000");
    put(block, 148, b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    put(block, 148, format!("{sum:06o}\0 ").as_bytes());
}

/// Seconds, with a fraction where there is one.
fn decimal(time: Time) -> String {
    let (mut sign, mut seconds, mut nanoseconds) = ("", time.seconds, time.nanoseconds.min(999_999_999));
    if seconds < 0 && nanoseconds > 0 {
        // -2 s and 0.75 s after that are -1.25 s.
        seconds = seconds.saturating_add(1);
        nanoseconds = 1_000_000_000_u32.saturating_sub(nanoseconds);
        sign = if seconds == 0 { "-" } else { "" };
    }
    if nanoseconds == 0 { format!("{seconds}") } else { format!("{sign}{seconds}.{nanoseconds:09}") }
}

/// Records of an extended header.
#[derive(Debug, Default)]
pub(super) struct Records {
    bytes: Vec<u8>,
    /// Whether a path in it is no UTF-8.
    binary: bool,
}

impl Records {
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        record(&mut self.bytes, key, value);
    }

    fn add_path(&mut self, key: &[u8], path: &[u8]) {
        self.binary |= std::str::from_utf8(path).is_err();
        self.add(key, path);
    }

    /// An extended attribute: an ACL as text, every other one as it is.
    pub fn add_xattr(&mut self, name: &[u8], value: &[u8]) {
        let acl = match name {
            b"system.posix_acl_access" => acl_text(value).map(|text| (b"SCHILY.acl.access".as_slice(), text)),
            b"system.posix_acl_default" => acl_text(value).map(|text| (b"SCHILY.acl.default".as_slice(), text)),
            _ => None,
        };
        if let Some((key, text)) = acl {
            return self.add(key, text.as_bytes());
        }
        let mut key = b"SCHILY.xattr.".to_vec();
        for byte in name {
            // As GNU tar writes them: the first `=` would end the key.
            match byte {
                b'=' => key.extend_from_slice(b"%3D"),
                b'%' => key.extend_from_slice(b"%25"),
                byte => key.push(*byte),
            }
        }
        self.add(&key, value);
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits too.
fn record(bytes: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len().saturating_add(value.len()).saturating_add(3);
    let mut len = rest;
    loop {
        let next = rest.saturating_add(len.to_string().len());
        if next == len {
            break;
        }
        len = next;
    }
    bytes.extend_from_slice(len.to_string().as_bytes());
    for part in [b" ".as_slice(), key, b"=", value, b"\n"] {
        bytes.extend_from_slice(part);
    }
}

/// An ACL as text, from what `getxattr` gives: a version (2), then entries of tag, permissions and number, all little
/// endian. `None` when it is none of these.
fn acl_text(value: &[u8]) -> Option<String> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != 2 {
        return None;
    }
    let (entries, rest) = entries.as_chunks::<8>();
    let mut lines = Vec::new();
    for [tag0, tag1, perm0, perm1, id @ ..] in entries {
        let permissions = u16::from_le_bytes([*perm0, *perm1]);
        let id = u32::from_le_bytes(*id);
        let who = match u16::from_le_bytes([*tag0, *tag1]) {
            0x01 => "user:".to_owned(),
            0x02 => format!("user:{id}"),
            0x04 => "group:".to_owned(),
            0x08 => format!("group:{id}"),
            0x10 => "mask:".to_owned(),
            0x20 => "other:".to_owned(),
            _ => return None,
        };
        let bit = |bit, letter| if permissions & bit == 0 { '-' } else { letter };
        lines.push(format!("{who}:{}{}{}", bit(4, 'r'), bit(2, 'w'), bit(1, 'x')));
    }
    (rest.is_empty() && !lines.is_empty()).then(|| lines.join(","))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for (value, expected) in [("x", "6 k=x\n"), ("xxxx", "9 k=xxxx\n"), ("xxxxx", "11 k=xxxxx\n")] {
            let mut bytes = Vec::new();
            record(&mut bytes, b"k", value.as_bytes());
            assert_eq!(bytes, expected.as_bytes());
        }
        for len in 0..2000 {
            let mut bytes = Vec::new();
            record(&mut bytes, b"key", &vec![b'v'; len]);
            let text = String::from_utf8(bytes).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), text.len());
        }
    }

    #[test]
    fn times_before_1970_and_between_seconds() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "0"),
            (-1, 0, "-1"),
            (5, 1, "5.000000001"),
            (-2, 750_000_000, "-1.250000000"),
            (-1, 750_000_000, "-0.250000000"),
        ] {
            assert_eq!(decimal(Time { seconds, nanoseconds }), text);
        }
    }

    #[test]
    fn long_paths_are_split_where_they_can_be() {
        let try_path = |path: &[u8]| {
            let mut block = [0; BLOCK_BYTES];
            let fits = put_path(&mut block, path);
            let text = |bytes: &[u8]| bytes.iter().take_while(|byte| **byte != 0).copied().collect::<Vec<_>>();
            (fits, text(&block[345..500]), text(&block[..100]))
        };
        let (a, b) = ([b'a'; 155], [b'b'; 100]);
        let path = [&a[..], b"/", &b[..]].concat();
        assert_eq!(try_path(&path), (true, a.to_vec(), b.to_vec()));
        assert!(!try_path(&[&a[..], b"a/", &b[..]].concat()).0);
        assert!(!try_path(&[&a[..], b"/", &b[..], b"b"].concat()).0);
        assert!(!try_path(&[b'c'; 101]).0);
        assert!(!try_path("ä".as_bytes()).0);
        assert!(try_path(&[b'c'; 100]).0);
    }

    #[test]
    fn an_acl_becomes_text() {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in
            [(1_u16, 7_u16, u32::MAX), (2, 5, 1000), (4, 4, u32::MAX), (0x10, 6, u32::MAX), (0x20, 0, u32::MAX)]
        {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        assert_eq!(acl_text(&value).unwrap(), "user::rwx,user:1000:r-x,group::r--,mask::rw-,other::---");
        assert_eq!(acl_text(&value[..value.len() - 1]), None);
        assert_eq!(acl_text(&[]), None);
    }
}
