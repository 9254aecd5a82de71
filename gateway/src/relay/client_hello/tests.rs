//! The acceptance table: hellos, whole and broken, that other relays were caught out by, each with
//! its number. Every stream is read at once, byte by byte and in 100-byte segments, and must give
//! the same answer each time.
//!
//! The rows are those of docs/client-hello.md. A row that says "reject" of a name (15, 17) is the policy's to
//! reject; the reader's part is to see the right one.

use std::iter;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const NAME: &str = "hub.azure-devices.net";
const OTHER: &str = "evil.example";

/// Rows 1, 6, 26, 27.
#[test]
fn routes_a_hello_in_one_record() {
    for (row, hello) in [
        ("1: plain", Hello::for_name(NAME)),
        ("6: 2.2 KB, name last", Hello::for_name(NAME).padded_in_front(2_100)),
        ("26: 14 KB", Hello::for_name(NAME).padded_in_front(14_000)),
        ("27: 15.9 KB", Hello::for_name(NAME).padded_in_front(15_750)),
    ] {
        let read = complete(&hello.stream());
        assert_eq!(read.server_name, host(NAME), "{row}");
        assert_eq!(read.raw_length, hello.stream().len(), "{row}");
        assert!(!read.encrypted_client_hello && !read.trailing_dot, "{row}");
    }
}

/// Rows 2, 3, 4, 7.
#[test]
fn routes_a_hello_cut_into_two_records() {
    let hello = Hello::for_name(NAME);
    let name_at = hello.name_offset(NAME);
    let extension_at = name_at - 9;
    for (row, hello) in [
        ("2: before the extension", hello.clone().cut_at(&[extension_at])),
        ("3: inside the extension", hello.clone().cut_at(&[extension_at + 3])),
        ("3: inside the name", hello.clone().cut_at(&[name_at + 4])),
        ("4: after the name", Hello { cuts: vec![name_at + NAME.len()], ..hello.clone() }.followed_by_an_extension()),
        ("7: at 1,400", hello.padded_in_front(2_100).cut_at(&[1_400])),
    ] {
        let read = complete(&hello.stream());
        assert_eq!(read.server_name, host(NAME), "{row}");
        assert_eq!(read.raw_length, hello.message().len() + 2 * RECORD_HEADER_BYTES, "{row}");
    }
}

/// Row 5.
#[test]
fn rejects_a_hello_in_one_byte_records() {
    let hello = Hello::for_name(NAME);
    let every_byte: Vec<usize> = (1..hello.message().len()).collect();
    assert!(every_byte.len() > 64);
    assert_eq!(rejected(&hello.cut_at(&every_byte).stream()), HelloError::TooManyRecords);
}

#[test]
fn counts_records_up_to_the_limit() {
    let hello = Hello::for_name(NAME);
    let cuts: Vec<usize> = (1..=64).collect();
    let in_64_records = hello.clone().cut_at(&cuts[..63]);
    assert_eq!(complete(&in_64_records.stream()).server_name, host(NAME));
    let in_65_records = hello.cut_at(&cuts);
    assert_eq!(rejected(&in_65_records.stream()), HelloError::TooManyRecords);
}

/// Rows 8 and 9: what to do then is the listener's to say, with or without a default route.
#[test]
fn tells_a_missing_name_from_an_address() {
    let nameless = Hello { server_names: vec![], ..Hello::for_name(NAME) };
    assert_eq!(complete(&nameless.stream()).server_name, ServerName::Absent);
    for address in ["10.0.0.1", "2130706433", "::1", "[2001:db8::1]"] {
        let read = complete(&Hello::for_name(address).stream());
        assert_eq!(read.server_name, ServerName::AddressLiteral, "{address}");
    }
}

/// Row 10.
#[test]
fn folds_upper_case() {
    let read = complete(&Hello::for_name("HUB.Azure-Devices.NET").stream());
    assert_eq!(read.server_name, host(NAME));
}

/// Row 11.
#[test]
fn drops_a_trailing_dot_and_says_so() {
    let read = complete(&Hello::for_name("hub.azure-devices.net.").stream());
    assert_eq!(read.server_name, host(NAME));
    assert!(read.trailing_dot);
}

/// Row 12.
#[test]
fn rejects_a_nul_in_the_name() {
    for name in ["hub.azure-devices.net\0.evil.example", "\0", "hub.azure-devices.net\0"] {
        assert_eq!(rejected(&Hello::for_name(name).stream()), HelloError::NulInName, "{name:?}");
    }
}

/// Row 13.
#[test]
fn rejects_two_server_name_extensions() {
    for second in [NAME, OTHER] {
        let hello = Hello { server_names: vec![vec![NAME.into()], vec![second.into()]], ..Hello::for_name(NAME) };
        assert_eq!(rejected(&hello.stream()), HelloError::DuplicateServerNameExtension);
    }
}

/// Row 14.
#[test]
fn rejects_two_host_names() {
    for second in [NAME, OTHER] {
        let hello = Hello { server_names: vec![vec![NAME.into(), second.into()]], ..Hello::for_name(NAME) };
        assert_eq!(rejected(&hello.stream()), HelloError::SeveralHostNames);
    }
}

/// Row 15.
#[test]
fn gives_another_name_as_it_is() {
    assert_eq!(complete(&Hello::for_name(OTHER).stream()).server_name, host(OTHER));
}

/// Row 16.
#[test]
fn routes_a_hello_without_signature_algorithms() {
    let hello = Hello { signature_algorithms: false, ..Hello::for_name(NAME) };
    assert_eq!(complete(&hello.stream()).server_name, host(NAME));
}

/// Row 17.
#[test]
fn sees_the_name_that_tls_sees_when_a_record_header_hides_it() {
    let hello = Hello::with_decoy(NAME, OTHER);
    let stream = hello.stream();

    // A reader that takes the second record's header for content is shown the allowed name…
    let across_the_header = &stream[RECORD_HEADER_BYTES..][..hello.message().len()];
    let misread = complete(&records(across_the_header, &[], 0x0301));
    assert_eq!(misread.server_name, host(NAME));

    // …and we are not.
    assert_eq!(complete(&stream).server_name, host(OTHER));
}

/// Row 18.
#[test]
fn rejects_a_16_mb_hello_at_its_header() {
    let stream = [22, 3, 1, 0x40, 0, CLIENT_HELLO, 0xff, 0xff, 0xff, 3, 3, 0, 0];
    assert_eq!(rejected(&stream), HelloError::HelloTooLong);
    assert_eq!(bytes_until_decision(&stream), Some(9));
}

/// Row 19.
#[test]
fn rejects_zero_length_records() {
    let hello = Hello::for_name(NAME).cut_at(&[50]).stream();
    let (first_record, second_record) = hello.split_at(RECORD_HEADER_BYTES + 50);
    let empty: &[u8] = &[22, 3, 1, 0, 0];
    for (place, stream) in
        [("in front", [empty, first_record, second_record].concat()), ("in between", [first_record, empty, second_record].concat())]
    {
        assert_eq!(rejected(&stream), HelloError::ZeroLengthRecord, "{place}");
    }
}

/// Rows 20, 21, 22: with the number of bytes that must be enough to tell.
#[test]
fn tells_other_protocols_by_their_first_bytes() {
    let sslv2: &[u8] = &[0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10];
    for (stream, reason, enough) in [
        (&[21u8, 3, 1, 0, 2, 2, 40][..], "tls_alert_first", 1),
        (sslv2, "sslv2", 3),
        (b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "plain_http", 3),
        (b"POST / HTTP/1.1\r\n\r\n", "plain_http", 4),
        (b"CONNECT a.example:443 HTTP/1.1\r\n\r\n", "plain_http", 7),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "plain_http", 3),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not_tls", 1),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", "not_tls", 3),
        (&[0x80, 0x2e, 2, 3, 1], "not_tls", 3),
        (&[0, 1, 2, 3], "not_tls", 1),
        (&[20, 3, 3, 0, 1, 1], "not_tls", 1),
        (&[23, 3, 3, 0, 1, 0], "not_tls", 1),
        (&[22, 2, 0, 0, 4], "not_tls", 2),
    ] {
        let error = rejected(stream);
        assert_eq!((error.reason(), error.alert()), (reason, None), "{stream:?}");
        assert_eq!(bytes_until_decision(stream), Some(enough), "{stream:?}");
    }
}

/// Row 23.
#[test]
fn marks_an_encrypted_client_hello_and_gives_its_outer_name() {
    let hello = Hello { encrypted_client_hello: true, ..Hello::for_name(NAME) };
    let read = complete(&hello.stream());
    assert_eq!(read.server_name, host(NAME));
    assert!(read.encrypted_client_hello);
}

/// Row 24.
#[test]
fn routes_whatever_the_minor_record_version() {
    for record_version in [0x0300, 0x0301, 0x0303, 0x0304, 0x0305, 0x03ff] {
        let hello = Hello { record_version, ..Hello::for_name(NAME) };
        let read = complete(&hello.stream());
        assert_eq!(read.server_name, host(NAME), "{record_version:#06x}");
    }
}

/// Row 25.
#[test]
fn rejects_a_64_kb_hello() {
    let stream = Hello::for_name(NAME).padded_in_front(64_700).stream();
    assert_eq!(rejected(&stream), HelloError::HelloTooLong);
    assert_eq!(bytes_until_decision(&stream), Some(9));
}

#[test]
fn takes_a_hello_of_exactly_the_limit() {
    let bare = Hello::for_name(NAME).padded_in_front(1).message().len() - 1;
    let longest = Hello::for_name(NAME).padded_in_front(32 * 1024 - bare);
    assert_eq!(longest.message().len(), 32 * 1024);
    assert_eq!(complete(&longest.stream()).server_name, host(NAME));
    let too_long = Hello::for_name(NAME).padded_in_front(32 * 1024 - bare + 1);
    assert_eq!(rejected(&too_long.stream()), HelloError::HelloTooLong);
}

#[test]
fn keeps_to_the_limits_it_is_given() {
    let limits = HelloLimits { hello_bytes: 100, records: 1 };
    let read = |stream: &[u8]| ClientHelloReader::with_limits(limits).handle_bytes(stream);
    let long = Hello::for_name(NAME).padded_in_front(100);
    assert_eq!(read(&long.stream()), Progress::Rejected(HelloError::HelloTooLong));
    let in_two_records = Hello { server_names: vec![], ..Hello::for_name(NAME) }.cut_at(&[9]);
    assert_eq!(read(&in_two_records.stream()), Progress::Rejected(HelloError::TooManyRecords));
}

#[test]
fn rejects_a_record_longer_than_tls_allows() {
    assert_eq!(rejected(&[22, 3, 1, 0x40, 1]), HelloError::RecordTooLong);
    assert_eq!(rejected(&[22, 3, 1, 0xff, 0xff, 1, 0, 0]), HelloError::RecordTooLong);
}

#[test]
fn rejects_another_record_in_the_middle_of_the_hello() {
    let hello = Hello::for_name(NAME).cut_at(&[50]).stream();
    let (first_record, second_record) = hello.split_at(RECORD_HEADER_BYTES + 50);
    for (between, error) in [
        (&[20u8, 3, 3, 0, 1, 1][..], HelloError::InterruptedHello),
        (&[23, 3, 3, 0, 1, 1], HelloError::InterruptedHello),
        (&[22, 9, 3, 0, 1, 1], HelloError::InterruptedHello),
        (b"GET / HTTP/1.1\r\n", HelloError::InterruptedHello),
        (&[21, 3, 3, 0, 2, 2, 80], HelloError::AlertFirst),
    ] {
        let stream = [first_record, between, second_record].concat();
        assert_eq!(rejected(&stream), error, "{between:?}");
    }
}

#[test]
fn rejects_other_handshake_messages_at_their_first_byte() {
    for kind in [0, 2, 11, 16, 255] {
        let stream = record(0x0303, &message(kind, &[0; 40]));
        assert_eq!(rejected(&stream), HelloError::NotAClientHello, "{kind}");
        assert_eq!(bytes_until_decision(&stream), Some(6), "{kind}");
    }
}

#[test]
fn rejects_a_message_that_shares_the_record_of_the_hello() {
    let hello = Hello::for_name(NAME).message();
    let another = Hello::for_name(OTHER).message();
    for trailer in [&[0u8][..], &another] {
        let shared = [hello.as_slice(), trailer].concat();
        assert_eq!(rejected(&record(0x0301, &shared)), HelloError::MalformedHello);
    }
}

#[test]
fn ignores_what_follows_in_later_records() {
    let hello = Hello::for_name(NAME).stream();
    for later in [&[20u8, 3, 3, 0, 1, 1][..], &[23, 3, 3, 0, 2, 9, 9], b"anything at all", &[22]] {
        let read = complete(&[hello.as_slice(), later].concat());
        assert_eq!(read.server_name, host(NAME), "{later:?}");
        assert_eq!(read.raw_length, hello.len(), "{later:?}");
    }
}

#[test]
fn needs_more_until_the_last_byte() {
    let stream = Hello::for_name(NAME).cut_at(&[20, 60]).stream();
    assert_eq!(bytes_until_decision(&stream), Some(stream.len()));
    assert_eq!(read(&stream[..stream.len() - 1]), Progress::NeedMore);
    assert_eq!(read(&[]), Progress::NeedMore);
}

#[test]
fn stands_by_its_answer() {
    let mut reader = ClientHelloReader::new();
    let stream = Hello::for_name(NAME).stream();
    let answer = reader.handle_bytes(&stream);
    assert_eq!(reader.handle_bytes(&stream), answer);
    assert_eq!(reader.handle_bytes(b"GET / HTTP/1.1\r\n\r\n"), answer);

    let mut reader = ClientHelloReader::new();
    let answer = reader.handle_bytes(b"GET");
    assert_eq!(answer, Progress::Rejected(HelloError::PlainHttp));
    assert_eq!(reader.handle_bytes(&stream), answer);
}

/// Wherever the body ends, it is malformed, but for the one place where a hello without extensions
/// would end.
#[test]
fn rejects_every_truncated_hello() {
    let whole = Hello::for_name(NAME).message();
    let body = &whole[MESSAGE_HEADER_BYTES..];
    let end_without_extensions = body.len() - Hello::for_name(NAME).extensions().len() - 2;
    for length in 0..body.len() {
        let stream = record(0x0301, &message(CLIENT_HELLO, &body[..length]));
        if length == end_without_extensions {
            assert_eq!(complete(&stream).server_name, ServerName::Absent);
        } else {
            assert_eq!(rejected(&stream), HelloError::MalformedHello, "{length}");
        }
    }
}

#[test]
fn rejects_what_the_grammar_does_not_allow() {
    let plain = || Hello::for_name(NAME);
    for (what, hello) in [
        ("a session id of 33 bytes", Hello { session_id: vec![0; 33], ..plain() }),
        ("no cipher suites", Hello { cipher_suites: vec![], ..plain() }),
        ("half a cipher suite", Hello { cipher_suites: vec![0x13, 1, 0x13], ..plain() }),
        ("no compression method", Hello { compression_methods: vec![], ..plain() }),
        ("an empty list of names", Hello { server_names: vec![vec![]], ..plain() }),
        ("an empty name", Hello::for_name("")),
    ] {
        assert_eq!(rejected(&hello.stream()), HelloError::MalformedHello, "{what}");
    }

    let mut trailing_byte = plain().message();
    trailing_byte.push(0);
    let longer_body = message(CLIENT_HELLO, &trailing_byte[MESSAGE_HEADER_BYTES..]);
    assert_eq!(rejected(&record(0x0301, &longer_body)), HelloError::MalformedHello);
}

#[test]
fn rejects_a_malformed_server_name_extension() {
    let unknown_name_type = [&[0u8, 8, 7][..], &vector16(b"a.com")].concat();
    for content in [&[0u8; 0][..], &[0], &[0, 9, 0, 0, 1, b'a'], &[0, 1, 0], &unknown_name_type] {
        let hello = Hello { server_names: vec![], other_extensions: extension(EXTENSION_SERVER_NAME, content), ..Hello::for_name(NAME) };
        assert_eq!(rejected(&hello.stream()), HelloError::MalformedHello, "{content:?}");
    }
}

#[test]
fn rejects_names_that_are_not_host_names() {
    let long_label = "a".repeat(64);
    for (name, error) in [
        ("hub example", HostNameError::InvalidCharacter(' ')),
        ("https://hub.example", HostNameError::InvalidCharacter(':')),
        ("hüb.example", HostNameError::InvalidCharacter('ü')),
        ("*.example", HostNameError::InvalidCharacter('*')),
        ("hub..example", HostNameError::EmptyLabel),
        (long_label.as_str(), HostNameError::LabelTooLong),
        (".", HostNameError::Empty),
    ] {
        let stream = Hello::for_name(name).stream();
        assert_eq!(rejected(&stream), HelloError::InvalidServerName(error), "{name:?}");
    }

    let latin1 = Hello { server_names: vec![vec![b"h\xfcb".to_vec()]], ..Hello::for_name(NAME) };
    let error = HelloError::InvalidServerName(HostNameError::InvalidCharacter('\u{fffd}'));
    assert_eq!(rejected(&latin1.stream()), error);
}

#[test]
fn writes_a_fatal_alert() {
    let unrecognized_name = alert_record(alert::UNRECOGNIZED_NAME);
    assert_eq!(unrecognized_name, [21, 3, 3, 0, 2, 2, 112]);
}

const ANY_CASE_NAME: &str = r"[a-zA-Z][a-zA-Z0-9_-]{0,20}(\.[a-zA-Z][a-zA-Z0-9_-]{0,20}){0,5}";

proptest! {
    #[test]
    fn pieces_give_the_same_answer_as_the_whole(
        stream in strange_streams(),
        ends in prop::collection::vec(any::<Index>(), 0..20),
    ) {
        let at_once = read_in_pieces(&stream, iter::empty());
        prop_assert_eq!(&read_in_pieces(&stream, offsets(&ends, stream.len())), &at_once);
        prop_assert_eq!(read_in_pieces(&stream, 1..stream.len()), at_once);
    }

    #[test]
    fn any_hello_gives_its_name_however_it_is_cut(
        name in ANY_CASE_NAME,
        padding_bytes in 0..3_000usize,
        cuts in prop::collection::vec(any::<Index>(), 0..12),
        ends in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        let hello = Hello::for_name(&name).padded_in_front(padding_bytes);
        let cuts = offsets(&cuts, hello.message().len());
        let stream = hello.cut_at(&cuts).stream();
        let Progress::Complete(read) = read_in_pieces(&stream, offsets(&ends, stream.len())) else {
            return Err(TestCaseError::fail("not complete"));
        };
        prop_assert_eq!(read.server_name, host(&name));
        prop_assert_eq!(read.raw_length, stream.len());
    }
}

/// Noise, noise behind a record header, and hellos with a few bytes changed.
fn strange_streams() -> impl Strategy<Value = Vec<u8>> {
    let noise = || prop::collection::vec(any::<u8>(), 0..200);
    let changes = prop::collection::vec((any::<Index>(), any::<u8>()), 0..4);
    let cuts = prop::collection::vec(any::<Index>(), 0..4);
    let changed_hello = (changes, cuts).prop_map(|(changes, cuts)| {
        let hello = Hello::for_name(NAME);
        let cuts = offsets(&cuts, hello.message().len());
        let mut stream = hello.cut_at(&cuts).stream();
        for (at, byte) in changes {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        stream
    });
    prop_oneof![
        noise(),
        noise().prop_map(|noise| record(0x0301, &message(CLIENT_HELLO, &noise))),
        noise().prop_map(|noise| [&[22u8, 3, 1, 0, 90, 1, 0][..], &noise].concat()),
        changed_hello,
    ]
}

/// Ascending offsets strictly inside something of `length` bytes.
fn offsets(indices: &[Index], length: usize) -> Vec<usize> {
    let mut offsets: Vec<usize> = match length {
        0 | 1 => Vec::new(),
        _ => indices.iter().map(|index| 1 + index.index(length - 1)).collect(),
    };
    offsets.sort_unstable();
    offsets.dedup();
    offsets
}

fn host(name: &str) -> ServerName {
    ServerName::Host(HostName::parse(name).expect("a valid host name"))
}

fn complete(stream: &[u8]) -> ClientHello {
    match read(stream) {
        Progress::Complete(hello) => hello,
        other @ (Progress::NeedMore | Progress::Rejected(_)) => panic!("no hello: {other:?}"),
    }
}

fn rejected(stream: &[u8]) -> HelloError {
    match read(stream) {
        Progress::Rejected(error) => error,
        other @ (Progress::NeedMore | Progress::Complete(_)) => panic!("not rejected: {other:?}"),
    }
}

/// Reads a stream in the three deliveries, which must agree.
fn read(stream: &[u8]) -> Progress {
    let at_once = read_in_pieces(stream, iter::empty());
    let byte_by_byte = read_in_pieces(stream, 1..stream.len());
    let in_segments = read_in_pieces(stream, (100..stream.len()).step_by(100));
    assert_eq!(byte_by_byte, at_once, "byte by byte");
    assert_eq!(in_segments, at_once, "in segments of 100 bytes");
    at_once
}

fn read_in_pieces(stream: &[u8], ends: impl IntoIterator<Item = usize>) -> Progress {
    let mut reader = ClientHelloReader::new();
    let mut ends = ends.into_iter().chain([stream.len()]);
    ends.find_map(|end| match reader.handle_bytes(&stream[..end]) {
        Progress::NeedMore => None,
        decided @ (Progress::Complete(_) | Progress::Rejected(_)) => Some(decided),
    })
    .unwrap_or(Progress::NeedMore)
}

fn bytes_until_decision(stream: &[u8]) -> Option<usize> {
    let mut reader = ClientHelloReader::new();
    (0..=stream.len()).find(|end| reader.handle_bytes(&stream[..*end]) != Progress::NeedMore)
}

/// A ClientHello to be built; the fields are what the rows of the table vary.
#[derive(Clone)]
struct Hello {
    session_id: Vec<u8>,
    cipher_suites: Vec<u8>,
    compression_methods: Vec<u8>,
    /// Bytes of a padding extension in front of all others; none if zero.
    padding_bytes: usize,
    /// For each server_name extension, its names.
    server_names: Vec<Vec<Vec<u8>>>,
    signature_algorithms: bool,
    encrypted_client_hello: bool,
    /// More extensions, encoded.
    other_extensions: Vec<u8>,
    /// A padding extension behind all others.
    trailing: bool,
    record_version: u16,
    /// Where in the message a new record begins.
    cuts: Vec<usize>,
}

impl Hello {
    fn for_name(name: &str) -> Self {
        Self {
            session_id: vec![7; 32],
            cipher_suites: vec![0x13, 0x01, 0x13, 0x02, 0xc0, 0x2f],
            compression_methods: vec![0],
            padding_bytes: 0,
            server_names: vec![vec![name.into()]],
            signature_algorithms: true,
            encrypted_client_hello: false,
            other_extensions: vec![],
            trailing: false,
            record_version: 0x0301,
            cuts: vec![],
        }
    }

    /// A hello for `real` that seems to be for `decoy` if one reads on over the second record's
    /// header.
    ///
    /// That header lies inside the session id and so pushes the end of it, as misread, five bytes
    /// forward. There a short list of cipher suites begins, and in the real cipher suites lies what
    /// seems to come next: compression methods, the decoy's extension, and one that swallows the
    /// rest of the message.
    fn with_decoy(decoy: &str, real: &str) -> Self {
        let mut hello = Self::for_name(real);
        hello.session_id = [&[7u8; 27][..], &[0, 6], &[7; 3]].concat();
        hello.cuts = vec![50];

        let decoy = server_name(&[decoy.into()]);
        let evenness = (1 + decoy.len()) % 2;
        let real_compression_and_extensions = 2 + 2 + hello.extensions().len();
        let swallowed = evenness + real_compression_and_extensions - RECORD_HEADER_BYTES;
        let seeming_extensions = decoy.len() + 4 + swallowed;
        hello.cipher_suites = [
            &[0u8][..], // the last byte of the seeming cipher suites
            &[1, 0],    // the seeming compression methods
            &length16(seeming_extensions),
            &decoy,
            &[0, 21],
            &length16(swallowed),
            &[0][..evenness],
        ]
        .concat();
        hello
    }

    fn followed_by_an_extension(mut self) -> Self {
        self.trailing = true;
        self
    }

    fn padded_in_front(mut self, bytes: usize) -> Self {
        self.padding_bytes = bytes;
        self
    }

    fn cut_at(mut self, cuts: &[usize]) -> Self {
        self.cuts = cuts.to_vec();
        self
    }

    /// Where in the message the first byte of the name stands.
    fn name_offset(&self, name: &str) -> usize {
        let message = self.message();
        let mut windows = message.windows(name.len());
        windows.position(|window| window == name.as_bytes()).expect("the name is in the hello")
    }

    fn stream(&self) -> Vec<u8> {
        records(&self.message(), &self.cuts, self.record_version)
    }

    fn message(&self) -> Vec<u8> {
        let body = [
            &[3u8, 3][..],
            &[9; 32],
            &vector8(&self.session_id),
            &vector16(&self.cipher_suites),
            &vector8(&self.compression_methods),
            &vector16(&self.extensions()),
        ]
        .concat();
        message(CLIENT_HELLO, &body)
    }

    fn extensions(&self) -> Vec<u8> {
        let mut extensions = Vec::new();
        if self.padding_bytes > 0 {
            extensions.extend(extension(21, &vec![0; self.padding_bytes]));
        }
        if self.signature_algorithms {
            extensions.extend(extension(13, &[0, 2, 4, 3]));
        }
        if self.encrypted_client_hello {
            extensions.extend(extension(EXTENSION_ENCRYPTED_CLIENT_HELLO, &[5; 64]));
        }
        extensions.extend(&self.other_extensions);
        for names in &self.server_names {
            extensions.extend(server_name(names));
        }
        if self.trailing {
            extensions.extend(extension(21, &[0; 16]));
        }
        extensions
    }
}

/// Cuts a message into records where `cuts` say, and where the longest record would end.
fn records(message: &[u8], cuts: &[usize], version: u16) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut start = 0;
    for &end in cuts.iter().chain(&[message.len()]) {
        for fragment in message[start..end].chunks(MAX_RECORD_BYTES) {
            stream.extend(record(version, fragment));
        }
        start = end;
    }
    stream
}

fn record(version: u16, fragment: &[u8]) -> Vec<u8> {
    [&[22u8][..], &version.to_be_bytes(), &vector16(fragment)].concat()
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(body.len()).expect("short enough").to_be_bytes();
    [&[kind][..], &length, body].concat()
}

fn server_name(names: &[Vec<u8>]) -> Vec<u8> {
    let entries = names.iter().map(|name| [&[0u8][..], &vector16(name)].concat());
    let list: Vec<u8> = entries.flatten().collect();
    extension(EXTENSION_SERVER_NAME, &vector16(&list))
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector16(content)].concat()
}

fn vector8(content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).expect("short enough");
    [&[length][..], content].concat()
}

fn vector16(content: &[u8]) -> Vec<u8> {
    [&length16(content.len())[..], content].concat()
}

fn length16(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("short enough").to_be_bytes()
}
