//! An image as the disk that it holds, whatever its format.

use std::sync::Arc;

use block::bytes::Bytes;
use block::layer::{Fixed, ReadOnly};
use block::{BlockDevice, Error, Kind, ReadAt, Result, ResultExt as _, Storage};
use serde::Serialize;

use crate::gate::Gate;
use crate::probe::{self, Format};
use crate::qcow2::{self, Qcow2};
use crate::{parallels, vdi, vhd, vhdx, vmdk};

/// An image, opened.
#[derive(Debug)]
pub struct Image {
    /// The disk.
    pub device: Arc<dyn BlockDevice>,
    /// What its header says besides [`probe::Container`].
    pub details: Details,
}

/// Facts of a format, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Details {
    /// Words: `compressed by zstd`, `extended L2`.
    pub features: Vec<String>,
    /// Internal snapshots.
    pub snapshots: Vec<qcow2::Snapshot>,
    /// The format of the backing file, as the image says it.
    pub backing_format: Option<String>,
}

/// Whether [`open`] reads a format.
pub fn is_read(format: Format) -> bool {
    use Format::{Parallels, Qcow2, Vdi, Vhd, Vhdx, Vmdk};
    matches!(format, Qcow2 | Vhd | Vhdx | Vmdk | Vdi | Parallels)
}

/// Opens what `storage` holds as `format`; what it names itself is opened through `gate`; of its snapshots `snapshot`,
/// when it is given.
///
/// # Errors
/// Those of the format; [`Kind::Unsupported`] for one that is not read; those of the gate.
pub fn open(storage: Arc<dyn Storage>, format: Format, gate: &Gate<'_>, snapshot: Option<&str>) -> Result<Image> {
    if snapshot.is_some() && format != Format::Qcow2 {
        return Err(Error::new(Kind::Unsupported, format!("snapshots in an image of the format {}", format.name())));
    }
    match format {
        Format::Raw => Ok(Image { device: Arc::new(storage), details: Details::default() }),
        Format::Qcow2 => open_qcow2(storage, gate, snapshot),
        Format::Vhd => Ok(only_read(vhd::open(storage, gate)?)),
        Format::Vhdx => Ok(only_read(vhdx::open(storage)?)),
        Format::Vmdk => Ok(only_read(vmdk::open(storage, gate)?)),
        Format::Vdi => Ok(only_read(vdi::open(storage)?)),
        Format::Parallels => Ok(only_read(parallels::open(storage)?)),
        other => Err(Error::new(Kind::Unsupported, format!("{} is recognised, and not read yet", other.name()))),
    }
}

/// What the header of an image says besides [`probe::Container`], where nothing else may be opened.
///
/// # Errors
/// Those of the format.
pub fn details(device: &Arc<dyn Storage>, format: Format) -> Result<Details> {
    match format {
        Format::Qcow2 => {
            let header = qcow2::Header::read(device)?;
            let snapshots = qcow2::read_snapshots(device, &header).unwrap_or_default();
            Ok(qcow2_details(&header, snapshots))
        }
        _ => Ok(Details::default()),
    }
}

fn only_read(device: Arc<dyn ReadAt>) -> Image {
    Image { device: Arc::new(ReadOnly::new(device)), details: Details::default() }
}

fn open_qcow2(storage: Arc<dyn Storage>, gate: &Gate<'_>, snapshot: Option<&str>) -> Result<Image> {
    let header = qcow2::Header::read(&storage)?;
    let format = header.backing_format.as_deref();
    let backing = header.backing_file.as_deref().map(|name| below(gate, name, format)).transpose()?;
    let image = match snapshot {
        Some(name) => Qcow2::open_snapshot(storage, backing, name)?,
        None => Qcow2::open(storage, backing)?,
    };
    let details = qcow2_details(image.header(), image.snapshots().unwrap_or_default());
    Ok(Image { device: Arc::new(image), details })
}

fn qcow2_details(header: &qcow2::Header, snapshots: Vec<qcow2::Snapshot>) -> Details {
    let mut features = Vec::new();
    let mut add = |has: bool, word: &str| {
        if has {
            features.push(word.to_owned());
        }
    };
    add(header.compression == qcow2::Compression::Zstd, "compressed by zstd");
    add(header.extended_l2, "extended L2");
    add(header.lazy_refcounts, "lazy refcounts");
    add(header.dirty, "refcounts to be counted anew");
    add(header.corrupt, "marked as corrupt");
    add(header.refcount_order != 4, &format!("refcounts of {} bits", 1_u64.wrapping_shl(header.refcount_order)));
    add(header.bitmaps > 0, &format!("{} bitmaps", header.bitmaps));
    Details { features, snapshots, backing_format: header.backing_format.clone() }
}

/// Opens what lies below an image: `name` is what that calls it, `format` what it says that is.
fn below(gate: &Gate<'_>, name: &str, format: Option<&str>) -> Result<Arc<dyn ReadAt>> {
    let (opened, gate) = gate.open(name)?;
    let what = || opened.path.display().to_string();
    let told = format.map(|format| format_of(format).ok_or_else(|| format.to_owned()));
    let told = match told {
        Some(Err(word)) => {
            let word: String = word.chars().take(32).flat_map(char::escape_debug).collect();
            return Err(Error::new(Kind::Unsupported, format!("{}: a backing file of the format {word}", what())));
        }
        Some(Ok(format)) => Some(format),
        None => None,
    };
    let found = probe::probe(&opened.storage).context(what)?;
    // A guest can write any header into a raw disk, so one that nobody vouches for may lead no further.
    if told.is_none() && found.backing_file.is_some() {
        let context = format!("{}: the image above it does not say its format, and it names another file", what());
        return Err(Error::new(Kind::NotPermitted, context));
    }
    let format = told.unwrap_or(if is_read(found.format) { found.format } else { Format::Raw });
    let image = open(Arc::clone(&opened.storage), format, &gate, None).context(what)?;
    Ok(Arc::new(ReadOnly::new(image.device)))
}

/// The format that a word means, in an image or on the command line: QEMU's words and loopbox's.
pub fn format_of(word: &str) -> Option<Format> {
    const WORDS: &[(&str, Format)] = &[
        ("raw", Format::Raw),
        ("qcow2", Format::Qcow2),
        ("vpc", Format::Vhd),
        ("vhd", Format::Vhd),
        ("vhdx", Format::Vhdx),
        ("vmdk", Format::Vmdk),
        ("vdi", Format::Vdi),
        ("parallels", Format::Parallels),
        ("gzip", Format::Gzip),
        ("xz", Format::Xz),
        ("zstd", Format::Zstd),
    ];
    WORDS.iter().find(|(known, _)| *known == word).map(|(_, format)| *format)
}

/// For fuzzing: takes `data` for an image of a format that is only read, and reads some of it.
pub fn fuzz(data: &[u8], format: Format) {
    let storage: Arc<dyn Storage> = Arc::new(Fixed::new(ReadOnly::new(Bytes(data.to_vec()))));
    let gate = Gate::new(&crate::gate::Closed, "image", (0, 0));
    let Ok(image) = open(storage, format, &gate, None) else { return };
    let size = image.device.size();
    let mut piece = vec![0; 65536];
    for offset in [0, 65536, size / 2, size.saturating_sub(65536)] {
        let len = size.saturating_sub(offset).min(65536) as usize;
        let _ = image.device.read_at(piece.get_mut(..len).unwrap_or_default(), offset);
        let _ = image.device.extent_at(offset);
    }
}
