//! Certificates from a folder, in the names that libvirt, QEMU (`tls-creds-x509,dir=`), nbdkit and libnbd look for.

use std::io::{Error, ErrorKind, Result};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::provider;

/// The certificate of who signs: clients' certificates are compared with it.
pub const CA_CERT: &str = "ca-cert.pem";
/// The server's certificate, and those between it and the one who signs.
pub const SERVER_CERT: &str = "server-cert.pem";
/// Its private key (PKCS #8, PKCS #1 or SEC 1), not encrypted.
pub const SERVER_KEY: &str = "server-key.pem";
/// Certificates that were taken back, where there are any.
const CA_CRL: &str = "ca-crl.pem";
/// Longer files are not read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Who is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Everybody; the server alone shows who it is.
    All,
    /// Who has a certificate that [`CA_CERT`] signed and `ca-crl.pem`, where there is one, does not take back.
    Verified,
}

/// TLS 1.2 and 1.3 with the certificates of a folder.
///
/// # Errors
/// That of a file that cannot be read; [`ErrorKind::InvalidInput`] for one that does not hold what it should, or a key
/// that is not the certificate's; [`ErrorKind::Unsupported`] as [`crate::supported`].
pub fn from_folder(folder: &Path, clients: Clients) -> Result<Arc<ServerConfig>> {
    let provider = provider()?;
    let certificates = certificates(&folder.join(SERVER_CERT))?;
    let path = folder.join(SERVER_KEY);
    let key = PrivateKeyDer::from_pem_slice(&read(&path)?).map_err(|error| match error {
        pem::Error::NoItemsFound => wrong(&path, "no private key in it (an encrypted one cannot be used)"),
        error => wrong(&path, error),
    })?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(folder, error))?;
    let builder = match clients {
        Clients::All => builder.with_no_client_auth(),
        Clients::Verified => {
            let path = folder.join(CA_CERT);
            let mut roots = RootCertStore::empty();
            for certificate in self::certificates(&path)? {
                roots.add(certificate).map_err(|error| wrong(&path, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let revoked = revoked(&folder.join(CA_CRL))?;
            // A list takes back what it names; of who signed nothing in it, it says nothing.
            let verifier = verifier.with_crls(revoked).allow_unknown_revocation_status();
            builder.with_client_cert_verifier(verifier.build().map_err(|error| match error {
                VerifierBuilderError::InvalidCrl(_) => wrong(&folder.join(CA_CRL), error),
                error => wrong(&path, error),
            })?)
        }
    };
    let made = builder.with_single_cert(certificates, key);
    made.map(Arc::new).map_err(|error| wrong(&folder.join(SERVER_KEY), error))
}

fn wrong(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{}: {error}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |error: Error| Error::new(error.kind(), format!("{}: {error}", path.display()));
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(wrong(path, format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    std::fs::read(path).map_err(failed)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(path)?;
    let all: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all.map_err(|error| wrong(path, error))? {
        none if none.is_empty() => Err(wrong(path, "no certificate in it")),
        some => Ok(some),
    }
}

fn revoked(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    if !path.exists() {
        return Ok(vec![]);
    }
    let bytes = read(path)?;
    let all: std::result::Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    all.map_err(|error| wrong(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_folder_is_said() {
        let folder = rig::Scratch::new("tls-folder");
        let fails = |clients| from_folder(folder.path(), clients).unwrap_err().to_string();
        assert!(fails(Clients::All).contains(SERVER_CERT));
        std::fs::write(folder.join(SERVER_CERT), "no certificate").unwrap();
        assert!(fails(Clients::All).ends_with("server-cert.pem: no certificate in it"));
        let made = crate::Certificate::new(&["localhost".to_owned()], &[]).unwrap();
        std::fs::write(folder.join(SERVER_CERT), made.pem()).unwrap();
        std::fs::write(folder.join(SERVER_KEY), made.pem()).unwrap();
        assert!(fails(Clients::All).contains("server-key.pem: no private key in it"));
        // A key of another certificate.
        let other = crate::Certificate::new(&["localhost".to_owned()], &[]).unwrap();
        std::fs::write(folder.join(SERVER_KEY), other.key_pem()).unwrap();
        assert!(fails(Clients::All).contains("server-key.pem"));
        std::fs::write(folder.join(SERVER_KEY), made.key_pem()).unwrap();
        from_folder(folder.path(), Clients::All).unwrap();
        assert!(fails(Clients::Verified).contains("ca-cert.pem"));
        std::fs::write(folder.join(CA_CERT), made.pem()).unwrap();
        from_folder(folder.path(), Clients::Verified).unwrap();
    }
}
