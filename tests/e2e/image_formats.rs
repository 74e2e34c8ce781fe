//! Disk images of other programs, behind every command.

use rig::{User, requires};

use crate::session::Session;

/// A disk with one partition, which holds an ext4 with one file, as qcow2: `disk.qcow2`, and as it is: `disk.raw`.
fn disk(session: &Session) {
    session.shell(
        "mkdir tree; echo hello >tree/greeting; truncate -s 32M disk.raw; \
         echo 'start=2048, type=83' | sfdisk -q disk.raw; \
         mkfs.ext4 -q -d tree -E offset=1048576 disk.raw 31M; qemu-img convert -O qcow2 disk.raw disk.qcow2",
    );
}

#[test]
fn a_qcow2_is_looked_into_mounted_attached_and_served() {
    requires!("qemu-img", "mkfs.ext4", "sfdisk");
    let session = Session::new(User::Ordinary, "qcow2");
    disk(&session);
    let image = session.word("disk.qcow2");
    let info = session.done(["info", &image]);
    assert!(info.contains("qcow2 3, a disk of 32.0 MiB") && info.contains("ext4"), "{info}");
    assert_eq!(session.done(["cat", &format!("{image}:/greeting")]), "hello\n");
    assert_eq!(session.done(["cat", &format!("{image},partition=1:/greeting")]), "hello\n");
    session.done(["cp", &format!("{image}:/greeting"), &session.word("copy")]);
    let folder = session.word("folder");
    session.shell("mkdir folder");
    session.done(["mount", &image, &folder]);
    assert_eq!(session.shell("cat folder/greeting"), "hello\n");
    session.done(["umount", &folder]);
    let node = session.done(["attach", &image]);
    session.shell(&format!("cmp {} disk.raw; printf changed | dd of={0} bs=1 seek=20M conv=notrunc 2>&1", node.trim()));
    session.done(["detach", node.trim()]);
    session.shell("qemu-img check disk.qcow2; printf changed | dd of=disk.raw bs=1 seek=20M conv=notrunc 2>&1");
    session.shell("qemu-img compare disk.qcow2 disk.raw");
    let compare = format!("qemu-img compare -f raw -F raw $uri {}", session.word("disk.raw"));
    let status = session.output(["serve", &image, "--", "sh", "-c", &compare]);
    assert!(status.status.success(), "{}", rig::text(&status));
    // What the user says counts more than what the bytes say.
    let raw = session.done(["info", &format!("{image},format=raw")]);
    assert!(raw.contains("qcow2 3"), "{raw}");
    session.done(["serve", &format!("{image},format=raw"), "--", "sh", "-c", "nbdinfo --size $uri | grep -v 33554432"]);
}

#[test]
fn what_an_image_names_is_opened_only_when_the_user_says_so() {
    requires!("qemu-img");
    let session = Session::new(User::Ordinary, "backing");
    disk(&session);
    session.shell("qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 top.qcow2");
    let top = session.word("top.qcow2");
    let said = session.fails(["cat", &format!("{top}:/greeting")]);
    assert!(said.contains("disk.qcow2") && said.contains(",backing"), "{said}");
    let info = session.done(["info", &top]);
    assert!(info.contains("on top of \"disk.qcow2\"") && info.contains("32.0 MiB"), "{info}");
    assert_eq!(session.done(["cat", &format!("{top},backing:/greeting")]), "hello\n");
    let other = session.word("disk.raw");
    session.shell("qemu-img rebase -u -f qcow2 -b nowhere.raw -F raw top.qcow2");
    assert_eq!(session.done(["cat", &format!("{top},backing={other}:/greeting")]), "hello\n");
    // A chain that comes back to where it began.
    session.shell("qemu-img rebase -u -f qcow2 -b top.qcow2 -F qcow2 disk.qcow2");
    session.shell("qemu-img rebase -u -f qcow2 -b disk.qcow2 -F qcow2 top.qcow2");
    let said = session.fails(["ls", &format!("{top},backing")]);
    assert!(said.contains("leads back to itself"), "{said}");
    // A raw disk whose guest wrote a header is not followed when nobody recorded what it is.
    session.shell("qemu-img create -q -f qcow2 -b /etc/passwd -F raw guest.raw 1M");
    session.shell("qemu-img create -q -u -f qcow2 -b guest.raw top.qcow2 1M 2>/dev/null || true");
    session.shell("qemu-img rebase -u -b guest.raw -F qcow2 top.qcow2");
    // Taking away the format that was recorded: the extension becomes an unknown one.
    let bytes = std::fs::read(session.join("top.qcow2")).unwrap();
    let at = bytes.windows(4).position(|word| word == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    let mut without = bytes;
    without[at] = 0x12;
    session.shell("rm top.qcow2; touch top.qcow2");
    std::fs::write(session.join("top.qcow2"), without).unwrap();
    let said = session.fails(["cat", &format!("{top},backing:/x")]);
    assert!(said.contains("does not say its format"), "{said}");
    // As deep as it may be, and deeper.
    session.shell(
        "qemu-img create -q -f qcow2 c0.qcow2 1M; for n in $(seq 70); do \
         qemu-img create -q -u -f qcow2 -b c$((n-1)).qcow2 -F qcow2 c$n.qcow2 1M; done",
    );
    session.done(["info", &format!("{},backing", session.word("c60.qcow2"))]);
    let said = session.fails(["info", &format!("{},backing", session.word("c70.qcow2"))]);
    assert!(said.contains("more than 64 images"), "{said}");
}

#[test]
fn every_format_becomes_every_other() {
    requires!("qemu-img", "qemu-io", "mkfs.ext4", "sfdisk");
    let session = Session::new(User::Ordinary, "formats");
    disk(&session);
    let kinds = [
        ("raw", "img", None),
        ("qcow2", "qcow2", None),
        ("vpc", "vhd", None),
        ("vpc", "fixed.vhd", Some("fixed")),
        ("vhdx", "vhdx", None),
        ("vmdk", "vmdk", None),
        ("vmdk", "stream.vmdk", Some("streamOptimized")),
        ("vdi", "vdi", None),
    ];
    let mut from = session.word("disk.raw");
    // Each from the one before, and the first from the last.
    for (qemu, ending, subformat) in kinds.iter().chain(&kinds[..1]) {
        let to = session.word(&format!("copy.{ending}"));
        let subformat: Vec<&str> = subformat.iter().flat_map(|word| ["--subformat", *word]).collect();
        session.done([&["convert", "--force", from.as_str(), to.as_str()], &subformat[..]].concat());
        session.shell(&format!("qemu-img compare -q -f {qemu} -F raw copy.{ending} disk.raw"));
        assert_eq!(session.done(["cat", &format!("{to}:/greeting")]), "hello\n");
        if *qemu != "raw" {
            let new = session.word(&format!("new.{ending}"));
            session.done([&["create", new.as_str(), "--size", "100M"], &subformat[..]].concat());
            session.shell(&format!(
                "qemu-img info -f {qemu} new.{ending} | grep -F '(104857600 bytes)'; \
                 qemu-io -f {qemu} -r -c 'read -P 0 0 100M' new.{ending}"
            ));
            // What others make of it is read: not of the kind that takes no writes.
            if *ending != "stream.vmdk" {
                session.shell(&format!("qemu-io -f {qemu} -c 'write -P 7 99M 1M' new.{ending}"));
                let word = format!("{new},offset=99M,sizelimit=1M");
                session.done(["convert", "--force", "--fsync", &word, &session.word("part.raw")]);
                session.shell("tr -d '\\007' <part.raw | cmp - /dev/null && test $(stat -c %s part.raw) = 1048576");
            }
        }
        from = to;
    }
    assert!(session.join("copy.vdi").metadata().unwrap().len() < 16 << 20);
    // Refused in words, and nothing is left.
    let file = |name: &str| session.word(name);
    let said = session.fails(["create", &file("large.vhd"), "--size", "3T"]);
    assert!(said.contains("2040") || said.contains("2190433320960"), "{said}");
    let said = session.fails(["convert", &from, &file("x.vhd"), "--subformat", "sparse"]);
    assert!(said.contains("dynamic or fixed"), "{said}");
    let said = session.fails(["convert", &from, &file("x.vmdk"), "--compress"]);
    assert!(said.contains("streamOptimized"), "{said}");
    let said = session.fails(["convert", &from, &file("x.parallels")]);
    assert!(said.contains("not made"), "{said}");
    session.shell("test -z \"$(ls -A | grep -e '^x' -e large -e '^\\.')\"");
}

#[test]
fn images_are_created_converted_and_checked() {
    requires!("qemu-img", "qemu-io", "mkfs.ext4", "sfdisk");
    let session = Session::new(User::Ordinary, "convert");
    disk(&session);
    let file = |name: &str| session.word(name);
    for (name, options) in
        [("new.qcow2", vec![]), ("packed.qcow2", vec!["--compress"]), ("small.qcow2", vec!["-c", "--cluster", "4K"])]
    {
        let words = ["convert", &file("disk.raw"), &file(name)];
        session.done(words.into_iter().chain(options));
        session.shell(&format!("qemu-img check -q {name} && qemu-img compare -q -F raw {name} disk.raw"));
        session.done(["check", &file(name)]);
    }
    assert!(session.join("packed.qcow2").metadata().unwrap().len() < 4 << 20);
    let said = session.fails(["convert", &file("disk.raw"), &file("new.qcow2")]);
    assert!(said.contains("--force"), "{said}");
    session.done(["convert", "--force", "--compression", "zstd", "-c", &file("disk.raw"), &file("new.qcow2")]);
    session.done(["convert", &file("new.qcow2"), &file("again.raw")]);
    session.shell("cmp again.raw disk.raw; test $(du -k again.raw | cut -f1) -lt 4096");
    session.done(["convert", &format!("{},partition=1", file("new.qcow2")), &file("part.raw")]);
    session.shell("tail -c +1048577 disk.raw | cmp - part.raw");
    for (format, qemu) in [("vdi", "vdi"), ("vhd", "vpc"), ("vmdk", "vmdk"), ("vhdx", "vhdx")] {
        session.shell(&format!("qemu-img convert -f raw -O {qemu} disk.raw other.{format}"));
        assert_eq!(session.done(["cat", &format!("{}:/greeting", file(&format!("other.{format}")))]), "hello\n");
        session.done(["convert", "--force", &file(&format!("other.{format}")), &file("again.raw")]);
        session.shell("qemu-img compare -q -f raw -F raw again.raw disk.raw");
    }
    session.done(["create", &file("empty.qcow2"), "--size", "1T"]);
    session.done(["create", &file("empty.img"), "--size", "3M"]);
    session.done(["create", &file("top.qcow2"), "--backing", &file("new.qcow2")]);
    session.shell("qemu-img check -q empty.qcow2; qemu-img info top.qcow2 | grep 'backing file: new.qcow2'");
    session.shell("qemu-io -c 'write -P 5 1023G 1M' empty.qcow2 && qemu-img check -q empty.qcow2");
    session.shell("qemu-img compare -q -F raw top.qcow2 disk.raw; test $(stat -c %s empty.img) = 3145728");
    let said = session.fails(["create", &file("empty.img"), "--size", "3M"]);
    assert!(said.contains("exists") || said.contains("there"), "{said}");
    session.fails(["create", &file("huge.qcow2"), "--size", "1E"]);
    assert!(!session.join("huge.qcow2").exists());
    // A leak, found and mended.
    let mut bytes = std::fs::read(session.join("small.qcow2")).unwrap();
    let at = |bytes: &[u8], from: usize| u64::from_be_bytes(bytes[from..from + 8].try_into().unwrap()) as usize;
    let first_count = at(&bytes, at(&bytes, 48)) + 1;
    bytes[first_count] = 2;
    std::fs::write(session.join("small.qcow2"), bytes).unwrap();
    let output = session.output(["check", &file("small.qcow2")]);
    assert_eq!(output.status.code(), Some(1), "{}", rig::text(&output));
    session.done(["check", "--repair", "leaks", &file("small.qcow2")]);
    session.done(["check", &file("small.qcow2")]);
    session.shell("qemu-img check -q small.qcow2");
}
