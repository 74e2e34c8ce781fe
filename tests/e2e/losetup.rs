//! loopbox called as losetup, beside util-linux's own: the same devices, the same words, the same bytes.
//!
//! Each runs in a mount namespace of its own whose `/sys/block` holds the devices of the test alone: what other
//! programs attach meanwhile is seen by neither. What the driver itself answers (the next free device) may change
//! between two runs, so a difference counts when it stays.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use export::loop_device::{Attached, Control, Device, Options, Sharing, attach, detach};
use rig::{Scratch, User};

use crate::session::program;

/// The release that is imitated byte for byte.
const VERSION: &str = "2.38.1";

/// Mounts a folder over /sys/block that shows the devices named in $DEVICES alone, and runs losetup with each of the
/// arguments, which are quoted for a shell. $BEFORE may prepare more, $AS may give up privileges.
const ISOLATED: &str = r#"
mount -t tmpfs none /sys/block || exit 99
for device in $DEVICES; do
    ln -s /sys/devices/virtual/block/$device /sys/block/$device
done
eval "$BEFORE"
exec $AS sh -c '
PATH=$LOSETUP
number=0
for words in "$@"; do
    eval "losetup $words" >$OUT/$number.out 2>$OUT/$number.err
    echo $? >$OUT/$number.status
    number=$((number + 1))
done' sh "$@"
"#;

/// Whether the test can be: the driver, root, and a losetup of that release.
macro_rules! requires_losetup {
    () => {
        rig::requires_root!();
        rig::requires!("losetup", "unshare");
        rig::requires_kernel!(Path::new("/sys/class/misc/loop-control").exists(), "the loop driver");
        let found = rig::run("losetup", ["--version"]);
        if !found.contains(VERSION) {
            rig::skip(rig::test_name!(), &format!("{} is not {VERSION}", found.trim()));
            return;
        }
    };
}

/// Both programs, and devices for them.
struct Pair {
    scratch: Scratch,
    devices: Vec<Device>,
    user: User,
    before: &'static str,
}

impl Pair {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        for (folder, target) in [("theirs", rig::which("losetup").unwrap()), ("ours", program().to_path_buf())] {
            std::fs::create_dir(scratch.join(folder)).unwrap();
            symlink(target, scratch.join(folder).join("losetup")).unwrap();
        }
        Self { scratch, devices: Vec::new(), user: User::Myself, before: "" }
    }

    fn image(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.scratch.join(name);
        std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    /// Attaches an image; `"{0}"` in the words of a case is the first device.
    fn attach(&mut self, image: &Path, options: Options) -> Device {
        let attached: Attached = attach(image, &Options { sharing: Sharing::Allow, ..options }).unwrap();
        self.devices.push(attached.device.clone());
        attached.device.clone()
    }

    /// The words of a case, quoted for a shell: `{0}` is the first device, `~` a blank.
    fn words(&self, case: &str) -> String {
        let mut words = String::new();
        for word in case.split(' ').filter(|word| !word.is_empty()) {
            let mut word = word.replace('~', " ").replace("''", "");
            for (number, device) in self.devices.iter().enumerate() {
                word = word.replace(&format!("{{{number}}}"), &device.path().display().to_string());
            }
            words.push_str(&format!(" '{word}'"));
        }
        words
    }

    /// What one of the two says to each of the cases.
    fn run(&self, which: &str, cases: &[String]) -> Vec<String> {
        let out = Scratch::of(self.user, "said");
        let names = self.devices.iter().map(|device| format!("loop{}", device.number));
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", ISOLATED, "sh"]).args(cases);
        command.env("DEVICES", names.collect::<Vec<_>>().join(" ")).env("OUT", out.path());
        command.env("LOSETUP", self.scratch.join(which)).env("BEFORE", self.before).env("LC_ALL", "C.UTF-8");
        let (uid, gid) = self.user.ids();
        let drop = format!("setpriv --reuid {uid} --regid {gid} --clear-groups");
        command.env("AS", if self.user == User::Ordinary { &drop } else { "" });
        command.current_dir(self.scratch.path()).stdin(Stdio::null());
        rig::run_command(&mut command);
        let text = |number: usize, what: &str| {
            let bytes = std::fs::read(out.join(format!("{number}.{what}"))).unwrap();
            bytes
                .split_inclusive(|byte| *byte == b'\n')
                .map(|line| {
                    let (line, end) = line.strip_suffix(b"\n").map_or((line, "(no line feed)"), |line| (line, ""));
                    format!("{}{end}\n", line.escape_ascii())
                })
                .collect::<String>()
        };
        let said = |number| {
            format!("{}[stderr]\n{}[exit status]\n{}", text(number, "out"), text(number, "err"), text(number, "status"))
        };
        (0..cases.len()).map(said).collect()
    }

    /// That both say the same to each case, whatever other programs did with the driver meanwhile.
    fn compare(&self, cases: &str) {
        let cases: Vec<&str> = cases.lines().map(str::trim).filter(|case| !case.is_empty()).collect();
        let mut wrong: Vec<(&str, String, String)> =
            cases.into_iter().map(|case| (case, String::new(), String::new())).collect();
        for _ in 0..4 {
            let words: Vec<String> = wrong.iter().map(|(case, ..)| self.words(case)).collect();
            let said = self.run("theirs", &words).into_iter().zip(self.run("ours", &words));
            wrong = wrong.into_iter().zip(said).map(|((case, ..), (theirs, ours))| (case, theirs, ours)).collect();
            wrong.retain(|(_, theirs, ours)| theirs != ours);
            if wrong.is_empty() {
                return;
            }
        }
        let lines =
            wrong.iter().map(|(case, theirs, ours)| format!("losetup {case}\n--- theirs\n{theirs}--- ours\n{ours}"));
        panic!("{} cases differ\n{}", wrong.len(), lines.collect::<Vec<_>>().join("\n"));
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for device in &self.devices {
            let _ = detach(device, true);
            if device.number >= 8 {
                let _ = Control::open().unwrap().remove(device.number);
            }
        }
    }
}

/// Two images on three devices, the last with all that can be set.
fn listed(name: &str) -> Pair {
    let mut pair = Pair::new(name);
    let image = pair.image("disk.img", 8 << 20);
    let odd = pair.image("an odd\tname\\ \"quoted\" \u{e4}\u{65e5}\u{7}.img", 1 << 20);
    pair.attach(&image, Options { buffered: true, ..Options::default() });
    pair.attach(&odd, Options { read_only: true, block_size: Some(4096), buffered: true, ..Options::default() });
    let offset = Options { offset: 512, sizelimit: 1 << 20, partscan: true, ..Options::default() };
    pair.attach(&image, offset);
    pair
}

#[test]
fn lists_and_errors_are_the_same() {
    requires_losetup!();
    let pair = listed("losetup");
    pair.compare(include_str!("losetup_cases.txt"));
}

#[test]
fn an_ordinary_user_is_told_the_same() {
    requires_losetup!();
    let mut pair = listed("losetup-user");
    pair.user = User::Ordinary;
    pair.compare(
        "
        -a
        -l
        -l --output-all
        -J -l --output-all
        -f
        -f disk.img
        -f nofile
        {0}
        -l {0}
        {0} disk.img
        -d {0}
        -d {0} {1}
        -D
        -c {0}
        -b 512 {0}
        --direct-io {0}
        -j disk.img
        -j disk.img -o 512
        -L -f disk.img
        ",
    );
}

#[test]
fn a_dev_without_nodes_is_told_the_same() {
    requires_losetup!();
    let mut pair = listed("losetup-nodes");
    pair.before = "mount -t tmpfs none /dev; mknod /dev/null c 1 3";
    let cases = "
        -a
        -l
        -J
        -f
        -D
        {0}
        -d {0}
        -l {0}
        -j disk.img
        ";
    pair.compare(cases);
    pair.before = "mount -t tmpfs none /dev; mknod /dev/null c 1 3; mknod /dev/loop-control c 10 237";
    pair.compare(cases);
}
