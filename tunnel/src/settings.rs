//! What a tunnel is told to be: valid by construction, compared to find what a reload changes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
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
    /// WireGuard sessions side by side, on as many UDP ports from `listen`'s on. One or more.
    pub lanes: u16,
    /// Processors to bind the lanes to, in turn; none: the kernel decides.
    pub cpus: Vec<usize>,
    /// Whether the tunnel can be asked and changed by `wg`.
    pub uapi: bool,
    /// In the order of the YAML.
    pub peers: Vec<PeerSettings>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSettings {
    pub name: String,
    pub public_key: PublicKey,
    /// The key that the peer will change to: handshakes by either are taken, and the peer is asked by both.
    pub next_public_key: Option<PublicKey>,
    pub preshared_key: Option<PresharedKey>,
    /// In order of preference. Empty: the peer comes to us.
    pub endpoints: Vec<EndpointSettings>,
    /// Shared, because snapshots carry it and there may be a hundred thousand.
    pub allowed_ips: Arc<[IpNet]>,
    pub keepalive: Option<Duration>,
    /// Whether the peer's endpoint follows the address that its authenticated datagrams come from.
    pub roaming: bool,
    pub cloud: Cloud,
    /// None: the peer is not probed.
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

/// Echoes through the tunnel, by which endpoints are judged and the path is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeSettings {
    /// Inside the tunnel; one of the peer's allowed IPs.
    pub target: IpAddr,
    pub every: Duration,
    /// Probes in a row that must fail before the endpoint counts as dead.
    pub misses: u32,
    /// How long a better endpoint is left alone after a failover.
    pub hold_down: Duration,
}

impl ProbeSettings {
    pub const EVERY: Duration = Duration::from_secs(1);
    pub const MISSES: u32 = 3;
    pub const HOLD_DOWN: Duration = Duration::from_secs(30);

    /// The usual probe of a peer with these allowed IPs: of the first single address that one of our `own` can ask.
    pub fn usual(allowed_ips: &[IpNet], own: &[IpNet]) -> Option<Self> {
        let is_own = |target: &IpAddr| own.iter().any(|own| own.addr() == *target);
        let can_ask = |target: &IpAddr| !is_own(target) && own.iter().any(|own| own.addr().is_ipv4() == target.is_ipv4());
        let single = allowed_ips.iter().filter(|prefix| prefix.prefix_len() == prefix.max_prefix_len()).map(IpNet::addr);
        let target = { single }.find(can_ask)?;
        Some(Self { target, every: Self::EVERY, misses: Self::MISSES, hold_down: Self::HOLD_DOWN })
    }
}

impl TunnelSettings {
    pub fn peer(&self, key: &PublicKey) -> Option<&PeerSettings> {
        self.peers.iter().find(|peer| peer.public_key == *key)
    }
}
