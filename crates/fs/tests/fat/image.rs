//! Images of all four kinds, and their checkers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use block::BlockDevice;
use loopbox_fs::fat::{Fat, Options};
use loopbox_fs::{FileType, Inode, Time, Writable};
use rig::Scratch;
use rig::tree::{Manifest, Sample};

/// What is made by mkfs, and how large, KiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub name: &'static str,
    pub options: &'static str,
    pub kib: u64,
}

/// Every kind, as small as it may be.
pub(crate) const SMALL: &[Kind] = &[
    Kind { name: "fat12", options: "-F 12 -s 1 -n LABEL12", kib: 1 << 10 },
    Kind { name: "fat16", options: "-F 16 -s 1 -n LABEL16", kib: 2304 },
    Kind { name: "fat32", options: "-F 32 -s 1 -n LABEL32", kib: 2 << 10 },
    Kind { name: "exfat", options: "-c 4K -b 4K -L LABELX", kib: 2 << 10 },
];

/// Every kind.
pub(crate) const KINDS: &[Kind] = &[
    Kind { name: "fat12", options: "-F 12 -n LABEL12", kib: 8 << 10 },
    Kind { name: "fat16", options: "-F 16 -s 4 -n LABEL16", kib: 32 << 10 },
    Kind { name: "fat32", options: "-F 32 -s 1 -n LABEL32", kib: 64 << 10 },
    Kind { name: "exfat", options: "-c 4K -L LABELX", kib: 32 << 10 },
];

impl Kind {
    pub fn is_exfat(&self) -> bool {
        self.name == "exfat"
    }

    /// An empty image by mkfs.fat or mkfs.exfat.
    pub fn make(&self, scratch: &Scratch) -> PathBuf {
        let image = scratch.join(format!("{}.img", self.name));
        std::fs::File::create(&image).unwrap().set_len(self.kib << 10).unwrap();
        let program = if self.is_exfat() { "mkfs.exfat" } else { "mkfs.fat" };
        let mut command = Command::new(rig::which(program).unwrap());
        rig::run_command(command.args(self.options.split_whitespace()).arg(&image));
        image
    }

    /// What the checker says of an image, which is not changed; and whether all is well.
    pub fn check(&self, image: &Path) -> (bool, String) {
        let program = if self.is_exfat() { "fsck.exfat" } else { "fsck.fat" };
        let mut command = Command::new(rig::which(program).unwrap());
        let output = rig::output(command.args(["-n", "-v"]).arg(image));
        (output.status.success(), rig::text(&output))
    }

    /// What the checker says while it mends.
    pub fn mend(&self, image: &Path) -> String {
        let (program, option) = if self.is_exfat() { ("fsck.exfat", "-p") } else { ("fsck.fat", "-a") };
        let mut command = Command::new(rig::which(program).unwrap());
        rig::text(&rig::output(command.args([option, "-v"]).arg(image)))
    }

    /// That the checker finds nothing wrong.
    pub fn assert_clean(&self, image: &Path) {
        let (well, text) = self.check(image);
        assert!(well, "{}: {text}", self.name);
    }
}

pub(crate) fn writable_device(image: &Path) -> Arc<dyn BlockDevice> {
    Arc::new(backing::FileBacking::open(image, backing::Open { lock: false, ..backing::Open::WRITE }).unwrap())
}

pub(crate) fn open(image: &Path) -> Fat {
    open_as(image, Options::default())
}

pub(crate) fn open_as(image: &Path, options: Options) -> Fat {
    let device = backing::FileBacking::open(image, backing::Open { lock: false, ..backing::Open::READ }).unwrap();
    Fat::open(Arc::new(device), options).unwrap_or_else(|error| panic!("{}: {error:?}", image.display()))
}

pub(crate) fn open_writable(image: &Path) -> Fat {
    Fat::open_writable(writable_device(image), Options::default()).unwrap()
}

pub(crate) const NOW: Time = Time { seconds: 1_700_000_000, nanoseconds: 0 };

/// Fills a folder with what FAT can hold.
pub(crate) fn fill(folder: &Path, many: u32) {
    std::fs::create_dir(folder).unwrap();
    rig::tree::make(folder, Sample { odd_names: false, special: false, xattrs: false, sparse: false, many });
    std::fs::remove_dir_all(folder.join("links")).unwrap();
    for name in ["three", "names/tab\there", "names/quote'\"", "names/trailing."] {
        std::fs::remove_file(folder.join(name)).unwrap();
    }
    for (name, mode) in [("sizes/160", 0o644), ("empty", 0o755)] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(folder.join(name), mode).unwrap();
    }
}

/// The manifest of a folder as FAT holds it: whose files have no owner, no mode, and times of two seconds.
pub(crate) fn manifest(folder: &Path) -> Manifest {
    let mut manifest = rig::tree::of_folder(folder);
    manifest.values_mut().for_each(normal);
    manifest.remove(b"".as_slice());
    manifest
}

fn normal(file: &mut rig::tree::File) {
    file.mode = file.mode & 0o170_000 | 0o755;
    file.owner = (0, 0);
    file.links = 0;
    file.modified.seconds &= !1;
    file.modified.nanoseconds = 0;
    if file.size == 0 && file.sha256.is_none() {
        // Directories have times of their own.
        file.modified = Time::default();
    }
}

/// The same of a file system, without its root, which has no entry.
pub(crate) fn manifest_of(fat: &Fat) -> Manifest {
    let mut manifest = rig::tree::of_file_system(fat);
    manifest.values_mut().for_each(normal);
    manifest.remove(b"".as_slice());
    manifest
}

/// Copies a folder into a file system, by its trait.
pub(crate) fn copy(fs: &dyn Writable, folder: &Path, to: Inode) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(Result::unwrap).collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = std::os::unix::ffi::OsStrExt::as_bytes(&*entry.file_name()).to_vec();
        if entry.file_type().unwrap().is_dir() {
            let inode = fs.create(to, &name, FileType::Directory, NOW).unwrap();
            copy(fs, &entry.path(), inode);
        } else {
            let inode = fs.create(to, &name, FileType::Regular, NOW).unwrap();
            for (index, piece) in std::fs::read(entry.path()).unwrap().chunks(100_000).enumerate() {
                fs.write(inode, piece, index as u64 * 100_000, NOW).unwrap();
            }
            let modified = entry.metadata().unwrap().modified().unwrap();
            let seconds = modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
            let time = Some(Time { seconds, nanoseconds: 0 });
            fs.change(inode, loopbox_fs::Changes { modified: time, accessed: time, ..Default::default() }).unwrap();
        }
    }
}
