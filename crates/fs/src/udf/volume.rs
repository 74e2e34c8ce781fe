//! What leads to the files: recognition, anchor, the descriptors of the volume, its partitions, and the file set.
//!
//! ```text
//! anchor      at block 256, the last, or 256 before that: 16 main sequence, 8 │ 24 reserve sequence, 8     (ECMA-167 3/10.2)
//! partition   22 number, 2 │ 188 start, 4 │ 192 blocks, 4                                                  (3/10.5)
//! volume      84 label, 128 │ 212 block size, 4 │ 248 file set, 16 │ 264 map bytes, 4 │ 268 maps, 4 │ 432 integrity │ 440 (3/10.6)
//! map         1 │ 6 │ volume, 2 │ partition, 2      2 │ 64 │ 0, 2 │ kind, 32 │ volume, 2 │ partition, 2 │ …
//! file set    400 root, 16                                                                                 (4/14.1)
//! ```
//! Of two descriptors of one kind, the one with the higher number at byte 16 holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::bytes::{byte, has, le_u16, le_u32, read_up_to};
use block::{Error, Kind, ReadAt, Result};

use super::allocation::{Address, Extent, Map, Partition};
use super::corrupt::Corrupt;
use super::descriptor::{self, tag};
use super::file_entry::{Entry, Stored};
use super::name;

/// Where the recognition sequence begins, bytes.
const RECOGNITION_OFFSET: u64 = 32768;
/// Structures of it, and descriptors of a volume, that are looked at.
const STRUCTURES_MAX: u64 = 256;
/// Partition maps of a volume.
const MAPS_MAX: u32 = 16;
/// Blocks that are searched, from the last on, for the table of a virtual partition: an image of a disc may go on with
/// what was never written.
const TABLE_BLOCKS_MAX: u64 = 1 << 15;
/// Entries of a virtual partition's table.
const TABLE_ENTRIES_MAX: u64 = 1 << 22;
/// Types of files that only the volume itself uses.
const TYPE_TABLE: u8 = 248;

/// The device, and its partitions.
#[derive(Debug)]
pub(super) struct Medium {
    pub device: Arc<dyn ReadAt>,
    pub block_bytes: u32,
    pub block_log: u32,
    pub partitions: Vec<Partition>,
}

/// What is known of the volume.
#[derive(Debug)]
pub(super) struct Volume {
    pub label: String,
    pub root: Address,
    /// Blocks of partitions in all, and those that are free where that is said.
    pub blocks: u64,
    pub blocks_free: u64,
    pub files: u64,
}

/// The descriptors of a sequence.
#[derive(Default)]
struct Sequence {
    volume: Option<Vec<u8>>,
    /// By number.
    partitions: BTreeMap<u16, Vec<u8>>,
}

/// Whether a device has a recognition sequence that names UDF.
///
/// # Errors
/// The failure of the device.
pub(super) fn is_recognized(device: &dyn ReadAt) -> Result<bool> {
    for step in [2048_u64, 4096] {
        for number in 0..STRUCTURES_MAX {
            let structure = read_up_to(device, number.saturating_mul(step).saturating_add(RECOGNITION_OFFSET), 6)?;
            if has(&structure, 1, b"NSR02") || has(&structure, 1, b"NSR03") {
                return Ok(true);
            }
            let known: [&[u8]; 5] = [b"CD001", b"BEA01", b"TEA01", b"BOOT2", b"CDW02"];
            if !known.iter().any(|known| has(&structure, 1, known)) {
                break;
            }
        }
    }
    Ok(false)
}

impl Medium {
    /// A block of the device; what lies outside is an error.
    pub fn device_block(&self, number: u64) -> Result<Vec<u8>> {
        let outside = || Corrupt::Block.at(format!("block {number} of the device"));
        let at = number.checked_mul(u64::from(self.block_bytes)).ok_or_else(outside)?;
        let block = read_up_to(&*self.device, at, self.block_bytes as usize)?;
        if block.len() < self.block_bytes as usize { Err(outside()) } else { Ok(block) }
    }

    fn new(device: Arc<dyn ReadAt>, block_bytes: u32) -> Self {
        Self { device, block_bytes, block_log: block_bytes.trailing_zeros(), partitions: Vec::new() }
    }

    fn sequence(&self, start: u64, count: u64, sequence: &mut Sequence, depth: u32) -> Result<()> {
        for number in (start..).take(usize::try_from(count.min(STRUCTURES_MAX)).unwrap_or(0)) {
            let Ok(block) = self.device_block(number) else { return Ok(()) };
            let newer = |held: Option<&Vec<u8>>| held.is_none_or(|held| le_u32(held, 16) <= le_u32(&block, 16));
            match descriptor::kind(&block) {
                Some(tag::LOGICAL_VOLUME) if newer(sequence.volume.as_ref()) => sequence.volume = Some(block),
                Some(tag::PARTITION) => {
                    let number = le_u16(&block, 22).unwrap_or_default();
                    if newer(sequence.partitions.get(&number)) && sequence.partitions.len() < MAPS_MAX as usize {
                        sequence.partitions.insert(number, block);
                    }
                }
                Some(tag::POINTER) if depth < 4 => {
                    let (start, count) = self.extent_of(&block, 20);
                    return self.sequence(start, count, sequence, depth.saturating_add(1));
                }
                Some(tag::TERMINATOR) | None => return Ok(()),
                _ => {}
            }
        }
        Ok(())
    }

    /// First block and count of an extent: bytes, 4 │ block, 4.
    fn extent_of(&self, bytes: &[u8], at: usize) -> (u64, u64) {
        let count = le_u32(bytes, at).unwrap_or_default() >> self.block_log;
        let start = at.checked_add(4).and_then(|at| le_u32(bytes, at)).unwrap_or_default();
        (u64::from(start), u64::from(count))
    }

    fn find_sequence(&self) -> Result<Option<Sequence>> {
        let blocks = self.device.size() >> self.block_log;
        for at in [256, blocks.saturating_sub(1), blocks.saturating_sub(257), 512] {
            let Ok(anchor) = self.device_block(at) else { continue };
            if descriptor::kind(&anchor) != Some(tag::ANCHOR) || le_u32(&anchor, 12).map(u64::from) != Some(at) {
                continue;
            }
            for extent in [16, 24] {
                let (start, count) = self.extent_of(&anchor, extent);
                let mut sequence = Sequence::default();
                self.sequence(start, count, &mut sequence, 0)?;
                if sequence.volume.is_some() {
                    return Ok(Some(sequence));
                }
            }
        }
        Ok(None)
    }

    /// Finds the volume on a device.
    ///
    /// # Errors
    /// [`Kind::Unsupported`]; `Corrupt`; the failure of the device.
    pub fn open(device: Arc<dyn ReadAt>) -> Result<(Self, Volume)> {
        for block_bytes in [2048, 512, 4096, 1024, 8192, 16384, 32768] {
            let mut medium = Self::new(Arc::clone(&device), block_bytes);
            if let Some(sequence) = medium.find_sequence()? {
                let volume = medium.read(&sequence)?;
                return Ok((medium, volume));
            }
        }
        Err(Corrupt::Volume.at("UDF volume without an anchor"))
    }

    fn read(&mut self, sequence: &Sequence) -> Result<Volume> {
        let broken = || Corrupt::Volume.at("descriptor of a UDF volume");
        let descriptor = sequence.volume.as_deref().unwrap_or_default();
        let block_bytes = le_u32(descriptor, 212).ok_or_else(broken)?;
        if block_bytes != self.block_bytes {
            return Err(Error::new(
                Kind::Unsupported,
                format!("UDF with blocks of {block_bytes} bytes on sectors of {}", self.block_bytes),
            ));
        }
        let count = le_u32(descriptor, 268).filter(|count| (1..=MAPS_MAX).contains(count)).ok_or_else(broken)?;
        let mut maps = descriptor.get(440..).ok_or_else(broken)?;
        let mut late = Vec::new();
        for number in 0..count {
            let len = usize::from(byte(maps, 1).ok_or_else(broken)?);
            let (map, rest) = maps.split_at_checked(len).filter(|_| len >= 6).ok_or_else(broken)?;
            maps = rest;
            let partition = self.map(map, sequence)?;
            // What stands on others is read when all of them are known.
            let identifier = map.get(5..28).unwrap_or_default();
            if byte(map, 0) == Some(2) && !identifier.starts_with(b"*UDF Sparable") {
                late.push((usize::try_from(number).unwrap_or(0), map.to_vec()));
            }
            self.partitions.push(partition);
        }
        for (number, map) in late {
            let table = if map.get(5..).is_some_and(|rest| rest.starts_with(b"*UDF Virtual")) {
                Map::Virtual(self.virtual_table(number)?)
            } else {
                Map::Metadata(self.metadata(number, &map)?)
            };
            if let Some(partition) = self.partitions.get_mut(number) {
                partition.map = table;
            }
        }
        let (_, set) = descriptor::long(descriptor, 248).ok_or_else(broken)?;
        let block = self.block(set)?;
        if descriptor::kind(&block) != Some(tag::FILE_SET) {
            return Err(Corrupt::Descriptor.at(format!("file set in block {}", set.block)));
        }
        let (_, root) = descriptor::long(&block, 400).ok_or_else(broken)?;
        let mut volume = Volume {
            label: name::field(descriptor.get(84..212).unwrap_or_default()),
            root,
            blocks: 0,
            blocks_free: 0,
            files: 0,
        };
        volume.blocks = sequence
            .partitions
            .values()
            .fold(0, |sum, partition| u64::from(le_u32(partition, 192).unwrap_or_default()).saturating_add(sum));
        self.integrity(descriptor, &mut volume);
        Ok(volume)
    }

    /// ```text
    /// integrity    40 … unique id │ 72 partitions, 4 │ 76 bytes for the implementation, 4 │ 80 free, 4 each │ sizes, 4 each │ …
    ///              of the implementation: 32 files, 4 │ 36 directories, 4
    /// ```
    fn integrity(&self, descriptor: &[u8], volume: &mut Volume) {
        let (start, _) = self.extent_of(descriptor, 432);
        let Ok(block) = self.device_block(start) else { return };
        if descriptor::kind(&block) != Some(9) {
            return;
        }
        let count = le_u32(&block, 72).unwrap_or_default().min(MAPS_MAX) as usize;
        for number in 0..count {
            let free = le_u32(&block, number.saturating_mul(4).saturating_add(80)).unwrap_or_default();
            if free != u32::MAX {
                volume.blocks_free = volume.blocks_free.saturating_add(u64::from(free));
            }
        }
        volume.blocks_free = volume.blocks_free.min(volume.blocks);
        let own = count.saturating_mul(8).saturating_add(80);
        let number = |at: usize| u64::from(le_u32(&block, own.saturating_add(at)).unwrap_or_default());
        volume.files = number(32).saturating_add(number(36));
    }

    /// A partition by its map, with what stands in the map itself.
    fn map(&self, map: &[u8], sequence: &Sequence) -> Result<Partition> {
        let broken = || Corrupt::Partition.at("partition map of a UDF volume");
        let kind = byte(map, 0).ok_or_else(broken)?;
        let number = match kind {
            1 => le_u16(map, 4),
            2 => le_u16(map, 38),
            _ => None,
        };
        let number = number.ok_or_else(broken)?;
        let descriptor = sequence.partitions.get(&number).ok_or_else(broken)?;
        let start = u64::from(le_u32(descriptor, 188).ok_or_else(broken)?);
        let blocks = u64::from(le_u32(descriptor, 192).ok_or_else(broken)?);
        let mut partition = Partition { start, blocks, map: Map::Physical };
        if kind == 2 {
            let identifier = map.get(5..28).ok_or_else(broken)?;
            if identifier.starts_with(b"*UDF Sparable Partition") {
                partition.map = self.sparable(map).ok_or_else(broken)??;
            } else if !identifier.starts_with(b"*UDF Virtual Partition")
                && !identifier.starts_with(b"*UDF Metadata Partition")
            {
                let name = String::from_utf8_lossy(identifier).trim_end_matches('\0').to_owned();
                return Err(Error::new(Kind::Unsupported, format!("UDF partition of the kind \"{name}\"")));
            }
        }
        Ok(partition)
    }

    /// ```text
    /// map      40 packet blocks, 2 │ 42 tables, 1 │ 44 bytes of a table, 4 │ 48 their blocks on the device, 4 each
    /// table    tag, 16 │ kind, 32 │ 48 entries, 2 │ 0, 2 │ 52 number, 4 │ 56 entries: packet, 4 │ where it is, 4
    /// ```
    fn sparable(&self, map: &[u8]) -> Option<Result<Map>> {
        let packet = u32::from(le_u16(map, 40)?);
        if packet == 0 {
            return None;
        }
        for number in 0..usize::from(byte(map, 42)?.min(4)) {
            let at = u64::from(le_u32(map, number.checked_mul(4)?.checked_add(48)?)?);
            let Ok(first) = self.device_block(at) else { continue };
            if !has(&first, 17, b"*UDF Sparing Table") {
                continue;
            }
            let entries = usize::from(le_u16(&first, 48)?);
            let bytes = read_up_to(&*self.device, at << self.block_log, entries.checked_mul(8)?.checked_add(56)?);
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(error) => return Some(Err(error)),
            };
            let mut moved = BTreeMap::new();
            for entry in bytes.get(56..).unwrap_or_default().chunks_exact(8) {
                let (from, to) = (le_u32(entry, 0)?, le_u32(entry, 4)?);
                // The highest numbers mean free and defective ones.
                if from < 0xFFFF_FFF0 {
                    moved.insert(from, to);
                }
            }
            return Some(Ok(Map::Sparable { packet, moved }));
        }
        Some(Err(Corrupt::Table.at("sparing table of a UDF volume")))
    }

    /// The table of the virtual partition `number`: a file whose entry is the last block that was written.
    fn virtual_table(&self, number: usize) -> Result<Vec<u32>> {
        let missing = || Corrupt::Table.at("virtual allocation table of a UDF volume");
        let start = self.partitions.get(number).map_or(0, |partition| partition.start);
        // A virtual partition stands on a physical one, which is one of the others.
        let own = self.partitions.iter().position(|other| other.start == start && matches!(other.map, Map::Physical));
        let own = own.and_then(|own| u16::try_from(own).ok()).ok_or_else(missing)?;
        let blocks = self.device.size() >> self.block_log;
        for at in (start..blocks).rev().take(TABLE_BLOCKS_MAX as usize) {
            let block = self.device_block(at)?;
            if !matches!(descriptor::kind(&block), Some(tag::FILE_ENTRY | tag::EXTENDED_FILE_ENTRY)) {
                continue;
            }
            let address =
                Address { partition: own, block: u32::try_from(at.saturating_sub(start)).map_err(|_| missing())? };
            let Ok(entry) = Entry::parse(self, address, block) else { continue };
            let old = entry.file_type == 0;
            if !(old || entry.file_type == TYPE_TABLE) || entry.size > TABLE_ENTRIES_MAX.saturating_mul(4) {
                continue;
            }
            let mut bytes = vec![0; usize::try_from(entry.size.min(self.device.size())).map_err(|_| missing())?];
            let read = entry.content.read(self, entry.size, &mut bytes, 0)?;
            bytes.truncate(read);
            if let Some(table) = table(&bytes, old) {
                return Ok(table);
            }
        }
        Err(missing())
    }

    /// Where the blocks of the metadata partition `number` are: the content of a file, or of its mirror.
    ///
    /// ```text
    /// map    40 file, 4 │ 44 mirror, 4 │ 48 bitmap, 4 │ …                             blocks of the physical partition
    /// ```
    fn metadata(&self, number: usize, map: &[u8]) -> Result<Vec<Extent>> {
        let missing = || Corrupt::Table.at("metadata file of a UDF volume");
        let start = self.partitions.get(number).map_or(0, |partition| partition.start);
        for place in [40, 44] {
            let own = self.partitions.iter().enumerate().position(|(other, partition)| {
                other != number
                    && partition.start == start
                    && !matches!(partition.map, Map::Metadata(_) | Map::Virtual(_))
            });
            let partition = u16::try_from(own.ok_or_else(missing)?).map_err(|_| missing())?;
            let block = le_u32(map, place).ok_or_else(missing)?;
            let address = Address { partition, block };
            let found = self.block(address).and_then(|block| Entry::parse(self, address, block));
            if let Ok(Entry { content: Stored::Extents(extents), .. }) = found
                && !extents.is_empty()
            {
                return Ok(extents);
            }
        }
        Err(missing())
    }
}

/// The entries of a virtual allocation table.
///
/// ```text
/// before 2.00    entries, 4 each │ kind, 32 │ previous table, 4
/// since          bytes of the header, 2 │ … │ entries, 4 each
/// ```
fn table(bytes: &[u8], old: bool) -> Option<Vec<u32>> {
    let entries = if old {
        let end = bytes.len().checked_sub(36)?;
        has(bytes, end.checked_add(1)?, b"*UDF Virtual Alloc Tbl").then(|| bytes.get(..end)).flatten()?
    } else {
        bytes.get(usize::from(le_u16(bytes, 0)?)..)?
    };
    Some(entries.chunks_exact(4).filter_map(|entry| le_u32(entry, 0)).collect())
}
