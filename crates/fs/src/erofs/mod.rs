//! EROFS, the read-only file system of phones, live systems and containers (Documentation/filesystems/erofs.rst).
//!
//! ```text
//! boot sector, 1024 │ superblock, 128 and more │ inodes, each with attributes, index and tail │ data │ shared attributes
//!
//!   0 e0f5e1e2 │  4 check sum │  8 compatible features │ 12 log2 block │ 13 extra slots of 16 │ 14 root, 2
//!  16 inodes, 8 │ 24 epoch, 8 │ 32 nanoseconds │ 36 blocks │ 40 start of inodes │ 44 start of shared attributes
//!  48 UUID, 16 │ 64 name, 16 │ 80 incompatible features │ 84 algorithms, 2 │ 86 devices, 2 │ 88 device table, 2
//!  90 log2 directory block │ 91 attribute prefixes │ 92 their start │ 96 packed inode, 8 │ 104 … │ 108 build time
//! 112 long root, 8 │ 128 metabox inode, 8
//! ```
//! All numbers are little-endian. An [`Inode`] is the number that the format itself uses: where the inode is, in units of
//! 32 bytes; bit 63 says that it is a place in the *metabox*, a compressed file that holds inodes. The *packed inode* is a
//! file that holds the ends of others (fragments).
//!
//! Reading unpacks whole clusters straight into the caller's buffer; parts of clusters come from a cache with a limit in
//! bytes, shared by all callers. What is not compressed is an extent of the device.

mod cluster;
mod content;
mod corrupt;
mod decompress;
mod directory;
mod inode;
mod medium;
mod superblock;
mod xattr;

use std::ops::ControlFlow;
use std::sync::Arc;

use block::{Error, Kind, ReadAt, Result};

pub use corrupt::Corrupt;

use self::content::File;
use self::medium::Medium;
use self::superblock::Superblock;
use self::xattr::Prefixes;
use crate::{Cursor, Entry, FileExtent, FileSystem, FileType, Inode, LINK_BYTES_MAX, Space, Stat};

/// An erofs file system.
#[derive(Debug)]
pub struct Erofs {
    medium: Medium,
    prefixes: Prefixes,
}

impl Erofs {
    /// Whether a device holds one, of whatever features.
    ///
    /// # Errors
    /// The failure of the device.
    pub fn is_on(device: &dyn ReadAt) -> Result<bool> {
        Superblock::is_on(device)
    }

    /// Opens the file system on a device.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] with a [`Corrupt`] as its source; [`Kind::Unsupported`] for features newer than this program;
    /// the failure of the device.
    pub fn open(device: Arc<dyn ReadAt>) -> Result<Self> {
        let superblock = Superblock::read(&*device)?;
        let mut medium = Medium::new(device, superblock)?;
        let open = |medium: &Medium, number: Option<u64>| -> Result<Option<Arc<File>>> {
            let Some(number) = number else { return Ok(None) };
            let node = medium.node(number)?;
            Ok(Some(Arc::new(File::new(medium, number, &node)?)))
        };
        medium.metabox = open(&medium, medium.superblock.metabox)?;
        medium.packed = open(&medium, medium.superblock.packed)?;
        let prefixes = Prefixes::read(&medium)?;
        let files = Self { medium, prefixes };
        files.directory(files.root())?;
        Ok(files)
    }

    /// The content of a file whose type `wanted` agrees to, or an error of that kind.
    fn file(&self, inode: Inode, wanted: impl Fn(FileType) -> std::result::Result<(), Error>) -> Result<Arc<File>> {
        let number = inode.0;
        if let Some(file) = self.medium.files.peek((number, 0)) {
            wanted(file.file_type)?;
            return Ok(file);
        }
        let node = self.medium.node(number)?;
        wanted(node.stat.file_type)?;
        self.medium.files.get((number, 0), || File::new(&self.medium, number, &node).map(Arc::new))
    }

    fn directory(&self, inode: Inode) -> Result<Arc<File>> {
        self.file(inode, |file_type| match file_type {
            FileType::Directory => Ok(()),
            _ => Err(Error::new(Kind::NotDirectory, format!("inode {:#x}, which is no directory", inode.0))),
        })
    }

    fn regular(&self, inode: Inode) -> Result<Arc<File>> {
        self.file(inode, |file_type| match file_type {
            FileType::Regular => Ok(()),
            FileType::Directory => {
                Err(Error::new(Kind::IsDirectory, format!("inode {:#x}, which is a directory", inode.0)))
            }
            _ => Err(Error::new(Kind::Invalid, format!("inode {:#x}, which is no regular file", inode.0))),
        })
    }
}

impl FileSystem for Erofs {
    fn name(&self) -> &'static str {
        "erofs"
    }

    fn label(&self) -> String {
        let name = &self.medium.superblock.volume_name;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        String::from_utf8_lossy(name.get(..end).unwrap_or_default()).into_owned()
    }

    fn root(&self) -> Inode {
        Inode(self.medium.superblock.root)
    }

    fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Option<Inode>> {
        directory::find(&self.medium, &*self.directory(directory)?, name)
    }

    fn stat(&self, inode: Inode) -> Result<Stat> {
        self.medium.node(inode.0).map(|node| node.stat)
    }

    fn read_dir(
        &self,
        directory: Inode,
        from: Cursor,
        visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        directory::list(&self.medium, &*self.directory(directory)?, from, visit)
    }

    fn read(&self, inode: Inode, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.regular(inode)?.read(&self.medium, buf, offset)
    }

    fn extent_at(&self, inode: Inode, offset: u64) -> Result<Option<FileExtent<'_>>> {
        self.regular(inode)?.extent_at(&self.medium, offset)
    }

    fn read_link(&self, inode: Inode) -> Result<Vec<u8>> {
        let file = self.file(inode, |file_type| match file_type {
            FileType::SymbolicLink => Ok(()),
            _ => Err(Error::new(Kind::Invalid, format!("inode {:#x}, which is no symbolic link", inode.0))),
        })?;
        let broken = || Corrupt::LinkTarget.at(format!("inode {:#x}, a link of {} bytes", inode.0, file.size));
        let len = usize::try_from(file.size).ok().filter(|len| (1..=LINK_BYTES_MAX).contains(len));
        let mut target = vec![0; len.ok_or_else(broken)?];
        file.read(&self.medium, &mut target, 0)?;
        if target.contains(&0) { Err(broken()) } else { Ok(target) }
    }

    fn xattrs(&self, inode: Inode) -> Result<Vec<Vec<u8>>> {
        self.xattr_names(&self.medium.node(inode.0)?)
    }

    fn xattr(&self, inode: Inode, name: &[u8]) -> Result<Vec<u8>> {
        self.xattr_value(&self.medium.node(inode.0)?, name)
    }

    fn space(&self) -> Result<Space> {
        let superblock = &self.medium.superblock;
        let block_bytes = u32::try_from(superblock.block_bytes()).unwrap_or(u32::MAX);
        Ok(Space {
            block_bytes,
            blocks: superblock.blocks,
            blocks_free: 0,
            blocks_available: 0,
            files: superblock.inodes,
            files_free: 0,
        })
    }
}

/// For fuzzing: reads all that is in `data`.
pub fn fuzz(data: &[u8]) {
    if let Ok(files) = Erofs::open(Arc::new(block::bytes::Bytes(data.to_vec()))) {
        crate::testing::explore::explore(&files);
    }
}
