//! Volume descriptors (ECMA-119, 8): what the image is called, and where its trees begin.
//!
//! One a sector of 2048 bytes, from sector 16 of a session on, up to the one of type 255:
//! ```text
//!   0 type │ "CD001" │ version        0 boot record   1 primary   2 supplementary (Joliet, enhanced)   255 end
//!   7 flags                           of a boot record: name of the boot system
//!   8 system, 32                     40 label, 32
//!  80 blocks (LE, BE)                88 escape sequences, 32: "%/@", "%/C", "%/E" are Joliet's
//! 128 bytes of a block (LE, BE)     156 directory record of the root, 34
//! 190 volume set, 128               318 publisher, 128     446 preparer, 128     574 application, 128
//! 813 created, 17                   830 modified, 17
//! ```

use block::bytes::{byte, le_u16, le_u32};
use block::{Error, Kind, ReadAt, Result};

use super::record::Record;
use super::susp::{self, Protocols, Recent};
use super::{Corrupt, Tree, date, name};
use crate::Time;

/// A sector, bytes, whatever a block is.
pub(super) const SECTOR_BYTES: u64 = 2048;
/// Sectors before the first descriptor.
const SYSTEM_AREA_SECTORS: u64 = 16;
/// How many descriptors are looked at.
pub const DESCRIPTORS_MAX: u64 = 128;
/// Where the root's record stands in a descriptor, bytes.
const ROOT_RECORD: usize = 156;

/// What the descriptors say of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its label.
    pub label: String,
    /// The system that it is for.
    pub system: String,
    /// The set that it belongs to.
    pub volume_set: String,
    /// Who published it.
    pub publisher: String,
    /// Who prepared it.
    pub preparer: String,
    /// What it was made with.
    pub application: String,
    /// When it was made, where it says so.
    pub created: Option<Time>,
    /// When it was changed, where it says so.
    pub modified: Option<Time>,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// How many blocks it claims to have; an image that is shorter was cut.
    pub blocks: u64,
    /// The trees that it has, the richest first. All but the plain one show the same files with more.
    pub trees: Vec<Tree>,
    /// The position of the boot catalog (El Torito), bytes.
    pub boot_catalog: Option<u64>,
}

/// Where the root of a tree is recorded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root {
    pub tree: Tree,
    /// Position of its directory record, bytes.
    pub record: u64,
    /// What to skip in system use areas, bytes.
    pub skip: usize,
}

/// Whether a volume begins at that sector.
///
/// # Errors
/// The failure of the device.
pub(super) fn is_there(device: &dyn ReadAt, session_sector: u64) -> Result<bool> {
    let at = session_sector.saturating_add(SYSTEM_AREA_SECTORS).saturating_mul(SECTOR_BYTES);
    if at.saturating_add(SECTOR_BYTES) > device.size() {
        return Ok(false);
    }
    let mut head = [0_u8; 15];
    device.read_at(&mut head, at)?;
    Ok(head.get(1..6) == Some(b"CD001") || head.get(9..14) == Some(b"CDROM"))
}

/// Reads the descriptors of the session that begins at a sector.
///
/// # Errors
/// `Unsupported` for the form before the standard (High Sierra); `Corrupt`; the failure of the device.
pub(super) fn read(device: &dyn ReadAt, session_sector: u64) -> Result<(Volume, Vec<Root>)> {
    let mut volume = None;
    let mut joliet = None;
    let mut enhanced = None;
    let mut primary = None;
    let mut boot_catalog_block = None;
    for number in 0..DESCRIPTORS_MAX {
        let sector = session_sector.saturating_add(SYSTEM_AREA_SECTORS).saturating_add(number);
        let at = sector.saturating_mul(SECTOR_BYTES);
        let mut bytes = [0_u8; 2048];
        if at.saturating_add(SECTOR_BYTES) > device.size() {
            break;
        }
        device.read_at(&mut bytes, at)?;
        if bytes.get(9..14) == Some(b"CDROM") {
            return Err(Error::new(Kind::Unsupported, "High Sierra image, the form before ISO 9660"));
        }
        if bytes.get(1..6) != Some(b"CD001") {
            break;
        }
        let root = at.saturating_add(ROOT_RECORD as u64);
        match (byte(&bytes, 0), byte(&bytes, 6)) {
            (Some(0), _) if bytes.get(7..30) == Some(b"EL TORITO SPECIFICATION") => {
                boot_catalog_block = boot_catalog_block.or(le_u32(&bytes, 71));
            }
            (Some(1), _) if volume.is_none() => {
                volume = Some(parse(&bytes)?);
                primary = Some(root);
            }
            (Some(2), _) if is_joliet(bytes.get(88..120).unwrap_or(&[])) => {
                let label: String = name::utf16(bytes.get(40..72).unwrap_or(&[])).collect();
                joliet = joliet.or(Some((root, label.trim_end_matches([' ', '\0']).to_owned())));
            }
            (Some(2), Some(2)) => enhanced = enhanced.or(Some(root)),
            (Some(255), _) => break,
            _ => {}
        }
    }
    let none = || {
        Corrupt::NoPrimaryVolume.at(format!("volume descriptors from sector {} on", session_sector.saturating_add(16)))
    };
    let (mut volume, primary) = volume.zip(primary).ok_or_else(none)?;
    volume.boot_catalog = boot_catalog_block.map(|block| u64::from(block).saturating_mul(SECTOR_BYTES));

    let mut roots = Vec::new();
    let protocols = protocols(device, primary, volume.block_bytes);
    if protocols.rock_ridge {
        roots.push(Root { tree: Tree::RockRidge, record: primary, skip: protocols.skip });
    }
    if let Some((record, label)) = joliet {
        roots.push(Root { tree: Tree::Joliet, record, skip: 0 });
        // It has 16 characters where the primary one has 32.
        if volume.label.is_empty() || volume.label.chars().count() < 16 && !label.is_empty() {
            volume.label = label;
        }
    }
    if let Some(record) = enhanced {
        roots.push(Root { tree: Tree::Enhanced, record, skip: 0 });
    }
    roots.push(Root { tree: Tree::Plain, record: primary, skip: 0 });
    volume.trees = roots.iter().map(|root| root.tree).collect();
    Ok((volume, roots))
}

fn is_joliet(escapes: &[u8]) -> bool {
    [b"%/@", b"%/C", b"%/E"].iter().any(|escape| escapes.starts_with(*escape))
}

fn parse(bytes: &[u8]) -> Result<Volume> {
    let text = |at: usize, len: usize| {
        let field = bytes.get(at..).and_then(|rest| rest.get(..len)).unwrap_or(&[]);
        String::from_utf8_lossy(field).trim_end_matches([' ', '\0']).to_owned()
    };
    let block_bytes = le_u16(bytes, 128).unwrap_or(0);
    if !matches!(block_bytes, 512 | 1024 | 2048) {
        return Err(Corrupt::BlockSize.at(format!("primary volume descriptor with blocks of {block_bytes} bytes")));
    }
    Ok(Volume {
        label: text(40, 32),
        system: text(8, 32),
        volume_set: text(190, 128),
        publisher: text(318, 128),
        preparer: text(446, 128),
        application: text(574, 128),
        created: bytes.get(813..).and_then(date::long),
        modified: bytes.get(830..).and_then(date::long),
        block_bytes: u32::from(block_bytes),
        blocks: u64::from(le_u32(bytes, 80).unwrap_or(0)),
        trees: Vec::new(),
        boot_catalog: None,
    })
}

/// The protocols that the first record of the root directory names; none where it cannot be read, so that the plain
/// tree of a damaged image can be.
fn protocols(device: &dyn ReadAt, root: u64, block_bytes: u32) -> Protocols {
    let mut protocols = Protocols::default();
    let mut record = [0_u8; super::record::RECORD_BYTES_MAX];
    let mut dot = [0_u8; super::record::RECORD_BYTES_MAX];
    let read = device.read_at(&mut record, root).and_then(|()| {
        let Some(record) = Record::parse(&record, block_bytes) else { return Ok(()) };
        device.read_at(&mut dot, record.start)?;
        let Some(dot) = Record::parse(&dot, block_bytes).filter(Record::is_dot) else { return Ok(()) };
        let mut recent = Recent::default();
        susp::walk(device, block_bytes, dot.system_use, susp::STAT_BUDGET, &mut recent, &mut protocols)
    });
    if read.is_err() && !protocols.rock_ridge {
        return Protocols::default();
    }
    protocols
}
