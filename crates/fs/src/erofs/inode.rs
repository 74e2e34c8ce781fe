//! Inodes.
//!
//! ```text
//! format, 2 │ attribute words, 2 │ mode, 2 │ links or high part, 2 │ …
//!
//!  compact, 32    8 size, 4 │ 12 mtime, 4 │ 16 data, 4 │ 20 number, 4 │ 24 uid, 2 │ 26 gid, 2 │ 28 0, 4
//!  extended, 64   8 size, 8 │ 16 data, 4 │ 20 number, 4 │ 24 uid, 4 │ 28 gid, 4 │ 32 mtime, 8 │ 40 nanoseconds, 4
//!                44 links, 4 │ 48 0, 16
//!
//! format   bit 0: extended; bits 1 to 3: layout; bit 4: compact, one link (so that the field of links is a high part)
//! data     start block; of compressed files: their blocks; of devices: their number; of chunks: their format, 2
//! ```
//! Inode number n begins 32 × n bytes behind the block where inodes begin. Its attributes follow it, then its layout's own
//! index or the tail of its content.

use block::Result;
use block::bytes::{le_u16, le_u32, le_u64};

use super::corrupt::Corrupt;
use super::medium::Medium;
use super::superblock::IN_METABOX;
use crate::{FileType, Stat, Time};

const EXTENDED: u16 = 1;
const ONE_LINK: u16 = 1 << 4;
const FORMAT_KNOWN: u16 = 0x1F;
const COMPACT_BYTES: u64 = 32;
const EXTENDED_BYTES: u64 = 64;
/// Bytes that inodes are counted in.
const SLOT_BYTES_LOG: u32 = 5;
/// A start block of 48 or 32 bits that is nowhere.
const NOWHERE_48: u64 = (1 << 48) - 1;
const NOWHERE_32: u64 = u32::MAX as u64;
const CHUNK_LOG: u16 = 0x1F;
const CHUNK_INDEXES: u16 = 0x20;
const CHUNK_LONG: u16 = 0x40;

/// An inode.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub stat: Stat,
    pub place: Place,
    pub layout: Layout,
}

/// Where an inode's parts are, bytes of the device or of the metabox.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub in_metabox: bool,
    /// Where attributes begin.
    pub xattrs: u64,
    /// Where what follows them begins: the index of the content, or its tail.
    pub body: u64,
}

/// How content is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// One run from this block on; `None`: all of it is a hole.
    Plain(Option<u64>),
    /// The same without its last block, which stands behind the inode.
    Inline(u64),
    /// Chunks of 2 to the `log` bytes, each somewhere.
    Chunks {
        log: u32,
        /// Whether entries have 8 bytes, with a device, and not 4.
        indexes: bool,
        /// Whether their addresses have 48 bits.
        long: bool,
    },
    /// Compressed, with a compact or a full index.
    Compressed { compact: bool },
}

impl Medium {
    /// Reads an inode.
    ///
    /// # Errors
    /// [`block::Kind::Unsupported`]; `Corrupt`; the failure of the device.
    pub fn node(&self, number: u64) -> Result<Node> {
        let broken = || Corrupt::Inode.at(format!("inode {number:#x}"));
        let in_metabox = number & IN_METABOX != 0;
        let base = if in_metabox { 0 } else { u64::from(self.superblock.meta) << self.superblock.block_log };
        let slot = number & !IN_METABOX;
        let at = slot.checked_mul(1 << SLOT_BYTES_LOG).and_then(|at| at.checked_add(base)).ok_or_else(broken)?;
        // One read for both kinds; the last compact inode of an image may be followed by nothing.
        let mut bytes = [0; EXTENDED_BYTES as usize];
        let there = self.meta_up_to(in_metabox, at, &mut bytes)?;
        let format = le_u16(&bytes, 0).unwrap_or_default();
        let extended = format & EXTENDED != 0;
        let len = if extended { EXTENDED_BYTES } else { COMPACT_BYTES };
        if (there as u64) < len {
            return Err(broken());
        }
        if format & !FORMAT_KNOWN != 0 {
            return Err(unsupported(number, format!("format {format:#x}")));
        }
        let half = |at| le_u16(&bytes, at).unwrap_or_default();
        let word = |at| le_u32(&bytes, at).unwrap_or_default();
        let double = |at| le_u64(&bytes, at).unwrap_or_default();
        let mode = u32::from(half(4));
        let file_type = FileType::from_mode(mode).ok_or_else(broken)?;
        let one_link = !extended && file_type != FileType::Directory && format & ONE_LINK != 0;
        let xattr_words = u64::from(half(2));
        // A header of 12 bytes, the first word of which counts.
        let xattr_bytes = if xattr_words == 0 { 0 } else { xattr_words.saturating_mul(4).saturating_add(8) };
        let xattrs = at.checked_add(len).ok_or_else(broken)?;
        let body = xattrs.checked_add(xattr_bytes).ok_or_else(broken)?;
        let (size, uid, gid, links, modified, data);
        if extended {
            let nanoseconds = word(40);
            (size, uid, gid, links, data) = (double(8), word(24), word(28), word(44), word(16));
            modified = Time { seconds: double(32).cast_signed(), nanoseconds };
            if nanoseconds >= 1_000_000_000 {
                return Err(broken());
            }
        } else {
            (size, uid, gid) = (u64::from(word(8)), u32::from(half(24)), u32::from(half(26)));
            links = if one_link { 1 } else { u32::from(half(6)) };
            data = word(16);
            let seconds = self.superblock.epoch.saturating_add(i64::from(word(12)));
            modified = Time { seconds, nanoseconds: self.superblock.nanoseconds };
        }
        if size > i64::MAX.cast_unsigned() {
            return Err(Corrupt::FileSize.at(format!("inode {number:#x} of {size} bytes")));
        }
        // Compact inodes that count their links have no room for the high part of an address.
        let (high, nowhere) = if extended || one_link { (u64::from(half(6)), NOWHERE_48) } else { (0, NOWHERE_32) };
        let start = (u64::from(data) | (high << 32)) & nowhere;
        let chunk = half(16);
        let layout = match (format >> 1) & 7 {
            0 => Layout::Plain((start != nowhere).then_some(start)),
            1 => Layout::Compressed { compact: false },
            2 => Layout::Inline(start),
            3 => Layout::Compressed { compact: true },
            4 => {
                if chunk & !(CHUNK_LOG | CHUNK_INDEXES | CHUNK_LONG) != 0 {
                    return Err(unsupported(number, format!("chunks of the format {chunk:#x}")));
                }
                let log = u32::from(chunk & CHUNK_LOG).saturating_add(u32::from(self.superblock.block_log));
                Layout::Chunks { log, indexes: chunk & CHUNK_INDEXES != 0, long: chunk & CHUNK_LONG != 0 }
            }
            other => return Err(unsupported(number, format!("layout {other}"))),
        };
        let block_bytes = self.superblock.block_bytes();
        let blocks = if matches!(layout, Layout::Compressed { .. }) {
            u64::from(data).saturating_mul(block_bytes) >> 9
        } else {
            size.div_ceil(block_bytes).saturating_mul(block_bytes) >> 9
        };
        let device = matches!(file_type, FileType::BlockDevice | FileType::CharacterDevice);
        let stat = Stat {
            // Inode 0 exists, and number 0 is none.
            number: if number == 0 { NOWHERE_48 } else { number },
            file_type,
            permissions: (mode & 0o7777) as u16,
            links: links.max(1),
            uid,
            gid,
            size,
            blocks,
            device: device.then(|| device_numbers(data)),
            accessed: modified,
            modified,
            changed: modified,
            created: None,
        };
        Ok(Node { stat, place: Place { in_metabox, xattrs, body }, layout })
    }
}

fn unsupported(number: u64, what: String) -> block::Error {
    block::Error::new(block::Kind::Unsupported, format!("inode {number:#x} with {what}, newer than this program"))
}

/// Major and minor number as the kernel packs them: minor bits 0 to 7, major 8 to 19, minor 20 to 31.
fn device_numbers(device: u32) -> (u32, u32) {
    ((device >> 8) & 0xFFF, (device & 0xFF) | ((device >> 12) & 0xFFF00))
}
