//! Volumes that mkudffs made and the kernel of a guest filled: of each medium, and of each revision.

use std::path::PathBuf;
use std::process::Command;

use loopbox_fs::udf::Udf;
use loopbox_fs::{FileSystem as _, FileType};
use rig::guest::Guest;
use rig::{Scratch, requires, requires_guest};

use crate::bridge::device;

/// What the guest does with each volume: makes all kinds of files, and some of them go away again; then it says what is
/// there. `stat` is that of busybox.
const SCRIPT: &str = r#"
fill() {
    mkdir -p a/b/c many; echo hello > a/hello; ln a/hello a/b/again; ln -s ../a/hello a/relative; ln -s /etc/hostname absolute
    ln -s ../../x/./y odd; : > empty; head -c 100 /dev/urandom > small; head -c 1200000 /dev/urandom > large
    dd if=/dev/urandom of=holes bs=1k count=3 seek=500 2>/dev/null; mkfifo fifo; mknod device c 5 70; mknod disk b 8 17
    for n in 1 2 3 4 5 6 7 8 9; do for m in 1 2 3 4 5 6 7 8 9 0; do echo $n$m > many/file-$n$m-of-90; done; done
    rm many/file-1*; echo anew > many/file-13-of-90
    for n in 1 2 3 4 5; do head -c 9000 /dev/urandom >> grown; head -c 5000 /dev/urandom >> beside; done
    echo ö > 'ünïcödé'; echo 日 > 日本語; echo x > 'with space'
    chmod 4751 a/hello; chmod 1777 many; chown 1000:70000 small
    touch -d '2001-02-03 04:05:06' large a/b/c
}
tell() {
    find . -print0 | xargs -0 stat -c "$1|%n|%f|%u|%g|%s|%h|%t|%T|%Y"
    find . -type f -print0 | xargs -0 sha256sum | sed "s/^/$1|/"
    for link in a/relative absolute odd; do [ -L $link ] && echo "$1|$link -> $(readlink $link)"; done
}
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
    let done = guest.run(&format!("DISKS='{}'\n{SCRIPT}", disks.join(" ")));
    assert_eq!(done.status, 0, "{done}");
    let (mut filled, mut failed) = (0, Vec::new());
    for (n, (options, image)) in all.iter().zip(&images).enumerate() {
        let prefix = format!("{}|", n + 1);
        let mut theirs: Vec<&str> = done.output.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
        theirs.sort_unstable();
        if theirs == ["not mounted"] {
            rig::skip(rig::test_name!(), &format!("the guest does not mount {options}"));
            // Then it opens here at least.
            Udf::open(device(image)).unwrap_or_else(|error| panic!("{options}: {error:?}"));
            continue;
        }
        let files = Udf::open(device(image)).unwrap_or_else(|error| panic!("{options}: {error:?}"));
        assert_eq!(files.label(), "A Labél", "{options}");
        let ours = tell(&files);
        filled += usize::from(ours.len() > 100);
        if ours != theirs {
            let different = ours.iter().zip(&theirs).find(|(one, other)| one != *other);
            failed.push(format!("{options}: {} and {} files, {different:?}", ours.len(), theirs.len()));
        }
        loopbox_fs::testing::conformance::check(&files);
    }
    assert!(failed.is_empty(), "{}\n{done}", failed.join("\n"));
    assert!(filled >= 3, "only {filled} volumes were filled: {done}");
}

/// As the script tells it, sorted.
fn tell(files: &Udf) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, file) in rig::tree::of_file_system(files) {
        let path = String::from_utf8(path).unwrap();
        let parts = path.split('/').filter(|part| !part.is_empty());
        let inode = parts.fold(files.root(), |at, name| files.lookup(at, name.as_bytes()).unwrap().unwrap());
        let stat = files.stat(inode).unwrap();
        let shown = if path.is_empty() { ".".to_owned() } else { format!("./{path}") };
        let (major, minor) = file.device.unwrap_or_default();
        let (mode, (uid, gid)) = (file.mode, file.owner);
        let (size, links, seconds) = (stat.size, stat.links, file.modified.seconds);
        lines.push(format!("{shown}|{mode:x}|{uid}|{gid}|{size}|{links}|{major:x}|{minor:x}|{seconds}"));
        match stat.file_type {
            FileType::Regular => lines.push(format!("{}  {shown}", file.sha256.unwrap())),
            FileType::SymbolicLink => {
                lines.push(format!("{path} -> {}", String::from_utf8(file.target.unwrap()).unwrap()));
            }
            _ => {}
        }
    }
    lines.sort_unstable();
    lines
}
