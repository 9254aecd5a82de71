//! A gateway without a tunnel: a relay that leaves directly, to a [`Sink`] on loopback. Enough for everything that the
//! relay decides before it dials, and needs no privilege.

use std::net::{IpAddr, SocketAddr};

use crate::loopback::address;
use crate::sink::Sink;
use crate::skyway::{Gateway, User};

pub struct DirectRelay {
    pub gateway: Gateway,
    pub sink: Sink,
    /// Where sensors connect.
    pub connect: SocketAddr,
    pub sni: SocketAddr,
    pub yaml: String,
}

/// The catalogue's host behind which the sink is.
pub const NAME: &str = "hub.azure-devices.net";
/// One behind which nobody listens.
pub const DOWN: &str = "down.azure-devices.net";
/// One that no name server knows: there is none.
pub const NAMELESS: &str = "nameless.azure-devices.net";
/// One whose name leads to the cloud's metadata service.
pub const METADATA: &str = "metadata.azure-devices.net";
/// Of the sink, and the only one that the catalogue allows.
pub const PORT: u16 = 8443;

const YAML: &str = r#"version: 1
gateway: { name: direct, admin: FOLDER/admin.sock, metrics: off }
relay:
  catalogue:
    hosts:
      - { host: hub.azure-devices.net, ports: [8443], addresses: [SINK], allow: [127.0.0.0/8] }
      - { host: down.azure-devices.net, ports: [8443], addresses: [VACANT], allow: [127.0.0.0/8] }
      - { host: nameless.azure-devices.net, ports: [8443] }
      - { host: metadata.azure-devices.net, ports: [8443], addresses: [169.254.169.254], allow: [0.0.0.0/0] }
  name_servers: ["SERVANT:5353"]
  sensors: { line-3: { from: [127.0.0.0/8] } }
  paths:
    - { name: out, via: direct, probe: off }
  listeners:
    - { name: proxy, kind: connect, listen: "CONNECT" }
    - { name: tls, kind: sni, listen: "SNI" }
  limits: { connect: 3s }
"#;

impl DirectRelay {
    /// Starts the relay and its sink. Where the name server should be nobody listens.
    #[track_caller]
    pub fn start() -> Self {
        let mut relay = Self::build(SocketAddr::new(address().into(), 5353));
        relay.gateway.start();
        relay
    }

    /// The relay's files and its sink; the relay does not run yet.
    #[track_caller]
    pub fn build(name_server: SocketAddr) -> Self {
        let (own, sink, vacant) = (IpAddr::from(address()), IpAddr::from(address()), address());
        let sink = Sink::start(SocketAddr::new(sink, PORT));
        let (connect, sni) = (SocketAddr::new(own, 3128), SocketAddr::new(own, 4430));
        let yaml = YAML
            .replace("SINK", &sink.address.ip().to_string())
            .replace("VACANT", &vacant.to_string())
            .replace("SERVANT:5353", &name_server.to_string())
            .replace("CONNECT", &connect.to_string())
            .replace("SNI", &sni.to_string());
        let gateway = Gateway::new("relay").run_as(User::Nobody);
        gateway.write(&yaml);
        Self { gateway, sink, connect, sni, yaml }
    }
}
