//! The device with what the journal says put over it, in memory: the image never changes.
//!
//! A replayed block is not copied: what is kept is where in the journal it lies.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::{Extent, ReadAt, Result, Source, check_range};

/// The first bytes of a block that would be taken for one of the journal's own; in the journal they are zero (escaped).
pub(super) const JOURNAL_MAGIC: [u8; 4] = [0xC0, 0x3B, 0x39, 0x98];

/// Where the content of a replayed block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Replayed {
    /// Block of the device that holds it: one of the journal's.
    pub(super) block: u64,
    /// Whether its first four bytes are [`JOURNAL_MAGIC`] whatever the journal has there.
    pub(super) escaped: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub(super) device: Arc<dyn ReadAt>,
    /// Bytes of a block, a power of two.
    pub(super) block_bytes: u32,
    /// Replayed blocks by number.
    pub(super) replayed: BTreeMap<u64, Replayed>,
}

impl Volume {
    /// Fills `buf` from byte `offset` on.
    pub(super) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.device.size(), offset, buf.len() as u64)?;
        if self.replayed.is_empty() {
            return self.device.read_at(buf, offset);
        }
        let mut rest = buf;
        let mut at = offset;
        while !rest.is_empty() {
            let (run, replayed) = self.run(at);
            let len = run.min(rest.len() as u64) as usize;
            let Some((now, later)) = rest.split_at_mut_checked(len) else { break };
            match replayed {
                None => self.device.read_at(now, at)?,
                Some(replayed) => {
                    let inside = self.inside(at);
                    self.device.read_at(now, self.byte(replayed.block).saturating_add(inside))?;
                    if replayed.escaped {
                        let magic = JOURNAL_MAGIC.iter().skip(inside as usize);
                        now.iter_mut().zip(magic).for_each(|(to, from)| *to = *from);
                    }
                }
            }
            rest = later;
            at = at.saturating_add(len as u64);
        }
        Ok(())
    }

    /// One run of the device from byte `offset` on.
    pub(super) fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        if self.replayed.is_empty() {
            return self.device.extent_at(offset);
        }
        let (run, replayed) = self.run(offset);
        let extent = match replayed {
            None => self.device.extent_at(offset)?,
            Some(Replayed { escaped: true, .. }) => Extent { len: run, source: Source::Data },
            Some(Replayed { block, .. }) => {
                let inside = self.inside(offset);
                self.device.extent_at(self.byte(block).saturating_add(inside))?
            }
        };
        Ok(Extent { len: extent.len.min(run), ..extent })
    }

    /// How many bytes from `offset` on lie as they are, or in one replayed block.
    fn run(&self, offset: u64) -> (u64, Option<Replayed>) {
        let block = offset.checked_div(self.block_bytes.into()).unwrap_or(0);
        match self.replayed.range(block..).next() {
            Some((first, replayed)) if *first == block => {
                (self.byte(block.saturating_add(1)).saturating_sub(offset), Some(*replayed))
            }
            Some((first, _)) => (self.byte(*first).saturating_sub(offset), None),
            None => (u64::MAX.saturating_sub(offset), None),
        }
    }

    /// How far into its block a byte is.
    fn inside(&self, offset: u64) -> u64 {
        offset.checked_rem(self.block_bytes.into()).unwrap_or(0)
    }

    /// The first byte of a block.
    pub(super) fn byte(&self, block: u64) -> u64 {
        block.saturating_mul(self.block_bytes.into())
    }
}
