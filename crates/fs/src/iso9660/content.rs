//! The content of a regular file: one run of bytes of the device, or several.
//!
//! A file of 4 GiB and more has several sections, each with a directory record of its own, one after the other; the
//! writers put them side by side on the device, and then they are one run here.

use std::sync::{Arc, Mutex, PoisonError};

use block::{Result, Source};

use super::zisofs::Compression;
use super::{Corrupt, Medium};
use crate::FileExtent;

/// How many files' runs are remembered.
const CONTENTS_MAX: usize = 64;

/// A run of bytes of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Where it begins in the file, bytes.
    pub offset: u64,
    /// Where it begins on the device, bytes.
    pub start: u64,
    /// Bytes, at least one.
    pub len: u64,
}

/// Runs one after the other.
#[derive(Debug, Default)]
pub(super) struct Runs(Vec<Run>);

impl Runs {
    /// Adds `len` bytes at `start` of the device to the end.
    pub fn push(&mut self, start: u64, len: u64) {
        let offset = self.size();
        match self.0.last_mut() {
            Some(last) if last.start.saturating_add(last.len) == start => last.len = last.len.saturating_add(len),
            _ if len == 0 => {}
            _ => self.0.push(Run { offset, start, len }),
        }
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.0.last().map_or(0, |last| last.offset.saturating_add(last.len))
    }

    /// The run from `offset` on: where it begins on the device, and how many bytes it has left.
    fn at(&self, offset: u64) -> Option<(u64, u64)> {
        let next = self.0.partition_point(|run| run.offset <= offset);
        let run = self.0.get(next.checked_sub(1)?)?;
        let inside = offset.saturating_sub(run.offset);
        let left = run.len.checked_sub(inside).filter(|left| *left > 0)?;
        Some((run.start.saturating_add(inside), left))
    }

    /// Fills `buf` from `offset` on, as far as there are bytes, and says how many there were.
    ///
    /// # Errors
    /// [`Corrupt::FileBeyondDevice`]; the failure of the device.
    pub fn read(&self, medium: &Medium, mut buf: &mut [u8], mut offset: u64) -> Result<usize> {
        let mut read = 0_usize;
        while let Some((start, left)) = self.at(offset).filter(|_| !buf.is_empty()) {
            let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            medium.check(start, len as u64)?;
            let Some((now, rest)) = std::mem::take(&mut buf).split_at_mut_checked(len) else { break };
            medium.device.read_at(now, start)?;
            buf = rest;
            offset = offset.saturating_add(len as u64);
            read = read.saturating_add(len);
        }
        Ok(read)
    }

    /// Where the bytes from `offset` on are.
    ///
    /// # Errors
    /// As [`Runs::read`].
    pub fn extent_at<'a>(&self, medium: &'a Medium, offset: u64) -> Result<Option<FileExtent<'a>>> {
        let Some((start, left)) = self.at(offset) else { return Ok(None) };
        medium.check(start, 1)?;
        let extent = medium.device.extent_at(start)?;
        Ok(Some(FileExtent { len: extent.len.min(left), source: extent.source }))
    }
}

/// What is needed to read a file.
#[derive(Debug)]
pub(super) struct Content {
    /// Position of its directory record on the device, bytes.
    pub position: u64,
    /// Its bytes as they are recorded.
    pub runs: Runs,
    /// How they are compressed.
    pub compression: Option<Compression>,
}

/// The contents that were last read, each in the one place where it may be.
#[derive(Debug)]
pub(super) struct Contents([Mutex<Option<Arc<Content>>>; CONTENTS_MAX]);

impl Default for Contents {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(None)))
    }
}

impl Contents {
    /// The content of the file at `position`, which `load` finds out when it is not remembered.
    ///
    /// # Errors
    /// What `load` says.
    pub fn get(&self, position: u64, load: impl FnOnce() -> Result<Content>) -> Result<Arc<Content>> {
        // Records are some hundred bytes apart, and never at less than 34.
        let place = usize::try_from((position / 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58).unwrap_or(0);
        let Some(place) = self.0.get(place) else { return load().map(Arc::new) };
        let lock = || place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(content) = lock().as_ref().filter(|content| content.position == position) {
            return Ok(Arc::clone(content));
        }
        let content = Arc::new(load()?);
        *lock() = Some(Arc::clone(&content));
        Ok(content)
    }
}

impl Medium {
    /// That `len` bytes of a file at `start` lie on the device.
    fn check(&self, start: u64, len: u64) -> Result<()> {
        let size = self.device.size();
        match start.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Corrupt::FileBeyondDevice.at(format!("{len} bytes of a file at {start} of {size} bytes"))),
        }
    }
}

/// Whether bytes are given only by reading through the file system.
pub(super) fn encoded(len: u64, zero: bool) -> FileExtent<'static> {
    FileExtent { len, source: if zero { Source::Hole } else { Source::Data } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_side_by_side_are_one() {
        let mut runs = Runs::default();
        runs.push(4096, 2048);
        runs.push(6144, 100);
        runs.push(0, 0);
        runs.push(2048, 50);
        assert_eq!(runs.0, [Run { offset: 0, start: 4096, len: 2148 }, Run { offset: 2148, start: 2048, len: 50 }]);
        assert_eq!(runs.size(), 2198);
        assert_eq!(runs.at(0), Some((4096, 2148)));
        assert_eq!(runs.at(2147), Some((6243, 1)));
        assert_eq!(runs.at(2148), Some((2048, 50)));
        assert_eq!(runs.at(2198), None);
        assert_eq!(Runs::default().at(0), None);
    }
}
