//! File systems made by their own mkfs, identified by loopbox and by blkid.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::path::Path;

use block::bytes::Bytes;
use loopbox_fs::identify::{Flag, Identity, fuzz, identify};

/// An image of `megabytes` made by a shell line in which `$D` is the image and `$T` a folder with a file.
fn make(line: &str, megabytes: u64) -> (rig::Scratch, Vec<u8>) {
    let scratch = rig::Scratch::new("identify");
    let (disk, tree) = (scratch.join("disk"), scratch.join("tree"));
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("a long name.text"), vec![42; 20_000]).unwrap();
    if megabytes > 0 {
        std::fs::File::create(&disk).unwrap().set_len(megabytes << 20).unwrap();
    }
    let mut shell = rig::User::Myself.command("sh");
    shell.args(["-ec", line]).env("D", &disk).env("T", &tree);
    rig::run_command(&mut shell);
    let bytes = std::fs::read(&disk).unwrap();
    (scratch, bytes)
}

/// What blkid says of an image: the value of a key.
fn blkid(disk: &Path) -> impl Fn(&str) -> String + use<> {
    // `-o export` would encode what is not ASCII. Exit status 2 is "there is none".
    let disk = disk.to_owned();
    move |key| {
        let mut blkid = rig::User::Myself.command("blkid");
        let output = rig::output(blkid.args(["-p", "-o", "value", "-s", key]).arg(&disk));
        String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned()
    }
}

/// Makes an image, and compares with what blkid says of it.
fn same_as_blkid(line: &str, megabytes: u64) -> Identity {
    let (scratch, bytes) = make(line, megabytes);
    let identity = identify(&Bytes(&bytes)).unwrap().unwrap_or_else(|| panic!("nothing found: {line}"));
    let key = blkid(&scratch.join("disk"));
    assert_eq!(identity.name, key("TYPE"), "{line}");
    assert_eq!(identity.label, key("LABEL"), "{line}");
    assert_eq!(identity.uuid, key("UUID"), "{line}");
    if let Some(size) = identity.size_bytes {
        assert!(
            size <= bytes.len() as u64 && (megabytes == 0 || size * 2 > bytes.len() as u64),
            "{line}: {size} of {}",
            bytes.len()
        );
        assert!(identity.used_bytes.is_none_or(|used| used <= size && used > 0), "{line}: {identity:?}");
    }
    identity
}

#[test]
fn ext_is_told_apart_as_blkid_does() {
    rig::requires!("mke2fs", "blkid", "dumpe2fs");
    for (name, options) in [
        ("ext2", "-t ext2 -b 1024"),
        ("ext3", "-t ext3"),
        ("ext4", "-t ext4"),
        ("ext4", "-t ext4 -O ^has_journal"),
        ("ext4", "-t ext4 -O ^64bit,^metadata_csum,inline_data -b 4096"),
        ("ext4", "-t ext2 -O extents"),
        ("jbd", "-O journal_dev -b 4096"),
    ] {
        let identity = same_as_blkid(&format!("mke2fs -q -F {options} -L 'my label' $D"), 8);
        assert_eq!(identity.name, name);
        assert_eq!(identity.size_bytes, Some(8 << 20));
        assert_eq!(identity.flags.is_empty(), name != "jbd", "{identity:?}");
    }
    let (scratch, mut bytes) = make("mke2fs -q -F -t ext4 $D", 8);
    let shown = rig::run("dumpe2fs", ["-h", scratch.join("disk").to_str().unwrap()]);
    let number = |key: &str| -> u64 {
        let line = shown.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_start_matches(':').trim().parse().unwrap()
    };
    let identity = identify(&Bytes(&bytes)).unwrap().unwrap();
    let used = (number("Block count") - number("Free blocks")) * number("Block size");
    assert_eq!(identity.used_bytes, Some(used));
    bytes[1024 + 0x3a] = 2;
    bytes[1024 + 0x60] |= 4;
    let identity = identify(&Bytes(&bytes)).unwrap().unwrap();
    assert_eq!(identity.flags, [Flag::NeedsRecovery, Flag::Dirty, Flag::Errors]);
}

#[test]
fn fat_exfat_and_ntfs_are_as_blkid_says() {
    rig::requires!("mkfs.vfat", "mkfs.exfat", "mkntfs", "mcopy", "blkid");
    for (version, options, megabytes) in [
        ("FAT12", "-F 12 -n LABEL12", 2),
        ("FAT16", "-F 16 -n 'LABEL 16'", 20),
        ("FAT16", "-F 16 -S 2048 -i abcd0123", 80),
        ("FAT32", "-F 32 -n LABEL32", 40),
        ("FAT32", "-F 32 -s 1 -S 4096 -n L", 300),
    ] {
        let line = format!("mkfs.vfat {options} $D; mcopy -i $D $T/* ::");
        assert_eq!(same_as_blkid(&line, megabytes).version.as_deref(), Some(version), "{line}");
    }
    let fat32 = same_as_blkid("mkfs.vfat -F 32 -s 1 $D; mcopy -i $D $T/* ::", 40);
    assert_eq!(fat32.used_bytes, Some(512 + 40 * 512), "a root directory of one cluster, a file of 20,000 bytes");
    same_as_blkid("mkfs.exfat -L 'Größe 10' $D", 8);
    same_as_blkid("mkfs.exfat -c 64K $D", 64);
    let ntfs = same_as_blkid("mkntfs -q -F -L 'Größe von NTFS' $D", 8);
    assert_eq!((ntfs.version.as_deref(), &ntfs.flags[..]), (Some("3.1"), &[][..]));
    same_as_blkid("mkntfs -q -F -s 4096 $D", 16);
}

#[test]
fn iso9660_and_udf_are_as_blkid_says() {
    rig::requires!("xorriso", "genisoimage", "mkudffs", "blkid");
    assert_eq!(same_as_blkid("genisoimage -quiet -V PLAIN_LABEL -o $D $T", 0).flags, []);
    let rich = same_as_blkid("xorriso -as mkisofs -quiet -J -V 'A Longer Label, of Mine' -o $D $T", 0);
    assert_eq!(rich.flags, [Flag::RockRidge, Flag::Joliet]);
    assert_eq!(same_as_blkid("genisoimage -quiet -R -o $D $T", 0).flags, [Flag::RockRidge]);
    let boot = same_as_blkid("head -c 2048 /dev/zero > $T/b; genisoimage -quiet -R -no-emul-boot -b b -o $D $T", 0);
    assert_eq!(boot.flags, [Flag::RockRidge, Flag::ElTorito]);
    let (_scratch, bridge) = make("genisoimage -quiet -udf -R -o $D $T", 0);
    let bridge = identify(&Bytes(&bridge)).unwrap().unwrap();
    assert_eq!((bridge.name, &bridge.flags[..]), ("iso9660", &[Flag::RockRidge, Flag::UdfBridge][..]));
    for options in ["", "-b 512 -l 'Größe'", "-b 4096 -l 漢字", "-u 0123456789abcdef -b 2048"] {
        let udf = same_as_blkid(&format!("mkudffs {options} $D"), 16);
        assert!(udf.flags.is_empty() && udf.version.is_some(), "{udf:?}");
    }
}

#[test]
fn file_systems_of_linux_are_as_blkid_says() {
    rig::requires!(
        "mkfs.xfs",
        "mkfs.btrfs",
        "mkfs.f2fs",
        "mkfs.erofs",
        "mksquashfs",
        "mkfs.cramfs",
        "genromfs",
        "blkid"
    );
    for (line, megabytes) in [
        ("mkfs.xfs -q -L my-label $D", 320),
        ("mkfs.btrfs -q -L 'my label' $D", 128),
        ("mkfs.f2fs -q -l Größe $D", 64),
        ("mkfs.erofs -U 6ba7b810-9dad-11d1-80b4-00c04fd430c8 $D $T", 0),
        ("mksquashfs $T $D -quiet -no-progress", 0),
        ("mkfs.cramfs -n label $T $D", 0),
        ("genromfs -d $T -f $D -V label", 0),
    ] {
        let identity = same_as_blkid(line, megabytes);
        assert!(identity.size_bytes.is_some() && identity.flags.is_empty(), "{line}: {identity:?}");
    }
}

#[test]
fn swap_is_as_blkid_says() {
    rig::requires!("mkswap", "blkid");
    for page in ["4096", "16384", "65536"] {
        let swap = same_as_blkid(&format!("mkswap -q -p {page} -L label $D 2>&1"), 4);
        assert_eq!(swap.size_bytes, Some(4 << 20));
    }
}

#[test]
fn nothing_is_found_in_nothing() {
    for bytes in [&[][..], &[0; 100], &[0; 1 << 20], &[0xff; 1 << 18]] {
        assert_eq!(identify(&Bytes(bytes)).unwrap(), None);
    }
}

#[test]
fn twenty_thousand_broken_superblocks_are_survived() {
    rig::requires!("mke2fs", "mkfs.vfat", "mkfs.exfat", "mkntfs", "xorriso", "mkudffs", "mksquashfs", "mkswap");
    let lines = [
        ("mke2fs -q -F $D", 1),
        ("mkfs.vfat $D", 1),
        ("mkfs.vfat -F 32 -s 1 $D", 1),
        ("mkfs.exfat -b 4K $D", 1),
        ("mkntfs -q -F $D", 2),
        ("xorriso -as mkisofs -quiet -J -o $D $T", 0),
        ("mkudffs -b 512 $D", 1),
        ("mksquashfs $T $D -quiet -no-progress", 0),
        ("mkswap -q $D", 1),
    ];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let start = std::time::Instant::now();
    for (line, megabytes) in lines {
        let (_scratch, mut bytes) = make(line, megabytes);
        // Only what is not zero says something: change these, and cut the image now and then.
        let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).take(2000).collect();
        for _ in 0..20_000 / lines.len() {
            let mut changed = Vec::new();
            for _ in 0..=random() % 4 {
                let at = places[random() as usize % places.len()];
                let byte = [0, 0xff, 0x7f, random() as u8][random() as usize % 4];
                changed.push((at, std::mem::replace(&mut bytes[at], byte)));
            }
            let len = if random() % 8 == 0 { random() as usize % bytes.len() } else { bytes.len() };
            fuzz(&bytes[..len]);
            changed.into_iter().rev().for_each(|(at, byte)| bytes[at] = byte);
        }
    }
    assert!(start.elapsed().as_secs() < 60, "{:?} for 20,000 small images", start.elapsed());
}
