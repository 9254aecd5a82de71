//! TLS of the relay's own: a listener that sensors reach by TLS, a parent that is reached by TLS, and the handshake of a
//! probe, which only looks at who answers.
//!
//! The sensors' own sessions are none of it: they pass through unopened, inside a session of ours where there is one.
//!
//! - **TLS 1.2 and 1.3, by ring**, which is given explicitly: there is no default of the process that something else
//!   could set.
//! - **Nothing is resumed.** Every session shows its certificates, and they are checked again, so that a changed
//!   certificate or authority takes hold with the next session; and nothing is kept for sensors that connect once a week.
//! - **The roots are built in** (Mozilla's), not read from the host: an image without a file system has none, and a host
//!   behind an intercepting proxy has that proxy's among them, so that its interception would never be seen.
//! - **Secrets** never appear in an error, nor does any line of the text that holds the key.
//!
//! Left out: revocation, and reading files again. Whoever sees that a file has changed makes a new [`ServerTls`] or
//! [`ClientTls`]; sessions that stand keep the old one.
//!
//! Source: RFC 8446 and RFC 5246 (TLS), RFC 5280 (certificates), RFC 7468 (PEM).

mod accept;
mod certificate;
mod connect;
mod stream;

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, RootCertStore};
use zeroize::Zeroizing;

pub use accept::{ClientCertificates, PeerName, ServerTls, TlsAcceptError};
use certificate::{Certificate, date};
pub use connect::{CertificateFault, ChainCheck, ClientTls, Roots, TlsConnectError, check_chain};

use crate::secret::Secret;

/// What is wrong with the files that TLS is configured with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} holds no certificate; expected PEM, with lines like '-----BEGIN CERTIFICATE-----'", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{} is broken PEM: a section has no proper beginning or end, or is not base64", path.display())]
    BadPem { path: PathBuf },
    #[error("certificate {number} in {} cannot be used: {detail}", path.display())]
    BadCertificate { path: PathBuf, number: usize, detail: String },
    #[error(
        "certificate {number} in {} is {subject}'s, but the one before it was issued by {issuer}; expected one's own certificate first, \
         then each one's issuer",
        path.display()
    )]
    ChainOrder { path: PathBuf, number: usize, subject: String, issuer: String },
    #[error("the certificate of {subject} in {} expired on {on}", path.display())]
    Expired { path: PathBuf, subject: String, on: String },
    #[error("the certificate of {subject} in {} is not valid before {from}; is this host's clock right?", path.display())]
    NotYetValid { path: PathBuf, subject: String, from: String },
    #[error("there is no private key; expected PEM with its line breaks: PKCS#8, PKCS#1 or SEC1")]
    NoKey,
    #[error("the private key is encrypted; expected one without a passphrase, in a file that nobody else can read")]
    EncryptedKey,
    #[error("the private key is of a kind that is not supported; expected RSA of 2048 bits or more, ECDSA P-256 or P-384, or Ed25519")]
    BadKey,
    #[error("the private key does not belong to the first certificate in {}, which is {subject}'s", path.display())]
    KeyMismatch { path: PathBuf, subject: String },
    #[error("TLS cannot be set up: {detail}")]
    Settings { detail: String },
}

/// A certificate, those of its issuers, and its key.
#[derive(Debug)]
struct Identity {
    certified: Arc<SingleCertAndKey>,
    not_after: UnixTime,
}

impl Identity {
    /// Only the first certificate's dates are checked: an issuer that has expired may not be the one that clients build on.
    fn load(path: &Path, key_pem: &Secret, now: UnixTime) -> Result<Self, TlsError> {
        let chain = read_certificates(path)?;
        let parsed = parse_certificates(path, &chain)?;
        for (at, pair) in parsed.windows(2).enumerate() {
            if let [certificate, issuer] = pair
                && certificate.issuer != issuer.subject
            {
                return Err(TlsError::ChainOrder {
                    path: path.to_owned(),
                    number: at + 2,
                    subject: issuer.subject.to_string(),
                    issuer: certificate.issuer.to_string(),
                });
            }
        }
        let own = parsed.first().ok_or_else(|| TlsError::NoCertificate { path: path.to_owned() })?;
        let subject = own.subject.to_string();
        if own.not_after < now {
            return Err(TlsError::Expired { path: path.to_owned(), subject, on: date(own.not_after) });
        }
        if own.not_before > now {
            return Err(TlsError::NotYetValid { path: path.to_owned(), subject, from: date(own.not_before) });
        }
        let key = Zeroizing::new(read_key(key_pem)?);
        let certified = CertifiedKey::new(chain, ring::sign::any_supported_type(&key).map_err(|_| TlsError::BadKey)?);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => return Err(TlsError::KeyMismatch { path: path.to_owned(), subject }),
            Err(error) => return Err(TlsError::BadCertificate { path: path.to_owned(), number: 1, detail: error.to_string() }),
        }
        Ok(Self { certified: Arc::new(SingleCertAndKey::from(certified)), not_after: own.not_after })
    }
}

/// Every certificate in a PEM file, at least one; other sections are passed over.
fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    // The parser's own words hold lines of the file, and there may be a key in it.
    let certificates = certificates.map_err(|_| TlsError::BadPem { path: path.to_owned() })?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}

fn parse_certificates(path: &Path, chain: &[CertificateDer<'_>]) -> Result<Vec<Certificate>, TlsError> {
    let parse = |(at, der): (usize, &CertificateDer<'_>)| {
        Certificate::parse(der).ok_or_else(|| TlsError::BadCertificate {
            path: path.to_owned(),
            number: at + 1,
            detail: "it is no X.509 certificate".to_owned(),
        })
    };
    chain.iter().enumerate().map(parse).collect()
}

/// The authorities in a PEM file.
fn read_authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut authorities = RootCertStore::empty();
    for (at, certificate) in read_certificates(path)?.into_iter().enumerate() {
        authorities.add(certificate).map_err(|error| TlsError::BadCertificate {
            path: path.to_owned(),
            number: at + 1,
            detail: error.to_string(),
        })?;
    }
    Ok(authorities)
}

fn read_key(key_pem: &Secret) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = key_pem.expose();
    // 'BEGIN ENCRYPTED PRIVATE KEY', or 'Proc-Type: 4,ENCRYPTED' in the older form.
    if pem.contains("ENCRYPTED") {
        return Err(TlsError::EncryptedKey);
    }
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| TlsError::NoKey)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn settings(error: impl Display) -> TlsError {
    TlsError::Settings { detail: error.to_string() }
}

/// What rustls said, if it is rustls that ended a handshake and not the stream below it.
fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Whether the other side went away.
fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe
    )
}

#[cfg(test)]
mod tests;
