//! The header, its features and its extensions: big-endian.
//!
//! ```text
//! 0    4        8               16           20            24    32     36       40        48         56
//! +----+--------+---------------+------------+-------------+-----+------+--------+---------+----------+---
//! |magic|version|backing offset |backing size|cluster bits |size |crypt |L1 size |L1 offset|ref offset| …
//! +----+--------+---------------+------------+-------------+-----+------+--------+---------+----------+---
//! 56           60         64               72            80          88         96             100       104
//! |ref clusters|snapshots |snapshots offset|incompatible |compatible |autoclear |refcount order|length   |type
//! ```

use block::bytes::{be_u32, be_u64, byte, has, read_up_to};
use block::{Error, Kind, ReadAt, Result};

use super::Corrupt;

/// Bytes of the header of version 2.
pub(super) const LENGTH_2: u32 = 72;
/// Bytes of the header of version 3 as loopbox writes it.
pub(super) const LENGTH_3: u32 = 112;
/// The longest L1 table, entries: 32 MiB, QEMU's limit too.
pub(super) const L1_ENTRIES_MAX: u64 = 4 << 20;
/// The longest refcount table, bytes: QEMU's limit too.
pub(super) const REFTABLE_BYTES_MAX: u64 = 8 << 20;

/// The refcounts may be too small.
pub(super) const DIRTY: u64 = 1;
/// Something else is wrong.
pub(super) const CORRUPT: u64 = 2;
const EXTERNAL_DATA: u64 = 4;
const COMPRESSION: u64 = 8;
const EXTENDED_L2: u64 = 16;
/// The bitmaps are right.
pub(super) const AUTOCLEAR_BITMAPS: u64 = 1;

const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Raw deflate, a window of 4096 bytes.
    Deflate,
    /// Zstandard frames.
    Zstd,
}

/// What a header says.
#[derive(Debug, Clone)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// A cluster has 2 to the power of this bytes.
    pub cluster_bits: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// The backing file, as named.
    pub backing_file: Option<String>,
    /// Its format, as named.
    pub backing_format: Option<String>,
    /// How clusters are compressed.
    pub compression: Compression,
    /// Whether an L2 entry has 32 subclusters.
    pub extended_l2: bool,
    /// A refcount has 2 to the power of this bits.
    pub refcount_order: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Whether the refcounts are to be made anew before writing.
    pub dirty: bool,
    /// Whether a writer has found it damaged.
    pub corrupt: bool,
    /// Whether refcounts may be written late.
    pub lazy_refcounts: bool,
    /// Persistent bitmaps.
    pub bitmaps: u32,
    pub(super) l1_entries: u64,
    pub(super) l1_offset: u64,
    pub(super) reftable_offset: u64,
    pub(super) reftable_clusters: u32,
    pub(super) snapshots_offset: u64,
    pub(super) incompatible: u64,
    pub(super) autoclear: u64,
    /// Offset and bytes of the bitmap directory.
    pub(super) bitmap_directory: Option<(u64, u64)>,
    /// Offset and bytes of the header of an encrypted image.
    pub(super) encryption: Option<(u64, u64)>,
}

impl Header {
    /// Reads it.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] with [`Corrupt`] as the source; [`Kind::Unsupported`] for features that loopbox has not.
    pub fn read(device: &dyn ReadAt) -> Result<Self> {
        let head = read_up_to(device, 0, 4096)?;
        let header = Self::parse(&head)?;
        header.with_extensions(device)
    }

    fn parse(head: &[u8]) -> Result<Self> {
        let u32_at = |at| be_u32(head, at).ok_or(Corrupt::Header);
        let u64_at = |at| be_u64(head, at).ok_or(Corrupt::Header);
        if !has(head, 0, b"QFI\xfb") {
            return Err(Corrupt::Magic.into());
        }
        let version = u32_at(4)?;
        if !matches!(version, 2 | 3) {
            return Err(Error::new(Kind::Unsupported, format!("qcow2 of version {version}")));
        }
        let third = version == 3;
        let cluster_bits = u32_at(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(Corrupt::ClusterBits(cluster_bits).into());
        }
        let (incompatible, compatible, autoclear, refcount_order, length) = if third {
            (u64_at(72)?, u64_at(80)?, u64_at(88)?, u32_at(96)?, u32_at(100)?)
        } else {
            (0, 0, 0, 4, LENGTH_2)
        };
        let known = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2;
        if incompatible & !known != 0 {
            let context = format!("qcow2 with features that loopbox does not know: {:#x}", incompatible & !known);
            return Err(Error::new(Kind::Unsupported, context));
        }
        if incompatible & EXTERNAL_DATA != 0 {
            let context = "qcow2 whose data is in another file: convert it first (qemu-img convert)";
            return Err(Error::new(Kind::Unsupported, context));
        }
        match u32_at(32)? {
            0 => {}
            1 => return Err(Error::new(Kind::Unsupported, "qcow2 with AES encryption, which is broken: convert it")),
            2 => return Err(Error::new(Kind::Unsupported, "qcow2 with LUKS encryption inside: not read yet")),
            _ => return Err(Corrupt::Header.into()),
        }
        if refcount_order > 6 {
            return Err(Corrupt::RefcountOrder(refcount_order).into());
        }
        if third && (length < 104 || !length.is_multiple_of(8) || u64::from(length) > 1_u64 << cluster_bits.min(21)) {
            return Err(Corrupt::HeaderLength(length).into());
        }
        let compression = match (incompatible & COMPRESSION != 0, byte(head, 104)) {
            (false, _) => Compression::Deflate,
            (true, Some(1)) => Compression::Zstd,
            (true, Some(0)) => Compression::Deflate,
            (true, _) => return Err(Error::new(Kind::Unsupported, "qcow2 with a compression of another kind")),
        };
        let extended_l2 = incompatible & EXTENDED_L2 != 0;
        if extended_l2 && cluster_bits < 14 {
            return Err(Corrupt::ClusterBits(cluster_bits).into());
        }
        let mut header = Self {
            version,
            cluster_bits,
            size: u64_at(24)?,
            backing_file: None,
            backing_format: None,
            compression,
            extended_l2,
            refcount_order,
            snapshots: u32_at(60)?,
            dirty: incompatible & DIRTY != 0,
            corrupt: incompatible & CORRUPT != 0,
            lazy_refcounts: compatible & 1 != 0,
            bitmaps: 0,
            l1_entries: u64::from(u32_at(36)?),
            l1_offset: u64_at(40)?,
            reftable_offset: u64_at(48)?,
            reftable_clusters: u32_at(56)?,
            snapshots_offset: u64_at(64)?,
            incompatible,
            autoclear,
            bitmap_directory: None,
            encryption: None,
        };
        header.check()?;
        header.backing_file = backing_file(head, u64_at(8)?, u32_at(16)?)?;
        Ok(header)
    }

    fn check(&self) -> Result<()> {
        let needed = self.l1_entries_of(self.size);
        if needed > L1_ENTRIES_MAX || self.l1_entries > L1_ENTRIES_MAX {
            let context = format!(
                "qcow2 that claims a disk of {} bytes, for which its table would need {} entries, of {L1_ENTRIES_MAX} \
                 at the most",
                self.size,
                needed.max(self.l1_entries)
            );
            return Err(Error::new(Kind::Limit, context));
        }
        if self.l1_entries < needed {
            return Err(Corrupt::L1TooShort { entries: self.l1_entries, needed }.into());
        }
        let cluster_mask = self.cluster_bytes().saturating_sub(1);
        for offset in [self.l1_offset, self.reftable_offset, self.snapshots_offset] {
            if offset & cluster_mask != 0 {
                return Err(Corrupt::Unaligned(offset).into());
            }
        }
        if u64::from(self.reftable_clusters).saturating_mul(self.cluster_bytes()) > REFTABLE_BYTES_MAX {
            return Err(Error::new(Kind::Limit, format!("refcount table of {} clusters", self.reftable_clusters)));
        }
        Ok(())
    }

    /// Reads the extensions and the longer names, which may lie anywhere in the first cluster.
    fn with_extensions(mut self, device: &dyn ReadAt) -> Result<Self> {
        // At most 2 MiB: the largest cluster.
        let first = read_up_to(device, 0, usize::try_from(self.cluster_bytes()).unwrap_or(1 << 21))?;
        let (at, len) = (be_u64(&first, 8).unwrap_or_default(), be_u32(&first, 16).unwrap_or_default());
        self.backing_file = backing_file(&first, at, len)?;
        let mut at = if self.version == 3 { be_u32(&first, 100).unwrap_or(LENGTH_3) } else { LENGTH_2 } as usize;
        // Each has 8 bytes at least, and a cluster ends.
        while let (Some(kind), Some(len)) = (be_u32(&first, at), be_u32(&first, at.saturating_add(4))) {
            at = at.saturating_add(8);
            let data = first.get(at..).and_then(|rest| rest.get(..len as usize));
            let (1.., Some(data)) = (kind, data) else { break };
            match kind {
                EXTENSION_BACKING_FORMAT => self.backing_format = Some(String::from_utf8_lossy(data).into_owned()),
                EXTENSION_BITMAPS => {
                    self.bitmaps = be_u32(data, 0).unwrap_or_default();
                    self.bitmap_directory = be_u64(data, 16).zip(be_u64(data, 8));
                }
                EXTENSION_ENCRYPTION => self.encryption = be_u64(data, 0).zip(be_u64(data, 8)),
                _ => {}
            }
            at = at.saturating_add((len as usize).next_multiple_of(8));
        }
        Ok(self)
    }

    /// Bytes of a cluster.
    pub fn cluster_bytes(&self) -> u64 {
        1_u64 << self.cluster_bits.min(21)
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub(super) fn l1_entries_of(&self, size: u64) -> u64 {
        let clusters_of_table = if self.extended_l2 { self.cluster_bytes() / 16 } else { self.cluster_bytes() / 8 };
        size.div_ceil(clusters_of_table.saturating_mul(self.cluster_bytes()).max(1))
    }
}

fn backing_file(head: &[u8], at: u64, len: u32) -> Result<Option<String>> {
    if at == 0 {
        return Ok(None);
    }
    if len > 1023 {
        return Err(Corrupt::BackingName(len).into());
    }
    let name = usize::try_from(at).ok().and_then(|at| head.get(at..)?.get(..len as usize));
    Ok(name.map(|name| String::from_utf8_lossy(name).into_owned()))
}
