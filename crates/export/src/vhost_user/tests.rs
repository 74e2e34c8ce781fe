//! Requests as a guest makes them, and as one makes them that means no good.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use backing::Memory as MemoryDisk;
use block::{BlockDevice as _, Error, Kind, ReadAt as _};
use vm_memory::{Bytes as _, GuestAddress};

use super::request::{Disk, Request, kind};
use super::{ID_BYTES, Memory};
use crate::pace::Pace;
use crate::workers::Workers;

const SIZE: u64 = 1 << 20;
/// Where a test puts the head, the data and the status.
const HEAD: u64 = 0x1000;
const DATA: u64 = 0x4000;
const STATUS: u64 = 0x2000;
const NOTHING: u8 = 0xee;

struct Rig {
    disk: Disk,
    memory: Memory,
    errors: Mutex<Vec<Kind>>,
}

impl Rig {
    fn new() -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x8000), (GuestAddress(0x8000), 4 << 20)]).unwrap();
        let device = Arc::new(MemoryDisk::new(SIZE).unwrap());
        let pattern: Vec<u8> = (0..SIZE).map(|n| (n / 512) as u8).collect();
        device.write_at(&pattern, 0).unwrap();
        let mut id = [0; ID_BYTES];
        id[..4].copy_from_slice(b"name");
        Self {
            disk: Disk { device, id, pace: Pace::default(), counters: Arc::default() },
            memory,
            errors: Mutex::default(),
        }
    }

    /// Puts a head into the memory, and makes a request of it: segments of data, each with whether it is writable.
    fn request(&self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> Request {
        let head = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.memory.write_slice(&head, GuestAddress(HEAD)).unwrap();
        self.memory.write_obj(NOTHING, GuestAddress(STATUS)).unwrap();
        let ends = [(HEAD, 16, false)];
        let chain = ends.iter().chain(data).chain(&[(STATUS, 1, true)]).copied();
        let mut request = Request::default();
        request.fill(7, chain.map(|(address, len, writable)| (GuestAddress(address), len, writable)));
        request
    }

    /// Does it: bytes written, and the status.
    fn perform(&self, request: &Request, quick: bool) -> (Option<u32>, u8) {
        let report = |error: Error| self.errors.lock().unwrap().push(error.kind());
        let parsed = request.parse(&self.memory).unwrap();
        let done = request.perform(&parsed, &self.disk, &self.memory, &mut Vec::new(), quick, &report);
        (done, self.memory.read_obj(GuestAddress(STATUS)).unwrap())
    }

    fn done(&self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (Option<u32>, u8) {
        self.perform(&self.request(kind, sector, data), false)
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn reads_and_writes_however_they_are_cut_up() {
    let rig = Rig::new();
    // In one piece, in odd ones, over the border of two regions of memory, and more than is moved at one time.
    let pieces: [&[(u64, u32, bool)]; 4] = [
        &[(DATA, 4096, true)],
        &[(DATA, 1, true), (DATA + 1, 0, true), (DATA + 1, 4090, true), (DATA + 4091, 5, true)],
        &[(0x7e00, 4096, true)],
        &[(0x10000, 1 << 20, true)],
    ];
    for (n, data) in pieces.into_iter().enumerate() {
        let len: u32 = data.iter().map(|(_, len, _)| len).sum();
        let sector = if len > 4096 { 0 } else { 3 };
        assert_eq!(rig.done(kind::IN, sector, data), (Some(len + 1), 0), "{n}");
        let wanted: Vec<u8> = (0..u64::from(len)).map(|n| (n / 512 + sector) as u8).collect();
        assert!(rig.bytes(data[0].0, len as usize) == wanted, "{n}");
        let back: Vec<_> = data.iter().map(|(address, len, _)| (*address, *len, false)).collect();
        let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8 ^ n as u8).collect();
        rig.memory.write_slice(&bytes, GuestAddress(data[0].0)).unwrap();
        assert_eq!(rig.done(kind::OUT, sector, &back), (Some(1), 0), "{n}");
        let mut read = vec![0; len as usize];
        rig.disk.device.read_at(&mut read, sector * 512).unwrap();
        assert!(read == bytes, "{n}");
        let again: Vec<u8> = (0..SIZE).map(|n| (n / 512) as u8).collect();
        rig.disk.device.write_at(&again, 0).unwrap();
    }
    assert_eq!(*rig.errors.lock().unwrap(), []);
}

#[test]
fn the_other_requests() {
    let rig = Rig::new();
    assert_eq!(rig.done(kind::GET_ID, 0, &[(DATA, 20, true)]), (Some(21), 0));
    assert_eq!(rig.bytes(DATA, 20), *b"name\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(rig.done(kind::GET_ID, 0, &[(DATA, 2, true)]), (Some(3), 0));
    assert_eq!(rig.done(kind::FLUSH, 0, &[]), (Some(1), 0));
    // What waits for a disk is not done by who must not wait.
    let flush = rig.request(kind::FLUSH, 0, &[]);
    assert_eq!(rig.perform(&flush, true), (None, NOTHING));
    for (kind, flags, wanted) in [
        (kind::DISCARD, 0, 0),
        (kind::DISCARD, 1, 2),
        (kind::WRITE_ZEROES, 0, 0),
        (kind::WRITE_ZEROES, 1, 0),
        (kind::WRITE_ZEROES, 2, 2),
    ] {
        let ranges = [range(8, 8, flags), range(100, 1, flags)].concat();
        rig.memory.write_slice(&ranges, GuestAddress(DATA)).unwrap();
        assert_eq!(rig.done(kind, 0, &[(DATA, 32, false)]), (Some(1), wanted), "{kind} {flags}");
    }
    let mut sector = [0xff; 512];
    rig.disk.device.read_at(&mut sector, 100 * 512).unwrap();
    assert_eq!(sector, [0; 512]);
    // Kinds that there are not: SCSI of old, and what comes.
    for other in [2, 3, 5, 99, u32::MAX] {
        assert_eq!(rig.done(other, 0, &[(DATA, 512, true)]), (Some(1), 2), "{other}");
    }
}

#[test]
fn requests_that_make_no_sense_are_answered_or_given_back() {
    let rig = Rig::new();
    let last = SIZE / 512;
    for (kind, sector, data) in [
        (kind::IN, last, &[(DATA, 512, true)][..]),
        (kind::IN, last - 1, &[(DATA, 1024, true)]),
        (kind::IN, u64::MAX, &[(DATA, 512, true)]),
        (kind::IN, u64::MAX / 512, &[(DATA, 512, true)]),
        (kind::IN, 0, &[(DATA, 511, true)]),
        (kind::IN, 0, &[(DATA, 512, true), (u64::MAX - 10, 512, true)]),
        (kind::IN, 0, &[(1 << 40, 512, true)]),
        (kind::IN, 0, &[(DATA, u32::MAX, true), (DATA, u32::MAX, true)]),
        (kind::OUT, last, &[(DATA, 512, false)]),
        (kind::OUT, 0, &[(DATA, 100, false)]),
        (kind::OUT, 0, &[(1 << 40, 512, false)]),
        (kind::OUT, 0, &[(DATA, !511, false)]),
        (kind::GET_ID, 0, &[(1 << 40, 20, true)]),
        (kind::DISCARD, 0, &[]),
        (kind::DISCARD, 0, &[(DATA, 15, false)]),
        (kind::WRITE_ZEROES, 0, &[(DATA, 33 * 16, false)]),
        (kind::WRITE_ZEROES, 0, &[(1 << 40, 16, false)]),
    ] {
        rig.memory.write_slice(&range(1, 1, 0), GuestAddress(DATA)).unwrap();
        let (written, status) = rig.done(kind, sector, data);
        assert_eq!((written, status), (Some(1), 1), "{kind} at {sector}: {data:?}");
    }
    assert_eq!(rig.errors.lock().unwrap().len(), 17);
    rig.memory.write_slice(&range(last - 1, 2, 0), GuestAddress(DATA)).unwrap();
    assert_eq!(rig.done(kind::DISCARD, 0, &[(DATA, 16, false)]), (Some(1), 1));

    // No room for a head, or for an answer.
    for chain in [
        &[][..],
        &[(HEAD, 16, false)],
        &[(HEAD, 15, false), (STATUS, 1, true)],
        &[(STATUS, 1, true)],
        &[(HEAD, 16, false), (STATUS, 0, true)],
        &[(1 << 40, 16, false), (STATUS, 1, true)],
    ] {
        let mut request = Request::default();
        request.fill(0, chain.iter().map(|(address, len, writable)| (GuestAddress(*address), *len, *writable)));
        assert!(request.parse(&rig.memory).is_none(), "{chain:?}");
    }
    // An answer that lies nowhere.
    let mut request = rig.request(kind::FLUSH, 0, &[]);
    request.fill(
        0,
        [(HEAD, 16, false), (1 << 40, 1, true)]
            .map(|(at, len, writable)| (GuestAddress(at), len, writable))
            .into_iter(),
    );
    assert_eq!(rig.perform(&request, false), (Some(0), NOTHING));
}

#[test]
fn workers_do_all_that_they_were_given() {
    let (workers, done) = (Workers::default(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..1000 {
        let done = Arc::clone(&done);
        workers.give(Box::new(move |buffer| {
            buffer.resize(512, 0);
            done.fetch_add(1, Ordering::SeqCst);
        }));
    }
    drop(workers);
    assert_eq!(done.load(Ordering::SeqCst), 1000);
}
