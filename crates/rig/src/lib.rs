//! What the tests of loopbox stand on.
//!
//! - [`requires!`] and [`requires_kernel!`]: a peer that is missing fails the test under `cargo xtask test` and in CI,
//!   and skips it elsewhere; only what the kernel itself lacks is a skip everywhere, printed and counted.
//! - [`Scratch`]: a folder that every user can reach, gone when dropped.
//! - [`User`]: the same test as root and as an ordinary user.
//! - [`guest`]: a Debian kernel in a machine of QEMU, with modules, disks and a script.
//! - [`memory`]: how much of it a task may take.
//! - [`package`]: files out of packages of Debian.
//! - [`sound`]: other sound servers, without hardware.
//! - [`vhost`]: the driver's side of a virtio disk, without a guest.
//! - [`tree`]: a tree of files with everything awkward in it, and manifests of two trees to compare.

#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub mod guest;
pub mod kernel;
pub mod memory;
pub mod package;
pub mod sound;
pub mod tree;
pub mod vhost;

/// The ordinary user of the tests; `cargo xtask setup` makes it.
pub const ORDINARY_USER: &str = "loopbox-test";

/// Peers, each with the Debian package that has it; for a message that helps.
const PACKAGES: &[(&str, &str)] = &[
    ("mkfs.ext4", "e2fsprogs"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("blkdiscard", "util-linux"),
    ("strip", "binutils"),
    ("e2fsck", "e2fsprogs"),
    ("7z", "p7zip-full"),
    ("bsdtar", "libarchive-tools"),
    ("sfdisk", "fdisk"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("fusermount3", "fuse3"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("mkzftree", "genisoimage"),
    ("cryptsetup", "cryptsetup-bin"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("tc", "iproute2"),
    ("cupsd", "cups-daemon"),
    ("dnsmasq", "dnsmasq-base"),
    ("kdig", "knot-dnsutils"),
    ("nft", "nftables"),
    ("pg_ctl", "postgresql-15"),
    ("getfattr", "attr"),
    ("mkfs.erofs", "erofs-utils"),
    ("fsck.erofs", "erofs-utils"),
    ("mkfs.fat", "dosfstools"),
    ("fsck.fat", "dosfstools"),
    ("mcopy", "mtools"),
    ("mkfs.exfat", "exfatprogs"),
    ("fsck.exfat", "exfatprogs"),
    ("mount.exfat-fuse", "exfat-fuse"),
    ("mksquashfs", "squashfs-tools"),
    ("unsquashfs", "squashfs-tools"),
    ("dbus-daemon", "dbus"),
    ("pactl", "pulseaudio-utils"),
    ("paplay", "pulseaudio-utils"),
    ("parec", "pulseaudio-utils"),
    ("aplay", "alsa-utils"),
    ("arecord", "alsa-utils"),
];

/// Whether a missing peer is a failure: under `cargo xtask test` and in CI.
pub fn strict() -> bool {
    std::env::var_os("CI").is_some() || std::env::var_os("LOOPBOX_TEST_STRICT").is_some()
}

/// Where a program is, as a shell would find it (the system folders too, which an ordinary user's PATH may lack).
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].into_iter().map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}

/// The body of [`requires!`]: whether all the programs are there.
///
/// # Panics
/// When one is missing and the run is [`strict`].
pub fn have_peers(test: &str, programs: &[&str]) -> bool {
    for program in programs {
        if which(program).is_none() {
            let package = PACKAGES.iter().find(|(name, _)| name == program).map_or(*program, |(_, package)| package);
            assert!(!strict(), "{test} needs `{program}` (Debian: {package}); `cargo xtask setup` installs it");
            skip(test, &format!("no `{program}` (Debian: {package})"));
            return false;
        }
    }
    true
}

/// Prints a skip, and counts it for the closing line of `cargo xtask test`.
pub fn skip(test: &str, why: &str) {
    let line = format!("SKIP {test}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(file) = std::env::var_os("LOOPBOX_TEST_SKIPS") {
        let opened = std::fs::OpenOptions::new().append(true).create(true).open(file);
        let _ = opened.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// The name of the function that it stands in.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn here() {}
        let name = std::any::type_name_of_val(&here);
        name.strip_suffix("::here").unwrap_or(name)
    }};
}

/// `requires!("xorriso", "debugfs");` — the peers that a test needs. A missing one fails the test in a strict run.
#[macro_export]
macro_rules! requires {
    ($($program:expr),+ $(,)?) => {
        if !$crate::have_peers($crate::test_name!(), &[$($program),+]) {
            return;
        }
    };
}

/// `requires_kernel!(have_filesystem("ext4"), "the file system ext4");` — what only the kernel can give.
#[macro_export]
macro_rules! requires_kernel {
    ($have:expr, $what:expr) => {
        if !$have {
            $crate::skip($crate::test_name!(), &format!("this kernel lacks {}", $what));
            return;
        }
    };
}

/// `requires_root!();` — fails in a strict run by an ordinary user, skips otherwise.
#[macro_export]
macro_rules! requires_root {
    () => {
        if !$crate::is_root() {
            assert!(!$crate::strict(), "{} needs root", $crate::test_name!());
            $crate::skip($crate::test_name!(), "needs root");
            return;
        }
    };
}

/// Whether the kernel knows a file system (`/proc/filesystems`).
pub fn have_filesystem(name: &str) -> bool {
    std::fs::read_to_string("/proc/filesystems")
        .unwrap_or_default()
        .lines()
        .any(|line| line.split_whitespace().next_back() == Some(name))
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Who runs a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// As the test itself: root in CI.
    Myself,
    /// [`ORDINARY_USER`] when the tests run as root; otherwise the user that runs them, who is one.
    Ordinary,
}

impl User {
    /// A command of this user, with a plain environment (PATH, HOME, LANG) and standard input closed.
    pub fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = if self == Self::Ordinary && is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", ORDINARY_USER, "--regid", ORDINARY_USER, "--clear-groups", "--"]).arg(program);
            command.env("HOME", format!("/home/{ORDINARY_USER}")).env("USER", ORDINARY_USER);
            command
        } else {
            Command::new(program)
        };
        command.env_remove("XDG_RUNTIME_DIR").env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    /// User and group number.
    pub fn ids(self) -> (u32, u32) {
        if self == Self::Ordinary && is_root() {
            let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
            let line = passwd.lines().find(|line| line.starts_with(&format!("{ORDINARY_USER}:")));
            let line = line.unwrap_or_else(|| panic!("no user {ORDINARY_USER}: `cargo xtask setup` makes it"));
            let mut fields = line.split(':').skip(2).map(|field| field.parse().unwrap());
            (fields.next().unwrap(), fields.next().unwrap())
        } else {
            (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
        }
    }
}

/// A folder below the system's temporary folder, mode 0755, gone when dropped.
#[derive(Debug)]
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A new one, whose name begins with `name`.
    pub fn new(name: &str) -> Self {
        let folder = tempfile::Builder::new().prefix(&format!("loopbox-{name}-")).tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    /// A new one that belongs to `user`.
    pub fn of(user: User, name: &str) -> Self {
        let scratch = Self::new(name);
        if is_root() {
            let (uid, gid) = user.ids();
            std::os::unix::fs::chown(scratch.path(), Some(uid), Some(gid)).unwrap();
        }
        scratch
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs lines of a shell in it, up to the first that fails, and returns what they printed.
    ///
    /// # Panics
    /// When one fails.
    pub fn shell(&self, lines: &str) -> String {
        run_command(User::Myself.command("sh").args(["-ec", lines]).current_dir(self.path()))
    }

    /// A file or folder in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }
}

/// Runs a peer and returns its standard output.
///
/// # Panics
/// When it does not exit with 0: with its output.
pub fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(program: &str, args: I) -> String {
    let found = which(program).unwrap_or_else(|| panic!("no `{program}`"));
    let mut command = Command::new(found);
    command.args(args);
    run_command(&mut command)
}

/// Runs a command and returns its standard output.
///
/// # Panics
/// When it does not exit with 0: with its output.
pub fn run_command(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started.
pub fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// What a command printed on both streams.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Waits until `done`, looking again after each millisecond, for 20 seconds at most; for what gives no event.
///
/// # Panics
/// When the time is over.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed().as_secs() < 20, "waited 20 s in vain: {what}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Noise in bytes of which none is 0, the same at each call: samples that any integer format takes, and that no silence
/// can be mistaken for. No part of it is like another, so that what is found of it is where it belongs.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8 | 1
        })
        .collect()
}
