//! Where the content of a file lies: runs of neighbouring clusters.

use block::{BlockDevice, ReadAt, Result, Zero};

use super::boot::Geometry;
use super::corrupt::Corrupt;
use super::table::{Link, Table};

/// The most runs of one file: 4 million, 96 MiB.
const RUNS_MAX: usize = 1 << 22;
/// The most bytes that are zeroed by one request.
const ZEROES_MAX: u64 = 1 << 30;

/// Neighbouring clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First byte in the file.
    pub start: u64,
    /// First byte on the device.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

/// The clusters of a file, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub runs: Vec<Run>,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl Chain {
    /// A run of its own.
    pub fn fixed(at: u64, len: u64) -> Self {
        Self { runs: vec![Run { start: 0, at, len }], bytes: len }
    }

    /// The clusters from `first` on, until they hold `wanted` bytes, or up to the end of the chain where none are named.
    /// What a chain lacks is found out by who reads it.
    ///
    /// # Errors
    /// `Corrupt`; the failure of the device.
    pub fn follow(
        device: &dyn ReadAt,
        geometry: &Geometry,
        table: &Table,
        first: u32,
        contiguous: bool,
        wanted: Option<u64>,
    ) -> Result<Self> {
        let mut chain = Self::default();
        if first == 0 || wanted == Some(0) {
            return Ok(chain);
        }
        let outside = |cluster: u32| Corrupt::Chain.at(format!("cluster {cluster} of {}", geometry.clusters));
        let cluster_bytes = u64::from(geometry.cluster_bytes);
        if contiguous && let Some(wanted) = wanted {
            let clusters = geometry.clusters_for(wanted);
            let last = u64::from(first).saturating_add(clusters).saturating_sub(1);
            let inside = u32::try_from(last).ok().and_then(|last| geometry.cluster_at(last));
            let at = geometry.cluster_at(first).filter(|_| inside.is_some()).ok_or_else(|| outside(first))?;
            chain.push(at, clusters.saturating_mul(cluster_bytes))?;
            return Ok(chain);
        }
        let mut cluster = first;
        let mut left = geometry.clusters;
        loop {
            let at = geometry.cluster_at(cluster).ok_or_else(|| outside(cluster))?;
            left = left.checked_sub(1).ok_or_else(|| Corrupt::Chain.at(format!("loop from cluster {first} on")))?;
            chain.push(at, cluster_bytes)?;
            if wanted.is_some_and(|wanted| chain.bytes >= wanted) {
                return Ok(chain);
            }
            match table.get(device, geometry, cluster)? {
                Link::Next(next) => cluster = next,
                Link::End | Link::Free | Link::Bad => return Ok(chain),
            }
        }
    }

    /// Adds bytes of the device at the end.
    ///
    /// # Errors
    /// `Limit`.
    pub fn push(&mut self, at: u64, len: u64) -> Result<()> {
        let start = self.bytes;
        self.bytes = self.bytes.saturating_add(len);
        if let Some(last) = self.runs.last_mut().filter(|last| last.at.checked_add(last.len) == Some(at)) {
            last.len = last.len.saturating_add(len);
            return Ok(());
        }
        if self.runs.len() >= RUNS_MAX {
            let text = format!("a file in more than {RUNS_MAX} pieces");
            return Err(block::Error::new(block::Kind::Limit, text));
        }
        self.runs.push(Run { start, at, len });
        Ok(())
    }

    /// Where a byte of the file is on the device, and how many bytes follow it there.
    pub fn place(&self, offset: u64) -> Option<(u64, u64)> {
        let index = self.runs.partition_point(|run| run.start <= offset).checked_sub(1)?;
        let run = self.runs.get(index)?;
        let into = offset.checked_sub(run.start)?;
        let left = run.len.checked_sub(into).filter(|left| *left > 0)?;
        Some((run.at.checked_add(into)?, left))
    }

    /// Keeps the first `bytes`, which end a cluster, and returns the runs of the rest.
    pub fn truncate(&mut self, bytes: u64) -> Vec<Run> {
        let keep = self.runs.partition_point(|run| run.start < bytes);
        let mut rest = self.runs.split_off(keep);
        if let Some(last) = self.runs.last_mut() {
            let kept = bytes.saturating_sub(last.start).min(last.len);
            if kept < last.len {
                let len = last.len.saturating_sub(kept);
                rest.insert(0, Run { start: bytes, at: last.at.saturating_add(kept), len });
                last.len = kept;
            }
        }
        self.bytes = self.bytes.min(bytes);
        rest
    }

    /// Calls `each` with position on the device, place in the range and length, for all of a range of the file.
    ///
    /// # Errors
    /// `Corrupt` where the chain ends before; what `each` says.
    pub fn pieces(&self, offset: u64, len: u64, mut each: impl FnMut(u64, u64, u64) -> Result<()>) -> Result<()> {
        let mut done = 0_u64;
        while done < len {
            let from = offset.saturating_add(done);
            let (at, left) = self.place(from).ok_or_else(|| Corrupt::ChainEnds.at(format!("byte {from} of a file")))?;
            let piece = left.min(len.saturating_sub(done));
            each(at, done, piece)?;
            done = done.saturating_add(piece);
        }
        Ok(())
    }

    /// Reads all of `buf`.
    ///
    /// # Errors
    /// As [`Chain::pieces`]; the failure of the device.
    pub fn read(&self, device: &dyn ReadAt, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = buf.len() as u64;
        self.pieces(offset, len, |at, done, piece| {
            // Inside `buf`, whose length is a usize.
            let (start, end) = (done as usize, done.saturating_add(piece) as usize);
            device.read_at(buf.get_mut(start..end).unwrap_or_default(), at)
        })
    }

    /// Writes all of `buf`.
    ///
    /// # Errors
    /// As [`Chain::read`].
    pub fn write(&self, device: &dyn BlockDevice, buf: &[u8], offset: u64) -> Result<()> {
        self.pieces(offset, buf.len() as u64, |at, done, piece| {
            let (start, end) = (done as usize, done.saturating_add(piece) as usize);
            device.write_at(buf.get(start..end).unwrap_or_default(), at)
        })
    }

    /// Makes a range read as zero.
    ///
    /// # Errors
    /// As [`Chain::read`].
    pub fn zero(&self, device: &dyn BlockDevice, offset: u64, len: u64) -> Result<()> {
        self.pieces(offset, len, |at, _, piece| {
            let mut done = 0;
            while done < piece {
                let some = piece.saturating_sub(done).min(ZEROES_MAX);
                device.write_zeroes(at.saturating_add(done), some, Zero::Deallocate)?;
                done = done.saturating_add(some);
            }
            Ok(())
        })
    }
}
