//! Paths: what is down is passed over, what is back is used again, who intercepts is named, and `/readyz` says what it should.

use std::net::{Ipv4Addr, SocketAddr};

use tests::loopback::{TLS_PORT, address};
use tests::process::Signal;
use tests::relays::{LINE_3, OUT, Parts, Relay, authority_of, begin, end, go_through, host};
use tests::sensor::{Answer, connect};
use tests::sink::{ANSWER, Sink};
use tests::tls::{Authority, TlsServer, answer, ask};
use tests::{BLOB, HUB, replaced, seconds, wait_for};

/// Of a path that goes down and comes back within a test.
const PROBE: &str = "probe: { host: contoso-hub.azure-devices.net, ca: ca.pem, every: 200ms, failures: 2, successes: 2, hold_down: 1s }";

fn serve(authority: &Authority, own: Ipv4Addr) -> TlsServer {
    TlsServer::start(SocketAddr::new(own.into(), TLS_PORT), &authority.issue(&[HUB]))
}

/// The relay of `parts`, whose probes trust `authority`.
#[track_caller]
fn probing(name: &str, authority: &Authority, parts: &Parts<'_>) -> Relay {
    let mut relay = Relay::build(name, parts);
    relay.gateway.write_file("ca.pem", &authority.pem, 0o644);
    relay.gateway.start();
    relay
}

#[track_caller]
fn wait_for_state(relay: &Relay, path: usize, state: &str) {
    wait_for(&format!("the path number {path} is {state}"), seconds(15), || relay.path(path)["state"] == state);
}

/// A whole TLS session with [`HUB`], and the path that it took.
#[track_caller]
fn path_taken(relay: &Relay, authority: &Authority) -> String {
    let (answered, line) = relay.gateway.session(|| {
        let granted = connect(relay.connect(), &authority_of(HUB));
        assert_eq!(granted.status, 200, "{}", granted.head);
        ask(&mut authority.session(granted.stream, HUB), b"which way?").expect("an answer")
    });
    assert_eq!(answered, answer(HUB, b"which way?"));
    line.field("path").to_owned()
}

#[test]
fn a_host_whose_first_address_is_dead_is_reached_by_the_second() {
    let authority = Authority::create();
    let (vacant, own) = (address(), address());
    let _server = serve(&authority, own);
    let hub = replaced(&host(HUB, own), "addresses: [", &format!("addresses: [{vacant}, "));
    let relay = probing("relay", &authority, &Parts { hosts: &[&hub], sensors: &[LINE_3], paths: &[OUT], ..Parts::default() });
    assert_eq!(path_taken(&relay, &authority), "out");
}

#[test]
fn sessions_leave_a_path_that_is_down_and_come_back_to_it() {
    let authority = Authority::create();
    let own = address();
    let server = serve(&authority, own);
    let hub = host(HUB, own);
    let mut parent = Relay::start("parent", &Parts { hosts: &[&hub], sensors: &[LINE_3], paths: &[OUT], ..Parts::default() });
    let first = format!("{{ name: first, via: direct, parents: [{{ url: \"http://{}\", gateway: true }}], {PROBE} }}", parent.connect());
    let second = format!("{{ name: second, via: direct, {PROBE} }}");
    let relay = probing("relay", &authority, &Parts { hosts: &[&hub], sensors: &[LINE_3], paths: &[&first, &second], ..Parts::default() });
    wait_for_state(&relay, 0, "up");
    wait_for_state(&relay, 1, "up");
    assert_eq!(relay.ready(), 200);
    assert_eq!(path_taken(&relay, &authority), "first");
    assert_eq!(relay.path(0)["parents"][0][0], format!("http://{}", parent.connect()));

    parent.gateway.kill();
    wait_for_state(&relay, 0, "down");
    let status = relay.gateway.status();
    let problem = status["problems"].to_string();
    assert!(status["verdict"] == "degraded" && problem.contains("path first: down"), "{problem}");
    assert!(relay.gateway.log().contains("path down"), "{}", relay.gateway.log());
    for _ in 0..3 {
        assert_eq!(path_taken(&relay, &authority), "second");
    }
    assert_eq!(relay.ready(), 200, "one path is enough");

    parent.gateway.start();
    wait_for_state(&relay, 0, "up");
    assert!(relay.gateway.log().contains("path back"), "{}", relay.gateway.log());
    assert_eq!(relay.gateway.verdict(), "up");
    // At first a part of the sessions, and in the end all of them.
    wait_for("a session takes the first path again", seconds(10), || path_taken(&relay, &authority) == "first");

    // With no path that works a session is refused, and goes nowhere else.
    parent.gateway.kill();
    drop(server);
    wait_for_state(&relay, 0, "down");
    wait_for_state(&relay, 1, "down");
    let (refused, line) = relay.gateway.session(|| connect(relay.connect(), &authority_of(HUB)));
    assert!(refused.status == 502 && line.field("fault") != "-", "{line:?}");
}

#[test]
fn a_session_fails_over_before_any_probe_has_told() {
    let authority = Authority::create();
    let own = address();
    let _server = serve(&authority, own);
    let first = format!("{{ name: first, via: direct, parents: [\"http://{}:3128\"], probe: off }}", address());
    let relay =
        probing("relay", &authority, &Parts { hosts: &[&host(HUB, own)], sensors: &[LINE_3], paths: &[&first, OUT], ..Parts::default() });
    assert_eq!(path_taken(&relay, &authority), "out");
}

#[test]
fn who_intercepts_tls_is_named() {
    let interceptor = Authority::create();
    let own = address();
    let _server = serve(&interceptor, own);
    // Nobody but the built-in authorities is trusted.
    let path = format!("{{ name: out, via: direct, {} }}", replaced(PROBE, "ca: ca.pem, ", ""));
    let hub = host(HUB, own);
    let parts = Parts { hosts: &[&hub], sensors: &[LINE_3], paths: &[&path], ..Parts::default() };
    let mut relay = Relay::start("relay", &parts);
    wait_for("the interceptor is found", seconds(10), || relay.path(0)["intercepted_by"].is_string());
    let issuer = relay.path(0)["intercepted_by"].to_string();
    assert!(issuer.contains("skyway's tests"), "{issuer}");
    let problems = relay.gateway.status()["problems"].to_string();
    assert!(problems.contains("TLS is intercepted") && problems.contains("skyway's tests"), "{problems}");
    wait_for_state(&relay, 0, "down");
    assert_eq!(relay.ready(), 503);
    let doctor = relay.gateway.ask(&["doctor"]);
    assert_eq!(doctor.code, Some(1), "{doctor}");
    for told in ["SKY-R06", "skyway's tests", "trust_interception"] {
        assert!(doctor.stdout.contains(told), "the doctor does not say {told:?}: {doctor}");
    }
    // Who means it to be so says so.
    relay.change("hold_down: 1s }", "hold_down: 1s, trust_interception: true }");
    wait_for("the path is fit for use", seconds(10), || relay.ready() == 200);
}

#[test]
fn ready_is_who_reaches_defender() {
    let authority = Authority::create();
    let own = address();
    let path = format!("{{ name: out, via: direct, {} }}", replaced(PROBE, "hold_down: 1s", "hold_down: 200ms"));
    let parts =
        Parts { hosts: &[&host(HUB, own)], sensors: &[LINE_3], paths: &[&path], limits: "drain_notice: 2s, drain: 1s", ..Parts::default() };
    let mut relay = probing("relay", &authority, &parts);
    assert_eq!(relay.ready(), 503, "nothing has been reached yet");
    wait_for_state(&relay, 0, "down");
    assert_eq!(relay.ready(), 503);
    let _server = serve(&authority, own);
    wait_for("it is ready", seconds(15), || relay.ready() == 200);
    relay.gateway.process().signal(Signal::Terminate);
    wait_for("it is not ready any more", seconds(2), || relay.ready() == 503);
    assert_eq!(connect(relay.connect(), &authority_of(HUB)).status, 200, "and yet takes connections");
    assert_eq!(relay.gateway.process().wait(seconds(10)).code(), Some(0));
}

#[test]
fn sessions_of_a_path_that_goes_down_end_or_stay_as_the_file_says() {
    let authority = Authority::create();
    let (probed, kept) = (address(), address());
    let server = serve(&authority, probed);
    // What is probed dies; what the sessions stand on does not.
    let _sink = Sink::start(SocketAddr::new(kept.into(), TLS_PORT));
    let (hub, blob) = (host(HUB, probed), host(BLOB, kept));
    let mut held: Vec<(&str, Relay, Answer)> = ["keep", "reset", "drain"]
        .into_iter()
        .map(|what| {
            let path = format!("{{ name: out, via: direct, on_path_down: {what}, {PROBE} }}");
            let limits = "drain_spread: 1s";
            let parts = Parts { hosts: &[&hub, &blob], sensors: &[LINE_3], paths: &[&path], limits, ..Parts::default() };
            let relay = probing(what, &authority, &parts);
            wait_for_state(&relay, 0, "up");
            let mut answer = connect(relay.connect(), &authority_of(BLOB));
            begin(&mut answer, BLOB);
            (what, relay, answer)
        })
        .collect();
    drop(server);
    for (what, relay, _) in held.iter().filter(|(what, _, _)| *what != "keep") {
        wait_for(&format!("{what}: the session ends"), seconds(10), || relay.gateway.access_lines().len() == 1);
        let line = &relay.gateway.access_lines()[0];
        assert_eq!((line.field("reason"), line.field("path"), line.field("code")), ("path_down", "out", "KD"), "{what}: {line:?}");
        assert!(line.number("bytes_up") > 0, "{what}: {line:?}");
    }
    let (_, relay, answer) = &mut held[0];
    wait_for_state(relay, 0, "down");
    let (rest, line) = relay.gateway.session(|| end(answer));
    assert_eq!((rest.as_slice(), line.field("reason")), (ANSWER, "closed"), "it stays: {line:?}");
    // A new one is tried all the same: there is no other way.
    let (rest, line) = relay.gateway.session(|| go_through(&mut connect(relay.connect(), &authority_of(BLOB)), BLOB));
    assert_eq!((rest.as_slice(), line.field("path")), (ANSWER, "out"), "{line:?}");
}
