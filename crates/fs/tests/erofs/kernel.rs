//! The kernel's own erofs, and fsck.erofs, beside ours.

use std::process::Command;

use loopbox_fs::FileSystem as _;
use rig::kernel::{Mount, assert_same_details, details_of_file_system, details_of_folder};
use rig::{Scratch, requires, requires_kernel, requires_root};

use crate::image::{fill, make, manifest, open};

#[test]
fn the_kernel_sees_the_same() {
    requires!("mkfs.erofs");
    requires_root!();
    requires_kernel!(rig::have_filesystem("erofs"), "the file system erofs");
    let scratch = Scratch::new("erofs");
    let folder = scratch.join("folder");
    fill(&folder, 600);
    let all = ["", "-zlz4", "-zlz4hc -C65536 -Eztailpacking", "-zlz4 -Elegacy-compress", "--chunksize=8192"];
    for (number, options) in all.into_iter().enumerate() {
        let image = make(&scratch, &format!("image{number}"), options, &folder);
        let mount = Mount::new("erofs", &image).expect("a mount by the kernel");
        let files = open(&image);
        let kernel = rig::tree::of_folder(mount.path());
        rig::tree::assert_same("loopbox", &rig::tree::of_file_system(&files), "kernel", &kernel);
        assert_same_details(options, &details_of_file_system(&files), &details_of_folder(mount.path()));
        let statfs = rustix::fs::statvfs(mount.path()).unwrap();
        let space = files.space().unwrap();
        assert_eq!((u64::from(space.block_bytes), space.blocks), (statfs.f_bsize, statfs.f_blocks), "{options}");
        assert_eq!(space.blocks_free, statfs.f_bfree, "{options}");
    }
}

#[test]
fn the_kernel_sees_the_same_in_images_of_newer_tools() {
    requires_root!();
    requires_kernel!(rig::have_filesystem("erofs"), "the file system erofs");
    let scratch = Scratch::new("erofs");
    let mut mounted = 0;
    for (name, bytes) in crate::image::stored() {
        let image = scratch.join(&name);
        std::fs::write(&image, bytes).unwrap();
        let Some(mount) = Mount::new("erofs", &image) else {
            rig::skip(rig::test_name!(), &format!("this kernel lacks what {name} needs"));
            continue;
        };
        mounted += 1;
        let files = open(&image);
        let (mut ours, mut kernel) = (rig::tree::of_file_system(&files), rig::tree::of_folder(mount.path()));
        if name == "metabox.img" {
            // Linux 6.18 does not see the shared attributes of inodes in the metabox; the tree that it was made of has
            // them (`images_of_newer_tools`).
            ours.values_mut().chain(kernel.values_mut()).for_each(|file| file.xattrs.clear());
        }
        rig::tree::assert_same(&name, &ours, "kernel", &kernel);
        let (mut ours, mut kernel) = (details_of_file_system(&files), details_of_folder(mount.path()));
        if name == "metabox.img" {
            // It makes numbers of 32 bits of those with the mark of the metabox.
            ours.values_mut().chain(kernel.values_mut()).for_each(|detail| detail.number = 0);
        }
        assert_same_details(&name, &ours, &kernel);
    }
    assert!(mounted > 0, "the kernel mounts none of them");
}

#[test]
fn fsck_extracts_the_same() {
    requires!("mkfs.erofs", "fsck.erofs");
    let scratch = Scratch::new("erofs");
    let folder = scratch.join("folder");
    fill(&folder, 30);
    let image = make(&scratch, "image", "-zlz4hc -C65536", &folder);
    let extracted = scratch.join("extracted");
    let mut command = Command::new(rig::which("fsck.erofs").unwrap());
    rig::run_command(command.arg(format!("--extract={}", extracted.display())).arg(&image));
    let ours = rig::tree::of_file_system(&open(&image));
    rig::tree::assert_same("loopbox", &ours, "folder", &manifest(&folder, ""));
    let theirs = rig::tree::of_folder(&extracted);
    let content = |tree: &rig::tree::Manifest| -> Vec<_> {
        tree.iter().map(|(path, file)| (path.clone(), file.size, file.sha256.clone(), file.target.clone())).collect()
    };
    assert_eq!(content(&ours), content(&theirs));
}
