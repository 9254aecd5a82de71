//! What listens for sensors: a kernel socket, or a port inside a tunnel.

use std::io;
use std::net::SocketAddr;

use ipnet::IpNet;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::dial::tune;
use super::policy::Tuning;
use super::tls::ServerTls;
use super::{Accepted, Acceptor, BoxFuture};

/// Connections that wait to be accepted; the kernel caps it at net.core.somaxconn.
pub(super) const BACKLOG: i32 = 4096;

/// What a listener speaks with a sensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 CONNECT: the sensor names its target, then speaks TLS.
    Connect,
    /// TLS at once: the name in the ClientHello is the target.
    Sni,
    /// TLS at once, meant for another address and led here by the kernel: the name in the ClientHello is the target.
    Transparent { by: Redirection, name: NameRule },
}

/// How the kernel leads a connection here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirection {
    /// nftables `redirect`: the destination is rewritten, and asked for by SO_ORIGINAL_DST.
    Redirect,
    /// nftables `tproxy`: the destination stays, and is the socket's own address.
    Tproxy,
}

/// Whether a ClientHello must name its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    Require,
    /// Without a name the original destination must be an address that the catalogue lists.
    IfPresent,
}

impl Protocol {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Sni => "sni",
            Self::Transparent { .. } => "transparent",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSettings {
    pub name: String,
    pub protocol: Protocol,
    /// Load balancers that begin with a PROXY header.
    pub proxy_protocol: Vec<IpNet>,
    pub tls: Option<ServerTls>,
}

/// A listener that is bound and not yet accepting.
pub struct Listener {
    pub settings: ListenerSettings,
    /// One or more: the kernel shares the connections to one port among its sockets.
    pub acceptors: Vec<Box<dyn Acceptor>>,
}

/// A kernel socket that listens.
pub struct TcpAcceptor {
    listener: TcpListener,
    tuning: Tuning,
    redirection: Option<Redirection>,
}

/// How a kernel socket listens.
#[derive(Debug, Clone, Copy)]
pub struct Listening {
    pub address: SocketAddr,
    /// Allow an address that does not exist yet, as a tunnel's own before the tunnel is up.
    pub late: bool,
    /// Several sockets share the port, and the kernel shares the connections among them.
    pub shared: bool,
    pub redirection: Option<Redirection>,
    pub tuning: Tuning,
}

impl TcpAcceptor {
    /// Binds an address; an unspecified IPv6 address takes IPv4 as well. Called inside a tokio runtime.
    pub fn bind(listening: Listening) -> io::Result<Self> {
        let Listening { address, late, shared, redirection, tuning } = listening;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if shared {
            socket.set_reuse_port(true)?;
        }
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        if late {
            if address.is_ipv4() { socket.set_freebind_v4(true)? } else { socket.set_freebind_v6(true)? }
        }
        if redirection == Some(Redirection::Tproxy) {
            if address.is_ipv4() { socket.set_ip_transparent_v4(true)? } else { socket.set_ip_transparent_v6(true)? }
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Self::of(socket.into(), redirection, tuning)
    }

    /// Takes over a socket that listens already, as from a service manager.
    pub fn of(listener: std::net::TcpListener, redirection: Option<Redirection>, tuning: Tuning) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener: TcpListener::from_std(listener)?, tuning, redirection })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Where a redirected connection was meant to go.
    fn destination(&self, stream: &TcpStream) -> Option<SocketAddr> {
        let own = stream.local_addr().ok();
        let destination = match self.redirection? {
            Redirection::Tproxy => own,
            Redirection::Redirect => {
                let socket = SockRef::from(stream);
                let original = if own.is_some_and(|own| own.is_ipv6() && own.ip().to_canonical().is_ipv6()) {
                    socket.original_dst_v6()
                } else {
                    socket.original_dst_v4()
                };
                original.ok().and_then(|address| address.as_socket())
            }
        };
        destination.map(canonical)
    }
}

impl Acceptor for TcpAcceptor {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Accepted>> {
        Box::pin(async move {
            let (stream, from) = self.listener.accept().await?;
            tune(&stream, self.tuning);
            let destination = self.destination(&stream);
            Ok(Accepted { stream: Box::new(stream), from: canonical(from), destination })
        })
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
