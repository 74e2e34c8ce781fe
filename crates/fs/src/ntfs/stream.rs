//! Where the value of an attribute is: inside of its record, or in runs of clusters, some of them compressed.
//!
//! ```text
//! mapping pairs   bytes of the length, 4 bits │ of the distance, 4 bits │ clusters │ distance from the run before     0: end
//! ```
//! No distance: a hole. A compressed attribute has units of (mostly) sixteen clusters: one that has all of them is as it
//! is, one that has none is zeros, and in between LZNT1 stands in those that are there.

use std::sync::Arc;

use block::bytes::byte;
use block::{Error, Kind, ReadAt, Result};

use super::corrupt::Corrupt;
use crate::cache::Cache;
use crate::codec;

/// Runs of one attribute.
const RUNS_MAX: usize = 1 << 20;
/// Bytes of a compression unit: sixteen clusters of 4 KiB.
const UNIT_BYTES_MAX: u64 = 64 << 10;
const FLAG_COMPRESSED: u16 = 0xff;
const FLAG_ENCRYPTED: u16 = 0x4000;

/// Clusters of an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The first, counted in the attribute.
    pub start: u64,
    /// How many, at least one.
    pub len: u64,
    /// The first, counted on the volume; `None`: zeros.
    pub cluster: Option<u64>,
}

impl Run {
    fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// The runs that mapping pairs describe, from the cluster `first` of the attribute on. `None` where they are none.
pub(super) fn runs(first: u64, mut pairs: &[u8]) -> Option<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let (mut start, mut cluster) = (first, 0_u64);
    while let Some(sizes) = byte(pairs, 0).filter(|sizes| *sizes != 0) {
        let (len_bytes, distance_bytes) = (usize::from(sizes & 15), usize::from(sizes >> 4));
        let rest = pairs.get(1..)?;
        let (len, rest) = rest.split_at_checked(len_bytes)?;
        let (distance, rest) = rest.split_at_checked(distance_bytes)?;
        pairs = rest;
        let len = u64::try_from(signed(len)?).ok().filter(|len| *len > 0)?;
        let end = start.checked_add(len).filter(|end| *end < 1 << 63)?;
        let place = if distance.is_empty() {
            None
        } else {
            cluster = cluster.checked_add_signed(signed(distance)?)?;
            Some(cluster)
        };
        runs.push(Run { start, len, cluster: place });
        start = end;
    }
    Some(runs)
}

/// A number of up to eight bytes, the last of which says its sign.
fn signed(bytes: &[u8]) -> Option<i64> {
    let fill = if bytes.last()? & 0x80 == 0 { 0 } else { 0xff };
    let mut whole = [fill; 8];
    whole.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(whole))
}

/// A device, and what is known of its clusters.
#[derive(Debug)]
pub(super) struct Medium {
    pub device: Arc<dyn ReadAt>,
    pub cluster_bytes: u64,
    /// Compression units that were unpacked, by their first cluster on the volume and their length.
    pub units: Cache<Arc<Vec<u8>>>,
}

impl Medium {
    fn log(&self) -> u32 {
        self.cluster_bytes.trailing_zeros()
    }

    /// Where on the device a run is from its cluster `skip` on, which has to be there.
    fn place(&self, run: &Run, cluster: u64, skip: u64) -> Result<(u64, u64)> {
        let outside = || Corrupt::Cluster.at(format!("{} clusters from {cluster} on", run.len));
        let bytes = run.len.checked_mul(self.cluster_bytes);
        let start = cluster.checked_mul(self.cluster_bytes).ok_or_else(outside)?;
        let bytes = bytes.and_then(|bytes| bytes.checked_sub(skip)).ok_or_else(outside)?;
        let start = start.checked_add(skip).ok_or_else(outside)?;
        block::check_range(self.device.size(), start, bytes).map_err(|error| outside().with_source(error))?;
        Ok((start, bytes))
    }
}

/// The value of an attribute.
#[derive(Debug)]
pub(super) enum Stream {
    /// It stands in its record.
    Inside(Vec<u8>),
    Outside(Runs),
}

/// The value of an attribute outside of its record.
#[derive(Debug)]
pub(super) struct Runs {
    /// By their start; the first begins with 0, and there are no gaps.
    runs: Vec<Run>,
    size: u64,
    /// What lies behind was never written, and is zeros.
    initialized: u64,
    /// Bytes of the volume that it takes.
    allocated: u64,
    /// Clusters of a compression unit.
    unit: Option<u64>,
    encrypted: bool,
}

/// What the first part of an attribute says of the whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub flags: u16,
    pub unit_log: u8,
    pub allocated: u64,
    pub size: u64,
    pub initialized: u64,
    pub packed: Option<u64>,
}

/// Where bytes are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    Hole,
    /// Allocated, and never written.
    Unwritten,
    Inside(&'a [u8]),
    /// From this byte of the device on.
    Device(u64),
    /// In the compression unit that begins with this cluster of the attribute, from this byte of it on.
    Packed(u64, u64),
}

impl Stream {
    /// That of runs, each part of which begins where the one before ends.
    ///
    /// # Errors
    /// [`Kind::Limit`]; [`Kind::Unsupported`]; `Corrupt`.
    pub fn outside(medium: &Medium, sizes: Sizes, parts: Vec<Vec<Run>>) -> Result<Self> {
        let broken = || Corrupt::Runs.at(format!("attribute of {} bytes", sizes.size));
        let mut runs: Vec<Run> = Vec::new();
        for run in parts.into_iter().flatten() {
            if run.start != runs.last().map_or(0, Run::end) {
                return Err(broken());
            }
            if runs.len() >= RUNS_MAX {
                return Err(Error::new(Kind::Limit, format!("attribute of more than {RUNS_MAX} runs")));
            }
            runs.push(run);
        }
        if sizes.size > i64::MAX.cast_unsigned() {
            return Err(broken());
        }
        let compressed = sizes.flags & FLAG_COMPRESSED != 0;
        let unit = if compressed {
            let unit = 1_u64.checked_shl(u32::from(sizes.unit_log)).filter(|unit| *unit > 1);
            let bytes = unit.and_then(|unit| unit.checked_mul(medium.cluster_bytes));
            if sizes.flags & FLAG_COMPRESSED != 1 || bytes.is_none_or(|bytes| bytes > UNIT_BYTES_MAX) {
                let what = format!("compression of method {:#x}", sizes.flags & FLAG_COMPRESSED);
                return Err(Error::new(Kind::Unsupported, what));
            }
            unit
        } else {
            None
        };
        Ok(Self::Outside(Runs {
            runs,
            size: sizes.size,
            initialized: sizes.initialized.min(sizes.size),
            allocated: sizes.packed.unwrap_or(sizes.allocated),
            unit,
            encrypted: sizes.flags & FLAG_ENCRYPTED != 0,
        }))
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Inside(bytes) => bytes.len() as u64,
            Self::Outside(runs) => runs.size,
        }
    }

    /// Bytes of the volume that it takes beside its record.
    pub fn allocated(&self) -> u64 {
        match self {
            Self::Inside(_) => 0,
            Self::Outside(runs) => runs.allocated,
        }
    }

    /// What it takes in memory, bytes.
    pub fn weight(&self) -> usize {
        let inner = match self {
            Self::Inside(bytes) => bytes.len(),
            Self::Outside(runs) => runs.runs.len().saturating_mul(size_of::<Run>()),
        };
        inner.saturating_add(size_of::<Self>())
    }

    /// Fills `buf` from `offset` on, as far as there are bytes, and says how many there were.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where it is encrypted; `Corrupt`; the failure of the device.
    pub fn read(&self, medium: &Medium, buf: &mut [u8], offset: u64) -> Result<usize> {
        let left = usize::try_from(self.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = buf.len().min(left);
        let mut rest = buf.get_mut(..len).unwrap_or_default();
        let mut at = offset;
        while !rest.is_empty() {
            let (there, place) = self.run(medium, at)?;
            let part = usize::try_from(there).unwrap_or(usize::MAX).min(rest.len());
            let Some((now, later)) = std::mem::take(&mut rest).split_at_mut_checked(part) else { break };
            match place {
                Place::Hole | Place::Unwritten => now.fill(0),
                Place::Inside(bytes) => now.copy_from_slice(bytes.get(..part).unwrap_or_default()),
                Place::Device(position) => medium.device.read_at(now, position)?,
                Place::Packed(first, skip) => {
                    let unit = self.unpack(medium, first)?;
                    let skip = usize::try_from(skip).unwrap_or(usize::MAX);
                    let bytes = unit.get(skip..).and_then(|rest| rest.get(..part));
                    now.copy_from_slice(bytes.ok_or_else(|| Corrupt::CompressionUnit.at(format!("unit {first}")))?);
                }
            }
            rest = later;
            at = at.saturating_add(part as u64);
        }
        Ok(len)
    }

    /// All of it, where it is not longer than `bytes_max`.
    ///
    /// # Errors
    /// [`Kind::Limit`]; as [`Stream::read`].
    pub fn read_all(&self, medium: &Medium, bytes_max: usize) -> Result<Vec<u8>> {
        let len = usize::try_from(self.size()).ok().filter(|len| *len <= bytes_max);
        let too_long = || Error::new(Kind::Limit, format!("attribute of {} bytes, of {bytes_max}", self.size()));
        let mut bytes = vec![0; len.ok_or_else(too_long)?];
        self.read(medium, &mut bytes, 0)?;
        Ok(bytes)
    }

    /// Where the bytes from `at` on are, which is before the end, and how many there are.
    ///
    /// # Errors
    /// As [`Stream::read`].
    pub fn run(&self, medium: &Medium, at: u64) -> Result<(u64, Place<'_>)> {
        match self {
            Self::Inside(bytes) => {
                let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
                Ok((rest.len() as u64, Place::Inside(rest)))
            }
            Self::Outside(runs) => runs.run(medium, at),
        }
    }

    /// The bytes of the compression unit that begins with a cluster.
    fn unpack(&self, medium: &Medium, first: u64) -> Result<Arc<Vec<u8>>> {
        match self {
            Self::Inside(_) => Err(Corrupt::CompressionUnit.at("attribute inside of its record")),
            Self::Outside(runs) => runs.unpack(medium, first),
        }
    }
}

impl Runs {
    fn missing(&self, at: u64) -> Error {
        Corrupt::Runs.at(format!("byte {at} of an attribute of {}, which has no cluster", self.size))
    }

    /// The number of the run that holds a cluster.
    fn find(&self, cluster: u64) -> Option<usize> {
        let number = self.runs.partition_point(|run| run.start <= cluster).checked_sub(1)?;
        (cluster < self.runs.get(number)?.end()).then_some(number)
    }

    fn run(&self, medium: &Medium, at: u64) -> Result<(u64, Place<'_>)> {
        if self.encrypted {
            return Err(Error::new(Kind::Unsupported, "content that Windows encrypted (EFS)"));
        }
        if at >= self.initialized {
            return Ok((self.size.saturating_sub(at), Place::Unwritten));
        }
        let left = self.initialized.saturating_sub(at);
        let cluster = at >> medium.log();
        let run = self.find(cluster).and_then(|number| self.runs.get(number)).ok_or_else(|| self.missing(at))?;
        // How far the run is the run, in clusters.
        let mut end = run.end();
        if let Some(unit) = self.unit {
            let first = cluster & !unit.saturating_sub(1);
            let unit_end = first.saturating_add(unit);
            let there: u64 = self.parts(first, unit).fold(0, |sum, (len, ..)| sum.saturating_add(len));
            if there != 0 && there != unit {
                let skip = at.saturating_sub(first.saturating_mul(medium.cluster_bytes));
                let len = unit.saturating_mul(medium.cluster_bytes).saturating_sub(skip).min(left);
                return Ok((len, Place::Packed(first, skip)));
            }
            if end > unit_end {
                // Of the last unit that it reaches into, another run may have a part.
                end = (end & !unit.saturating_sub(1)).max(unit_end);
            }
        }
        let skip = at.saturating_sub(run.start.saturating_mul(medium.cluster_bytes));
        let whole = Run { len: end.saturating_sub(run.start), ..*run };
        match run.cluster {
            Some(cluster) => {
                let (position, there) = medium.place(&whole, cluster, skip)?;
                Ok((there.min(left), Place::Device(position)))
            }
            None => {
                let there = whole.len.saturating_mul(medium.cluster_bytes).saturating_sub(skip);
                Ok((there.min(left), Place::Hole))
            }
        }
    }

    /// What is there of the `unit` clusters from `first` on: how many clusters, their run, and how many of it to skip.
    fn parts(&self, first: u64, unit: u64) -> impl Iterator<Item = (u64, &Run, u64)> {
        let end = first.saturating_add(unit);
        let from = self.find(first).unwrap_or(self.runs.len());
        let runs = self.runs.get(from..).unwrap_or_default().iter();
        runs.take_while(move |run| run.start < end).filter(|run| run.cluster.is_some()).map(move |run| {
            let start = run.start.max(first);
            (run.end().min(end).saturating_sub(start), run, start.saturating_sub(run.start))
        })
    }

    fn unpack(&self, medium: &Medium, first: u64) -> Result<Arc<Vec<u8>>> {
        let unit = self.unit.unwrap_or(1);
        let broken = || Corrupt::CompressionUnit.at(format!("unit from cluster {first} of its attribute on"));
        let (clusters, run, skip) = self.parts(first, unit).next().ok_or_else(broken)?;
        let place = run.cluster.and_then(|cluster| cluster.checked_add(skip)).ok_or_else(broken)?;
        medium.units.get((place, clusters), || {
            let unit_bytes = usize::try_from(unit.saturating_mul(medium.cluster_bytes)).unwrap_or(0);
            let mut packed = Vec::new();
            for (clusters, run, skip) in self.parts(first, unit) {
                let part = Run { len: skip.saturating_add(clusters), ..*run };
                let cluster = run.cluster.ok_or_else(broken)?;
                let (position, bytes) = medium.place(&part, cluster, skip.saturating_mul(medium.cluster_bytes))?;
                // Less than a unit in all.
                let start = packed.len();
                packed.resize(start.saturating_add(usize::try_from(bytes).unwrap_or(0)), 0);
                medium.device.read_at(packed.get_mut(start..).unwrap_or_default(), position)?;
            }
            let mut out = vec![0; unit_bytes];
            codec::lznt1(&packed, &mut out).ok_or_else(broken)?;
            Ok(Arc::new(out))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_become_runs() {
        let pairs = [0x21, 5, 0x34, 0x12, 0x01, 3, 0x11, 2, 0xff, 0, 0x11];
        let wanted = [(0, 5, Some(0x1234)), (5, 3, None), (8, 2, Some(0x1233))];
        let wanted = wanted.map(|(start, len, cluster)| Run { start, len, cluster });
        assert_eq!(runs(0, &pairs).unwrap(), wanted);
        assert_eq!(runs(7, &[0x11, 1, 4]).unwrap(), [Run { start: 7, len: 1, cluster: Some(4) }]);
        assert_eq!(runs(0, &[]).unwrap(), []);
        for broken in [&[0x11, 0, 1][..], &[0x11, 0x80, 1], &[0x11, 1, 0x80], &[0x11, 1], &[0x10, 1], &[0x19, 1, 2]] {
            assert_eq!(runs(0, broken), None, "{broken:?}");
        }
    }
}
