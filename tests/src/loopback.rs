//! Addresses on loopback that no other test has, and two gateways in userspace mode that use them.
//!
//! All of 127.0.0.0/8 is this host's, so each test takes addresses of its own and may use whatever ports it likes:
//! nothing to be configured, nothing to be root for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::keys::{Keys, preshared};
use crate::seconds;
use crate::skyway::{Gateway, User};
use crate::tls::{Authority, TlsServer};
use crate::{BLOB, HUB};

static NEXT: AtomicU8 = AtomicU8::new(1);

/// An address that nobody else uses: by process, then one after another.
pub fn address() -> Ipv4Addr {
    let [_, _, high, low] = process::id().to_be_bytes();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(number < 255, "a process of tests has 254 addresses");
    Ipv4Addr::new(127, 64 | (high & 0x3f), low, number)
}

/// A UDP address on `::1`, where there is but one address: free a moment ago.
#[track_caller]
pub fn free_ipv6() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).expect("a free port");
    socket.local_addr().expect("an address")
}

/// A foreign gateway and a VNET gateway in userspace mode, and a TLS server behind the second.
///
/// ```text
///  sensor ─► connect :3128, sni :4430 ─ foreign ═ WireGuard over UDP on loopback ═ vnet ─► TLS server :8443
/// ```
pub struct LoopbackPair {
    pub foreign: Gateway,
    pub vnet: Gateway,
    pub server: TlsServer,
    pub authority: Authority,
    /// Where sensors connect.
    pub connect: SocketAddr,
    pub sni: SocketAddr,
    pub health: SocketAddr,
    pub metrics: SocketAddr,
    /// The gateways' UDP addresses.
    pub foreign_udp: SocketAddr,
    pub vnet_udp: SocketAddr,
    pub foreign_yaml: String,
}

/// Of the server, and so of every CONNECT. Not 443, which takes a privilege to listen on.
pub const TLS_PORT: u16 = 8443;
/// A host of the catalogues behind which nobody listens.
pub const DOWN: &str = "down.azure-devices.net";
/// A host of the foreign catalogue that the VNET gateway does not know.
pub const FOREIGN_ONLY: &str = "foreign-only.azure-devices.net";

const FOREIGN: &str = r#"version: 1
gateway: { name: foreign, admin: FOLDER/admin.sock, metrics: "METRICS", health: "HEALTH" }
tunnels:
  azure:
    mode: userspace
    private_key: { file: key }
    listen: "LISTEN"
    addresses: [10.99.0.1/30, "fd99::1/126"]
    peers:
      vnet-a:
        public_key: "PEER_KEY"
        preshared_key: { file: psk }
        endpoints: ["ENDPOINT"]
        allowed_ips: [10.99.0.2/32, "fd99::2/128"]
relay:
  catalogue:
    hosts:
      - { host: contoso-hub.azure-devices.net, ports: [8443] }
      - { host: contososa.blob.core.windows.net, ports: [8443] }
      - { host: down.azure-devices.net, ports: [8443] }
      - { host: foreign-only.azure-devices.net, ports: [8443] }
  sensors: { line-3: { from: [127.0.0.0/8] } }
  paths:
    - { name: vnet, via: { tunnel: azure }, parents: ["http://10.99.0.2:3128"], probe: off }
  listeners:
    - { name: proxy, kind: connect, listen: "CONNECT" }
    - { name: tls, kind: sni, listen: "SNI" }
  limits: { connect: 5s }
"#;

const VNET: &str = r#"version: 1
gateway: { name: vnet-a, admin: FOLDER/admin.sock, metrics: off }
tunnels:
  aws:
    mode: userspace
    private_key: { file: key }
    listen: "LISTEN"
    addresses: [10.99.0.2/30, "fd99::2/126"]
    peers:
      foreign:
        public_key: "PEER_KEY"
        preshared_key: { file: psk }
        allowed_ips: [10.99.0.1/32, "fd99::1/128"]
relay:
  catalogue:
    hosts:
      - { host: contoso-hub.azure-devices.net, ports: [8443], addresses: [SERVER], allow: [127.0.0.0/8] }
      - { host: contososa.blob.core.windows.net, ports: [8443], addresses: [SERVER], allow: [127.0.0.0/8] }
      - { host: down.azure-devices.net, ports: [8443], addresses: [NOBODY], allow: [127.0.0.0/8] }
  sensors: { foreign: { from: [10.99.0.1/32] } }
  paths:
    - { name: out, via: direct, probe: off }
  listeners:
    - { name: foreign, kind: connect, listen: { tunnel: aws, port: 3128 } }
"#;

impl LoopbackPair {
    /// The two gateways' files, joined over IPv4. No gateway runs yet.
    #[track_caller]
    pub fn build(user: User) -> Self {
        let udp = || SocketAddr::new(address().into(), 51820);
        Self::joined_by(user, udp(), udp())
    }

    /// As [`Self::build`], with the gateways' UDP addresses given.
    #[track_caller]
    pub fn joined_by(user: User, foreign_udp: SocketAddr, vnet_udp: SocketAddr) -> Self {
        let (own, server, nobody) = (IpAddr::from(address()), IpAddr::from(address()), address());
        let [connect, sni, metrics, health] = [3128, 4430, 9359, 8080].map(|port| SocketAddr::new(own, port));
        let authority = Authority::create();
        let server = TlsServer::start(SocketAddr::new(server, TLS_PORT), &authority.issue(&[HUB, BLOB]));
        let (foreign_keys, vnet_keys, preshared_key) = (Keys::generate(), Keys::generate(), preshared());

        // Keys last: they are base64 and may spell any word.
        let foreign_yaml = FOREIGN
            .replace("LISTEN", &foreign_udp.to_string())
            .replace("ENDPOINT", &vnet_udp.to_string())
            .replace("CONNECT", &connect.to_string())
            .replace("SNI", &sni.to_string())
            .replace("METRICS", &metrics.to_string())
            .replace("HEALTH", &health.to_string())
            .replace("PEER_KEY", &vnet_keys.public);
        let vnet_yaml = VNET
            .replace("LISTEN", &vnet_udp.to_string())
            .replace("SERVER", &server.address.ip().to_string())
            .replace("NOBODY", &nobody.to_string())
            .replace("PEER_KEY", &foreign_keys.public);
        let foreign = Gateway::new("foreign gateway").run_as(user);
        let vnet = Gateway::new("VNET gateway").run_as(user);
        for (gateway, keys, yaml) in [(&foreign, &foreign_keys, &foreign_yaml), (&vnet, &vnet_keys, &vnet_yaml)] {
            gateway.write_secret("key", &keys.private);
            gateway.write_secret("psk", &preshared_key);
            gateway.write(yaml);
        }
        Self { foreign, vnet, server, authority, connect, sni, health, metrics, foreign_udp, vnet_udp, foreign_yaml }
    }

    /// [`Self::build`], with both gateways running and a session between them.
    #[track_caller]
    pub fn up(user: User) -> Self {
        let mut pair = Self::build(user);
        pair.start();
        pair
    }

    /// Starts both and waits for their session.
    #[track_caller]
    pub fn start(&mut self) {
        self.vnet.start();
        self.foreign.start();
        self.foreign.wait_until_up(seconds(15));
    }
}
