//! The acceptance table of ClientHellos (docs/client-hello.md) against the running relay: what it routes must arrive
//! unaltered, and of what it rejects not a byte, nor even a connection, may arrive.

use tests::direct::{DirectRelay, NAME};
use tests::hello::{Hello, RECORD_HEADER_BYTES, alert, record};
use tests::sensor::{Then, converse, dial};
use tests::sink::ANSWER;

/// Not in the catalogue.
const OTHER: &str = "evil.example";

const UNEXPECTED_MESSAGE: u8 = 10;
const ILLEGAL_PARAMETER: u8 = 47;
const DECODE_ERROR: u8 = 50;
const UNRECOGNIZED_NAME: u8 = 112;

/// Sends `stream` in three deliveries: at once, in segments of 100 bytes and, if it is short, byte by byte.
fn deliveries(stream: &[u8]) -> impl Iterator<Item = usize> {
    [usize::MAX, 100, 1].into_iter().filter({
        let short = stream.len() <= 1000;
        move |piece| short || *piece > 1
    })
}

#[track_caller]
fn assert_routed(relay: &DirectRelay, row: &str, stream: &[u8]) {
    for piece in deliveries(stream) {
        let before = relay.sink.received().len();
        let (answer, line) = relay.gateway.session(|| converse(&mut dial(relay.sni), stream, piece, Then::Finish));
        assert_eq!(answer, ANSWER, "{row}, in pieces of {piece}: {line:?}");
        let arrived = relay.sink.received();
        assert_eq!(arrived.len(), before + 1, "{row}");
        assert!(arrived.last().is_some_and(|bytes| bytes == stream), "{row}: it was altered on the way");
        assert_eq!((line.field("host"), line.field("reason")), (NAME, "closed"), "{row}");
        assert_eq!(line.number("bytes_up"), stream.len() as u64, "{row}");
        assert_eq!(line.number("bytes_down"), ANSWER.len() as u64, "{row}");
    }
}

/// `description`: of the alert that the client is told; None where it would understand none.
#[track_caller]
fn assert_rejected(relay: &DirectRelay, row: &str, stream: &[u8], reason: &str, description: Option<u8>) {
    for piece in deliveries(stream) {
        let before = relay.sink.accepted();
        let (answer, line) = relay.gateway.session(|| converse(&mut dial(relay.sni), stream, piece, Then::Hold));
        let expected = description.map_or(vec![], |description| alert(description).to_vec());
        assert_eq!(answer, expected, "{row}, in pieces of {piece}: {line:?}");
        assert_eq!(line.field("reason"), reason, "{row}");
        assert_eq!(relay.sink.accepted(), before, "{row}: the server was reached");
    }
}

#[test]
fn rows_1_to_7_records_are_put_together() {
    let relay = DirectRelay::start();
    let hello = Hello::for_name(NAME);
    let name_at = hello.offset_of(NAME);
    assert_routed(&relay, "1: plain", &hello.stream());
    assert_routed(&relay, "2: cut before the extension", &hello.clone().cut_at(&[name_at - 9]).stream());
    assert_routed(&relay, "3: cut inside the extension", &hello.clone().cut_at(&[name_at - 6]).stream());
    assert_routed(&relay, "3: cut inside the name", &hello.clone().cut_at(&[name_at + 4]).stream());
    assert_routed(&relay, "4: cut after the name", &hello.clone().cut_at(&[name_at + NAME.len()]).stream());
    let every_byte: Vec<usize> = (1..hello.message().len()).collect();
    assert_rejected(&relay, "5: records of one byte", &hello.clone().cut_at(&every_byte).stream(), "too_many_records", Some(DECODE_ERROR));
    let large = hello.padded(2_100);
    assert_routed(&relay, "6: 2.2 KB, the name last", &large.stream());
    assert_routed(&relay, "7: cut at 1,400", &large.cut_at(&[1_400]).stream());
}

#[test]
fn rows_8_to_15_only_one_listed_name_is_let_through() {
    let relay = DirectRelay::start();
    let named = |names: Vec<Vec<Vec<u8>>>| Hello { server_names: names, ..Hello::for_name(NAME) }.stream();
    let unrecognized = Some(UNRECOGNIZED_NAME);
    assert_rejected(&relay, "8: no name", &named(vec![]), "no_server_name", unrecognized);
    for address in ["10.0.0.1", "2130706433", "::1"] {
        assert_rejected(&relay, "9: an address", &Hello::for_name(address).stream(), "address_literal", unrecognized);
    }
    assert_routed(&relay, "10: upper case", &Hello::for_name("HUB.Azure-Devices.NET").stream());
    assert_routed(&relay, "11: trailing dot", &Hello::for_name("hub.azure-devices.net.").stream());
    for name in ["hub.azure-devices.net\0.evil.example", "hub.azure-devices.net\0"] {
        assert_rejected(&relay, "12: NUL in the name", &Hello::for_name(name).stream(), "nul_in_name", Some(ILLEGAL_PARAMETER));
    }
    for second in [NAME, OTHER] {
        let extensions = named(vec![vec![NAME.into()], vec![second.into()]]);
        let names = named(vec![vec![NAME.into(), second.into()]]);
        assert_rejected(&relay, "13: two extensions", &extensions, "duplicate_server_name_extension", Some(ILLEGAL_PARAMETER));
        assert_rejected(&relay, "14: two names", &names, "several_host_names", Some(ILLEGAL_PARAMETER));
    }
    assert_rejected(&relay, "15: another name", &Hello::for_name(OTHER).stream(), "host_not_listed", unrecognized);
    assert_rejected(&relay, "15: a part of the name", &Hello::for_name("azure-devices.net").stream(), "host_not_listed", unrecognized);
}

#[test]
fn rows_16_to_19_what_tls_sees_is_what_counts() {
    let relay = DirectRelay::start();
    let plain = Hello::for_name(NAME);
    let without = Hello { signature_algorithms: false, ..plain.clone() };
    assert_routed(&relay, "16: no signature_algorithms", &without.stream());

    let decoy = Hello::with_decoy(NAME, OTHER).stream();
    assert_rejected(&relay, "17: a record header in the way", &decoy, "host_not_listed", Some(UNRECOGNIZED_NAME));
    // Read across that header it is the allowed name: so the row tests what it says.
    let misread = record(0x0301, &decoy[RECORD_HEADER_BYTES..][..Hello::with_decoy(NAME, OTHER).message().len()]);
    assert_routed(&relay, "17: as misread", &misread);

    let claim = [22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff, 3, 3, 0, 0];
    assert_rejected(&relay, "18: 16 MB claimed", &claim, "hello_too_long", Some(ILLEGAL_PARAMETER));

    let cut = plain.cut_at(&[50]).stream();
    let (first, second) = cut.split_at(RECORD_HEADER_BYTES + 50);
    let empty = [22, 3, 1, 0, 0];
    for stream in [[&empty[..], first, second].concat(), [first, &empty[..], second].concat()] {
        assert_rejected(&relay, "19: an empty record", &stream, "zero_length_record", Some(UNEXPECTED_MESSAGE));
    }
}

#[test]
fn rows_20_to_22_other_protocols_are_known_by_their_first_bytes() {
    let relay = DirectRelay::start();
    assert_rejected(&relay, "20: an alert", &[21, 3, 1, 0, 2, 2, 40], "tls_alert_first", None);
    assert_rejected(&relay, "21: SSLv2", &[0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10], "sslv2", None);
    for request in
        ["GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "CONNECT a.example:443 HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        assert_rejected(&relay, "22: HTTP", request.as_bytes(), "plain_http", None);
    }
    assert_rejected(&relay, "22: something else", b"SSH-2.0-OpenSSH_9.6\r\n", "not_tls", None);
}

#[test]
fn rows_23_to_27_new_large_and_odd_hellos_are_routed_up_to_the_limit() {
    let relay = DirectRelay::start();
    let plain = Hello::for_name(NAME);
    let encrypted = Hello { encrypted_client_hello: true, ..plain.clone() };
    assert_routed(&relay, "23: Encrypted Client Hello", &encrypted.stream());
    for record_version in [0x0300, 0x0303, 0x0305] {
        assert_routed(&relay, "24: record version", &Hello { record_version, ..plain.clone() }.stream());
    }
    assert_rejected(&relay, "25: 64.8 KB", &plain.clone().padded(64_700).stream(), "hello_too_long", Some(ILLEGAL_PARAMETER));
    assert_routed(&relay, "26: 14 KB", &plain.clone().padded(14_000).stream());
    assert_routed(&relay, "27: 15.9 KB", &plain.clone().padded(15_750).stream());
    // 32 KB, the limit, in three records.
    let bare = plain.clone().padded(1).message().len() - 1;
    assert_routed(&relay, "as long as may be", &plain.clone().padded(32 * 1024 - bare).stream());
    let longer = plain.padded(32 * 1024 - bare + 1).stream();
    assert_rejected(&relay, "one byte longer", &longer, "hello_too_long", Some(ILLEGAL_PARAMETER));
}

/// The same reader stands behind a CONNECT: the rows that could smuggle another name must not pass there either.
#[test]
fn behind_a_connect_the_same_holds() {
    let relay = DirectRelay::start();
    let authority = format!("{NAME}:{}", tests::direct::PORT);
    let through = |stream: &[u8], then: Then| {
        relay.gateway.session(|| {
            let mut answer = tests::sensor::connect(relay.connect, &authority);
            assert_eq!(answer.status, 200, "{}", answer.head);
            converse(&mut answer.stream, stream, usize::MAX, then)
        })
    };
    let cut = Hello::for_name(NAME).padded(2_100).cut_at(&[50, 1_400]).stream();
    let (answer, line) = through(&cut, Then::Finish);
    assert_eq!((answer.as_slice(), line.field("reason")), (ANSWER, "closed"));
    assert_eq!(relay.sink.received(), [cut]);
    for (row, stream, reason) in [
        ("12", Hello::for_name("hub.azure-devices.net\0").stream(), "nul_in_name"),
        ("14", Hello { server_names: vec![vec![NAME.into(), OTHER.into()]], ..Hello::for_name(NAME) }.stream(), "several_host_names"),
        ("15", Hello::for_name(OTHER).stream(), "sni_mismatch"),
        ("17", Hello::with_decoy(NAME, OTHER).stream(), "sni_mismatch"),
    ] {
        let (answer, line) = through(&stream, Then::Hold);
        assert_eq!(answer.first(), Some(&21), "{row}: an alert");
        assert_eq!(line.field("reason"), reason, "{row}");
    }
    // The relay dialled before it saw the hello, and then sent nothing.
    assert!(relay.sink.received().iter().skip(1).all(Vec::is_empty), "{:?}", relay.sink.received());
}
