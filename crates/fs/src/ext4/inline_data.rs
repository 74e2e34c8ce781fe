//! Inline content: the first 60 bytes of a small file or directory in the inode's block area, the rest in the value of
//! the extended attribute `system.data` inside the inode. What lies between those and the file's size is zero.
//!
//! Specification: Documentation/filesystems/ext4/inlinedata.rst of the kernel.

use block::Result;

use super::Ext4;
use super::inode::InodeRecord;
use super::xattr::inline_content;

impl Ext4 {
    /// The bytes that lie in an inode: at most those of its block area and of one extended attribute.
    pub(super) fn inline_bytes(&self, inode: &InodeRecord) -> Result<Vec<u8>> {
        let mut bytes = inode.block_area()?.to_vec();
        bytes.extend_from_slice(inline_content(inode)?);
        bytes.truncate(usize::try_from(inode.size).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    /// Fills `buf` from byte `offset` of inline content on.
    pub(super) fn read_inline(&self, inode: &InodeRecord, buf: &mut [u8], offset: u64) -> Result<()> {
        let bytes = self.inline_bytes(inode)?;
        let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
        let len = from.len().min(buf.len());
        let Some((have, zero)) = buf.split_at_mut_checked(len) else { return Ok(()) };
        have.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        zero.fill(0);
        Ok(())
    }
}
