//! The relay's two seams inside a tunnel: dialling through it, and listening on the gateway's address in it.
//!
//! In TUN mode a dial is a kernel socket bound to the tunnel's device, so that it leaves by the tunnel or not at all.
//! In userspace mode it is a stream of the lane's own stack.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use tokio::sync::watch;
use tunnel::userspace::{self, Network};
use tunnel::{PeerSnapshot, PeerState, Snapshot};

use crate::relay::{Accepted, Acceptor, BoxFuture, DialError, Dialer, DirectDialer, Stream, Target};

/// Dials through one tunnel.
pub(crate) struct TunnelDialer {
    pub(crate) tunnel: String,
    pub(crate) snapshots: watch::Receiver<Snapshot>,
    pub(crate) way: Way,
}

/// How the tunnel is entered.
pub(crate) enum Way {
    Device(DirectDialer),
    Network(Network),
}

impl Stream for userspace::Stream {}

impl Dialer for TunnelDialer {
    fn dial<'a>(&'a self, target: &'a Target, deadline: Instant) -> BoxFuture<'a, Result<Box<dyn Stream>, DialError>> {
        Box::pin(async move {
            let address = target.address;
            // An idle peer is asked by the dial itself.
            if self.peer(address, |peer| peer.state == PeerState::Connecting && peer.trouble.is_some())? {
                return Err(self.down(address));
            }
            let dialled = match &self.way {
                Way::Device(dialer) => dialer.dial(target, deadline).await,
                Way::Network(network) => {
                    let stream = network.dial(address, deadline).await;
                    stream.map(|stream| Box::new(stream) as Box<dyn Stream>).map_err(|error| self.explain(address, &error))
                }
            };
            match dialled {
                // Silence behind a tunnel that has no session is the tunnel's.
                Err(DialError::TimedOut { .. } | DialError::Unreachable { .. })
                    if self.peer(address, |peer| peer.state != PeerState::Up)? =>
                {
                    Err(self.down(address))
                }
                dialled => dialled,
            }
        })
    }

    fn kernel(&self) -> Option<&DirectDialer> {
        match &self.way {
            Way::Device(dialer) => Some(dialer),
            Way::Network(_) => None,
        }
    }
}

impl TunnelDialer {
    /// Asks about the peer whose allowed IPs hold `address`; an address of no peer is an error.
    fn peer<T>(&self, address: SocketAddr, ask: impl FnOnce(&PeerSnapshot) -> T) -> Result<T, DialError> {
        // Copied, because the lane waits for whoever borrows; the allowed IPs are shared.
        let snapshot = self.snapshots.borrow().clone();
        let covers = |peer: &&PeerSnapshot| {
            peer.allowed_ips.iter().filter(|prefix| prefix.contains(&address.ip())).map(|prefix| prefix.prefix_len()).max()
        };
        let peer = snapshot.peers.iter().filter(|peer| covers(peer).is_some()).max_by_key(covers);
        peer.map(ask).ok_or_else(|| DialError::NotCovered { tunnel: self.tunnel.clone(), address })
    }

    fn down(&self, address: SocketAddr) -> DialError {
        DialError::TunnelDown { tunnel: self.tunnel.clone(), address }
    }

    fn explain(&self, address: SocketAddr, error: &userspace::DialError) -> DialError {
        match error {
            userspace::DialError::Refused => DialError::Refused { address },
            userspace::DialError::TimedOut => DialError::TimedOut { address },
            userspace::DialError::NoAddress => DialError::Unreachable { address, detail: error.to_string() },
            userspace::DialError::TooMany => DialError::Socket { detail: error.to_string() },
            userspace::DialError::Stopped => self.down(address),
        }
    }
}

/// Accepts streams at a port inside a userspace tunnel.
pub(crate) struct TunnelAcceptor(pub(crate) userspace::Listener);

impl Acceptor for TunnelAcceptor {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Accepted>> {
        Box::pin(async move {
            match self.0.accept().await {
                Some(accepted) => Ok(Accepted { stream: Box::new(accepted.stream), from: accepted.from, destination: None }),
                None => Err(io::ErrorKind::NotConnected.into()),
            }
        })
    }
}
