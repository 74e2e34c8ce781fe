//! Ports of the machine that lead into a private network: TCP connections and UDP packets, passed on by threads.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::ports::{self, Protocol};
use crate::{Error, Kind, Result, ResultExt as _};

/// Connections of one published port at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 1024;
/// Senders of one published UDP port that are remembered.
const SENDERS_MAX: usize = 256;
/// After this time without an answer a UDP sender is forgotten.
const SENDER_IDLE: Duration = Duration::from_secs(60);
const PACKET_BYTES_MAX: usize = 65535;

/// `[ADDRESS:]PORT[:PORT][/udp]`: a port of the machine, and the one inside that it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Where the machine listens.
    pub outer: SocketAddr,
    /// The port inside, at 127.0.0.1 or ::1.
    pub inner_port: u16,
    /// UDP rather than TCP.
    pub udp: bool,
}

impl FromStr for Publish {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::new(Kind::Invalid, format!("not [ADDRESS:]PORT[:PORT][/udp]: {text:?}"));
        let (ports, udp) = match text.rsplit_once('/') {
            None => (text, false),
            Some((ports, "tcp")) => (ports, false),
            Some((ports, "udp")) => (ports, true),
            Some(_) => return Err(wrong()),
        };
        let (address, ports) = match ports.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
            Some((address, ports)) => (IpAddr::V6(address.parse().map_err(|_| wrong())?), ports),
            None => match ports.split_once(':') {
                Some((first, rest)) if first.contains('.') => (IpAddr::V4(first.parse().map_err(|_| wrong())?), rest),
                _ => (Ipv4Addr::LOCALHOST.into(), ports),
            },
        };
        let port = |text: &str| text.parse::<u16>().map_err(|_| wrong());
        let (outer, inner) = match ports.split_once(':') {
            None => (port(ports)?, port(ports)?),
            Some((outer, inner)) => (port(outer)?, port(inner)?),
        };
        if inner == 0 {
            return Err(wrong());
        }
        Ok(Self { outer: SocketAddr::new(address, outer), inner_port: inner, udp })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.udp { "udp" } else { "tcp" };
        write!(f, "{}:{}/{kind}", self.outer, self.inner_port)
    }
}

/// A published port that is bound outside, and not yet served.
#[derive(Debug)]
pub struct Listening {
    socket: Outer,
    inner_port: u16,
}

#[derive(Debug)]
enum Outer {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Listening {
    /// Binds it, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Kind::Busy`] when the port is taken.
    pub fn open(publish: &Publish) -> Result<Self> {
        let what = || format!("publishing {publish}");
        let socket = match publish.udp {
            false => Outer::Tcp(TcpListener::bind(publish.outer).context(what)?),
            true => Outer::Udp(UdpSocket::bind(publish.outer).context(what)?),
        };
        Ok(Self { socket, inner_port: publish.inner_port })
    }

    /// Passes on what arrives, into the network namespace of the calling thread, as long as the process lives.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn serve(self) -> Result<()> {
        let port = self.inner_port;
        let serve = move || match self.socket {
            Outer::Tcp(listener) => serve_tcp(&listener, port),
            Outer::Udp(socket) => serve_udp(Arc::new(socket), port),
        };
        std::thread::Builder::new().name("publish".into()).spawn(serve).context(|| "thread for a port").map(drop)
    }
}

fn serve_tcp(listener: &TcpListener, port: u16) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let outer = match listener.accept() {
            Ok((outer, _)) => outer,
            Err(_) => {
                // Out of descriptors, most likely: connections that end give some back.
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let count = Arc::clone(&open);
        let started = std::thread::Builder::new().name("connection".into()).spawn(move || {
            if let Ok(inner) = connect(port) {
                relay(&outer, &inner);
            }
            count.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn connect(port: u16) -> io::Result<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).or_else(|_| TcpStream::connect((Ipv6Addr::LOCALHOST, port)))
}

/// Passes bytes on both ways until both sides have ended.
fn relay(outer: &TcpStream, inner: &TcpStream) {
    let _ = (outer.set_nodelay(true), inner.set_nodelay(true));
    let pass = |mut from: &TcpStream, mut to: &TcpStream| {
        let failed = io::copy(&mut from, &mut to).is_err();
        let _ = to.shutdown(Shutdown::Write);
        if failed {
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| pass(outer, inner));
        pass(inner, outer);
    });
}

fn serve_udp(outer: Arc<UdpSocket>, port: u16) {
    let senders: Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>> = Arc::default();
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        let Ok((length, from)) = outer.recv_from(&mut buffer) else { continue };
        let packet = buffer.get(..length).unwrap_or_default();
        let mut known = senders.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = match known.get(&from) {
            Some(inner) => Arc::clone(inner),
            None if known.len() >= SENDERS_MAX => continue,
            None => {
                let Ok(inner) = inner_udp(port) else { continue };
                let inner = Arc::new(inner);
                let (socket, back, all) = (Arc::clone(&inner), Arc::clone(&outer), Arc::clone(&senders));
                let answers = move || {
                    let mut buffer = vec![0; PACKET_BYTES_MAX];
                    while let Ok(length) = socket.recv(&mut buffer) {
                        let _ = back.send_to(buffer.get(..length).unwrap_or_default(), from);
                    }
                    all.lock().unwrap_or_else(PoisonError::into_inner).remove(&from);
                };
                if std::thread::Builder::new().name("sender".into()).spawn(answers).is_err() {
                    continue;
                }
                known.insert(from, Arc::clone(&inner));
                inner
            }
        };
        drop(known);
        let _ = inner.send(packet);
    }
}

/// A socket to the server inside: at ::1 where it takes packets there and not at 127.0.0.1.
fn inner_udp(port: u16) -> io::Result<UdpSocket> {
    let servers = ports::sockets().unwrap_or_default();
    let takes = |address: IpAddr| {
        servers.iter().any(|server| server.protocol == Protocol::Udp && server.port == port && server.takes(address))
    };
    let (four, six) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    let address = if !takes(four) && takes(six) { six } else { four };
    let socket = UdpSocket::bind((address, 0))?;
    socket.connect((address, port))?;
    socket.set_read_timeout(Some(SENDER_IDLE))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_read_in_all_its_forms() {
        for (text, outer, inner, udp) in [
            ("8080", "127.0.0.1:8080", 8080, false),
            ("8080:80", "127.0.0.1:8080", 80, false),
            ("0.0.0.0:8080:80/tcp", "0.0.0.0:8080", 80, false),
            ("0.0.0.0:53/udp", "0.0.0.0:53", 53, true),
            ("[::1]:1:2", "[::1]:1", 2, false),
        ] {
            let publish: Publish = text.parse().unwrap();
            assert_eq!(publish, Publish { outer: outer.parse().unwrap(), inner_port: inner, udp }, "{text}");
        }
        for wrong in ["", "x", "1:2:3", "80/sctp", "1.2.3:80", "[::1]80", "70000", "80:0", "[1.2.3.4]:1"] {
            assert_eq!(wrong.parse::<Publish>().unwrap_err().kind(), Kind::Invalid, "{wrong}");
        }
    }

    #[test]
    fn what_arrives_is_passed_on_both_ways() {
        use std::io::{Read as _, Write as _};
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let outer = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = outer.local_addr().unwrap();
        let inner_port = server.local_addr().unwrap().port();
        Listening { socket: Outer::Tcp(outer), inner_port }.serve().unwrap();
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(&[7; 100_000]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        assert_eq!(back, vec![7; 100_000]);
        echo.join().unwrap();

        for (inside, outside) in
            [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:0", "127.0.0.1:0"), ("127.0.0.1:0", "[::1]:0")]
        {
            let server = UdpSocket::bind(inside).unwrap();
            let outer = UdpSocket::bind(outside).unwrap();
            let address = outer.local_addr().unwrap();
            let inner_port = server.local_addr().unwrap().port();
            Listening { socket: Outer::Udp(outer), inner_port }.serve().unwrap();
            let client = UdpSocket::bind(outside).unwrap();
            client.send_to(b"ask", address).unwrap();
            let mut buffer = [0; 8];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..length], from).unwrap();
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (3, address));
        }
    }
}
