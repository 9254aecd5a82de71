//! Who a sensor is: by its address, its password, its certificate, a load balancer's word, and what happens if they disagree.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use tests::access::AccessLine;
use tests::client_authority::ClientAuthority;
use tests::loopback::{TLS_PORT, address};
use tests::relays::{LINE_3, OUT, PROXY, Parts, Relay, ask_on, authority_of, begin, dial_from, end, go_through, host};
use tests::report::{Need, machine_has};
use tests::sensor::{Answer, Then, connect, converse};
use tests::sink::{ANSWER, Sink};
use tests::tls::{Authority, TlsServer};
use tests::{HUB, replaced, seconds, wait_for};

/// Basic, of `line-1:one`, `line-2:two` and `line-1:wrong`.
const LINE_1_ONE: &str = "Proxy-Authorization: Basic bGluZS0xOm9uZQ==";
const LINE_2_TWO: &str = "Proxy-Authorization: Basic bGluZS0yOnR3bw==";
const LINE_1_WRONG: &str = "Proxy-Authorization: Basic bGluZS0xOndyb25n";

/// PROXY protocol, version 2 (its specification, §2.2).
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const LOCAL: u8 = 0x20;
const PROXIED: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const UNSPECIFIED: u8 = 0;

fn sink() -> (Sink, String) {
    let own = address();
    (Sink::start(SocketAddr::new(own.into(), TLS_PORT)), host(HUB, own))
}

/// A header of version 2 for a stream from `source`, with `attributes` behind the addresses.
fn version_2(source: SocketAddr, attributes: &[u8]) -> Vec<u8> {
    let SocketAddr::V4(source) = source else { panic!("{source} is not IPv4") };
    let addresses = [&source.ip().octets()[..], &[10, 0, 0, 1], &source.port().to_be_bytes(), &3128u16.to_be_bytes()].concat();
    let length = u16::try_from(addresses.len() + attributes.len()).expect("short enough");
    [SIGNATURE, &[PROXIED, TCP_OVER_IPV4], &length.to_be_bytes(), &addresses, attributes].concat()
}

/// The attribute in which Azure tells the private endpoint's link id.
fn azure_link(id: u32) -> Vec<u8> {
    [&[0xee, 0, 5, 1][..], &id.to_le_bytes()].concat()
}

/// A session from `source` that begins with `preface`; it goes through if it is granted.
#[track_caller]
fn session_from(relay: &Relay, source: Ipv4Addr, preface: &[u8], fields: &[&str]) -> (Answer, AccessLine) {
    relay.gateway.session(|| {
        let mut answer = ask_on(dial_from(source, relay.connect()), preface, HUB, fields);
        if answer.status == 200 {
            assert_eq!(go_through(&mut answer, HUB), ANSWER);
        }
        answer
    })
}

#[test]
fn a_load_balancers_header_names_the_sensor() {
    let (sink, hub) = sink();
    let (balancer, own) = (address(), address());
    let listener = format!("{{ name: proxy, kind: connect, listen: \"OWN:3128\", proxy_protocol: [{balancer}/32] }}");
    let line_3 = format!("line-3: {{ from: [{own}/32] }}");
    let sensors = ["line-1: { from: [10.1.1.0/24] }", "line-2: { from: [10.1.2.0/24], private_link: { azure_link_id: 7 } }", &line_3];
    let relay =
        Relay::start("relay", &Parts { hosts: &[&hub], sensors: &sensors, paths: &[OUT], listeners: &[&listener], ..Parts::default() });
    let [line_1, line_2, nobody] = [[10, 1, 1, 7], [10, 1, 2, 7], [192, 0, 2, 7]].map(|ip| SocketAddr::from((ip, 40000)));
    let version_1 = |source: SocketAddr| format!("PROXY TCP4 {} 10.0.0.1 {} 3128\r\n", source.ip(), source.port()).into_bytes();
    for (what, header, sensor, source) in [
        ("version 1", version_1(line_1), "line-1", line_1),
        ("version 2", version_2(line_1, &[]), "line-1", line_1),
        ("the other sensor's address", version_2(line_2, &[]), "line-2", line_2),
        ("a link id and an address that is nobody's", version_2(nobody, &azure_link(7)), "line-2", nobody),
    ] {
        let (answer, line) = session_from(&relay, balancer, &header, &[]);
        assert_eq!((answer.status, line.field("sensor"), line.field("reason")), (200, sensor, "closed"), "{what}: {line:?}");
        assert_eq!(line.field("downstream"), source.to_string(), "{what}");
    }
    // Behind a private link addresses are its owner's to choose: one that nobody has does not pass by its address.
    let (answer, line) = session_from(&relay, balancer, &version_2(line_1, &azure_link(8)), &[]);
    assert_eq!((answer.status, line.field("reason")), (403, "unknown_private_link"), "{line:?}");
    for (what, header, status, reason) in [
        ("an address that is nobody's", version_2(nobody, &[]), 403, "unknown_sensor"),
        ("one sensor's address and another's link", version_2(line_1, &azure_link(7)), 403, "identity_mismatch"),
        ("no header", Vec::new(), 0, "proxy_header_missing"),
        ("a checksum that is wrong", version_2(line_1, &[3, 0, 4, 0, 0, 0, 0]), 0, "proxy_header_bad_checksum"),
        ("an attribute that runs past the end", version_2(line_1, &[0xee, 0, 9, 1]), 0, "proxy_header_bad_tlv"),
        ("another version", [SIGNATURE, &[0x11, TCP_OVER_IPV4, 0, 0]].concat(), 0, "proxy_header_bad_version"),
    ] {
        let (answer, line) = session_from(&relay, balancer, &header, &[]);
        assert_eq!((answer.status, line.field("reason")), (status, reason), "{what}: {line:?}");
    }

    // A header in pieces is one.
    let (answered, line) = relay.gateway.session(|| {
        let request = format!("CONNECT {0} HTTP/1.1\r\n\r\n", authority_of("elsewhere.example")).into_bytes();
        converse(&mut dial_from(balancer, relay.connect()), &[version_2(line_2, &azure_link(7)), request].concat(), 1, Then::Hold)
    });
    assert_eq!((line.field("sensor"), line.field("reason")), ("line-2", "host_not_listed"), "{answered:?}");

    // A balancer's own health check is no session that anybody refused.
    let refused = relay.gateway.status()["relay"]["refused"].clone();
    let local = [SIGNATURE, &[LOCAL, UNSPECIFIED, 0, 0]].concat();
    let (answered, line) = relay.gateway.session(|| converse(&mut dial_from(balancer, relay.connect()), &local, 1000, Then::Hold));
    assert_eq!((answered.as_slice(), line.field("reason")), (&[][..], "health_check"));
    assert_eq!(relay.gateway.status()["relay"]["refused"], refused);

    // From anybody else a header is no header: a sensor cannot be another, and needs none to be itself.
    for header in [version_1(line_1), version_2(line_1, &[])] {
        let (answer, line) = session_from(&relay, own, &header, &[]);
        assert!(matches!(answer.status, 400 | 405 | 505) && line.field("sensor") == "line-3", "{} {line:?}", answer.head);
    }
    let (answer, line) = session_from(&relay, own, b"", &[]);
    assert_eq!((answer.status, line.field("sensor")), (200, "line-3"), "{line:?}");
    assert_eq!(sink.accepted(), 5);
}

#[test]
fn an_address_and_a_password_must_name_one_sensor() {
    let (sink, hub) = sink();
    let (first, second, anywhere) = (address(), address(), address());
    let line_1 = format!("line-1: {{ from: [{first}/32], proxy_user: {{ name: line-1, password: {{ file: one }} }} }}");
    let line_2 = format!("line-2: {{ from: [{second}/32], proxy_user: {{ name: line-2, password: {{ file: two }} }} }}");
    let mut relay = Relay::build("relay", &Parts { hosts: &[&hub], sensors: &[&line_1, &line_2], paths: &[OUT], ..Parts::default() });
    relay.gateway.write_secret("one", "one");
    relay.gateway.write_secret("two", "two");
    relay.gateway.start();
    let granted = [
        ("its address alone", first, None, "line-1"),
        ("its address and its password", first, Some(LINE_1_ONE), "line-1"),
        ("its password alone", anywhere, Some(LINE_2_TWO), "line-2"),
    ];
    for (what, source, credentials, sensor) in granted {
        let (answer, line) = session_from(&relay, source, b"", credentials.as_slice());
        assert_eq!((answer.status, line.field("sensor")), (200, sensor), "{what}: {line:?}");
    }
    for (what, source, credentials, status, reason) in [
        ("another's password", first, Some(LINE_2_TWO), 403, "identity_mismatch"),
        ("a wrong password from its own address", first, Some(LINE_1_WRONG), 407, "wrong_credentials"),
        ("nothing at all", anywhere, None, 407, "credentials_wanted"),
    ] {
        let (answer, line) = session_from(&relay, source, b"", credentials.as_slice());
        assert_eq!((answer.status, line.field("reason")), (status, reason), "{what}: {line:?}");
        assert_eq!(answer.head.contains("Proxy-Authenticate: Basic"), status == 407, "{what}: {}", answer.head);
    }
    assert_eq!(sink.accepted(), granted.len());
}

#[test]
fn a_client_certificate_names_the_sensor() {
    if !machine_has(&[Need::Tool("curl")]) {
        return;
    }
    let (authority, clients) = (Authority::create(), ClientAuthority::create());
    let own = address();
    let server = TlsServer::start(SocketAddr::new(own.into(), TLS_PORT), &authority.issue(&[HUB]));
    let listener = r#"{ name: encrypted, kind: connect, listen: "OWN:3129", tls: { certificate: own.pem, key: { file: own.key }, client_ca: clients.pem } }"#;
    let sensors = ["line-1: { client_certificate: line-1.plant-7.example }", "line-2: { client_certificate: [line-2.plant-7.example] }"];
    let mut relay = Relay::build(
        "relay",
        &Parts { hosts: &[&host(HUB, own)], sensors: &sensors, paths: &[OUT], listeners: &[listener], ..Parts::default() },
    );
    let identity = authority.issue(&[&relay.address.to_string()]);
    relay.gateway.write_file("own.pem", &identity.certificate_pem, 0o644);
    relay.gateway.write_secret("own.key", &identity.key_pem);
    relay.gateway.write_file("clients.pem", &clients.pem, 0o644);
    relay.gateway.start();

    let proxy = format!("https://{}", relay.at(3129));
    let folder = relay.gateway.folder().display().to_string();
    let shown = |vouched: &ClientAuthority, name: &str| {
        let identity = vouched.issue(name);
        relay.gateway.write_file("sensor.pem", &identity.certificate_pem, 0o644);
        relay.gateway.write_secret("sensor.key", &identity.key_pem);
        let (certificate, key, ca) = (format!("{folder}/sensor.pem"), format!("{folder}/sensor.key"), format!("{folder}/authority.pem"));
        let words = ["--proxy", &proxy, "--proxy-cacert", &ca, "--proxy-cert", &certificate, "--proxy-key", &key];
        relay.gateway.session(|| relay.curl(&authority, HUB, &words))
    };
    for sensor in ["line-1", "line-2"] {
        let (fetched, line) = shown(&clients, &format!("{sensor}.plant-7.example"));
        assert_eq!(fetched.success(), format!("{HUB}\n"));
        assert_eq!((line.field("sensor"), line.field("listener")), (sensor, "encrypted"), "{line:?}");
    }
    // Of an authority that is trusted, and yet nobody's.
    let (refused, line) = shown(&clients, "line-9.plant-7.example");
    assert!(refused.code != Some(0) && refused.stderr.contains("403"), "{refused}");
    assert_eq!((line.field("reason"), line.field("sensor")), ("unknown_certificate", "-"), "{line:?}");
    // Of an authority of one's own.
    let (refused, line) = shown(&ClientAuthority::create(), "line-1.plant-7.example");
    assert_ne!(refused.code, Some(0), "{refused}");
    assert_eq!(line.field("reason"), "client_certificate_refused", "{line:?}");
    let ca = format!("{folder}/authority.pem");
    let words = ["--proxy", &proxy, "--proxy-cacert", &ca];
    let (refused, line) = relay.gateway.session(|| relay.curl(&authority, HUB, &words));
    assert_ne!(refused.code, Some(0), "{refused}");
    assert_eq!(line.field("reason"), "client_certificate_missing", "{line:?}");
    assert_eq!(server.downstreams().len(), 2, "nobody else reached the server");
}

#[test]
fn one_sensor_at_its_limit_leaves_the_others_alone() {
    let (_sink, hub) = sink();
    let (first, second) = (address(), address());
    let line_1 = format!("line-1: {{ from: [{first}/32], sessions: 2 }}");
    let line_2 = format!("line-2: {{ from: [{second}/32] }}");
    let parts = Parts { hosts: &[&hub], sensors: &[&line_1, &line_2], paths: &[OUT], limits: "sessions_per_sensor: 3", ..Parts::default() };
    let relay = Relay::start("relay", &parts);
    let open = |source| ask_on(dial_from(source, relay.connect()), b"", HUB, &[]);
    let mut held: Vec<Answer> = (0..2).map(|_| open(first)).collect();
    held.iter_mut().for_each(|answer| begin(answer, HUB));
    let (answer, line) = session_from(&relay, first, b"", &[]);
    assert_eq!((answer.status, line.field("reason"), line.field("sensor")), (429, "limit_sensor", "line-1"), "{line:?}");
    // Another has a limit of its own, the one of all.
    let mut others: Vec<Answer> = (0..3).map(|_| open(second)).collect();
    others.iter_mut().for_each(|answer| begin(answer, HUB));
    let (answer, line) = session_from(&relay, second, b"", &[]);
    assert_eq!((answer.status, line.field("reason"), line.field("sensor")), (429, "limit_sensor", "line-2"), "{line:?}");
    // Who ends a session may begin one.
    assert!(held.iter_mut().chain(&mut others).all(|answer| end(answer) == ANSWER), "those that stand are not touched");
    wait_for("all places are free", seconds(5), || relay.gateway.status()["relay"]["open"] == 0);
    assert_eq!(session_from(&relay, first, b"", &[]).0.status, 200);
}

#[test]
fn wrong_passwords_wait_longer_and_longer_and_the_right_one_does_not() {
    let (_sink, hub) = sink();
    let (attacker, sensor) = (address(), address());
    let known = "line-1: { proxy_user: { name: line-1, password: { file: one } } }";
    let mut relay = Relay::build("relay", &Parts { hosts: &[&hub], sensors: &[known], paths: &[OUT], ..Parts::default() });
    relay.gateway.write_secret("one", "one");
    relay.gateway.start();
    let timed = |source, credentials: &str| {
        let started = Instant::now();
        let answer = ask_on(dial_from(source, relay.connect()), b"", HUB, &[credentials]);
        (answer, started.elapsed())
    };
    let waits: Vec<Duration> = (0..6)
        .map(|_| {
            let (answer, took) = timed(attacker, LINE_1_WRONG);
            assert_eq!(answer.status, 407, "{}", answer.head);
            took
        })
        .collect();
    // A quarter of a second at the third, and twice as long each time.
    for (at, least) in [(2, 250), (3, 500), (4, 1000), (5, 2000)] {
        assert!(waits[at] >= Duration::from_millis(least), "{waits:?}");
    }
    assert!(waits[0] < waits[5] && waits[1] < waits[5], "the first are somebody's typing: {waits:?}");
    thread::scope(|scope| {
        let wrong = scope.spawn(|| timed(attacker, LINE_1_WRONG));
        // Meanwhile the sensor that the attacker wants to be is served.
        let (mut answer, took) = timed(sensor, LINE_1_ONE);
        assert!(answer.status == 200 && took < Duration::from_millis(1500), "after {took:?}: {}", answer.head);
        assert_eq!(go_through(&mut answer, HUB), ANSWER);
        let (answer, took) = wrong.join().expect("it was answered");
        assert!(answer.status == 407 && took >= seconds(3), "{took:?}");
    });
    // Who has typed it right at last is served at once, and the row begins anew.
    let (answer, took) = timed(attacker, LINE_1_ONE);
    assert!(answer.status == 200 && took < Duration::from_millis(1500), "after {took:?}: {}", answer.head);
    assert!(timed(attacker, LINE_1_WRONG).1 < waits[5], "the row begins anew");
}

#[test]
fn only_a_gateway_is_believed_what_it_says_of_a_session() {
    let (_sink, hub) = sink();
    let gateway = address();
    let known = format!("plant-a: {{ from: [{gateway}/32], gateway: true }}");
    let parts = Parts {
        gateway: "level: 4",
        hosts: &[&hub],
        sensors: &[LINE_3, &known],
        paths: &[OUT],
        listeners: &[PROXY],
        limits: "sessions_per_sensor: 1",
    };
    let relay = Relay::start("vnet", &parts);
    let said = "Skyway-Session: 5f3a9c01-42; sensor=line-9; via=plant-a; level=3.5";
    let (answer, line) = session_from(&relay, gateway, b"", &[said]);
    assert_eq!((answer.status, line.field("session")), (200, "5f3a9c01-42"), "{line:?}");
    assert_eq!((line.field("sensor"), line.field("origin")), ("plant-a", "line-9"), "{line:?}");
    assert!(answer.head.contains("Skyway-Via: vnet\r\n"), "{}", answer.head);

    let (answer, line) = session_from(&relay, Ipv4Addr::LOCALHOST, b"", &[said]);
    assert_eq!((answer.status, line.field("sensor"), line.field("origin")), (200, "line-3", "-"), "{line:?}");
    assert_ne!(line.field("session"), "5f3a9c01-42");
    assert!(!answer.head.contains("Skyway-Via"), "{}", answer.head);

    for (from, to, status, reason) in [
        ("via=plant-a", "via=plant-a,vnet", 508, "loop"),
        ("level=3.5", "level=3", 403, "wrong_level"),
        ("level=3.5", "level=5", 403, "wrong_level"),
        // Taken for none it would begin a chain anew.
        ("sensor=line-9", "sensor=", 400, "bad_passage"),
    ] {
        let (answer, line) = session_from(&relay, gateway, b"", &[&replaced(said, from, to)]);
        assert_eq!((answer.status, line.field("reason")), (status, reason), "{to}: {line:?}");
    }
    // Many sensors stand behind a gateway: the limit of one is not its own.
    let mut held: Vec<Answer> = (0..3).map(|_| ask_on(dial_from(gateway, relay.connect()), b"", HUB, &[said])).collect();
    assert!(held.iter().all(|answer| answer.status == 200));
    held.iter_mut().for_each(|answer| begin(answer, HUB));
    let mut own = connect(relay.connect(), &authority_of(HUB));
    begin(&mut own, HUB);
    assert_eq!(session_from(&relay, Ipv4Addr::LOCALHOST, b"", &[]).0.status, 429, "a sensor of its own has it");
}
