//! File systems that only the kernel reads: each is named, with what can be done; and root's mount is the kernel's.

use rig::{User, have_filesystem, requires, requires_kernel, requires_root, run_command};

use crate::session::Session;

const KINDS: &[(&str, &str)] = &[("btrfs", "mkfs.btrfs -q disk.img"), ("xfs", "mkfs.xfs -q disk.img")];

fn image(user: User, mkfs: &str) -> Session {
    let session = Session::new(user, "kernel-only");
    let script = format!("mkdir mnt; truncate -s 320M disk.img; {mkfs} >/dev/null 2>&1");
    run_command(session.command("sh").args(["-ec", &script]).current_dir(session.join(".")));
    session
}

#[test]
fn what_is_not_read_yet_is_named_with_what_to_do() {
    requires!("mkfs.btrfs", "mkfs.xfs");
    for (name, mkfs) in KINDS {
        let session = image(User::Ordinary, mkfs);
        let disk = session.join("disk.img").display().to_string();
        let (inside, point) = (format!("{disk}:/"), session.join("mnt").display().to_string());
        for words in [
            vec!["ls", &inside],
            vec!["tar", &disk],
            vec!["cp", &inside, &point],
            vec!["mount", "--user", &disk, &point],
            vec!["mkdir", &format!("{inside}x")],
            vec!["create", "--fs", "iso", "--from", &inside, &session.join("x.iso").display().to_string()],
        ] {
            let line = session.fails(&words);
            let helps = line.contains("does not read by itself yet") && line.contains("as root: `loopbox mount`");
            assert!(line.contains(name) && helps, "{words:?}: {line}");
        }
        let info = session.done(["info", &disk]);
        assert!(info.contains(name), "{info}");
    }
}

#[test]
fn root_mounts_it_by_the_kernel_and_writes() {
    requires!("mkfs.btrfs", "mkfs.xfs");
    requires_root!();
    for (name, mkfs) in KINDS {
        requires_kernel!(have_filesystem(name), "the file systems btrfs and xfs");
        let session = image(User::Myself, mkfs);
        let (disk, point) = (session.join("disk.img"), session.join("mnt"));
        session.done(["mount".as_ref(), disk.as_os_str(), point.as_os_str()]);
        let script = "seq 100000 >numbers; mkdir d; ln -s ../numbers d/link; setfattr -n user.x -v y numbers; \
                      test $(stat -f -c %T .) = $0";
        run_command(session.command("sh").args(["-ec", script, name]).current_dir(&point));
        session.done(["umount".as_ref(), point.as_os_str()]);
        session.done(["mount".as_ref(), "-o".as_ref(), "ro".as_ref(), disk.as_os_str(), point.as_os_str()]);
        let script =
            "seq 100000 | cmp - d/link; getfattr -n user.x --only-values numbers | grep -qx y; ! touch x 2>/dev/null";
        run_command(session.command("sh").args(["-ec", script]).current_dir(&point));
        session.done(["umount".as_ref(), point.as_os_str()]);
    }
}
