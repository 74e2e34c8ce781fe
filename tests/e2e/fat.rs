//! FAT and exFAT from the outside: mounted to be written, and changed with no mount; checked by fsck.

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};

use fs::testing::model::{self, Operation, Target};
use rig::{User, requires, requires_kernel, requires_root, run_command, text, wait_until};

use crate::session::Session;

const KINDS: &[(&str, &str, &str)] = &[
    ("fat12", "mkfs.fat -F 12 -n DISK", "fsck.fat -n"),
    ("fat16", "mkfs.fat -F 16 -n DISK", "fsck.fat -n"),
    ("fat32", "mkfs.fat -F 32 -s 1 -n DISK", "fsck.fat -n"),
    ("exfat", "mkfs.exfat -L DISK", "fsck.exfat -n"),
];

/// A user with an image and a directory to mount it on.
struct Sample {
    session: Session,
    image: PathBuf,
    point: PathBuf,
    fsck: &'static str,
}

fn sample(user: User, (name, mkfs, fsck): (&str, &str, &'static str)) -> Sample {
    let session = Session::new(user, name);
    let size = if name == "fat12" { "8M" } else { "64M" };
    let script = format!("cd $0 && mkdir mnt && truncate -s {size} disk.img && {mkfs} disk.img");
    run_command(session.command("sh").args(["-c", &script]).arg(session.join("")));
    Sample { image: session.join("disk.img"), point: session.join("mnt"), session, fsck }
}

impl Sample {
    fn shell(&self, script: &str) -> String {
        run_command(self.session.command("sh").args(["-ec", script]).arg(self.session.join("")))
    }

    fn mount(&self, words: &[&str]) {
        let both = [self.image.to_str().unwrap(), self.point.to_str().unwrap()];
        self.session.done(["mount", "--user"].into_iter().chain(words.iter().copied()).chain(both));
    }

    fn umount(&self) {
        self.session.done([Path::new("umount"), &self.point]);
    }

    fn inside(&self, path: &str) -> String {
        format!("{}:{path}", self.image.display())
    }

    fn assert_clean(&self) {
        self.shell(&format!("{} $0/disk.img", self.fsck));
    }
}

fn have_fuse() -> bool {
    Path::new("/dev/fuse").exists()
}

#[test]
fn whoever_has_the_image_mounts_it_and_writes() {
    requires!("mkfs.fat", "mkfs.exfat", "fsck.fat", "fsck.exfat", "fusermount3", "diff");
    requires_kernel!(have_fuse(), "FUSE");
    for user in [User::Myself, User::Ordinary] {
        for kind in KINDS {
            let sample = sample(user, *kind);
            sample.mount(&[]);
            let script = "cd $0/mnt; mkdir -p a/b/c; echo hello > a/hello; head -c 3000000 /dev/urandom > a/b/random
                for n in $(seq 200); do echo $n > \"a/b/c/a file with a long name, number $n\"; done
                cp a/b/random a/copy; cmp a/b/random a/copy; mv a/copy 'another name'; rm a/b/random
                echo more >> a/hello; test \"$(cat A/HELLO)\" = \"hello
more\"; touch -d 2001-02-03T04:05:06Z a/hello; test $(stat -c %Y a/hello) = 981173106
                truncate -s 100000 a/hello; truncate -s 5 a/hello; test \"$(cat a/hello)\" = hello
                ! mkdir a 2>/dev/null; ! rmdir a 2>/dev/null; ! ln -s x y 2>/dev/null; ! ln a/hello z 2>/dev/null
                chmod a-w a/hello; test $(stat -c %a a/hello) = 555; chmod u+w a/hello; test $(stat -c %a a/hello) = 755
                test $(stat -c %u a/hello) = $(id -u); exec 9<> 'another name'; rm 'another name'; echo x >&9
                exec 9>&-; sync -f .; df . | tail -1 | grep -q mnt; cd /; cp -r $0/mnt $0/copy";
            sample.shell(script);
            sample.umount();
            sample.assert_clean();
            sample.mount(&["-o", "ro,uid=77,gid=78,umask=077"]);
            sample.shell(
                "diff -r $0/copy $0/mnt; test $(stat -c %u:%g:%a $0/mnt/a/hello) = 77:78:700; ! touch $0/mnt/x 2>$0/said
                 grep -q 'Read-only file system' $0/said",
            );
            sample.umount();
            sample.assert_clean();
        }
    }
}

/// A mounted folder, as the model test wants it.
struct Folder(PathBuf);

impl Target for Folder {
    fn apply(&self, operation: &Operation) -> block::Result<()> {
        let at = |path: &String| self.0.join(path);
        let writing = |path: &String| std::fs::File::options().write(true).open(at(path));
        let done = match operation {
            Operation::Create(path) => std::fs::File::options().write(true).create_new(true).open(at(path)).map(drop),
            Operation::MakeDirectory(path) => std::fs::DirBuilder::new().mode(0o755).create(at(path)),
            Operation::Write(path, offset, len, value) => {
                writing(path).and_then(|file| file.write_all_at(&vec![*value; *len], *offset))
            }
            Operation::Truncate(path, size) => writing(path).and_then(|file| file.set_len(*size)),
            Operation::Remove(path) => std::fs::remove_file(at(path)),
            Operation::RemoveDirectory(path) => std::fs::remove_dir(at(path)),
            Operation::Rename(from, to) => std::fs::rename(at(from), at(to)),
        };
        done.map_err(|error| block::Error::io("the mount", error))
    }

    fn changes_case(&self) -> bool {
        false
    }

    fn tree(&self) -> BTreeMap<String, Option<Vec<u8>>> {
        let mut tree = BTreeMap::new();
        let mut pending = vec![self.0.clone()];
        while let Some(folder) = pending.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(&self.0).unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    pending.push(path);
                    tree.insert(name, None);
                } else {
                    tree.insert(name, Some(std::fs::read(path).unwrap()));
                }
            }
        }
        tree
    }
}

#[test]
fn random_operations_through_a_mount_do_what_they_do_to_a_model() {
    requires!("mkfs.fat", "mkfs.exfat", "fsck.fat", "fsck.exfat", "fusermount3");
    requires_kernel!(have_fuse(), "FUSE");
    for kind in KINDS {
        let sample = sample(User::Myself, *kind);
        sample.mount(&[]);
        model::check(&Folder(sample.point.clone()), 11, 400, 40, 60_000);
        sample.umount();
        sample.assert_clean();
    }
}

#[test]
fn one_file_is_written_and_read_at_random() {
    requires!("mkfs.fat", "mkfs.exfat", "fsck.fat", "fsck.exfat", "fusermount3");
    requires_kernel!(have_fuse(), "FUSE");
    for kind in KINDS {
        let sample = sample(User::Myself, *kind);
        sample.mount(&[]);
        let path = sample.point.join("one");
        let file = std::fs::File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let (mut random, mut expected) = (model::Random::new(3), Vec::new());
        for step in 0..600_u64 {
            let (offset, len) = (random.below(300_000), 1 + random.below(70_000) as usize);
            match random.below(5) {
                0 => {
                    file.set_len(offset).unwrap();
                    expected.resize(offset as usize, 0);
                }
                1 | 2 => {
                    let data = vec![step as u8 | 1; len];
                    file.write_all_at(&data, offset).unwrap();
                    expected.resize(expected.len().max(offset as usize + len), 0);
                    expected[offset as usize..offset as usize + len].copy_from_slice(&data);
                }
                3 => assert!(std::fs::read(&path).unwrap() == expected, "{}, step {step}", kind.0),
                _ => {
                    let mut data = vec![0; len];
                    let read = file.read_at(&mut data, offset).unwrap();
                    let rest = expected.get(offset as usize..).unwrap_or_default();
                    assert!(data[..read] == rest[..len.min(rest.len())], "{}, step {step}", kind.0);
                }
            }
        }
        file.sync_all().unwrap();
        drop(file);
        sample.umount();
        sample.assert_clean();
        let read = sample.session.output([Path::new("cat"), Path::new(&sample.inside("/one"))]);
        assert!(read.stdout == expected, "{}", kind.0);
    }
}

#[test]
fn killed_while_writing_it_loses_the_file_being_written_and_no_other() {
    requires!("mkfs.fat", "mkfs.exfat", "fsck.fat", "fsck.exfat", "fusermount3");
    requires_kernel!(have_fuse(), "FUSE");
    for kind in KINDS {
        let sample = sample(User::Ordinary, *kind);
        sample.mount(&[]);
        let list: serde_json::Value = serde_json::from_str(&sample.session.done(["list", "--json"])).unwrap();
        let server = list["loopdevices"][0]["pid"].to_string();
        let script = "n=0; while head -c 30000 /dev/zero > $0/mnt/file-$n; do echo $n > $0/done; n=$((n+1)); done";
        let mut writer = sample
            .session
            .command("sh")
            .args(["-c", script])
            .arg(sample.session.join(""))
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let done = || std::fs::read_to_string(sample.session.join("done")).ok()?.trim().parse::<u32>().ok();
        wait_until("30 files", || done().is_some_and(|n| n >= 30));
        run_command(sample.session.command("kill").args(["-9", &server]));
        writer.wait().unwrap();
        let written = done().unwrap();
        sample.umount();
        let mend = if kind.0 == "exfat" { "fsck.exfat -p" } else { "fsck.fat -a" };
        let mended = rig::output(
            sample.session.command("sh").args(["-c", &format!("{mend} $0/disk.img")]).arg(sample.session.join("")),
        );
        let said = text(&mended);
        assert!(!said.contains("share clusters"), "{said}");
        sample.assert_clean();
        sample.mount(&["-o", "ro"]);
        let script = format!("cd $0/mnt; for n in $(seq 0 {written}); do test $(stat -c %s file-$n) = 30000; done");
        sample.shell(&script);
        sample.umount();
    }
}

#[test]
fn an_image_is_changed_with_no_mount() {
    requires!("mkfs.fat", "mkfs.exfat", "fsck.fat", "fsck.exfat", "diff");
    for user in [User::Myself, User::Ordinary] {
        for kind in KINDS {
            let sample = sample(user, *kind);
            sample.shell("mkdir -p $0/tree/sub/deep; cd $0/tree; seq 10000 > numbers; echo x > sub/a\\ file; head -c 2000000 /dev/urandom > sub/deep/random");
            let path = |name: &str| sample.session.join(name).to_str().unwrap().to_owned();
            let inside = |path: &str| sample.inside(path);
            sample.session.done(["cp", "-r", &path("tree"), &inside("/")]);
            sample.session.done(["cp", &path("tree/numbers"), &path("tree/sub/a file"), &inside("/tree/sub/deep")]);
            sample.session.done(["cp", &path("tree/numbers"), &inside("/renamed")]);
            sample.session.done(["mkdir", "-p", &inside("/x/y/z"), &inside("/x/y/w")]);
            sample.session.done(["mv", &inside("/renamed"), "/x/y"]);
            sample.session.done(["mv", &inside("/x/y/w"), &inside("/x/v")]);
            // Only the case: the same file with another name.
            sample.session.done(["mv", &inside("/x/v"), "/x/V"]);
            assert_eq!(sample.session.done(["ls", &inside("/x")]), "V\ny\n");
            sample.session.done(["mv", &inside("/x/V"), "/x/v"]);
            sample.session.done(["rm", "-r", &inside("/tree/sub/deep"), &inside("/x/y/z")]);
            sample.assert_clean();
            let listed = sample.session.done(["tree", &inside("/")]);
            for name in ["renamed", "numbers", "a file", "v"] {
                assert!(listed.contains(name), "{listed}");
            }
            assert!(!listed.contains("random") && !listed.contains("deep"), "{listed}");
            sample.session.done(["cp", &inside("/"), &path("out")]);
            sample.shell("cd $0; rm -r tree/sub/deep; diff -r tree out/tree; cmp tree/numbers out/x/y/renamed; test $(stat -c %s out/x/y/renamed) = 48894");
            for (words, said) in [
                (vec!["rm", &inside("/nothing")], "No such file"),
                (vec!["rm", &inside("/x")], "-r removes"),
                (vec!["mkdir", &inside("/x")], "File exists"),
                (vec!["mkdir", &inside("/a:b")], "cannot hold"),
                (vec!["rm", sample.image.to_str().unwrap()], "name a file in it"),
                (vec!["mv", &inside("/x"), "/x/y/in"], "itself"),
                (vec!["cp", "/etc/nothing-there", &inside("/")], "No such file"),
            ] {
                let line = sample.session.fails(&words);
                assert!(line.contains(said), "{words:?}: {line}");
            }
            sample.assert_clean();
        }
    }
}

#[test]
fn what_is_only_read_says_so() {
    requires!("xorriso", "mkfs.fat");
    let session = Session::new(User::Ordinary, "read-only");
    let script = "cd $0; mkdir tree; echo x > tree/x; xorriso -as mkisofs -quiet -R -o cd.iso tree 2>/dev/null
        truncate -s 8M disk.img; mkfs.fat disk.img; chmod a-w disk.img";
    run_command(session.command("sh").args(["-ec", script]).arg(session.join("")));
    let inside = |image: &str| format!("{}:/x", session.join(image).display());
    for words in [["rm", &inside("cd.iso")], ["mkdir", &inside("cd.iso")]] {
        let line = session.fails(words);
        assert!(line.contains("iso9660, which loopbox reads and does not write"), "{line}");
    }
    if rig::is_root() {
        let line = session.fails(["mkdir", &inside("disk.img")]);
        assert!(line.contains("Permission denied"), "{line}");
    }
}

#[test]
fn a_mount_in_a_namespace_of_its_own_is_written() {
    requires!("mkfs.fat", "fsck.fat", "unshare");
    requires_root!();
    requires_kernel!(have_fuse(), "FUSE");
    let sample = sample(User::Ordinary, KINDS[2]);
    let script = format!(
        "p={}; $p mount --user $0/disk.img $0/mnt; mkdir $0/mnt/d; seq 1000 > $0/mnt/d/f; $p umount $0/mnt",
        crate::session::program().display()
    );
    let mut command = sample.session.command("unshare");
    run_command(command.args(["-Urm", "sh", "-ec", &script]).arg(sample.session.join("")));
    sample.assert_clean();
    assert_eq!(sample.session.done(["cat", &sample.inside("/d/f")]).lines().count(), 1000);
}
