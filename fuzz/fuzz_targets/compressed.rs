//! What a gzip, xz or zstd file holds.
#![no_main]

use std::sync::Arc;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(room) = backing::Memory::with_room(0, 64 << 20) else { return };
    format::compressed::fuzz(data, Arc::new(room));
});
