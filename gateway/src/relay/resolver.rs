//! Names to addresses, without the system's resolver library: a static binary has none.
//!
//! A path may have name servers of its own. They are asked through that path alone: by sockets that are bound as its
//! sessions' are, or over TCP where the path is a stack inside the process. No query leaves by another way.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hickory_resolver::Hosts;
use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioTime};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UdpSocket;

use super::dial::{DialError, ResolveFault};
use super::{Dialer, DirectDialer, Stream, Target};

/// An answer is not kept longer than this, whatever its time to live says.
const LONGEST_TTL: Duration = Duration::from_secs(300);
const SHORTEST_NEGATIVE_TTL: Duration = Duration::from_secs(1);
/// For a connection to a name server.
const CONNECT: Duration = Duration::from_secs(2);

/// Asks the name servers of /etc/resolv.conf, or those that the YAML names; /etc/hosts comes first.
#[derive(Clone)]
pub struct Resolver(hickory_resolver::Resolver<Way>);

#[derive(Debug, thiserror::Error)]
#[error("the name resolver cannot be set up: {0}")]
pub struct ResolverError(String);

impl Resolver {
    /// `servers` empty: those of the system. Called inside a tokio runtime.
    pub fn new(servers: &[SocketAddr]) -> Result<Self, ResolverError> {
        Self::through(servers, Arc::new(DirectDialer::default()))
    }

    /// Asks `servers` by the way that `dialer` leaves.
    pub fn through(servers: &[SocketAddr], dialer: Arc<dyn Dialer>) -> Result<Self, ResolverError> {
        let datagrams = dialer.kernel().is_some();
        let config = if servers.is_empty() {
            // No readable resolv.conf means no name servers: each look-up will say so.
            hickory_resolver::system_conf::read_system_conf()
                .map_or_else(|_| ResolverConfig::from_name_servers(Vec::new()), |(config, _)| config)
        } else {
            ResolverConfig::from_name_servers(servers.iter().map(|server| name_server(server, datagrams)).collect())
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
        let resolver = hickory_resolver::Resolver::builder_with_config(config, Way { handle: TokioHandle::default(), dialer })
            .with_options(options)
            .build()
            .map_err(|error| ResolverError(error.to_string()))?;
        Ok(Self(resolver))
    }

    /// All addresses of `name`, which is taken as complete: no search domain is tried. Never empty.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, DialError> {
        if let Some(addresses) = from_hosts_file(name) {
            return Ok(addresses);
        }
        let answer = self.0.lookup_ip(format!("{name}.")).await.map_err(|error| DialError::Resolve { cause: fault(&error) })?;
        let addresses: Vec<IpAddr> = answer.iter().collect();
        if addresses.is_empty() { Err(DialError::Resolve { cause: ResolveFault::NoAddress }) } else { Ok(addresses) }
    }
}

/// The cause alone; the library's own words hold the whole query.
fn fault(error: &NetError) -> ResolveFault {
    if error.is_nx_domain() {
        ResolveFault::NoName
    } else if error.is_no_records_found() {
        ResolveFault::NoAddress
    } else if let NetError::Dns(DnsError::ResponseCode(code)) = error {
        ResolveFault::Refused(code.to_string())
    } else {
        ResolveFault::Silent(error.to_string())
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

fn name_server(server: &SocketAddr, datagrams: bool) -> NameServerConfig {
    let udp = datagrams.then(ConnectionConfig::udp);
    let connections = udp.into_iter().chain([ConnectionConfig::tcp()]).map(|mut connection| {
        connection.port = server.port();
        connection
    });
    NameServerConfig::new(server.ip(), true, connections.collect())
}

/// The sockets of the resolver, as a path's own.
#[derive(Clone)]
struct Way {
    handle: TokioHandle,
    dialer: Arc<dyn Dialer>,
}

impl RuntimeProvider for Way {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<Shared>;

    fn create_handle(&self) -> Self::Handle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        _bind: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        let dialer = Arc::clone(&self.dialer);
        Box::pin(async move {
            let target = Target { name: server.to_string(), address: server };
            match dialer.dial(&target, Instant::now() + timeout.unwrap_or(CONNECT)).await {
                Ok(stream) => Ok(AsyncIoTokioAsStd(Shared(Mutex::new(stream)))),
                Err(error) => Err(io::Error::other(error.to_string())),
            }
        })
    }

    fn bind_udp(&self, local: SocketAddr, _server: SocketAddr) -> Pin<Box<dyn Send + Future<Output = io::Result<UdpSocket>>>> {
        let bound = match self.dialer.kernel() {
            Some(dialer) => dialer.datagrams(local),
            None => Err(io::ErrorKind::Unsupported.into()),
        };
        Box::pin(async move { bound })
    }
}

/// A stream that may be referred to from several threads, as hickory asks; it is used by one.
struct Shared(Mutex<Box<dyn Stream>>);

impl Shared {
    fn get(&mut self) -> Pin<&mut Box<dyn Stream>> {
        Pin::new(self.0.get_mut().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsyncRead for Shared {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Shared {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get().poll_shutdown(cx)
    }
}
