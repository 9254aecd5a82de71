//! Files with mistakes and machines that refuse: a clear sentence for each, the right exit code, and nothing started.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::Command;

use tests::keys::{Keys, preshared};
use tests::loopback::address;
use tests::process::{Finished, finish, finish_with_input};
use tests::skyway::{Gateway, User, binary};
use tests::{replaced, seconds};

const YAML: &str = r#"version: 1
gateway: { name: alone, admin: FOLDER/admin.sock, metrics: off }
tunnels:
  azure:
    mode: userspace
    private_key: { file: key }
    listen: "LISTEN"
    addresses: [10.99.0.1/30]
    peers:
      vnet-a:
        public_key: "PEER_KEY"
        preshared_key: { file: psk }
        allowed_ips: [10.99.0.2/32, 10.20.0.0/16]
        keepalive: 25s
relay:
  catalogue: { hosts: [ "contoso-hub.azure-devices.net" ] }
  sensors: { line-3: { from: [10.1.2.0/24] } }
  paths:
    - { name: vnet, via: { tunnel: azure }, parents: ["http://10.99.0.2:3128"] }
  listeners:
    - { name: proxy, kind: connect, listen: "CONNECT" }
"#;

/// A gateway whose file is good, to be spoilt.
struct Alone {
    gateway: Gateway,
    yaml: String,
    keys: Keys,
    peer_key: String,
    udp: SocketAddr,
    connect: SocketAddr,
}

impl Alone {
    fn build() -> Self {
        let (keys, peer_key) = (Keys::generate(), Keys::generate().public);
        let (udp, connect) = (SocketAddr::new(address().into(), 51820), SocketAddr::new(address().into(), 3128));
        let yaml = YAML.replace("LISTEN", &udp.to_string()).replace("CONNECT", &connect.to_string()).replace("PEER_KEY", &peer_key);
        let gateway = Gateway::new("alone").run_as(User::Nobody);
        gateway.write_secret("key", &keys.private);
        gateway.write_secret("psk", &preshared());
        gateway.write(&yaml);
        Self { gateway, yaml, keys, peer_key, udp, connect }
    }

    /// `run` must end by itself, with code 1, and leave its ports alone.
    #[track_caller]
    fn run_to_its_end(&self) -> String {
        let told = self.gateway.ask(&["run"]).failure(1);
        assert!(told.contains("nothing was started"), "{told}");
        drop(UdpSocket::bind(self.udp).expect("its UDP port is free"));
        drop(TcpListener::bind(self.connect).expect("its TCP port is free"));
        told
    }

    /// Both `check` and `run` must say every one of `expected`.
    #[track_caller]
    fn assert_refused(&self, what: &str, expected: &[&str]) {
        let checked = self.gateway.ask(&["check"]).failure(1);
        for told in [checked, self.run_to_its_end()] {
            for expected in expected {
                assert!(told.contains(expected), "{what}: {expected:?} is not in:\n{told}");
            }
            // Where it is: a file, a line and a column.
            assert!(told.contains("skyway.yaml:"), "{what}: {told}");
        }
    }
}

fn errors(told: &str) -> usize {
    told.lines().filter(|line| line.starts_with("error")).count()
}

#[test]
fn a_good_file_is_called_good() {
    let alone = Alone::build();
    let told = alone.gateway.ask(&["check"]).success();
    assert!(told.contains("is good"), "{told}");
}

#[test]
fn three_mistakes_get_three_diagnostics() {
    let alone = Alone::build();
    let yaml = replaced(&alone.yaml, "keepalive: 25s", "keepalvie: 25s");
    let yaml = replaced(&yaml, "addresses: [10.99.0.1/30]", "addresses: [10.99.0.1]");
    let yaml = replaced(&yaml, "kind: connect", "kind: conect");
    alone.gateway.write(&yaml);
    let expected = ["keepalvie", "did you mean: keepalive", "10.99.0.1]", "ADDRESS/LENGTH", "conect", "did you mean: connect"];
    alone.assert_refused("three mistakes", &expected);
    assert_eq!(errors(&alone.run_to_its_end()), 3);
}

#[test]
fn keys_and_prefixes_that_cannot_be_right_are_refused() {
    let alone = Alone::build();
    let own = &alone.keys.public;
    // Zero, the simplest of the points whose shared secret everybody knows (RFC 7748 §6.1).
    let low_order = format!("{}=", "A".repeat(43));
    let second_peer =
        |key: &str, prefix: &str| format!("    peers:\n      vnet-b:\n        public_key: \"{key}\"\n        allowed_ips: [{prefix}]\n");
    let second_tunnel = format!(
        "tunnels:\n  other:\n    mode: userspace\n    private_key: {{ file: psk }}\n    listen: \"{}:51821\"\n    addresses: [10.99.0.2/29]\n",
        alone.udp.ip()
    );
    for (what, from, to, expected) in [
        ("its own key as a peer", alone.peer_key.as_str(), own.clone(), "this gateway's own public key"),
        ("a low-order key", alone.peer_key.as_str(), low_order, "low-order key"),
        ("no key at all", alone.peer_key.as_str(), "tomorrow".into(), "not a WireGuard key"),
        ("one key twice", "    peers:\n", second_peer(&alone.peer_key, "10.21.0.0/16"), "the same public key twice"),
        ("one prefix twice", "    peers:\n", second_peer(&Keys::generate().public, "10.20.0.0/16"), "already allowed for peer vnet-b"),
        ("overlapping addresses", "tunnels:\n", second_tunnel, "overlaps"),
    ] {
        alone.gateway.write(&replaced(&alone.yaml, from, &to));
        alone.assert_refused(what, &[expected]);
    }
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_command_that_mends_it() {
    let alone = Alone::build();
    for mode in [0o644, 0o640, 0o604] {
        alone.gateway.write_file("key", &alone.keys.private, mode);
        let mend = format!("chmod 600 {}/key", alone.gateway.folder().display());
        alone.assert_refused("a key that others can read", &[&format!("{mode:04o}"), &mend]);
    }
    // The command does mend it.
    let path = alone.gateway.folder().join("key");
    finish(Command::new("chmod").arg("600").arg(path), seconds(5)).success();
    alone.gateway.ask(&["check"]).success();
}

#[test]
fn secrets_that_are_not_there_are_told_with_what_makes_them() {
    let alone = Alone::build();
    alone.gateway.write(&replaced(&alone.yaml, "{ file: key }", "{ file: missing }"));
    alone.assert_refused("a missing key", &["missing", "skyway genkey"]);
    alone.gateway.write(&replaced(&alone.yaml, "{ file: key }", "{ env: NOT_SET_ANYWHERE }"));
    alone.assert_refused("an unset variable", &["NOT_SET_ANYWHERE", "not set"]);
    alone.gateway.write_secret("empty", "\n");
    alone.gateway.write(&replaced(&alone.yaml, "{ file: key }", "{ file: empty }"));
    alone.assert_refused("an empty file", &["is empty"]);
}

#[test]
fn no_secret_is_ever_shown() {
    let alone = Alone::build();
    // A key in the YAML itself is the classic mistake: it is refused and not repeated.
    let inline = format!("private_key: \"{}\"", alone.keys.private);
    alone.gateway.write(&replaced(&alone.yaml, "private_key: { file: key }", &inline));
    for subcommand in ["check", "run"] {
        let told = alone.gateway.ask(&[subcommand]);
        assert!(!told.stderr.contains(&alone.keys.private) && !told.stdout.contains(&alone.keys.private), "the key was shown");
        told.failure(1);
    }
}

#[test]
fn ports_that_are_taken_are_named() {
    let alone = Alone::build();
    let holder = UdpSocket::bind(alone.udp).expect("the port is free");
    let told = alone.gateway.ask(&["run"]).failure(1);
    assert!(told.contains(&alone.udp.to_string()) && told.contains("is taken") && told.contains("azure"), "{told}");
    drop(holder);

    let holder = TcpListener::bind(alone.connect).expect("the port is free");
    let told = alone.gateway.ask(&["run"]).failure(1);
    assert!(told.contains(&alone.connect.to_string()) && told.contains("is taken") && told.contains("proxy"), "{told}");
    drop(holder);
}

#[test]
fn a_second_gateway_with_the_same_socket_is_refused() {
    let mut alone = Alone::build();
    alone.gateway.start();
    let told = alone.gateway.ask(&["run"]).failure(1);
    assert!(told.contains("runs already"), "{told}");
    assert_eq!(alone.gateway.status()["gateway"], "alone", "the first goes on");
}

#[test]
fn without_the_right_to_make_a_device_tun_mode_says_what_to_do() {
    let alone = Alone::build();
    alone.gateway.write(&replaced(&alone.yaml, "mode: userspace", "mode: tun"));
    let told = alone.run_to_its_end();
    assert!(told.contains("/dev/net/tun") || told.contains("CAP_NET_ADMIN"), "{told}");
    assert!(told.contains("mode: userspace"), "{told}");
}

#[test]
fn auto_mode_falls_back_to_userspace_where_it_may_not_make_a_device() {
    let mut alone = Alone::build();
    alone.gateway.write(&replaced(&alone.yaml, "mode: userspace", "mode: auto"));
    alone.gateway.start();
    assert_eq!(alone.gateway.status()["tunnels"][0]["mode"], "userspace");
}

#[test]
fn text_that_is_no_yaml_is_told_with_its_place() {
    let alone = Alone::build();
    for text in ["tunnels: [", "version: 1\n\tgateway: {}\n", "", "- 1\n- 2\n", "a: &a [*a]\n", "\u{0}"] {
        alone.gateway.write(text);
        let told = alone.gateway.ask(&["check"]).failure(1);
        assert!(errors(&told) >= 1, "{text:?}: {told}");
        alone.gateway.ask(&["run"]).failure(1);
    }
}

#[test]
fn wrong_usage_is_another_code_than_a_bad_file() {
    let alone = Alone::build();
    let use_it = |words: &[&str]| -> Finished { finish(&mut alone.gateway.bare_command(words), seconds(10)) };
    use_it(&["frobnicate"]).failure(2);
    use_it(&["run", "--no-such-option"]).failure(2);
    let told = use_it(&["check", "-c", "/nonexistent/skyway.yaml"]).failure(2);
    assert!(told.contains("/nonexistent/skyway.yaml"), "{told}");
    // Nobody to ask.
    alone.gateway.ask(&["status"]).failure(2);
    for subcommand in ["run", "check", "reload", "release", "status", "show", "genkey", "pubkey", "demo"] {
        let help = use_it(&[subcommand, "--help"]).success();
        assert!(help.lines().count() > 5, "{subcommand} --help teaches nothing: {help}");
    }
}

#[test]
fn keys_are_made_and_read_as_wg_does() {
    let skyway = |word: &str, input: &str| finish_with_input(Command::new(binary()).arg(word), input.as_bytes(), seconds(10));
    let private = skyway("genkey", "").success();
    let public = skyway("pubkey", &private).success();
    assert_eq!((private.trim().len(), public.trim().len()), (44, 44));
    // `wg genkey | tee key | wg pubkey`, wireguard-tools 1.0.20210914.
    let known = skyway("pubkey", "2HJJ1mNjF4eyOZIQ4YYPy7+kFBPuoMd9UVBKdmQI4W8=\n").success();
    assert_eq!(known.trim(), KNOWN_PUBLIC_KEY);
    skyway("pubkey", "tomorrow").failure(2);
}

const KNOWN_PUBLIC_KEY: &str = "vXH/c36eWZ//c4yyKQtZ/4jffdrA3OyEisN3FPphiAU=";
