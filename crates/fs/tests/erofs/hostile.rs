//! Broken images: an error, or some tree; never a panic, a hang, or more memory than the limits allow.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::bytes::Bytes;
use loopbox_fs::erofs::Erofs;
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
    let scratch = Scratch::new("erofs-hostile");
    fill(&scratch.join("folder"));
    for options in all_options {
        let sound = std::fs::read(make(&scratch, "image", options, &scratch.join("folder"))).unwrap();
        assert!(explore(&Erofs::open(Arc::new(Bytes(sound.clone()))).unwrap()).files > 120);
        mutate_image(options, &sound);
    }
}

fn mutate_image(options: &str, sound: &[u8]) {
    let count = std::env::var("LOOPBOX_MUTATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(MUTATIONS);
    let used = sound.iter().rposition(|byte| *byte != 0).unwrap();
    // Half of the changes are made where the inodes, directories and indexes are.
    let word = |at: usize| u32::from_le_bytes(sound[at..at + 4].try_into().unwrap()) as usize;
    let (tables, tables_end) = (word(1024 + 40) << sound[1024 + 12], used);
    let mut seed = 0x0005_DEEC_E66D_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let mut opened = 0;
    for number in 0..count {
        let mut bytes = sound.to_vec();
        for _ in 0..=random(3) {
            let at = match random(4) {
                0 => random(used),
                1 => 1024 + random(128),
                _ => tables + random((tables_end - tables).min(64 << 10)),
            };
            bytes[at] = match random(4) {
                0 => 0,
                1 => 0xFF,
                2 => bytes[at] ^ (1 << random(8)),
                _ => random(256) as u8,
            };
        }
        // A check sum would stop most of them at the door.
        bytes[1024 + 8] &= !1;
        let start = Instant::now();
        if let Ok(files) = Erofs::open(Arc::new(Bytes(bytes))) {
            opened += 1;
            explore(&files);
        }
        assert!(start.elapsed() < TIME_MAX, "{options}: mutation {number}: {:?}", start.elapsed());
    }
    assert!(opened > count / 4, "{options}: of {count} mutations only {opened} opened: they do not go deep");
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
    fill(&scratch.join("folder"));
    let sound = std::fs::read(make(&scratch, "image", "-zlz4", &scratch.join("folder"))).unwrap();
    for len in (0..sound.len()).step_by(61) {
        loopbox_fs::erofs::fuzz(&sound[..len]);
    }
}
