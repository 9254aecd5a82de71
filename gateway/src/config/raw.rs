//! The YAML as written: a mirror without logic. Every field remembers where it stood.
//!
//! What each key means is in docs/configuration.md.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::field::{Entries, Field, ScalarOr};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) version: Field<u32>,
    pub(super) gateway: Field<RawGateway>,
    pub(super) underlays: Field<Entries<RawUnderlay>>,
    pub(super) tunnels: Field<Entries<RawTunnel>>,
    pub(super) routes: Field<RawRoutes>,
    pub(super) peerings: Field<Entries<IgnoredAny>>,
    pub(super) relay: Field<RawRelay>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawGateway {
    pub(super) name: Field<String>,
    pub(super) site: Field<String>,
    pub(super) cloud: Field<RawCloud>,
    pub(super) admin: Field<String>,
    pub(super) metrics: Field<String>,
    pub(super) health: Field<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawCloud {
    Aws,
    Azure,
    Gcp,
    Other,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawUnderlay {
    pub(super) interface: Field<String>,
    pub(super) source: Field<String>,
    pub(super) mark: Field<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTunnel {
    pub(super) mode: Field<RawMode>,
    pub(super) private_key: Field<RawSecret>,
    pub(super) listen: Field<String>,
    pub(super) addresses: Field<Vec<Field<String>>>,
    pub(super) lanes: Field<u32>,
    pub(super) cpus: Field<Vec<Field<u32>>>,
    pub(super) uapi: Field<bool>,
    pub(super) mtu: Field<u32>,
    pub(super) peers: Field<Entries<RawPeer>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawMode {
    Auto,
    Tun,
    Userspace,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawSecret {
    pub(super) file: Field<String>,
    pub(super) env: Field<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawPeer {
    pub(super) public_key: Field<String>,
    pub(super) next_public_key: Field<String>,
    pub(super) preshared_key: Field<RawSecret>,
    pub(super) endpoints: Field<Vec<Field<ScalarOr<RawEndpoint>>>>,
    pub(super) allowed_ips: Field<Vec<Field<String>>>,
    pub(super) keepalive: Field<String>,
    pub(super) roaming: Field<RawSwitch>,
    pub(super) cloud: Field<RawCloud>,
    pub(super) probe: Field<ScalarOr<RawProbe>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawSwitch {
    On,
    Off,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawEndpoint {
    pub(super) via: Field<String>,
    pub(super) address: Field<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawProbe {
    pub(super) target: Field<String>,
    pub(super) every: Field<String>,
    pub(super) misses: Field<u32>,
    pub(super) hold_down: Field<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawRoutes {
    #[serde(rename = "static")]
    pub(super) fixed: Field<Vec<Field<RawStaticRoute>>>,
    pub(super) inbound: Field<Vec<Field<String>>>,
    pub(super) bgp: Field<Entries<IgnoredAny>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawStaticRoute {
    pub(super) prefix: Field<String>,
    pub(super) via: Field<RawTunnelName>,
    pub(super) metric: Field<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTunnelName {
    pub(super) tunnel: Field<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawRelay {
    pub(super) catalogue: Field<RawCatalogue>,
    pub(super) sensors: Field<Entries<RawSensor>>,
    pub(super) paths: Field<Vec<Field<RawPath>>>,
    pub(super) listeners: Field<Vec<Field<RawListener>>>,
    pub(super) limits: Field<RawLimits>,
    pub(super) name_servers: Field<Vec<Field<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawCatalogue {
    pub(super) hosts: Field<Vec<Field<ScalarOr<RawHost>>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawHost {
    pub(super) host: Field<String>,
    pub(super) role: Field<String>,
    pub(super) ports: Field<Vec<Field<u16>>>,
    pub(super) allow: Field<Vec<Field<String>>>,
    pub(super) addresses: Field<Vec<Field<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawSensor {
    pub(super) from: Field<Vec<Field<String>>>,
    pub(super) proxy_user: Field<RawProxyUser>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawProxyUser {
    pub(super) name: Field<String>,
    pub(super) password: Field<RawSecret>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawPath {
    pub(super) name: Field<String>,
    pub(super) via: Field<ScalarOr<RawVia>>,
    pub(super) parents: Field<Vec<Field<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawVia {
    pub(super) tunnel: Field<String>,
    pub(super) underlay: Field<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawListener {
    pub(super) name: Field<String>,
    pub(super) kind: Field<RawKind>,
    pub(super) listen: Field<ScalarOr<RawListenInside>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawKind {
    Connect,
    Sni,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawListenInside {
    pub(super) tunnel: Field<String>,
    pub(super) port: Field<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawLimits {
    pub(super) hello: Field<String>,
    pub(super) connect: Field<String>,
    pub(super) idle: Field<String>,
    pub(super) half_close: Field<String>,
    pub(super) sessions: Field<u32>,
    pub(super) drain: Field<String>,
}
