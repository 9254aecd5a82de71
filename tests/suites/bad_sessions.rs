//! Sensors that behave badly and worlds that do: each gets the right status or alert, the log says why and whose fault it
//! was, and nothing that should not comes to the server.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use tests::direct::{DOWN, DirectRelay, METADATA, NAME, NAMELESS, PORT};
use tests::hello::{Hello, alert};
use tests::loopback::{LoopbackPair, TLS_PORT, address};
use tests::sensor::{Then, connect, converse, dial, say, status};
use tests::sink::ANSWER;
use tests::skyway::User;
use tests::{HUB, replaced, seconds, wait_for};

const ACCESS_DENIED: u8 = 49;
const INTERNAL_ERROR: u8 = 80;
const UNRECOGNIZED_NAME: u8 = 112;

#[test]
fn a_connect_that_is_not_in_order_gets_its_status() {
    let relay = DirectRelay::start();
    let request = |target: &str| format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").into_bytes();
    let with_field = |field: &str| format!("CONNECT {NAME}:{PORT} HTTP/1.1\r\n{field}\r\n\r\n").into_bytes();
    let endless = [b"CONNECT hub.azure-devices.net:8443 HTTP/1.1\r\nX-Filler: ".as_slice(), &[b'x'; 20_000]].concat();
    let fields = "X-Field: 1\r\n".repeat(100);
    let many = format!("CONNECT {NAME}:{PORT} HTTP/1.1\r\n{fields}");
    for (what, bytes, expected, reason) in [
        ("a host that is not listed", request("elsewhere.example:8443"), 403, "host_not_listed"),
        ("a part of a listed host", request("azure-devices.net:8443"), 403, "host_not_listed"),
        ("another port", request("hub.azure-devices.net:443"), 403, "port_not_listed"),
        ("an IPv4 address", request("127.0.0.1:8443"), 403, "address_literal"),
        ("an IPv6 address", request("[::1]:8443"), 403, "address_literal"),
        ("an address in disguise", request("2130706433:8443"), 403, "address_literal"),
        ("no port", request("hub.azure-devices.net"), 400, "missing_port"),
        ("a port that is none", request("hub.azure-devices.net:99999"), 400, "bad_port"),
        ("a user in front", request("user@hub.azure-devices.net:8443"), 400, "userinfo"),
        ("another Host", with_field("Host: elsewhere.example:8443"), 400, "host_mismatch"),
        ("two Hosts", with_field("Host: hub.azure-devices.net\r\nHost: hub.azure-devices.net"), 400, "duplicate_host"),
        ("a body", with_field("Content-Length: 5"), 400, "body_announced"),
        ("a folded line", with_field("X-A: 1\r\n  2"), 400, "folded_line"),
        ("a bare line feed", b"CONNECT hub.azure-devices.net:8443 HTTP/1.1\n\n".to_vec(), 400, "bare_line_feed"),
        ("a NUL", with_field("X-A: \0"), 400, "nul_in_head"),
        ("words", b"hello\r\n\r\n".to_vec(), 400, "bad_request_line"),
        ("garbage", vec![0x05, 0x01, 0x00, 0xff, 0xfe], 400, "not_http"),
        ("GET", b"GET https://hub.azure-devices.net:8443/ HTTP/1.1\r\n\r\n".to_vec(), 405, "method_not_allowed"),
        ("POST", b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi".to_vec(), 405, "method_not_allowed"),
        ("another version", b"CONNECT hub.azure-devices.net:8443 HTTP/2.0\r\n\r\n".to_vec(), 505, "unsupported_version"),
        ("a head that never ends", endless, 431, "head_too_long"),
        ("a hundred fields", many.into_bytes(), 431, "too_many_fields"),
        ("credentials that nobody has", with_field("Proxy-Authorization: Basic YTpi"), 407, "wrong_credentials"),
        ("another scheme", with_field("Proxy-Authorization: Bearer abc"), 407, "unsupported_authorization"),
        ("TLS on the plain port", Hello::for_name(NAME).stream(), 0, "tls_on_plain_port"),
        ("HTTP/2 on the plain port", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 0, "http2_preface"),
        ("a name that leads to cloud metadata", request(&format!("{METADATA}:{PORT}")), 403, "address_forbidden"),
    ] {
        let (answer, line) = relay.gateway.session(|| say(relay.connect, &bytes, Then::Hold));
        assert_eq!((status(&answer), line.field("reason")), (expected, reason), "{what}: {:?}", String::from_utf8_lossy(&answer));
        assert_eq!((line.number("bytes_up"), line.number("bytes_down")), (0, 0), "{what}");
        if expected == 0 {
            assert!(answer.is_empty(), "{what}: it could not be understood");
        }
    }
    assert_eq!(relay.sink.accepted(), 0, "nobody reached the server");
    assert_eq!(relay.gateway.status()["relay"]["relayed"], 0);
}

#[test]
fn case_and_a_trailing_dot_make_no_difference() {
    let relay = DirectRelay::start();
    for asked in [NAME, "HUB.Azure-Devices.NET", "hub.azure-devices.net.", "Hub.AZURE-devices.net."] {
        for said in [NAME, "HUB.azure-devices.NET", "hub.azure-devices.net."] {
            let stream = Hello::for_name(said).stream();
            let (answer, line) = relay.gateway.session(|| {
                let mut answer = connect(relay.connect, &format!("{asked}:{PORT}"));
                assert_eq!(answer.status, 200, "{asked}: {}", answer.head);
                converse(&mut answer.stream, &stream, usize::MAX, Then::Finish)
            });
            assert_eq!((answer.as_slice(), line.field("host")), (ANSWER, NAME), "{asked} and then {said}");
            assert_eq!(relay.sink.received().last(), Some(&stream), "{asked} and then {said}");
        }
    }
}

#[test]
fn what_follows_a_200_must_be_tls_for_the_same_name() {
    let relay = DirectRelay::start();
    let authority = format!("{NAME}:{PORT}");
    let unrecognized = alert(UNRECOGNIZED_NAME);
    for (what, bytes, expected, reason) in [
        ("TLS for another name", Hello::for_name("elsewhere.example").stream(), &unrecognized[..], "sni_mismatch"),
        ("TLS for another listed name", Hello::for_name(DOWN).stream(), &unrecognized[..], "sni_mismatch"),
        ("TLS without a name", Hello { server_names: vec![], ..Hello::for_name(NAME) }.stream(), &unrecognized[..], "sni_mismatch"),
        ("TLS for an address", Hello::for_name("127.0.0.1").stream(), &unrecognized[..], "sni_mismatch"),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec(), &[], "plain_http"),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(), &[], "not_tls"),
    ] {
        let (answer, line) = relay.gateway.session(|| {
            let mut answer = connect(relay.connect, &authority);
            assert_eq!(answer.status, 200, "{what}: {}", answer.head);
            converse(&mut answer.stream, &bytes, usize::MAX, Then::Hold)
        });
        assert_eq!((answer.as_slice(), line.field("reason")), (expected, reason), "{what}: {line:?}");
        assert_eq!(line.number("bytes_up"), 0, "{what}");
    }
    assert!(relay.sink.received().iter().all(Vec::is_empty), "nothing reached the server: {:?}", relay.sink.received());

    // Early data: what came with the request counts as what came after the answer.
    let stream = Hello::for_name(NAME).stream();
    let early = [format!("CONNECT {authority} HTTP/1.1\r\n\r\n").as_bytes(), &stream].concat();
    let answer = say(relay.connect, &early, Then::Finish);
    assert!(status(&answer) == 200 && answer.ends_with(ANSWER), "{:?}", String::from_utf8_lossy(&answer));
    assert_eq!(relay.sink.received().last(), Some(&stream));
}

#[test]
fn who_says_nothing_or_never_ends_is_given_up_at_the_deadline() {
    let mut relay = DirectRelay::build(SocketAddr::new(address().into(), 5353));
    relay.gateway.write(&replaced(&relay.yaml, "limits: { connect: 3s }", "limits: { connect: 3s, hello: 1s, idle: 2s }"));
    relay.gateway.start();
    let stream = Hello::for_name(NAME).stream();
    let soon = |started: Instant| assert!(started.elapsed() < seconds(6), "given up after {:?}", started.elapsed());

    for words in ["", "CONNECT hub.azure-devices.net:8443 HTTP/1.1\r\nX-Slow: "] {
        let started = Instant::now();
        let (answer, line) = relay.gateway.session(|| say(relay.connect, words.as_bytes(), Then::Hold));
        assert_eq!((status(&answer), line.field("reason")), (408, "head_timeout"), "{words:?}");
        soon(started);
    }
    for part in [&stream[..0], &stream[..40]] {
        let started = Instant::now();
        let (answer, line) = relay.gateway.session(|| say(relay.sni, part, Then::Hold));
        assert_eq!((answer.as_slice(), line.field("reason")), (&[][..], "hello_timeout"));
        soon(started);
    }
    let started = Instant::now();
    let (answer, line) = relay.gateway.session(|| {
        let mut answer = connect(relay.connect, &format!("{NAME}:{PORT}"));
        converse(&mut answer.stream, b"", 1, Then::Hold)
    });
    assert_eq!((answer.as_slice(), line.field("reason")), (&[][..], "hello_timeout"));
    soon(started);

    // A session that stands and falls silent.
    let started = Instant::now();
    let (_, line) = relay.gateway.session(|| say(relay.sni, &stream, Then::Hold));
    assert_eq!(line.field("reason"), "idle_timeout");
    assert_eq!(line.number("bytes_up"), stream.len() as u64);
    soon(started);

    // Whoever goes in the middle is named too; who connects and goes, as a load balancer does, is not refused.
    let (_, line) = relay.gateway.session(|| say(relay.sni, &stream[..40], Then::Finish));
    assert_eq!(line.field("reason"), "closed_in_hello");
    let refused = relay.gateway.status()["relay"]["refused"].clone();
    let (_, line) = relay.gateway.session(|| drop(dial(relay.connect)));
    assert_eq!(line.field("reason"), "no_data");
    assert_eq!(relay.gateway.status()["relay"]["refused"], refused);
}

#[test]
fn a_source_that_is_no_sensor_is_refused() {
    let mut relay = DirectRelay::build(SocketAddr::new(address().into(), 5353));
    relay.gateway.write(&replaced(&relay.yaml, "from: [127.0.0.0/8]", "from: [10.1.2.0/24]"));
    relay.gateway.start();
    let (answer, line) = relay.gateway.session(|| connect(relay.connect, &format!("{NAME}:{PORT}")));
    assert_eq!((answer.status, line.field("reason"), line.field("sensor")), (403, "unknown_sensor", "-"));
    let (answer, line) = relay.gateway.session(|| say(relay.sni, &Hello::for_name(NAME).stream(), Then::Hold));
    assert_eq!((answer.as_slice(), line.field("reason")), (&alert(ACCESS_DENIED)[..], "unknown_sensor"));
    assert_eq!(relay.sink.accepted(), 0);
}

#[test]
fn more_sessions_than_the_limit_are_refused_and_the_rest_go_on() {
    let mut relay = DirectRelay::build(SocketAddr::new(address().into(), 5353));
    relay.gateway.write(&replaced(&relay.yaml, "limits: { connect: 3s }", "limits: { connect: 3s, sessions: 3 }"));
    relay.gateway.start();
    let held: Vec<TcpStream> = (0..3).map(|_| dial(relay.connect)).collect();
    wait_for("three sessions are open", seconds(5), || relay.gateway.status()["relay"]["open"] == 3);
    let (answer, line) = relay.gateway.session(|| connect(relay.connect, &format!("{NAME}:{PORT}")));
    assert_eq!((answer.status, line.field("reason")), (503, "limit_sessions"));
    drop(held);
    wait_for("they are gone", seconds(5), || relay.gateway.status()["relay"]["open"] == 0);
    assert_eq!(connect(relay.connect, &format!("{NAME}:{PORT}")).status, 200);
}

/// Asks for `host` both ways and expects to be told within `within`.
#[track_caller]
fn assert_told(relay: &DirectRelay, host: &str, expected: u16, reason: &str, fault: &str, within: Duration) {
    let started = Instant::now();
    let (answer, line) = relay.gateway.session(|| connect(relay.connect, &format!("{host}:{PORT}")));
    assert_eq!((answer.status, line.field("reason"), line.field("fault")), (expected, reason, fault), "{line:?}");
    let (answer, line) = relay.gateway.session(|| say(relay.sni, &Hello::for_name(host).stream(), Then::Hold));
    assert_eq!((answer.as_slice(), line.field("reason")), (&alert(INTERNAL_ERROR)[..], reason), "{line:?}");
    assert_eq!(line.field("fault"), fault);
    assert!(started.elapsed() < 2 * within, "told after {:?}", started.elapsed());
}

#[test]
fn a_server_that_is_down_is_told_at_once() {
    let relay = DirectRelay::start();
    assert_told(&relay, DOWN, 502, "connection_refused", "upstream", seconds(2));
    // The sensor is shown in status until it succeeds again.
    let failure = relay.gateway.status()["relay"]["sensors"]["line-3"]["last_failure"].to_string();
    assert!(failure.contains(DOWN), "{failure}");
    assert_eq!(relay.gateway.verdict(), "degraded");
    assert!(say(relay.sni, &Hello::for_name(NAME).stream(), Then::Finish) == ANSWER);
    wait_for("all is well again", seconds(5), || relay.gateway.verdict() == "up");
}

#[test]
fn a_name_server_that_refuses_or_is_silent_is_told_within_the_deadline() {
    // Nobody at the name server's port: the kernel says so.
    let relay = DirectRelay::start();
    assert_told(&relay, NAMELESS, 502, "dns_failed", "resolver", seconds(5));
    // Somebody, who never answers.
    let silent = UdpSocket::bind((address(), 5353)).expect("a port");
    let mut relay = DirectRelay::build(silent.local_addr().expect("an address"));
    relay.gateway.start();
    assert_told(&relay, NAMELESS, 502, "dns_failed", "resolver", seconds(5));
    // What needs no name server is not affected.
    assert_eq!(connect(relay.connect, &format!("{NAME}:{PORT}")).status, 200);
}

#[test]
fn a_tunnel_that_is_down_is_told_within_the_deadline() {
    let mut pair = LoopbackPair::build(User::Nobody);
    pair.foreign.start();
    let told = |pair: &LoopbackPair, why: &[&str]| {
        let started = Instant::now();
        let (answer, line) = pair.foreign.session(|| connect(pair.connect, &format!("{HUB}:{TLS_PORT}")));
        assert!(matches!(answer.status, 503 | 504), "{}", answer.head);
        assert!(why.contains(&line.field("reason")), "{line:?}");
        assert_eq!(line.field("path"), "vnet");
        assert_ne!(line.field("fault"), "-", "{line:?}");
        let (answer, line) = pair.foreign.session(|| say(pair.sni, &Hello::for_name(HUB).stream(), Then::Hold));
        assert_eq!(answer, alert(INTERNAL_ERROR));
        assert!(why.contains(&line.field("reason")), "{line:?}");
        assert!(started.elapsed() < seconds(14), "both told after {:?}", started.elapsed());
    };
    // The peer has never been there.
    told(&pair, &["tunnel_down"]);

    pair.vnet.start();
    pair.foreign.wait_until_up(seconds(20));
    assert_eq!(connect(pair.connect, &format!("{HUB}:{TLS_PORT}")).status, 200);
    // It was there a moment ago: as yet only its silence can be told.
    pair.vnet.kill();
    told(&pair, &["tunnel_down", "parent_unreachable", "connect_timeout"]);
    assert_ne!(pair.foreign.verdict(), "up");
}
