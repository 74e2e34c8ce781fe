//! UDF, the file system of DVDs, Blu-ray discs and some cards (ECMA-167 and OSTA's UDF 1.01 to 2.60).
//!
//! ```text
//! 32 KiB reserved │ recognition │ … │ block 256: anchor ─► sequence of descriptors ─► partitions, file set ─► root
//!
//! partition     physical │ sparable (packets moved elsewhere) │ virtual (by a table) │ metadata (inside a file)
//! file entry    what is known of a file, and short, long or extended descriptors of its extents, or its bytes
//! directory     entries, 4/14.4: tag, 16 │ 18 flags │ 19 name bytes │ 20 file, 16 │ 36 bytes of an extension, 2 │ 38
//! ```
//! All numbers are little-endian. An [`Inode`] is the place of the file entry: the partition from bit 32 on, and the
//! block. Attributes and named streams are not shown, but for the numbers of devices.
//!
//! A *bridge* disc is ISO 9660 and UDF at one time: [`crate::open`] takes the ISO side where that has Rock Ridge, which
//! knows all of POSIX, and UDF, which knows more than Joliet, otherwise.

mod allocation;
mod corrupt;
mod descriptor;
mod directory;
mod file_entry;
mod name;
mod volume;

use std::ops::ControlFlow;
use std::sync::Arc;

use block::bytes::byte;
use block::{Error, Kind, ReadAt, Result};

pub use corrupt::Corrupt;

use self::allocation::Address;
use self::directory::Names;
use self::file_entry::{Entry as FileEntry, Place, Stored};
use self::volume::{Medium, Volume};
use crate::cache::Cache;
use crate::{Cursor, Entry, FileExtent, FileSystem, FileType, Inode, LINK_BYTES_MAX, Space, Stat};

/// The most file entries that are remembered, bytes.
const ENTRY_CACHE_BYTES_MAX: usize = 8 << 20;
/// The most directories that are remembered, bytes.
const NAMES_CACHE_BYTES_MAX: usize = 16 << 20;

/// A UDF file system.
#[derive(Debug)]
pub struct Udf {
    medium: Medium,
    volume: Volume,
    entries: Cache<Arc<FileEntry>>,
    names: Cache<Arc<Names>>,
}

fn inode(address: Address) -> Inode {
    Inode((u64::from(address.partition) << 32) | u64::from(address.block))
}

impl Udf {
    /// Whether a device is recognized as one.
    ///
    /// # Errors
    /// The failure of the device.
    pub fn is_on(device: &dyn ReadAt) -> Result<bool> {
        volume::is_recognized(device)
    }

    /// Opens the file system on a device.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] with a [`Corrupt`] as its source; [`Kind::Unsupported`] for kinds of partitions that are not
    /// known; the failure of the device.
    pub fn open(device: Arc<dyn ReadAt>) -> Result<Self> {
        let (medium, volume) = Medium::open(device)?;
        let entry_bytes = |entry: &Arc<FileEntry>| {
            let content = match &entry.content {
                Stored::Inside(bytes) => bytes.len(),
                Stored::Extents(extents) => extents.len().saturating_mul(24),
            };
            content.saturating_add(size_of::<FileEntry>())
        };
        let files = Self {
            medium,
            volume,
            entries: Cache::new(ENTRY_CACHE_BYTES_MAX, entry_bytes),
            names: Cache::new(NAMES_CACHE_BYTES_MAX, |names| names.bytes()),
        };
        files.names(files.root())?;
        Ok(files)
    }

    fn entry(&self, inode: Inode) -> Result<Arc<FileEntry>> {
        let unknown = || Corrupt::FileEntry.at(format!("inode {:#x}", inode.0));
        let partition = u16::try_from(inode.0 >> 32).map_err(|_| unknown())?;
        let address = Address { partition, block: (inode.0 & u64::from(u32::MAX)) as u32 };
        self.entries.get((inode.0, 0), || FileEntry::read(&self.medium, address).map(Arc::new))
    }

    fn names(&self, inode: Inode) -> Result<Arc<Names>> {
        let entry = self.entry(inode)?;
        if entry.stat.file_type != FileType::Directory {
            return Err(Error::new(Kind::NotDirectory, format!("inode {:#x}, which is no directory", inode.0)));
        }
        self.names.get((inode.0, 0), || Names::read(&self.medium, &entry).map(Arc::new))
    }

    fn regular(&self, inode: Inode) -> Result<Arc<FileEntry>> {
        let entry = self.entry(inode)?;
        match entry.stat.file_type {
            FileType::Regular => Ok(entry),
            FileType::Directory => {
                Err(Error::new(Kind::IsDirectory, format!("inode {:#x}, which is a directory", inode.0)))
            }
            _ => Err(Error::new(Kind::Invalid, format!("inode {:#x}, which is no regular file", inode.0))),
        }
    }
}

impl FileSystem for Udf {
    fn name(&self) -> &'static str {
        "udf"
    }

    fn label(&self) -> String {
        self.volume.label.clone()
    }

    fn root(&self) -> Inode {
        inode(self.volume.root)
    }

    fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Option<Inode>> {
        Ok(self.names(directory)?.find(name))
    }

    fn stat(&self, inode: Inode) -> Result<Stat> {
        let mut stat = self.entry(inode)?.stat.clone();
        if stat.file_type == FileType::SymbolicLink {
            stat.size = self.read_link(inode).map_or(stat.size, |target| target.len() as u64);
        }
        Ok(stat)
    }

    fn read_dir(
        &self,
        directory: Inode,
        from: Cursor,
        visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.names(directory)?.list(from, visit);
        Ok(())
    }

    fn read(&self, inode: Inode, buf: &mut [u8], offset: u64) -> Result<usize> {
        let entry = self.regular(inode)?;
        entry.content.read(&self.medium, entry.size, buf, offset)
    }

    fn extent_at(&self, inode: Inode, offset: u64) -> Result<Option<FileExtent<'_>>> {
        let entry = self.regular(inode)?;
        if offset >= entry.size {
            return Ok(None);
        }
        let (len, place) = entry.content.run(&self.medium, entry.size, offset)?;
        let source = match place {
            Place::Zeros => block::Source::Hole,
            Place::Inside(_) => block::Source::Data,
            Place::Device(position) => {
                let extent = self.medium.device.extent_at(position)?;
                return Ok(Some(FileExtent { len: extent.len.min(len), source: extent.source }));
            }
        };
        Ok(Some(FileExtent { len, source }))
    }

    /// ```text
    /// component    kind, 1 │ name bytes, 1 │ version, 2 │ name                                              (4/14.16.1)
    ///              1, 2: the root; 3: `..`; 4: `.`; 5: the name
    /// ```
    fn read_link(&self, inode: Inode) -> Result<Vec<u8>> {
        let entry = self.entry(inode)?;
        if entry.stat.file_type != FileType::SymbolicLink {
            return Err(Error::new(Kind::Invalid, format!("inode {:#x}, which is no symbolic link", inode.0)));
        }
        let broken = || Corrupt::LinkTarget.at(format!("inode {:#x}, a link of {} bytes", inode.0, entry.size));
        // Four bytes and a letter's width stand before each component.
        let len = usize::try_from(entry.size).ok().filter(|len| *len <= LINK_BYTES_MAX.saturating_mul(6));
        let mut bytes = vec![0; len.ok_or_else(broken)?];
        entry.content.read(&self.medium, entry.size, &mut bytes, 0)?;
        let mut rest = bytes.as_slice();
        let mut target = Vec::new();
        while let Some(kind) = byte(rest, 0) {
            let len = usize::from(byte(rest, 1).ok_or_else(broken)?);
            let name = rest.get(4..).and_then(|rest| rest.get(..len)).ok_or_else(broken)?;
            rest = rest.get(len.saturating_add(4)..).unwrap_or_default();
            if !target.is_empty() && !target.ends_with(b"/") {
                target.push(b'/');
            }
            match kind {
                1 | 2 => target = b"/".to_vec(),
                3 => target.extend_from_slice(b".."),
                4 => target.push(b'.'),
                5 => target.extend_from_slice(name::text(name).ok_or_else(broken)?.as_bytes()),
                _ => return Err(broken()),
            }
        }
        let sound = (1..=LINK_BYTES_MAX).contains(&target.len()) && !target.contains(&0);
        if sound { Ok(target) } else { Err(broken()) }
    }

    fn xattrs(&self, inode: Inode) -> Result<Vec<Vec<u8>>> {
        self.entry(inode).map(|_| Vec::new())
    }

    fn xattr(&self, inode: Inode, name: &[u8]) -> Result<Vec<u8>> {
        self.entry(inode)?;
        Err(Error::new(Kind::NoAttribute, format!("attribute \"{}\"", name.escape_ascii())))
    }

    fn space(&self) -> Result<Space> {
        let Volume { blocks, blocks_free, files, .. } = self.volume;
        let block_bytes = self.medium.block_bytes;
        Ok(Space { block_bytes, blocks, blocks_free, blocks_available: blocks_free, files, files_free: 0 })
    }
}

/// For fuzzing: reads all that is in `data`.
pub fn fuzz(data: &[u8]) {
    if let Ok(files) = Udf::open(Arc::new(block::bytes::Bytes(data.to_vec()))) {
        crate::testing::explore::explore(&files);
    }
}
