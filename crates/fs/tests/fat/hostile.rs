//! Broken images: an error, or some tree; never a panic, a hang, or more memory than the limits allow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use block::bytes::Bytes;
use loopbox_fs::fat::{Fat, Options};
use loopbox_fs::testing::explore::explore;
use loopbox_fs::testing::model::{Random, disturb};
use loopbox_fs::testing::scratch::Scratch as ScratchDevice;
use loopbox_fs::{FileSystem as _, Writable as _};
use rig::{Scratch, requires};

use crate::image::{Kind, SMALL, copy, fill, open_writable};

/// How many mutations of each image; `LOOPBOX_MUTATIONS` says otherwise.
const MUTATIONS: u64 = 150;
/// How long the whole of a broken image may take.
const TIME_MAX: Duration = Duration::from_secs(5);

fn sound(kind: &Kind) -> Vec<u8> {
    let scratch = Scratch::new("fat-hostile");
    fill(&scratch.join("folder"), 60);
    std::fs::remove_file(scratch.join("folder/sizes/1100003")).unwrap();
    let image = kind.make(&scratch);
    let fat = open_writable(&image);
    copy(&fat, &scratch.join("folder"), fat.root());
    fat.close().unwrap();
    std::fs::read(image).unwrap()
}

#[test]
fn mutations_are_read_and_written() {
    requires!("mkfs.fat", "mkfs.exfat");
    let count = std::env::var("LOOPBOX_MUTATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(MUTATIONS);
    for kind in SMALL {
        let sound = sound(kind);
        assert!(explore(&Fat::open(Arc::new(Bytes(sound.clone())), Options::default()).unwrap()).files > 60);
        let entries: Vec<usize> = (0..sound.len()).step_by(32).filter(|at| sound[*at..at + 32] != [0; 32]).collect();
        let mut random = Random::new(7);
        let mut opened = 0;
        for number in 0..count {
            let mut bytes = sound.clone();
            for _ in 0..=random.below(4) {
                let at = match random.below(4) {
                    0 => random.below(128) as usize,
                    _ => entries[random.below(entries.len() as u64) as usize] + random.below(32) as usize,
                };
                bytes[at] = match random.below(4) {
                    0 => 0,
                    1 => 0xff,
                    2 => bytes[at] ^ (1 << random.below(8)),
                    _ => random.below(256) as u8,
                };
            }
            let start = Instant::now();
            if let Ok(fat) = Fat::open(Arc::new(Bytes(bytes.clone())), Options::default()) {
                opened += 1;
                explore(&fat);
            }
            // Writing to it may fail, and may make it worse.
            if number % 3 == 0
                && let Ok(fat) = Fat::open_writable(Arc::new(ScratchDevice::new(&bytes)), Options::default())
            {
                disturb(fat, number);
            }
            assert!(start.elapsed() < TIME_MAX, "{}: mutation {number}: {:?}", kind.name, start.elapsed());
        }
        assert!(opened > count / 4, "{}: of {count} mutations only {opened} opened: they do not go deep", kind.name);
    }
}

#[test]
fn cut_images() {
    requires!("mkfs.fat", "mkfs.exfat");
    for kind in SMALL {
        let sound = sound(kind);
        for len in (0..sound.len()).step_by(sound.len() / 50) {
            loopbox_fs::fat::fuzz(&sound[..len]);
        }
        for len in 0..600 {
            loopbox_fs::fat::fuzz(&sound[..len]);
        }
    }
}
