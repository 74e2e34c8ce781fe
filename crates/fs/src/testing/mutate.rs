//! Broken images made of sound ones: a few bytes of each are changed, and it is opened and used.

use std::sync::Arc;
use std::time::{Duration, Instant};

use block::ReadAt;
use block::bytes::Bytes;

use super::explore::explore;
use super::model::Random;
use crate::FileSystem;

/// How long the whole of a broken image may take.
const TIME_MAX: Duration = Duration::from_secs(5);

/// How many images a test breaks: `default`, or what the variable `LOOPBOX_MUTATIONS` says.
///
/// # Panics
/// When the variable holds no number.
pub fn count(default: u64) -> u64 {
    std::env::var("LOOPBOX_MUTATIONS").map_or(default, |count| count.parse().expect("LOOPBOX_MUTATIONS"))
}

/// Changes a byte to one that is likely to matter: none, all, one bit of it, or any.
pub fn spoil(random: &mut Random, byte: &mut u8) {
    *byte = match random.below(4) {
        0 => 0,
        1 => 0xff,
        2 => *byte ^ (1 << random.below(8)),
        _ => random.index(256) as u8,
    };
}

/// Opens and uses `count` images that are `sound` but for one to four bytes.
///
/// `change` is asked to change one byte, and to make right again what would keep the change out (a check sum). `attempt`
/// opens the image, uses it, and says whether it could be opened.
///
/// # Panics
/// When an image takes longer than five seconds, or when so few can be opened that the changes prove nothing.
pub fn mutations(
    what: &str,
    sound: &[u8],
    count: u64,
    mut change: impl FnMut(&mut Random, &mut [u8]),
    mut attempt: impl FnMut(u64, Vec<u8>) -> bool,
) {
    let mut random = Random::new(0x0005_DEEC_E66D);
    let mut opened = 0;
    for number in 0..count {
        let mut bytes = sound.to_vec();
        for _ in 0..=random.below(4) {
            change(&mut random, &mut bytes);
        }
        let start = Instant::now();
        opened += u64::from(attempt(number, bytes));
        assert!(start.elapsed() < TIME_MAX, "{what}: mutation {number}: {:?}", start.elapsed());
    }
    assert!(opened > count / 4, "{what}: of {count} mutations only {opened} opened: they do not go deep");
}

/// Explores the file system that `open` finds in an image, and says whether there is one.
pub fn explored<F: FileSystem>(image: Vec<u8>, open: impl FnOnce(Arc<dyn ReadAt>) -> block::Result<F>) -> bool {
    open(Arc::new(Bytes(image))).is_ok_and(|files| {
        explore(&files);
        true
    })
}
