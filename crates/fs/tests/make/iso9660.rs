//! ISO 9660: xorriso, isoinfo, bsdtar and 7z, and what is read again.

use std::os::unix::fs::FileExt as _;

use loopbox_fs::make::Type;
use loopbox_fs::testing::conformance;
use rig::tree::{self, Manifest, Sample};
use rig::{Scratch, requires};

use crate::image::{self, make, open};

fn kept(mut manifest: Manifest) -> Manifest {
    manifest.values_mut().for_each(|file| file.modified.nanoseconds = 0);
    manifest
}

fn sample(scratch: &Scratch) -> std::path::PathBuf {
    let folder = scratch.join("tree");
    tree::make(&folder, Sample { sparse: false, ..Sample::ALL });
    let link = |target: String, name: &str| std::os::unix::fs::symlink(target, folder.join(name)).unwrap();
    link("/".into(), "links/root");
    link("./a/../b//c/".into(), "links/slashes");
    link("long/".repeat(700), "links/continued");
    link("long/".repeat(190) + "end", "links/two_pieces");
    link("x".repeat(249), "links/component249");
    link("x".repeat(255), "links/component255");
    std::fs::write(folder.join("n".repeat(255)), "the longest name").unwrap();
    for name in
        ["Same Name.txt", "same_name.txt", "SAME_NAME.TXT", "no_extension", "many.dots.tar.gz", "x.averylongextension"]
    {
        std::fs::write(folder.join("names").join(name), name).unwrap();
    }
    let value = vec![b'v'; 4000];
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(folder.join("sizes/61"), "user.large", &value, flags).unwrap();
    tree::set_times(&folder);
    folder
}

#[test]
fn a_tree_is_there_with_all_that_belongs_to_it() {
    requires!("xorriso", "isoinfo", "bsdtar");
    let scratch = Scratch::new("make-iso");
    let folder = sample(&scratch);
    let (image, told) = image::image(&scratch, &make(Type::Iso9660), &folder);
    assert!(told.failed.lock().unwrap().is_empty(), "{told:?}");
    let fs = open(&image);
    conformance::check(&*fs);
    assert_eq!((fs.name(), fs.label().as_str()), ("iso9660", "LABEL"));
    let expected = kept(tree::of_folder(&folder));
    tree::assert_same("folder", &expected, "image", &tree::of_file_system(&*fs));
    // xorriso takes no component of more than 250 bytes and no target of more than 1024, whoever wrote them.
    for name in ["links/component255", "links/continued"] {
        std::fs::remove_file(folder.join(name)).unwrap();
    }
    let (image, _) = image::image(&scratch, &make(Type::Iso9660), &folder);
    let expected = kept(tree::of_folder(&folder));
    let (out, path) = (scratch.join("out"), image.to_str().unwrap());
    let words = ["-acl", "on", "-xattr", "on", "-osirrox", "on:auto_chmod_on", "-indev", path, "-extract", "/"];
    rig::run("xorriso", words.iter().copied().chain([out.to_str().unwrap()]));
    let mut theirs = kept(tree::of_folder(&out));
    let root = (theirs.remove(b"".as_slice()), expected.get(b"".as_slice()));
    assert!(root.0.is_some() && root.1.is_some());
    let mut ours = expected.clone();
    ours.remove(b"".as_slice());
    // xorriso writes no links to the same file, and a target without the slashes that mean nothing.
    for manifest in [&mut ours, &mut theirs] {
        manifest.values_mut().for_each(|file| (file.links, file.same_as) = (0, None));
        // Nor empty attributes, times of links, device files.
        let links = manifest.values_mut().filter(|file| file.target.is_some());
        links.for_each(|file| file.modified = loopbox_fs::Time::default());
        manifest.values_mut().for_each(|file| file.xattrs.retain(|_, value| !value.is_empty()));
        manifest.retain(|_, file| file.device.is_none());
        manifest.remove(b"links/slashes".as_slice());
    }
    if rig::is_root() {
        tree::assert_same("folder", &ours, "xorriso", &theirs);
    } else {
        assert_eq!(ours.len(), theirs.len());
    }
    let listed = rig::run("isoinfo", ["-R", "-f", "-i", path]);
    assert_eq!(listed.lines().filter(|line| line.starts_with('/')).count(), expected.len() - 1);
    let joliet = rig::run("isoinfo", ["-J", "-f", "-i", path]);
    assert!(joliet.contains("Same Name.txt") && joliet.contains("/many/file-00299"), "{joliet}");
    let plain = rig::run("isoinfo", ["-f", "-i", path]);
    for name in ["/NAMES/SAME_NAME.TXT;1", "/NAMES/SAME_NAME_1.TXT;1", "/NAMES/SAME_NAME_2.TXT;1"] {
        assert!(plain.contains(name), "{plain}");
    }
    let debug = rig::run("isoinfo", ["-d", "-i", path]);
    assert!(debug.contains("Joliet with UCS level 3") && debug.contains("Rock Ridge"), "{debug}");
    let theirs = rig::run("bsdtar", ["-tf", path]);
    assert_eq!(theirs.lines().count(), expected.len());
}

#[test]
fn twenty_thousand_files() {
    requires!("xorriso");
    let scratch = Scratch::new("make-iso-many");
    let folder = scratch.join("tree");
    image::many(&folder, 20_000);
    let image = scratch.join("many.iso");
    let source = loopbox_fs::folder::Folder::open(&folder).unwrap();
    image::image_of(&make(Type::Iso9660), &source, &image, &image::Told::default());
    let expected = kept(tree::of_folder(&folder));
    tree::assert_same("folder", &expected, "image", &tree::of_file_system(&*open(&image)));
    let found = rig::run("xorriso", ["-indev", image.to_str().unwrap(), "-find", "/", "-exec", "echo"]);
    assert_eq!(found.lines().filter(|line| line.starts_with("'/")).count(), expected.len());
}

#[test]
fn a_file_of_more_than_four_gib_has_several_records() {
    requires!("xorriso");
    let scratch = Scratch::new("make-iso-large");
    let folder = scratch.join("tree");
    std::fs::create_dir(&folder).unwrap();
    let size = (9 << 30) + 12_345;
    let places = [0, 0xffff_f7f0, (5 << 30) + 1, size - 16];
    let file = std::fs::File::create(folder.join("large")).unwrap();
    file.set_len(size).unwrap();
    places.iter().for_each(|at| file.write_all_at(b"sixteen bytes...", *at).unwrap());
    std::fs::write(folder.join("small"), "small").unwrap();
    let image = scratch.join("large.iso");
    let source = loopbox_fs::folder::Folder::open(&folder).unwrap();
    image::image_of(&make(Type::Iso9660), &source, &image, &image::Told::default());
    let fs = open(&image);
    let large = fs.lookup(fs.root(), b"large").unwrap().unwrap();
    assert_eq!(fs.stat(large).unwrap().size, size);
    for at in places {
        let mut bytes = [0; 16];
        assert_eq!(fs.read(large, &mut bytes, at).unwrap(), 16);
        assert_eq!(&bytes, b"sixteen bytes...", "at {at}");
    }
    let path = image.to_str().unwrap();
    let listed = rig::run("xorriso", ["-indev", path, "-lsl", "/large"]);
    assert!(listed.contains(&size.to_string()), "{listed}");
    let blocks = std::os::unix::fs::MetadataExt::blocks(&image.metadata().unwrap());
    assert!(blocks < 4096, "holes were written: {blocks} blocks");
}
