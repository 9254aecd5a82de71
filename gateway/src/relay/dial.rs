//! Why a dial failed and on which side, and the dialer that uses the host's own routing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::address::Forbidden;
use super::policy::Tuning;
use super::tls::TlsConnectError;
use super::{BoxFuture, Dialer, Stream, Target};

/// Who is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This gateway.
    Gateway,
    /// The name server.
    Resolver,
    /// The tunnel, or the network that a path leaves by.
    Path,
    /// The next proxy of the chain.
    Parent,
    /// The host that the sensor wants.
    Upstream,
}

impl Side {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Resolver => "resolver",
            Self::Path => "path",
            Self::Parent => "parent",
            Self::Upstream => "upstream",
        }
    }
}

/// Why a name has no address: whether a name server said so, or none said anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveFault {
    #[error("there is no such name")]
    NoName,
    #[error("the name has no address")]
    NoAddress,
    #[error("the name server answers: {0}")]
    Refused(String),
    #[error("{0}")]
    Silent(String),
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    #[error("the name cannot be resolved: {cause}")]
    Resolve { cause: ResolveFault },
    #[error("the name resolves to {address}, which {why}")]
    Forbidden { address: IpAddr, why: Forbidden },
    #[error("{address} refused the connection")]
    Refused { address: SocketAddr },
    #[error("{address} did not answer in time")]
    TimedOut { address: SocketAddr },
    #[error("{address} cannot be reached: {detail}")]
    Unreachable { address: SocketAddr, detail: String },
    #[error("the tunnel {tunnel} has no session with the peer that {address} belongs to")]
    TunnelDown { tunnel: String, address: SocketAddr },
    #[error("no peer of the tunnel {tunnel} has {address} in its allowed_ips")]
    NotCovered { tunnel: String, address: SocketAddr },
    #[error("the parent {parent} answered {status}{}", reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default())]
    ParentRefused { parent: String, status: u16, reason: Option<String> },
    #[error("the parent {parent} showed no certificate that can be trusted: {cause}")]
    ParentTls { parent: String, cause: TlsConnectError },
    #[error("the parent {parent} cannot be reached: {cause}")]
    ParentUnreachable { parent: String, cause: Box<Self> },
    #[error("the parent {parent} took the request and did not answer in time")]
    ParentSilent { parent: String },
    #[error("the parent {parent} broke off: {detail}")]
    ParentBroken { parent: String, detail: String },
    #[error("the name resolves to {address}, which lies outside the service tag of the host's role")]
    OutsideServiceTag { address: IpAddr },
    #[error("no path is configured")]
    NoPath,
    #[error("no socket: {detail}")]
    Socket { detail: String },
}

impl DialError {
    pub const fn side(&self) -> Side {
        match self {
            Self::Resolve { .. } | Self::Forbidden { .. } | Self::OutsideServiceTag { .. } => Side::Resolver,
            Self::Refused { .. } | Self::TimedOut { .. } | Self::Unreachable { .. } => Side::Upstream,
            Self::TunnelDown { .. } | Self::NotCovered { .. } => Side::Path,
            Self::ParentRefused { .. }
            | Self::ParentUnreachable { .. }
            | Self::ParentSilent { .. }
            | Self::ParentBroken { .. }
            | Self::ParentTls { .. } => Side::Parent,
            Self::NoPath | Self::Socket { .. } => Side::Gateway,
        }
    }

    /// A stable word for logs and metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "dns_failed",
            Self::Forbidden { .. } => "address_forbidden",
            Self::Refused { .. } => "connection_refused",
            Self::TimedOut { .. } => "connect_timeout",
            Self::Unreachable { .. } => "unreachable",
            Self::TunnelDown { .. } => "tunnel_down",
            Self::NotCovered { .. } => "not_in_allowed_ips",
            Self::ParentRefused { .. } => "parent_refused",
            Self::ParentUnreachable { .. } => "parent_unreachable",
            Self::ParentSilent { .. } => "parent_timeout",
            Self::ParentBroken { .. } => "parent_broken",
            Self::ParentTls { .. } => "parent_tls",
            Self::OutsideServiceTag { .. } => "outside_service_tag",
            Self::NoPath => "no_path",
            Self::Socket { .. } => "no_socket",
        }
    }

    /// Whether it says something of the way itself; a target that refuses does not.
    pub fn blames_the_path(&self) -> bool {
        match self {
            Self::TunnelDown { .. }
            | Self::TimedOut { .. }
            | Self::Unreachable { .. }
            | Self::ParentUnreachable { .. }
            | Self::ParentSilent { .. }
            | Self::ParentBroken { .. }
            | Self::ParentTls { .. } => true,
            Self::ParentRefused { status, .. } => *status == 407,
            Self::Resolve { .. }
            | Self::Forbidden { .. }
            | Self::OutsideServiceTag { .. }
            | Self::Refused { .. }
            | Self::NotCovered { .. }
            | Self::NoPath
            | Self::Socket { .. } => false,
        }
    }

    /// The HTTP status that tells a sensor's proxy client the same.
    pub fn status(&self) -> u16 {
        match self {
            Self::Resolve { .. } | Self::Refused { .. } | Self::Unreachable { .. } | Self::ParentBroken { .. } | Self::ParentTls { .. } => {
                502
            }
            Self::Forbidden { .. } | Self::OutsideServiceTag { .. } => 403,
            Self::TimedOut { .. } | Self::ParentSilent { .. } => 504,
            Self::TunnelDown { .. } | Self::NotCovered { .. } | Self::NoPath | Self::Socket { .. } => 503,
            // What the parent says of itself is for this relay; what it says of the target is for the sensor.
            Self::ParentRefused { status, .. } => match status {
                403 | 502 | 503 | 504 | 508 => *status,
                _ => 502,
            },
            Self::ParentUnreachable { cause, .. } => match cause.status() {
                status @ (503 | 504) => status,
                _ => 502,
            },
        }
    }
}

/// Dials by the host's routing table, or by one interface or source address.
#[derive(Debug, Clone, Default)]
pub struct DirectDialer {
    /// Leave by this interface alone (SO_BINDTODEVICE).
    pub interface: Option<String>,
    pub source: Option<IpAddr>,
    pub mark: Option<u32>,
    pub tuning: Tuning,
}

impl Dialer for DirectDialer {
    fn dial<'a>(&'a self, target: &'a Target, deadline: Instant) -> BoxFuture<'a, Result<Box<dyn Stream>, DialError>> {
        Box::pin(async move {
            let stream = self.connect(target.address, deadline).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn kernel(&self) -> Option<&DirectDialer> {
        Some(self)
    }
}

impl DirectDialer {
    async fn connect(&self, address: SocketAddr, deadline: Instant) -> Result<TcpStream, DialError> {
        // Unbound, it would leave by whatever the routing table says: not by this way out.
        if let Some(source) = self.source.filter(|source| source.is_ipv4() != address.is_ipv4()) {
            return Err(DialError::Socket { detail: format!("the underlay's source {source} is of another IP version than {address}") });
        }
        let socket = self.socket(address).map_err(|error| DialError::Socket { detail: error.to_string() })?;
        match tokio::time::timeout_at(deadline.into(), socket.connect(address)).await {
            Ok(Ok(stream)) => {
                tune(&stream, self.tuning);
                Ok(stream)
            }
            Ok(Err(error)) => Err(connect_error(address, &error)),
            Err(_) => Err(DialError::TimedOut { address }),
        }
    }

    fn socket(&self, address: SocketAddr) -> io::Result<TcpSocket> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        self.bind(SockRef::from(&socket))?;
        if let Some(source) = self.source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        Ok(socket)
    }

    /// A socket for datagrams that leave as the streams do.
    pub(super) fn datagrams(&self, local: SocketAddr) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(local), Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        self.bind(SockRef::from(&socket))?;
        let source = self.source.filter(|source| source.is_ipv4() == local.is_ipv4());
        socket.bind(&SocketAddr::new(source.unwrap_or_else(|| local.ip()), local.port()).into())?;
        UdpSocket::from_std(socket.into())
    }

    fn bind(&self, options: SockRef<'_>) -> io::Result<()> {
        if let Some(interface) = &self.interface {
            options.bind_device(Some(interface.as_bytes()))?;
        }
        if let Some(mark) = self.mark {
            options.set_mark(mark)?;
        }
        Ok(())
    }
}

pub(super) fn connect_error(address: SocketAddr, error: &io::Error) -> DialError {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        DialError::Refused { address }
    } else if error.kind() == io::ErrorKind::TimedOut {
        DialError::TimedOut { address }
    } else {
        DialError::Unreachable { address, detail: error.to_string() }
    }
}

/// What every kernel socket of a session gets. None of it is worth failing a session for.
pub(super) fn tune(stream: &TcpStream, tuning: Tuning) {
    let options = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(tuning.keepalive).with_interval(tuning.keepalive / 4);
    let _ignored = options.set_tcp_nodelay(true);
    let _ignored = options.set_tcp_keepalive(&keepalive);
    let _ignored = options.set_tcp_user_timeout(Some(tuning.user_timeout));
}
