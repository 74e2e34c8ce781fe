//! VHD (Microsoft's Virtual Hard Disk Image Format Specification 1.0), read: fixed, dynamic and differencing;
//! big-endian.
//!
//! ```text
//! fixed:    | data …                                              | footer 512 |
//! dynamic:  | footer's copy | header 1024 | table | bitmap, block … | footer 512 |
//! table: the sector of a block's bitmap; 0xffffffff: none
//! ```

pub(crate) mod create;

use std::sync::Arc;

use block::bytes::{be_u32, be_u64, has, read_up_to, read_vec};
use block::layer::Window;
use block::{Error, Kind, ReadAt, Result, Storage};

use crate::blocks::{BLOCKS_MAX, Blocks, Place, Table};
use crate::gate::Gate;
use crate::probe;

/// Opens an image; its parent, where it has one, through `gate`.
///
/// # Errors
/// [`Kind::Corrupt`]; [`Kind::Unsupported`]; [`Kind::Limit`]; those of the gate.
pub fn open(storage: Arc<dyn Storage>, gate: &Gate<'_>) -> Result<Arc<dyn ReadAt>> {
    let corrupt = |what: &'static str| Error::new(Kind::Corrupt, what);
    let mut footer = read_up_to(&storage, storage.size().saturating_sub(512), 512)?;
    if !has(&footer, 0, b"conectix") {
        // The copy at the start, where the end was lost.
        footer = read_up_to(&storage, 0, 512)?;
    }
    if !has(&footer, 0, b"conectix") {
        return Err(corrupt("a VHD without a footer"));
    }
    let size = be_u64(&footer, 48).unwrap_or_default();
    let kind = be_u32(&footer, 60).unwrap_or_default();
    if kind == 2 {
        if size > storage.size() {
            return Err(corrupt("a fixed VHD that ends before its disk does: it was cut short"));
        }
        return Ok(Arc::new(Window::new(storage, 0, size)?));
    }
    if !matches!(kind, 3 | 4) {
        return Err(Error::new(Kind::Unsupported, format!("a VHD of type {kind}")));
    }
    let header = read_vec(&storage, be_u64(&footer, 16).unwrap_or_default(), 1024)
        .map_err(|error| corrupt("a VHD whose header is cut short").with_source(error))?;
    if !has(&header, 0, b"cxsparse") {
        return Err(corrupt("a dynamic VHD without its header"));
    }
    let u32_at = |at| u64::from(be_u32(&header, at).unwrap_or_default());
    let (entries, block) = (u32_at(28), u32_at(32));
    if entries > BLOCKS_MAX || size.div_ceil(block.max(512)) > entries {
        return Err(Error::new(Kind::Limit, format!("a VHD of {size} bytes with a table of {entries} blocks")));
    }
    let table = be_u64(&header, 16).unwrap_or_default();
    let bitmap = (block / 512).div_ceil(8).next_multiple_of(512);
    let place = move |sector| match u32::from_be_bytes(sector) {
        u32::MAX => Place::Below,
        sector => Place::At(u64::from(sector).saturating_mul(512).saturating_add(bitmap)),
    };
    let places = Table::new(&storage, table, entries, 0, place)?;
    let blocks = Blocks::new(Arc::clone(&storage), size, block, places)?;
    if kind == 3 {
        return Ok(Arc::new(blocks));
    }
    let name = parent_name(&storage, &header)?;
    let (opened, gate) = gate.open(&name)?;
    let found = probe::probe(&opened.storage)?;
    let wanted = header.get(40..56).unwrap_or_default();
    if found.uuid != Some(probe::uuid_text(wanted)) {
        let context = format!("{}: not the parent that the VHD was made on", opened.path.display());
        return Err(Error::new(Kind::Invalid, context));
    }
    let parent = open(opened.storage, &gate)?;
    Ok(Arc::new(blocks.on_top_of(parent, bitmap)))
}

/// The parent as a path beside the image, where there is one: else its plain name.
fn parent_name(storage: &dyn ReadAt, header: &[u8]) -> Result<String> {
    let text = |units: Vec<u16>| {
        let name = String::from_utf16_lossy(&units).replace('\\', "/");
        name.trim_end_matches('\0').to_owned()
    };
    let locators = header.get(576..).unwrap_or_default().chunks_exact(24).take(8);
    for locator in locators.filter(|locator| has(locator, 0, b"W2ru")) {
        let (len, at) = (be_u32(locator, 8).unwrap_or_default(), be_u64(locator, 16).unwrap_or_default());
        if (2..=2048).contains(&len) {
            let bytes = read_vec(storage, at, len as usize)?;
            return Ok(text(bytes.as_chunks().0.iter().map(|unit| u16::from_le_bytes(*unit)).collect()));
        }
    }
    let bytes = header.get(64..576).unwrap_or_default();
    let units = bytes.as_chunks().0.iter().map(|unit| u16::from_be_bytes(*unit)).take_while(|unit| *unit != 0);
    let whole = text(units.collect());
    Ok(whole.rsplit('/').next().unwrap_or_default().to_owned())
}
