//! `loopbox attach`, `list` and `detach` in user space: as root, as an ordinary user with fusermount3, and in a user
//! namespace without it.

use std::path::{Path, PathBuf};
use std::process::Command;

use rig::{User, requires, requires_kernel, requires_root, run_command, text, wait_until};

use crate::session::{Session, program};

fn have_fuse() -> bool {
    Path::new("/dev/fuse").exists()
}

/// An image of `size` bytes in the session's folder.
fn image(session: &Session, name: &str, size: u64) -> PathBuf {
    let path = session.join(name);
    run_command(session.command("truncate").arg(format!("--size={size}")).arg(&path));
    path
}

fn attach(session: &Session, image: &Path) -> PathBuf {
    PathBuf::from(session.done([Path::new("attach"), Path::new("--user"), image]).trim_end())
}

fn rows(session: &Session) -> Vec<serde_json::Value> {
    let list: serde_json::Value = serde_json::from_str(&session.done(["list", "--json"])).unwrap();
    let rows = list["loopdevices"].as_array().unwrap().iter();
    rows.filter(|row| row["kind"] == "user").cloned().collect()
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap()
}

#[test]
fn a_node_is_a_disk_for_every_program() {
    requires!("mkfs.ext4", "e2fsck", "debugfs", "qemu-img", "qemu-io", "sfdisk", "fusermount3");
    requires_kernel!(have_fuse(), "FUSE");
    for user in [User::Myself, User::Ordinary] {
        let session = Session::new(user, "attach");
        let image = image(&session, "a disk, with a name.img", 64 << 20);
        let peer = |program: &str, words: &[&str], last: &Path| {
            run_command(session.command(program).args(words).arg(last));
        };
        let typed = PathBuf::from(image.to_str().unwrap().replace(',', "\\,"));
        let node = attach(&session, &typed);
        peer("mkfs.ext4", &["-q", "-F"], &node);
        peer("e2fsck", &["-fn"], &node);
        peer("debugfs", &["-w", "-R", "mkdir /made"], &node);
        peer("e2fsck", &["-fn"], &node);
        peer("qemu-img", &["info"], &node);
        let row = &rows(&session)[0];
        assert_eq!((row["name"].as_str(), row["back-file"].as_str()), (node.to_str(), image.to_str()));
        let again = session.fails([Path::new("attach"), Path::new("--user"), &typed]);
        assert!(again.contains("attached as") && again.contains(node.to_str().unwrap()), "{again}");
        session.done([Path::new("detach"), &node]);
        // What was written through the node is in the image.
        peer("e2fsck", &["-fn"], &image);
        assert!(run_command(session.command("debugfs").args(["-R", "ls /"]).arg(&image)).contains("made"));
        assert!(rows(&session).is_empty());
        assert!(!node.exists() && !mounts().contains(session.join("").to_str().unwrap()), "{}", mounts());
    }
}

#[test]
fn partitions_are_nodes_beside_the_disk() {
    requires!("sfdisk", "mkfs.ext4", "e2fsck", "qemu-io", "fusermount3");
    requires_kernel!(have_fuse(), "FUSE");
    let session = Session::new(User::Ordinary, "partitions");
    let image = image(&session, "disk.img", 96 << 20);
    let script = "label: gpt\nsize=32M\nsize=16M\n";
    let sfdisk = format!("printf '{script}' | sfdisk -q {}", image.display());
    run_command(session.command("sh").args(["-c", &sfdisk]));
    let node = attach(&session, &image);
    let part = |number: u32| PathBuf::from(format!("{}p{number}", node.display()));
    let size = run_command(session.command("stat").args(["-c", "%s"]).arg(part(2)));
    assert_eq!(size.trim(), (16u64 << 20).to_string());
    run_command(session.command("mkfs.ext4").args(["-q", "-F"]).arg(part(1)));
    run_command(session.command("qemu-io").args(["-f", "raw", "-c", "write -P 7 0 1M", "-c", "flush"]).arg(part(2)));
    run_command(session.command("e2fsck").args(["-fn"]).arg(part(1)));
    // The same bytes through the disk: partition 2 begins at 33 MiB.
    run_command(session.command("qemu-io").args(["-f", "raw", "-c", "read -P 7 33M 1M"]).arg(&node));
    session.done([Path::new("detach"), &image]);
    run_command(session.command("e2fsck").args(["-fn"]).arg(format!("{}?offset=1048576", image.display())));
}

#[test]
fn inside_a_user_namespace_no_other_program_is_needed() {
    requires!("unshare", "mkfs.ext4", "e2fsck");
    requires_kernel!(have_fuse(), "FUSE");
    let session = Session::new(User::Ordinary, "namespace");
    let image = image(&session, "disk.img", 32 << 20);
    let script = "set -e; PATH=$LOOPBOX_PEERS; node=$($0 attach --user $1); mkfs.ext4 -q -F $node; e2fsck -fn $node; $0 list; $0 detach $node";
    // No fusermount3 on this PATH.
    let bin = session.join("bin");
    std::fs::create_dir(&bin).unwrap();
    for program in ["mkfs.ext4", "e2fsck"] {
        std::os::unix::fs::symlink(rig::which(program).unwrap(), bin.join(program)).unwrap();
    }
    let mut command = session.command("unshare");
    command.args(["-Ur", "-m", "/bin/sh", "-c", script]);
    let said = run_command(command.arg(program()).arg(&image).env("LOOPBOX_PEERS", bin));
    assert!(said.contains("disk.img"), "{said}");
    run_command(session.command("e2fsck").args(["-fn"]).arg(&image));
}

#[test]
fn a_closed_device_is_said() {
    requires!("unshare", "setpriv", "mknod");
    requires_root!();
    let session = Session::new(User::Ordinary, "closed");
    let image = image(&session, "disk.img", 1 << 20);
    std::fs::create_dir(session.join("dev")).unwrap();
    // In a mount namespace of its own, so that the machine's device stays as it is; and with no fusermount3.
    let script = format!(
        "set -e; mount -t tmpfs none {folder}; mknod -m 600 {folder}/fuse c 10 229; mount --bind {folder}/fuse /dev/fuse
         XDG_RUNTIME_DIR={runtime} PATH=/nowhere /usr/bin/setpriv --reuid {user} --regid {user} --clear-groups \
         {program} attach --user {image} 2>&1 || echo \"status $?\"",
        folder = session.join("dev").display(),
        runtime = session.join("runtime").display(),
        user = rig::ORDINARY_USER,
        program = program().display(),
        image = image.display(),
    );
    let said = rig::run("unshare", ["--mount", "--propagation", "private", "sh", "-c", &script]);
    assert!(said.contains("/dev/fuse is closed to this user") && said.contains("chmod 666 /dev/fuse"), "{said}");
    assert!(said.contains("status 2"), "{said}");
    assert!(rows(&session).is_empty());
}

#[test]
fn sixty_four_at_once_do_not_meet() {
    requires!("fusermount3");
    requires_kernel!(have_fuse(), "FUSE");
    let session = Session::new(User::Ordinary, "parallel");
    let images: Vec<PathBuf> = (0..64).map(|number| image(&session, &format!("{number}.img"), 1 << 20)).collect();
    let mut nodes: Vec<PathBuf> = std::thread::scope(|scope| {
        let threads: Vec<_> = images.iter().map(|image| scope.spawn(|| attach(&session, image))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(rows(&session).len(), 64);
    nodes.sort();
    nodes.dedup();
    assert_eq!(nodes.len(), 64);
    session.done(["detach", "--all"]);
    assert!(rows(&session).is_empty());
}

fn server(session: &Session) -> i64 {
    rows(session)[0]["pid"].as_i64().unwrap()
}

#[test]
fn a_number_that_is_used_again_shows_the_new_image() {
    requires!("fusermount3", "cmp");
    requires_kernel!(have_fuse(), "FUSE");
    for user in [User::Myself, User::Ordinary] {
        let session = Session::new(user, "again");
        let mut nodes = Vec::new();
        for round in 0..4_u8 {
            let image = session.join(format!("disk-{round}.img"));
            std::fs::write(&image, vec![round; 1 << 20]).unwrap();
            run_command(Command::new("chmod").arg("666").arg(&image));
            // Every other one is written to as well, so that the kernel keeps pages of both kinds.
            let node = attach(&session, &image);
            if round % 2 == 1 {
                let write =
                    format!("printf loopbox | dd of='{}' conv=notrunc bs=4096 seek=9 status=none", node.display());
                run_command(session.command("sh").args(["-c", &write]));
            }
            // Twice: by its server, and from what the kernel kept.
            for _ in 0..2 {
                let bytes = session.command("cat").arg(&node).output().unwrap().stdout;
                assert!(bytes == std::fs::read(&image).unwrap(), "{user:?}, round {round}");
            }
            session.done([Path::new("detach"), &node]);
            nodes.push(node);
        }
        assert!(nodes.iter().all(|node| *node == nodes[0]), "{nodes:?}");
    }
}

#[test]
fn a_disk_that_nobody_writes_refuses_them_and_is_read() {
    requires!("fusermount3", "cmp");
    requires_kernel!(have_fuse(), "FUSE");
    for user in [User::Myself, User::Ordinary] {
        let session = Session::new(user, "read-only");
        let image = session.join("disk.img");
        std::fs::write(&image, rig::noise(1 << 20)).unwrap();
        for spec in [image.clone(), session.join("disk.img,direct"), session.join("disk.img,offset=4096")] {
            let words = [Path::new("attach"), Path::new("--user"), Path::new("--read-only"), &spec];
            let node = PathBuf::from(session.done(words).trim_end());
            let skip = if spec.ends_with("disk.img,offset=4096") { "4096:0" } else { "0:0" };
            run_command(session.command("cmp").args(["-i", skip]).arg(&image).arg(&node));
            let write = format!("echo x > '{}'", node.display());
            assert!(!session.command("sh").args(["-c", &write]).output().unwrap().status.success());
            session.done([Path::new("detach"), &node]);
        }
    }
}

#[test]
fn what_a_killed_server_leaves_is_cleaned_away() {
    requires!("fusermount3");
    requires_kernel!(have_fuse(), "FUSE");
    for user in [User::Myself, User::Ordinary] {
        let session = Session::new(user, "killed");
        let image = image(&session, "disk.img", 1 << 20);
        let node = attach(&session, &image);
        let pid = server(&session).to_string();
        run_command(Command::new("kill").args(["-9", &pid]));
        // A process takes a moment to die, of which nothing is seen from outside but this.
        wait_until("it is cleaned away", || rows(&session).is_empty());
        assert!(!mounts().contains(node.parent().unwrap().to_str().unwrap()), "{}", mounts());
        // The same number again.
        assert_eq!(attach(&session, &image), node);
        session.done([Path::new("detach"), &node]);
    }
}

#[test]
fn a_server_that_is_asked_to_end_unmounts() {
    requires!("fusermount3");
    requires_kernel!(have_fuse(), "FUSE");
    for signal in ["-TERM", "-INT", "-HUP"] {
        let session = Session::new(User::Ordinary, "asked");
        let image = image(&session, "disk.img", 1 << 20);
        let node = attach(&session, &image);
        let pid = server(&session).to_string();
        run_command(Command::new("kill").args([signal, &pid]));
        wait_until("the server ended", || !mounts().contains(node.parent().unwrap().to_str().unwrap()));
        wait_until("its record is gone", || !node.parent().unwrap().exists());
    }
}

#[test]
fn a_disk_in_use_is_not_detached_and_its_user_is_named() {
    requires!("fusermount3", "sleep");
    requires_kernel!(have_fuse(), "FUSE");
    let session = Session::new(User::Ordinary, "busy");
    let image = image(&session, "disk.img", 1 << 20);
    let node = attach(&session, &image);
    let script = format!("exec 3<>{}; echo ready; exec sleep 1000", node.display());
    let mut holder = session.command("sh");
    let mut holder = holder.args(["-c", &script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().unwrap()), &mut line).unwrap();
    let output = session.output([Path::new("detach"), &node]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("in use by sleep (process"), "{said}");
    session.done([Path::new("detach"), &node]);
}
