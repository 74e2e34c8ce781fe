//! A table at a fixed place, whose entries come in order.

use block::Result;

use super::Output;

/// It is written in pieces of so many bytes.
const PIECE: u64 = 64 << 10;

/// See the module.
#[derive(Debug)]
pub(crate) struct Table {
    at: u64,
    len: u64,
    /// What an entry that never comes is made of.
    fill: u8,
    piece: Vec<u8>,
    piece_at: u64,
    touched: bool,
}

impl Table {
    /// `len` bytes at `at`, of this byte where nothing is put.
    pub(crate) fn new(at: u64, len: u64, fill: u8) -> Self {
        let mut table = Self { at, len, fill, piece: Vec::new(), piece_at: 0, touched: false };
        table.begin(0);
        table
    }

    fn begin(&mut self, piece_at: u64) {
        let len = self.len.saturating_sub(piece_at).min(PIECE);
        self.piece.clear();
        self.piece.resize(usize::try_from(len).unwrap_or_default(), self.fill);
        self.piece_at = piece_at;
        self.touched = false;
    }

    /// Puts an entry at a multiple of its length from the start.
    pub(crate) fn put(&mut self, output: &dyn Output, within: u64, entry: &[u8]) -> Result<()> {
        let piece_at = within.saturating_sub(within % PIECE);
        if piece_at != self.piece_at {
            self.write_up_to(output, piece_at)?;
        }
        super::put(&mut self.piece, (within % PIECE) as usize, entry);
        self.touched = true;
        Ok(())
    }

    /// Writes all before a piece, which begins then.
    fn write_up_to(&mut self, output: &dyn Output, piece_at: u64) -> Result<()> {
        if self.touched {
            output.write_at(&self.piece, self.at.saturating_add(self.piece_at))?;
            self.begin(self.piece_at.saturating_add(PIECE));
        }
        // Zeroes are there without being written.
        while self.fill != 0 && self.piece_at < piece_at.min(self.len) {
            output.write_at(&self.piece, self.at.saturating_add(self.piece_at))?;
            self.begin(self.piece_at.saturating_add(PIECE));
        }
        self.begin(piece_at);
        Ok(())
    }

    /// Writes the rest.
    pub(crate) fn finish(&mut self, output: &dyn Output) -> Result<()> {
        self.write_up_to(output, self.len.next_multiple_of(PIECE))
    }
}
