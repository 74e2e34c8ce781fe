//! Block maps: the way of ext2 and ext3 to say where a file's blocks are.
//!
//! ```text
//! block[0..12]  direct   block[12]  -> block of numbers   block[13] -> -> blocks   block[14] -> -> -> blocks
//! ```
//! A number of 0 is a hole: of one block, or of all that a block of numbers would have named.
//!
//! Specification: Documentation/filesystems/ext4/blockmap.rst of the kernel.

use block::Result;

use super::Ext4;
use super::field::{le32, tail};
use super::inode::InodeRecord;
use super::mapping::{FILE_BLOCKS_MAX, Place, Run};

const DIRECT: u64 = 12;

impl Ext4 {
    /// The run of a file's blocks from `logical` on, of a file that has a block map.
    pub(super) fn block_map_run(&self, inode: &InodeRecord, logical: u64) -> Result<Run> {
        let area = inode.block_area()?;
        if logical < DIRECT {
            let direct = area.get(..48).unwrap_or(area);
            return Ok(run_of(tail(direct, (logical as usize).saturating_mul(4))?));
        }
        let per_block = u64::from(self.superblock.block_bytes / 4);
        let mut rest = logical.saturating_sub(DIRECT);
        let mut covers = per_block; // blocks below the number at hand
        let mut levels = 1_u32;
        while rest >= covers {
            rest = rest.saturating_sub(covers);
            covers = covers.saturating_mul(per_block);
            levels = levels.saturating_add(1);
            if levels > 3 {
                return Ok(Run { len: FILE_BLOCKS_MAX.saturating_sub(logical), place: Place::Hole });
            }
        }
        let top = (DIRECT as usize).saturating_add(levels as usize).saturating_sub(1).saturating_mul(4);
        let mut number = le32(area, top)?;
        loop {
            if number == 0 {
                return Ok(Run { len: covers.saturating_sub(rest).max(1), place: Place::Hole });
            }
            covers = covers.checked_div(per_block).unwrap_or(1).max(1);
            let at = (rest.checked_div(covers).unwrap_or(0) as usize).saturating_mul(4);
            rest = rest.checked_rem(covers).unwrap_or(0);
            let numbers = self.inode_block(inode, number.into())?;
            if covers == 1 {
                return Ok(run_of(tail(&numbers, at)?));
            }
            number = le32(&numbers, at)?;
        }
    }
}

/// The run that a list of block numbers (of 4 bytes each) begins with.
fn run_of(numbers: &[u8]) -> Run {
    let mut numbers = numbers.as_chunks::<4>().0.iter().map(|number| u64::from(u32::from_le_bytes(*number)));
    let first = numbers.next().unwrap_or(0);
    let place = if first == 0 { Place::Hole } else { Place::Block(first) };
    let mut len = 1_u64;
    for number in numbers {
        let expected = if first == 0 { 0 } else { first.saturating_add(len) };
        if number != expected {
            break;
        }
        len = len.saturating_add(1);
    }
    Run { len, place }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_numbers() {
        let list = |numbers: &[u32]| run_of(&numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>());
        assert_eq!(list(&[7, 8, 9, 11]), Run { len: 3, place: Place::Block(7) });
        assert_eq!(list(&[0, 0, 1]), Run { len: 2, place: Place::Hole });
        assert_eq!(list(&[5]), Run { len: 1, place: Place::Block(5) });
    }
}
