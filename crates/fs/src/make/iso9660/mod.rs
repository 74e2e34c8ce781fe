//! ISO 9660 (ECMA-119) with Rock Ridge 1.12, and Joliet for systems that know no Rock Ridge.
//!
//! ```text
//! 16 blocks, empty │ descriptors: primary, Joliet, end │ path tables, four │ directories │ those of Joliet │
//! continued system use │ content
//! ```
//! A block has 2048 bytes. Directories are as deep as the tree is, as most systems want it. Files of 4 GiB and more have
//! several records. Modes, owners, times, links, devices, and attributes (as libisofs writes them, AAIP) are in the system
//! use of the records.

use block::{BlockDevice, Error, Kind, Result};

use super::tree::{Index, Node, Tree};
use super::{Made, Make, content};
use crate::progress::Progress;
use crate::{FileSystem, FileType, Time};

mod names;
mod system_use;
mod volume;

use system_use::{Continued, SystemUse};

const BLOCK_BYTES: u64 = 2048;
/// The first descriptor.
const DESCRIPTORS_BLOCK: u32 = 16;
/// Primary, Joliet, end.
const DESCRIPTORS: u32 = 3;
/// Bytes of one record's content: whole blocks.
const EXTENT_BYTES_MAX: u64 = 0xffff_f800;
/// A directory is numbered with 16 bits.
const DIRECTORIES_MAX: usize = 0xffff;
const FLAG_DIRECTORY: u8 = 2;
const FLAG_MORE: u8 = 0x80;

/// The size of the image, bytes.
pub(super) fn size(make: &Make, tree: &Tree) -> Result<u64> {
    Ok(u64::from(Plan::new(make, tree)?.end) * BLOCK_BYTES)
}

/// Makes it.
pub(super) fn write(
    make: &Make,
    tree: &Tree,
    source: &dyn FileSystem,
    device: &dyn BlockDevice,
    progress: &dyn Progress,
) -> Result<Made> {
    let plan = Plan::new(make, tree)?;
    let mut made = Made { bytes: u64::from(plan.end) * BLOCK_BYTES, left_out: 0 };
    if device.size() < made.bytes {
        return Err(Error::new(Kind::NoSpace, format!("{} bytes of ISO 9660", made.bytes)));
    }
    for (index, node) in tree.nodes().iter().enumerate() {
        for name in system_use::left_out(node) {
            let text = format!("attribute {}, which ISO 9660 cannot hold: left out", name.escape_ascii());
            progress.failed(&tree.path(index), &Error::new(Kind::Unsupported, text));
            made.left_out += 1;
        }
    }
    let at = |block: u32| u64::from(block) * BLOCK_BYTES;
    for (bytes, block) in plan.descriptors(make) {
        device.write_at(&bytes, at(block))?;
    }
    for side in [&plan.primary, &plan.joliet] {
        for directory in &side.directories {
            device.write_at(&plan.directory(side, directory), at(directory.block))?;
        }
    }
    device.write_at(&plan.continued.bytes(plan.continued_block), at(plan.continued_block))?;
    for (index, node) in tree.nodes().iter().enumerate().filter(|(_, node)| node.size > 0) {
        let start = at(plan.content.get(index).copied().unwrap_or_default());
        content::each(source, node, progress, &mut |piece, offset| device.write_at(piece, start + offset))
            .map_err(|error| error.context(tree.shown(index)))?;
    }
    Ok(made)
}

/// Where everything is.
struct Plan<'a> {
    tree: &'a Tree,
    primary: Side,
    joliet: Side,
    continued: Continued,
    continued_block: u32,
    /// The first block of each file's content.
    content: Vec<u32>,
    end: u32,
}

/// One of the two views of the tree.
struct Side {
    joliet: bool,
    /// In the order of the path table.
    directories: Vec<Directory>,
    /// The place of each directory in that order, by its place in the tree.
    places: Vec<usize>,
    path_table_bytes: u32,
    /// Low and high byte first.
    path_tables: [u32; 2],
}

/// A directory of one view.
struct Directory {
    parent: usize,
    identifier: Vec<u8>,
    records: Vec<Record>,
    block: u32,
    blocks: u32,
}

/// What becomes one record, or several of a large file.
struct Record {
    index: Index,
    identifier: Vec<u8>,
    system_use: SystemUse,
}

impl Record {
    fn bytes(&self) -> usize {
        let len = 33 + self.identifier.len();
        len.next_multiple_of(2) + self.system_use.len()
    }

    fn count(&self, tree: &Tree) -> u64 {
        tree.node(self.index).size.div_ceil(EXTENT_BYTES_MAX).max(1)
    }
}

/// Blocks that records take: none crosses the end of one.
fn blocks_of(records: impl Iterator<Item = usize>) -> u32 {
    let block = BLOCK_BYTES as usize;
    let mut used = 0_usize;
    for len in records {
        if used % block + len > block {
            used = used.next_multiple_of(block);
        }
        used += len;
    }
    used.div_ceil(block).max(1) as u32
}

impl Side {
    fn new(tree: &Tree, joliet: bool, continued: &mut Continued) -> Result<Self> {
        let mut side = Self {
            joliet,
            directories: Vec::new(),
            places: vec![0; tree.nodes().len()],
            path_table_bytes: 0,
            path_tables: [0; 2],
        };
        // Level by level, which is the order of path tables.
        let mut next = vec![(super::tree::ROOT, 0, vec![0_u8])];
        while !next.is_empty() {
            for (index, parent, identifier) in std::mem::take(&mut next) {
                let node = tree.node(index);
                let place = side.directories.len();
                if place >= DIRECTORIES_MAX {
                    let text = format!("more than {DIRECTORIES_MAX} directories, which ISO 9660 cannot number");
                    return Err(Error::new(Kind::Limit, text));
                }
                if let Some(to) = side.places.get_mut(index) {
                    *to = place;
                }
                side.path_table_bytes += (8 + identifier.len()).next_multiple_of(2) as u32;
                let mut records = Vec::new();
                let own = |identifier: u8, index: Index, continued: &mut Continued| {
                    let entries = match joliet {
                        true => Vec::new(),
                        false => system_use::of_directory(tree, index, identifier == 0 && index == super::tree::ROOT),
                    };
                    let system_use = SystemUse::new(entries, 34, continued);
                    Record { index, identifier: vec![identifier], system_use }
                };
                records.push(own(0, index, continued));
                records.push(own(1, node.parent, continued));
                for (name, child, identifier) in names::identifiers(tree, node, joliet) {
                    let entries = if joliet { Vec::new() } else { system_use::of_entry(tree, child, &name) };
                    let base = (33 + identifier.len()).next_multiple_of(2);
                    let system_use = SystemUse::new(entries, base, continued);
                    if tree.node(child).file_type == FileType::Directory {
                        next.push((child, place, identifier.clone()));
                    }
                    records.push(Record { index: child, identifier, system_use });
                }
                let lens = records.iter().flat_map(|record| (0..record.count(tree)).map(|_| record.bytes()));
                let blocks = blocks_of(lens);
                side.directories.push(Directory { parent, identifier, records, block: 0, blocks });
            }
        }
        Ok(side)
    }

    /// The path table: `big`: the highest byte first.
    fn path_table(&self, big: bool) -> Vec<u8> {
        let mut table = Vec::new();
        for directory in &self.directories {
            let number = directory.parent as u16 + 1;
            table.extend_from_slice(&[directory.identifier.len() as u8, 0]);
            if big {
                table.extend_from_slice(&directory.block.to_be_bytes());
                table.extend_from_slice(&number.to_be_bytes());
            } else {
                table.extend_from_slice(&directory.block.to_le_bytes());
                table.extend_from_slice(&number.to_le_bytes());
            }
            table.extend_from_slice(&directory.identifier);
            table.resize(table.len().next_multiple_of(2), 0);
        }
        table
    }
}

impl<'a> Plan<'a> {
    fn new(make: &Make, tree: &'a Tree) -> Result<Self> {
        volume::check_label(&make.label)?;
        let mut continued = Continued::default();
        let mut sides = [Side::new(tree, false, &mut continued)?, Side::new(tree, true, &mut continued)?];
        let mut at = u64::from(DESCRIPTORS_BLOCK + DESCRIPTORS);
        let mut take = |blocks: u64| {
            let start = at;
            at += blocks;
            start as u32
        };
        for side in &mut sides {
            for table in &mut side.path_tables {
                *table = take(u64::from(side.path_table_bytes).div_ceil(BLOCK_BYTES));
            }
        }
        for directory in sides.iter_mut().flat_map(|side| &mut side.directories) {
            directory.block = take(directory.blocks.into());
        }
        let continued_block = take(continued.blocks());
        let content =
            tree.nodes().iter().map(|node| if node.size == 0 { 0 } else { take(node.size.div_ceil(BLOCK_BYTES)) });
        let content = content.collect();
        let end = u32::try_from(at)
            .map_err(|_| Error::new(Kind::Limit, format!("{} bytes, and ISO 9660 has 8 TiB at most", tree.bytes())))?;
        let [primary, joliet] = sides;
        Ok(Self { tree, primary, joliet, continued, continued_block, content, end })
    }

    /// Where a file is in one of the views, and how long: of a directory its records.
    fn extent(&self, side: &Side, index: Index) -> (u32, u64) {
        let node = self.tree.node(index);
        if node.file_type == FileType::Directory {
            let directory = side.places.get(index).and_then(|place| side.directories.get(*place));
            return directory.map_or((0, 0), |found| (found.block, u64::from(found.blocks) * BLOCK_BYTES));
        }
        (self.content.get(index).copied().unwrap_or_default(), node.size)
    }

    /// The bytes of a directory.
    fn directory(&self, side: &Side, directory: &Directory) -> Vec<u8> {
        let block = BLOCK_BYTES as usize;
        let mut bytes = Vec::new();
        for record in &directory.records {
            for number in 0..record.count(self.tree) {
                let record = self.record(side, record, number);
                if bytes.len() % block + record.len() > block {
                    bytes.resize(bytes.len().next_multiple_of(block), 0);
                }
                bytes.extend_from_slice(&record);
            }
        }
        bytes.resize(directory.blocks as usize * block, 0);
        bytes
    }

    /// One record of a file: the `number`th one (9.1 of ECMA-119).
    fn record(&self, side: &Side, record: &Record, number: u64) -> Vec<u8> {
        let node = self.tree.node(record.index);
        let (start, size) = self.extent(side, record.index);
        let done = number * EXTENT_BYTES_MAX;
        let len = (size - done).min(EXTENT_BYTES_MAX);
        let more = done + len < size;
        let directory = node.file_type == FileType::Directory;
        let flags = if directory { FLAG_DIRECTORY } else { 0 } | if more { FLAG_MORE } else { 0 };
        let mut bytes = vec![record.bytes() as u8, 0];
        bytes.extend(both_32(start + (done / BLOCK_BYTES) as u32));
        bytes.extend(both_32(len as u32));
        bytes.extend(date(node.modified));
        bytes.extend([flags, 0, 0]);
        bytes.extend(both_16(1));
        bytes.push(record.identifier.len() as u8);
        bytes.extend_from_slice(&record.identifier);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes.extend(record.system_use.bytes(&self.continued, self.continued_block));
        bytes
    }
}

/// A number in both orders of bytes (7.3.3).
fn both_32(number: u32) -> impl Iterator<Item = u8> {
    number.to_le_bytes().into_iter().chain(number.to_be_bytes())
}

/// The same of 16 bits (7.2.3).
fn both_16(number: u16) -> impl Iterator<Item = u8> {
    number.to_le_bytes().into_iter().chain(number.to_be_bytes())
}

/// Year, month, day, hour, minute, second in UTC.
fn calendar(time: Time) -> (i64, [u8; 5]) {
    let (days, second) = (time.seconds.div_euclid(86_400), time.seconds.rem_euclid(86_400));
    // Days from 1 March of the year 0, in cycles of 400 years.
    let shifted = days + 719_468;
    let (cycle, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let of_month = of_year - (153 * from_march + 2) / 5 + 1;
    let year = year + cycle * 400 + i64::from(month <= 2);
    (year, [month as u8, of_month as u8, (second / 3600) as u8, (second / 60 % 60) as u8, (second % 60) as u8])
}

/// A time in seven bytes, as near as 1900 to 2155 come to it (9.1.5).
fn date(time: Time) -> [u8; 7] {
    // The first second of 1900 and the last one of 2155.
    let seconds = time.seconds.clamp(-2_208_988_800, 5_869_583_999);
    let (year, [month, day, hour, minute, second]) = calendar(Time { seconds, nanoseconds: 0 });
    [(year - 1900) as u8, month, day, hour, minute, second, 0]
}

/// Whether a file stands in a view: Joliet knows but directories and regular files.
fn is_shown(node: &Node, joliet: bool) -> bool {
    !joliet || matches!(node.file_type, FileType::Directory | FileType::Regular)
}
