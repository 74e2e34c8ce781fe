//! Extended attributes.
//!
//! ```text
//! header     filter, 4 │ shared, 1 │ 0, 7 │ numbers of shared attributes, 4 each          behind the inode
//! entry      name bytes, 1 │ prefix, 1 │ value bytes, 2 │ name without its prefix │ value    to a multiple of 4
//! ```
//! Entries follow the header; shared ones stand at 4 × number behind the block where those begin. Bit 7 of the prefix: it
//! is one of those that the image itself lists, each a prefix of the list below and more letters.

use block::bytes::{byte, le_u16, le_u32};
use block::{Error, Kind, Result};

use super::Erofs;
use super::corrupt::Corrupt;
use super::inode::Node;
use super::medium::Medium;
use super::superblock::compat;
use crate::NAME_BYTES_MAX;

const HEADER_BYTES: usize = 12;
const ENTRY_BYTES: usize = 4;
const LONG_PREFIX: u8 = 0x80;
/// By their number. Others (5, of Lustre) are not the kernel's either.
const PREFIXES: [Option<&[u8]>; 7] = [
    None,
    Some(b"user."),
    Some(b"system.posix_acl_access"),
    Some(b"system.posix_acl_default"),
    Some(b"trusted."),
    None,
    Some(b"security."),
];

/// The prefixes that an image lists; those that are hidden, as names of attributes that nobody sees, are `None`.
#[derive(Debug, Default)]
pub(super) struct Prefixes(Vec<Option<Vec<u8>>>);

/// ```text
/// bytes that follow, 2 │ prefix, 1 │ more letters                                       to a multiple of 4
/// ```
impl Prefixes {
    /// Reads them: from the device, or from the inode that holds such things.
    ///
    /// # Errors
    /// `Corrupt`; the failure of the device.
    pub fn read(medium: &Medium) -> Result<Self> {
        let superblock = &medium.superblock;
        let plain = superblock.compat & compat::PLAIN_XATTR_PREFIXES != 0;
        let within = medium.metabox.as_ref().or(medium.packed.as_ref()).filter(|_| !plain);
        let mut at = u64::from(superblock.prefix_start) << 2;
        let mut prefixes = Vec::new();
        for _ in 0..superblock.prefixes {
            let mut take = |buf: &mut [u8]| -> Result<()> {
                let read = match within {
                    Some(file) => file.read(medium, buf, at)?,
                    None => medium.meta_up_to(false, at, buf)?,
                };
                at = at.saturating_add(read as u64);
                if read < buf.len() { Err(Corrupt::Superblock.at("prefixes of attributes")) } else { Ok(()) }
            };
            let mut len = [0; 2];
            take(&mut len)?;
            let len = usize::from(u16::from_le_bytes(len));
            if !(1..=NAME_BYTES_MAX.saturating_add(1)).contains(&len) {
                return Err(Corrupt::Superblock.at(format!("prefix of attributes of {len} bytes")));
            }
            let mut bytes = vec![0; len];
            take(&mut bytes)?;
            at = at.next_multiple_of(4);
            let base = bytes.first().and_then(|base| *PREFIXES.get(usize::from(*base))?);
            prefixes.push(base.map(|base| [base, bytes.get(1..).unwrap_or_default()].concat()));
        }
        Ok(Self(prefixes))
    }

    fn get(&self, number: u8) -> Option<&[u8]> {
        if number & LONG_PREFIX != 0 {
            return self.0.get(usize::from(number & !LONG_PREFIX))?.as_deref();
        }
        *PREFIXES.get(usize::from(number))?
    }
}

/// An attribute.
struct Attribute {
    name: Vec<u8>,
    in_metabox: bool,
    /// Where its value is, and how many bytes.
    value: (u64, usize),
}

impl Erofs {
    /// The names of a file's attributes.
    pub(super) fn xattr_names(&self, node: &Node) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        self.attributes(node, |attribute| {
            names.push(attribute.name);
            true
        })?;
        Ok(names)
    }

    /// The value of the one of that name.
    pub(super) fn xattr_value(&self, node: &Node, name: &[u8]) -> Result<Vec<u8>> {
        let mut found = None;
        self.attributes(node, |attribute| {
            let other = attribute.name != name;
            if !other {
                found = Some(attribute);
            }
            other
        })?;
        let missing = || Error::new(Kind::NoAttribute, format!("attribute \"{}\"", name.escape_ascii()));
        let Attribute { in_metabox, value: (at, len), .. } = found.ok_or_else(missing)?;
        let mut value = vec![0; len];
        self.medium.meta(in_metabox, at, &mut value, Corrupt::Attribute)?;
        Ok(value)
    }

    /// Passes the attributes to `visit` until it says no.
    fn attributes(&self, node: &Node, mut visit: impl FnMut(Attribute) -> bool) -> Result<()> {
        let place = node.place;
        let broken = || Corrupt::Attribute.at(format!("attributes of inode {:#x}", node.stat.number));
        // At most 256 KiB: a count of 16 bits, of words.
        let len = usize::try_from(place.body.saturating_sub(place.xattrs)).map_err(|_| broken())?;
        if len == 0 {
            return Ok(());
        }
        let mut bytes = vec![0; len];
        self.medium.meta(place.in_metabox, place.xattrs, &mut bytes, Corrupt::Attribute)?;
        let shared = usize::from(byte(&bytes, 4).ok_or_else(broken)?);
        let mut at = shared.saturating_mul(4).saturating_add(HEADER_BYTES);
        if at > len {
            return Err(broken());
        }
        while at < len {
            let head = bytes.get(at..).unwrap_or_default();
            let entry = Entry::parse(head).ok_or_else(broken)?;
            let name = head.get(ENTRY_BYTES..).and_then(|rest| rest.get(..entry.name_bytes)).ok_or_else(broken)?;
            let value = at.saturating_add(ENTRY_BYTES).saturating_add(entry.name_bytes);
            let end = value.saturating_add(entry.value_bytes);
            if end > len {
                return Err(broken());
            }
            let value = (place.xattrs.saturating_add(value as u64), entry.value_bytes);
            if let Some(name) = self.name(entry.prefix, name, broken)?
                && !visit(Attribute { name, in_metabox: place.in_metabox, value })
            {
                return Ok(());
            }
            at = end.next_multiple_of(4);
        }
        let superblock = &self.medium.superblock;
        let in_metabox = superblock.compat & compat::SHARED_XATTRS_IN_METABOX != 0;
        let start = u64::from(superblock.xattrs) << superblock.block_log;
        for number in 0..shared {
            let id = le_u32(&bytes, number.saturating_mul(4).saturating_add(HEADER_BYTES)).ok_or_else(broken)?;
            let at = u64::from(id).saturating_mul(4).saturating_add(start);
            let mut head = [0; ENTRY_BYTES];
            self.medium.meta(in_metabox, at, &mut head, Corrupt::Attribute)?;
            let entry = Entry::parse(&head).ok_or_else(broken)?;
            let mut name = vec![0; entry.name_bytes];
            let at = at.saturating_add(ENTRY_BYTES as u64);
            self.medium.meta(in_metabox, at, &mut name, Corrupt::Attribute)?;
            let value = (at.saturating_add(entry.name_bytes as u64), entry.value_bytes);
            if let Some(name) = self.name(entry.prefix, &name, broken)?
                && !visit(Attribute { name, in_metabox, value })
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The whole name; `None` where it is one of those that nobody sees.
    fn name(&self, prefix: u8, rest: &[u8], broken: impl Fn() -> Error) -> Result<Option<Vec<u8>>> {
        let Some(prefix) = self.prefixes.get(prefix) else { return Ok(None) };
        let name = [prefix, rest].concat();
        if name.len() > NAME_BYTES_MAX || name.contains(&0) || name.ends_with(b".") {
            return Err(broken());
        }
        Ok(Some(name))
    }
}

struct Entry {
    name_bytes: usize,
    prefix: u8,
    value_bytes: usize,
}

impl Entry {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let name_bytes = usize::from(byte(bytes, 0)?);
        Some(Self { name_bytes, prefix: byte(bytes, 1)?, value_bytes: usize::from(le_u16(bytes, 2)?) })
    }
}
