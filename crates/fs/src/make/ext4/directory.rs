//! Directories: a list of entries, and a checksum at the end of each block.

use super::bytes::Fields;
use super::{BLOCK_BYTES, Contents, Index, LOST_FOUND, LOST_FOUND_BLOCKS, Node, ROOT, ROOT_INODE};
use crate::ext4::checksum::crc32c;

/// Bytes of the checksum at the end, which looks like an entry of no file.
const TAIL_BYTES: usize = 12;
const TAIL_TYPE: u8 = 0xde;
const ROOM: usize = BLOCK_BYTES as usize - TAIL_BYTES;

/// Bytes of an entry.
fn entry_bytes(name: &[u8]) -> usize {
    (8 + name.len()).next_multiple_of(4)
}

/// Names in blocks: the first entry of each block begins a new one.
fn packed<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let (mut blocks, mut used) = (1, 0);
    for name in names {
        let len = entry_bytes(name);
        if used + len > ROOM {
            blocks += 1;
            used = 0;
        }
        used += len;
    }
    blocks
}

/// Blocks of a directory.
pub(super) fn blocks(node: &Node, lost_found: bool) -> u64 {
    let more = if lost_found { [LOST_FOUND].as_slice() } else { &[] };
    let dots = [b".".as_slice(), b".."].into_iter();
    packed(dots.chain(more.iter().copied()).chain(node.children.iter().map(|(name, _)| &**name)))
}

/// The bytes of a directory of the tree.
pub(super) fn bytes(contents: &Contents<'_>, index: Index, seed: u32) -> Vec<u8> {
    let node = contents.tree.node(index);
    let own = contents.number(index);
    let mut entries = vec![(b".".as_slice(), own, 2), (b"..", contents.number(node.parent), 2)];
    if let Some(number) = contents.lost_found.filter(|_| index == ROOT) {
        entries.push((LOST_FOUND, number, 2));
    }
    let children = node.children.iter();
    entries.extend(
        children.map(|(name, child)| {
            (&**name, contents.number(*child), contents.tree.node(*child).file_type.entry_number())
        }),
    );
    list(&entries, 0, seed)
}

/// The bytes of an empty `lost+found`.
pub(super) fn lost_found(number: u32, seed: u32) -> Vec<u8> {
    list(&[(b".", number, 2), (b"..", ROOT_INODE, 2)], LOST_FOUND_BLOCKS as usize, seed)
}

fn list(entries: &[(&[u8], u32, u8)], blocks_min: usize, seed: u32) -> Vec<u8> {
    let mut blocks: Vec<Vec<(&[u8], u32, u8)>> = vec![Vec::new()];
    let mut used = 0;
    for entry in entries {
        let len = entry_bytes(entry.0);
        if used + len > ROOM {
            blocks.push(Vec::new());
            used = 0;
        }
        used += len;
        blocks.last_mut().into_iter().for_each(|last| last.push(*entry));
    }
    blocks.resize(blocks.len().max(blocks_min), Vec::new());
    let mut bytes = Vec::with_capacity(blocks.len() * BLOCK_BYTES as usize);
    for entries in blocks {
        bytes.extend_from_slice(&block(&entries, seed));
    }
    bytes
}

fn block(entries: &[(&[u8], u32, u8)], seed: u32) -> Vec<u8> {
    let mut block = Fields::new(BLOCK_BYTES as usize);
    let mut at = 0;
    let count = entries.len();
    for (place, (name, number, kind)) in entries.iter().enumerate() {
        // The last one reaches to the end.
        let len = if place + 1 == count { ROOM - at } else { entry_bytes(name) };
        block.put32(at, *number);
        block.put16(at + 4, len as u16);
        block.put(at + 6, &[name.len() as u8, *kind]);
        block.put(at + 8, name);
        at += len;
    }
    if count == 0 {
        block.put16(4, ROOM as u16);
    }
    let sum = crc32c(seed, block.0.get(..ROOM).unwrap_or_default());
    block.put16(ROOM + 4, TAIL_BYTES as u16);
    block.put(ROOM + 7, &[TAIL_TYPE]);
    block.put32(ROOM + 8, sum);
    block.0
}
