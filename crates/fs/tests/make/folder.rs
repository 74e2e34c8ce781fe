//! A directory of this machine, read by the trait.

use std::path::Path;

use block::{Kind, Source};
use loopbox_fs::FileSystem as _;
use loopbox_fs::folder::Folder;
use loopbox_fs::testing::conformance;
use rig::Scratch;
use rig::tree::{self, Sample};

#[test]
fn it_keeps_the_promises_of_a_file_system_and_shows_what_is_there() {
    let scratch = Scratch::new("folder");
    tree::make(&scratch.join("tree"), Sample::ALL);
    let fs = Folder::open(&scratch.join("tree")).unwrap();
    conformance::check(&fs);
    tree::assert_same("host", &tree::of_folder(&scratch.join("tree")), "folder", &tree::of_file_system(&fs));
    let sparse = fs.lookup(fs.root(), b"sparse").unwrap().unwrap();
    let (mut holes, mut at) = (0, 0);
    while let Some(extent) = fs.extent_at(sparse, at).unwrap() {
        holes += u32::from(matches!(extent.source, Source::Hole));
        at += extent.len;
    }
    assert_eq!((at, holes), (64 << 20, 2));
    assert_eq!(fs.lookup(fs.root(), b"..").unwrap(), None);
    let file = fs.lookup(fs.root(), b"three").unwrap().unwrap();
    assert_eq!(fs.lookup(file, b"x").unwrap_err().kind(), Kind::NotDirectory);
}

#[test]
fn what_is_no_directory_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(Folder::open(file.path()).unwrap_err().kind(), Kind::NotDirectory);
    assert_eq!(Folder::open(Path::new("/nothing/here")).unwrap_err().kind(), Kind::NotFound);
}
