//! erofs: fsck.erofs, the kernel, and what is read again.

use std::os::unix::fs::FileExt as _;

use loopbox_fs::make::{Make, Type};
use loopbox_fs::testing::conformance;
use rig::kernel::Mount;
use rig::tree::{self, Manifest, Sample};
use rig::{Scratch, requires};

use crate::image::{self, make, open};

fn erofs() -> Make {
    make(Type::Erofs)
}

/// What fsck.erofs and the kernel see.
fn others(scratch: &Scratch, image: &std::path::Path, expected: &Manifest) {
    let out = scratch.join("extracted");
    let extract = format!("--extract={}", out.display());
    rig::run("fsck.erofs", [extract.as_str(), "--preserve", image.to_str().unwrap()]);
    let theirs = tree::of_folder(&out);
    assert_eq!(theirs.len(), expected.len());
    for (path, file) in expected {
        let other = &theirs[path];
        // It changes owners after modes, which takes set-uid and set-gid away.
        // Of a chunk that is nowhere it repeats the last one (the kernel has zeroes there).
        let content = |file: &tree::File| file.sha256.clone().filter(|_| path != b"sparse");
        let shown = |file: &tree::File| (content(file), file.target.clone(), file.mode & !0o6000);
        assert_eq!(shown(file), shown(other), "{path:?}");
    }
    std::fs::remove_dir_all(&out).unwrap();
    if rig::is_root() && rig::have_filesystem("erofs") {
        let mount = Mount::new("erofs", image).expect("a mount by the kernel");
        tree::assert_same("folder", expected, "kernel", &tree::of_folder(mount.path()));
    }
}

#[test]
fn a_tree_is_there_with_all_that_belongs_to_it() {
    requires!("fsck.erofs");
    let scratch = Scratch::new("make-erofs");
    let folder = scratch.join("tree");
    tree::make(&folder, Sample::ALL);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(folder.join("sizes/61"), "user.large", &vec![b'v'; 4000], flags).unwrap();
    std::os::unix::fs::symlink("x".repeat(4095), folder.join("links/longest")).unwrap();
    for (len, name) in [(4096 - 64, "just fits"), (4096 - 63, "just not"), (8192, "two"), (12_287, "three less one")] {
        std::fs::write(folder.join(name), vec![b'f'; len]).unwrap();
    }
    tree::set_times(&folder);
    let (image, told) = image::image(&scratch, &erofs(), &folder);
    assert!(told.failed.lock().unwrap().is_empty(), "{told:?}");
    let fs = open(&image);
    conformance::check(&*fs);
    assert_eq!((fs.name(), fs.label().as_str()), ("erofs", "LABEL"));
    let expected = tree::of_folder(&folder);
    tree::assert_same("folder", &expected, "image", &tree::of_file_system(&*fs));
    others(&scratch, &image, &expected);
    assert!(image.metadata().unwrap().len() < 4 << 20, "holes take room");
}

#[test]
fn twenty_thousand_files_and_none() {
    requires!("fsck.erofs");
    let scratch = Scratch::new("make-erofs-many");
    let folder = scratch.join("tree");
    image::many_and_flat(&folder);
    let image = scratch.join("many.img");
    let source = loopbox_fs::folder::Folder::open(&folder).unwrap();
    image::image_of(&erofs(), &source, &image, &image::Told::default());
    let expected = tree::of_folder(&folder);
    tree::assert_same("folder", &expected, "image", &tree::of_file_system(&*open(&image)));
    others(&scratch, &image, &expected);
    let empty = scratch.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let (image, _) = image::image(&scratch, &erofs(), &empty);
    others(&scratch, &image, &tree::of_folder(&empty));
}

#[test]
fn a_large_file_of_holes_has_large_chunks() {
    requires!("fsck.erofs");
    let scratch = Scratch::new("make-erofs-holes");
    let folder = scratch.join("tree");
    std::fs::create_dir(&folder).unwrap();
    let file = std::fs::File::create(folder.join("holes")).unwrap();
    file.set_len(100 << 30).unwrap();
    let places = [5 << 20, (50 << 30) + 1_000_000, (100 << 30) - 16];
    places.iter().for_each(|at| file.write_all_at(b"sixteen bytes...", *at).unwrap());
    let (image, _) = image::image(&scratch, &erofs(), &folder);
    assert!(image.metadata().unwrap().len() < 16 << 20);
    rig::run("fsck.erofs", [&image]);
    let fs = open(&image);
    let inode = fs.lookup(fs.root(), b"holes").unwrap().unwrap();
    let mount = (rig::is_root() && rig::have_filesystem("erofs")).then(|| Mount::new("erofs", &image).unwrap());
    for at in places {
        let mut around = [0xff; 4112];
        let at = at - 4096;
        assert_eq!(fs.read(inode, &mut around, at).unwrap(), 4112);
        assert!(around[..4096].iter().all(|byte| *byte == 0) && &around[4096..] == b"sixteen bytes...", "at {at}");
        if let Some(mount) = &mount {
            let mut theirs = [0xff; 4112];
            std::fs::File::open(mount.path().join("holes")).unwrap().read_exact_at(&mut theirs, at).unwrap();
            assert!(theirs == around, "the kernel at {at}");
        }
    }
}
