//! NTFS, the file system of Windows: 1.2 to 3.1, as [MS-FSCC] and the documentation of the Linux-NTFS project have it.
//!
//! ```text
//! boot sector ─► master file table ─► record 5, the root ─► index of names ─► records
//!
//! record        512 to 4096 bytes: attributes, each with its value inside, or with the runs of clusters where it is
//! attribute     standard information │ file name │ data │ index │ reparse point │ extended attributes …
//! ```
//! All numbers are little-endian. An [`Inode`] is a reference: the number of a record, and from bit 48 on its sequence
//! number, which tells a file from one that had the record before; [`Stat::number`] is that of the record alone.
//!
//! Names are told apart by case. What is compressed is read, what is encrypted is not, nor what Windows packs beside the
//! file system (CompactOS, deduplication). Streams with a name are the attributes `user.NAME`, as with ntfs-3g, and so
//! are extended attributes whose names begin with `user.`. Modes and owners are those that Linux wrote (the subsystem of
//! Windows, and the kernel), not the access lists of Windows. The log is not replayed: after a crash some of what was
//! changed last may be missing, as with every reader but Windows and chkdsk.

mod boot;
mod corrupt;
mod directory;
mod file;
mod record;
mod reparse;
mod stream;

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use block::bytes::{read_up_to, read_vec};
use block::{Error, Kind, ReadAt, Result};

pub(crate) use boot::Boot;
pub use corrupt::Corrupt;
pub(crate) use record::undo_fixups;

use self::directory::Names;
use self::file::{Attributes, Content, File, Table};
use self::record::{Record, kind};
use self::stream::{Medium, Place, Stream};
use crate::cache::Cache;
use crate::{Cursor, Entry, FileExtent, FileSystem, Inode, NAME_BYTES_MAX, Space, Stat, Time, XATTR_BYTES_MAX, utf16};

/// The most files that are remembered, bytes.
const FILE_CACHE_BYTES_MAX: usize = 8 << 20;
/// The most directories that are remembered, bytes.
const NAMES_CACHE_BYTES_MAX: usize = 16 << 20;
/// The most compression units that are remembered, bytes.
const UNIT_CACHE_BYTES_MAX: usize = 8 << 20;
/// Bytes of a boot sector that matter.
const BOOT_BYTES: usize = 512;
/// Bytes of a bitmap that are looked at together.
const BITMAP_PIECE_BYTES: usize = 256 << 10;

/// The records of the volume's own files.
const RECORD_TABLE: u64 = 0;
const RECORD_VOLUME: u64 = 3;
const RECORD_ROOT: u64 = 5;
const RECORD_BITMAP: u64 = 6;

/// Between 1601, from when on NTFS counts, and 1970.
const EPOCH_SECONDS: i64 = 11_644_473_600;
const TICKS_PER_SECOND: u64 = 10_000_000;

/// A moment from tenths of microseconds since 1601.
fn time(ticks: u64) -> Time {
    let seconds = i64::try_from(ticks / TICKS_PER_SECOND).unwrap_or(i64::MAX).saturating_sub(EPOCH_SECONDS);
    Time { seconds, nanoseconds: ((ticks % TICKS_PER_SECOND) as u32).saturating_mul(100) }
}

/// An NTFS file system.
#[derive(Debug)]
pub struct Ntfs {
    boot: Boot,
    table: Table,
    root: Inode,
    label: String,
    /// Clusters of the volume that are free, and records of the table, once they were counted.
    free: OnceLock<(u64, u64)>,
    files: Cache<Arc<File>>,
    names: Cache<Arc<Names>>,
}

impl Ntfs {
    /// Whether a device begins as one.
    ///
    /// # Errors
    /// The failure of the device.
    pub fn is_on(device: &dyn ReadAt) -> Result<bool> {
        let sector = read_up_to(device, 0, BOOT_BYTES)?;
        Ok(Boot::is_at(&sector) && Boot::parse(&sector).is_ok())
    }

    /// Opens the file system on a device.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] with a [`Corrupt`] as its source; the failure of the device.
    pub fn open(device: Arc<dyn ReadAt>) -> Result<Self> {
        let boot = Boot::parse(&read_up_to(&*device, 0, BOOT_BYTES)?)?;
        let units = Cache::new(UNIT_CACHE_BYTES_MAX, |unit: &Arc<Vec<u8>>| unit.len());
        let medium = Medium { device, cluster_bytes: boot.cluster_bytes, units };
        let table = open_table(medium, boot)?;
        let mut files = Self {
            boot,
            table,
            root: Inode(RECORD_ROOT),
            label: String::new(),
            free: OnceLock::new(),
            files: Cache::new(FILE_CACHE_BYTES_MAX, |file| file.weight()),
            names: Cache::new(NAMES_CACHE_BYTES_MAX, |names| names.weight()),
        };
        files.label = files.attribute(RECORD_VOLUME, kind::VOLUME_NAME).map_or_else(
            |_| String::new(),
            |label| {
                let label = label.read_all(&files.table.medium, NAME_BYTES_MAX.saturating_mul(2)).unwrap_or_default();
                String::from_utf16_lossy(&utf16::units(&label))
            },
        );
        files.names(files.root)?;
        Ok(files)
    }

    /// An attribute without a name of one of the volume's own files.
    fn attribute(&self, number: u64, kind: u32) -> Result<Stream> {
        let base = self.table.record(number)?;
        let stream = self.table.attributes(number, &base)?.stream(&self.table.medium, kind, &[])?;
        stream.ok_or_else(|| Corrupt::Attribute.at(format!("record {number} without attribute {kind:#x}")))
    }

    fn file(&self, inode: Inode) -> Result<Arc<File>> {
        self.files.get((inode.0, 0), || File::read(&self.table, inode.0).map(Arc::new))
    }

    fn names(&self, inode: Inode) -> Result<Arc<Names>> {
        match &self.file(inode)?.content {
            Content::Directory(index) => {
                self.names.get((inode.0, 0), || Names::read(&self.table.medium, index).map(Arc::new))
            }
            _ => Err(Error::new(Kind::NotDirectory, format!("inode {:#x}, which is no directory", inode.0))),
        }
    }

    /// The content of a regular file.
    fn regular<'a>(&self, inode: Inode, file: &'a File) -> Result<&'a Stream> {
        match &file.content {
            Content::Regular(stream) => Ok(stream),
            Content::Foreign(_, what) => Err(Error::new(Kind::Unsupported, *what)),
            Content::Directory(_) => {
                Err(Error::new(Kind::IsDirectory, format!("inode {:#x}, which is a directory", inode.0)))
            }
            _ => Err(Error::new(Kind::Invalid, format!("inode {:#x}, which is no regular file", inode.0))),
        }
    }

    /// How many of the first `count` bits of an attribute are not set.
    fn zeros(&self, bitmap: &Stream, count: u64) -> Result<u64> {
        let count = count.min(bitmap.size().saturating_mul(8));
        let mut piece = vec![0; BITMAP_PIECE_BYTES];
        let (mut at, mut zeros) = (0_u64, 0_u64);
        while at < count.div_ceil(8) {
            let read = bitmap.read(&self.table.medium, &mut piece, at)?;
            for (number, bits) in piece.iter().take(read).enumerate() {
                let first = at.saturating_add(number as u64).saturating_mul(8);
                let beyond = match count.saturating_sub(first) {
                    0 => 0xff,
                    some @ 1..8 => 0xff_u8.wrapping_shl(some as u32),
                    _ => 0,
                };
                zeros = zeros.saturating_add(u64::from((bits | beyond).count_zeros()));
            }
            at = at.saturating_add(read.max(1) as u64);
        }
        Ok(zeros)
    }
}

/// The master file table, by its own first record or the mirror of that.
fn open_table(medium: Medium, boot: Boot) -> Result<Table> {
    let record_bytes = usize::try_from(boot.record_bytes).unwrap_or(0);
    let record = |at| Record::parse(read_vec(&*medium.device, at, record_bytes).ok()?);
    let base = record(boot.table).or_else(|| record(boot.mirror));
    let broken = || Corrupt::Record.at("record of the master file table itself");
    let base = base.ok_or_else(broken)?;
    let stream = Attributes::of(RECORD_TABLE, &base)?.stream(&medium, kind::DATA, &[])?.ok_or_else(broken)?;
    // What there is of it leads to the records that say where the rest is.
    let mut table = Table { medium, record_bytes: boot.record_bytes, stream };
    let all = table.attributes(RECORD_TABLE, &base)?.stream(&table.medium, kind::DATA, &[])?;
    table.stream = all.ok_or_else(broken)?;
    Ok(table)
}

impl FileSystem for Ntfs {
    fn name(&self) -> &'static str {
        "ntfs"
    }

    fn label(&self) -> String {
        self.label.clone()
    }

    fn root(&self) -> Inode {
        self.root
    }

    fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Option<Inode>> {
        Ok(self.names(directory)?.find(name))
    }

    fn stat(&self, inode: Inode) -> Result<Stat> {
        Ok(self.file(inode)?.stat.clone())
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
        let file = self.file(inode)?;
        self.regular(inode, &file)?.read(&self.table.medium, buf, offset)
    }

    fn extent_at(&self, inode: Inode, offset: u64) -> Result<Option<FileExtent<'_>>> {
        let file = self.file(inode)?;
        let stream = self.regular(inode, &file)?;
        if offset >= stream.size() {
            return Ok(None);
        }
        let (len, place) = stream.run(&self.table.medium, offset)?;
        let source = match place {
            Place::Hole => block::Source::Hole,
            Place::Unwritten => block::Source::Zero,
            Place::Inside(_) | Place::Packed(..) => block::Source::Data,
            Place::Device(position) => {
                let extent = self.table.medium.device.extent_at(position)?;
                return Ok(Some(FileExtent { len: extent.len.min(len), source: extent.source }));
            }
        };
        Ok(Some(FileExtent { len, source }))
    }

    fn read_link(&self, inode: Inode) -> Result<Vec<u8>> {
        match &self.file(inode)?.content {
            Content::Link(target) => Ok(target.clone()),
            _ => Err(Error::new(Kind::Invalid, format!("inode {:#x}, which is no symbolic link", inode.0))),
        }
    }

    fn xattrs(&self, inode: Inode) -> Result<Vec<Vec<u8>>> {
        let file = self.file(inode)?;
        let streams = file.streams.iter().filter(|(_, stream)| stream.size() <= XATTR_BYTES_MAX as u64);
        let streams = streams.map(|(name, _)| [USER, name.as_slice()].concat());
        let extended = file.extended.iter().map(|(name, _)| name.clone()).filter(|name| name.starts_with(USER));
        let mut names: Vec<Vec<u8>> = streams.chain(extended).filter(|name| is_xattr(name)).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    fn xattr(&self, inode: Inode, name: &[u8]) -> Result<Vec<u8>> {
        let file = self.file(inode)?;
        let none = || Error::new(Kind::NoAttribute, format!("attribute \"{}\"", name.escape_ascii()));
        let short = name.strip_prefix(USER).filter(|_| is_xattr(name)).ok_or_else(none)?;
        let of_name = file.streams.iter().find(|(stream, _)| stream == short);
        if let Some((_, stream)) = of_name.filter(|(_, stream)| stream.size() <= XATTR_BYTES_MAX as u64) {
            return stream.read_all(&self.table.medium, XATTR_BYTES_MAX);
        }
        let extended = file.extended.iter().find(|(other, _)| other == name);
        extended.map(|(_, value)| value.clone()).ok_or_else(none)
    }

    fn space(&self) -> Result<Space> {
        let log = self.boot.cluster_bytes.trailing_zeros();
        let blocks = self.boot.sectors.saturating_mul(self.boot.sector_bytes).checked_shr(log).unwrap_or(0);
        let files = self.table.stream.size().checked_div(self.table.record_bytes).unwrap_or(0);
        let (blocks_free, files_free) = match self.free.get() {
            Some(free) => *free,
            None => {
                let clusters = self.zeros(&self.attribute(RECORD_BITMAP, kind::DATA)?, blocks)?;
                let records = self.zeros(&self.attribute(RECORD_TABLE, kind::BITMAP)?, files)?;
                *self.free.get_or_init(|| (clusters, records))
            }
        };
        Ok(Space {
            block_bytes: u32::try_from(self.boot.cluster_bytes).unwrap_or(u32::MAX),
            blocks,
            blocks_free,
            blocks_available: blocks_free,
            files,
            files_free,
        })
    }
}

/// What the names of attributes begin with.
const USER: &[u8] = b"user.";

/// Whether an attribute may be called so.
fn is_xattr(name: &[u8]) -> bool {
    name.len() > USER.len() && name.len() <= NAME_BYTES_MAX && !name.contains(&0)
}

/// For fuzzing: reads all that is in `data`.
pub fn fuzz(data: &[u8]) {
    if let Ok(files) = Ntfs::open(Arc::new(block::bytes::Bytes(data.to_vec()))) {
        crate::testing::explore::explore(&files);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_from_1601_on() {
        assert_eq!(time(0), Time { seconds: -EPOCH_SECONDS, nanoseconds: 0 });
        // date -ud '2024-02-29 23:59:58.5' +%s
        let ticks = (1_709_251_198 + EPOCH_SECONDS) as u64 * TICKS_PER_SECOND + 5_000_000;
        assert_eq!(time(ticks), Time { seconds: 1_709_251_198, nanoseconds: 500_000_000 });
        let _ = time(u64::MAX);
    }
}
