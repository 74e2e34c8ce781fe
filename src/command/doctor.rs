//! `loopbox doctor`: what works on this machine.
//!
//! Each row is tried, not guessed from a version: a device is opened, a namespace is made (in a process of its own, so
//! that nothing stays).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;
use sys::namespace::{UnshareFlags, unshare};

use super::{Result, Status};
use crate::print::{self, Style, Table};

/// What works on this machine, what does not, why, and the one line that would change it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 when files can be mounted or attached here in some way, 1 when in none.")]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// Try one thing in this process, which it changes.
    #[arg(long, hide = true, value_enum)]
    r#try: Option<Trial>,
}

/// What is tried in a process of its own.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Trial {
    UserNamespace,
    NetworkNamespace,
    PacketQueue,
    IoUring,
}

impl Trial {
    fn word(self) -> &'static str {
        match self {
            Self::UserNamespace => "user-namespace",
            Self::NetworkNamespace => "network-namespace",
            Self::PacketQueue => "packet-queue",
            Self::IoUring => "io-uring",
        }
    }

    fn run(self) -> std::io::Result<()> {
        match self {
            Self::UserNamespace => unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS),
            Self::NetworkNamespace => unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET),
            Self::PacketQueue => {
                unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)?;
                net::driver::start(vec![], 0, None).map(drop).map_err(|error| system_error(&error))
            }
            Self::IoUring => sys::io_uring::probe(),
        }
    }

    /// The errno that the trial ended with, in a child.
    fn outcome(self) -> std::io::Result<()> {
        let status = Command::new("/proc/self/exe")
            .args(["doctor", "--try", self.word()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        match status.code() {
            Some(0) => Ok(()),
            Some(errno) => Err(std::io::Error::from_raw_os_error(errno)),
            None => Err(std::io::Error::other("the trial was killed")),
        }
    }
}

/// The system's own error under another.
fn system_error(error: &(dyn std::error::Error + 'static)) -> std::io::Error {
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<std::io::Error>();
        if let Some(errno) = io.and_then(std::io::Error::raw_os_error) {
            return std::io::Error::from_raw_os_error(errno);
        }
        next = error.source();
    }
    std::io::Error::other("it failed")
}

/// One row: a thing of the machine.
#[derive(Debug, Serialize)]
struct Check {
    /// What.
    name: &'static str,
    /// What it is good for.
    purpose: &'static str,
    /// Whether it works for this user.
    works: bool,
    /// What was found: a version, a path, or why not.
    found: String,
    /// The one line that would change it, where it does not work.
    remedy: Option<String>,
}

impl Check {
    fn yes(name: &'static str, purpose: &'static str, found: impl Into<String>) -> Self {
        Self { name, purpose, works: true, found: found.into(), remedy: None }
    }

    fn no(name: &'static str, purpose: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, purpose, works: false, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// What of loopbox works here, drawn from the checks.
#[derive(Debug, Serialize)]
struct Ability {
    /// The command.
    command: &'static str,
    /// Whether it works for this user.
    works: bool,
    /// By what.
    by: String,
}

#[derive(Debug, Serialize)]
struct Report {
    kernel: String,
    user: u32,
    checks: Vec<Check>,
    abilities: Vec<Ability>,
}

/// Tries each thing and prints a table.
pub fn run(args: &Args) -> Result {
    if let Some(trial) = args.r#try {
        let errno = trial.run().err().map_or(0, |error| error.raw_os_error().unwrap_or(255));
        return Ok(Status::Code(u8::try_from(errno).unwrap_or(255)));
    }
    let report = report();
    let mountable = report.abilities.iter().any(|ability| ability.works && ability.command != READ);
    if args.json {
        print::json(&report)?;
    } else {
        print::bytes(text(&report).as_bytes())?;
    }
    Ok(if mountable { Status::Done } else { Status::No })
}

fn text(report: &Report) -> String {
    let mut checks = Table::new();
    for check in &report.checks {
        let (style, word) = if check.works { (Style::Good, "yes") } else { (Style::Bad, "no") };
        let found = (Style::Plain, check.found.clone());
        checks.row([
            (style, word.to_owned()),
            (Style::Bold, check.name.to_owned()),
            (Style::Dim, check.purpose.to_owned()),
            found,
        ]);
    }
    let mut remedies = Table::new();
    for check in &report.checks {
        if let Some(remedy) = &check.remedy {
            remedies.row([(Style::Bold, check.name.to_owned()), (Style::Plain, remedy.clone())]);
        }
    }
    let mut abilities = Table::new();
    for ability in &report.abilities {
        let (style, word) = if ability.works { (Style::Good, "yes") } else { (Style::Bad, "no") };
        abilities.row([
            (style, word.to_owned()),
            (Style::Name, ability.command.to_owned()),
            (Style::Plain, ability.by.clone()),
        ]);
    }
    let heading = |text: &str| print::styled(Style::Bold, text);
    let who = if report.user == 0 { "root".to_owned() } else { format!("user {}", report.user) };
    let mut out = format!("{} (Linux {}, {who})\n", heading("This machine"), report.kernel);
    out += &checks.render();
    out += &format!("\n{}\n{}", heading("What loopbox can do here"), abilities.render());
    let remedies = remedies.render();
    if !remedies.is_empty() {
        out += &format!("\n{}\n{remedies}", heading("What would change it"));
    }
    out
}

const READ: &str = "info, ls, tree, cat, cp, tar";

fn report() -> Report {
    let root = rustix::process::geteuid().is_root();
    let loops = loop_driver(root);
    let fuse = fuse_device();
    let fusermount = fusermount(root);
    let users = user_namespaces();
    let network = network_namespaces();
    let by = |checks: &[(&Check, &str)], otherwise: &str| {
        let found = checks.iter().find(|(check, _)| check.works);
        found.map_or((false, otherwise.to_owned()), |(_, by)| (true, (*by).to_owned()))
    };
    let usable = fuse.works && (root || fusermount.works);
    let (_, fuse_by) = by(&[(&fuse, "FUSE, in user space")], "");
    let attach = match (loops.works, usable) {
        (true, _) => (true, "the kernel's loop driver: /dev/loopN".to_owned()),
        (false, true) => (true, "a node file served through FUSE".to_owned()),
        (false, false) => (false, "needs the loop driver (root), or FUSE and fusermount3".to_owned()),
    };
    let mount = match (loops.works, usable) {
        (true, true) => (true, "the kernel's file systems, and FUSE for all others".to_owned()),
        (true, false) => (true, "the kernel's file systems".to_owned()),
        (false, true) => (true, fuse_by),
        (false, false) => (false, "needs FUSE and fusermount3; without them: loopbox ls, cat, cp, tar".to_owned()),
    };
    let ublk = ublk_driver();
    let ublk_by = by(&[(&ublk, "the kernel's ublk_drv: /dev/ublkbN")], "needs the driver ublk_drv");
    let abilities = vec![
        Ability { command: READ, works: true, by: "nothing but the right to read the image".to_owned() },
        Ability { command: "mount", works: mount.0, by: mount.1 },
        Ability { command: "attach", works: attach.0, by: attach.1 },
        Ability { command: "serve", works: true, by: "NBD and vhost-user, nothing but sockets and memory".to_owned() },
        Ability { command: "serve --ublk", works: ublk.works, by: ublk_by.1 },
    ];
    let checks = vec![
        loops,
        ublk,
        fuse,
        fusermount,
        users,
        network,
        packet_queue(),
        tun(),
        io_uring(),
        kernel_file_systems(),
        tls(),
    ];
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    Report { kernel, user: rustix::process::geteuid().as_raw(), checks, abilities }
}

/// Why a device cannot be opened, in words, and what would change it.
fn device(path: &str, module: &str) -> std::result::Result<File, (String, String)> {
    let load = format!("as root: modprobe {module}");
    OpenOptions::new().read(true).write(true).open(path).map_err(|error| match error.raw_os_error() {
        Some(2) => (format!("there is no {path}"), load),
        Some(6 | 19) => (format!("{path} has no driver behind it"), load),
        Some(1 | 13) => {
            let mode = std::fs::metadata(path).map_or(0, |meta| meta.mode() & 0o777);
            (format!("{path} is closed to this user (mode {mode:04o})"), format!("as root: chmod 666 {path}"))
        }
        _ => (format!("{path}: {error}"), load),
    })
}

fn loop_driver(root: bool) -> Check {
    const NAME: &str = "loop driver";
    const PURPOSE: &str = "/dev/loopN";
    match device("/dev/loop-control", "loop") {
        Ok(_) => {
            let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
            let loops: Vec<_> =
                devices.filter(|entry| entry.file_name().to_string_lossy().starts_with("loop")).collect();
            let used = loops.iter().filter(|entry| entry.path().join("loop").exists()).count();
            Check::yes(NAME, PURPOSE, format!("{} devices, {used} in use", loops.len()))
        }
        Err((why, _)) if !root && Path::new("/dev/loop-control").exists() => {
            Check::no(NAME, PURPOSE, why, "run loopbox as root, or attach in user space (loopbox attach --user)")
        }
        Err((why, remedy)) => Check::no(NAME, PURPOSE, why, remedy),
    }
}

fn ublk_driver() -> Check {
    const NAME: &str = "ublk driver";
    const PURPOSE: &str = "/dev/ublkbN: serve --ublk";
    match device(sys::ublk::CONTROL, "ublk_drv") {
        Ok(_) => match export::ublk::available() {
            Ok(()) => Check::yes(NAME, PURPOSE, format!("{} opens", sys::ublk::CONTROL)),
            Err(error) => Check::no(NAME, PURPOSE, print::error_text(&error), "run loopbox as root"),
        },
        Err((why, _)) if Path::new(sys::ublk::CONTROL).exists() => {
            Check::no(NAME, PURPOSE, why, "run loopbox as root, or let users have disks by udev's rules for ublk")
        }
        Err((why, remedy)) => Check::no(NAME, PURPOSE, why, remedy),
    }
}

/// Why FUSE cannot be used here and what would change it, where that is so.
pub fn fuse_is_missing() -> Option<String> {
    let check = fuse_device();
    check.remedy.map(|remedy| format!("{}; {remedy}", check.found))
}

fn fuse_device() -> Check {
    const NAME: &str = "FUSE";
    const PURPOSE: &str = "mounts and disks in user space";
    match device("/dev/fuse", "fuse") {
        Ok(_) => {
            let uring = std::fs::read_to_string("/sys/module/fuse/parameters/enable_uring").unwrap_or_default();
            let ring = if uring.trim() == "Y" { ", io_uring on" } else { "" };
            Check::yes(NAME, PURPOSE, format!("/dev/fuse opens{ring}"))
        }
        Err((why, remedy)) => Check::no(NAME, PURPOSE, why, remedy),
    }
}

fn fusermount(root: bool) -> Check {
    const NAME: &str = "fusermount3";
    const PURPOSE: &str = "FUSE mounts of an ordinary user";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("fusermount3")).find(|file| file.exists());
    match found {
        None if root => Check::yes(NAME, PURPOSE, "not installed, and root does not need it"),
        None => {
            Check::no(NAME, PURPOSE, "not installed", "as root: apt install fuse3 (or your system's fuse3 package)")
        }
        Some(file) => {
            let set_uid = file.metadata().is_ok_and(|meta| meta.uid() == 0 && meta.permissions().mode() & 0o4000 != 0);
            let shown = file.display();
            if set_uid || root {
                let others = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
                let others = others.lines().any(|line| line.trim() == "user_allow_other");
                let others = if others { ", allow_other permitted" } else { "" };
                Check::yes(NAME, PURPOSE, format!("{shown}{others}"))
            } else {
                Check::no(NAME, PURPOSE, format!("{shown} is not set-uid root"), format!("as root: chmod 4755 {shown}"))
            }
        }
    }
}

/// The setting of the machine that forbids user namespaces, as the line that permits them.
fn namespace_remedy() -> String {
    let is = |name: &str, value: &str| {
        std::fs::read_to_string(format!("/proc/sys/{name}")).is_ok_and(|text| text.trim() == value)
    };
    if is("kernel/unprivileged_userns_clone", "0") {
        "as root: sysctl kernel.unprivileged_userns_clone=1".to_owned()
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0".to_owned()
    } else if is("user/max_user_namespaces", "0") {
        "as root: sysctl user.max_user_namespaces=10000".to_owned()
    } else {
        "a container forbids it: start it with a seccomp profile that permits unshare".to_owned()
    }
}

fn user_namespaces() -> Check {
    const NAME: &str = "user namespaces";
    const PURPOSE: &str = "a world of its own for a program";
    match Trial::UserNamespace.outcome() {
        Ok(()) => Check::yes(NAME, PURPOSE, "made one, with a mount namespace"),
        Err(error) => Check::no(NAME, PURPOSE, said(&error), namespace_remedy()),
    }
}

fn network_namespaces() -> Check {
    const NAME: &str = "network namespaces";
    const PURPOSE: &str = "a loopback network of its own";
    match Trial::NetworkNamespace.outcome() {
        Ok(()) => Check::yes(NAME, PURPOSE, "made one"),
        Err(error) => Check::no(NAME, PURPOSE, said(&error), namespace_remedy()),
    }
}

fn packet_queue() -> Check {
    const NAME: &str = "packet queue";
    const PURPOSE: &str = "delay, loss and capture in it";
    match Trial::PacketQueue.outcome() {
        Ok(()) => Check::yes(NAME, PURPOSE, "NFQUEUE by nftables"),
        Err(error) if matches!(error.raw_os_error(), Some(1 | 13 | 28)) => {
            Check::no(NAME, PURPOSE, said(&error), namespace_remedy())
        }
        Err(error) => Check::no(NAME, PURPOSE, said(&error), "as root: modprobe nfnetlink_queue nft_queue nf_tables"),
    }
}

fn tun() -> Check {
    const NAME: &str = "TUN";
    const PURPOSE: &str = "packets in user space";
    match device("/dev/net/tun", "tun") {
        Ok(_) => Check::yes(NAME, PURPOSE, "/dev/net/tun opens"),
        Err((why, remedy)) => Check::no(NAME, PURPOSE, why, remedy),
    }
}

fn io_uring() -> Check {
    const NAME: &str = "io_uring";
    const PURPOSE: &str = "fewer system calls a request";
    match Trial::IoUring.outcome() {
        Ok(()) => Check::yes(NAME, PURPOSE, "made a ring"),
        Err(error) if error.raw_os_error() == Some(1) => Check::no(
            NAME,
            PURPOSE,
            "shut off",
            "as root: sysctl kernel.io_uring_disabled=0 (or the container's seccomp profile)",
        ),
        Err(error) => Check::no(NAME, PURPOSE, said(&error), "a kernel from 5.1 on"),
    }
}

fn tls() -> Check {
    let (name, purpose) = ("TLS", "web --tls, serve --tls");
    match tls::supported() {
        Ok(()) => Check::yes(name, purpose, "the processor has what its cryptography needs"),
        Err(error) => Check::no(name, purpose, error.to_string(), "another machine; without TLS, stay on loopback"),
    }
}

fn kernel_file_systems() -> Check {
    const NAME: &str = "kernel file systems";
    const PURPOSE: &str = "mounts of root";
    let text = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let names: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("nodev"))
        .map(str::trim)
        .filter(|name| *name != "fuseblk")
        .collect();
    if names.is_empty() {
        return Check::no(NAME, PURPOSE, "none listed in /proc/filesystems", "mount /proc");
    }
    Check::yes(NAME, PURPOSE, names.join(" "))
}

fn said(error: &std::io::Error) -> String {
    print::error_text(error)
}
