//! A certificate made on the spot (RFC 5280): a key on P-256, signed by itself, kept in memory alone.

use std::fmt;
use std::io::{Error, ErrorKind, Result};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use graviola::hashing::{Hash as _, Sha256};
use graviola::signing::ecdsa::{P256, SigningKey};
use rcgen::{CertificateParams, DnType, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SignatureAlgorithm};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::provider;

/// How long it is good for: what browsers allow at most is longer.
const VALID: Duration = Duration::from_secs(90 * 86_400);
/// For clocks that are late.
const BEFORE: Duration = Duration::from_secs(86_400);
/// An uncompressed point on P-256: the last bytes of the public key's structure.
const POINT_BYTES: usize = 65;

/// A certificate and its key.
pub struct Certificate {
    der: CertificateDer<'static>,
    pem: String,
    key: Vec<u8>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({})", self.fingerprint())
    }
}

/// A digest, as certificates are compared by eye: `AB:CD:…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sha256Hex([u8; 32]);

impl fmt::Display for Sha256Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: Vec<String> = self.0.iter().map(|byte| format!("{byte:02X}")).collect();
        f.write_str(&text.join(":"))
    }
}

struct Signer {
    key: SigningKey<P256>,
    point: Vec<u8>,
}

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, rcgen::Error> {
        let mut signature = [0; 128];
        let signed = self.key.sign_asn1::<Sha256>(&[message], &mut signature);
        signed.map(<[u8]>::to_vec).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

fn failed(error: impl fmt::Display) -> Error {
    Error::other(format!("making a certificate: {error}"))
}

impl Certificate {
    /// One for these names and addresses.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] on processors that the cryptography was not written for; [`ErrorKind::InvalidInput`]
    /// for a name that is none.
    pub fn new(names: &[String], addresses: &[IpAddr]) -> Result<Self> {
        crate::supported()?;
        let key = SigningKey::<P256>::generate().map_err(|error| failed(format!("{error:?}")))?;
        let mut buffer = [0; 256];
        let public = key.to_spki_der(&mut buffer).map_err(|error| failed(format!("{error:?}")))?;
        let at = public.len().saturating_sub(POINT_BYTES);
        let signer = Signer { point: public.get(at..).unwrap_or_default().to_vec(), key };
        let mut params = CertificateParams::default();
        let now = SystemTime::now();
        (params.not_before, params.not_after) = ((now - BEFORE).into(), (now + VALID).into());
        let mut serial = [0; 16];
        graviola::random::fill(&mut serial).map_err(|error| failed(format!("{error:?}")))?;
        // A positive number (RFC 5280 section 4.1.2.2).
        serial[0] = serial[0] & 0x7f | 0x40;
        params.serial_number = Some(serial.to_vec().into());
        params.distinguished_name.push(DnType::CommonName, "loopbox");
        for name in names {
            let dns = name
                .as_str()
                .try_into()
                .map_err(|_| Error::new(ErrorKind::InvalidInput, format!("not a name: {name:?}")))?;
            params.subject_alt_names.push(SanType::DnsName(dns));
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        let made = params.self_signed(&signer).map_err(failed)?;
        let mut buffer = [0; 512];
        let key = signer.key.to_pkcs8_der(&mut buffer).map_err(|error| failed(format!("{error:?}")))?.to_vec();
        Ok(Self { pem: made.pem(), der: made.der().clone(), key })
    }

    /// The certificate, without its key, for programs that are to trust it.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its key as a file holds it.
    #[cfg(test)]
    pub(crate) fn key_pem(&self) -> String {
        use base64ct::Encoding as _;
        let text = base64ct::Base64::encode_string(&self.key);
        format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
    }

    /// Its SHA-256.
    pub fn fingerprint(&self) -> Sha256Hex {
        let mut digest = [0; 32];
        digest.copy_from_slice(Sha256::hash(&self.der).as_ref());
        Sha256Hex(digest)
    }

    /// TLS 1.2 and 1.3 with this certificate, to everybody; `protocols` are offered by ALPN (RFC 7301).
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], as [`Certificate::new`].
    pub fn configuration(&self, protocols: &[&str]) -> Result<Arc<ServerConfig>> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone()));
        let mut configuration = ServerConfig::builder_with_provider(provider()?)
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .with_no_client_auth()
            .with_single_cert(vec![self.der.clone()], key)
            .map_err(failed)?;
        configuration.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Arc::new(configuration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_and_can_be_served() {
        let made = Certificate::new(&["localhost".to_owned()], &["127.0.0.1".parse().unwrap()]).unwrap();
        assert!(made.pem().starts_with("-----BEGIN CERTIFICATE-----"));
        assert_eq!(made.fingerprint().to_string().len(), 95);
        made.configuration(&["h2"]).unwrap();
        assert_eq!(Certificate::new(&["ü".to_owned()], &[]).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
