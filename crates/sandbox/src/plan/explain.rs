//! What each step needs, and what stands in for it where that is missing.

use std::fmt::Write as _;

use super::step::{By, Changes, Mount, Step};
use super::{Identity, Plan};

/// A user namespace that the machine forbids, wherever one is needed.
pub(crate) const USER_NAMESPACE: &str = "a machine that forbids it: root needs none; `loopbox ls`, `cp`, `tar`, `serve` need none either; `loopbox doctor` says what would permit it";
const FUSE: &str = "no /dev/fuse: as root the kernel's file systems and loop driver do; else `loopbox cp IMAGE:/ FOLDER` and `--bind FOLDER:PATH`";

impl Plan {
    /// The steps, each with the privilege that it uses and with what stands in for it.
    pub fn explained(&self) -> String {
        let by_user = self.0.iter().any(|step| matches!(step, Step::User { .. }));
        let mut out = String::new();
        for step in &self.0 {
            let (needs, instead) = step.explained(by_user);
            let _ = writeln!(out, "{step}");
            if !needs.is_empty() {
                let _ = writeln!(out, "    needs    {needs}");
            }
            if !instead.is_empty() {
                let _ = writeln!(out, "    without  {instead}");
            }
        }
        out
    }
}

impl Step {
    /// What would help when it fails with this errno.
    pub(crate) fn hint(&self, errno: i32) -> Option<String> {
        use rustix::io::Errno;
        let is = |one: Errno| errno == one.raw_os_error();
        match self {
            Self::Mount(Mount { point, .. }) if is(Errno::NOENT) => {
                Some(format!("make the folder {} first, or have --root", point.display()))
            }
            Self::Bind(bind) if is(Errno::NOENT) => Some(format!(
                "{} has to be there, and so has {}, or have --root",
                bind.from.display(),
                bind.to.display()
            )),
            Self::Mount(Mount { changes: Changes::Folder(folder), .. }) if is(Errno::INVAL) || is(Errno::OPNOTSUPP) => {
                Some(format!("the file system of {} cannot keep changes; ext4, xfs, btrfs can", folder.display()))
            }
            Self::Mount(Mount { changes: Changes::Folder(folder), .. }) if is(Errno::BUSY) => {
                Some(format!("{} is in use by another run", folder.display()))
            }
            Self::Mount(Mount { changes: Changes::Memory, .. }) if is(Errno::NODEV) => {
                Some("this kernel has no overlayfs: leave out `overlay`".to_owned())
            }
            Self::Stage if is(Errno::INVAL) => {
                Some("the root of a chroot, or of an initramfs, cannot be changed".to_owned())
            }
            Self::Bind(bind) if bind.read_only && is(Errno::NOSYS) => Some("ro needs Linux 5.12".to_owned()),
            _ => None,
        }
    }

    /// What it needs, when done `by_user` in a user namespace or by root; and what there is without it.
    fn explained(&self, by_user: bool) -> (&'static str, &'static str) {
        let namespace = if by_user { "nothing more than the user namespace" } else { "root (CAP_SYS_ADMIN)" };
        match self {
            Self::Publish(publish) if publish.outer.port() < 1024 => {
                ("CAP_NET_BIND_SERVICE, for a port below net.ipv4.ip_unprivileged_port_start", "a port from 1024 on")
            }
            Self::Publish(_) => ("nothing", ""),
            Self::User { identity: Identity::Root, subordinate: Some(_), .. } => (
                "the right to make user namespaces; newuidmap and newgidmap (set-uid root) with lines of this user in /etc/subuid and /etc/subgid",
                "root inside is the only user there: programs that change to others (apt, dpkg, servers) fail at it",
            ),
            Self::User { identity: Identity::Root, subordinate: None, .. } => (
                "the right to make user namespaces",
                "install uidmap and give this user lines in /etc/subuid and /etc/subgid: then there are other users inside beside root",
            ),
            Self::User { .. } => ("the right to make user namespaces", USER_NAMESPACE),
            Self::Network => (namespace, "--net host"),
            Self::LoopbackUp => (namespace, ""),
            Self::Sysctl { .. } => {
                (namespace, "a read-only /proc/sys: the command needs a capability for ping and for ports below 1024")
            }
            Self::Link(_) => (
                "NFQUEUE and nftables in the kernel, and its own network namespace",
                "leave out the settings of the link",
            ),
            Self::Names(_) => ("its own network namespace", ""),
            Self::Fuse(_) => ("/dev/fuse, open to this user", FUSE),
            Self::Init => (namespace, ""),
            Self::Mounts | Self::Stage | Self::Memory { .. } | Self::Seal | Self::Enter => (namespace, ""),
            Self::Mount(Mount { by: By::Kernel(_), .. }) => {
                ("root, a free loop device, and the file system in the kernel", "loopbox reads it, through FUSE")
            }
            Self::Mount(Mount { changes: Changes::Folder(_), .. }) => (
                "overlayfs in the kernel; a folder on a file system with user.* attributes (ext4, xfs, btrfs, tmpfs from Linux 6.6 on)",
                "`overlay` without a folder: changes in memory",
            ),
            Self::Mount(Mount { changes: Changes::Memory, .. }) => {
                ("overlayfs in the kernel", "leave out `overlay`: read-only")
            }
            Self::Mount(_) => (namespace, ""),
            Self::Dev { all: true } => (namespace, "no --device"),
            Self::Dev { all: false } => (namespace, ""),
            Self::Device(device) if device.kernel => {
                ("root and a free loop device", "a node served by loopbox: a file that programs use as a disk")
            }
            Self::Device(_) => (namespace, ""),
            Self::Bind(bind) if bind.read_only => ("Linux 5.12", "leave out ro"),
            Self::Bind(_) => (namespace, ""),
            Self::File { .. } => (namespace, ""),
            Self::Proc => (
                namespace,
                "a container that hides parts of its /proc: the old /proc stays, with the numbers of outside",
            ),
            Self::GuardProc => (namespace, ""),
            Self::Capabilities | Self::NoNewPrivileges => ("nothing", ""),
            Self::Environment { .. } | Self::Directory { .. } | Self::Run(_) => ("nothing", ""),
        }
    }
}
