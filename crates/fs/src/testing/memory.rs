//! A file system of memory, for tests: as regular or as hostile as a test wants it.
//!
//! Nothing is checked when it is built: a directory may be its own child, hold a name twice, or names that no file
//! system may give out. Inode numbers count from 1 in the order of making.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;

use block::{Error, Kind, Result, Source};

use crate::{Cursor, Entry, FileExtent, FileSystem, FileType, Inode, Space, Stat, Time};

/// The file system.
#[derive(Debug)]
pub struct Memory {
    nodes: Vec<Node>,
}

/// A file of it, whose parts a test may change at will.
#[derive(Debug, Clone)]
pub struct Node {
    /// What `stat` answers.
    pub stat: Stat,
    /// Runs of content; what no run covers is a hole. In order, without overlap.
    pub runs: Vec<Run>,
    /// Entries, of a directory.
    pub entries: Vec<(Vec<u8>, Inode)>,
    /// Target, of a symbolic link.
    pub target: Vec<u8>,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Reading content from this byte on fails.
    pub broken_from: Option<u64>,
}

/// A run of content.
#[derive(Debug, Clone)]
pub struct Run {
    /// Where it starts, bytes.
    pub start: u64,
    /// What it is.
    pub stored: Stored,
}

/// Where the bytes of a [`Run`] are.
#[derive(Debug, Clone)]
pub enum Stored {
    /// Here: given out as `Data`.
    Bytes(Vec<u8>),
    /// Allocated zeroes, this many.
    Zero(u64),
    /// In a file: given out as `File`.
    File {
        /// The file.
        file: Arc<File>,
        /// First byte in it.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

impl Run {
    fn len(&self) -> u64 {
        match &self.stored {
            Stored::Bytes(bytes) => bytes.len() as u64,
            Stored::Zero(len) | Stored::File { len, .. } => *len,
        }
    }

    fn end(&self) -> u64 {
        self.start + self.len()
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty root directory.
    pub fn new() -> Self {
        let mut memory = Self { nodes: Vec::new() };
        memory.node(FileType::Directory, 0o755);
        memory
    }

    fn node(&mut self, file_type: FileType, permissions: u16) -> Inode {
        let number = self.nodes.len() as u64 + 1;
        let time = Time { seconds: 1_000_000_000 + number as i64, nanoseconds: 123_456_789 };
        let stat = Stat {
            number,
            file_type,
            permissions,
            links: if file_type == FileType::Directory { 2 } else { 0 },
            uid: 0,
            gid: 0,
            size: 0,
            blocks: 0,
            device: None,
            accessed: time,
            modified: time,
            changed: time,
            created: None,
        };
        self.nodes.push(Node {
            stat,
            runs: Vec::new(),
            entries: Vec::new(),
            target: Vec::new(),
            xattrs: Vec::new(),
            broken_from: None,
        });
        Inode(number)
    }

    fn get(&self, inode: Inode) -> Result<&Node> {
        let index = usize::try_from(inode.0).ok().and_then(|n| n.checked_sub(1));
        index
            .and_then(|index| self.nodes.get(index))
            .ok_or_else(|| Error::new(Kind::NotFound, format!("inode {} of {}", inode.0, self.nodes.len())))
    }

    /// A file, to be changed.
    ///
    /// # Panics
    /// When there is none of that number.
    pub fn node_mut(&mut self, inode: Inode) -> &mut Node {
        &mut self.nodes[inode.0 as usize - 1]
    }

    /// One more name of a file.
    pub fn link(&mut self, directory: Inode, name: &[u8], inode: Inode) {
        self.node_mut(directory).entries.push((name.to_vec(), inode));
        self.node_mut(inode).stat.links += 1;
    }

    /// A new directory.
    pub fn directory(&mut self, parent: Inode, name: &[u8]) -> Inode {
        let inode = self.node(FileType::Directory, 0o755);
        self.node_mut(parent).entries.push((name.to_vec(), inode));
        self.node_mut(parent).stat.links += 1;
        inode
    }

    /// A new regular file of these bytes.
    pub fn file(&mut self, parent: Inode, name: &[u8], bytes: &[u8]) -> Inode {
        let runs = vec![Run { start: 0, stored: Stored::Bytes(bytes.to_vec()) }];
        self.sparse(parent, name, bytes.len() as u64, if bytes.is_empty() { Vec::new() } else { runs })
    }

    /// A new regular file of `size` bytes, of these runs and holes between them.
    pub fn sparse(&mut self, parent: Inode, name: &[u8], size: u64, runs: Vec<Run>) -> Inode {
        let inode = self.node(FileType::Regular, 0o644);
        let node = self.node_mut(inode);
        node.stat.size = size;
        node.stat.blocks = runs.iter().map(Run::len).sum::<u64>().div_ceil(512);
        node.runs = runs;
        self.link(parent, name, inode);
        inode
    }

    /// A new symbolic link.
    pub fn symlink(&mut self, parent: Inode, name: &[u8], target: &[u8]) -> Inode {
        let inode = self.node(FileType::SymbolicLink, 0o777);
        let node = self.node_mut(inode);
        node.stat.size = target.len() as u64;
        node.target = target.to_vec();
        self.link(parent, name, inode);
        inode
    }

    /// A new device, pipe or socket.
    pub fn special(&mut self, parent: Inode, name: &[u8], file_type: FileType, device: Option<(u32, u32)>) -> Inode {
        let inode = self.node(file_type, 0o640);
        self.node_mut(inode).stat.device = device;
        self.link(parent, name, inode);
        inode
    }

    fn regular(&self, inode: Inode) -> Result<&Node> {
        let node = self.get(inode)?;
        match node.stat.file_type {
            FileType::Regular => Ok(node),
            FileType::Directory => Err(Error::new(Kind::IsDirectory, format!("inode {}", inode.0))),
            _ => Err(Error::new(Kind::Invalid, format!("inode {} is no regular file", inode.0))),
        }
    }

    fn entries(&self, directory: Inode) -> Result<&[(Vec<u8>, Inode)]> {
        let node = self.get(directory)?;
        match node.stat.file_type {
            FileType::Directory => Ok(&node.entries),
            _ => Err(Error::new(Kind::NotDirectory, format!("inode {}", directory.0))),
        }
    }
}

impl FileSystem for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn label(&self) -> String {
        String::new()
    }

    fn root(&self) -> Inode {
        Inode(1)
    }

    fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Option<Inode>> {
        Ok(self.entries(directory)?.iter().find(|(entry, _)| entry == name).map(|(_, inode)| *inode))
    }

    fn stat(&self, inode: Inode) -> Result<Stat> {
        Ok(self.get(inode)?.stat.clone())
    }

    fn read_dir(
        &self,
        directory: Inode,
        from: Cursor,
        visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let entries = self.entries(directory)?.iter().enumerate();
        for (index, (name, inode)) in entries.skip(usize::try_from(from.0).unwrap_or(usize::MAX)) {
            let file_type = self.get(*inode).ok().map(|node| node.stat.file_type);
            let entry = Entry { name, inode: *inode, file_type, next: Cursor(index as u64 + 1) };
            if visit(entry).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn read(&self, inode: Inode, buf: &mut [u8], offset: u64) -> Result<usize> {
        let node = self.regular(inode)?;
        let len = (buf.len() as u64).min(node.stat.size.saturating_sub(offset));
        let end = offset + len;
        if node.broken_from.is_some_and(|broken| end > broken && len > 0) {
            return Err(Error::new(Kind::Io, format!("{len} bytes at {offset} of inode {}", inode.0)));
        }
        let buf = &mut buf[..len as usize];
        buf.fill(0);
        for run in node.runs.iter().filter(|run| run.start < end && run.end() > offset) {
            let (first, last) = (run.start.max(offset), run.end().min(end));
            let target = &mut buf[(first - offset) as usize..(last - offset) as usize];
            match &run.stored {
                Stored::Zero(_) => {}
                Stored::Bytes(bytes) => {
                    target.copy_from_slice(&bytes[(first - run.start) as usize..(last - run.start) as usize]);
                }
                Stored::File { file, offset, .. } => {
                    use std::os::unix::fs::FileExt;
                    let at = offset + (first - run.start);
                    file.read_exact_at(target, at).map_err(|error| Error::io("the file of a run", error))?;
                }
            }
        }
        Ok(buf.len())
    }

    fn extent_at(&self, inode: Inode, offset: u64) -> Result<Option<FileExtent<'_>>> {
        let node = self.regular(inode)?;
        if offset >= node.stat.size {
            return Ok(None);
        }
        if let Some(run) = node.runs.iter().find(|run| run.start <= offset && run.end() > offset) {
            let source = match &run.stored {
                Stored::Bytes(_) => Source::Data,
                Stored::Zero(_) => Source::Zero,
                Stored::File { file, offset: start, .. } => {
                    Source::File { fd: file.as_fd(), offset: start + (offset - run.start) }
                }
            };
            return Ok(Some(FileExtent { len: run.end().min(node.stat.size) - offset, source }));
        }
        let next = node.runs.iter().map(|run| run.start).filter(|start| *start > offset).min();
        let end = next.unwrap_or(node.stat.size).min(node.stat.size);
        Ok(Some(FileExtent { len: end - offset, source: Source::Hole }))
    }

    fn read_link(&self, inode: Inode) -> Result<Vec<u8>> {
        let node = self.get(inode)?;
        if node.stat.file_type != FileType::SymbolicLink {
            return Err(Error::new(Kind::Invalid, format!("inode {} is no symbolic link", inode.0)));
        }
        Ok(node.target.clone())
    }

    fn xattrs(&self, inode: Inode) -> Result<Vec<Vec<u8>>> {
        Ok(self.get(inode)?.xattrs.iter().map(|(name, _)| name.clone()).collect())
    }

    fn xattr(&self, inode: Inode, name: &[u8]) -> Result<Vec<u8>> {
        let found = self.get(inode)?.xattrs.iter().find(|(one, _)| one == name);
        found
            .map(|(_, value)| value.clone())
            .ok_or_else(|| Error::new(Kind::NoAttribute, String::from_utf8_lossy(name).into_owned()))
    }

    fn space(&self) -> Result<Space> {
        Ok(Space {
            block_bytes: 512,
            blocks: 0,
            blocks_free: 0,
            blocks_available: 0,
            files: self.nodes.len() as u64,
            files_free: 0,
        })
    }
}
