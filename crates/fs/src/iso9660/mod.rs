//! ISO 9660 (ECMA-119): the file system of CDs, DVDs, and of most images that are downloaded.
//!
//! ```text
//! sector 0          16                 …
//! │ system area, 16 │ volume descriptors │ path tables │ directories and files, in runs of blocks │
//!                     └─ primary: root ──► directory: records of 34 to 255 bytes
//!                     └─ Joliet: root                  └─► start, size, date, name, system use entries
//! ```
//! One image can hold several trees over the same files. They are taken in this order of richness, unless
//! [`Options::tree`] says otherwise:
//! - *Rock Ridge*: the primary tree with POSIX names, modes, owners, times, links and devices, deep directories in
//!   their real place, compressed files (zisofs), and extended attributes and access control lists (AAIP, libisofs);
//! - *Joliet*: names of up to 64 characters of Unicode;
//! - *enhanced* (ISO 9660:1999): names of up to 207 bytes;
//! - *plain*: names as the kernel shows them, in lower case and without version.
//!
//! Hidden files are shown, associated ones (resource forks) are not; interleaved and sparse files are refused when they
//! are read: all as, or clearer than, the kernel does. Of an image of several sessions the first is read, which the
//! writers of images keep pointing to the newest tree; [`Options::session_sector`] names another.
//!
//! An [`Inode`] is the position of a file's directory record on the device: nothing is kept of what was given out.
//! What is kept to be fast is bounded: indexes of large directories ([`INDEX_BYTES_MAX`]), the runs of 64 files, and 8
//! decompressed blocks.

mod aaip;
mod boot;
mod content;
mod corrupt;
mod date;
mod directory;
mod file_system;
mod name;
mod record;
mod rock_ridge;
mod susp;
mod volume;
mod zisofs;

use std::sync::Arc;

use block::{Error, Kind, ReadAt, Result};

pub use boot::BootEntry;
pub use corrupt::Corrupt;
pub use directory::{INDEX_BYTES_MAX, INDEXED_BYTES_MAX, INDEXES_MAX};
pub use volume::{DESCRIPTORS_MAX, Volume};

use crate::{FileType, Inode, Time};
use content::{Content, Contents, Runs};
use directory::{Directory, Indexes};
use record::{RECORD_BYTES_MAX, Record};
use rock_ridge::Attributes;

/// How many sections a file may have: 16 TiB in the sections of nearly 4 GiB that all writers use.
pub const SECTIONS_MAX: usize = 4096;

/// One of the trees of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Tree {
    /// The richest that there is.
    #[default]
    Best,
    /// Rock Ridge: the primary tree, with what POSIX knows.
    RockRidge,
    /// Joliet: Unicode.
    Joliet,
    /// Enhanced: long names.
    Enhanced,
    /// The primary tree as it is.
    Plain,
}

/// How an image is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Which tree is shown.
    pub tree: Tree,
    /// The sector (2048 bytes) where the session begins; its descriptors stand 16 sectors further.
    pub session_sector: u64,
}

/// An ISO 9660 file system.
#[derive(Debug)]
pub struct Iso9660 {
    medium: Medium,
    volume: Volume,
    root: Inode,
    indexes: Indexes,
    contents: Contents,
    blocks: zisofs::Blocks,
}

/// The device, and how what is on it is to be understood.
#[derive(Debug)]
struct Medium {
    device: Arc<dyn ReadAt>,
    block_bytes: u32,
    tree: Tree,
    /// What to skip in system use areas, bytes.
    skip: usize,
}

/// A directory record, and what Rock Ridge adds to it.
#[derive(Debug)]
struct Node {
    /// Position of the record on the device, bytes.
    position: u64,
    /// The record's length, bytes.
    record_len: usize,
    directory: bool,
    continued: bool,
    interleaved: bool,
    start: u64,
    size: u32,
    time: Time,
    attributes: Attributes,
}

/// For fuzzing: reads all that is in `data`, as each kind of tree that it may hold.
pub fn fuzz(data: &[u8]) {
    let device: Arc<dyn ReadAt> = Arc::new(block::bytes::Bytes(data.to_vec()));
    for tree in [Tree::Best, Tree::Joliet, Tree::Enhanced, Tree::Plain] {
        if let Ok(fs) = Iso9660::open(Arc::clone(&device), Options { tree, session_sector: 0 }) {
            let _ = fs.boot_entries();
            crate::testing::explore::explore(&fs);
        }
    }
}

impl Iso9660 {
    /// Whether a device holds one.
    ///
    /// # Errors
    /// The failure of the device.
    pub fn is_on(device: &dyn ReadAt) -> Result<bool> {
        volume::is_there(device, 0)
    }

    /// Opens the file system on a device.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] with a [`Corrupt`] as its source; [`Kind::NotFound`] when the image has no such tree;
    /// [`Kind::Unsupported`] for a High Sierra image; the failure of the device.
    pub fn open(device: Arc<dyn ReadAt>, options: Options) -> Result<Self> {
        let (volume, roots) = volume::read(&*device, options.session_sector)?;
        let root = roots.iter().find(|root| options.tree == Tree::Best || options.tree == root.tree);
        let root = *root.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("tree {:?} of an ISO 9660 image with {:?}", options.tree, volume.trees))
        })?;
        let medium = Medium { device, block_bytes: volume.block_bytes, tree: root.tree, skip: root.skip };
        let iso = Self {
            medium,
            volume,
            root: Inode(root.record),
            indexes: Indexes::default(),
            contents: Contents::default(),
            blocks: zisofs::Blocks::default(),
        };
        iso.directory(iso.root)?;
        Ok(iso)
    }

    /// What the descriptors say of the volume.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// The tree that is shown; never [`Tree::Best`].
    pub fn tree(&self) -> Tree {
        self.medium.tree
    }

    /// What can be booted from the image (El Torito).
    ///
    /// # Errors
    /// [`Corrupt::BootCatalog`]; the failure of the device.
    pub fn boot_entries(&self) -> Result<Vec<BootEntry>> {
        self.volume.boot_catalog.map_or_else(|| Ok(Vec::new()), |start| boot::entries(&*self.medium.device, start))
    }

    /// The record of an inode and what Rock Ridge adds to it; of a relocated directory, those of its real place.
    fn node(&self, inode: Inode) -> Result<Node> {
        let mut bytes = [0; RECORD_BYTES_MAX];
        let medium = &self.medium;
        let device = &*medium.device;
        let record = medium.record(inode.0, &mut bytes)?;
        let mut attributes = Attributes::default();
        let mut dot_bytes = [0; RECORD_BYTES_MAX];
        if medium.tree == Tree::RockRidge {
            let mut recent = susp::Recent::default();
            medium.walk(&record, susp::STAT_BUDGET, &mut recent, &mut attributes)?;
            if let Some(block) = attributes.child_link.filter(|_| !record.is_directory()) {
                let (position, dot) = medium.linked_child(block, &mut dot_bytes)?;
                let mut attributes = Attributes::default();
                medium.walk(&dot, susp::STAT_BUDGET, &mut recent, &mut attributes)?;
                return Ok(Node::new(position, &dot, attributes));
            }
            if record.is_directory() && attributes.mode.is_none() {
                // The root has a record without system use entries, and others may have: then its first record has them.
                let dot = medium.record(record.start, &mut dot_bytes)?;
                if dot.is_dot() {
                    let skip = if inode == self.root { 0 } else { medium.skip };
                    let area = dot.system_use.get(skip..).unwrap_or(&[]);
                    susp::walk(device, medium.block_bytes, area, susp::STAT_BUDGET, &mut recent, &mut attributes)?;
                }
            }
        }
        Ok(Node::new(inode.0, &record, attributes))
    }

    /// Where a directory lies.
    fn directory(&self, inode: Inode) -> Result<Directory> {
        let mut bytes = [0; RECORD_BYTES_MAX];
        let medium = &self.medium;
        let mut record = medium.record(inode.0, &mut bytes)?;
        let mut dot_bytes = [0; RECORD_BYTES_MAX];
        if !record.is_directory() {
            let mut attributes = Attributes::default();
            if medium.tree == Tree::RockRidge {
                medium.walk(&record, susp::STAT_BUDGET, &mut susp::Recent::default(), &mut attributes)?;
            }
            let none = || Error::new(Kind::NotDirectory, format!("file at {}", inode.0));
            let block = attributes.child_link.ok_or_else(none)?;
            record = medium.linked_child(block, &mut dot_bytes)?.1;
        }
        let directory = Directory { start: record.start, size: u64::from(record.size) };
        match directory.start.checked_add(directory.size) {
            Some(end) if end <= medium.device.size() => Ok(directory),
            _ => Err(Corrupt::DirectoryBeyondDevice
                .at(format!("directory of {} bytes at {}", directory.size, directory.start))),
        }
    }

    /// The bytes of a file: those of its record, and of the records of further sections behind it.
    fn runs(&self, node: &Node) -> Result<Runs> {
        let mut runs = Runs::default();
        runs.push(node.start, u64::from(node.size));
        let mut continued = node.continued;
        let mut position = node.position.saturating_add(node.record_len as u64);
        let mut sections = 1_usize;
        while continued {
            let corrupt = || Corrupt::Sections.at(format!("section {sections} of the file at {}", node.position));
            if sections == SECTIONS_MAX {
                return Err(corrupt());
            }
            let mut bytes = [0; RECORD_BYTES_MAX];
            if self.medium.byte(position)? == 0 {
                position = self.medium.next_block(position);
            }
            let record = self.medium.record(position, &mut bytes).map_err(|error| corrupt().with_source(error))?;
            if record.is_directory() || record.is_dot() || record.is_dot_dot() {
                return Err(corrupt());
            }
            runs.push(record.start, u64::from(record.size));
            continued = record.is_continued();
            position = position.saturating_add(record.len as u64);
            sections = sections.saturating_add(1);
        }
        Ok(runs)
    }

    /// What is needed to read a regular file.
    fn content(&self, inode: Inode) -> Result<Arc<Content>> {
        self.contents.get(inode.0, || {
            let node = self.node(inode)?;
            let of = || format!("file at {}", inode.0);
            match node.file_type()? {
                FileType::Regular => {}
                FileType::Directory => return Err(Error::new(Kind::IsDirectory, of())),
                _ => return Err(Error::new(Kind::Invalid, of())),
            }
            if node.interleaved || node.attributes.sparse {
                let what = if node.interleaved { "interleaved" } else { "sparse (Rock Ridge SF)" };
                return Err(Error::new(Kind::Unsupported, format!("content of the {what} {}", of())));
            }
            let runs = self.runs(&node)?;
            Ok(Content { position: inode.0, runs, compression: node.attributes.compression })
        })
    }

    fn attribute_list(&self, inode: Inode) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut list = aaip::AttributeList::default();
        if self.medium.tree != Tree::RockRidge {
            return Ok(Vec::new());
        }
        let mut bytes = [0; RECORD_BYTES_MAX];
        let medium = &self.medium;
        let mut position = self.node(inode)?.position;
        let mut record = medium.record(position, &mut bytes)?;
        let root = inode == self.root;
        if root {
            position = record.start;
            record = medium.record(position, &mut bytes)?;
        }
        let skip = if root { 0 } else { medium.skip };
        let area = record.system_use.get(skip..).unwrap_or(&[]);
        let mut recent = susp::Recent::default();
        susp::walk(&*medium.device, medium.block_bytes, area, susp::ATTRIBUTES_BUDGET, &mut recent, &mut list)?;
        list.into_xattrs().map_err(|corrupt| corrupt.at(format!("attribute list of the file at {position}")))
    }
}

impl Medium {
    /// The record at `position`, in `bytes`.
    fn record<'a>(&self, position: u64, bytes: &'a mut [u8; RECORD_BYTES_MAX]) -> Result<Record<'a>> {
        let broken = || Corrupt::Record.at(format!("directory record at {position}"));
        let left = self.device.size().checked_sub(position).ok_or_else(broken)?;
        let len = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let bytes = bytes.get_mut(..len).unwrap_or_default();
        self.device.read_at(bytes, position)?;
        Record::parse(bytes, self.block_bytes).ok_or_else(broken)
    }

    fn byte(&self, position: u64) -> Result<u8> {
        let mut byte = [0];
        if position < self.device.size() {
            self.device.read_at(&mut byte, position)?;
        }
        Ok(byte[0])
    }

    /// The directory that a child link names: the position of its first record, and that record.
    fn linked_child<'a>(&self, block: u32, bytes: &'a mut [u8; RECORD_BYTES_MAX]) -> Result<(u64, Record<'a>)> {
        let position = u64::from(block).saturating_mul(u64::from(self.block_bytes));
        let wrong = || Corrupt::ChildLink.at(format!("child link to {position}"));
        let dot = self.record(position, bytes).map_err(|error| wrong().with_source(error))?;
        if dot.is_directory() && dot.is_dot() { Ok((position, dot)) } else { Err(wrong()) }
    }

    /// Where the next block begins after `at`.
    fn next_block(&self, at: u64) -> u64 {
        let block = u64::from(self.block_bytes);
        at.checked_next_multiple_of(block).filter(|next| *next != at).unwrap_or(at.saturating_add(block))
    }

    /// Shows `reader` the system use entries of a record.
    fn walk(
        &self,
        record: &Record<'_>,
        budget: susp::Budget,
        recent: &mut susp::Recent,
        reader: &mut dyn susp::Reader,
    ) -> Result<()> {
        let area = record.system_use.get(self.skip..).unwrap_or(&[]);
        susp::walk(&*self.device, self.block_bytes, area, budget, recent, reader)
    }
}
