//! TLS 1.2 and 1.3 of a server (RFC 5246, 8446): `web` over HTTPS, `serve` over NBD.
//!
//! ```text
//! certificate  made on the spot: a key, signed by itself, kept in memory alone
//! folder       from files, in the names that libvirt, QEMU, nbdkit and libnbd look for
//! ```
//!
//! A pre-shared key is not among the ways: rustls, the one TLS in Rust that is kept and reviewed, has none
//! (RFC 8446 section 4.2.11 knows them; rustls uses them for its own tickets alone).

#![forbid(unsafe_code)]

mod certificate;
mod folder;

pub use certificate::{Certificate, Sha256Hex};
pub use folder::{CA_CERT, Clients, SERVER_CERT, SERVER_KEY, from_folder};

/// What a server says of itself, and whom it lets in; for rustls.
pub use rustls::ServerConfig as Configuration;
/// The state of one connection.
pub use rustls::ServerConnection as Connection;

use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;

fn provider() -> Result<Arc<CryptoProvider>> {
    supported()?;
    Ok(Arc::new(rustls_graviola::default_provider()))
}

/// Whether the cryptography was written for this processor.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where it was not.
pub fn supported() -> Result<()> {
    #[cfg(target_arch = "x86_64")]
    let has = std::is_x86_feature_detected!("aes")
        && std::is_x86_feature_detected!("pclmulqdq")
        && std::is_x86_feature_detected!("bmi1")
        && std::is_x86_feature_detected!("adx")
        && std::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    let has = cfg!(target_arch = "aarch64");
    if has {
        return Ok(());
    }
    let needed = "TLS needs a processor with AVX2, AES and ADX (x86-64 from 2014 on), or AArch64";
    Err(Error::new(ErrorKind::Unsupported, needed))
}
