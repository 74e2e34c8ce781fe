//! ext2, ext3 and ext4, with their journals.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fs::ext4::fuzz(data));
