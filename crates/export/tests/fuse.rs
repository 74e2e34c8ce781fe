//! Mounts of this process, used by the kernel and by programs.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;

use ::fs::testing::memory::Memory;
use backing::FileBacking;
use block::layer::Window;
use block::{BlockDevice, Kind, ReadAt as _};
use loopbox_export as export;
use loopbox_export::Attachment as _;
use loopbox_export::fuse::{File, Mount, Options, Served};
use rig::{Scratch, requires, requires_kernel, requires_root, run};

fn have_fuse() -> bool {
    OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok()
}

struct Disk {
    served: Option<Box<Served>>,
    scratch: Scratch,
    image: Arc<FileBacking>,
}

/// An image of `size` bytes, attached, with windows of it beside.
fn disk(name: &str, size: u64, windows: &[(u64, u64)]) -> Disk {
    let scratch = Scratch::new(name);
    let image = Arc::new(FileBacking::create(scratch.join("image"), size).unwrap());
    fs::create_dir(scratch.join("mnt")).unwrap();
    let whole: Arc<dyn BlockDevice> = image.clone();
    let mut files = vec![File { name: "disk".into(), device: Arc::clone(&whole), image: None }];
    for (number, (start, len)) in windows.iter().enumerate() {
        let window = Window::new(Arc::clone(&whole), *start, *len).unwrap();
        files.push(File { name: format!("diskp{}", number + 1), device: Arc::new(window), image: None });
    }
    let served =
        Mount::disk(files, &scratch.join("mnt"), OsStr::new("an image, with spaces")).unwrap().spawn().unwrap();
    Disk { served: Some(Box::new(served)), scratch, image }
}

impl Disk {
    fn node(&self, name: &str) -> std::path::PathBuf {
        self.scratch.join("mnt").join(name)
    }

    fn open(&self, name: &str) -> fs::File {
        OpenOptions::new().read(true).write(true).open(self.node(name)).unwrap()
    }

    fn detach(&mut self) {
        self.served.take().unwrap().detach().unwrap();
    }
}

#[test]
fn a_tree_is_the_same_through_the_kernel() {
    requires_root!();
    requires_kernel!(have_fuse(), "FUSE");
    let scratch = Scratch::new("fuse-tree");
    fs::create_dir(scratch.join("mnt")).unwrap();
    let mut memory = Memory::new();
    let root = ::fs::FileSystem::root(&memory);
    let boot = memory.directory(root, b"boot");
    memory.file(boot, b"kernel", &vec![7; 3_000_000]);
    memory.file(boot, b"empty", b"");
    memory.symlink(root, b"link", b"boot/kernel");
    let many = memory.directory(root, b"many");
    for number in 0..3000 {
        memory.file(many, format!("file {number:05} with a name of some length").as_bytes(), b"x");
    }
    let attributed = memory.file(root, b"attributed", b"abc");
    memory.node_mut(attributed).xattrs.push((b"user.colour".to_vec(), b"blue".to_vec()));
    let files: Arc<dyn ::fs::FileSystem> = Arc::new(memory);
    let options = Options { nodev: false, nosuid: false, ..Options::of_user(true) };
    let mount = Mount::directory(Arc::clone(&files), &scratch.join("mnt"), OsStr::new("memory"), &options).unwrap();
    let served = mount.spawn().unwrap();

    let ours = rig::tree::of_file_system(files.as_ref());
    let kernels = rig::tree::of_folder(&scratch.join("mnt"));
    rig::tree::assert_same("file system", &ours, "mount", &kernels);
    assert_eq!(fs::read_dir(scratch.join("mnt/many")).unwrap().count(), 3000);
    let error = fs::write(scratch.join("mnt/attributed"), b"no").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(30), "EROFS");
    let mounted = export::mount_table::at(&scratch.join("mnt")).unwrap().unwrap();
    assert_eq!((mounted.kind.as_str(), mounted.source.to_str()), ("fuse.loopbox", Some("memory")));
    Box::new(served).detach().unwrap();
    assert_eq!(export::mount_table::at(&scratch.join("mnt")).unwrap(), None);
}

#[test]
fn a_node_behaves_as_a_block_device() {
    requires_root!();
    requires_kernel!(have_fuse(), "FUSE");
    let mut disk = disk("fuse-node", 8 << 20, &[]);
    let mut node = disk.open("disk");
    let metadata = node.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o7777, metadata.blocks()), (8 << 20, 0o600, 0));

    node.write_all_at(b"hello", 4095).unwrap();
    node.sync_all().unwrap();
    let mut bytes = [0; 5];
    disk.image.read_at(&mut bytes, 4095).unwrap();
    assert_eq!(&bytes, b"hello");
    drop(node);
    assert!(disk.node("disk").metadata().unwrap().blocks() >= 8);

    // O_TRUNC does nothing; a truncation that is meant is refused; the same size is fine.
    let truncated = OpenOptions::new().write(true).truncate(true).open(disk.node("disk")).unwrap();
    assert_eq!(truncated.metadata().unwrap().len(), 8 << 20);
    assert_eq!(truncated.set_len(4096).unwrap_err().raw_os_error(), Some(22));
    truncated.set_len(8 << 20).unwrap();
    drop(truncated);

    // At the end: as much as there is, then no room, and nothing to read.
    node = disk.open("disk");
    assert_eq!(node.read_at(&mut bytes, 4095).unwrap(), 5);
    assert_eq!(&bytes, b"hello");
    assert_eq!(node.write_at(b"12345", (8 << 20) - 3).unwrap(), 3);
    assert_eq!(node.write_at(b"12345", 8 << 20).unwrap_err().raw_os_error(), Some(28));
    assert_eq!(node.read_at(&mut bytes, 8 << 20).unwrap(), 0);

    // Holes.
    node.write_all_at(&[1; 1 << 20], 1 << 20).unwrap();
    use rustix::fs::FallocateFlags as F;
    rustix::fs::fallocate(&node, F::PUNCH_HOLE | F::KEEP_SIZE, 1 << 20, 512 << 10).unwrap();
    let mut punched = vec![9; 1 << 20];
    node.read_exact_at(&mut punched, 1 << 20).unwrap();
    assert!(punched[..512 << 10].iter().all(|byte| *byte == 0) && punched[512 << 10..].iter().all(|byte| *byte == 1));
    rustix::fs::fallocate(&node, F::ZERO_RANGE, (1 << 20) + (512 << 10), 4096).unwrap();
    node.read_exact_at(&mut punched, 1 << 20).unwrap();
    assert_eq!(punched[512 << 10], 0);
    assert_eq!(punched[(512 << 10) + 4096], 1);
    assert_eq!(rustix::fs::fallocate(&node, F::empty(), 0, 4096), Err(rustix::io::Errno::OPNOTSUPP));
    assert_eq!(node.seek(SeekFrom::Start(0)).unwrap(), 0);
    assert_eq!(rustix::fs::seek(&node, rustix::fs::SeekFrom::Hole(4096 + 4096)).unwrap(), 8192);
    let data = rustix::fs::seek(&node, rustix::fs::SeekFrom::Data(8192)).unwrap();
    assert_eq!(data, (1 << 20) + (512 << 10));
    drop(node);
    disk.detach();
}

#[test]
fn partitions_and_the_disk_are_one() {
    requires_root!();
    requires_kernel!(have_fuse(), "FUSE");
    let mut disk = disk("fuse-parts", 8 << 20, &[(1 << 20, 1 << 20), (4 << 20, 2 << 20)]);
    let names: Vec<_> = fs::read_dir(disk.scratch.join("mnt")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["disk", "diskp1", "diskp2"]);
    let (mut whole, part) = (disk.open("disk"), disk.open("diskp2"));
    assert_eq!(part.metadata().unwrap().len(), 2 << 20);
    for round in 0..50u8 {
        part.write_all_at(&[round; 4096], 0).unwrap();
        whole.seek(SeekFrom::Start(4 << 20)).unwrap();
        let mut bytes = [0; 4096];
        whole.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [round; 4096]);
        whole.seek(SeekFrom::Start(4 << 20)).unwrap();
        whole.write_all(&[!round; 512]).unwrap();
        part.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((bytes[511], bytes[512]), (!round, round));
    }
    assert_eq!(part.write_at(&[0; 512], 2 << 20).unwrap_err().raw_os_error(), Some(28));
    drop((whole, part));
    disk.detach();
}

#[test]
fn file_systems_are_made_and_checked_on_a_node() {
    requires_root!();
    requires_kernel!(have_fuse(), "FUSE");
    requires!("mkfs.ext4", "e2fsck", "debugfs", "mkfs.vfat", "fsck.vfat", "qemu-img", "qemu-io", "dd");
    let mut disk = disk("fuse-mkfs", 64 << 20, &[(32 << 20, 16 << 20)]);
    let (whole, part) = (disk.node("disk"), disk.node("diskp1"));
    let (whole, part) = (whole.to_str().unwrap(), part.to_str().unwrap());
    run("mkfs.ext4", ["-q", "-F", whole]);
    run("e2fsck", ["-fn", whole]);
    run("debugfs", ["-w", "-R", "mkdir made", whole]);
    assert!(run("debugfs", ["-R", "ls /", whole]).contains("made"));
    run("e2fsck", ["-fn", whole]);
    run("mkfs.vfat", [part]);
    run("fsck.vfat", ["-n", part]);
    assert!(run("qemu-img", ["info", "--output=json", part]).contains("\"virtual-size\": 16777216"));
    run("qemu-io", ["-f", "raw", "-c", "write -P 0x5a 1M 2M", "-c", "read -P 0x5a 1M 2M", "-c", "flush", part]);
    run("qemu-io", ["-f", "raw", "-c", "discard 1M 1M", "-c", "read -P 0 1M 1M", part]);
    // Plain dd truncates what it opens.
    run("dd", ["if=/dev/zero", &format!("of={part}"), "bs=64k", "count=4", "status=none"]);
    run(
        "dd",
        ["if=/dev/urandom", &format!("of={part}"), "bs=1M", "seek=3", "count=1", "conv=notrunc,fsync", "status=none"],
    );
    assert_eq!(fs::metadata(part).unwrap().len(), 16 << 20);
    disk.detach();
}

#[test]
fn who_holds_it_is_said() {
    requires_root!();
    requires_kernel!(have_fuse(), "FUSE");
    let mut disk = disk("fuse-busy", 1 << 20, &[]);
    let held = disk.open("disk");
    let error = disk.served.take().unwrap().detach().unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains(&format!("(process {}, file ", std::process::id())), "{error}");
    // It was unmounted lazily: what is open works on.
    held.write_all_at(b"still there", 0).unwrap();
    held.sync_all().unwrap();
    assert!(!disk.node("disk").exists());
    drop(held);
    let mut bytes = [0; 11];
    disk.image.read_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"still there");
}

#[test]
fn mount_points_are_checked() {
    let scratch = Scratch::new("fuse-point");
    let check = |name: &str| export::fuse::check_point(&scratch.join(name)).map_err(|error| error.kind());
    assert_eq!(check("missing"), Err(Kind::NotFound));
    fs::write(scratch.join("file"), b"").unwrap();
    assert_eq!(check("file"), Err(Kind::NotDirectory));
    std::os::unix::fs::symlink("real", scratch.join("link")).unwrap();
    fs::create_dir(scratch.join("real")).unwrap();
    assert_eq!(check("link"), Ok(fs::canonicalize(scratch.join("real")).unwrap()));
}
