//! Where everything lies in an overlay: docs/overlay.md draws it.

use std::fmt;

use crate::{Error, Kind, ReadAt, Result};

/// First bytes of every overlay.
pub const MAGIC: [u8; 16] = *b"loopbox overlay\0";
/// The only version so far.
pub const VERSION: u32 = 1;
/// Bytes of the header: one sector, which a disk writes as a whole or not at all.
pub(super) const HEADER: usize = 512;
/// Where the bitmap begins, bytes.
pub(super) const BITMAP_START: u64 = 4096;
/// The bitmap is written in blocks of this many bytes.
pub(super) const BITMAP_BLOCK: u64 = 4096;
/// Data begins at a multiple of this, bytes.
const DATA_ALIGN: u64 = 64 << 10;

/// The smallest cluster, bytes; all bases up to 128 GiB have it.
pub const CLUSTER_MIN: u32 = 4 << 10;
/// The largest cluster, bytes.
pub const CLUSTER_MAX: u32 = 1 << 20;
/// The largest bitmap, bytes, which also bounds the memory that an overlay takes.
pub const BITMAP_MAX: u64 = 4 << 20;
/// The largest base, bytes: 32 TiB.
pub const BASE_MAX: u64 = BITMAP_MAX * 8 * CLUSTER_MAX as u64;

/// What is wrong with the bytes of an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Corrupt {
    /// It does not begin as an overlay does.
    Magic,
    /// The checksum of the header is another.
    Checksum {
        /// What the header says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// A field of the header does not follow from the size of the base and of the cluster.
    Geometry,
    /// The bitmap has a cluster behind the end of the base.
    Bitmap,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(f, "no overlay of loopbox"),
            Self::Checksum { stored, computed } => {
                write!(f, "header checksum {stored:#010x}, computed {computed:#010x}")
            }
            Self::Geometry => write!(f, "a header whose numbers contradict each other"),
            Self::Bitmap => write!(f, "a cluster behind the end"),
        }
    }
}

impl std::error::Error for Corrupt {}

impl From<Corrupt> for Error {
    fn from(corrupt: Corrupt) -> Self {
        Self::new(Kind::Corrupt, "an overlay that is damaged").with_source(corrupt)
    }
}

/// How an overlay does not belong to a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WrongBase {
    /// It was made for a base of another size.
    Size {
        /// Size of the base that it was made for, bytes.
        made_for: u64,
        /// Size of this one, bytes.
        base: u64,
    },
    /// It was made for a base of other content, or the base has been changed since.
    Content,
}

impl fmt::Display for WrongBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size { made_for, base } => write!(f, "made for a base of {made_for} bytes, this one has {base}"),
            Self::Content => write!(f, "made for another base, or the base has been changed since"),
        }
    }
}

impl std::error::Error for WrongBase {}

impl From<WrongBase> for Error {
    fn from(wrong: WrongBase) -> Self {
        Self::new(Kind::Invalid, "an overlay that does not belong to this base").with_source(wrong)
    }
}

/// The geometry of an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Size of the base, bytes.
    pub base_size: u64,
    /// Size of a cluster, bytes, a power of two.
    pub cluster: u32,
}

impl Layout {
    /// Of a new overlay over a base of `base_size` bytes.
    ///
    /// # Errors
    /// [`Kind::Limit`] above [`BASE_MAX`].
    pub fn new(base_size: u64) -> Result<Self> {
        let mut cluster = CLUSTER_MIN;
        while cluster < CLUSTER_MAX && base_size.div_ceil(u64::from(cluster)) > BITMAP_MAX * 8 {
            cluster *= 2;
        }
        Self::with_cluster(base_size, cluster)
    }

    /// Of a new overlay with clusters of `cluster` bytes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when `cluster` is no power of two from [`CLUSTER_MIN`] to [`CLUSTER_MAX`]; [`Kind::Limit`]
    /// when the bitmap would pass [`BITMAP_MAX`].
    pub fn with_cluster(base_size: u64, cluster: u32) -> Result<Self> {
        if !cluster.is_power_of_two() || !(CLUSTER_MIN..=CLUSTER_MAX).contains(&cluster) {
            return Err(Error::new(Kind::Invalid, format!("an overlay with clusters of {cluster} bytes")));
        }
        let layout = Self { base_size, cluster };
        if layout.clusters() > BITMAP_MAX * 8 {
            let text =
                format!("a base of {base_size} bytes, too large for an overlay with clusters of {cluster} bytes");
            return Err(Error::new(Kind::Limit, text));
        }
        Ok(layout)
    }

    /// Bytes that the overlay needs below it; a sparse file takes the room of what is written only.
    pub fn size(&self) -> u64 {
        self.data_start() + self.base_size
    }

    pub(super) fn clusters(&self) -> u64 {
        self.base_size.div_ceil(u64::from(self.cluster))
    }

    /// Bytes of the bitmap: whole blocks.
    pub(super) fn bitmap_len(&self) -> u64 {
        self.clusters().div_ceil(8).next_multiple_of(BITMAP_BLOCK)
    }

    /// Where the byte 0 of the base has its place, bytes.
    pub(super) fn data_start(&self) -> u64 {
        (BITMAP_START + self.bitmap_len()).next_multiple_of(DATA_ALIGN.max(u64::from(self.cluster)))
    }

    /// The header of an overlay over a base with this fingerprint.
    pub(super) fn header(&self, fingerprint: u64) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..16].copy_from_slice(&MAGIC);
        header[16..20].copy_from_slice(&VERSION.to_le_bytes());
        header[20..24].copy_from_slice(&self.cluster.to_le_bytes());
        header[24..32].copy_from_slice(&self.base_size.to_le_bytes());
        header[32..40].copy_from_slice(&self.bitmap_len().to_le_bytes());
        header[40..48].copy_from_slice(&self.data_start().to_le_bytes());
        header[48..56].copy_from_slice(&fingerprint.to_le_bytes());
        let checksum = crc32c::crc32c(&header[..HEADER - 4]);
        header[HEADER - 4..].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    /// What a header says: the layout, and the fingerprint of the base.
    pub(super) fn parse(header: &[u8; HEADER]) -> Result<(Self, u64)> {
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| header[at + n]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| header[at + n]));
        if header[..16] != MAGIC {
            return Err(Corrupt::Magic.into());
        }
        let (stored, computed) = (u32_at(HEADER - 4), crc32c::crc32c(&header[..HEADER - 4]));
        if stored != computed {
            return Err(Corrupt::Checksum { stored, computed }.into());
        }
        let version = u32_at(16);
        if version != VERSION {
            return Err(Error::new(Kind::Unsupported, format!("an overlay of version {version}, this is {VERSION}")));
        }
        let layout = Self::with_cluster(u64_at(24), u32_at(20)).map_err(|_| Corrupt::Geometry)?;
        if (layout.bitmap_len(), layout.data_start()) != (u64_at(32), u64_at(40)) {
            return Err(Corrupt::Geometry.into());
        }
        Ok((layout, u64_at(48)))
    }
}

/// A number that tells bases apart: FNV-1a (64 bits) over the first and the last 64 KiB and 14 pages of 4 KiB at equal
/// distances between them. It costs the same for any size, and does not see a change elsewhere.
pub(super) fn fingerprint(base: &dyn ReadAt) -> Result<u64> {
    const EDGE: u64 = 64 << 10;
    const PAGE: u64 = 4096;
    const PAGES: u64 = 14;
    let size = base.size();
    let mut hash: u64 = 0xCBF2_9CE4_8422_2325;
    let mut add = |offset: u64, len: u64| -> Result<()> {
        let mut buf = vec![0; len as usize];
        base.read_at(&mut buf, offset)?;
        for byte in buf {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        Ok(())
    };
    if size <= 2 * EDGE + PAGES * PAGE {
        add(0, size)?;
        return Ok(hash);
    }
    add(0, EDGE)?;
    let step = (size - 2 * EDGE) / PAGES / PAGE * PAGE;
    (0..PAGES).try_for_each(|n| add(EDGE + n * step, PAGE))?;
    add(size - EDGE, EDGE)?;
    Ok(hash)
}
