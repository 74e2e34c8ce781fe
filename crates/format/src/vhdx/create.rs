//! A new dynamic VHDX.
//!
//! ```text
//! 0        64 KiB   128 KiB   192 KiB   256 KiB   1 MiB   2 MiB      3 MiB    then
//! | id     | header | header  | regions | regions | log   | metadata | BAT    | block | block | …
//! ```

use block::Result;

use crate::partition::guid;
use crate::sequential::{Layout, New, Output, Table, put};

use super::{BAT, DISK_SIZE, FILE_PARAMETERS, METADATA, SECTOR_SIZE};

const MIB: u64 = 1 << 20;
const LOG_AT: u64 = MIB;
const METADATA_AT: u64 = 2 * MIB;
const BAT_AT: u64 = 3 * MIB;
/// The largest disk: 64 TiB.
const SIZE_MAX: u64 = 64 << 40;
const PAGE_83: &str = "beca12ab-b2e6-4523-93ef-c309e000c746";
const PHYSICAL_SECTOR_SIZE: &str = "cda348c7-445d-4471-9cc9-e9885251c556";
/// Where the values are in the region of metadata, bytes.
const ITEMS_AT: u32 = 64 << 10;

/// Blocks one behind the other, on whole MiB.
#[derive(Debug)]
pub(crate) struct Dynamic {
    size: u64,
    block: u64,
    bat_bytes: u64,
    table: Table,
    next: u64,
    last: Option<(u64, u64)>,
    ids: [[u8; 16]; 3],
}

impl Dynamic {
    pub(crate) fn new(new: &New) -> Result<Self> {
        let size = new.at_most(SIZE_MAX, "a VHDX")?;
        // Small ones for small disks, as QEMU has it: the table stays short.
        let block = match size {
            size if size > 32 << 40 => 64 * MIB,
            size if size > 100 << 30 => 32 * MIB,
            size if size > 1 << 30 => 16 * MIB,
            _ => 8 * MIB,
        };
        let blocks = size.div_ceil(block);
        let bitmaps = blocks.saturating_sub(1).checked_div(Self::ratio(block)).unwrap_or_default();
        let bat_bytes = blocks.saturating_add(bitmaps).saturating_mul(8).next_multiple_of(MIB).max(MIB);
        let table = Table::new(BAT_AT, bat_bytes, 0);
        let ids = [new.uuid(0), new.uuid(1), new.uuid(2)];
        Ok(Self { size, block, bat_bytes, table, next: BAT_AT.saturating_add(bat_bytes), last: None, ids })
    }

    pub(crate) fn block(&self) -> u64 {
        self.block
    }

    /// Blocks between two entries of bitmaps.
    fn ratio(block: u64) -> u64 {
        (512_u64 << 23).checked_div(block).unwrap_or(1).max(1)
    }

    fn header(&self, number: u64) -> Vec<u8> {
        let mut header = vec![0; 4096];
        put(&mut header, 0, b"head");
        put(&mut header, 8, &number.to_le_bytes());
        put(&mut header, 16, &self.ids[0]);
        put(&mut header, 32, &self.ids[1]);
        // No log to replay: its GUID is zero.
        put(&mut header, 66, &1_u16.to_le_bytes());
        put(&mut header, 68, &(MIB as u32).to_le_bytes());
        put(&mut header, 72, &LOG_AT.to_le_bytes());
        let sum = crc32c::crc32c(&header);
        put(&mut header, 4, &sum.to_le_bytes());
        header
    }

    fn regions(&self) -> Vec<u8> {
        let mut table = vec![0; 64 << 10];
        put(&mut table, 0, b"regi");
        put(&mut table, 8, &2_u32.to_le_bytes());
        for (at, (id, offset, len)) in [(16, (BAT, BAT_AT, self.bat_bytes)), (48, (METADATA, METADATA_AT, MIB))] {
            put(&mut table, at, &guid::bytes(id).unwrap_or_default());
            put(&mut table, at.saturating_add(16), &offset.to_le_bytes());
            put(&mut table, at.saturating_add(24), &(len as u32).to_le_bytes());
            put(&mut table, at.saturating_add(28), &1_u32.to_le_bytes());
        }
        let sum = crc32c::crc32c(&table);
        put(&mut table, 4, &sum.to_le_bytes());
        table
    }

    /// The table of metadata, and their values.
    fn metadata(&self) -> (Vec<u8>, Vec<u8>) {
        // Of the disk that a guest sees; and needed for reading.
        const VIRTUAL: u32 = 2;
        const REQUIRED: u32 = 4;
        let parameters = self.block.to_le_bytes();
        let (logical, physical) = (512_u32.to_le_bytes(), 4096_u32.to_le_bytes());
        let size = self.size.to_le_bytes();
        let items: [(&str, &[u8], u32); 5] = [
            (FILE_PARAMETERS, &parameters, REQUIRED),
            (DISK_SIZE, &size, VIRTUAL | REQUIRED),
            (PAGE_83, &self.ids[2], VIRTUAL | REQUIRED),
            (SECTOR_SIZE, &logical, VIRTUAL | REQUIRED),
            (PHYSICAL_SECTOR_SIZE, &physical, VIRTUAL | REQUIRED),
        ];
        let (mut table, mut values) = (vec![0; 32], Vec::new());
        put(&mut table, 0, b"metadata");
        put(&mut table, 10, &(items.len() as u16).to_le_bytes());
        for (id, value, flags) in items {
            table.extend(guid::bytes(id).unwrap_or_default());
            table.extend(ITEMS_AT.saturating_add(values.len() as u32).to_le_bytes());
            table.extend((value.len() as u32).to_le_bytes());
            table.extend(flags.to_le_bytes());
            table.extend([0; 4]);
            values.extend_from_slice(value);
        }
        (table, values)
    }
}

impl Layout for Dynamic {
    fn place(&mut self, output: &dyn Output, number: u64, _: Option<u64>) -> Result<u64> {
        if let Some((last, at)) = self.last
            && last == number
        {
            return Ok(at);
        }
        let entry = number.saturating_add(number.checked_div(Self::ratio(self.block)).unwrap_or_default());
        // Its MiB from bit 20 on, and that all of it is there.
        self.table.put(output, entry.saturating_mul(8), &(self.next | 6).to_le_bytes())?;
        self.last = Some((number, self.next));
        let at = self.next;
        self.next = at.saturating_add(self.block);
        Ok(at)
    }

    fn finish(&mut self, output: &dyn Output) -> Result<()> {
        self.table.finish(output)?;
        let (table, values) = self.metadata();
        output.write_at(&table, METADATA_AT)?;
        output.write_at(&values, METADATA_AT.saturating_add(ITEMS_AT.into()))?;
        output.write_at(&self.regions(), 192 << 10)?;
        output.write_at(&self.regions(), 256 << 10)?;
        output.write_at(&self.header(1), 64 << 10)?;
        output.write_at(&self.header(2), 128 << 10)?;
        output.set_size(self.next)?;
        let creator = "loopbox".encode_utf16().flat_map(u16::to_le_bytes);
        let id: Vec<u8> = b"vhdxfile".iter().copied().chain(creator).collect();
        output.write_at(&id, 0)
    }
}
