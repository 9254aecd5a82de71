//! The other two heads of CONNECT: the answer that we give a sensor, and the request and answer between us and a
//! parent proxy. A refusal carries its reason in `Proxy-Status`, so that it survives a chain of skyways.

use zeroize::Zeroizing;

use super::chain::{VIA_FIELD, parse_names};
use super::head_lines::{HeadFault, HeadProgress, Line, LineScanner, MAX_FIELDS, parse_fields};

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
    /// The gateways that say they carry the tunnel, the nearest first.
    pub via: Vec<String>,
}

impl ResponseHead {
    fn parse(status: u16, field_lines: &[u8], length: usize) -> Result<Self, ResponseHeadError> {
        let mut storage = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let fields = parse_fields(field_lines, &mut storage)?;
        let reason_header =
            fields.iter().filter(|field| field.name.eq_ignore_ascii_case("proxy-status")).find_map(|field| skyway_reason(field.value));
        let via = fields.iter().find(|field| field.name.eq_ignore_ascii_case(VIA_FIELD));
        let via = via.and_then(|field| parse_names(str::from_utf8(field.value).ok()?)).unwrap_or_default();
        Ok(Self { status, length, reason_header, via })
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

/// The head that grants a CONNECT and says which gateways carry it.
pub fn established(via: &[String]) -> String {
    format!("HTTP/1.1 200 Connection established\r\n{VIA_FIELD}: {}\r\n\r\n", via.join(","))
}

/// The head that asks a parent for a tunnel to `target`, which is `host:port`.
///
/// `extra` fields follow in order; of their values only printable ASCII is sent. Wiped after use,
/// since one of them may be a `Proxy-Authorization` from [`Credentials::to_basic`].
pub fn connect_request(target: &str, extra: &[(&'static str, &str)]) -> Zeroizing<String> {
    let extra_length: usize = extra.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    let mut head = Zeroizing::new(String::with_capacity(
        2 * target.len() + extra_length + 40, // 40: more than the fixed parts take
    ));
    for part in ["CONNECT ", target, " HTTP/1.1\r\nHost: ", target, "\r\n"] {
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

fn parse_status_line(line: &[u8]) -> Result<u16, ResponseHeadError> {
    let mut no_fields = [httparse::EMPTY_HEADER; 0];
    let mut response = httparse::Response::new(&mut no_fields);
    match response.parse(line) {
        Ok(_) => response.code.ok_or(ResponseHeadError::BadStatusLine),
        Err(_) => Err(ResponseHeadError::BadStatusLine),
    }
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

fn is_printable(character: char) -> bool {
    matches!(character, ' '..='~')
}

/// Whether a character may stand in a quoted string without escape.
fn is_quotable(character: char) -> bool {
    is_printable(character) && !matches!(character, '"' | '\\')
}

/// Of a parent's reason; our own are single words.
const MAX_REASON_CHARACTERS: usize = 128;

const HTTP: &[u8] = b"HTTP/";
