//! Reads the ClientHello at the start of a TLS stream, to learn the name it asks for.
//!
//! The relay decides by that name whom to dial, and then replays every byte to them unread. So the
//! reader must see exactly what the upstream's TLS stack will see: a reader that looks at the bytes
//! of one record, or at whatever arrived first, can be shown an allowed name while TLS means
//! another one. Hence the handshake message is put together from the records before any of it is
//! looked at, its grammar is checked to the last byte, and where two TLS stacks might differ (two
//! names, a NUL, a message that shares its record with another) the hello is rejected.
//!
//! ```text
//! stream    | 16 03 01 length | fragment | 16 03 01 length | fragment | later records, ignored
//! message                     | 01 length24 body ………………… | ……… body |
//! ```
//!
//! It does no I/O, decrypts nothing and has no opinion on a name; without a name, with an address
//! for a name, or with Encrypted Client Hello, what to do is the listener's decision. What can be
//! refused is refused at the first byte that shows it, since whoever sends it may send no more.
//!
//! Source: RFC 8446 §4.1.2, §5.1; RFC 6066 §3; the acceptance table in `client_hello/tests.rs`.

use super::host::{HostName, HostNameError};

/// Reads one ClientHello from the start of a stream that arrives in pieces of any size.
#[derive(Debug, Default)]
pub struct ClientHelloReader {
    limits: HelloLimits,
    /// Bytes of the stream that are dealt with; the next call goes on from here.
    seen: usize,
    /// Bytes of the current record still to come; zero between two records.
    record_rest: usize,
    /// Records begun.
    records: usize,
    /// The handshake message so far, with its own header and without those of the records.
    message: Vec<u8>,
    /// Once there is an answer it stays the answer.
    decision: Option<Result<ClientHello, HelloError>>,
}

impl ClientHelloReader {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with_limits(limits: HelloLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Reads on. `received` is everything received since the start of the stream, each time; only
    /// its new bytes are looked at.
    pub fn handle_bytes(&mut self, received: &[u8]) -> Progress {
        if self.decision.is_none() {
            self.decision = self.read(received).transpose();
        }
        match &self.decision {
            None => Progress::NeedMore,
            Some(Ok(hello)) => {
                self.message = Vec::new();
                Progress::Complete(hello.clone())
            }
            Some(Err(error)) => {
                self.message = Vec::new();
                Progress::Rejected(*error)
            }
        }
    }

    fn read(&mut self, received: &[u8]) -> Result<Option<ClientHello>, HelloError> {
        loop {
            let unread = received.get(self.seen..).unwrap_or_default();
            if self.record_rest == 0 {
                let Some(length) = self.record_length(unread)? else {
                    return Ok(None);
                };
                self.seen += RECORD_HEADER_BYTES;
                self.record_rest = length;
                self.records += 1;
                continue;
            }

            let wanted = self.message_rest().min(self.record_rest);
            let fragment = unread.get(..wanted).unwrap_or(unread);
            if fragment.is_empty() {
                return Ok(None);
            }
            self.message.extend_from_slice(fragment);
            self.seen += fragment.len();
            self.record_rest -= fragment.len();

            self.check_message_header()?;
            if self.message_length() == Some(self.message.len()) {
                // TLS 1.3 forbids it (RFC 8446 §5.1), and what follows would go unchecked.
                if self.record_rest > 0 {
                    return Err(HelloError::MalformedHello);
                }
                let body = self.message.get(MESSAGE_HEADER_BYTES..);
                let body = body.unwrap_or_default();
                return ClientHello::parse(body, self.seen).map(Some);
            }
            if self.record_rest == 0 && self.records >= self.limits.records {
                return Err(HelloError::TooManyRecords);
            }
        }
    }

    /// The length of the record that begins with `unread`, or None while its header is incomplete.
    fn record_length(&self, unread: &[u8]) -> Result<Option<usize>, HelloError> {
        match unread.first() {
            None => return Ok(None),
            Some(&CONTENT_HANDSHAKE) => {}
            Some(&CONTENT_ALERT) => return Err(HelloError::AlertFirst),
            Some(_) if self.records > 0 => return Err(HelloError::InterruptedHello),
            Some(_) => return foreign_protocol(unread).map_or(Ok(None), Err),
        }
        match unread.get(1) {
            // The minor version says nothing: 1.3 hellos carry 0x0301, and 0x0305 is not forbidden.
            Some(&VERSION_MAJOR) | None => {}
            Some(_) if self.records > 0 => return Err(HelloError::InterruptedHello),
            Some(_) => return Err(HelloError::NotTls),
        }
        let Some([_, _, _, length @ ..]) = unread.first_chunk::<RECORD_HEADER_BYTES>() else {
            return Ok(None);
        };
        match usize::from(u16::from_be_bytes(*length)) {
            0 => Err(HelloError::ZeroLengthRecord),
            length if length > MAX_RECORD_BYTES => Err(HelloError::RecordTooLong),
            length => Ok(Some(length)),
        }
    }

    /// Type and length can be judged long before the message is complete.
    fn check_message_header(&self) -> Result<(), HelloError> {
        let kind = self.message.first();
        if kind.is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(HelloError::NotAClientHello);
        }
        match self.message_length() {
            Some(length) if length > self.limits.hello_bytes => Err(HelloError::HelloTooLong),
            Some(_) | None => Ok(()),
        }
    }

    /// Bytes to fetch next: the rest of the message, or of its header while that is incomplete.
    fn message_rest(&self) -> usize {
        let target = self.message_length().unwrap_or(MESSAGE_HEADER_BYTES);
        target.saturating_sub(self.message.len())
    }

    /// Length of the whole message with its header, once the header is there.
    fn message_length(&self) -> Option<usize> {
        let [_kind, length @ ..] = *self.message.first_chunk::<MESSAGE_HEADER_BYTES>()?;
        let [high, middle, low] = length.map(usize::from);
        Some(MESSAGE_HEADER_BYTES + ((high << 16) | (middle << 8) | low))
    }
}

/// What a hello may cost before it is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloLimits {
    /// Longest handshake message, its four-byte header included. Hellos with post-quantum key
    /// shares take about 2 KB and are growing; 32 KiB leaves room and bounds what a stranger can
    /// make us keep.
    pub hello_bytes: usize,
    /// Most records that a hello may be spread over. Clients need one or two; a hello in one-byte
    /// records costs six bytes of work for each of its own.
    pub records: usize,
}

impl Default for HelloLimits {
    fn default() -> Self {
        Self { hello_bytes: 32 * 1024, records: 64 }
    }
}

/// What the bytes received so far amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    NeedMore,
    Complete(ClientHello),
    Rejected(HelloError),
}

/// What the relay wants to know of a ClientHello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    pub server_name: ServerName,
    /// The name was sent with a trailing dot, which RFC 6066 forbids: worth a line in the log once.
    pub trailing_dot: bool,
    /// An `encrypted_client_hello` extension is there, real or GREASE: nobody but the upstream can
    /// tell which. `server_name` is then the outer name.
    pub encrypted_client_hello: bool,
    /// Bytes of the stream up to the end of the record that completes the hello, headers included.
    pub raw_length: usize,
}

impl ClientHello {
    /// Parses the body of a ClientHello message. Extensions that we do not use are skipped whole.
    fn parse(body: &[u8], raw_length: usize) -> Result<Self, HelloError> {
        let mut body = Cursor(body);
        body.take(LEGACY_VERSION_BYTES + RANDOM_BYTES)?;
        let session_id = body.vector8()?;
        let cipher_suites = body.vector16()?;
        let compression_methods = body.vector8()?;
        if session_id.len() > MAX_SESSION_ID_BYTES
            || cipher_suites.is_empty()
            || !cipher_suites.len().is_multiple_of(2)
            || compression_methods.is_empty()
        {
            return Err(HelloError::MalformedHello);
        }

        let mut hello = Self { server_name: ServerName::Absent, trailing_dot: false, encrypted_client_hello: false, raw_length };
        // Before TLS 1.3 a hello could end here.
        if body.is_empty() {
            return Ok(hello);
        }
        let mut extensions = Cursor(body.vector16()?);
        body.end()?;

        let mut named = false;
        while !extensions.is_empty() {
            let kind = extensions.u16()?;
            let content = extensions.vector16()?;
            match kind {
                EXTENSION_SERVER_NAME if named => {
                    return Err(HelloError::DuplicateServerNameExtension);
                }
                EXTENSION_SERVER_NAME => {
                    let name = only_host_name(content)?;
                    hello.trailing_dot = name.ends_with(b".");
                    hello.server_name = ServerName::parse(name)?;
                    named = true;
                }
                EXTENSION_ENCRYPTED_CLIENT_HELLO => hello.encrypted_client_hello = true,
                _ => {}
            }
        }
        Ok(hello)
    }
}

/// The name that a hello asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    /// No `server_name` extension.
    Absent,
    /// An address in place of a name (RFC 6066 §3 does not allow it): as good as absent.
    AddressLiteral,
    Host(HostName),
}

impl ServerName {
    fn parse(name: &[u8]) -> Result<Self, HelloError> {
        if name.contains(&0) {
            return Err(HelloError::NulInName);
        }
        match HostName::parse(&String::from_utf8_lossy(name)) {
            Ok(name) => Ok(Self::Host(name)),
            Err(HostNameError::AddressLiteral) => Ok(Self::AddressLiteral),
            Err(error) => Err(HelloError::InvalidServerName(error)),
        }
    }
}

/// Why a stream is not relayed: its sender's fault, never ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    #[error("the stream does not begin with a TLS handshake record")]
    NotTls,
    #[error("an SSLv2 hello, where TLS 1.0 or newer is expected")]
    SslV2,
    #[error("plain HTTP, where TLS is expected")]
    PlainHttp,
    #[error("a TLS alert came in place of a whole ClientHello")]
    AlertFirst,
    #[error("a TLS record without content")]
    ZeroLengthRecord,
    #[error("a TLS record longer than {} bytes", MAX_RECORD_BYTES)]
    RecordTooLong,
    #[error("the ClientHello is spread over too many TLS records")]
    TooManyRecords,
    #[error("something other than a handshake record came in the middle of the ClientHello")]
    InterruptedHello,
    #[error("the first handshake message is not a ClientHello")]
    NotAClientHello,
    #[error("the ClientHello is longer than allowed")]
    HelloTooLong,
    #[error("the ClientHello does not follow the grammar of TLS")]
    MalformedHello,
    #[error("two server_name extensions in one ClientHello")]
    DuplicateServerNameExtension,
    #[error("more than one host name in the server_name extension")]
    SeveralHostNames,
    #[error("a NUL in the server name")]
    NulInName,
    #[error("invalid server name: {0}")]
    InvalidServerName(HostNameError),
}

impl HelloError {
    /// One word for logs and metrics; it does not change between releases.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::SslV2 => "sslv2",
            Self::PlainHttp => "plain_http",
            Self::AlertFirst => "tls_alert_first",
            Self::ZeroLengthRecord => "zero_length_record",
            Self::RecordTooLong => "record_too_long",
            Self::TooManyRecords => "too_many_records",
            Self::InterruptedHello => "interrupted_hello",
            Self::NotAClientHello => "not_a_client_hello",
            Self::HelloTooLong => "hello_too_long",
            Self::MalformedHello => "malformed_hello",
            Self::DuplicateServerNameExtension => "duplicate_server_name_extension",
            Self::SeveralHostNames => "several_host_names",
            Self::NulInName => "nul_in_name",
            Self::InvalidServerName(_) => "invalid_server_name",
        }
    }

    /// The alert to close with, for [`alert_record`]; None if the sender would not understand one,
    /// or has closed the session with its own (an alert is not answered, RFC 8446 §6).
    pub fn alert(&self) -> Option<u8> {
        match self {
            Self::NotTls | Self::SslV2 | Self::PlainHttp | Self::AlertFirst => None,
            Self::ZeroLengthRecord | Self::InterruptedHello | Self::NotAClientHello => Some(alert::UNEXPECTED_MESSAGE),
            Self::RecordTooLong => Some(alert::RECORD_OVERFLOW),
            Self::TooManyRecords | Self::MalformedHello => Some(alert::DECODE_ERROR),
            Self::HelloTooLong | Self::DuplicateServerNameExtension | Self::SeveralHostNames | Self::NulInName => {
                Some(alert::ILLEGAL_PARAMETER)
            }
            Self::InvalidServerName(_) => Some(alert::UNRECOGNIZED_NAME),
        }
    }
}

/// A fatal alert, in the clear, as it may be sent before any key is agreed on.
///
/// `description` is one of [`alert`]. Source: RFC 8446 §5.1, §6.
pub fn alert_record(description: u8) -> [u8; 7] {
    const FATAL: u8 = 2;
    [CONTENT_ALERT, VERSION_MAJOR, 3, 0, 2, FATAL, description]
}

/// Alert descriptions that the relay sends (RFC 8446 §6, RFC 6066 §9).
pub mod alert {
    pub const UNEXPECTED_MESSAGE: u8 = 10;
    pub const RECORD_OVERFLOW: u8 = 22;
    pub const ILLEGAL_PARAMETER: u8 = 47;
    pub const DECODE_ERROR: u8 = 50;
    pub const UNRECOGNIZED_NAME: u8 = 112;
}

/// Tells what a stream is that does not begin with a TLS record, or None while it may be several.
fn foreign_protocol(start: &[u8]) -> Option<HelloError> {
    if start.first().is_some_and(|first| first & 0x80 != 0) {
        // Two bytes of length with the top bit set, then the message type.
        return start.get(2).map(|kind| match *kind {
            CLIENT_HELLO => HelloError::SslV2,
            _ => HelloError::NotTls,
        });
    }
    if HTTP_METHODS.iter().any(|method| start.starts_with(method)) {
        return Some(HelloError::PlainHttp);
    }
    if HTTP_METHODS.iter().any(|method| method.starts_with(start)) {
        return None;
    }
    Some(HelloError::NotTls)
}

/// The one host name of a `server_name` extension, unchecked.
///
/// Other name types were never defined, and RFC 6066 §3 allows one name of each type.
fn only_host_name(extension: &[u8]) -> Result<&[u8], HelloError> {
    let mut extension = Cursor(extension);
    let mut names = Cursor(extension.vector16()?);
    extension.end()?;

    let mut only = None;
    while !names.is_empty() {
        let kind = names.u8()?;
        let name = names.vector16()?;
        if kind != NAME_TYPE_HOST_NAME || name.is_empty() {
            return Err(HelloError::MalformedHello);
        }
        if only.replace(name).is_some() {
            return Err(HelloError::SeveralHostNames);
        }
    }
    only.ok_or(HelloError::MalformedHello)
}

/// What is left to read of a structure; to read past its end is to find the hello malformed.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(HelloError::MalformedHello)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, HelloError> {
        let (first, rest) = self.0.split_first().ok_or(HelloError::MalformedHello)?;
        self.0 = rest;
        Ok(*first)
    }

    fn u16(&mut self) -> Result<u16, HelloError> {
        let (first, rest) = self.0.split_first_chunk::<2>().ok_or(HelloError::MalformedHello)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*first))
    }

    /// A vector with one byte of length in front.
    fn vector8(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.u8()?;
        self.take(length.into())
    }

    /// A vector with two bytes of length in front.
    fn vector16(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.u16()?;
        self.take(length.into())
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn end(&self) -> Result<(), HelloError> {
        if self.is_empty() { Ok(()) } else { Err(HelloError::MalformedHello) }
    }
}

// RFC 8446 §5.1: records.
const RECORD_HEADER_BYTES: usize = 5;
const MAX_RECORD_BYTES: usize = 1 << 14;
const CONTENT_ALERT: u8 = 21;
const CONTENT_HANDSHAKE: u8 = 22;
const VERSION_MAJOR: u8 = 3;

// RFC 8446 §4, §4.1.2: handshake messages.
const MESSAGE_HEADER_BYTES: usize = 4;
const CLIENT_HELLO: u8 = 1;
const LEGACY_VERSION_BYTES: usize = 2;
const RANDOM_BYTES: usize = 32;
const MAX_SESSION_ID_BYTES: usize = 32;

// RFC 6066 §3, RFC 9849 §5: extensions.
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
const NAME_TYPE_HOST_NAME: u8 = 0;

/// The methods that clients open a connection with, and the preface of HTTP/2.
const HTTP_METHODS: [&[u8]; 10] = [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"PRI"];

#[cfg(test)]
mod tests;
