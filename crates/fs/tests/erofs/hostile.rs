//! Broken images: an error, or some tree; never a panic, a hang, or more memory than the limits allow.

use std::sync::Arc;

use block::bytes::Bytes;
use loopbox_fs::erofs::Erofs;
use loopbox_fs::testing::explore::explore;
use loopbox_fs::testing::mutate::{self, explored, mutations, spoil};
use rig::memory::bounded;
use rig::{Scratch, requires, tree};

use crate::image::make;

fn mutate(all_options: &[&str]) {
    let scratch = Scratch::new("erofs-hostile");
    tree::small(&scratch.join("folder"));
    for options in all_options {
        let sound = std::fs::read(make(&scratch, "image", options, &scratch.join("folder"))).unwrap();
        assert!(explore(&Erofs::open(Arc::new(Bytes(sound.clone()))).unwrap()).files > 120);
        mutate_image(options, &sound);
    }
}

fn mutate_image(options: &str, sound: &[u8]) {
    let used = sound.iter().rposition(|byte| *byte != 0).unwrap();
    // Half of the changes are made where the inodes, directories and indexes are.
    let word = |at: usize| u32::from_le_bytes(sound[at..at + 4].try_into().unwrap()) as usize;
    let tables = word(1024 + 40) << sound[1024 + 12];
    mutations(
        options,
        sound,
        mutate::count(150),
        |random, bytes| {
            let at = match random.below(4) {
                0 => random.index(used),
                1 => 1024 + random.index(128),
                _ => tables + random.index((used - tables).min(64 << 10)),
            };
            spoil(random, &mut bytes[at]);
            // A check sum would stop most of them at the door.
            bytes[1024 + 8] &= !1;
        },
        |_, bytes| bounded(|| explored(bytes, Erofs::open)),
    );
}

#[test]
fn mutations_of_what_is_not_compressed() {
    requires!("mkfs.erofs");
    mutate(&[
        "",
        "-x0 --chunksize=4096",
        "-Eforce-inode-extended,noinline_data --chunksize=8192 -Eforce-chunk-indexes",
    ]);
}

#[test]
fn mutations_of_what_is_compressed() {
    requires!("mkfs.erofs");
    mutate(&[
        "-zlz4",
        "-zlz4 -C65536 -Eztailpacking",
        "-zlz4 -Elegacy-compress",
        "-zlz4hc -Elegacy-compress,ztailpacking",
    ]);
}

#[test]
fn mutations_of_what_newer_tools_made() {
    let images = crate::image::stored();
    assert!(!images.is_empty());
    for (name, bytes) in images {
        mutate_image(&name, &bytes);
    }
}

#[test]
fn cut_images() {
    requires!("mkfs.erofs");
    let scratch = Scratch::new("erofs-hostile");
    tree::small(&scratch.join("folder"));
    let sound = std::fs::read(make(&scratch, "image", "-zlz4", &scratch.join("folder"))).unwrap();
    for len in (0..sound.len()).step_by(61) {
        loopbox_fs::erofs::fuzz(&sound[..len]);
    }
}
