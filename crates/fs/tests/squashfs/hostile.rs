//! Broken images: an error, or some tree; never a panic, a hang, or more memory than the limits allow.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::bytes::Bytes;
use loopbox_fs::squashfs::SquashFs;
use loopbox_fs::testing::explore::explore;
use rig::{Scratch, requires};

use crate::image::{make, text};

/// How many mutations of each image; `LOOPBOX_MUTATIONS` says otherwise.
const MUTATIONS: u64 = 150;
/// How long the whole of a broken image may take.
const TIME_MAX: Duration = Duration::from_secs(5);

fn fill(folder: &Path) {
    std::fs::create_dir_all(folder.join("many")).unwrap();
    for n in 0..120 {
        let content = text(n * 3);
        std::fs::write(folder.join(format!("many/{n}-{}", "n".repeat(n % 90))), content).unwrap();
    }
    std::fs::create_dir_all(folder.join("a/b/c")).unwrap();
    symlink("a/b/c", folder.join("short")).unwrap();
    std::fs::write(folder.join("a/text"), text(30_000)).unwrap();
    let file = std::fs::File::create(folder.join("sparse")).unwrap();
    for n in 0..10 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", n * 9000).unwrap();
    }
    let flags = rustix::fs::XattrFlags::empty();
    for (name, bytes) in [("user.a", 10), ("user.b", 300), ("user.c", 150)] {
        rustix::fs::setxattr(folder.join("sparse"), name, &vec![1; bytes], flags).unwrap();
        rustix::fs::setxattr(folder.join("a"), name, &vec![1; bytes], flags).unwrap();
    }
}

fn mutate(all_options: &[&str]) {
    let scratch = Scratch::new("squashfs-hostile");
    fill(&scratch.join("folder"));
    let count = std::env::var("LOOPBOX_MUTATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(MUTATIONS);
    for options in all_options {
        let sound = std::fs::read(make(&scratch, "image", options, &scratch.join("folder"))).unwrap();
        assert!(explore(&SquashFs::open(Arc::new(Bytes(sound.clone()))).unwrap()).files > 120);
        let used = sound.iter().rposition(|byte| *byte != 0).unwrap();
        // Half of the changes are made to the tables at the end, which are small.
        let tables = u64::from_le_bytes(sound[64..72].try_into().unwrap()) as usize;
        let mut seed = 0x0005_DEEC_E66D_u64;
        let mut random = move |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        let mut opened = 0;
        for number in 0..count {
            let mut bytes = sound.clone();
            for _ in 0..=random(3) {
                let at = match random(4) {
                    0 => random(used),
                    1 => random(96),
                    _ => tables + random(used - tables),
                };
                bytes[at] = match random(4) {
                    0 => 0,
                    1 => 0xFF,
                    2 => bytes[at] ^ (1 << random(8)),
                    _ => random(256) as u8,
                };
            }
            let start = Instant::now();
            if let Ok(files) = SquashFs::open(Arc::new(Bytes(bytes))) {
                opened += 1;
                explore(&files);
            }
            assert!(start.elapsed() < TIME_MAX, "{options}: mutation {number}: {:?}", start.elapsed());
        }
        assert!(opened > count / 4, "{options}: of {count} mutations only {opened} opened: they do not go deep");
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
    fill(&scratch.join("folder"));
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
