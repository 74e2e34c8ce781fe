//! Metadata blocks: 8 KiB each, compressed where that helps.

use super::blocks::deflate;

/// Bytes that a block holds.
const METADATA_BYTES: usize = 8192;
const UNCOMPRESSED: u16 = 1 << 15;

/// A place in a stream of metadata.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Where the block begins in its table.
    pub block: u32,
    /// Offset in what it unpacks to.
    pub offset: u16,
}

impl Place {
    pub fn reference(self) -> u64 {
        u64::from(self.block) << 16 | u64::from(self.offset)
    }
}

/// A stream of metadata.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    packed: Vec<u8>,
    starts: Vec<u64>,
    current: Vec<u8>,
}

impl Metadata {
    /// Where the next byte goes.
    pub fn place(&self) -> Place {
        Place { block: self.packed.len() as u32, offset: self.current.len() as u16 }
    }

    pub fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(METADATA_BYTES - self.current.len()));
            self.current.extend_from_slice(now);
            bytes = later;
            if self.current.len() == METADATA_BYTES {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        if self.current.is_empty() {
            return;
        }
        self.starts.push(self.packed.len() as u64);
        match deflate(&self.current) {
            Some(packed) => {
                self.packed.extend_from_slice(&(packed.len() as u16).to_le_bytes());
                self.packed.extend_from_slice(&packed);
            }
            None => {
                self.packed.extend_from_slice(&(self.current.len() as u16 | UNCOMPRESSED).to_le_bytes());
                self.packed.extend_from_slice(&self.current);
            }
        }
        self.current.clear();
    }

    /// All blocks.
    pub fn finish(self) -> Vec<u8> {
        self.finish_with_starts().0
    }

    /// All blocks, and where each begins.
    pub fn finish_with_starts(mut self) -> (Vec<u8>, Vec<u64>) {
        self.close();
        (self.packed, self.starts)
    }
}
