//! A tree of an image as a tar archive: POSIX's pax format, in one pass, in the order of the names.
//!
//! The same tree gives the same archive, byte for byte. Numbers, names and attributes that the old header cannot hold
//! stand in an extended one; holes are left out as GNU tar leaves them out, where that saves something; further names
//! of a file become links. GNU tar and bsdtar read all of it.

use std::collections::HashMap;

use block::{Error, Kind, Result};

use crate::path::Printable;
use crate::progress::Progress;
use crate::stream::{Failure, Stream, send};
use crate::walk::{Found, Next, Order, Step, walk};
use crate::{FileSystem, FileType, Inode};

mod header;

use header::{BLOCK_BYTES, Member, Records, headers};

/// Archives are a multiple of this long: 20 blocks, tar's record.
const RECORD_BYTES: u64 = 10_240;
/// Two blocks of zeroes end an archive.
const END_BYTES: u64 = 1024;
/// A hole shorter than this is written as zeroes, bytes.
const HOLE_BYTES_MIN: u64 = 4096;
/// The most runs of data that a sparse member lists; a file of more is written whole.
const RUNS_MAX: usize = 1 << 16;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Members.
    pub members: u64,
    /// Failures, each of which [`Progress::failed`] was told.
    pub failures: u64,
    /// Sockets, which an archive cannot hold.
    pub sockets_left: u64,
}

/// Writes `start` and all below it to `stream`. The path of each member begins with `name`; the top of a whole image is
/// called `.`.
///
/// A file whose content fails to read is filled up with zeroes (its length was said before) and told to `progress`; with
/// `fail_fast` it ends the archive.
///
/// # Errors
/// The failure of the output.
pub fn archive(
    fs: &dyn FileSystem,
    start: Inode,
    name: &[u8],
    stream: &mut Stream<'_>,
    fail_fast: bool,
    progress: &dyn Progress,
) -> Result<Report> {
    let mut writer = Writer {
        fs,
        name,
        stream,
        fail_fast,
        progress,
        linked: HashMap::new(),
        report: Report::default(),
        ended: None,
    };
    walk(fs, start, Order::Name, &mut |step| writer.step(step));
    let Writer { report, ended, stream, .. } = writer;
    if let Some(error) = ended {
        return Err(error);
    }
    stream.zeroes(END_BYTES)?;
    let whole = stream.written().next_multiple_of(RECORD_BYTES);
    stream.zeroes(whole.saturating_sub(stream.written()))?;
    stream.flush()?;
    Ok(report)
}

struct Writer<'a, 'b> {
    fs: &'a dyn FileSystem,
    name: &'a [u8],
    stream: &'a mut Stream<'b>,
    fail_fast: bool,
    progress: &'a dyn Progress,
    /// Files with further names, by number: the path of the first.
    linked: HashMap<u64, Vec<u8>>,
    report: Report,
    /// The failure of the output.
    ended: Option<Error>,
}

impl Writer<'_, '_> {
    fn step(&mut self, step: Step<'_>) -> Next {
        let outcome = match &step {
            Step::Enter(found) | Step::File(found) => self.member(found).map_err(|failure| (found.path, failure)),
            Step::Leave(_) => Ok(()),
            Step::Failed { path, error } => {
                self.failed(path, error);
                Ok(())
            }
        };
        match outcome {
            Ok(()) => {}
            Err((path, Failure::Image(error))) => self.failed(path, &error),
            Err((_, Failure::Output(error))) => {
                self.ended = Some(error);
                return Next::Stop;
            }
        }
        if self.fail_fast && self.report.failures > 0 { Next::Stop } else { Next::Continue }
    }

    fn failed(&mut self, path: &[u8], error: &Error) {
        self.report.failures = self.report.failures.saturating_add(1);
        self.progress.failed(path, error);
    }

    fn member(&mut self, found: &Found<'_>) -> std::result::Result<(), Failure> {
        let stat = found.stat;
        let mut path = self.name.to_vec();
        if found.depth > 0 {
            path.push(b'/');
            path.extend_from_slice(found.path);
        }
        let mut target = Vec::new();
        if stat.file_type == FileType::SymbolicLink {
            target = self.fs.read_link(found.inode).map_err(Failure::Image)?;
        }
        let mut member = match stat.file_type {
            FileType::Regular => Member::File,
            FileType::SymbolicLink => Member::SymbolicLink(&target),
            FileType::Directory => Member::Directory,
            FileType::CharacterDevice => Member::CharacterDevice,
            FileType::BlockDevice => Member::BlockDevice,
            FileType::Fifo => Member::Fifo,
            FileType::Socket => {
                self.report.sockets_left = self.report.sockets_left.saturating_add(1);
                return Ok(());
            }
        };
        if stat.file_type == FileType::Directory {
            path.push(b'/');
        } else if stat.links > 1 {
            let first = self.linked.entry(stat.number).or_insert_with(|| path.clone());
            if *first != path {
                let first = first.clone();
                let block = headers(&path, Member::Link(&first), stat, 0, Records::default());
                return self.put(found, &block);
            }
        }
        let mut records = Records::default();
        for xattr in self.fs.xattrs(found.inode).map_err(Failure::Image)? {
            match self.fs.xattr(found.inode, &xattr) {
                Ok(value) => records.add_xattr(&xattr, &value),
                Err(error) if error.kind() == Kind::NoAttribute => {}
                Err(error) => return Err(Failure::Image(error)),
            }
        }
        if stat.file_type != FileType::Regular {
            return self.put(found, &headers(&path, member, stat, 0, records));
        }
        // A file whose end is not there is left out: once its size is said, zeros would have to follow, any number.
        if let Some(last) = stat.size.checked_sub(1) {
            self.fs.extent_at(found.inode, last).map_err(Failure::Image)?;
        }
        let runs = self.runs(found)?;
        let mut map = Vec::new();
        let mut size = stat.size;
        if let Some(runs) = &runs {
            member = Member::Sparse(stat.size);
            map = sparse_map(runs);
            size = runs.iter().fold(map.len() as u64, |sum, (_, len)| sum.saturating_add(*len));
        }
        self.put(found, &headers(&path, member, stat, size, records))?;
        self.stream.write(&map).map_err(Failure::Output)?;
        let before = self.stream.written();
        let mut outcome = Ok(());
        for (start, len) in runs.unwrap_or_else(|| vec![(0, stat.size)]) {
            outcome = send(self.fs, found.inode, start, len, self.stream, self.progress);
            if outcome.is_err() {
                break;
            }
        }
        if let Err(Failure::Output(_)) = outcome {
            return outcome;
        }
        // Up to what was said, and up to a whole block.
        let content = size.saturating_sub(map.len() as u64);
        let missing = content.saturating_sub(self.stream.written().saturating_sub(before));
        let fill = size.next_multiple_of(BLOCK_BYTES as u64).saturating_sub(size);
        self.stream.zeroes(missing.saturating_add(fill)).map_err(Failure::Output)?;
        outcome
    }

    fn put(&mut self, found: &Found<'_>, headers: &[u8]) -> std::result::Result<(), Failure> {
        self.stream.write(headers).map_err(Failure::Output)?;
        self.report.members = self.report.members.saturating_add(1);
        self.progress.placed(found.path, found.stat);
        Ok(())
    }

    /// Where a file has data, as offset and length; `None` when it is not worth to leave its holes out.
    fn runs(&self, found: &Found<'_>) -> std::result::Result<Option<Vec<(u64, u64)>>, Failure> {
        let size = found.stat.size;
        if found.stat.blocks.saturating_mul(512) >= size {
            return Ok(None);
        }
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let (mut at, mut holes) = (0_u64, 0_u64);
        while at < size {
            let extent = self.fs.extent_at(found.inode, at).map_err(Failure::Image)?.ok_or_else(|| {
                let text = format!("\"{}\" ends after {at} bytes, {size} are claimed", Printable(found.path));
                Failure::Image(Error::new(Kind::Corrupt, text))
            })?;
            let len = extent.len.min(size.saturating_sub(at));
            if extent.source.is_zero() && len >= HOLE_BYTES_MIN {
                holes = holes.saturating_add(len);
            } else {
                // GNU tar begins each run with a new block: all but the last are whole blocks.
                let start = at & !0x1ff;
                let end = at.saturating_add(len).next_multiple_of(BLOCK_BYTES as u64).min(size);
                let count = runs.len();
                match runs.last_mut() {
                    Some((first, run)) if first.saturating_add(*run) >= start => *run = end.saturating_sub(*first),
                    _ if count >= RUNS_MAX => return Ok(None),
                    _ => runs.push((start, end.saturating_sub(start))),
                }
            }
            at = at.saturating_add(len.max(1));
        }
        if holes == 0 {
            return Ok(None);
        }
        // The last run ends where the file ends, also when it is empty.
        if runs.last().is_none_or(|(start, len)| start.saturating_add(*len) < size) {
            runs.push((size, 0));
        }
        Ok(Some(runs))
    }
}

/// The map of a sparse member: the number of runs, then offset and length of each, one decimal number a line, filled up
/// to whole blocks.
fn sparse_map(runs: &[(u64, u64)]) -> Vec<u8> {
    let mut map = format!("{}\n", runs.len()).into_bytes();
    for (start, len) in runs {
        map.extend_from_slice(format!("{start}\n{len}\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK_BYTES), 0);
    map
}

#[cfg(test)]
mod tests;
