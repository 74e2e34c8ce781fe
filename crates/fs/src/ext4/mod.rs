//! ext2, ext3 and ext4, read only: one reader for the three, written from the specification.
//!
//! ```text
//! byte 1024   superblock        sizes, features, checksums' seed
//! blocks      group descriptors where each group's inode table is
//!             inode table       what is known of a file, and where its content is:
//!                               extents | block map | inline | target of a short link
//!             directory         names, in lists; a hash tree over them
//!             xattr             extended attributes: in the inode, in a block, in an inode of their own
//!             journal           transactions that were not yet written to their places, and fast commits
//! ```
//! One file here for each of these. A journal that holds something is replayed in memory when the file system is
//! opened: a table of which block lies where in the journal (`volume`), and what fast commits changed
//! (`fast_commit`); the image never changes.
//!
//! Callers share the file system by `&self`. What is kept is bounded by the named limits here, in caches of sixteen
//! shards; no lock is held over a read of the device.
//!
//! Specification: Documentation/filesystems/ext4/ of the kernel.

mod block_map;
mod cache;
pub(crate) mod checksum;
mod corrupt;
mod directory;
mod extent;
mod fast_commit;
mod field;
mod group;
mod hash_tree;
mod inline_data;
mod inode;
mod journal;
mod mapping;
mod name_hash;
mod superblock;
mod volume;
mod xattr;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use block::{Error, Kind, ReadAt, Result, ResultExt as _, check_range};

use self::cache::Cache;
pub use self::corrupt::Corrupt;
use self::extent::Node;
use self::fast_commit::FastCommits;
use self::inode::{InodeRecord, ROOT, flag};
use self::journal::Journal;
use self::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, Superblock, incompat};
use self::volume::Volume;
use crate::{Cursor, Entry, FileExtent, FileSystem, FileType, Inode, LINK_BYTES_MAX, Space, Stat};

/// How many bytes of metadata blocks are kept at most.
const BLOCK_CACHE_BYTES_MAX: usize = 16 << 20;
/// How many bytes of inodes are kept at most.
const INODE_CACHE_BYTES_MAX: usize = 8 << 20;
/// How many bytes of nodes of extent trees, as they are on disk, are kept at most; twice as many in memory.
const NODE_CACHE_BYTES_MAX: usize = 8 << 20;
/// How many groups' inode tables are kept at most.
const GROUP_CACHE_MAX: usize = 1 << 16;

/// What to do with a journal that holds transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replay {
    /// Replay it in memory.
    #[default]
    InMemory,
    /// Read the file system as it lies there, as `mount -o noload` does.
    Ignore,
}

/// How a file system is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// What to do with a journal that holds transactions.
    pub journal: Replay,
    /// Whether checksums are verified.
    pub verify: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { journal: Replay::InMemory, verify: true }
    }
}

/// An open ext2, ext3 or ext4 file system.
pub struct Ext4 {
    volume: Volume,
    superblock: Superblock,
    verify: bool,
    fast_commits: FastCommits,
    blocks: Cache<Arc<[u8]>>,        // by block
    inodes: Cache<Arc<InodeRecord>>, // by inode
    nodes: Cache<Arc<Node>>,         // by block
    inode_tables: Cache<u64>,        // by group
}

impl fmt::Debug for Ext4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ext4")
            .field("superblock", &self.superblock)
            .field("replayed", &self.volume.replayed.len())
            .finish_non_exhaustive()
    }
}

/// For fuzzing: reads all that is in `data`, with its journal and without, whether or not checksums are right.
pub fn fuzz(data: &[u8]) {
    let device: Arc<dyn ReadAt> = Arc::new(block::bytes::Bytes(data.to_vec()));
    for journal in [Replay::InMemory, Replay::Ignore] {
        if let Ok(fs) = Ext4::open(Arc::clone(&device), Options { journal, verify: false }) {
            crate::testing::explore::explore(&fs);
        }
    }
}

impl Ext4 {
    /// Whether the superblock of one of the three is on a device.
    ///
    /// # Errors
    /// The failure of the device.
    pub fn is_on(device: &dyn ReadAt) -> Result<bool> {
        let magic = block::bytes::read_up_to(device, SUPERBLOCK_OFFSET.saturating_add(0x38), 2)?;
        Ok(magic == [0x53, 0xEF])
    }

    /// Opens the file system on a device.
    ///
    /// # Errors
    /// [`Kind::Corrupt`], with a [`Corrupt`] as its source; [`Kind::Unsupported`] for a feature without which nothing
    /// can be read, or for a journal that is needed and lies on another device; [`Kind::Limit`] for a journal of more
    /// than anyone makes; the failure of the device.
    pub fn open(device: Arc<dyn ReadAt>, options: Options) -> Result<Self> {
        let volume = Volume { device, block_bytes: 1024, replayed: BTreeMap::new() };
        let plain = Self::with(volume, options)?;
        let fs = plain.replay(options)?;
        let root = fs.inode(ROOT.into()).context(|| "root directory")?;
        if root.file_type()? != FileType::Directory {
            return Err(Corrupt::Root { mode: root.mode }.into());
        }
        Ok(fs)
    }

    /// The file system as `volume` shows it.
    fn with(mut volume: Volume, options: Options) -> Result<Self> {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        check_range(volume.device.size(), SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES as u64)
            .map_err(|_| Corrupt::Field { at: SUPERBLOCK_OFFSET, bytes: volume.device.size() })?;
        volume.read_at(&mut bytes, SUPERBLOCK_OFFSET)?;
        let superblock = Superblock::parse(&bytes, volume.device.size(), options.verify)?;
        volume.block_bytes = superblock.block_bytes;
        let fit = |bytes: usize, each: usize| bytes.checked_div(each).unwrap_or(0);
        let block_bytes = superblock.block_bytes as usize;
        let inode_bytes = usize::from(superblock.inode_bytes).saturating_add(128);
        Ok(Self {
            blocks: Cache::new(fit(BLOCK_CACHE_BYTES_MAX, block_bytes)),
            inodes: Cache::new(fit(INODE_CACHE_BYTES_MAX, inode_bytes)),
            nodes: Cache::new(fit(NODE_CACHE_BYTES_MAX, block_bytes)),
            inode_tables: Cache::new(GROUP_CACHE_MAX),
            fast_commits: FastCommits::default(),
            verify: options.verify,
            superblock,
            volume,
        })
    }

    /// The file system after its journal, where that holds something.
    fn replay(self, options: Options) -> Result<Self> {
        if options.journal == Replay::Ignore || !self.superblock.has_incompat(incompat::RECOVER) {
            return Ok(self);
        }
        if self.superblock.journal_inode == 0 {
            return Err(Error::new(
                Kind::Unsupported,
                "ext4 file system that was not unmounted cleanly and whose journal lies on another device: mount it \
                 once with that device, or read it without its journal (norecovery)",
            ));
        }
        let inode = self.inode(self.superblock.journal_inode.into()).context(|| "journal")?;
        let Some(journal) = Journal::open(&self, &inode).context(|| "journal")? else { return Ok(self) };
        let log = journal.log().context(|| "journal")?;
        let volume = Volume { replayed: log.replayed, ..self.volume.clone() };
        let mut after = Self::with(volume, options).context(|| "superblock after the replay of the journal")?;
        if after.superblock.block_bytes != self.superblock.block_bytes {
            let value = after.superblock.block_bytes.into();
            return Err(Corrupt::Geometry { field: "log_block_size", value }.into());
        }
        let fast_commits = FastCommits::replay(&journal, log.next_sequence, &after).context(|| "fast commits")?;
        after.fast_commits = fast_commits; // nothing was read through the cache of inodes without them
        Ok(after)
    }

    /// A block of metadata.
    fn block(&self, number: u64) -> Result<Arc<[u8]>> {
        if let Some(bytes) = self.blocks.get(number) {
            return Ok(bytes);
        }
        let mut bytes = vec![0; self.superblock.block_bytes as usize];
        self.volume.read_at(&mut bytes, self.volume.byte(number))?;
        let bytes: Arc<[u8]> = bytes.into();
        self.blocks.insert(number, Arc::clone(&bytes));
        Ok(bytes)
    }

    /// A block of metadata that an inode names.
    fn inode_block(&self, inode: &InodeRecord, number: u64) -> Result<Arc<[u8]>> {
        if number <= self.superblock.first_data_block.into() || number >= self.superblock.blocks {
            return Err(Corrupt::BlockNumber { inode: inode.number, block: number }.into());
        }
        self.block(number)
    }

    /// The target of a symbolic link.
    fn target(&self, inode: &InodeRecord) -> Result<Vec<u8>> {
        if inode.file_type()? != FileType::SymbolicLink {
            return Err(Error::new(Kind::Invalid, format!("target of inode {}, no symbolic link", inode.number)));
        }
        inode.readable()?;
        let malformed = Corrupt::SymbolicLink { inode: inode.number };
        let len = usize::try_from(inode.size).ok().filter(|len| (1..=LINK_BYTES_MAX).contains(len)).ok_or(malformed)?;
        let xattr_sectors = match inode.file_acl {
            0 => 0,
            _ => u64::from(self.superblock.cluster_blocks).saturating_mul((self.superblock.block_bytes >> 9).into()),
        };
        let short = !inode.has(flag::INLINE_DATA) && inode.sectors(self)? <= xattr_sectors;
        let target = if short {
            inode.block_area()?.get(..len).ok_or(malformed)?.to_vec()
        } else {
            let mut target = vec![0; len];
            self.read_content(inode, &mut target, 0)?;
            target
        };
        if target.contains(&0) { Err(malformed.into()) } else { Ok(target) }
    }
}

impl FileSystem for Ext4 {
    fn name(&self) -> &'static str {
        self.superblock.name()
    }

    fn label(&self) -> String {
        self.superblock.label.clone()
    }

    fn root(&self) -> Inode {
        Inode(ROOT.into())
    }

    fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Option<Inode>> {
        self.lookup_name(directory.0, name)
    }

    fn stat(&self, inode: Inode) -> Result<Stat> {
        self.inode(inode.0)?.stat(self)
    }

    fn read_dir(
        &self,
        directory: Inode,
        from: Cursor,
        visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.visit_names(directory.0, from, visit)
    }

    fn read(&self, inode: Inode, buf: &mut [u8], offset: u64) -> Result<usize> {
        let inode = self.inode(inode.0)?;
        self.regular(&inode)?;
        self.read_content(&inode, buf, offset)
    }

    fn extent_at(&self, inode: Inode, offset: u64) -> Result<Option<FileExtent<'_>>> {
        let inode = self.inode(inode.0)?;
        self.regular(&inode)?;
        self.content_extent(&inode, offset)
    }

    fn read_link(&self, inode: Inode) -> Result<Vec<u8>> {
        let inode = self.inode(inode.0)?;
        self.target(&inode)
    }

    fn xattrs(&self, inode: Inode) -> Result<Vec<Vec<u8>>> {
        self.xattr_names(inode.0)
    }

    fn xattr(&self, inode: Inode, name: &[u8]) -> Result<Vec<u8>> {
        self.xattr_value(inode.0, name)
    }

    fn space(&self) -> Result<Space> {
        let superblock = &self.superblock;
        // The kernel keeps some clusters back, so that extent trees can always grow.
        let kept = if superblock.has_incompat(incompat::EXTENTS) {
            let cluster_blocks = u64::from(superblock.cluster_blocks);
            let clusters = superblock.blocks.checked_div(cluster_blocks).unwrap_or(0);
            (clusters / 50).min(4096).saturating_mul(cluster_blocks)
        } else {
            0
        };
        let blocks_free = superblock.blocks_free.min(superblock.blocks);
        Ok(Space {
            block_bytes: superblock.block_bytes,
            blocks: superblock.blocks.saturating_sub(self.overhead()),
            blocks_free,
            blocks_available: blocks_free.saturating_sub(superblock.blocks_reserved).saturating_sub(kept),
            files: superblock.inodes.into(),
            files_free: superblock.inodes_free.into(),
        })
    }
}
