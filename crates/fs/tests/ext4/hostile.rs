//! Broken images: an error, or some tree; never a panic, a hang, or more memory than the limits allow.

use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::{Extent, Limits, ReadAt, Result, Source, check_range};
use loopbox_fs::ext4::{Ext4, Options};
use loopbox_fs::{Cursor, FileSystem, FileType};
use rig::{Scratch, requires};

use crate::image::{debugfs, make};

/// How many mutations of each image; `LOOPBOX_MUTATIONS` says otherwise.
const MUTATIONS: u64 = 250;
/// How long the whole of a broken image may take.
const TIME_MAX: Duration = Duration::from_secs(5);

/// An image with some bytes changed.
#[derive(Debug)]
struct Mutated {
    image: Arc<Vec<u8>>,
    changes: Vec<(u64, u8)>,
}

impl ReadAt for Mutated {
    fn size(&self) -> u64 {
        self.image.len() as u64
    }
    fn limits(&self) -> Limits {
        Limits { read_only: true, ..Limits::PLAIN }
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.size(), offset, buf.len() as u64)?;
        buf.copy_from_slice(&self.image[offset as usize..][..buf.len()]);
        for (at, byte) in &self.changes {
            if let Some(place) = at.checked_sub(offset).and_then(|at| buf.get_mut(at as usize)) {
                *place = *byte;
            }
        }
        Ok(())
    }
    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.size(), offset, 1)?;
        Ok(Extent { len: self.size() - offset, source: Source::Data })
    }
}

/// Uses everything that can be reached, within bounds that a caller would have.
fn use_all(files: &dyn FileSystem) -> usize {
    let mut open = vec![(files.root(), 0)];
    let mut used = 0;
    let _ = files.space();
    while let Some((inode, depth)) = open.pop() {
        used += 1;
        if used > 300 {
            break;
        }
        for name in files.xattrs(inode).unwrap_or_default() {
            let _ = files.xattr(inode, &name);
        }
        match files.stat(inode).map(|stat| stat.file_type) {
            Ok(FileType::Directory) if depth < 10 => {
                let mut names = Vec::new();
                let mut visit = |entry: loopbox_fs::Entry<'_>| {
                    names.push((entry.name.to_vec(), entry.inode));
                    if names.len() < 200 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                };
                let _ = files.read_dir(inode, Cursor::START, &mut visit);
                for (name, child) in names {
                    let _ = files.lookup(inode, &name);
                    let _ = files.lookup(inode, b"absent");
                    open.push((child, depth + 1));
                }
            }
            Ok(FileType::Regular) => {
                let mut buf = [0; 4096];
                for offset in [0, 100_000, 1 << 33] {
                    let _ = files.read(inode, &mut buf, offset);
                }
                let mut at = 0;
                for _ in 0..50 {
                    let Ok(Some(extent)) = files.extent_at(inode, at) else { break };
                    at += extent.len;
                }
            }
            Ok(FileType::SymbolicLink) => drop(files.read_link(inode)),
            _ => {}
        }
    }
    used
}

fn fill(folder: &Path) {
    std::fs::create_dir_all(folder.join("many")).unwrap();
    for n in 0..120 {
        std::fs::write(folder.join(format!("many/{n}-{}", "n".repeat(n % 90))), vec![n as u8; n * 3]).unwrap();
    }
    std::fs::create_dir_all(folder.join("a/b/c")).unwrap();
    symlink("a/b/c", folder.join("short")).unwrap();
    symlink("long/".repeat(40), folder.join("long")).unwrap();
    let file = std::fs::File::create(folder.join("sparse")).unwrap();
    for n in 0..60 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", n * 3000).unwrap();
    }
    let flags = rustix::fs::XattrFlags::empty();
    for (name, bytes) in [("user.a", 10), ("user.b", 300), ("user.c", 150)] {
        rustix::fs::setxattr(folder.join("sparse"), name, &vec![1; bytes], flags).unwrap();
        rustix::fs::setxattr(folder.join("a"), name, &vec![1; bytes], flags).unwrap();
    }
}

fn mutate(options: &str, journal: bool) {
    let scratch = Scratch::new("ext4-hostile");
    fill(&scratch.join("folder"));
    let path = make(&scratch, "image", options, Some(&scratch.join("folder")), "8M");
    // Gives large directories their hash trees.
    rig::output(std::process::Command::new(rig::which("e2fsck").unwrap()).args(["-fyD"]).arg(&path));
    if journal {
        // The inode table's blocks once more, so that what is replayed matters, and a revocation.
        let image = std::fs::read(&path).unwrap();
        let content = scratch.join("content");
        std::fs::write(&content, &image[1024..3 * 1024]).unwrap();
        debugfs(&path, &format!("jo\njw -b 1,2 {}\njw -r 3000,3001\njc\n", content.display()));
    }
    let image = Arc::new(std::fs::read(&path).unwrap());
    let places: Vec<usize> = (0..image.len()).filter(|at| image[*at] != 0).collect();
    let mut seed = 0x0005_DEEC_E66D_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let options_of_reader = Options { verify: false, ..Options::default() };
    let sound = Mutated { image: Arc::clone(&image), changes: Vec::new() };
    assert!(use_all(&Ext4::open(Arc::new(sound), options_of_reader).unwrap()) > 120);
    let count = std::env::var("LOOPBOX_MUTATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(MUTATIONS);
    let mut opened = 0;
    for number in 0..count {
        let changes: Vec<(u64, u8)> = (0..1 + random(3))
            .map(|_| {
                let near = places[random(places.len())] + random(4);
                let byte = match random(4) {
                    0 => 0,
                    1 => 0xFF,
                    2 => image[near.min(image.len() - 1)] ^ (1 << random(8)),
                    _ => random(256) as u8,
                };
                (near as u64, byte)
            })
            .collect();
        let start = Instant::now();
        let device = Mutated { image: Arc::clone(&image), changes: changes.clone() };
        if let Ok(files) = Ext4::open(Arc::new(device), options_of_reader) {
            opened += 1;
            use_all(&files);
        }
        assert!(start.elapsed() < TIME_MAX, "{options}: mutation {number}, {changes:?}: {:?}", start.elapsed());
    }
    assert!(opened > count / 2, "{options}: of {count} mutations only {opened} opened: they do not go deep");
}

#[test]
fn mutations_of_ext2() {
    requires!("mke2fs", "debugfs", "e2fsck");
    mutate("-t ext2 -b 1024 -N 256", false);
}

#[test]
fn mutations_of_ext4_with_inline_data() {
    requires!("mke2fs", "debugfs", "e2fsck");
    mutate("-t ext4 -b 1024 -N 256 -O inline_data,^has_journal", false);
}

#[test]
fn mutations_of_ext4_with_a_journal() {
    requires!("mke2fs", "debugfs", "e2fsck");
    mutate("-t ext4 -b 1024 -N 256 -J size=1", true);
    mutate("-t ext4 -b 1024 -N 256 -J size=1 -O ^metadata_csum,^64bit", true);
}
