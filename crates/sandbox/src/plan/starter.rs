//! Who starts a command, and what this user may do.

use std::path::Path;

use super::Identity;

/// Numbers that a user may give away inside a namespace of its own: subuid(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subordinate {
    /// The first user's number outside, and how many there are.
    pub uids: (u32, u32),
    /// The first group's number outside, and how many there are.
    pub gids: (u32, u32),
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
    /// Numbers beside its own, where newuidmap and newgidmap are there to map them.
    pub subordinate: Option<Subordinate>,
}

impl Starter {
    /// This process, and what it would be as `identity` inside.
    pub fn current(identity: Identity) -> Self {
        let capabilities = rustix::thread::capabilities(None).map(|sets| sets.effective);
        let uid = rustix::process::geteuid().as_raw();
        Self {
            uid,
            gid: rustix::process::getegid().as_raw(),
            privileged: capabilities.is_ok_and(|set| set.contains(rustix::thread::CapabilitySet::SYS_ADMIN)),
            // Nobody else is inside with a user who stays who he is.
            subordinate: if identity == Identity::Root { subordinate(uid) } else { None },
        }
    }
}

fn subordinate(uid: u32) -> Option<Subordinate> {
    let found = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(program).exists())
    };
    if !found("newuidmap") || !found("newgidmap") {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = name_of(&passwd, uid);
    let read = |file: &str| largest(&std::fs::read_to_string(Path::new(file)).unwrap_or_default(), name, uid);
    Some(Subordinate { uids: read("/etc/subuid")?, gids: read("/etc/subgid")? })
}

fn name_of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// The largest range of a user: lines of `name:first:count`, or with the number in place of the name.
fn largest(text: &str, name: Option<&str>, uid: u32) -> Option<(u32, u32)> {
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let who = fields.next()?;
        if Some(who) != name && who.parse() != Ok(uid) {
            return None;
        }
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    text.lines().filter_map(range).max_by_key(|(_, count)| *count).filter(|(_, count)| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(name_of(passwd, 1000), Some("ann"));
        assert_eq!(name_of(passwd, 1001), None);
        let text = "bob:1:5\nann:100000:65536\n1000:200000:70000\nann:x:1\nann\n";
        assert_eq!(largest(text, Some("ann"), 1000), Some((200_000, 70_000)));
        assert_eq!(largest(text, Some("bob"), 7), Some((1, 5)));
        assert_eq!(largest("ann:5:0\n", Some("ann"), 1000), None);
        assert_eq!(largest("", None, 1000), None);
    }
}
