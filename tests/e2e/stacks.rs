//! Every command on every kind of stack, as root and as an ordinary user: what the first layer can do, all can.

use std::path::Path;

use rig::{User, requires, requires_kernel, requires_root, run_command};

use crate::session::Session;

/// What becomes of what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// It is in the image.
    Kept,
    /// It goes with the process that wrote it.
    Dropped,
    /// There are none.
    Refused,
}

/// Specs, in the folder `@`.
const STACKS: &[(&str, Writes)] = &[
    ("@/disk,partition=2", Writes::Kept),
    ("@/disk,overlay,partition=2", Writes::Dropped),
    ("@/disk,partition=2,overlay=@/changes", Writes::Kept),
    ("@/disk.qcow2,partition=2", Writes::Kept),
    ("@/top.qcow2,backing,partition=2", Writes::Kept),
    ("@/packed.qcow2,partition=2,ro", Writes::Refused),
    ("@/disk.vmdk,partition=2", Writes::Refused),
    ("@/disk.vhdx,partition=2", Writes::Refused),
    ("@/disk.xz,partition=2", Writes::Refused),
    ("@/vault,offset=4M,luks,key-file=@/key", Writes::Kept),
    ("@/vault.qcow2,partition=2,luks,key-file=@/key", Writes::Kept),
    ("@/vault.qcow2,partition=2,luks,key-file=@/key,overlay", Writes::Dropped),
];

/// The images: an ext4 in the second partition of each, encrypted or not.
const IMAGES: &str =
    "mkdir -p tree/sub mnt; echo hello > tree/hello; seq 20000 > tree/sub/numbers; printf 'pass word' > key
    truncate -s 12M ext4; mke2fs -q -t ext4 -d tree ext4
    $LOOPBOX create --luks2 --size 30M --key-file key --pbkdf-memory 64 --pbkdf-parallel 1 luks > /dev/null
    $LOOPBOX serve luks,luks,key-file=key -- sh -c 'nbdcopy ext4 \"$uri\"'
    put() { truncate -s $3 $1; printf 'label: gpt\\nstart=2048, size=2048\\nstart=8192\\n' | sfdisk --quiet $1
        dd if=$2 of=$1 bs=1M seek=4 conv=notrunc status=none; }
    put disk ext4 20M; put vault luks 36M
    for image in disk vault; do qemu-img convert -f raw -O qcow2 $image $image.qcow2; done
    cp disk.qcow2 base.qcow2; qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
    qemu-img convert -f raw -c -O qcow2 disk packed.qcow2; xz -k -1 disk
    for format in vmdk vhdx; do qemu-img convert -f raw -O $format disk disk.$format; done; rm ext4 luks";

fn every_command_on_every_stack(user: User) {
    let session = Session::new(user, "stacks");
    let folder = session.join("").display().to_string();
    let folder = folder.trim_end_matches('/');
    let loopbox = crate::session::program().display().to_string();
    session.shell(&IMAGES.replace("$LOOPBOX", &loopbox));
    let numbers = std::fs::read_to_string(session.join("tree/sub/numbers")).unwrap();
    let (point, copy) = (session.word("mnt"), session.word("copy"));
    let same = |path: &Path, image: &str| {
        assert!(run_command(session.command("cat").arg(path)) == numbers, "{image}");
    };
    for (n, (stack, writes)) in STACKS.iter().enumerate() {
        let image = &stack.replace('@', folder);
        // Without a mount.
        assert!(session.done(["info", image]).contains("ext4"), "{image}");
        assert!(session.done(["ls", &format!("{image}:/")]).contains("hello"), "{image}");
        assert_eq!(session.done(["cat", &format!("{image}:/sub/numbers")]), numbers, "{image}");
        let out = session.join(format!("out{n}"));
        session.done(["cp", &format!("{image}:/sub"), &out.display().to_string()]);
        same(&out.join("numbers"), image);
        session
            .shell(&format!("{loopbox} tar '{image}:/sub' | tar -xO --wildcards '*numbers' | cmp - tree/sub/numbers"));

        // Mounted, by the kernel where root can, and in user space.
        for how in [&["mount"][..], &["mount", "--user"]] {
            session.done(how.iter().chain([&&**image, &&*point]));
            same(&session.join("mnt/sub/numbers"), image);
            session.done(["umount", &point]);
        }
        // As a disk, which is written to; whoever looks meanwhile is not refused.
        for how in [&["attach"][..], &["attach", "--user"]] {
            let node = session.done(how.iter().chain([&&**image]));
            let node = node.lines().next().unwrap();
            assert_eq!(session.done(["cat", &format!("{node}:/hello")]), "hello\n", "{image}");
            assert_eq!(session.done(["cat", &format!("{image}:/hello")]), "hello\n", "{image}");
            let labelled = rig::output(session.command("e2label").args([node, &format!("label{n}")]));
            assert_eq!(labelled.status.success(), *writes != Writes::Refused, "{image}: {}", rig::text(&labelled));
            session.done(["detach", node]);
        }
        // As a network block device, and as another image: at once after it was let go.
        let labelled = |copy: &str| run_command(session.command("e2label").arg(copy)) == format!("label{n}\n");
        session.done(["serve", image, "--", "sh", "-c", "nbdcopy \"$uri\" $0", &copy]);
        assert_eq!(labelled(&copy), *writes == Writes::Kept, "{image}");
        std::fs::remove_file(&copy).unwrap();
        session.done(["convert", image, &copy]);
        assert_eq!(session.done(["cat", &format!("{copy}:/sub/numbers")]), numbers, "{image}");
        assert_eq!(labelled(&copy), *writes == Writes::Kept, "{image}");
        run_command(session.command("e2fsck").args(["-f", "-n", &copy]));
        std::fs::remove_file(&copy).unwrap();
        let run = ["run", "--mount", &format!("{image}:/mnt"), "--", "cat", "/mnt/sub/numbers"];
        assert_eq!(session.done(run), numbers, "{image}");
    }
    for image in ["disk.qcow2", "top.qcow2", "vault.qcow2"] {
        run_command(session.command("qemu-img").args(["check", "-q"]).arg(session.join(image)));
    }
    let listed: serde_json::Value = serde_json::from_str(&session.done(["list", "--json"])).unwrap();
    assert_eq!(listed["processes"], serde_json::json!([]));
}

#[test]
fn every_command_works_on_every_stack_as_root() {
    requires_root!();
    requires!("mke2fs", "e2label", "e2fsck", "sfdisk", "qemu-img", "nbdcopy", "xz");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    every_command_on_every_stack(User::Myself);
}

#[test]
fn every_command_works_on_every_stack_as_an_ordinary_user() {
    requires!("mke2fs", "e2label", "e2fsck", "sfdisk", "qemu-img", "nbdcopy", "xz", "fusermount3");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    every_command_on_every_stack(User::Ordinary);
}

#[test]
fn who_only_reads_makes_no_overlay_and_waits_for_nobody() {
    requires!("mke2fs", "e2label", "fusermount3");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let session = Session::new(User::Ordinary, "overlay");
    session.shell("mkdir tree; echo hello > tree/file; truncate -s 4M disk; mke2fs -q -t ext4 -d tree disk");
    let image = session.word("disk,overlay=") + &session.word("changes");
    let inside = format!("{image}:/file");
    assert_eq!(session.done(["cat", &inside]), "hello\n");
    assert!(!session.join("changes").exists());
    let node = session.done(["attach", "--user", &image]);
    let (node, changes) = (node.trim_end(), session.join("changes"));
    run_command(session.command("e2label").args([node, "tea"]));
    assert_eq!(session.done(["cat", &inside]), "hello\n");
    session.done(["detach", node]);
    // Nor does it need the right to write.
    session.shell("chmod 400 changes");
    assert!(session.done(["info", &image]).contains("tea"));
    assert!(!session.done(["info", &session.word("disk")]).contains("tea"));
    if !rig::is_root() {
        let said = session.fails(["attach", "--user", &image]);
        assert!(said.contains(&changes.display().to_string()), "{said}");
    }
}
