//! Extended attributes and access control lists as libisofs writes them (AAIP 2.0).
//!
//! ```text
//! AL  flags │ components: flags, length, bytes      name, value, name, value, …; flag 1: it goes on
//! ```
//! The first byte of a name may stand for a namespace; an empty name is that of the access control lists:
//! ```text
//! type << 4 │ has a number << 3 │ rwx     [length of the number │ number, highest byte first]      0x81: default ones
//! ```

use super::corrupt::{Corrupt, Parsed};
use super::susp::Reader;
use crate::{NAME_BYTES_MAX, XATTR_BYTES_MAX};
use block::bytes::array;

/// The attributes of a file: the components of its entries, one after the other.
///
/// Unlike those of a link target, a component can begin in one entry and end in the next.
#[derive(Debug, Default)]
pub(super) struct AttributeList(Vec<u8>);

impl Reader for AttributeList {
    fn entry(&mut self, signature: [u8; 2], _version: u8, data: &[u8]) -> Parsed<()> {
        if signature == *b"AL" {
            self.0.extend_from_slice(data.get(1..).ok_or(Corrupt::SystemUse)?);
        }
        Ok(())
    }
}

impl AttributeList {
    /// Names and values as Linux has them; what it has no name for is left out.
    pub fn into_xattrs(self) -> Parsed<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut xattrs = Vec::new();
        let mut rest = self.0.as_slice();
        while !rest.is_empty() {
            let name = component(&mut rest)?;
            let value = component(&mut rest)?;
            if name.is_empty() {
                let lists = access_control_lists(&value)?;
                let names = [&b"system.posix_acl_access"[..], b"system.posix_acl_default"];
                for (name, list) in names.into_iter().zip(lists) {
                    if let Some(value) = list {
                        xattrs.push((name.to_vec(), value));
                    }
                }
            } else if let Some(name) = xattr_name(&name) {
                xattrs.push((name, value));
            }
        }
        Ok(xattrs)
    }
}

/// Takes a name or a value from the front of `rest`.
fn component(rest: &mut &[u8]) -> Parsed<Vec<u8>> {
    let mut component = Vec::new();
    loop {
        let [flags, len] = array::<2>(rest, 0).ok_or(Corrupt::AttributeList)?;
        let (part, tail) =
            rest.get(2..).and_then(|rest| rest.split_at_checked(usize::from(len))).ok_or(Corrupt::AttributeList)?;
        *rest = tail;
        component.extend_from_slice(part);
        if component.len() > XATTR_BYTES_MAX {
            return Err(Corrupt::AttributeList);
        }
        if flags & 1 == 0 {
            return Ok(component);
        }
    }
}

/// The name with its namespace spelled out; `None` where it is none of Linux's.
fn xattr_name(name: &[u8]) -> Option<Vec<u8>> {
    let (first, rest) = name.split_first()?;
    let name = match first {
        2 => [b"system.", rest].concat(),
        3 => [b"user.", rest].concat(),
        5 => [b"trusted.", rest].concat(),
        6 => [b"security.", rest].concat(),
        // Of libisofs itself, and unknown ones.
        0..=31 => return None,
        _ => name.to_vec(),
    };
    let known = [&b"system."[..], b"user.", b"trusted.", b"security."];
    let proper = known.iter().any(|prefix| name.len() > prefix.len() && name.starts_with(prefix));
    (proper && name.len() <= NAME_BYTES_MAX && !name.contains(&0)).then_some(name)
}

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The access and the default list, as the kernel's `system.posix_acl_…` have them; an access list that says no more
/// than the mode does is none.
fn access_control_lists(mut bytes: &[u8]) -> Parsed<[Option<Vec<u8>>; 2]> {
    // Tag, permissions, number.
    let mut access: Vec<(u16, u32, u16)> = Vec::new();
    let mut default = Vec::new();
    let mut in_default = false;
    while let Some((head, rest)) = bytes.split_first() {
        bytes = rest;
        let mut qualifier = Vec::new();
        if head & 8 != 0 {
            loop {
                let (len, rest) = bytes.split_first().ok_or(Corrupt::AttributeList)?;
                let (part, rest) = rest.split_at_checked(usize::from(len & 0x7f)).ok_or(Corrupt::AttributeList)?;
                qualifier.extend_from_slice(part);
                bytes = rest;
                if len & 0x80 == 0 {
                    break;
                }
            }
        }
        let tag = match head >> 4 {
            1 => USER_OBJ,
            3 => GROUP_OBJ,
            5 => MASK,
            6 => OTHER,
            8 => {
                in_default = true;
                continue;
            }
            10 => USER,
            12 => GROUP,
            // Names of users and groups, and what is not known.
            _ => continue,
        };
        let number = if matches!(tag, USER | GROUP) {
            if qualifier.len() > 4 {
                return Err(Corrupt::AttributeList);
            }
            qualifier.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte))
        } else {
            u32::MAX
        };
        let list = if in_default { &mut default } else { &mut access };
        list.push((tag, number, u16::from(head & 7)));
    }
    if !access.iter().any(|(tag, ..)| matches!(*tag, USER | GROUP | MASK)) {
        access.clear();
    }
    Ok([access, default].map(|mut list| {
        list.sort_unstable();
        (!list.is_empty()).then(|| {
            let mut value = 2_u32.to_le_bytes().to_vec();
            for (tag, number, permissions) in list {
                value.extend_from_slice(&tag.to_le_bytes());
                value.extend_from_slice(&permissions.to_le_bytes());
                value.extend_from_slice(&number.to_le_bytes());
            }
            value
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_over_two_entries() {
        let mut list = AttributeList::default();
        list.entry(*b"AL", 1, b"\x01\0\x02\x03a\x01\x02x").unwrap();
        list.entry(*b"AL", 1, b"\0y\0\x01z\0\x03\x04ca\0\x01q\0\x06user.b\0\0").unwrap();
        let xattrs = list.into_xattrs().unwrap();
        assert_eq!(xattrs, [(b"user.a".to_vec(), b"xyz".to_vec()), (b"user.b".to_vec(), Vec::new())]);
        let mut odd = AttributeList::default();
        odd.entry(*b"AL", 1, b"\0\0\x02\x03a").unwrap();
        assert_eq!(odd.into_xattrs(), Err(Corrupt::AttributeList));
    }

    #[test]
    fn access_control_lists_become_the_kernels() {
        let [access, default] = access_control_lists(b"\x16\xae\x01\x7b\x34\x54\x64\x81\x17\x35\x65").unwrap();
        let entry =
            |tag: u8, permissions: u8, number: u32| [&[tag, 0, permissions, 0][..], &number.to_le_bytes()].concat();
        let none = u32::MAX;
        let version = vec![2, 0, 0, 0];
        let expected = [
            version.clone(),
            entry(1, 6, none),
            entry(2, 6, 123),
            entry(4, 4, none),
            entry(16, 4, none),
            entry(32, 4, none),
        ];
        assert_eq!(access.unwrap(), expected.concat());
        assert_eq!(default.unwrap(), [version, entry(1, 7, none), entry(4, 5, none), entry(32, 5, none)].concat());
        assert_eq!(access_control_lists(b"\x16\x34\x64").unwrap(), [None, None]);
        assert_eq!(access_control_lists(b"\xae\x05abc"), Err(Corrupt::AttributeList));
    }
}
