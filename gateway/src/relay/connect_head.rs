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
//! RFC 9931 (early data); reference/relay.md §4.3.

use std::{fmt, mem};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

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
    pub fn handle_bytes(&mut self, received: &[u8]) -> HeadProgress {
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

/// What the bytes received so far amount to: of a request, if nothing else is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadProgress<Head = ConnectHead, Error = HeadError> {
    NeedMore,
    Complete(Head),
    Rejected(Error),
}

impl<Head: Clone, Error: Copy> HeadProgress<Head, Error> {
    fn new(decision: Option<&Result<Head, Error>>) -> Self {
        match decision {
            None => Self::NeedMore,
            Some(Ok(head)) => Self::Complete(head.clone()),
            Some(Err(error)) => Self::Rejected(*error),
        }
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
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub version_minor: u8,
}

impl ConnectHead {
    /// `field_lines` is what lies between the request line and the end of the head.
    fn parse(request_line: RequestLine, field_lines: &[u8], length: usize) -> Result<Self, HeadError> {
        let authority = request_line.authority;
        let mut host_seen = false;
        let mut proxy_authorization = None;
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
                "content-length" | "transfer-encoding" => return Err(HeadError::BodyAnnounced),
                _ => {}
            }
        }
        Ok(Self { authority, length, proxy_authorization, version_minor: request_line.version_minor })
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
            Self::DuplicateProxyAuthorization => "duplicate_proxy_authorization",
            Self::BadProxyAuthorization => "bad_proxy_authorization",
            Self::UnsupportedAuthorization => "unsupported_authorization",
            Self::BodyAnnounced => "body_announced",
            Self::Fault(fault) => fault.reason(),
        }
    }
}

/// What can be wrong with the lines of any head, request or response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadFault {
    #[error("expected the head to end within {} bytes", MAX_HEAD_BYTES)]
    TooLong,
    #[error("expected no more than {} fields in the head", MAX_FIELDS)]
    TooManyFields,
    #[error("expected a carriage return in front of every line feed")]
    BareLineFeed,
    #[error("expected a line feed behind every carriage return")]
    BareCarriageReturn,
    #[error("a NUL in the head")]
    NulByte,
    #[error("expected every field on one line, with no space in front")]
    FoldedLine,
    #[error("expected a name, a colon and a printable value in every field")]
    BadField,
}

impl HeadFault {
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong => "head_too_long",
            Self::TooManyFields => "too_many_fields",
            Self::BareLineFeed => "bare_line_feed",
            Self::BareCarriageReturn => "bare_carriage_return",
            Self::NulByte => "nul_in_head",
            Self::FoldedLine => "folded_line",
            Self::BadField => "bad_field",
        }
    }

    fn status(self) -> u16 {
        match self {
            Self::TooLong | Self::TooManyFields => 431,
            Self::BareLineFeed | Self::BareCarriageReturn | Self::NulByte | Self::FoldedLine | Self::BadField => 400,
        }
    }
}

/// The head, and for a refusal the one-line body, that answers a CONNECT.
///
/// A refusal closes the connection, so that early data cannot be taken for another request
/// (RFC 9931), and gives `reason` twice: as the body for people, and in `Proxy-Status` (RFC 9209)
/// for the next skyway, see [`ResponseHead::reason_header`]. A 200 has no place for one.
pub fn response(status: u16, reason: &str) -> String {
    if status == 200 {
        return "HTTP/1.1 200 Connection established\r\n\r\n".to_owned();
    }
    let phrase = reason_phrase(status);
    let error = proxy_status_error(status);
    let extra = match status {
        405 => "Allow: CONNECT\r\n",
        407 => "Proxy-Authenticate: Basic realm=\"skyway\"\r\n",
        _ => "",
    };
    let reason: String = reason.chars().filter(|c| is_quotable(*c)).collect();
    let content_length = reason.len() + 1;
    format!(
        "HTTP/1.1 {status} {phrase}\r\n\
         Connection: close\r\n\
         {extra}\
         Proxy-Status: skyway; error={error}; details=\"{reason}\"\r\n\
         Content-Type: text/plain\r\n\
         Content-Length: {content_length}\r\n\
         \r\n\
         {reason}\n"
    )
}

/// The head that asks a parent for a tunnel to `authority`.
///
/// `extra` fields follow in order; of their values only printable ASCII is sent. Wiped after use,
/// since one of them may be a `Proxy-Authorization` from [`Credentials::to_basic`].
pub fn connect_request(authority: &Authority, extra: &[(&'static str, &str)]) -> Zeroizing<String> {
    let target = authority.to_string();
    let extra_length: usize = extra.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    let mut head = Zeroizing::new(String::with_capacity(
        2 * target.len() + extra_length + 40, // 40: more than the fixed parts take
    ));
    for part in ["CONNECT ", &target, " HTTP/1.1\r\nHost: ", &target, "\r\n"] {
        head.push_str(part);
    }
    for (name, value) in extra {
        head.push_str(name);
        head.push_str(": ");
        head.extend(value.chars().filter(|c| is_printable(*c)));
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    head
}

/// Reads the head of a parent's answer to our CONNECT.
#[derive(Debug, Default)]
pub struct ResponseHeadReader {
    lines: LineScanner,
    status: Option<u16>,
    /// Once there is an answer it stays the answer.
    decision: Option<Result<ResponseHead, ResponseHeadError>>,
}

impl ResponseHeadReader {
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads on, as [`ConnectHeadReader::handle_bytes`] does.
    pub fn handle_bytes(&mut self, received: &[u8]) -> HeadProgress<ResponseHead, ResponseHeadError> {
        if self.decision.is_none() {
            self.decision = self.read(received).transpose();
        }
        HeadProgress::new(self.decision.as_ref())
    }

    fn read(&mut self, received: &[u8]) -> Result<Option<ResponseHead>, ResponseHeadError> {
        let start = received.get(..HTTP.len()).unwrap_or(received);
        if !HTTP.starts_with(start) {
            return Err(ResponseHeadError::NotHttp);
        }
        while let Some(line) = self.lines.next_line(received)? {
            match line {
                Line::First => {
                    self.status = Some(parse_status_line(self.lines.first_line(received))?);
                }
                Line::Field => {}
                Line::End => {
                    let status = self.status.ok_or(ResponseHeadError::BadStatusLine)?;
                    let fields = self.lines.field_lines(received);
                    return ResponseHead::parse(status, fields, self.lines.seen).map(Some);
                }
            }
        }
        Ok(None)
    }
}

/// A parent's answer. Any 2xx is the tunnel, whatever its fields say of a body (RFC 9110 §9.3.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    pub status: u16,
    /// Bytes of the head with its blank line. What follows a 2xx is the tunnel's first content.
    pub length: usize,
    /// The reason that a skyway gave for refusing; from another parent, None. Its author is the
    /// parent: for logs and answers, not for the label of a metric.
    pub reason_header: Option<String>,
}

impl ResponseHead {
    fn parse(status: u16, field_lines: &[u8], length: usize) -> Result<Self, ResponseHeadError> {
        let mut storage = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let fields = parse_fields(field_lines, &mut storage)?;
        let reason_header =
            fields.iter().filter(|field| field.name.eq_ignore_ascii_case("proxy-status")).find_map(|field| skyway_reason(field.value));
        Ok(Self { status, length, reason_header })
    }
}

/// Why a parent's answer is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseHeadError {
    #[error("expected an answer that begins with 'HTTP/'")]
    NotHttp,
    #[error("expected a status line like 'HTTP/1.1 200 OK'")]
    BadStatusLine,
    #[error(transparent)]
    Fault(#[from] HeadFault),
}

impl ResponseHeadError {
    /// One word for logs and metrics; it does not change between releases.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotHttp => "not_http",
            Self::BadStatusLine => "bad_status_line",
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

fn parse_status_line(line: &[u8]) -> Result<u16, ResponseHeadError> {
    let mut no_fields = [httparse::EMPTY_HEADER; 0];
    let mut response = httparse::Response::new(&mut no_fields);
    match response.parse(line) {
        Ok(_) => response.code.ok_or(ResponseHeadError::BadStatusLine),
        Err(_) => Err(ResponseHeadError::BadStatusLine),
    }
}

/// Finds the lines of a head, looking at each byte once, and keeps the rules that `httparse` does
/// not: every line ends in CRLF, none is folded, and there is a limit to their number and length.
#[derive(Debug, Default)]
struct LineScanner {
    /// Bytes of the stream that are scanned; after `Line::End`, the length of the head.
    seen: usize,
    line_start: usize,
    after_carriage_return: bool,
    /// Length of the first line with its CRLF; zero until it is complete.
    first_line_length: usize,
    /// Field lines begun.
    fields: usize,
}

impl LineScanner {
    /// Scans up to the end of the next line; None if the rest of it is not there yet.
    fn next_line(&mut self, received: &[u8]) -> Result<Option<Line>, HeadFault> {
        for &byte in received.get(self.seen..).unwrap_or_default() {
            if self.seen >= MAX_HEAD_BYTES {
                return Err(HeadFault::TooLong);
            }
            let begins_field = self.seen == self.line_start && self.first_line_length > 0;
            let after_carriage_return = mem::replace(&mut self.after_carriage_return, byte == b'\r');
            self.seen += 1;
            match byte {
                0 => return Err(HeadFault::NulByte),
                b'\n' if after_carriage_return => return Ok(Some(self.end_line())),
                b'\n' => return Err(HeadFault::BareLineFeed),
                _ if after_carriage_return => return Err(HeadFault::BareCarriageReturn),
                b' ' | b'\t' if begins_field => return Err(HeadFault::FoldedLine),
                b'\r' => {}
                _ if begins_field && self.fields == MAX_FIELDS => {
                    return Err(HeadFault::TooManyFields);
                }
                _ if begins_field => self.fields += 1,
                _ => {}
            }
        }
        Ok(None)
    }

    fn end_line(&mut self) -> Line {
        let is_blank = self.seen - self.line_start == CRLF_BYTES;
        self.line_start = self.seen;
        if is_blank {
            Line::End
        } else if self.first_line_length == 0 {
            self.first_line_length = self.seen;
            Line::First
        } else {
            Line::Field
        }
    }

    fn first_line<'a>(&self, received: &'a [u8]) -> &'a [u8] {
        received.get(..self.first_line_length).unwrap_or_default()
    }

    /// What is scanned behind the first line, with the blank line once that is found.
    fn field_lines<'a>(&self, received: &'a [u8]) -> &'a [u8] {
        let lines = received.get(self.first_line_length..self.seen);
        lines.unwrap_or_default()
    }
}

/// A line of a head, by its place.
enum Line {
    First,
    Field,
    /// The blank line behind the last field.
    End,
}

fn parse_fields<'h, 'b>(
    field_lines: &'b [u8],
    storage: &'h mut [httparse::Header<'b>; MAX_FIELDS],
) -> Result<&'h [httparse::Header<'b>], HeadFault> {
    match httparse::parse_headers(field_lines, storage) {
        Ok(httparse::Status::Complete((_, fields))) => Ok(fields),
        Ok(httparse::Status::Partial) | Err(_) => Err(HeadFault::BadField),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    // u16's own parser would take "+443".
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|port| *port != 0)
}

/// The `details` of a `Proxy-Status` that [`response`] wrote.
fn skyway_reason(proxy_status: &[u8]) -> Option<String> {
    let parameters = str::from_utf8(proxy_status).ok()?.strip_prefix("skyway;")?;
    let (_, quoted) = parameters.split_once("details=\"")?;
    let (reason, _) = quoted.split_once('"')?;
    let printable = reason.chars().filter(|c| is_quotable(*c));
    Some(printable.take(MAX_REASON_CHARACTERS).collect())
}

/// The error type of RFC 9209 §2.3 that comes nearest; the reason says it exactly.
fn proxy_status_error(status: u16) -> &'static str {
    match status {
        403 | 407 => "http_request_denied",
        400..=499 => "http_request_error",
        502 | 503 => "destination_unavailable",
        504 => "connection_timeout",
        508 => "proxy_loop_detected",
        _ => "proxy_internal_error",
    }
}

fn reason_phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        405 => "Method Not Allowed",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        _ => "Refused",
    }
}

/// RFC 9110 §5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_printable(character: char) -> bool {
    matches!(character, ' '..='~')
}

/// Whether a character may stand in a quoted string without escape.
fn is_quotable(character: char) -> bool {
    is_printable(character) && !matches!(character, '"' | '\\')
}

/// Longest head, request or response. A CONNECT takes some 200 bytes, 2 KB with a large token; what
/// would need more than 8 KiB is not for us.
pub const MAX_HEAD_BYTES: usize = 8192;

/// Most fields in a head; clients send about five.
pub const MAX_FIELDS: usize = 64;

/// Of a parent's reason; our own are single words.
const MAX_REASON_CHARACTERS: usize = 128;

const CRLF_BYTES: usize = 2;
const HTTP: &[u8] = b"HTTP/";
const HTTP2_PREFACE_LINE: &[u8] = b"PRI * HTTP/2.0\r\n";
const TLS_HANDSHAKE_RECORD: u8 = 0x16;

#[cfg(test)]
mod tests;
