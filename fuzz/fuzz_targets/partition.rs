//! Partition tables: MBR and GPT.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| format::partition::fuzz(data));
