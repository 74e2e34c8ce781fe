//! What a qcow2 image holds.
#![no_main]

use std::sync::Arc;

use block::{BlockDevice as _, Storage};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(memory) = backing::Memory::with_room(data.len() as u64, 16 << 20) else { return };
    let memory: Arc<dyn Storage> = Arc::new(memory);
    if memory.write_at(data, 0).is_ok() {
        format::qcow2::fuzz(&memory);
    }
});
