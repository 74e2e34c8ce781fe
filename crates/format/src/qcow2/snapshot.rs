//! Internal snapshots: each has an L1 table of its own.

use block::bytes::{be_u16, be_u32, be_u64, read_vec};
use block::{ReadAt, Result};
use serde::Serialize;

use super::Corrupt;
use super::header::{Header, L1_ENTRIES_MAX};

/// The most snapshots that are read: QEMU's limit too.
const SNAPSHOTS_MAX: u32 = 65536;
/// The longest text, and the longest extra data, bytes.
const FIELD_BYTES_MAX: usize = 65536;

/// The disk as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Its number, a text.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was taken, seconds since 1970.
    pub seconds: u32,
    /// Bytes of the disk then, where it says so.
    pub disk_bytes: Option<u64>,
    /// Bytes of the machine's state that belong to it; 0 where there is none.
    pub state_bytes: u64,
    #[serde(skip)]
    pub(super) l1_offset: u64,
    #[serde(skip)]
    pub(super) l1_entries: u64,
}

/// Reads the table of snapshots.
///
/// # Errors
/// [`block::Kind::Corrupt`]; the failure of the device.
pub fn read(device: &dyn ReadAt, header: &Header) -> Result<Vec<Snapshot>> {
    Ok(read_with_end(device, header)?.0)
}

/// Reads the table of snapshots: and its length in bytes.
pub(super) fn read_with_end(device: &dyn ReadAt, header: &Header) -> Result<(Vec<Snapshot>, u64)> {
    if header.snapshots > SNAPSHOTS_MAX {
        return Err(Corrupt::Snapshots.into());
    }
    let mut at = header.snapshots_offset;
    let mut found = Vec::new();
    let cut = |error| Corrupt::Snapshots.with(error);
    for _ in 0..header.snapshots {
        let head = read_vec(device, at, 40).map_err(cut)?;
        let u32_at = |from| be_u32(&head, from).unwrap_or_default();
        let [id_len, name_len] = [12, 14].map(|from| usize::from(be_u16(&head, from).unwrap_or_default()));
        let extra_len = u32_at(36) as usize;
        if extra_len > FIELD_BYTES_MAX {
            return Err(Corrupt::Snapshots.into());
        }
        let len = extra_len.saturating_add(id_len).saturating_add(name_len);
        let tail = read_vec(device, at.saturating_add(40), len).map_err(cut)?;
        let text = |from: usize, len: usize| {
            let bytes = tail.get(from..).and_then(|rest| rest.get(..len)).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        let state_bytes = match (extra_len, be_u64(&tail, 0)) {
            (8.., Some(bytes)) => bytes,
            _ => u64::from(u32_at(32)),
        };
        let l1_entries = u64::from(u32_at(8));
        if l1_entries > L1_ENTRIES_MAX {
            return Err(Corrupt::Snapshots.into());
        }
        found.push(Snapshot {
            id: text(extra_len, id_len),
            name: text(extra_len.saturating_add(id_len), name_len),
            seconds: u32_at(16),
            disk_bytes: be_u64(&tail, 8).filter(|_| extra_len >= 16),
            state_bytes,
            l1_offset: be_u64(&head, 0).unwrap_or_default(),
            l1_entries,
        });
        at = at.saturating_add(40).saturating_add((len as u64).next_multiple_of(8));
    }
    Ok((found, at.saturating_sub(header.snapshots_offset)))
}
