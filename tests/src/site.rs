//! Two gateways that join a foreign site with a VNET, in TUN mode, on [`Topology`].
//!
//! The foreign one's YAML is that of design.md §6 with other addresses, keys and names, and nothing else changed.

use std::process::Command;

use crate::keys::{Keys, preshared};
use crate::nginx::Nginx;
use crate::process::{Finished, finish};
use crate::seconds;
use crate::skyway::Gateway;
use crate::tls::Authority;
use crate::topology::Topology;

/// The whole of it. Its parts go in this order: programs first, then the networks under them.
pub struct Site {
    pub foreign: Gateway,
    pub vnet: Gateway,
    pub nginx: Nginx,
    pub foreign_yaml: String,
    pub vnet_yaml: String,
    pub foreign_keys: Keys,
    pub vnet_keys: Keys,
    pub topology: Topology,
}

/// What may never leave the foreign site in the clear.
pub const PROTECTED_IPV4: &[&str] = &["10.20.0.0/16", "10.99.0.2/32"];
pub const PROTECTED_IPV6: &[&str] = &["fd20::/64", "fd99::2/128"];
/// Of the server and of both gateways inside the tunnel.
pub const SERVER: [&str; 2] = ["10.20.0.10", "fd20::10"];
pub const VNET_INSIDE: [&str; 2] = ["10.99.0.2", "fd99::2"];
pub const FOREIGN_INSIDE: [&str; 2] = ["10.99.0.1", "fd99::1"];
pub const PORT: u16 = 51820;

const FOREIGN: &str = r#"version: 1
gateway: { name: aws-use1-a, site: aws-use1, cloud: aws, admin: FOLDER/admin.sock }
underlays:
  expressroute: { interface: ens6 }
  internet: { }
tunnels:
  azure:
    mode: auto                       # auto | tun | userspace
    private_key: { file: azure.key }
    listen: 51820
    addresses: [10.99.0.1/30, "fd99::1/126"]
    lanes: 1
    peers:
      vnet-a:
        public_key: "PEER_KEY"
        preshared_key: { file: vnet-a.psk }
        endpoints:
          - { via: expressroute, address: "10.20.0.4:51820" }
          - { via: internet, address: "vnet-a.example.net:51820" }
        allowed_ips: [10.99.0.2/32, 10.20.0.0/16, "fd99::2/128", "fd20::/64"]
        keepalive: 25s
        probe: { target: 10.99.0.2, every: 300ms, misses: 3 }
routes:
  static:
    - { prefix: 10.20.0.0/16, via: { tunnel: azure }, metric: 100 }
    - { prefix: "fd20::/64", via: { tunnel: azure }, metric: 100 }
  inbound: [ ]                       # what the VNET may open towards this site: nothing
  bgp: { }                           # neighbors, import and export: §4
peerings: { }                        # §4
relay:
  catalogue: { hosts: [ "contoso-hub.azure-devices.net", "contososa.blob.core.windows.net" ] }
  sensors: { line-3: { from: [10.1.2.0/24], proxy_user: { name: line-3, password: { file: line-3.pw } } } }
  paths:
    - { name: vnet, via: { tunnel: azure }, parents: ["http://10.99.0.2:3128"], probe: off }
  listeners:
    - { name: proxy, kind: connect, listen: "0.0.0.0:3128" }
    - { name: tls, kind: sni, listen: "0.0.0.0:443" }
"#;

const VNET: &str = r#"version: 1
gateway: { name: vnet-a, site: vnet, cloud: azure, admin: FOLDER/admin.sock }
tunnels:
  aws:
    mode: tun
    private_key: { file: vnet.key }
    listen: 51820
    addresses: [10.99.0.2/30, "fd99::2/126"]
    peers:
      aws-use1-a:
        public_key: "PEER_KEY"
        preshared_key: { file: vnet-a.psk }
        allowed_ips: [10.99.0.1/32, 10.1.2.0/24, "fd99::1/128", "fd10:1:2::/64"]
        cloud: aws
routes:
  static:
    - { prefix: 10.1.2.0/24, via: { tunnel: aws } }
    - { prefix: "fd10:1:2::/64", via: { tunnel: aws } }
  inbound: [10.20.0.0/24, "fd20::/64"]
relay:
  catalogue:
    hosts:
      - { host: contoso-hub.azure-devices.net, allow: [10.20.0.0/24] }
      - { host: contososa.blob.core.windows.net, allow: ["fd20::/64"] }
  sensors: { aws-use1-a: { from: [10.99.0.1/32] } }
  paths:
    - { name: out, via: direct, probe: off }
  listeners:
    - { name: foreign, kind: connect, listen: { tunnel: aws, port: 3128 } }
"#;

impl Site {
    /// Networks, server and both gateways' files. No gateway runs yet.
    #[track_caller]
    pub fn build() -> Self {
        let topology = Topology::build();
        let authority = Authority::create();
        let nginx = Nginx::start(&topology.server, &authority);
        let (foreign_keys, vnet_keys, preshared_key) = (Keys::generate(), Keys::generate(), preshared());
        let foreign = Gateway::new("foreign gateway").inside(&topology.foreign);
        foreign.write_secret("azure.key", &foreign_keys.private);
        foreign.write_secret("line-3.pw", PASSWORD);
        foreign.write_file("authority.pem", &authority.pem, 0o644);
        let vnet = Gateway::new("VNET gateway").inside(&topology.vnet);
        vnet.write_secret("vnet.key", &vnet_keys.private);
        for gateway in [&foreign, &vnet] {
            gateway.write_secret("vnet-a.psk", &preshared_key);
        }
        let foreign_yaml = FOREIGN.replace("PEER_KEY", &vnet_keys.public);
        let vnet_yaml = VNET.replace("PEER_KEY", &foreign_keys.public);
        foreign.write(&foreign_yaml);
        vnet.write(&vnet_yaml);
        Self { foreign, vnet, nginx, foreign_yaml, vnet_yaml, foreign_keys, vnet_keys, topology }
    }

    /// [`Self::build`], with both gateways running and a session between them.
    #[track_caller]
    pub fn up() -> Self {
        let mut site = Self::build();
        site.vnet.start();
        site.foreign.start();
        site.foreign.wait_until_up(seconds(15));
        site
    }

    /// curl in the sensor's namespace. It trusts the server's authority and gives up after 60 s.
    pub fn curl(&self, words: &[&str]) -> Command {
        let authority = self.foreign.folder().join("authority.pem");
        let mut command = self.topology.sensor.command(&["curl", "-sS", "--max-time", "60", "--cacert"]);
        command.arg(authority).args(words);
        command
    }

    /// What `https://HOST/` gives a sensor that uses the gateway as its proxy.
    #[track_caller]
    pub fn fetch_by_proxy(&self, host: &str) -> Finished {
        finish(&mut self.curl(&["--proxy", "http://10.1.2.1:3128", &format!("https://{host}/")]), seconds(70))
    }

    /// The same for a sensor whose name server answers with the gateway's own address.
    #[track_caller]
    pub fn fetch_by_name(&self, host: &str) -> Finished {
        finish(&mut self.curl(&["--connect-to", "::10.1.2.1:443", &format!("https://{host}/")]), seconds(70))
    }

    /// The foreign gateway's YAML with one place changed, written but not yet loaded.
    #[track_caller]
    pub fn rewrite_foreign(&self, from: &str, to: &str) {
        self.foreign.write(&crate::replaced(&self.foreign_yaml, from, to));
    }
}

/// Of the proxy user `line-3`.
pub const PASSWORD: &str = "correct horse";
