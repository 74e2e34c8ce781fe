//! erofs, not compressed.
//!
//! ```text
//! superblock at byte 1024 │ inodes, each with its attributes and the tail of its content │ blocks of content
//! ```
//! Blocks have 4096 bytes. Inodes are long ones, of 64 bytes; a tail stands behind its inode where both fit one block. A
//! file with holes is made of chunks, of which those that hold nothing are nowhere.
//!
//! Specification: Documentation/filesystems/erofs.rst of the kernel; drawn beside its readers, `crate::erofs`.

use block::{BlockDevice, Error, Kind, Result};

use super::content::{self, Run};
use super::tree::{Index, Node, Tree};
use super::{Made, Make};
use crate::progress::Progress;
use crate::{FileSystem, FileType};

const BLOCK_BYTES: u64 = 4096;
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: u64 = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Compatible: a checksum, and times of modification in the inodes.
const COMPAT: u32 = 1 | 2;
const CHUNKS: u32 = 4;
const INODE_BYTES: u64 = 64;
/// Inodes are numbered by these.
const SLOT_BYTES: u64 = 32;
const DIRENT_BYTES: usize = 12;
const LABEL_BYTES_MAX: usize = 16;
/// The most attributes of a file, bytes.
const XATTRS_BYTES_MAX: usize = 200_000;
const XATTR_HEADER_BYTES: usize = 12;
/// A file has so many chunks at most: larger ones have larger chunks.
const CHUNKS_MAX: u64 = 1 << 16;
const NOWHERE: u32 = u32::MAX;
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// How the content of a file is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    /// Whole blocks.
    Plain,
    /// Whole blocks, and the rest behind the inode.
    Inline,
    /// Chunks of two to the so many blocks; of each, its first block.
    Chunks(u32, Vec<u32>),
}

/// Where a file is.
#[derive(Debug, Clone)]
struct Place {
    /// Of the inode, bytes.
    at: u64,
    layout: Layout,
    /// The first block of its content.
    start: u32,
    size: u64,
    xattrs: Vec<u8>,
}

impl Place {
    fn number(&self) -> u64 {
        self.at / SLOT_BYTES
    }
}

/// The most that it may take, bytes.
pub(super) fn size(make: &Make, tree: &Tree) -> Result<u64> {
    if make.label.len() > LABEL_BYTES_MAX {
        return Err(Error::new(
            Kind::Invalid,
            format!("{:?} as a label: erofs has {LABEL_BYTES_MAX} bytes", make.label),
        ));
    }
    let of_node = |node: &Node| {
        let xattrs: usize = node.xattrs.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        let inside = match node.file_type {
            FileType::Directory => directory_bytes(node),
            FileType::SymbolicLink => node.target.len() as u64,
            _ => node.size + CHUNKS_MAX.min(node.size / BLOCK_BYTES) * 4,
        };
        // What does not fit a block any more begins the next one.
        2 * (INODE_BYTES + xattrs as u64 + XATTR_HEADER_BYTES as u64)
            + inside.next_multiple_of(BLOCK_BYTES)
            + BLOCK_BYTES
    };
    Ok(tree.nodes().iter().map(of_node).sum::<u64>() + 2 * BLOCK_BYTES)
}

/// Makes it.
pub(super) fn write(
    make: &Make,
    tree: &Tree,
    source: &dyn FileSystem,
    device: &dyn BlockDevice,
    progress: &dyn Progress,
) -> Result<Made> {
    size(make, tree)?;
    let mut made = Made::default();
    let (places, blocks) = plan(tree, source, progress, &mut made)?;
    made.bytes = u64::from(blocks) * BLOCK_BYTES;
    if made.bytes > device.size() {
        return Err(Error::new(Kind::NoSpace, format!("{} bytes of erofs", made.bytes)));
    }
    for (index, (node, place)) in tree.nodes().iter().zip(&places).enumerate() {
        let mut head = inode(index, node, place);
        head.extend_from_slice(&place.xattrs);
        if let Layout::Chunks(_, chunks) = &place.layout {
            chunks.iter().for_each(|block| head.extend_from_slice(&block.to_le_bytes()));
        }
        device.write_at(&head, place.at)?;
        let put = |bytes: &[u8], offset: u64| put(device, place, head.len() as u64, bytes, offset);
        let written = match node.file_type {
            FileType::Directory => put(&directory(tree, index, &places), 0),
            FileType::SymbolicLink => put(&node.target, 0),
            FileType::Regular => content::each(source, node, progress, &mut |piece, offset| put(piece, offset)),
            _ => Ok(()),
        };
        written.map_err(|error| error.context(tree.shown(index)))?;
    }
    let root = places.first().map_or(0, Place::number);
    device.write_at(&superblock(make, root as u16, tree.nodes().len() as u64, blocks), SUPERBLOCK_AT)?;
    // The checksum goes over the rest of the block, inodes in it included.
    let mut summed = vec![0; (BLOCK_BYTES - SUPERBLOCK_AT) as usize];
    device.read_at(&mut summed, SUPERBLOCK_AT)?;
    device.write_at(&(!crc32c::crc32c(&summed)).to_le_bytes(), SUPERBLOCK_AT + 4)?;
    Ok(made)
}

/// Where everything goes, and how many blocks there are.
fn plan(tree: &Tree, source: &dyn FileSystem, progress: &dyn Progress, made: &mut Made) -> Result<(Vec<Place>, u32)> {
    let mut at = SUPERBLOCK_AT + SUPERBLOCK_BYTES;
    let mut places = Vec::with_capacity(tree.nodes().len());
    for (index, node) in tree.nodes().iter().enumerate() {
        let (xattrs, left) = xattrs(node);
        for name in left {
            let text = format!("attribute {}, which erofs cannot hold: left out", name.escape_ascii());
            progress.failed(&tree.path(index), &Error::new(Kind::Unsupported, text));
            made.left_out += 1;
        }
        let size = match node.file_type {
            FileType::Directory => directory_bytes(node),
            FileType::SymbolicLink => node.target.len() as u64,
            _ => node.size,
        };
        let runs = match node.file_type {
            FileType::Regular => content::runs(source, node).map_err(|error| error.context(tree.shown(index)))?,
            _ => vec![Run { start: 0, end: size }],
        };
        let tail = size % BLOCK_BYTES;
        let head = INODE_BYTES + xattrs.len() as u64;
        let whole = size == 0 || runs == [Run { start: 0, end: size }];
        let layout = match whole {
            false => chunks(size, &runs),
            true if tail > 0 && head + tail <= BLOCK_BYTES => Layout::Inline,
            true => Layout::Plain,
        };
        // The inode itself, and it with its tail, lie in one block.
        let together = if layout == Layout::Inline { head + tail } else { INODE_BYTES };
        if at % BLOCK_BYTES + together > BLOCK_BYTES {
            at = at.next_multiple_of(BLOCK_BYTES);
        }
        let list = if let Layout::Chunks(_, chunks) = &layout { chunks.len() as u64 * 4 } else { 0 };
        let end = at + head + list + if layout == Layout::Inline { tail } else { 0 };
        places.push(Place { at, layout, start: 0, size, xattrs });
        at = end.next_multiple_of(SLOT_BYTES);
    }
    let mut block = at.div_ceil(BLOCK_BYTES);
    for place in &mut places {
        place.start = block as u32;
        match &mut place.layout {
            Layout::Plain => block += place.size.div_ceil(BLOCK_BYTES),
            Layout::Inline => block += place.size / BLOCK_BYTES,
            Layout::Chunks(log, chunks) => {
                let chunk_bytes = BLOCK_BYTES << *log;
                for (number, chunk) in (0_u64..).zip(chunks).filter(|(_, chunk)| **chunk != NOWHERE) {
                    *chunk = block as u32;
                    block += (place.size - number * chunk_bytes).min(chunk_bytes).div_ceil(BLOCK_BYTES);
                }
            }
        }
    }
    let blocks = u32::try_from(block).ok().filter(|blocks| *blocks != NOWHERE);
    let blocks = blocks.ok_or_else(|| Error::new(Kind::Limit, format!("{} bytes: erofs has 16 TiB", tree.bytes())))?;
    Ok((places, blocks))
}

/// The chunks of a file with holes; those that hold something are placed later.
fn chunks(size: u64, runs: &[Run]) -> Layout {
    let mut log = 0;
    while size.div_ceil(BLOCK_BYTES << log) > CHUNKS_MAX {
        log += 1;
    }
    let chunk_bytes = BLOCK_BYTES << log;
    let mut chunks = vec![NOWHERE; size.div_ceil(chunk_bytes) as usize];
    for run in runs {
        let (first, end) = (run.start / chunk_bytes, run.end.div_ceil(chunk_bytes));
        let held = chunks.iter_mut().skip(first as usize).take((end - first) as usize);
        held.for_each(|chunk| *chunk = 0);
    }
    Layout::Chunks(log, chunks)
}

/// Writes content to where it belongs; `head` bytes of the inode and what follows it stand before the tail.
fn put(device: &dyn BlockDevice, place: &Place, head: u64, bytes: &[u8], offset: u64) -> Result<()> {
    match &place.layout {
        Layout::Plain => device.write_at(bytes, u64::from(place.start) * BLOCK_BYTES + offset),
        Layout::Inline => {
            let inline_from = place.size / BLOCK_BYTES * BLOCK_BYTES;
            let (blocks, tail) = bytes.split_at(bytes.len().min(inline_from.saturating_sub(offset) as usize));
            if !blocks.is_empty() {
                device.write_at(blocks, u64::from(place.start) * BLOCK_BYTES + offset)?;
            }
            if tail.is_empty() {
                return Ok(());
            }
            device.write_at(tail, place.at + head + (offset + blocks.len() as u64 - inline_from))
        }
        Layout::Chunks(log, chunks) => {
            let chunk_bytes = BLOCK_BYTES << *log;
            let (mut rest, mut at) = (bytes, offset);
            while !rest.is_empty() {
                let inside = at % chunk_bytes;
                let (now, later) = rest.split_at(rest.len().min((chunk_bytes - inside) as usize));
                let block = chunks.get((at / chunk_bytes) as usize).copied().unwrap_or(NOWHERE);
                device.write_at(now, u64::from(block) * BLOCK_BYTES + inside)?;
                at += now.len() as u64;
                rest = later;
            }
            Ok(())
        }
    }
}

fn inode(index: Index, node: &Node, place: &Place) -> Vec<u8> {
    let layout = match place.layout {
        Layout::Plain => 0,
        Layout::Inline => 2,
        Layout::Chunks(..) => 4,
    };
    let data = match (&place.layout, node.device) {
        (Layout::Chunks(log, _), _) => *log,
        (_, Some((major, minor))) => minor & 0xff | major << 8 | (minor & !0xff) << 12,
        _ => place.start,
    };
    let words = match place.xattrs.len() {
        0 => 0,
        len => (len - XATTR_HEADER_BYTES) / 4 + 1,
    };
    let mut raw = Vec::with_capacity(INODE_BYTES as usize);
    let mode = node.file_type.mode_bits() | u32::from(node.permissions);
    for half in [1 | layout << 1, words as u16, mode as u16, 0] {
        raw.extend_from_slice(&half.to_le_bytes());
    }
    raw.extend_from_slice(&place.size.to_le_bytes());
    for word in [data, index as u32 + 1, node.owner.0, node.owner.1] {
        raw.extend_from_slice(&word.to_le_bytes());
    }
    raw.extend_from_slice(&node.modified.seconds.to_le_bytes());
    raw.extend_from_slice(&node.modified.nanoseconds.to_le_bytes());
    raw.extend_from_slice(&node.links.to_le_bytes());
    raw.resize(INODE_BYTES as usize, 0);
    raw
}

/// The attributes of a file as they stand behind its inode, and the names of those that are left out.
fn xattrs(node: &Node) -> (Vec<u8>, Vec<&[u8]>) {
    let (mut bytes, mut left) = (vec![0; XATTR_HEADER_BYTES], Vec::new());
    for (name, value) in &node.xattrs {
        let prefix = PREFIXES.into_iter().find_map(|(number, prefix)| Some((number, name.strip_prefix(prefix)?)));
        let fits = |rest: &[u8]| bytes.len() + rest.len() + value.len() < XATTRS_BYTES_MAX;
        match (prefix, u16::try_from(value.len())) {
            // Lists have no name of their own, all others have.
            (Some((number, rest)), Ok(len)) if rest.is_empty() == matches!(number, 2 | 3) && fits(rest) => {
                bytes.extend_from_slice(&[rest.len() as u8, number]);
                bytes.extend_from_slice(&len.to_le_bytes());
                bytes.extend_from_slice(rest);
                bytes.extend_from_slice(value);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            _ => left.push(name.as_slice()),
        }
    }
    if bytes.len() == XATTR_HEADER_BYTES {
        bytes.clear();
    }
    (bytes, left)
}

/// The names of a directory with their files, `.` and `..` among them, sorted.
fn entries(node: &Node, own: Index) -> Vec<(&[u8], Index)> {
    let mut entries: Vec<(&[u8], Index)> = node.children.iter().map(|(name, index)| (&**name, *index)).collect();
    entries.push((b".", own));
    entries.push((b"..", node.parent));
    entries.sort_unstable();
    entries
}

/// How many names each block of a directory holds, and the bytes of it in use.
fn directory_blocks(entries: &[(&[u8], Index)]) -> Vec<(usize, usize)> {
    let mut blocks: Vec<(usize, usize)> = vec![(0, 0)];
    for (name, _) in entries {
        let len = DIRENT_BYTES + name.len();
        match blocks.last_mut().filter(|(_, used)| used + len <= BLOCK_BYTES as usize) {
            Some((count, used)) => (*count, *used) = (*count + 1, *used + len),
            None => blocks.push((1, len)),
        }
    }
    blocks
}

fn directory_bytes(node: &Node) -> u64 {
    let blocks = directory_blocks(&entries(node, 0));
    let last = blocks.last().map_or(0, |(_, used)| *used as u64);
    (blocks.len() as u64 - 1) * BLOCK_BYTES + last
}

fn directory(tree: &Tree, index: Index, places: &[Place]) -> Vec<u8> {
    let entries = entries(tree.node(index), index);
    let mut rest = &entries[..];
    let mut bytes = Vec::new();
    for (count, _) in directory_blocks(&entries) {
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        let (now, later) = rest.split_at(count.min(rest.len()));
        rest = later;
        let mut name_at = count * DIRENT_BYTES;
        for (name, child) in now {
            bytes.extend_from_slice(&places.get(*child).map_or(0, Place::number).to_le_bytes());
            bytes.extend_from_slice(&(name_at as u16).to_le_bytes());
            bytes.extend_from_slice(&[tree.node(*child).file_type.entry_number(), 0]);
            name_at += name.len();
        }
        now.iter().for_each(|(name, _)| bytes.extend_from_slice(name));
    }
    bytes
}

fn superblock(make: &Make, root: u16, inodes: u64, blocks: u32) -> Vec<u8> {
    let mut raw = Vec::with_capacity(SUPERBLOCK_BYTES as usize);
    for word in [MAGIC, 0, COMPAT] {
        raw.extend_from_slice(&word.to_le_bytes());
    }
    // The logarithm of the block's bytes; no more than these 128 bytes.
    raw.extend_from_slice(&[12, 0]);
    raw.extend_from_slice(&root.to_le_bytes());
    raw.extend_from_slice(&inodes.to_le_bytes());
    raw.extend_from_slice(&make.time.seconds.to_le_bytes());
    // Inodes are numbered from the first block on.
    for word in [make.time.nanoseconds, blocks, 0, 0] {
        raw.extend_from_slice(&word.to_le_bytes());
    }
    raw.extend_from_slice(&make.id.to_be_bytes());
    raw.extend_from_slice(make.label.as_bytes());
    raw.resize(80, 0);
    raw.extend_from_slice(&CHUNKS.to_le_bytes());
    raw.resize(SUPERBLOCK_BYTES as usize, 0);
    raw
}
