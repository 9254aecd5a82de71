//! Nothing leaks, and nothing comes in: packets counted on the outside link in every phase of a gateway's life, and what
//! the VNET side may open.

use std::process::Command;
use std::thread;

use serde_json::Value;

use tests::counter::{Counter, NOTHING};
use tests::netns::{Namespace, received};
use tests::nginx::Nginx;
use tests::process::{Finished, finish};
use tests::report::{NAMESPACES, Need, machine_has};
use tests::site::{FOREIGN_INSIDE, PORT, PROTECTED_IPV4, PROTECTED_IPV6, SERVER, Site, VNET_INSIDE};
use tests::skyway::Gateway;
use tests::tls::Authority;
use tests::topology::Topology;
use tests::{HUB, replaced, seconds, wait_for};

fn possible() -> bool {
    machine_has(&[NAMESPACES, &[Need::Tool("nginx"), Need::Tool("curl"), Need::Tool("bash")]].concat())
}

fn outside(topology: &Topology) -> Counter<'_> {
    Counter::install(&topology.router, "west", PROTECTED_IPV4, PROTECTED_IPV6, PORT)
}

/// Tries to reach the far side from the gateway itself and from a sensor behind it: ICMP, UDP and TCP, IPv4 and IPv6.
fn try_everything(topology: &Topology) {
    thread::scope(|scope| {
        for namespace in [&topology.foreign, &topology.sensor] {
            for to in SERVER.into_iter().chain(VNET_INSIDE) {
                scope.spawn(move || {
                    namespace.ping(to, 3, "-i 0.05");
                    for open in [format!("echo > /dev/udp/{to}/53"), format!("echo > /dev/tcp/{to}/443")] {
                        // Refused at once or given up after a second, and through an open tunnel answered: all the same here.
                        namespace.exec(&["timeout", "1", "bash", "-c", &open]);
                    }
                });
            }
        }
    });
}

/// What is left of skyway in a namespace: rules, routes, and the table of nftables.
fn left_behind(namespace: &Namespace) -> String {
    let mut left = String::new();
    for family in ["-4", "-6"] {
        let rules = namespace.ip(&format!("{family} rule show"));
        left.extend(rules.lines().filter(|line| line.contains("5359")).map(|line| format!("{line}\n")));
        // It fails where the table has never been.
        left.push_str(&namespace.try_ip(&format!("{family} route show table 5359")).stdout);
    }
    let tables = namespace.exec(&["nft", "list", "tables"]).success();
    left.extend(tables.lines().filter(|line| line.contains("skyway")).map(|line| format!("{line}\n")));
    left
}

#[track_caller]
fn assert_closed(topology: &Topology) {
    let left = left_behind(&topology.foreign);
    for expected in ["unreachable 10.20.0.0/16 ", "unreachable fd20::/64 ", "not from all fwmark 0x14ef lookup 5359"] {
        assert!(left.contains(expected), "{expected:?} is not in:\n{left}");
    }
}

#[test]
fn the_counter_sees_what_leaks_where_there_is_no_gateway() {
    if !possible() {
        return;
    }
    let topology = Topology::build();
    let outside = outside(&topology);
    assert_eq!(outside.read(), NOTHING);
    try_everything(&topology);
    let leaked = outside.read();
    // At the least three echo requests from two places to two addresses.
    assert!(leaked.ipv4 >= 12 && leaked.ipv6 >= 12, "{leaked:?}");
}

#[test]
fn nothing_leaves_in_the_clear_in_any_phase() {
    if !possible() {
        return;
    }
    let mut site = Site::build();
    let outside = outside(&site.topology);
    let sensor = &site.topology.sensor;

    site.foreign.start();
    try_everything(&site.topology);
    assert_eq!(outside.read(), NOTHING, "before the peer has ever answered");
    assert_closed(&site.topology);

    site.vnet.start();
    site.foreign.wait_until_up(seconds(15));
    for to in SERVER {
        assert_eq!(sensor.ping(to, 5, ""), 5, "the tunnel is up and carries");
    }
    try_everything(&site.topology);
    assert_eq!(outside.read(), NOTHING, "while the tunnel is up");

    let mut flood = sensor.start(&["ping", "-q", "-n", "-i", "0.01", "-c", "300", "-W", "1", SERVER[0]]);
    let mut reloads = 0;
    while flood.is_running() {
        site.foreign.write(&replaced(&site.foreign_yaml, "allowed_ips: [", "allowed_ips: [10.21.0.0/16, "));
        site.foreign.reload().success();
        site.foreign.write(&site.foreign_yaml);
        site.foreign.reload().success();
        reloads += 2;
    }
    assert!(reloads >= 4, "the flood ran through {reloads} reloads");
    assert_eq!(received(&flood.finish(seconds(10)).stdout), 300);
    assert_eq!(outside.read(), NOTHING, "during reloads");

    site.vnet.kill();
    try_everything(&site.topology);
    assert_eq!(outside.read(), NOTHING, "while the peer is dead");

    site.foreign.kill();
    try_everything(&site.topology);
    assert_eq!(outside.read(), NOTHING, "after SIGKILL");
    assert_closed(&site.topology);

    // What the crash left is no obstacle.
    site.vnet.start();
    site.foreign.start();
    site.foreign.wait_until_up(seconds(15));
    assert_eq!(sensor.ping(SERVER[0], 3, ""), 3);
    assert_eq!(site.foreign.stop().code(), Some(0));
    try_everything(&site.topology);
    assert_eq!(outside.read(), NOTHING, "after SIGTERM");
    assert_closed(&site.topology);
}

#[test]
fn a_device_that_is_taken_down_or_away_leaks_nothing() {
    if !possible() {
        return;
    }
    for words in ["link set azure down", "link delete azure"] {
        let site = Site::up();
        let outside = outside(&site.topology);
        site.topology.foreign.ip(words);
        try_everything(&site.topology);
        assert_eq!(outside.read(), NOTHING, "{words}");
        assert_closed(&site.topology);
    }
}

#[test]
fn what_somebody_else_removes_is_put_back() {
    if !possible() {
        return;
    }
    let site = Site::up();
    let foreign = &site.topology.foreign;
    let kernel = || {
        let routes = foreign.exec(&["ip", "route", "show", "table", "5359"]).stdout;
        let rules = foreign.exec(&["ip", "rule", "show"]).stdout;
        let filter = foreign.exec(&["nft", "list", "ruleset"]).stdout;
        let counted = |line: &&str| line.contains("counter name") || line.contains("hook");
        let rules: Vec<&str> = rules.lines().filter(|line| line.contains("5359")).collect();
        format!("{routes}\n{rules:?}\n{:?}", filter.lines().filter(counted).collect::<Vec<_>>())
    };
    let before = kernel();
    assert!(before.contains("unreachable") && before.contains("dropped_azure_forward"), "{before}");
    for words in [
        &["ip", "route", "flush", "table", "5359"][..],
        &["ip", "rule", "del", "priority", "5359"],
        &["nft", "flush", "ruleset"],
        &["nft", "flush", "table", "inet", "skyway_aws_use1_a"],
        &["ip", "link", "set", "azure", "down"],
    ] {
        foreign.exec(words).success();
        if words.contains(&"down") {
            wait_for("status says that the routes wait", seconds(15), || site.foreign.status()["routes"][0]["state"] == "waiting");
            foreign.ip("link set azure up");
        }
        wait_for(&format!("all is as before {words:?}"), seconds(30), || kernel() == before);
    }
    wait_for("packets pass again", seconds(15), || site.topology.sensor.ping(SERVER[0], 1, "") == 1);
}

#[test]
fn a_second_gateway_with_devices_is_refused_in_the_same_namespace() {
    if !possible() {
        return;
    }
    let mut site = Site::up();
    let second = Gateway::new("second").inside(&site.topology.foreign);
    let yaml = [
        ("name: aws-use1-a", "metrics: off, name: second"),
        ("  azure:\n", "  other:\n"),
        ("listen: 51820", "listen: 51999"),
        ("tunnel: azure", "tunnel: other"),
    ];
    let yaml = yaml.iter().fold(site.foreign_yaml.clone(), |text, (from, to)| text.replace(from, to));
    for secret in ["azure.key", "vnet-a.psk", "line-3.pw"] {
        let text = std::fs::read_to_string(site.foreign.folder().join(secret)).expect("a secret");
        second.write_secret(secret, &text);
    }
    let yaml = yaml.replace(&site.foreign.folder().display().to_string(), &second.folder().display().to_string());
    let yaml = yaml
        .replace("0.0.0.0:3128", "0.0.0.0:3199")
        .replace("0.0.0.0:443", "0.0.0.0:4443")
        .replace("[::]:443", "[::]:4443")
        .replace("[::]:3128", "[::]:3199");
    second.write(&yaml);
    let refused = second.ask(&["run"]).failure(1);
    assert!(refused.contains("another skyway with TUN tunnels"), "{refused}");
    assert_eq!(site.topology.sensor.ping(SERVER[0], 3, ""), 3, "the first one is not touched");
    assert_eq!(site.foreign.stop().code(), Some(0));
}

#[test]
fn release_leaves_nothing_and_is_refused_while_the_gateway_runs() {
    if !possible() {
        return;
    }
    let mut site = Site::up();
    let refused = site.foreign.ask(&["release"]).failure(1);
    assert!(refused.contains("running"), "{refused}");
    assert_eq!(site.topology.sensor.ping(SERVER[0], 3, ""), 3, "a refused release changes nothing");
    assert_eq!(site.foreign.stop().code(), Some(0));
    assert_closed(&site.topology);

    site.foreign.ask(&["release"]).success();
    assert_eq!(left_behind(&site.topology.foreign), "");
    // Again, with nothing there.
    site.foreign.ask(&["release"]).success();

    site.foreign.start();
    site.foreign.wait_until_up(seconds(15));
    assert_eq!(site.topology.sensor.ping(SERVER[0], 3, ""), 3);
    assert_eq!(site.fetch_by_proxy(HUB).success(), format!("{HUB}\n"));
}

/// `curl` for a URL without trusting whoever answers, given up soon.
fn fetch(from: &Namespace, url: &str) -> Finished {
    let mut curl: Command = from.command(&["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "2", url]);
    finish(&mut curl, seconds(10))
}

#[track_caller]
fn assert_closed_to(from: &Namespace, url: &str) {
    let fetched = fetch(from, url);
    // 28: it heard nothing at all. A refusal or a reset would be an answer.
    assert_eq!(fetched.code, Some(28), "{url}: {fetched}");
}

/// How many packets the inward filter of the foreign gateway has dropped in `hook`.
fn dropped(site: &Site, hook: &str) -> u64 {
    let text = site.topology.foreign.exec(&["nft", "-j", "list", "counters", "table", "inet", "skyway_aws_use1_a"]).success();
    let listed: Value = serde_json::from_str(&text).expect("nft writes JSON");
    let mut counters = listed["nftables"].as_array().into_iter().flatten().map(|object| &object["counter"]);
    let found = counters.find(|counter| counter["name"] == format!("dropped_azure_{hook}"));
    found.and_then(|counter| counter["packets"].as_u64()).expect("the counter is there")
}

#[test]
fn the_vnet_side_opens_nothing_that_is_not_listed() {
    if !possible() {
        return;
    }
    let site = Site::up();
    let (sensor, server, vnet) = (&site.topology.sensor, &site.topology.server, &site.topology.vnet);
    let _in_the_plant = Nginx::start(sensor, &Authority::create());
    let plant = ["https://10.1.2.10/", "https://[fd10:1:2::10]/"];
    let listeners = ["http://10.99.0.1:3128/", "http://10.1.2.1:3128/"];

    for url in plant {
        assert_closed_to(server, url);
    }
    for url in listeners {
        assert_closed_to(server, url);
        assert_closed_to(vnet, url);
    }
    assert_eq!(server.ping("10.1.2.10", 3, ""), 0, "a sensor does not answer to the VNET");
    assert_eq!(vnet.ping(FOREIGN_INSIDE[0], 3, ""), 3, "the gateway itself does");
    assert!(dropped(&site, "forward") >= 5 && dropped(&site, "input") >= 4, "each drop is counted");

    // What the site opens is answered, by packets as well as through the relay.
    let (resolve, url) = (format!("{HUB}:443:{}", SERVER[0]), format!("https://{HUB}/"));
    assert_eq!(finish(&mut site.curl(&["--resolve", &resolve, &url]), seconds(70)).success(), format!("{HUB}\n"));
    assert_eq!(site.fetch_by_proxy(HUB).success(), format!("{HUB}\n"));

    // A listed prefix is open, its neighbours are not.
    site.rewrite_foreign("inbound: [ ]", "inbound: [10.1.2.10/32]");
    site.foreign.reload().success();
    assert_eq!(fetch(server, plant[0]).success(), "200");
    assert_closed_to(server, plant[1]);
    for url in listeners {
        assert_closed_to(server, url);
    }

    // The gateway's own listener, if that is what was listed: it answers, if only that it takes nothing but CONNECT.
    site.rewrite_foreign("inbound: [ ]", "inbound: [10.99.0.1/32]");
    site.foreign.reload().success();
    assert_eq!(fetch(vnet, listeners[0]).success(), "405");
    assert_closed_to(server, plant[0]);

    site.foreign.write(&site.foreign_yaml);
    site.foreign.reload().success();
    assert_closed_to(vnet, listeners[0]);
}
