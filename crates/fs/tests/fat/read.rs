//! What others wrote is read.

use std::process::Command;

use loopbox_fs::fat::{CodePage, Options};
use loopbox_fs::testing::conformance;
use loopbox_fs::{FileSystem as _, Inode};
use rig::tree::assert_same;
use rig::{Scratch, requires};

use crate::image::{KINDS, fill, manifest, manifest_of, open, open_as};

#[test]
fn what_mtools_wrote() {
    requires!("mkfs.fat", "mcopy");
    for kind in KINDS.iter().filter(|kind| !kind.is_exfat()) {
        let scratch = Scratch::new("fat-read");
        let folder = scratch.join("folder");
        fill(&folder, 100);
        let image = kind.make(&scratch);
        let mut command = Command::new(rig::which("mcopy").unwrap());
        command.args(["-s", "-m", "-Q", "-i"]).arg(&image).env("TZ", "UTC").env("LC_ALL", "C.UTF-8");
        for entry in std::fs::read_dir(&folder).unwrap() {
            command.arg(entry.unwrap().path());
        }
        rig::run_command(command.arg("::"));
        // mtools takes short names to be of code page 850.
        let fat = open_as(&image, Options { code_page: CodePage::Cp850 });
        assert_eq!(fat.label(), kind.options.split(' ').next_back().unwrap());
        assert_same("mcopy", &manifest(&folder), kind.name, &manifest_of(&fat));
        conformance::check(&fat);
    }
}

#[test]
fn empty_ones_of_mkfs() {
    requires!("mkfs.fat", "mkfs.exfat");
    for kind in KINDS {
        let scratch = Scratch::new("fat-read");
        let fat = open(&kind.make(&scratch));
        conformance::check(&fat);
        assert_eq!(fat.label(), kind.options.split(' ').next_back().unwrap());
        assert_eq!(fat.name(), if kind.is_exfat() { "exfat" } else { "vfat" });
        let space = fat.space().unwrap();
        assert!(space.blocks_free * 10 > space.blocks * 9, "{space:?}");
        assert_eq!(fat.lookup(Inode(1), b"nothing").unwrap(), None);
    }
}

#[test]
fn what_exfat_fuse_wrote() {
    requires!("mkfs.exfat", "mount.exfat-fuse", "losetup");
    rig::requires_root!();
    rig::requires_kernel!(std::path::Path::new("/dev/loop-control").exists(), "the loop driver");
    let kind = &KINDS[3];
    let scratch = Scratch::new("exfat-read");
    let folder = scratch.join("folder");
    fill(&folder, 100);
    let image = kind.make(&scratch);
    let point = scratch.join("mnt");
    std::fs::create_dir(&point).unwrap();
    // It takes nothing but block devices.
    let node = rig::run("losetup", ["-f", "--show", image.to_str().unwrap()]);
    rig::run("mount.exfat-fuse", [node.trim().as_ref(), point.as_os_str()]);
    rig::run(
        "cp",
        [std::ffi::OsStr::new("-rT"), "--preserve=timestamps".as_ref(), folder.as_os_str(), point.as_os_str()],
    );
    rig::run("umount", [&point]);
    rig::run("losetup", ["-d", node.trim()]);
    let fat = open(&image);
    assert_same("exfat-fuse", &manifest(&folder), kind.name, &manifest_of(&fat));
    conformance::check(&fat);
}
