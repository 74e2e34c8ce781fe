//! Volumes that mkudffs made and the kernel of a guest filled: of each medium, and of each revision.

use std::path::PathBuf;
use std::process::Command;

use loopbox_fs::FileSystem as _;
use loopbox_fs::udf::Udf;
use rig::guest::{Guest, tree};
use rig::{Scratch, requires, requires_guest};

use crate::bridge::device;

/// What the guest does with each volume.
const SCRIPT: &str = r#"
mkdir -p /mnt; number=0
for disk in $DISKS; do
    number=$((number + 1))
    if mount -t udf $disk /mnt; then cd /mnt; fill; tell $number; cd /; umount /mnt
    elif mount -t udf -o ro $disk /mnt; then cd /mnt; tell $number; cd /; umount /mnt
    else echo "$number|not mounted"; fi
done
sync
"#;

fn make(scratch: &Scratch, number: usize, options: &str) -> PathBuf {
    let image = scratch.join(format!("image{number}"));
    std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let mut command = Command::new(rig::which("mkudffs").unwrap());
    rig::run_command(command.args(["--utf8", "--label=A Labél"]).args(options.split_whitespace()).arg(&image));
    image
}

#[test]
fn what_the_kernel_wrote() {
    requires!("mkudffs");
    requires_guest!();
    let all = [
        "--media-type=hd --udfrev=2.01 --blocksize=512",
        "--media-type=hd --udfrev=1.02 --blocksize=2048 --ad=long",
        "--media-type=cdrw --udfrev=1.50 --ad=short",
        "--media-type=dvdram --udfrev=2.00 --noefe --ad=short",
        "--media-type=cdr --udfrev=2.01",
        "--media-type=bdr --udfrev=2.50",
    ];
    let scratch = Scratch::new("udf-guest");
    let images: Vec<PathBuf> = all.iter().enumerate().map(|(n, options)| make(&scratch, n, options)).collect();
    let mut guest = Guest::new().module("udf").patience(std::time::Duration::from_secs(600));
    let mut disks = Vec::new();
    for (n, image) in images.iter().enumerate() {
        guest = guest.disk(image);
        disks.push(format!("/dev/vd{}", char::from(b'a' + n as u8)));
    }
    let done = guest.run(&format!("DISKS='{}'\n{}{SCRIPT}", disks.join(" "), tree::FUNCTIONS));
    assert_eq!(done.status, 0, "{done}");
    let (mut filled, mut failed) = (0, Vec::new());
    for (n, (options, image)) in all.iter().zip(&images).enumerate() {
        let theirs = tree::told(&done.output, &(n + 1).to_string());
        if theirs == ["not mounted"] {
            rig::skip(rig::test_name!(), &format!("the guest does not mount {options}"));
            // Then it opens here at least.
            Udf::open(device(image)).unwrap_or_else(|error| panic!("{options}: {error:?}"));
            continue;
        }
        let files = Udf::open(device(image)).unwrap_or_else(|error| panic!("{options}: {error:?}"));
        assert_eq!(files.label(), "A Labél", "{options}");
        let ours = tree::tell(&files);
        filled += usize::from(ours.len() > 100);
        failed.extend(tree::difference(&ours, &theirs).map(|difference| format!("{options}: {difference}")));
        loopbox_fs::testing::conformance::check(&files);
    }
    assert!(failed.is_empty(), "{}\n{done}", failed.join("\n"));
    assert!(filled >= 3, "only {filled} volumes were filled: {done}");
}
