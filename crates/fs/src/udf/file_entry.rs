//! File entries.
//!
//! ```text
//! file entry (4/14.9)    tag, 16 │ 20 strategy, 2 │ 27 type │ 34 flags, 2 │ 36 user, 4 │ 40 group, 4 │ 44 permissions, 4
//!                        48 links, 2 │ 56 bytes, 8 │ 64 blocks, 8 │ 72 accessed, 12 │ 84 modified, 12 │ 96 changed, 12
//!                        160 number, 8 │ 168 bytes of attributes, 4 │ 172 of descriptors, 4 │ 176
//! extended (4/14.17)     56 bytes, 8 │ 64 with streams, 8 │ 72 blocks, 8 │ 80 accessed │ 92 modified │ 104 created
//!                        116 changed │ 200 number, 8 │ 208 attributes, 4 │ 212 descriptors, 4 │ 216
//! ```
//! Bits 0 to 2 of the flags say which descriptors there are; 3: the content itself stands in their place. With strategy
//! 4096 the next block may point to the entry that holds instead.

use block::Result;
use block::bytes::{byte, le_u16, le_u32, le_u64};

use super::allocation::{Address, Extent, find};
use super::corrupt::Corrupt;
use super::descriptor::{self, tag, time};
use super::volume::Medium;
use crate::{FileType, Stat, Time};

/// How often an entry may point to a newer one.
const NEWER_MAX: u32 = 64;
const STRATEGY_4096: u16 = 4096;
const FLAG_SETUID: u16 = 1 << 6;
const FLAG_SETGID: u16 = 1 << 7;
const FLAG_STICKY: u16 = 1 << 8;
/// Who a file belongs to that belongs to nobody in particular: as the kernel has it.
const NOBODY: u32 = 65534;
const ATTRIBUTE_DEVICE: u32 = 12;

/// A file.
#[derive(Debug)]
pub(super) struct Entry {
    /// The number in the volume's own table of types.
    pub file_type: u8,
    pub size: u64,
    pub stat: Stat,
    pub content: Stored,
}

/// Where content is.
#[derive(Debug)]
pub(super) enum Stored {
    /// In the entry.
    Inside(Vec<u8>),
    Extents(Vec<Extent>),
}

impl Entry {
    /// Reads the entry of a file.
    ///
    /// # Errors
    /// [`block::Kind::Unsupported`]; `Corrupt`; the failure of the device.
    pub fn read(medium: &Medium, address: Address) -> Result<Self> {
        let mut at = address;
        for _ in 0..NEWER_MAX {
            let block = medium.block(at)?;
            let kind = descriptor::kind(&block);
            if kind == Some(tag::INDIRECT) {
                at = indirect(&block, at)?;
                continue;
            }
            if le_u16(&block, 20) == Some(STRATEGY_4096)
                && let Some(behind) = at.block.checked_add(1)
                && let Ok(next) = medium.block(Address { block: behind, ..at })
                && descriptor::kind(&next) == Some(tag::INDIRECT)
                && le_u32(&next, 36).is_some_and(|len| len != 0)
            {
                at = indirect(&next, at)?;
                continue;
            }
            return Self::parse(medium, at, block);
        }
        Err(Corrupt::FileEntry.at(format!("entry in block {}, which leads to itself", address.block)))
    }

    /// The entry that a block holds.
    ///
    /// # Errors
    /// As [`Entry::read`].
    pub fn parse(medium: &Medium, address: Address, block: Vec<u8>) -> Result<Self> {
        let kind = descriptor::kind(&block);
        let extended = kind == Some(tag::EXTENDED_FILE_ENTRY);
        if !extended && kind != Some(tag::FILE_ENTRY) {
            return Err(Corrupt::Descriptor.at(format!("file entry in block {}", address.block)));
        }
        let broken = || Corrupt::FileEntry.at(format!("file entry in block {}", address.block));
        Self::fields(medium, address, &block, extended).ok_or_else(broken)?
    }

    /// `None` where a field leaves the block.
    fn fields(medium: &Medium, address: Address, block: &[u8], extended: bool) -> Option<Result<Self>> {
        let broken = || Corrupt::FileEntry.at(format!("file entry in block {}", address.block));
        let (recorded, times, lengths): (usize, usize, usize) = if extended { (72, 80, 208) } else { (64, 72, 168) };
        let attributes = usize::try_from(le_u32(block, lengths)?).ok()?;
        let descriptors = usize::try_from(le_u32(block, lengths.checked_add(4)?)?).ok()?;
        let begin = lengths.checked_add(8)?;
        let attributes = block.get(begin..)?.get(..attributes)?;
        let descriptors = block.get(begin.checked_add(attributes.len())?..)?.get(..descriptors)?;
        let number_of = byte(block, 27)?;
        let flags = le_u16(block, 34)?;
        let size = le_u64(block, 56)?;
        if size > i64::MAX.cast_unsigned() {
            return Some(Err(broken()));
        }
        let file_type = match number_of {
            4 => FileType::Directory,
            6 => FileType::BlockDevice,
            7 => FileType::CharacterDevice,
            9 => FileType::Fifo,
            10 => FileType::Socket,
            12 => FileType::SymbolicLink,
            _ => FileType::Regular,
        };
        let form = flags & 7;
        let content = if form == 3 {
            Stored::Inside(descriptors.to_vec())
        } else {
            match medium.extents(descriptors, form, address.partition) {
                Ok(extents) => Stored::Extents(extents),
                Err(error) => return Some(Err(error)),
            }
        };
        let moment = |at: usize| Some(time(block.get(times.checked_add(at)?..)?));
        let id = |at| le_u32(block, at).map(|id| if id == u32::MAX { NOBODY } else { id });
        let stamp = |extended_at: usize, at: usize| moment(if extended { extended_at } else { at });
        let created: Option<Time> = if extended { moment(24) } else { None };
        let permissions = le_u32(block, 44)?;
        // Each has five bits, of which the lower three are those of a mode.
        let mut mode = ((permissions & 7) | ((permissions >> 5) & 7) << 3 | ((permissions >> 10) & 7) << 6) as u16;
        for (flag, bit) in [(FLAG_SETUID, 0o4000), (FLAG_SETGID, 0o2000), (FLAG_STICKY, 0o1000)] {
            if flags & flag != 0 {
                mode |= bit;
            }
        }
        let device = matches!(file_type, FileType::BlockDevice | FileType::CharacterDevice);
        let blocks = le_u64(block, recorded)?.saturating_mul(u64::from(medium.block_bytes)) >> 9;
        let (place, _) = medium.locate(address).ok()?;
        let stat = Stat {
            number: place.max(1),
            file_type,
            permissions: mode,
            // That of a directory does not count the entry for itself, which UDF does not have.
            links: u32::from(le_u16(block, 48)?).max(1).saturating_add(u32::from(file_type == FileType::Directory)),
            uid: id(36)?,
            gid: id(40)?,
            size,
            blocks,
            device: device.then(|| device_numbers(attributes)),
            accessed: moment(0)?,
            modified: moment(12)?,
            changed: stamp(36, 24)?,
            created,
        };
        Some(Ok(Self { file_type: number_of, size, stat, content }))
    }
}

/// Where the newer entry is.
fn indirect(block: &[u8], at: Address) -> Result<Address> {
    let broken = || Corrupt::FileEntry.at(format!("indirect entry of block {}", at.block));
    descriptor::long(block, 36).map(|(_, to)| to).ok_or_else(broken)
}

/// ```text
/// header       tag, 16 │ 16 where those of implementations begin, 4 │ 20 of applications, 4 │ 24
/// attribute    kind, 4 │ 1 │ 0, 3 │ bytes, 4 │ …     of a device: bytes, 4 │ 16 major, 4 │ 20 minor, 4
/// ```
fn device_numbers(attributes: &[u8]) -> (u32, u32) {
    let mut at = if descriptor::kind(attributes) == Some(tag::ATTRIBUTES) { 24_usize } else { 0 };
    while let Some(attribute) = attributes.get(at..).filter(|rest| rest.len() >= 24) {
        let word = |at| le_u32(attribute, at).unwrap_or_default();
        if word(0) == ATTRIBUTE_DEVICE {
            return (word(16), word(20));
        }
        let len = usize::try_from(word(8)).unwrap_or(0);
        if len < 12 {
            break;
        }
        at = at.saturating_add(len);
    }
    (0, 0)
}

impl Stored {
    /// Fills `buf` from `offset` of a file of `size` bytes on, as far as there are bytes, and says how many there were.
    ///
    /// # Errors
    /// `Corrupt`; the failure of the device.
    pub fn read(&self, medium: &Medium, size: u64, buf: &mut [u8], offset: u64) -> Result<usize> {
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = buf.len().min(left);
        let mut rest = buf.get_mut(..len).unwrap_or_default();
        let mut at = offset;
        while !rest.is_empty() {
            let (there, position) = self.run(medium, size, at)?;
            let part = usize::try_from(there).unwrap_or(usize::MAX).min(rest.len());
            let Some((now, later)) = std::mem::take(&mut rest).split_at_mut_checked(part) else { break };
            match position {
                Place::Zeros => now.fill(0),
                Place::Inside(bytes) => now.copy_from_slice(bytes.get(..part).unwrap_or_default()),
                Place::Device(position) => {
                    let outside = |error: block::Error| {
                        Corrupt::Block.at(format!("{part} bytes at {position}")).with_source(error)
                    };
                    block::check_range(medium.device.size(), position, part as u64).map_err(outside)?;
                    medium.device.read_at(now, position)?;
                }
            }
            rest = later;
            at = at.saturating_add(part as u64);
        }
        Ok(len)
    }

    /// Where the bytes from `at` on are, which is inside of the file, and how many there are.
    pub fn run(&self, medium: &Medium, size: u64, at: u64) -> Result<(u64, Place<'_>)> {
        let broken = || Corrupt::Allocation.at(format!("byte {at} of a file of {size}"));
        match self {
            Self::Inside(bytes) => {
                let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).filter(|rest| !rest.is_empty());
                let rest = rest.ok_or_else(broken)?;
                Ok(((rest.len() as u64).min(size.saturating_sub(at)), Place::Inside(rest)))
            }
            Self::Extents(extents) => {
                let Some(extent) = find(extents, at) else {
                    // As the kernel has it, what no descriptor covers is zeros.
                    return Ok((size.saturating_sub(at), Place::Zeros));
                };
                let skip = at.saturating_sub(extent.start);
                let left = extent.len.saturating_sub(skip).min(size.saturating_sub(at));
                let Some(address) = extent.address else { return Ok((left, Place::Zeros)) };
                let log = medium.block_log;
                let block = u32::try_from(skip >> log).ok().and_then(|skip| address.block.checked_add(skip));
                let address = Address { block: block.ok_or_else(broken)?, ..address };
                let (block, count) = medium.locate(address)?;
                let inside = skip & u64::from(medium.block_bytes).saturating_sub(1);
                let position = block.checked_mul(u64::from(medium.block_bytes)).and_then(|at| at.checked_add(inside));
                let there = count.saturating_mul(u64::from(medium.block_bytes)).saturating_sub(inside).min(left);
                Ok((there, Place::Device(position.ok_or_else(broken)?)))
            }
        }
    }
}

/// Where bytes are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    Zeros,
    Inside(&'a [u8]),
    /// From this byte of the device on.
    Device(u64),
}
