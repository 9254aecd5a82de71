//! WireGuard as others wrote it: wireguard-go, configured by `wg`, against skyway, each as initiator and as responder.

use tests::keys::{Keys, preshared};
use tests::netns::received;
use tests::nginx::Nginx;
use tests::process::finish;
use tests::report::{NAMESPACES, Need, machine_has};
use tests::skyway::Gateway;
use tests::tls::Authority;
use tests::topology::Pair;
use tests::wireguard_go::WireguardGo;
use tests::{BLOB, HUB, seconds, wait_for};
use tunnel::DropReason;

const PORT: u16 = 51820;
/// Outside, IPv4 then IPv6: where each side is reached.
const HERE: [&str; 2] = ["192.0.2.1:51820", "[2001:db8::1]:51820"];
const THERE: [&str; 2] = ["192.0.2.2:51820", "[2001:db8::2]:51820"];
/// Inside the tunnel.
const HERE_INSIDE: [&str; 2] = ["10.99.0.1", "fd99::1"];
const THERE_INSIDE: [&str; 2] = ["10.99.0.2", "fd99::2"];
/// What skyway's side may send, as `wg` wants it.
const HERE_PREFIXES: &str = "10.99.0.1/32,fd99::1/128";

const YAML: &str = r#"version: 1
gateway: { name: here, cloud: other, admin: FOLDER/admin.sock }
tunnels:
  sky:
    mode: MODE
    private_key: { file: key }
    listen: 51820
    addresses: [10.99.0.1/30, "fd99::1/126"]
    mtu: 1420
    peers:
      go:
        public_key: "PEER_KEY"
        preshared_key: { file: psk }
        endpoints: [ENDPOINTS]
        allowed_ips: [10.99.0.2/32, "fd99::2/128"]
        keepalive: 25s
        cloud: other
"#;

const RELAY: &str = r#"relay:
  catalogue:
    hosts:
      - { host: contoso-hub.azure-devices.net, addresses: [10.99.0.2], allow: [10.99.0.0/30] }
      - { host: contososa.blob.core.windows.net, addresses: [192.0.2.1], allow: [192.0.2.0/30] }
  sensors: { site: { from: [192.0.2.1/32, 127.0.0.0/8] }, go: { from: [10.99.0.2/32] } }
  paths:
    - { name: inside, via: { tunnel: sky }, probe: off }
    - { name: out, via: direct, probe: off }
  listeners:
    - { name: outside, kind: connect, listen: "127.0.0.1:3128" }
    - { name: inside, kind: connect, listen: { tunnel: sky, port: 3129 } }
"#;

fn possible() -> bool {
    machine_has(&[NAMESPACES, &[Need::Tool("wireguard-go"), Need::Tool("wg")]].concat())
}

/// skyway's files, and what both sides must know of each other.
struct Ours {
    gateway: Gateway,
    keys: Keys,
    peer_keys: Keys,
    preshared_key: String,
}

impl Ours {
    /// `endpoints`: where skyway looks for its peer; empty: the peer comes to it.
    fn prepare(pair: &Pair, mode: &str, endpoints: &[&str], more: &str) -> Self {
        let (keys, peer_keys, preshared_key) = (Keys::generate(), Keys::generate(), preshared());
        let gateway = Gateway::new("skyway").inside(&pair.here);
        gateway.write_secret("key", &keys.private);
        gateway.write_secret("psk", &preshared_key);
        let endpoints: Vec<String> = endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
        let yaml = YAML.replace("MODE", mode).replace("ENDPOINTS", &endpoints.join(", ")).replace("PEER_KEY", &peer_keys.public);
        gateway.write(&(yaml + more));
        Self { gateway, keys, peer_keys, preshared_key }
    }

    /// wireguard-go that knows skyway. `more`: of `wg set … peer`, an endpoint for example.
    fn peer<'a>(&self, pair: &'a Pair, more: &[&str]) -> WireguardGo<'a> {
        let peer = WireguardGo::start(&pair.there, &self.peer_keys.private, PORT, &["10.99.0.2/30", "fd99::2/126"]);
        peer.set_peer(&self.keys.public, &self.preshared_key, HERE_PREFIXES, more);
        peer
    }
}

/// Echo both ways over both families, and bytes that the other side counts.
#[track_caller]
fn assert_packets_cross(pair: &Pair, peer: &WireguardGo<'_>) {
    for to in HERE_INSIDE {
        assert_eq!(pair.there.ping(to, 5, ""), 5, "wireguard-go to {to}");
    }
    for to in THERE_INSIDE {
        assert_eq!(pair.here.ping(to, 5, ""), 5, "skyway to {to}");
    }
    // As large as the MTU of 1420 allows, and answered as large.
    assert_eq!(pair.here.ping(THERE_INSIDE[0], 2, "-M do -s 1392"), 2);
    assert_eq!(pair.there.ping(HERE_INSIDE[1], 2, "-M do -s 1372"), 2);
    let (received, sent) = peer.transfer();
    assert!(received > 3000 && sent > 3000, "wg show counts {received} received, {sent} sent");
}

#[test]
fn tun_mode_initiates_to_wireguard_go() {
    if !possible() {
        return;
    }
    for endpoint in THERE {
        let pair = Pair::build();
        let mut ours = Ours::prepare(&pair, "tun", &[endpoint], "");
        let peer = ours.peer(&pair, &[]);
        ours.gateway.start();
        // Without traffic: a gateway wants its session at once.
        ours.gateway.wait_until_up(seconds(5));
        assert_eq!(ours.gateway.peer("go")["endpoint"], endpoint);
        assert_packets_cross(&pair, &peer);
    }
}

#[test]
fn tun_mode_answers_wireguard_go() {
    if !possible() {
        return;
    }
    for (here, there) in HERE.into_iter().zip(THERE) {
        let pair = Pair::build();
        let mut ours = Ours::prepare(&pair, "tun", &[], "");
        ours.gateway.start();
        assert_eq!(ours.gateway.peer("go")["state"], "idle");
        let peer = ours.peer(&pair, &["endpoint", here, "persistent-keepalive", "1"]);
        ours.gateway.wait_until_up(seconds(10));
        assert_eq!(ours.gateway.peer("go")["endpoint"], there);
        assert_packets_cross(&pair, &peer);
    }
}

#[test]
fn userspace_mode_relays_to_and_from_wireguard_go() {
    if !possible() || !machine_has(&[Need::Tool("nginx"), Need::Tool("curl")]) {
        return;
    }
    let authority = Authority::create();
    let pair = Pair::build();
    let _server_there = Nginx::start(&pair.there, &authority);
    let _server_here = Nginx::start(&pair.here, &authority);
    for initiates in [true, false] {
        let endpoints: &[&str] = if initiates { &THERE[..1] } else { &[] };
        let mut ours = Ours::prepare(&pair, "userspace", endpoints, RELAY);
        ours.gateway.write_file("authority.pem", &authority.pem, 0o644);
        let trust = ours.gateway.folder().join("authority.pem");
        ours.gateway.start();
        let more: &[&str] = if initiates { &[] } else { &["endpoint", HERE[0], "persistent-keepalive", "1"] };
        let peer = ours.peer(&pair, more);
        ours.gateway.wait_until_up(seconds(15));

        for to in HERE_INSIDE {
            assert_eq!(pair.there.ping(to, 3, ""), 3, "skyway's own stack answers at {to}");
        }
        for (namespace, proxy, host) in [(&pair.here, "http://127.0.0.1:3128", HUB), (&pair.there, "http://10.99.0.1:3129", BLOB)] {
            let mut curl =
                namespace.command(&["curl", "-sS", "--max-time", "20", "--proxy", proxy, &format!("https://{host}/"), "--cacert"]);
            assert_eq!(finish(curl.arg(&trust), seconds(30)).success(), format!("{host}\n"), "initiator: {initiates}");
        }
        let (received, sent) = peer.transfer();
        assert!(received > 1000 && sent > 1000, "wg show counts {received} received, {sent} sent");
    }
}

#[test]
fn show_has_the_labels_of_wg_show_in_their_order() {
    if !possible() {
        return;
    }
    let pair = Pair::build();
    let mut ours = Ours::prepare(&pair, "tun", &THERE[..1], "");
    let peer = ours.peer(&pair, &["persistent-keepalive", "25"]);
    ours.gateway.start();
    ours.gateway.wait_until_up(seconds(5));
    assert_packets_cross(&pair, &peer);
    // A label is what stands before the colon, with its indentation.
    let labels = |text: &str| -> Vec<String> {
        let labels = text.lines().filter_map(|line| line.split_once(": ")).map(|(label, _)| label.to_owned());
        labels.filter(|label| !label.contains("fwmark")).collect()
    };
    assert_eq!(labels(&ours.gateway.ask(&["show"]).success()), labels(&peer.show()));
}

#[test]
fn a_peer_that_roams_is_followed() {
    if !possible() {
        return;
    }
    let pair = Pair::build();
    let mut ours = Ours::prepare(&pair, "tun", &THERE[..1], "");
    let peer = ours.peer(&pair, &[]);
    ours.gateway.start();
    ours.gateway.wait_until_up(seconds(5));
    assert_packets_cross(&pair, &peer);

    // Another port, as behind a NAT that forgot: the first packet from there moves the endpoint.
    peer.set(&["listen-port", "51999"]);
    assert_eq!(pair.there.ping(HERE_INSIDE[0], 3, ""), 3);
    wait_for("the endpoint has followed to the port", seconds(5), || ours.gateway.peer("go")["endpoint"] == "192.0.2.2:51999");
    assert_eq!(ours.gateway.peer("go")["roamed"], true);
    assert_packets_cross(&pair, &peer);

    // The other family.
    peer.set(&["peer", &ours.keys.public, "endpoint", HERE[1]]);
    assert_eq!(pair.there.ping(HERE_INSIDE[0], 3, ""), 3);
    wait_for("the endpoint has followed to IPv6", seconds(5), || ours.gateway.peer("go")["endpoint"] == "[2001:db8::2]:51999");
    assert_packets_cross(&pair, &peer);
}

#[test]
fn a_spoofed_inner_source_is_dropped_and_counted() {
    if !possible() {
        return;
    }
    let pair = Pair::build();
    let mut ours = Ours::prepare(&pair, "tun", &THERE[..1], "");
    let peer = ours.peer(&pair, &[]);
    ours.gateway.start();
    ours.gateway.wait_until_up(seconds(5));
    assert_eq!(ours.gateway.drops(DropReason::SourceNotAllowed), 0);

    let interface = peer.interface();
    pair.there.ip(&format!("address add 10.66.0.1/32 dev {interface}"));
    pair.there.ip(&format!("address add fd66::1/128 dev {interface}"));
    assert_eq!(pair.there.ping(HERE_INSIDE[0], 4, "-I 10.66.0.1"), 0);
    assert_eq!(pair.there.ping(HERE_INSIDE[1], 4, "-I fd66::1"), 0);
    wait_for("every one of them is counted", seconds(5), || ours.gateway.drops(DropReason::SourceNotAllowed) == 8);
    assert_packets_cross(&pair, &peer);
}

#[test]
fn handshake_trouble_is_told_apart_and_ends_when_it_is_mended() {
    if !possible() {
        return;
    }
    let pair = Pair::build();
    let mut ours = Ours::prepare(&pair, "tun", &THERE[..1], "");
    // Nobody there yet.
    ours.gateway.start();
    let trouble = |ours: &Ours| ours.gateway.peer("go")["trouble"].as_str().unwrap_or("none").to_owned();
    wait_for("no answer", seconds(20), || trouble(&ours) == "no_answer");

    // There, but with another preshared key.
    let peer = WireguardGo::start(&pair.there, &ours.peer_keys.private, PORT, &["10.99.0.2/30", "fd99::2/126"]);
    peer.set_peer(&ours.keys.public, &preshared(), HERE_PREFIXES, &[]);
    wait_for("an answer that does not open", seconds(20), || trouble(&ours) == "answer_does_not_open");
    let told = ours.gateway.ask(&["status"]);
    assert_eq!(told.code, Some(1), "{told}");
    assert!(told.stdout.contains("preshared keys"), "{told}");

    peer.set_peer(&ours.keys.public, &ours.preshared_key, HERE_PREFIXES, &[]);
    ours.gateway.wait_until_up(seconds(20));
    assert_eq!(trouble(&ours), "none");
    assert_packets_cross(&pair, &peer);
}

#[test]
fn a_restarted_peer_is_back_at_once_if_it_speaks_first() {
    if !possible() {
        return;
    }
    let pair = Pair::build();
    let mut ours = Ours::prepare(&pair, "tun", &THERE[..1], "");
    let peer = ours.peer(&pair, &["endpoint", HERE[0]]);
    ours.gateway.start();
    ours.gateway.wait_until_up(seconds(5));
    drop(peer);
    let peer = ours.peer(&pair, &["endpoint", HERE[0]]);
    // Its first packet waits for the handshake that it causes.
    assert!(pair.there.ping(HERE_INSIDE[0], 20, "") >= 10, "at most one second is lost");
    assert_packets_cross(&pair, &peer);
}

/// 300 s at 20 packets a second, both ways at once, over two rekeys. Run with `--ignored`, as tests/run does when
/// SKYWAY_LONG=1.
#[test]
#[ignore = "takes five minutes"]
fn no_packet_is_lost_over_two_rekeys_with_wireguard_go() {
    if !possible() {
        return;
    }
    let pair = Pair::build();
    let mut ours = Ours::prepare(&pair, "tun", &THERE[..1], "");
    let _peer = ours.peer(&pair, &["endpoint", HERE[0]]);
    ours.gateway.start();
    ours.gateway.wait_until_up(seconds(5));
    let ping = |to: &'static str| ["ping", "-q", "-n", "-i", "0.05", "-c", "6000", "-W", "2", to];
    let out = pair.here.start(&ping(THERE_INSIDE[0]));
    let back = pair.there.start(&ping(HERE_INSIDE[1]));
    assert_eq!(received(&out.finish(seconds(400)).stdout), 6000);
    assert_eq!(received(&back.finish(seconds(60)).stdout), 6000);
}
