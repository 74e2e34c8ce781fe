//! Images of real programs.

use fs::FileSystem as _;
use std::path::Path;

use fs::iso9660::Tree;
use rig::tree::{self, Manifest, Sample};
use rig::{Scratch, requires};

use crate::open;

/// Everything that xorriso can keep: Rock Ridge with serial numbers, attributes and access control lists.
#[test]
fn xorriso_keeps_everything() {
    requires!("xorriso");
    let scratch = Scratch::new("iso");
    let (folder, image) = (scratch.join("tree"), scratch.join("a.iso"));
    tree::make(&folder, Sample::ALL);
    xorriso(&["-compliance", "iso_9660_level=3", "-hardlinks", "on", "-acl", "on", "-xattr", "on"], &folder, &image);
    let iso = open(&image, Tree::Best);
    assert_eq!(iso.tree(), Tree::RockRidge);
    tree::assert_same("folder", &as_xorriso_writes(&folder), "image", &tree::of_file_system(&iso));
    assert_eq!(iso.label(), "LABEL");
}

/// The manifest of a folder without what xorriso loses: the slash at the end of a target, attributes without a value.
fn as_xorriso_writes(folder: &Path) -> Manifest {
    let mut manifest = tree::of_folder(folder);
    for file in manifest.values_mut() {
        file.xattrs.retain(|_, value| !value.is_empty());
        if let Some(target) = file.target.as_mut().filter(|target| target.len() > 1 && target.ends_with(b"/")) {
            target.pop();
        }
    }
    manifest
}

fn xorriso(options: &[&str], folder: &Path, image: &Path) {
    let (folder, image) = (folder.to_str().unwrap(), image.to_str().unwrap());
    let tail = ["-volid", "LABEL", "-map", folder, "/"];
    rig::run("xorriso", [&["-no_rc", "-outdev", image][..], options, &tail].concat());
}
