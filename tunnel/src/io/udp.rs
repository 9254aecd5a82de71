//! The lane's UDP socket: IPv4 and IPv6 in one, marked, able to leave by a named interface, many datagrams a call.
//!
//! Outward, a run of the batch is one message with `UDP_SEGMENT`, and up to 64 messages are one `sendmmsg`. Where the kernel
//! or the device refuses segmentation (EIO, EINVAL), the run leaves datagram by datagram, and so does all that follows; it
//! is said once. Inward, `UDP_GRO` and `recvmmsg` do the same the other way round ([`super::inbox`]).
//!
//! Outer datagrams carry DF and ICMP about their size is not believed: anybody could send it. What a path takes is found
//! by probing ([`crate::discovery`]), and the kernel never fragments.
#![expect(unsafe_code, reason = "sendmmsg with control messages, socket options that socket2 lacks")]

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::control::Control;
use super::inbox::Inbox;
use crate::batch::{Batch, Outer};

/// Firewall mark of every outer datagram. The routing crate's rule skips it, so that an endpoint may lie inside
/// the prefixes that are routed into the tunnel.
pub const MARK: u32 = 5359;
/// Wanted for both directions: at 10 Gbit/s about 3 ms. With CAP_NET_ADMIN the kernel grants it, else it may grant less.
const BUFFER_BYTES: libc::c_int = 4 << 20;
/// Messages in one `sendmmsg`.
const MESSAGES: usize = 64;
/// How long a full send buffer is waited for.
const FULL_MS: libc::c_int = 5;

#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    port: u16,
    /// The socket is IPv6 and takes IPv4 as mapped addresses.
    dual: bool,
    marked: bool,
    segmentation: bool,
    scratch: Scratch,
}

/// What happened to a batch beside leaving.
#[derive(Debug)]
pub(super) enum SendNews<'a> {
    /// So many datagrams did not leave.
    Failed { outer: &'a Outer, datagrams: usize, error: io::Error },
    /// The source is no address of ours any more; the datagrams left from another.
    SourceGone(IpAddr),
    /// The kernel refuses segmentation: from now on datagrams leave one by one.
    NoSegmentation(io::Error),
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
        for (option, forced) in [(libc::SO_RCVBUF, libc::SO_RCVBUFFORCE), (libc::SO_SNDBUF, libc::SO_SNDBUFFORCE)] {
            if set(&socket, libc::SOL_SOCKET, forced, BUFFER_BYTES).is_err() {
                // A smaller buffer loses bursts.
                let _smaller = set(&socket, libc::SOL_SOCKET, option, BUFFER_BYTES);
            }
        }
        // A missing mark is reported by `is_marked`.
        let marked = socket.set_mark(MARK).is_ok();
        if dual || listen.is_ipv4() {
            set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
            set(&socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        }
        if listen.is_ipv6() {
            set(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
            set(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        }
        if listen.ip().is_unspecified() {
            // Answers leave from the address that was written to.
            let (level, option) =
                if listen.is_ipv6() { (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO) } else { (libc::IPPROTO_IP, libc::IP_PKTINFO) };
            set(&socket, level, option, 1)?;
        }
        // Kernels before 5.0 have neither; datagrams then come and go one by one.
        if set(&socket, libc::SOL_UDP, libc::UDP_GRO, 1).is_err() {
            tracing::debug!("this kernel joins no datagrams");
        }
        let segmentation = set(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        socket.bind(&listen.into())?;
        let port = socket.local_addr()?.as_socket().map_or_else(|| listen.port(), |address| address.port());
        Ok(Self { socket, port, dual, marked, segmentation, scratch: Scratch::default() })
    }

    /// Fills `inbox` with what has come, without waiting; how many messages there are.
    pub(super) fn receive(&self, inbox: &mut Inbox) -> io::Result<usize> {
        match inbox.fill(self.socket.as_raw_fd()) {
            Ok(count) => Ok(count),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
            // Only these say that the socket itself is of no use; others are hearsay (ICMP) or pass (ENETDOWN, ss -K).
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::EINVAL)) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "receiving failed");
                Ok(0)
            }
        }
    }

    /// Sends every run of `batch`; `news` hears of what did not go as wished.
    pub(super) fn send(&mut self, batch: &Batch, mut news: impl FnMut(SendNews<'_>)) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.queue(batch, self.segmentation);
        let (mut next, mut waited) = (0, false);
        while next < scratch.messages.len() {
            let count = MESSAGES.min(scratch.messages.len() - next);
            match self.send_messages(&mut scratch, batch, next..next + count) {
                Ok(sent) => next += sent.max(1),
                Err(error) => {
                    if let Some(message) = scratch.messages.get(next).cloned() {
                        self.send_again(&mut scratch, batch, &message, (error, &mut waited), &mut news);
                    }
                    next += 1;
                }
            }
        }
        scratch.messages.clear();
        self.scratch = scratch;
    }

    /// A message that the kernel did not take: once more, without what it may have refused.
    fn send_again(
        &mut self,
        scratch: &mut Scratch,
        batch: &Batch,
        message: &Message,
        (mut error, waited): (io::Error, &mut bool),
        news: &mut impl FnMut(SendNews<'_>),
    ) {
        let Some(transmit) = batch.transmits().get(message.transmit) else { return };
        if error.kind() == io::ErrorKind::WouldBlock {
            // Once a batch: whoever waits does not receive.
            let room = !std::mem::replace(waited, true) && writable(self.socket.as_raw_fd());
            match if room { self.send_one(scratch, batch, message) } else { Err(error) } {
                Ok(()) => return,
                Err(again) if again.kind() == io::ErrorKind::WouldBlock => {
                    let datagrams = message.bytes.len().div_ceil(message.segment_bytes.max(1));
                    return news(SendNews::Failed { outer: &transmit.outer, datagrams, error: again });
                }
                Err(again) => error = again,
            }
        }
        let mut message = message.clone();
        let code = error.raw_os_error();
        if let (Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EPERM), Some(source)) = (code, message.source.take()) {
            match self.send_one(scratch, batch, &message) {
                // A filter or a full table says nothing about the source.
                Ok(()) if code != Some(libc::EPERM) => return news(SendNews::SourceGone(source)),
                Ok(()) => return,
                Err(again) => error = again,
            }
        }
        let (mut failed, mut segmentation_refused) = (0, false);
        if message.bytes.len() > message.segment_bytes {
            segmentation_refused = matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP));
            let whole = message.bytes.clone();
            for start in whole.clone().step_by(message.segment_bytes.max(1)) {
                message.bytes = start..(start + message.segment_bytes).min(whole.end);
                if let Err(again) = self.send_one(scratch, batch, &message) {
                    failed += 1;
                    error = again;
                }
            }
        } else {
            failed = 1;
        }
        if failed > 0 {
            news(SendNews::Failed { outer: &transmit.outer, datagrams: failed, error });
        } else if segmentation_refused && self.segmentation {
            self.segmentation = false;
            news(SendNews::NoSegmentation(error));
        }
    }

    fn send_one(&self, scratch: &mut Scratch, batch: &Batch, message: &Message) -> io::Result<()> {
        let at = scratch.messages.len();
        scratch.messages.push(message.clone());
        let sent = self.send_messages(scratch, batch, at..at + 1);
        scratch.messages.truncate(at);
        sent.map(drop)
    }

    /// One `sendmmsg` over at most [`MESSAGES`] of the scratch's messages; how many left.
    fn send_messages(&self, scratch: &mut Scratch, batch: &Batch, which: Range<usize>) -> io::Result<usize> {
        let Scratch { messages, addresses, controls, parts, headers } = scratch;
        addresses.clear();
        controls.clear();
        parts.clear();
        headers.clear();
        // Filled before any pointer into them is taken, so that none moves afterwards.
        for message in &messages[which] {
            let Some(transmit) = batch.transmits().get(message.transmit) else { continue };
            let (address, bytes) = (self.outer(transmit.outer.endpoint.address), &batch.bytes()[message.bytes.clone()]);
            addresses.push(SockAddr::from(address));
            controls.push(Control::outward(&transmit.outer, message.source, address, message.segment()));
            parts.push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
        }
        for ((address, control), part) in addresses.iter().zip(controls.iter_mut()).zip(parts.iter_mut()) {
            // SAFETY: an all-zero mmsghdr is valid; it is plain data.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_name = address.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = address.len();
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
            if !control.is_empty() {
                header.msg_hdr.msg_control = control.as_mut_ptr();
                header.msg_hdr.msg_controllen = control.len() as _;
            }
            headers.push(header);
        }
        // SAFETY: every pointer in `headers` is into `batch`, `addresses`, `controls` or `parts`, none of which changes before
        // the call returns; the kernel only reads what they point at, and writes no more than `msg_len` of each header.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as libc::c_uint, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
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

/// One message of a `sendmmsg`: a run, or one datagram of it.
#[derive(Debug, Clone)]
struct Message {
    transmit: usize,
    bytes: Range<usize>,
    segment_bytes: usize,
    source: Option<IpAddr>,
}

impl Message {
    /// The length of a segment, if there is more than one. The kernel is never asked to segment a single datagram.
    fn segment(&self) -> Option<u16> {
        if self.bytes.len() > self.segment_bytes { u16::try_from(self.segment_bytes).ok() } else { None }
    }
}

/// Memory that is used again for every call.
#[derive(Debug, Default)]
struct Scratch {
    messages: Vec<Message>,
    addresses: Vec<SockAddr>,
    controls: Vec<Control>,
    parts: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: the raw pointers in `parts` and `headers` are used within one call of `send_messages` alone, which fills them anew;
// between calls they are never followed.
unsafe impl Send for Scratch {}

impl Scratch {
    fn queue(&mut self, batch: &Batch, segmentation: bool) {
        for (at, transmit) in batch.transmits().iter().enumerate() {
            let step = if segmentation { transmit.bytes.len() } else { transmit.segment_bytes };
            for start in transmit.bytes.clone().step_by(step.max(1)) {
                self.messages.push(Message {
                    transmit: at,
                    bytes: start..(start + step).min(transmit.bytes.end),
                    segment_bytes: transmit.segment_bytes,
                    source: transmit.outer.source,
                });
            }
        }
    }
}

/// Waits a moment for room in the send buffer.
fn writable(fd: RawFd) -> bool {
    let mut polled = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd that outlives the call.
    unsafe { libc::poll(&raw mut polled, 1, FULL_MS) > 0 }
}

/// Sets an integer option.
fn set(socket: &Socket, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value outlives the call and is as long as is said.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT))
}

fn bind_error(address: SocketAddr, source: io::Error) -> UdpError {
    if source.kind() == io::ErrorKind::AddrInUse { UdpError::Taken { address } } else { UdpError::Bind { address, source } }
}

#[cfg(test)]
mod tests;
