//! `loopbox run` on machines that lack something: a closed /dev/fuse, a container without loop devices, no user
//! namespaces. What is not possible is said, with why and what would change it; the rest works.

use std::path::Path;
use std::process::Command;

use rig::{User, requires, requires_kernel};

use crate::run_files::{SYSTEM, ext4, spec, squashfs};
use crate::session::{Session, program};

/// Runs a script as root in a mount namespace that `prepare` changes, as `user` again.
fn on_a_machine(session: &Session, user: User, prepare: &str, script: &str) -> String {
    let as_user = match user {
        User::Ordinary => {
            format!(
                "setpriv --reuid {0} --regid {0} --clear-groups env HOME=/tmp sh -euc \"$SCRIPT\"",
                rig::ORDINARY_USER
            )
        }
        User::Myself => "sh -euc \"$SCRIPT\"".to_owned(),
    };
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", &format!("{prepare}\nexec {as_user}")]);
    command.env("SCRIPT", script).env("L", program()).env("XDG_RUNTIME_DIR", session.join("runtime"));
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
    command.current_dir(session.join(""));
    rig::text(&rig::output(&mut command))
}

#[test]
fn without_dev_fuse_it_says_so_and_the_rest_works() {
    requires!("unshare", "setpriv", "mksquashfs");
    rig::requires_root!();
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let session = Session::new(User::Ordinary, "run-closed");
    squashfs(&session, "files", "echo hello >file");
    let closed =
        "mount -t tmpfs -o mode=0755 none /mnt; mknod -m 0600 /mnt/fuse c 10 229; mount --bind /mnt/fuse /dev/fuse";
    let script = "$L run --mount files:/srv -- true || echo status $?; $L run -- echo the network works
        $L cat files:file; $L run --explain --mount files:/srv -- true | grep -A2 'open /dev/fuse'";
    let said = on_a_machine(&session, User::Ordinary, closed, script);
    for part in [
        "/dev/fuse is closed to this user (as root: chmod 666 /dev/fuse)",
        "status 2",
        "the network works",
        "\nhello\n",
        "loopbox cp",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let none = "mount -t tmpfs -o mode=0755 none /mnt; mkdir /mnt/empty; cp -a /dev/null /dev/zero /dev/full /dev/random \
                /dev/urandom /dev/tty /mnt; mount --move /mnt /dev";
    let said = on_a_machine(&session, User::Ordinary, none, script);
    assert!(
        said.contains("no /dev/fuse") && said.contains("\nhello\n") && said.contains("the network works"),
        "{said}"
    );
}

#[test]
fn in_a_container_without_loop_devices_all_goes_through_fuse() {
    requires!("unshare", "setpriv", "mksquashfs", "mkfs.ext4", "e2fsck");
    rig::requires_root!();
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let container = "mount -t tmpfs -o mode=0755 none /mnt; cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom \
                     /dev/tty /dev/fuse /mnt; mkdir /mnt/pts /mnt/shm; ln -s /proc/self/fd /mnt/fd; mount --move /mnt /dev";
    for user in [User::Ordinary, User::Myself] {
        let session = Session::new(user, "run-container");
        squashfs(&session, "root", SYSTEM);
        squashfs(&session, "files", "echo hello >file");
        let disk = ext4(&session, "disk.img");
        let script = "ls /dev/loop-control 2>/dev/null || echo no loop devices
            $L run --root root,overlay --bind /usr,ro --mount files,overlay:/srv --device disk.img -- sh -euc '
                cat /srv/file; echo more >/srv/more; touch /new; mkfs.ext4 -qF -L inside /dev/loop0; echo done'
            e2fsck -fn disk.img 2>&1 | grep files; $L info disk.img";
        let said = on_a_machine(&session, user, container, script);
        let expected = "no loop devices\nhello\ndone\ninside: 11/4096 files";
        assert!(said.contains(expected) && said.contains("inside"), "{user:?}: {said}");
        rig::run_command(session.command("e2fsck").arg("-fn").arg(&disk));
    }
}

#[test]
fn without_user_namespaces_it_says_so() {
    requires!("unshare", "setpriv");
    let session = Session::new(User::Ordinary, "run-forbidden");
    let script = "echo 0 >/proc/sys/user/max_user_namespaces
        exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs $L run -- true";
    let mut command = session.command("unshare");
    command.args(["--user", "--map-root-user", "sh", "-euc", script]).env("L", program());
    let output = rig::output(&mut command);
    let said = rig::text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("new user namespace") && said.contains("loopbox doctor") && said.contains("`loopbox ls`"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_container_of_an_ordinary_user_is_a_machine_too() {
    requires!("unshare", "mksquashfs");
    requires_kernel!(Path::new("/dev/fuse").exists(), "FUSE");
    let session = Session::new(User::Ordinary, "run-nested");
    let image = squashfs(&session, "root", SYSTEM);
    let mut command = session.command("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc"]).arg(program());
    let words = spec(&image, ",overlay");
    command.args([
        "run",
        "--root",
        &words,
        "--bind",
        "/usr,ro",
        "--",
        "sh",
        "-euc",
        "touch /x; id -u; echo /proc/[0-9]*",
    ]);
    assert_eq!(rig::run_command(&mut command), "0\n/proc/1 /proc/2\n");
}
