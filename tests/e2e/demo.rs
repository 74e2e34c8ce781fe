//! `loopbox demo`: the README's first command, on the machines that it must work on.

use rig::{User, requires, requires_root};

use crate::session::{Session, program};

const GONE: &str = "All of it worked, and is gone again.";

#[test]
fn each_step_works_for_root_and_for_an_ordinary_user() {
    for user in [User::Myself, User::Ordinary] {
        let session = Session::new(user, "demo");
        let temporary = session.join("temporary");
        rig::run_command(session.command("mkdir").arg(&temporary));
        let shown = rig::run_command(session.loopbox().arg("demo").env("TMPDIR", &temporary));
        assert!(shown.contains(GONE), "{shown}");
        for said in ["iso9660 \"LOOPBOX\"", "start-here -> README.md", "# The overlay format", "BACK-FILE"] {
            assert!(shown.contains(said), "no `{said}`: {shown}");
        }
        assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0, "a folder of the demo stays");
    }
}

#[test]
fn it_works_without_fusermount3() {
    requires!("unshare");
    let session = Session::new(User::Ordinary, "demo");
    // Nothing but what the demo itself calls.
    let bin = session.join("bin");
    std::fs::create_dir(&bin).unwrap();
    for name in ["sh", "ls", "head", "mkdir", "cat"] {
        std::os::unix::fs::symlink(rig::which(name).unwrap(), bin.join(name)).unwrap();
    }
    let mut command = session.command("env");
    let shown = rig::run_command(command.arg(format!("PATH={}", bin.display())).arg(program()).arg("demo"));
    assert!(shown.contains("no fusermount3 here") && shown.contains(GONE), "{shown}");
}

#[test]
fn without_fuse_it_says_why_and_shows_the_rest() {
    requires!("unshare", "setpriv", "mknod");
    requires_root!();
    let session = Session::new(User::Ordinary, "demo");
    std::fs::create_dir(session.join("dev")).unwrap();
    let script = format!(
        "set -e; mount -t tmpfs none {folder}; mknod -m 600 {folder}/fuse c 10 229; mount --bind {folder}/fuse /dev/fuse
         exec setpriv --reuid {user} --regid {user} --clear-groups {program} demo",
        folder = session.join("dev").display(),
        user = rig::ORDINARY_USER,
        program = program().display(),
    );
    let shown = rig::run("unshare", ["--mount", "--propagation", "private", "sh", "-c", &script]);
    assert!(shown.contains("/dev/fuse is closed to this user (mode 0600); as root: chmod 666 /dev/fuse"), "{shown}");
    assert!(shown.contains(GONE) && !shown.contains("$ loopbox mount"), "{shown}");
}
