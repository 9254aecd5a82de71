//! The answer to `get`: what `wg show` prints comes of it.
//!
//! What is configured is told from the settings, which a `set` has changed by the time it is answered; what is happening,
//! from the newest snapshot of the lane, which may not know a peer yet that has just been made.
//!
//! Left out on purpose: `private_key`, always, and `preshared_key` where there is one. Secrets go into this gateway and not out
//! of it. `wg` derives the public key from the private one and so shows neither; `skyway show` has it. A peer
//! without a preshared key says so with zeros.
//!
//! Source: <https://www.wireguard.com/xplatform/>, "Configuration Protocol".

use std::collections::HashMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::UNIX_EPOCH;

use tunnel::io::MARK;
use tunnel::{PeerSettings, PeerSnapshot, PublicKey, Snapshot, TunnelSettings};

/// Lines of `key=value`, `errno=0` the last, and the empty line.
pub(super) fn answer(settings: &TunnelSettings, snapshot: &Snapshot) -> String {
    let live: HashMap<&PublicKey, &PeerSnapshot> = snapshot.peers.iter().map(|peer| (&peer.public_key, peer)).collect();
    let prefixes: usize = settings.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
    let mut text = String::with_capacity(256 + settings.peers.len() * 512 + prefixes * 32);
    line(&mut text, "listen_port", snapshot.listen_port);
    line(&mut text, "fwmark", MARK);
    for peer in &settings.peers {
        write_peer(&mut text, peer, live.get(&peer.public_key).copied());
    }
    text.push_str(&outcome(0));
    text
}

/// The end of every answer. `errno` is positive, and negative in the text, as wireguard-go has it and `wg` expects it.
pub(super) fn outcome(errno: i32) -> String {
    format!("errno={}\n\n", -errno)
}

fn write_peer(text: &mut String, peer: &PeerSettings, live: Option<&PeerSnapshot>) {
    line(text, "public_key", hex(peer.public_key.as_bytes()));
    if peer.preshared_key.is_none() {
        line(text, "preshared_key", hex(&[0; 32]));
    }
    line(text, "protocol_version", 1);
    if let Some(endpoint) = live.and_then(|live| live.endpoint).or_else(|| first_address(peer)) {
        line(text, "endpoint", endpoint);
    }
    let handshake = live.and_then(|live| live.last_handshake);
    let handshake = handshake.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    line(text, "last_handshake_time_sec", handshake.as_secs());
    line(text, "last_handshake_time_nsec", handshake.subsec_nanos());
    line(text, "tx_bytes", live.map_or(0, |live| live.sent_bytes));
    line(text, "rx_bytes", live.map_or(0, |live| live.received_bytes));
    line(text, "persistent_keepalive_interval", peer.keepalive.map_or(0, |every| every.as_secs()));
    for prefix in peer.allowed_ips.iter() {
        line(text, "allowed_ip", prefix);
    }
}

/// Of a peer that the lane does not know an endpoint of: the first that is written as an address.
fn first_address(peer: &PeerSettings) -> Option<SocketAddr> {
    peer.endpoints.iter().find_map(|endpoint| Some(SocketAddr::new(endpoint.host.parse::<IpAddr>().ok()?, endpoint.port)))
}

fn line(text: &mut String, key: &str, value: impl std::fmt::Display) {
    // Writing to a string cannot fail.
    let _written = writeln!(text, "{key}={value}");
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _written = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, SystemTime};

    use tunnel::{Engine, EngineSettings, LaneSnapshot, PeerChange, PresharedKey, PrivateKey};

    use super::*;

    /// Two peers, the second with a preshared key, and the lane's view of them.
    fn example() -> (TunnelSettings, Snapshot) {
        let folder = tempfile::tempdir().expect("a folder");
        for (file, key) in [("key", PrivateKey::generate().to_base64()), ("psk", PresharedKey::generate().to_base64())] {
            let path = folder.path().join(file);
            std::fs::write(&path, key.as_str()).expect("written");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
        }
        let text = format!(
            "version: 1
gateway: {{ name: a }}
tunnels:
  azure:
    private_key: {{ file: key }}
    listen: 51820
    addresses: [10.99.0.1/30]
    peers:
      one:
        public_key: {}
        endpoints: [\"one.example.net:51820\", \"[2001:db8::1]:51820\"]
        allowed_ips: [10.99.0.2/32, \"fd00::/8\"]
        keepalive: off
      two:
        public_key: {}
        preshared_key: {{ file: psk }}
        allowed_ips: []
",
            PrivateKey::generate().public_key(),
            PrivateKey::generate().public_key()
        );
        let loaded = crate::config::parse(text, folder.path());
        let settings = loaded.settings.unwrap_or_else(|| panic!("{}", loaded.diagnostics.render("example", &loaded.source, false)));
        let settings = settings.tunnels.into_iter().next().expect("a tunnel");
        let now = Instant::now();
        let key = settings.private_key.clone();
        let mut engine = Engine::new(EngineSettings { key, addresses: settings.addresses.clone(), mtu: settings.mtu }, now);
        for peer in &settings.peers {
            engine.apply(PeerChange::Add(peer.clone()), now);
        }
        let snapshot = engine.snapshot(now, SystemTime::now(), LaneSnapshot::new(0, 51820));
        (settings, snapshot)
    }

    #[test]
    fn get_tells_the_tunnel_and_each_peer_in_the_protocols_words() {
        let (settings, mut snapshot) = example();
        snapshot.peers[1].endpoint = Some("192.0.2.7:4500".parse().expect("an address"));
        snapshot.peers[1].last_handshake = Some(UNIX_EPOCH + Duration::new(1_700_000_000, 5));
        snapshot.peers[1].sent_bytes = 11;
        snapshot.peers[1].received_bytes = 22;
        let keys: Vec<String> = settings.peers.iter().map(|peer| hex(peer.public_key.as_bytes())).collect();
        let expected = format!(
            "listen_port=51820\nfwmark=5359\n\
             public_key={}\npreshared_key={}\nprotocol_version=1\nendpoint=[2001:db8::1]:51820\nlast_handshake_time_sec=0\n\
             last_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\npersistent_keepalive_interval=0\nallowed_ip=10.99.0.2/32\n\
             allowed_ip=fd00::/8\n\
             public_key={}\nprotocol_version=1\nendpoint=192.0.2.7:4500\nlast_handshake_time_sec=1700000000\n\
             last_handshake_time_nsec=5\ntx_bytes=11\nrx_bytes=22\npersistent_keepalive_interval=25\n\
             errno=0\n\n",
            keys[0],
            "0".repeat(64),
            keys[1]
        );
        assert_eq!(answer(&settings, &snapshot), expected);
    }

    #[test]
    fn a_peer_that_the_lane_does_not_know_yet_is_there() {
        let (settings, mut snapshot) = example();
        let expected = answer(&settings, &snapshot);
        snapshot.peers.clear();
        assert_eq!(answer(&settings, &snapshot), expected);
    }

    #[test]
    fn no_secret_is_given_out() {
        let (mut settings, snapshot) = example();
        settings.private_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=".parse().expect("a key");
        settings.peers[1].preshared_key = Some("AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=".parse().expect("a key"));
        let told = answer(&settings, &snapshot);
        assert!(!told.contains("private_key") && !told.contains(&"01".repeat(32)), "{told}");
        assert!(!told.contains(&"02".repeat(32)), "{told}");
        assert_eq!(told.matches("preshared_key").count(), 1, "only the peer that has none says so: {told}");
    }

    #[test]
    fn an_error_is_negative() {
        assert_eq!(outcome(0), "errno=0\n\n");
        assert_eq!(outcome(libc::EINVAL), "errno=-22\n\n");
    }
}
