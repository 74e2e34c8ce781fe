//! Content into a new file: holes stay holes, and where the bytes lie in a file the kernel copies them.

use std::os::fd::OwnedFd;

use block::{Error, Kind, Result, Source};
use rustix::io::Errno;

use super::{Shared, Tally};
use crate::Inode;

/// The largest read, bytes.
const READ_BYTES_MAX: u64 = 1 << 20;
/// The most that one `copy_file_range` is asked for, bytes: so that progress is seen.
const RANGE_BYTES_MAX: u64 = 16 << 20;
/// Below this, a read and a write cost less than the kernel's copy.
const RANGE_BYTES_MIN: u64 = 64 << 10;

/// Copies files one after the other.
#[derive(Default)]
pub(super) struct Copier {
    buf: Vec<u8>,
    /// Whether `copy_file_range` said that it does not work between image and destination.
    no_ranges: bool,
}

impl Copier {
    /// Fills a new, empty file.
    pub fn copy(&mut self, shared: &Shared<'_>, inode: Inode, size: u64, to: &OwnedFd) -> Result<()> {
        let mut at = 0_u64;
        let mut written = 0_u64;
        while at < size {
            let ended = || Error::new(Kind::Corrupt, format!("the content ends after {at} bytes, {size} are claimed"));
            let extent = shared.fs.extent_at(inode, at)?.ok_or_else(ended)?;
            let run = extent.len.min(size.saturating_sub(at));
            let done = match extent.source {
                Source::Hole | Source::Zero => run,
                Source::File { fd, offset } if run >= RANGE_BYTES_MIN && !self.no_ranges => {
                    let len = usize::try_from(run.min(RANGE_BYTES_MAX)).unwrap_or(usize::MAX);
                    let (mut from, mut into) = (offset, at);
                    match rustix::fs::copy_file_range(fd, Some(&mut from), to, Some(&mut into), len) {
                        Ok(0) => self.read_and_write(shared, inode, at, run, to)?,
                        Ok(n) => n as u64,
                        Err(Errno::INTR) => continue,
                        Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => return Err(writing(errno)),
                        // Not between these two; or the image cannot be read, which reading says in better words.
                        Err(errno) => {
                            self.no_ranges = errno != Errno::IO;
                            self.read_and_write(shared, inode, at, run, to)?
                        }
                    }
                }
                Source::File { .. } | Source::Data => self.read_and_write(shared, inode, at, run, to)?,
            };
            if done == 0 {
                return Err(ended());
            }
            at = at.saturating_add(done);
            if !extent.source.is_zero() {
                written = at;
            }
            Tally::add(&shared.tally.bytes, done);
            shared.progress.copied(done);
        }
        if written < size {
            rustix::fs::ftruncate(to, size).map_err(writing)?;
        }
        Ok(())
    }

    fn read_and_write(&mut self, shared: &Shared<'_>, inode: Inode, at: u64, run: u64, to: &OwnedFd) -> Result<u64> {
        let want = usize::try_from(run.min(READ_BYTES_MAX)).unwrap_or(usize::MAX);
        if self.buf.len() < want {
            self.buf.resize(want, 0);
        }
        let buf = self.buf.get_mut(..want).unwrap_or_default();
        let read = shared.fs.read(inode, buf, at)?;
        let mut rest = buf.get(..read).unwrap_or_default();
        let mut into = at;
        while !rest.is_empty() {
            match rustix::io::pwrite(to, rest, into) {
                Ok(0) => return Err(writing(Errno::IO)),
                Ok(n) => {
                    rest = rest.get(n..).unwrap_or_default();
                    into = into.saturating_add(n as u64);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(writing(errno)),
            }
        }
        Ok(read as u64)
    }
}

fn writing(errno: Errno) -> Error {
    Error::io("writing", errno)
}
