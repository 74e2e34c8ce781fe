//! FAT and exFAT: fsck, and what is read again.

use loopbox_fs::make::{Make, Tree, Type};
use loopbox_fs::testing::conformance;
use rig::tree::{self, Manifest, Sample};
use rig::{Scratch, requires};

use crate::image::{self, make, open};

const TYPES: &[(Type, &str)] = &[(Type::Fat, "fsck.fat"), (Type::Fat32, "fsck.fat"), (Type::ExFat, "fsck.exfat")];

/// What FAT keeps of a tree: names, content, times of two seconds, whether a file may be written.
fn kept(mut manifest: Manifest) -> Manifest {
    manifest.remove(b"".as_slice());
    manifest.retain(|_, file| matches!(file.mode & 0o170_000, 0o100_000 | 0o040_000));
    for file in manifest.values_mut() {
        file.mode = if file.mode & 0o200 == 0 { 0o555 } else { 0o755 } | file.mode & 0o170_000;
        file.owner = (0, 0);
        file.links = 0;
        file.same_as = None;
        file.xattrs.clear();
        file.modified.seconds &= !1;
        file.modified.nanoseconds = 0;
    }
    manifest
}

#[test]
fn a_tree_is_there_and_what_it_cannot_hold_is_told() {
    requires!("fsck.fat", "fsck.exfat");
    let scratch = Scratch::new("make-fat");
    let folder = scratch.join("tree");
    tree::make(&folder, Sample::ALL);
    std::fs::write(folder.join("names/upper"), "the same name in FAT").unwrap();
    tree::set_times(&folder);
    for (file_system, fsck) in TYPES {
        let (image, told) = image::image(&scratch, &make(*file_system), &folder);
        rig::run(fsck, ["-n", image.to_str().unwrap()]);
        let fs = open(&image);
        conformance::check(&*fs);
        assert_eq!(fs.label(), "LABEL");
        let mut failed = told.failed.lock().unwrap().clone();
        failed.sort();
        let mut expected = kept(tree::of_folder(&folder));
        let mut lost: Vec<&[u8]> = vec![
            b"fifo",
            b"links/absolute",
            b"links/dangling",
            b"links/fast59",
            b"links/folder",
            b"links/long_component",
            b"links/loop",
            b"links/relative",
            b"links/slow",
            b"links/up",
            b"names/\x01control",
            b"names/\xff\xfe not utf-8",
            b"names/back\\slash",
            b"names/line\nbreak",
            b"names/quote'\"",
            b"names/tab\there",
            b"names/upper",
        ];
        if rig::is_root() {
            lost.extend([b"big".as_slice(), b"null"]);
        }
        lost.iter().for_each(|name| drop(expected.remove(*name)));
        let mut lost: Vec<String> = lost.iter().map(|name| name.escape_ascii().to_string()).collect();
        lost.sort();
        assert_eq!(failed, lost, "{file_system:?}");
        // FAT keeps no dots at the end of a name.
        let dotted = expected.remove(b"names/trailing.".as_slice()).unwrap();
        expected.insert(b"names/trailing".to_vec(), dotted);
        tree::assert_same("folder", &expected, "image", &kept(tree::of_file_system(&*fs)));
    }
}

#[test]
fn twenty_thousand_files_fit_the_size_that_is_computed() {
    requires!("fsck.fat", "fsck.exfat");
    let scratch = Scratch::new("make-fat-many");
    let folder = scratch.join("tree");
    image::many(&folder, 20_000);
    for (file_system, fsck) in TYPES {
        let (image, told) = (scratch.join("many.img"), image::Told::default());
        let source = loopbox_fs::folder::Folder::open(&folder).unwrap();
        image::image_of(&make(*file_system), &source, &image, &told);
        rig::run(fsck, ["-n", image.to_str().unwrap()]);
        tree::assert_same(
            "folder",
            &kept(tree::of_folder(&folder)),
            "image",
            &kept(tree::of_file_system(&*open(&image))),
        );
        assert!(told.failed.lock().unwrap().is_empty());
        let fs = loopbox_fs::folder::Folder::open(&folder).unwrap();
        let tree = Tree::read(&fs, loopbox_fs::FileSystem::root(&fs), Default::default()).unwrap();
        assert_eq!(*told.bytes.lock().unwrap(), tree.bytes());
        // A third more at most, for what small files waste.
        let size = image.metadata().unwrap().len();
        assert!(size < tree.bytes() / 2 * 5, "{file_system:?}: {size} for {}", tree.bytes());
    }
}

#[test]
fn trees_of_every_size_fit() {
    requires!("fsck.fat", "fsck.exfat");
    for (file_system, fsck) in TYPES {
        for (files, bytes) in [(0, 0), (1, 1), (1, 3 << 20), (600, 10), (100, 40_000), (3, 9 << 20)] {
            let scratch = Scratch::new("make-fat-size");
            let folder = scratch.join("tree");
            std::fs::create_dir(&folder).unwrap();
            for n in 0..files {
                std::fs::write(folder.join(format!("{n} is a name")), vec![1; bytes]).unwrap();
            }
            let (image, _) = image::image(&scratch, &make(*file_system), &folder);
            rig::run(fsck, ["-n", image.to_str().unwrap()]);
            assert_eq!(tree::of_file_system(&*open(&image)).len(), files + 1, "{file_system:?} {files} {bytes}");
        }
    }
}

#[test]
fn what_is_too_small_says_so() {
    let scratch = Scratch::new("make-fat-small");
    let folder = scratch.join("tree");
    image::many(&folder, 100);
    let fs = loopbox_fs::folder::Folder::open(&folder).unwrap();
    let tree = Tree::read(&fs, loopbox_fs::FileSystem::root(&fs), Default::default()).unwrap();
    for (file_system, _) in [TYPES[0], TYPES[2]] {
        let make = Make { label: String::new(), ..make(file_system) };
        let path = scratch.join("small");
        let device = std::sync::Arc::new(backing::FileBacking::create(&path, 1 << 20).unwrap());
        let device: std::sync::Arc<dyn block::BlockDevice> = device;
        let huge = Make { label: "a label that is too long".into(), ..make.clone() };
        assert_eq!(huge.write(&tree, &fs, &device, &()).unwrap_err().kind(), block::Kind::Invalid);
        let written = make.write(&tree, &fs, &device, &());
        assert_eq!(written.map(|made| made.left_out).unwrap_or(0), 0);
        std::fs::remove_file(path).unwrap();
    }
}
