//! `loopbox web`: the files of a folder, for a browser.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use net::interface;
use net::web::{Options, Server, Site, Visit};
use tls::Certificate;

use super::{Result, Status};
use crate::certificate;
use crate::print::{self, Style};

/// Serve the files of a folder over HTTP, to this machine alone unless told otherwise.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder.
    #[arg(default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Where to listen; port 0 is one that is free. May be given more than once.
    #[arg(short, long, default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    bind: Vec<SocketAddr>,
    /// Speak TLS, with a certificate that is made on the spot and lasts as long as this command.
    #[arg(long)]
    tls: bool,
    /// Write that certificate to a file, for clients that are to trust it: curl --cacert FILE.
    #[arg(long, requires = "tls", value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Open it in a browser.
    #[arg(short, long)]
    open: bool,
    /// Follow links that lead out of the folder.
    #[arg(long)]
    follow_links: bool,
    /// Do not print a line for each request.
    #[arg(short, long)]
    quiet: bool,
}

/// Listens, says where, and answers until it is interrupted.
pub fn run(args: &Args) -> Result {
    let site = Site::open(&args.dir, Options { follow_links: args.follow_links })?;
    let ips = args.bind.iter().map(SocketAddr::ip);
    let certificate = args.tls.then(|| certificate::make(ips, args.certificate.as_deref())).transpose()?;
    let fingerprint = certificate.as_ref().map(Certificate::fingerprint);
    let server = Server::bind(&args.bind, certificate)?;
    let addresses = server.addresses()?;
    let folder = args.dir.canonicalize().unwrap_or_else(|_| args.dir.clone());
    let shown = print::escaped(folder.as_os_str().as_encoded_bytes());
    print::line(&format!("serving {}", print::styled(Style::Bold, &shown)))?;
    for address in &addresses {
        let url = print::styled(Style::Good, &url(*address, args.tls));
        print::line(&format!("  {url}  {}", reach(address.ip())))?;
    }
    if let Some(fingerprint) = fingerprint {
        print::line(&format!("certificate, SHA-256 {fingerprint}"))?;
    }
    if addresses.iter().all(|address| address.ip().is_loopback()) {
        print::line(&print::styled(Style::Dim, &others(&addresses)))?;
    }
    if let (true, Some(address)) = (args.open, addresses.first()) {
        open(&url(*address, args.tls));
    }
    let quiet = args.quiet;
    server.run(site, move |visit| {
        if !quiet {
            // A reader that went away is no reason to stop serving.
            let _ = print::line(&line(visit));
        }
    })?;
    Ok(Status::Done)
}

/// What a browser on this machine is given.
fn url(address: SocketAddr, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("{scheme}://{}/", SocketAddr::new(host, address.port()))
}

/// Who reaches it there.
fn reach(ip: IpAddr) -> String {
    if ip.is_loopback() {
        return "this machine alone".to_owned();
    }
    if !ip.is_unspecified() {
        return format!("everybody who reaches {ip}");
    }
    let found = interface::addresses().unwrap_or_default();
    let of_family = found.iter().filter(|(_, other)| other.is_ipv4() == ip.is_ipv4() && !other.is_loopback());
    let list: Vec<String> = of_family.map(|(name, address)| format!("{address} on {name}")).collect();
    match list.is_empty() {
        true => "every address of this machine".to_owned(),
        false => format!("everybody who reaches this machine: {}", list.join(", ")),
    }
}

/// What else it could be bound to.
fn others(addresses: &[SocketAddr]) -> String {
    let port = addresses.first().map_or(8080, SocketAddr::port);
    let found = interface::addresses().unwrap_or_default();
    let mut choices: Vec<String> = vec![];
    if !addresses.iter().any(SocketAddr::is_ipv6) && found.iter().any(|(_, ip)| *ip == Ipv6Addr::LOCALHOST) {
        choices.push(format!("[::1]:{port} (this machine, IPv6)"));
    }
    for (name, ip) in found.iter().filter(|(_, ip)| !ip.is_loopback() && !link_local(*ip)) {
        choices.push(format!("{} ({name})", SocketAddr::new(*ip, port)));
    }
    choices.push(format!("0.0.0.0:{port} (everything)"));
    format!("--bind could also be {}", choices.join(", "))
}

/// Useless without the interface's name.
fn link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// `127.0.0.1 GET /a.txt 200 1.5 KiB`
fn line(visit: &Visit) -> String {
    let style = if visit.status < 400 { Style::Good } else { Style::Warning };
    let (status, target) = (visit.status.to_string(), print::escaped(visit.target.as_bytes()));
    let bytes = visit.bytes.map(|bytes| format!(" {}", print::size(bytes))).unwrap_or_default();
    format!("{} {} {target} {}{bytes}", visit.peer.ip(), visit.method, print::styled(style, &status))
}

/// Asks the desktop for its browser.
fn open(url: &str) {
    let programs = [std::env::var("BROWSER").ok(), Some("xdg-open".to_owned()), Some("open".to_owned())];
    for program in programs.into_iter().flatten() {
        let mut command = Command::new(&program);
        command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Ok(mut child) = command.spawn() {
            // It is waited for, so that it does not stay as a zombie.
            let _ = std::thread::Builder::new().spawn(move || child.wait());
            return;
        }
    }
    print::warning("no browser found: set BROWSER, or install xdg-utils");
}
