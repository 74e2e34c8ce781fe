//! `loopbox run --mount` of FAT and exFAT, written by a command: as root and as an ordinary user, and killed in the middle.

use std::path::{Path, PathBuf};

use rig::{User, requires, requires_kernel, run_command, text, wait_until};

use crate::run_files::{SYSTEM, ext4, point, spec, squashfs};
use crate::run_killed::{nothing_is_left, start};
use crate::session::Session;

const KINDS: &[(&str, &str, &str, &str)] = &[
    ("fat16", "mkfs.fat -F 16", "fsck.fat -n", "fsck.fat -a"),
    ("fat32", "mkfs.fat -F 32 -s 1", "fsck.fat -n", "fsck.fat -a"),
    ("exfat", "mkfs.exfat", "fsck.exfat -n", "fsck.exfat -p"),
];

fn image(session: &Session, mkfs: &str) -> PathBuf {
    let image = session.join("disk.img");
    shell(session, &format!("truncate -s 64M $0/disk.img; {mkfs} $0/disk.img"));
    image
}

fn shell(session: &Session, script: &str) -> String {
    run_command(session.command("sh").args(["-euc", script]).arg(session.join("")))
}

fn have_fuse() -> bool {
    Path::new("/dev/fuse").exists()
}

#[test]
fn a_command_writes_into_the_image() {
    requires!("mkfs.fat", "mkfs.exfat", "fsck.fat", "fsck.exfat", "diff");
    requires_kernel!(have_fuse(), "FUSE");
    for user in [User::Ordinary, User::Myself] {
        for (kind, mkfs, fsck, _) in KINDS {
            let session = Session::new(user, &format!("run-{kind}"));
            let (image, place) = (image(&session, mkfs), point(&session, "place"));
            shell(
                &session,
                "mkdir $0/tree; cd $0/tree; head -c 3000000 /dev/urandom >random; seq 1000 >'some numbers'",
            );
            let words = spec(&image, &format!(":{}", place.display()));
            let script = "cp -r ../tree .; mkdir a; echo hello >a/file; mv tree/random a; cp a/random tree
                test $(stat -c %u a/file) = $(id -u); rm a/random; echo more >>a/file; exec 9<>a/open; rm a/open; echo x >&9";
            let folder = place.to_str().unwrap();
            let run = |words: &str, script: &str| {
                session.done(["run", "--mount", words, "--chdir", folder, "--", "sh", "-euc", script])
            };
            run(&words, script);
            assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0, "nothing is there outside");
            shell(&session, &format!("{fsck} $0/disk.img"));
            let inside = |path: &str| format!("{}:{path}", image.display());
            session.done(["cp", "-r", &inside("/tree"), session.join("back").to_str().unwrap()]);
            shell(&session, "diff -r $0/tree $0/back");
            assert_eq!(session.done(["cat", &inside("/a/file")]), "hello\nmore\n");

            let before = std::fs::read(&image).unwrap();
            let refused = "touch x 2>&1 || true; cat a/file";
            let said = run(&format!("{words},ro"), refused);
            assert!(said.contains("Read-only file system") && said.ends_with("hello\nmore\n"), "{said}");
            let overlay = spec(&image, &format!(",overlay:{folder}"));
            assert_eq!(run(&overlay, "echo lost >a/file; cat a/file"), "lost\n");
            assert!(std::fs::read(&image).unwrap() == before, "nothing was written into it");
        }
    }
}

#[test]
fn one_image_is_the_root_and_a_boot_partition_that_is_written() {
    requires!("mkfs.fat", "fsck.fat", "mksquashfs", "sfdisk", "dd");
    requires_kernel!(have_fuse(), "FUSE");
    for user in [User::Ordinary, User::Myself] {
        let session = Session::new(user, "run-boot");
        squashfs(&session, "root", &format!("{SYSTEM}; mkdir boot"));
        shell(
            &session,
            "cd $0; truncate -s 48M disk.img; printf 'label: gpt\\nsize=16M\\nsize=24M\\n' | sfdisk -q --no-reread --no-tell-kernel disk.img
             truncate -s 16M boot; mkfs.fat boot; dd if=boot of=disk.img bs=1M seek=1 conv=notrunc status=none
             dd if=root of=disk.img bs=1M seek=17 conv=notrunc status=none",
        );
        let disk = session.join("disk.img");
        let (root, boot) = (spec(&disk, ",partition=2"), spec(&disk, ",partition=1:/boot"));
        let words = ["run", "--root", &root, "--mount", &boot, "--bind", "/usr,ro", "--", "sh", "-euc"];
        session.done([&words[..], &["seq 1000 >/boot/kernel; test $(id -u) = $(stat -c %u /boot/kernel)"]].concat());
        let kernel = session.done(["cat", &spec(&disk, ",partition=1:/kernel")]);
        assert_eq!(kernel.lines().count(), 1000);
        shell(&session, "cd $0; dd if=disk.img of=boot bs=1M skip=1 count=16 status=none; fsck.fat -n boot");
    }
}

#[test]
fn who_writes_is_alone_and_what_cannot_be_written_says_so() {
    requires!("mkfs.fat", "mkfs.ext4", "mksquashfs");
    requires_kernel!(have_fuse(), "FUSE");
    let session = Session::new(User::Ordinary, "run-alone");
    let (image, place) = (image(&session, "mkfs.fat"), point(&session, "place"));
    let mark = format!("alone-{}", std::process::id());
    let at = |rest: &str| spec(&image, &format!("{rest}:{}", place.display()));
    let ready = session.join("ready");
    let script = format!("touch {}; exec sleep 4715", ready.display());
    let child = start(&session, &["--mount".to_owned(), at("")], &["--", "sh", "-c", &script], &mark);
    wait_until("it runs", || ready.exists());
    let fails = |words: &str| session.fails(["run", "--mount", words, "--", "true"]);
    for words in [at(""), at(",rw")] {
        let line = fails(&words);
        assert!(line.contains("in use") || line.contains("open for writing elsewhere"), "{line}");
    }
    assert!(fails(&at("")).contains("`,ro` reads it"));
    session.done(["run", "--mount", &at(",ro"), "--", "true"]);
    drop(child);
    nothing_is_left(&session, &mark, "after the kill");
    session.done(["run", "--mount", &at(",rw"), "--", "true"]);

    let ext4 = ext4(&session, "ext4.img");
    let squashfs = squashfs(&session, "squashfs.img", "touch x");
    let at = |image: &Path| spec(image, &format!(",rw:{}", place.display()));
    let line = fails(&at(&ext4));
    assert!(line.contains("writing into ext4 takes root") && line.contains("`overlay`"), "{line}");
    let line = fails(&at(&squashfs));
    assert!(line.contains("squashfs is never written to") && line.contains("`overlay`"), "{line}");
    shell(&session, "chmod a-w $0/disk.img");
    if rig::is_root() {
        let line = fails(&spec(&image, &format!(",rw:{}", place.display())));
        assert!(line.contains("Permission denied"), "{line}");
    }
}

#[test]
fn killed_while_a_command_writes_the_image_is_whole_and_nothing_is_left() {
    requires!("mkfs.fat", "mkfs.exfat", "fsck.fat", "fsck.exfat");
    requires_kernel!(have_fuse(), "FUSE");
    for (kind, mkfs, fsck, mend) in KINDS {
        let session = Session::new(User::Ordinary, &format!("run-killed-{kind}"));
        let (image, place) = (image(&session, mkfs), point(&session, "place"));
        let mark = format!("written-{kind}-{}", std::process::id());
        let folder = session.join("");
        // What is said to be done is done.
        let script = format!(
            "n=0; while head -c 30000 /dev/zero >{0}/place/file-$n; do echo $n >{0}/done.new; mv {0}/done.new {0}/done; n=$((n+1)); done",
            folder.display()
        );
        let mount = spec(&image, &format!(":{}", place.display()));
        let child = start(&session, &["--mount".to_owned(), mount], &["--", "sh", "-c", &script], &mark);
        let done = || std::fs::read_to_string(session.join("done")).ok()?.trim().parse::<u32>().ok();
        wait_until("30 files", || done().is_some_and(|n| n >= 30));
        drop(child);
        nothing_is_left(&session, &mark, kind);
        let written = done().unwrap();
        let script = format!("{mend} $0/disk.img");
        let said = text(&rig::output(session.command("sh").args(["-c", &script]).arg(session.join(""))));
        assert!(!said.contains("share clusters"), "{kind}: {said}");
        shell(&session, &format!("{fsck} $0/disk.img"));
        let mount = spec(&image, &format!(",ro:{}", place.display()));
        let check =
            format!("cd {}; for n in $(seq 0 {written}); do test $(stat -c %s file-$n) = 30000; done", place.display());
        session.done(["run", "--mount", &mount, "--", "sh", "-euc", &check]);
    }
}
