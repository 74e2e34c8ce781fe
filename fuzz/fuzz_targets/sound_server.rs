//! The loop from a source to a sink, and servers that lie to it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sound::loopback::fuzz(data));
