//! The certificate that `web` and `serve` make on the spot.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use net::interface;
use tls::Certificate;

/// One for this machine, and for the addresses that are listened at; written to `path`, for clients that are to trust
/// it.
pub fn make(
    bound: impl IntoIterator<Item = IpAddr>,
    path: Option<&Path>,
) -> Result<Certificate, Box<dyn std::error::Error>> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let names = ["localhost".to_owned(), "*.localhost".to_owned(), name];
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    for ip in bound {
        match ip.is_unspecified() {
            true => addresses.extend(interface::addresses()?.into_iter().map(|(_, address)| address)),
            false => addresses.push(ip),
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    let certificate = Certificate::new(&names, &addresses)?;
    if let Some(path) = path {
        let what = || format!("writing {}", path.display());
        std::fs::write(path, certificate.pem()).map_err(|error| net::Error::io(what(), error))?;
    }
    Ok(certificate)
}
