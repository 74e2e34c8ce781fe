//! The words that name an image.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| format::spec::fuzz(data));
