//! What a vhdx image holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| format::image::fuzz(data, format::probe::Format::Vhdx));
