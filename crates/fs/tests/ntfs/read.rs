//! What others wrote is read.

use std::process::Command;

use loopbox_fs::FileSystem as _;
use loopbox_fs::testing::conformance;
use rig::tree::{assert_same, of_file_system, of_folder};
use rig::{Scratch, requires, requires_root};

use crate::image::{Mounted, fill, known, make, open};

#[test]
fn what_ntfs_3g_wrote() {
    requires!("mkntfs", "ntfs-3g", "setfattr");
    requires_root!();
    for (options, many, large) in [("-c 4096", 1000, true), ("-c 512", 300, false)] {
        let scratch = Scratch::new("ntfs");
        let image = make(&scratch, "image", options, 64);
        let theirs = {
            let mounted = Mounted::new(&image);
            fill(mounted.path(), many, large);
            drop(mounted);
            let mounted = Mounted::new(&image);
            known(of_folder(mounted.path()))
        };
        let files = open(&image);
        assert_eq!((files.name(), files.label().as_str()), ("ntfs", "Größe"));
        assert_same("ntfs-3g", &theirs, options, &known(of_file_system(&files)));
        assert!(theirs.len() > 400, "{}", theirs.len());
        conformance::check(&files);
        // What the tree is for is really there.
        for (path, wanted) in
            [("linked", "$ATTRIBUTE_LIST"), ("scattered", "$ATTRIBUTE_LIST"), ("packed/mixed", "COMPRESSED")]
        {
            let told = rig::text(&rig::output(Command::new("ntfsinfo").args(["-f", "-F", path]).arg(&image)));
            assert!(told.contains(wanted), "{path}: {told}");
        }
        let space = files.space().unwrap();
        let told = rig::run("ntfsinfo", ["-f".as_ref(), "-m".as_ref(), image.as_os_str()]);
        let free = format!("Free Clusters: {}", space.blocks_free);
        assert!(told.contains(&free), "{free}: {told}");
    }
}

#[test]
fn names_that_are_too_long_here() {
    requires!("mkntfs", "ntfs-3g");
    requires_root!();
    let scratch = Scratch::new("ntfs");
    let image = make(&scratch, "image", "", 8);
    let mounted = Mounted::new(&image);
    for last in ["a", "b"] {
        std::fs::write(mounted.path().join(format!("{}{last}", "日".repeat(200))), last).unwrap();
    }
    drop(mounted);
    let files = open(&image);
    conformance::check(&files);
    let names: Vec<_> = of_file_system(&files).into_keys().filter(|path| path.len() > 200).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.iter().all(|name| name.len() <= 255 && name.starts_with("日日".as_bytes())), "{names:?}");
}
