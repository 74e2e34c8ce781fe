//! VHDX (MS-VHDX), read: fixed and dynamic; the log of one that was not closed is replayed in memory.
//! Little-endian.
//!
//! ```text
//! 0         64 KiB   128 KiB  192 KiB         256 KiB         1 MiB
//! +---------+--------+--------+---------------+---------------+-----------------------------------
//! | vhdxfile| header | header | region table  | its copy      | log, metadata, BAT, blocks, anywhere
//! +---------+--------+--------+---------------+---------------+-----------------------------------
//! BAT entry: bits 0 to 2 the state, 20 to 63 the offset in MiB; after each `chunk ratio` of blocks one of a bitmap
//! ```

pub(crate) mod create;
mod log;

use std::sync::Arc;

use block::bytes::{has, le_u16, le_u32, le_u64, read_up_to};
use block::{Error, Kind, ReadAt, Result, Storage};

use crate::blocks::{BLOCKS_MAX, Blocks, Place, Table};
use crate::partition::guid;

use log::Log;

const BAT: &str = "2dc27766-f623-4200-9d64-115e9bfd4a08";
const METADATA: &str = "8b7ca206-4790-4b9a-b8fe-575f050f886e";
const FILE_PARAMETERS: &str = "caa16737-fa36-4d43-b3b6-33f0aa44e76b";
const DISK_SIZE: &str = "2fa54224-cd1b-4876-b211-5dbed83bf4b8";
const SECTOR_SIZE: &str = "8141bf1d-a96f-4709-ba47-f233a8faab5f";

fn corrupt(what: &'static str) -> Error {
    Error::new(Kind::Corrupt, what)
}

/// Opens an image.
///
/// # Errors
/// [`Kind::Corrupt`]; [`Kind::Unsupported`] of a differencing one; [`Kind::Limit`].
pub fn open(storage: Arc<dyn Storage>) -> Result<Arc<dyn ReadAt>> {
    let log = log(&storage)?;
    let storage = log::replayed(storage, &log)?;
    let regions = entries(&storage, 192 << 10, b"regi", 8)
        .or_else(|_| entries(&storage, 256 << 10, b"regi", 8))
        .map_err(|_| corrupt("a VHDX without a region table"))?;
    let region = |id: &str| {
        let found = regions.iter().find(|entry| guid::text(entry.as_slice()).as_deref() == Some(id));
        let found = found.and_then(|entry| le_u64(entry, 16).zip(le_u32(entry, 24)));
        found.ok_or_else(|| corrupt("a VHDX whose tables are not named"))
    };
    let (metadata, _) = region(METADATA)?;
    let items = entries(&storage, metadata, b"metadata", 10).map_err(|_| corrupt("a VHDX without metadata"))?;
    let item = |id: &str| {
        let found = items.iter().find(|entry| guid::text(entry.as_slice()).as_deref() == Some(id));
        let at = found.and_then(|entry| le_u32(entry, 16)).map(u64::from);
        let at = at.ok_or_else(|| corrupt("a VHDX whose metadata are not all there"))?;
        read_up_to(&storage, metadata.saturating_add(at), 8)
    };
    let parameters = item(FILE_PARAMETERS)?;
    let block = le_u32(&parameters, 0).map(u64::from).unwrap_or_default();
    if le_u32(&parameters, 4).unwrap_or_default() & 2 != 0 {
        return Err(Error::new(Kind::Unsupported, "a differencing VHDX: merge it first"));
    }
    let size = le_u64(&item(DISK_SIZE)?, 0).unwrap_or_default();
    let sector = le_u32(&item(SECTOR_SIZE)?, 0).map(u64::from).unwrap_or_default();
    if !matches!(sector, 512 | 4096) || !block.is_power_of_two() || !(1 << 20..=256 << 20).contains(&block) {
        return Err(corrupt("a VHDX whose blocks have an impossible size"));
    }
    let blocks = size.div_ceil(block.max(1));
    let ratio = (sector << 23).checked_div(block).unwrap_or(1).max(1);
    let bitmaps = blocks.saturating_sub(1).checked_div(ratio).unwrap_or_default();
    let (bat, len) = region(BAT)?;
    let wanted = blocks.saturating_add(bitmaps);
    if wanted > BLOCKS_MAX || wanted.saturating_mul(8) > u64::from(len) {
        return Err(Error::new(Kind::Limit, format!("a VHDX of {size} bytes with a table of {len} bytes")));
    }
    let place = |entry| {
        let entry = u64::from_le_bytes(entry);
        match entry & 7 {
            0 | 1 => Place::Below,
            6 | 7 => Place::At(entry & !0xf_ffff),
            _ => Place::Zero,
        }
    };
    let places = Table::new(&storage, bat, blocks, ratio, place)?;
    Ok(Arc::new(Blocks::new(storage, size, block, places)?))
}

/// The entries of 32 bytes of a table of 64 KiB.
fn entries(storage: &dyn ReadAt, at: u64, magic: &[u8], count_at: usize) -> Result<Vec<[u8; 32]>> {
    let table = read_up_to(storage, at, 64 << 10)?;
    let count = le_u16(&table, count_at).unwrap_or_default().min(2047);
    if !has(&table, 0, magic) {
        return Err(corrupt("a VHDX without a table"));
    }
    let start = if count_at == 8 { 16 } else { 32 };
    let rest = table.get(start..).unwrap_or_default();
    Ok(rest.as_chunks().0.iter().take(count.into()).copied().collect())
}

/// What the header that counts, the one with the higher number, says of the log.
fn log(storage: &dyn ReadAt) -> Result<Log> {
    let mut newest: Option<(u64, Log)> = None;
    for at in [64_u64 << 10, 128 << 10] {
        let mut header = read_up_to(storage, at, 4096)?;
        let stored = le_u32(&header, 4);
        if let Some(field) = header.get_mut(4..8) {
            field.fill(0);
        }
        let number = le_u64(&header, 8).unwrap_or_default();
        let (Some(guid), Some(len), Some(at)) =
            (block::bytes::array(&header, 48), le_u32(&header, 68), le_u64(&header, 72))
        else {
            continue;
        };
        let sound = has(&header, 0, b"head") && stored == Some(crc32c::crc32c(&header));
        if sound && newest.is_none_or(|(newest, _)| number > newest) {
            newest = Some((number, Log { guid, len: len.into(), at }));
        }
    }
    newest.map(|(_, log)| log).ok_or_else(|| corrupt("a VHDX without a header"))
}
