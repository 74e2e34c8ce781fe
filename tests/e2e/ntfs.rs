//! An NTFS volume that ntfscp filled, without privilege all along.

use std::path::Path;

use rig::{User, requires, requires_kernel};

use crate::session::Session;

/// A volume with a file of one run, one that stands in its record, and a stream.
fn volume(name: &str) -> Session {
    let session = Session::new(User::Ordinary, name);
    let script =
        "mkdir mnt; truncate -s 8M disk.img; mkntfs -qF -L Labél disk.img; seq 100000 > numbers; echo small > small
        ntfscp -f disk.img numbers numbers; ntfscp -f disk.img small small; ntfscp -f -N note disk.img small small";
    session.shell(script);
    session
}

#[test]
fn it_is_looked_into() {
    requires!("mkntfs", "ntfscp", "getfattr");
    let session = volume("ntfs");
    let disk = session.join("disk.img").display().to_string();
    let inside = |path: &str| format!("{disk}:{path}");
    assert_eq!(session.done(["ls", &inside("/")]), "numbers\nsmall\n");
    let numbers = std::fs::read_to_string(session.join("numbers")).unwrap();
    assert_eq!(session.done(["cat", &inside("/numbers")]), numbers);
    let copy = session.join("copy").display().to_string();
    session.done(["cp", &inside("/small"), &copy]);
    assert_eq!(session.shell("cat copy; getfattr --only-values -n user.note copy"), "small\nsmall\n");
    let info = session.done(["info", &disk]);
    assert!(info.contains("ntfs") && info.contains("Labél") && !info.contains("not read yet"), "{info}");
    let line = session.fails(["mkdir", &inside("/new")]);
    assert!(line.contains("ntfs, which loopbox reads and does not write"), "{line}");
}

#[test]
fn it_is_mounted() {
    requires!("mkntfs", "ntfscp", "getfattr", "fusermount3");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let session = volume("ntfs-mount");
    let (disk, point) = (session.join("disk.img"), session.join("mnt"));
    session.done(["mount".as_ref(), "--user".as_ref(), disk.as_os_str(), point.as_os_str()]);
    let told = session.shell(
        "cmp numbers mnt/numbers; getfattr --only-values -n user.note mnt/small; stat -c '%U %a %s' mnt/small; ! touch mnt/x 2>&1",
    );
    assert!(told.starts_with("small\nloopbox-test 755 6\n") && told.contains("Read-only"), "{told}");
    session.done(["umount".as_ref(), point.as_os_str()]);
}
