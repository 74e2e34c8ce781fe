//! Broken volumes: an error, or some tree; never a panic, a hang, or more memory than the limits allow.

use std::ops::ControlFlow;
use std::sync::Arc;

use block::bytes::Bytes;
use loopbox_fs::ntfs::{Corrupt, Ntfs};
use loopbox_fs::testing::explore::explore;
use loopbox_fs::testing::mutate::{self, explored, mutations, spoil};
use loopbox_fs::{Cursor, FileSystem as _};
use rig::memory::bounded;
use rig::tree::text;
use rig::{Scratch, requires, requires_root};

use crate::image::{Mounted, compress, make};

/// A small volume with every structure.
fn sound() -> Vec<u8> {
    let scratch = Scratch::new("ntfs-hostile");
    let image = make(&scratch, "image", "-c 512", 3);
    let mounted = Mounted::new(&image);
    rig::tree::small(mounted.path());
    let packed = mounted.path().join("packed");
    compress(&packed);
    for len in [300, 9000, 40_000] {
        std::fs::write(packed.join(format!("text{len}")), text(len)).unwrap();
    }
    for n in 0..30 {
        std::fs::hard_link(packed.join("text300"), mounted.path().join(format!("link{n}{}", "l".repeat(30)))).unwrap();
    }
    drop(mounted);
    std::fs::read(image).unwrap()
}

#[test]
fn mutations_of_what_ntfs_3g_wrote() {
    requires!("mkntfs", "ntfs-3g", "setfattr");
    requires_root!();
    let sound = sound();
    let met = explore(&Ntfs::open(Arc::new(Bytes(sound.clone()))).unwrap());
    assert!(met.files > 150 && met.errors < 12, "{met:?}");
    let records: Vec<usize> =
        (0..sound.len()).step_by(512).filter(|at| matches!(&sound[*at..at + 4], b"FILE" | b"INDX")).collect();
    assert!(records.len() > 150, "{}", records.len());
    let used: Vec<usize> = records.iter().flat_map(|at| *at..at + 1024).filter(|at| sound[*at] != 0).collect();
    mutations(
        "NTFS",
        &sound,
        mutate::count(400),
        |random, bytes| {
            let at = match random.below(16) {
                0 => random.index(90),
                1 => random.index(bytes.len()),
                // What stands in use, and the zeros right behind it.
                _ => used[random.index(used.len())] + random.index(4),
            };
            // The ends of sectors say only whether a record is whole.
            if at % 512 < 510 {
                spoil(random, &mut bytes[at]);
            }
        },
        |_, bytes| bounded(|| explored(bytes, Ntfs::open)),
    );
    for len in (0..sound.len()).step_by(40_009) {
        loopbox_fs::ntfs::fuzz(&sound[..len]);
    }
}

/// Gives the bitmap of the root directory, record 5, a type that nobody knows.
fn lose_bitmap(volume: &mut [u8]) {
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let is_root = |at: &usize| &volume[*at..at + 4] == b"FILE" && word(volume, at + 44) == 5;
    let record = (0..volume.len()).step_by(512).find(is_root).unwrap();
    let mut at = record + usize::from(volume[record + 20]);
    while word(volume, at) != 0xb0 {
        at += word(volume, at + 4) as usize;
    }
    volume[at] = 0xb1;
}

#[test]
fn a_directory_that_lost_its_bitmap_is_not_shown_in_part() {
    requires!("mkntfs", "ntfs-3g", "setfattr");
    requires_root!();
    let mut volume = sound();
    let list = |volume: &[u8]| {
        let ntfs = Ntfs::open(Arc::new(Bytes(volume.to_vec())))?;
        ntfs.read_dir(ntfs.root(), Cursor::START, &mut |_| ControlFlow::Continue(()))
    };
    list(&volume).unwrap();
    lose_bitmap(&mut volume);
    assert_eq!(list(&volume).unwrap_err().find::<Corrupt>(), Some(&Corrupt::Index));
}
