//! An NTFS volume, all of it used.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fs::ntfs::fuzz(data));
