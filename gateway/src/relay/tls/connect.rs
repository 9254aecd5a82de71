//! The client's side: a parent that is reached by TLS, and the handshake of a probe.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, InvalidMessage, OtherError, PeerIncompatible, ProtocolVersion,
    RootCertStore, SignatureScheme,
};
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use super::super::Stream;
use super::super::host::HostName;
use super::certificate::{Certificate, date};
use super::stream::Encrypted;
use super::{Identity, TlsError, is_closed, provider, read_authorities, settings, tls_error};
use crate::secret::Secret;

/// Names of a certificate that are told when none of them fits.
const NAMES_TOLD: usize = 4;

/// How a parent is reached by TLS: whom we trust, and as whom we come. Cloning is cheap; two are equal if they were made of the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls(Connector);

impl ClientTls {
    /// `ca`: a PEM file of the only authorities to trust; none: the built-in roots. `client_certificate`: a PEM file, our own
    /// certificate first, then its issuers, and the key.
    pub fn load(ca: Option<&Path>, client_certificate: Option<(&Path, &Secret)>) -> Result<Self, TlsError> {
        let made_of = MadeOf::read([ca, client_certificate.map(|(path, _)| path)], client_certificate.map(|(_, key_pem)| key_pem))?;
        let roots = ca.map_or_else(|| Ok(built_in_roots()), read_authorities)?;
        let identity = client_certificate.map(|(path, key_pem)| Identity::load(path, key_pem, UnixTime::now())).transpose()?;
        let mut connector = Connector::new(roots, identity, made_of)?;
        connector.config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(connector))
    }

    /// Does the handshake before `deadline` with whoever must be `name`: a host name or an address.
    ///
    /// In TLS 1.3 the other side judges our certificate after that: a refusal shows as an error of the first read.
    pub async fn connect(&self, stream: Box<dyn Stream>, name: &str, deadline: Instant) -> Result<Box<dyn Stream>, TlsConnectError> {
        let tls = self.0.connect(stream, name, deadline).await?;
        Ok(Box::new(Encrypted::new(tls)))
    }
}

/// The authorities that Defender's certificates may come from. Cloning is cheap; two are equal if they were made of the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots(Connector);

impl Roots {
    /// The built-in roots, and those in the PEM file `extra`. An authority in it is never reported as interception.
    pub fn load(extra: Option<&Path>) -> Result<Self, TlsError> {
        let made_of = MadeOf::read([extra], None)?;
        let mut roots = built_in_roots();
        if let Some(path) = extra {
            roots.extend(read_authorities(path)?.roots);
        }
        Ok(Self(Connector::new(roots, None, made_of)?))
    }
}

/// Who answered a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainCheck {
    /// Whose chain leads to one of the roots, as a sensor expects.
    Good {
        issuer: String,
        not_after: UnixTime,
        /// "TLS 1.2" or "TLS 1.3".
        version: &'static str,
    },
    /// Whose certificate is not Defender's.
    Intercepted { issuer: String, why: String },
    /// Nobody, or not by TLS.
    Failed(TlsConnectError),
}

/// Does a whole handshake, as a sensor would, and ends it in order. Nothing is sent inside.
pub async fn check_chain(stream: Box<dyn Stream>, host: &HostName, roots: &Roots, deadline: Instant) -> ChainCheck {
    let mut tls = match roots.0.connect(stream, host.as_str(), deadline).await {
        Ok(tls) => tls,
        Err(TlsConnectError::Untrusted { issuer, fault }) => {
            return ChainCheck::Intercepted { issuer, why: format!("the certificate {fault}") };
        }
        Err(error) => return ChainCheck::Failed(error),
    };
    let (_, connection) = tls.get_ref();
    let version = match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => "TLS 1.2",
        Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
        Some(_) | None => "TLS",
    };
    let shown = connection.peer_certificates().and_then(|chain| chain.first());
    let certificate = shown.and_then(|der| Certificate::parse(der));
    // Its own end is all that a probe asks of the rest.
    let _ended = tokio::time::timeout_at(deadline.into(), tls.shutdown()).await;
    match certificate {
        Some(certificate) => ChainCheck::Good { issuer: certificate.issuer.to_string(), not_after: certificate.not_after, version },
        None => ChainCheck::Failed(TlsConnectError::Broken { detail: "the certificate cannot be read".to_owned() }),
    }
}

/// Why there is no TLS session with whom we dialled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsConnectError {
    #[error("{name:?} is neither a host name nor an address")]
    BadName { name: String },
    #[error("the TLS handshake did not end in time")]
    TimedOut,
    #[error("the connection was closed during the TLS handshake")]
    Closed,
    #[error("the answer is no TLS")]
    NotTls,
    #[error("the other side speaks neither TLS 1.2 nor TLS 1.3")]
    Version,
    #[error("the certificate, issued by {issuer}, {fault}")]
    Untrusted { issuer: String, fault: CertificateFault },
    #[error("the other side ended the TLS handshake with the alert {alert}")]
    Alert { alert: String },
    #[error("there are no TLS parameters in common: {detail}")]
    Incompatible { detail: String },
    #[error("the TLS handshake broke off: {detail}")]
    Broken { detail: String },
}

/// What is wrong with the certificate that was shown; reads on from "the certificate".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    #[error("comes from an authority that is not trusted")]
    UnknownIssuer,
    #[error("is signed by itself, not by an authority")]
    SelfSigned,
    #[error("is for {names}, not for {name}")]
    NameMismatch { name: String, names: String },
    #[error("expired on {on}; by this host's clock it is {clock}")]
    Expired { on: String, clock: String },
    #[error("is not valid before {from}; by this host's clock it is {clock}")]
    NotYetValid { from: String, clock: String },
    #[error("cannot be used: {detail}")]
    Unusable { detail: String },
}

impl TlsConnectError {
    /// One word for logs and metrics; it does not change between releases.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::BadName { .. } => "bad_name",
            Self::TimedOut => "tls_timeout",
            Self::Closed => "closed_in_tls",
            Self::NotTls => "not_tls",
            Self::Version => "tls_version",
            Self::Untrusted { fault, .. } => fault.reason(),
            Self::Alert { .. } => "tls_alert",
            Self::Incompatible { .. } => "tls_incompatible",
            Self::Broken { .. } => "tls_broken",
        }
    }

    fn of(error: &io::Error, witness: &Witness, name: &str) -> Self {
        match tls_error(error) {
            None if is_closed(error) => Self::Closed,
            None => Self::Broken { detail: error.to_string() },
            Some(rustls::Error::InvalidCertificate(why)) => {
                let shown = witness.shown.get().and_then(|der| Certificate::parse(der));
                let issuer = shown.as_ref().map_or_else(|| "somebody unknown".to_owned(), |shown| shown.issuer.to_string());
                Self::Untrusted { issuer, fault: CertificateFault::of(why, shown.as_ref(), name) }
            }
            Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => Self::NotTls,
            Some(
                rustls::Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13)
                | rustls::Error::AlertReceived(AlertDescription::ProtocolVersion),
            ) => Self::Version,
            Some(rustls::Error::PeerIncompatible(why)) => Self::Incompatible { detail: format!("{why:?}") },
            Some(rustls::Error::AlertReceived(alert)) => Self::Alert { alert: format!("{alert:?}") },
            Some(other) => Self::Broken { detail: other.to_string() },
        }
    }
}

impl CertificateFault {
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::UnknownIssuer => "unknown_issuer",
            Self::SelfSigned => "self_signed",
            Self::NameMismatch { .. } => "name_mismatch",
            Self::Expired { .. } => "certificate_expired",
            Self::NotYetValid { .. } => "certificate_not_yet_valid",
            Self::Unusable { .. } => "certificate_unusable",
        }
    }

    /// `why`: rustls's verdict on `shown`; `name`: whom it should have named.
    pub(super) fn of(why: &CertificateError, shown: Option<&Certificate>, name: &str) -> Self {
        if let CertificateError::ExpiredContext { time, not_after } = why {
            Self::Expired { on: date(*not_after), clock: date(*time) }
        } else if let CertificateError::NotValidYetContext { time, not_before } = why {
            Self::NotYetValid { from: date(*not_before), clock: date(*time) }
        } else if let CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } = why {
            let names = shown.map(|shown| shown.dns_names.as_slice()).unwrap_or_default();
            Self::NameMismatch { name: name.to_owned(), names: told(names) }
        } else if shown.is_some_and(Certificate::is_self_signed) {
            // rustls calls it unknown, or an authority's where a server's should be.
            Self::SelfSigned
        } else if let CertificateError::UnknownIssuer = why {
            Self::UnknownIssuer
        } else if let CertificateError::Other(OtherError(inner)) = why {
            Self::Unusable { detail: inner.to_string() }
        } else {
            Self::Unusable { detail: why.to_string() }
        }
    }
}

/// A few of `names`; somebody else wrote them, and there may be many.
fn told(names: &[String]) -> String {
    match names.split_at_checked(NAMES_TOLD) {
        Some((first, rest)) if !rest.is_empty() => format!("{} and {} more", first.join(", "), rest.len()),
        Some(_) | None if names.is_empty() => "no host name".to_owned(),
        Some(_) | None => names.join(", "),
    }
}

/// The files and the key that something was set up from: what was made of the same is the same setting, and a file that was
/// renewed makes another. Cloning shares them; there is no `Debug`, since a certificate's file may hold its key too.
///
/// Read before the files are used: one that changes in between differs from what the next reading finds, and is taken then.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct MadeOf(Arc<Contents>);

#[derive(PartialEq, Eq)]
struct Contents {
    files: Vec<Option<Zeroizing<Vec<u8>>>>,
    key: Option<Secret>,
}

impl MadeOf {
    /// `files`: in an order that means the same each time, those that are not configured as None.
    pub(super) fn read<const FILES: usize>(files: [Option<&Path>; FILES], key_pem: Option<&Secret>) -> Result<Self, TlsError> {
        let mut read = Vec::with_capacity(FILES);
        for path in files {
            read.push(match path {
                None => None,
                Some(path) => {
                    let bytes = std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
                    Some(Zeroizing::new(bytes))
                }
            });
        }
        Ok(Self(Arc::new(Contents { files: read, key: key_pem.cloned() })))
    }
}

/// Handshakes against given roots.
#[derive(Clone)]
struct Connector {
    config: ClientConfig,
    verifier: Arc<WebPkiServerVerifier>,
    made_of: MadeOf,
}

impl PartialEq for Connector {
    fn eq(&self, other: &Self) -> bool {
        self.made_of == other.made_of
    }
}

impl Eq for Connector {}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl Connector {
    fn new(roots: RootCertStore, identity: Option<Identity>, made_of: MadeOf) -> Result<Self, TlsError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(settings)?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(settings)?
            .with_webpki_verifier(Arc::clone(&verifier));
        let mut config = match identity {
            Some(identity) => builder.with_client_cert_resolver(identity.certified),
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        Ok(Self { config, verifier, made_of })
    }

    async fn connect(&self, stream: Box<dyn Stream>, name: &str, deadline: Instant) -> Result<TlsStream<Box<dyn Stream>>, TlsConnectError> {
        let expected = ServerName::try_from(name.to_owned()).map_err(|_| TlsConnectError::BadName { name: name.to_owned() })?;
        let witness = Arc::new(Witness { verifier: Arc::clone(&self.verifier), shown: OnceLock::new() });
        let verifier: Arc<dyn ServerCertVerifier> = Arc::<Witness>::clone(&witness);
        let mut config = self.config.clone();
        config.dangerous().set_certificate_verifier(verifier);
        let handshake = TlsConnector::from(Arc::new(config)).connect(expected, stream);
        match tokio::time::timeout_at(deadline.into(), handshake).await {
            Ok(Ok(tls)) => Ok(tls),
            Ok(Err(error)) => Err(TlsConnectError::of(&error, &witness, name)),
            Err(_) => Err(TlsConnectError::TimedOut),
        }
    }
}

/// Verifies as rustls does and remembers what was shown: after a refusal rustls itself no longer tells.
#[derive(Debug)]
struct Witness {
    verifier: Arc<WebPkiServerVerifier>,
    shown: OnceLock<Vec<u8>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let _first = self.shown.set(end_entity.to_vec());
        self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

fn built_in_roots() -> RootCertStore {
    webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect()
}
