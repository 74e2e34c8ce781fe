//! VirtualBox's VDI, read: little-endian.
//!
//! ```text
//! 0            64     68       76    340          344          368        376         384
//! +------------+------+--------+-----+------------+------------+----------+-----------+--------+---
//! | text       | magic| version| type| table at   | data at    | disk size| block size| blocks | …
//! +------------+------+--------+-----+------------+------------+----------+-----------+--------+---
//! table: a number a block; 0xffffffff: none, 0xfffffffe: zeroes
//! ```

pub(crate) mod create;

use std::sync::Arc;

use block::bytes::{le_u32, le_u64, read_up_to};
use block::{Error, Kind, ReadAt, Result, Storage};

use crate::blocks::{BLOCKS_MAX, Blocks, Place, Table};

/// Opens an image.
///
/// # Errors
/// [`Kind::Corrupt`]; [`Kind::Unsupported`] of a differencing one; [`Kind::Limit`].
pub fn open(storage: Arc<dyn Storage>) -> Result<Arc<dyn ReadAt>> {
    let head = read_up_to(&storage, 0, 512)?;
    let cut = || Error::new(Kind::Corrupt, "a VDI header that is cut short");
    let u32_at = |at| le_u32(&head, at).ok_or_else(cut);
    if u32_at(64)? != 0xbeda_107f || u32_at(68)? != 0x0001_0001 {
        return Err(Error::new(Kind::Unsupported, "a VDI of another version than 1.1"));
    }
    if !matches!(u32_at(76)?, 1 | 2) {
        return Err(Error::new(Kind::Unsupported, "a differencing VDI: merge it with VirtualBox first"));
    }
    let (table, data) = (u64::from(u32_at(340)?), u64::from(u32_at(344)?));
    let size = le_u64(&head, 368).ok_or_else(cut)?;
    let (block, extra) = (u64::from(u32_at(376)?), u64::from(u32_at(380)?));
    let blocks = size.div_ceil(block.max(512));
    if blocks > BLOCKS_MAX {
        return Err(Error::new(Kind::Limit, format!("a VDI that claims a disk of {size} bytes")));
    }
    let place = move |number| match u32::from_le_bytes(number) {
        u32::MAX => Place::Below,
        0xffff_fffe => Place::Zero,
        number => {
            let start = u64::from(number).saturating_mul(block.saturating_add(extra));
            Place::At(data.saturating_add(start).saturating_add(extra))
        }
    };
    let places = Table::new(&storage, table, blocks, 0, place)?;
    Ok(Arc::new(Blocks::new(storage, size, block, places)?))
}
