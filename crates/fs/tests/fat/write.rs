//! What is written here is right for others.

use std::process::Command;
use std::sync::Arc;

use block::Kind as ErrorKind;
use loopbox_fs::fat::{Fat, Options};
use loopbox_fs::testing::conformance;
use loopbox_fs::testing::model::{self, ByPath};
use loopbox_fs::{FileSystem as _, FileType, Writable as _};
use rig::tree::assert_same;
use rig::{Scratch, requires};

use crate::image::{KINDS, NOW, copy, fill, manifest, manifest_of, open, open_writable};

#[test]
fn a_tree_is_written_and_checked() {
    requires!("mkfs.fat", "mkfs.exfat", "fsck.fat", "fsck.exfat", "mcopy");
    for kind in KINDS {
        let scratch = Scratch::new("fat-write");
        let folder = scratch.join("folder");
        fill(&folder, 150);
        let image = kind.make(&scratch);
        let fat = open_writable(&image);
        copy(&fat, &folder, fat.root());
        let expected = manifest(&folder);
        assert_same("folder", &expected, "while open", &manifest_of(&fat));
        conformance::check(&fat);
        fat.set_label("NEW LABEL", NOW).unwrap();
        fat.close().unwrap();
        let free = fat.space().unwrap().blocks_free;
        drop(fat);
        kind.assert_clean(&image);
        let fat = open(&image);
        assert_eq!((fat.label(), fat.space().unwrap().blocks_free), ("NEW LABEL".to_owned(), free));
        assert_same("folder", &expected, "opened again", &manifest_of(&fat));
        conformance::check(&fat);
        if !kind.is_exfat() {
            let out = scratch.join("out");
            std::fs::create_dir(&out).unwrap();
            let mut command = Command::new(rig::which("mcopy").unwrap());
            command.args(["-s", "-m", "-Q", "-n", "-i"]).arg(&image).env("TZ", "UTC").env("LC_ALL", "C.UTF-8");
            rig::run_command(command.arg("::*").arg(&out));
            let mut copied = manifest(&out);
            copied
                .values_mut()
                .filter(|file| file.sha256.is_none())
                .for_each(|file| file.modified = Default::default());
            assert_same("folder", &expected, "mcopy", &copied);
        }
    }
}

#[test]
fn random_operations_do_what_they_do_to_a_model() {
    requires!("mkfs.fat", "mkfs.exfat", "fsck.fat", "fsck.exfat");
    let seeds = std::env::var("LOOPBOX_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(2);
    for kind in KINDS {
        for seed in 0..seeds {
            let scratch = Scratch::new("fat-model");
            let image = kind.make(&scratch);
            let fat = ByPath(open_writable(&image));
            model::check(&fat, seed, 600, 50, 100_000);
            fat.0.close().unwrap();
            kind.assert_clean(&image);
            let before = model::Target::tree(&fat);
            model::compare(&model::Target::tree(&ByPath(open_writable(&image))), &before, "opened again");
        }
    }
}

#[test]
fn a_full_one_says_so_and_stays_whole() {
    requires!("mkfs.fat", "mkfs.exfat", "fsck.fat", "fsck.exfat");
    for kind in KINDS {
        let scratch = Scratch::new("fat-full");
        let image = kind.make(&scratch);
        let fat = open_writable(&image);
        let file = fat.create(fat.root(), b"file", FileType::Regular, NOW).unwrap();
        let size = kind.kib << 10;
        assert_eq!(fat.truncate(file, size * 2, NOW).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(fat.write(file, b"x", size * 2, NOW).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(fat.stat(file).unwrap().size, 0);
        let free = fat.space().unwrap();
        let all = free.blocks_free * u64::from(free.block_bytes);
        fat.truncate(file, all, NOW).unwrap();
        assert_eq!(fat.space().unwrap().blocks_free, 0);
        let empty = fat.create(fat.root(), b"empty", FileType::Regular, NOW).unwrap();
        assert_eq!(fat.write(empty, b"x", 0, NOW).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(fat.create(fat.root(), b"d", FileType::Directory, NOW).unwrap_err().kind(), ErrorKind::NoSpace);
        fat.truncate(file, 10, NOW).unwrap();
        fat.write(empty, b"x", 0, NOW).unwrap();
        fat.close().unwrap();
        kind.assert_clean(&image);
    }
}

#[test]
fn a_removed_file_that_is_held_is_there_until_it_is_released() {
    requires!("mkfs.fat", "mkfs.exfat", "fsck.fat", "fsck.exfat");
    // A mount that ends does not say that a file is released: then the close does it.
    for (kind, said) in KINDS.iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        let scratch = Scratch::new("fat-held");
        let image = kind.make(&scratch);
        let fat = open_writable(&image);
        let free = fat.space().unwrap().blocks_free;
        let file = fat.create(fat.root(), b"a long name of a file", FileType::Regular, NOW).unwrap();
        fat.write(file, b"content", 5000, NOW).unwrap();
        fat.hold(file);
        fat.remove(fat.root(), b"A LONG NAME of a file", false, NOW).unwrap();
        assert_eq!(fat.lookup(fat.root(), b"a long name of a file").unwrap(), None);
        let other = fat.create(fat.root(), b"a long name of a file", FileType::Regular, NOW).unwrap();
        assert_ne!(other, file);
        fat.write(file, b"more", 10_000, NOW).unwrap();
        let mut buf = [0; 4];
        assert_eq!(fat.read(file, &mut buf, 10_000).unwrap(), 4);
        assert_eq!((&buf, fat.stat(other).unwrap().size), (b"more", 0));
        if said {
            fat.release(file).unwrap();
            assert_eq!(fat.stat(file).unwrap_err().kind(), ErrorKind::NotFound);
            fat.flush().unwrap();
            assert_eq!(fat.space().unwrap().blocks_free, free);
        }
        fat.close().unwrap();
        assert_eq!(fat.space().unwrap().blocks_free, free);
        kind.assert_clean(&image);
    }
}

#[test]
fn numbers_stay_with_their_files() {
    requires!("mkfs.fat", "mkfs.exfat");
    for kind in KINDS {
        let scratch = Scratch::new("fat-numbers");
        let image = kind.make(&scratch);
        let fat = open_writable(&image);
        for n in 0..40 {
            let file = fat.create(fat.root(), format!("file {n}").as_bytes(), FileType::Regular, NOW).unwrap();
            fat.write(file, &[n], 0, NOW).unwrap();
        }
        let directory = fat.create(fat.root(), b"dir", FileType::Directory, NOW).unwrap();
        fat.close().unwrap();
        let fat = Fat::open_writable(crate::image::writable_device(&image), Options::default()).unwrap();
        let directory_again = fat.lookup(fat.root(), b"dir").unwrap().unwrap();
        assert_ne!(directory, directory_again, "the one is of a file that was made, the other of a place");
        let numbers: Vec<_> =
            (0..40).map(|n| fat.lookup(fat.root(), format!("file {n}").as_bytes()).unwrap().unwrap()).collect();
        for n in 0..40 {
            let (from, to) = (format!("file {n}"), format!("another name {n}"));
            let into = if n % 2 == 0 { fat.root() } else { directory_again };
            fat.rename((fat.root(), from.as_bytes()), (into, to.as_bytes()), true, NOW).unwrap();
            // Others take their places.
            fat.create(fat.root(), format!("new {n}").as_bytes(), FileType::Regular, NOW).unwrap();
        }
        for (n, number) in numbers.iter().enumerate() {
            let mut buf = [0xff];
            assert_eq!(fat.read(*number, &mut buf, 0).unwrap(), 1);
            assert_eq!(usize::from(buf[0]), n, "{}", kind.name);
        }
        let error = fat.rename((fat.root(), b"dir"), (directory_again, b"inside"), true, NOW).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        fat.close().unwrap();
        kind.assert_clean(&image);
    }
}

#[test]
fn what_is_only_read_is_not_written() {
    requires!("mkfs.fat");
    let scratch = Scratch::new("fat-read-only");
    let image = KINDS[0].make(&scratch);
    let fat = open(&image);
    let error = fat.create(fat.root(), b"x", FileType::Regular, NOW).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    let device = backing::FileBacking::open(&image, backing::Open { lock: false, ..backing::Open::READ }).unwrap();
    assert_eq!(Fat::open_writable(Arc::new(device), Options::default()).unwrap_err().kind(), ErrorKind::ReadOnly);
}
