//! A device copied into a new image: on as many threads as it pays, holes left out.
//!
//! ```text
//! thread 1   read 0 ─ pack 0 ─ place 0 ─ write 0 ─ read 2 ─ pack 2 ─ …
//! thread 2   read 1 ─ pack 1 ──────────── place 1 ─ write 1 ─ …         placed in their order, all else side by side
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use block::{Error, ReadAt, Result, Sequential};

/// A thread takes so many bytes at one time, or a block where that is larger and packed: what is read is still in the
/// processor's cache when it is written.
const PIECE: u64 = 1 << 20;
/// Zeroes are left out in runs of so many bytes.
const ZEROES: usize = 4096;
/// The most threads.
const THREADS_MAX: usize = 8;

/// Copies all of `from`; `progress` is told how many bytes are done, since the last time.
///
/// # Errors
/// The first failure of either side.
pub fn copy(from: &dyn ReadAt, to: &dyn Sequential, progress: &(dyn Fn(u64) + Sync)) -> Result<()> {
    let size = from.size();
    let piece_bytes = if to.packs() { to.block().max(PIECE) } else { PIECE };
    let next = AtomicU64::new(0);
    let turns = Turns::default();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS_MAX);
    let work = || {
        let mut piece = Piece { start: 0, bytes: vec![0; piece_bytes as usize], runs: Vec::new() };
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(start) = number.checked_mul(piece_bytes).filter(|start| *start < size) else { return };
            let end = start.saturating_add(piece_bytes).min(size);
            piece.start = start;
            match piece.copy(from, to, end, &turns, number) {
                Ok(true) => progress(end - start),
                Ok(false) => return,
                Err(error) => return turns.fail(error),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match turns.lock().failure.take() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Whose turn it is to place what it has read.
#[derive(Debug, Default)]
struct Turns {
    turn: Mutex<Turn>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Turn {
    number: u64,
    failure: Option<Error>,
    failed: bool,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something when the turn of a number has come; `None` where another has failed.
    fn take<T>(&self, number: u64, work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        let waiting = |turn: &mut Turn| turn.number != number && !turn.failed;
        let turn = self.changed.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
        if turn.failed {
            return Ok(None);
        }
        drop(turn);
        let done = work()?;
        self.lock().number += 1;
        self.changed.notify_all();
        Ok(Some(done))
    }

    fn fail(&self, error: Error) {
        let mut turn = self.lock();
        turn.failed = true;
        turn.failure.get_or_insert(error);
        drop(turn);
        self.changed.notify_all();
    }
}

/// What a thread has read.
struct Piece {
    start: u64,
    bytes: Vec<u8>,
    /// What is not zero: where in the piece, how many bytes.
    runs: Vec<(usize, usize)>,
}

impl Piece {
    /// Copies up to `end`; false where another thread has failed.
    fn copy(&mut self, from: &dyn ReadAt, to: &dyn Sequential, end: u64, turns: &Turns, number: u64) -> Result<bool> {
        self.read(from, end)?;
        if to.packs() {
            return self.copy_packed(to, end, turns, number);
        }
        let Some(writes) = turns.take(number, || self.place(to))? else { return Ok(false) };
        for (at, len, host) in writes {
            to.write(&self.bytes[at..at + len], host)?;
        }
        Ok(true)
    }

    fn read(&mut self, from: &dyn ReadAt, end: u64) -> Result<()> {
        self.runs.clear();
        let mut at = self.start;
        while at < end {
            let extent = from.extent_at(at)?;
            let run_end = at.saturating_add(extent.len).min(end);
            if !extent.source.is_zero() {
                let first = (at - self.start) as usize;
                let bytes = &mut self.bytes[first..(run_end - self.start) as usize];
                from.read_at(bytes, at)?;
                for (at, len) in data(bytes) {
                    match self.runs.last_mut() {
                        Some((last, run)) if *last + *run == first + at => *run += len,
                        _ => self.runs.push((first + at, len)),
                    }
                }
            }
            at = run_end;
        }
        Ok(())
    }

    /// Places for all that is not zero: where in the piece, how many bytes, where in the file.
    fn place(&self, to: &dyn Sequential) -> Result<Vec<(usize, usize, u64)>> {
        let block = to.block();
        let mut writes: Vec<(usize, usize, u64)> = Vec::with_capacity(self.runs.len());
        for &(first, len) in &self.runs {
            let (mut at, end) = (first, first + len);
            while at < end {
                let offset = self.start + at as u64;
                let within = offset % block;
                let len = (end - at).min((block - within) as usize);
                let host = to.place(offset / block, None)? + within;
                match writes.last_mut() {
                    Some((last, run, place)) if *last + *run == at && *place + *run as u64 == host => *run += len,
                    _ => writes.push((at, len, host)),
                }
                at += len;
            }
        }
        Ok(writes)
    }

    fn copy_packed(&mut self, to: &dyn Sequential, end: u64, turns: &Turns, number: u64) -> Result<bool> {
        // What was not read is left from the piece before.
        let mut at = 0;
        for &(first, len) in &self.runs {
            self.bytes[at..first].fill(0);
            at = first + len;
        }
        self.bytes[at..].fill(0);
        let block = to.block() as usize;
        let first = self.start / block as u64;
        let count = ((end - self.start) as usize).div_ceil(block);
        let mut packed = Vec::with_capacity(count);
        let mut runs = self.runs.iter().peekable();
        for (n, bytes) in self.bytes.chunks(block).take(count).enumerate() {
            while runs.next_if(|(at, len)| at + len <= n * block).is_some() {}
            if runs.peek().is_some_and(|(at, _)| *at < (n + 1) * block) {
                packed.push((n, to.pack(first + n as u64, bytes)?));
            }
        }
        let place = |(n, bytes): &(usize, Option<Vec<u8>>)| {
            to.place(first + *n as u64, bytes.as_ref().map(|bytes| bytes.len() as u64))
        };
        let Some(places) = turns.take(number, || packed.iter().map(place).collect::<Result<Vec<u64>>>())? else {
            return Ok(false);
        };
        for ((n, bytes), place) in packed.iter().zip(places) {
            to.write(bytes.as_deref().unwrap_or(&self.bytes[n * block..(n + 1) * block]), place)?;
        }
        Ok(true)
    }
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
    use block::{BlockDevice as _, Kind};

    const BLOCK: u64 = 65536;

    /// Blocks one behind the other in the order in which they came; a packed one is its first byte alone.
    #[derive(Debug)]
    struct Image {
        packs: bool,
        memory: Memory,
        placed: Mutex<Vec<u64>>,
        fails_at: u64,
    }

    impl Image {
        fn new(packs: bool) -> Self {
            Self { packs, memory: Memory::new(64 << 20).unwrap(), placed: Mutex::default(), fails_at: u64::MAX }
        }
    }

    impl Sequential for Image {
        fn block(&self) -> u64 {
            BLOCK
        }

        fn packs(&self) -> bool {
            self.packs
        }

        fn pack(&self, number: u64, block: &[u8]) -> Result<Option<Vec<u8>>> {
            assert_eq!(block.len() as u64, BLOCK);
            assert!(block.iter().any(|byte| *byte != 0), "{number}");
            Ok(number.is_multiple_of(2).then(|| vec![block[0]]))
        }

        fn place(&self, number: u64, packed: Option<u64>) -> Result<u64> {
            if number >= self.fails_at {
                return Err(Error::new(Kind::Limit, "full"));
            }
            assert_eq!(packed.is_some(), self.packs && number.is_multiple_of(2));
            let mut placed = self.placed.lock().unwrap();
            if placed.last() != Some(&number) {
                assert!(placed.last().is_none_or(|last| *last < number));
                placed.push(number);
            }
            Ok((placed.len() as u64 - 1) * BLOCK)
        }

        fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
            self.memory.write_at(bytes, at)
        }
    }

    fn disk() -> Memory {
        let size = 5 * PIECE + 1000;
        let from = Memory::new(size).unwrap();
        from.write_at(&[1; 5000], PIECE - 100).unwrap();
        from.write_at(&vec![3; 3 * BLOCK as usize], 2 * PIECE + 100).unwrap();
        from.write_at(&[2; 10], size - 10).unwrap();
        from.write_at(&vec![0; 100_000], 4 * PIECE).unwrap();
        from
    }

    #[test]
    fn all_of_it_arrives_in_order_and_zeroes_take_no_room() {
        let from = disk();
        let done = AtomicU64::new(0);
        let progress = |bytes| {
            done.fetch_add(bytes, Ordering::Relaxed);
        };
        let to = Image::new(false);
        copy(&from, &to, &progress).unwrap();
        assert_eq!(done.into_inner(), from.size());
        let per_piece = PIECE / BLOCK;
        let placed = to.placed.into_inner().unwrap();
        let third = 2 * per_piece;
        assert_eq!(placed, [per_piece - 1, per_piece, third, third + 1, third + 2, third + 3, 5 * per_piece]);
        for (n, number) in placed.iter().enumerate() {
            let len = (from.size() - number * BLOCK).min(BLOCK) as usize;
            let (mut expected, mut read) = (vec![0; len], vec![0; len]);
            from.read_at(&mut expected, number * BLOCK).unwrap();
            to.memory.read_at(&mut read, n as u64 * BLOCK).unwrap();
            assert!(read == expected, "block {number}");
        }
        // Runs of zeroes inside of blocks are not written either.
        assert!(to.memory.used() < 4 * BLOCK, "{}", to.memory.used());
    }

    #[test]
    fn blocks_are_packed_whole() {
        let from = disk();
        let to = Image::new(true);
        copy(&from, &to, &|_| {}).unwrap();
        let placed = to.placed.into_inner().unwrap();
        assert_eq!(placed.len(), 7);
        for (n, number) in placed.iter().enumerate() {
            let mut expected = vec![0; BLOCK as usize];
            let len = (from.size() - number * BLOCK).min(BLOCK) as usize;
            from.read_at(&mut expected[..len], number * BLOCK).unwrap();
            if number.is_multiple_of(2) {
                expected[1..].fill(0);
            }
            let mut read = vec![0; BLOCK as usize];
            to.memory.read_at(&mut read, n as u64 * BLOCK).unwrap();
            assert!(read == expected, "block {number}");
        }
    }

    #[test]
    fn a_failure_ends_all_threads() {
        for packs in [false, true] {
            let to = Image { fails_at: 2 * PIECE / BLOCK, ..Image::new(packs) };
            assert_eq!(copy(&disk(), &to, &|_| {}).unwrap_err().kind(), Kind::Limit);
        }
    }
}
