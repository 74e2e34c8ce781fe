//! Broken images: an error, or some tree; never a panic, a hang, or more memory than the limits allow.

use std::sync::Arc;

use block::bytes::Bytes;
use loopbox_fs::fat::{Fat, Options};
use loopbox_fs::testing::explore::explore;
use loopbox_fs::testing::model::disturb;
use loopbox_fs::testing::mutate::{self, explored, mutations, spoil};
use loopbox_fs::testing::scratch::Scratch as ScratchDevice;
use loopbox_fs::{FileSystem as _, Writable as _};
use rig::memory::bounded;
use rig::{Scratch, requires};

use crate::image::{Kind, SMALL, copy, fill, open_writable};

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
    for kind in SMALL {
        let sound = sound(kind);
        assert!(explore(&Fat::open(Arc::new(Bytes(sound.clone())), Options::default()).unwrap()).files > 60);
        let entries: Vec<usize> = (0..sound.len()).step_by(32).filter(|at| sound[*at..at + 32] != [0; 32]).collect();
        mutations(
            kind.name,
            &sound,
            mutate::count(150),
            |random, bytes| {
                let at = match random.below(4) {
                    0 => random.index(128),
                    _ => entries[random.index(entries.len())] + random.index(32),
                };
                spoil(random, &mut bytes[at]);
            },
            |number, bytes| {
                // Writing to it may fail, and may make it worse.
                if number % 3 == 0
                    && let Ok(fat) = Fat::open_writable(Arc::new(ScratchDevice::new(&bytes)), Options::default())
                {
                    disturb(fat, number);
                }
                bounded(|| explored(bytes, |image| Fat::open(image, Options::default())))
            },
        );
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
