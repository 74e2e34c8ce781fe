//! `loopbox attach` as root on the kernel's loop driver, where `/dev` is the kernel's and where it is a container's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rig::User;

use crate::session::{Session, program};

macro_rules! requires_driver {
    () => {
        rig::requires_root!();
        rig::requires!("sfdisk", "unshare");
        rig::requires_kernel!(Path::new("/sys/class/misc/loop-control").exists(), "the loop driver");
    };
}

/// An image of 8 MiB with a GPT of two partitions, the second of which begins with "second".
fn partitioned(session: &Session) -> PathBuf {
    use std::os::unix::fs::FileExt as _;
    let path = session.join("disk.img");
    let image = File::create(&path).unwrap();
    image.set_len(8 << 20).unwrap();
    let table = session.join("table");
    std::fs::write(&table, "label: gpt\nstart=2048, size=2048\nstart=4096, size=2048\n").unwrap();
    let mut sfdisk = Command::new(rig::which("sfdisk").unwrap());
    assert!(sfdisk.arg("-q").arg(&path).stdin(File::open(table).unwrap()).status().unwrap().success());
    image.write_all_at(b"second", 4096 * 512).unwrap();
    path
}

#[test]
fn partitions_are_there_on_return_whatever_tables_the_kernel_knows() {
    requires_driver!();
    let session = Session::new(User::Myself, "loop");
    let image = partitioned(&session);
    let device = session.done([Path::new("attach"), &image]);
    let device = device.trim_end();
    assert!(device.starts_with("/dev/loop"), "{device}");
    let second = std::fs::read(format!("{device}p2")).unwrap();
    assert_eq!((second.len(), &second[..6]), (1 << 20, &b"second"[..]));
    let again = session.fails([Path::new("attach"), &image]);
    assert!(again.contains(device), "{again}");
    session.done(["detach", device]);
    assert!(!Path::new(&format!("{device}p2")).exists());
    // By the name of the image: the device may be somebody else's by now.
    assert!(session.fails([Path::new("detach"), &image]).contains("is not attached"));
}

#[test]
fn one_partition_is_a_loop_device_of_its_own() {
    requires_driver!();
    let session = Session::new(User::Myself, "loop");
    let image = partitioned(&session);
    let device = session.done(["attach".into(), format!("{},partition=2", image.display())]);
    let device = device.trim_end();
    assert!(device.starts_with("/dev/loop"), "{device}");
    let second = std::fs::read(device).unwrap();
    assert_eq!((second.len(), &second[..6]), (1 << 20, &b"second"[..]));
    session.done(["detach", device]);
    assert!(session.fails(["attach".into(), format!("{},partition=7", image.display())]).contains("partition"));
}

#[test]
fn a_container_gets_the_nodes_that_its_dev_lacks() {
    requires_driver!();
    let session = Session::new(User::Myself, "loop-container");
    let image = partitioned(&session);
    let script = r#"
        set -e
        mount -t tmpfs none /dev
        mknod -m 666 /dev/null c 1 3
        device=$($0 attach $1)
        test -b $device
        test -b ${device}p1
        head -c 6 ${device}p2
        $0 detach $device
        test ! -e ${device}p1
        test ! -e ${device}p2
    "#;
    let mut command = session.command("unshare");
    let said = rig::run_command(command.args(["-m", "sh", "-c", script]).arg(program()).arg(&image));
    assert_eq!(said, "second");
}
