//! The whole configuration, validated: it cannot be wrong any more, only unlucky.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use tunnel::{Cloud, TunnelSettings};

use crate::relay::catalogue::Catalogue;
use crate::relay::{Limits, Parent, Protocol, Sensors};

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
    pub parents: Vec<Parent>,
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
    pub protocol: Protocol,
    pub listen: Listen,
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

impl Settings {
    pub fn tunnel(&self, name: &str) -> Option<&TunnelSettings> {
        self.tunnels.iter().find(|tunnel| tunnel.name == name)
    }
}
