//! The kernel of a guest as the oracle: what loopbox wrote is read and changed by its vfat and exfat, and read again.

use loopbox_fs::{FileSystem as _, FileType, Writable as _};
use rig::guest::{Guest, tree};
use rig::{Scratch, requires, requires_guest};

use crate::image::{KINDS, NOW, copy, fill, open, open_writable};

/// What the guest does: tells what is there, makes, changes and takes away files, and tells again.
const SCRIPT: &str = r#"
change() {
    mkdir -p kernel/deep/er; head -c 300000 /dev/urandom > kernel/large; : > kernel/empty
    for n in 1 2 3 4 5 6 7 8 9; do for m in 1 2 3 4 5 6 7 8 9 0; do echo $n$m > "kernel/a name that is long $n$m"; done; done
    rm kernel/*1?; for n in 1 2 3 4 5; do echo $n > kernel/deep/SHORT$n.TXT; echo $n > kernel/deep/Mixed$n.txt; done
    echo x > 'kernel/ünïcödé 日本語 🦀'; echo y > "kernel/$(printf 'é%.0s' 1 2 3 4 5 6 7 8 9)"
    for n in 1 2 3 4 5; do head -c 9000 /dev/urandom >> kernel/grown; head -c 5000 /dev/urandom >> sizes/4097; done
    : > sizes/65537; rm sizes/1100003; rm -r deep1; mv names kernel/moved; mv empty/ kernel/deep/; mv sizes/0 sizes/zero
    touch -d '2001-02-03 04:05:06' kernel/large
}
set -e; mkdir -p /mnt; number=0
for disk in $DISKS; do
    number=$((number + 1)); options=utf8,tz=UTC,shortname=mixed; kind=vfat
    if [ $number = 4 ]; then options=iocharset=utf8; kind=exfat; fi
    mount -t $kind -o $options $disk /mnt; cd /mnt; tell before$number; change; tell after$number; cd /; umount /mnt
done
sync
"#;

/// What both sides know of a line: path, type, and of regular files bytes and time, which is even.
fn known(line: &str) -> Option<String> {
    let fields: Vec<&str> = line.split('|').collect();
    match fields[..] {
        [path, mode, _, _, size, _, _, _, time] if mode.starts_with('8') => {
            Some(format!("{path}|{size}|{}", time.parse::<i64>().unwrap() & !1))
        }
        [path, ..] if fields.len() == 9 => (path != ".").then(|| format!("{path}|directory")),
        _ => Some(line.to_owned()),
    }
}

#[test]
fn the_kernel_reads_and_changes_what_loopbox_wrote() {
    requires!("mkfs.fat", "mkfs.exfat", "fsck.fat", "fsck.exfat");
    requires_guest!();
    let scratch = Scratch::new("fat-guest");
    fill(&scratch.join("folder"), 100);
    let mut guest = Guest::new().module("vfat").module("exfat");
    for module in ["nls_cp437", "nls_ascii", "nls_utf8", "nls_iso8859-1"] {
        guest = guest.module(module);
    }
    let (mut disks, mut before) = (Vec::new(), Vec::new());
    for (number, kind) in KINDS.iter().enumerate() {
        let image = kind.make(&scratch);
        let fat = open_writable(&image);
        copy(&fat, &scratch.join("folder"), fat.root());
        // Names and clusters that are used again.
        let root = fat.root();
        let file = fat.create(root, b"A name to be renamed.txt", FileType::Regular, NOW).unwrap();
        fat.write(file, &rig::noise(70_000), 5, NOW).unwrap();
        let many = fat.create(root, b"made of pieces", FileType::Directory, NOW).unwrap();
        for n in 0..200 {
            fat.create(many, format!("piece number {n} of them").as_bytes(), FileType::Regular, NOW).unwrap();
        }
        for n in (0..200).step_by(3) {
            fat.remove(many, format!("piece number {n} of them").as_bytes(), false, NOW).unwrap();
        }
        let renamed = (many, "umbenannt ß 🦀".as_bytes());
        fat.rename((root, b"A name to be renamed.txt"), renamed, false, NOW).unwrap();
        fat.close().unwrap();
        drop(fat);
        before.push(tree::tell(&open(&image)));
        guest = guest.disk(&image);
        disks.push(format!("/dev/vd{}", char::from(b'a' + number as u8)));
    }
    let done = guest.run(&format!("DISKS='{}'\n{}{SCRIPT}", disks.join(" "), tree::FUNCTIONS));
    assert_eq!(done.status, 0, "{done}");
    for (number, (kind, before)) in KINDS.iter().zip(before).enumerate() {
        let image = scratch.join(format!("{}.img", kind.name));
        for (word, ours) in [("before", before), ("after", tree::tell(&open(&image)))] {
            let theirs = tree::told(&done.output, &format!("{word}{}", number + 1));
            let sorted = |mut lines: Vec<String>| {
                lines.sort_unstable();
                lines
            };
            let theirs = sorted(theirs.iter().filter_map(|line| known(line)).collect());
            let ours = sorted(ours.iter().filter_map(|line| known(line)).collect());
            assert!(theirs.len() > 400, "{}, {word}: {}", kind.name, theirs.len());
            if let Some(difference) = tree::difference(&ours, &theirs) {
                panic!("{}, {word}: {difference}", kind.name);
            }
        }
        kind.assert_clean(&image);
        loopbox_fs::testing::conformance::check(&open(&image));
    }
}
