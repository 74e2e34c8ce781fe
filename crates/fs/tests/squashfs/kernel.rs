//! The kernel's own squashfs beside ours.

use loopbox_fs::FileSystem as _;
use rig::kernel::{Mount, assert_same_details, details_of_file_system, details_of_folder};
use rig::{Scratch, requires, requires_kernel, requires_root};

use crate::image::{fill, make, open};

#[test]
fn the_kernel_sees_the_same() {
    requires!("mksquashfs");
    requires_root!();
    requires_kernel!(rig::have_filesystem("squashfs"), "the file system squashfs");
    let scratch = Scratch::new("squashfs");
    let folder = scratch.join("folder");
    fill(&folder, 600);
    let mut mounted = 0;
    for (number, options) in [
        "-comp gzip -b 16K",
        "-comp zstd -Xcompression-level 2",
        "-comp lz4 -noI -no-fragments",
        "-comp xz",
        "-comp lzo",
    ]
    .into_iter()
    .enumerate()
    {
        let image = make(&scratch, &format!("image{number}"), options, &folder);
        let Some(mount) = Mount::new("squashfs", &image) else {
            rig::skip(rig::test_name!(), &format!("this kernel lacks squashfs with {options}"));
            continue;
        };
        mounted += 1;
        let files = open(&image);
        let kernel = rig::tree::of_folder(mount.path());
        rig::tree::assert_same("loopbox", &rig::tree::of_file_system(&files), "kernel", &kernel);
        let (mut ours, mut theirs) = (details_of_file_system(&files), details_of_folder(mount.path()));
        for (path, file) in &kernel {
            if !file.xattrs.is_empty() {
                // The kernel counts attributes, too, as room of the file.
                theirs.get_mut(path).unwrap().blocks = 0;
                ours.get_mut(path).unwrap().blocks = 0;
            }
        }
        assert_same_details(options, &ours, &theirs);
        let statfs = rustix::fs::statvfs(mount.path()).unwrap();
        let space = files.space().unwrap();
        assert_eq!((u64::from(space.block_bytes), space.blocks), (statfs.f_bsize, statfs.f_blocks), "{options}");
        assert_eq!((space.files, space.blocks_free), (statfs.f_files, statfs.f_bfree), "{options}");
    }
    assert!(mounted > 0, "the kernel mounts no compression at all");
}
