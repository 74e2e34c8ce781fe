//! What file system is on a device.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fs::identify::fuzz(data));
