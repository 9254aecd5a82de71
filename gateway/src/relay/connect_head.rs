//! HTTP/1.1 heads for CONNECT, read and written: a sensor's request and our answer to it, our own
//! request to a parent proxy and the parent's answer.
//!
//! CONNECT is the only method a sensor needs, so it is the only one there is: nearly all the holes
//! ever found in proxies lie in what the others require (caches, bodies, rewriting). The rest come
//! of two proxies in a chain that disagree on where a head ends. So `httparse`, which lets bare
//! line feeds and leading blank lines pass, is given only lines that end in CRLF and are not
//! folded, and whatever could announce a body is refused.
//!
//! It does no I/O, keeps no deadline and resolves nothing. Credentials are taken apart here and
//! judged elsewhere; so is whether an authority may be reached. Bytes behind a head are not looked
//! at: they belong to the tunnel, if there will be one.
//!
//! Source: RFC 9110 §9.3.6 (CONNECT), §11.7 (proxy authentication); RFC 9112 §2.2, §3.2.3, §5.2;
//! RFC 9931 (early data).

use std::{fmt, mem};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::chain::Passage;
use super::head_lines::{HeadFault, HeadProgress, Line, LineScanner, MAX_FIELDS, parse_fields};
use super::host::{HostName, HostNameError};

/// Reads the head of one CONNECT request from the start of a stream that arrives in pieces.
#[derive(Debug, Default)]
pub struct ConnectHeadReader {
    lines: LineScanner,
    request_line: Option<RequestLine>,
    /// Once there is an answer it stays the answer.
    decision: Option<Result<ConnectHead, HeadError>>,
}

impl ConnectHeadReader {
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads on. `received` is everything received since the start of the stream, each time; only
    /// its new bytes are scanned.
    pub fn handle_bytes(&mut self, received: &[u8]) -> HeadProgress<ConnectHead, HeadError> {
        if self.decision.is_none() {
            self.decision = self.read(received).transpose();
        }
        HeadProgress::new(self.decision.as_ref())
    }

    fn read(&mut self, received: &[u8]) -> Result<Option<ConnectHead>, HeadError> {
        match received.first() {
            Some(&TLS_HANDSHAKE_RECORD) => return Err(HeadError::TlsOnPlainPort),
            Some(first) if !is_token_byte(*first) => return Err(HeadError::NotHttp),
            Some(_) | None => {}
        }
        while let Some(line) = self.lines.next_line(received)? {
            match line {
                Line::First => {
                    let request_line = RequestLine::parse(self.lines.first_line(received))?;
                    self.request_line = Some(request_line);
                }
                Line::Field => {}
                Line::End => {
                    let request_line = self.request_line.take();
                    let request_line = request_line.ok_or(HeadError::BadRequestLine)?;
                    let fields = self.lines.field_lines(received);
                    return ConnectHead::parse(request_line, fields, self.lines.seen).map(Some);
                }
            }
        }
        Ok(None)
    }
}

/// A CONNECT request that may be considered.
#[derive(Clone, Debug)]
pub struct ConnectHead {
    pub authority: Authority,
    /// Bytes of the head with its blank line. What follows is early data: to be forwarded after a
    /// 2xx, and otherwise thrown away together with the connection (RFC 9931).
    pub length: usize,
    pub proxy_authorization: Option<Credentials>,
    /// What the gateway before this one says; to be believed of a gateway alone.
    pub passage: Option<Passage>,
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub version_minor: u8,
}

impl ConnectHead {
    /// `field_lines` is what lies between the request line and the end of the head.
    fn parse(request_line: RequestLine, field_lines: &[u8], length: usize) -> Result<Self, HeadError> {
        let authority = request_line.authority;
        let mut host_seen = false;
        let mut proxy_authorization = None;
        let mut passage = None;
        let mut storage = [httparse::EMPTY_HEADER; MAX_FIELDS];
        for field in parse_fields(field_lines, &mut storage)? {
            match field.name.to_ascii_lowercase().as_str() {
                "host" if mem::replace(&mut host_seen, true) => {
                    return Err(HeadError::DuplicateHost);
                }
                "host" if !authority.is_named_by(field.value) => {
                    return Err(HeadError::HostMismatch);
                }
                "proxy-authorization" => {
                    let credentials = Credentials::from_basic(field.value)?;
                    if proxy_authorization.replace(credentials).is_some() {
                        return Err(HeadError::DuplicateProxyAuthorization);
                    }
                }
                // Taken for none it would begin a chain anew, and a loop would never be found.
                "skyway-session" if passage.is_some() => return Err(HeadError::BadPassage),
                "skyway-session" => passage = Some(Passage::parse(field.value).ok_or(HeadError::BadPassage)?),
                "content-length" | "transfer-encoding" => return Err(HeadError::BodyAnnounced),
                _ => {}
            }
        }
        Ok(Self { authority, length, proxy_authorization, passage, version_minor: request_line.version_minor })
    }
}

/// Where a CONNECT leads. Displayed as `host:port`, the form in which it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    pub host: HostName,
    /// Never zero if parsed.
    pub port: u16,
}

impl Authority {
    /// Parses the target of a CONNECT: a host name and a port, neither of which may be left out.
    pub fn parse(target: &str) -> Result<Self, HeadError> {
        if target.contains('@') {
            return Err(HeadError::UserInfo);
        }
        let (host, port) = target.rsplit_once(':').ok_or(HeadError::MissingPort)?;
        if port.is_empty() {
            return Err(HeadError::MissingPort);
        }
        let port = parse_port(port).ok_or(HeadError::BadPort)?;
        match HostName::parse(host) {
            Ok(host) => Ok(Self { host, port }),
            Err(HostNameError::Empty) => Err(HeadError::EmptyHost),
            Err(HostNameError::AddressLiteral) => Err(HeadError::AddressLiteral),
            Err(error) => Err(HeadError::InvalidHost(error)),
        }
    }

    /// Whether a `Host` field says the same; clients that leave out its port are common.
    fn is_named_by(&self, host_field: &[u8]) -> bool {
        let Ok(text) = str::from_utf8(host_field) else {
            return false;
        };
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        HostName::parse(host).is_ok_and(|host| host == self.host) && port.is_none_or(|port| parse_port(port) == Some(self.port))
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// User and password of HTTP's Basic scheme (RFC 7617). Not comparable on purpose: a password is
/// compared in constant time, by whoever knows the right one.
#[derive(Clone)]
pub struct Credentials {
    pub user: String,
    password: Zeroizing<String>,
}

impl Credentials {
    pub fn new(user: impl Into<String>, password: Zeroizing<String>) -> Self {
        Self { user: user.into(), password }
    }

    pub fn password(&self) -> &str {
        &self.password
    }

    /// The value of a `Proxy-Authorization` field: `Basic` and the two in base64.
    pub fn to_basic(&self) -> Zeroizing<String> {
        // Capacity first: a string that grows leaves unwiped copies behind.
        let plain_length = self.user.len() + 1 + self.password.len();
        let mut plain = Zeroizing::new(String::with_capacity(plain_length));
        for part in [self.user.as_str(), ":", self.password()] {
            plain.push_str(part);
        }
        let scheme = "Basic ";
        let value_length = scheme.len() + plain_length.div_ceil(3) * 4;
        let mut value = Zeroizing::new(String::with_capacity(value_length));
        value.push_str(scheme);
        STANDARD.encode_string(plain.as_bytes(), &mut value);
        value
    }

    fn from_basic(value: &[u8]) -> Result<Self, HeadError> {
        const BAD: HeadError = HeadError::BadProxyAuthorization;
        let value = str::from_utf8(value).map_err(|_| BAD)?;
        let (scheme, encoded) = value.split_once(' ').unwrap_or((value, ""));
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(HeadError::UnsupportedAuthorization);
        }
        let decoded = STANDARD.decode(encoded.trim_matches(' '));
        let decoded = Zeroizing::new(decoded.map_err(|_| BAD)?);
        let plain = str::from_utf8(&decoded).map_err(|_| BAD)?;
        if plain.chars().any(char::is_control) {
            return Err(BAD);
        }
        let (user, password) = plain.split_once(':').ok_or(BAD)?;
        Ok(Self::new(user, Zeroizing::new(password.to_owned())))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Why a sensor's request is refused: its sender's fault, never ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("a TLS session, where a plain HTTP CONNECT is expected")]
    TlsOnPlainPort,
    #[error("HTTP/2, where an HTTP/1.1 CONNECT is expected")]
    Http2Preface,
    #[error("the first byte cannot begin an HTTP request")]
    NotHttp,
    #[error("expected a request line like 'CONNECT host.example:443 HTTP/1.1'")]
    BadRequestLine,
    #[error("expected HTTP/1.1 or HTTP/1.0 at the end of the request line")]
    UnsupportedVersion,
    #[error("expected the method CONNECT; there is no other")]
    MethodNotAllowed,
    #[error("expected host:port, without a user in front")]
    UserInfo,
    #[error("expected host:port, with the port written out")]
    MissingPort,
    #[error("expected a port from 1 to 65535")]
    BadPort,
    #[error("expected host:port, with a host name in front of the port")]
    EmptyHost,
    #[error("expected a host name, not an address")]
    AddressLiteral,
    #[error("expected a host name: {0}")]
    InvalidHost(HostNameError),
    #[error("the Host field names something other than the request line")]
    HostMismatch,
    #[error("more than one Host field")]
    DuplicateHost,
    #[error("expected one well-formed Skyway-Session field, of a chain of no more than eight gateways")]
    BadPassage,
    #[error("more than one Proxy-Authorization field")]
    DuplicateProxyAuthorization,
    #[error("expected 'Proxy-Authorization: Basic' and the base64 of user:password")]
    BadProxyAuthorization,
    #[error("expected the Basic scheme in Proxy-Authorization")]
    UnsupportedAuthorization,
    #[error("a CONNECT has no body: neither Content-Length nor Transfer-Encoding is allowed")]
    BodyAnnounced,
    #[error(transparent)]
    Fault(#[from] HeadFault),
}

impl HeadError {
    /// The status to answer with, or None where an answer would not be understood.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::TlsOnPlainPort | Self::Http2Preface => None,
            Self::AddressLiteral => Some(403),
            Self::MethodNotAllowed => Some(405),
            Self::UnsupportedAuthorization => Some(407),
            Self::UnsupportedVersion => Some(505),
            Self::Fault(fault) => Some(fault.status()),
            Self::NotHttp
            | Self::BadRequestLine
            | Self::UserInfo
            | Self::MissingPort
            | Self::BadPort
            | Self::EmptyHost
            | Self::InvalidHost(_)
            | Self::HostMismatch
            | Self::DuplicateHost
            | Self::BadPassage
            | Self::DuplicateProxyAuthorization
            | Self::BadProxyAuthorization
            | Self::BodyAnnounced => Some(400),
        }
    }

    /// One word for logs and metrics; it does not change between releases.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TlsOnPlainPort => "tls_on_plain_port",
            Self::Http2Preface => "http2_preface",
            Self::NotHttp => "not_http",
            Self::BadRequestLine => "bad_request_line",
            Self::UnsupportedVersion => "unsupported_version",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::UserInfo => "userinfo",
            Self::MissingPort => "missing_port",
            Self::BadPort => "bad_port",
            Self::EmptyHost => "empty_host",
            Self::AddressLiteral => "address_literal",
            Self::InvalidHost(_) => "invalid_host",
            Self::HostMismatch => "host_mismatch",
            Self::DuplicateHost => "duplicate_host",
            Self::BadPassage => "bad_passage",
            Self::DuplicateProxyAuthorization => "duplicate_proxy_authorization",
            Self::BadProxyAuthorization => "bad_proxy_authorization",
            Self::UnsupportedAuthorization => "unsupported_authorization",
            Self::BodyAnnounced => "body_announced",
            Self::Fault(fault) => fault.reason(),
        }
    }
}

/// The first line of a CONNECT request.
#[derive(Debug)]
struct RequestLine {
    authority: Authority,
    version_minor: u8,
}

impl RequestLine {
    /// `line` includes its CRLF and contains no other line end.
    fn parse(line: &[u8]) -> Result<Self, HeadError> {
        if line == HTTP2_PREFACE_LINE {
            return Err(HeadError::Http2Preface);
        }
        let mut no_fields = [httparse::EMPTY_HEADER; 0];
        let mut request = httparse::Request::new(&mut no_fields);
        match request.parse(line) {
            Ok(_) => {}
            Err(httparse::Error::Version) => return Err(HeadError::UnsupportedVersion),
            Err(_) => return Err(HeadError::BadRequestLine),
        }
        let (Some(method), Some(target), Some(version_minor)) = (request.method, request.path, request.version) else {
            return Err(HeadError::BadRequestLine);
        };
        if method != "CONNECT" {
            return Err(HeadError::MethodNotAllowed);
        }
        Ok(Self { authority: Authority::parse(target)?, version_minor })
    }
}

fn parse_port(text: &str) -> Option<u16> {
    // u16's own parser would take "+443".
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|port| *port != 0)
}

/// RFC 9110 §5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

const HTTP2_PREFACE_LINE: &[u8] = b"PRI * HTTP/2.0\r\n";
const TLS_HANDSHAKE_RECORD: u8 = 0x16;

#[cfg(test)]
mod tests;
