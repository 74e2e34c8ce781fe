//! A Debian kernel in a machine of QEMU: what the kernel of the tests lacks (netem, dm-crypt, ublk, vfat, udf …), as an
//! oracle, and as a peer with disks.
//!
//! ```no_run
//! # use loopbox_rig as rig;
//! rig::requires_guest!();
//! let done = rig::guest::Guest::new()
//!     .module("sch_netem")                             // with all that it needs, loaded in order
//!     .program("tc")                                   // with its libraries, into /usr/bin
//!     .file("/etc/hosts".as_ref(), "/etc/hosts")       // a file or a folder, where the guest is to have it
//!     .disk("/tmp/image".as_ref())                     // a virtio disk: /dev/vda, then /dev/vdb …
//!     .run("tc qdisc add dev lo root netem delay 10ms && ping -c 3 127.0.0.1");
//! assert_eq!(done.status, 0, "{done}");
//! ```
//!
//! - The script runs as root by dash, with the commands of busybox and an `lo` that is up. What it writes to standard
//!   output and standard error comes back, and so does its exit status. Many bytes come back by a disk: the file behind
//!   [`Guest::disk`] is written to.
//! - [`Guest::network`] gives it `eth0`; the machine of the tests is 10.0.2.2. [`Guest::argument`] is for everything
//!   else that QEMU has; [`Guest::shared_memory`] is what vhost-user asks for.
//! - No KVM is needed; a guest is up within 10 seconds and computes some ten times slower than the machine: compare
//!   bytes and statistics, not speed.
//! - The kernel is Debian's package `linux-image-6.12-amd64`, downloaded by apt once, and kept in `target/guest`.
//!   Its configuration (`boot/config-*`) and its modules are in there.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

mod initramfs;
mod kernel;
pub mod tree;

use initramfs::Initramfs;
pub use kernel::Kernel;

/// The kernel's command line.
const APPEND: &str = "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check random.trust_cpu=on";

/// Programs without which there is no guest.
pub const PROGRAMS: &[&str] = &["qemu-system-x86_64", "busybox", "dash", "apt-get", "dpkg-deb", "depmod", "xz", "ldd"];

/// The body of [`crate::requires_guest!`].
///
/// # Panics
/// When something is missing and the run is [`crate::strict`].
pub fn have(test: &str) -> bool {
    if !crate::have_peers(test, PROGRAMS) {
        return false;
    }
    match Kernel::get() {
        Ok(_) => true,
        Err(why) => {
            assert!(!crate::strict(), "{test} needs a kernel for its guest: {why}");
            crate::skip(test, &why);
            false
        }
    }
}

/// `requires_guest!();` — QEMU, busybox and a kernel for [`guest::Guest`](crate::guest::Guest).
#[macro_export]
macro_rules! requires_guest {
    () => {
        if !$crate::guest::have($crate::test_name!()) {
            return;
        }
    };
}

/// A machine to be started.
#[derive(Debug, Clone)]
pub struct Guest {
    modules: Vec<String>,
    programs: Vec<PathBuf>,
    files: Vec<(PathBuf, String)>,
    arguments: Vec<OsString>,
    disks: usize,
    memory_mib: u32,
    processors: u32,
    network: bool,
    shared_memory: bool,
    patience: Duration,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// What the script wrote.
    pub output: String,
    /// Its exit status.
    pub status: i32,
    /// What the kernel wrote to its console.
    pub console: String,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nexit status {} in the guest, whose kernel said:\n{}", self.output, self.status, self.console)
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            modules: vec![],
            programs: vec![],
            files: vec![],
            arguments: vec![],
            disks: 0,
            memory_mib: 512,
            processors: 1,
            network: false,
            shared_memory: false,
            patience: Duration::from_secs(180),
        }
    }
}

impl Guest {
    /// One processor, 512 MiB, three minutes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Loads a module of the kernel, by its name; one that is built in is there already.
    #[must_use]
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.replace('-', "_"));
        self
    }

    /// Brings a program (a path, or a name to look up), with its libraries, to `/usr/bin`.
    #[must_use]
    pub fn program(mut self, program: impl AsRef<Path>) -> Self {
        let program = program.as_ref();
        let found = crate::which(&program.to_string_lossy());
        self.programs.push(found.unwrap_or_else(|| program.to_path_buf()));
        self
    }

    /// Brings a file, or a folder with all that is in it, to the path `to`.
    #[must_use]
    pub fn file(mut self, from: &Path, to: &str) -> Self {
        self.files.push((from.to_path_buf(), to.to_owned()));
        self
    }

    /// Attaches a raw image as the next virtio disk; the guest writes to it.
    #[must_use]
    pub fn disk(mut self, image: &Path) -> Self {
        self.disks += 1;
        let mut drive = OsString::from("if=virtio,format=raw,cache=writeback,file=");
        drive.push(image);
        self.arguments.extend([OsString::from("-drive"), drive]);
        self
    }

    /// Adds words to QEMU's command line.
    #[must_use]
    pub fn argument<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// Gives it `eth0` (10.0.2.15) by QEMU's user network; the machine is 10.0.2.2.
    #[must_use]
    pub fn network(mut self) -> Self {
        self.network = true;
        self.module("virtio_net")
    }

    /// Memory that another process can map, as vhost-user needs it.
    #[must_use]
    pub fn shared_memory(mut self) -> Self {
        self.shared_memory = true;
        self
    }

    /// Memory, MiB.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Processors.
    #[must_use]
    pub fn processors(mut self, processors: u32) -> Self {
        self.processors = processors;
        self
    }

    /// How long it may take, from start to end.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Boots, runs `script` by the shell, and powers off.
    ///
    /// # Panics
    /// When the guest does not come up, or takes longer than its patience; with what its kernel said.
    pub fn run(self, script: &str) -> Done {
        let kernel = Kernel::get().unwrap();
        let scratch = crate::Scratch::new("guest");
        let initramfs = scratch.join("initramfs");
        std::fs::write(&initramfs, self.initramfs(&kernel, script)).unwrap();
        let kernel = [OsStr::new("-kernel"), kernel.image.as_os_str(), OsStr::new("-initrd"), initramfs.as_os_str()];
        self.argument(kernel).argument(["-append", APPEND]).run_from_disk()
    }

    /// Makes a disk of which [`Guest::run_from_disk`] boots: a FAT of 64 MiB with a boot loader, the kernel, and what it
    /// runs, which is `script`. Takes mkfs.fat, mcopy and syslinux.
    ///
    /// # Panics
    /// When one of them fails.
    pub fn make_boot_disk(&self, image: &Path, script: &str) {
        let kernel = Kernel::get().unwrap();
        let scratch = crate::Scratch::new("boot-disk");
        let (initramfs, configuration) = (scratch.join("initramfs"), scratch.join("syslinux.cfg"));
        std::fs::write(&initramfs, self.initramfs(&kernel, script)).unwrap();
        let lines = format!("DEFAULT linux\nLABEL linux\nKERNEL vmlinuz\nAPPEND initrd=initramfs {APPEND}\n");
        std::fs::write(&configuration, lines).unwrap();
        crate::run_command(Command::new("truncate").arg("--size=64M").arg(image));
        crate::run_command(Command::new("mkfs.fat").args(["-F", "16"]).arg(image));
        for (from, to) in [(&kernel.image, "vmlinuz"), (&initramfs, "initramfs"), (&configuration, "syslinux.cfg")] {
            crate::run_command(Command::new("mcopy").arg("-i").arg(image).arg(from).arg(format!("::{to}")));
        }
        crate::run_command(Command::new("syslinux").arg("--install").arg(image));
    }

    /// Boots from the disk that the firmware finds first, and lets it power off.
    ///
    /// # Panics
    /// As [`Guest::run`].
    pub fn run_from_disk(self) -> Done {
        let scratch = crate::Scratch::new("guest");
        let console = scratch.join("console");
        let mut command = self.command(&console);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut from = child.stdout.take().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = from.read_to_end(&mut bytes);
            let _ = sender.send(());
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let in_time = receiver.recv_timeout(self.patience).is_ok();
        let _ = child.kill();
        child.wait().unwrap();
        let said = reader.join().unwrap();
        let console = String::from_utf8_lossy(&std::fs::read(console).unwrap_or_default()).replace('\r', "");
        assert!(in_time, "the guest took longer than {:?}:\n{said}\n{console}", self.patience);
        let Some((output, status)) = said.rsplit_once(initramfs::EXIT) else {
            panic!("the guest did not come to an end:\n{said}\n{console}");
        };
        Done { output: output.to_owned(), status: status.trim().parse().unwrap(), console }
    }

    fn initramfs(&self, kernel: &Kernel, script: &str) -> Vec<u8> {
        let mut tree = Initramfs::new();
        // A shell that looks for programs; that of busybox takes its own first.
        tree.program(&crate::which("dash").unwrap(), "/bin/sh");
        tree.program(&crate::which("busybox").unwrap(), "/bin/busybox");
        for program in &self.programs {
            let name = program.file_name().unwrap().to_string_lossy();
            tree.program(program, &format!("/usr/bin/{name}"));
        }
        for (from, to) in &self.files {
            tree.copy(from, to);
        }
        // First the bus of all virtio devices, whichever words of QEMU's brought them.
        let mut modules = vec!["virtio_pci".to_owned()];
        modules.extend_from_slice(&self.modules);
        modules.extend((self.disks > 0).then(|| "virtio_blk".to_owned()));
        let modules = kernel.modules(&modules);
        for (name, bytes) in &modules {
            tree.file(&format!("/lib/modules/{name}"), 0o644, bytes);
        }
        let load = modules.iter().map(|(name, _)| format!("insmod /lib/modules/{name}\n")).collect::<String>();
        let network = "ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2\n";
        tree.init(&format!("{load}{}", if self.network { network } else { "" }), script);
        tree.finish()
    }

    fn command(&self, console: &Path) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", "q35", "-cpu", "max", "-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-display", "none", "-smp", &self.processors.to_string()]);
        command.args(["-m", &format!("{}M", self.memory_mib)]);
        // On one thread: a kernel that patches its code while another processor runs it may stumble over it otherwise.
        command.args(["-accel", "tcg,thread=single"]);
        let mut serial = OsString::from("file:");
        serial.push(console);
        command.arg("-serial").arg(serial).args(["-chardev", "stdio,id=out,signal=off", "-serial", "chardev:out"]);
        if self.shared_memory {
            let memory = format!("memory-backend-memfd,id=mem,size={}M,share=on", self.memory_mib);
            command.args(["-object", &memory, "-numa", "node,memdev=mem"]);
        }
        if self.network {
            command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        }
        command.args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command
    }
}
