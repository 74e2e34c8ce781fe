//! `loopbox run --mount --root --device --bind`: images that only the command sees, as root and as an ordinary user.

use std::path::{Path, PathBuf};

use rig::{User, requires, requires_kernel};

use crate::session::Session;

const USERS: [User; 2] = [User::Ordinary, User::Myself];

/// A file system as a squashfs image, made of a script that runs in its top folder.
pub fn squashfs(session: &Session, name: &str, script: &str) -> PathBuf {
    let (folder, image) = (session.join(format!("{name}.tree")), session.join(name));
    rig::run_command(session.command("sh").args(["-euc", &format!("mkdir $0; cd $0; {script}")]).arg(&folder));
    let mut make = session.command("mksquashfs");
    rig::run_command(make.arg(&folder).arg(&image).args(["-quiet", "-no-progress", "-all-root", "-comp", "zstd"]));
    image
}

/// A command that is killed when the test is over, however that comes about.
#[derive(Debug)]
pub struct Guard(pub std::process::Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Folders into which the machine's programs are bound, as Debian has them.
pub const SYSTEM: &str =
    "mkdir -p usr etc proc dev tmp run; for link in bin sbin lib lib64; do ln -s usr/$link $link; done;
    echo root:x:0:0:root:/root:/bin/sh >etc/passwd; touch etc/hosts etc/resolv.conf";

pub fn ext4(session: &Session, name: &str) -> PathBuf {
    let image = session.join(name);
    rig::run_command(session.command("truncate").arg("--size=16M").arg(&image));
    rig::run_command(session.command("mkfs.ext4").args(["-q", "-F"]).arg(&image));
    image
}

/// Words of a command line, made of texts and paths.
pub fn spec(image: &Path, rest: &str) -> String {
    format!("{}{rest}", image.display())
}

pub fn point(session: &Session, name: &str) -> PathBuf {
    let point = session.join(name);
    rig::run_command(session.command("mkdir").arg(&point));
    point
}

fn mounts() -> String {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains("loopbox")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_mount_is_seen_by_the_command_alone() {
    requires!("mksquashfs");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    for user in USERS {
        let session = Session::new(user, "run-mount");
        let image = squashfs(&session, "image", "mkdir a; echo hello >a/file; chmod 600 a/file");
        let place = point(&session, "place");
        let before = std::fs::read(&image).unwrap();
        let inside = |options: &str, script: &str| {
            let words = spec(&image, &format!("{options}:{}", place.display()));
            session.done(["run", "--mount", &words, "--chdir", place.to_str().unwrap(), "--", "sh", "-euc", script])
        };
        assert_eq!(inside("", "cat a/file; echo x 2>/dev/null >a/file || echo refused"), "hello\nrefused\n");
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0, "nothing is there outside");
        let change = "echo more >>a/file; echo new >b; cat a/file b; rm -r a; ls";
        assert_eq!(inside(",overlay", change), "hello\nmore\nnew\nb\n");
        assert_eq!(inside("", "ls"), "a\n", "changes in memory are gone");
        let kept = format!(",overlay={}", session.join("changes").display());
        assert_eq!(inside(&kept, change), "hello\nmore\nnew\nb\n");
        assert_eq!(inside(&kept, "ls; cat b"), "b\nnew\n", "changes in a folder are kept");
        assert_eq!(std::fs::read(&image).unwrap(), before, "the image is as it was");
        assert!(!mounts().contains(place.to_str().unwrap()));
    }
}

#[test]
fn an_image_is_the_root() {
    requires!("mksquashfs", "ip");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    for user in USERS {
        let session = Session::new(user, "run-root");
        let image = squashfs(&session, "image", SYSTEM);
        let bare = squashfs(&session, "bare", "mkdir usr; for link in bin lib lib64; do ln -s usr/$link $link; done");
        for image in [&image, &bare] {
            let inside = |options: &[&str], script: &str| {
                let words = ["run", "--root", image.to_str().unwrap(), "--bind", "/usr,ro"];
                session.done([&words, options, &["--", "sh", "-euc", script]].concat())
            };
            let said =
                inside(&[], "id -u; pwd; cat /etc/hosts; echo $HOME $PATH; ls -d /proc/[0-9]*; ls /home 2>&1 || :");
            assert!(said.starts_with("0\n/\n127.0.0.1\tlocalhost\n"), "{said}");
            assert!(said.contains("/root /usr/local/sbin:") && said.contains("/proc/1\n/proc/2\n"), "{said}");
            assert!(said.contains("cannot access '/home'"), "nothing of the machine's root is left: {said}");
            let devices =
                "echo x >/dev/null; head -c 4 /dev/zero | wc -c; test -c /dev/urandom; echo t >/dev/shm/t; ls /dev";
            let said = inside(&[], devices);
            assert!(said.starts_with("4\n") && !said.contains("loop") && said.contains("pts\n"), "{said}");
            let read_only =
                "for file in /x /etc/x /usr/x; do touch $file 2>&1 || :; done; echo t >/tmp/t; echo t >/run/t";
            let said = inside(&[], read_only);
            assert_eq!(said.matches("Read-only file system").count(), 3, "{said}");
            let said = inside(&["--env", "A=b", "--env", "XDG_RUNTIME_DIR", "--chdir", "/usr"], "echo $A; pwd; env");
            assert!(
                said.starts_with("b\n/usr\n") && said.contains("XDG_RUNTIME_DIR=") && !said.contains("TZ=\n"),
                "{said}"
            );
            assert!(inside(&["--as", "me"], "id -u").starts_with(&user.ids().0.to_string()));
            assert!(inside(&[], "ip -o link").starts_with("1: lo: <LOOPBACK,UP"));
        }
        let written = session.join("changes");
        let words = spec(&image, &format!(",overlay={}", written.display()));
        let run =
            |script: &str| session.done(["run", "--root", &words, "--bind", "/usr,ro", "--", "sh", "-euc", script]);
        run("mkdir /srv; echo kept >/srv/file; rm /etc/passwd");
        assert_eq!(run("cat /srv/file; ls /etc"), "kept\nhosts\nresolv.conf\n");
    }
}

#[test]
fn links_of_a_hostile_root_lead_nowhere_else() {
    requires!("mksquashfs");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    for user in USERS {
        let session = Session::new(user, "run-hostile");
        let outside = point(&session, "outside");
        let out = outside.display();
        let script = format!(
            "mkdir usr; for link in bin lib lib64; do ln -s usr/$link $link; done
             ln -s ../../../../../..{out} etc; ln -s /old{out} srv; ln -s {out} tmp; ln -s /proc/1/root/tmp run"
        );
        let image = squashfs(&session, "image", &script);
        let bind = format!("{}:/srv/deep/place", session.join("").display());
        let words = spec(&image, ",overlay");
        // Whatever becomes of it, outside stays as it is.
        let words =
            ["run", "--root", &words, "--bind", "/usr,ro", "--bind", &bind, "--", "sh", "-c", "touch /etc/x /tmp/x"];
        let output = session.output(words);
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{}", rig::text(&output));
    }
}

#[test]
fn a_device_is_a_disk_that_is_written_to() {
    requires!("mkfs.ext4", "e2fsck", "debugfs", "sfdisk", "dd");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    for user in USERS {
        let session = Session::new(user, "run-device");
        let image = session.join("disk.img");
        rig::run_command(session.command("truncate").arg("--size=24M").arg(&image));
        let table = "printf 'label: gpt\\nsize=8M\\nsize=8M\\n' | sfdisk -q --no-reread --no-tell-kernel $0";
        rig::run_command(session.command("sh").args(["-euc", table]).arg(&image));
        let script =
            "mkfs.ext4 -q -F /dev/sda2; echo one | dd of=/dev/sda1 conv=notrunc status=none; ls /dev/null /dev/pts";
        let said = session.done(["run", "--device", &spec(&image, ":sda"), "--", "sh", "-euc", script]);
        assert!(said.contains("/dev/null"), "the machine's own devices are there too: {said}");
        let second = session.join("second");
        rig::run_command(session.command("cp").arg(&image).arg(&second));
        let words = ["run", "--device", &spec(&second, ""), "--device", &spec(&image, ",partition=2"), "--"];
        let said =
            session.done([&words[..], &["sh", "-euc", "head -c 3 /dev/loop0p1; e2fsck -fn /dev/loop1 2>&1"]].concat());
        assert!(said.starts_with("one") && said.contains("11/2048 files"), "{said}");
        assert!(std::fs::read(&image).unwrap()[1 << 20..].starts_with(b"one\n"));
        let loops = rig::run("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"]);
        assert!(!loops.contains(image.to_str().unwrap()), "{loops}");
    }
}

#[test]
fn roots_own_mount_writes_into_the_image() {
    requires!("mkfs.ext4", "e2fsck", "debugfs");
    rig::requires_root!();
    requires_kernel!(rig::have_filesystem("ext4") && Path::new("/dev/loop-control").exists(), "ext4 or loop devices");
    let session = Session::new(User::Myself, "run-kernel");
    let (image, place) = (ext4(&session, "disk.img"), point(&session, "place"));
    let words = spec(&image, &format!(":{}", place.display()));
    let script = format!("echo written >{}/file", place.display());
    session.done(["run", "--mount", &words, "--", "sh", "-euc", &script]);
    rig::run_command(session.command("e2fsck").arg("-fn").arg(&image));
    assert_eq!(rig::run_command(session.command("debugfs").args(["-R", "cat /file"]).arg(&image)), "written\n");
    let refused = session.output(["run", "--mount", &format!("{words},ro"), "--", "sh", "-euc", &script]);
    assert!(rig::text(&refused).contains("Read-only file system"), "{}", rig::text(&refused));
    let both = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!both.contains(place.to_str().unwrap()));
    let loops = rig::run("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"]);
    assert!(!loops.contains(image.to_str().unwrap()), "{loops}");
}

#[test]
fn what_is_wrong_is_said_before_anything_is_done() {
    requires!("mksquashfs");
    let session = Session::new(User::Ordinary, "run-wrong");
    let image = squashfs(&session, "image", SYSTEM);
    let run = |words: &[&str]| session.fails([&["run"], words, &["--", "true"]].concat());
    let image = image.to_str().unwrap();
    assert!(run(&["--mount", image]).contains("no :PATH"));
    assert!(run(&["--mount", &format!("{image}:relative")]).contains("a path from / on"));
    assert!(run(&["--mount", &format!("{image}:/")]).contains("--root"));
    assert!(run(&["--mount", &format!("{image}:/no/such/place")]).contains("make the folder /no/such/place first"));
    assert!(run(&["--mount", &format!("{image},rw:/tmp")]).contains("overlay"));
    assert!(run(&["--root", "/no/such/image"]).contains("No such file"));
    assert!(run(&["--bind", "/no/such/file:/x"]).contains("No such file"));
    assert!(run(&["--device", &format!("{image}:a/b")]).contains("no name of a device"));
    let missing = session.output(["run", "--root", image, "--", "no-such-program"]);
    assert_eq!(missing.status.code(), Some(127), "{}", rig::text(&missing));
}
