//! The tree that a new file system is to hold: read once, sorted, counted; its content stays where it is.

use std::collections::HashMap;

use block::{Error, Kind, Result};

use crate::path::Printable;
use crate::walk::{Next, Order, Step, walk};
use crate::{FileSystem, FileType, Inode, Time};

/// The most files of a tree.
pub const FILES_MAX: usize = 1 << 24;
/// The largest file, and the most content of all files together, bytes: 4 PiB. All positions fit 64 bits by far.
pub const BYTES_MAX: u64 = 1 << 52;

/// A file in a [`Tree`], by its place there.
pub type Index = usize;

/// The root.
pub const ROOT: Index = 0;

/// A tree.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Node>,
}

/// A file of it, with all its names.
#[derive(Debug, Clone)]
pub struct Node {
    /// Which file of the source.
    pub source: Inode,
    /// The directory of its first name; the root is its own.
    pub parent: Index,
    /// What kind of file.
    pub file_type: FileType,
    /// The lower twelve bits of the mode.
    pub permissions: u16,
    /// User and group.
    pub owner: (u32, u32),
    /// Bytes of content, of a regular file.
    pub size: u64,
    /// When its content last changed.
    pub modified: Time,
    /// Of a device file: its major and minor number.
    pub device: Option<(u32, u32)>,
    /// Names in this tree; of a directory also `.` and the `..` of those in it.
    pub links: u32,
    /// Of a symbolic link.
    pub target: Vec<u8>,
    /// Extended attributes with their full names, sorted.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// What is in a directory, sorted by the bytes of the names.
    pub children: Vec<(Box<[u8]>, Index)>,
}

/// What a tree is to be like, other than its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// No time is later than this one, as with SOURCE_DATE_EPOCH.
    pub time_max: Option<Time>,
    /// User and group of every file.
    pub owner: Option<(u32, u32)>,
}

impl Tree {
    /// Nothing but a root directory, of root, that everybody may enter.
    pub fn empty(time: Time) -> Self {
        let root = Node {
            source: Inode(0),
            parent: ROOT,
            file_type: FileType::Directory,
            permissions: 0o755,
            owner: (0, 0),
            size: 0,
            modified: time,
            device: None,
            links: 2,
            target: Vec::new(),
            xattrs: Vec::new(),
            children: Vec::new(),
        };
        Self { nodes: vec![root] }
    }

    /// Reads all below `start`, a directory of `fs`, but the content of its files.
    ///
    /// # Errors
    /// [`Kind::NotDirectory`]; the first failure: a tree that cannot be read as a whole is none. [`Kind::Limit`] beyond [`FILES_MAX`] and
    /// [`BYTES_MAX`].
    pub fn read(fs: &dyn FileSystem, start: Inode, options: Options) -> Result<Self> {
        if fs.stat(start)?.file_type != FileType::Directory {
            return Err(Error::new(Kind::NotDirectory, "what is to be in it"));
        }
        let mut reading =
            Reading { fs, options, nodes: Vec::new(), levels: Vec::new(), seen: HashMap::new(), bytes: 0 };
        let mut failure = None;
        walk(fs, start, Order::Name, &mut |step| {
            let outcome = match step {
                Step::Enter(found) => reading.file(found.name, found.inode, found.stat).map(|index| {
                    reading.levels.push(index);
                }),
                Step::File(found) => reading.file(found.name, found.inode, found.stat).map(drop),
                Step::Leave(_) => {
                    reading.levels.pop();
                    Ok(())
                }
                Step::Failed { path, error } => Err(error.context(Printable(path).to_string())),
            };
            match outcome {
                Ok(()) => Next::Continue,
                Err(error) => {
                    failure = Some(error);
                    Next::Stop
                }
            }
        });
        match failure {
            Some(error) => Err(error),
            None => Ok(Self { nodes: reading.nodes }),
        }
    }

    /// The files, the root first, each directory before what is in it.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The root directory.
    pub fn root(&self) -> &Node {
        self.node(ROOT)
    }

    /// A file.
    #[allow(clippy::indexing_slicing, reason = "an Index comes from this tree alone")]
    pub fn node(&self, index: Index) -> &Node {
        &self.nodes[index]
    }

    /// The path of a file by its first name, as the walk has it.
    pub fn path(&self, index: Index) -> Vec<u8> {
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut at = index;
        while at != ROOT {
            let parent = self.node(at).parent;
            let name = self.node(parent).children.iter().find(|(_, child)| *child == at);
            parts.push(name.map_or(b"?", |(name, _)| name));
            at = parent;
        }
        parts.reverse();
        parts.join(&b'/')
    }

    /// The same for people.
    pub fn shown(&self, index: Index) -> String {
        Printable(&self.path(index)).to_string()
    }

    /// The latest time in it.
    pub fn newest(&self) -> Time {
        self.nodes.iter().map(|node| node.modified).max().unwrap_or_default()
    }

    /// Bytes of all content.
    pub fn bytes(&self) -> u64 {
        self.nodes.iter().map(|node| node.size).sum()
    }

    /// A number that stands for `words` and for the tree: names, metadata and sizes, not content (FNV-1a, 128 bits). It has
    /// the form of a random UUID.
    pub fn fingerprint(&self, words: &[&str]) -> u128 {
        let mut hash = Fingerprint(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        words.iter().for_each(|word| hash.add(word.as_bytes()));
        for node in &self.nodes {
            hash.add(&node.file_type.mode_bits().to_le_bytes());
            hash.add(&node.permissions.to_le_bytes());
            hash.add(&node.owner.0.to_le_bytes());
            hash.add(&node.owner.1.to_le_bytes());
            hash.add(&node.size.to_le_bytes());
            hash.add(&node.modified.seconds.to_le_bytes());
            hash.add(&node.modified.nanoseconds.to_le_bytes());
            hash.add(&node.target);
            for (name, value) in &node.xattrs {
                hash.add(name);
                hash.add(value);
            }
            for (name, index) in &node.children {
                hash.add(name);
                hash.add(&index.to_le_bytes());
            }
        }
        uuid(hash.0)
    }
}

/// A number as a random UUID: version 4 (RFC 9562, section 5.4).
pub fn uuid(number: u128) -> u128 {
    (number & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62)
}

struct Fingerprint(u128);

impl Fingerprint {
    fn add(&mut self, bytes: &[u8]) {
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        // The length first, so that what follows cannot move a boundary.
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    }
}

struct Reading<'a> {
    fs: &'a dyn FileSystem,
    options: Options,
    nodes: Vec<Node>,
    levels: Vec<Index>,
    /// Files with several names, by number.
    seen: HashMap<u64, Index>,
    bytes: u64,
}

impl Reading<'_> {
    fn file(&mut self, name: &[u8], inode: Inode, stat: &crate::Stat) -> Result<Index> {
        let directory = stat.file_type == FileType::Directory;
        let parent = self.levels.last().copied();
        if let Some(index) = self.seen.get(&stat.number).copied().filter(|_| !directory && stat.links > 1) {
            self.enter(parent, name, index);
            if let Some(node) = self.nodes.get_mut(index) {
                node.links += 1;
            }
            return Ok(index);
        }
        let wrong = |why: String| Error::new(Kind::Limit, why);
        if self.nodes.len() >= FILES_MAX {
            return Err(wrong(format!("more than {FILES_MAX} files")));
        }
        let size = if stat.file_type == FileType::Regular { stat.size } else { 0 };
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > BYTES_MAX {
            return Err(wrong(format!("{} bytes of content", self.bytes)));
        }
        let mut xattrs = Vec::new();
        for name in self.fs.xattrs(inode)? {
            match self.fs.xattr(inode, &name) {
                Ok(value) => xattrs.push((name, value)),
                // Gone, or one that is listed and not shown.
                Err(error) if error.kind() == Kind::NoAttribute => {}
                Err(error) => return Err(error),
            }
        }
        xattrs.sort();
        let target = match stat.file_type {
            FileType::SymbolicLink => self.fs.read_link(inode)?,
            _ => Vec::new(),
        };
        let index = self.nodes.len();
        self.nodes.push(Node {
            source: inode,
            parent: parent.unwrap_or(ROOT),
            file_type: stat.file_type,
            permissions: stat.permissions & 0o7777,
            owner: self.options.owner.unwrap_or((stat.uid, stat.gid)),
            size,
            modified: self.options.time_max.map_or(stat.modified, |most| stat.modified.min(most)),
            device: stat.device,
            links: if directory { 2 } else { 1 },
            target,
            xattrs,
            children: Vec::new(),
        });
        self.enter(parent, name, index);
        if directory {
            if let Some(parent) = parent.and_then(|parent| self.nodes.get_mut(parent)) {
                parent.links += 1;
            }
        } else if stat.links > 1 {
            self.seen.insert(stat.number, index);
        }
        Ok(index)
    }

    fn enter(&mut self, parent: Option<Index>, name: &[u8], index: Index) {
        if let Some(parent) = parent.and_then(|parent| self.nodes.get_mut(parent)) {
            parent.children.push((name.into(), index));
        }
    }
}
