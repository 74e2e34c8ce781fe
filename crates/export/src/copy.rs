//! A device copied into another that reads as zero: on as many threads as it pays, holes left out.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use block::{BlockDevice, Error, Kind, ReadAt, Result};

/// A thread takes so many bytes at one time.
const PIECE: u64 = 2 << 20;
/// Zeroes are left out in runs of so many bytes.
const ZEROES: usize = 4096;
/// The most threads.
const THREADS_MAX: usize = 8;

/// Where a copy goes.
pub enum Target<'a> {
    /// A device that reads as zero.
    Device(&'a dyn BlockDevice),
    /// Pieces of this many bytes, the last one filled up with zeroes, each as a whole; a power of two.
    Pieces(u64, &'a (dyn Fn(&[u8], u64) -> Result<()> + Sync)),
}

impl std::fmt::Debug for Target<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device(device) => f.debug_tuple("Device").field(device).finish(),
            Self::Pieces(bytes, _) => f.debug_tuple("Pieces").field(bytes).finish(),
        }
    }
}

/// Copies all of `from`; `progress` is told how many bytes are done, since the last time.
///
/// # Errors
/// The first failure of either side; [`Kind::NoSpace`] where the target is smaller.
pub fn copy(from: &dyn ReadAt, to: &Target<'_>, progress: &(dyn Fn(u64) + Sync)) -> Result<()> {
    let size = from.size();
    if let Target::Device(device) = to
        && device.size() < size
    {
        return Err(Error::new(Kind::NoSpace, format!("a copy of {size} bytes into {} bytes", device.size())));
    }
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS_MAX);
    let work = || {
        let mut memory = vec![0; PIECE as usize];
        while !failed.load(Ordering::Relaxed) {
            let start = next.fetch_add(PIECE, Ordering::Relaxed);
            if start >= size {
                return;
            }
            let end = start.saturating_add(PIECE).min(size);
            if let Err(error) = copy_piece(from, to, start, end, &mut memory) {
                failed.store(true, Ordering::Relaxed);
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                return;
            }
            progress(end - start);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn copy_piece(from: &dyn ReadAt, to: &Target<'_>, start: u64, end: u64, memory: &mut [u8]) -> Result<()> {
    let mut at = start;
    while at < end {
        let extent = from.extent_at(at)?;
        let run_end = at.saturating_add(extent.len).min(end);
        if extent.source.is_zero() {
            at = run_end;
            continue;
        }
        match to {
            Target::Device(device) => {
                let bytes = &mut memory[..(run_end - at) as usize];
                from.read_at(bytes, at)?;
                for (from, len) in data(bytes) {
                    device.write_at(&bytes[from..from + len], at + from as u64)?;
                }
                at = run_end;
            }
            Target::Pieces(unit, write) => {
                let first = at / unit * unit;
                let bytes = &mut memory[..*unit as usize];
                let len = (from.size() - first).min(*unit) as usize;
                from.read_at(&mut bytes[..len], first)?;
                bytes[len..].fill(0);
                if !is_zero(bytes) {
                    write(bytes, first)?;
                }
                at = first + unit;
            }
        }
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    // Without a branch for each byte, so that it is done in vectors.
    bytes.chunks(512).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// The runs that are not zero: where, how many bytes.
fn data(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (n, block) in bytes.chunks(ZEROES).enumerate() {
        let start = n * ZEROES;
        match runs.last_mut() {
            _ if is_zero(block) => {}
            Some((from, len)) if *from + *len == start => *len += block.len(),
            _ => runs.push((start, block.len())),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use backing::Memory;

    #[test]
    fn all_of_it_arrives_and_zeroes_take_no_room() {
        let size = 5 * PIECE + 1000;
        let (from, to) = (Memory::new(size).unwrap(), Memory::new(size).unwrap());
        from.write_at(&[1; 5000], PIECE - 100).unwrap();
        from.write_at(&[2; 10], size - 10).unwrap();
        from.write_at(&vec![0; 100_000], 3 * PIECE).unwrap();
        let done = AtomicU64::new(0);
        let progress = |bytes| {
            done.fetch_add(bytes, Ordering::Relaxed);
        };
        copy(&from, &Target::Device(&to), &progress).unwrap();
        assert_eq!(done.into_inner(), size);
        let read = |device: &Memory| {
            let mut bytes = vec![1; size as usize];
            device.read_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(read(&from) == read(&to));
        assert!(to.used() < 20_000, "{}", to.used());
        let pieces = Memory::new(size.next_multiple_of(65536)).unwrap();
        copy(&from, &Target::Pieces(65536, &|bytes, at| pieces.write_at(bytes, at)), &|_| {}).unwrap();
        assert!(read(&from) == read(&pieces));
        let small = Memory::new(10).unwrap();
        assert_eq!(copy(&from, &Target::Device(&small), &|_| {}).unwrap_err().kind(), Kind::NoSpace);
    }
}
