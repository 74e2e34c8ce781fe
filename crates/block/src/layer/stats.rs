//! What passes through, counted.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Operation;
use crate::{BlockDevice, Extent, Limits, ReadAt, Result, Zero};

/// Buckets of a histogram: bucket `n` holds the latencies of `n` binary digits, from 2^(n-1) to 2^n - 1 nanoseconds.
pub const BUCKETS: usize = 65;

/// Counts operations, bytes, failures and latencies of the device below.
///
/// `clock` gives nanoseconds since any moment and never goes back: no clock is read in here. Counters are read while
/// they run, so that two of them need not belong to the same moment.
pub struct Stats<D, C> {
    device: D,
    clock: C,
    counters: [Counter; Operation::ALL.len()],
}

struct Counter {
    count: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    total_ns: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// What was counted of one kind of operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Operations, failed ones included.
    pub count: u64,
    /// Those that failed.
    pub failed: u64,
    /// Bytes of those that did not.
    pub bytes: u64,
    /// Nanoseconds of all of them together.
    pub total_ns: u64,
    /// How many took how long: see [`BUCKETS`].
    pub buckets: [u64; BUCKETS],
}

impl Counted {
    /// Nanoseconds that `per_mille` of a thousand operations did not exceed, to the next power of two; 0 of none.
    pub fn quantile_ns(&self, per_mille: u32) -> u64 {
        let all: u64 = self.buckets.iter().sum();
        let wanted = (u128::from(all) * u128::from(per_mille.min(1000))).div_ceil(1000).max(1);
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|count| {
            seen += u128::from(*count);
            seen >= wanted
        });
        bucket.map_or(0, |digits| u64::MAX.checked_shr(64 - digits as u32).unwrap_or(0))
    }
}

impl<D: ReadAt, C: Fn() -> u64 + Send + Sync> Stats<D, C> {
    /// `device`, counted by `clock` (nanoseconds).
    pub fn new(device: D, clock: C) -> Self {
        let counter = |_| Counter {
            count: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            total_ns: AtomicU64::new(0),
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
        };
        Self { device, clock, counters: std::array::from_fn(counter) }
    }

    /// What was counted so far.
    pub fn counted(&self, operation: Operation) -> Counted {
        let counter = &self.counters[operation as usize];
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        Counted {
            count: get(&counter.count),
            failed: get(&counter.failed),
            bytes: get(&counter.bytes),
            total_ns: get(&counter.total_ns),
            buckets: std::array::from_fn(|n| get(&counter.buckets[n])),
        }
    }

    fn count<T>(&self, operation: Operation, bytes: u64, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = (self.clock)();
        let result = run();
        let took = (self.clock)().saturating_sub(start);
        let counter = &self.counters[operation as usize];
        let add = |value: &AtomicU64, n: u64| value.fetch_add(n, Ordering::Relaxed);
        add(&counter.count, 1);
        add(&counter.total_ns, took);
        add(&counter.buckets[(u64::BITS - took.leading_zeros()) as usize], 1);
        match &result {
            Ok(_) => add(&counter.bytes, bytes),
            Err(_) => add(&counter.failed, 1),
        };
        result
    }
}

impl<D: fmt::Debug, C> fmt::Debug for Stats<D, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stats").field("device", &self.device).finish_non_exhaustive()
    }
}

impl<D: ReadAt, C: Fn() -> u64 + Send + Sync> ReadAt for Stats<D, C> {
    fn size(&self) -> u64 {
        self.device.size()
    }

    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.count(Operation::Read, buf.len() as u64, || self.device.read_at(buf, offset))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        self.count(Operation::Extent, 0, || self.device.extent_at(offset)).map(super::seen)
    }
}

impl<D: BlockDevice, C: Fn() -> u64 + Send + Sync> BlockDevice for Stats<D, C> {
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.count(Operation::Write, buf.len() as u64, || self.device.write_at(buf, offset))
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: Zero) -> Result<()> {
        self.count(Operation::WriteZeroes, len, || self.device.write_zeroes(offset, len, mode))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.count(Operation::Discard, len, || self.device.discard(offset, len))
    }

    fn flush(&self) -> Result<()> {
        self.count(Operation::Flush, 0, || self.device.flush())
    }
}
