//! The PulseAudio protocol: a session of a client, from its first byte on.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sound::card::fuzz(data));
