//! A FAT or exFAT image, all of it used, then written to.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fs::fat::fuzz(data));
