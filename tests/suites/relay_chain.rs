//! Chains of proxies: each hop does its part, the right one is named when one fails, and the logs of all gateways join.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Instant;

use tests::access::AccessLine;
use tests::client_authority::ClientAuthority;
use tests::loopback::{TLS_PORT, address};
use tests::raw_parent::RawParent;
use tests::relays::{LINE_3, OUT, PROXY, Parts, Relay, ask_on, authority_of, dial_from, go_through, host, host_elsewhere};
use tests::report::{Need, machine_has};
use tests::sensor::{Then, connect, say, status};
use tests::sink::{ANSWER, Sink};
use tests::squid::Squid;
use tests::tls::{Authority, TlsServer};
use tests::{HUB, seconds, wait_for, wait_for_some};

/// A sink in the place of the server of [`HUB`].
fn sink() -> (Sink, String) {
    let own = address();
    (Sink::start(SocketAddr::new(own.into(), TLS_PORT)), host(HUB, own))
}

/// A path that leaves from the relay's own address by `parents`, and has no probe.
fn by_parents(parents: &str) -> String {
    format!("{{ name: chain, via: {{ underlay: own }}, parents: [{parents}], probe: off }}")
}

/// A parent that is told whose session it is.
fn gateway_at(address: Ipv4Addr) -> String {
    format!("{{ url: \"http://{address}:3128\", gateway: true }}")
}

/// What another gateway is known as: it comes from its own address.
fn gateway_sensor(name: &str, address: Ipv4Addr) -> String {
    format!("{name}: {{ from: [{address}/32], gateway: true }}")
}

/// A relay on a level, such as `level: 3`.
fn on<'a>(level: &'a str, hosts: &'a [&'a str], sensors: &'a [&'a str], paths: &'a [&'a str]) -> Parts<'a> {
    Parts { gateway: level, hosts, sensors, paths, ..Parts::default() }
}

fn parts<'a>(hosts: &'a [&'a str], sensors: &'a [&'a str], paths: &'a [&'a str], listeners: &'a [&'a str]) -> Parts<'a> {
    Parts { hosts, sensors, paths, listeners, ..Parts::default() }
}

/// The line of the only session of that id.
#[track_caller]
fn line_of(relay: &Relay, id: &str) -> AccessLine {
    wait_for_some("the other gateway logs the session", seconds(5), || {
        relay.gateway.access_lines().into_iter().find(|line| line.field("session") == id)
    })
}

#[test]
fn curl_gets_through_skyway_squid_and_skyway() {
    if !machine_has(&[Need::Tool("curl"), Need::Tool("squid"), Need::Tool("setpriv")]) {
        return;
    }
    let authority = Authority::create();
    let served = address();
    let _server = TlsServer::start(SocketAddr::new(served.into(), TLS_PORT), &authority.issue(&[HUB]));
    let squid = Squid::start(address());
    let mut vnet = Relay::build(
        "vnet",
        &Parts {
            gateway: "level: 4",
            hosts: &[&host(HUB, served)],
            // Behind Squid everybody comes from Squid: a password tells the gateway from the rest.
            sensors: &["plant-a: { proxy_user: { name: plant-a, password: { file: plant-a.pw } }, gateway: true }"],
            paths: &[OUT],
            ..Parts::default()
        },
    );
    let chain = format!(
        "{{ chain: [{{ url: \"http://{}\", level: 3.5 }}, {{ url: \"http://{}\", level: 4, gateway: true, auth: {{ name: plant-a, \
         password: {{ file: plant-a.pw }} }} }}] }}",
        squid.address,
        vnet.connect()
    );
    let mut plant = Relay::build(
        "plant",
        &Parts {
            gateway: "level: 3",
            hosts: &[&host_elsewhere(HUB)],
            sensors: &[LINE_3],
            paths: &[&by_parents(&chain)],
            ..Parts::default()
        },
    );
    for relay in [&mut vnet, &mut plant] {
        relay.gateway.write_secret("plant-a.pw", "three");
        relay.gateway.start();
    }

    let proxy = format!("http://{}", plant.connect());
    let (fetched, first) = plant.gateway.session(|| plant.curl(&authority, HUB, &["--proxy", &proxy]));
    assert_eq!(fetched.success(), format!("{HUB}\n"));
    assert_eq!((first.field("sensor"), first.field("path"), first.field("via")), ("line-3", "chain", "vnet"), "{first:?}");
    // Both logs join on the id, and the second gateway knows whose session it was.
    let second = line_of(&vnet, first.field("session"));
    assert_eq!((second.field("sensor"), second.field("origin"), second.field("host")), ("plant-a", "line-3", HUB), "{second:?}");
    assert_eq!(second.field("reason"), "closed");
    let tunnel = format!("CONNECT {}", vnet.connect());
    wait_for("Squid has carried it", seconds(5), || squid.access_log().contains(&tunnel));
    assert!(!squid.access_log().contains("line-3"), "Squid is told no sensor's name");
    assert_eq!(plant.path(0)["via"][0], "vnet", "the trace of the chain: {:#}", plant.path(0));
    // What the last gateway refuses, the first one's sensor is told.
    plant.change(&host_elsewhere(HUB), &host_elsewhere("else.azure-devices.net"));
    let (answer, line) = plant.gateway.session(|| connect(plant.connect(), &authority_of("else.azure-devices.net")));
    assert_eq!((answer.status, line.field("reason")), (403, "parent_refused"), "{line:?}");
    assert!(line.field("detail").contains("(host_not_listed)"), "{line:?}");
}

#[test]
fn three_gateways_carry_one_session_under_one_id() {
    let (sink, hub) = sink();
    let [first, second, third] = std::array::from_fn(|_| address());
    let elsewhere = host_elsewhere(HUB);
    let mut third = Relay::build_at(third, "third", &on("level: 4", &[&hub], &[&gateway_sensor("second", second)], &[OUT]));
    let to_third = by_parents(&gateway_at(third.address));
    let mut second = Relay::build_at(second, "second", &on("level: 3.5", &[&elsewhere], &[&gateway_sensor("first", first)], &[&to_third]));
    let to_second = by_parents(&gateway_at(second.address));
    let mut first = Relay::build_at(first, "first", &on("level: 3", &[&elsewhere], &[LINE_3], &[&to_second]));
    for relay in [&mut third, &mut second, &mut first] {
        relay.gateway.start();
    }
    let (kept, line) = first.gateway.session(|| {
        let mut answer = connect(first.connect(), &authority_of(HUB));
        assert_eq!(answer.status, 200, "{}", answer.head);
        assert!(!answer.head.contains("second"), "a sensor is told nothing of the chain: {}", answer.head);
        go_through(&mut answer, HUB)
    });
    assert_eq!(kept, ANSWER);
    assert_eq!((line.field("via"), line.field("origin")), ("second,third", "-"), "{line:?}");
    assert_eq!(first.path(0)["via"], serde_json::json!(["second", "third"]));
    for (relay, sensor) in [(&second, "first"), (&third, "second")] {
        let line = line_of(relay, line.field("session"));
        assert_eq!((line.field("sensor"), line.field("origin"), line.field("reason")), (sensor, "line-3", "closed"), "{line:?}");
    }
    assert_eq!(sink.accepted(), 1);
}

#[test]
fn a_chain_of_three_proxies_is_walked_from_the_first_gateway() {
    let (_sink, hub) = sink();
    let authority = Authority::create();
    let (second_name, third_name) = ("second.proxy.example", "third.proxy.example");
    let encrypted = r#"{ name: proxy, kind: connect, listen: "OWN:8443", tls: { certificate: own.pem, key: { file: own.key } } }"#;
    let mut third = Relay::build("third", &parts(&[&hub], &[LINE_3], &[OUT], &[encrypted]));
    let mut second = Relay::build("second", &parts(&[&host(third_name, third.address)], &[LINE_3], &[OUT], &[encrypted]));
    let mut first = Relay::build("first", &parts(&[&host(second_name, second.address)], &[LINE_3], &[OUT], &[]));
    for (relay, name) in [(&third, third_name), (&second, second_name)] {
        let identity = authority.issue(&[name]);
        relay.gateway.write_file("own.pem", &identity.certificate_pem, 0o644);
        relay.gateway.write_secret("own.key", &identity.key_pem);
    }
    // The session is TLS inside TLS inside TLS; each proxy sees the name of the next and nothing else.
    let chain = format!(
        "{{ chain: [\"http://{}\", {{ url: \"https://{second_name}:8443\", ca: ca.pem }}, {{ url: \"https://{third_name}:8443\", ca: ca.pem \
         }}] }}",
        first.connect()
    );
    let path = format!("{{ name: chain, via: direct, parents: [{chain}], probe: off }}");
    let mut walker = Relay::build("walker", &parts(&[&host_elsewhere(HUB)], &[LINE_3], &[&path], &[]));
    walker.gateway.write_file("ca.pem", &authority.pem, 0o644);
    for relay in [&mut third, &mut second, &mut first, &mut walker] {
        relay.gateway.start();
    }
    let mut answer = connect(walker.connect(), &authority_of(HUB));
    assert_eq!(answer.status, 200, "{}", answer.head);
    assert_eq!(go_through(&mut answer, HUB), ANSWER);
    for (relay, asked) in [(&first, second_name), (&second, third_name), (&third, HUB)] {
        let lines =
            wait_for_some("the session has ended", seconds(5), || Some(relay.gateway.access_lines()).filter(|lines| !lines.is_empty()));
        assert!(lines.len() == 1 && lines[0].field("host") == asked, "{asked}: {lines:?}");
    }
}

#[test]
fn a_parent_is_reached_by_tls_with_a_certificate_and_a_password() {
    let (_sink, hub) = sink();
    let (authority, clients) = (Authority::create(), ClientAuthority::create());
    let listener = r#"{ name: proxy, kind: connect, listen: "OWN:3129", tls: { certificate: own.pem, key: { file: own.key }, client_ca: clients.pem } }"#;
    let known =
        "plant-a: { client_certificate: plant-a.example, proxy_user: { name: plant-a, password: { file: plant-a.pw } }, gateway: true }";
    let mut parent =
        Relay::build("parent", &Parts { hosts: &[&hub], sensors: &[known], paths: &[OUT], listeners: &[listener], ..Parts::default() });
    let identity = authority.issue(&[&parent.address.to_string()]);
    parent.gateway.write_file("own.pem", &identity.certificate_pem, 0o644);
    parent.gateway.write_secret("own.key", &identity.key_pem);
    parent.gateway.write_file("clients.pem", &clients.pem, 0o644);
    parent.gateway.write_secret("plant-a.pw", "three");
    parent.gateway.start();

    let certificate = ", client_cert: { certificate: plant-a.pem, key: { file: plant-a.key } }";
    let auth = ", auth: { name: plant-a, password: { file: plant-a.pw } }";
    let by_tls = by_parents(&format!("{{ url: \"https://{}\", ca: ca.pem, gateway: true{certificate}{auth} }}", parent.at(3129)));
    let mut relay =
        Relay::build("plant", &Parts { hosts: &[&host_elsewhere(HUB)], sensors: &[LINE_3], paths: &[&by_tls], ..Parts::default() });
    let own = clients.issue("plant-a.example");
    relay.gateway.write_file("ca.pem", &authority.pem, 0o644);
    relay.gateway.write_file("plant-a.pem", &own.certificate_pem, 0o644);
    relay.gateway.write_secret("plant-a.key", &own.key_pem);
    relay.gateway.write_secret("plant-a.pw", "three");
    relay.gateway.start();

    let (kept, line) = relay.gateway.session(|| {
        let mut answer = connect(relay.connect(), &authority_of(HUB));
        assert_eq!(answer.status, 200, "{}", answer.head);
        go_through(&mut answer, HUB)
    });
    assert_eq!(kept, ANSWER);
    let there = line_of(&parent, line.field("session"));
    assert_eq!((there.field("sensor"), there.field("origin")), ("plant-a", "line-3"), "{there:?}");

    // Each of the three is asked for: the certificate, the password, and the authority of the other side.
    let refused = |relay: &Relay, reasons: &[&str], detail: &str| {
        let (answer, line) = relay.gateway.session(|| connect(relay.connect(), &authority_of(HUB)));
        assert!(answer.status == 502 && reasons.contains(&line.field("reason")), "{} {line:?}", answer.head);
        assert!(line.field("fault") == "parent" && line.field("detail").contains(detail), "{line:?}");
    };
    relay.change(certificate, "");
    // In TLS 1.3 a client hears only after its handshake that its certificate was missed.
    refused(&relay, &["parent_tls", "parent_broken"], &parent.at(3129).to_string());
    relay.gateway.write_secret("plant-a.pw", "wrong");
    relay.change("gateway: true, auth", &format!("gateway: true{certificate}, auth"));
    refused(&relay, &["parent_refused"], "answered 407 (wrong_credentials)");
    relay.gateway.write_secret("plant-a.pw", "three");
    relay.gateway.write_file("ca.pem", &Authority::create().pem, 0o644);
    relay.gateway.reload().success();
    refused(&relay, &["parent_tls"], "certificate");
}

#[test]
fn what_a_parent_answers_is_told_apart_and_any_2xx_is_a_tunnel() {
    let parent = RawParent::start(SocketAddr::new(address().into(), 3128));
    let path = by_parents(&format!("\"http://{}\"", parent.address));
    let relay = Relay::start("plant", &Parts { hosts: &[&host_elsewhere(HUB)], sensors: &[LINE_3], paths: &[&path], ..Parts::default() });
    // What the parent says of the target goes on to the sensor; what it says of this relay is this relay's trouble.
    for (said, expected, reason) in [
        ("407 Proxy Authentication Required", 502, "parent_refused"),
        ("403 Forbidden", 403, "parent_refused"),
        ("502 Bad Gateway", 502, "parent_refused"),
        ("503 Service Unavailable", 503, "parent_refused"),
        ("504 Gateway Timeout", 504, "parent_refused"),
        ("302 Found", 502, "parent_refused"),
    ] {
        parent.will_say(&format!("HTTP/1.1 {said}\r\nContent-Length: 0\r\n\r\n"));
        let (answer, line) = relay.gateway.session(|| connect(relay.connect(), &authority_of(HUB)));
        assert_eq!((answer.status, line.field("reason"), line.field("fault")), (expected, reason, "parent"), "{said}: {line:?}");
        let code = said.split(' ').next().unwrap_or_default();
        assert!(line.field("detail").contains(&format!("answered {code}")), "{said}: {line:?}");
    }
    for garbage in ["SSH-2.0-OpenSSH_9.6\r\n", "", "HTTP/1.1 403 Forb"] {
        parent.will_say(garbage);
        let (answer, line) = relay.gateway.session(|| connect(relay.connect(), &authority_of(HUB)));
        assert_eq!((answer.status, line.field("reason")), (502, "parent_broken"), "{garbage:?}: {line:?}");
    }
    for granted in ["200 Connection established", "201 Created", "204 No Content", "299 Whatever"] {
        parent.will_say(&format!("HTTP/1.1 {granted}\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n"));
        let (kept, line) = relay.gateway.session(|| go_through(&mut connect(relay.connect(), &authority_of(HUB)), HUB));
        assert_eq!((kept.as_slice(), line.field("reason")), (ANSWER, "closed"), "{granted}: {line:?}");
    }
    let asked = parent.requests();
    let expected = format!("CONNECT {HUB}:{TLS_PORT} HTTP/1.1\r\n");
    assert!(asked.iter().all(|head| head.starts_with(&expected)), "{asked:?}");
    // It is no gateway of ours: sensors' names are not for it.
    assert!(asked.iter().all(|head| !head.contains("line-3") && !head.to_ascii_lowercase().contains("skyway-session")), "{asked:?}");
}

#[test]
fn the_second_parent_is_asked_within_the_connect_budget() {
    let good = RawParent::start(SocketAddr::new(address().into(), 3128));
    good.will_say("HTTP/1.1 200 OK\r\n\r\n");
    // One port where nobody listens, and one where nobody answers.
    let (vacant, silent) = (address(), address());
    let _silent = TcpListener::bind((silent, 3128)).expect("a port");
    let parents = format!("\"http://{vacant}:3128\", \"http://{silent}:3128\", \"http://{}\"", good.address);
    let parts = Parts {
        hosts: &[&host_elsewhere(HUB)],
        sensors: &[LINE_3],
        paths: &[&by_parents(&parents)],
        limits: "connect: 4s",
        ..Parts::default()
    };
    let mut relay = Relay::start("plant", &parts);
    let started = Instant::now();
    let (kept, line) = relay.gateway.session(|| go_through(&mut connect(relay.connect(), &authority_of(HUB)), HUB));
    assert_eq!((kept.as_slice(), line.field("reason")), (ANSWER, "closed"), "{line:?}");
    assert!(line.number("connect_ms") >= 1000, "the silent one had its share: {line:?}");
    assert!(line.number("connect_ms") < 4000, "{line:?}");
    assert!(started.elapsed() < seconds(6), "{:?}", started.elapsed());

    // With all of them dead the sensor is told, also within the budget.
    relay.change(&format!(", \"http://{}\"", good.address), "");
    let (answer, line) = relay.gateway.session(|| connect(relay.connect(), &authority_of(HUB)));
    assert_eq!((answer.status, line.field("reason"), line.field("fault")), (504, "parent_timeout", "parent"), "{line:?}");
    // And two seconds for its last words to be read.
    assert!(line.number("duration_ms") < 7500, "{line:?}");
}

#[test]
fn a_chain_that_leads_back_is_refused_at_its_first_turn() {
    let (one, other) = (address(), address());
    let elsewhere = host_elsewhere(HUB);
    let [to_one, to_other] = [one, other].map(|address| by_parents(&gateway_at(address)));
    let one_knows = gateway_sensor("other", other);
    let mut first = Relay::build_at(
        one,
        "one",
        &Parts { hosts: &[&elsewhere], sensors: &[LINE_3, &one_knows], paths: &[&to_other], ..Parts::default() },
    );
    let other_knows = gateway_sensor("one", one);
    let mut second =
        Relay::build_at(other, "other", &Parts { hosts: &[&elsewhere], sensors: &[&other_knows], paths: &[&to_one], ..Parts::default() });
    first.gateway.start();
    second.gateway.start();
    let started = Instant::now();
    let answer = connect(first.connect(), &authority_of(HUB));
    assert_eq!(answer.status, 508, "{}", answer.head);
    assert!(started.elapsed() < seconds(5), "at its first turn, and not when the time was up: {:?}", started.elapsed());
    wait_for("both of its sessions are logged", seconds(5), || first.gateway.access_lines().len() == 2);
    let lines = first.gateway.access_lines();
    let turned = lines.iter().find(|line| line.field("sensor") == "other").expect("it came back");
    let sent = lines.iter().find(|line| line.field("sensor") == "line-3").expect("it was sent");
    assert_eq!((turned.field("reason"), turned.field("origin")), ("loop", "line-3"), "{turned:?}");
    assert_eq!((sent.field("reason"), sent.field("session")), ("parent_refused", turned.field("session")), "{sent:?}");
    assert_eq!(second.gateway.access_lines().len(), 1, "it went round once");
}

#[test]
fn a_chain_that_leads_down_is_refused() {
    let (_sink, hub) = sink();
    let own = address();
    let knows = gateway_sensor("plant", own);
    let lower =
        Relay::start("lower", &Parts { gateway: "level: 2", hosts: &[&hub], sensors: &[&knows], paths: &[OUT], ..Parts::default() });
    let elsewhere = host_elsewhere(HUB);
    let down = by_parents(&gateway_at(lower.address));
    let mut relay = Relay::build_at(own, "plant", &on("level: 3", &[&elsewhere], &[LINE_3], &[&down]));
    relay.gateway.start();
    let (answer, line) = relay.gateway.session(|| connect(relay.connect(), &authority_of(HUB)));
    assert_eq!((answer.status, line.field("reason")), (403, "parent_refused"), "{line:?}");
    assert!(line.field("detail").contains("(wrong_level)"), "{line:?}");
    assert_eq!(line_of(&lower, line.field("session")).field("reason"), "wrong_level");
    // Where the file says so itself, it is no file to run by.
    let told = by_parents(&format!("{{ url: \"http://{}:3128\", gateway: true, level: 2 }}", lower.address));
    let refused = Relay::build("refused", &on("level: 3", &[&elsewhere], &[LINE_3], &[&told])).gateway.ask(&["check"]).failure(1);
    assert!(refused.contains("no chain leads from level 3 to level 2"), "{refused}");
}

#[test]
fn what_the_published_squid_recipe_lets_through_is_refused() {
    let (sink, hub) = sink();
    let relay =
        Relay::start("proxy", &Parts { hosts: &[&hub], sensors: &[LINE_3], paths: &[OUT], listeners: &[PROXY], ..Parts::default() });
    let connect = |target: &str| format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    for (what, request, expected, reason) in [
        ("any tenant on port 2222", connect("any-tenant.azure-devices.net:2222"), 403, "host_not_listed"),
        ("our own tenant on port 2222", connect(&format!("{HUB}:2222")), 403, "port_not_listed"),
        ("an address", connect(&format!("{}:{TLS_PORT}", sink.address.ip())), 403, "address_literal"),
        ("somebody else's tenant", connect("any-tenant.blob.core.windows.net:443"), 403, "host_not_listed"),
        ("a plain GET", format!("GET http://{HUB}/ HTTP/1.1\r\nHost: {HUB}\r\n\r\n"), 405, "method_not_allowed"),
    ] {
        let (answer, line) = relay.gateway.session(|| say(relay.connect(), request.as_bytes(), Then::Hold));
        assert_eq!((status(&answer), line.field("reason")), (expected, reason), "{what}: {line:?}");
    }
    assert_eq!(sink.accepted(), 0, "nobody reached the server");
    let mut answer = ask_on(dial_from(Ipv4Addr::LOCALHOST, relay.connect()), b"", HUB, &[]);
    assert_eq!((answer.status, go_through(&mut answer, HUB).as_slice()), (200, ANSWER));
}
