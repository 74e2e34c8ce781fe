//! `create --fs`: images that hold files, with and without a partition table; nothing is left of one that fails.

use rig::{User, requires, run_command};

use crate::session::Session;

/// A file system, its checker, and whether it has a label.
struct Case {
    name: &'static str,
    check: &'static str,
    label: &'static str,
}

const CASES: &[Case] = &[
    Case { name: "fat", check: "fsck.fat -n", label: "DISK" },
    Case { name: "fat32", check: "fsck.fat -n", label: "DISK" },
    Case { name: "exfat", check: "fsck.exfat -n", label: "DISK" },
    Case { name: "ext4", check: "e2fsck -fn", label: "DISK" },
    Case { name: "erofs", check: "fsck.erofs", label: "DISK" },
    Case { name: "iso", check: "xorriso -return_with SORRY 32 -indev", label: "DISK" },
    Case { name: "squashfs", check: "unsquashfs -q -n -f -d checked", label: "" },
];

fn sample(user: User, name: &str) -> Session {
    let session = Session::new(user, name);
    session.shell(
        "mkdir -p tree/sub/deep tree/empty; seq 10000 >tree/numbers; echo x >tree/sub/a\\ file; \
         head -c 3000000 /dev/urandom >tree/sub/deep/random; touch -d 2021-03-04T05:06:08Z tree/numbers",
    );
    session
}

#[test]
fn an_image_of_a_directory_is_what_others_take_it_for() {
    requires!("fsck.fat", "fsck.exfat", "unsquashfs", "xorriso", "e2fsck", "fsck.erofs", "sfdisk", "diff");
    for user in [User::Myself, User::Ordinary] {
        let session = sample(user, "create-fs");
        let path = |name: &str| session.join(name).display().to_string();
        for Case { name, check, label: wanted } in CASES {
            session.done(["create", "--fs", name, "--from", &path("tree"), "--label", wanted, &path("bare.img")]);
            session.shell(&format!("{check} bare.img"));
            let info = session.done(["info", &path("bare.img")]);
            assert!(info.contains(name.trim_end_matches("32")) && info.contains(wanted), "{info}");
            session.done(["cp", &format!("{}:/", path("bare.img")), &path("out")]);
            session.shell(
                "diff -r -x lost+found tree out; test $(stat -c %Y out/numbers) = 1614834368; rm -r out bare.img",
            );
            for (table, label) in [("gpt", "gpt"), ("mbr", "dos")] {
                let image = path("disk.img");
                let words = ["create", "--fs", name, "--from", &path("tree"), "--partition", table, &image];
                session.done(words);
                let said = session.shell("sfdisk --verify disk.img 2>&1; sfdisk --json disk.img");
                assert!(said.contains("No errors detected") && said.contains(label), "{said}");
                session.shell(&format!(
                    "set -- $(sfdisk -J disk.img | tr -d ', ' | sed -n 's/^\"st.*:/ /p;s/^\"size\":/ /p'); \
                         dd if=disk.img of=part.img bs=512 skip=$1 count=$2 status=none; {check} part.img; rm part.img"
                ));
                session.done(["cp", &format!("{image}:/"), &path("out")]);
                session.shell("diff -r -x lost+found tree out; mv disk.img again.img");
                session.done(words);
                session.shell("cmp disk.img again.img; rm -r out disk.img again.img");
            }
        }
    }
}

#[test]
fn the_same_files_give_the_same_bytes_wherever_they_are() {
    let session = sample(User::Ordinary, "create-same");
    session.shell("cp -a tree other; touch tree/sub other/empty");
    for Case { name, .. } in CASES {
        for tree in ["tree", "other"] {
            let mut command = session.loopbox();
            command.env("SOURCE_DATE_EPOCH", "1500000000");
            let (from, to) = (session.join(tree), session.join(format!("{tree}.img")));
            run_command(command.args(["create", "--fs", name, "--owner", "0:0", "--from"]).arg(from).arg(to));
        }
        session.shell("cmp tree.img other.img; rm tree.img other.img");
    }
    // Two empty ones are not taken for each other.
    for name in ["one", "two"] {
        session.done(["create", "--fs", "fat", "--size", "4M", &session.join(name).display().to_string()]);
    }
    session.shell("fsck.fat -n one; ! cmp one two");
}

#[test]
fn a_qcow2_and_an_image_of_an_image() {
    requires!("qemu-img", "fsck.fat", "diff");
    let session = sample(User::Ordinary, "create-qcow2");
    let path = |name: &str| session.join(name).display().to_string();
    session.done(["create", "--fs", "fat", "--from", &path("tree"), "--partition", "gpt", &path("disk.qcow2")]);
    session.shell("qemu-img check disk.qcow2");
    let from = format!("{}:/sub", path("disk.qcow2"));
    session.done(["create", "--fs", "exfat", "--from", &from, &path("sub.img")]);
    session.done(["cp", &format!("{}:/", path("sub.img")), &path("out")]);
    session.shell("fsck.exfat -n sub.img; diff -r tree/sub out");
}

#[test]
fn nothing_is_left_of_an_image_that_fails() {
    let session = sample(User::Ordinary, "create-fails");
    let path = |name: &str| session.join(name).display().to_string();
    let (tree, image) = (path("tree"), path("x.img"));
    for (words, said) in [
        (vec!["--fs", "fat", "--from", &tree, "--size", "2M"], "too small"),
        (vec!["--fs", "fat", "--from", "/nothing/there"], "/nothing/there"),
        (vec!["--fs", "fat", "--from", &tree, "--label", "twelve chars"], "label"),
        (vec!["--fs", "fat", "--size", "1M", "--partition", "gpt"], "size"),
        (vec!["--size", "1M", "--label", "X"], "--fs"),
    ] {
        let line = session.fails(["create"].into_iter().chain(words.iter().copied()).chain([image.as_str()]));
        assert!(line.contains(said), "{words:?}: {line}");
        assert_eq!(session.shell("ls -A"), "runtime\ntree\n", "{words:?}");
    }
    let output = session.output(["create", "--fs", "zfs", &image]);
    let said = rig::text(&output);
    assert!(output.status.code() == Some(2) && said.contains("possible values: ext4, fat"), "{said}");
    session.shell("echo mine >x.img");
    let line = session.fails(["create", "--fs", "fat", "--from", &tree, &image]);
    assert!(line.contains("there already"), "{line}");
    assert_eq!(session.shell("cat x.img"), "mine\n");
}

#[test]
fn what_does_not_fit_the_file_system_is_said_and_left_out() {
    requires!("fsck.fat");
    let session = sample(User::Ordinary, "create-left");
    session.shell("ln -s numbers tree/link; mkfifo tree/pipe");
    let (tree, image) = (session.join("tree").display().to_string(), session.join("x.img").display().to_string());
    let output = session.output(["create", "--fs", "fat", "--from", &tree, &image]);
    let said = rig::text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("link: a symbolic link, which vfat cannot hold") && said.contains("pipe"), "{said}");
    session.shell("fsck.fat -n x.img");
}
