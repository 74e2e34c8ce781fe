//! Broken images: an error, or some tree; never a panic, a hang, or more memory than the limits allow.

use std::sync::Arc;

use block::bytes::Bytes;
use loopbox_fs::ext4::{Ext4, Options};
use loopbox_fs::testing::explore::explore;
use loopbox_fs::testing::mutate::{self, explored, mutations, spoil};
use rig::memory::bounded;
use rig::{Scratch, requires, tree};

use crate::image::{debugfs, make};

fn mutate(options: &str, journal: bool) {
    let scratch = Scratch::new("ext4-hostile");
    tree::small(&scratch.join("folder"));
    let path = make(&scratch, "image", options, Some(&scratch.join("folder")), "8M");
    // Gives large directories their hash trees.
    rig::output(std::process::Command::new(rig::which("e2fsck").unwrap()).args(["-fyD"]).arg(&path));
    if journal {
        // The inode table's blocks once more, so that what is replayed matters, and a revocation.
        let image = std::fs::read(&path).unwrap();
        let content = scratch.join("content");
        std::fs::write(&content, &image[1024..3 * 1024]).unwrap();
        debugfs(&path, &format!("jo\njw -b 1,2 {}\njw -r 3000,3001\njc\n", content.display()));
    }
    let sound = std::fs::read(&path).unwrap();
    let places: Vec<usize> = (0..sound.len()).filter(|at| sound[*at] != 0).collect();
    let reader = Options { verify: false, ..Options::default() };
    assert!(explore(&Ext4::open(Arc::new(Bytes(sound.clone())), reader).unwrap()).files > 120);
    mutations(
        options,
        &sound,
        mutate::count(250),
        |random, bytes| {
            let near = places[random.index(places.len())] + random.index(4);
            if let Some(byte) = bytes.get_mut(near) {
                spoil(random, byte);
            }
        },
        |_, bytes| bounded(|| explored(bytes, |image| Ext4::open(image, reader))),
    );
}

#[test]
fn mutations_of_ext2() {
    requires!("mke2fs", "debugfs", "e2fsck");
    mutate("-t ext2 -b 1024 -N 256", false);
}

#[test]
fn mutations_of_ext4_with_inline_data() {
    requires!("mke2fs", "debugfs", "e2fsck");
    mutate("-t ext4 -b 1024 -N 256 -O inline_data,^has_journal", false);
}

#[test]
fn mutations_of_ext4_with_a_journal() {
    requires!("mke2fs", "debugfs", "e2fsck");
    mutate("-t ext4 -b 1024 -N 256 -J size=1", true);
    mutate("-t ext4 -b 1024 -N 256 -J size=1 -O ^metadata_csum,^64bit", true);
}
