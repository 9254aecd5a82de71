//! Datagrams as they come: several messages a call, each a run of equal datagrams that the kernel joined.
#![expect(unsafe_code, reason = "recvmmsg")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;

use socket2::SockAddrStorage;

use super::control::{self, Control};
use crate::engine::Arrival;

/// Messages a call. With joining each holds up to 64 KiB.
const MESSAGES: usize = 8;
const MESSAGE_BYTES: usize = 65_536;

/// A run of datagrams from one sender, all `segment_bytes` long but the last.
pub(super) struct Run<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) segment_bytes: usize,
    pub(super) arrival: Arrival,
}

/// The memory of one `recvmmsg`, used again for every call.
pub(super) struct Inbox {
    buffer: Vec<u8>,
    addresses: Vec<SockAddrStorage>,
    controls: Vec<Control>,
    parts: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    filled: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; MESSAGES * MESSAGE_BYTES],
            addresses: (0..MESSAGES).map(|_| SockAddrStorage::zeroed()).collect(),
            controls: vec![Control::new(); MESSAGES],
            parts: Vec::with_capacity(MESSAGES),
            headers: Vec::with_capacity(MESSAGES),
            filled: 0,
        }
    }

    pub(super) const MESSAGES: usize = MESSAGES;

    pub(super) fn fill(&mut self, socket: RawFd) -> io::Result<usize> {
        self.filled = 0;
        self.parts.clear();
        self.headers.clear();
        for room in self.buffer.chunks_exact_mut(MESSAGE_BYTES) {
            self.parts.push(libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() });
        }
        for ((address, control), part) in self.addresses.iter_mut().zip(&mut self.controls).zip(&mut self.parts) {
            // SAFETY: an all-zero mmsghdr is valid; it is plain data.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
            header.msg_hdr.msg_namelen = address.size_of();
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr();
            header.msg_hdr.msg_controllen = Control::CAPACITY_BYTES as _;
            self.headers.push(header);
        }
        // SAFETY: every pointer in `headers` is into memory that `self` owns and that does not move before the call returns,
        // with the lengths that it has; no timeout is given.
        let count = unsafe {
            libc::recvmmsg(
                socket,
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        self.filled = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        Ok(self.filled)
    }

    /// What the last call brought, in the order of arrival.
    pub(super) fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        let messages = self.headers.iter().zip(&self.addresses).zip(self.buffer.chunks_exact(MESSAGE_BYTES));
        messages.take(self.filled).filter_map(|((header, address), room)| {
            let bytes = room.get(..header.msg_len as usize)?;
            let from = sender(address)?;
            let mut arrival = Arrival { from, to: None, ecn: 0 };
            // SAFETY: recvmmsg filled this header, and `controls`, which it points into, is still there and unchanged.
            let segment_bytes = unsafe { control::read(&header.msg_hdr, &mut arrival) };
            Some(Run { bytes, segment_bytes: if segment_bytes == 0 { bytes.len() } else { segment_bytes }, arrival })
        })
    }
}

fn sender(storage: &SockAddrStorage) -> Option<SocketAddr> {
    // SAFETY: every sockaddr begins with its family, and the storage, zeroed at first, is large enough for each kind that is
    // read here and filled by the kernel as its family says.
    unsafe {
        let storage = std::ptr::from_ref(storage);
        match libc::c_int::from((*storage.cast::<libc::sockaddr>()).sa_family) {
            libc::AF_INET => {
                let address = storage.cast::<libc::sockaddr_in>().read_unaligned();
                let ip = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddr::new(ip.into(), u16::from_be(address.sin_port)))
            }
            libc::AF_INET6 => {
                let address = storage.cast::<libc::sockaddr_in6>().read_unaligned();
                let ip = IpAddr::V6(address.sin6_addr.s6_addr.into()).to_canonical();
                Some(SocketAddr::new(ip, u16::from_be(address.sin6_port)))
            }
            _ => None,
        }
    }
}
