//! Disk images of other programs, behind every command.

use rig::{User, requires, run_command};

use crate::session::Session;

fn shell(session: &Session, line: &str) -> String {
    run_command(session.command("sh").args(["-ec", line]).current_dir(session.join(".")))
}

fn words(session: &Session, name: &str) -> String {
    session.join(name).display().to_string()
}

/// A disk with one partition, which holds an ext4 with one file, as qcow2: `disk.qcow2`, and as it is: `disk.raw`.
fn disk(session: &Session) {
    shell(
        session,
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
    let image = words(&session, "disk.qcow2");
    let info = session.done(["info", &image]);
    assert!(info.contains("qcow2 3, a disk of 32.0 MiB") && info.contains("ext4"), "{info}");
    assert_eq!(session.done(["cat", &format!("{image}:/greeting")]), "hello\n");
    assert_eq!(session.done(["cat", &format!("{image},partition=1:/greeting")]), "hello\n");
    session.done(["cp", &format!("{image}:/greeting"), &words(&session, "copy")]);
    let folder = words(&session, "folder");
    shell(&session, "mkdir folder");
    session.done(["mount", &image, &folder]);
    assert_eq!(shell(&session, "cat folder/greeting"), "hello\n");
    session.done(["umount", &folder]);
    let node = session.done(["attach", &image]);
    shell(
        &session,
        &format!("cmp {} disk.raw; printf changed | dd of={0} bs=1 seek=20M conv=notrunc 2>&1", node.trim()),
    );
    session.done(["detach", node.trim()]);
    shell(&session, "qemu-img check disk.qcow2; printf changed | dd of=disk.raw bs=1 seek=20M conv=notrunc 2>&1");
    shell(&session, "qemu-img compare disk.qcow2 disk.raw");
    let compare = format!("qemu-img compare -f raw -F raw $uri {}", words(&session, "disk.raw"));
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
    shell(&session, "qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 top.qcow2");
    let top = words(&session, "top.qcow2");
    let said = session.fails(["cat", &format!("{top}:/greeting")]);
    assert!(said.contains("disk.qcow2") && said.contains(",backing"), "{said}");
    let info = session.done(["info", &top]);
    assert!(info.contains("on top of \"disk.qcow2\"") && info.contains("32.0 MiB"), "{info}");
    assert_eq!(session.done(["cat", &format!("{top},backing:/greeting")]), "hello\n");
    let other = words(&session, "disk.raw");
    shell(&session, "qemu-img rebase -u -f qcow2 -b nowhere.raw -F raw top.qcow2");
    assert_eq!(session.done(["cat", &format!("{top},backing={other}:/greeting")]), "hello\n");
    // A chain that comes back to where it began.
    shell(&session, "qemu-img rebase -u -f qcow2 -b top.qcow2 -F qcow2 disk.qcow2");
    shell(&session, "qemu-img rebase -u -f qcow2 -b disk.qcow2 -F qcow2 top.qcow2");
    let said = session.fails(["ls", &format!("{top},backing")]);
    assert!(said.contains("leads back to itself"), "{said}");
    // A raw disk whose guest wrote a header is not followed when nobody recorded what it is.
    shell(&session, "qemu-img create -q -f qcow2 -b /etc/passwd -F raw guest.raw 1M");
    shell(&session, "qemu-img create -q -u -f qcow2 -b guest.raw top.qcow2 1M 2>/dev/null || true");
    shell(&session, "qemu-img rebase -u -b guest.raw -F qcow2 top.qcow2");
    // Taking away the format that was recorded: the extension becomes an unknown one.
    let bytes = std::fs::read(session.join("top.qcow2")).unwrap();
    let at = bytes.windows(4).position(|word| word == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    let mut without = bytes;
    without[at] = 0x12;
    shell(&session, "rm top.qcow2; touch top.qcow2");
    std::fs::write(session.join("top.qcow2"), without).unwrap();
    let said = session.fails(["cat", &format!("{top},backing:/x")]);
    assert!(said.contains("does not say its format"), "{said}");
    // As deep as it may be, and deeper.
    shell(
        &session,
        "qemu-img create -q -f qcow2 c0.qcow2 1M; for n in $(seq 70); do \
         qemu-img create -q -u -f qcow2 -b c$((n-1)).qcow2 -F qcow2 c$n.qcow2 1M; done",
    );
    session.done(["info", &format!("{},backing", words(&session, "c60.qcow2"))]);
    let said = session.fails(["info", &format!("{},backing", words(&session, "c70.qcow2"))]);
    assert!(said.contains("more than 64 images"), "{said}");
}
