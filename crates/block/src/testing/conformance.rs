//! Each sentence that [`ReadAt`] and [`BlockDevice`] promise, checked.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::layer::{Fault, Operation, ReadOnly, Window};
use crate::{BlockDevice, Kind, ReadAt, Result, Source, Zero};

/// The largest device that the suite reads as a whole, bytes.
pub const MAX_SIZE: u64 = 64 << 20;

/// Checks a device that takes writes (or says that it does not), made anew by each call of `make`.
///
/// `make` returns devices of 1 byte to [`MAX_SIZE`], of any content; larger than 64 KiB and with holes is best.
pub fn check<D: BlockDevice>(make: impl Fn() -> D) {
    check_reads(&make());
    if make().limits().read_only {
        check_refusals(&make());
        return;
    }
    check_writes(&make());
    check_zeroes(&make());
    check_discard(&make());
    check_ranges_of_writes(&make());
    check_threads(&make());
    check_poison(make());
    // What keeps the promises alone keeps them in a stack.
    let device = make();
    let len = device.size() / 2;
    if len > 0 {
        let window = Window::new(device, len / 2, len).unwrap();
        check_reads(&window);
        check_writes(&window);
    }
    let read_only = ReadOnly::new(make());
    check_reads(&read_only);
    check_refusals(&read_only);
}

/// Checks what is only read.
pub fn check_reads(device: &dyn ReadAt) {
    let size = device.size();
    assert!((1..=MAX_SIZE).contains(&size), "the suite takes devices of 1 to {MAX_SIZE} bytes, not {size}");
    let limits = device.limits();
    assert!(limits.block.is_power_of_two(), "a block of {} bytes", limits.block);
    assert!(limits.preferred.is_power_of_two() && limits.preferred >= limits.block, "{limits:?}");
    assert!(limits.depth >= 1, "{limits:?}");

    let whole = read(device, 0, size);
    for (offset, len) in ranges(size) {
        let part = read(device, offset, len);
        assert!(part == whole[offset as usize..][..len as usize], "{len} bytes at {offset} differ from a read of all");
    }
    for (offset, len) in ranges_outside(size) {
        let mut buf = vec![0xEE; len];
        out_of_range(device.read_at(&mut buf, offset), &format!("read of {len} bytes at {offset} of {size}"));
    }
    check_extents(device, &whole);
    for offset in [size, size + 1, u64::MAX - 1, u64::MAX] {
        out_of_range(device.extent_at(offset).map(drop), &format!("extent at {offset} of {size}"));
    }
    assert!(read(device, 0, size) == whole, "two reads of all differ");
}

/// That the extents cover the device, from any offset, and say the truth about `whole`, its bytes.
fn check_extents(device: &dyn ReadAt, whole: &[u8]) {
    let size = device.size();
    let mut at = 0;
    while at < size {
        let len = check_extent(device, at, whole);
        // Asked in the midst of a run, the answer is as true.
        for inside in [at + 1, at + len / 2, at + len - 1].into_iter().filter(|inside| (at..at + len).contains(inside))
        {
            check_extent(device, inside, whole);
        }
        at += len;
    }
}

/// That the extent at `offset` says the truth; its length.
pub(super) fn check_extent(device: &dyn ReadAt, offset: u64, whole: &[u8]) -> u64 {
    let extent = device.extent_at(offset).unwrap();
    let size = device.size();
    assert!(extent.len >= 1, "an empty extent at {offset}");
    assert!(extent.len <= size - offset, "an extent of {} bytes at {offset} of {size}", extent.len);
    let bytes = &whole[offset as usize..][..extent.len as usize];
    match extent.source {
        Source::Hole | Source::Zero => {
            let other = bytes.iter().position(|byte| *byte != 0);
            assert!(other.is_none(), "{extent:?} at {offset}, whose byte {other:?} is not zero");
        }
        Source::Data => {}
        Source::File { fd, offset: start } => {
            let file = File::from(fd.try_clone_to_owned().unwrap());
            let mut read = vec![0; bytes.len()];
            file.read_exact_at(&mut read, start).unwrap();
            assert!(read == bytes, "{extent:?} at {offset}: the file holds other bytes than a read gives");
        }
    }
    extent.len
}

fn check_writes(device: &dyn BlockDevice) {
    let size = device.size();
    let mut whole = read(device, 0, size);
    for (n, (offset, len)) in ranges(size).into_iter().enumerate() {
        let data = pattern(n as u64, len);
        device.write_at(&data, offset).unwrap();
        whole[offset as usize..][..len as usize].copy_from_slice(&data);
        assert!(read(device, offset, len) == data, "{len} bytes written at {offset} read otherwise");
    }
    assert!(read(device, 0, size) == whole, "a write changed bytes beside it");
    device.flush().unwrap();
    device.flush().unwrap();
    assert!(read(device, 0, size) == whole, "a flush changed bytes");
    check_extents(device, &whole);
}

fn check_zeroes(device: &dyn BlockDevice) {
    let size = device.size();
    let full = pattern(5, size);
    device.write_at(&full, 0).unwrap();
    for mode in [Zero::Allocate, Zero::Deallocate] {
        for (offset, len) in ranges(size) {
            let (start, end) = (offset as usize, (offset + len) as usize);
            let mut whole = full.clone();
            device.write_zeroes(offset, len, mode).unwrap();
            whole[start..end].fill(0);
            assert!(read(device, 0, size) == whole, "{len} bytes of zeroes at {offset} ({mode:?}) read otherwise");
            check_extents(device, &whole);
            // Written again, in part and then as a whole.
            let part = len.min(5000) as usize;
            device.write_at(&full[start..start + part], offset).unwrap();
            whole[start..start + part].copy_from_slice(&full[start..start + part]);
            assert!(read(device, 0, size) == whole, "bytes written over zeroes ({mode:?}) at {offset} read otherwise");
            device.write_at(&full[start..end], offset).unwrap();
        }
    }
    assert!(read(device, 0, size) == full);
}

fn check_discard(device: &dyn BlockDevice) {
    let size = device.size();
    let whole = pattern(3, size);
    device.write_at(&whole, 0).unwrap();
    for (offset, len) in ranges(size).into_iter().filter(|(_, len)| *len < size) {
        device.discard(offset, len).unwrap();
        let (start, end) = (offset as usize, (offset + len) as usize);
        let now = read(device, 0, size);
        let loose = |(at, (old, new)): (usize, (&u8, &u8))| {
            assert!(
                old == new || *new == 0 && (start..end).contains(&at),
                "byte {at} after a discard of {start}..{end}"
            );
        };
        whole.iter().zip(&now).enumerate().for_each(loose);
        check_extents(device, &now);
        device.write_at(&whole[start..end], offset).unwrap();
        assert!(read(device, 0, size) == whole, "bytes written where {len} were discarded at {offset} read otherwise");
    }
}

fn check_ranges_of_writes(device: &dyn BlockDevice) {
    let size = device.size();
    let whole = read(device, 0, size);
    for (offset, len) in ranges_outside(size) {
        out_of_range(device.write_at(&vec![0xEE; len], offset), &format!("write of {len} bytes at {offset} of {size}"));
    }
    let huge = [(0, u64::MAX), (1, u64::MAX), (size, u64::MAX), (u64::MAX, u64::MAX), (0, size + 1)];
    for (offset, len) in ranges_outside(size).into_iter().map(|(offset, len)| (offset, len as u64)).chain(huge) {
        for mode in [Zero::Allocate, Zero::Deallocate] {
            out_of_range(device.write_zeroes(offset, len, mode), &format!("zeroes: {len} bytes at {offset} of {size}"));
        }
        out_of_range(device.discard(offset, len), &format!("discard of {len} bytes at {offset} of {size}"));
    }
    for offset in [0, size / 2, size] {
        device.write_at(&[], offset).unwrap();
        device.write_zeroes(offset, 0, Zero::Deallocate).unwrap();
        device.write_zeroes(offset, 0, Zero::Allocate).unwrap();
        device.discard(offset, 0).unwrap();
    }
    assert!(read(device, 0, size) == whole, "a refused or empty request changed bytes");
}

/// Writers of neighbouring bytes, which a device that reads before it writes would mix up.
fn check_threads(device: &dyn BlockDevice) {
    const THREADS: u64 = 4;
    let size = device.size().min(1 << 18);
    device.write_at(&vec![0; size as usize], 0).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                // Pieces of a size that no block divides, dealt to the threads in turn.
                for offset in (thread * 1000..size).step_by(1000 * THREADS as usize) {
                    let data = vec![thread as u8 + 1; 1000.min(size - offset) as usize];
                    device.write_at(&data, offset).unwrap();
                    assert!(read(device, offset, data.len() as u64) == data, "bytes at {offset} beside other writers");
                }
                device.flush().unwrap();
            });
        }
    });
    let whole = read(device, 0, size);
    let other = whole.iter().zip(0..).position(|(byte, at)| u64::from(*byte) != at / 1000 % THREADS + 1);
    assert_eq!(other, None, "a byte that another thread's write beside it undid");
}

/// A flush that fails, here in a layer, ends all writing.
fn check_poison<D: BlockDevice>(device: D) {
    let fault = Fault::at(device, 1).only(Operation::Flush);
    fault.write_at(&[1], 0).unwrap();
    fault.flush().unwrap();
    assert_eq!(fault.flush().unwrap_err().kind(), Kind::Io);
    check_poisoned(&fault);
}

/// That a device whose flush has failed refuses all that changes bytes, and still reads.
pub fn check_poisoned(device: &dyn BlockDevice) {
    let poisoned = |result: Result<()>| assert_eq!(result.unwrap_err().kind(), Kind::Poisoned);
    poisoned(device.write_at(&[1], 0));
    poisoned(device.write_zeroes(0, 1, Zero::Allocate));
    poisoned(device.write_zeroes(0, 1, Zero::Deallocate));
    poisoned(device.discard(0, 1));
    poisoned(device.flush());
    device.read_at(&mut [0], 0).unwrap();
}

/// That a device that takes no writes says so, and keeps its bytes.
fn check_refusals(device: &dyn BlockDevice) {
    assert!(device.limits().read_only);
    let whole = read(device, 0, device.size());
    let read_only = |result: Result<()>| assert_eq!(result.unwrap_err().kind(), Kind::ReadOnly);
    read_only(device.write_at(&[!whole[0]], 0));
    read_only(device.write_zeroes(0, 1, Zero::Allocate));
    read_only(device.write_zeroes(0, 1, Zero::Deallocate));
    read_only(device.discard(0, device.size()));
    device.flush().unwrap();
    assert!(read(device, 0, device.size()) == whole, "a refused request changed bytes");
}

fn read(device: &dyn ReadAt, offset: u64, len: u64) -> Vec<u8> {
    // Not zeroes, so that a device that leaves the buffer as it is gets caught.
    let mut buf = vec![0xA5; len as usize];
    device.read_at(&mut buf, offset).unwrap();
    buf
}

fn out_of_range(result: Result<()>, what: &str) {
    match result {
        Ok(()) => panic!("{what} was taken"),
        Err(error) => assert_eq!(error.kind(), Kind::OutOfRange, "{what}: {error:?}"),
    }
}

/// Ranges inside a device: empty, whole, around the edges of blocks, pages and clusters, at the end.
fn ranges(size: u64) -> Vec<(u64, u64)> {
    let edges = [0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, 65_535, 65_536, 65_537, 131_072, 300_000, 1 << 20];
    let offsets = edges.iter().flat_map(|edge| [*edge, size.saturating_sub(*edge)]);
    let lens = [0, 1, 2, 512, 1000, 4096, 4098, 65_536, 70_000];
    let pairs = offsets.flat_map(|offset| lens.map(|len| (offset, len)));
    let mut ranges: Vec<_> = pairs.filter(|(offset, len)| offset + len <= size).chain([(0, size)]).collect();
    ranges.sort_unstable();
    ranges.dedup();
    // A sixth of them is much already, and which ones changes with the size.
    let keep = |(n, _): &(usize, (u64, u64))| (*n as u64 + size).is_multiple_of(6) || *n < 2;
    ranges.into_iter().rev().enumerate().filter(keep).map(|(_, range)| range).collect()
}

/// Ranges that do not lie inside a device, the sums of some of which overflow.
fn ranges_outside(size: u64) -> Vec<(u64, usize)> {
    let mut ranges = vec![(size, 1), (size - 1, 2), (size + 1, 0), (size + 1, 1), (u64::MAX, 0), (u64::MAX, 1)];
    ranges.extend([
        (u64::MAX - 511, 512),
        (u64::MAX - 510, 512),
        (1 << 63, 512),
        ((1 << 63) - 1, 2),
        (1, size as usize),
    ]);
    ranges
}

/// Bytes that differ with `seed`, none of them zero.
pub(super) fn pattern(seed: u64, len: u64) -> Vec<u8> {
    (0..len)
        .map(|n| (n.wrapping_mul(7).wrapping_add(n >> 8).wrapping_add(seed.wrapping_mul(31)) % 255) as u8 + 1)
        .collect()
}
