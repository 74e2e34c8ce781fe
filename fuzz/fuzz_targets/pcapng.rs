//! Packets as a pcapng file, which is read back: each block as long as it says, each packet as it was.
#![no_main]

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use net::capture::Capture;
use net::link::Dropped;

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let file = Shared::default();
    let mut capture = Capture::new(Box::new(file.clone())).unwrap();
    let packets: Vec<&[u8]> = data.split(|byte| *byte == 0xff).collect();
    for (at, packet) in packets.iter().enumerate() {
        let dropped = [None, Some(Dropped::Lost), Some(Dropped::Overflow)][at % 3];
        capture.packet(Duration::from_nanos(at as u64), packet, packet.len() + at, dropped);
    }
    capture.missed(1);
    capture.finish().unwrap();
    let bytes = file.0.lock().unwrap().clone();
    let number = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (mut rest, mut read) = (bytes.as_slice(), vec![]);
    while !rest.is_empty() {
        let len = number(rest, 4);
        let (block, after) = rest.split_at(len);
        assert_eq!((len % 4, number(block, len - 4)), (0, len));
        if number(block, 0) == 6 {
            let (kept, whole) = (number(block, 20), number(block, 24));
            assert!(kept <= whole);
            read.push(&block[28..28 + kept]);
        }
        rest = after;
    }
    assert_eq!(read, packets);
});
