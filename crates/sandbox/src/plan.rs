//! What is done before the command runs, as a pure list of steps.

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use net::hosts::{Hosts, is_host_name};
use net::publish::Publish;
use net::rule::Rule;
use net::{Error, Kind, Result};

/// The network of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Net {
    /// One of its own, with nothing but `lo`.
    #[default]
    Private,
    /// The machine's.
    Host,
}

/// Who starts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Starter {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Whether it may make namespaces without a user namespace (CAP_SYS_ADMIN).
    pub privileged: bool,
}

impl Starter {
    /// This process.
    pub fn current() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let capabilities = capabilities.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
        const CAP_SYS_ADMIN: u64 = 1 << 21;
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            privileged: capabilities & CAP_SYS_ADMIN != 0,
        }
    }
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
    /// Variables for the command, over those that this process has.
    pub environment: Vec<(OsString, OsString)>,
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

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Listen on a port of the machine, before its network is left.
    Publish(Publish),
    /// Enter a new user namespace in which the user keeps its numbers.
    User {
        /// The user's number.
        uid: u32,
        /// The group's number.
        gid: u32,
    },
    /// Enter a new network namespace.
    Network,
    /// Set its `lo` up.
    LoopbackUp,
    /// Set a number of the kernel that belongs to the network namespace; where `/proc/sys` is read-only it stays.
    Sysctl {
        /// The path below `/proc/sys`.
        name: &'static str,
        /// The value.
        value: String,
    },
    /// Lead the packets of `lo` through a link.
    Link(LinkOptions),
    /// Answer names at [`NAME_SERVER`].
    Names(Hosts),
    /// Start process 1 of a new process namespace, which dies with the supervisor.
    Init,
    /// Enter a new mount namespace.
    Mounts,
    /// Mount a private file over one of the machine; a path that is not there is left alone.
    File {
        /// The path.
        path: PathBuf,
        /// The content.
        content: String,
    },
    /// Mount a `/proc` of the new process namespace, where the machine allows it.
    Proc,
    /// Give the command these variables.
    Environment(Vec<(OsString, OsString)>),
    /// Run the command.
    Run(Vec<OsString>),
}

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
        let mut steps: Vec<Step> = options.publish.iter().cloned().map(Step::Publish).collect();
        if !starter.privileged {
            steps.push(Step::User { uid: starter.uid, gid: starter.gid });
        }
        let hosts = private_hosts(options)?;
        if private {
            steps.push(Step::Network);
            steps.push(Step::LoopbackUp);
            let groups = if starter.privileged { "0 2147483647".into() } else { format!("{0} {0}", starter.gid) };
            steps.push(Step::Sysctl { name: "net/ipv4/ping_group_range", value: groups });
            steps.push(Step::Sysctl { name: "net/ipv4/ip_unprivileged_port_start", value: "0".into() });
            steps.extend(options.link.clone().map(Step::Link));
            steps.push(Step::Names(hosts.clone()));
        }
        steps.push(Step::Init);
        steps.push(Step::Mounts);
        if private {
            steps.push(Step::File { path: "/etc/hosts".into(), content: hosts.text() });
            let content = format!("nameserver {NAME_SERVER}\noptions timeout:1 attempts:2\n");
            steps.push(Step::File { path: "/etc/resolv.conf".into(), content });
            if let Some(nsswitch) = &options.nsswitch {
                let content = files_then_dns(nsswitch);
                steps.push(Step::File { path: "/etc/nsswitch.conf".into(), content });
            }
        } else if !options.hosts.is_empty() {
            let machine = Hosts::read(std::path::Path::new(net::hosts::PATH)).unwrap_or_default();
            let content = format!("{}{}", hosts_of(&options.hosts)?.text(), machine.text());
            steps.push(Step::File { path: "/etc/hosts".into(), content });
        }
        steps.push(Step::Proc);
        if !options.environment.is_empty() {
            steps.push(Step::Environment(options.environment.clone()));
        }
        steps.push(Step::Run(options.command.clone()));
        Ok(Self(steps))
    }
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

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Publish(publish) => write!(f, "publish {publish}"),
            Self::User { uid, gid } => write!(f, "new user namespace: user {uid}, group {gid}, as outside"),
            Self::Network => write!(f, "new network namespace"),
            Self::LoopbackUp => write!(f, "set lo up"),
            Self::Sysctl { name, value } => write!(f, "set {} to {value}", name.replace('/', ".")),
            Self::Link(link) => {
                write!(f, "lead lo through a link, seed {}", link.seed)?;
                link.rules.iter().try_for_each(|rule| write!(f, "; {rule}"))?;
                link.capture.iter().try_for_each(|file| write!(f, "; capture to {}", file.display()))
            }
            Self::Names(_) => write!(f, "answer names at {NAME_SERVER}"),
            Self::Init => write!(f, "new process namespace: process 1, which dies with this one"),
            Self::Mounts => write!(f, "new mount namespace"),
            Self::File { path, content } => {
                write!(f, "mount {} bytes over {}", content.len(), path.display())
            }
            Self::Proc => write!(f, "mount /proc"),
            Self::Environment(variables) => {
                write!(f, "set")?;
                variables.iter().try_for_each(|(name, value)| write!(f, " {}={}", name.display(), value.display()))
            }
            Self::Run(command) => {
                write!(f, "run")?;
                command.iter().try_for_each(|word| write!(f, " {}", word.display()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { host_name: "box".into(), command: vec!["true".into()], ..Options::default() }
    }

    const USER: Starter = Starter { uid: 1000, gid: 100, privileged: false };

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
             run true\n"
        );
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
