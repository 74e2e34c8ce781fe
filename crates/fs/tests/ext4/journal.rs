//! Journals that were left behind: replayed in memory here, and by the kernel on a copy.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use block::Kind;
use loopbox_fs::ext4::{Corrupt, Ext4, Options, Replay};
use loopbox_fs::{FileSystem as _, Inode};
use rig::{Scratch, requires, requires_kernel, requires_root};

use crate::image::{Mount, debugfs, device, make, open};

/// Makes a file system, works on it in three syncs, and copies the image while the kernel has it mounted: as a power
/// cut would leave it. Then the kernel replays one copy, and loopbox another.
fn crash(name: &str, options: &str, mount: &str) {
    let scratch = Scratch::new("ext4-journal");
    let image = make(&scratch, "image", options, None, "32M");
    let Some(mounted) = Mount::try_new(&image, mount) else {
        return rig::skip(name, &format!("this kernel does not mount ext4 with {options} and {mount}"));
    };
    let folder = &mounted.0;
    let sync = || rustix::fs::syncfs(File::open(folder).unwrap()).unwrap();
    fs::create_dir(folder.join("first")).unwrap();
    for n in 0..200 {
        fs::write(folder.join(format!("first/{n}")), format!("{n}").repeat(n)).unwrap();
    }
    sync();
    // Blocks of directories that are gone, and come back as content: revoked.
    fs::create_dir(folder.join("second")).unwrap();
    for n in 0..100 {
        fs::create_dir(folder.join(format!("second/{n}"))).unwrap();
    }
    sync();
    fs::remove_dir_all(folder.join("second")).unwrap();
    // Content that looks like the journal's own blocks: escaped where the journal has content.
    let magic = [&[0xC0, 0x3B, 0x39, 0x98][..], &[7; 8188]].concat();
    fs::write(folder.join("magic"), &magic).unwrap();
    fs::write(folder.join("large"), vec![0xAB; 2 << 20]).unwrap();
    sync();
    fs::rename(folder.join("first/7"), folder.join("renamed")).unwrap();
    fs::remove_file(folder.join("first/8")).unwrap();
    std::os::unix::fs::symlink("x".repeat(100), folder.join("link")).unwrap();
    sync();
    let (copy, other) = (scratch.join("copy"), scratch.join("other"));
    fs::copy(&image, &copy).unwrap();
    fs::copy(&image, &other).unwrap();
    drop(mounted);
    let before = fs::read(&copy).unwrap();
    let files = open(&copy);
    let ours = rig::tree::of_file_system(&files);
    let details = crate::kernel::details_of_file_system(&files);
    assert!(ours.contains_key(&b"renamed"[..]) && !ours.contains_key(&b"first/8"[..]), "{options}: not replayed");
    assert!(fs::read(&copy).unwrap() == before, "{options}: the image changed");
    drop(Mount::new(&other, "rw")); // replays
    let mounted = Mount::new(&other, "ro");
    let kernels = crate::kernel::details_of_folder(&mounted.0);
    rig::tree::assert_same("loopbox", &ours, "kernel", &rig::tree::of_folder(&mounted.0));
    assert_eq!(details, kernels, "{options}");
}

macro_rules! crashes {
    ($($name:ident: $options:literal, $mount:literal;)*) => {$(
        #[test]
        fn $name() {
            requires_root!();
            requires!("mke2fs");
            requires_kernel!(rig::have_filesystem("ext4"), "the file system ext4");
            crash(rig::test_name!(), $options, $mount);
        }
    )*};
}
crashes! {
    checksums_v3: "-t ext4", "rw";
    without_checksums: "-t ext4 -O ^metadata_csum", "rw";
    checksums_v1: "-t ext4 -O ^metadata_csum", "rw,journal_checksum";
    asynchronous_commits: "-t ext4", "rw,journal_async_commit";
    of_ext3: "-t ext3 -b 1024", "rw";
    with_content_in_it: "-t ext4 -b 1024", "rw,data=journal";
    wrapped: "-t ext4 -b 1024 -J size=1", "rw,data=journal";
    of_32_bits: "-t ext4 -O ^64bit", "rw";
}

/// Fast commits: a file is synced on its own after the last full transaction.
#[test]
fn fast_commits() {
    requires_root!();
    requires!("mke2fs");
    requires_kernel!(rig::have_filesystem("ext4"), "the file system ext4");
    let scratch = Scratch::new("ext4-journal");
    let image = make(&scratch, "image", "-t ext4 -O fast_commit", None, "32M");
    let mounted = Mount::new(&image, "rw,commit=300");
    let folder = &mounted.0;
    fs::create_dir(folder.join("directory")).unwrap();
    fs::write(folder.join("directory/gone"), "gone").unwrap();
    fs::write(folder.join("directory/grown"), "short").unwrap();
    fs::write(folder.join("directory/cut"), vec![3; 100_000]).unwrap();
    rustix::fs::syncfs(File::open(folder).unwrap()).unwrap();
    let sync = |path: &Path| File::options().write(true).open(path).unwrap().sync_all().unwrap();
    // Each of these ends with a fast commit.
    let file = File::options().write(true).open(folder.join("directory/grown")).unwrap();
    file.write_all_at(&[5; 20_000], 3).unwrap();
    file.sync_all().unwrap();
    drop(file);
    fs::write(folder.join("directory/new"), vec![9; 9999]).unwrap();
    sync(&folder.join("directory/new"));
    fs::hard_link(folder.join("directory/new"), folder.join("directory/linked")).unwrap();
    fs::remove_file(folder.join("directory/gone")).unwrap();
    sync(&folder.join("directory/new"));
    let file = File::options().write(true).open(folder.join("directory/cut")).unwrap();
    file.set_len(5000).unwrap();
    file.sync_all().unwrap();
    fs::create_dir(folder.join("directory/made")).unwrap();
    fs::write(folder.join("directory/made/inside"), "inside").unwrap();
    sync(&folder.join("directory/made/inside"));
    let copy = scratch.join("copy");
    fs::copy(&image, &copy).unwrap();
    let other = scratch.join("other");
    fs::copy(&image, &other).unwrap();
    let truth = rig::tree::of_folder(folder);
    drop(file);
    drop(mounted);
    let files = open(&copy);
    let ours = rig::tree::of_file_system(&files);
    // Directories themselves are not in a fast commit: their times are those of the last full transaction.
    let contents = |manifest: &rig::tree::Manifest| -> rig::tree::Manifest {
        manifest.clone().into_iter().filter(|(_, file)| file.sha256.is_some()).collect()
    };
    rig::tree::assert_same("loopbox", &contents(&ours), "before the crash", &contents(&truth));
    assert_eq!(ours.keys().collect::<Vec<_>>(), truth.keys().collect::<Vec<_>>());
    loopbox_fs::testing::conformance::check(&files);
    drop(Mount::new(&other, "rw"));
    let mounted = Mount::new(&other, "ro");
    rig::tree::assert_same("loopbox", &contents(&ours), "kernel", &contents(&rig::tree::of_folder(&mounted.0)));
    let ignoring = Options { journal: Replay::Ignore, ..Options::default() };
    let stale = rig::tree::of_file_system(&Ext4::open(device(&copy), ignoring).unwrap());
    assert_ne!(contents(&stale), contents(&ours), "nothing was in the fast commits: the test shows nothing");
}

/// A journal that debugfs wrote, block by block, with a revocation.
#[test]
fn written_by_debugfs() {
    requires!("mke2fs", "debugfs");
    let scratch = Scratch::new("ext4-journal");
    let image = make(&scratch, "image", "-t ext4 -b 1024", None, "16M");
    let (block, content) = (5000, scratch.join("content"));
    for (byte, revoke) in [(0x11_u8, false), (0xC0, false), (0x22, true)] {
        let mut bytes = vec![byte; 1024];
        if byte == 0xC0 {
            bytes[..4].copy_from_slice(&[0xC0, 0x3B, 0x39, 0x98]);
        }
        fs::write(&content, bytes).unwrap();
        let revocation = if revoke { format!("jw -r {block}\n") } else { String::new() };
        debugfs(&image, &format!("jo\njw -b {block} {}\n{revocation}jc\n", content.display()));
        // Read through a file that has the block.
        let name = format!("f{byte}");
        debugfs(
            &image,
            &format!(
                "setb {block}\nwrite /dev/null {name}\nsif {name} flags 0\nsif {name} size 1024\n\
                 sif {name} block[0] {block}\n"
            ),
        );
        let files = open(&image);
        let inode = files.lookup(Inode(2), name.as_bytes()).unwrap().unwrap();
        let mut read = [0; 1024];
        files.read(inode, &mut read, 0).unwrap();
        // e2fsck replays a copy.
        let copy = scratch.join("copy");
        fs::copy(&image, &copy).unwrap();
        rig::output(Command::new(rig::which("e2fsck").unwrap()).args(["-y", "-E", "journal_only"]).arg(&copy));
        let replayed = fs::read(&copy).unwrap();
        assert!(replayed[block * 1024..][..1024] == read, "after {byte:#x}: {:?}", &read[..8]);
        assert_eq!(read[1023], if revoke { 0 } else { byte }, "after {byte:#x}");
    }
}

/// Fails when a journal's checksums are wrong, as the kernel does, and says which.
#[test]
fn a_broken_journal_says_so() {
    requires!("mke2fs", "debugfs");
    let scratch = Scratch::new("ext4-journal");
    let image = make(&scratch, "image", "-t ext4 -b 1024", None, "16M");
    let content = scratch.join("content");
    fs::write(&content, vec![0x5A; 1024]).unwrap();
    debugfs(&image, &format!("jo -c\njw -b 5000 {}\njc\n", content.display()));
    open(&image);
    let mut bytes = fs::read(&image).unwrap();
    let at = bytes.chunks(1024).position(|block| block == [0x5A; 1024]).unwrap() * 1024;
    bytes[at + 500] ^= 1;
    fs::write(&image, bytes).unwrap();
    let error = Ext4::open(device(&image), Options::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let corrupt = error.find::<Corrupt>();
    assert!(matches!(corrupt, Some(Corrupt::JournalDataChecksum { block: 5000, .. })), "{error:?}");
}

#[test]
fn a_journal_on_another_device_is_asked_for() {
    requires!("mke2fs", "debugfs");
    let scratch = Scratch::new("ext4-journal");
    let image = make(&scratch, "image", "-t ext4", None, "16M");
    debugfs(&image, "ssv journal_inum 0\nssv journal_dev 0x700\nfeature needs_recovery\n");
    let error = Ext4::open(device(&image), Options::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error:?}");
    assert!(error.to_string().contains("journal"), "{error:?}");
    let ignoring = Options { journal: Replay::Ignore, ..Options::default() };
    Ext4::open(device(&image), ignoring).unwrap();
    let mut e2fsck = Command::new(rig::which("e2fsck").unwrap());
    assert!(!rig::output(e2fsck.arg("-fn").arg(&image)).status.success(), "e2fsck wants the device too");
}
