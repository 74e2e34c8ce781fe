//! squashfs: unsquashfs, the kernel, and what is read again.

use loopbox_fs::make::{Make, Type};
use loopbox_fs::testing::conformance;
use rig::kernel::Mount;
use rig::tree::{self, Manifest, Sample};
use rig::{Scratch, requires, requires_kernel, requires_root};

use crate::image::{self, make, open};

fn squashfs() -> Make {
    Make { label: String::new(), ..make(Type::SquashFs) }
}

fn kept(mut manifest: Manifest) -> Manifest {
    manifest.values_mut().for_each(|file| file.modified.nanoseconds = 0);
    manifest
}

#[test]
fn a_tree_is_there_with_all_that_belongs_to_it() {
    requires!("unsquashfs");
    let scratch = Scratch::new("make-squashfs");
    let folder = scratch.join("tree");
    tree::make(&folder, Sample::ALL);
    let noise: Vec<u8> = (0..400_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(folder.join("blocks"), &noise).unwrap();
    std::fs::write(folder.join("exactly"), &noise[..131_072]).unwrap();
    let (image, told) = image::image(&scratch, &squashfs(), &folder);
    assert!(told.failed.lock().unwrap().is_empty(), "{told:?}");
    let fs = open(&image);
    conformance::check(&*fs);
    let expected = kept(tree::of_folder(&folder));
    tree::assert_same("folder", &expected, "image", &tree::of_file_system(&*fs));
    let out = scratch.join("out");
    rig::run("unsquashfs", ["-q", "-n", "-d", out.to_str().unwrap(), image.to_str().unwrap()]);
    let theirs = kept(tree::of_folder(&out));
    if rig::is_root() {
        tree::assert_same("folder", &expected, "unsquashfs", &theirs);
    } else {
        assert_eq!(theirs.len(), expected.len());
    }
    assert!(image.metadata().unwrap().len() < 4 << 20, "holes take room");
}

#[test]
fn twenty_thousand_files_and_one_directory_of_them() {
    requires!("unsquashfs");
    let scratch = Scratch::new("make-squashfs-many");
    let folder = scratch.join("tree");
    image::many_and_flat(&folder);
    let image = scratch.join("many.img");
    let source = loopbox_fs::folder::Folder::open(&folder).unwrap();
    image::image_of(&squashfs(), &source, &image, &image::Told::default());
    let expected = kept(tree::of_folder(&folder));
    tree::assert_same("folder", &expected, "image", &tree::of_file_system(&*open(&image)));
    let listed = rig::run("unsquashfs", ["-l", image.to_str().unwrap()]);
    assert_eq!(listed.lines().filter(|line| line.starts_with("squashfs-root")).count(), expected.len());
    if rig::is_root() && rig::have_filesystem("squashfs") {
        kernel(&image, &expected);
    }
}

#[test]
fn the_kernel_reads_it() {
    requires_root!();
    requires_kernel!(rig::have_filesystem("squashfs"), "the file system squashfs");
    let scratch = Scratch::new("make-squashfs-kernel");
    let folder = scratch.join("tree");
    tree::make(&folder, Sample::ALL);
    let (image, _) = image::image(&scratch, &squashfs(), &folder);
    kernel(&image, &kept(tree::of_folder(&folder)));
    let empty = scratch.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let (image, _) = image::image(&scratch, &squashfs(), &empty);
    kernel(&image, &kept(tree::of_folder(&empty)));
}

/// Compares with the kernel's mount, where there is one.
fn kernel(image: &std::path::Path, expected: &Manifest) {
    let mount = Mount::new("squashfs", image).expect("a mount by the kernel");
    tree::assert_same("folder", expected, "kernel", &tree::of_folder(mount.path()));
}
