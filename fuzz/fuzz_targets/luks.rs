//! LUKS headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| format::luks::fuzz(data));
