//! ls, tree, cat, cp and tar of what is inside an image, against the tree that the image was made from and against peers.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rig::tree::{Manifest, Sample};
use rig::{Scratch, User, requires};

use crate::session::Session;

/// A tree with all that is awkward in it, and an ISO of it that keeps all of it.
pub(crate) struct Disc {
    _scratch: Scratch,
    pub(crate) tree: PathBuf,
    pub(crate) image: PathBuf,
}

pub(crate) fn disc(name: &str, sample: Sample) -> Disc {
    let scratch = Scratch::new(name);
    let (tree, image) = (scratch.join("tree"), scratch.join("disc.iso"));
    fs::create_dir(&tree).unwrap();
    rig::tree::make(&tree, sample);
    let words: [&OsStr; 9] = [
        "-as".as_ref(),
        "mkisofs".as_ref(),
        "-quiet".as_ref(),
        "-R".as_ref(),
        "--hardlinks".as_ref(),
        "--xattr".as_ref(),
        "-o".as_ref(),
        image.as_ref(),
        tree.as_ref(),
    ];
    rig::run("xorriso", words);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).unwrap();
    Disc { _scratch: scratch, tree, image }
}

fn at(image: &Path, path: &str) -> String {
    format!("{}:{path}", image.display())
}

/// What of a tree an ISO and a copy by this user can keep.
pub(crate) fn kept(mut manifest: Manifest, user: User) -> Manifest {
    for file in manifest.values_mut() {
        // Rock Ridge holds the components of a target, not the slash after the last one; with `--hardlinks`,
        // xorriso 1.5.4 leaves out the attributes of a file that has none but empty ones.
        if let Some(target) = file.target.as_mut().filter(|target| target.ends_with(b"/")) {
            target.pop();
        }
        file.xattrs.retain(|_, value| !value.is_empty());
        if user == User::Ordinary {
            let (uid, gid) = user.ids();
            if file.owner.0 != uid {
                file.mode &= !0o4000;
            }
            if file.owner.1 != gid {
                file.mode &= !0o2000;
            }
            file.owner = (uid, gid);
        }
    }
    manifest
}

pub(crate) const SAMPLE: Sample = Sample { odd_names: true, special: false, xattrs: true, sparse: false, many: 100 };

#[test]
fn cp_brings_out_what_went_in() {
    requires!("xorriso");
    let disc = disc("cp", SAMPLE);
    for user in [User::Myself, User::Ordinary] {
        let session = Session::new(user, "cp");
        let out = session.join("out");
        let output = session.output([OsStr::new("cp"), disc.image.as_os_str(), out.as_os_str()]);
        assert!(output.status.success(), "{}", rig::text(&output));
        assert!(output.stdout.is_empty());
        let (copy, tree) = (rig::tree::of_folder(&out), kept(rig::tree::of_folder(&disc.tree), user));
        rig::tree::assert_same("copy", &copy, "tree", &tree);
        // What could not be kept is said once for all files.
        let said = String::from_utf8_lossy(&output.stderr).lines().count();
        assert!(said <= 2, "{}", rig::text(&output));
        assert_eq!(said == 0, user == User::Myself && rig::is_root(), "{}", rig::text(&output));
    }
}

#[test]
fn cp_decides_where_to_as_cp_does() {
    requires!("xorriso");
    let disc = disc("where", Sample::default());
    let session = Session::new(User::Ordinary, "where");
    let cp = |words: &[&str]| {
        let mut all = vec!["cp".to_owned(), "-q".to_owned()];
        all.extend(words.iter().map(|word| (*word).to_owned()));
        session.output(all)
    };
    let path = |name: &str| session.join(name).to_str().unwrap().to_owned();
    let done = |words: &[&str]| {
        let output = cp(words);
        assert!(output.status.success(), "{words:?}: {}", rig::text(&output));
    };
    done(&[&at(&disc.image, "/links/one"), &path("named")]);
    assert_eq!(fs::read(path("named")).unwrap(), b"one file, three names\n");
    rig::run_command(session.command("mkdir").arg(path("dir")));
    done(&[&at(&disc.image, "three"), &at(&disc.image, "/links/"), &path("dir")]);
    assert!(fs::metadata(path("dir/three")).is_ok() && fs::metadata(path("dir/links/two")).is_ok());
    done(&[&at(&disc.image, "/links/."), &path("dir")]);
    assert!(fs::metadata(path("dir/two")).is_ok());
    done(&[&at(&disc.image, "/links/relative"), &path("link")]);
    assert_eq!(fs::read_link(path("link")).unwrap(), Path::new("one"));
    for (words, said) in [
        (vec![at(&disc.image, "/links"), path("named")], "Not a directory"),
        (vec![at(&disc.image, "three"), at(&disc.image, "/links"), path("absent")], "several files"),
        (vec![at(&disc.image, "nothing"), path("x")], "No such file"),
        (vec![at(&disc.image, "three"), path("absent/x")], "No such file"),
        (vec![at(&disc.image, "three"), path("absent/")], "Not a directory"),
    ] {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = cp(&words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(rig::text(&output).contains(said), "{words:?}: {}", rig::text(&output));
    }
    // One file that cannot be made: reported, the rest is there, exit status 1.
    rig::run_command(session.command("mkdir").args(["-p", &path("part/three/x")]));
    let output = cp(&[disc.image.to_str().unwrap(), &path("part")]);
    assert_eq!(output.status.code(), Some(1), "{}", rig::text(&output));
    assert!(rig::text(&output).contains("three"));
    assert!(fs::metadata(path("part/links/one")).is_ok());
}

#[test]
fn tar_is_read_by_tar_and_bsdtar() {
    requires!("xorriso", "tar", "bsdtar");
    let disc = disc("tar", SAMPLE);
    let session = Session::new(User::Myself, "tar");
    let archive = session.join("out.tar");
    session.done([OsStr::new("tar"), disc.image.as_os_str(), "-o".as_ref(), archive.as_os_str()]);
    let tree = kept(rig::tree::of_folder(&disc.tree), User::Myself);
    for (program, options) in [("tar", &["--xattrs", "--xattrs-include=*"][..]), ("bsdtar", &["--xattrs"])] {
        let folder = session.join(program);
        fs::create_dir(&folder).unwrap();
        let mut command = session.command(program);
        command.arg("-xpf").arg(&archive).args(options).arg("-C").arg(&folder);
        rig::run_command(&mut command);
        let (mut copy, mut tree) = (rig::tree::of_folder(&folder), tree.clone());
        // bsdtar leaves the times of a folder that was there before; the owner is that of who unpacks.
        for manifest in [&mut copy, &mut tree] {
            manifest.remove(&b""[..]);
        }
        rig::tree::assert_same(program, &copy, "tree", &tree);
    }
    // Again, the same bytes; and by a pipe.
    let piped = rig::output(session.loopbox().arg("tar").arg(&disc.image));
    assert!(piped.stdout == fs::read(&archive).unwrap());
}

#[test]
fn ls_and_tree_name_what_find_names() {
    requires!("xorriso");
    let disc = disc("ls", Sample { odd_names: false, ..SAMPLE });
    let session = Session::new(User::Ordinary, "ls");
    let names: Vec<String> =
        session.done(["ls", "-a", &at(&disc.image, "/names")]).lines().map(str::to_owned).collect();
    let mut expected: Vec<String> = fs::read_dir(disc.tree.join("names"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    expected.sort();
    assert_eq!(names, expected);
    // Long form: the columns of ls, with numbers for owners and UTC.
    let mut ls = session.command("ls");
    ls.args(["-ln", "--time-style=long-iso"]).arg(disc.tree.join("links"));
    let squeeze = |text: &str| -> Vec<String> {
        let fields = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        // The one target that ends in a slash: see `kept`.
        let compared = |line: &&str| !line.starts_with("total") && !line.contains("fast59");
        text.lines().filter(compared).map(fields).collect()
    };
    let host = squeeze(&rig::run_command(&mut ls));
    let mut own = squeeze(&session.done(["ls", "-l", &at(&disc.image, "/links")]));
    own.sort_by_key(|line| line.split(' ').nth(7).map(str::to_owned));
    let mut host = host;
    host.sort_by_key(|line| line.split(' ').nth(7).map(str::to_owned));
    assert_eq!(own, host);
    // Recursive JSON: every path, once.
    let json: Vec<serde_json::Value> =
        serde_json::from_str(&session.done(["ls", "-aR", "--json", disc.image.to_str().unwrap()])).unwrap();
    assert_eq!(json.len(), rig::tree::of_folder(&disc.tree).len() - 1);
    let tree = session.done(["tree", "-a", disc.image.to_str().unwrap()]);
    assert_eq!(tree.lines().count(), json.len() + 3, "{tree}");
    assert!(tree.ends_with(" files\n"), "{tree}");
    let top = session.done(["tree", "--depth", "1", disc.image.to_str().unwrap()]);
    assert!(top.lines().all(|line| !line.starts_with('│')), "{top}");
    let fails = session.fails(["ls", &at(&disc.image, "/absent")]);
    assert!(fails.contains("disc.iso:/absent: No such file or directory"), "{fails}");
}

#[test]
fn cat_writes_what_is_in_the_files() {
    requires!("xorriso");
    let disc = disc("cat", SAMPLE);
    let session = Session::new(User::Ordinary, "cat");
    let read = |path: &str| fs::read(disc.tree.join(path)).unwrap();
    let output = session.output(["cat", &at(&disc.image, "/sizes/1100003"), &at(&disc.image, "links/relative")]);
    assert!(output.status.success());
    assert!(output.stdout == [read("sizes/1100003"), read("links/one")].concat());
    // One that fails among several: reported, the others are written.
    let output = session.output(["cat", &at(&disc.image, "links/loop"), &at(&disc.image, "sizes/1")]);
    assert_eq!((output.status.code(), output.stdout), (Some(1), read("sizes/1")));
    assert!(session.fails(["cat", &at(&disc.image, "links")]).contains("Is a directory"));
    assert!(session.fails(["cat", &at(&disc.image, "links/loop")]).contains("Too many levels of symbolic links"));
    assert!(session.fails(["cat", &at(&disc.image, "links/absolute")]).contains("No such file"));
    // Nobody reads on: quiet, and no failure.
    for words in [
        vec!["cat".to_owned(), at(&disc.image, "/sizes/1100003")],
        vec!["tar".to_owned(), disc.image.display().to_string()],
        vec!["ls".to_owned(), "-lR".to_owned(), disc.image.display().to_string()],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = session.loopbox().args(&words).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{words:?}: {}", rig::text(&output));
    }
}

#[test]
fn the_partition_that_holds_files_is_found_or_asked_for() {
    requires!("xorriso", "sfdisk");
    let disc = disc("partitions", Sample::default());
    let session = Session::new(User::Myself, "partitions");
    let iso = fs::read(&disc.image).unwrap();
    let sectors = iso.len().div_ceil(512);
    let disk = |name: &str, holding: &[bool]| -> String {
        use std::io::Write as _;
        use std::os::unix::fs::FileExt as _;
        let path = session.join(name);
        let file = fs::File::create(&path).unwrap();
        let room = sectors.next_multiple_of(2048);
        file.set_len(((holding.len() * room + 2048 + 2048) * 512) as u64).unwrap();
        let mut table = String::from("label: dos\n");
        for (n, holds) in holding.iter().enumerate() {
            let start = 2048 + n * room;
            table.push_str(&format!("start={start}, size={sectors}, type=83\n"));
            if *holds {
                file.write_all_at(&iso, start as u64 * 512).unwrap();
            }
        }
        let mut sfdisk = session.command("sfdisk");
        sfdisk.args(["-q", "--no-reread", "--no-tell-kernel"]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = sfdisk.spawn().unwrap();
        child.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        path.to_str().unwrap().to_owned()
    };
    let one = disk("one.img", &[false, true, false]);
    assert_eq!(session.done(["cat", &format!("{one}:/links/one")]), "one file, three names\n");
    let two = disk("it's two.img", &[true, false, true]);
    let said = session.fails(["cat", &format!("{two}:/links/one")]);
    // What it says can be typed as it stands.
    let commands: Vec<&str> = said.split('`').skip(1).step_by(2).collect();
    assert_eq!(commands.len(), 2, "{said}");
    for (command, n) in commands.iter().zip([1, 3]) {
        assert!(
            command.starts_with("loopbox cat ") && command.contains(&format!(",partition={n}:/links/one")),
            "{said}"
        );
        let script = format!("loopbox() {{ {} \"$@\"; }}; {command}", crate::session::program().display());
        let printed = rig::run_command(session.command("sh").args(["-c", &script]));
        assert_eq!(printed, "one file, three names\n");
    }
    let whole = session.fails(["ls", "-l", &two]);
    assert!(whole.contains("`loopbox ls -l '") && whole.contains(",partition=1'` ("), "{whole}");
    assert!(session.fails(["ls", &format!("{two},partition=2")]).contains("no known file system"));
    let none = disk("none.img", &[false, false]);
    assert!(session.fails(["ls", &none]).contains("partitions: 1 ("));
    fs::write(session.join("empty"), "").unwrap();
    session.fails(["ls", session.join("empty").to_str().unwrap()]);
    // The image is as it was.
    assert!(fs::read(&disc.image).unwrap() == iso);
    assert_eq!(fs::metadata(&disc.image).unwrap().size(), iso.len() as u64);
}
