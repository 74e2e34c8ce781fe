//! What is done before the command runs, as a pure list of steps.

mod explain;
mod starter;
mod step;

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Component, Path, PathBuf};

use net::hosts::{Hosts, is_host_name};
use net::publish::Publish;
use net::rule::Rule;
use net::{Error, Kind, Result};

pub use starter::{Starter, Subordinate};
pub use step::{By, Changes, Device, Mount, Step};

/// The network of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Net {
    /// One of its own, with nothing but `lo`.
    #[default]
    Private,
    /// The machine's.
    Host,
}

/// Who the user is inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Identity {
    /// The same as outside.
    #[default]
    Keep,
    /// Root: of what is inside, and of nothing else.
    Root,
}

/// A file or folder of the machine, shown inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Where it is on the machine, absolute.
    pub from: PathBuf,
    /// Where it is inside, absolute.
    pub to: PathBuf,
    /// Whether nobody writes.
    pub read_only: bool,
}

/// An image's file system as the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The image; its point is not looked at.
    pub mount: Mount,
    /// Whether a folder or file on which something will be mounted is missing in it: see [`Options::points`].
    pub lacks_points: bool,
}

/// What the command's user asked for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The network.
    pub net: Net,
    /// Ports that the outside reaches.
    pub publish: Vec<Publish>,
    /// What is done to packets; with a link even where there are no rules yet.
    pub link: Option<LinkOptions>,
    /// Names for the private hosts file.
    pub hosts: Vec<(String, IpAddr)>,
    /// The name of the machine, which the private hosts file has too.
    pub host_name: String,
    /// The machine's `/etc/nsswitch.conf`, where there is one.
    pub nsswitch: Option<String>,
    /// The root, where it is not the machine's.
    pub root: Option<Root>,
    /// File systems of images.
    pub mounts: Vec<Mount>,
    /// Disks.
    pub devices: Vec<Device>,
    /// Files and folders of the machine.
    pub binds: Vec<Bind>,
    /// Who the user is inside.
    pub identity: Identity,
    /// The folder that the command starts in, where one was asked for.
    pub directory: Option<PathBuf>,
    /// The folder that this process is in.
    pub current: PathBuf,
    /// Variables for the command, over those that this process has.
    pub environment: Vec<(OsString, OsString)>,
    /// Whether it has no others.
    pub environment_alone: bool,
    /// The program and its arguments.
    pub command: Vec<OsString>,
}

/// The link of a private network.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LinkOptions {
    /// What is done to which packets.
    pub rules: Vec<Rule>,
    /// The same seed, the same losses and delays.
    pub seed: u64,
    /// Where the packets are written, for [`Step::Link`] to be read: the caller opens it.
    pub capture: Option<PathBuf>,
}

/// The address at which names are answered inside. Its port 53 is the only one that is taken.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);

/// The steps in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan(pub Vec<Step>);

impl Plan {
    /// The steps for what `options` ask, when `starter` starts it.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for options that do not fit together.
    pub fn new(options: &Options, starter: &Starter) -> Result<Self> {
        let private = options.net == Net::Private;
        if options.command.is_empty() {
            return Err(Error::new(Kind::Invalid, "no command"));
        }
        if !private && !options.publish.is_empty() {
            return Err(Error::new(Kind::Invalid, "--publish without a private network: every port is there already"));
        }
        if !private && options.link.is_some() {
            return Err(Error::new(Kind::Invalid, "a link, or a capture, without a private network"));
        }
        check_places(options)?;
        if options.identity == Identity::Root && starter.privileged && starter.uid != 0 {
            return Err(Error::new(Kind::Invalid, "root inside, by a user with privileges who is not root"));
        }
        let mut steps: Vec<Step> = options.publish.iter().cloned().map(Step::Publish).collect();
        if !starter.privileged {
            let subordinate = starter.subordinate.filter(|_| options.identity == Identity::Root);
            steps.push(Step::User { identity: options.identity, uid: starter.uid, gid: starter.gid, subordinate });
        }
        let hosts = private_hosts(options)?;
        if private {
            network(options, starter, &hosts, &mut steps);
        }
        match options.by_fuse() {
            0 => {}
            images => steps.push(Step::Fuse(images)),
        }
        steps.push(Step::Init);
        steps.push(Step::Mounts);
        if let Some(root) = &options.root {
            steps.push(Step::Stage);
            let mut mount = Mount { point: "/".into(), ..root.mount.clone() };
            if mount.changes == Changes::Refused && root.lacks_points {
                mount.changes = Changes::Memory;
            }
            steps.push(Step::Mount(mount));
            steps.push(Step::Memory { point: "/tmp".into(), mode: 0o1777 });
            steps.push(Step::Memory { point: "/run".into(), mode: 0o755 });
        }
        if options.root.is_some() || !options.devices.is_empty() {
            steps.push(Step::Dev { all: options.root.is_none() });
        }
        files(options, &hosts, &mut steps)?;
        steps.extend(options.mounts.iter().cloned().map(Step::Mount));
        steps.extend(options.binds.iter().cloned().map(Step::Bind));
        steps.extend(options.devices.iter().cloned().map(Step::Device));
        steps.push(Step::Proc);
        if let Some(root) = &options.root {
            if starter.privileged {
                steps.push(Step::GuardProc);
            }
            if root.lacks_points && root.mount.changes == Changes::Refused {
                steps.push(Step::Seal);
            }
            steps.push(Step::Enter);
        }
        if !starter.privileged || options.root.is_some() {
            steps.push(Step::Capabilities);
            steps.push(Step::NoNewPrivileges);
        }
        if options.environment_alone || !options.environment.is_empty() {
            let variables = options.environment.clone();
            steps.push(Step::Environment { alone: options.environment_alone, variables });
        }
        let moved = options.root.is_some() || !options.mounts.is_empty() || !options.binds.is_empty();
        match &options.directory {
            Some(path) => steps.push(Step::Directory { path: path.clone(), must: true }),
            // The same name may be another folder by now.
            None if moved => steps.push(Step::Directory { path: options.current.clone(), must: false }),
            None => {}
        }
        steps.push(Step::Run(options.command.clone()));
        Ok(Self(steps))
    }
}

impl Options {
    /// The files and folders on which something will be mounted, and which a new root has to have: absolute, and whether
    /// it is a folder.
    pub fn points(&self) -> Vec<(PathBuf, bool)> {
        let mut points = Vec::new();
        if self.root.is_some() {
            points.extend(["/proc", "/dev", "/tmp", "/run"].map(|path| (path.into(), true)));
        }
        let private = self.net == Net::Private;
        points.extend(["/etc/hosts", "/etc/resolv.conf"].iter().filter(|_| private).map(|path| (path.into(), false)));
        points.extend(self.mounts.iter().map(|mount| (mount.point.clone(), true)));
        points.extend(self.binds.iter().map(|bind| (bind.to.clone(), bind.from.is_dir())));
        // These are empty, and writable, when their turn comes.
        let in_memory =
            |path: &Path| ["/tmp", "/run", "/dev"].iter().any(|top| path != Path::new(top) && path.starts_with(top));
        points.retain(|(path, _): &(PathBuf, bool)| !in_memory(path));
        points
    }

    fn by_fuse(&self) -> usize {
        let mounts = self.mounts.iter().chain(self.root.as_ref().map(|root| &root.mount));
        mounts.filter(|mount| mount.by == By::Fuse).count()
            + self.devices.iter().filter(|device| !device.kernel).count()
    }
}

/// That all places inside are absolute paths that go down only, and no two things are at one.
fn check_places(options: &Options) -> Result<()> {
    let invalid = |what: String| Err(Error::new(Kind::Invalid, what));
    let points = options.mounts.iter().map(|mount| &mount.point).chain(options.binds.iter().map(|bind| &bind.to));
    let mut seen: Vec<&Path> = Vec::new();
    for point in points {
        let goes_down = point.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !point.is_absolute() || !goes_down {
            return invalid(format!("{} inside: a path from / on, without ..", point.display()));
        }
        if point == Path::new("/") {
            return invalid("/ inside: --root IMAGE gives another root".to_owned());
        }
        if seen.contains(&point.as_path()) {
            return invalid(format!("two things at {}", point.display()));
        }
        seen.push(point);
    }
    for (at, device) in options.devices.iter().enumerate() {
        if device.name.is_empty() || device.name.starts_with('.') || device.name.contains(['/', '\0']) {
            return invalid(format!("`{}` is no name of a device", device.name.escape_debug()));
        }
        if options.devices.iter().take(at).any(|other| other.name == device.name) {
            return invalid(format!("two devices with the name {}", device.name));
        }
    }
    Ok(())
}

fn network(options: &Options, starter: &Starter, hosts: &Hosts, steps: &mut Vec<Step>) {
    steps.push(Step::Network);
    steps.push(Step::LoopbackUp);
    let groups = match (starter.privileged, options.identity) {
        (true, _) => "0 2147483647".into(),
        (false, Identity::Keep) => format!("{0} {0}", starter.gid),
        (false, Identity::Root) => format!("0 {}", starter.subordinate.map_or(0, |other| other.gids.1)),
    };
    steps.push(Step::Sysctl { name: "net/ipv4/ping_group_range", value: groups });
    steps.push(Step::Sysctl { name: "net/ipv4/ip_unprivileged_port_start", value: "0".into() });
    steps.extend(options.link.clone().map(Step::Link));
    steps.push(Step::Names(hosts.clone()));
}

fn files(options: &Options, hosts: &Hosts, steps: &mut Vec<Step>) -> Result<()> {
    if options.net == Net::Private {
        steps.push(Step::File { path: "/etc/hosts".into(), content: hosts.text() });
        let content = format!("nameserver {NAME_SERVER}\noptions timeout:1 attempts:2\n");
        steps.push(Step::File { path: "/etc/resolv.conf".into(), content });
        if let Some(nsswitch) = &options.nsswitch {
            let content = files_then_dns(nsswitch);
            steps.push(Step::File { path: "/etc/nsswitch.conf".into(), content });
        }
    } else if !options.hosts.is_empty() {
        let machine = Hosts::read(Path::new(net::hosts::PATH)).unwrap_or_default();
        let content = format!("{}{}", hosts_of(&options.hosts)?.text(), machine.text());
        steps.push(Step::File { path: "/etc/hosts".into(), content });
    }
    Ok(())
}

fn hosts_of(names: &[(String, IpAddr)]) -> Result<Hosts> {
    let mut hosts = Hosts::default();
    for (name, address) in names {
        hosts.add(name, *address)?;
    }
    Ok(hosts)
}

fn private_hosts(options: &Options) -> Result<Hosts> {
    let mut hosts = Hosts::parse("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in &options.hosts {
        hosts.add(name, *address)?;
    }
    if is_host_name(&options.host_name) && hosts.addresses(&options.host_name).is_empty() {
        hosts.add(&options.host_name, Ipv4Addr::LOCALHOST.into())?;
    }
    Ok(hosts)
}

/// The same file, in which host names come from the hosts file and then from DNS: other sources ask daemons of the
/// machine, which know nothing of the private network.
fn files_then_dns(nsswitch: &str) -> String {
    let line = |line: &str| {
        if line.trim_start().starts_with("hosts:") { "hosts: files dns\n".into() } else { format!("{line}\n") }
    };
    nsswitch.lines().map(line).collect()
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { host_name: "box".into(), command: vec!["true".into()], ..Options::default() }
    }

    const USER: Starter = Starter { uid: 1000, gid: 100, privileged: false, subordinate: None };

    fn mount(point: &str, by: By, changes: Changes) -> Mount {
        Mount { image: 0, spec: "disk.img".into(), point: point.into(), by, changes }
    }

    #[test]
    fn the_plan_of_an_ordinary_user_can_be_read() {
        let plan = Plan::new(&options(), &USER).unwrap();
        assert_eq!(
            plan.to_string(),
            "new user namespace: user 1000, group 100, as outside\n\
             new network namespace\n\
             set lo up\n\
             set net.ipv4.ping_group_range to 100 100\n\
             set net.ipv4.ip_unprivileged_port_start to 0\n\
             answer names at 127.0.0.53\n\
             new process namespace: process 1, which dies with this one\n\
             new mount namespace\n\
             mount 75 bytes over /etc/hosts\n\
             mount 51 bytes over /etc/resolv.conf\n\
             mount /proc\n\
             give up capabilities over the machine, its network and its mounts\n\
             no new privileges by set-user-id programs\n\
             run true\n"
        );
    }

    #[test]
    fn a_root_is_built_entered_and_sealed() {
        let root = Root { mount: mount("/", By::Fuse, Changes::Refused), lacks_points: true };
        let options = Options {
            net: Net::Host,
            root: Some(root),
            identity: Identity::Root,
            mounts: vec![mount("/data", By::Fuse, Changes::Memory)],
            current: "/home/me".into(),
            ..options()
        };
        let subordinate = Some(Subordinate { uids: (100_000, 65_536), gids: (200_000, 65_536) });
        let plan = Plan::new(&options, &Starter { subordinate, ..USER }).unwrap();
        assert_eq!(
            plan.to_string(),
            "new user namespace: root inside is user 1000, group 100, outside; 65536 users from 100000, 65536 groups from \
             200000\n\
             open /dev/fuse for 2 images\n\
             new process namespace: process 1, which dies with this one\n\
             new mount namespace\n\
             begin a new root, in memory\n\
             mount disk.img on / by loopbox, through FUSE, changes in memory, dropped at the end\n\
             mount memory on /tmp\n\
             mount memory on /run\n\
             mount a private /dev: null, zero, full, random, urandom, tty, pts, shm\n\
             mount disk.img on /data by loopbox, through FUSE, changes in memory, dropped at the end\n\
             mount /proc\n\
             make / read-only\n\
             change to the new root\n\
             give up capabilities over the machine, its network and its mounts\n\
             no new privileges by set-user-id programs\n\
             change to the folder /home/me, or /\n\
             run true\n"
        );
    }

    #[test]
    fn places_inside_are_checked() {
        let kind = |options: Options| Plan::new(&options, &USER).unwrap_err().kind();
        for point in ["data", "/", "/a/../b", ""] {
            let mounts = vec![mount(point, By::Fuse, Changes::Refused)];
            assert_eq!(kind(Options { mounts, ..options() }), Kind::Invalid, "{point}");
        }
        let twice = vec![mount("/a", By::Fuse, Changes::Refused), mount("/a/", By::Fuse, Changes::Refused)];
        assert_eq!(kind(Options { mounts: twice, ..options() }), Kind::Invalid);
        for name in ["", "a/b", "..", "."] {
            let device = Device { image: 0, spec: "x".into(), name: name.into(), kernel: false };
            assert_eq!(kind(Options { devices: vec![device], ..options() }), Kind::Invalid, "{name}");
        }
    }

    #[test]
    fn names_are_checked_and_only_host_lines_change() {
        let twice = [("a".into(), "127.0.0.2".parse().unwrap()), ("a".into(), "127.0.0.3".parse().unwrap())];
        let wrong = Options { hosts: twice.to_vec(), ..options() };
        assert_eq!(Plan::new(&wrong, &USER).unwrap_err().kind(), Kind::Busy);
        assert_eq!(files_then_dns("passwd: files\nhosts: files resolve\n"), "passwd: files\nhosts: files dns\n");
        let published = Options { net: Net::Host, publish: vec!["80".parse().unwrap()], ..options() };
        assert_eq!(Plan::new(&published, &USER).unwrap_err().kind(), Kind::Invalid);
    }
}
