//! Trees that mke2fs itself wrote (`-d`), with block sizes that this kernel does not mount too.

use block::Kind;
use loopbox_fs::FileSystem as _;
use loopbox_fs::ext4::{Ext4, Options};
use rig::tree::{Manifest, Sample};
use rig::{Scratch, requires};

use crate::image::{debugfs, device, make, open};

/// The manifest without what mke2fs adds, and without the root's own attributes.
fn without_lost_found(files: &Ext4) -> Manifest {
    let mut manifest = rig::tree::of_file_system(files);
    manifest.remove(&b"lost+found"[..]).unwrap();
    manifest.remove(&b""[..]).unwrap();
    manifest
}

fn compare(options: &str) {
    let scratch = Scratch::new("ext4");
    let folder = scratch.join("folder");
    rig::tree::make(&folder, Sample { many: 400, sparse: options.contains("^extents"), ..Sample::ALL });
    let image = make(&scratch, "image", options, Some(&folder), "96M");
    let files = open(&image);
    let mut wanted = rig::tree::of_folder(&folder);
    wanted.remove(&b""[..]).unwrap();
    rig::tree::assert_same("loopbox", &without_lost_found(&files), "folder", &wanted);
    if options.contains("inline_data") {
        loopbox_fs::testing::conformance::check(&files); // slow: once
    }
}

#[test]
fn trees_of_mke2fs() {
    requires!("mke2fs");
    for options in [
        "-t ext2 -b 1024",
        "-t ext3 -b 2048",
        "-t ext4 -b 4096",
        "-t ext4 -b 8192",
        "-t ext4 -b 65536",
        "-t ext4 -b 65536 -O ^metadata_csum,^extents,^64bit",
        "-t ext4 -O inline_data",
    ] {
        compare(options);
    }
}

#[test]
fn names_as_blkid_has_them() {
    requires!("mke2fs", "blkid");
    let scratch = Scratch::new("ext4");
    for options in [
        "-t ext2",
        "-t ext3",
        "-t ext4",
        "-t ext4 -O ^has_journal",
        "-t ext2 -O extents",
        "-t ext3 -O ^has_journal",
        "-t ext4 -O ^extents,^64bit,^flex_bg,^metadata_csum,^huge_file,^dir_nlink,^extra_isize -L a_label",
    ] {
        let image = make(&scratch, "image", options, None, "16M");
        let files = open(&image);
        let mut blkid = std::process::Command::new(rig::which("blkid").unwrap());
        let name = rig::run_command(blkid.args(["-p", "-o", "value", "-s", "TYPE"]).arg(&image));
        assert_eq!(files.name(), name.trim(), "{options}");
        let mut blkid = std::process::Command::new(rig::which("blkid").unwrap());
        let label = rig::output(blkid.args(["-p", "-o", "value", "-s", "LABEL"]).arg(&image));
        assert_eq!(files.label(), String::from_utf8_lossy(&label.stdout).trim(), "{options}");
    }
}

#[test]
fn what_cannot_be_read_says_so() {
    requires!("mke2fs", "debugfs");
    let scratch = Scratch::new("ext4");
    let folder = scratch.join("folder");
    std::fs::create_dir_all(folder.join("secret")).unwrap();
    std::fs::write(folder.join("file"), "content").unwrap();
    let image = make(&scratch, "image", "-t ext4 -O encrypt", Some(&folder), "16M");
    let files = open(&image);
    let flags = |name: &[u8]| {
        let inode = files.lookup(files.root(), name).unwrap().unwrap();
        let text = debugfs(&image, &format!("stat <{}>\n", inode.0));
        let at = text.find("Flags: 0x").unwrap() + 9;
        let flags = u32::from_str_radix(text[at..].split_whitespace().next().unwrap(), 16).unwrap();
        debugfs(&image, &format!("sif <{}> flags {}\n", inode.0, flags | 0x800));
        inode
    };
    let (secret, file) = (flags(b"secret"), flags(b"file"));
    let files = open(&image);
    let error = files.read(file, &mut [0; 7], 0).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error:?}");
    assert_eq!(files.lookup(secret, b"name").unwrap_err().kind(), Kind::Unsupported);
    assert_eq!(files.stat(file).unwrap().size, 7);

    let journal = make(&scratch, "journal", "-O journal_dev", None, "16M");
    let error = Ext4::open(device(&journal), Options::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error:?}");
}
