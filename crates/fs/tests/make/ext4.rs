//! ext4: e2fsck, debugfs, the kernel's mount (also written to), and what is read again.

use std::path::Path;

use loopbox_fs::make::{Make, Tree, Type};
use loopbox_fs::testing::conformance;
use rig::kernel::Mount;
use rig::tree::{self, Manifest, Sample};
use rig::{Scratch, requires, requires_kernel, requires_root};

use crate::image::{self, make, open};

fn ext4() -> Make {
    make(Type::Ext4)
}

/// That e2fsck has nothing to say.
fn clean(image: &Path) {
    let said = rig::run("e2fsck", ["-fn", image.to_str().unwrap()]);
    assert!(said.lines().count() <= 7 && !said.contains("ix"), "{said}");
}

/// Without what is added.
fn kept(mut manifest: Manifest) -> Manifest {
    manifest.remove(b"lost+found".as_slice());
    manifest
}

fn sample(scratch: &Scratch) -> std::path::PathBuf {
    let folder = scratch.join("tree");
    tree::make(&folder, Sample::ALL);
    let file = std::fs::File::create(folder.join("fragments")).unwrap();
    for n in 0..2000_u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"an island", n * 12_288 + 100).unwrap();
    }
    std::os::unix::fs::symlink("x".repeat(1023), folder.join("links/slow1023")).unwrap();
    std::os::unix::fs::symlink("x".repeat(60), folder.join("links/slow60")).unwrap();
    for n in 0..5 {
        std::fs::write(folder.join(format!("shared{n}")), "the same attributes").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(folder.join(format!("shared{n}")), "user.same", b"for all of them", flags).unwrap();
    }
    tree::set_times(&folder);
    folder
}

#[test]
fn a_tree_is_there_with_all_that_belongs_to_it() {
    requires!("e2fsck", "debugfs");
    let scratch = Scratch::new("make-ext4");
    let folder = sample(&scratch);
    let (image, told) = image::image(&scratch, &ext4(), &folder);
    assert!(told.failed.lock().unwrap().is_empty(), "{told:?}");
    clean(&image);
    let fs = open(&image);
    conformance::check(&*fs);
    assert_eq!((fs.name(), fs.label().as_str()), ("ext4", "LABEL"));
    let expected = tree::of_folder(&folder);
    tree::assert_same("folder", &expected, "image", &kept(tree::of_file_system(&*fs)));
    let sparse = fs.stat(fs.lookup(fs.root(), b"sparse").unwrap().unwrap()).unwrap();
    assert!(sparse.blocks < 100, "holes take room: {sparse:?}");
    let words = ["-R", "stat /fragments", image.to_str().unwrap()];
    assert!(rig::run("debugfs", words).contains("ETB0"), "a tree of extents was not needed");
}

#[test]
fn twenty_thousand_files_and_empty_ones_of_every_size() {
    requires!("e2fsck");
    let scratch = Scratch::new("make-ext4-many");
    let folder = scratch.join("tree");
    image::many(&folder, 20_000);
    let image = scratch.join("many.img");
    let source = loopbox_fs::folder::Folder::open(&folder).unwrap();
    image::image_of(&ext4(), &source, &image, &image::Told::default());
    clean(&image);
    let expected = tree::of_folder(&folder);
    tree::assert_same("folder", &expected, "image", &kept(tree::of_file_system(&*open(&image))));
    let tree = Tree::empty(image::NOW);
    for size in [1 << 20, 3 << 20, 16 << 20, 129 << 20, (128 << 20) + 4096, 1 << 30, 5 << 30, 40 << 30, 300 << 30] {
        let path = scratch.join("empty.img");
        let device = std::sync::Arc::new(backing::FileBacking::create(&path, size).unwrap());
        let device: std::sync::Arc<dyn block::BlockDevice> = device;
        ext4().write(&tree, &source, &device, &()).unwrap();
        clean(&path);
        assert_eq!(tree::of_file_system(&*open(&path)).len(), 2, "{size}");
        let stored = std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap()) * 512;
        assert!(stored < 16 << 20, "{size}: {stored} bytes are stored");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn the_kernel_reads_it_and_writes_to_it() {
    requires!("e2fsck");
    requires_root!();
    requires_kernel!(rig::have_filesystem("ext4"), "the file system ext4");
    let scratch = Scratch::new("make-ext4-kernel");
    let folder = sample(&scratch);
    let (image, _) = image::image(&scratch, &ext4(), &folder);
    let mount = Mount::new("ext4", &image).expect("a mount by the kernel");
    tree::assert_same("folder", &tree::of_folder(&folder), "kernel", &kept(tree::of_folder(mount.path())));
    drop(mount);
    // Into a larger one, with a journal, the kernel writes as into any other.
    let source = loopbox_fs::folder::Folder::open(&folder).unwrap();
    let tree = Tree::read(&source, loopbox_fs::FileSystem::root(&source), Default::default()).unwrap();
    let device = std::sync::Arc::new(backing::FileBacking::create(scratch.join("large.img"), 300 << 20).unwrap());
    let device: std::sync::Arc<dyn block::BlockDevice> = device;
    ext4().write(&tree, &source, &device, &()).unwrap();
    drop(device);
    let (image, point) = (scratch.join("large.img"), scratch.join("point"));
    std::fs::create_dir(&point).unwrap();
    let mounted = (0..20).any(|_| {
        let mut command = std::process::Command::new("mount");
        rig::output(command.args(["-t", "ext4", "-o", "loop"]).arg(&image).arg(&point)).status.success()
    });
    assert!(mounted, "no mount by the kernel");
    let script =
        "cd $0; cp -a names copied; rm -r many deep1; for n in $(seq 3000); do echo $n >new-$n; done
        dd if=/dev/urandom of=written bs=1M count=100 status=none; setfattr -n user.more -v x shared1; rm shared2; sync";
    let worked = rig::output(std::process::Command::new("sh").args(["-ec", script]).arg(&point));
    rig::run("umount", [&point]);
    assert!(worked.status.success(), "{}", rig::text(&worked));
    clean(&image);
}

#[test]
fn what_does_not_fit_is_said() {
    let scratch = Scratch::new("make-ext4-small");
    let folder = scratch.join("tree");
    image::many(&folder, 300);
    let fs = loopbox_fs::folder::Folder::open(&folder).unwrap();
    let tree = Tree::read(&fs, loopbox_fs::FileSystem::root(&fs), Default::default()).unwrap();
    for (size, label, kind) in [
        (1 << 20, "", block::Kind::NoSpace),
        (100 << 10, "", block::Kind::NoSpace),
        (64 << 20, "a label of 17 let", block::Kind::Invalid),
    ] {
        let path = scratch.join("small");
        let device = std::sync::Arc::new(backing::FileBacking::create(&path, size).unwrap());
        let device: std::sync::Arc<dyn block::BlockDevice> = device;
        let make = Make { label: label.into(), ..ext4() };
        assert_eq!(make.write(&tree, &fs, &device, &()).unwrap_err().kind(), kind, "{size} {label}");
        std::fs::remove_file(path).unwrap();
    }
}
