//! The server's side: a listener that sensors reach by TLS.

use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use rustls::pki_types::UnixTime;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{InvalidMessage, PeerIncompatible, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;

use super::super::Stream;
use super::certificate::Certificate;
use super::connect::{CertificateFault, MadeOf};
use super::stream::Encrypted;
use super::{Identity, TlsError, is_closed, provider, read_authorities, settings, tls_error};
use crate::secret::Secret;

/// Whether who dials must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    Required,
    /// Who shows one must show a good one.
    Optional,
}

/// A listener's certificate, and whose certificates it takes. Cloning shares them; two are equal if they were made of the same.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    not_after: UnixTime,
    made_of: MadeOf,
    client: ClientCertificates,
}

impl ServerTls {
    /// `certificate`: a PEM file, the listener's own certificate first, then its issuers. `client_ca`: a PEM file of the authorities
    /// that may vouch for clients; none: clients are not asked, and `client` says nothing.
    pub fn load(certificate: &Path, key_pem: &Secret, client_ca: Option<&Path>, client: ClientCertificates) -> Result<Self, TlsError> {
        let made_of = MadeOf::read([Some(certificate), client_ca], Some(key_pem))?;
        let identity = Identity::load(certificate, key_pem, UnixTime::now())?;
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(settings)?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(read_authorities(path)?), provider());
                let verifier = match client {
                    ClientCertificates::Required => verifier,
                    ClientCertificates::Optional => verifier.allow_unauthenticated(),
                };
                builder.with_client_cert_verifier(verifier.build().map_err(settings)?)
            }
        };
        let mut config = builder.with_cert_resolver(identity.certified);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), not_after: identity.not_after, made_of, client })
    }

    /// When the listener's certificate expires.
    pub const fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// Does the handshake before `deadline`. Returns the stream inside and, if the client showed a certificate, the names
    /// in it.
    pub async fn accept(&self, stream: Box<dyn Stream>, deadline: Instant) -> Result<(Box<dyn Stream>, Option<PeerName>), TlsAcceptError> {
        let listening = Listening { stream, heard: false };
        let handshake = TlsAcceptor::from(Arc::clone(&self.config)).accept(listening).into_fallible();
        match tokio::time::timeout_at(deadline.into(), handshake).await {
            Ok(Ok(tls)) => {
                let (_, connection) = tls.get_ref();
                let shown = connection.peer_certificates().and_then(|chain| chain.first());
                let name = shown.map(|der| PeerName::of(der));
                let stream: Box<dyn Stream> = Box::new(Encrypted::new(tls));
                Ok((stream, name))
            }
            Ok(Err((error, listening))) => Err(TlsAcceptError::of(&error, listening.heard)),
            Err(_) => Err(TlsAcceptError::TimedOut),
        }
    }
}

impl PartialEq for ServerTls {
    fn eq(&self, other: &Self) -> bool {
        self.made_of == other.made_of && self.client == other.client
    }
}

impl Eq for ServerTls {}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("client", &self.client).finish_non_exhaustive()
    }
}

/// The names in a client's certificate, which has been verified: its DNS names, or else its common name; lower case. There may
/// be none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerName(Vec<String>);

impl PeerName {
    fn of(der: &[u8]) -> Self {
        Self(Certificate::parse(der).map(Certificate::names).unwrap_or_default())
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether `name` is one of them, in whatever case. An asterisk stands for itself.
    pub fn is(&self, name: &str) -> bool {
        self.iter().any(|own| own.eq_ignore_ascii_case(name))
    }
}

/// Why there is no TLS session with somebody who dialled: their fault, or the network's, hardly ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsAcceptError {
    /// As load balancers do that probe a port.
    #[error("the connection was closed without a byte")]
    NoData,
    #[error("the TLS handshake did not end in time")]
    TimedOut,
    #[error("the connection was closed during the TLS handshake")]
    Closed,
    #[error("the first bytes are no TLS; is the client told to use TLS to the proxy?")]
    NotTls,
    #[error("the client speaks neither TLS 1.2 nor TLS 1.3")]
    Version,
    #[error("the client showed no certificate, which this listener requires")]
    NoCertificate,
    #[error("the client's certificate {fault}")]
    BadCertificate { fault: CertificateFault },
    #[error("the client ended the TLS handshake with the alert {alert}")]
    Alert { alert: String },
    #[error("there are no TLS parameters in common with the client: {detail}")]
    Incompatible { detail: String },
    #[error("the TLS handshake broke off: {detail}")]
    Broken { detail: String },
}

impl TlsAcceptError {
    /// One word for logs and metrics; it does not change between releases.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoData => "no_data",
            Self::TimedOut => "tls_timeout",
            Self::Closed => "closed_in_tls",
            Self::NotTls => "not_tls",
            Self::Version => "tls_version",
            Self::NoCertificate => "client_certificate_missing",
            Self::BadCertificate { .. } => "client_certificate_refused",
            Self::Alert { .. } => "tls_alert",
            Self::Incompatible { .. } => "tls_incompatible",
            Self::Broken { .. } => "tls_broken",
        }
    }

    /// `heard`: whether the client sent anything at all.
    fn of(error: &io::Error, heard: bool) -> Self {
        match tls_error(error) {
            None if error.kind() == io::ErrorKind::UnexpectedEof && !heard => Self::NoData,
            None if is_closed(error) => Self::Closed,
            None => Self::Broken { detail: error.to_string() },
            Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => Self::NotTls,
            Some(rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered | PeerIncompatible::Tls12NotOfferedOrEnabled)) => {
                Self::Version
            }
            Some(rustls::Error::PeerIncompatible(why)) => Self::Incompatible { detail: format!("{why:?}") },
            Some(rustls::Error::NoCertificatesPresented) => Self::NoCertificate,
            Some(rustls::Error::InvalidCertificate(why)) => Self::BadCertificate { fault: CertificateFault::of(why, None, "") },
            Some(rustls::Error::AlertReceived(alert)) => Self::Alert { alert: format!("{alert:?}") },
            Some(other) => Self::Broken { detail: other.to_string() },
        }
    }
}

/// A stream that knows whether anything has come by it.
struct Listening {
    stream: Box<dyn Stream>,
    heard: bool,
}

impl AsyncRead for Listening {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buffer);
        this.heard |= buffer.filled().len() > before;
        polled
    }
}

impl AsyncWrite for Listening {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
