//! Volumes that the kernel of a guest filled, by its driver ntfs3.

use rig::guest::{Guest, tree};
use rig::{Scratch, requires, requires_guest};

use crate::image::{make, open};

/// What is compared of a line: all of it, but sizes and names of what is no regular file, which drivers count differently;
/// nothing of the root, of which mkntfs says no mode.
fn known(line: &str) -> Option<String> {
    if line.starts_with(".|") {
        return None;
    }
    let mut fields: Vec<&str> = line.split('|').collect();
    if fields.len() == 9 && !fields[1].starts_with('8') {
        (fields[4], fields[5]) = ("-", "-");
    }
    Some(fields.join("|"))
}

#[test]
fn what_the_kernel_wrote() {
    requires!("mkntfs", "setfattr");
    requires_guest!();
    let all = ["-c 4096", "-c 1024"];
    let scratch = Scratch::new("ntfs-guest");
    let mut guest = Guest::new().module("ntfs3").module("nls_utf8").program("setfattr");
    for (number, options) in all.iter().enumerate() {
        guest = guest.disk(&make(&scratch, &format!("image{number}"), options, 16));
    }
    let done = guest.run(&format!(
        "{}\nmkdir -p /mnt; set -e
        for disk in a b; do mount -t ntfs3 -o iocharset=utf8 /dev/vd$disk /mnt; cd /mnt; fill
        setfattr -n user.note -v word a/hello; tell $disk; cd /; umount /mnt; done; sync",
        tree::FUNCTIONS
    ));
    assert_eq!(done.status, 0, "{done}");
    for (number, word) in ["a", "b"].iter().enumerate() {
        let files = open(&scratch.join(format!("image{number}")));
        let theirs: Vec<String> = tree::told(&done.output, word).into_iter().filter_map(known).collect();
        let ours: Vec<String> = tree::tell(&files).iter().filter_map(|line| known(line)).collect();
        assert!(theirs.len() > 150, "{done}");
        if let Some(difference) = tree::difference(&ours, &theirs) {
            panic!("{}: {difference}", all[number]);
        }
        let note = rig::tree::of_file_system(&files)[&b"a/hello"[..]].xattrs.clone();
        assert_eq!(note.get(&b"user.note"[..]).map(Vec::as_slice), Some(&b"word"[..]), "{note:?}");
        loopbox_fs::testing::conformance::check(&files);
    }
}
