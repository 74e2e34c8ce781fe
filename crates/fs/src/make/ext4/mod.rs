//! ext4: extents, checksums of all metadata, and a journal from 16 MiB on.
//!
//! ```text
//! group 0   superblock at byte 1024 │ descriptors │ block bitmap │ inode bitmap │ inodes │ content
//! group n   (1, and powers of 3, 5, 7: copies of both) │ block bitmap │ inode bitmap │ inodes │ content
//! ```
//! Blocks have 4096 bytes, groups 32,768 blocks, inodes 256 bytes. Content is laid out in the order of the tree, without
//! gaps, so that how full each group is follows from where it ends. Groups that hold nothing are said to, and their
//! bitmaps not written. Directories have no hash tree.
//!
//! Specification: Documentation/filesystems/ext4 of the kernel; drawn beside its readers, `crate::ext4`.

use block::{BlockDevice, Error, Kind, Result};

use super::content::{self, Run};
use super::tree::{Index, Node, ROOT, Tree};
use super::{Made, Make};
use crate::ext4::checksum::crc32c;
use crate::progress::Progress;
use crate::{FileSystem, FileType};

mod bytes;
mod directory;
mod geometry;
mod inode;
mod journal;
mod superblock;
mod xattr;

use geometry::Geometry;
use inode::Mapping;

const BLOCK_BYTES: u64 = 4096;
const GROUP_BLOCKS: u64 = 32_768;
const INODE_BYTES: u64 = 256;
const ROOT_INODE: u32 = 2;
const JOURNAL_INODE: u32 = 8;
/// The first inode that is not reserved.
const FIRST_INODE: u32 = 11;
const LOST_FOUND: &[u8] = b"lost+found";
/// Blocks of a new `lost+found`: fsck puts files there when there is no more room.
const LOST_FOUND_BLOCKS: u64 = 4;
const LABEL_BYTES_MAX: usize = 16;
/// The largest file: 16 TiB less a block.
const FILE_BYTES_MAX: u64 = (u32::MAX as u64) * BLOCK_BYTES;
const LINKS_MAX: u32 = 65_000;

/// What is in the tree and takes room, and what is added to it.
struct Contents<'a> {
    tree: &'a Tree,
    /// Of a new `lost+found`; the tree may have its own.
    lost_found: Option<u32>,
}

impl<'a> Contents<'a> {
    fn new(tree: &'a Tree) -> Self {
        let own = tree.root().children.iter().any(|(name, _)| &**name == LOST_FOUND);
        Self { tree, lost_found: (!own).then_some(FIRST_INODE) }
    }

    /// The inode number of a file.
    fn number(&self, index: Index) -> u32 {
        let first = FIRST_INODE + u32::from(self.lost_found.is_some());
        if index == ROOT { ROOT_INODE } else { first + index as u32 - 1 }
    }

    /// Inodes that are in use, the reserved ones among them.
    fn inodes(&self) -> u64 {
        u64::from(self.number(self.tree.nodes().len() - 1)).max(u64::from(FIRST_INODE))
    }

    /// The most blocks that it takes.
    fn blocks(&self) -> u64 {
        let of_node = |node: &Node| {
            let content = match node.file_type {
                FileType::Directory => directory::blocks(node, self.lost_found.is_some()),
                // A list of extents takes a block for more than a hundred of the largest ones.
                FileType::Regular => node.size.div_ceil(BLOCK_BYTES) + node.size / (GROUP_BLOCKS * BLOCK_BYTES) / 2,
                FileType::SymbolicLink => 1,
                _ => 0,
            };
            content + u64::from(!node.xattrs.is_empty())
        };
        self.tree.nodes().iter().map(of_node).sum::<u64>() + LOST_FOUND_BLOCKS
    }
}

fn check(make: &Make, tree: &Tree) -> Result<()> {
    if make.label.len() > LABEL_BYTES_MAX {
        return Err(Error::new(
            Kind::Invalid,
            format!("{:?} as a label: ext4 has {LABEL_BYTES_MAX} bytes", make.label),
        ));
    }
    for (index, node) in tree.nodes().iter().enumerate() {
        if node.size > FILE_BYTES_MAX || (node.links > LINKS_MAX && node.file_type != FileType::Directory) {
            let text = format!("{}: {} bytes, {} names", tree.shown(index), node.size, node.links);
            return Err(Error::new(Kind::Limit, text));
        }
    }
    Ok(())
}

/// The smallest whole number of MiB that holds the tree.
pub(super) fn size(make: &Make, tree: &Tree) -> Result<u64> {
    check(make, tree)?;
    let contents = Contents::new(tree);
    let mib = (1 << 20) / BLOCK_BYTES;
    let mut blocks = contents.blocks().next_multiple_of(mib);
    for _ in 0..100 {
        let free = Geometry::new(blocks, contents.inodes()).map_or(0, |geometry| geometry.free_blocks());
        if free >= contents.blocks() {
            return Ok(blocks * BLOCK_BYTES);
        }
        blocks = (blocks + contents.blocks() - free).next_multiple_of(mib);
    }
    Err(Error::new(Kind::Limit, format!("a tree of {} bytes", tree.bytes())))
}

/// Makes it.
pub(super) fn write(
    make: &Make,
    tree: &Tree,
    source: &dyn FileSystem,
    device: &dyn BlockDevice,
    progress: &dyn Progress,
) -> Result<Made> {
    check(make, tree)?;
    let contents = Contents::new(tree);
    let geometry = Geometry::new(device.size() / BLOCK_BYTES, contents.inodes()).ok_or_else(|| {
        Error::new(Kind::NoSpace, format!("{} bytes for ext4 with {} files", device.size(), tree.nodes().len()))
    })?;
    let seed = crc32c(!0, &make.id.to_be_bytes());
    let allocator = geometry::Allocator::new(&geometry);
    let mut writing = Writing {
        make,
        contents,
        geometry: &geometry,
        source,
        device,
        progress,
        seed,
        allocator,
        xattrs: xattr::Blocks::default(),
        made: Made { bytes: device.size(), left_out: 0 },
    };
    let journal = writing.journal()?;
    writing.lost_found()?;
    for (index, node) in tree.nodes().iter().enumerate() {
        writing.node(index, node).map_err(|error| error.context(tree.shown(index)))?;
    }
    writing.shared_xattrs()?;
    superblock::write(&writing, journal)?;
    Ok(writing.made)
}

struct Writing<'a> {
    make: &'a Make,
    contents: Contents<'a>,
    geometry: &'a Geometry,
    source: &'a dyn FileSystem,
    device: &'a dyn BlockDevice,
    progress: &'a dyn Progress,
    /// Of all checksums: that of the UUID.
    seed: u32,
    allocator: geometry::Allocator<'a>,
    xattrs: xattr::Blocks,
    made: Made,
}

impl Writing<'_> {
    /// The seed of what belongs to an inode; its generation is 0.
    fn inode_seed(&self, number: u32) -> u32 {
        crc32c(crc32c(self.seed, &number.to_le_bytes()), &[0; 4])
    }

    fn write_block(&self, block: u64, bytes: &[u8]) -> Result<()> {
        self.device.write_at(bytes, block * BLOCK_BYTES)
    }

    /// Writes whole blocks of bytes to new blocks, and says where they are.
    fn store(&mut self, bytes: &[u8]) -> Result<Mapping> {
        let mut mapping = Mapping::default();
        let mut rest = bytes;
        for (start, count) in self.allocator.take((bytes.len() as u64).div_ceil(BLOCK_BYTES))? {
            let (now, later) = rest.split_at(rest.len().min((count * BLOCK_BYTES) as usize));
            self.write_block(start, now)?;
            rest = later;
            mapping.push(start, count);
        }
        Ok(mapping)
    }

    fn node(&mut self, index: Index, node: &Node) -> Result<()> {
        let number = self.contents.number(index);
        let (mapping, size) = match node.file_type {
            FileType::Directory => {
                let blocks = directory::bytes(&self.contents, index, self.inode_seed(number));
                (self.store(&blocks)?, blocks.len() as u64)
            }
            FileType::Regular => (self.content(node)?, node.size),
            FileType::SymbolicLink if node.target.len() >= inode::FAST_LINK_BYTES => {
                (self.store(&node.target)?, node.target.len() as u64)
            }
            FileType::SymbolicLink => (Mapping::default(), node.target.len() as u64),
            _ => (Mapping::default(), 0),
        };
        let (set, left) = self.xattrs.of(node);
        for name in left {
            let text = format!("attribute {}, which does not fit a block: left out", name.escape_ascii());
            self.progress.failed(&self.contents.tree.path(index), &Error::new(Kind::Unsupported, text));
            self.made.left_out += 1;
        }
        let xattr_block = match set {
            Some(set) => Some(self.xattr_block(set)?),
            None => None,
        };
        let links = node.links + u32::from(index == ROOT && self.contents.lost_found.is_some());
        let inode = inode::Inode { node, number, links, size, xattr_block };
        self.inode(&inode, &mapping)
    }

    /// The block of a set of attributes, a new one for the first file that has it.
    fn xattr_block(&mut self, set: usize) -> Result<u64> {
        if let Some(block) = self.xattrs.block(set) {
            return Ok(block);
        }
        let block = self.allocator.take(1)?.first().map_or(0, |(start, _)| *start);
        self.xattrs.place(set, block);
        Ok(block)
    }

    /// Writes the blocks of attributes, now that it is known how many share each.
    fn shared_xattrs(&mut self) -> Result<()> {
        for (block, bytes) in self.xattrs.bytes(self.seed) {
            self.write_block(block, &bytes)?;
        }
        Ok(())
    }

    /// Copies the content of a file; holes stay.
    fn content(&mut self, node: &Node) -> Result<Mapping> {
        let mut whole: Vec<Run> = Vec::new();
        for run in content::runs(self.source, node)? {
            let (start, end) = (run.start / BLOCK_BYTES, run.end.div_ceil(BLOCK_BYTES));
            match whole.last_mut().filter(|last| last.end >= start) {
                Some(last) => last.end = end,
                None => whole.push(Run { start, end }),
            }
        }
        let mut mapping = Mapping::default();
        let mut buf = Vec::new();
        let mut done = 0;
        for run in whole {
            let mut logical = run.start;
            for (start, count) in self.allocator.take(run.end - run.start)? {
                mapping.push_at(logical, start, count);
                let end = ((logical + count) * BLOCK_BYTES).min(node.size);
                let first = logical * BLOCK_BYTES;
                let mut at = first;
                while at < end {
                    buf.resize((end - at).min(content::PIECE_BYTES as u64) as usize, 0);
                    content::read(self.source, node, &mut buf, at)?;
                    self.device.write_at(&buf, start * BLOCK_BYTES + (at - first))?;
                    at += buf.len() as u64;
                    self.progress.copied(at - done);
                    done = at;
                }
                logical += count;
            }
        }
        self.progress.copied(node.size - done);
        Ok(mapping)
    }

    /// Makes an empty `lost+found`, where the tree has none.
    fn lost_found(&mut self) -> Result<()> {
        let Some(number) = self.contents.lost_found else { return Ok(()) };
        let bytes = directory::lost_found(number, self.inode_seed(number));
        let mapping = self.store(&bytes)?;
        let node = Node {
            permissions: 0o700,
            owner: (0, 0),
            modified: self.make.time,
            links: 2,
            xattrs: Vec::new(),
            children: Vec::new(),
            ..self.contents.tree.root().clone()
        };
        let inode = inode::Inode { node: &node, number, links: 2, size: bytes.len() as u64, xattr_block: None };
        self.inode(&inode, &mapping)
    }
}
