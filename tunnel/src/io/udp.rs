//! The lane's UDP socket: IPv4 and IPv6 in one, marked, and able to leave by a named interface.
#![expect(unsafe_code, reason = "sendmsg with a packet-info control message")]

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::batch::Endpoint;

/// Firewall mark of every outer datagram. The routing crate's rule skips it, so that an endpoint may lie inside
/// the prefixes that are routed into the tunnel.
pub const MARK: u32 = 5359;
/// Wanted for both directions: at 10 Gbit/s about 3 ms. The kernel may grant less.
const BUFFER_BYTES: usize = 4 << 20;

#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    port: u16,
    /// The socket is IPv6 and takes IPv4 as mapped addresses.
    dual: bool,
    marked: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    #[error("UDP {address} is taken by another program: choose another `listen`, or stop what holds it (ss -ulpn)")]
    Taken { address: SocketAddr },
    #[error("UDP {address} cannot be bound: {source}")]
    Bind { address: SocketAddr, source: io::Error },
}

impl UdpSocket {
    /// Binds `listen`. An unspecified IPv6 address takes IPv4 as well; where the host has no IPv6, IPv4 alone.
    pub fn bind(listen: SocketAddr) -> Result<Self, UdpError> {
        match Self::open(listen) {
            Err(error) if listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && no_ipv6(&error) => {
                Self::open(SocketAddr::from(([0, 0, 0, 0], listen.port()))).map_err(|source| bind_error(listen, source))
            }
            result => result.map_err(|source| bind_error(listen, source)),
        }
    }

    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether outer datagrams carry the mark: it takes CAP_NET_ADMIN.
    pub const fn is_marked(&self) -> bool {
        self.marked
    }

    fn open(listen: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
        let dual = listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        if listen.is_ipv6() {
            socket.set_only_v6(!dual)?;
        }
        socket.set_nonblocking(true)?;
        // Neither is worth failing for: a smaller buffer loses bursts, a missing mark is reported by `is_marked`.
        let _smaller = socket.set_recv_buffer_size(BUFFER_BYTES);
        let _smaller = socket.set_send_buffer_size(BUFFER_BYTES);
        let marked = socket.set_mark(MARK).is_ok();
        socket.bind(&listen.into())?;
        let port = socket.local_addr()?.as_socket().map_or_else(|| listen.port(), |address| address.port());
        Ok(Self { socket, port, dual, marked })
    }

    /// One datagram and where it came from, or None if there is none now.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
        // SAFETY: u8 and MaybeUninit<u8> have the same layout, and the kernel writes only initialised bytes.
        let uninit = unsafe { &mut *(std::ptr::from_mut::<[u8]>(buffer) as *mut [MaybeUninit<u8>]) };
        match self.socket.recv_from(uninit) {
            Ok((length, from)) => Ok(from.as_socket().map(|from| (length, SocketAddr::new(from.ip().to_canonical(), from.port())))),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            // Only these say that the socket itself is of no use; others are hearsay (ICMP) or pass (ENETDOWN, ss -K).
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::EINVAL)) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "receiving failed");
                Ok(None)
            }
        }
    }

    pub(super) fn send(&self, datagram: &[u8], endpoint: Endpoint) -> io::Result<()> {
        let address = SockAddr::from(self.outer(endpoint.address));
        match endpoint.interface {
            None => self.socket.send_to(datagram, &address).map(drop),
            Some(interface) => self.send_by(datagram, &address, interface),
        }
    }

    /// Sends by `interface`, whatever the routing table prefers.
    fn send_by(&self, datagram: &[u8], address: &SockAddr, interface: u32) -> io::Result<()> {
        let mut control = ControlBuffer([0; CONTROL_BYTES]);
        let mut part = libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
        // SAFETY: an all-zero msghdr is valid; it is plain data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_namelen = address.len();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: `control` is aligned for and larger than one control message with the larger packet info; CMSG_*
        // stay inside msg_controllen, and every pointer in `message` outlives the call.
        let sent = unsafe {
            let header = |message: &mut libc::msghdr, level, kind, length: usize| {
                message.msg_controllen = libc::CMSG_SPACE(length as u32) as _;
                let header = libc::CMSG_FIRSTHDR(message);
                (*header).cmsg_level = level;
                (*header).cmsg_type = kind;
                (*header).cmsg_len = libc::CMSG_LEN(length as u32) as _;
                libc::CMSG_DATA(header)
            };
            if address.is_ipv6() {
                let data = header(&mut message, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, size_of::<libc::in6_pktinfo>());
                // For a mapped destination the kernel wants the source mapped too, even an unspecified one (ip_cmsg_send).
                let mapped = address.as_socket_ipv6().is_some_and(|address| address.ip().to_ipv4_mapped().is_some());
                let source = if mapped { Ipv4Addr::UNSPECIFIED.to_ipv6_mapped() } else { Ipv6Addr::UNSPECIFIED };
                let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: source.octets() }, ipi6_ifindex: interface };
                data.cast::<libc::in6_pktinfo>().write_unaligned(info);
            } else {
                let data = header(&mut message, libc::IPPROTO_IP, libc::IP_PKTINFO, size_of::<libc::in_pktinfo>());
                let info = libc::in_pktinfo {
                    ipi_ifindex: interface as libc::c_int,
                    ipi_spec_dst: std::mem::zeroed(),
                    ipi_addr: std::mem::zeroed(),
                };
                data.cast::<libc::in_pktinfo>().write_unaligned(info);
            }
            libc::sendmsg(self.socket.as_raw_fd(), &raw const message, 0)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// An IPv4 address as the dual socket wants it: mapped into IPv6.
    fn outer(&self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(v4) if self.dual => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
            IpAddr::V4(_) | IpAddr::V6(_) => address,
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

const CONTROL_BYTES: usize = 64;

/// Aligned as `cmsghdr` must be.
#[repr(C, align(8))]
struct ControlBuffer([u8; CONTROL_BYTES]);

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT))
}

fn bind_error(address: SocketAddr, source: io::Error) -> UdpError {
    if source.kind() == io::ErrorKind::AddrInUse { UdpError::Taken { address } } else { UdpError::Bind { address, source } }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: u32 = 1;

    /// Regression: sending IPv4 by a named interface from the dual socket was refused with EINVAL.
    #[test]
    fn sends_by_a_named_interface_over_ipv4_and_ipv6() {
        let socket = UdpSocket::bind("[::]:0".parse().expect("an address")).expect("bound");
        for own in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(receiver) = std::net::UdpSocket::bind(own) else { continue };
            let endpoint = Endpoint { address: receiver.local_addr().expect("an address"), interface: Some(LOOPBACK) };
            socket.send(b"hello", endpoint).expect("sent");
            receiver.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("set");
            assert_eq!(receiver.recv(&mut [0; 16]).expect("received"), 5, "{own}");
        }
    }
}
