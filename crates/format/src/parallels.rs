//! Parallels' expanding disks, read: little-endian.
//!
//! ```text
//! 0                16       28               32      36       44     48       64
//! +----------------+--------+----------------+-------+--------+------+--------+--------
//! | magic          | …      | block, sectors | blocks| sectors| state| data at| table …
//! +----------------+--------+----------------+-------+--------+------+--------+--------
//! table: `WithoutFreeSpace`: sectors; `WithouFreSpacExt`: blocks; 0: none
//! ```

use std::sync::Arc;

use block::bytes::{has, le_u32, le_u64, read_up_to};
use block::{Error, Kind, ReadAt, Result, Storage};

use crate::blocks::{BLOCKS_MAX, Blocks, Place, Table};

/// Opens an image.
///
/// # Errors
/// [`Kind::Corrupt`]; [`Kind::Unsupported`]; [`Kind::Limit`].
pub fn open(storage: Arc<dyn Storage>) -> Result<Arc<dyn ReadAt>> {
    let head = read_up_to(&storage, 0, 64)?;
    let cut = || Error::new(Kind::Corrupt, "a Parallels header that is cut short");
    let u32_at = |at| le_u32(&head, at).map(u64::from).ok_or_else(cut);
    let extended = has(&head, 0, b"WithouFreSpacExt");
    if !extended && !has(&head, 0, b"WithoutFreeSpace") || u32_at(16)? != 2 {
        return Err(Error::new(Kind::Unsupported, "a Parallels image of another version than 2"));
    }
    let block = u32_at(28)?.saturating_mul(512);
    let entries = u32_at(32)?;
    let sectors = if extended { le_u64(&head, 36).ok_or_else(cut)? } else { u32_at(36)? };
    let size = sectors.checked_mul(512).filter(|size| *size <= i64::MAX as u64);
    let size = size.ok_or_else(|| Error::new(Kind::Limit, format!("a Parallels disk of {sectors} sectors")))?;
    if entries > BLOCKS_MAX {
        return Err(Error::new(Kind::Limit, format!("a Parallels table of {entries} blocks")));
    }
    let unit = if extended { block } else { 512 };
    let place = move |number| match u32::from_le_bytes(number) {
        0 => Place::Below,
        number => Place::At(u64::from(number).saturating_mul(unit)),
    };
    let places = Table::new(&storage, 64, entries, 0, place)?;
    Ok(Arc::new(Blocks::new(storage, size, block, places)?))
}
