//! Operations on an overlay.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| block::testing::overlay::fuzz_steps(data));
