//! The whole configuration, validated: it cannot be wrong any more, only unlucky.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use tunnel::{Cloud, TunnelSettings};

use crate::relay::catalogue::Catalogue;
use crate::relay::chain::Level;
use crate::relay::tls::ServerTls;
use crate::relay::{DnsSettings, Limits, NtpSettings, OnPathDown, Parent, PathProbe, Protocol, Sensors};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub gateway: GatewaySettings,
    pub underlays: BTreeMap<String, UnderlaySettings>,
    /// In the order of the YAML; names are unique.
    pub tunnels: Vec<TunnelSettings>,
    pub routes: RouteSettings,
    pub relay: Option<RelaySettings>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewaySettings {
    pub name: String,
    pub site: Option<String>,
    pub cloud: Cloud,
    /// Path of the admin socket.
    pub admin: PathBuf,
    /// None: off.
    pub metrics: Option<SocketAddr>,
    /// None: off.
    pub health: Option<SocketAddr>,
    /// Of the Purdue model; chains of proxies are held against it.
    pub level: Option<Level>,
}

/// A network that peers and upstreams are reached by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnderlaySettings {
    pub interface: Option<String>,
    pub source: Option<IpAddr>,
    pub mark: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteSettings {
    pub fixed: Vec<StaticRoute>,
    /// What tunnels may open towards this site.
    pub inbound: Vec<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticRoute {
    pub prefix: IpNet,
    pub tunnel: String,
    pub metric: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelaySettings {
    pub catalogue: Catalogue,
    pub sensors: Sensors,
    pub paths: Vec<PathSettings>,
    pub listeners: Vec<ListenerAt>,
    pub limits: Limits,
    /// Empty: those of the system.
    pub name_servers: Vec<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathSettings {
    pub name: String,
    pub via: Via,
    /// In order of preference; each a chain of proxies, the nearest first. Empty: the target itself is dialled.
    pub parents: Vec<Vec<Parent>>,
    /// Of this path alone, asked through it. Empty: those of the relay.
    pub name_servers: Vec<SocketAddr>,
    /// None: off.
    pub probe: Option<PathProbe>,
    pub on_down: OnPathDown,
}

/// How a path leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    Direct,
    Tunnel(String),
    Underlay(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerAt {
    pub name: String,
    pub listen: Listen,
    pub kind: ListenerKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerKind {
    Sessions {
        protocol: Protocol,
        /// Load balancers that begin with a PROXY header. Nobody else's is believed.
        proxy_protocol: Vec<IpNet>,
        tls: Option<ServerTls>,
    },
    Dns(DnsSettings),
    Ntp(NtpSettings),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    Host(SocketAddr),
    /// On the gateway's own addresses inside a tunnel.
    Tunnel {
        tunnel: String,
        address: Option<IpAddr>,
        port: u16,
    },
}

impl ListenerKind {
    /// Whether the same sockets can serve both.
    pub fn is_served_like(&self, other: &Self) -> bool {
        let redirection = |protocol: &Protocol| match protocol {
            Protocol::Transparent { by, .. } => Some(*by),
            Protocol::Connect | Protocol::Sni => None,
        };
        match (self, other) {
            (Self::Sessions { protocol: one, .. }, Self::Sessions { protocol: other, .. }) => redirection(one) == redirection(other),
            (Self::Dns(_), Self::Dns(_)) | (Self::Ntp(_), Self::Ntp(_)) => true,
            (Self::Sessions { .. } | Self::Dns(_) | Self::Ntp(_), _) => false,
        }
    }
}

impl Settings {
    pub fn tunnel(&self, name: &str) -> Option<&TunnelSettings> {
        self.tunnels.iter().find(|tunnel| tunnel.name == name)
    }
}
