//! `loopbox serve --ublk` in a guest of QEMU, whose kernel has ublk_drv: /dev/ublkb0 of every kind of stack.

use std::time::Duration;

use rig::guest::Guest;
use rig::{User, requires, requires_guest, run_command};

use crate::session::{Session, program};

/// Images, in a file system that the guest has as /dev/vda.
const IMAGES: &str = "mkdir img; printf 'pass word' > img/key
    qemu-img create -q -f qcow2 img/disk.qcow2 48M
    truncate -s 52M raw; printf 'start=2048, size=2048\\nstart=8192\\n' | sfdisk --quiet raw
    dd if=luks of=raw bs=1M seek=4 conv=notrunc status=none
    qemu-img convert -f raw -O qcow2 raw img/luks.qcow2
    head -c 8M /dev/urandom > img/base.img; truncate -s 4195004 img/odd.img; head -c 4M /dev/urandom > img/read.img
    truncate -s 32M img/killed.img; truncate -s 8M img/user.img
    truncate -s 200M vda; mkfs.ext4 -q -F -d img vda; rm raw luks";

/// What every part begins with.
const PRELUDE: &str = r#"set -e
    mkdir -p /img; mount -t ext4 /dev/vda /img; cd /img
    part() { echo "== $*"; }
    # Starts a server; $disk is what it says, and $pid its process.
    start() { rm -f /run/where; mkfifo /run/where; loopbox serve "$@" >/run/where 2>/run/said & pid=$!
        read disk </run/where || { cat /run/said; exit 1; }; }
    stop() { kill -TERM $pid; wait $pid || { cat /run/said; exit 1; }; test ! -e $disk; test ! -e /dev/ublkc0; }
    fresh() { sync; echo 3 >/proc/sys/vm/drop_caches; }
    refused() { if "$@" >/run/out 2>&1; then echo "not refused: $*"; exit 1; fi; }
    direct() { dd "$@" 2>/dev/null; }
    head -c 2097152 /dev/urandom > /run/random
"#;

const GUEST: &str = r#"
    part a file system on qcow2
    start disk.qcow2 --ublk --queues 2
    test $disk = /dev/ublkb0
    cd /sys/block/ublkb0; cat size ro queue/logical_block_size queue/discard_max_bytes queue/write_cache queue/fua
    ls mq | wc -l; cd /img
    loopbox list | grep -q 'serve .*/dev/ublkb0 .*disk.qcow2'
    loopbox top --json --count 1 --interval 0.1 | grep -q '"kind":"ublk".*disk.qcow2 at /dev/ublkb0'
    mkfs.ext4 -q $disk; mount -t ext4 -o discard $disk /mnt
    cp /run/random /mnt/one; cp /run/random /mnt/gone
    (direct if=/run/random of=/mnt/two bs=4k oflag=direct) & (cp /run/random /mnt/three) & wait %2 %3 2>/dev/null || true
    fresh; for file in one two three; do cmp /mnt/$file /run/random; done
    rm /mnt/gone; fresh
    refused loopbox detach $disk; cat /run/out
    umount /mnt; loopbox detach $disk; wait $pid; test ! -e $disk
    sha256sum < /run/random

    part an encrypted partition of qcow2
    start luks.qcow2,partition=2,luks,key-file=key --ublk
    mkfs.ext4 -q $disk; mount -t ext4 $disk /mnt; cp /run/random /mnt/one; umount /mnt; stop
    start luks.qcow2,partition=2,luks,key-file=key --ublk
    mount -t ext4 $disk /mnt; cmp /mnt/one /run/random; umount /mnt; stop

    part an overlay
    sha256sum < base.img > /run/before
    start base.img,overlay=changes --ublk
    direct if=/run/random of=$disk bs=64k seek=16 oflag=direct conv=notrunc
    fresh; direct if=$disk bs=64k skip=16 count=32 | cmp - /run/random; stop
    sha256sum < base.img | cmp - /run/before
    loopbox serve base.img,overlay=changes --ublk -- sh -c 'dd if=$disk bs=64k skip=16 count=32 2>/dev/null' | cmp - /run/random

    part a rest that is no block, discards and holes
    start odd.img --ublk
    cat /sys/block/ublkb0/size /run/said
    direct if=/run/random of=$disk bs=128k oflag=direct conv=notrunc
    (direct if=/run/random of=$disk bs=4k count=128 oflag=direct conv=notrunc) &
    (direct if=/run/random of=$disk bs=4k seek=512 skip=512 count=128 oflag=direct conv=notrunc) & wait %2 %3 2>/dev/null || true
    fresh; direct if=$disk bs=4k count=512 iflag=direct | cmp - /run/random
    sync; before=$(du -k odd.img | cut -f1)
    blkdiscard -o 0 -l 1048576 $disk; blkdiscard -z -o 1048576 -l 524288 $disk
    sync; echo $((before - $(du -k odd.img | cut -f1) >= 1024))
    direct if=$disk bs=512k skip=2 count=1 iflag=direct | cmp -n 524288 - /dev/zero
    dd if=/run/random bs=512k skip=3 count=1 2>/dev/null > /run/a
    direct if=$disk bs=512k skip=3 count=1 iflag=direct | cmp - /run/a; stop

    part read only
    start read.img,ro --ublk
    cat /sys/block/ublkb0/ro; refused dd if=/run/random of=$disk bs=4k count=1 oflag=direct
    refused blkdiscard $disk; direct if=$disk bs=64k | cmp - read.img; stop

    part killed with requests under way
    start killed.img --ublk
    direct if=/run/random of=$disk bs=64k count=32 oflag=direct conv=notrunc,fsync
    (while direct if=/run/random of=$disk bs=4k seek=2048 oflag=direct conv=notrunc; do :; done) & writer=$!
    direct if=$disk of=/dev/null bs=64k iflag=direct
    kill -KILL $pid; wait $pid 2>/dev/null || true; wait $writer || true
    loopbox list; test ! -e $disk; test ! -e /dev/ublkc0; loopbox list
    head -c 2097152 killed.img | cmp - /run/random
    start killed.img --ublk; test $disk = /dev/ublkb0; direct if=$disk bs=64k count=32 | cmp - /run/random

    part killed while it is mounted
    mkfs.ext4 -q $disk; mount -t ext4 $disk /mnt; echo safe > /mnt/file; sync
    kill -KILL $pid; wait $pid 2>/dev/null || true; loopbox list; umount /mnt; loopbox list
    start killed.img --ublk; mount -t ext4 $disk /mnt; cat /mnt/file
    kill -TERM $pid; wait $pid; cat /run/said; umount /mnt
    test ! -e $disk

    part what cannot be
    refused loopbox serve disk.qcow2 read.img --ublk; cat /run/out
    refused su nobody -s /bin/sh -c 'loopbox serve /img/read.img,ro --ublk'; cat /run/out
    loopbox doctor | grep 'ublk driver'

    part an ordinary user, whom udev gives the nodes
    chmod 666 /dev/ublk-control user.img
    (for node in /dev/ublkc0 /dev/ublkb0; do while ! chown nobody:nogroup $node 2>/dev/null; do sleep 0.01; done; done) &
    su nobody -s /bin/sh -c 'loopbox serve /img/user.img --ublk -- sh -c "
        dd if=/run/random of=\$disk bs=64k conv=notrunc,fsync 2>/dev/null; cmp -n 2097152 \$disk /run/random && id -un"'
    head -c 2097152 user.img | cmp - /run/random
    test ! -e /dev/ublkb0; cd /; umount /img
"#;

/// What the guest says, sums left out.
const SAID: &[&str] = &[
    "== a file system on qcow2",
    "98304",
    "0",
    "512",
    "1073741824",
    "write back",
    "1",
    "2",
    "loopbox: /dev/ublkb0 is in use: mounted on /mnt",
    "== an encrypted partition of qcow2",
    "== an overlay",
    "== a rest that is no block, discards and holes",
    "8193",
    "loopbox: odd.img: the last 188 bytes are no whole block, and are not seen",
    "1",
    "== read only",
    "1",
    "== killed with requests under way",
    "== killed while it is mounted",
    "safe",
    "loopbox: /dev/ublkb0 is still in use (mounted on /mnt): what was written is made safe, and it fails from now on",
    "== what cannot be",
    "loopbox: --ublk serves one image: it becomes one disk",
    "loopbox: /dev/ublk-control may not be opened (as root, or let users have it by udev's rules for ublk)",
    "yes  ublk driver          /dev/ublkbN: serve --ublk         /dev/ublk-control opens",
    "== an ordinary user, whom udev gives the nodes",
    "nobody",
];

#[test]
fn without_the_driver_one_line_says_what_is_missing() {
    let session = Session::new(User::Ordinary, "ublk-words");
    session.shell("truncate -s 1M disk; printf small > small");
    let disk = session.word("disk");
    if !std::path::Path::new("/dev/ublk-control").exists() {
        let said = session.fails(["serve", &disk, "--ublk"]);
        assert!(said.contains("no /dev/ublk-control") && said.contains("modprobe ublk_drv"), "{said}");
        let report: serde_json::Value = serde_json::from_str(&session.done(["doctor", "--json"])).unwrap();
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == "ublk driver").unwrap();
        assert_eq!(check["remedy"], "as root: modprobe ublk_drv", "{check}");
    }
    for words in
        [&["--ublk", "--nbd", "0"][..], &["--ublk", "--stdio"], &["--queues", "2"], &["--ublk", "--queues", "0"]]
    {
        let output = session.output(["serve", &disk].iter().chain(words));
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", rig::text(&output));
    }
}

#[test]
fn the_kernel_has_a_disk_of_every_stack() {
    requires_guest!();
    requires!("mkfs.ext4", "e2fsck", "debugfs", "qemu-img", "sfdisk", "blkdiscard", "strip");
    let session = Session::new(User::Myself, "ublk");
    std::fs::write(session.join("key"), "pass word").unwrap();
    let quick = ["--pbkdf-memory", "64", "--pbkdf-parallel", "1"];
    let (key, luks) = (session.word("key"), session.word("luks"));
    session.done(["create", "--luks2", "--size", "24M", "--key-file", &key, &luks].iter().chain(&quick));
    session.shell(IMAGES);
    // Without its symbols: the guest keeps it in memory.
    run_command(session.command("strip").arg("-o").arg(session.join("loopbox")).arg(program()));
    let guest = Guest::new().memory_mib(1024).processors(2).patience(Duration::from_secs(400));
    let guest = guest.module("crc32c_generic").module("ext4").module("ublk_drv").disk(&session.join("vda"));
    let guest = guest.program(session.join("loopbox")).program("mkfs.ext4").program("blkdiscard");
    let done = guest.run(&format!("{PRELUDE}{GUEST}"));
    assert_eq!(done.status, 0, "{done}");
    let (sum, said): (Vec<&str>, Vec<&str>) = done.output.lines().partition(|line| line.ends_with("  -"));
    assert_eq!(said, SAID, "{done}");
    // What was written is in the images, and what was discarded is not.
    for (image, stack) in [("disk.qcow2", String::new()), ("luks.qcow2", format!(",partition=2,luks,key-file={key}"))] {
        let (inside, image) = (format!("{}:/{image}", session.word("vda")), session.word(image));
        session.done(["cp", &inside, &image]);
        run_command(session.command("qemu-img").args(["check", "-q", &image]));
        let raw = session.word("raw.img");
        let _ = std::fs::remove_file(&raw);
        session.done(["convert", &format!("{image}{stack}"), &raw]);
        run_command(session.command("e2fsck").args(["-f", "-n", &raw]));
        let copy = session.word("one");
        run_command(session.command("debugfs").args(["-R", &format!("dump /one {copy}"), &raw]));
        assert_eq!(session.shell("sha256sum < one").trim_end(), sum[0], "{image}");
        std::fs::remove_file(&copy).unwrap();
        session.done(["cp", &format!("{image}{stack}:/one"), &copy]);
        assert_eq!(session.shell("sha256sum < one").trim_end(), sum[0], "{image}");
    }
    assert!(session.join("disk.qcow2").metadata().unwrap().len() < 24 << 20, "what was discarded is still there");
}
