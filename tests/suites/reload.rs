//! Reload under load: what changes is changed, what did not is not touched, and a bad file changes nothing.

use std::path::Path;
use std::process::Command;

use tests::counter::{Counter, NOTHING};
use tests::keys::Keys;
use tests::netns::received;
use tests::process::{Process, Signal, finish};
use tests::report::{NAMESPACES, Need, machine_has};
use tests::site::{PORT, PROTECTED_IPV4, PROTECTED_IPV6, SERVER, Site};
use tests::{BLOB, HUB, replaced, seconds, wait_for};

fn possible() -> bool {
    machine_has(&[NAMESPACES, &[Need::Tool("nginx"), Need::Tool("curl")]].concat())
}

const BOTH_HOSTS: &str = r#"hosts: [ "contoso-hub.azure-devices.net", "contososa.blob.core.windows.net" ]"#;
const HUB_ALONE: &str = r#"hosts: [ "contoso-hub.azure-devices.net" ]"#;

/// `yaml` with a second peer, which nobody is behind.
fn with_second_peer(yaml: &str) -> String {
    let peer = format!(
        "    peers:\n      vnet-b:\n        public_key: \"{}\"\n        allowed_ips: [10.77.0.0/16]\n        endpoints: [\"192.0.2.2:51821\"]\n",
        Keys::generate().public
    );
    replaced(yaml, "    peers:\n", &peer)
}

/// `yaml` with one more prefix, allowed and routed.
fn with_second_route(yaml: &str) -> String {
    let allowed = replaced(yaml, "10.20.0.0/16, \"fd99::2/128\"", "10.20.0.0/16, 10.21.0.0/16, \"fd99::2/128\"");
    replaced(&allowed, "  static:\n", "  static:\n    - { prefix: 10.21.0.0/16, via: { tunnel: azure } }\n")
}

#[test]
fn a_reload_under_load_loses_no_packet_and_no_session() {
    if !possible() {
        return;
    }
    let mut site = Site::build();
    let yaml = replaced(&site.foreign_yaml, BOTH_HOSTS, HUB_ALONE);
    site.foreign.write(&yaml);
    site.vnet.start();
    site.foreign.start();
    site.foreign.wait_until_up(seconds(15));
    let outside = Counter::install(&site.topology.router, "west", PROTECTED_IPV4, PROTECTED_IPV6, PORT);
    assert_ne!(site.fetch_by_proxy(BLOB).code, Some(0), "not yet in the catalogue");
    let handshake = |site: &Site| site.foreign.peer("vnet-a")["last_handshake_unix"].as_u64();
    let before = handshake(&site);

    // Ten seconds of both: a download by the relay, and a hundred packets a second forwarded.
    let copy = site.foreign.folder().join("download");
    let url = format!("https://{HUB}/download");
    let mut download = site.curl(&["--proxy", "http://10.1.2.1:3128", "--limit-rate", "1M", &url, "-o"]);
    let mut download = Process::start("download", download.arg(&copy));
    let mut flood = site.topology.sensor.start(&["ping", "-q", "-n", "-i", "0.01", "-c", "900", "-W", "2", SERVER[0]]);

    let steps = [
        ("a peer more", with_second_peer(&yaml)),
        ("a peer less", yaml.clone()),
        ("a route more", with_second_route(&yaml)),
        ("a route less", yaml.clone()),
        ("a host more", site.foreign_yaml.clone()),
    ];
    for (step, yaml) in steps {
        let generation = site.foreign.generation();
        site.foreign.write(&yaml);
        site.foreign.reload().success();
        assert_eq!(site.foreign.generation(), generation + 1, "{step}");
        let peers = site.foreign.status()["tunnels"][0]["peers"].as_array().map_or(0, Vec::len);
        assert_eq!(peers, if step == "a peer more" { 2 } else { 1 }, "{step}");
        let routes = site.topology.foreign.ip("route show table 5359");
        assert_eq!(routes.contains("10.21.0.0/16 dev azure"), step == "a route more", "{step}: {routes}");
        assert_eq!(routes.contains("unreachable 10.21.0.0/16"), step == "a route more", "{step}: {routes}");
    }
    assert_eq!(site.fetch_by_proxy(BLOB).success(), format!("{BLOB}\n"));
    // The same file again: nothing to do is nothing done.
    let generation = site.foreign.generation();
    site.foreign.reload().success();
    assert_eq!(site.foreign.generation(), generation);
    assert!(download.is_running() && flood.is_running(), "the load outlasted the reloads");

    assert_eq!(received(&flood.finish(seconds(40)).stdout), 900);
    download.finish(seconds(60)).success();
    assert_eq!(sha256(&copy), sha256(&site.nginx.download()));
    assert_eq!(handshake(&site), before, "the session was kept, not made anew");
    assert_eq!(outside.read(), NOTHING);
}

#[test]
fn a_bad_file_changes_nothing_and_every_mistake_is_told() {
    if !possible() {
        return;
    }
    let mut site = Site::up();
    let generation = site.foreign.generation();
    let bad = replaced(&site.foreign_yaml, "keepalive: 25s", "keepalvie: 25s");
    let bad = replaced(&bad, "prefix: 10.20.0.0/16,", "prefix: 10.20.0.1/16,");
    let bad = replaced(&bad, "paths:\n    - { name: vnet, via: { tunnel: azure }", "paths:\n    - { name: vnet, via: { tunnel: azur }");
    site.foreign.write(&bad);

    for subcommand in ["check", "reload"] {
        let told = site.foreign.ask(&[subcommand]).failure(1);
        let errors = told.lines().filter(|line| line.starts_with("error")).count();
        assert_eq!(errors, 3, "{subcommand}: {told}");
        for expected in ["keepalvie", "did you mean: keepalive", "10.20.0.1/16", "azur", "did you mean: azure"] {
            assert!(told.contains(expected), "{subcommand} does not say {expected:?}: {told}");
        }
    }
    assert_eq!(site.foreign.generation(), generation);
    assert_eq!(site.fetch_by_proxy(HUB).success(), format!("{HUB}\n"));

    // By signal there is nobody to be told, so the log is.
    site.foreign.process().signal(Signal::HangUp);
    site.foreign.process().wait_for_line("keepalvie", seconds(10));
    assert_eq!(site.foreign.generation(), generation);
    assert_eq!(site.fetch_by_proxy(HUB).success(), format!("{HUB}\n"));

    // A file that is gone is no different.
    std::fs::remove_file(site.foreign.config()).expect("the file removed");
    site.foreign.process().signal(Signal::HangUp);
    site.foreign.process().wait_for_line("cannot be read", seconds(10));
    site.foreign.write(&site.foreign_yaml);
    assert_eq!(site.foreign.generation(), generation);
    assert_eq!(site.fetch_by_proxy(HUB).success(), format!("{HUB}\n"));
}

#[test]
fn sighup_reloads() {
    if !possible() {
        return;
    }
    let mut site = Site::up();
    assert_eq!(site.fetch_by_proxy(BLOB).success(), format!("{BLOB}\n"));
    let generation = site.foreign.generation();
    site.rewrite_foreign(BOTH_HOSTS, HUB_ALONE);
    site.foreign.process().signal(Signal::HangUp);
    wait_for("the reload is done", seconds(10), || site.foreign.generation() == generation + 1);
    let refused = site.fetch_by_proxy(BLOB);
    assert!(refused.code != Some(0) && refused.stderr.contains("403"), "{refused}");
    assert_eq!(site.fetch_by_proxy(HUB).success(), format!("{HUB}\n"));
}

#[test]
fn what_takes_a_restart_is_refused_by_its_name() {
    if !possible() {
        return;
    }
    let site = Site::up();
    let generation = site.foreign.generation();
    for (from, to, name) in [
        ("name: aws-use1-a", "name: aws-use1-b", "gateway"),
        ("listen: 51820", "listen: 51821", "azure"),
        ("addresses: [10.99.0.1/30,", "addresses: [10.99.0.5/30,", "azure"),
        ("mode: auto", "mode: tun", "azure"),
    ] {
        site.rewrite_foreign(from, to);
        let refused = site.foreign.reload().failure(1);
        assert!(refused.contains(name) && refused.contains("restart"), "{to}: {refused}");
        assert_eq!(site.foreign.generation(), generation, "{to}");
    }
    site.foreign.write(&site.foreign_yaml);
    assert_eq!(site.fetch_by_proxy(HUB).success(), format!("{HUB}\n"));
}

fn sha256(file: &Path) -> String {
    let printed = finish(Command::new("sha256sum").arg(file), seconds(30)).success();
    printed.split_whitespace().next().expect("a sum").to_owned()
}
