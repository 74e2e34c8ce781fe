//! The ways that requests of a disk take besides /dev/fuse: rings, and straight to the image.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use backing::{FileBacking, Open};
use loopbox_export::Attachment as _;
use loopbox_export::fuse::{File, Mount};
use rig::{Scratch, requires, requires_kernel, requires_root, run};

/// Whether root may turn rings on.
const ENABLE: &str = "/sys/module/fuse/parameters/enable_uring";

fn have_fuse() -> bool {
    OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok()
}

/// A setting of the kernel that is put back when this is dropped.
struct Setting(&'static str, String);

impl Setting {
    fn of(file: &'static str, value: &str) -> Option<Self> {
        let before = fs::read_to_string(file).ok()?;
        fs::write(file, value).ok()?;
        Some(Self(file, before))
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        fs::write(self.0, &self.1).unwrap();
    }
}

fn rings_of_this_process() -> usize {
    let files = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    files.filter(|file| file == Path::new("anon_inode:[io_uring]")).count()
}

#[test]
fn requests_through_rings_are_answered_as_all_others() {
    requires_root!();
    requires_kernel!(have_fuse(), "FUSE");
    requires!("mkfs.ext4", "e2fsck", "qemu-io", "fio");
    let setting = Setting::of(ENABLE, "Y");
    requires_kernel!(setting.is_some(), "FUSE over io_uring");
    let scratch = Scratch::new("fuse-rings");
    let image = Arc::new(FileBacking::create(scratch.join("image"), 32 << 20).unwrap());
    fs::create_dir(scratch.join("mnt")).unwrap();
    let whole = image.file().as_fd().try_clone_to_owned().unwrap();
    let files = vec![File { name: "disk".into(), device: image.clone(), image: Some(whole) }];
    let served = Mount::disk(files, &scratch.join("mnt"), OsStr::new("image")).unwrap().spawn().unwrap();
    drop(setting);
    let node = scratch.join("mnt/disk");
    assert_eq!(fs::metadata(&node).unwrap().len(), 32 << 20);
    assert!(rings_of_this_process() > 0, "a ring for each thread");

    // Names, attributes, errors.
    assert!(fs::metadata(scratch.join("mnt/none")).is_err());
    assert_eq!(fs::read_dir(scratch.join("mnt")).unwrap().count(), 1);
    let file = OpenOptions::new().read(true).write(true).open(&node).unwrap();
    assert_eq!(file.write_at(b"behind the end", 32 << 20).unwrap_err().raw_os_error(), Some(28));
    assert_eq!(file.read_at(&mut [0; 8], 32 << 20).unwrap(), 0);
    // The largest requests there are, and crooked ones.
    let noise = rig::noise(3 << 20);
    file.write_all_at(&noise, 12_345).unwrap();
    file.sync_all().unwrap();
    let mut bytes = vec![0; noise.len()];
    file.read_exact_at(&mut bytes, 12_345).unwrap();
    assert!(bytes == noise, "by the node");
    block::ReadAt::read_at(&*image, &mut bytes, 12_345).unwrap();
    assert!(bytes == noise, "in the image");
    drop(file);

    let node = node.to_str().unwrap();
    run("mkfs.ext4", ["-q", "-F", node]);
    run("e2fsck", ["-fn", node]);
    run("qemu-io", ["-f", "raw", "-c", "write -P 0x5a 1M 2M", "-c", "read -P 0x5a 1M 2M", "-c", "flush", node]);
    run("qemu-io", ["-f", "raw", "-c", "discard 1M 1M", "-c", "read -P 0 1M 1M", node]);
    // More requests at a time than there are slots, each verified.
    let file_name = format!("--filename={node}");
    let words = ["--name=v", "--rw=randwrite", "--bs=4k-64k", "--size=32m", "--direct=1", "--ioengine=io_uring"];
    let more = [
        "--iodepth=64",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--fallocate=none",
        &file_name,
    ];
    run("fio", words.into_iter().chain(more));
    Box::new(served).detach().unwrap();
}

#[test]
fn a_disk_that_nobody_writes_is_read_past_its_server() {
    requires_root!();
    requires_kernel!(have_fuse(), "FUSE");
    let scratch = Scratch::new("fuse-passed");
    let noise = rig::noise(2 << 20);
    fs::write(scratch.join("image"), &noise).unwrap();
    fs::create_dir(scratch.join("mnt")).unwrap();
    let image = Arc::new(FileBacking::open(scratch.join("image"), Open::READ).unwrap());
    let whole = image.file().as_fd().try_clone_to_owned().unwrap();
    let files = vec![File { name: "disk".into(), device: image, image: Some(whole) }];
    let mount = Mount::disk(files, &scratch.join("mnt"), OsStr::new("image")).unwrap();
    let counters = mount.counters();
    let served = mount.spawn().unwrap();
    let node = scratch.join("mnt/disk");
    let passed = kernel_at_least(6, 9);
    let first = fs::File::open(&node).unwrap();
    let again = fs::File::open(&node).unwrap();
    let mut bytes = vec![0; noise.len()];
    for file in [&first, &again] {
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == noise);
        assert_eq!(file.read_at(&mut bytes, 2 << 20).unwrap(), 0);
        assert_eq!(file.metadata().unwrap().len(), 2 << 20);
    }
    assert_eq!(run("cmp", [node.as_os_str(), scratch.join("image").as_os_str()]), "");
    assert_eq!(OpenOptions::new().write(true).open(&node).unwrap_err().raw_os_error(), Some(30));
    let reads = counters.counted("disk", "disk").reads;
    assert_eq!(reads == 0, passed, "{reads} reads by the server");
    drop((first, again));
    Box::new(served).detach().unwrap();
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}
