//! Volumes that mkntfs made and ntfs-3g filled.

use std::ffi::OsStr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use loopbox_fs::ntfs::Ntfs;
use rig::Scratch;
use rig::tree::{Manifest, Sample, text};

/// An empty volume of `mib` MiB.
pub(crate) fn make(scratch: &Scratch, name: &str, options: &str, mib: u64) -> PathBuf {
    let image = scratch.join(name);
    std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
    let mut command = Command::new(rig::which("mkntfs").unwrap());
    rig::run_command(command.args(["-q", "-F", "-L", "Größe"]).args(options.split_whitespace()).arg(&image));
    image
}

/// A mount of ntfs-3g, gone when dropped.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub fn new(image: &Path) -> Self {
        let point = image.with_extension("mount");
        std::fs::create_dir_all(&point).unwrap();
        let mut command = Command::new(rig::which("ntfs-3g").unwrap());
        rig::run_command(command.args(["-o", "compression,streams_interface=xattr"]).arg(image).arg(&point));
        Self(point)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // When it returns, ntfs-3g may still be writing: the lock of the image is its last.
        rig::run("umount", [&self.0]);
    }
}

/// Marks a folder so that what is made in it is compressed.
pub(crate) fn compress(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    rig::run(
        "setfattr",
        ["-n", "system.ntfs_attrib_be", "-v", "0x00000810"].map(OsStr::new).into_iter().chain([folder.as_os_str()]),
    );
}

/// Fills a mounted volume with all that NTFS has by the hand of ntfs-3g; `large` with what takes its time, too.
pub(crate) fn fill(point: &Path, many: u32, large: bool) {
    rig::tree::make(point, Sample { odd_names: false, special: true, xattrs: true, sparse: large, many });
    // Interix has no names for these, but sizes that other system files have as well.
    for entry in walk(point) {
        let kind = std::os::unix::fs::FileTypeExt::is_fifo(&entry.file_type().unwrap())
            || std::os::unix::fs::FileTypeExt::is_socket(&entry.file_type().unwrap());
        if kind {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    // So many runs, names and streams that they leave the record.
    let scattered = std::fs::File::create(point.join("scattered")).unwrap();
    for n in 0..400 {
        scattered.write_all_at(&[n as u8; 100], n * 20_480).unwrap();
    }
    std::fs::write(point.join("linked"), "many names").unwrap();
    for n in 0..60 {
        std::fs::hard_link(point.join("linked"), point.join(format!("link {n} {}", "l".repeat(90)))).unwrap();
    }
    for n in 0..30_usize {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(point.join("linked"), format!("user.stream {n}"), &vec![n as u8; n * n * 70], flags)
            .unwrap();
    }
    let packed = point.join("packed");
    compress(&packed);
    for len in [0, 1, 100, 4095, 4096, 4097, 65_535, 65_536, 65_537, 131_072, 400_000] {
        std::fs::write(packed.join(format!("text{len}")), text(len)).unwrap();
        std::fs::write(packed.join(format!("noise{len}")), rig::noise(len)).unwrap();
    }
    std::fs::write(packed.join("zeros"), vec![0; 300_000]).unwrap();
    let mixed = std::fs::File::create(packed.join("mixed")).unwrap();
    for (n, piece) in
        [text(65_536), rig::noise(65_536), vec![0; 65_536], text(30_000)].iter().cycle().take(11).enumerate()
    {
        mixed.write_all_at(piece, n as u64 * 65_536).unwrap();
    }
    let holes = std::fs::File::create(packed.join("holes")).unwrap();
    holes.write_all_at(&text(10_000), 1_000_000).unwrap();
    holes.set_len(2_000_001).unwrap();
    for n in 0..many {
        if n % 3 != 0 {
            let _ = std::fs::remove_file(point.join(format!("many/{n}")));
        }
    }
}

fn walk(folder: &Path) -> Vec<std::fs::DirEntry> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        } else {
            found.push(entry);
        }
    }
    found
}

pub(crate) fn open(image: &Path) -> Ntfs {
    let device = backing::FileBacking::open(image, backing::Open { lock: false, ..backing::Open::READ }).unwrap();
    Ntfs::open(std::sync::Arc::new(device)).unwrap_or_else(|error| panic!("{}: {error:?}", image.display()))
}

/// What both sides know: modes and owners are left out.
pub(crate) fn known(mut manifest: Manifest) -> Manifest {
    for file in manifest.values_mut() {
        file.mode &= 0o170_000;
        file.owner = (0, 0);
        file.xattrs.retain(|name, _| name.starts_with(b"user."));
    }
    manifest
}
