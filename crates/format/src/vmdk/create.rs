//! A new VMDK: monolithicSparse, or streamOptimized.
//!
//! ```text
//! sparse   | header | descriptor | directory, tables | directory, tables | grain | grain | …
//!                                  redundant
//! stream   | header | descriptor | grain | … | table | grain | … | table | directory | footer | end
//!            grain: its first sector 8, bytes 4, a zlib stream; all else has a sector in front that says what it is
//! ```

use block::{Error, Kind, Result};
use flate2::{Compress, Compression, FlushCompress, Status};

use crate::sequential::{Layout, New, Output, Table, full, put};

use super::SECTOR;

/// Bytes of a grain.
pub(crate) const GRAIN: u64 = 64 << 10;
/// Grains of a table.
const PER_TABLE: u64 = 512;
const TABLE_BYTES: u64 = PER_TABLE * 4;
const DESCRIPTOR_AT: u64 = SECTOR;
const DESCRIPTOR_BYTES: u64 = 20 * SECTOR;
/// Sectors have numbers of 32 bits.
const FILE_BYTES_MAX: u64 = SECTOR << 32;
/// Bytes in front of a packed grain.
const MARKER: usize = 12;

/// Where the grains of a new image go.
pub(crate) fn layout(new: &New, stream: bool) -> Result<Box<dyn Layout>> {
    let size = new.at_most(FILE_BYTES_MAX, "a VMDK of one file")?;
    let common = Common::new(new, size, stream)?;
    Ok(if stream { Box::new(Stream::new(common)) } else { Box::new(Sparse::new(common)?) })
}

/// What both have.
#[derive(Debug)]
struct Common {
    size: u64,
    tables: u64,
    descriptor: Vec<u8>,
}

impl Common {
    fn new(new: &New, size: u64, stream: bool) -> Result<Self> {
        let kind = if stream { "streamOptimized" } else { "monolithicSparse" };
        let (sectors, cylinders) = (size / SECTOR, (size / SECTOR).div_ceil(16 * 63));
        let name: String = new.name.chars().filter(|letter| !letter.is_control() && *letter != '"').collect();
        let id = new.id as u32 | 1;
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID={id:08x}\nparentCID=ffffffff\ncreateType=\"{kind}\"\n\n\
             # Extent description\nRW {sectors} SPARSE \"{name}\"\n\n\
             # The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
             ddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"ide\"\n"
        );
        if text.len() as u64 >= DESCRIPTOR_BYTES {
            return Err(Error::new(Kind::NameTooLong, "the name of a VMDK, which is written into it"));
        }
        let tables = size.div_ceil(GRAIN).div_ceil(PER_TABLE);
        Ok(Self { size, tables, descriptor: text.into_bytes() })
    }

    fn directory_bytes(&self) -> u64 {
        self.tables.saturating_mul(4).next_multiple_of(SECTOR)
    }

    fn header(&self, version: u32, flags: u32, redundant: u64, directory: u64, overhead: u64) -> [u8; 512] {
        let mut header = [0; 512];
        put(&mut header, 0, b"KDMV");
        put(&mut header, 4, &version.to_le_bytes());
        put(&mut header, 8, &flags.to_le_bytes());
        let sectors = [self.size / SECTOR, GRAIN / SECTOR, DESCRIPTOR_AT / SECTOR, DESCRIPTOR_BYTES / SECTOR];
        for (at, value) in [12, 20, 28, 36].into_iter().zip(sectors) {
            put(&mut header, at, &value.to_le_bytes());
        }
        put(&mut header, 44, &(PER_TABLE as u32).to_le_bytes());
        put(&mut header, 48, &redundant.to_le_bytes());
        put(&mut header, 56, &directory.to_le_bytes());
        put(&mut header, 64, &overhead.to_le_bytes());
        // Whoever copies it as text breaks these.
        put(&mut header, 73, b"\n \r\n");
        header
    }
}

/// The sector that a byte is in, as tables have it.
fn sector(at: u64) -> Result<u32> {
    u32::try_from(at / SECTOR).map_err(|_| full("a VMDK of one file"))
}

/// monolithicSparse.
#[derive(Debug)]
struct Sparse {
    common: Common,
    /// Where the redundant directory and the other one are; tables follow each.
    directories: [u64; 2],
    tables: [Table; 2],
    overhead: u64,
    next: u64,
    last: Option<u64>,
}

impl Sparse {
    fn new(common: Common) -> Result<Self> {
        let directory = common.directory_bytes();
        let tables = common.tables.saturating_mul(TABLE_BYTES);
        let first = DESCRIPTOR_AT.saturating_add(DESCRIPTOR_BYTES);
        let second = first.saturating_add(directory).saturating_add(tables);
        let overhead = second.saturating_add(directory).saturating_add(tables).next_multiple_of(GRAIN);
        let end = overhead.saturating_add(common.size.next_multiple_of(GRAIN));
        if end > FILE_BYTES_MAX {
            let most = FILE_BYTES_MAX.saturating_sub(overhead);
            let context = format!("a disk of {} bytes: a VMDK of one file holds {most} at the most", common.size);
            return Err(Error::new(Kind::Limit, context));
        }
        let directories = [first, second];
        let tables = directories.map(|at| Table::new(at.saturating_add(directory), tables, 0));
        Ok(Self { common, directories, tables, overhead, next: overhead, last: None })
    }
}

impl Layout for Sparse {
    fn place(&mut self, output: &dyn Output, number: u64, _: Option<u64>) -> Result<u64> {
        if self.last != Some(number) {
            let entry = sector(self.next)?.to_le_bytes();
            for table in &mut self.tables {
                table.put(output, number.saturating_mul(4), &entry)?;
            }
            self.last = Some(number);
            self.next = self.next.saturating_add(GRAIN);
        }
        Ok(self.next.saturating_sub(GRAIN))
    }

    fn finish(&mut self, output: &dyn Output) -> Result<()> {
        for table in &mut self.tables {
            table.finish(output)?;
        }
        for at in self.directories {
            let first = at.saturating_add(self.common.directory_bytes());
            let entries = (0..self.common.tables)
                .map(|table| sector(first.saturating_add(table.saturating_mul(TABLE_BYTES))).map(u32::to_le_bytes));
            output.write_at(&entries.collect::<Result<Vec<_>>>()?.concat(), at)?;
        }
        output.set_size(self.next)?;
        output.write_at(&self.common.descriptor, DESCRIPTOR_AT)?;
        let [redundant, directory] = self.directories.map(|at| at / SECTOR);
        // Line ends can be tested, and the redundant directory is good.
        output.write_at(&self.common.header(1, 3, redundant, directory, self.overhead / SECTOR), 0)
    }
}

/// streamOptimized.
#[derive(Debug)]
struct Stream {
    common: Common,
    directory: Vec<u32>,
    /// The table that is being filled, and its number.
    table: Vec<u32>,
    number: u64,
    next: u64,
}

/// Compressed grains, and markers; line ends can be tested.
const STREAM_FLAGS: u32 = 0x3_0001;

impl Stream {
    fn new(common: Common) -> Self {
        let next = DESCRIPTOR_AT.saturating_add(DESCRIPTOR_BYTES).next_multiple_of(GRAIN);
        let directory = vec![0; usize::try_from(common.tables).unwrap_or_default()];
        Self { common, directory, table: Vec::new(), number: 0, next }
    }

    fn header(&self, directory: u64) -> [u8; 512] {
        let first = DESCRIPTOR_AT.saturating_add(DESCRIPTOR_BYTES).next_multiple_of(GRAIN);
        let mut header = self.common.header(3, STREAM_FLAGS, 0, directory, first / SECTOR);
        put(&mut header, 77, &1_u16.to_le_bytes());
        header
    }

    /// Writes something with its marker in front: its place.
    fn marked(&mut self, output: &dyn Output, kind: u32, bytes: &[u8]) -> Result<u64> {
        let mut sectors = [0; SECTOR as usize].to_vec();
        sectors.extend_from_slice(bytes);
        sectors.resize(sectors.len().next_multiple_of(SECTOR as usize), 0);
        put(&mut sectors, 0, &(bytes.len() as u64).div_ceil(SECTOR).to_le_bytes());
        put(&mut sectors, 12, &kind.to_le_bytes());
        output.write_at(&sectors, self.next)?;
        let at = self.next.saturating_add(SECTOR);
        self.next = self.next.saturating_add(sectors.len() as u64);
        Ok(at)
    }

    fn store_table(&mut self, output: &dyn Output) -> Result<()> {
        if self.table.is_empty() {
            return Ok(());
        }
        let mut bytes: Vec<u8> = self.table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        bytes.resize(TABLE_BYTES as usize, 0);
        self.table.clear();
        let at = sector(self.marked(output, 1, &bytes)?)?;
        let number = usize::try_from(self.number).unwrap_or(usize::MAX);
        if let Some(entry) = self.directory.get_mut(number) {
            *entry = at;
        }
        Ok(())
    }
}

impl Layout for Stream {
    fn place(&mut self, output: &dyn Output, number: u64, packed: Option<u64>) -> Result<u64> {
        if number / PER_TABLE != self.number {
            self.store_table(output)?;
            self.number = number / PER_TABLE;
        }
        self.table.resize((number % PER_TABLE) as usize, 0);
        self.table.push(sector(self.next)?);
        let at = self.next;
        self.next = at.saturating_add(packed.unwrap_or(GRAIN)).next_multiple_of(SECTOR);
        Ok(at)
    }

    fn finish(&mut self, output: &dyn Output) -> Result<()> {
        self.store_table(output)?;
        let bytes: Vec<u8> = self.directory.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        let directory = self.marked(output, 2, &bytes)?;
        sector(directory)?;
        let footer = self.header(directory / SECTOR);
        self.marked(output, 3, &footer)?;
        // The end of the stream: a marker of zeroes.
        output.write_at(&[0; SECTOR as usize], self.next)?;
        output.write_at(&self.common.descriptor, DESCRIPTOR_AT)?;
        output.write_at(&self.header(u64::MAX), 0)
    }
}

/// A grain, packed, with its marker.
pub(crate) fn pack(number: u64, grain: &[u8]) -> Result<Vec<u8>> {
    // As much as deflate can make of what does not get smaller, in blocks that are stored.
    let mut packed = vec![0; grain.len().saturating_add(grain.len() / 1024).saturating_add(256)];
    let mut deflate = Compress::new(Compression::new(6), true);
    let room = packed.get_mut(MARKER..).unwrap_or_default();
    let status = deflate.compress(grain, room, FlushCompress::Finish);
    let len = usize::try_from(deflate.total_out()).unwrap_or(usize::MAX);
    if !matches!(status, Ok(Status::StreamEnd)) {
        return Err(Error::new(Kind::Io, "a grain that cannot be compressed"));
    }
    packed.truncate(len.saturating_add(MARKER));
    put(&mut packed, 0, &number.saturating_mul(GRAIN / SECTOR).to_le_bytes());
    put(&mut packed, 8, &(len as u32).to_le_bytes());
    Ok(packed)
}
