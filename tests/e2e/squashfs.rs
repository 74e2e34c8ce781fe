//! A squashfs and an erofs, which an ordinary user mounts through FUSE and copies out of.

use std::path::Path;

use rig::{User, requires, requires_kernel, run_command};

use crate::session::Session;

/// A tree with times in whole seconds, and an image of it.
const SCRIPT: &str = "set -e; cd $0; mkdir -p tree/a/b tree/many mnt; echo hello > tree/a/hello; ln tree/a/hello tree/second
    ln -s a/hello tree/link; mkfifo tree/fifo; seq 200000 > tree/a/b/numbers; head -c 300000 /dev/urandom > tree/a/random
    truncate -s 3M tree/holes; echo end >> tree/holes; for n in $(seq 700); do echo $n > tree/many/$n; done
    setfattr -n user.comment -v word tree/a/hello; chmod 600 tree/a/hello; chmod 711 tree/a
    find tree -exec touch -h -d @1700000000 {} +";

/// What `find` and `getfattr` say of a tree, and the sums of its files.
const MANIFEST: &str =
    "cd $0; find . \\( -type f -printf '%s ' -o -true \\) -printf '%y %m %U %G %n %T@ %P %l\\n' | sort
    find . -type f -exec sha256sum {} + | sort; getfattr -d a/hello second";

fn same(name: &str, found: &str, wanted: &str) {
    let different = found.lines().zip(wanted.lines()).find(|(found, wanted)| found != wanted);
    assert!(found == wanted, "{name}, found and wanted: {different:?}");
}

#[test]
fn a_squashfs_is_mounted_and_copied_by_an_ordinary_user() {
    requires!("mksquashfs", "fusermount3", "getfattr");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    mounted_and_copied("squashfs", "mksquashfs tree image -comp zstd -quiet -no-progress");
}

#[test]
fn an_erofs_is_mounted_and_copied_by_an_ordinary_user() {
    requires!("mkfs.erofs", "fusermount3", "getfattr");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    mounted_and_copied("erofs", "mkfs.erofs --quiet -zlz4hc -C65536 image tree");
}

/// A tree becomes an image by `make`, in a shell.
fn mounted_and_copied(name: &str, make: &str) {
    let session = Session::new(User::Ordinary, name);
    let shell = |script: &str, folder: &Path| run_command(session.command("sh").args(["-c", script]).arg(folder));
    shell(&format!("{SCRIPT}; {make}"), &session.join(""));
    let (image, point, copy) = (session.join("image"), session.join("mnt"), session.join("copy"));
    session.done([Path::new("mount"), Path::new("--user"), &image, &point]);
    let wanted = shell(MANIFEST, &session.join("tree"));
    assert!(wanted.lines().count() > 1400, "{wanted}");
    same("the mount", &shell(MANIFEST, &point), &wanted);
    session.done([Path::new("umount"), &point]);
    session.done([Path::new("cp"), &image, &copy]);
    same("the copy", &shell(MANIFEST, &copy), &wanted);
    if name == "squashfs" {
        // mkfs.erofs compresses holes as it does zeros.
        let blocks = shell("stat -c %b $0", &copy.join("holes"));
        assert!(blocks.trim().parse::<u64>().unwrap() < 1000, "holes were written: {blocks}");
    }
}
