//! cp, tar, ls and cat of ext2, ext3 and ext4 in a partition, against the tree that mke2fs put there, the kernel's own
//! mount, debugfs and two readers of archives.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rig::tree::{Manifest, Sample, assert_same, of_folder};
use rig::{Scratch, User, requires, requires_kernel, requires_root};

use crate::session::Session;

/// Where the partition begins, bytes.
const START: u64 = 1 << 20;

/// A tree, and a disk whose second partition holds it; the first holds nothing.
pub(crate) struct Disk {
    _scratch: Scratch,
    pub(crate) tree: PathBuf,
    pub(crate) image: PathBuf,
}

/// `sparse` is the large file of the sample: reading its zeros takes most of a test's time.
pub(crate) fn disk(file_system: &str, sparse: bool) -> Disk {
    let scratch = Scratch::new(file_system);
    let (tree, image) = (scratch.join("tree"), scratch.join("disk.img"));
    fs::create_dir(&tree).unwrap();
    rig::tree::make(&tree, Sample { many: 40, sparse, ..Sample::ALL });
    let mut mke2fs = Command::new(rig::which("mke2fs").unwrap());
    mke2fs.args(["-q", "-F", "-t", file_system, "-E", &format!("offset={START}"), "-d"]).arg(&tree);
    rig::run_command(mke2fs.arg(&image).arg("64M"));
    let size = START + (66 << 20);
    fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(size).unwrap();
    let mut sfdisk = Command::new(rig::which("sfdisk").unwrap());
    sfdisk
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(&image)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = sfdisk.spawn().unwrap();
    let table = "label: gpt\n1: start=133120, size=2048\n2: start=2048, size=131072\n";
    child.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    Disk { _scratch: scratch, tree, image }
}

/// What mke2fs keeps of a tree and this user may make of it: no nanoseconds, no owners, no devices.
pub(crate) fn kept(mut manifest: Manifest, user: User) -> Manifest {
    let root = user == User::Myself && rig::is_root();
    manifest.retain(|path, file| !path.starts_with(b"lost+found") && (root || file.device.is_none()));
    // Its own directory was changed when `lost+found` was made.
    manifest.remove(&b""[..]);
    for file in manifest.values_mut() {
        file.modified.nanoseconds = 0;
        if !root {
            let (uid, gid) = user.ids();
            file.mode &= !(if file.owner.0 == uid { 0 } else { 0o4000 } | if file.owner.1 == gid { 0 } else { 0o2000 });
            file.owner = (uid, gid);
        }
    }
    manifest
}

fn at(image: &Path, path: &str) -> String {
    format!("{}:{path}", image.display())
}

/// cp brings out what went in, tar too, and ls and cat say the same.
fn brought_out(file_system: &str) {
    let disk = disk(file_system, file_system == "ext4");
    let source = of_folder(&disk.tree);
    for user in [User::Myself, User::Ordinary] {
        let session = Session::new(user, file_system);
        let root = user == User::Myself && rig::is_root();
        let tree = kept(source.clone(), user);
        let out = session.join("out");
        let output = session.output([&"cp".into(), &disk.image, &out]);
        let said = rig::text(&output);
        assert!(output.status.success(), "{said}");
        // Devices and owners are root's to make: the others are told of what is missing.
        assert_eq!(output.stderr.is_empty(), root || !rig::is_root(), "{said}");
        assert_same(file_system, &kept(of_folder(&out), user), "tree", &tree);
        let archive = session.join("out.tar");
        session.done([&"tar".into(), &disk.image, &"-o".into(), &archive]);
        for program in ["tar", "bsdtar"] {
            let folder = session.join(program);
            rig::run_command(session.command("mkdir").arg(&folder));
            let mut command = session.command(program);
            command.arg("-xpf").arg(&archive).arg("-C").arg(&folder);
            if program == "tar" {
                command.args(["--xattrs", "--xattrs-include=user.*"]);
            }
            let status = rig::output(&mut command).status;
            assert!(status.success() || !root, "{program}: {status}");
            // With -p, they make a user's own file set-uid whoever it belonged to.
            let plain = |mut manifest: Manifest| {
                manifest.values_mut().filter(|_| !root).for_each(|file| file.mode &= !0o6000);
                manifest
            };
            assert_same(program, &plain(kept(of_folder(&folder), user)), "tree", &plain(tree.clone()));
        }
        let json: Vec<serde_json::Value> =
            serde_json::from_str(&session.done(["ls", "-aR", "--json", disk.image.to_str().unwrap()])).unwrap();
        let count = source.len(); // without the tree itself, with lost+found
        assert_eq!(json.len(), count, "{file_system}");
        let output = session.output(["cat", &at(&disk.image, "/sizes/1100003"), &at(&disk.image, "links/slow")]);
        assert_eq!(output.status.code(), Some(1), "{}", rig::text(&output));
        assert!(output.stdout == fs::read(disk.tree.join("sizes/1100003")).unwrap());
    }
}

#[test]
fn ext2_is_brought_out() {
    requires!("mke2fs", "sfdisk", "tar", "bsdtar");
    brought_out("ext2");
}

#[test]
fn ext3_is_brought_out() {
    requires!("mke2fs", "sfdisk", "tar", "bsdtar");
    brought_out("ext3");
}

#[test]
fn ext4_is_brought_out() {
    requires!("mke2fs", "sfdisk", "tar", "bsdtar");
    brought_out("ext4");
}

#[test]
fn cp_is_what_the_kernel_and_debugfs_bring_out() {
    requires!("mke2fs", "sfdisk", "debugfs");
    requires_root!();
    requires_kernel!(rig::have_filesystem("ext4"), "the file system ext4");
    let disk = disk("ext4", true);
    let session = Session::new(User::Myself, "kernel");
    let (out, point, dumped) = (session.join("out"), session.join("point"), session.join("dumped"));
    session.done([&"cp".into(), &disk.image, &out]);
    fs::create_dir(&point).unwrap();
    let options = ["mount", "-o", "ro,partition=2"].map(PathBuf::from);
    session.done(options.iter().chain([&disk.image, &point]));
    let kernels = of_folder(&point);
    session.done([&"umount".into(), &point]);
    assert_same("cp", &of_folder(&out), "kernel", &kernels);
    fs::create_dir(&dumped).unwrap();
    let request = format!("rdump / {}", dumped.display());
    let opened = format!("{}?offset={START}", disk.image.display());
    rig::run_command(session.command("debugfs").args(["-R", &request, &opened]));
    let debugfs = of_folder(&dumped);
    assert!(debugfs.len() > 100, "{}", debugfs.len());
    for (path, theirs) in &debugfs {
        let Some(ours) = kernels.get(path) else { panic!("{} of debugfs alone", path.escape_ascii()) };
        // The folder was there already; debugfs makes no hard links and no device nodes, and sets nine bits of a mode.
        if !path.is_empty() {
            assert_eq!((&ours.sha256, &ours.target), (&theirs.sha256, &theirs.target), "{}", path.escape_ascii());
            assert_eq!((ours.mode & 0o777, ours.owner), (theirs.mode & 0o777, theirs.owner), "{}", path.escape_ascii());
        }
    }
}

#[test]
fn a_link_that_was_copied_leads_no_later_copy_astray() {
    requires!("mke2fs", "debugfs");
    let session = Session::new(User::Ordinary, "astray");
    let path = |name: &str| session.join(name).to_str().unwrap().to_owned();
    let script = "set -e; cd $0; mkdir -p victim one two/d out; ln -s ../victim one/d; ln -s $PWD/victim/new one/n
                  echo evil > two/d/file; echo evil > two/n
                  for n in one two; do mke2fs -q -F -t ext4 -d $n $n.img 4M; done";
    rig::run_command(session.command("sh").args(["-c", script, &path("")]));
    session.done(["cp", "-q", &at(&session.join("one.img"), "/."), &path("out")]);
    let output = session.output(["cp", "-q", &at(&session.join("two.img"), "/."), &path("out")]);
    assert_eq!(fs::read_dir(session.join("victim")).unwrap().count(), 0, "{}", rig::text(&output));
}
