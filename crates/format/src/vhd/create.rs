//! A new VHD, fixed or dynamic.

use block::Result;

use crate::sequential::{Layout, New, Output, PLAIN_BLOCK, Table, full, put};

/// Bytes of a block of a dynamic one.
pub(crate) const BLOCK: u64 = 2 << 20;
/// The largest disk: 2040 GiB, whose sectors all have a number of 32 bits.
const SIZE_MAX: u64 = 2040 << 30;
/// Bytes of the bitmap in front of each block.
const BITMAP: u64 = 512;
const HEADER_AT: u64 = 512;
const TABLE_AT: u64 = 1536;
/// 2000-01-01, seconds since 1970: where a VHD's time begins.
const EPOCH: u64 = 946_684_800;

/// Cylinders, heads and sectors of a track, as the specification computes them.
fn geometry(sectors: u64) -> (u16, u8, u8) {
    let sectors = sectors.min(65535 * 16 * 255);
    let tracks = |per_track: u64| sectors.checked_div(per_track).unwrap_or_default();
    let (per_track, heads) = if sectors >= 65535 * 16 * 63 {
        (255, 16)
    } else {
        let heads = tracks(17).saturating_add(1023).wrapping_shr(10).max(4);
        if heads <= 16 && tracks(17) < heads.saturating_mul(1024) {
            (17, heads)
        } else if tracks(31) < 16 * 1024 {
            (31, 16)
        } else {
            (63, 16)
        }
    };
    let cylinders = tracks(per_track).checked_div(heads).unwrap_or_default();
    (u16::try_from(cylinders).unwrap_or(u16::MAX), heads as u8, per_track as u8)
}

/// The complement of the sum of all bytes, the field of it being zero.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let sum = bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    (!sum).to_be_bytes()
}

fn footer(new: &New, size: u64, fixed: bool) -> [u8; 512] {
    let mut footer = [0; 512];
    let (cylinders, heads, per_track) = geometry(size / 512);
    put(&mut footer, 0, b"conectix");
    put(&mut footer, 8, &2_u32.to_be_bytes());
    put(&mut footer, 12, &0x0001_0000_u32.to_be_bytes());
    put(&mut footer, 16, &(if fixed { u64::MAX } else { HEADER_AT }).to_be_bytes());
    put(&mut footer, 24, &(new.seconds.saturating_sub(EPOCH) as u32).to_be_bytes());
    // Of others QEMU takes the geometry for the size, which is smaller.
    put(&mut footer, 28, b"win \x00\x0a\x00\x00Wi2k");
    put(&mut footer, 40, &size.to_be_bytes());
    put(&mut footer, 48, &size.to_be_bytes());
    put(&mut footer, 56, &cylinders.to_be_bytes());
    put(&mut footer, 58, &[heads, per_track]);
    put(&mut footer, 60, &(if fixed { 2_u32 } else { 3 }).to_be_bytes());
    put(&mut footer, 68, &new.uuid(0));
    let sum = checksum(&footer);
    put(&mut footer, 64, &sum);
    footer
}

/// The disk as it is, and a footer.
#[derive(Debug)]
pub(crate) struct Fixed {
    size: u64,
    footer: [u8; 512],
}

impl Fixed {
    pub(crate) fn new(new: &New) -> Result<Self> {
        let size = new.at_most(SIZE_MAX, "a VHD")?;
        Ok(Self { size, footer: footer(new, size, true) })
    }
}

impl Layout for Fixed {
    fn place(&mut self, _: &dyn Output, number: u64, _: Option<u64>) -> Result<u64> {
        Ok(number.saturating_mul(PLAIN_BLOCK))
    }

    fn finish(&mut self, output: &dyn Output) -> Result<()> {
        output.write_at(&self.footer, self.size)
    }
}

/// Blocks one behind the other, each with its bitmap in front.
#[derive(Debug)]
pub(crate) struct Dynamic {
    footer: [u8; 512],
    blocks: u64,
    table: Table,
    next: u64,
    last: Option<(u64, u64)>,
}

impl Dynamic {
    pub(crate) fn new(new: &New) -> Result<Self> {
        let size = new.at_most(SIZE_MAX, "a VHD")?;
        let blocks = size.div_ceil(BLOCK);
        let len = blocks.saturating_mul(4).next_multiple_of(512);
        let table = Table::new(TABLE_AT, len, 0xff);
        Ok(Self { footer: footer(new, size, false), blocks, table, next: TABLE_AT.saturating_add(len), last: None })
    }

    fn header(&self) -> [u8; 1024] {
        let mut header = [0; 1024];
        put(&mut header, 0, b"cxsparse");
        put(&mut header, 8, &u64::MAX.to_be_bytes());
        put(&mut header, 16, &TABLE_AT.to_be_bytes());
        put(&mut header, 24, &0x0001_0000_u32.to_be_bytes());
        put(&mut header, 28, &(self.blocks as u32).to_be_bytes());
        put(&mut header, 32, &(BLOCK as u32).to_be_bytes());
        let sum = checksum(&header);
        put(&mut header, 36, &sum);
        header
    }
}

impl Layout for Dynamic {
    fn place(&mut self, output: &dyn Output, number: u64, _: Option<u64>) -> Result<u64> {
        if let Some((last, at)) = self.last
            && last == number
        {
            return Ok(at);
        }
        let sector = u32::try_from(self.next / 512).ok().filter(|sector| *sector != u32::MAX);
        let sector = sector.ok_or_else(|| full("a VHD"))?;
        self.table.put(output, number.saturating_mul(4), &sector.to_be_bytes())?;
        // All sectors of the block are its own.
        output.write_at(&[0xff; BITMAP as usize], self.next)?;
        let at = self.next.saturating_add(BITMAP);
        self.last = Some((number, at));
        self.next = at.saturating_add(BLOCK);
        Ok(at)
    }

    fn finish(&mut self, output: &dyn Output) -> Result<()> {
        self.table.finish(output)?;
        output.write_at(&self.footer, self.next)?;
        output.write_at(&self.header(), HEADER_AT)?;
        output.write_at(&self.footer, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometries_are_those_of_the_specification() {
        let mib = |mib: u64| geometry(mib * 2048);
        assert_eq!(mib(10), (301, 4, 17));
        assert_eq!(mib(100), (1003, 12, 17));
        assert_eq!(mib(247), (1019, 16, 31));
        assert_eq!(mib(250), (507, 16, 63));
        assert_eq!(mib(1024), (2080, 16, 63));
        assert_eq!(geometry(u64::MAX), (65535, 16, 255));
    }
}
