//! What is seen through a mount is what is in the image; and what mount and umount say when they cannot.

use std::fs;
use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rig::tree::{Manifest, assert_same, of_folder};
use rig::{User, requires, requires_kernel, requires_root};

use crate::ext4_files;
use crate::files::{SAMPLE, disc};
use crate::session::{Session, program};

/// Reads a mounted tree as the user whose mount it is, into an archive that keeps times to the nanosecond.
const READ: &str = "tar --format=posix --xattrs --xattrs-include='user.*' --sort=name -C $0/mnt -cf $0/seen.tar .";

/// Runs a shell script in the session's folder, `$0`.
fn shell(session: &Session, script: &str) -> String {
    rig::run_command(session.command("sh").args(["-c", script]).arg(session.join("")))
}

/// What [`READ`] saw.
fn seen(session: &Session) -> Manifest {
    let folder = session.join("seen");
    fs::create_dir(&folder).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--xattrs", "--xattrs-include=user.*", "--numeric-owner", "-xpf"]).arg(session.join("seen.tar"));
    rig::run_command(tar.arg("-C").arg(folder.as_path()));
    of_folder(&folder)
}

/// What an ISO keeps of the tree that it was made from.
fn in_iso(tree: &Path) -> Manifest {
    crate::files::kept(of_folder(tree), User::Myself)
}

#[test]
fn the_tree_of_an_iso_is_seen_by_root_and_by_an_ordinary_user() {
    requires!("xorriso", "tar", "fusermount3");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let disc = disc("seen", SAMPLE);
    for user in [User::Myself, User::Ordinary] {
        let session = Session::new(user, "seen");
        shell(&session, "mkdir $0/mnt");
        let options = ["mount", "--user", "-o", "ro"].map(PathBuf::from);
        session.done(options.iter().chain([&disc.image, &session.join("mnt")]));
        shell(&session, READ);
        session.done([Path::new("umount"), &session.join("mnt")]);
        assert_same("mount", &seen(&session), "tree", &in_iso(&disc.tree));
    }
}

#[test]
fn the_tree_of_an_iso_is_seen_in_a_user_namespace() {
    requires!("xorriso", "tar", "unshare");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let disc = disc("namespace", SAMPLE);
    let session = Session::new(User::Ordinary, "namespace");
    let script = format!(
        "set -e; mkdir $0/mnt; bin=$PATH; PATH=/nowhere; $1 mount $2 $0/mnt; PATH=$bin; {READ}; PATH=/nowhere
         $1 umount $0/mnt; PATH=$bin; test -z \"$(ls $0/mnt)\""
    );
    let mut command = session.command("unshare");
    command.args(["-Ur", "-m", "sh", "-c", &script]).arg(session.join("")).arg(program()).arg(&disc.image);
    rig::run_command(&mut command);
    // Nobody else's number has a meaning in there.
    let without_owners = |mut manifest: Manifest| {
        manifest.values_mut().for_each(|file| file.owner = (0, 0));
        manifest
    };
    assert_same("mount", &without_owners(seen(&session)), "tree", &without_owners(in_iso(&disc.tree)));
}

#[test]
fn ext4_between_an_offset_and_a_limit_is_seen_from_user_space() {
    requires!("mke2fs", "sfdisk", "tar", "fusermount3");
    requires_root!();
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let disk = ext4_files::disk("ext4", false);
    let tree = ext4_files::kept(of_folder(&disk.tree), User::Myself);
    let session = Session::new(User::Ordinary, "between");
    shell(&session, "mkdir $0/mnt");
    let point = session.join("mnt");
    let words = |options: &str| {
        let options = ["mount", "--user", "-o", options].map(PathBuf::from);
        options.into_iter().chain([disk.image.clone(), point.clone()]).collect::<Vec<_>>()
    };
    for options in ["offset=1M,sizelimit=64M", "partition=2"] {
        session.done(words(options));
        shell(&session, READ);
        session.done([Path::new("umount"), &point]);
        assert_same(options, &ext4_files::kept(seen(&session), User::Myself), "tree", &tree);
        fs::remove_dir_all(session.join("seen")).unwrap();
    }
    for (options, said) in [
        ("offset=1M,sizelimit=32M", "file system of 67108864 bytes on a device of 33554432 bytes"),
        ("partition=1", "no known file system"),
        ("partition=3", "partition"),
        ("offset=1G", "offset"),
    ] {
        let fails = session.fails(words(options));
        assert!(fails.contains(said) && fails.contains("disk.img"), "{options}: {fails}");
    }
}

#[test]
fn a_mount_of_the_kernel_that_is_in_use_is_said_to_be() {
    requires!("mke2fs", "sfdisk", "sleep");
    requires_root!();
    requires_kernel!(rig::have_filesystem("ext4") && Path::new("/dev/loop-control").exists(), "ext4 or loop devices");
    let disk = ext4_files::disk("ext4", false);
    let session = Session::new(User::Myself, "kernel");
    let point = session.join("mnt");
    fs::create_dir(&point).unwrap();
    let options = ["mount", "-o", "ro,partition=2"].map(PathBuf::from);
    session.done(options.iter().chain([&disk.image, &point]));
    let mut holder = session.command("sh");
    let script = "cd $0/mnt/deep1; echo ready; exec sleep 1000";
    let mut holder = holder.args(["-c", script]).arg(session.join("")).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let output = session.output([Path::new("umount"), &point]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", rig::text(&output));
    assert!(rig::text(&output).contains("in use by sleep (process"), "{}", rig::text(&output));
    session.done([Path::new("umount"), &point]);
    assert_eq!(fs::read_dir(&point).unwrap().count(), 0);
}

#[test]
fn a_mount_whose_server_died_is_unmounted() {
    requires!("xorriso", "fusermount3", "kill");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let disc = disc("stale", rig::tree::Sample::default());
    for user in [User::Myself, User::Ordinary] {
        let session = Session::new(user, "stale");
        shell(&session, "mkdir $0/mnt");
        let point = session.join("mnt");
        session.done([Path::new("mount"), Path::new("--user"), &disc.image, &point]);
        let list: serde_json::Value = serde_json::from_str(&session.done(["list", "--json"])).unwrap();
        // Root's list shows the loop devices of others too.
        let rows = list["loopdevices"].as_array().unwrap();
        let row = rows.iter().find(|row| row["name"].as_str().map(Path::new) == Some(&point)).unwrap();
        let pid = row["pid"].to_string();
        rig::run("kill", ["-9", &pid]);
        let lives = || rig::output(session.command("stat").arg("-f").arg(&point)).status.success();
        rig::wait_until("the server is dead", || !lives());
        session.done([Path::new("umount"), &point]);
        assert_eq!(shell(&session, "ls -A $0/mnt"), "");
    }
}

#[test]
fn a_closed_fuse_device_is_said_with_what_opens_it() {
    requires!("xorriso", "unshare", "setpriv", "mknod");
    requires_root!();
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let disc = disc("closed", rig::tree::Sample::default());
    let session = Session::new(User::Ordinary, "closed");
    fs::create_dir(session.join("dev")).unwrap();
    shell(&session, "mkdir $0/mnt");
    let script = format!(
        "set -e; mount -t tmpfs none {folder}; mknod -m 600 {folder}/fuse c 10 229; mount --bind {folder}/fuse /dev/fuse
         exec setpriv --reuid {user} --regid {user} --clear-groups {program} mount {image} {point}",
        folder = session.join("dev").display(),
        user = rig::ORDINARY_USER,
        program = program().display(),
        image = disc.image.display(),
        point = session.join("mnt").display(),
    );
    let mut command = Command::new("unshare");
    let output = rig::output(command.args(["--mount", "--propagation", "private", "sh", "-c", &script]));
    let said = rig::text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("/dev/fuse") && said.contains("chmod 666 /dev/fuse"), "{said}");
}
