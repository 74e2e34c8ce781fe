//! The trait of a file system, for ISO 9660.

use std::ops::ControlFlow;

use block::{Error, Kind, Result};

use super::record::Record;
use super::rock_ridge::Attributes;
use super::{Corrupt, Iso9660, Node, directory, zisofs};
use crate::{Cursor, Entry, FileExtent, FileSystem, FileType, Inode, LINK_BYTES_MAX, Space, Stat};

/// Permissions where nothing says them: the kernel's.
const PERMISSIONS: u16 = 0o555;
/// Numbers of files without a serial number come after all of those.
const SERIALS_END: u64 = 1 << 32;

impl Node {
    pub(super) fn new(position: u64, record: &Record<'_>, attributes: Attributes) -> Self {
        Self {
            position,
            record_len: record.len,
            directory: record.is_directory(),
            continued: record.is_continued(),
            interleaved: record.interleaved,
            start: record.start,
            size: record.size,
            time: record.time,
            attributes,
        }
    }

    pub(super) fn file_type(&self) -> Result<FileType> {
        let told = self.attributes.mode.and_then(FileType::from_mode);
        match told {
            _ if self.directory => Ok(FileType::Directory),
            Some(FileType::Directory) => Err(Corrupt::Mode.at(format!("file at {}", self.position))),
            told => Ok(told.unwrap_or(FileType::Regular)),
        }
    }

    /// Names of one file have its serial number in common where Rock Ridge gives one; as the kernel has it, they are
    /// different files where it does not, even with the same content. A directory is where it lies.
    fn number(&self) -> u64 {
        match self.attributes.serial {
            _ if self.directory => self.start.saturating_add(SERIALS_END),
            Some(serial) => u64::from(serial),
            None => self.position.saturating_add(SERIALS_END),
        }
    }

    fn target(&self) -> Result<&[u8]> {
        let target = &self.attributes.target;
        if target.is_empty() || target.len() > LINK_BYTES_MAX || target.contains(&0) {
            return Err(Corrupt::LinkTarget.at(format!("symbolic link at {}", self.position)));
        }
        Ok(target)
    }
}

impl FileSystem for Iso9660 {
    fn name(&self) -> &'static str {
        "iso9660"
    }

    fn label(&self) -> String {
        self.volume.label.clone()
    }

    fn root(&self) -> Inode {
        self.root
    }

    fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Option<Inode>> {
        let directory = self.directory(directory)?;
        Ok(directory::find(&self.medium, &self.indexes, directory, name)?.map(Inode))
    }

    fn stat(&self, inode: Inode) -> Result<Stat> {
        let node = self.node(inode)?;
        let file_type = node.file_type()?;
        let attributes = &node.attributes;
        let recorded = if node.continued { self.runs(&node)?.size() } else { u64::from(node.size) };
        let size = match file_type {
            FileType::Regular => attributes.compression.map_or(recorded, |compression| compression.size),
            FileType::Directory => recorded,
            FileType::SymbolicLink => node.target()?.len() as u64,
            _ => 0,
        };
        let mode = attributes.mode.map_or(PERMISSIONS, |mode| u16::try_from(mode & 0o7777).unwrap_or(PERMISSIONS));
        let device = matches!(file_type, FileType::BlockDevice | FileType::CharacterDevice);
        Ok(Stat {
            number: node.number(),
            file_type,
            permissions: mode,
            links: attributes.links.max(1),
            uid: attributes.uid,
            gid: attributes.gid,
            size,
            blocks: if file_type == FileType::Regular { recorded.div_ceil(512) } else { 0 },
            device: device.then(|| attributes.device()),
            accessed: attributes.accessed.unwrap_or(node.time),
            modified: attributes.modified.unwrap_or(node.time),
            changed: attributes.changed.or(attributes.created).unwrap_or(node.time),
            created: attributes.created,
        })
    }

    fn read_dir(
        &self,
        directory: Inode,
        from: Cursor,
        visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let directory = self.directory(directory)?;
        directory::list(&self.medium, directory, from.0, &mut |listed| {
            let (name, inode, file_type) = (listed.name, Inode(listed.position), listed.file_type);
            visit(Entry { name, inode, file_type, next: Cursor(listed.next) })
        })
    }

    fn read(&self, inode: Inode, buf: &mut [u8], offset: u64) -> Result<usize> {
        let content = self.content(inode)?;
        match &content.compression {
            Some(compression) => self.blocks.read(&self.medium, &content, compression, buf, offset),
            None => content.runs.read(&self.medium, buf, offset),
        }
    }

    fn extent_at(&self, inode: Inode, offset: u64) -> Result<Option<FileExtent<'_>>> {
        let content = self.content(inode)?;
        match &content.compression {
            Some(compression) => zisofs::extent_at(&self.medium, &content, compression, offset),
            None => content.runs.extent_at(&self.medium, offset),
        }
    }

    fn read_link(&self, inode: Inode) -> Result<Vec<u8>> {
        let node = self.node(inode)?;
        if node.file_type()? != FileType::SymbolicLink {
            return Err(Error::new(Kind::Invalid, format!("file at {}, which is no symbolic link", inode.0)));
        }
        node.target().map(<[u8]>::to_vec)
    }

    fn xattrs(&self, inode: Inode) -> Result<Vec<Vec<u8>>> {
        Ok(self.attribute_list(inode)?.into_iter().map(|(name, _)| name).collect())
    }

    fn xattr(&self, inode: Inode, name: &[u8]) -> Result<Vec<u8>> {
        let found = self.attribute_list(inode)?.into_iter().find(|(other, _)| other == name);
        let none = || Error::new(Kind::NoAttribute, format!("attribute \"{}\"", name.escape_ascii()));
        found.map(|(_, value)| value).ok_or_else(none)
    }

    fn space(&self) -> Result<Space> {
        Ok(Space {
            block_bytes: self.medium.block_bytes,
            blocks: self.volume.blocks,
            blocks_free: 0,
            blocks_available: 0,
            files: 0,
            files_free: 0,
        })
    }
}
