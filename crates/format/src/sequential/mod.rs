//! New images that are written once, from front to back: what `convert` and `create` make.
//!
//! ```text
//! disk    | block 0 | block 1: zeroes | block 2 | …
//!              │                           │           place: in the order of their numbers
//! file    | header | block 0 | block 2 | … | tables |  each byte written once
//! ```
//!
//! Tables are written as soon as nothing more can come into them: what is in memory does not grow with the disk, but
//! for the L1 table of qcow2 and the directory of VMDK, which have limits of their own.

mod table;

use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};

use block::{Error, Kind, Result, Sequential};

use crate::probe::Format;
use crate::{qcow2, vdi, vhd, vhdx, vmdk};

pub(crate) use table::Table;

/// Where a new image is written to: an empty file, in which what is not written reads as zero.
pub trait Output: Send + Sync + Debug {
    /// Writes bytes, at the end or behind it as well.
    ///
    /// # Errors
    /// The failure of the file.
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()>;

    /// Makes it so many bytes long, once all is written.
    ///
    /// # Errors
    /// The failure of the file.
    fn set_size(&self, bytes: u64) -> Result<()>;
}

/// Where the blocks of a format go.
pub(crate) trait Layout: Send + Debug {
    /// See [`Sequential::place`].
    fn place(&mut self, output: &dyn Output, number: u64, packed: Option<u64>) -> Result<u64>;

    /// Writes what is left: tables, and the header last, so that there is no image before all of it is there.
    fn finish(&mut self, output: &dyn Output) -> Result<()>;
}

/// How blocks are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// As they are.
    Plain,
    /// Clusters of a qcow2.
    Cluster(qcow2::Compression),
    /// Grains of a VMDK, with the marker in front of each.
    Grain,
}

/// What a format has of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Style {
    /// The disk as it is.
    Raw,
    /// qcow2, compressed or not; its size is that of [`New`].
    Qcow2 {
        /// What it is like.
        create: qcow2::Create,
        /// Whether its clusters are compressed.
        compress: bool,
    },
    /// VHD: dynamic or fixed.
    Vhd {
        /// The disk as it is, and a footer.
        fixed: bool,
    },
    /// VHDX, dynamic.
    Vhdx,
    /// VMDK: monolithicSparse or streamOptimized.
    Vmdk {
        /// Compressed, and written as a stream.
        stream: bool,
    },
    /// VDI, dynamic.
    Vdi,
}

impl Style {
    /// The style that a format and QEMU's word for a kind of it (`subformat`) mean.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a format that is not made; [`Kind::Invalid`] for a word that it has not.
    pub fn of(format: Format, subformat: Option<&str>) -> Result<Self> {
        let wrong = |words: &str| {
            let word = subformat.unwrap_or_default();
            Err(Error::new(Kind::Invalid, format!("--subformat {word}: a {} is made as {words}", format.name())))
        };
        Ok(match (format, subformat) {
            (Format::Raw, None) => Self::Raw,
            (Format::Qcow2, None) => Self::Qcow2 { create: qcow2::Create::new(0), compress: false },
            (Format::Vhd, None | Some("dynamic")) => Self::Vhd { fixed: false },
            (Format::Vhd, Some("fixed")) => Self::Vhd { fixed: true },
            (Format::Vhdx, None | Some("dynamic")) => Self::Vhdx,
            (Format::Vmdk, None | Some("monolithicSparse")) => Self::Vmdk { stream: false },
            (Format::Vmdk, Some("streamOptimized")) => Self::Vmdk { stream: true },
            (Format::Vdi, None | Some("dynamic")) => Self::Vdi,
            (Format::Vhd, Some(_)) => return wrong("dynamic or fixed"),
            (Format::Vhdx | Format::Vdi, Some(_)) => return wrong("dynamic"),
            (Format::Vmdk, Some(_)) => return wrong("monolithicSparse or streamOptimized"),
            (Format::Raw | Format::Qcow2, Some(_)) => return wrong("nothing else"),
            (other, _) => {
                return Err(Error::new(Kind::Unsupported, format!("{} is read, and not made", other.name())));
            }
        })
    }
}

/// A new image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct New {
    /// Bytes of the disk; formats that count sectors round it up to 512.
    pub size: u64,
    /// Its format.
    pub style: Style,
    /// A number that no other image has.
    pub id: u128,
    /// Now, seconds since 1970.
    pub seconds: u64,
    /// What the file is called: a VMDK names itself.
    pub name: String,
}

impl New {
    /// The size, in whole sectors.
    pub(crate) fn sectors_bytes(&self) -> Result<u64> {
        let whole = self.size.checked_next_multiple_of(512).filter(|size| *size <= i64::MAX as u64);
        whole.ok_or_else(|| Error::new(Kind::Limit, format!("a disk of {} bytes", self.size)))
    }

    /// Refuses a disk that the format cannot hold.
    pub(crate) fn at_most(&self, max: u64, what: &str) -> Result<u64> {
        let size = self.sectors_bytes()?;
        if size > max {
            let context = format!("a disk of {size} bytes: {what} holds {max} at the most");
            return Err(Error::new(Kind::Limit, context));
        }
        Ok(size)
    }

    /// Sixteen bytes that no other image has, and no other `purpose` of this one: a UUID of version 4.
    pub(crate) fn uuid(&self, purpose: u8) -> [u8; 16] {
        let mut bytes = (self.id ^ u128::from(purpose)).to_be_bytes();
        let [_, _, _, _, _, _, version, _, variant, ..] = &mut bytes;
        *version = *version & 0xf | 0x40;
        *variant = *variant & 0x3f | 0x80;
        bytes
    }
}

/// An image in the making.
#[derive(Debug)]
pub struct Image<'a> {
    output: &'a dyn Output,
    layout: Mutex<Box<dyn Layout>>,
    packing: Packing,
    block: u64,
}

impl<'a> Image<'a> {
    /// Begins it; of a file that is not finished nothing can be read.
    ///
    /// # Errors
    /// [`Kind::Invalid`]; [`Kind::Limit`] for a disk that is too large for the format.
    pub fn begin(output: &'a dyn Output, new: &New) -> Result<Self> {
        let (packing, block, layout): (_, _, Box<dyn Layout>) = match &new.style {
            Style::Raw => (Packing::Plain, PLAIN_BLOCK, Box::new(Plain { size: new.size })),
            Style::Qcow2 { create, compress } => {
                let create = qcow2::Create { size: new.size, ..create.clone() };
                let packing = if *compress { Packing::Cluster(create.compression) } else { Packing::Plain };
                (packing, u64::from(create.cluster_bytes), Box::new(qcow2::sequential::Clusters::new(create)?))
            }
            Style::Vhd { fixed: true } => (Packing::Plain, PLAIN_BLOCK, Box::new(vhd::create::Fixed::new(new)?)),
            Style::Vhd { fixed: false } => {
                (Packing::Plain, vhd::create::BLOCK, Box::new(vhd::create::Dynamic::new(new)?))
            }
            Style::Vhdx => {
                let layout = vhdx::create::Dynamic::new(new)?;
                (Packing::Plain, layout.block(), Box::new(layout))
            }
            Style::Vmdk { stream } => {
                let packing = if *stream { Packing::Grain } else { Packing::Plain };
                (packing, vmdk::create::GRAIN, vmdk::create::layout(new, *stream)?)
            }
            Style::Vdi => (Packing::Plain, vdi::create::BLOCK, Box::new(vdi::create::Dynamic::new(new)?)),
        };
        Ok(Self { output, layout: Mutex::new(layout), packing, block })
    }

    /// Writes the rest of it.
    ///
    /// # Errors
    /// The failure of the file.
    pub fn finish(self) -> Result<()> {
        self.layout.into_inner().unwrap_or_else(PoisonError::into_inner).finish(self.output)
    }
}

impl Sequential for Image<'_> {
    fn block(&self) -> u64 {
        self.block
    }

    fn packs(&self) -> bool {
        self.packing != Packing::Plain
    }

    fn pack(&self, number: u64, block: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.packing {
            Packing::Plain => Ok(None),
            Packing::Cluster(compression) => Ok(qcow2::pack(compression, block)),
            Packing::Grain => vmdk::create::pack(number, block).map(Some),
        }
    }

    fn place(&self, number: u64, packed: Option<u64>) -> Result<u64> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner).place(self.output, number, packed)
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.output.write_at(bytes, at)
    }
}

/// Blocks of what has none.
pub(crate) const PLAIN_BLOCK: u64 = 1 << 20;

#[derive(Debug)]
struct Plain {
    size: u64,
}

impl Layout for Plain {
    fn place(&mut self, _: &dyn Output, number: u64, _: Option<u64>) -> Result<u64> {
        Ok(number.saturating_mul(PLAIN_BLOCK))
    }

    fn finish(&mut self, output: &dyn Output) -> Result<()> {
        output.set_size(self.size)
    }
}

/// Puts a field into a header.
pub(crate) fn put(header: &mut [u8], at: usize, field: &[u8]) {
    if let Some(there) = header.get_mut(at..).and_then(|rest| rest.get_mut(..field.len())) {
        there.copy_from_slice(field);
    }
}

/// The file would be longer than its tables can say.
pub(crate) fn full(what: &str) -> Error {
    Error::new(Kind::Limit, format!("{what}: more data than it can hold"))
}
