//! The hosts file (`hosts(5)`): read, checked, and edited with its comments and its order kept.
//!
//! ```text
//! 127.0.0.1   localhost loopback   # a comment
//! ADDRESS     NAME ALIAS …
//! ```

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde::Serialize;

use crate::{Error, Kind, Result, ResultExt as _};

/// Where the machine keeps it.
pub const PATH: &str = "/etc/hosts";
/// A file that is longer is refused.
const BYTES_MAX: u64 = 64 << 20;
/// The suffix whose names all mean the loopback interface (RFC 6761, section 6.3).
const LOCALHOST: &str = "localhost";

/// A line with an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The address.
    pub address: IpAddr,
    /// The names, as they are written; the first is the canonical one.
    pub names: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    text: String,
    entry: Option<Entry>,
}

/// A hosts file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hosts(Vec<Line>);

/// Something in a hosts file that does not do what its writer thinks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum Problem {
    /// A line that is neither a comment nor an address with names: it is ignored by all resolvers.
    Unreadable {
        /// From 1 on.
        line: usize,
        /// What it says.
        text: String,
    },
    /// A name with characters that no host name has.
    Name {
        /// From 1 on.
        line: usize,
        /// The name.
        name: String,
    },
    /// The same name with the same address again.
    Duplicate {
        /// From 1 on.
        line: usize,
        /// The name.
        name: String,
        /// The address.
        address: IpAddr,
    },
    /// A name with another address of the same family: which one is used depends on the resolver.
    Conflict {
        /// From 1 on.
        line: usize,
        /// The name.
        name: String,
        /// The address of this line.
        address: IpAddr,
        /// The address of an earlier line.
        earlier: IpAddr,
    },
    /// `localhost`, or a name below it, means something that is not the loopback interface.
    NotLoopback {
        /// From 1 on.
        line: usize,
        /// The name.
        name: String,
        /// The address.
        address: IpAddr,
    },
    /// The file does not have the name `localhost` for IPv4.
    NoLocalhost,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable { line, text } => write!(f, "line {line}: no address and names: {text:?}"),
            Self::Name { line, name } => write!(f, "line {line}: no host name: {name:?}"),
            Self::Duplicate { line, name, address } => write!(f, "line {line}: {name} is {address} already"),
            Self::Conflict { line, name, address, earlier } => {
                write!(f, "line {line}: {name} is {address} here and {earlier} before")
            }
            Self::NotLoopback { line, name, address } => {
                write!(f, "line {line}: {name} is {address}, which is not the loopback interface")
            }
            Self::NoLocalhost => write!(f, "localhost has no IPv4 address"),
        }
    }
}

impl Hosts {
    /// Reads the text of a hosts file; nothing in it is an error.
    pub fn parse(text: &str) -> Self {
        let line = |text: &str| Line { text: text.to_owned(), entry: entry(text) };
        // A carriage return is one of the blanks at the end of a line, and stays there.
        Self(text.split_terminator('\n').map(line).collect())
    }

    /// Reads a hosts file.
    ///
    /// # Errors
    /// Those of reading; [`Kind::Limit`] when it is longer than 64 MiB.
    pub fn read(path: &Path) -> Result<Self> {
        let what = || format!("reading {}", path.display());
        let size = fs::metadata(path).context(what)?.len();
        if size > BYTES_MAX {
            return Err(Error::new(Kind::Limit, format!("{}: {size} bytes, {BYTES_MAX} at most", path.display())));
        }
        Ok(Self::parse(&String::from_utf8_lossy(&fs::read(path).context(what)?)))
    }

    /// The text.
    pub fn text(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "{}", line.text);
            text
        })
    }

    /// The lines with addresses.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter().filter_map(|line| line.entry.as_ref())
    }

    /// The addresses of a name.
    pub fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let named = |entry: &&Entry| entry.names.iter().any(|other| same(other, name));
        self.entries().filter(named).map(|entry| entry.address).collect()
    }

    /// The canonical name of an address.
    pub fn name(&self, address: IpAddr) -> Option<&str> {
        self.entries().find(|entry| entry.address == address)?.names.first().map(String::as_str)
    }

    /// Gives a name an address, in a line of its own at the end; says whether that changed anything.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for what is no host name; [`Kind::Busy`] when it has another address of the same family.
    pub fn add(&mut self, name: &str, address: IpAddr) -> Result<bool> {
        if !is_host_name(name) {
            return Err(Error::new(Kind::Invalid, format!("no host name: {name:?}")));
        }
        let others = self.addresses(name);
        if others.contains(&address) {
            return Ok(false);
        }
        if let Some(other) = others.iter().find(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err(Error::new(Kind::Busy, format!("{name} is {other} already")));
        }
        self.0.push(Line {
            text: format!("{address}\t{name}"),
            entry: Some(Entry { address, names: vec![name.to_owned()] }),
        });
        Ok(true)
    }

    /// Takes a name away, from one address or from all; a line without names goes, its comment stays. Says how many
    /// lines had it.
    pub fn remove(&mut self, name: &str, address: Option<IpAddr>) -> usize {
        let mut removed = 0;
        self.0.retain_mut(|line| {
            let Some(entry) = &mut line.entry else { return true };
            if address.is_some_and(|address| address != entry.address)
                || !entry.names.iter().any(|other| same(other, name))
            {
                return true;
            }
            removed += 1;
            entry.names.retain(|other| !same(other, name));
            let comment = line.text.find('#').map(|at| line.text.split_off(at)).unwrap_or_default();
            if entry.names.is_empty() {
                line.entry = None;
                line.text = comment;
                return !line.text.is_empty();
            }
            let space = if comment.is_empty() { "" } else { " " };
            line.text = format!("{}\t{}{space}{comment}", entry.address, entry.names.join(" "));
            true
        });
        removed
    }

    /// What in it does not do what its writer thinks.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut seen: std::collections::HashMap<(String, bool), IpAddr> = std::collections::HashMap::new();
        for (number, line) in self.0.iter().enumerate() {
            let number = number + 1;
            let Some(entry) = &line.entry else {
                let content = line.text.split('#').next().unwrap_or_default().trim();
                if !content.is_empty() && !is_scoped(content) {
                    problems.push(Problem::Unreadable { line: number, text: line.text.clone() });
                }
                continue;
            };
            for name in &entry.names {
                let (name, address) = (name.clone(), entry.address);
                if !is_host_name(&name) {
                    problems.push(Problem::Name { line: number, name: name.clone() });
                }
                if is_localhost(&name) && !address.is_loopback() {
                    problems.push(Problem::NotLoopback { line: number, name: name.clone(), address });
                }
                let key = (name.to_ascii_lowercase(), address.is_ipv4());
                match seen.get(&key) {
                    None => drop(seen.insert(key, address)),
                    Some(earlier) if *earlier == address => {
                        problems.push(Problem::Duplicate { line: number, name, address });
                    }
                    Some(earlier) => {
                        problems.push(Problem::Conflict { line: number, name, address, earlier: *earlier });
                    }
                }
            }
        }
        if !seen.contains_key(&(LOCALHOST.to_owned(), true)) {
            problems.push(Problem::NoLocalhost);
        }
        problems
    }

    /// Writes the file in one step: whoever reads it sees the old or the new one as a whole. Mode and owner stay.
    ///
    /// Where the file cannot be replaced because something is mounted on it (a container, `loopbox run`), it is
    /// written in place.
    ///
    /// # Errors
    /// Those of writing; [`Kind::Invalid`] when what is there is no UTF-8: a part of it was not understood, and would be
    /// lost.
    pub fn write(&self, path: &Path) -> Result<()> {
        let what = || format!("writing {}", path.display());
        // A link stays a link: the file that it leads to is replaced.
        let path = &path.canonicalize().context(what)?;
        if std::str::from_utf8(&fs::read(path).context(what)?).is_err() {
            let context = format!("{}: it has bytes that are no UTF-8, and would lose them", path.display());
            return Err(Error::new(Kind::Invalid, context));
        }
        let text = self.text();
        match replace(path, text.as_bytes()) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                let mut file = fs::OpenOptions::new().write(true).open(path).context(what)?;
                file.write_all(text.as_bytes()).context(what)?;
                file.set_len(text.len() as u64).context(what)
            }
            other => other.context(what),
        }
    }
}

fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let old = fs::metadata(path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".loopbox-{}", std::process::id()));
    let fresh = path.with_file_name(name);
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&fresh)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.sync_all()?;
        fs::rename(&fresh, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

fn entry(text: &str) -> Option<Entry> {
    let mut words = text.split('#').next()?.split_whitespace();
    let address = words.next()?.parse().ok()?;
    let names: Vec<String> = words.map(str::to_owned).collect();
    (!names.is_empty()).then_some(Entry { address, names })
}

/// An address with a scope, `fe80::1%lo0`, which resolvers know and which is left alone here.
fn is_scoped(content: &str) -> bool {
    let mut words = content.split_whitespace();
    let scoped = words.next().and_then(|word| word.split_once('%'));
    scoped.is_some_and(|(address, _)| address.parse::<Ipv6Addr>().is_ok()) && words.next().is_some()
}

fn same(one: &str, other: &str) -> bool {
    one.trim_end_matches('.').eq_ignore_ascii_case(other.trim_end_matches('.'))
}

/// Letters, digits, `-`, `_` in labels of 1 to 63 characters, 253 together.
pub fn is_host_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// Whether a name is `localhost` or ends with `.localhost`.
pub fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == LOCALHOST || name.ends_with(".localhost")
}

/// The addresses of a name: itself if it is one, the loopback interface for `NAME.localhost`, else what the machine's
/// resolver says.
///
/// # Errors
/// [`Kind::NotFound`] for a name that nobody knows.
pub fn resolve(name: &str) -> Result<Vec<IpAddr>> {
    use std::net::ToSocketAddrs as _;
    if let Ok(address) = name.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(vec![address]);
    }
    match (name, 0).to_socket_addrs() {
        Ok(found) => {
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in found.map(|address| address.ip()) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            Ok(addresses)
        }
        Err(_) if is_localhost(name) => Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]),
        Err(_) => Err(Error::new(Kind::NotFound, format!("{name}: Name or service not known"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# top\n127.0.0.1\tlocalhost  loop # home\n\n10.0.0.7 db\n::1 localhost\nfe80::1%lo0 localhost\n10.0.0.9 # kept\n";

    #[test]
    fn what_is_not_touched_stays_as_it_was() {
        let mut hosts = Hosts::parse(FILE);
        assert_eq!(hosts.text(), FILE);
        assert!(hosts.add("web", "127.0.0.2".parse().unwrap()).unwrap());
        assert!(!hosts.add("WEB", "127.0.0.2".parse().unwrap()).unwrap());
        assert_eq!(hosts.text(), format!("{FILE}127.0.0.2\tweb\n"));
        assert_eq!(hosts.remove("loop", None), 1);
        assert_eq!(hosts.remove("db", Some("10.0.0.8".parse().unwrap())), 0);
        assert_eq!(hosts.remove("db", None), 1);
        assert!(hosts.text().starts_with("# top\n127.0.0.1\tlocalhost # home\n\n::1 localhost\n"), "{}", hosts.text());
        assert_eq!(hosts.remove("localhost", None), 2);
        assert!(hosts.text().starts_with("# top\n# home\n\nfe80::1%lo0"), "{}", hosts.text());
    }

    #[test]
    fn the_ends_of_lines_stay_as_they_were() {
        let text = "127.0.0.1 localhost\r\n# over\r\n10.0.0.7 db # there\r\n";
        let mut hosts = Hosts::parse(text);
        assert_eq!(hosts.text(), text);
        assert_eq!(hosts.addresses("db"), ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        assert!(hosts.add("web", "127.0.0.2".parse().unwrap()).unwrap());
        hosts.remove("db", None);
        assert_eq!(hosts.text(), "127.0.0.1 localhost\r\n# over\r\n# there\r\n127.0.0.2\tweb\n");
        // A lone one, found by fuzzing.
        let text = Hosts::parse("\0g:\r").text();
        assert_eq!(Hosts::parse(&text).text(), text);
    }

    #[test]
    fn a_file_that_is_no_utf_8_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        let bytes = b"127.0.0.1 localhost # caf\xe9\n";
        fs::write(&path, bytes).unwrap();
        let mut hosts = Hosts::read(&path).unwrap();
        hosts.add("web", "127.0.0.2".parse().unwrap()).unwrap();
        assert_eq!(hosts.write(&path).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn a_name_with_another_address_is_not_added() {
        let mut hosts = Hosts::parse(FILE);
        assert_eq!(hosts.add("db", "10.0.0.8".parse().unwrap()).unwrap_err().kind(), Kind::Busy);
        assert!(hosts.add("db", "fd00::7".parse().unwrap()).unwrap(), "another family is no conflict");
        for name in ["", "a b", "a/b", "-a", "a..b", "x".repeat(64).as_str(), "a\n127.0.0.1 b"] {
            assert_eq!(hosts.add(name, "10.0.0.8".parse().unwrap()).unwrap_err().kind(), Kind::Invalid, "{name:?}");
        }
    }

    #[test]
    fn problems_are_found_each_by_its_line() {
        let hosts = Hosts::parse("nonsense\n10.0.0.1 a a b_c d!\n10.0.0.2 a\n10.0.0.3 x.localhost\n1.2.3.4 # none\n");
        let lines: Vec<String> = hosts.check().iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "line 1: no address and names: \"nonsense\"",
                "line 2: a is 10.0.0.1 already",
                "line 2: no host name: \"d!\"",
                "line 3: a is 10.0.0.2 here and 10.0.0.1 before",
                "line 4: x.localhost is 10.0.0.3, which is not the loopback interface",
                "line 5: no address and names: \"1.2.3.4 # none\"",
                "localhost has no IPv4 address",
            ]
        );
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_and_a_name_comes_and_goes(text in "[ -~\n\t]{0,200}") {
            let mut hosts = Hosts::parse(&text);
            let _ = hosts.check();
            let before = hosts.text();
            let address = "127.9.9.9".parse().unwrap();
            hosts.remove("added-by-test", None);
            proptest::prop_assume!(hosts.text() == before);
            proptest::prop_assert!(hosts.add("added-by-test", address).unwrap());
            proptest::prop_assert_eq!(Hosts::parse(&hosts.text()).addresses("added-by-test"), [address]);
            proptest::prop_assert_eq!(hosts.remove("added-by-test", None), 1);
            proptest::prop_assert_eq!(hosts.text(), before);
        }
    }

    #[test]
    fn names_below_localhost_are_the_loopback_interface() {
        assert!(is_localhost("LOCALHOST.") && is_localhost("a.b.localhost") && !is_localhost("notlocalhost"));
        assert!(resolve("shop.localhost").unwrap().iter().all(IpAddr::is_loopback));
        assert_eq!(resolve("[::1]").unwrap(), [IpAddr::from(Ipv6Addr::LOCALHOST)]);
        assert_eq!(resolve("no such name").unwrap_err().kind(), Kind::NotFound);
    }
}
