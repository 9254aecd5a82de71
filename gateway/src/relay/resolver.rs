//! Names to addresses, without the system's resolver library: a static binary has none.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};

use super::dial::DialError;

/// An answer is not kept longer than this, whatever its time to live says.
const LONGEST_TTL: Duration = Duration::from_secs(300);
const SHORTEST_NEGATIVE_TTL: Duration = Duration::from_secs(1);

/// Asks the name servers of /etc/resolv.conf, or those that the YAML names; /etc/hosts comes first.
#[derive(Clone)]
pub struct Resolver(TokioResolver);

#[derive(Debug, thiserror::Error)]
#[error("the name resolver cannot be set up: {0}")]
pub struct ResolverError(String);

impl Resolver {
    /// `servers` empty: those of the system. Called inside a tokio runtime.
    pub fn new(servers: &[SocketAddr]) -> Result<Self, ResolverError> {
        let config = if servers.is_empty() {
            // No readable resolv.conf means no name servers: each look-up will say so.
            hickory_resolver::system_conf::read_system_conf()
                .map_or_else(|_| ResolverConfig::from_name_servers(Vec::new()), |(config, _)| config)
        } else {
            ResolverConfig::from_name_servers(servers.iter().map(name_server).collect())
        };
        let mut options = ResolverOpts::default();
        options.timeout = Duration::from_secs(2);
        options.attempts = 2;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.positive_max_ttl = Some(LONGEST_TTL);
        options.negative_max_ttl = Some(SHORTEST_NEGATIVE_TTL);
        options.try_tcp_on_error = true;
        // Ours to ask: hickory would still ask the name servers for the family that the file does not have.
        options.use_hosts_file = ResolveHosts::Never;
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .map_err(|error| ResolverError(error.to_string()))?;
        Ok(Self(resolver))
    }

    /// All addresses of `name`, which is taken as complete: no search domain is tried. Never empty.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, DialError> {
        let failed = |detail: String| DialError::Resolve { detail };
        if let Some(addresses) = from_hosts_file(name) {
            return Ok(addresses);
        }
        let answer = self.0.lookup_ip(format!("{name}.")).await.map_err(|error| failed(error.to_string()))?;
        let addresses: Vec<IpAddr> = answer.iter().collect();
        if addresses.is_empty() { Err(failed("the answer holds no address".into())) } else { Ok(addresses) }
    }
}

/// What /etc/hosts says of `name`, read anew each time: it is short, and an edit holds at once.
fn from_hosts_file(name: &str) -> Option<Vec<IpAddr>> {
    let hosts = Hosts::from_system().ok()?;
    let name = Name::from_ascii(format!("{name}.")).ok()?;
    let mut addresses = Vec::new();
    for family in [RecordType::A, RecordType::AAAA] {
        if let Some(found) = hosts.lookup_static_host(&Query::query(name.clone(), family)) {
            addresses.extend(found.answers().iter().filter_map(|record| record.data.ip_addr()));
        }
    }
    Some(addresses).filter(|addresses| !addresses.is_empty())
}

fn name_server(server: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    NameServerConfig::new(server.ip(), true, connections.into())
}
