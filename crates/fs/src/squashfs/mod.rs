//! Squashfs 4.0, the read-only file system of containers and live systems (Documentation/filesystems/squashfs.rst).
//!
//! ```text
//! superblock, 96 │ compressor options │ data and fragment blocks │ inodes │ directories │ fragments │ export │ ids │ xattrs
//!
//!   0 "hsqs" │  4 inodes │  8 time │ 12 block size │ 16 fragments │ 20 compression, 2 │ 22 log2 block, 2
//!  24 flags, 2 │ 26 ids, 2 │ 28 major, 2 │ 30 minor, 2 │ 32 root inode, 8 │ 40 bytes used, 8
//!  48 ids │ 56 xattrs │ 64 inodes │ 72 directories │ 80 fragments │ 88 export       8 each; all ones: not there
//! ```
//! All numbers are little-endian. Inodes, directories and tables are `metadata` blocks, files are blocks of up to 1 MiB;
//! each block is compressed on its own, or not where it does not shrink. An [`Inode`] is the reference that the format
//! itself uses: the position of a metadata block in the table of inodes, and below 16 bits the offset in what it unpacks
//! to. The export table (from inode number to reference, for NFS) is not needed for that.
//!
//! Reading unpacks whole blocks straight into the caller's buffer; pieces of blocks, fragments and metadata come from
//! caches with a limit in bytes, shared by all callers. No lock is held while a block is unpacked but that block's own.

mod compression;
mod content;
mod corrupt;
mod directory;
mod inode;
mod metadata;
mod superblock;
mod xattr;

use std::ops::ControlFlow;
use std::sync::Arc;

use block::{Error, Kind, ReadAt, Result};

pub use corrupt::Corrupt;

use self::compression::Compression;
use self::content::{Contents, File};
use self::inode::{Content, Listing};
use self::metadata::{Medium, Place};
use self::superblock::{COMPRESSOR_OPTIONS, SUPERBLOCK_BYTES, Superblock};
use crate::{Cursor, Entry, FileExtent, FileSystem, Inode, Space, Stat};

/// The only version of lz4 streams that the format knows.
const LZ4_LEGACY: u32 = 1;

/// A squashfs file system.
#[derive(Debug)]
pub struct SquashFs {
    medium: Medium,
    /// Users and groups by their place in the id table.
    ids: Vec<u32>,
    xattrs: Option<xattr::Table>,
    contents: Contents,
}

impl SquashFs {
    /// Whether a device holds one, of whatever version.
    ///
    /// # Errors
    /// The failure of the device.
    pub fn is_on(device: &dyn ReadAt) -> Result<bool> {
        Superblock::is_on(device)
    }

    /// Opens the file system on a device.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] with a [`Corrupt`] as its source; [`Kind::Unsupported`] for another version than 4.0 or an
    /// unknown compression; the failure of the device.
    pub fn open(device: Arc<dyn ReadAt>) -> Result<Self> {
        let superblock = Superblock::read(&*device)?;
        let medium = Medium::new(device, superblock);
        check_options(&medium)?;
        let ids = ids(&medium)?;
        let xattrs = superblock.xattr_table.map(|at| xattr::Table::read(&medium, at)).transpose()?;
        let files = Self { medium, ids, xattrs, contents: Contents::new() };
        files.listing(files.root())?;
        Ok(files)
    }

    fn listing(&self, inode: Inode) -> Result<Listing> {
        match self.node(inode)?.content {
            Content::Directory(listing) => Ok(listing),
            _ => Err(Error::new(Kind::NotDirectory, format!("inode {:#x}, which is no directory", inode.0))),
        }
    }

    fn file(&self, inode: Inode) -> Result<Arc<File>> {
        self.contents.files.get((inode.0, 0), || {
            let node = self.node(inode)?;
            match node.content {
                Content::Regular { start, fragment, list } => {
                    File::new(&self.medium, inode.0, node.stat.size, start, list, fragment).map(Arc::new)
                }
                Content::Directory(_) => {
                    Err(Error::new(Kind::IsDirectory, format!("inode {:#x}, which is a directory", inode.0)))
                }
                _ => Err(Error::new(Kind::Invalid, format!("inode {:#x}, which is no regular file", inode.0))),
            }
        })
    }
}

/// That the compressor options, where there are some, can be served.
fn check_options(medium: &Medium) -> Result<()> {
    let superblock = &medium.superblock;
    if superblock.flags & COMPRESSOR_OPTIONS == 0 || superblock.compression != Compression::Lz4 {
        return Ok(());
    }
    match medium.reader(Place { block: SUPERBLOCK_BYTES as u64, offset: 0 }).le_u32()? {
        LZ4_LEGACY => Ok(()),
        version => Err(Error::new(Kind::Unsupported, format!("lz4 streams of version {version}"))),
    }
}

/// The id table: 65,535 at most.
fn ids(medium: &Medium) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for number in (0..u32::from(medium.superblock.ids)).step_by(metadata::METADATA_BYTES / 4) {
        let place = medium.table_entry(medium.superblock.id_table, number, 4, Corrupt::Id)?;
        let mut reader = medium.reader(place);
        let left = usize::from(medium.superblock.ids).saturating_sub(ids.len());
        for _ in 0..left.min(metadata::METADATA_BYTES / 4) {
            ids.push(reader.le_u32()?);
        }
    }
    Ok(ids)
}

impl FileSystem for SquashFs {
    fn name(&self) -> &'static str {
        "squashfs"
    }

    fn label(&self) -> String {
        String::new()
    }

    fn root(&self) -> Inode {
        Inode(self.medium.superblock.root_inode)
    }

    fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Option<Inode>> {
        directory::find(&self.medium, &self.listing(directory)?, name)
    }

    fn stat(&self, inode: Inode) -> Result<Stat> {
        self.node(inode).map(|node| node.stat)
    }

    fn read_dir(
        &self,
        directory: Inode,
        from: Cursor,
        visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        directory::list(&self.medium, &self.listing(directory)?, from, visit)
    }

    fn read(&self, inode: Inode, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.file(inode)?.read(&self.medium, &self.contents, buf, offset)
    }

    fn extent_at(&self, inode: Inode, offset: u64) -> Result<Option<FileExtent<'_>>> {
        self.file(inode)?.extent_at(&self.medium, &self.contents, offset)
    }

    fn read_link(&self, inode: Inode) -> Result<Vec<u8>> {
        match self.node(inode)?.content {
            Content::Link(target) => Ok(target),
            _ => Err(Error::new(Kind::Invalid, format!("inode {:#x}, which is no symbolic link", inode.0))),
        }
    }

    fn xattrs(&self, inode: Inode) -> Result<Vec<Vec<u8>>> {
        let Some(number) = self.node(inode)?.xattr else { return Ok(Vec::new()) };
        self.xattrs.map_or_else(|| Ok(Vec::new()), |table| table.names(&self.medium, number))
    }

    fn xattr(&self, inode: Inode, name: &[u8]) -> Result<Vec<u8>> {
        let found = self.node(inode)?.xattr.zip(self.xattrs);
        let (number, table) = found.ok_or_else(|| xattr::no_attribute(name))?;
        table.value(&self.medium, number, name)
    }

    fn space(&self) -> Result<Space> {
        let Superblock { block_bytes, bytes_used, inodes, .. } = self.medium.superblock;
        let blocks = bytes_used.div_ceil(u64::from(block_bytes));
        let files = u64::from(inodes);
        Ok(Space { block_bytes, blocks, blocks_free: 0, blocks_available: 0, files, files_free: 0 })
    }
}

/// For fuzzing: reads all that is in `data`.
pub fn fuzz(data: &[u8]) {
    if let Ok(files) = SquashFs::open(Arc::new(block::bytes::Bytes(data.to_vec()))) {
        crate::testing::explore::explore(&files);
    }
}
