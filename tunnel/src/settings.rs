//! What a tunnel is told to be: valid by construction, compared to find what a reload changes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::mtu::Cloud;

/// How packets enter and leave the tunnel on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// TUN where the process may, else userspace if nothing needs the kernel.
    #[default]
    Auto,
    /// A kernel TUN device: any program on the host can use the tunnel, packets can be forwarded.
    Tun,
    /// A TCP/IP stack inside the process: no privilege, no device; the relay alone uses the tunnel.
    Userspace,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelSettings {
    /// Also the name of the TUN device: at most 15 bytes.
    pub name: String,
    pub mode: Mode,
    pub private_key: PrivateKey,
    /// UDP address to listen on. An unspecified IPv6 address takes IPv4 as well.
    pub listen: SocketAddr,
    /// The gateway's own addresses inside the tunnel, each with the length of its on-link prefix.
    pub addresses: Vec<IpNet>,
    /// Largest inner packet in bytes.
    pub mtu: u32,
    /// In the order of the YAML.
    pub peers: Vec<PeerSettings>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSettings {
    pub name: String,
    pub public_key: PublicKey,
    pub preshared_key: Option<PresharedKey>,
    /// In order of preference. Empty: the peer comes to us.
    pub endpoints: Vec<EndpointSettings>,
    pub allowed_ips: Vec<IpNet>,
    pub keepalive: Option<Duration>,
    /// Whether the peer's endpoint follows the address that its authenticated datagrams come from.
    pub roaming: bool,
    pub cloud: Cloud,
    pub probe: Option<ProbeSettings>,
}

/// An endpoint as written: a host that may be a name, reached by an underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSettings {
    /// Name of the underlay to leave by; none: whatever the routing table says.
    pub underlay: Option<String>,
    /// An IP address or a DNS name.
    pub host: String,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeSettings {
    pub target: IpAddr,
    pub every: Duration,
    /// Probes in a row that must fail before the endpoint counts as dead.
    pub misses: u32,
}

impl TunnelSettings {
    pub fn peer(&self, key: &PublicKey) -> Option<&PeerSettings> {
        self.peers.iter().find(|peer| peer.public_key == *key)
    }
}
