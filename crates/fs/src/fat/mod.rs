//! FAT12, FAT16, FAT32 (Microsoft's "FAT: General Overview of On-Disk Format", 1.03) and exFAT (its specification 1.00),
//! read and written.
//!
//! ```text
//! boot      where everything is                    directory   entries in order, an index of names
//! table     which cluster follows which            entry       what an entry says of a file
//! chain     where the content of a file lies       name, time  UTF-16, short names, code pages, dates
//! free      which clusters are free                write       changes, in an order that a crash may cut
//! grow      clusters had and given up              named       entries placed and taken away
//! ```
//! A file has no number on the disk. An [`Inode`] is the place of its entry: the byte of the device divided by 32, times
//! 2, plus 1 where its directory lies in one piece that the table does not name (exFAT); the root is 1. What is made or
//! moved while the file system is open has a number from 2^63 on, so that no number is ever given to two files.
//!
//! Owners and modes are not held: all is root's and 0755, 0555 where it is read-only. Times are taken to be UTC.

mod boot;
mod chain;
mod corrupt;
mod directory;
mod entry;
mod format;
mod free;
mod grow;
mod label;
mod name;
mod named;
mod nodes;
mod table;
mod time;
mod write;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use block::bytes::{byte, le_u16, le_u32, le_u64};
use block::{BlockDevice, Error, Kind, ReadAt, Result, Source};

pub use corrupt::Corrupt;
pub use format::{Format, Type};
pub use name::CodePage;

use self::boot::{BOOT_BYTES, Geometry, RootPlace, Variant};
use self::chain::Chain;
use self::directory::{Index, Seen};
use self::entry::{READ_ONLY, Record};
use self::name::Fold;
use self::nodes::{Home, Node, State};
use self::table::Table;
use crate::path::Printable;
use crate::{Cursor, Entry, FileExtent, FileSystem, FileType, Inode, Space, Stat, Time, utf16};

/// The root directory.
const ROOT: Inode = Inode(1);
/// The most bytes of an up-case table.
const UP_CASE_BYTES_MAX: u64 = 131_072;
/// Names that are kept in indices of directories, in all.
const INDEXED_NAMES_MAX: usize = 1 << 20;
/// Files whose chains are kept, and the most runs of all of them.
const OPENED_MAX: usize = 4096;
const OPENED_RUNS_MAX: usize = 1 << 22;

/// How it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Of short names.
    pub code_page: CodePage,
}

/// A FAT or exFAT file system.
#[derive(Debug)]
pub struct Fat {
    device: Arc<dyn ReadAt>,
    writer: Option<Arc<dyn BlockDevice>>,
    options: Options,
    geometry: Geometry,
    fold: Fold,
    /// Of exFAT.
    bitmap: Chain,
    table: Table,
    /// Held by whoever reads, shared, and by whoever changes more than bytes of a file, alone.
    state: RwLock<State>,
    opened: Mutex<std::collections::HashMap<u64, Arc<Node>>>,
    indices: Mutex<Indices>,
}

#[derive(Debug, Default)]
struct Indices {
    of: std::collections::HashMap<u64, Index>,
    names: usize,
}

impl Fat {
    /// Whether a device holds one.
    ///
    /// # Errors
    /// The failure of the device.
    pub fn is_on(device: &dyn ReadAt) -> Result<bool> {
        if device.size() < BOOT_BYTES as u64 {
            return Ok(false);
        }
        let mut bytes = [0; BOOT_BYTES];
        device.read_at(&mut bytes, 0)?;
        Ok(block::bytes::has(&bytes, 3, b"EXFAT   ") || boot::is_fat(&bytes))
    }

    /// Opens the file system on a device, to be read.
    ///
    /// # Errors
    /// `Unsupported` where there is none; [`Kind::Corrupt`] with a [`Corrupt`] as its source; the failure of the device.
    pub fn open(device: Arc<dyn ReadAt>, options: Options) -> Result<Self> {
        Self::new(device, None, options)
    }

    /// Opens the file system on a device, to be written.
    ///
    /// # Errors
    /// As [`Fat::open`]; [`Kind::ReadOnly`].
    pub fn open_writable(device: Arc<dyn BlockDevice>, options: Options) -> Result<Self> {
        if device.limits().read_only {
            return Err(Error::new(Kind::ReadOnly, "a device that takes no writes"));
        }
        Self::new(device.clone(), Some(device), options)
    }

    fn new(device: Arc<dyn ReadAt>, writer: Option<Arc<dyn BlockDevice>>, options: Options) -> Result<Self> {
        let geometry = Geometry::read(&*device)?;
        let mut fat = Self {
            device,
            writer,
            options,
            geometry,
            fold: Fold::Unicode,
            bitmap: Chain::default(),
            table: Table::default(),
            state: RwLock::default(),
            opened: Mutex::default(),
            indices: Mutex::default(),
        };
        let root = fat.root_chain()?;
        if geometry.is_exfat() {
            fat.read_system_files(&root)?;
        }
        fat.state_mut().was_dirty = fat.is_dirty()?;
        Ok(fat)
    }

    /// The bitmap and the up-case table, which the root directory of exFAT names.
    fn read_system_files(&mut self, root: &Chain) -> Result<()> {
        let (mut bitmap, mut upper) = (None, None);
        self.scan(root, 0, &mut |seen| {
            if let Seen::Other(raw) = seen {
                let (first, size) = (le_u32(&raw, 20).unwrap_or_default(), le_u64(&raw, 24).unwrap_or_default());
                match byte(&raw, 0) {
                    // Bit 0 set: the second bitmap, of the second table.
                    Some(entry::BITMAP) if byte(&raw, 1).is_some_and(|flags| flags & 1 == 0) => {
                        bitmap = bitmap.or(Some((first, size)));
                    }
                    Some(entry::UP_CASE) => upper = upper.or(Some((first, size))),
                    _ => {}
                }
            }
            ControlFlow::Continue(())
        })?;
        let follow = |first, size| Chain::follow(&*self.device, &self.geometry, &self.table, first, false, Some(size));
        let needed = u64::from(self.geometry.clusters).div_ceil(8);
        let found = bitmap.filter(|(_, size)| *size >= needed);
        let bitmap = found.map(|(first, _)| follow(first, needed)).transpose()?.filter(|chain| chain.bytes >= needed);
        let (first, size) = upper.ok_or_else(|| Corrupt::UpCase.at("root directory of exFAT"))?;
        if !(2..=UP_CASE_BYTES_MAX).contains(&size) {
            return Err(Corrupt::UpCase.at(format!("up-case table of {size} bytes")));
        }
        let mut bytes = vec![0; size as usize];
        follow(first, size)?.read(&*self.device, &mut bytes, 0)?;
        self.fold = Fold::Table(unfold(&bytes));
        // Without it nothing is written, and all is read.
        self.bitmap = bitmap.unwrap_or_default();
        Ok(())
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_fat32(&self) -> bool {
        self.geometry.variant == Variant::Fat32
    }

    fn is_dirty(&self) -> Result<bool> {
        let mut state = [0];
        self.device.read_at(&mut state, self.geometry.state_at)?;
        Ok(state.iter().any(|state| state & self.geometry.state_bit != 0))
    }

    fn root_chain(&self) -> Result<Chain> {
        match self.geometry.root {
            RootPlace::Fixed(at, len) => Ok(Chain::fixed(at, len)),
            RootPlace::Cluster(first) => {
                let chain = Chain::follow(&*self.device, &self.geometry, &self.table, first, false, None)?;
                if chain.bytes == 0 {
                    return Err(Corrupt::Chain.at("root directory"));
                }
                Ok(chain)
            }
        }
    }

    /// Record and clusters of a file, which are kept for the next one who asks.
    fn node(&self, state: &State, inode: Inode) -> Result<Arc<Node>> {
        if let Some(node) = self.opened.lock().unwrap_or_else(PoisonError::into_inner).get(&inode.0) {
            return Ok(Arc::clone(node));
        }
        let node = Arc::new(self.read_node(state, inode)?);
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.len() >= OPENED_MAX || node.chain.runs.len() > 1000 {
            let runs: usize = opened.values().map(|node| node.chain.runs.len()).sum();
            if opened.len() >= OPENED_MAX || runs.saturating_add(node.chain.runs.len()) > OPENED_RUNS_MAX {
                opened.clear();
            }
        }
        opened.insert(inode.0, Arc::clone(&node));
        Ok(node)
    }

    fn read_node(&self, state: &State, inode: Inode) -> Result<Node> {
        if inode == ROOT {
            let chain = self.root_chain()?;
            let mut record = Record::new(entry::DIRECTORY, Time::default());
            if let RootPlace::Cluster(first) = self.geometry.root {
                record.first = first;
            }
            return Ok(Node { record, set: None, chain });
        }
        let set = match state.home(inode) {
            Home::At(at, contiguous) => self.read_set(at, contiguous)?,
            Home::Removed(set) => set.clone(),
            Home::Gone => return Err(Error::new(Kind::NotFound, format!("file number {:#x}, which is gone", inode.0))),
        };
        let nonsense = || Corrupt::EntrySet.at(format!("entries of file number {:#x}", inode.0));
        let record = set.record(self.is_fat32()).ok_or_else(nonsense)?;
        let wanted = if record.is_directory() && !self.geometry.is_exfat() { None } else { Some(record.size) };
        let chain = Chain::follow(&*self.device, &self.geometry, &self.table, record.first, record.contiguous, wanted)?;
        if record.is_directory() && chain.bytes / entry::ENTRY_BYTES > directory::SLOTS_MAX {
            return Err(Corrupt::Directory.at(format!("directory of {} bytes", chain.bytes)));
        }
        Ok(Node { record, set: Some(set), chain })
    }

    fn directory(&self, state: &State, inode: Inode) -> Result<Arc<Node>> {
        let node = self.node(state, inode)?;
        if !node.record.is_directory() {
            return Err(Error::new(Kind::NotDirectory, format!("file number {:#x}, which is no directory", inode.0)));
        }
        Ok(node)
    }

    fn regular(&self, state: &State, inode: Inode) -> Result<Arc<Node>> {
        let node = self.node(state, inode)?;
        if node.record.is_directory() {
            return Err(Error::new(Kind::IsDirectory, format!("file number {:#x}, which is a directory", inode.0)));
        }
        Ok(node)
    }

    /// Asks the index of a directory.
    fn with_index<T>(&self, inode: Inode, chain: &Chain, ask: impl FnOnce(&mut Index) -> T) -> Result<T> {
        let lock = || self.indices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = lock().of.get_mut(&inode.0) {
            return Ok(ask(index));
        }
        let mut index = Index::read(self, chain)?;
        let answer = ask(&mut index);
        let mut indices = lock();
        indices.names = indices.names.saturating_add(index.len());
        if indices.names > INDEXED_NAMES_MAX {
            indices.of.clear();
            indices.names = index.len();
        }
        indices.of.insert(inode.0, index);
        Ok(answer)
    }

    /// Where a name stands in a directory: as it is, or without the dots at its end, which are not kept.
    fn find(&self, inode: Inode, directory: &Node, name: &[u8]) -> Result<Option<directory::Position>> {
        let Some(units) = utf16::to_units(name) else { return Ok(None) };
        let without = units.iter().rposition(|unit| *unit != u16::from(b'.')).map(|last| last.saturating_add(1));
        let without = without.and_then(|len| units.get(..len)).unwrap_or_default();
        self.with_index(inode, &directory.chain, |index| {
            index.find(&self.fold, &units).or_else(|| index.find(&self.fold, without))
        })
    }

    /// The number of a file of a directory. What lay in one piece when numbers were given out counts as such for ever.
    fn number(state: &State, directory: &Node, at: u64) -> Inode {
        let record = &directory.record;
        state.number(at, record.contiguous || state.scattered.contains(&record.first))
    }
}

/// The 65,536 units of an up-case table: each stands for itself but where the table, in which a run of such units is
/// FFFF and its length, says another.
fn unfold(bytes: &[u8]) -> Vec<u16> {
    let mut table: Vec<u16> = (0..=u16::MAX).collect();
    let mut units = (0..bytes.len()).step_by(2).filter_map(|at| le_u16(bytes, at));
    let mut at = 0_usize;
    while let (Some(unit), true) = (units.next(), at <= usize::from(u16::MAX)) {
        if unit == u16::MAX && at != usize::from(u16::MAX) {
            at = at.saturating_add(units.next().unwrap_or_default().into());
            continue;
        }
        if let Some(entry) = table.get_mut(at) {
            *entry = unit;
        }
        at = at.saturating_add(1);
    }
    table
}

impl FileSystem for Fat {
    fn name(&self) -> &'static str {
        if self.geometry.is_exfat() { "exfat" } else { "vfat" }
    }

    fn label(&self) -> String {
        self.read_label().unwrap_or_default()
    }

    fn root(&self) -> Inode {
        ROOT
    }

    fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Option<Inode>> {
        let state = self.state();
        let node = self.directory(&state, directory)?;
        let found = self.find(directory, &node, name)?;
        Ok(found.map(|position| Self::number(&state, &node, position.at)))
    }

    fn stat(&self, inode: Inode) -> Result<Stat> {
        let state = self.state();
        let node = self.node(&state, inode)?;
        let record = &node.record;
        let directory = record.is_directory();
        let size = if directory { node.chain.bytes } else { record.size };
        let taken = self.geometry.clusters_for(size).saturating_mul(self.geometry.cluster_bytes.into());
        Ok(Stat {
            number: inode.0,
            file_type: if directory { FileType::Directory } else { FileType::Regular },
            permissions: if record.attributes & READ_ONLY != 0 && !directory { 0o555 } else { 0o755 },
            links: 1,
            uid: 0,
            gid: 0,
            size,
            blocks: taken / 512,
            device: None,
            accessed: record.accessed,
            modified: record.modified,
            changed: record.modified,
            created: (inode != ROOT).then_some(record.created),
        })
    }

    fn read_dir(
        &self,
        directory: Inode,
        from: Cursor,
        visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let state = self.state();
        let node = self.directory(&state, directory)?;
        let Ok(from) = u32::try_from(from.0) else { return Ok(()) };
        self.scan(&node.chain, from, &mut |seen| {
            let Seen::File(found) = seen else { return ControlFlow::Continue(()) };
            let attributes = match self.geometry.is_exfat() {
                true => found.entries.first().and_then(|entry| le_u16(entry, 4)),
                false => found.entries.first().and_then(|entry| byte(entry, 11)).map(u16::from),
            };
            let directory = attributes.is_some_and(|attributes| attributes & entry::DIRECTORY != 0);
            visit(Entry {
                name: &self.listed(&found),
                inode: Self::number(&state, &node, found.at),
                file_type: Some(if directory { FileType::Directory } else { FileType::Regular }),
                next: Cursor(u64::from(found.slot.saturating_add(found.slots))),
            })
        })
        .map(drop)
    }

    fn read(&self, inode: Inode, buf: &mut [u8], offset: u64) -> Result<usize> {
        let state = self.state();
        let node = self.regular(&state, inode)?;
        let record = &node.record;
        let len = (buf.len() as u64).min(record.size.saturating_sub(offset));
        let valid = record.valid.saturating_sub(offset).min(len);
        // Not more than the length of `buf`.
        let (written, rest) = buf.split_at_mut(valid as usize);
        node.chain.read(&*self.device, written, offset)?;
        rest.iter_mut().take(len.saturating_sub(valid) as usize).for_each(|byte| *byte = 0);
        Ok(len as usize)
    }

    fn extent_at(&self, inode: Inode, offset: u64) -> Result<Option<FileExtent<'_>>> {
        let state = self.state();
        let node = self.regular(&state, inode)?;
        let record = &node.record;
        if offset >= record.size {
            return Ok(None);
        }
        if offset >= record.valid {
            return Ok(Some(FileExtent { len: record.size.saturating_sub(offset), source: Source::Zero }));
        }
        let (at, left) =
            node.chain.place(offset).ok_or_else(|| Corrupt::ChainEnds.at(format!("byte {offset} of a file")))?;
        let extent = self.device.extent_at(at)?;
        let len = extent.len.min(left).min(record.valid.saturating_sub(offset));
        Ok(Some(FileExtent { len, source: extent.source }))
    }

    fn read_link(&self, inode: Inode) -> Result<Vec<u8>> {
        Err(Error::new(Kind::Invalid, format!("file number {:#x}, which is no symbolic link", inode.0)))
    }

    fn xattrs(&self, inode: Inode) -> Result<Vec<Vec<u8>>> {
        self.node(&self.state(), inode).map(|_| Vec::new())
    }

    fn xattr(&self, _: Inode, name: &[u8]) -> Result<Vec<u8>> {
        Err(Error::new(Kind::NoAttribute, Printable(name).to_string()))
    }

    fn space(&self) -> Result<Space> {
        let block_bytes = self.geometry.cluster_bytes;
        let blocks = u64::from(self.geometry.clusters);
        let free = u64::from(self.free_clusters()?);
        Ok(Space { block_bytes, blocks, blocks_free: free, blocks_available: free, files: 0, files_free: 0 })
    }
}

/// For fuzzing: reads all that is in `data`, writes to it, and reads it again.
pub fn fuzz(data: &[u8]) {
    let scratch = Arc::new(crate::testing::scratch::Scratch::new(data));
    if let Ok(files) = Fat::open_writable(scratch, Options::default()) {
        crate::testing::explore::explore(&files);
        crate::testing::model::disturb(files, data.len() as u64);
    }
}
