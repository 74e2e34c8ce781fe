//! squashfs 4.0, compressed by deflate.
//!
//! ```text
//! superblock │ blocks and fragments │ inodes │ directories │ fragment table │ export table │ ids │ attributes
//! ```
//! The layout is that which the kernel's reader checks: each table ends where the next one begins. Blocks have 128 KiB; a
//! file smaller than that lies in a fragment, with others. Blocks of zeroes take no room. Blocks are compressed by all
//! processors, and written in their order, so that the bytes do not depend on how many there are.

use std::collections::HashMap;

use block::{BlockDevice, Error, Kind, Result};

use super::content::{self, Run};
use super::tree::{Index, Node, Tree};
use super::{Made, Make};
use crate::progress::Progress;
use crate::{FileSystem, FileType};

mod blocks;
mod inode;
mod metadata;
mod xattr;

use blocks::Blocks;
use metadata::{Metadata, Place};

/// Bytes of a block, and the logarithm of that.
const BLOCK_BYTES: u64 = 1 << BLOCK_LOG;
const BLOCK_LOG: u16 = 17;
const SUPERBLOCK_BYTES: u64 = 96;
/// The image is a multiple of this, bytes, so that it can be a device.
const PAD_BYTES: u64 = 4096;
/// The largest file: its list of blocks takes 32 MiB.
const FILE_BYTES_MAX: u64 = 1 << 40;
const DEFLATE: u16 = 1;
const EXPORTABLE: u16 = 0x80;
const NO_XATTRS: u16 = 0x200;
const NONE: u32 = u32::MAX;
const NO_TABLE: u64 = u64::MAX;

/// The most that it may take, bytes.
pub(super) fn size(tree: &Tree) -> Result<u64> {
    let mut metadata = 1 << 16;
    for node in tree.nodes() {
        if node.size > FILE_BYTES_MAX {
            let text = format!("a file of {} bytes: squashfs is made of files of up to {FILE_BYTES_MAX}", node.size);
            return Err(Error::new(Kind::Limit, text));
        }
        let xattrs: usize = node.xattrs.iter().map(|(name, value)| name.len() + value.len() + 40).sum();
        let names: usize = node.children.iter().map(|(name, _)| 2 * name.len() + 40).sum();
        metadata += 256 + node.size / BLOCK_BYTES * 4 + (node.target.len() + xattrs + names) as u64;
    }
    // Nothing gets larger by being compressed but for two bytes in 8 KiB.
    Ok((tree.bytes() + metadata + metadata / 1024).next_multiple_of(PAD_BYTES))
}

/// Makes it.
pub(super) fn write(
    make: &Make,
    tree: &Tree,
    source: &dyn FileSystem,
    device: &dyn BlockDevice,
    progress: &dyn Progress,
) -> Result<Made> {
    if !make.label.is_empty() {
        return Err(Error::new(Kind::Invalid, "a label, which squashfs has not"));
    }
    let mut blocks = Blocks::new(device, SUPERBLOCK_BYTES);
    for (index, node) in tree.nodes().iter().enumerate().filter(|(_, node)| node.file_type == FileType::Regular) {
        file(&mut blocks, index, node, source, progress).map_err(|error| error.context(tree.shown(index)))?;
    }
    blocks.finish()?;
    let mut tables =
        Tables { tree, blocks: &blocks, ids: Ids::default(), places: vec![Place::default(); tree.nodes().len()] };
    let mut made = Made::default();
    let mut xattrs = xattr::Xattrs::default();
    let of_node: Vec<u32> = tree
        .nodes()
        .iter()
        .enumerate()
        .map(|(index, node)| {
            let (number, left) = xattrs.number(node);
            for name in left {
                let text = format!("attribute {}, which squashfs cannot hold: left out", name.escape_ascii());
                progress.failed(&tree.path(index), &Error::new(Kind::Unsupported, text));
                made.left_out += 1;
            }
            number
        })
        .collect();
    let (inodes, directories) = tables.inodes(&of_node)?;
    let mut out = Output { device, at: blocks.end() };
    let inode_table = out.write(&inodes.finish())?;
    let directory_table = out.write(&directories.finish())?;
    let fragments = blocks.fragments();
    let fragment_table = match fragments.len() {
        0 => NO_TABLE,
        _ => out.table(
            fragments
                .iter()
                .flat_map(|(start, size)| [&start.to_le_bytes()[..], &size.to_le_bytes(), &[0; 4]].concat()),
        )?,
    };
    let export_table = out.table(tables.places.iter().flat_map(|place| place.reference().to_le_bytes()))?;
    let id_table = out.table(tables.ids.list.iter().flat_map(|id| id.to_le_bytes()))?;
    let xattr_table = if xattrs.is_empty() { NO_TABLE } else { xattrs.write(&mut out)? };
    let mut superblock = Vec::new();
    let root = tables.places.first().copied().unwrap_or_default().reference();
    superblock.extend_from_slice(b"hsqs");
    for word in [tree.nodes().len() as u32, seconds(make.time), BLOCK_BYTES as u32, fragments.len() as u32] {
        superblock.extend_from_slice(&word.to_le_bytes());
    }
    let flags = EXPORTABLE | if xattr_table == NO_TABLE { NO_XATTRS } else { 0 };
    for half in [DEFLATE, BLOCK_LOG, flags, tables.ids.list.len() as u16, 4, 0] {
        superblock.extend_from_slice(&half.to_le_bytes());
    }
    let starts = [id_table, xattr_table, inode_table, directory_table, fragment_table, export_table];
    for number in [root, out.at].into_iter().chain(starts) {
        superblock.extend_from_slice(&number.to_le_bytes());
    }
    device.write_at(&superblock, 0)?;
    made.bytes = out.at.next_multiple_of(PAD_BYTES);
    Ok(made)
}

/// Seconds as squashfs has them: from 1970 to 2106.
fn seconds(time: crate::Time) -> u32 {
    u32::try_from(time.seconds.max(0)).unwrap_or(u32::MAX)
}

/// Writes the content of a file.
fn file(
    blocks: &mut Blocks<'_>,
    index: Index,
    node: &Node,
    source: &dyn FileSystem,
    progress: &dyn Progress,
) -> Result<()> {
    let runs = content::runs(source, node)?;
    if node.size < BLOCK_BYTES {
        let mut data = vec![0; node.size as usize];
        if !runs.is_empty() {
            content::read(source, node, &mut data, 0)?;
        }
        blocks.fragment(index, data)?;
        progress.copied(node.size);
        return Ok(());
    }
    let mut runs = runs.into_iter().peekable();
    let mut at = 0;
    blocks.begin(index);
    while at < node.size {
        let end = (at + BLOCK_BYTES).min(node.size);
        while runs.next_if(|run: &Run| run.end <= at).is_some() {}
        let data = if runs.peek().is_some_and(|run| run.start < end) {
            let mut data = vec![0; (end - at) as usize];
            content::read(source, node, &mut data, at)?;
            data
        } else {
            Vec::new()
        };
        blocks.block(index, data, end - at)?;
        progress.copied(end - at);
        at = end;
    }
    Ok(())
}

/// What is written one after the other.
struct Output<'a> {
    device: &'a dyn BlockDevice,
    at: u64,
}

impl Output<'_> {
    /// Writes bytes, and says where.
    fn write(&mut self, bytes: &[u8]) -> Result<u64> {
        let start = self.at;
        self.device.write_at(bytes, start)?;
        self.at += bytes.len() as u64;
        Ok(start)
    }

    /// Writes metadata blocks, and says where each of them is.
    fn blocks(&mut self, bytes: impl IntoIterator<Item = u8>) -> Result<Vec<u64>> {
        let mut metadata = Metadata::default();
        metadata.write(&bytes.into_iter().collect::<Vec<u8>>());
        let start = self.at;
        let (packed, starts) = metadata.finish_with_starts();
        self.write(&packed)?;
        Ok(starts.into_iter().map(|at| start + at).collect())
    }

    /// Writes a table: metadata blocks, and behind them the list of where they are, whose place is the table's.
    fn table(&mut self, bytes: impl IntoIterator<Item = u8>) -> Result<u64> {
        let list: Vec<u8> = self.blocks(bytes)?.into_iter().flat_map(u64::to_le_bytes).collect();
        self.write(&list)
    }
}

/// Users and groups.
#[derive(Default)]
struct Ids {
    list: Vec<u32>,
    places: HashMap<u32, u16>,
}

impl Ids {
    fn place(&mut self, id: u32) -> Result<u16> {
        if let Some(place) = self.places.get(&id) {
            return Ok(*place);
        }
        // The number of them has 16 bits.
        let place = u16::try_from(self.list.len()).ok().filter(|place| *place < u16::MAX);
        let place = place.ok_or_else(|| Error::new(Kind::Limit, "more than 65535 users and groups"))?;
        self.list.push(id);
        self.places.insert(id, place);
        Ok(place)
    }
}

/// What inodes are made of.
struct Tables<'a> {
    tree: &'a Tree,
    blocks: &'a Blocks<'a>,
    ids: Ids,
    /// Of each inode that is written.
    places: Vec<Place>,
}
