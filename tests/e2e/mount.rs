//! `loopbox mount` and `umount`: as root, as an ordinary user with fusermount3, and in a user namespace without it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rig::{User, have_filesystem, requires, requires_kernel, requires_root, run_command, text, wait_until};

use crate::session::{Session, program};

fn have_fuse() -> bool {
    Path::new("/dev/fuse").exists()
}

/// A tree, an ISO of it, and a directory to mount it on.
struct Sample {
    session: Session,
    iso: PathBuf,
    point: PathBuf,
}

fn sample(user: User, name: &str) -> Sample {
    let session = Session::new(user, name);
    let script = "set -e; cd $0; mkdir -p tree/a/b mnt; echo hello > tree/a/hello; ln -s a/hello tree/link
                  head -c 300000 /dev/urandom > tree/a/b/random; chmod 600 tree/a/hello; chmod 711 tree/a
                  xorriso -as mkisofs -quiet -R -V SAMPLE -o cd.iso tree 2>/dev/null";
    run_command(session.command("sh").args(["-c", script]).arg(session.join("")));
    Sample { iso: session.join("cd.iso"), point: session.join("mnt"), session }
}

impl Sample {
    fn mount(&self, words: &[&str]) {
        self.session.done(std::iter::once("mount").chain(words.iter().copied()).chain(self.both()));
    }

    fn both(&self) -> [&str; 2] {
        [self.iso.to_str().unwrap(), self.point.to_str().unwrap()]
    }

    fn umount(&self) {
        self.session.done([Path::new("umount"), &self.point]);
    }

    fn is_mounted(&self) -> bool {
        mounts().contains(self.point.to_str().unwrap())
    }

    fn server(&self) -> String {
        let list: serde_json::Value = serde_json::from_str(&self.session.done(["list", "--json"])).unwrap();
        let rows = list["loopdevices"].as_array().unwrap();
        let row = rows.iter().find(|row| row["name"].as_str() == self.point.to_str()).unwrap();
        row["pid"].to_string()
    }

    fn shell(&self, script: &str) -> String {
        run_command(self.session.command("sh").args(["-c", script]).arg(self.session.join("")))
    }
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap()
}

#[test]
fn an_iso_is_mounted_by_whoever_has_it() {
    requires!("xorriso", "diff", "fusermount3");
    requires_kernel!(have_fuse(), "FUSE");
    for user in [User::Myself, User::Ordinary] {
        let sample = sample(user, "mount");
        sample.mount(&["--user"]);
        sample.shell("diff -r $0/tree $0/mnt && test \"$(readlink $0/mnt/link)\" = a/hello");
        assert_eq!(sample.shell("stat -c %a $0/mnt/a $0/mnt/a/hello"), "711\n600\n");
        let refused = rig::output(sample.session.command("touch").arg(sample.point.join("new")));
        assert!(text(&refused).contains("Read-only file system"), "{}", text(&refused));
        let again = sample.session.fails(std::iter::once("mount").chain(["--user"]).chain(sample.both()));
        assert!(again.contains("mounted on it"), "{again}");
        sample.umount();
        assert!(!sample.is_mounted());
        let nothing = sample.session.fails([Path::new("umount"), &sample.point]);
        assert!(nothing.contains("nothing is mounted"), "{nothing}");
    }
}

#[test]
fn inside_a_user_namespace_no_other_program_is_needed() {
    requires!("xorriso", "unshare", "diff");
    requires_kernel!(have_fuse(), "FUSE");
    let sample = sample(User::Ordinary, "namespace");
    let script = "set -e; bin=$PATH; PATH=/nowhere; $1 mount $0/cd.iso $0/mnt; PATH=$bin; diff -r $0/tree $0/mnt
                  $1 list; PATH=/nowhere; $1 umount $0/mnt; test ! -e $0/mnt/a || exit 1";
    let mut command = sample.session.command("unshare");
    command.args(["-Ur", "-m", "sh", "-c", script]).arg(sample.session.join("")).arg(program());
    let said = run_command(&mut command);
    assert!(said.contains("cd.iso"), "{said}");
}

#[test]
fn owners_and_modes_are_as_asked() {
    requires!("xorriso", "fusermount3");
    requires_kernel!(have_fuse(), "FUSE");
    let sample = sample(User::Ordinary, "owners");
    sample.mount(&["-o", "uid=4,gid=5,fmask=177,dmask=077"]);
    assert_eq!(sample.shell("stat -c '%u %g %a' $0/mnt/a $0/mnt/a/b/random"), "4 5 700\n4 5 600\n");
    // It is the user's own image: he reads what is said to be another's.
    sample.shell("cat $0/mnt/a/b/random > /dev/null");
    sample.umount();
    let unknown = sample.session.fails(["mount", "-o", "colour=blue"].into_iter().chain(sample.both()));
    assert!(unknown.contains("unknown option colour=blue"), "{unknown}");
    let write = sample.session.fails(["mount", "-o", "rw"].into_iter().chain(sample.both()));
    assert!(write.contains("rw"), "{write}");
}

#[test]
fn a_mount_point_that_is_none_is_said() {
    requires!("xorriso", "fusermount3");
    requires_kernel!(have_fuse(), "FUSE");
    let sample = sample(User::Ordinary, "points");
    let iso = sample.iso.to_str().unwrap();
    let fails = |point: &Path| sample.session.fails(["mount", iso, point.to_str().unwrap()]);
    let missing = fails(&sample.session.join("missing"));
    assert!(missing.contains("missing: No such file"), "{missing}");
    let file = fails(&sample.iso);
    assert!(file.contains("is not a directory"), "{file}");
    if rig::is_root() {
        let not_mine = fails(Path::new("/usr/share"));
        assert!(not_mine.contains("a directory of your own"), "{not_mine}");
    }
    let list: serde_json::Value = serde_json::from_str(&sample.session.done(["list", "--json"])).unwrap();
    assert!(list["loopdevices"].as_array().unwrap().iter().all(|row| row["kind"] != "mount"), "{list}");
}

#[test]
fn a_mount_whose_server_was_killed_is_mounted_anew() {
    requires!("xorriso", "fusermount3");
    requires_kernel!(have_fuse(), "FUSE");
    for user in [User::Myself, User::Ordinary] {
        let sample = sample(user, "killed");
        for _ in 0..3 {
            sample.mount(&["--user"]);
            let server = sample.server();
            run_command(Command::new("kill").args(["-9", &server]));
            let lives = || rig::output(sample.session.command("stat").arg("-f").arg(&sample.point)).status.success();
            wait_until("the server is dead", || !lives());
        }
        sample.mount(&["--user"]);
        sample.shell("diff -r $0/tree $0/mnt");
        assert_eq!(mounts().matches(sample.point.to_str().unwrap()).count(), 1);
        sample.umount();
        assert!(!sample.is_mounted());
    }
}

#[test]
fn in_the_foreground_it_ends_with_the_signal() {
    requires!("xorriso", "fusermount3");
    requires_kernel!(have_fuse(), "FUSE");
    let sample = sample(User::Ordinary, "foreground");
    let mut command = sample.session.loopbox();
    command.arg("mount").arg("--foreground").args(sample.both()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stderr.take().unwrap()), &mut line).unwrap();
    assert!(line.contains("mounted on"), "{line}");
    sample.shell("diff -r $0/tree $0/mnt");
    run_command(Command::new("kill").args(["-INT", &sample.server()]));
    assert!(child.wait().unwrap().success());
    assert!(!sample.is_mounted());
}

#[test]
fn who_keeps_a_mount_busy_is_named() {
    requires!("xorriso", "fusermount3", "sleep");
    requires_kernel!(have_fuse(), "FUSE");
    let sample = sample(User::Ordinary, "busy");
    sample.mount(&[]);
    let mut holder = sample.session.command("sh");
    let script = "cd $0/mnt/a; echo ready; exec sleep 1000";
    let mut holder = holder.args(["-c", script]).arg(sample.session.join("")).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().unwrap()), &mut line).unwrap();
    let output = sample.session.output([Path::new("umount"), &sample.point]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("in use by sleep (process"), "{}", text(&output));
    sample.session.done([Path::new("umount"), Path::new("--lazy"), &sample.point]);
    assert!(!sample.is_mounted());
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn root_mounts_by_the_kernel_what_it_knows() {
    requires!("mkfs.ext4", "debugfs", "e2fsck");
    requires_root!();
    requires_kernel!(have_filesystem("ext4") && Path::new("/dev/loop-control").exists(), "ext4 or loop devices");
    let session = Session::new(User::Myself, "kernel");
    let (image, point) = (session.join("disk.img"), session.join("mnt"));
    let script = "set -e; cd $0; mkdir mnt; truncate -s 33M disk.img; mkfs.ext4 -q -E offset=1048576 disk.img 32M";
    run_command(session.command("sh").args(["-c", script]).arg(session.join("")));
    session.done(["mount", "-o", "offset=1M,noatime", image.to_str().unwrap(), point.to_str().unwrap()]);
    std::fs::write(point.join("written"), b"by the kernel").unwrap();
    let table = mounts();
    let line = table.lines().find(|line| line.contains(point.to_str().unwrap())).unwrap();
    assert!(line.contains(" ext4 /dev/loop") && line.contains("noatime"), "{line}");
    let device = line.split(" ext4 ").nth(1).unwrap().split(' ').next().unwrap().trim_start_matches("/dev/").to_owned();
    session.done(["umount", "--all"]);
    assert!(!mounts().contains(point.to_str().unwrap()));
    let backing = PathBuf::from(format!("/sys/block/{device}/loop/backing_file"));
    wait_until("the loop device lets go of the image", || {
        !std::fs::read_to_string(&backing).unwrap_or_default().contains(image.to_str().unwrap())
    });
    run_command(session.command("e2fsck").arg("-fn").arg(format!("{}?offset=1048576", image.display())));
    let read = ["-R", "cat /written", &format!("{}?offset=1048576", image.display())].map(String::from);
    assert_eq!(run_command(session.command("debugfs").args(read)), "by the kernel");
}

#[test]
fn the_partition_that_holds_files_is_found() {
    requires!("sfdisk", "mkfs.ext4", "dd", "diff", "fusermount3");
    requires_kernel!(have_fuse(), "FUSE");
    for user in [User::Myself, User::Ordinary] {
        partition_found(user);
    }
}

fn partition_found(user: User) {
    let session = Session::new(user, "partition");
    let by_kernel = user == User::Myself && rig::is_root() && rig::have_filesystem("ext4");
    let script = "set -e; cd $0; mkdir -p tree/a mnt; echo hello > tree/a/file; ln -s a/file tree/link
                  truncate -s 24M disk.img; truncate -s 16M part.img
                  printf 'label: gpt\\nsize=2M\\nsize=16M\\n' | sfdisk -q disk.img
                  mkfs.ext4 -q -d tree part.img; dd if=part.img of=disk.img bs=1M seek=3 conv=notrunc status=none";
    let shell = |script: &str| run_command(session.command("sh").args(["-c", script]).arg(session.join("")));
    shell(script);
    for image in ["disk.img", "disk.img,partition=2", "disk.img,offset=3M"] {
        session.done([Path::new("mount"), &session.join(image), &session.join("mnt")]);
        shell("diff -r --exclude=lost+found $0/tree $0/mnt && test \"$(readlink $0/mnt/link)\" = a/file");
        let kind = run_command(session.command("findmnt").args(["-n", "-o", "FSTYPE"]).arg(session.join("mnt")));
        assert_eq!(kind.trim() == "ext4", by_kernel, "{kind}");
        session.done([Path::new("umount"), &session.join("mnt")]);
    }
}
