//! A new dynamic VDI.
//!
//! ```text
//! | header 512 | table: 4 bytes a block | to 1 MiB | block | block | …
//! ```

use block::Result;

use crate::blocks::BLOCKS_MAX;
use crate::sequential::{Layout, New, Output, Table, full, put};

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 1 << 20;
const TABLE_AT: u64 = 512;

/// Where blocks go: one behind the other.
#[derive(Debug)]
pub(crate) struct Dynamic {
    size: u64,
    data_at: u64,
    table: Table,
    used: u32,
    last: Option<u64>,
    ids: [[u8; 16]; 2],
}

impl Dynamic {
    pub(crate) fn new(new: &New) -> Result<Self> {
        let size = new.at_most(BLOCKS_MAX.saturating_mul(BLOCK), "a VDI")?;
        let len = size.div_ceil(BLOCK).saturating_mul(4);
        let data_at = TABLE_AT.saturating_add(len).next_multiple_of(BLOCK);
        let ids = [new.uuid(0), new.uuid(1)];
        Ok(Self { size, data_at, table: Table::new(TABLE_AT, len, 0xff), used: 0, last: None, ids })
    }

    fn header(&self) -> [u8; 512] {
        let mut header = [0; 512];
        let mut word = |at: usize, value: u64| put(&mut header, at, &(value as u32).to_le_bytes());
        word(64, 0xbeda_107f);
        word(68, 0x0001_0001);
        // Bytes of the header from its size on.
        word(72, 400);
        word(76, 1);
        word(340, TABLE_AT);
        word(344, self.data_at);
        word(360, 512);
        word(376, BLOCK);
        word(384, self.size.div_ceil(BLOCK));
        word(388, self.used.into());
        put(&mut header, 0, b"<<< loopbox disk image >>>\n");
        put(&mut header, 368, &self.size.to_le_bytes());
        put(&mut header, 392, &self.ids[0]);
        put(&mut header, 408, &self.ids[1]);
        header
    }
}

impl Layout for Dynamic {
    fn place(&mut self, output: &dyn Output, number: u64, _: Option<u64>) -> Result<u64> {
        if self.last != Some(number) {
            self.table.put(output, number.saturating_mul(4), &self.used.to_le_bytes())?;
            self.used = self.used.checked_add(1).ok_or_else(|| full("a VDI"))?;
            self.last = Some(number);
        }
        Ok(self.data_at.saturating_add(u64::from(self.used.saturating_sub(1)).saturating_mul(BLOCK)))
    }

    fn finish(&mut self, output: &dyn Output) -> Result<()> {
        self.table.finish(output)?;
        output.set_size(self.data_at.saturating_add(u64::from(self.used).saturating_mul(BLOCK)))?;
        output.write_at(&self.header(), 0)
    }
}
