//! Whether datagrams leave towards an endpoint, and whether anybody says that they are not welcome there.
//!
//! WireGuard answers nobody whose key it does not know, so that silence says nothing. What says something is a refusal: of
//! this host's own firewall when the datagram is sent, or of somebody on the way, by ICMP. The datagrams sent here are four
//! bytes that are no message of WireGuard's, from a port of their own: no peer follows them, no session is touched.
//!
//! Source: ip(7) and udp(7) (errors of connected sockets); RFC 792, RFC 1812 §5.2.7.1 (codes of "unreachable").

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use routing::MARK;
use socket2::SockRef;
use tokio::net::UdpSocket;

use crate::config::UnderlaySettings;

/// No message of WireGuard's: those begin with 1 to 4.
const DATAGRAM: [u8; 4] = [0; 4];
/// One may be lost, and so may what is said about it; ICMP is sent sparingly.
const DATAGRAMS: u32 = 4;
const APART: Duration = Duration::from_millis(300);

/// What came of datagrams to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reach {
    /// They left, and nobody said anything.
    Silent,
    /// The host there says that nobody listens: its UDP can be reached.
    Refused,
    /// Somebody on the way says that it is forbidden.
    Prohibited,
    /// This host's own firewall drops them.
    BlockedHere,
    /// This host does not know the way.
    NoWay(String),
    /// Not sent, with the reason.
    NotTried(String),
}

/// Sends to `endpoint` as a tunnel would, by `underlay`. `inside`: the endpoint lies in prefixes that are routed into its own
/// tunnel, so that only marked datagrams find out.
pub(super) async fn reach(endpoint: SocketAddr, underlay: &UnderlaySettings, inside: bool) -> Reach {
    let socket = match open(endpoint, underlay, inside).await {
        Ok(socket) => socket,
        Err(unusable) => return unusable,
    };
    let mut answer = [0u8; 64];
    for _ in 0..DATAGRAMS {
        if let Err(error) = socket.send(&DATAGRAM).await {
            return told(&error, Moment::Sending);
        }
        // Whatever answers that is no WireGuard, but it can be reached.
        if let Ok(Err(error)) = tokio::time::timeout(APART, socket.recv(&mut answer)).await {
            return told(&error, Moment::Waiting);
        }
    }
    Reach::Silent
}

async fn open(endpoint: SocketAddr, underlay: &UnderlaySettings, inside: bool) -> Result<UdpSocket, Reach> {
    let failed = |error: io::Error| Reach::NotTried(error.to_string());
    let any: IpAddr = if endpoint.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = underlay.source.filter(|source| source.is_ipv4() == endpoint.is_ipv4()).unwrap_or(any);
    let socket = UdpSocket::bind(SocketAddr::new(source, 0)).await.map_err(failed)?;
    let options = SockRef::from(&socket);
    let marked = options.set_mark(underlay.mark.unwrap_or(MARK));
    if inside && marked.is_err() {
        return Err(Reach::NotTried("it lies inside the tunnel's prefixes, and only root may send past them".to_owned()));
    }
    if let Some(interface) = &underlay.interface {
        options.bind_device(Some(interface.as_bytes())).map_err(|error| Reach::NoWay(format!("interface {interface}: {error}")))?;
    }
    match socket.connect(endpoint).await {
        Ok(()) => Ok(socket),
        Err(error) => Err(told(&error, Moment::Sending)),
    }
}

/// When an error was met: on the way out it is this host's, later somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Sending,
    Waiting,
}

fn told(error: &io::Error, moment: Moment) -> Reach {
    let code = error.raw_os_error();
    // Errors of what was sent before come up at whatever is done next.
    if code == Some(libc::ECONNREFUSED) {
        Reach::Refused
    } else if moment == Moment::Waiting && [libc::EHOSTUNREACH, libc::ENETUNREACH, libc::EACCES].map(Some).contains(&code) {
        Reach::Prohibited
    } else if code == Some(libc::EPERM) {
        Reach::BlockedHere
    } else {
        Reach::NoWay(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_whose_error_it_is() {
        let of = |code, moment| told(&io::Error::from_raw_os_error(code), moment);
        assert_eq!(of(libc::ECONNREFUSED, Moment::Waiting), Reach::Refused);
        assert_eq!(of(libc::ECONNREFUSED, Moment::Sending), Reach::Refused, "of the datagram before");
        assert_eq!(of(libc::EHOSTUNREACH, Moment::Waiting), Reach::Prohibited);
        assert!(matches!(of(libc::EHOSTUNREACH, Moment::Sending), Reach::NoWay(_)));
        assert!(matches!(of(libc::ENETUNREACH, Moment::Sending), Reach::NoWay(_)));
        assert_eq!(of(libc::EPERM, Moment::Sending), Reach::BlockedHere);
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_at_refuses_and_a_taken_one_is_silent() {
        let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
        let endpoint = taken.local_addr().expect("an address");
        assert_eq!(reach(endpoint, &UnderlaySettings::default(), false).await, Reach::Silent);
        drop(taken);
        assert_eq!(reach(endpoint, &UnderlaySettings::default(), false).await, Reach::Refused);
        let nowhere = UnderlaySettings { interface: Some("nowhere0".into()), ..UnderlaySettings::default() };
        assert!(matches!(reach(endpoint, &nowhere, false).await, Reach::NoWay(why) if why.contains("nowhere0")));
    }
}
