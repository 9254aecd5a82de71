//! The main job without root, capability or device: two gateways in userspace mode, each an unprivileged process.

use std::thread;

use tests::loopback::{DOWN, FOREIGN_ONLY, LoopbackPair, TLS_PORT, free_ipv6};
use tests::process::{Signal, finish};
use tests::random::Random;
use tests::report::{Need, machine_has};
use tests::sensor::{Then, connect, dial, say, status};
use tests::skyway::User;
use tests::tls::{Session, answer, ask};
use tests::{BLOB, HUB, seconds, wait_for};

/// A session with `host` through the CONNECT listener.
fn by_connect(pair: &LoopbackPair, host: &str) -> Session {
    let answer = connect(pair.connect, &format!("{host}:{TLS_PORT}"));
    assert_eq!(answer.status, 200, "{}", answer.head);
    pair.authority.session(answer.stream, host)
}

/// A session with `host` through the SNI listener.
fn by_sni(pair: &LoopbackPair, host: &str) -> Session {
    pair.authority.session(dial(pair.sni), host)
}

#[test]
fn sensors_reach_the_server_without_any_privilege() {
    let pair = LoopbackPair::up(User::Nobody);
    let question = Random::new(1).bytes(100_000);
    for host in [HUB, BLOB] {
        for (listener, session) in [("proxy", by_connect as fn(&LoopbackPair, &str) -> Session), ("tls", by_sni)] {
            // The server answers once the sensor has ended its direction, so half-close was kept all the way.
            let (answered, line) = pair.foreign.session(|| ask(&mut session(&pair, host), &question).expect("an answer"));
            assert!(answered == answer(host, &question), "{listener} {host}: {} bytes", answered.len());
            assert_eq!((line.field("listener"), line.field("sensor"), line.field("host")), (listener, "line-3", host));
            assert_eq!((line.field("path"), line.field("reason")), ("vnet", "closed"));
            assert!(line.number("bytes_up") > 100_000 && line.number("bytes_down") > 100_000, "{line:?}");
        }
    }
    let status = pair.foreign.status();
    assert_eq!(status["verdict"], "up");
    assert_eq!(status["tunnels"][0]["mode"], "userspace");
    assert_eq!(status["relay"]["sensors"]["line-3"]["relayed"], 4);
    assert_eq!(pair.server.downstreams().len(), 4, "one connection each, and no other");
}

#[test]
fn an_unmodified_curl_gets_through() {
    if !machine_has(&[Need::Tool("curl")]) {
        return;
    }
    let pair = LoopbackPair::up(User::Nobody);
    let authority = pair.foreign.folder().join("authority.pem");
    pair.foreign.write_file("authority.pem", &pair.authority.pem, 0o644);
    let url = format!("https://{HUB}:{TLS_PORT}/");
    let (proxy, gateway) = (format!("http://{}", pair.connect), format!("::{}", pair.sni));
    for way in [["--proxy", &proxy], ["--connect-to", &gateway]] {
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "--cacert"]).arg(&authority).args(way).arg(&url);
        assert_eq!(finish(&mut curl, seconds(30)).success(), format!("{HUB}\n"));
    }
}

#[test]
fn fifty_sessions_at_once_arrive_intact() {
    let pair = LoopbackPair::up(User::Nobody);
    thread::scope(|scope| {
        let sessions: Vec<_> = (0..50)
            .map(|number| {
                let pair = &pair;
                scope.spawn(move || {
                    let (host, question) = (if number % 2 == 0 { HUB } else { BLOB }, Random::new(number).bytes(60_000 + number as usize));
                    let mut session = if number % 4 < 2 { by_connect(pair, host) } else { by_sni(pair, host) };
                    let answered = ask(&mut session, &question).expect("an answer");
                    assert!(answered == answer(host, &question), "session {number}: {} bytes", answered.len());
                })
            })
            .collect();
        for session in sessions {
            session.join().expect("the session's answer is whole");
        }
    });
    wait_for("all sessions are over", seconds(10), || {
        let relay = &pair.foreign.status()["relay"];
        relay["open"] == 0 && relay["relayed"] == 50 && relay["refused"] == 0
    });
    wait_for("no stream is left inside the tunnel", seconds(90), || pair.foreign.status()["tunnels"][0]["streams"] == 0);
}

#[test]
fn what_cannot_be_reached_is_told_to_the_sensor() {
    let pair = LoopbackPair::up(User::Nobody);
    for (host, expected) in [(DOWN, 502), (FOREIGN_ONLY, 403), ("elsewhere.example", 403)] {
        let authority = format!("{host}:{TLS_PORT}");
        let (answered, line) = pair.foreign.session(|| connect(pair.connect, &authority));
        assert_eq!(answered.status, expected, "{host}: {}", answered.head);
        assert_eq!(line.field("host"), host);
        let refused_here = host == "elsewhere.example";
        assert_eq!(line.field("reason"), if refused_here { "host_not_listed" } else { "parent_refused" });
        // The far gateway's own reason comes back with its answer.
        let detail = match host {
            DOWN => "(connection_refused)",
            FOREIGN_ONLY => "(host_not_listed)",
            _ => "-",
        };
        assert!(line.field("detail").contains(detail), "{line:?}");
    }
    assert_eq!(pair.foreign.status()["relay"]["refused"], 3);
    assert!(pair.server.downstreams().is_empty(), "nothing reached the server");
}

#[test]
fn the_tunnel_runs_over_ipv6() {
    let mut pair = LoopbackPair::joined_by(User::Nobody, free_ipv6(), free_ipv6());
    pair.start();
    assert_eq!(pair.foreign.peer("vnet-a")["endpoint"], pair.vnet_udp.to_string());
    let answered = ask(&mut by_connect(&pair, HUB), b"over IPv6").expect("an answer");
    assert_eq!(answered, answer(HUB, b"over IPv6"));
}

#[test]
fn the_far_gateway_may_crash_and_come_back() {
    let mut pair = LoopbackPair::up(User::Nobody);
    ask(&mut by_connect(&pair, HUB), b"before").expect("an answer");
    pair.vnet.kill();
    pair.vnet.start();
    // The foreign gateway still has a session that the other has forgotten. What it sends is not answered until it makes
    // another, 15 to 20 s later (whitepaper §6.5).
    wait_for("a sensor gets through again", seconds(45), || connect(pair.connect, &format!("{HUB}:{TLS_PORT}")).status == 200);
    let answered = ask(&mut by_connect(&pair, HUB), b"after").expect("an answer");
    assert_eq!(answered, answer(HUB, b"after"));
}

#[test]
fn a_stop_lets_sessions_end_and_refuses_new_ones() {
    let mut pair = LoopbackPair::up(User::Nobody);
    let mut session = by_connect(&pair, HUB);
    // The handshake brings the session to the server; then it stands.
    session.conn.complete_io(&mut session.sock).expect("a handshake");
    pair.foreign.process().signal(Signal::Terminate);
    wait_for("no sensor is accepted any more", seconds(10), || std::net::TcpStream::connect(pair.connect).is_err());
    assert!(pair.foreign.is_running(), "it waits for the session that stands");
    assert_eq!(ask(&mut session, b"the last word").expect("an answer"), answer(HUB, b"the last word"));
    drop(session);
    assert_eq!(pair.foreign.process().wait(seconds(15)).code(), Some(0));
    assert!(pair.foreign.access_lines().iter().any(|line| line.field("reason") == "closed"));
}

#[test]
fn health_and_metrics_are_served_where_the_file_says() {
    let pair = LoopbackPair::up(User::Nobody);
    ask(&mut by_connect(&pair, HUB), b"one session").expect("an answer");
    let get =
        |address, path: &str| say(address, format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes(), Then::Hold);
    assert_eq!(status(&get(pair.health, "/livez")), 200);
    let metrics = String::from_utf8_lossy(&get(pair.metrics, "/metrics")).into_owned();
    assert_eq!(status(metrics.as_bytes()), 200, "{metrics}");
    assert!(metrics.lines().any(|line| line.starts_with("skyway_")), "{metrics}");
}
