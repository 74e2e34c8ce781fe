//! A new, empty image.
//!
//! ```text
//! cluster 0       1 …              then             then
//! +--------------+----------------+----------------+----------------+
//! | header       | refcount table | refcount blocks| L1             |
//! +--------------+----------------+----------------+----------------+
//! ```

use block::{Error, Kind, Result, Storage, Zero};

use super::header::{Compression, Header, L1_ENTRIES_MAX, LENGTH_2, LENGTH_3, REFTABLE_BYTES_MAX};

/// What a new image is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// Bytes of the disk.
    pub size: u64,
    /// 2 or 3.
    pub version: u32,
    /// Bytes of a cluster: a power of two, 512 to 2 MiB.
    pub cluster_bytes: u32,
    /// How clusters are compressed, if any are.
    pub compression: Compression,
    /// The backing file as it is to be named, and its format.
    pub backing: Option<(String, String)>,
}

impl Create {
    /// Version 3, clusters of 64 KiB, as QEMU makes them.
    pub fn new(size: u64) -> Self {
        Self { size, version: 3, cluster_bytes: 65536, compression: Compression::Deflate, backing: None }
    }

    fn check(&self) -> Result<()> {
        let invalid = |text: String| Err(Error::new(Kind::Invalid, text));
        if !self.cluster_bytes.is_power_of_two() || !(512..=2 << 20).contains(&self.cluster_bytes) {
            return invalid(format!("clusters of {} bytes: a power of two from 512 to 2M", self.cluster_bytes));
        }
        if !matches!(self.version, 2 | 3) {
            return invalid(format!("qcow2 of version {}: 2 or 3", self.version));
        }
        if self.version == 2 && self.compression != Compression::Deflate {
            return invalid("qcow2 of version 2 knows no compression but deflate".to_owned());
        }
        if let Some((name, _)) = &self.backing
            && (name.is_empty() || name.len() > crate::gate::NAME_BYTES_MAX)
        {
            return invalid(format!("a backing file name of {} bytes", name.len()));
        }
        Ok(())
    }
}

/// How large the tables of an image are.
pub(super) struct Sizes {
    /// Bytes of the disk, in whole sectors.
    pub size: u64,
    pub l1_entries: u64,
    l1_clusters: u64,
    /// Of a refcount table for the image when it is full.
    table_clusters: u64,
}

impl Sizes {
    /// # Errors
    /// [`Kind::Invalid`]; [`Kind::Limit`] for a disk that is too large for such clusters.
    pub(super) fn of(what: &Create) -> Result<Self> {
        what.check()?;
        let cluster = u64::from(what.cluster_bytes);
        let per_table = (cluster / 8).saturating_mul(cluster);
        let too_large = || {
            let context = format!("a disk of {} bytes is too large for clusters of {cluster} bytes", what.size);
            Error::new(Kind::Limit, context)
        };
        let size = what.size.checked_next_multiple_of(512).ok_or_else(too_large)?;
        let l1_entries = size.div_ceil(per_table.max(1));
        let l1_clusters = l1_entries.saturating_mul(8).div_ceil(cluster.max(1)).max(1);
        // Counts of 16 bits for all clusters of a full image, and for the counts themselves.
        let data = size.div_ceil(cluster.max(1)).saturating_add(l1_entries).saturating_add(l1_clusters);
        let blocks_of_all = data.div_ceil((cluster / 2).saturating_sub(1).max(1)).saturating_add(2);
        let table_clusters = blocks_of_all.saturating_mul(8).div_ceil(cluster.max(1)).saturating_add(1);
        if l1_entries > L1_ENTRIES_MAX || table_clusters.saturating_mul(cluster) > REFTABLE_BYTES_MAX {
            return Err(too_large());
        }
        Ok(Self { size, l1_entries, l1_clusters, table_clusters })
    }
}

/// Makes an image in a storage, whose first cluster holds zeroes or nothing.
///
/// # Errors
/// [`Kind::Invalid`]; [`Kind::Limit`] for a disk that is too large for such clusters; [`Kind::Exists`] where something
/// begins already; the failure of the storage.
pub fn create(storage: &dyn Storage, what: &Create) -> Result<()> {
    let Sizes { size, l1_entries, l1_clusters, table_clusters } = Sizes::of(what)?;
    if block::bytes::read_up_to(&storage, 0, 512)?.iter().any(|byte| *byte != 0) {
        return Err(Error::new(Kind::Exists, "something begins already where an image is to be made"));
    }
    let cluster = u64::from(what.cluster_bytes);
    let per_block = cluster / 2;
    // Blocks that count what is there at first.
    let mut blocks = 1_u64;
    let used = |blocks: u64| 1_u64.saturating_add(table_clusters).saturating_add(blocks).saturating_add(l1_clusters);
    while used(blocks) > blocks.saturating_mul(per_block) {
        blocks = blocks.saturating_add(1);
    }
    let used = used(blocks);
    let offset = |clusters: u64| clusters.saturating_mul(cluster);
    let first_block = 1_u64.saturating_add(table_clusters);
    let l1_offset = offset(first_block.saturating_add(blocks));
    storage.grow(offset(used))?;
    storage.write_zeroes(0, offset(used), Zero::Deallocate)?;
    let counts: Vec<u8> = (0..used).flat_map(|_| 1_u16.to_be_bytes()).collect();
    storage.write_at(&counts, offset(first_block))?;
    let table: Vec<u8> =
        (0..blocks).flat_map(|block| offset(first_block.saturating_add(block)).to_be_bytes()).collect();
    storage.write_at(&table, cluster)?;
    storage.flush()?;
    let header = header(what, size, l1_entries, l1_offset, (cluster, table_clusters))?;
    // The header last: without it there is no image, with it all is there.
    storage.write_at(&header, 0)?;
    storage.flush()?;
    // What was written is what is read.
    Header::read(&storage).map(drop)
}

/// The header of an image; `refcounts`: where their table is, and its clusters.
pub(super) fn header(
    what: &Create,
    size: u64,
    l1_entries: u64,
    l1_offset: u64,
    refcounts: (u64, u64),
) -> Result<Vec<u8>> {
    let third = what.version == 3;
    let length = if third { LENGTH_3 } else { LENGTH_2 };
    let zstd = what.compression == Compression::Zstd;
    let mut extensions: Vec<u8> = Vec::new();
    if let Some((_, format)) = &what.backing {
        extensions.extend(0xe279_2aca_u32.to_be_bytes());
        extensions.extend(u32::try_from(format.len()).unwrap_or_default().to_be_bytes());
        extensions.extend(format.as_bytes());
        extensions.resize(extensions.len().next_multiple_of(8), 0);
    }
    extensions.extend([0; 8]);
    let backing_at = (length as usize).saturating_add(extensions.len());
    let backing = what.backing.as_ref().map(|(name, _)| name.as_bytes()).unwrap_or_default();
    let small = |value: u64| u32::try_from(value).map_err(|_| Error::new(Kind::Limit, "a table of an image"));
    let mut bytes = b"QFI\xfb".to_vec();
    bytes.extend(what.version.to_be_bytes());
    bytes.extend(if backing.is_empty() { 0 } else { backing_at as u64 }.to_be_bytes());
    bytes.extend(small(backing.len() as u64)?.to_be_bytes());
    bytes.extend(what.cluster_bytes.trailing_zeros().to_be_bytes());
    bytes.extend(size.to_be_bytes());
    bytes.extend(0_u32.to_be_bytes());
    bytes.extend(small(l1_entries)?.to_be_bytes());
    bytes.extend(l1_offset.to_be_bytes());
    bytes.extend(refcounts.0.to_be_bytes());
    bytes.extend(small(refcounts.1)?.to_be_bytes());
    bytes.extend([0; 12]);
    if third {
        bytes.extend(if zstd { 8_u64 } else { 0 }.to_be_bytes());
        bytes.extend([0; 16]);
        bytes.extend(4_u32.to_be_bytes());
        bytes.extend(LENGTH_3.to_be_bytes());
        bytes.extend([u8::from(zstd), 0, 0, 0, 0, 0, 0, 0]);
    }
    bytes.extend(extensions);
    bytes.extend(backing);
    if bytes.len() as u64 > u64::from(what.cluster_bytes) {
        return Err(Error::new(Kind::Invalid, format!("a header of {} bytes in one cluster", bytes.len())));
    }
    Ok(bytes)
}
