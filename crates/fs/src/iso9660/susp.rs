//! System use entries (SUSP, IEEE P1281): what stands behind the name in a directory record, and goes on elsewhere.
//!
//! ```text
//! signature, 2 │ length │ version │ data …                  entry; length counts from the signature on
//! CE 28 1  block (LE, BE)  offset (LE, BE)  length (LE, BE)  the area goes on there
//! SP  7 1  BE EF  skip                                       bytes to skip in every area but this one
//! ST, or fewer than 4 bytes: the end        PD: padding      ER: names a protocol in use
//! ```

use block::bytes::{array, byte, le_u32};
use block::{ReadAt, Result};

use super::corrupt::{Corrupt, Parsed};

/// How many continuation areas are followed, and how many bytes they hold in all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    pub areas: u32,
    pub bytes: u32,
}

/// For a name: what the kernel follows, too.
pub(super) const NAME_BUDGET: Budget = Budget { areas: 32, bytes: 16 << 10 };
/// For what stat tells.
pub(super) const STAT_BUDGET: Budget = Budget { areas: 256, bytes: 256 << 10 };
/// For extended attributes, whose values the kernel bounds to 64 KiB each and in all.
pub(super) const ATTRIBUTES_BUDGET: Budget = Budget { areas: 1024, bytes: 1 << 20 };

/// Who wants to see entries.
pub(super) trait Reader {
    /// One entry: `data` is what follows its version.
    ///
    /// # Errors
    /// `Corrupt`, which ends the walk.
    fn entry(&mut self, signature: [u8; 2], version: u8, data: &[u8]) -> Parsed<()>;

    /// Whether the area that continues this one is of interest. It is asked at the end of each.
    fn wants_more(&self) -> bool {
        true
    }
}

/// The last block that was read for continuation areas: several files share one.
#[derive(Debug, Default)]
pub(super) struct Recent {
    start: u64,
    block: Vec<u8>,
}

const SHARED_BYTES: u64 = 2048;

impl Recent {
    /// The `len` bytes at `start`.
    fn read(&mut self, device: &dyn ReadAt, start: u64, len: usize) -> Result<&[u8]> {
        let beyond = || Corrupt::ContinuationBeyondDevice.at(format!("continuation area of {len} bytes at {start}"));
        let end = start.checked_add(len as u64).filter(|end| *end <= device.size()).ok_or_else(beyond)?;
        let held = self.start.saturating_add(self.block.len() as u64);
        if start < self.start || end > held {
            let aligned = start & !SHARED_BYTES.wrapping_sub(1);
            let until = aligned.saturating_add(SHARED_BYTES).max(end).min(device.size());
            self.block.clear();
            self.block.resize(usize::try_from(until.saturating_sub(aligned)).map_err(|_| beyond())?, 0);
            self.start = aligned;
            if let Err(error) = device.read_at(&mut self.block, aligned) {
                self.block.clear();
                return Err(error);
            }
        }
        let at = usize::try_from(start.saturating_sub(self.start)).unwrap_or(usize::MAX);
        self.block.get(at..at.saturating_add(len)).ok_or_else(beyond)
    }
}

/// Shows `reader` the entries of `area` and of the areas that continue it.
///
/// # Errors
/// `Corrupt`; the failure of the device.
pub(super) fn walk(
    device: &dyn ReadAt,
    block_bytes: u32,
    area: &[u8],
    budget: Budget,
    recent: &mut Recent,
    reader: &mut dyn Reader,
) -> Result<()> {
    let mut next = entries(area, reader).map_err(|corrupt| corrupt.at("system use area of a directory record"))?;
    let mut left = budget;
    while let Some(Continuation { block, offset, len }) = next.filter(|_| reader.wants_more()) {
        let start = u64::from(block).saturating_mul(u64::from(block_bytes)).saturating_add(u64::from(offset));
        let chain = || Corrupt::ContinuationChain.at(format!("continuation area of {len} bytes at {start}"));
        left.areas = left.areas.checked_sub(1).ok_or_else(chain)?;
        left.bytes = left.bytes.checked_sub(len).ok_or_else(chain)?;
        let area = recent.read(device, start, usize::try_from(len).map_err(|_| chain())?)?;
        next = entries(area, reader).map_err(|corrupt| corrupt.at(format!("continuation area at {start}")))?;
    }
    Ok(())
}

struct Continuation {
    block: u32,
    offset: u32,
    len: u32,
}

/// Shows `reader` the entries of one area, and returns where they go on.
fn entries(mut area: &[u8], reader: &mut dyn Reader) -> Parsed<Option<Continuation>> {
    let mut next = None;
    while let Some([a, b, len, version]) = array::<4>(area, 0) {
        if len == 0 || [a, b] == *b"ST" {
            break;
        }
        let data = area.get(4..usize::from(len)).ok_or(Corrupt::SystemUse)?;
        area = area.get(usize::from(len)..).unwrap_or(&[]);
        match &[a, b] {
            b"CE" => {
                let field = |at| le_u32(data, at).ok_or(Corrupt::SystemUse);
                next = Some(Continuation { block: field(0)?, offset: field(8)?, len: field(16)? });
            }
            b"PD" => {}
            signature => reader.entry(*signature, version, data)?,
        }
    }
    Ok(next)
}

/// What the first record of the root directory says of the protocols in use.
#[derive(Debug, Default)]
pub(super) struct Protocols {
    /// Whether Rock Ridge is one of them.
    pub rock_ridge: bool,
    /// Bytes to skip in the system use area of every directory record.
    pub skip: usize,
}

impl Reader for Protocols {
    fn entry(&mut self, signature: [u8; 2], _version: u8, data: &[u8]) -> Parsed<()> {
        match &signature {
            b"SP" if data.starts_with(&[0xbe, 0xef]) => self.skip = usize::from(byte(data, 2).unwrap_or(0)),
            b"ER" => {
                let len = usize::from(byte(data, 0).ok_or(Corrupt::SystemUse)?);
                let name = data.get(4..).and_then(|rest| rest.get(..len)).ok_or(Corrupt::SystemUse)?;
                self.rock_ridge |= matches!(name, b"RRIP_1991A" | b"IEEE_P1282" | b"IEEE_1282");
            }
            // Old discs do not name the protocol, they use it.
            b"RR" | b"PX" => self.rock_ridge = true,
            _ => {}
        }
        Ok(())
    }
}
