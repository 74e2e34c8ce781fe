//! FAT and exFAT that hold a tree: made empty, and filled as by anybody else who writes to it.

use std::sync::Arc;

use block::layer::Unflushed;
use block::{BlockDevice, Error, Kind, Result};

use super::tree::{Index, Node, ROOT, Tree};
use super::{Made, content};
use crate::fat::{Fat, Format, Options, Type};
use crate::path::Printable;
use crate::progress::Progress;
use crate::writable::{Changes, Writable as _};
use crate::{FileSystem, FileType, Inode};

/// A size is one of these, bytes.
const GRAIN_BYTES: u64 = 1 << 20;
/// Bytes of an entry of a directory, and how many there are in a sector: those of one file lie in one.
const SLOT_BYTES: u64 = 32;
const SECTOR_SLOTS: u64 = 16;
/// Entries of the root directory of FAT12 and FAT16, without one for the label.
const FIXED_ROOT_SLOTS: u64 = 511;

/// Whether the root directory of FAT12 and FAT16, whose size is fixed, can hold the tree's.
pub(super) fn fits_fixed_root(tree: &Tree) -> bool {
    slots(tree.root(), false) <= FIXED_ROOT_SLOTS
}

/// The smallest whole number of MiB that holds the tree.
pub(super) fn size(format: &Format, tree: &Tree) -> Result<u64> {
    let mut bytes = tree.bytes().next_multiple_of(GRAIN_BYTES).max(GRAIN_BYTES);
    // Larger clusters of a larger one may need more: each round asks for what the round before lacked.
    for _ in 0..1000 {
        let missing = match format.room(bytes) {
            Some((cluster_bytes, clusters)) => {
                clusters_for(tree, format.file_system == Type::ExFat, cluster_bytes).saturating_sub(clusters)
                    * cluster_bytes
            }
            // Too small for its kind.
            None => GRAIN_BYTES,
        };
        if missing == 0 {
            return Ok(bytes);
        }
        bytes = (bytes + missing).next_multiple_of(GRAIN_BYTES);
    }
    Err(Error::new(Kind::Limit, format!("a tree of {} bytes", tree.bytes())))
}

/// Makes it.
pub(super) fn write(
    format: &Format,
    tree: &Tree,
    source: &dyn FileSystem,
    device: &Arc<dyn BlockDevice>,
    progress: &dyn Progress,
) -> Result<Made> {
    // A file system in the making need not survive a crash at each step.
    let unflushed: Arc<dyn BlockDevice> = Arc::new(Unflushed::new(Arc::clone(device)));
    format.make(&*unflushed)?;
    let fat = Fat::open_writable(unflushed, Options::default())?;
    let mut filling = Filling { fat, format, tree, source, progress, made: Made::default() };
    filling.made.bytes = device.size();
    filling.tree()?;
    filling.fat.close()?;
    device.flush()?;
    Ok(filling.made)
}

/// Entries that a name takes.
fn name_slots(name: &[u8], exfat: bool) -> u64 {
    let units = String::from_utf8_lossy(name).encode_utf16().count() as u64;
    if exfat { 2 + units.div_ceil(15) } else { 1 + units.div_ceil(13) }
}

/// Entries of a directory, with what is left empty at the ends of sectors.
fn slots(directory: &Node, exfat: bool) -> u64 {
    let mut used = if exfat { 3 } else { 2 };
    for (name, _) in &directory.children {
        let count = name_slots(name, exfat);
        let left = SECTOR_SLOTS - used % SECTOR_SLOTS;
        used += if count > left && left < SECTOR_SLOTS { left + count } else { count };
    }
    used
}

fn clusters_for(tree: &Tree, exfat: bool, cluster_bytes: u64) -> u64 {
    let mut clusters = 0;
    for node in tree.nodes().iter().filter(|node| node.file_type == FileType::Directory) {
        clusters += (slots(node, exfat) * SLOT_BYTES).div_ceil(cluster_bytes).max(1);
        // By name: a file with two names is there twice.
        clusters += node.children.iter().map(|(_, index)| tree.node(*index).size.div_ceil(cluster_bytes)).sum::<u64>();
    }
    clusters
}

struct Filling<'a> {
    fat: Fat,
    format: &'a Format,
    tree: &'a Tree,
    source: &'a dyn FileSystem,
    progress: &'a dyn Progress,
    made: Made,
}

impl Filling<'_> {
    fn tree(&mut self) -> Result<()> {
        let mut directories = vec![(ROOT, Vec::new(), self.fat.root())];
        let mut done = Vec::new();
        while let Some((index, path, inode)) = directories.pop() {
            let mut below = Vec::new();
            for (name, child) in &self.tree.node(index).children {
                let path = if path.is_empty() { name.to_vec() } else { [&path[..], b"/", name].concat() };
                match self.file(inode, name, *child) {
                    Ok(made) if self.tree.node(*child).file_type == FileType::Directory => {
                        below.push((*child, path, made));
                    }
                    Ok(made) => self.stamp(*child, made)?,
                    // What it cannot hold; all else ends it.
                    Err(error)
                        if matches!(
                            error.kind(),
                            Kind::Unsupported | Kind::Invalid | Kind::NameTooLong | Kind::Exists
                        ) =>
                    {
                        self.progress.failed(&path, &error);
                        self.made.left_out += self.files_at(*child);
                    }
                    Err(error) => return Err(error.context(Printable(&path).to_string())),
                }
            }
            directories.extend(below.into_iter().rev());
            done.push((index, inode));
        }
        // What is put into a directory may change its time.
        for (index, inode) in done.into_iter().skip(1) {
            self.stamp(index, inode)?;
        }
        Ok(())
    }

    /// How many files are lost with one.
    fn files_at(&self, index: Index) -> u64 {
        let (mut count, mut pending) = (0, vec![index]);
        while let Some(index) = pending.pop() {
            count += 1;
            pending.extend(self.tree.node(index).children.iter().map(|(_, index)| *index));
        }
        count
    }

    fn file(&self, directory: Inode, name: &[u8], index: Index) -> Result<Inode> {
        let node = self.tree.node(index);
        let what = match node.file_type {
            FileType::Directory => return self.fat.create(directory, name, FileType::Directory, self.format.time),
            FileType::Regular => {
                if node.size > self.fat.file_bytes_max() {
                    let most = self.fat.file_bytes_max();
                    let text = format!("{} bytes, and {} holds at most {most}: use exfat", node.size, self.fat.name());
                    return Err(Error::new(Kind::Limit, text));
                }
                let inode = self.fat.create(directory, name, FileType::Regular, self.format.time)?;
                let mut end = 0;
                content::each(self.source, node, self.progress, &mut |piece, offset| {
                    end = offset + piece.len() as u64;
                    self.fat.write(inode, piece, offset, self.format.time)
                })?;
                if end < node.size {
                    self.fat.truncate(inode, node.size, self.format.time)?;
                }
                return Ok(inode);
            }
            FileType::SymbolicLink => "a symbolic link",
            FileType::BlockDevice | FileType::CharacterDevice => "a device",
            FileType::Fifo => "a pipe",
            FileType::Socket => "a socket",
        };
        Err(Error::new(Kind::Unsupported, format!("{what}, which {} cannot hold: left out", self.fat.name())))
    }

    fn stamp(&self, index: Index, inode: Inode) -> Result<()> {
        let node = self.tree.node(index);
        let changes = Changes {
            accessed: Some(node.modified),
            modified: Some(node.modified),
            created: Some(node.modified),
            permissions: Some(node.permissions),
        };
        self.fat.change(inode, changes)
    }
}
