//! Images that lie.

use std::ops::ControlFlow;
use std::sync::Arc;

use block::Kind;
use fs::iso9660::{Corrupt, Iso9660, Options, Tree};
use fs::testing::model::Random;
use fs::testing::mutate::{self, mutations, spoil};
use fs::{Cursor, FileSystem, FileType};
use rig::memory::bounded;
use rig::{Scratch, requires};

use crate::device::{Counted, Memory};
use crate::peers::{genisoimage, xorriso};

/// How many files of each are looked at: one that holds itself is endless.
const FILES_MAX: usize = 200;
/// What one image may make a reader read, bytes: many times the image.
const READ_BYTES_MAX: u64 = 64 << 20;

/// Bytes are changed where directories, descriptors and system use entries are, and the whole tree is read: errors, but
/// no panic, no endless loop, and no reading without end.
#[test]
fn spoiled_images_are_errors_at_worst() {
    requires!("xorriso", "genisoimage", "mkzftree");
    let scratch = Scratch::new("iso");
    for (kind, image) in images(&scratch).into_iter().enumerate() {
        let interesting = interesting(&image);
        let what = format!("image {kind}");
        mutations(
            &what,
            &image,
            mutate::count(250),
            |random, bytes| {
                let at = interesting[random.index(interesting.len())];
                spoil(random, &mut bytes[at]);
            },
            |number, mut bytes| {
                if number % 50 == 0 {
                    bytes.truncate(Random::new(number).index(bytes.len()));
                }
                bounded(|| walk(bytes, &format!("{what}, mutation {number}")))
            },
        );
    }
}

/// Small images with every structure in them.
fn images(scratch: &Scratch) -> Vec<Vec<u8>> {
    let folder = scratch.join("tree");
    let deep = folder.join("1/2/3/4/5/6/7/8/9");
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("deep"), "deep").unwrap();
    std::fs::write(folder.join("l".repeat(240)), "long name").unwrap();
    std::fs::write(folder.join("zeros"), vec![0; 100_000]).unwrap();
    std::fs::write(folder.join("text"), "compress me ".repeat(9000)).unwrap();
    std::os::unix::fs::symlink(format!("{}/..//x", "component/".repeat(40)), folder.join("link")).unwrap();
    for n in 0..40 {
        std::fs::write(folder.join(format!("1/a file of many {n}")), "x").unwrap();
    }
    let attribute = |name: &str, value: &[u8]| {
        let _ = rustix::fs::setxattr(folder.join("text"), name, value, rustix::fs::XattrFlags::empty());
    };
    attribute("user.one", b"1");
    attribute("user.two", &[b'2'; 700]);
    let packed = scratch.join("packed");
    rig::run("mkzftree", [&folder, &packed]);
    let image = |name: &str| scratch.join(name);
    genisoimage(&["-R", "-J", "-z", "-l"], &packed, &image("0"));
    xorriso(&["-xattr", "on", "-hardlinks", "on"], &folder, &image("1"));
    let (from, to) = (folder.to_str().unwrap().to_owned(), image("2").to_str().unwrap().to_owned());
    let filter = ["-zisofs", "version_2=on", "-map", &from, "/", "-set_filter_r", "--zisofs", "/"];
    rig::run("xorriso", [&["-no_rc", "-outdev", &to, "-joliet", "on"][..], &filter].concat());
    genisoimage(&["-iso-level", "4"], &folder, &image("3"));
    (0..4)
        .map(|n| {
            let mut bytes = std::fs::read(image(&n.to_string())).unwrap();
            // The writers pad to a size for drives; nothing is there.
            let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            bytes.truncate(end.next_multiple_of(2048));
            bytes
        })
        .collect()
}

/// Positions of bytes that mean something: not those of runs of zeros or of one letter, and not the system area.
fn interesting(image: &[u8]) -> Vec<usize> {
    (16 * 2048..image.len() - 2).filter(|at| image[*at] != image[at - 1] || image[*at] != image[at + 1]).collect()
}

/// Looks at everything in an image, and says whether it could be opened.
fn walk(image: Vec<u8>, what: &str) -> bool {
    let device = Arc::new(Counted::new(Memory(image)));
    let mut any = false;
    for tree in [Tree::Best, Tree::Joliet, Tree::Plain] {
        let Ok(iso) = Iso9660::open(device.clone(), Options { tree, session_sector: 0 }) else { continue };
        any = true;
        let _ = iso.boot_entries();
        let mut open = vec![iso.root()];
        let mut seen = 0;
        while let Some(inode) = open.pop() {
            seen += 1;
            if seen > FILES_MAX {
                break;
            }
            let found = open.len();
            let _ = iso.read_dir(inode, Cursor::START, &mut |entry| {
                assert!(!entry.name.is_empty() && entry.name.len() <= 255, "{what}");
                assert!(!entry.name.iter().any(|byte| matches!(byte, 0 | b'/')), "{what}");
                open.push(entry.inode);
                if open.len() - found > FILES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            let _ = iso.lookup(inode, b"a file of many 7");
            let _ = iso.xattrs(inode);
            let Ok(stat) = iso.stat(inode) else { continue };
            match stat.file_type {
                FileType::SymbolicLink => {
                    let _ = iso.read_link(inode);
                }
                FileType::Regular => {
                    let mut buf = [0; 5000];
                    for offset in [0, 40_000, stat.size.saturating_sub(100), stat.size] {
                        if let Ok(read) = iso.read(inode, &mut buf, offset) {
                            assert!(read as u64 <= stat.size.saturating_sub(offset), "{what}");
                        }
                        let _ = iso.extent_at(inode, offset);
                    }
                }
                _ => {}
            }
        }
    }
    assert!(device.bytes() < READ_BYTES_MAX, "{what}: {} bytes were read", device.bytes());
    any
}

#[test]
fn what_is_no_image_is_told_apart() {
    let open = |bytes: Vec<u8>| Iso9660::open(Arc::new(Memory(bytes)), Options::default()).unwrap_err();
    for len in [0, 1, 32_768, 32_769, 40_000] {
        assert_eq!(open(vec![0; len]).find::<Corrupt>(), Some(&Corrupt::NoPrimaryVolume), "{len} bytes");
        assert!(!Iso9660::is_on(&Memory(vec![0; len])).unwrap());
        assert_eq!(fs::open(Arc::new(Memory(vec![0; len]))).unwrap_err().kind(), Kind::Unsupported);
    }
    let mut high_sierra = vec![0; 40_000];
    high_sierra[32_768 + 9..][..5].copy_from_slice(b"CDROM");
    assert_eq!(open(high_sierra).kind(), Kind::Unsupported);
    let mut blocks = vec![0; 40_000];
    blocks[32_768..][..7].copy_from_slice(b"\x01CD001\x01");
    blocks[32_768 + 128..][..2].copy_from_slice(&4096_u16.to_le_bytes());
    assert_eq!(open(blocks.clone()).find::<Corrupt>(), Some(&Corrupt::BlockSize));
    blocks[32_768 + 128..][..2].copy_from_slice(&2048_u16.to_le_bytes());
    assert_eq!(open(blocks).find::<Corrupt>(), Some(&Corrupt::Record));
}
