//! What listens for sensors: a kernel socket, or a port inside a tunnel.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

use super::dial::tune;
use super::{Acceptor, BoxFuture, Stream};

/// Connections that wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// What a listener speaks with a sensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 CONNECT: the sensor names its target, then speaks TLS.
    Connect,
    /// TLS at once: the name in the ClientHello is the target.
    Sni,
}

impl Protocol {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Sni => "sni",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSettings {
    pub name: String,
    pub protocol: Protocol,
}

/// A listener that is bound and not yet accepting.
pub struct Listener {
    pub settings: ListenerSettings,
    pub acceptor: Box<dyn Acceptor>,
}

/// A kernel socket that listens.
pub struct TcpAcceptor(TcpListener);

impl TcpAcceptor {
    /// Binds `address`; an unspecified IPv6 address takes IPv4 as well. Called inside a tokio runtime.
    ///
    /// `late` allows an address that does not exist yet, as a tunnel's own before the tunnel is up.
    pub fn bind(address: SocketAddr, late: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        if late {
            if address.is_ipv4() { socket.set_freebind_v4(true)? } else { socket.set_freebind_v6(true)? }
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self(TcpListener::from_std(socket.into())?))
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Acceptor for TcpAcceptor {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn Stream>, SocketAddr)>> {
        Box::pin(async move {
            let (stream, from) = self.0.accept().await?;
            tune(&stream);
            Ok((Box::new(stream) as Box<dyn Stream>, SocketAddr::new(from.ip().to_canonical(), from.port())))
        })
    }
}
