//! The server of vhost-user and a driver without a guest: in order, stopped and started, and one that means harm.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backing::{FileBacking, Memory};
use block::layer::{Fault, Operation};
use block::{BlockDevice, ReadAt as _};
use loopbox_export::counters::Counters;
use loopbox_export::nbd::Export;
use loopbox_export::vhost_user::{Ending, Server};
use rig::vhost::{Answer, DATA_BYTES, Driver, Request, SLOTS};
use vm_memory::{Bytes as _, GuestAddress};

const SIZE: u64 = 32 << 20;
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;

/// A server on a thread; it ends when this is dropped.
struct Served {
    socket: PathBuf,
    stop: Option<std::os::fd::OwnedFd>,
    thread: Option<std::thread::JoinHandle<block::Result<()>>>,
    errors: Arc<Mutex<Vec<String>>>,
    counters: Arc<Counters>,
    _scratch: rig::Scratch,
}

impl Served {
    fn new(device: Arc<dyn BlockDevice>) -> Self {
        let scratch = rig::Scratch::new("vhost");
        let socket = scratch.join("sock");
        let export = Export { name: "serial".to_owned(), description: String::new(), device, counters: Arc::default() };
        let counters = Arc::clone(&export.counters);
        let server = Server::bind(&socket, &export).unwrap();
        let (stop, to_stop) = rustix::pipe::pipe().unwrap();
        let errors: Arc<Mutex<Vec<String>>> = Arc::default();
        let reported = Arc::clone(&errors);
        let report = move |error: block::Error| reported.lock().unwrap().push(format!("{error:?}"));
        let thread = std::thread::spawn(move || server.serve(&stop, Ending::Asked, report));
        Self { socket, stop: Some(to_stop), thread: Some(thread), errors, counters, _scratch: scratch }
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
        assert!(!self.socket.exists());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

/// Makes requests in the slots from 0 on, and waits for all answers.
fn ask(driver: &mut Driver, queue: usize, requests: &[Request]) -> Vec<Answer> {
    for (slot, request) in requests.iter().enumerate() {
        driver.make(queue, slot as u16, *request);
    }
    driver.tell(queue);
    let mut all = Vec::new();
    while all.len() < requests.len() {
        let mut some = Vec::new();
        driver.wait(queue, Duration::ZERO, &mut some);
        all.extend(some);
    }
    all
}

fn works(socket: &Path) {
    let mut driver = Driver::connect(socket, 1);
    let answers = ask(&mut driver, 0, &[Request { kind: READ, sector: 7, len: 4096 }]);
    assert_eq!(answers, [Answer { slot: 0, written: 4097, status: 0 }]);
}

#[test]
fn queues_side_by_side_answer_in_order() {
    let device = Arc::new(Memory::new(SIZE).unwrap());
    let mut served = Served::new(device.clone());
    let mut driver = Driver::connect(&served.socket, 3);
    let config = driver.configuration(60);
    assert_eq!(config[..8], (SIZE / 512).to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    assert!(u16::from_le_bytes([config[34], config[35]]) >= 3);
    for round in 0..20_u64 {
        for queue in 0..3 {
            // Writes, with a flush (which goes another way) among them.
            let sector = |slot: u64| (queue as u64 * u64::from(SLOTS) + slot) * 128;
            let requests: Vec<Request> = (0..u64::from(SLOTS))
                .map(|slot| {
                    let bytes = ((round << 32) | sector(slot)).to_le_bytes().repeat(512);
                    driver.memory().write_slice(&bytes, Driver::data(queue, slot as u16)).unwrap();
                    match slot % 16 == 5 {
                        true => Request { kind: FLUSH, sector: 0, len: 0 },
                        false => Request { kind: WRITE, sector: sector(slot), len: 4096 },
                    }
                })
                .collect();
            let answers = ask(&mut driver, queue, &requests);
            let wanted: Vec<Answer> = (0..SLOTS).map(|slot| Answer { slot, written: 1, status: 0 }).collect();
            assert_eq!(answers, wanted);
        }
        let mut bytes = [0; 4096];
        device.read_at(&mut bytes, 130 * 128 * 512).unwrap();
        assert!(bytes == ((round << 32) | (130 * 128)).to_le_bytes().repeat(512)[..]);
    }
    // Stopped: all that it took is answered.
    assert_eq!(driver.stop(0), 20 * u32::from(SLOTS));
    drop(driver);
    let counted = served.counters.counted("vhost-user", "disk");
    let flushes = 20 * 3 * 8;
    assert_eq!((counted.reads, counted.writes, counted.others), (0, 20 * 3 * u64::from(SLOTS) - flushes, flushes));
    assert_eq!(counted.written_bytes, counted.writes * 4096);
    works(&served.socket);
    served.end();
    assert_eq!(*served.errors.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn bytes_of_a_file_come_straight_and_right() {
    let scratch = rig::Scratch::new("vhost-file");
    let device = Arc::new(FileBacking::create(scratch.join("disk.img"), 4 << 20).unwrap());
    let bytes: Vec<u8> = (0..1_u32 << 19).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
    // A hole in the middle of a request, and one that ends with the disk.
    device.write_at(&bytes[..1 << 20], 0).unwrap();
    device.write_at(&bytes[(1 << 20) + 70_000..], (1 << 20) + 70_000).unwrap();
    let mut wanted = vec![0; 4 << 20];
    device.read_at(&mut wanted[..2 << 20], 0).unwrap();
    let mut served = Served::new(device);
    let mut driver = Driver::connect(&served.socket, 1);
    let mut check = |requests: &[(u64, u32)]| {
        let reads: Vec<_> = requests.iter().map(|&(sector, len)| Request { kind: READ, sector, len }).collect();
        let answers = ask(&mut driver, 0, &reads);
        for (answer, &(sector, len)) in answers.iter().zip(requests) {
            assert_eq!((answer.written, answer.status), (len + 1, 0));
            let mut read = vec![0; len as usize];
            driver.memory().read_slice(&mut read, Driver::data(0, answer.slot)).unwrap();
            let at = sector as usize * 512;
            assert!(read == wanted[at..at + len as usize], "{len} bytes at sector {sector}");
        }
    };
    check(&[(0, DATA_BYTES), (7, 16384), (9, 16384 - 512), (1900, DATA_BYTES), (2048, DATA_BYTES), (2100, 65536)]);
    check(&[(8192 - 256, DATA_BYTES), (8191, 512), (4096 - 128, DATA_BYTES)]);
    drop(driver);
    served.end();
    assert_eq!(*served.errors.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn large_reads_that_two_threads_do_are_answered_in_order() {
    let scratch = rig::Scratch::new("vhost-large");
    let device = Arc::new(FileBacking::create(scratch.join("disk.img"), 4 << 20).unwrap());
    let bytes: Vec<u8> = (0..1_u32 << 20).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
    device.write_at(&bytes, 0).unwrap();
    let mut served = Served::new(device);
    let mut driver = Driver::connect(&served.socket, 2);
    let mut state = 7_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    for round in 0..60 {
        // Among them such that a worker does alone, such that nobody can, and small ones.
        let some: Vec<Request> = (0..1 + random() % 40)
            .map(|_| match random() % 8 {
                0 => Request { kind: FLUSH, sector: 0, len: 0 },
                1 => Request { kind: READ, sector: (4 << 11) - 100, len: DATA_BYTES },
                2 => Request { kind: READ, sector: random() % 8000, len: 4096 },
                _ => Request { kind: READ, sector: random() % 7900, len: DATA_BYTES >> (random() % 2) },
            })
            .collect();
        let queue = round % 2;
        let answers = ask(&mut driver, queue, &some);
        for (slot, (answer, request)) in answers.iter().zip(&some).enumerate() {
            let is_outside = request.sector * 512 + u64::from(request.len) > 4 << 20;
            assert_eq!((usize::from(answer.slot), answer.status), (slot, u8::from(is_outside)));
            if request.kind == READ && !is_outside {
                let mut read = vec![0; request.len as usize];
                driver.memory().read_slice(&mut read, Driver::data(queue, answer.slot)).unwrap();
                let at = request.sector as usize * 512;
                assert!(read == bytes[at..at + read.len()], "{request:?} in round {round}");
            }
        }
    }
    drop(driver);
    served.end();
}

#[test]
fn a_failure_of_the_disk_is_the_guests_and_is_told() {
    let device = Fault::at(Memory::new(SIZE).unwrap(), 1).only(Operation::Extent);
    let mut served = Served::new(Arc::new(device));
    let mut driver = Driver::connect(&served.socket, 1);
    let requests = [Request { kind: READ, sector: 0, len: 4096 }; 3];
    let statuses: Vec<u8> = ask(&mut driver, 0, &requests).iter().map(|answer| answer.status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 1).count(), 1, "{statuses:?}");
    let outside = ask(&mut driver, 0, &[Request { kind: READ, sector: SIZE / 512, len: 512 }]);
    assert_eq!(outside[0].status, 1);
    drop(driver);
    served.end();
    assert_eq!(served.errors.lock().unwrap().len(), 2);
}

#[test]
fn a_driver_that_means_harm_harms_nobody_else() {
    let mut served = Served::new(Arc::new(Memory::new(SIZE).unwrap()));
    // Not the protocol at all; half of a message.
    for words in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 5000], &[1, 0, 0, 0, 1, 0]] {
        let _ = UnixStream::connect(&served.socket).unwrap().write_all(words);
    }
    works(&served.socket);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..60 {
        let mut driver = Driver::connect(&served.socket, 2);
        for slot in 0..SLOTS {
            driver.make(0, slot, Request { kind: (random() % 16) as u32, sector: random() % 70000, len: DATA_BYTES });
        }
        // Descriptors, rings and heads, with a few bytes or all of them wrong.
        let start = Driver::available(0).0 - 0x4000;
        for _ in 0..random() % 200 {
            let at = start + random() % 0x1_1000;
            // The index of the available ring is set below.
            if !(0x4000..0x4004).contains(&(at - start)) {
                let _ = driver.memory().write_slice(&random().to_le_bytes()[..4], GuestAddress(at));
            }
        }
        driver.tell(0);
        if round % 3 == 0 {
            // More requests than there is room for.
            let at = GuestAddress(Driver::available(0).0 + 2);
            driver.memory().store(random() as u16, at, Ordering::Release).unwrap();
        }
        if round % 4 == 0 {
            // The other queue goes on, whatever the first one holds.
            let answers = ask(&mut driver, 1, &[Request { kind: READ, sector: 1, len: 512 }]);
            assert_eq!(answers[0].status, 0);
        }
        if round % 5 == 0 {
            driver.stop(0);
        }
    }
    works(&served.socket);
    served.end();
}
