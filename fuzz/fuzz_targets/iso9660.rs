//! ISO 9660, its extensions and its trees.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fs::iso9660::fuzz(data));
