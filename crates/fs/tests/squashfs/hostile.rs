//! Broken images: an error, or some tree; never a panic, a hang, or more memory than the limits allow.

use std::sync::Arc;

use block::bytes::Bytes;
use loopbox_fs::squashfs::SquashFs;
use loopbox_fs::testing::explore::explore;
use loopbox_fs::testing::mutate::{self, explored, mutations, spoil};
use rig::memory::bounded;
use rig::{Scratch, requires, tree};

use crate::image::make;

fn mutate(all_options: &[&str]) {
    let scratch = Scratch::new("squashfs-hostile");
    tree::small(&scratch.join("folder"));
    for options in all_options {
        let sound = std::fs::read(make(&scratch, "image", options, &scratch.join("folder"))).unwrap();
        assert!(explore(&SquashFs::open(Arc::new(Bytes(sound.clone()))).unwrap()).files > 120);
        let used = sound.iter().rposition(|byte| *byte != 0).unwrap();
        // Half of the changes are made to the tables at the end, which are small.
        let tables = u64::from_le_bytes(sound[64..72].try_into().unwrap()) as usize;
        mutations(
            options,
            &sound,
            mutate::count(150),
            |random, bytes| {
                let at = match random.below(4) {
                    0 => random.index(used),
                    1 => random.index(96),
                    _ => tables + random.index(used - tables),
                };
                spoil(random, &mut bytes[at]);
            },
            |_, bytes| bounded(|| explored(bytes, SquashFs::open)),
        );
    }
}

#[test]
fn mutations_of_what_is_not_compressed() {
    requires!("mksquashfs");
    mutate(&["-noI -noD -noF -noX -b 4K", "-noI -noX -no-fragments -b 4K -comp lz4"]);
}

#[test]
fn mutations_of_what_is_compressed() {
    requires!("mksquashfs");
    mutate(&["-comp gzip -b 4K", "-comp lz4 -b 8K", "-comp zstd -b 4K", "-comp lzo -b 4K"]);
}

#[test]
fn mutations_of_the_xz_family() {
    requires!("mksquashfs");
    mutate(&["-comp xz -b 8K -noX", "-comp xz -Xbcj x86 -b 8K", "-comp lzma -b 8K"]);
}

#[test]
fn cut_images() {
    requires!("mksquashfs");
    let scratch = Scratch::new("squashfs-hostile");
    tree::small(&scratch.join("folder"));
    let sound = std::fs::read(make(&scratch, "image", "-comp lz4", &scratch.join("folder"))).unwrap();
    for len in (0..sound.len()).step_by(61) {
        let mut bytes = sound[..len].to_vec();
        loopbox_fs::squashfs::fuzz(&bytes);
        // The same, with a superblock that owns up to it.
        if let Some(used) = bytes.get_mut(40..48) {
            used.copy_from_slice(&(len as u64).to_le_bytes());
        }
        loopbox_fs::squashfs::fuzz(&bytes);
    }
}
