//! What container a device is.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| format::probe::fuzz(data));
