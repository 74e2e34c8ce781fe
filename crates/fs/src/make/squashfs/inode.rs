//! Inodes and directories. Their layout is drawn beside their reader: `crate::squashfs`.

use block::Result;

use super::super::tree::{Index, Node};
use super::metadata::{Metadata, Place};
use super::{NONE, Tables, seconds};
use crate::FileType;

/// The most entries behind one header of a directory.
const ENTRIES_MAX: usize = 256;
/// What is added to the size of a directory, for its `.` and `..`.
const DOTS_BYTES: u32 = 3;

/// The short type of an inode; the long one is seven above.
fn kind(file_type: FileType) -> u16 {
    match file_type {
        FileType::Directory => 1,
        FileType::Regular => 2,
        FileType::SymbolicLink => 3,
        FileType::BlockDevice => 4,
        FileType::CharacterDevice => 5,
        FileType::Fifo => 6,
        FileType::Socket => 7,
    }
}

/// A directory's entries as they were written.
struct Listing {
    place: Place,
    bytes: u32,
    /// Of headers that are the first in a metadata block: offset, block, name.
    index: Vec<(u32, u32, Vec<u8>)>,
}

impl Tables<'_> {
    /// Inode table and directory table; `xattrs` are the numbers of the files' sets.
    pub fn inodes(&mut self, xattrs: &[u32]) -> Result<(Metadata, Metadata)> {
        let (mut inodes, mut directories) = (Metadata::default(), Metadata::default());
        let tree = self.tree;
        let order = |wanted: bool| {
            let nodes = tree.nodes().iter().enumerate().rev();
            nodes.filter(move |(_, node)| (node.file_type == FileType::Directory) == wanted)
        };
        // Directories last, and from below: what they name has its place then.
        for (index, node) in order(false).chain(order(true)) {
            let xattr = xattrs.get(index).copied().unwrap_or(NONE);
            let inode = self.inode(index, node, xattr, &mut directories)?;
            if let Some(place) = self.places.get_mut(index) {
                *place = inodes.place();
            }
            inodes.write(&inode);
        }
        Ok((inodes, directories))
    }

    fn inode(&mut self, index: Index, node: &Node, xattr: u32, directories: &mut Metadata) -> Result<Vec<u8>> {
        let has_xattr = xattr != NONE;
        let mut body = Vec::new();
        let word = |body: &mut Vec<u8>, number: u32| body.extend_from_slice(&number.to_le_bytes());
        let mut long = has_xattr;
        match node.file_type {
            FileType::Directory => {
                let listing = self.directory(node, directories);
                let (size, parent) = (listing.bytes + DOTS_BYTES, self.parent(index, node));
                long |= size > u16::MAX.into() || !listing.index.is_empty();
                if long {
                    [node.links, size, listing.place.block, parent].iter().for_each(|number| word(&mut body, *number));
                    body.extend_from_slice(&(listing.index.len() as u16).to_le_bytes());
                    body.extend_from_slice(&listing.place.offset.to_le_bytes());
                    word(&mut body, xattr);
                    for (offset, block, name) in &listing.index {
                        [*offset, *block, name.len() as u32 - 1].iter().for_each(|number| word(&mut body, *number));
                        body.extend_from_slice(name);
                    }
                } else {
                    word(&mut body, listing.place.block);
                    word(&mut body, node.links);
                    body.extend_from_slice(&(size as u16).to_le_bytes());
                    body.extend_from_slice(&listing.place.offset.to_le_bytes());
                    word(&mut body, parent);
                }
            }
            FileType::Regular => {
                let stored = self.blocks.stored(index);
                let (fragment, offset) = stored.fragment;
                let short = (u32::try_from(stored.start), u32::try_from(node.size));
                long |= node.links > 1 || stored.sparse > 0;
                match short {
                    (Ok(start), Ok(size)) if !long => {
                        [start, fragment, offset, size].iter().for_each(|number| word(&mut body, *number));
                    }
                    _ => {
                        long = true;
                        for number in [stored.start, node.size, stored.sparse] {
                            body.extend_from_slice(&number.to_le_bytes());
                        }
                        [node.links, fragment, offset, xattr].iter().for_each(|number| word(&mut body, *number));
                    }
                }
                stored.sizes.iter().for_each(|size| word(&mut body, *size));
            }
            FileType::SymbolicLink => {
                word(&mut body, node.links);
                word(&mut body, node.target.len() as u32);
                body.extend_from_slice(&node.target);
            }
            FileType::BlockDevice | FileType::CharacterDevice => {
                let (major, minor) = node.device.unwrap_or_default();
                word(&mut body, node.links);
                word(&mut body, (major & 0xfff) << 8 | minor & 0xff | (minor & 0xf_ff00) << 12);
            }
            FileType::Fifo | FileType::Socket => word(&mut body, node.links),
        }
        // Of these the attributes stand at the end.
        if has_xattr && !matches!(node.file_type, FileType::Directory | FileType::Regular) {
            word(&mut body, xattr);
        }
        let (uid, gid) = node.owner;
        let mut inode = Vec::with_capacity(16 + body.len());
        let kind = kind(node.file_type) + if long { 7 } else { 0 };
        for half in [kind, node.permissions, self.ids.place(uid)?, self.ids.place(gid)?] {
            inode.extend_from_slice(&half.to_le_bytes());
        }
        word(&mut inode, seconds(node.modified));
        word(&mut inode, number(index));
        inode.extend_from_slice(&body);
        Ok(inode)
    }

    /// The inode number of the directory above; of the root, one that no file has.
    fn parent(&self, index: Index, node: &Node) -> u32 {
        if index == super::super::tree::ROOT { self.tree.nodes().len() as u32 + 1 } else { number(node.parent) }
    }

    fn directory(&self, node: &Node, directories: &mut Metadata) -> Listing {
        let place = directories.place();
        let mut listing = Listing { place, bytes: 0, index: Vec::new() };
        let mut last_block = place.block;
        let mut rest = &node.children[..];
        while let Some((first_name, first)) = rest.first() {
            let block = self.place(*first).block;
            let base = i64::from(number(*first));
            let together = rest.iter().take(ENTRIES_MAX).take_while(|(_, index)| {
                self.place(*index).block == block && i16::try_from(i64::from(number(*index)) - base).is_ok()
            });
            let (now, later) = rest.split_at(together.count().max(1));
            rest = later;
            let here = directories.place();
            if here.block != last_block {
                last_block = here.block;
                listing.index.push((listing.bytes, here.block, first_name.to_vec()));
            }
            let mut bytes = Vec::new();
            for word in [now.len() as u32 - 1, block, base as u32] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            for (name, index) in now {
                let delta = (i64::from(number(*index)) - base) as i16;
                bytes.extend_from_slice(&self.place(*index).offset.to_le_bytes());
                bytes.extend_from_slice(&delta.to_le_bytes());
                bytes.extend_from_slice(&kind(self.tree.node(*index).file_type).to_le_bytes());
                bytes.extend_from_slice(&(name.len() as u16 - 1).to_le_bytes());
                bytes.extend_from_slice(name);
            }
            listing.bytes += bytes.len() as u32;
            directories.write(&bytes);
        }
        // An index has 16 bits for how many there are; what is behind them is found all the same.
        listing.index.truncate(u16::MAX.into());
        listing
    }

    fn place(&self, index: Index) -> Place {
        self.places.get(index).copied().unwrap_or_default()
    }
}

/// Inode numbers count from 1.
fn number(index: Index) -> u32 {
    index as u32 + 1
}
