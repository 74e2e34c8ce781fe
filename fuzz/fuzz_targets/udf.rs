//! A UDF volume, all of it used.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fs::udf::fuzz(data));
