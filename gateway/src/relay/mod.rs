//! The relay: carries sensors' TLS sessions to Defender endpoints and never decrypts them.
//!
//! # The life of one session
//!
//! ```text
//!  accept ─► PROXY header? ─► TLS?                from named load balancers only     (proxy_protocol, tls)
//!              ▼
//!           CONNECT head  or  ClientHello            bounded buffer, deadline          (connect_head, client_hello)
//!              │
//!              ▼
//!           sensor (who) × catalogue (where to) × port     on the policy current at accept       (policy)
//!              │ refused: status or alert, counted, logged
//!              ▼
//!           path: the first that is fit ─► resolve, check the addresses, dial the checked one    (path, health, address)
//!              │                       └─► or walk a chain of parents by CONNECT                  (parent, chain)
//!              ▼
//!           CONNECT: 200, then the ClientHello, whose name must equal the authority
//!              ▼
//!           replay the bytes read so far, then pump both ways                                    (pump)
//!              ▼
//!           Outcome: bytes up and down, who ended it and why ─► one access line, counters         (session)
//! ```
//!
//! The relay knows nothing of tunnels, routes or YAML: it dials through a [`Dialer`] and accepts through an
//! [`Acceptor`] that it is given. Only sensors initiate: nothing here opens anything towards them.

pub mod address;
pub mod catalogue;
pub mod chain;
pub mod client_hello;
pub mod connect_head;
mod dial;
pub mod dns;
mod dns_server;
mod head_lines;
pub mod health;
pub mod histogram;
pub mod host;
mod listener;
mod ntp;
mod parent;
mod path;
mod policy;
pub mod proxy_protocol;
mod pump;
mod resolver;
pub mod response_head;
mod sensor;
mod service;
pub mod service_tags;
mod session;
mod stats;
pub mod tls;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

pub use dial::{DialError, DirectDialer, ResolveFault, Side};
pub use dns::DnsSettings;
pub use dns_server::{DnsListener, NameService};
pub use host::HostName;
pub use listener::{Listener, ListenerSettings, Listening, NameRule, Protocol, Redirection, TcpAcceptor};
pub use ntp::{NtpListener, NtpServer, NtpSettings, TimeService};
pub use parent::{Parent, ParentHost};
pub use path::{OnPathDown, Path, PathParts, PathProbe, PathSnapshot};
pub use policy::{Drain, Limits, Policy, Refusal, Tuning};
pub use resolver::{Resolver, ResolverError};
pub use sensor::{Evidence, PrivateLink, ProxyUser, Sensor, Sensors};
pub use service::Relay;
pub use stats::{LegacyUse, RelaySnapshot, SensorSnapshot};

/// A future behind a pointer, for the two seams that are chosen at run time.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A byte stream: a kernel socket, or one inside a tunnel's own stack.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// The kernel socket, if there is one.
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Stream for TcpStream {
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(AsFd::as_fd(self))
    }
}

/// What is dialled: an address that has been checked, and the name that it was the answer for.
#[derive(Debug, Clone)]
pub struct Target {
    pub name: String,
    pub address: SocketAddr,
}

/// How the relay leaves: the host's routing, an underlay's interface, or a tunnel.
pub trait Dialer: Send + Sync {
    /// Opens a stream to `target.address` before `deadline`, and to nothing else.
    fn dial<'a>(&'a self, target: &'a Target, deadline: std::time::Instant) -> BoxFuture<'a, Result<Box<dyn Stream>, DialError>>;

    /// How its kernel sockets are made, if it dials with such: datagrams that are to leave the same way are made so too.
    fn kernel(&self) -> Option<&DirectDialer> {
        None
    }
}

/// A downstream stream.
pub struct Accepted {
    pub stream: Box<dyn Stream>,
    pub from: SocketAddr,
    /// Where it was meant to go, if the kernel led it here.
    pub destination: Option<SocketAddr>,
}

/// Where downstream streams come from.
pub trait Acceptor: Send {
    /// The next stream and who opened it. An error ends the listener only if `io::ErrorKind::NotConnected`.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Accepted>>;
}
