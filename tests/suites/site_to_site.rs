//! The main job in TUN mode: a sensor in a foreign site reaches a TLS server behind the VNET gateway, by the relay and
//! by plain packets, with the YAML of design.md §6.

use std::path::Path;
use std::process::Command;

use tests::counter::{Counter, NOTHING};
use tests::netns::received;
use tests::process::{finish, finish_with_input};
use tests::report::{NAMESPACES, Need, machine_has};
use tests::site::{FOREIGN_INSIDE, PASSWORD, PORT, PROTECTED_IPV4, PROTECTED_IPV6, SERVER, Site, VNET_INSIDE};
use tests::{BLOB, HUB, seconds, wait_for};

fn possible() -> bool {
    machine_has(&[NAMESPACES, &[Need::Tool("nginx"), Need::Tool("curl"), Need::Tool("openssl")]].concat())
}

#[test]
fn sensors_reach_the_server_behind_the_far_gateway() {
    if !possible() {
        return;
    }
    let site = Site::up();
    let counter = Counter::install(&site.topology.router, "west", PROTECTED_IPV4, PROTECTED_IPV6, PORT);

    // CONNECT and SNI; one name is dialled over IPv4 behind the far gateway, the other over IPv6.
    for host in [HUB, BLOB] {
        let (answer, line) = site.foreign.session(|| site.fetch_by_proxy(host));
        assert_eq!(answer.success(), format!("{host}\n"));
        assert_eq!((line.field("listener"), line.field("sensor"), line.field("host")), ("proxy", "line-3", host));
        assert_eq!(line.field("path"), "vnet");
        // The hosts file knows the name in one family only; that no name server answers must not matter then.
        assert!(line.number("duration_ms") < 3000, "{line:?}");
        // curl closes without waiting for the server's last word, which may then come as a reset.
        assert!(["closed", "reset"].contains(&line.field("reason")), "{line:?}");
        assert!(line.number("bytes_up") > 200 && line.number("bytes_down") > 200, "{line:?}");

        let (answer, line) = site.foreign.session(|| site.fetch_by_name(host));
        assert_eq!(answer.success(), format!("{host}\n"));
        assert_eq!((line.field("listener"), line.field("sensor"), line.field("host")), ("tls", "line-3", host));
    }

    // With the proxy's user, right and wrong.
    let url = format!("https://{HUB}/");
    let fetch_as = |password: &str| {
        let user = format!("line-3:{password}");
        finish(&mut site.curl(&["--proxy", "http://10.1.2.1:3128", "--proxy-user", &user, &url]), seconds(70))
    };
    assert_eq!(fetch_as(PASSWORD).success(), format!("{HUB}\n"));
    let refused = fetch_as("wrong");
    assert!(refused.code != Some(0) && refused.stderr.contains("407"), "{refused}");

    // openssl, which speaks HTTP/1.0 to its proxy.
    let authority = site.foreign.folder().join("authority.pem");
    let target = format!("{HUB}:443");
    let words = ["openssl", "s_client", "-quiet", "-ign_eof", "-verify_return_error", "-proxy", "10.1.2.1:3128", "-connect", &target];
    let mut client = site.topology.sensor.command(&words);
    client.args(["-servername", HUB, "-CAfile"]).arg(&authority);
    let request = format!("GET / HTTP/1.0\r\nHost: {HUB}\r\n\r\n");
    let answer = finish_with_input(&mut client, request.as_bytes(), seconds(30)).success();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&format!("{HUB}\n")), "{answer:?}");

    // Both gateways tell of it: how many sessions on the one, where they went on the other.
    wait_for("six sessions, all of them ended", seconds(10), || {
        let sensor = &site.foreign.status()["relay"]["sensors"]["line-3"];
        sensor["relayed"] == 6 && sensor["open"] == 0
    });
    let hosts: Vec<String> = site.vnet.access_lines().iter().map(|line| line.field("host").to_owned()).collect();
    assert!(hosts.iter().any(|host| host == HUB) && hosts.iter().any(|host| host == BLOB), "{hosts:?}");
    assert_eq!(counter.read(), NOTHING);
}

#[test]
fn ready_is_ready_and_the_tunnel_follows_at_once() {
    if !possible() {
        return;
    }
    let mut site = Site::build();
    site.foreign.start();
    // The peer is not there: whoever asks now must hear so, and not that all is well.
    let status = site.foreign.status();
    assert_eq!(status["tunnels"][0]["peers"][0]["name"], "vnet-a", "{status:#}");
    assert_eq!(status["verdict"], "down", "{status:#}");
    assert_eq!(site.foreign.stop().code(), Some(0));

    // The VNET's gateway waits to be asked, so the session takes as long as the other one needs to ask.
    site.vnet.start();
    site.foreign.start();
    site.foreign.wait_until_up(seconds(3));
    assert_eq!(site.topology.sensor.ping(SERVER[0], 3, ""), 3);
}

#[test]
fn a_relayed_download_of_ten_megabytes_arrives_whole() {
    if !possible() {
        return;
    }
    let site = Site::up();
    let copy = site.foreign.folder().join("download");
    let copy = copy.to_str().expect("a plain path");
    let url = format!("https://{HUB}/download");
    for way in [["--proxy", "http://10.1.2.1:3128"], ["--connect-to", "::10.1.2.1:443"]] {
        let [option, value] = way;
        finish(&mut site.curl(&[option, value, "-o", copy, &url]), seconds(70)).success();
        assert_eq!(sha256(Path::new(copy)), sha256(&site.nginx.download()), "{way:?}");
    }
}

#[test]
fn packets_cross_the_tunnel_both_ways_and_as_large_as_the_mtu_says() {
    if !possible() {
        return;
    }
    let site = Site::up();
    let counter = Counter::install(&site.topology.router, "west", PROTECTED_IPV4, PROTECTED_IPV6, PORT);
    let (sensor, foreign, vnet) = (&site.topology.sensor, &site.topology.foreign, &site.topology.vnet);

    for (from, to) in [(foreign, VNET_INSIDE), (vnet, FOREIGN_INSIDE), (foreign, SERVER), (sensor, SERVER)] {
        for to in to {
            assert_eq!(from.ping(to, 5, ""), 5, "{to}");
        }
    }

    // Azure at one end, and an endpoint that is a name and may be IPv6, leave 1320 bytes to an inner packet: 1292
    // behind the headers of IPv4 and ICMP, 1272 of IPv6.
    assert_eq!(site.foreign.status()["tunnels"][0]["mtu"], 1320);
    let [server_ipv4, server_ipv6] = SERVER;
    for (from, to, largest) in [(foreign, server_ipv4, 1292), (foreign, server_ipv6, 1272), (sensor, server_ipv4, 1292)] {
        assert_eq!(from.ping(to, 2, &format!("-M do -s {largest}")), 2, "{to}: {largest} bytes");
        assert_eq!(from.ping(to, 2, &format!("-M do -s {}", largest + 1)), 0, "{to}: one byte more");
    }
    // The sensor is told why, and by how much.
    let told = sensor.exec(&["ping", "-n", "-c", "1", "-W", "2", "-M", "do", "-s", "1400", server_ipv4]);
    let words = [told.stdout.as_str(), &told.stderr].concat();
    assert!(words.contains("mtu = 1320") || words.contains("mtu=1320"), "{told}");
    assert_eq!(counter.read(), NOTHING);
}

#[test]
fn status_and_show_tell_the_truth_when_the_peer_dies_and_comes_back() {
    if !possible() {
        return;
    }
    let mut site = Site::build();
    site.rewrite_foreign("misses: 3 }", "misses: 3, hold_down: 2s }");
    site.vnet.start();
    site.foreign.start();
    site.foreign.wait_until_up(seconds(15));
    assert_eq!(site.fetch_by_proxy(HUB).success(), format!("{HUB}\n"));
    assert_eq!(site.foreign.ask(&["status"]).code, Some(0));
    let handshake = site.foreign.peer("vnet-a")["last_handshake_unix"].as_u64().expect("a handshake");
    assert_eq!(site.foreign.peer("vnet-a")["trouble"], serde_json::Value::Null);

    site.vnet.kill();
    // Silence is noticed by what is not answered; a sensor goes on asking.
    let [inside, _] = VNET_INSIDE;
    wait_for("status says that the peer does not answer", seconds(45), || {
        site.topology.foreign.ping(inside, 1, "");
        site.foreign.verdict() != "up" && site.foreign.peer("vnet-a")["trouble"] == "no_answer"
    });
    let told = site.foreign.ask(&["status"]);
    assert_eq!(told.code, Some(1), "{told}");
    let status = site.foreign.status();
    let problems = status["problems"].to_string();
    assert!(problems.contains("vnet-a"), "{status:#}");
    assert!(told.stdout.contains("vnet-a") && told.stdout.contains("no answer"), "{told}");
    let refused = site.fetch_by_proxy(HUB);
    assert!(refused.code != Some(0) && (refused.stderr.contains("503") || refused.stderr.contains("504")), "{refused}");

    site.vnet.start();
    site.foreign.wait_until_up(seconds(30));
    assert_eq!(site.fetch_by_proxy(HUB).success(), format!("{HUB}\n"));
    let peer = site.foreign.peer("vnet-a");
    assert_eq!(peer["state"], "up");
    assert_eq!(peer["trouble"], serde_json::Value::Null);
    assert!(peer["last_handshake_unix"].as_u64() > Some(handshake), "{peer:#}");
    // The search for a way has ended on the standby endpoint, which is worth saying until the better one is back.
    wait_for("all is well again", seconds(30), || site.foreign.ask(&["status"]).code == Some(0));
    assert_eq!(site.foreign.peer("vnet-a")["active_endpoint"], 0);
}

#[test]
fn show_prints_what_wg_show_prints() {
    if !possible() {
        return;
    }
    let site = Site::up();
    site.fetch_by_proxy(HUB).success();
    let shown = site.foreign.ask(&["show"]).success();
    let field = |label: &str| {
        let mut values = shown.lines().filter_map(|line| line.trim_start().strip_prefix(label)?.strip_prefix(": "));
        values.next().unwrap_or_else(|| panic!("no {label:?} in:\n{shown}"))
    };
    assert_eq!(field("interface"), "azure");
    assert_eq!(field("public key"), site.foreign_keys.public);
    assert_eq!(field("private key"), "(hidden)");
    assert_eq!(field("listening port"), "51820");
    assert_eq!(field("peer"), site.vnet_keys.public);
    assert_eq!(field("preshared key"), "(hidden)");
    assert_eq!(field("endpoint"), "10.20.0.4:51820");
    let mut allowed: Vec<&str> = field("allowed ips").split(", ").collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["10.20.0.0/16", "10.99.0.2/32", "fd20::/64", "fd99::2/128"]);
    let handshake = field("latest handshake");
    assert!(handshake.ends_with(" ago") || handshake == "Now", "{handshake}");
    let transfer = field("transfer");
    assert!(
        transfer.contains(" received, ") && transfer.ends_with(" sent") && !transfer.starts_with("0 B") && !transfer.contains(", 0 B"),
        "{transfer}"
    );
    assert_eq!(field("persistent keepalive"), "every 25 seconds");
    for secret in [&site.foreign_keys.private, &site.vnet_keys.private] {
        assert!(!shown.contains(secret.as_str()) && !site.foreign.log().contains(secret.as_str()), "a private key was shown");
    }
    // An interface's own lines are indented under it, a peer's under the peer, as wg does.
    assert!(shown.starts_with("interface: azure\n  public key: "), "{shown}");
    assert!(shown.contains("\n\npeer: "), "{shown}");
}

#[test]
fn the_tunnel_runs_over_an_ipv6_underlay() {
    if !possible() {
        return;
    }
    let mut site = Site::build();
    site.rewrite_foreign("10.20.0.4:51820", "[2001:db8:2::1]:51820");
    site.vnet.start();
    site.foreign.start();
    site.foreign.wait_until_up(seconds(15));
    let counter = Counter::install(&site.topology.router, "west", PROTECTED_IPV4, PROTECTED_IPV6, PORT);
    assert_eq!(site.foreign.peer("vnet-a")["endpoint"], "[2001:db8:2::1]:51820");
    assert_eq!(site.foreign.status()["tunnels"][0]["mtu"], 1320);
    for host in [HUB, BLOB] {
        assert_eq!(site.fetch_by_proxy(host).success(), format!("{host}\n"));
    }
    for to in SERVER {
        assert_eq!(site.topology.sensor.ping(to, 3, ""), 3, "{to}");
    }
    assert_eq!(counter.read(), NOTHING);
}

#[test]
fn a_stop_drains_and_ends_well() {
    if !possible() {
        return;
    }
    let mut site = Site::up();
    site.fetch_by_proxy(HUB).success();
    assert_eq!(site.foreign.stop().code(), Some(0));
    assert_eq!(site.vnet.stop().code(), Some(0));
    let told = site.foreign.ask(&["status"]);
    assert_eq!(told.code, Some(2), "{told}");
}

/// 300 s at 20 packets a second, over two rekeys, both ways at once. Run with `--ignored`, as tests/run does when
/// SKYWAY_LONG=1.
#[test]
#[ignore = "takes five minutes"]
fn no_packet_is_lost_over_two_rekeys() {
    if !possible() {
        return;
    }
    let site = Site::up();
    let handshake = |site: &Site| site.foreign.peer("vnet-a")["last_handshake_unix"].as_u64().expect("a handshake");
    let before = handshake(&site);
    let ping = |to: &'static str| ["ping", "-q", "-n", "-i", "0.05", "-c", "6000", "-W", "2", to];
    let [vnet_inside, _] = VNET_INSIDE;
    let [_, foreign_inside] = FOREIGN_INSIDE;
    let there = site.topology.foreign.start(&ping(vnet_inside));
    let back = site.topology.vnet.start(&ping(foreign_inside));
    assert_eq!(received(&there.finish(seconds(400)).stdout), 6000);
    assert_eq!(received(&back.finish(seconds(60)).stdout), 6000);
    assert!(handshake(&site) >= before + 230, "there were two rekeys");
}

fn sha256(file: &Path) -> String {
    let printed = finish(Command::new("sha256sum").arg(file), seconds(30)).success();
    printed.split_whitespace().next().expect("a sum").to_owned()
}
