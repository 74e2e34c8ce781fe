//! A device that fails when it is told to, for tests.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Operation;
use crate::{BlockDevice, Error, Extent, Kind, Limits, Poison, ReadAt, Result, Zero};

/// Fails the n-th operation, short of touching what is below.
///
/// Operations are counted from 0; [`Fault::operations`] says how many there were, so that a test runs once without a
/// failure and then once for every n.
#[derive(Debug)]
pub struct Fault<D> {
    device: D,
    at: u64,
    lasting: bool,
    only: Option<Operation>,
    kind: Kind,
    counted: AtomicU64,
    poison: Poison,
}

impl<D> Fault<D> {
    /// Never fails, only counts.
    pub fn never(device: D) -> Self {
        Self::at(device, u64::MAX)
    }

    /// Fails operation number `at` with [`Kind::Io`], and no other.
    pub fn at(device: D, at: u64) -> Self {
        let (counted, poison) = (AtomicU64::new(0), Poison::new());
        Self { device, at, lasting: false, only: None, kind: Kind::Io, counted, poison }
    }

    /// Fails all that come after, too: the disk is gone.
    pub fn lasting(self) -> Self {
        Self { lasting: true, ..self }
    }

    /// Counts and fails these only.
    pub fn only(self, operation: Operation) -> Self {
        Self { only: Some(operation), ..self }
    }

    /// Fails with this kind.
    pub fn kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// How many operations were counted so far, failed ones included.
    pub fn operations(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    fn count(&self, operation: Operation) -> Result<()> {
        if self.only.is_some_and(|only| only != operation) {
            return Ok(());
        }
        let number = self.counted.fetch_add(1, Ordering::Relaxed);
        if number == self.at || self.lasting && number > self.at {
            let name = operation.name();
            return Err(Error::new(self.kind, format!("the failure asked for, of operation {number}, a {name}")));
        }
        Ok(())
    }
}

impl<D: ReadAt> ReadAt for Fault<D> {
    fn size(&self) -> u64 {
        self.device.size()
    }

    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.count(Operation::Read)?;
        self.device.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        self.count(Operation::Extent)?;
        Ok(super::seen(self.device.extent_at(offset)?))
    }
}

impl<D: BlockDevice> BlockDevice for Fault<D> {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.poison.check()?;
        self.count(Operation::Write)?;
        self.device.write_at(buf, offset)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: Zero) -> Result<()> {
        self.poison.check()?;
        self.count(Operation::WriteZeroes)?;
        self.device.write_zeroes(offset, len, mode)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.poison.check()?;
        self.count(Operation::Discard)?;
        self.device.discard(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.poison.flush(|| {
            self.count(Operation::Flush)?;
            self.device.flush()
        })
    }
}
