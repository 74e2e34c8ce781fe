//! The images that the contests are about.

use std::fs;
use std::path::{Path, PathBuf};

use rig::Scratch;

/// A folder of files, and the same files as images.
pub struct Images {
    /// Holds all of it.
    pub scratch: Scratch,
    /// `big`, 1 GiB, and `many/`, 20,000 files of 0 to 16 KiB in 100 folders.
    pub tree: PathBuf,
    /// ext4, 4 KiB blocks.
    pub ext4: PathBuf,
    /// ISO 9660 with Rock Ridge.
    pub iso: PathBuf,
}

/// How many small files there are.
pub const FILES: usize = 20_000;
/// Bytes of the big file.
pub const BIG_BYTES: u64 = 1 << 30;

impl Images {
    /// Makes them: some seconds, 4 GiB of disk.
    pub fn make() -> Self {
        eprintln!("  (making images)");
        let scratch = Scratch::new("bench");
        let tree = scratch.join("tree");
        fs::create_dir_all(&tree).unwrap();
        let mut seed = 1_u64;
        let mut chunk = vec![0_u8; 1 << 20];
        let mut fill = |buf: &mut [u8]| {
            for word in buf.chunks_mut(8) {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                word.copy_from_slice(&seed.to_le_bytes()[..word.len()]);
            }
        };
        let mut big = fs::File::create(tree.join("big")).unwrap();
        for _ in 0..BIG_BYTES >> 20 {
            fill(&mut chunk);
            std::io::Write::write_all(&mut big, &chunk).unwrap();
        }
        for n in 0..FILES {
            let folder = tree.join(format!("many/{:03}", n / 200));
            if n % 200 == 0 {
                fs::create_dir_all(&folder).unwrap();
            }
            let len = (n * 7919) % 16_384;
            fs::write(folder.join(format!("file-{n:05}.dat")), &chunk[..len]).unwrap();
        }
        let ext4 = scratch.join("bench.ext4");
        rig::run("truncate", ["-s".as_ref(), "1800M".as_ref(), ext4.as_os_str()]);
        rig::run("mkfs.ext4", ["-q".as_ref(), "-F".as_ref(), "-d".as_ref(), tree.as_os_str(), ext4.as_os_str()]);
        let iso = scratch.join("bench.iso");
        rig::run(
            "xorriso",
            [
                "-as".as_ref(),
                "mkisofs".as_ref(),
                "-quiet".as_ref(),
                "-R".as_ref(),
                "-o".as_ref(),
                iso.as_os_str(),
                tree.as_os_str(),
            ],
        );
        Self { scratch, tree, ext4, iso }
    }
}

/// Drops a file's pages, so that the next reader is cold.
pub fn evict(file: &Path) {
    let file = fs::File::open(file).unwrap();
    let _ = file.sync_all();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}
