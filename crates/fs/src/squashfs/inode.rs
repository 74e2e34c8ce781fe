//! Inodes.
//!
//! ```text
//! type, 2 │ mode, 2 │ uid, 2 │ gid, 2 │ mtime, 4 │ number, 4      uid and gid: places in the id table
//!
//!  1  directory    start, 4 │ links, 4 │ size, 2 │ offset, 2 │ parent, 4
//!  2  file         start, 4 │ fragment, 4 │ offset, 4 │ size, 4 │ block sizes, 4 each
//!  3  link         links, 4 │ target bytes, 4 │ target
//!  4, 5  block, character device   links, 4 │ device, 4
//!  6, 7  fifo, socket              links, 4
//!  8  directory    links, 4 │ size, 4 │ start, 4 │ parent, 4 │ index entries, 2 │ offset, 2 │ xattr, 4 │ index
//!  9  file         start, 8 │ size, 8 │ sparse, 8 │ links, 4 │ fragment, 4 │ offset, 4 │ xattr, 4 │ block sizes
//! 10  link         as 3, and behind the target: xattr, 4
//! 11, 12, 13, 14   as 4, 5, 6, 7, and xattr, 4
//! ```

use block::Result;

use super::SquashFs;
use super::corrupt::Corrupt;
use super::metadata::{Place, Reader};
use crate::{FileType, Inode, LINK_BYTES_MAX, Stat, Time};
use block::bytes::{le_u16, le_u32, le_u64};

/// No fragment, no attributes.
const NONE: u32 = u32::MAX;
/// Bytes of a directory's size that stand for `.` and `..`, which are not listed.
const DOTS_BYTES: u64 = 3;

/// An inode.
#[derive(Debug)]
pub(super) struct Node {
    pub stat: Stat,
    /// Number of its attributes in their table.
    pub xattr: Option<u32>,
    pub content: Content,
}

/// What is special to a type.
#[derive(Debug)]
pub(super) enum Content {
    Regular {
        /// Where the blocks begin on the device, bytes.
        start: u64,
        /// Number of the fragment that holds the tail, and the tail's offset in it.
        fragment: Option<(u32, u32)>,
        /// Where the list of block sizes begins.
        list: Place,
    },
    Directory(Listing),
    Link(Vec<u8>),
    Special,
}

/// Where a directory's entries are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listing {
    pub place: Place,
    /// Bytes, without those of dots.
    pub len: u64,
    /// Where its index begins, and how many entries that has.
    pub index: (Place, u16),
}

/// A directory entry's type, which is that of the short inode.
pub(super) fn file_type(number: u16) -> Option<FileType> {
    Some(match number {
        1 => FileType::Directory,
        2 => FileType::Regular,
        3 => FileType::SymbolicLink,
        4 => FileType::BlockDevice,
        5 => FileType::CharacterDevice,
        6 => FileType::Fifo,
        7 => FileType::Socket,
        _ => return None,
    })
}

/// What a long or a short inode says.
#[derive(Default)]
struct Fields {
    links: u32,
    size: u64,
    sparse: u64,
    device: u32,
    xattr: Option<u32>,
}

impl SquashFs {
    /// Reads an inode.
    ///
    /// # Errors
    /// `Corrupt`; the failure of the device.
    pub(super) fn node(&self, inode: Inode) -> Result<Node> {
        let broken = |corrupt: Corrupt| corrupt.at(format!("inode {:#x}", inode.0));
        let superblock = &self.medium.superblock;
        let place = Place::new(superblock.inode_table, inode.0)
            .filter(|place| place.block < superblock.directory_table)
            .ok_or_else(|| broken(Corrupt::Inode))?;
        let mut reader = self.medium.reader(place);
        let head: [u8; 16] = reader.array()?;
        let half = |at| le_u16(&head, at).unwrap_or_default();
        let word = |at| le_u32(&head, at).unwrap_or_default();
        let number = word(12);
        let (long, short) = if half(0) > 7 { (true, half(0).saturating_sub(7)) } else { (false, half(0)) };
        let file_type = file_type(short).filter(|_| number != 0).ok_or_else(|| broken(Corrupt::Inode))?;
        let id = |at| self.ids.get(usize::from(half(at))).copied().ok_or_else(|| broken(Corrupt::Id));
        let (fields, content) = match file_type {
            FileType::Directory => self.directory(&mut reader, long)?,
            FileType::Regular => regular(&mut reader, long)?,
            FileType::SymbolicLink => link(&mut reader, long)?.ok_or_else(|| broken(Corrupt::LinkTarget))?,
            _ => special(&mut reader, file_type, long)?,
        };
        let time = Time { seconds: i64::from(word(8)), nanoseconds: 0 };
        let device = matches!(file_type, FileType::BlockDevice | FileType::CharacterDevice);
        // As the kernel has it: what would be there were it not compressed, and nothing but files take room.
        let room = if file_type == FileType::Regular { fields.size.saturating_sub(fields.sparse) } else { 0 };
        Ok(Node {
            stat: Stat {
                number: u64::from(number),
                file_type,
                permissions: half(2) & 0o7777,
                links: fields.links.max(1),
                uid: id(4)?,
                gid: id(6)?,
                size: fields.size,
                blocks: room.div_ceil(512),
                device: device.then(|| device_numbers(fields.device)),
                accessed: time,
                modified: time,
                changed: time,
                created: None,
            },
            xattr: fields.xattr.filter(|number| *number != NONE),
            content,
        })
    }

    fn directory(&self, reader: &mut Reader<'_>, long: bool) -> Result<(Fields, Content)> {
        let (links, size, start, offset, xattr, indexes);
        if long {
            let bytes: [u8; 24] = reader.array()?;
            let word = |at| le_u32(&bytes, at).unwrap_or_default();
            (links, size, start, xattr) = (word(0), word(4), word(8), Some(word(20)));
            (indexes, offset) = (le_u16(&bytes, 16).unwrap_or_default(), le_u16(&bytes, 18).unwrap_or_default());
        } else {
            let bytes: [u8; 16] = reader.array()?;
            let word = |at| le_u32(&bytes, at).unwrap_or_default();
            let half = |at| le_u16(&bytes, at).unwrap_or_default();
            (start, links, size, offset) = (word(0), word(4), u32::from(half(8)), half(10));
            (xattr, indexes) = (None, 0);
        }
        let reference = (u64::from(start) << 16) | u64::from(offset);
        let place = Place::new(self.medium.superblock.directory_table, reference)
            .ok_or_else(|| Corrupt::MetadataOffset.at(format!("directory at {start}, offset {offset}")))?;
        let size = u64::from(size);
        let listing = Listing { place, len: size.saturating_sub(DOTS_BYTES), index: (reader.place(), indexes) };
        Ok((Fields { links, size, xattr, ..Fields::default() }, Content::Directory(listing)))
    }
}

fn regular(reader: &mut Reader<'_>, long: bool) -> Result<(Fields, Content)> {
    let (fields, start, fragment, offset);
    if long {
        let bytes: [u8; 40] = reader.array()?;
        let word = |at| le_u32(&bytes, at).unwrap_or_default();
        let double = |at| le_u64(&bytes, at).unwrap_or_default();
        (start, fragment, offset) = (double(0), word(28), word(32));
        let (size, sparse) = (double(8), double(16));
        fields = Fields { links: word(24), size, sparse, xattr: Some(word(36)), ..Fields::default() };
    } else {
        let bytes: [u8; 16] = reader.array()?;
        let word = |at| le_u32(&bytes, at).unwrap_or_default();
        (start, fragment, offset) = (u64::from(word(0)), word(4), word(8));
        fields = Fields { links: 1, size: u64::from(word(12)), ..Fields::default() };
    }
    let fragment = (fragment != NONE).then_some((fragment, offset));
    Ok((fields, Content::Regular { start, fragment, list: reader.place() }))
}

/// `None` where the target is impossible.
fn link(reader: &mut Reader<'_>, long: bool) -> Result<Option<(Fields, Content)>> {
    let (links, len) = (reader.le_u32()?, reader.le_u32()?);
    let Some(len) = usize::try_from(len).ok().filter(|len| (1..=LINK_BYTES_MAX).contains(len)) else {
        return Ok(None);
    };
    let mut target = vec![0; len];
    reader.read(&mut target)?;
    let xattr = if long { Some(reader.le_u32()?) } else { None };
    let fields = Fields { links, size: len as u64, xattr, ..Fields::default() };
    Ok((!target.contains(&0)).then_some((fields, Content::Link(target))))
}

fn special(reader: &mut Reader<'_>, file_type: FileType, long: bool) -> Result<(Fields, Content)> {
    let mut fields = Fields { links: reader.le_u32()?, ..Fields::default() };
    if matches!(file_type, FileType::BlockDevice | FileType::CharacterDevice) {
        fields.device = reader.le_u32()?;
    }
    if long {
        fields.xattr = Some(reader.le_u32()?);
    }
    Ok((fields, Content::Special))
}

/// Major and minor number as the kernel packs them: minor bits 0 to 7, major 8 to 19, minor 20 to 31.
fn device_numbers(device: u32) -> (u32, u32) {
    ((device >> 8) & 0xFFF, (device & 0xFF) | ((device >> 12) & 0xFFF00))
}
