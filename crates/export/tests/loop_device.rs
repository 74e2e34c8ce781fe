//! The loop driver of this kernel, driven by `export::loop_device`. Other programs may take devices meanwhile: each
//! test looks at its own alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use block::Kind;
use loopbox_export::loop_device::{
    Attached, Control, Detached, Device, Options, Sharing, Span, User, attach, detach, find, numbers, status,
};
use rig::Scratch;

/// Whether this kernel has the driver.
fn have_driver() -> bool {
    std::path::Path::new("/sys/class/misc/loop-control").exists()
}

macro_rules! requires_driver {
    () => {
        rig::requires_root!();
        rig::requires_kernel!(have_driver(), "the loop driver");
    };
}

/// Devices of a test: detached when it ends, unless somebody else has them by then, and removed when it made the kernel
/// make them.
struct Devices(Vec<Device>, PathBuf);

impl Devices {
    /// The ones that every machine has.
    const STANDARD_MAX: u32 = 8;

    fn new(scratch: &Scratch) -> Self {
        Self(Vec::new(), scratch.path().to_owned())
    }

    fn keep(&mut self, attached: Attached) -> Device {
        self.0.push(attached.device.clone());
        attached.device.clone()
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for device in &self.0 {
            if status(device.number).is_some_and(|status| status.backing_file.starts_with(&self.1)) {
                let _ = detach(device, true);
            }
            if device.number >= Self::STANDARD_MAX {
                let _ = Control::open().unwrap().remove(device.number);
            }
        }
    }
}

fn image(scratch: &Scratch, name: &str, bytes: u64) -> PathBuf {
    let path = scratch.join(name);
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

#[test]
fn an_image_is_a_disk_until_it_is_detached() {
    requires_driver!();
    let scratch = Scratch::new("attach");
    let path = image(&scratch, "disk.img", 1 << 20);
    File::options().write(true).open(&path).unwrap().write_all_at(b"here", 4096).unwrap();
    let mut devices = Devices::new(&scratch);
    let options = Options { offset: 4096, sizelimit: 8192, ..Options::default() };
    let device = devices.keep(attach(&path, &options).unwrap());
    let now = status(device.number).unwrap();
    assert_eq!((now.offset, now.sizelimit, now.size), (4096, 8192, 8192));
    assert_eq!(now.backing_file, path);
    assert!(!now.read_only && !now.autoclear && !now.partscan && !now.is_deleted());
    let mut bytes = [0; 4];
    File::open(device.path()).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"here");
    assert_eq!(find(&path).unwrap(), [now]);
    assert_eq!(detach(&device, false).unwrap(), Detached::Now);
    assert_eq!(find(&path).unwrap(), []);
}

#[test]
fn what_is_not_attached_is_not_detached() {
    requires_driver!();
    // A number so high that nobody is given it meanwhile.
    let number = 500_000 + std::process::id() % 100_000;
    let control = File::options().read(true).write(true).open("/dev/loop-control").unwrap();
    sys::loop_device::add(&control, Some(number)).unwrap();
    let error = detach(&Device::new(number), false).unwrap_err();
    sys::loop_device::remove(&control, number).unwrap();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn block_size_and_read_only_reach_the_driver() {
    requires_driver!();
    let scratch = Scratch::new("options");
    let path = image(&scratch, "disk.img", 1 << 20);
    let mut devices = Devices::new(&scratch);
    let options = Options { block_size: Some(4096), read_only: true, ..Options::default() };
    let device = devices.keep(attach(&path, &options).unwrap());
    let now = status(device.number).unwrap();
    assert_eq!((now.block_size, now.read_only), (4096, true));
    for bad in [0, 100, 513, 1 << 30] {
        let options = Options { block_size: Some(bad), sharing: Sharing::Allow, ..Options::default() };
        assert!(attach(&path, &options).is_err_and(|error| error.kind() == Kind::Invalid), "{bad}");
    }
    let folder = attach(scratch.path(), &Options::default()).unwrap_err();
    assert_eq!(folder.kind(), Kind::Invalid);
    assert_eq!(attach(&scratch.join("none"), &Options::default()).unwrap_err().kind(), Kind::NotFound);
    let tiny = image(&scratch, "tiny.img", 100);
    assert_eq!(attach(&tiny, &Options::default()).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn direct_io_is_used_where_it_can_be_and_its_absence_is_said() {
    requires_driver!();
    let scratch = Scratch::new("direct");
    let path = image(&scratch, "disk.img", 1 << 20);
    let mut devices = Devices::new(&scratch);
    let direct = attach(&path, &Options::default()).unwrap();
    let said = direct.notes.iter().any(|note| note.contains("no direct I/O"));
    let device = devices.keep(direct);
    assert_ne!(status(device.number).unwrap().direct_io, said);
    detach(&device, false).unwrap();
    // An offset that no block of any file system starts at.
    let odd = attach(&path, &Options { offset: 24, ..Options::default() }).unwrap();
    assert!(odd.notes.iter().any(|note| note.contains("no direct I/O")), "{:?}", odd.notes);
    assert!(odd.notes.iter().any(|note| note.contains("488 bytes are cut off")), "{:?}", odd.notes);
    let device = devices.keep(odd);
    assert!(!status(device.number).unwrap().direct_io);
    detach(&device, false).unwrap();
    let buffered = attach(&path, &Options { buffered: true, ..Options::default() }).unwrap();
    assert_eq!(buffered.notes, [""; 0]);
    let device = devices.keep(buffered);
    assert!(!status(device.number).unwrap().direct_io);
}

#[test]
fn one_image_is_not_attached_twice_whatever_its_name() {
    requires_driver!();
    let scratch = Scratch::new("twice");
    let path = image(&scratch, "disk.img", 1 << 20);
    let link = scratch.join("other name.img");
    std::fs::hard_link(&path, &link).unwrap();
    let mut devices = Devices::new(&scratch);
    let half = Options { sizelimit: 512 << 10, ..Options::default() };
    let device = devices.keep(attach(&path, &half).unwrap());
    let error = attach(&link, &half).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains(&device.path().display().to_string()), "{error}");
    let overlapping = Options { offset: 4096, ..half.clone() };
    for sharing in [Sharing::Refuse, Sharing::Reuse] {
        let options = Options { sharing, ..overlapping.clone() };
        assert_eq!(attach(&link, &options).unwrap_err().kind(), Kind::Busy, "{sharing:?}");
    }
    let again = attach(&link, &Options { sharing: Sharing::Reuse, ..half.clone() }).unwrap();
    assert!(again.reused && again.device == device);
    // The other half is other bytes.
    let rest = Options { offset: 512 << 10, ..Options::default() };
    assert_ne!(devices.keep(attach(&link, &rest).unwrap()), device);
    assert_ne!(devices.keep(attach(&link, &Options { sharing: Sharing::Allow, ..half }).unwrap()), device);
}

#[test]
fn readers_may_share() {
    requires_driver!();
    let scratch = Scratch::new("readers");
    let path = image(&scratch, "disk.img", 1 << 20);
    let mut devices = Devices::new(&scratch);
    let options = Options { read_only: true, ..Options::default() };
    let first = devices.keep(attach(&path, &options).unwrap());
    assert_ne!(devices.keep(attach(&path, &options).unwrap()), first);
    assert_eq!(attach(&path, &Options::default()).unwrap_err().kind(), Kind::Busy);
}

#[test]
fn detach_says_who_uses_it_and_leaves_it_alone() {
    requires_driver!();
    rig::requires!("mkfs.ext4", "mount");
    rig::requires_kernel!(rig::have_filesystem("ext4"), "the file system ext4");
    let scratch = Scratch::new("busy");
    let path = image(&scratch, "disk.img", 4 << 20);
    rig::run("mkfs.ext4", ["-q".as_ref(), path.as_os_str()]);
    let mut devices = Devices::new(&scratch);
    let device = devices.keep(attach(&path, &Options::default()).unwrap());
    let folder = scratch.join("mounted here");
    std::fs::create_dir(&folder).unwrap();
    rig::run("mount", [device.path(), &folder]);
    let error = detach(&device, false).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains(&format!("mounted on {}", folder.display())), "{error}");
    // It was not marked either: it is there after the unmount.
    assert!(!status(device.number).unwrap().autoclear);
    assert_eq!(detach(&device, true).unwrap(), Detached::WhenReleased(vec![User::Mount(folder.clone())]));
    assert!(status(device.number).unwrap().autoclear);
    rig::run("umount", [&folder]);
    assert_eq!(find(&path).unwrap(), []);
}

#[test]
fn detach_waits_for_who_only_looks_and_names_who_stays() {
    requires_driver!();
    let scratch = Scratch::new("looker");
    let path = image(&scratch, "disk.img", 1 << 20);
    let mut devices = Devices::new(&scratch);
    let device = devices.keep(attach(&path, &Options::default()).unwrap());
    let looker = File::open(device.path()).unwrap();
    std::thread::scope(|scope| {
        let detaching = scope.spawn(|| detach(&device, false).unwrap());
        // It has asked the driver by now, and waits.
        rig::wait_until("the mark", || status(device.number).is_some_and(|status| status.autoclear));
        drop(looker);
        assert_eq!(detaching.join().unwrap(), Detached::Now);
    });
    let device = devices.keep(attach(&path, &Options::default()).unwrap());
    let mut stays =
        std::process::Command::new("sleep").arg("60").stdin(File::open(device.path()).unwrap()).spawn().unwrap();
    rig::wait_until("the program", || {
        std::fs::read_to_string(format!("/proc/{}/comm", stays.id())).is_ok_and(|name| name == "sleep\n")
    });
    let error = detach(&device, false).unwrap_err();
    stays.kill().unwrap();
    stays.wait().unwrap();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains(&format!("process {} (sleep)", stays.id())), "{error}");
    assert_eq!(detach(&device, false).unwrap(), Detached::Now);
}

#[test]
fn autoclear_goes_with_the_last_opener() {
    requires_driver!();
    let scratch = Scratch::new("autoclear");
    let path = image(&scratch, "disk.img", 1 << 20);
    let attached = attach(&path, &Options { autoclear: true, ..Options::default() }).unwrap();
    assert_eq!(find(&path).unwrap().len(), 1);
    drop(attached);
    rig::wait_until("the end of it", || find(&path).unwrap().is_empty());
}

#[test]
fn partitions_have_nodes_on_return() {
    requires_driver!();
    rig::requires!("sfdisk");
    let scratch = Scratch::new("partitions");
    // The kernel's own words for them, for a kernel that knows no tables.
    let spans =
        vec![Span { number: 1, start: 1 << 20, length: 1 << 20 }, Span { number: 2, start: 2 << 20, length: 1 << 20 }];
    let options = Options { partscan: true, partitions: spans, ..Options::default() };
    let path = image(&scratch, "disk.img", 8 << 20);
    let script = scratch.join("table");
    std::fs::write(&script, "label: gpt\nsize=2048\nsize=2048\n").unwrap();
    let mut sfdisk = std::process::Command::new(rig::which("sfdisk").unwrap());
    let done = sfdisk.arg("-q").arg(&path).stdin(File::open(&script).unwrap()).status().unwrap();
    assert!(done.success());
    let mut devices = Devices::new(&scratch);
    let attached = attach(&path, &options).unwrap();
    let nodes = attached.partitions.clone();
    let device = devices.keep(attached);
    let expected: Vec<PathBuf> = (1..=2).map(|n| format!("{}p{n}", device.path().display()).into()).collect();
    assert_eq!(nodes, expected);
    for node in &nodes {
        assert!(File::open(node).is_ok(), "{}", node.display());
    }
    // A container's /dev keeps nodes that nobody removes, and partitions are numbered anew: a node like that is made
    // right, and taken away at the end.
    std::fs::remove_file(&nodes[0]).unwrap();
    detach(&device, false).unwrap();
    let again = attach(&path, &options).unwrap();
    assert_eq!(again.partitions.len(), 2);
    let device = devices.keep(again);
    assert_eq!(detach(&device, false).unwrap(), Detached::Now);
    assert!(!nodes[0].exists() && !nodes[1].exists());
}

#[test]
fn many_attach_at_one_time() {
    requires_driver!();
    const MANY: usize = 20;
    let scratch = Scratch::new("many");
    let before = numbers().unwrap();
    let images: Vec<PathBuf> = (0..MANY).map(|n| image(&scratch, &format!("{n}.img"), 1 << 20)).collect();
    let mut devices = Devices::new(&scratch);
    let barrier = std::sync::Barrier::new(MANY);
    let attached: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = images
            .iter()
            .map(|path| {
                let barrier = &barrier;
                // Half of them without the lock: those really race for the free device.
                let sharing = if path.to_string_lossy().ends_with("1.img") { Sharing::Refuse } else { Sharing::Allow };
                scope.spawn(move || {
                    barrier.wait();
                    attach(path, &Options { sharing, ..Options::default() })
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut taken = std::collections::HashSet::new();
    let mut failed = Vec::new();
    for (path, attached) in images.iter().zip(attached) {
        match attached {
            Ok(attached) => {
                let device = devices.keep(attached);
                assert!(taken.insert(device.number), "{} twice", device.number);
                assert_eq!(status(device.number).unwrap().backing_file, *path);
            }
            Err(error) => failed.push(error),
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
    assert!(taken.iter().any(|number| !before.contains(number)), "{MANY} devices and none was made");
}

#[test]
fn one_image_wanted_by_many_is_got_by_one() {
    requires_driver!();
    let scratch = Scratch::new("one");
    let path = image(&scratch, "disk.img", 1 << 20);
    let mut devices = Devices::new(&scratch);
    let barrier = std::sync::Barrier::new(8);
    let attached: Vec<_> = std::thread::scope(|scope| {
        let attempt = || {
            barrier.wait();
            attach(&path, &Options::default())
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(attempt)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (got, refused): (Vec<_>, Vec<_>) = attached.into_iter().partition(Result::is_ok);
    let got: Vec<Device> = got.into_iter().map(|attached| devices.keep(attached.unwrap())).collect();
    assert_eq!(got.len(), 1, "{got:?}");
    assert!(refused.into_iter().all(|refused| refused.unwrap_err().kind() == Kind::Busy));
}
