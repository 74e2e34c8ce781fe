//! The overlay, driven by bytes of a fuzzer.

use std::sync::Arc;

use super::conformance::pattern;
use super::crash::Disk;
use super::model::{self, Step};
use crate::bytes::Bytes;
use crate::layer::overlay::{Layout, Overlay};
use crate::{BlockDevice as _, ReadAt};

/// Size of the base, bytes: no multiple of a cluster.
const BASE_BYTES: u64 = 50_100;
/// How many steps are taken.
const STEPS_MAX: usize = 64;

/// For fuzzing: does the steps that `data` means to an overlay, and compares each answer with a plain vector.
///
/// # Panics
/// When the overlay is wrong.
pub fn fuzz_steps(data: &[u8]) {
    let mut steps = Step::from_bytes(data);
    steps.truncate(STEPS_MAX);
    let mut content = pattern(1, BASE_BYTES);
    content[10_000..20_000].fill(0);
    let base = Arc::new(Bytes(content.clone()));
    let device = Arc::new(Disk::new(Layout::new(BASE_BYTES).unwrap().size(), u64::MAX));
    let open = || Overlay::open_or_create(Arc::clone(&base), Arc::clone(&device)).unwrap();
    model::run(open, &content, &steps);
}

/// For fuzzing: takes `data` for an overlay over a base whose size is in its first two bytes, reads all that is in it,
/// and writes to it. Whatever it claims, it is an error or works.
///
/// # Panics
/// When what was written is not what is read.
pub fn fuzz_image(data: &[u8]) {
    let Some((size, data)) = data.split_first_chunk() else { return };
    let base = Arc::new(Bytes(vec![1; u16::from_le_bytes(*size).into()]));
    let device = Disk::new(data.len() as u64, u64::MAX);
    device.write_at(data, 0).unwrap();
    let Ok(overlay) = Overlay::open(Arc::clone(&base), device) else { return };
    assert_eq!(overlay.size(), base.size());
    let mut read = vec![0; base.0.len()];
    overlay.read_at(&mut read, 0).unwrap();
    overlay.write_at(&pattern(2, overlay.size()), 0).unwrap();
    overlay.flush().unwrap();
    overlay.read_at(&mut read, 0).unwrap();
    assert!(read == pattern(2, overlay.size()));
}
