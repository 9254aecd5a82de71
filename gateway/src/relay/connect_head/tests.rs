//! Good and bad heads. Each is read at once, byte by byte and in 100-byte segments, and must give
//! the same answer each time.

use std::iter;

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::head_lines::MAX_HEAD_BYTES;
use super::super::response_head::{ResponseHead, ResponseHeadError, ResponseHeadReader, connect_request, response};
use super::*;

const REQUEST_LINE: &str = "CONNECT hub.example:443 HTTP/1.1\r\n";
const HOST: &str = "Host: hub.example:443\r\n";

#[test]
fn reads_a_connect() {
    let text = format!("{REQUEST_LINE}{HOST}User-Agent: sensor/24.1\r\n\r\n");
    let head = complete(text.as_bytes());
    assert_eq!(head.authority, authority("hub.example", 443));
    assert_eq!(head.authority.to_string(), "hub.example:443");
    assert_eq!(head.length, text.len());
    assert_eq!(head.version_minor, 1);
    assert!(head.proxy_authorization.is_none());
}

#[test]
fn leaves_early_data_behind_the_head() {
    let text = format!("{REQUEST_LINE}{HOST}\r\n");
    let with_early_data = [text.as_bytes(), &[0x16, 3, 1, 0, 0, b'\n', b'\n']].concat();
    assert_eq!(complete(&with_early_data).length, text.len());
}

#[test]
fn allows_what_clients_vary() {
    for text in [
        "CONNECT hub.example:443 HTTP/1.0\r\n\r\n",
        "CONNECT HUB.Example:443 HTTP/1.1\r\nHost: hub.EXAMPLE\r\n\r\n",
        "CONNECT hub.example.:443 HTTP/1.1\r\nHost: hub.example:443\r\n\r\n",
        "CONNECT hub.example:443 HTTP/1.1\r\nhOST:hub.example. \r\n\r\n",
        "CONNECT hub.example:443 HTTP/1.1\r\nX-Empty:\r\nX-Latin: \u{fc}\r\n\r\n",
        "CONNECT hub.example:00443 HTTP/1.1\r\n\r\n",
    ] {
        assert_eq!(complete(text.as_bytes()).authority, authority("hub.example", 443), "{text:?}");
    }
    assert_eq!(complete(b"CONNECT hub.example:443 HTTP/1.0\r\n\r\n").version_minor, 0);
}

#[test]
fn refuses_a_bad_request_line_before_the_fields_come() {
    for (line, status, reason) in [
        ("CONNECT hub.example HTTP/1.1", 400, "missing_port"),
        ("CONNECT hub.example: HTTP/1.1", 400, "missing_port"),
        ("CONNECT hub.example:https HTTP/1.1", 400, "bad_port"),
        ("CONNECT hub.example:0 HTTP/1.1", 400, "bad_port"),
        ("CONNECT hub.example:+443 HTTP/1.1", 400, "bad_port"),
        ("CONNECT hub.example:-1 HTTP/1.1", 400, "bad_port"),
        ("CONNECT hub.example:65536 HTTP/1.1", 400, "bad_port"),
        ("CONNECT hub.example:99999999999999999999 HTTP/1.1", 400, "bad_port"),
        ("CONNECT user@hub.example:443 HTTP/1.1", 400, "userinfo"),
        ("CONNECT user:secret@hub.example:443 HTTP/1.1", 400, "userinfo"),
        ("CONNECT :443 HTTP/1.1", 400, "empty_host"),
        ("CONNECT .:443 HTTP/1.1", 400, "empty_host"),
        ("CONNECT hub..example:443 HTTP/1.1", 400, "invalid_host"),
        ("CONNECT hub%2eexample:443 HTTP/1.1", 400, "invalid_host"),
        ("CONNECT https://hub.example:443 HTTP/1.1", 400, "invalid_host"),
        ("CONNECT hub.example:443/ HTTP/1.1", 400, "bad_port"),
        ("CONNECT [::1] HTTP/1.1", 400, "bad_port"),
        ("CONNECT [hub.example]:443 HTTP/1.1", 400, "invalid_host"),
        ("CONNECT 10.0.0.1:443 HTTP/1.1", 403, "address_literal"),
        ("CONNECT 2130706433:443 HTTP/1.1", 403, "address_literal"),
        ("CONNECT 0x7f.1:443 HTTP/1.1", 403, "address_literal"),
        ("CONNECT [::1]:443 HTTP/1.1", 403, "address_literal"),
        ("CONNECT ::1:443 HTTP/1.1", 403, "address_literal"),
        ("CONNECT [fe80::1%25eth0]:443 HTTP/1.1", 403, "address_literal"),
        ("GET http://hub.example/ HTTP/1.1", 405, "method_not_allowed"),
        ("POST http://hub.example/ HTTP/1.1", 405, "method_not_allowed"),
        ("OPTIONS * HTTP/1.0", 405, "method_not_allowed"),
        ("connect hub.example:443 HTTP/1.1", 405, "method_not_allowed"),
        ("CONNECT hub.example:443 HTTP/2.0", 505, "unsupported_version"),
        ("CONNECT hub.example:443 HTTP/1.2", 505, "unsupported_version"),
        ("CONNECT hub.example:443  HTTP/1.1", 505, "unsupported_version"),
        ("CONNECT hub.example:443", 400, "bad_request_line"),
        ("CONNECT  hub.example:443 HTTP/1.1", 400, "bad_request_line"),
        ("CONNECT hub.example:443 HTTP/1.1 ", 400, "bad_request_line"),
        ("CONNECT\thub.example:443\tHTTP/1.1", 400, "bad_request_line"),
        ("SSH-2.0-OpenSSH_9.6", 400, "bad_request_line"),
    ] {
        let error = rejected(format!("{line}\r\n").as_bytes());
        assert_eq!((error.status(), error.reason()), (Some(status), reason), "{line:?}");
    }
}

#[test]
fn tells_what_is_not_http_by_its_first_bytes() {
    for (start, status, reason) in [
        (&[0x16u8][..], None, "tls_on_plain_port"),
        (b"\x16\x03\x01\x02\x00\x01\x00", None, "tls_on_plain_port"),
        (b"PRI * HTTP/2.0\r\n", None, "http2_preface"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None, "http2_preface"),
        (b"\x80", Some(400), "not_http"),
        (b"\0", Some(400), "not_http"),
        (b" ", Some(400), "not_http"),
        (b"\r\nCONNECT hub.example:443 HTTP/1.1\r\n\r\n", Some(400), "not_http"),
        (b"\nCONNECT hub.example:443 HTTP/1.1\r\n\r\n", Some(400), "not_http"),
    ] {
        let error = rejected(start);
        assert_eq!((error.status(), error.reason()), (status, reason), "{start:?}");
    }
}

#[test]
fn refuses_bad_fields() {
    for (fields, status, reason) in [
        ("Host: other.example:443\r\n", 400, "host_mismatch"),
        ("Host: other.example\r\n", 400, "host_mismatch"),
        ("Host: hub.example:80\r\n", 400, "host_mismatch"),
        ("Host: hub.example:\r\n", 400, "host_mismatch"),
        ("Host: 10.0.0.1:443\r\n", 400, "host_mismatch"),
        ("Host:\r\n", 400, "host_mismatch"),
        ("Host: hub.example\r\nHost: hub.example\r\n", 400, "duplicate_host"),
        ("Host: hub.example\r\nhost: other.example\r\n", 400, "duplicate_host"),
        ("Content-Length: 0\r\n", 400, "body_announced"),
        ("content-length: 5\r\n", 400, "body_announced"),
        ("Transfer-Encoding: chunked\r\n", 400, "body_announced"),
        ("X: a\r\n b\r\n", 400, "folded_line"),
        ("X: a\r\n\tb\r\n", 400, "folded_line"),
        (" X: a\r\n", 400, "folded_line"),
        ("X: a\n", 400, "bare_line_feed"),
        ("X: a\r\n\n", 400, "bare_line_feed"),
        ("X: a\rb\r\n", 400, "bare_carriage_return"),
        ("X: a\r\r\n", 400, "bare_carriage_return"),
        ("X: a\0b\r\n", 400, "nul_in_head"),
        ("X : a\r\n", 400, "bad_field"),
        ("X\r\n", 400, "bad_field"),
        (": a\r\n", 400, "bad_field"),
        ("X: a\x01b\r\n", 400, "bad_field"),
        ("H\u{f6}st: a\r\n", 400, "bad_field"),
    ] {
        let error = rejected(format!("{REQUEST_LINE}{fields}\r\n").as_bytes());
        assert_eq!((error.status(), error.reason()), (Some(status), reason), "{fields:?}");
    }
    let bare_line_feed = rejected(b"CONNECT hub.example:443 HTTP/1.1\nHost: hub.example\n\n");
    assert_eq!(bare_line_feed, HeadError::Fault(HeadFault::BareLineFeed));
}

#[test]
fn bounds_the_head() {
    let room = MAX_HEAD_BYTES - REQUEST_LINE.len() - "X: \r\n\r\n".len();
    let longest = format!("{REQUEST_LINE}X: {}\r\n\r\n", "a".repeat(room));
    assert_eq!(complete(longest.as_bytes()).length, MAX_HEAD_BYTES);

    let too_long = format!("{REQUEST_LINE}X: {}\r\n\r\n", "a".repeat(room + 1));
    let endless_line = "A".repeat(MAX_HEAD_BYTES + 1);
    for text in [too_long, endless_line] {
        let error = rejected(text.as_bytes());
        assert_eq!((error.status(), error.reason()), (Some(431), "head_too_long"));
    }
}

#[test]
fn bounds_the_number_of_fields() {
    let most = format!("{REQUEST_LINE}{}\r\n", "X: a\r\n".repeat(MAX_FIELDS));
    assert_eq!(complete(most.as_bytes()).length, most.len());

    let too_many = format!("{REQUEST_LINE}{}\r\n", "X: a\r\n".repeat(MAX_FIELDS + 1));
    let error = rejected(too_many.as_bytes());
    assert_eq!((error.status(), error.reason()), (Some(431), "too_many_fields"));
}

#[test]
fn takes_basic_credentials_apart() {
    // "line-3:sëcret:with colon", "line-3:", ":"
    for (value, user, password) in [
        ("Basic bGluZS0zOnPDq2NyZXQ6d2l0aCBjb2xvbg==", "line-3", "sëcret:with colon"),
        ("bASIC  bGluZS0zOnPDq2NyZXQ6d2l0aCBjb2xvbg==", "line-3", "sëcret:with colon"),
        ("Basic bGluZS0zOg==", "line-3", ""),
        ("Basic Og==", "", ""),
    ] {
        let text = format!("{REQUEST_LINE}Proxy-Authorization: {value}\r\n\r\n");
        let credentials = complete(text.as_bytes()).proxy_authorization;
        let credentials = credentials.expect("credentials were sent");
        assert_eq!((credentials.user.as_str(), credentials.password()), (user, password));
    }
}

#[test]
fn refuses_credentials_that_it_cannot_read() {
    for (value, status, reason) in [
        ("Basic", 400, "bad_proxy_authorization"),
        ("Basic !!!", 400, "bad_proxy_authorization"),
        ("Basic bGluZS0z", 400, "bad_proxy_authorization"), // no colon
        ("Basic //86", 400, "bad_proxy_authorization"),     // not UTF-8
        ("Basic AGE6Yg==", 400, "bad_proxy_authorization"), // a NUL
        ("Bearer abc", 407, "unsupported_authorization"),
        ("Negotiate YII=", 407, "unsupported_authorization"),
        ("", 407, "unsupported_authorization"),
    ] {
        let text = format!("{REQUEST_LINE}Proxy-Authorization: {value}\r\n\r\n");
        let error = rejected(text.as_bytes());
        assert_eq!((error.status(), error.reason()), (Some(status), reason), "{value:?}");
    }

    let line = "Proxy-Authorization: Basic bGluZS0zOg==\r\n";
    let twice = rejected(format!("{REQUEST_LINE}{line}{line}\r\n").as_bytes());
    assert_eq!(twice, HeadError::DuplicateProxyAuthorization);
    assert_eq!(twice.status(), Some(400));
}

#[test]
fn never_shows_a_password() {
    let credentials = Credentials::new("line-3", Zeroizing::new("hunter2".to_owned()));
    let text = format!("{REQUEST_LINE}Proxy-Authorization: {}\r\n\r\n", credentials.to_basic().as_str());
    let mut reader = ConnectHeadReader::new();
    let progress = reader.handle_bytes(text.as_bytes());
    for shown in [format!("{credentials:?}"), format!("{progress:?}"), format!("{reader:?}")] {
        assert!(shown.contains("line-3"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn answers_success_in_one_line() {
    assert_eq!(response(200, "ignored"), "HTTP/1.1 200 Connection established\r\n\r\n");
}

#[test]
fn answers_a_refusal_with_its_reason_and_closes() {
    assert_eq!(
        response(403, "not_in_catalogue"),
        "HTTP/1.1 403 Forbidden\r\n\
         Connection: close\r\n\
         Proxy-Status: skyway; error=http_request_denied; details=\"not_in_catalogue\"\r\n\
         Content-Type: text/plain\r\n\
         Content-Length: 17\r\n\
         \r\n\
         not_in_catalogue\n"
    );
    let challenge = response(407, "no_credentials");
    assert!(challenge.contains("\r\nProxy-Authenticate: Basic realm=\"skyway\"\r\n"));
    assert!(response(405, "method_not_allowed").contains("\r\nAllow: CONNECT\r\n"));
    for status in [400, 408, 431, 502, 503, 504, 505, 599] {
        let text = response(status, "word");
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
        assert!(text.ends_with("\r\n\r\nword\n"), "{text}");
    }
}

#[test]
fn no_reason_breaks_out_of_its_field() {
    let text = response(403, "a\"\r\nInjected: \\yes\r\n\r\n\u{fc}");
    let head = complete_response(text.as_bytes());
    assert_eq!(head.reason_header.as_deref(), Some("aInjected: yes"));
    assert_eq!(text.len() - head.length, "aInjected: yes\n".len());
}

#[test]
fn asks_a_parent() {
    let hub = authority("hub.example", 443);
    assert_eq!(connect_request(&hub.to_string(), &[]).as_str(), "CONNECT hub.example:443 HTTP/1.1\r\nHost: hub.example:443\r\n\r\n");
    let credentials = Credentials::new("line-3", Zeroizing::new(String::new()));
    let basic = credentials.to_basic();
    let extra = [("Proxy-Authorization", basic.as_str()), ("X", "a\r\nInjected: b")];
    assert_eq!(
        connect_request(&hub.to_string(), &extra).as_str(),
        "CONNECT hub.example:443 HTTP/1.1\r\n\
         Host: hub.example:443\r\n\
         Proxy-Authorization: Basic bGluZS0zOg==\r\n\
         X: aInjected: b\r\n\
         \r\n"
    );
}

#[test]
fn reads_what_parents_answer() {
    for (text, status, reason) in [
        ("HTTP/1.1 200 Connection established\r\n\r\n", 200, None),
        ("HTTP/1.0 200 OK\r\nVia: 1.0 squid\r\n\r\n", 200, None),
        ("HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n", 200, None),
        ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 204, None),
        ("HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\n\r\n", 302, None),
        ("HTTP/1.1 407 \u{fc}\r\nProxy-Status: other; details=\"x\"\r\n\r\n", 407, None),
        ("HTTP/1.1 502 Bad Gateway\r\nProxy-Status: skyway\r\n\r\n", 502, None),
        ("HTTP/1.1 403 Forbidden\r\nproxy-status: skyway; details=\"refused\"\r\n\r\n", 403, Some("refused")),
    ] {
        let with_content = format!("{text}\n\nfirst bytes");
        let head = complete_response(with_content.as_bytes());
        assert_eq!((head.status, head.reason_header.as_deref()), (status, reason), "{text:?}");
        assert_eq!(head.length, text.len(), "{text:?}");
    }
}

#[test]
fn gives_the_reason_that_a_skyway_gave() {
    let text = response(403, "not_in_catalogue");
    let head = complete_response(text.as_bytes());
    assert_eq!(head.status, 403);
    assert_eq!(head.reason_header.as_deref(), Some("not_in_catalogue"));
}

#[test]
fn refuses_what_is_no_answer() {
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(MAX_HEAD_BYTES));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: a\r\n".repeat(MAX_FIELDS + 1));
    for (text, reason) in [
        ("SSH-2.0-OpenSSH_9.6\r\n", "not_http"),
        ("HTTPS", "not_http"),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", "not_http"),
        ("\x15\x03\x01\0\x02\x02\x28", "not_http"),
        ("HTTP/2.0 200 OK\r\n", "bad_status_line"),
        ("HTTP/1.1 20 OK\r\n", "bad_status_line"),
        ("HTTP/1.1 2000 OK\r\n", "bad_status_line"),
        ("HTTP/1.1  200 OK\r\n", "bad_status_line"),
        ("HTTP/1.1 200 OK\n\n", "bare_line_feed"),
        ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", "folded_line"),
        ("HTTP/1.1 200 OK\r\nX\r\n\r\n", "bad_field"),
        (endless.as_str(), "head_too_long"),
        (many.as_str(), "too_many_fields"),
    ] {
        assert_eq!(rejected_response(text.as_bytes()).reason(), reason, "{text:?}");
    }
}

#[test]
fn needs_more_until_the_blank_line() {
    let request = format!("{REQUEST_LINE}{HOST}\r\n");
    assert!(matches!(read(&request.as_bytes()[..request.len() - 1]), HeadProgress::NeedMore));
    assert!(matches!(read(b""), HeadProgress::NeedMore));
    let response = response(200, "");
    let progress = read_response(&response.as_bytes()[..response.len() - 1]);
    assert_eq!(progress, HeadProgress::NeedMore);
    assert_eq!(read_response(b""), HeadProgress::NeedMore);
}

#[test]
fn stands_by_its_answer() {
    let request = format!("{REQUEST_LINE}{HOST}\r\n");
    let mut reader = ConnectHeadReader::new();
    let first = parts(reader.handle_bytes(request.as_bytes()));
    let more = format!("{request}GET / HTTP/1.1\r\n\r\n");
    assert_eq!(parts(reader.handle_bytes(more.as_bytes())), first);

    let mut reader = ResponseHeadReader::new();
    let first = reader.handle_bytes(b"HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(reader.handle_bytes(b"HTTP/1.1 200 OK\r\n\r\n\n"), first);
}

proptest! {
    #[test]
    fn a_request_in_pieces_reads_as_the_whole(
        stream in strange_heads(),
        ends in prop::collection::vec(any::<Index>(), 0..20),
    ) {
        let at_once = parts(read_in_pieces(&stream, iter::empty()));
        let ends = ascending(&ends, stream.len());
        prop_assert_eq!(&parts(read_in_pieces(&stream, ends)), &at_once);
        prop_assert_eq!(parts(read_in_pieces(&stream, 0..stream.len())), at_once);
    }

    #[test]
    fn a_response_in_pieces_reads_as_the_whole(
        stream in strange_heads(),
        ends in prop::collection::vec(any::<Index>(), 0..20),
    ) {
        let at_once = read_response_in_pieces(&stream, iter::empty());
        let ends = ascending(&ends, stream.len());
        prop_assert_eq!(&read_response_in_pieces(&stream, ends), &at_once);
        prop_assert_eq!(read_response_in_pieces(&stream, 0..stream.len()), at_once);
    }

    #[test]
    fn what_we_ask_is_what_a_skyway_reads(
        host in "[a-z][a-z0-9-]{0,20}(\\.[a-z][a-z0-9-]{0,20}){0,4}",
        port in 1..=u16::MAX,
        user in "[a-z0-9-]{1,20}",
        password in "[ -~]{0,40}",
    ) {
        let asked = authority(&host, port);
        let basic = Credentials::new(user.as_str(), Zeroizing::new(password.clone())).to_basic();
        let text = connect_request(&asked.to_string(), &[("Proxy-Authorization", basic.as_str())]);
        let head = complete(text.as_bytes());
        prop_assert_eq!(head.authority, asked);
        let credentials = head.proxy_authorization.expect("credentials were sent");
        prop_assert_eq!(credentials.user.as_str(), user.as_str());
        prop_assert_eq!(credentials.password(), password.as_str());
    }
}

/// Noise, and heads put together from pieces that mostly do not belong together.
fn strange_heads() -> impl Strategy<Value = Vec<u8>> {
    let noise = || prop::collection::vec(any::<u8>(), 0..8);
    let piece = prop_oneof![
        8 => prop::sample::select(PIECES).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => noise(),
    ];
    let start = prop_oneof![
        3 => Just(REQUEST_LINE.as_bytes().to_vec()),
        3 => Just(b"HTTP/1.1 200 OK\r\n".to_vec()),
        1 => noise(),
    ];
    let rest = prop::collection::vec(piece, 0..12);
    (start, rest).prop_map(|(start, rest)| [start, rest.concat()].concat())
}

const PIECES: &[&str] = &[
    "CONNECT ",
    "hub.example:443",
    " HTTP/1.1",
    "HTTP/1.1 200 OK",
    "\r\n",
    "\r\n\r\n",
    "\r",
    "\n",
    "\0",
    " ",
    ": ",
    HOST,
    "X: a\r\n",
    "Content-Length: 0\r\n",
    "Proxy-Authorization: Basic bGluZS0zOg==\r\n",
    "Proxy-Status: skyway; error=x; details=\"y\"\r\n",
];

fn ascending(indices: &[Index], length: usize) -> Vec<usize> {
    let ends = indices.iter().map(|index| index.index(length + 1));
    let mut ends: Vec<usize> = ends.collect();
    ends.sort_unstable();
    ends
}

fn authority(host: &str, port: u16) -> Authority {
    let host = HostName::parse(host).expect("a valid host name");
    Authority { host, port }
}

fn complete(stream: &[u8]) -> ConnectHead {
    match read(stream) {
        HeadProgress::Complete(head) => head,
        other @ (HeadProgress::NeedMore | HeadProgress::Rejected(_)) => {
            panic!("no head: {other:?}")
        }
    }
}

fn rejected(stream: &[u8]) -> HeadError {
    match read(stream) {
        HeadProgress::Rejected(error) => error,
        other @ (HeadProgress::NeedMore | HeadProgress::Complete(_)) => {
            panic!("not rejected: {other:?}")
        }
    }
}

fn complete_response(stream: &[u8]) -> ResponseHead {
    match read_response(stream) {
        HeadProgress::Complete(head) => head,
        other @ (HeadProgress::NeedMore | HeadProgress::Rejected(_)) => {
            panic!("no head: {other:?}")
        }
    }
}

fn rejected_response(stream: &[u8]) -> ResponseHeadError {
    match read_response(stream) {
        HeadProgress::Rejected(error) => error,
        other @ (HeadProgress::NeedMore | HeadProgress::Complete(_)) => {
            panic!("not rejected: {other:?}")
        }
    }
}

/// Reads a request in the three deliveries, which must agree.
fn read(stream: &[u8]) -> HeadProgress<ConnectHead, HeadError> {
    let at_once = read_in_pieces(stream, iter::empty());
    let byte_by_byte = read_in_pieces(stream, 0..stream.len());
    let in_segments = read_in_pieces(stream, (0..stream.len()).step_by(100));
    let expected = parts(at_once.clone());
    assert_eq!(parts(byte_by_byte), expected, "byte by byte");
    assert_eq!(parts(in_segments), expected, "in segments of 100 bytes");
    at_once
}

/// Reads a response in the three deliveries, which must agree.
fn read_response(stream: &[u8]) -> HeadProgress<ResponseHead, ResponseHeadError> {
    let at_once = read_response_in_pieces(stream, iter::empty());
    let byte_by_byte = read_response_in_pieces(stream, 0..stream.len());
    let in_segments = read_response_in_pieces(stream, (0..stream.len()).step_by(100));
    assert_eq!(byte_by_byte, at_once, "byte by byte");
    assert_eq!(in_segments, at_once, "in segments of 100 bytes");
    at_once
}

fn read_in_pieces(stream: &[u8], ends: impl IntoIterator<Item = usize>) -> HeadProgress<ConnectHead, HeadError> {
    let mut reader = ConnectHeadReader::new();
    in_pieces(stream, ends, |received| reader.handle_bytes(received))
}

fn read_response_in_pieces(stream: &[u8], ends: impl IntoIterator<Item = usize>) -> HeadProgress<ResponseHead, ResponseHeadError> {
    let mut reader = ResponseHeadReader::new();
    in_pieces(stream, ends, |received| reader.handle_bytes(received))
}

fn in_pieces<Head, Error>(
    stream: &[u8],
    ends: impl IntoIterator<Item = usize>,
    mut handle_bytes: impl FnMut(&[u8]) -> HeadProgress<Head, Error>,
) -> HeadProgress<Head, Error> {
    let mut ends = ends.into_iter().chain([stream.len()]);
    ends.find_map(|end| match handle_bytes(&stream[..end]) {
        HeadProgress::NeedMore => None,
        decided @ (HeadProgress::Complete(_) | HeadProgress::Rejected(_)) => Some(decided),
    })
    .unwrap_or(HeadProgress::NeedMore)
}

/// Everything that a reader of requests says, with the password, in a form that can be compared.
fn parts(progress: HeadProgress<ConnectHead, HeadError>) -> HeadProgress<Parts, HeadError> {
    match progress {
        HeadProgress::NeedMore => HeadProgress::NeedMore,
        HeadProgress::Rejected(error) => HeadProgress::Rejected(error),
        HeadProgress::Complete(head) => HeadProgress::Complete(Parts {
            credentials: head.proxy_authorization.map(|credentials| (credentials.user.clone(), credentials.password().to_owned())),
            authority: head.authority,
            length: head.length,
            version_minor: head.version_minor,
        }),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Parts {
    authority: Authority,
    length: usize,
    credentials: Option<(String, String)>,
    version_minor: u8,
}
