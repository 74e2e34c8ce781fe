//! Where content is: addresses, partitions, allocation descriptors.
//!
//! ```text
//! short     bytes and type, 4 │ block, 4                                              in the file entry's own partition
//! long      bytes and type, 4 │ block, 4 │ partition, 2 │ 6
//! extended  bytes and type, 4 │ recorded bytes, 4 │ bytes of information, 4 │ block, 4 │ partition, 2 │ 2
//!
//! type 0: there; 1: allocated and 2: not allocated, both zeros; 3: more descriptors stand in that extent
//! ```

use std::collections::BTreeMap;

use block::bytes::{le_u16, le_u32};
use block::{Error, Kind, Result};

use super::corrupt::Corrupt;
use super::descriptor::{self, tag};
use super::volume::Medium;

/// Extents of one file.
const EXTENTS_MAX: usize = 1 << 18;
/// Extents of descriptors that one file goes on in.
const CONTINUATIONS_MAX: usize = 1 << 14;
/// The bits of the first word that are a length; those above are the type.
const EXTENT_BYTES_MASK: u32 = (1 << 30) - 1;

/// A block of a partition, by the number of the partition's map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Address {
    pub partition: u16,
    pub block: u32,
}

/// A partition, and how its blocks become blocks of the device.
#[derive(Debug)]
pub(super) struct Partition {
    /// The first block on the device, and how many there are.
    pub start: u64,
    pub blocks: u64,
    pub map: Map,
}

#[derive(Debug)]
pub(super) enum Map {
    /// One behind the other.
    Physical,
    /// The same, but for packets that were moved: by their first block, where on the device they are.
    Sparable { packet: u32, moved: BTreeMap<u32, u32> },
    /// Each by a table.
    Virtual(Vec<u32>),
    /// As the content of a file, in blocks of the physical partition.
    Metadata(Vec<Extent>),
}

/// A run of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where it begins in the file, bytes.
    pub start: u64,
    /// Bytes, at least 1.
    pub len: u64,
    /// `None`: zeros.
    pub address: Option<Address>,
}

impl Medium {
    /// The block of the device that a block of a partition is, and how many follow it there as they do in the partition.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn locate(&self, address: Address) -> Result<(u64, u64)> {
        let Address { partition: number, block } = address;
        let outside = || Corrupt::Block.at(format!("block {block} of partition {number}"));
        let partition = self.partitions.get(usize::from(number)).ok_or_else(outside)?;
        let inside = |block: u32| {
            let left = partition.blocks.checked_sub(u64::from(block)).filter(|left| *left > 0);
            left.map(|left| (partition.start.saturating_add(u64::from(block)), left)).ok_or_else(outside)
        };
        match &partition.map {
            Map::Physical => inside(block),
            Map::Sparable { packet, moved } => {
                let within = block.checked_rem(*packet).ok_or_else(outside)?;
                let left = u64::from(packet.saturating_sub(within));
                match moved.get(&block.saturating_sub(within)) {
                    Some(to) => Ok((u64::from(*to).saturating_add(u64::from(within)), left)),
                    None => inside(block).map(|(at, there)| (at, there.min(left))),
                }
            }
            Map::Virtual(table) => {
                let place = usize::try_from(block).map_err(|_| outside())?;
                let to = *table.get(place).ok_or_else(outside)?;
                let (at, _) = inside(to)?;
                Ok((at, 1))
            }
            Map::Metadata(extents) => {
                let log = self.block_log;
                let byte = u64::from(block) << log;
                let extent = find(extents, byte).ok_or_else(outside)?;
                let skip = byte.saturating_sub(extent.start) >> log;
                let first = extent.address.ok_or_else(outside)?.block;
                let block = u32::try_from(skip).ok().and_then(|skip| first.checked_add(skip)).ok_or_else(outside)?;
                let (at, left) = inside(block)?;
                Ok((at, left.min((extent.len >> log).saturating_sub(skip)).max(1)))
            }
        }
    }

    /// A block, read.
    ///
    /// # Errors
    /// `Corrupt`; the failure of the device.
    pub fn block(&self, address: Address) -> Result<Vec<u8>> {
        let (at, _) = self.locate(address)?;
        self.device_block(at)
    }

    /// The extents of `descriptors`, of the kind that the file entry in partition `own` says.
    ///
    /// # Errors
    /// [`Kind::Unsupported`]; [`Kind::Limit`]; `Corrupt`; the failure of the device.
    pub fn extents(&self, descriptors: &[u8], kind: u16, own: u16) -> Result<Vec<Extent>> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut bytes = descriptors.to_vec();
        let mut start = 0_u64;
        for _ in 0..CONTINUATIONS_MAX {
            let mut next = None;
            let size = match kind {
                0 => 8,
                1 => 16,
                2 => 20,
                _ => return Err(Error::new(Kind::Unsupported, format!("allocation descriptors of kind {kind}"))),
            };
            for one in bytes.chunks_exact(size) {
                let word = |at| le_u32(one, at).unwrap_or_default();
                let (len, form) = (word(0) & EXTENT_BYTES_MASK, word(0) >> 30);
                let address = match kind {
                    0 => Address { partition: own, block: word(4) },
                    1 => Address { partition: le_u16(one, 8).unwrap_or_default(), block: word(4) },
                    _ => Address { partition: le_u16(one, 16).unwrap_or_default(), block: word(12) },
                };
                if len == 0 {
                    break;
                }
                if form == 3 {
                    next = Some(address);
                    break;
                }
                let len = u64::from(len);
                let address = (form == 0).then_some(address);
                match extents.last_mut() {
                    Some(last) if self.follows(last, address) => last.len = last.len.saturating_add(len),
                    _ => extents.push(Extent { start, len, address }),
                }
                start = start.saturating_add(len);
                if extents.len() > EXTENTS_MAX {
                    return Err(Error::new(Kind::Limit, format!("file of more than {EXTENTS_MAX} extents")));
                }
            }
            let Some(address) = next else { return Ok(extents) };
            let block = self.block(address)?;
            let len = le_u32(&block, 20).and_then(|len| usize::try_from(len).ok());
            let rest = len.and_then(|len| block.get(24..)?.get(..len));
            let sound = descriptor::kind(&block) == Some(tag::ALLOCATION_EXTENT);
            let broken = || Corrupt::Allocation.at(format!("descriptors in block {}", address.block));
            bytes = rest.filter(|_| sound).ok_or_else(broken)?.to_vec();
        }
        Err(Corrupt::Allocation.at("descriptors that lead to each other"))
    }

    /// Whether an extent at `next` goes on where the last one ended.
    fn follows(&self, last: &Extent, next: Option<Address>) -> bool {
        match (last.address, next) {
            (None, None) => true,
            (Some(one), Some(other)) => {
                let whole = last.len & u64::from(self.block_bytes).saturating_sub(1) == 0;
                let end = u64::from(one.block).saturating_add(last.len >> self.block_log);
                whole && one.partition == other.partition && end == u64::from(other.block)
            }
            _ => false,
        }
    }
}

/// The extent that holds a byte.
pub(super) fn find(extents: &[Extent], at: u64) -> Option<&Extent> {
    let behind = extents.partition_point(|extent| extent.start <= at);
    let extent = extents.get(behind.checked_sub(1)?)?;
    (at < extent.start.saturating_add(extent.len)).then_some(extent)
}
