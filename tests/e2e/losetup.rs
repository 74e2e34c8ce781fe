//! loopbox called as losetup, beside util-linux's own: the same devices, the same words, the same bytes.
//!
//! Each runs in a mount namespace of its own whose `/sys/block` holds the devices of the test alone: what other
//! programs attach meanwhile is seen by neither. What the driver itself answers (the next free device) may change
//! between two runs, so a difference counts when it stays.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use export::loop_device::{Attached, Control, Device, Options, Sharing, attach, bind, detach};
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
    /// The numbers of the devices that scripts were given.
    given: RefCell<BTreeSet<u32>>,
}

impl Pair {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        for (folder, target) in [("theirs", rig::which("losetup").unwrap()), ("ours", program().to_path_buf())] {
            std::fs::create_dir(scratch.join(folder)).unwrap();
            symlink(target, scratch.join(folder).join("losetup")).unwrap();
        }
        Self { scratch, devices: Vec::new(), user: User::Myself, before: "", given: RefCell::default() }
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

    /// Attaches an image to a device whose number is so high that the driver names it to nobody as free: it may be
    /// detached more than once.
    fn attach_far(&mut self, image: &Path, number: u32) {
        let control = std::fs::File::options().read(true).write(true).open("/dev/loop-control").unwrap();
        sys::loop_device::add(&control, Some(number)).unwrap();
        self.given.borrow_mut().insert(number);
        let (device, open) = Device::open(number, false).unwrap();
        let mut info = sys::loop_device::Info::ZERO;
        info.set_file_name(image.as_os_str().as_encoded_bytes());
        let file = std::fs::File::options().read(true).write(true).open(image).unwrap();
        bind(&open, &file, 512, &info).unwrap();
        self.devices.push(device);
    }

    /// The words of a case, quoted for a shell: `{0}` is the first device, `~` a blank. A case that begins with `$ ` is
    /// words of the shell as they are.
    fn words(&self, case: &str) -> String {
        if let Some(script) = case.strip_prefix("$ ") {
            return script.to_owned();
        }
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
            for (case, theirs, ours) in &mut wrong {
                if case.starts_with("$ ") || (is_bare(theirs) && is_bare(ours)) {
                    assert!(theirs.contains("/dev/loop") || theirs.contains("exclusive arguments"), "{case}\n{theirs}");
                    self.given.borrow_mut().extend(numbers(theirs).chain(numbers(ours)));
                    (*theirs, *ours) = (without_numbers(theirs), without_numbers(ours));
                }
            }
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
            // Somebody else may have it by now.
            let status = export::loop_device::status(device.number);
            if status.is_some_and(|status| status.backing_file.starts_with(self.scratch.path())) {
                let _ = detach(device, true);
            }
        }
        // What was made for want of a free one.
        let numbers = self.devices.iter().map(|device| device.number).chain(self.given.take());
        for number in numbers.filter(|number| *number >= 8) {
            let _ = Control::open().unwrap().remove(number);
        }
    }
}

/// The numbers of the loop devices that a text names.
fn numbers(text: &str) -> impl Iterator<Item = u32> {
    text.split("/dev/loop").skip(1).filter_map(|part| part.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
}

/// Whether it begins with a line that is a device and nothing else: the one that was free at that time.
fn is_bare(text: &str) -> bool {
    let number = text.lines().next().and_then(|line| line.strip_prefix("/dev/loop"));
    number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The text with N for the numbers of loop devices: two runs get the device that is free then.
fn without_numbers(text: &str) -> String {
    let mut parts = text.split("/dev/loop");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("/dev/loopN");
        out.push_str(part.trim_start_matches(|character: char| character.is_ascii_digit()));
    }
    out
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

#[test]
fn what_is_attached_is_the_same() {
    requires_losetup!();
    let pair = Pair::new("losetup-attach");
    for (name, bytes) in
        [("disk.img", 8 << 20), ("tiny.img", 100), ("empty.img", 0), ("odd.img", 5000), ("big.img", 1 << 32)]
    {
        pair.image(name, bytes);
    }
    let options = "
        disk.img
        -r disk.img
        disk.img -o 512
        disk.img -o 100
        disk.img -o 1K --sizelimit 1MiB
        disk.img --sizelimit 100
        disk.img --sizelimit 1000
        disk.img --sizelimit 1048577
        disk.img --sizelimit 16M
        disk.img -o 1 --sizelimit 1024
        disk.img -o 8388607
        disk.img -o 8388608
        disk.img -o 8389120
        disk.img -o 9999999999999
        disk.img -o 8388000
        disk.img -b 512
        disk.img -b 4096
        disk.img -b 4096 -o 512
        disk.img -b 1K --sizelimit 512
        disk.img -b 4294967296
        -P disk.img
        -rP disk.img
        --direct-io disk.img
        --direct-io=on disk.img -b 4096
        --direct-io=off disk.img
        --direct-io disk.img -o 512
        --direct-io disk.img -o 24
        -L disk.img
        -v disk.img
        -l disk.img
        -J disk.img
        -O NAME disk.img
        ./disk.img
        tiny.img
        empty.img
        odd.img
        odd.img -o 904
        odd.img -b 4096
        odd.img -r
        big.img --sizelimit 1.37G
        big.img --sizelimit 1.05K
        big.img --sizelimit 0x1.8K
        big.img --sizelimit 5.K
    ";
    let columns = "NAME,SIZELIMIT,OFFSET,AUTOCLEAR,PARTSCAN,RO,BACK-FILE,BACK-INO,DIO,LOG-SEC";
    let after = format!(
        ">$OUT/device; read -r device <$OUT/device; echo $device; losetup $device; losetup -l --raw -O {columns} $device; \
         losetup -d $device; losetup $device"
    );
    let cases = options.lines().map(str::trim).filter(|options| !options.is_empty());
    let cases: Vec<String> = cases.map(|options| format!("$ --show -f {options} {after}")).collect();
    pair.compare(&cases.join("\n"));
}

#[test]
fn what_is_changed_and_detached_is_the_same() {
    requires_losetup!();
    let mut pair = Pair::new("losetup-change");
    pair.image("other.img", 8 << 20);
    let image = pair.image("disk.img", 8 << 20);
    let number = 600_000 + std::process::id() % 100_000;
    pair.attach_far(&image, number);
    detach(&pair.devices[0], false).unwrap();
    let cases = [
        "losetup -b 4096 $device; losetup -l $device",
        "losetup --direct-io $device; losetup -l $device",
        "losetup -b 4096 --direct-io=on $device; losetup -l $device",
        "losetup -b 777 $device; losetup -l $device",
        "losetup -d $device /dev/nosuch; losetup $device",
        "losetup -d /dev/nosuch $device; losetup $device",
        "losetup -d $device $device; losetup $device",
        "losetup -d $device; losetup -d $device; losetup -c $device; losetup -b 512 $device; losetup --direct-io $device",
        "losetup -d $device; losetup -lJ $device; losetup --output-all -lJ $device; losetup -l --raw $device",
        "losetup -d $device; losetup $device other.img; losetup -l -O BACK-FILE $device; losetup $device disk.img",
        "losetup -d $device; losetup -r --show $device other.img -o 512; losetup $device",
        "losetup -d $device; losetup ${device#/dev/} other.img; losetup $device",
        "losetup -d $device; (cd /dev; losetup --show ./${device#/dev/} /etc/passwd; losetup -d ${device#/dev/}); losetup $device",
        "losetup -c $device; losetup -v -c $device; losetup --set-capacity=$device",
        "exec 9<$device; losetup -d $device; losetup $device; losetup -O AUTOCLEAR $device; exec 9<&-; losetup $device",
    ];
    let cases = cases.map(|case| {
        format!("$ /dev/loop{number} disk.img; device=/dev/loop{number}; echo $device; {case}; losetup -d $device 2>/dev/null")
    });
    pair.compare(&cases.join("\n"));
}

#[test]
fn detach_all_is_the_same() {
    requires_losetup!();
    for which in ["theirs", "ours"] {
        let mut pair = Pair::new("losetup-all");
        let image = pair.image("disk.img", 8 << 20);
        for number in 0..3 {
            pair.attach_far(&image, 700_000 + std::process::id() % 30_000 * 3 + number);
        }
        let said = pair.run(which, &[pair.words("-D"), pair.words("-a"), pair.words("-Dv")]);
        for said in said {
            assert_eq!(said, "[stderr]\n[exit status]\n0\n", "{which}");
        }
        for device in &pair.devices {
            rig::wait_until("the end of it", || {
                export::loop_device::status(device.number)
                    .is_none_or(|status| !status.backing_file.starts_with(pair.scratch.path()))
            });
        }
    }
}

#[test]
fn narrow_terminals_show_the_same() {
    requires_losetup!();
    rig::requires!("script", "stty");
    let pair = listed("losetup-width");
    let widths = [0, 1, 20, 40, 56, 60, 79, 80, 81, 90, 100, 101, 102, 103, 104, 105, 106, 110, 120, 130, 200];
    let mut script = String::new();
    for width in widths {
        let device = pair.devices[2].path().display();
        script.push_str(&format!("stty cols {width}; echo width {width}\n"));
        for words in ["-l", "-nl", "-O BACK-FILE,NAME,BACK-INO", "-l --output-all", &format!("-l {device}")] {
            script.push_str(&format!("$LOSETUP/losetup {words}\n"));
        }
    }
    let file = pair.scratch.join("script");
    std::fs::write(&file, script).unwrap();
    let isolated = ISOLATED.split("exec $AS").next().unwrap();
    let said = ["theirs", "ours"].map(|which| {
        let mut command = Command::new("unshare");
        let run = format!("{isolated} exec script -qec \"sh {}\" /dev/null", file.display());
        let names = pair.devices.iter().map(|device| format!("loop{}", device.number)).collect::<Vec<_>>().join(" ");
        command.args(["-m", "sh", "-c", &run]).env("DEVICES", names).env("BEFORE", "").env("LC_ALL", "C.UTF-8");
        rig::run_command(command.env("LOSETUP", pair.scratch.join(which)))
    });
    assert!(said[0].contains("width 200"), "{}", said[0]);
    assert_eq!(said[0], said[1]);
}
