//! What an NBD client says, against a small disk in memory.
#![no_main]

use std::sync::Arc;

use export::nbd::{Export, serve_one};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(disk) = backing::Memory::new(1 << 20) else { return };
    let export = Export {
        name: String::new(),
        description: String::new(),
        device: Arc::new(disk),
        counters: Arc::default(),
    };
    let _ = serve_one(data, std::io::sink(), &[export]);
});
