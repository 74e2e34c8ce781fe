//! Directories.
//!
//! ```text
//! header   entries less 1, 4 │ start, 4 │ number, 4                 up to 256 entries of one metadata block of inodes
//! entry    offset, 2 │ number less the header's, 2 │ type, 2 │ name bytes less 1, 2 │ name
//!
//! index    offset in the listing, 4 │ start, 4 │ name bytes less 1, 4 │ name     of headers, about one each 8 KiB
//! ```
//! Entries stand in the order of their names' bytes. A cursor is the offset of a header in the listing, and below 9 bits
//! the number of the entry after it.

use std::ops::ControlFlow;

use block::Result;

use super::corrupt::Corrupt;
use super::inode::{self, Listing};
use super::metadata::{METADATA_BYTES_U64, Medium, Place, Reader};
use crate::path::is_name;
use crate::{Cursor, Entry, Inode};
use block::bytes::{le_u16, le_u32};

/// The most entries behind one header.
const ENTRIES_MAX: u32 = 256;
/// The longest name of an entry or an index, bytes.
const NAME_BYTES_MAX: usize = 256;
const HEADER_BYTES: u64 = 12;
const ENTRY_BYTES: u64 = 8;
const CURSOR_BITS: u32 = 9;

/// Shows `visit` the entries after `from`.
///
/// # Errors
/// `Corrupt`; the failure of the device.
pub(super) fn list(
    medium: &Medium,
    listing: &Listing,
    from: Cursor,
    visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let header = from.0 >> CURSOR_BITS;
    let first = from.0 & ((1 << CURSOR_BITS) - 1);
    if header >= listing.len {
        return Ok(());
    }
    let (base, place) = nearest(medium, listing, |offset, _| offset <= header)?;
    let mut reader = medium.reader(place);
    let mut left = header.saturating_sub(base);
    while left > 0 {
        let part = left.min(METADATA_BYTES_U64);
        reader.skip(usize::try_from(part).unwrap_or(0))?;
        left = left.saturating_sub(part);
    }
    scan(&mut reader, listing, header, first, visit)
}

/// The inode of a name.
///
/// # Errors
/// `Corrupt`; the failure of the device.
pub(super) fn find(medium: &Medium, listing: &Listing, name: &[u8]) -> Result<Option<Inode>> {
    if listing.len == 0 || !is_name(name) {
        return Ok(None);
    }
    let (base, place) = nearest(medium, listing, |_, first| first <= name)?;
    let mut found = None;
    scan(&mut medium.reader(place), listing, base, 0, &mut |entry| {
        if entry.name == name {
            found = Some(entry.inode);
        }
        // The kernel, too, relies on the order of first bytes alone.
        if found.is_some() || entry.name.first() > name.first() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    Ok(found)
}

/// The last header of the index for which `before` (of its offset in the listing and its first name) holds, or else the
/// first one of the listing: offset and place.
fn nearest(medium: &Medium, listing: &Listing, before: impl Fn(u64, &[u8]) -> bool) -> Result<(u64, Place)> {
    let mut best = (0, listing.place);
    let (index, count) = listing.index;
    let mut reader = medium.reader(index);
    let mut name = [0; NAME_BYTES_MAX];
    for _ in 0..count {
        let head: [u8; 12] = reader.array()?;
        let word = |at| le_u32(&head, at).unwrap_or_default();
        let len = usize::try_from(word(8)).unwrap_or(usize::MAX).saturating_add(1);
        let broken = |corrupt: Corrupt| corrupt.at(format!("index of the directory at {}", listing.place.block));
        let name = name.get_mut(..len).ok_or_else(|| broken(Corrupt::DirectoryIndex))?;
        reader.read(name)?;
        let offset = u64::from(word(0));
        if !before(offset, name) {
            break;
        }
        let inside = (listing.place.offset as u64).saturating_add(offset) % METADATA_BYTES_U64;
        let reference = (u64::from(word(4)) << 16) | inside;
        let place = Place::new(medium.superblock.directory_table, reference);
        best = (offset, place.ok_or_else(|| broken(Corrupt::DirectoryIndex))?);
    }
    Ok(best)
}

/// Shows `visit` the entries from the header at `at` of the listing on, where `reader` stands, without the `skip` first.
fn scan(
    reader: &mut Reader<'_>,
    listing: &Listing,
    mut at: u64,
    mut skip: u64,
    visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let broken = |corrupt: Corrupt, at: u64| {
        corrupt.at(format!("byte {at} of the directory at {}, of {} bytes", listing.place.block, listing.len))
    };
    let mut name = [0; NAME_BYTES_MAX];
    while at < listing.len {
        let header = at;
        at = at.saturating_add(HEADER_BYTES);
        if at > listing.len {
            return Err(broken(Corrupt::DirectoryHeader, header));
        }
        let head: [u8; 12] = reader.array()?;
        let word = |at| le_u32(&head, at).unwrap_or_default();
        let count = word(0).saturating_add(1);
        if count > ENTRIES_MAX {
            return Err(broken(Corrupt::DirectoryHeader, header));
        }
        for number in 1..=u64::from(count) {
            let entry_at = at;
            let head: [u8; 8] = reader.array()?;
            let half = |at| le_u16(&head, at).unwrap_or_default();
            let len = usize::from(half(6)).saturating_add(1);
            at = at.saturating_add(ENTRY_BYTES).saturating_add(len as u64);
            let impossible = || broken(Corrupt::DirectoryEntry, entry_at);
            let name = name.get_mut(..len).filter(|_| at <= listing.len).ok_or_else(impossible)?;
            reader.read(name)?;
            if number <= skip {
                continue;
            }
            let file_type = inode::file_type(half(4)).filter(|_| is_name(name)).ok_or_else(impossible)?;
            let next = if number == u64::from(count) { at << CURSOR_BITS } else { (header << CURSOR_BITS) | number };
            let inode = Inode((u64::from(word(4)) << 16) | u64::from(half(0)));
            if visit(Entry { name, inode, file_type: Some(file_type), next: Cursor(next) }).is_break() {
                return Ok(());
            }
        }
        skip = 0;
    }
    Ok(())
}
