//! Disk images compressed as a whole, behind every command.

use std::os::unix::fs::PermissionsExt as _;

use rig::{User, requires, run_command};

use crate::session::Session;

/// A disk with one partition, which holds an ext4 with a file at both ends, as it is: `disk.raw`.
fn disk(session: &Session) {
    session.shell(
        "mkdir tree; echo hello >tree/greeting; seq 300000 >tree/numbers; truncate -s 24M disk.raw; \
         echo 'start=2048, type=83' | sfdisk -q disk.raw; mkfs.ext4 -q -d tree -E offset=1048576 disk.raw 23M",
    );
}

/// The files in the cache, and the sum of their bytes.
fn cached(session: &Session) -> (usize, u64) {
    let entries = std::fs::read_dir(session.join("cache/loopbox")).into_iter().flatten();
    let sizes: Vec<u64> = entries.map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
    (sizes.len(), sizes.iter().sum())
}

#[test]
fn compressed_disks_are_looked_into_mounted_served_and_converted() {
    requires!("gzip", "xz", "zstd", "mkfs.ext4", "sfdisk", "qemu-img", "nbdcopy", "nbdkit");
    let session = Session::new(User::Ordinary, "compressed");
    disk(&session);
    session.shell("gzip -k disk.raw; xz -0 --block-size=2MiB -kc disk.raw >disk.raw.xz; zstd -q disk.raw");
    session.shell("mkdir folder");
    for (n, (name, format)) in
        [("disk.raw.gz", "gzip"), ("disk.raw.xz", "xz"), ("disk.raw.zst", "zstd")].iter().enumerate()
    {
        let image = session.word(name);
        let info = session.done(["info", &image]);
        assert!(info.contains(format) && info.contains("24.0 MiB") && info.contains("ext4"), "{info}");
        assert!(session.done(["ls", &format!("{image}:/")]).contains("greeting"));
        assert_eq!(session.done(["cat", &format!("{image},partition=1:/greeting")]), "hello\n");
        assert_eq!(session.done(["cat", &format!("{image},format={format},partition=1:/greeting")]), "hello\n");
        session.done(["mount", &image, &session.word("folder")]);
        session.shell("cmp folder/numbers tree/numbers");
        session.done(["umount", &session.word("folder")]);
        session.done(["serve", &image, "--", "sh", "-c", &format!("nbdcopy $uri {}", session.word("copy"))]);
        session.shell("cmp copy disk.raw; rm copy");
        // nbdkit's filters read the same.
        if *format != "zstd" {
            session.shell(&format!("nbdkit -U - -r --filter={format} file {name} --run 'nbdcopy $uri copy'"));
            session.shell("cmp copy disk.raw; rm copy");
        }
        session.done(["convert", &image, &session.word("new.qcow2")]);
        session.shell("qemu-img compare -q -F raw new.qcow2 disk.raw; rm new.qcow2");
        let said = session.fails(["mkdir", &format!("{image}:/new")]);
        assert!(said.contains("only read") && said.contains("overlay"), "{said}");
        // Found at its own place, and by a word for its format: one index, and not one a command.
        assert_eq!(cached(&session).0, n + 1, "one index an image");
    }
    let mode = session.join("cache/loopbox").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    // Read once, from one end to the other, a disk is not decompressed for another time.
    session.shell("xz -0 -T1 -kc disk.raw >once.xz; cp disk.raw.zst once.zst");
    let before = cached(&session);
    for name in ["once.xz", "once.zst"] {
        session.done(["convert", &session.word(name), &session.word("new.raw")]);
        session.shell("cmp new.raw disk.raw; rm new.raw");
    }
    assert_eq!(cached(&session), before);
    // One of another image format inside.
    session.shell("qemu-img convert -O qcow2 disk.raw disk.qcow2; gzip disk.qcow2");
    let image = session.word("disk.qcow2.gz");
    assert_eq!(session.done(["cat", &format!("{image}:/greeting")]), "hello\n");
    let info = session.done(["info", &image]);
    assert!(info.contains("qcow2 3") && info.contains("compressed as a whole by gzip"), "{info}");
    let said = session.fails(["cat", &format!("{},format=gzip:/greeting", session.word("disk.raw"))]);
    assert!(said.contains("gzip"), "{said}");
}

#[test]
fn the_index_follows_the_image_and_survives_whatever_happens_to_it() {
    requires!("gzip", "mkfs.ext4", "sfdisk");
    let session = Session::new(User::Ordinary, "compressed");
    disk(&session);
    session.shell("gzip -k -1 disk.raw");
    let image = session.word("disk.raw.gz");
    let greeting = || session.done(["cat", &format!("{image}:/greeting")]);
    // Several at one time, none of which has an index.
    let many = |count: usize| {
        let children: Vec<_> = (0..count)
            .map(|_| {
                session
                    .loopbox()
                    .args(["cat", &format!("{image}:/greeting")])
                    .stdout(std::process::Stdio::piped())
                    .spawn()
            })
            .collect();
        for child in children {
            let output = child.unwrap().wait_with_output().unwrap();
            assert!(output.status.success() && output.stdout == b"hello\n", "{}", rig::text(&output));
        }
    };
    many(4);
    assert_eq!(cached(&session).0, 1);
    // Broken in each way: it is built again.
    for line in [
        "for f in cache/loopbox/index-*; do : >$f; done",
        "for f in cache/loopbox/index-*; do head -c 1000 /dev/urandom >$f; done",
        "for f in cache/loopbox/index-*; do truncate -s 100 $f; done",
        "for f in cache/loopbox/index-*; do printf x | dd of=$f bs=1 seek=30 conv=notrunc 2>/dev/null; done",
        "for f in cache/loopbox/index-*; do mv $f $f.new; done",
        "rm cache/loopbox/index-*",
    ] {
        session.shell(line);
        assert_eq!(greeting(), "hello\n", "{line}");
        assert_eq!(cached(&session).0, 1, "{line}");
    }
    // The image becomes another one.
    session.shell(
        "echo other >tree/greeting; rm disk.raw disk.raw.gz; truncate -s 24M disk.raw; mkfs.ext4 -q -d tree disk.raw; \
         gzip disk.raw",
    );
    assert_eq!(greeting(), "other\n");
    // No room, no folder, nothing that may be kept: it works all the same.
    let before = cached(&session);
    session.shell("touch -d yesterday disk.raw.gz");
    for (variable, value) in [("LOOPBOX_CACHE_MAX", "0"), ("XDG_CACHE_HOME", "/proc/nowhere")] {
        let words = ["cat", &format!("{image}:/greeting")];
        assert_eq!(run_command(session.loopbox().env(variable, value).args(words)), "other\n");
    }
    assert_eq!(cached(&session), before);
    assert_eq!(greeting(), "other\n");
    assert!(cached(&session).0 > before.0);
}

#[test]
fn what_was_encrypted_leaves_nothing_in_the_cache() {
    requires!("gzip", "cryptsetup", "mkfs.ext4", "sfdisk");
    let session = Session::new(User::Ordinary, "compressed");
    disk(&session);
    session.shell("gzip -k disk.raw; printf secret >key; size=$(stat -c %s disk.raw.gz)");
    session.done(["create", &session.word("box.img"), "--luks2", "--size", "24M", "--key-file", &session.word("key")]);
    let opened = format!("{},luks,key-file={}", session.word("box.img"), session.word("key"));
    let put = format!("dd if={} of=$(cat node) conv=notrunc 2>/dev/null", session.word("disk.raw.gz"));
    let node = session.done(["attach", &opened]);
    session.shell(&format!("echo {} >node; {put}", node.trim()));
    session.done(["detach", node.trim()]);
    assert_eq!(session.done(["cat", &format!("{opened},format=gzip:/greeting")]), "hello\n");
    assert_eq!(cached(&session).0, 0);
}
