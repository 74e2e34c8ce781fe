//! The files of a guest: a cpio archive, format `newc` (linux/Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! ```text
//! 0    "070701"
//! 6    13 numbers of 8 hexadecimal digits: inode mode uid gid nlink mtime size devmajor devminor rdevmajor rdevminor
//!      namesize check
//! 110  name, NUL, padding to 4
//!      bytes, padding to 4
//! ```

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

/// Behind what the script wrote: then its exit status.
pub const EXIT: &str = "\nexit status of the script: ";

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;

pub struct Initramfs {
    bytes: Vec<u8>,
    inode: u32,
    there: BTreeSet<String>,
}

impl Initramfs {
    pub fn new() -> Self {
        let mut new = Self { bytes: vec![], inode: 0, there: BTreeSet::new() };
        for name in ["proc", "sys", "dev", "tmp", "mnt", "run", "root", "sbin", "usr/sbin"] {
            new.folder(name);
        }
        new.file("/etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n");
        new.file("/etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
        new.file("/etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n");
        new
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) {
        self.inode += 1;
        let (size, name_size) = (u32::try_from(bytes.len()).unwrap(), name.len() as u32 + 1);
        let header = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        self.bytes.extend(header.map(|number| format!("{number:08X}")).concat().bytes());
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(bytes);
        self.pad();
    }

    fn folder(&mut self, name: &str) {
        if !name.is_empty() && self.there.insert(name.to_owned()) {
            self.folder(name.rsplit_once('/').map_or("", |(parent, _)| parent));
            self.entry(name, FOLDER, &[]);
        }
    }

    /// A file at an absolute path; one that is there already stays.
    pub fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        let name = path.trim_matches('/');
        self.folder(name.rsplit_once('/').map_or("", |(parent, _)| parent));
        if self.there.insert(name.to_owned()) {
            self.entry(name, FILE | mode, bytes);
        }
    }

    /// A file or a folder of the machine.
    pub fn copy(&mut self, from: &Path, to: &str) {
        let meta = from.metadata().unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        if meta.is_dir() {
            self.folder(to.trim_matches('/'));
            for entry in from.read_dir().unwrap().map(Result::unwrap) {
                self.copy(&entry.path(), &format!("{to}/{}", entry.file_name().to_string_lossy()));
            }
        } else {
            self.file(to, meta.permissions().mode() & 0o777, &std::fs::read(from).unwrap());
        }
    }

    /// A program of the machine, and the libraries that it is linked with, where it looks for them.
    pub fn program(&mut self, from: &Path, to: &str) {
        self.copy(from, to);
        // Fails for a program that is linked with none.
        let libraries = crate::text(&crate::output(Command::new("ldd").arg(from)));
        let paths = libraries.lines().filter(|line| line.contains("(0x"));
        for path in paths.filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))) {
            self.copy(path.as_ref(), path);
        }
    }

    /// What runs first: `prepare`, then the script on the second serial line, then the end.
    pub fn init(&mut self, prepare: &str, script: &str) {
        let init = format!(
            "#!/bin/busybox sh
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/root
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts
for folder in /tmp /run /dev/shm; do mount -t tmpfs tmpfs $folder; done
exec >/dev/console 2>&1
ip link set lo up
{prepare}stty -F /dev/ttyS1 raw -echo
/bin/sh /script </dev/null >/dev/ttyS1 2>&1
printf '{}%d\\n' $? >/dev/ttyS1
sync; poweroff -f
",
            EXIT.replace('\n', "\\n")
        );
        self.file("/init", 0o755, init.as_bytes());
        self.file("/script", 0o755, script.as_bytes());
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
