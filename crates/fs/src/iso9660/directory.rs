//! Directories: listed in order from the device, and looked up through an index.
//!
//! A directory is a run of records; none crosses a sector, and zeros fill each sector up. What is listed is read in
//! windows of a few kilobytes. A name in a directory of more than a few sectors is found by an index of hashes, eight
//! bytes an entry, made when it is first needed, of which a bounded number of bytes is kept.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use block::Result;

use super::record::{RECORD_BYTES_MAX, Record};
use super::{Corrupt, Medium, Tree, name, rock_ridge, susp};
use crate::{FileType, NAME_BYTES_MAX};

/// Directories up to this size are searched without an index, bytes.
const UNINDEXED_BYTES_MAX: u64 = 4096;
/// Larger directories are searched without one, too: about two million entries, bytes.
pub const INDEXED_BYTES_MAX: u64 = 256 << 20;
/// How many bytes of indexes are kept.
pub const INDEX_BYTES_MAX: usize = 64 << 20;
/// How many indexes are kept.
pub const INDEXES_MAX: usize = 256;
/// The window for one record, with what may stand before the next one, bytes.
const ONE_RECORD_BYTES: u64 = 512;
/// The first window of a listing, bytes; each next one is twice as large, up to the last.
const WINDOW_BYTES_MIN: u64 = 8 << 10;
const WINDOW_BYTES_MAX: u64 = 128 << 10;

/// Where a directory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Directory {
    /// First byte on the device.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

/// A file in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed<'a> {
    pub name: &'a [u8],
    /// Position of its first record on the device, bytes.
    pub position: u64,
    pub file_type: Option<FileType>,
    /// Where its first record stands in the directory, bytes.
    pub offset: u64,
    /// Where the next file begins in the directory, bytes.
    pub next: u64,
}

/// What is found before the name of a record is known.
#[derive(Debug, Default)]
struct Names {
    rock_ridge: rock_ridge::Name,
    recorded: Vec<u8>,
    recent: susp::Recent,
}

impl Names {
    /// The name that a record is shown by, and its type where that is known; `None` where it is not shown.
    fn of(&mut self, medium: &Medium, record: &Record<'_>) -> Result<Option<(&[u8], Option<FileType>)>> {
        let directory = record.is_directory();
        let mut file_type = Some(if directory { FileType::Directory } else { FileType::Regular });
        if medium.tree == Tree::RockRidge {
            let found = &mut self.rock_ridge;
            found.clear(directory);
            match medium.walk(record, susp::NAME_BUDGET, &mut self.recent, found) {
                Ok(()) => {}
                // The file stays visible by its other name; stat tells what is wrong with it.
                Err(error) if error.kind() == block::Kind::Corrupt => found.bytes.clear(),
                Err(error) => return Err(error),
            }
            if found.relocated {
                return Ok(None);
            }
            if !directory {
                file_type = match found.mode {
                    _ if found.child_link => Some(FileType::Directory),
                    Some(mode) => FileType::from_mode(mode).filter(|kind| *kind != FileType::Directory),
                    None => None,
                };
            }
            if name::is_possible(&self.rock_ridge.bytes) {
                return Ok(Some((&self.rock_ridge.bytes, file_type)));
            }
        }
        match medium.tree {
            Tree::Joliet => name::joliet(record.name, &mut self.recorded),
            Tree::Enhanced => name::enhanced(record.name, &mut self.recorded),
            Tree::RockRidge | Tree::Plain | Tree::Best => name::plain(record.name, &mut self.recorded),
        }
        Ok(name::is_possible(&self.recorded).then_some((&self.recorded, file_type)))
    }
}

/// Shows `visit` the files of a directory from `offset` (bytes) on, which is 0 or came from [`Listed::next`].
///
/// # Errors
/// `Corrupt`; the failure of the device.
pub(super) fn list(
    medium: &Medium,
    directory: Directory,
    offset: u64,
    visit: &mut dyn FnMut(Listed<'_>) -> ControlFlow<()>,
) -> Result<()> {
    list_by(medium, directory, offset, WINDOW_BYTES_MIN, visit)
}

/// The same with a first window of so many bytes.
fn list_by(
    medium: &Medium,
    directory: Directory,
    offset: u64,
    mut window_bytes: u64,
    visit: &mut dyn FnMut(Listed<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let mut names = Names::default();
    let mut window = Vec::new();
    let mut window_start = offset;
    let mut at = offset;
    // The first record of the file whose last section has not come yet, and that section's name.
    let mut open: Option<u64> = None;
    let mut open_name = Vec::new();
    while at < directory.size {
        let reach = at.saturating_add(RECORD_BYTES_MAX as u64).min(directory.size);
        if window.is_empty() || reach > window_start.saturating_add(window.len() as u64) {
            let len = directory.size.saturating_sub(at).min(window_bytes);
            window_bytes = window_bytes.saturating_mul(2).min(WINDOW_BYTES_MAX);
            window.resize(usize::try_from(len).unwrap_or(0), 0);
            window_start = at;
            medium.device.read_at(&mut window, directory.start.saturating_add(at))?;
        }
        let in_window = usize::try_from(at.saturating_sub(window_start)).unwrap_or(usize::MAX);
        let bytes = window.get(in_window..).unwrap_or(&[]);
        let position = directory.start.saturating_add(at);
        if bytes.first().is_none_or(|len| *len == 0) {
            at = medium.next_block(at);
            continue;
        }
        let broken = || Corrupt::Record.at(format!("directory record at {position}"));
        let record = Record::parse(bytes, medium.block_bytes).ok_or_else(broken)?;
        let next = at.saturating_add(record.len as u64);
        let offset = open.filter(|_| open_name == record.name).unwrap_or(at);
        at = next;
        open = None;
        if record.is_dot() || record.is_dot_dot() || record.is_associated() {
            continue;
        }
        if record.is_continued() {
            open = Some(offset);
            open_name.clear();
            open_name.extend_from_slice(record.name);
            continue;
        }
        let Some((name, file_type)) = names.of(medium, &record)? else { continue };
        let position = directory.start.saturating_add(offset);
        if visit(Listed { name, position, file_type, offset, next }).is_break() {
            break;
        }
    }
    Ok(())
}

/// The position of the record of that name.
///
/// # Errors
/// As [`list`].
pub(super) fn find(medium: &Medium, indexes: &Indexes, directory: Directory, name: &[u8]) -> Result<Option<u64>> {
    if name.len() > NAME_BYTES_MAX {
        return Ok(None);
    }
    let mut found = None;
    let mut compare = |listed: Listed<'_>| {
        if listed.name == name {
            found = Some(listed.position);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    match indexes.get(medium, directory) {
        Some(index) => {
            let hash = hash(name);
            let first = index.partition_point(|(other, _)| *other < hash);
            for (_, offset) in index.iter().skip(first).take_while(|(other, _)| *other == hash) {
                let offset = u64::from(*offset);
                // The record of the index alone, with its other sections.
                let mut first = None;
                list_by(medium, directory, offset, ONE_RECORD_BYTES, &mut |listed| {
                    first = (listed.offset == offset).then(|| compare(listed));
                    ControlFlow::Break(())
                })?;
                if first.is_some_and(|flow| flow.is_break()) {
                    break;
                }
            }
        }
        None => list(medium, directory, 0, &mut compare)?,
    }
    Ok(found)
}

/// FNV-1a.
fn hash(name: &[u8]) -> u32 {
    name.iter().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// Hashes of names, in order, and where their records stand in the directory, bytes.
type Index = Arc<[(u32, u32)]>;

/// The indexes of the directories that were last searched.
#[derive(Debug, Default)]
pub(super) struct Indexes(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// Index, and when it was last used.
    of: HashMap<Directory, (Index, u64)>,
    entries: usize,
    uses: u64,
}

const ENTRIES_MAX: usize = INDEX_BYTES_MAX / size_of::<(u32, u32)>();

impl Indexes {
    /// The index of a directory; `None` where it has none: it is small, or huge, or broken.
    fn get(&self, medium: &Medium, directory: Directory) -> Option<Index> {
        if !(UNINDEXED_BYTES_MAX..=INDEXED_BYTES_MAX).contains(&directory.size) {
            return None;
        }
        if let Some(index) = self.kept(|kept| kept.find(directory)) {
            return Some(index);
        }
        let mut index = Vec::new();
        list(medium, directory, 0, &mut |listed| {
            if let Ok(offset) = u32::try_from(listed.offset) {
                index.push((hash(listed.name), offset));
            }
            ControlFlow::Continue(())
        })
        .ok()?;
        index.sort_unstable();
        let index: Index = index.into();
        self.kept(|kept| kept.keep(directory, Arc::clone(&index)));
        Some(index)
    }

    fn kept<T>(&self, with: impl FnOnce(&mut Kept) -> T) -> T {
        // Whole at all times: a thread that panicked in between left no half of a change.
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Kept {
    fn find(&mut self, directory: Directory) -> Option<Index> {
        self.uses = self.uses.saturating_add(1);
        let (index, used) = self.of.get_mut(&directory)?;
        *used = self.uses;
        Some(Arc::clone(index))
    }

    fn keep(&mut self, directory: Directory, index: Index) {
        self.entries = self.entries.saturating_add(index.len());
        if let Some((old, _)) = self.of.insert(directory, (index, self.uses)) {
            self.entries = self.entries.saturating_sub(old.len());
        }
        while self.of.len() > 1 && (self.of.len() > INDEXES_MAX || self.entries > ENTRIES_MAX) {
            let oldest = self.of.iter().min_by_key(|(_, (_, used))| *used).map(|(directory, _)| *directory);
            let Some((index, _)) = oldest.and_then(|directory| self.of.remove(&directory)) else { break };
            self.entries = self.entries.saturating_sub(index.len());
        }
    }
}
