//! Why a connection is refused: a list of checks, from the name to the connection itself.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use serde::Serialize;

use super::{Listener, Protocol};
use crate::hosts;
use crate::{Error, Kind, Result};

/// How long a connection may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Whether it is as it should be.
    pub good: bool,
    /// What was found.
    pub found: String,
}

impl Check {
    fn new(good: bool, found: impl Into<String>) -> Self {
        Self { good, found: found.into() }
    }
}

/// What stands between a client and `target` (`NAME:PORT`, TCP): the checks in their order, and whether the first
/// address of the name answers.
///
/// # Errors
/// [`Kind::Invalid`] for what is no `NAME:PORT`. That the name is not known is a check.
pub fn explain(target: &str, listeners: &[Listener]) -> Result<(Vec<Check>, bool)> {
    let wrong = || Error::new(Kind::Invalid, format!("no NAME:PORT: {target:?}"));
    let (name, port) = target.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    if name.is_empty() || port == 0 {
        return Err(wrong());
    }
    let addresses = match hosts::resolve(name) {
        Ok(addresses) => addresses,
        Err(error) => return Ok((vec![Check::new(false, error.to_string())], false)),
    };
    let mut checks = Vec::new();
    let list = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let here = addresses.iter().all(IpAddr::is_loopback);
    checks.push(match here {
        true => Check::new(true, format!("{name} is {list}, the loopback interface")),
        false => Check::new(!hosts::is_localhost(name), format!("{name} is {list}, not the loopback interface")),
    });
    let tcp: Vec<&Listener> = listeners.iter().filter(|l| l.port == port && l.protocol == Protocol::Tcp).collect();
    let mut answers = Vec::new();
    for address in &addresses {
        if address.is_loopback() {
            checks.extend(listening(*address, port, &tcp, listeners));
        }
        let at = SocketAddr::new(*address, port);
        match TcpStream::connect_timeout(&at, PATIENCE) {
            Ok(_) => {
                answers.push(true);
                checks.push(Check::new(true, format!("a connection to {at} is accepted")));
            }
            Err(error) => {
                answers.push(false);
                let reason = error.to_string();
                let reason = reason.split(" (os error").next().unwrap_or_default().to_owned();
                checks.push(Check::new(false, format!("a connection to {at} fails: {reason}")));
            }
        }
    }
    if answers.first() == Some(&false) && answers.contains(&true) {
        checks.push(Check::new(false, "clients that try only the first address fail; the others wait for it first"));
    }
    Ok((checks, answers.first() == Some(&true)))
}

fn listening(address: IpAddr, port: u16, tcp: &[&Listener], all: &[Listener]) -> Vec<Check> {
    let who = |listener: &Listener| {
        let names: Vec<String> = listener.processes.iter().map(|p| format!("{} ({})", p.name, p.pid)).collect();
        match names.is_empty() {
            true => format!("a process of user {}", listener.uid),
            false => names.join(", "),
        }
    };
    let taking: Vec<&&Listener> = tcp.iter().filter(|listener| listener.takes(address)).collect();
    if let [first, rest @ ..] = taking.as_slice() {
        let mut checks = vec![Check::new(true, format!("{} listens on {}", who(first), on(first)))];
        for other in rest.iter().filter(|other| other.shadows(first)) {
            checks.push(Check::new(
                false,
                format!("{} listens on {} as well: one shadows the other", who(other), on(other)),
            ));
        }
        return checks;
    }
    if tcp.is_empty() {
        let udp = all.iter().find(|listener| listener.port == port && listener.takes(address));
        let hint = udp.map(|listener| format!("; UDP port {port} is {}", who(listener))).unwrap_or_default();
        return vec![Check::new(false, format!("nothing listens on TCP port {port}{hint}"))];
    }
    tcp.iter()
        .map(|listener| {
            let why = match (listener.address, address) {
                (IpAddr::V6(_), IpAddr::V4(_)) => "IPv6 only",
                (IpAddr::V4(_), IpAddr::V6(_)) => "IPv4 only",
                _ => "another address",
            };
            Check::new(false, format!("{} listens on {}, not on {address}: {why}", who(listener), on(listener)))
        })
        .collect()
}

fn on(listener: &Listener) -> SocketAddr {
    SocketAddr::new(listener.address, listener.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(target: &str) -> (String, bool) {
        let (checks, answers) = explain(target, &super::super::listeners().unwrap()).unwrap();
        (checks.iter().map(|c| format!("{} {}\n", if c.good { '+' } else { '-' }, c.found)).collect(), answers)
    }

    #[test]
    fn each_reason_is_named() {
        let one = std::net::TcpListener::bind("127.0.0.4:0").unwrap();
        let port = one.local_addr().unwrap().port();
        let (text, answers) = said(&format!("127.0.0.4:{port}"));
        assert!(answers && text.contains(&format!("+ a connection to 127.0.0.4:{port} is accepted")), "{text}");
        let (text, answers) = said(&format!("127.0.0.5:{port}"));
        assert!(!answers && text.contains("not on 127.0.0.5: another address"), "{text}");
        assert!(text.contains("Connection refused"), "{text}");
        let six = std::net::TcpListener::bind("[::1]:0").unwrap();
        let (text, answers) = said(&format!("127.0.0.6:{}", six.local_addr().unwrap().port()));
        assert!(!answers && text.contains("IPv6 only"), "{text}");
        let udp = std::net::UdpSocket::bind("127.0.0.7:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        let (text, _) = said(&format!("127.0.0.7:{port}"));
        assert!(text.contains(&format!("nothing listens on TCP port {port}; UDP port {port} is")), "{text}");
        assert!(said("no-such-name.invalid:80").0.contains("not known"));
        for wrong in ["x", "x:", ":80", "x:0", "x:99999"] {
            assert_eq!(explain(wrong, &[]).unwrap_err().kind(), Kind::Invalid);
        }
    }
}
