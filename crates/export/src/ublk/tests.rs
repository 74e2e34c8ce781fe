//! Requests as the kernel makes them, and as it should never make them.

use std::sync::{Arc, Mutex};

use backing::Memory;
use block::{BlockDevice, Error, Kind, ReadAt as _, layer};
use sys::ublk::{Descriptor, operation};

use super::request::{Disk, counted, moves_data};
use crate::counters::Operation;

const SIZE: u64 = 1 << 20;

struct Rig {
    disk: Disk,
    errors: Mutex<Vec<Kind>>,
}

impl Rig {
    fn of(device: Arc<dyn BlockDevice>) -> Self {
        Self { disk: Disk::new(device, Arc::default()).unwrap(), errors: Mutex::default() }
    }

    fn new() -> Self {
        let device = Memory::new(SIZE).unwrap();
        let pattern: Vec<u8> = (0..SIZE).map(|n| (n / 512) as u8).collect();
        device.write_at(&pattern, 0).unwrap();
        Self::of(Arc::new(device))
    }

    fn done(&self, operation: u32, start_sector: u64, sectors: u32, buffer: &mut [u8], quick: bool) -> Option<i32> {
        let asked = Descriptor { operation, sectors, start_sector, address: 0 };
        let report = |error: Error| self.errors.lock().unwrap().push(error.kind());
        self.disk.perform(&asked, buffer, quick, &report)
    }

    fn bytes(&self, sector: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        self.disk.device.read_at(&mut bytes, sector * 512).unwrap();
        bytes
    }
}

const READ: u32 = operation::READ as u32;
const WRITE: u32 = operation::WRITE as u32;
const FLUSH: u32 = operation::FLUSH as u32;
const DISCARD: u32 = operation::DISCARD as u32;
const WRITE_ZEROES: u32 = operation::WRITE_ZEROES as u32;

#[test]
fn what_the_kernel_asks_for_is_done() {
    let rig = Rig::new();
    let mut buffer = vec![0xee; 8192];
    assert_eq!(rig.done(READ, 3, 4, &mut buffer, true), Some(2048));
    assert!(buffer[..2048] == rig.bytes(3, 2048) && buffer[2048..].iter().all(|byte| *byte == 0xee));
    buffer[..1024].fill(7);
    assert_eq!(rig.done(WRITE, 5, 2, &mut buffer, true), Some(1024));
    assert!(rig.bytes(5, 1024).iter().all(|byte| *byte == 7) && rig.bytes(7, 1) == [7] && rig.bytes(8, 1) == [8]);
    // What has to be safe, and what waits for the disk, is not done by who must not wait.
    for operation in [WRITE | operation::FUA, FLUSH, DISCARD, WRITE_ZEROES] {
        assert_eq!(rig.done(operation, 16, 1, &mut buffer, true), None, "{operation:#x}");
        let moved = if operation & 0xff == WRITE { 512 } else { 0 };
        assert_eq!(rig.done(operation, 16, 1, &mut buffer, false), Some(moved), "{operation:#x}");
    }
    assert_eq!(rig.done(WRITE_ZEROES | operation::NO_UNMAP, 100, 1, &mut buffer, false), Some(0));
    assert_eq!((rig.bytes(100, 512), rig.bytes(101, 1)), (vec![0; 512], vec![101]));
    // Flags that are only advice: failfast, metadata, swap.
    assert_eq!(rig.done(READ | 0b111 << 8 | 1 << 11 | 1 << 16, 0, 1, &mut buffer, true), Some(512));
    assert_eq!(*rig.errors.lock().unwrap(), []);
    let asked = |operation| Descriptor { operation, sectors: 2, start_sector: 0, address: 0 };
    assert_eq!(counted(&asked(READ)), Operation::Read(1024));
    assert_eq!(counted(&asked(WRITE | operation::FUA)), Operation::Write(1024));
    assert_eq!(counted(&asked(DISCARD)), Operation::Other);
    assert!(moves_data(&asked(READ)) && moves_data(&asked(WRITE)) && !moves_data(&asked(WRITE | operation::FUA)));
}

#[test]
fn what_makes_no_sense_is_answered_with_an_error() {
    let rig = Rig::new();
    let last = SIZE / 512;
    let mut buffer = vec![0; 4096];
    for (operation, sector, sectors) in [
        (READ, last, 1),
        (READ, last - 1, 2),
        (READ, u64::MAX, 1),
        (READ, u64::MAX / 512, 8),
        (WRITE, last, 1),
        (WRITE | operation::FUA, u64::MAX, u32::MAX),
        (READ, 0, 9),
        (WRITE, 0, 9),
        (READ, 0, u32::MAX),
        (DISCARD, last, 1),
        (DISCARD, 0, u32::MAX),
        (WRITE_ZEROES, last - 1, 2),
    ] {
        let done = rig.done(operation, sector, sectors, &mut buffer, false);
        assert_eq!(done, Some(-22), "{operation:#x} at {sector}, {sectors} sectors");
    }
    // Write same, zones, and what is not there yet.
    for operation in [4, 6, 15, 18, 0xff] {
        assert_eq!(rig.done(operation, 0, 1, &mut buffer, true), Some(-95), "{operation}");
    }
    assert_eq!(rig.errors.lock().unwrap().len(), 17);
    let untouched: Vec<u8> = (0..SIZE).map(|n| (n / 512) as u8).collect();
    assert!(rig.bytes(0, SIZE as usize) == untouched);
}

#[test]
fn a_disk_that_fails_fails_its_requests_and_nothing_else() {
    let device = layer::Fault::at(Memory::new(SIZE).unwrap(), 4).lasting();
    let rig = Rig::of(Arc::new(device));
    let mut buffer = [7; 512];
    assert_eq!(rig.done(WRITE | operation::FUA, 0, 1, &mut buffer, false), Some(512));
    for operation in [READ, WRITE, WRITE | operation::FUA, FLUSH, DISCARD, WRITE_ZEROES] {
        let done = (0..3).find_map(|_| rig.done(operation, 0, 1, &mut buffer, false).filter(|done| *done < 0));
        assert_eq!(done, Some(-5), "{operation:#x}");
    }
    assert_eq!(rig.done(READ, SIZE, 1, &mut buffer, false), Some(-22));
}

#[test]
fn the_kernel_is_told_what_the_device_is_like() {
    let parameters = Rig::new().disk.parameters();
    assert_eq!((parameters.logical_shift, parameters.physical_shift, parameters.optimal_shift), (9, 12, 12));
    assert_eq!((parameters.sectors, parameters.attributes), (SIZE / 512, 0b1100));
    assert_eq!((parameters.segments_max, parameters.granularity, parameters.discard_sectors_max), (1, 4096, 1 << 21));
    // What is behind the last whole block is not seen, nor reached.
    let odd = Rig::of(Arc::new(Memory::new(SIZE + 700).unwrap()));
    assert_eq!((odd.disk.parameters().sectors, odd.disk.rest()), (SIZE / 512 + 1, 188));
    assert_eq!(odd.done(READ, SIZE / 512 + 1, 1, &mut [0; 512], false), Some(-22));
    let small = Disk::new(Arc::new(Memory::new(511).unwrap()), Arc::default());
    assert_eq!(small.unwrap_err().kind(), Kind::Unsupported);

    let read_only = Rig::of(Arc::new(layer::ReadOnly::new(Memory::new(SIZE).unwrap())));
    assert_eq!(read_only.disk.parameters().attributes, 0b1101);
    assert_eq!(read_only.disk.parameters().segments_max, 0);
    assert_eq!(read_only.done(WRITE, 0, 1, &mut [0; 512], false), Some(-30));
    assert_eq!(read_only.done(READ, 0, 1, &mut [1; 512], false), Some(512));
}
