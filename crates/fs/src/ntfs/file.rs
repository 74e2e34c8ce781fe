//! Files: a base record of the master file table, and the records that its attribute list names.
//!
//! ```text
//! standard information   made, 8 │ modified, 8 │ record changed, 8 │ accessed, 8 │ 32 DOS attributes, 4
//! attribute list         kind, 4 │ bytes, 2 │ letters, 1 │ name at, 1 │ first cluster, 8 │ 16 the record that has it, 8 │ …
//! file name              parent, 8 │ four times, 32 │ 40 allocated, 8 │ 48 bytes, 8 │ 56 DOS attributes, 4
//!                        60 tag of a reparse point, 4 │ 64 letters │ 65 namespace (2: a short name, beside another) │ 66
//! extended attributes    bytes until the next, 4 │ flags │ name bytes │ value bytes, 2 │ name, 0 │ value
//! ```
//! The attributes `$LXUID`, `$LXGID`, `$LXMOD` and `$LXDEV` say what POSIX knows, as the subsystem of Windows for Linux
//! and the kernel's driver write it.

use block::Result;
use block::bytes::{byte, le_u16, le_u32, le_u64};

use super::corrupt::Corrupt;
use super::record::{Attribute, Record, Value, kind};
use super::reparse::{self, Point};
use super::stream::{self, Medium, Run, Sizes, Stream};
use super::time;
use crate::{FileType, LINK_BYTES_MAX, Stat, utf16};

/// Bytes of an attribute list, at most; as Windows has it.
const LIST_BYTES_MAX: usize = 256 << 10;
/// Bytes of extended attributes, at most.
const EXTENDED_BYTES_MAX: usize = 64 << 10;
/// The part of a reference that is the number of a record; the sequence number stands above.
pub(super) const NUMBER_MASK: u64 = (1 << 48) - 1;

const DOS_READ_ONLY: u32 = 1;
const DOS_SYSTEM: u32 = 4;
/// Names that stand beside another name of the same file.
pub(super) const NAMESPACE_DOS: u8 = 2;
/// The index of a directory's names.
pub(super) const NAMES: &[u8] = b"$\0I\x003\x000\0";

/// A file.
#[derive(Debug)]
pub(super) struct File {
    pub stat: Stat,
    pub content: Content,
    /// The streams that have a name, with it.
    pub streams: Vec<(Vec<u8>, Stream)>,
    /// Extended attributes, with their names.
    pub extended: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a file holds.
#[derive(Debug)]
pub(super) enum Content {
    Regular(Stream),
    /// Bytes that stand in a form which is not read, and what that is.
    Foreign(Stream, &'static str),
    Directory(Index),
    Link(Vec<u8>),
    Special,
}

/// The names of a directory.
#[derive(Debug)]
pub(super) struct Index {
    pub root: Vec<u8>,
    pub blocks: Option<Stream>,
    /// Which of the blocks are in use.
    pub bitmap: Option<Stream>,
}

/// An attribute, or a part of one.
#[derive(Debug)]
struct Part {
    kind: u32,
    name: Vec<u8>,
    first: u64,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Inside(Vec<u8>),
    Outside(Sizes, Vec<Run>),
}

/// All attributes of a file.
#[derive(Debug)]
pub(super) struct Attributes(Vec<Part>);

/// The master file table.
#[derive(Debug)]
pub(super) struct Table {
    pub medium: Medium,
    pub record_bytes: u64,
    pub stream: Stream,
}

impl Table {
    /// The bytes of a record.
    fn bytes(&self, number: u64) -> Result<Vec<u8>> {
        let len = usize::try_from(self.record_bytes).unwrap_or(0);
        let at = number.checked_mul(self.record_bytes);
        let inside = |at: &u64| at.checked_add(self.record_bytes).is_some_and(|end| end <= self.stream.size());
        let at = at.filter(inside).ok_or_else(|| Corrupt::Record.at(format!("record {number}, which is none")))?;
        let mut bytes = vec![0; len];
        self.stream.read(&self.medium, &mut bytes, at)?;
        Ok(bytes)
    }

    /// The record of a reference; a sequence number of 0 says nothing.
    ///
    /// # Errors
    /// `Corrupt`; the failure of the device.
    pub fn record(&self, reference: u64) -> Result<Record> {
        let number = reference & NUMBER_MASK;
        let sequence = reference >> 48;
        let record = Record::parse(self.bytes(number)?);
        let right = |record: &Record| sequence == 0 || u64::from(record.sequence) == sequence;
        record.filter(right).ok_or_else(|| Corrupt::Record.at(format!("record {number}")))
    }

    /// All attributes of the file whose base record this is.
    ///
    /// # Errors
    /// As [`File::read`].
    pub fn attributes(&self, number: u64, base: &Record) -> Result<Attributes> {
        let mut attributes = Attributes::of(number, base)?;
        let Some(list) = attributes.stream(&self.medium, kind::ATTRIBUTE_LIST, &[])? else { return Ok(attributes) };
        let broken = || Corrupt::Attribute.at(format!("attribute list of record {number}"));
        let list = list.read_all(&self.medium, LIST_BYTES_MAX)?;
        let mut others = Vec::new();
        let mut rest = list.as_slice();
        while !rest.is_empty() {
            let len = usize::from(le_u16(rest, 4).filter(|len| *len >= 24).ok_or_else(broken)?);
            others.push(le_u64(rest, 16).ok_or_else(broken)?);
            rest = rest.get(len..).unwrap_or_default();
        }
        others.sort_unstable();
        others.dedup();
        for other in others.into_iter().filter(|other| other & NUMBER_MASK != number) {
            let record = self.record(other)?;
            if record.base & NUMBER_MASK != number {
                return Err(Corrupt::Record.at(format!("record {}, of another file", other & NUMBER_MASK)));
            }
            attributes.0.append(&mut Attributes::of(number, &record)?.0);
        }
        attributes
            .0
            .sort_by(|one, other| (one.kind, &one.name, one.first).cmp(&(other.kind, &other.name, other.first)));
        Ok(attributes)
    }
}

impl Attributes {
    /// Those of one record.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn of(number: u64, record: &Record) -> Result<Self> {
        let mut parts = Vec::new();
        let taken = record.attributes(&mut |attribute: Attribute<'_>| {
            let (first, held) = match attribute.value {
                Value::Inside(bytes) => (0, Held::Inside(bytes.to_vec())),
                Value::Outside { first, unit_log, allocated, size, initialized, packed, pairs } => {
                    let sizes = Sizes { flags: attribute.flags, unit_log, allocated, size, initialized, packed };
                    (first, Held::Outside(sizes, stream::runs(first, pairs)?))
                }
            };
            parts.push(Part { kind: attribute.kind, name: attribute.name.to_vec(), first, held });
            Some(())
        });
        taken.ok_or_else(|| Corrupt::Attribute.at(format!("attributes of record {number}")))?;
        Ok(Self(parts))
    }

    fn all(&self, kind: u32) -> impl Iterator<Item = &Part> {
        self.0.iter().filter(move |part| part.kind == kind)
    }

    /// The value of the attribute of that kind and name that stands in its record.
    pub fn inside(&self, kind: u32, name: &[u8]) -> Option<&[u8]> {
        self.all(kind).filter(|part| part.name == name).find_map(|part| match &part.held {
            Held::Inside(bytes) => Some(bytes.as_slice()),
            Held::Outside(..) => None,
        })
    }

    /// The value of the attribute of that kind and name, wherever it is.
    ///
    /// # Errors
    /// As [`Stream::outside`].
    pub fn stream(&self, medium: &Medium, kind: u32, name: &[u8]) -> Result<Option<Stream>> {
        let mut parts = self.all(kind).filter(|part| part.name == name).peekable();
        let Some(first) = parts.peek() else { return Ok(None) };
        let sizes = match &first.held {
            Held::Inside(bytes) => return Ok(Some(Stream::Inside(bytes.clone()))),
            Held::Outside(sizes, _) => *sizes,
        };
        let runs = parts.map(|part| match &part.held {
            Held::Outside(_, runs) => runs.clone(),
            Held::Inside(_) => Vec::new(),
        });
        Stream::outside(medium, sizes, runs.collect()).map(Some)
    }

    /// The names of the streams of content that have one.
    fn named(&self) -> Vec<&[u8]> {
        let mut names: Vec<&[u8]> = self.all(kind::DATA).map(|part| part.name.as_slice()).collect();
        names.retain(|name| !name.is_empty());
        names.dedup();
        names
    }
}

impl File {
    /// Reads the file of a reference.
    ///
    /// # Errors
    /// [`block::Kind::Limit`]; `Unsupported`; `Corrupt`; the failure of the device.
    pub fn read(table: &Table, reference: u64) -> Result<Self> {
        let number = reference & NUMBER_MASK;
        let record = table.record(reference)?;
        if record.base & NUMBER_MASK != 0 {
            return Err(Corrupt::Record.at(format!("record {number}, which is a part of another file")));
        }
        let medium = &table.medium;
        let attributes = table.attributes(number, &record)?;
        let broken = || Corrupt::Attribute.at(format!("attributes of record {number}"));
        let information = attributes.inside(kind::STANDARD_INFORMATION, &[]).ok_or_else(broken)?;
        let moment = |at| le_u64(information, at).map(time).ok_or_else(broken);
        let dos = le_u32(information, 32).ok_or_else(broken)?;
        let names = attributes.all(kind::FILE_NAME).filter(|part| match &part.held {
            Held::Inside(bytes) => byte(bytes, 65) != Some(NAMESPACE_DOS),
            Held::Outside(..) => false,
        });
        let mut stat = Stat {
            number: number.max(1),
            file_type: FileType::Regular,
            permissions: 0o755,
            links: u32::try_from(names.count()).unwrap_or(u32::MAX).max(1),
            uid: 0,
            gid: 0,
            size: 0,
            blocks: 0,
            device: None,
            accessed: moment(24)?,
            modified: moment(8)?,
            changed: moment(16)?,
            created: Some(moment(0)?),
        };
        let point = match attributes.stream(medium, kind::REPARSE_POINT, &[])? {
            Some(point) => reparse::read(&point.read_all(medium, reparse::BYTES_MAX)?)?,
            None => Point::None,
        };
        let data = attributes.stream(medium, kind::DATA, &[])?.unwrap_or(Stream::Inside(Vec::new()));
        let mut content = match point {
            Point::Link(target) => Content::Link(target),
            Point::Foreign(what) => Content::Foreign(data, what),
            _ if record.is_directory => {
                let root = attributes.inside(kind::INDEX_ROOT, NAMES).ok_or_else(broken)?.to_vec();
                let blocks = attributes.stream(medium, kind::INDEX_ALLOCATION, NAMES)?;
                Content::Directory(Index { root, blocks, bitmap: attributes.stream(medium, kind::BITMAP, NAMES)? })
            }
            Point::Special(file_type) => {
                stat.file_type = file_type;
                Content::Special
            }
            Point::None => interix(medium, dos, data, &mut stat)?,
        };
        if dos & DOS_READ_ONLY != 0 && !record.is_directory {
            stat.permissions = 0o555;
        }
        let extended = match attributes.stream(medium, kind::EXTENDED_ATTRIBUTES, &[])? {
            Some(list) => extended(&list.read_all(medium, EXTENDED_BYTES_MAX)?)
                .ok_or_else(|| Corrupt::ExtendedAttributes.at(format!("record {number}")))?,
            None => Vec::new(),
        };
        content = posix(&extended, &mut stat, content);
        let (file_type, size, allocated) = match &content {
            Content::Regular(data) | Content::Foreign(data, _) => (FileType::Regular, data.size(), data.allocated()),
            Content::Directory(index) => {
                let blocks = index.blocks.as_ref();
                (FileType::Directory, blocks.map_or(0, Stream::size), blocks.map_or(0, Stream::allocated))
            }
            Content::Link(target) => (FileType::SymbolicLink, target.len() as u64, 0),
            Content::Special => (stat.file_type, 0, 0),
        };
        (stat.file_type, stat.size, stat.blocks) = (file_type, size, allocated.div_ceil(512));
        if matches!(file_type, FileType::BlockDevice | FileType::CharacterDevice) {
            stat.device.get_or_insert((0, 0));
        } else {
            stat.device = None;
        }
        let mut streams = Vec::new();
        for name in attributes.named() {
            if let Some(stream) = attributes.stream(medium, kind::DATA, name)? {
                streams.push((utf16::to_bytes(&utf16::units(name)), stream));
            }
        }
        Ok(Self { stat, content, streams, extended })
    }

    /// What it takes in memory, about, bytes.
    pub fn weight(&self) -> usize {
        let content = match &self.content {
            Content::Regular(data) | Content::Foreign(data, _) => data.weight(),
            Content::Directory(index) => {
                let streams = [&index.blocks, &index.bitmap];
                streams.into_iter().flatten().fold(index.root.len(), |sum, stream| sum.saturating_add(stream.weight()))
            }
            Content::Link(target) => target.len(),
            Content::Special => 0,
        };
        let named = self.streams.iter().map(|(name, stream)| name.len().saturating_add(stream.weight()));
        let extended = self.extended.iter().map(|(name, value)| name.len().saturating_add(value.len()));
        named.chain(extended).fold(content, usize::saturating_add).saturating_add(size_of::<Self>())
    }
}

/// What Interix, and ntfs-3g after it, writes into system files: links and devices.
///
/// ```text
/// "IntxLNK" 1 │ the target, UTF-16          "IntxCHR" 0, "IntxBLK" 0 │ major number, 8 │ minor number, 8
/// ```
fn interix(medium: &Medium, dos: u32, data: Stream, stat: &mut Stat) -> Result<Content> {
    const HEAD_BYTES: usize = 8;
    // In bytes, a letter of UTF-16 may be three.
    let likely = HEAD_BYTES as u64..=LINK_BYTES_MAX.saturating_mul(2).saturating_add(HEAD_BYTES) as u64;
    if dos & DOS_SYSTEM == 0 || !likely.contains(&data.size()) {
        return Ok(Content::Regular(data));
    }
    let mut head = [0; HEAD_BYTES];
    data.read(medium, &mut head, 0)?;
    stat.file_type = match &head {
        b"IntxLNK\x01" => {
            let bytes = data.read_all(medium, LINK_BYTES_MAX.saturating_mul(3))?;
            let target = utf16::to_bytes(&utf16::units(bytes.get(HEAD_BYTES..).unwrap_or_default()));
            return reparse::target(target).map(Content::Link);
        }
        b"IntxCHR\0" => FileType::CharacterDevice,
        b"IntxBLK\0" => FileType::BlockDevice,
        _ => return Ok(Content::Regular(data)),
    };
    let mut numbers = [0; 16];
    let read = data.read(medium, &mut numbers, HEAD_BYTES as u64)?;
    let number = |at| le_u64(&numbers, at).and_then(|number| u32::try_from(number).ok());
    stat.device = number(0).zip(number(8)).filter(|_| read == numbers.len());
    Ok(Content::Special)
}

/// The entries of a list of extended attributes. `None` where one leaves it.
fn extended(mut list: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    while list.len() > 8 {
        let next = usize::try_from(le_u32(list, 0)?).ok()?;
        let (name_bytes, value_bytes) = (usize::from(byte(list, 5)?), usize::from(le_u16(list, 6)?));
        let (name, rest) = list.get(8..)?.split_at_checked(name_bytes)?;
        found.push((name.to_vec(), rest.get(1..)?.get(..value_bytes)?.to_vec()));
        if next == 0 {
            break;
        }
        list = list.get(next.max(8)..)?;
    }
    Some(found)
}

/// Owner, mode and device number, where the extended attributes say them.
fn posix(extended: &[(Vec<u8>, Vec<u8>)], stat: &mut Stat, content: Content) -> Content {
    let value = |wanted: &[u8]| extended.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_slice());
    let word = |wanted| value(wanted).and_then(|value| le_u32(value, 0));
    stat.uid = word(b"$LXUID").unwrap_or(stat.uid);
    stat.gid = word(b"$LXGID").unwrap_or(stat.gid);
    if let Some(device) = value(b"$LXDEV") {
        // The kernel writes both numbers in one, the subsystem of Windows each in four bytes.
        let both = le_u32(device, 0);
        stat.device = both.zip(le_u32(device, 4)).or_else(|| both.map(|both| (both >> 20, both & 0xf_ffff)));
    }
    let Some(mode) = word(b"$LXMOD") else { return content };
    stat.permissions = (mode & 0o7777) as u16;
    match (FileType::from_mode(mode), content) {
        (None | Some(FileType::Regular | FileType::Directory | FileType::SymbolicLink), content) => content,
        (Some(special), Content::Regular(_)) => {
            stat.file_type = special;
            Content::Special
        }
        (_, content) => content,
    }
}
