//! The YAML as written: a mirror without logic. Every field remembers where it stood.
//!
//! What each key means is in docs/configuration.md.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::field::{Entries, Field, OneOrMany, ScalarOr};

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
    pub(super) level: Field<String>,
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
    pub(super) presets: Field<Vec<Field<RawPreset>>>,
    pub(super) hosts: Field<Vec<Field<ScalarOr<RawHost>>>>,
    pub(super) legacy_hubs: Field<Vec<Field<String>>>,
    pub(super) allow_tenant_wildcard: Field<bool>,
    pub(super) service_tags: Field<RawServiceTags>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RawPreset {
    DefenderPublic,
    DefenderUsGov,
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
pub(super) struct RawServiceTags {
    pub(super) file: Field<String>,
    pub(super) mode: Field<RawServiceTagMode>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawServiceTagMode {
    Off,
    Warn,
    Enforce,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawSensor {
    pub(super) from: Field<Vec<Field<String>>>,
    pub(super) proxy_user: Field<RawProxyUser>,
    pub(super) client_certificate: Field<OneOrMany>,
    pub(super) private_link: Field<RawPrivateLink>,
    pub(super) sessions: Field<u32>,
    pub(super) gateway: Field<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawProxyUser {
    pub(super) name: Field<String>,
    pub(super) password: Field<RawSecret>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawPrivateLink {
    pub(super) aws_vpc_endpoint: Field<String>,
    pub(super) azure_link_id: Field<u32>,
    pub(super) gcp_psc_connection: Field<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawPath {
    pub(super) name: Field<String>,
    pub(super) via: Field<ScalarOr<RawVia>>,
    pub(super) parents: Field<Vec<Field<ScalarOr<RawParent>>>>,
    pub(super) name_servers: Field<Vec<Field<String>>>,
    pub(super) probe: Field<ScalarOr<RawPathProbe>>,
    pub(super) on_path_down: Field<RawOnPathDown>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawVia {
    pub(super) tunnel: Field<String>,
    pub(super) underlay: Field<String>,
}

/// A proxy, or a chain of them and nothing else.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawParent {
    pub(super) url: Field<String>,
    pub(super) auth: Field<RawProxyUser>,
    pub(super) ca: Field<String>,
    pub(super) client_cert: Field<RawClientCertificate>,
    pub(super) gateway: Field<bool>,
    pub(super) level: Field<String>,
    pub(super) chain: Field<Vec<Field<ScalarOr<Self>>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawClientCertificate {
    pub(super) certificate: Field<String>,
    pub(super) key: Field<RawSecret>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawPathProbe {
    pub(super) host: Field<String>,
    pub(super) every: Field<String>,
    pub(super) failures: Field<u32>,
    pub(super) successes: Field<u32>,
    pub(super) hold_down: Field<String>,
    pub(super) ca: Field<String>,
    pub(super) trust_interception: Field<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawOnPathDown {
    Keep,
    Drain,
    Reset,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawListener {
    pub(super) name: Field<String>,
    pub(super) kind: Field<RawKind>,
    pub(super) listen: Field<ScalarOr<RawListenInside>>,
    pub(super) tls: Field<RawTls>,
    pub(super) proxy_protocol: Field<Vec<Field<String>>>,
    pub(super) transparent: Field<RawTransparent>,
    pub(super) dns: Field<RawDns>,
    pub(super) ntp: Field<RawNtp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawKind {
    Connect,
    Sni,
    Transparent,
    Dns,
    Ntp,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawListenInside {
    pub(super) tunnel: Field<String>,
    pub(super) port: Field<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTls {
    pub(super) certificate: Field<String>,
    pub(super) key: Field<RawSecret>,
    pub(super) client_ca: Field<String>,
    pub(super) client_certificates: Field<RawClientCertificates>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawClientCertificates {
    Required,
    Optional,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTransparent {
    pub(super) by: Field<RawRedirection>,
    pub(super) sni: Field<RawNameRule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawRedirection {
    Redirect,
    Tproxy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawNameRule {
    Require,
    IfPresent,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawDns {
    pub(super) answers: Field<Vec<Field<String>>>,
    pub(super) ttl: Field<String>,
    pub(super) forward: Field<Vec<Field<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawNtp {
    pub(super) servers: Field<Vec<Field<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawLimits {
    pub(super) hello: Field<String>,
    pub(super) connect: Field<String>,
    pub(super) idle: Field<String>,
    pub(super) half_close: Field<String>,
    pub(super) lifetime: Field<String>,
    pub(super) sessions: Field<u32>,
    pub(super) sessions_per_sensor: Field<u32>,
    pub(super) connections_per_source: Field<u32>,
    pub(super) keepalive: Field<String>,
    pub(super) user_timeout: Field<String>,
    pub(super) drain: Field<String>,
    pub(super) drain_notice: Field<String>,
    pub(super) drain_spread: Field<String>,
}
