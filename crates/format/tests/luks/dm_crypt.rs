//! The kernel's dm-crypt in a guest: what loopbox made and wrote it reads, and the other way, to the last byte.

use std::path::PathBuf;

use block::BlockDevice as _;
use loopbox_format::luks::{Create, create};
use rig::guest::Guest;
use rig::{requires, requires_guest};
use sha2::{Digest as _, Sha256};

use crate::volume::{Folder, PASSPHRASE, content, file, open, quick_create, random, read_all};

/// What the kernel and cryptsetup need: the cipher modes, and the sockets by which programs use them.
const MODULES: &[&str] = &[
    "dm-crypt",
    "xts",
    "cbc",
    "essiv",
    "ecb",
    "sha256_generic",
    "serpent_generic",
    "twofish_generic",
    "algif_skcipher",
    "algif_hash",
    "ext4",
    "crc32c_generic",
];

/// `open DISK` and `tell DISK WORD`, by which both scripts say what a volume holds.
const FUNCTIONS: &str = r#"
export DM_DISABLE_UDEV=1; mkdir -p /run/cryptsetup /mnt
open() { cryptsetup open --key-file /key $1 volume || { echo "$1 cannot be opened"; exit 1; }; }
tell() { echo "$1 $2 $(sha256sum </dev/mapper/volume | cut -d' ' -f1)"; }
close() { cryptsetup close volume || exit 2; }
"#;

/// A file system in each volume, with files in it.
const FILL: &str = r#"
fill() {
    mke2fs -q -t ext4 -b 4096 /dev/mapper/volume && mount -t ext4 /dev/mapper/volume /mnt || exit 3
    seq 20000 >/mnt/numbers; mkdir /mnt/a; head -c 700000 /dev/urandom >/mnt/a/random
    umount /mnt || exit 4
}
for disk in $MADE; do open $disk; tell $disk before; fill; tell $disk after; close; done
format() {
    disk=$1; shift
    cryptsetup luksFormat --batch-mode --key-file /key "$@" $disk || { echo "$disk: $* cannot be formatted"; exit 5; }
    open $disk; fill; tell $disk after; close
}
QUICK='--pbkdf-force-iterations 4 --pbkdf-memory 64 --pbkdf-parallel 1'
"#;

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn dm_crypt_and_loopbox_read_what_the_other_wrote() {
    requires!("cryptsetup", "mke2fs", "e2fsck", "debugfs");
    requires_guest!();
    let folder = Folder::new();
    let disk = |n: usize| format!("/dev/vd{}", char::from(b'a' + n as u8));
    let made = [("aes-xts-plain64", 64, 512), ("aes-xts-plain64", 64, 4096), ("aes-cbc-essiv:sha256", 32, 512)];
    let formatted = [
        "--type luks1 --pbkdf-force-iterations 1000",
        "--type luks2 --sector-size 512 $QUICK",
        "--type luks2 --sector-size 4096 $QUICK",
        "--type luks2 --cipher serpent-xts-plain64 --pbkdf pbkdf2 --pbkdf-force-iterations 1000",
        "--type luks2 --cipher twofish-cbc-essiv:sha256 --key-size 256 --sector-size 1024 $QUICK",
    ];
    let mut script = String::from(FUNCTIONS);
    let mut guest = Guest::new().program("cryptsetup").program("mke2fs").file(&folder.key, "/key");
    for module in MODULES {
        guest = guest.module(module);
    }
    guest = guest.patience(std::time::Duration::from_secs(400));
    let volumes: Vec<PathBuf> = (0..made.len() + formatted.len()).map(|n| folder.join(&format!("volume{n}"))).collect();
    for volume in &volumes {
        std::fs::File::create(volume).unwrap().set_len(22 << 20).unwrap();
        guest = guest.disk(volume);
    }
    let plain = content(6 << 20, 21);
    for ((cipher, key_bytes, sector_bytes), volume) in made.iter().zip(&volumes) {
        let wanted = Create {
            cipher: (*cipher).to_owned(),
            key_bytes: *key_bytes,
            sector_bytes: *sector_bytes,
            ..quick_create()
        };
        create(&file(volume), &wanted, PASSPHRASE, &random).unwrap();
        open(volume, PASSPHRASE).unwrap().write_at(&plain, 0).unwrap();
    }
    let names: Vec<String> = (0..volumes.len()).map(disk).collect();
    script += &format!("MADE='{}'\n{FILL}", names[..made.len()].join(" "));
    for (name, words) in names[made.len()..].iter().zip(&formatted) {
        script += &format!("format {name} {words}\n");
    }
    let done = guest.clone().run(&script);
    assert_eq!(done.status, 0, "{done}");
    for (n, (name, volume)) in names.iter().zip(&volumes).enumerate() {
        if n < made.len() {
            let before = format!("{name} before {}\n", sum(&plain));
            assert!(done.output.contains(&before), "dm-crypt reads other bytes than loopbox wrote: {done}");
        }
        let device = open(volume, PASSPHRASE).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let mut bytes = read_all(&device);
        let after = format!("{name} after {}\n", sum(&bytes));
        assert!(done.output.contains(&after), "{name}: loopbox reads other bytes than dm-crypt: {done}");
        // What the kernel's ext4 wrote through dm-crypt.
        let image = folder.join("plain");
        std::fs::write(&image, &bytes).unwrap();
        let image = image.to_str().unwrap();
        rig::run("e2fsck", ["-fn", image]);
        let numbers: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
        assert!(rig::run("debugfs", ["-R", "cat numbers", image]).contains(&numbers), "{name}");
        // And the other way: odd pieces, written over it.
        for (at, len) in [(0, 512), (1000, 3), (70_001, 300_000), (bytes.len() - 5000, 5000)] {
            let written = content(len, (n + at) as u64);
            device.write_at(&written, at as u64).unwrap();
            bytes[at..at + len].copy_from_slice(&written);
        }
        device.flush().unwrap();
        std::fs::write(folder.join(&format!("sum{n}")), sum(&bytes)).unwrap();
    }
    let script = format!("{FUNCTIONS}for disk in {}; do open $disk; tell $disk again; close; done", names.join(" "));
    let done = guest.run(&script);
    assert_eq!(done.status, 0, "{done}");
    for (n, name) in names.iter().enumerate() {
        let sum = std::fs::read_to_string(folder.join(&format!("sum{n}"))).unwrap();
        assert!(done.output.contains(&format!("{name} again {sum}\n")), "{name}: {done}");
    }
}
