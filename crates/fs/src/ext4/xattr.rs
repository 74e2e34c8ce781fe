//! Extended attributes: behind an inode's fields, and in a block of their own.
//!
//! ```text
//! in the inode: 0 magic 0xEA020000   4 entries …                       values count from the first entry
//! in a block:   0 magic   4 refcount   8 blocks   12 hash   16 checksum   32 entries …   values count from the block
//! entry: 0 name_len   1 name_index   2 value_offs   4 value_inum   8 value_size   12 hash   16 name, padded to 4
//! ```
//! `name_index` stands for the beginning of a name. A value may be the content of an inode of its own (`ea_inode`).
//!
//! Specification: Documentation/filesystems/ext4/attributes.rst of the kernel.

use std::ops::ControlFlow;

use block::{Error, Kind, Result};

use super::checksum::crc32c;
use super::corrupt::Parsed;
use super::field::{byte, le16, le32, part, tail};
use super::inode::{InodeRecord, flag};
use super::{Corrupt, Ext4};
use crate::XATTR_BYTES_MAX;

const MAGIC: u32 = 0xEA02_0000;
/// Inline content.
const SYSTEM: u8 = 7;

/// The beginnings of names that are shown.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (ACL_ACCESS, b"system.posix_acl_access"),
    (ACL_DEFAULT, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];
const ACL_ACCESS: u8 = 2;
const ACL_DEFAULT: u8 = 3;

/// An attribute as it is on disk.
struct DiskAttribute<'a> {
    index: u8,
    suffix: &'a [u8],
    /// The inode that holds the value, or 0.
    value_inode: u32,
    value_bytes: u32,
    /// The value, where no other inode holds it.
    value: &'a [u8],
}

impl DiskAttribute<'_> {
    /// The whole name, where it is one that is shown.
    fn name(&self) -> Option<Vec<u8>> {
        let (_, prefix) = PREFIXES.iter().find(|(index, _)| *index == self.index)?;
        if self.suffix.is_empty() == prefix.ends_with(b".") {
            return None;
        }
        Some([*prefix, self.suffix].concat())
    }
}

/// Visits the attributes in `bytes`, whose entries begin at `first`.
fn visit<'a>(
    inode: &InodeRecord,
    bytes: &'a [u8],
    first: usize,
    show: &mut dyn FnMut(&DiskAttribute<'a>) -> Result<ControlFlow<()>>,
) -> Result<ControlFlow<()>> {
    let malformed = Corrupt::XattrEntry { inode: inode.number };
    let mut at = first;
    // Each round goes on by 16 bytes or more.
    while le32(bytes, at).is_ok_and(|word| word != 0) {
        let name_bytes = usize::from(byte(bytes, at)?);
        let entry = part(bytes, at, name_bytes.saturating_add(16)).map_err(|_| malformed)?;
        let (value_inode, value_bytes) = (le32(entry, 4)?, le32(entry, 8)?);
        if value_bytes as usize > XATTR_BYTES_MAX {
            return Err(malformed.into());
        }
        let value = if value_inode == 0 && value_bytes != 0 {
            part(bytes, le16(entry, 2)?.into(), value_bytes as usize).map_err(|_| malformed)?
        } else {
            &[]
        };
        let suffix = tail(entry, 16)?;
        if show(&DiskAttribute { index: byte(entry, 1)?, suffix, value_inode, value_bytes, value })?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        at = at.saturating_add(name_bytes.saturating_add(19) & !3);
    }
    Ok(ControlFlow::Continue(()))
}

/// The attributes behind an inode's fields, from the first entry on; nothing where there are none.
fn in_inode(inode: &InodeRecord) -> Parsed<&[u8]> {
    let at = usize::from(inode.extra_bytes).saturating_add(128);
    match le32(&inode.raw, at) {
        Ok(MAGIC) if inode.extra_bytes != 0 => tail(&inode.raw, at.saturating_add(4)),
        _ => Ok(&[]),
    }
}

/// What of a file's inline content lies in the attribute `system.data`.
pub(super) fn inline_content(inode: &InodeRecord) -> Result<&[u8]> {
    let mut found = None;
    let _ = visit(inode, in_inode(inode)?, 0, &mut |attribute| {
        if attribute.index != SYSTEM || attribute.suffix != b"data" {
            return Ok(ControlFlow::Continue(()));
        }
        found = Some(attribute.value);
        Ok(ControlFlow::Break(()))
    })?;
    match found {
        Some(value) => Ok(value),
        None if inode.size <= super::inode::BLOCK_BYTES as u64 => Ok(&[]),
        None => Err(Corrupt::InlineData { inode: inode.number }.into()),
    }
}

impl Ext4 {
    /// Visits all attributes of an inode.
    fn visit_xattrs(
        &self,
        inode: &InodeRecord,
        show: &mut dyn FnMut(&DiskAttribute<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        if visit(inode, in_inode(inode)?, 0, show)?.is_break() || inode.file_acl == 0 {
            return Ok(());
        }
        let block = inode.file_acl;
        let bytes = self.inode_block(inode, block)?;
        if le32(&bytes, 0)? != MAGIC || le32(&bytes, 8)? != 1 {
            return Err(Corrupt::XattrHeader { inode: inode.number, block }.into());
        }
        if self.superblock.verify {
            let checksum = crc32c(self.superblock.checksum_seed, &block.to_le_bytes());
            let checksum = crc32c(crc32c(checksum, part(&bytes, 0, 16)?), &[0; 4]);
            if crc32c(checksum, tail(&bytes, 20)?) != le32(&bytes, 16)? {
                return Err(Corrupt::XattrChecksum { inode: inode.number, block }.into());
            }
        }
        visit(inode, &bytes, 32, show).map(drop)
    }

    /// See [`crate::FileSystem::xattrs`].
    pub(super) fn xattr_names(&self, number: u64) -> Result<Vec<Vec<u8>>> {
        let inode = self.inode(number)?;
        let mut names = Vec::new();
        self.visit_xattrs(&inode, &mut |attribute| {
            names.extend(attribute.name());
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(names)
    }

    /// See [`crate::FileSystem::xattr`].
    pub(super) fn xattr_value(&self, number: u64, name: &[u8]) -> Result<Vec<u8>> {
        let inode = self.inode(number)?;
        let mut found = None;
        self.visit_xattrs(&inode, &mut |attribute| {
            if attribute.name().is_none_or(|own| own != name) {
                return Ok(ControlFlow::Continue(()));
            }
            let value = match attribute.value_inode {
                0 => attribute.value.to_vec(),
                holder => self.xattr_inode(&inode, holder, attribute.value_bytes)?,
            };
            found = Some(match attribute.index {
                ACL_ACCESS | ACL_DEFAULT => acl_from_disk(&value).ok_or(Corrupt::AccessList { inode: inode.number })?,
                _ => value,
            });
            Ok(ControlFlow::Break(()))
        })?;
        found.ok_or_else(|| {
            let name = crate::path::Printable(name);
            Error::new(Kind::NoAttribute, format!("extended attribute {name} of inode {number}"))
        })
    }

    /// The value of `bytes` bytes that the inode `holder` holds.
    fn xattr_inode(&self, inode: &InodeRecord, holder: u32, bytes: u32) -> Result<Vec<u8>> {
        let corrupt = Corrupt::XattrInode { inode: inode.number, value_inode: holder };
        let value_inode = self.inode(holder.into())?;
        if !value_inode.has(flag::EA_INODE) || value_inode.size != u64::from(bytes) {
            return Err(corrupt.into());
        }
        let mut value = vec![0; bytes as usize]; // at most XATTR_BYTES_MAX
        self.read_content(&value_inode, &mut value, 0)?;
        Ok(value)
    }
}

/// A POSIX access control list as the kernel hands it out, of the one on disk, which leaves out what means nothing.
///
/// ```text
/// disk:    version 1 (4)   tag (2) perm (2) [id (4), of users and groups alone] …
/// kernel:  version 2 (4)   tag (2) perm (2)  id (4) …
/// ```
fn acl_from_disk(disk: &[u8]) -> Option<Vec<u8>> {
    let (version, mut rest) = disk.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != 1 {
        return None;
    }
    let mut acl = 2_u32.to_le_bytes().to_vec();
    while let Some((entry, after)) = rest.split_first_chunk::<4>() {
        acl.extend_from_slice(entry);
        let [tag_low, tag_high, ..] = *entry;
        rest = match u16::from_le_bytes([tag_low, tag_high]) {
            0x02 | 0x08 => {
                let (id, after) = after.split_first_chunk::<4>()?;
                acl.extend_from_slice(id);
                after
            }
            0x01 | 0x04 | 0x10 | 0x20 => {
                acl.extend_from_slice(&[0xFF; 4]);
                after
            }
            _ => return None,
        };
    }
    rest.is_empty().then_some(acl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_lists_get_the_ids_that_disk_leaves_out() {
        let disk = [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 16, 0, 4, 0, 32, 0, 0, 0];
        let acl = acl_from_disk(&disk).unwrap();
        assert_eq!(acl.len(), 4 + 5 * 8);
        assert_eq!(acl[..4], [2, 0, 0, 0]);
        assert_eq!(acl[12..20], [2, 0, 4, 0, 232, 3, 0, 0]);
        assert_eq!(acl[20..28], [4, 0, 4, 0, 255, 255, 255, 255]);
        assert_eq!(acl_from_disk(&disk[..27]), None);
        assert_eq!(acl_from_disk(&[2, 0, 0, 0]), None);
        assert_eq!(acl_from_disk(&[]), None);
    }
}
